"""Where the time of a call goes, layer by layer: in ONNX Runtime by its own profile, in PyTorch by hooks.

Both add some overhead to every layer, so shares are what to read: `export.timing` says how long a call takes.
What a runtime does to be fast (fused operators, other memory layouts, threads) stays on.
"""

from __future__ import annotations

import tempfile
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from colorpress.core.console import warn
from export.layer_nodes import assign_names
from export.ort_profile import find_kernels, original_name, profile_calls
from training.device import torch_threads
from training.network import ColorNetwork

# Untimed calls first.
_WARMUP = 2
# A process that has its cores to itself is interrupted a few times a second.
_BUSY_PER_S = 50.0


@dataclass(frozen=True)
class LayerTimes:
    """Time of each layer in one call, medians over calls, in milliseconds.

    Attributes:
        by_layer: layer name to its time, in the order of the call; layers that were not seen are missing.
        call_ms: of the whole call: all its kernels in ONNX Runtime, the clock in PyTorch.
    """

    by_layer: Mapping[str, float]
    call_ms: float


def time_torch_layers(
    network: ColorNetwork, layers: Collection[str], *, side: int, runs: int, threads: int = 0
) -> LayerTimes:
    """Time layers in eager PyTorch on the CPU: each by itself, so without the batch norm and activation behind it.

    Every run goes through all layers, so that a slow moment of the machine meets them all alike.

    Args:
        network: on the CPU, in eval mode; it stays as it is.
        layers: names as in `named_modules`.
        side: of the square input, in pixels.
        runs: timed calls after two that are not.
        threads: CPU threads; 0: torch's own number.
    """
    picture = torch.linspace(0.0, 1.0, side * side).reshape(1, 1, side, side)
    started: dict[str, int] = {}
    spent: dict[str, float] = defaultdict(float)
    calls: list[Mapping[str, float]] = []
    calls_ms: list[float] = []

    def start(name: str, *_: Any) -> None:
        started[name] = time.perf_counter_ns()

    def stop(name: str, *_: Any) -> None:
        spent[name] += (time.perf_counter_ns() - started[name]) / 1e6

    handles = []
    for name in layers:
        module: nn.Module = network.get_submodule(name)
        handles.append(module.register_forward_pre_hook(partial(start, name)))
        handles.append(module.register_forward_hook(partial(stop, name)))
    try:
        with torch_threads(threads), torch.inference_mode():
            for _ in range(_WARMUP + runs):
                spent.clear()
                before = time.perf_counter_ns()
                network(picture)
                calls_ms.append((time.perf_counter_ns() - before) / 1e6)
                calls.append(dict(spent))
    finally:
        for handle in handles:
            handle.remove()
    return _take_medians(calls[_WARMUP:], calls_ms[_WARMUP:])


def time_onnx_layers(
    model: onnx.ModelProto, layers: Collection[str], *, side: int, runs: int, threads: int = 0
) -> LayerTimes:
    """Time the layers of an exported graph in ONNX Runtime on the CPU, each with the activation that is fused with it.

    Args:
        model: as `build_graph` makes it.
        layers: names as in the network.
        side: of the square input, in pixels.
        runs: timed calls after one that is not.
        threads: CPU threads; 0: one per usable core.
    Raises:
        InputError: ONNX Runtime refuses the graph.
    """
    with tempfile.TemporaryDirectory(prefix="colorpress-layers-") as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(model.SerializeToString())
        events = profile_calls(path, side=side, calls=1 + runs, threads=threads)
    return sum_layer_events(events, assign_names(model.graph, layers), runs=runs)


@contextmanager
def warn_when_busy() -> Iterator[None]:
    """Warn after the block where other work took the processor from it: threads then wait for each other.

    Every layer comes to take about the same time in that case, whatever it computes.
    """
    import psutil

    process = psutil.Process()
    before, started = process.num_ctx_switches().involuntary, time.monotonic()
    yield
    rate = (process.num_ctx_switches().involuntary - before) / max(time.monotonic() - started, 1e-3)
    if rate > _BUSY_PER_S:
        warn(f"timing was interrupted {rate:.0f} times a second by other work: do not trust the times of layers")


def sum_layer_events(events: list[Mapping[str, Any]], names: Mapping[str, str], *, runs: int) -> LayerTimes:
    """The times of layers from profile events of `runs` equal calls and an untimed one before them.

    Args:
        names: the layer of each node and value name.
    """
    kernels = find_kernels(events)
    each_call = len(kernels) // (1 + runs)
    calls: list[Mapping[str, float]] = []
    calls_ms = []
    for run in range(1, 1 + runs):
        spent: dict[str, float] = defaultdict(float)
        call = kernels[run * each_call : (run + 1) * each_call]
        for event in call:
            if (layer := names.get(original_name(event["name"]))) is not None:
                spent[layer] += event["dur"] / 1e3
        calls.append(spent)
        calls_ms.append(sum(event["dur"] for event in call) / 1e3)
    return _take_medians(calls, calls_ms)


def _take_medians(calls: Sequence[Mapping[str, float]], calls_ms: Sequence[float]) -> LayerTimes:
    """From the milliseconds of each layer in each call, and those of the calls."""
    names = dict.fromkeys(name for call in calls for name in call)
    by_layer = {name: float(np.median([call[name] for call in calls if name in call])) for name in names}
    return LayerTimes(by_layer, float(np.median(calls_ms)))
