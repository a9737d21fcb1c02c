"""Where the time of a call goes, layer by layer: in ONNX Runtime by its own profile, in PyTorch by hooks.

Both add some overhead to every layer, so shares are what to read: `export.timing` says how long a call takes.
What a runtime does to be fast (fused operators, other memory layouts, threads) stays on.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter, defaultdict
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
from colorpress.core.locks import scratch_folder
from export.predictors import OnnxPredictor
from training.device import torch_threads
from training.network import ColorNetwork

# Untimed calls first.
_WARMUP = 2
# A process that has its cores to itself is interrupted a few times a second.
_BUSY_PER_S = 50.0
_CONVOLUTIONS = ("Conv", "ConvTranspose")
# What a runtime computes together with the convolution in front of it; the two then have the name of the later one.
FUSED_OPS = ("Relu", "LeakyRelu", "Tanh", "Sigmoid", "Clip", "HardSigmoid", "Add")
_RENAMED = re.compile(r"(_nchwc|_token_\d+|_quant)*(_kernel_time)?$")


@dataclass(frozen=True)
class LayerTimes:
    """Time of each layer in one call, medians over calls, in milliseconds.

    Attributes:
        by_layer: layer name to its time, in the order of the call; layers that were not seen are missing.
        call_ms: of the whole call: all its kernels in ONNX Runtime, the clock in PyTorch.
    """

    by_layer: Mapping[str, float]
    call_ms: float


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
    with scratch_folder() as folder:
        path = folder / "model.onnx"
        path.write_bytes(model.SerializeToString())
        events = profile_calls(path, side=side, calls=1 + runs, threads=threads)
    return sum_layer_events(events, assign_names(model.graph, layers), runs=runs)


def profile_calls(path: Path, *, side: int, calls: int, threads: int = 0) -> list[Mapping[str, Any]]:
    """The events of ONNX Runtime's own profile of `calls` equal calls with a square picture of `side` pixels.

    Raises:
        ConfigError, InputError: as `OnnxPredictor`.
    """
    picture = np.linspace(0.0, 1.0, side * side, dtype=np.float32).reshape(1, 1, side, side)
    with scratch_folder() as folder:
        predictor = OnnxPredictor(path, threads=threads, profile_prefix=folder / "run")
        for _ in range(calls):
            predictor(picture)
        events: list[Mapping[str, Any]] = json.loads(Path(predictor.session.end_profiling()).read_bytes())
    return events


def find_kernels(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The events that tell a kernel's time, in the order of execution; their names end in _kernel_time."""
    return [each for each in events if each.get("cat") == "Node" and each["name"].endswith("_kernel_time")]


def original_name(kernel: str) -> str:
    """What a kernel was called in the file: a node or, where several were fused, the value of the last one."""
    return _RENAMED.sub("", kernel)


def sum_layer_events(events: Sequence[Mapping[str, Any]], names: Mapping[str, str], *, runs: int) -> LayerTimes:
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


def find_layer(node_name: str, layers: Collection[str]) -> str | None:
    """The layer that a node was traced in, by its name; None for a function or a module that is not in `layers`.

    A layer that is called several times has nodes conv, conv_2 and so on; one that the export rewrites as several
    modules, as it does with a transposed convolution up.0, has nodes up.0.0 and up.0.1.
    """
    for name in (node_name, re.sub(r"_\d+$", "", node_name)):
        if name in layers:
            return name
        if parents := [layer for layer in layers if name.startswith(f"{layer}.")]:
            return max(parents, key=len)
    return None


def find_convolutions(graph: onnx.GraphProto, layers: Collection[str]) -> dict[str, list[onnx.NodeProto]]:
    """The convolutions with constant weights of each layer that has some, in the order of the graph."""
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        if node.op_type in _CONVOLUTIONS and node.input[1] in constants and (layer := find_layer(node.name, layers)):
            found.setdefault(layer, []).append(node)
    return found


def assign_names(graph: onnx.GraphProto, layers: Collection[str]) -> dict[str, str]:
    """The layer of each node and value name that time in a runtime's profile may be reported under.

    What follows a layer's convolution, and nothing else reads, counts for the layer: an activation, or an addition.
    """
    uses = Counter(name for node in graph.node for name in node.input)
    made: dict[str, str] = {}  # value name to layer, for what may still be fused
    names: dict[str, str] = {}
    for node in graph.node:
        layer = find_layer(node.name, layers)
        if layer is None and node.op_type in FUSED_OPS:
            # Of an addition's two sides the later one is computed together with it.
            layer = next((made[name] for name in reversed(made) if name in node.input and uses[name] == 1), None)
        if layer is not None:
            names |= dict.fromkeys((node.name, *node.output), layer)
            if node.op_type in (*_CONVOLUTIONS, *FUSED_OPS):
                made[node.output[0]] = layer
    return names
