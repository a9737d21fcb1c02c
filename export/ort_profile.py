"""ONNX Runtime's own profile of a few calls: the time of each kernel, and the node of the file that it came from."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from export.predictors import OnnxPredictor

_RENAMED = re.compile(r"(_nchwc|_token_\d+|_quant)*(_kernel_time)?$")


def profile_calls(path: Path, *, side: int, calls: int, threads: int = 0) -> list[Mapping[str, Any]]:
    """The events of ONNX Runtime's profile of `calls` equal calls with a square picture of `side` pixels.

    Raises:
        ConfigError, InputError: as `OnnxPredictor`.
    """
    picture = np.linspace(0.0, 1.0, side * side, dtype=np.float32).reshape(1, 1, side, side)
    with tempfile.TemporaryDirectory(prefix="colorpress-profile-") as folder:
        predictor = OnnxPredictor(path, threads=threads, profile_prefix=Path(folder) / "run")
        for _ in range(calls):
            predictor(picture)
        events: list[Mapping[str, Any]] = json.loads(Path(predictor.session.end_profiling()).read_bytes())
    return events


def find_kernels(events: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events that tell a kernel's time, in the order of execution; their names end in _kernel_time."""
    return [each for each in events if each.get("cat") == "Node" and each["name"].endswith("_kernel_time")]


def original_name(kernel: str) -> str:
    """What a kernel was called in the file: a node or, where several were fused, the value of the last one."""
    return _RENAMED.sub("", kernel)
