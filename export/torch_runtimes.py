"""How PyTorch can run one network: eager, another memory layout, half precision, compiled, as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from export.predictors import Floats, TimedPredictor, TorchWay
from training.device import choose_device, torch_threads

Call = Callable[[Tensor], Tensor]


class TorchPredictor(TimedPredictor):
    """A torch network in eval mode, on one device.

    Args:
        network: L (N, 1, H, W) to ab (N, 2, H, W); moved to `device`, put into eval mode, and changed where `way` keeps
            weights in another form.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads during a call; 0: torch's own number.
        way: how PyTorch runs it; None: as it is, eager.
        alone: the process serves this network alone, so PyTorch itself is set up for it, once.
    Raises:
        MachineError: no such device.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        device: str = "cpu",
        threads: int = 0,
        way: TorchWay | None = None,
        alone: bool = False,
    ) -> None:
        self.device, self._threads, self._alone = choose_device(device), threads, alone
        if alone:
            if threads:
                torch.set_num_threads(threads)
            # ONNX Runtime searches the fastest convolution too; without this PyTorch would run with a handicap.
            torch.backends.cudnn.benchmark = True
        self.network = network.to(self.device).eval()
        self.provider = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        self._compute = way.compute if way else "fp32"
        self._call = prepare_network(self.network, way, self.device) if way else self.network

    def __call__(self, lightness: Floats) -> Floats:
        # Setting the number of threads, even to what it is, clears what oneDNN has prepared.
        with nullcontext() if self._alone else torch_threads(self._threads):
            return self._answer(lightness)

    @torch.inference_mode()
    def _answer(self, lightness: Floats) -> Floats:
        # The copy back waits for the GPU, so a clock around this does too.
        answer: Floats = self._call(torch.from_numpy(lightness).to(self.device)).cpu().numpy()
        return answer

    def compute_precision(self, shape: tuple[int, ...]) -> str:
        """As `TimedPredictor`."""
        return self._compute

    def time_resident(self, lightness: Floats) -> Callable[[], float] | None:
        """As `TimedPredictor`."""
        if self.device.type != "cuda":
            return None
        resident = torch.from_numpy(lightness).to(self.device)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

        @torch.inference_mode()
        def call_ms() -> float:
            start.record()
            self._call(resident)
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end))

        return call_ms


def prepare_network(network: nn.Module, way: TorchWay, device: torch.device) -> Call:
    """A function from L (N, 1, H, W) on `device` to ab (N, 2, H, W), float32, to be called in inference mode.

    Args:
        network: on `device`, in eval mode; it is changed where the way keeps weights in another form.
    """
    layout = torch.channels_last if way.channels_last else torch.contiguous_format
    kind = torch.float16 if way.compute == "fp16" else torch.float32
    network = network.to(kind)
    if way.channels_last:
        network = network.to(memory_format=layout)  # type: ignore[call-overload]
    # Of sizes that are not fixed it makes no code: the padding is too much for its shape arithmetic (2.13).
    inner: Call = torch.compile(network, dynamic=False, options={"freezing": True}) if way.compiled else network

    def call(lightness: Tensor) -> Tensor:
        given = lightness.to(kind).contiguous(memory_format=layout)
        with torch.autocast(device.type, torch.bfloat16) if way.compute == "bf16" else nullcontext():
            return inner(given).float()

    return _as_cuda_graphs(call) if way.cuda_graph else call


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
