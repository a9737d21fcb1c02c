"""Where the kernels of a file run: what a provider of ONNX Runtime has no kernel for is left to the CPU without a word.

Counted in ONNX Runtime's own profile of one call, since it works out what it can before the first, fuses nodes, adds
copies between devices, and calls what is inside of a Loop many times.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from colorpress.core.errors import ConfigError
from colorpress.core.locks import scratch_folder
from export.layer_latency import find_kernels
from export.runtimes import RUNTIMES, Runtime, find_runtime
from export.sessions import CPU_PROVIDER, call_library, open_session

SIDE = 256
_COPIES = ("MemcpyFromHost", "MemcpyToHost")
# Lengths of the axes that an exported file names, but for the picture's.
_LENGTHS = {"N": 1, "C": 3}


@dataclass(frozen=True)
class KernelCalls:
    """The kernel calls of one call of a file.

    Attributes:
        provider: what the file was opened on, see `export.sessions.describe_provider`.
        shape: of what it was given.
        calls: how often each operator was called, by the name of the provider that it ran on.
    """

    provider: str
    shape: tuple[int, ...]
    calls: Mapping[str, Mapping[str, int]]

    @property
    def total(self) -> int:
        """All calls, copies between devices among them."""
        return sum(sum(each.values()) for each in self.calls.values())

    @property
    def on_cpu(self) -> int:
        """Those on ONNX Runtime's own CPU provider."""
        return sum(self.calls.get(CPU_PROVIDER, {}).values())

    @property
    def copies(self) -> int:
        """Those that copy between devices."""
        return sum(each.get(copy, 0) for each in self.calls.values() for copy in _COPIES)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {**asdict(self), "total": self.total, "on_cpu": self.on_cpu, "copies": self.copies}

    def describe(self) -> str:
        """In a line, such as "WebGpuExecutionProvider: 29 kernel calls at 1x1x256x256, 0 of them on the CPU"."""
        said = f"{self.provider}: {self.total} kernel calls at {'x'.join(map(str, self.shape))}"
        left = self.calls.get(CPU_PROVIDER, {})
        operators = ", ".join(f"{count} {name}" for name, count in sorted(left.items(), key=lambda each: -each[1]))
        share = f", {self.on_cpu / self.total:.1%}: {operators}" if left else ""
        return f"{said}, {self.copies} of them copies between devices, {self.on_cpu} on the CPU{share}"


def count_kernel_calls(path: Path, runtime: str, *, side: int = SIDE) -> KernelCalls:
    """Run a model of one's own once, a bare network or a picture graph, under ONNX Runtime's profiler.

    Args:
        runtime: the key of RUNTIMES, of one that is a provider of ONNX Runtime.
        side: rows and columns of the picture, where the file takes any.
    Raises:
        ConfigError: no such file, or the runtime is no provider of ONNX Runtime.
        InputError: the file is no ONNX model.
        MachineError: the provider is not there.
    """
    chosen = find_runtime(path, runtime)
    if not chosen.provider:
        hint = f"choose one of: {', '.join(each.name for each in RUNTIMES.values() if each.provider)}"
        raise ConfigError("runtime", runtime, "is no provider of ONNX Runtime", hint)
    return _count(path, chosen, side)


def _count(path: Path, runtime: Runtime, side: int) -> KernelCalls:
    with scratch_folder() as folder:
        provider = f"{runtime.provider}{':0' if runtime.needs_gpu else ''}"
        session = open_session(path, provider=provider, threads=1, profile_prefix=folder / "run")
        (given,) = session.get_inputs()
        shape = tuple(each if isinstance(each, int) else _LENGTHS.get(each, side) for each in given.shape)
        kind = np.uint8 if given.type == "tensor(uint8)" else np.float32
        call_library(path, session.run, None, {given.name: np.zeros(shape, kind)})
        events = json.loads(Path(session.end_profiling()).read_bytes())
    calls: dict[str, Counter[str]] = {}
    for kernel in find_kernels(events):
        calls.setdefault(kernel["args"]["provider"], Counter())[kernel["args"]["op_name"]] += 1
    return KernelCalls(session.provider, shape, {name: dict(count) for name, count in calls.items()})
