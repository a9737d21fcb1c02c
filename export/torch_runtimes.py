"""How PyTorch can run one network: eager, another memory layout, half precision, compiled, as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from colorpress.core.config import GPU_RUNTIMES
from colorpress.core.errors import MachineError

Call = Callable[[Tensor], Tensor]


def prepare_network(network: nn.Module, runtime: str, device: torch.device) -> Call:
    """A function from L (N, 1, H, W) on `device` to ab (N, 2, H, W), float32, to be called in inference mode.

    "torch" is eager float32. "torch-channels-last" stores channels innermost. "torch-bf16" adds autocast to bfloat16,
    as PyTorch recommends for CPUs with it. "torch-compile" is what the Inductor compiler makes of a network in the
    former, weights frozen, and "torch-compile-bf16" in the latter, anew for each size, which takes seconds to minutes.
    "torch-fp16" computes in half precision, "torch-cuda-graph" replays that as one CUDA graph for each size.

    Args:
        network: on `device`, in eval mode; it is changed where the runtime keeps weights in another way.
        runtime: one of config.TORCH_RUNTIMES.
    Raises:
        MachineError: the runtime needs a GPU.
    """
    if runtime in GPU_RUNTIMES and device.type != "cuda":
        raise MachineError("runtime", runtime, f"needs a GPU, not {device}", "leave it out of --runtime")
    if runtime == "torch":
        return network
    network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if runtime in ("torch-fp16", "torch-cuda-graph"):
        half = _in_half(network.half())
        return _as_cuda_graphs(half) if runtime == "torch-cuda-graph" else half
    call: Call = network
    if runtime.startswith("torch-compile"):
        # Of sizes that are not fixed it makes no code: the padding is too much for its shape arithmetic (2.13).
        call = torch.compile(network, dynamic=False, options={"freezing": True})
    return _in_channels_last(_in_bfloat16(call, device) if runtime.endswith("bf16") else call)


def uncompiled(runtime: str) -> str:
    """The runtime that answers the same without a compiler, which photographs of many sizes would occupy for hours."""
    return {"torch-compile": "torch-channels-last", "torch-compile-bf16": "torch-bf16"}.get(runtime, runtime)


def compute_precision(runtime: str) -> str:
    """What a runtime of PyTorch computes in: "fp32", "bf16" or "fp16"."""
    if runtime.endswith("bf16"):
        return "bf16"
    return "fp16" if runtime in ("torch-fp16", "torch-cuda-graph") else "fp32"


def _in_channels_last(call: Call) -> Call:
    return lambda lightness: call(lightness.contiguous(memory_format=torch.channels_last))


def _in_bfloat16(call: Call, device: torch.device) -> Call:
    def cast(lightness: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return call(lightness).float()

    return cast


def _in_half(network: nn.Module) -> Call:
    def cast(lightness: Tensor) -> Tensor:
        answer: Tensor = network(lightness.half().contiguous(memory_format=torch.channels_last))
        return answer.float()

    return cast


def _as_cuda_graphs(call: Call) -> Call:
    """Record `call` once for each shape and replay it: no kernel is launched by Python any more."""
    recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def replay(lightness: Tensor) -> Tensor:
        if lightness.shape not in recorded:
            recorded[lightness.shape] = _record(call, lightness)
        graph, given, answer = recorded[lightness.shape]
        given.copy_(lightness)
        graph.replay()
        return answer.clone()

    return replay


def _record(call: Call, lightness: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
    given = lightness.clone()
    # Libraries set themselves up in the first calls, which must not happen while a graph is recorded.
    side = torch.cuda.Stream(lightness.device)  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream(lightness.device))
    with torch.cuda.stream(side):
        for _ in range(3):
            call(given)
    torch.cuda.current_stream(lightness.device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        answer = call(given)
    return graph, given, answer
