"""Every way that PyTorch runs a network answers what eager float32 answers, as closely as its precision allows."""

from __future__ import annotations

import pytest
import torch
from conftest import make_network

from colorpress.core.config import TORCH_RUNTIMES
from colorpress.core.errors import MachineError
from export.predictors import TorchPredictor
from export.torch_runtimes import compute_precision, prepare_network, uncompiled

SIZES = [(1, 1, 16, 16), (2, 1, 13, 21)]


def differences(runtime: str, device: str = "cpu") -> list[float]:
    """The largest difference to eager float32 on the CPU, for each size."""
    pictures = [torch.rand(size, generator=torch.Generator().manual_seed(1)) for size in SIZES]
    network = make_network()
    found = []
    with torch.inference_mode():
        eager = [network(picture) for picture in pictures]
        call = prepare_network(network.to(device), runtime, torch.device(device))
        for picture, answer in zip(pictures, eager, strict=True):
            got = call(picture.to(device))
            assert got.dtype == torch.float32
            found.append(float((got.cpu() - answer).abs().max()))
    return found


def test_another_memory_layout_answers_the_same() -> None:
    assert max(differences("torch-channels-last")) < 1e-5


def test_bfloat16_answers_nearly_the_same() -> None:
    assert 1e-5 < max(differences("torch-bf16")) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "tolerance"), [("torch-compile", 1e-5), ("torch-compile-bf16", 0.02)])
def test_compiled_networks_answer_what_uncompiled_ones_do(runtime: str, tolerance: float) -> None:
    picture = torch.rand(2, 1, 13, 21)
    with torch.inference_mode():
        answers = [
            prepare_network(make_network(), each, torch.device("cpu"))(picture)
            for each in (runtime, uncompiled(runtime))
        ]
    torch.testing.assert_close(*answers, atol=tolerance, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", TORCH_RUNTIMES)
def test_on_a_gpu_every_runtime_answers_the_same(runtime: str) -> None:
    assert max(differences(runtime, "cuda")) < 0.05


def test_half_precision_is_for_gpus_and_is_never_replaced() -> None:
    for runtime in ("torch-fp16", "torch-cuda-graph"):
        with pytest.raises(MachineError, match="needs a GPU"):
            TorchPredictor(make_network(), runtime=runtime)


def test_what_each_computes_in() -> None:
    found = {runtime: compute_precision(runtime) for runtime in TORCH_RUNTIMES}
    assert found == {
        "torch": "fp32", "torch-channels-last": "fp32", "torch-compile": "fp32", "torch-bf16": "bf16",
        "torch-compile-bf16": "bf16", "torch-fp16": "fp16", "torch-cuda-graph": "fp16",
    }  # fmt: skip
