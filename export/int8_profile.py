"""What an int8 file really computes in 8 bits, from ONNX Runtime's own profile of a few calls."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from export.predictors import OnnxPredictor

_BYTES = frozenset({"int8", "uint8"})
_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class OperatorTime:
    """Time spent in one operator type: `int8` when its kernels read bytes; `share` of all kernels' time, 0 to 1."""

    operator: str
    int8: bool
    kernels: int
    share: float


@dataclass(frozen=True)
class Int8Profile:
    """Operators by time, largest first, and the nodes that still compute in float."""

    operators: tuple[OperatorTime, ...]
    float_nodes: tuple[str, ...]

    @property
    def int8_share(self) -> float:
        """Part of the time spent in kernels that read bytes, 0 to 1; conversions from and to float count as float."""
        return sum(each.share for each in self.operators if each.int8)


def profile_int8(path: Path, *, side: int = 256, calls: int = 3, threads: int = 0) -> Int8Profile:
    """Run a model of one's own a few times under ONNX Runtime's profiler.

    Args:
        side: of the square input, in pixels.
        calls: profiled runs after one that is left out.
    Raises:
        ConfigError, InputError: as `OnnxPredictor`.
    """
    picture = np.linspace(0.0, 1.0, side * side, dtype=np.float32).reshape(1, 1, side, side)
    with tempfile.TemporaryDirectory(prefix="colorpress-profile-") as folder:
        predictor = OnnxPredictor(path, threads=threads, profile_prefix=Path(folder) / "run")
        for _ in range(1 + calls):
            predictor(picture)
        events = json.loads(Path(predictor.session.end_profiling()).read_bytes())
    return summarize_profile(events, calls=1 + calls)


def summarize_profile(events: list[Mapping[str, Any]], *, calls: int) -> Int8Profile:
    """Sum ONNX Runtime's profile events; of `calls` equal runs the first is left out."""
    kernels = [each for each in events if each.get("cat") == "Node" and each["name"].endswith("_kernel_time")]
    kernels = kernels[len(kernels) // calls :]
    micros: dict[tuple[str, bool], float] = defaultdict(float)
    nodes: dict[tuple[str, bool], set[str]] = defaultdict(set)
    for event in kernels:
        operator = event["args"]["op_name"]
        key = (operator, _reads_bytes(event["args"]) and operator not in _CONVERSIONS)
        micros[key] += event["dur"]
        nodes[key].add(event["name"].removesuffix("_kernel_time"))
    total = sum(micros.values()) or 1.0
    operators = [
        OperatorTime(operator, int8, len(nodes[operator, int8]), spent / total)
        for (operator, int8), spent in micros.items()
    ]
    in_float = sorted(name for (_, int8), names in nodes.items() if not int8 for name in names)
    return Int8Profile(tuple(sorted(operators, key=lambda each: -each.share)), tuple(in_float))


def _reads_bytes(arguments: Mapping[str, Any]) -> bool:
    """Whether an input of a kernel is a tensor of bytes (QLinearConcat's first one is a scale)."""
    return any(not _BYTES.isdisjoint(each) for each in arguments.get("input_type_shape", []))
