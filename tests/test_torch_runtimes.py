"""Every way that PyTorch runs a network answers what eager float32 answers, as closely as its precision allows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from conftest import TINY_PLAN, make_network

from colorpress.core.errors import MachineError
from export.predictors import TimedPredictor
from export.runtimes import RUNTIMES, Opening, open_predictor
from training.checkpoint import Checkpoint, save_checkpoint

TORCH_RUNTIMES = [name for name, runtime in RUNTIMES.items() if runtime.family == "PyTorch"]
SIZES = [(1, 1, 16, 16), (2, 1, 13, 21)]


def differences(checkpoint: Path, runtime: str, device: str = "cpu") -> list[float]:
    """The largest difference to eager float32 on the CPU, for each size."""
    eager = open_predictor(checkpoint, threads=1)
    predictor = open_predictor(checkpoint, runtime=runtime, device=device, threads=1)
    found = []
    for size in SIZES:
        picture = torch.rand(size, generator=torch.Generator().manual_seed(1)).numpy()
        got = predictor(picture)
        assert got.dtype == "float32"
        found.append(float(abs(got - eager(picture)).max()))
    return found


@pytest.fixture
def checkpoint(tiny_checkpoint: Path) -> Path:
    """A network whose batch norms have statistics of their own."""
    return save_checkpoint(tiny_checkpoint, Checkpoint(TINY_PLAN, make_network().state_dict()))


def test_another_memory_layout_answers_the_same(checkpoint: Path) -> None:
    assert max(differences(checkpoint, "torch-channels-last")) < 1e-5


def test_bfloat16_answers_nearly_the_same(checkpoint: Path) -> None:
    assert 1e-5 < max(differences(checkpoint, "torch-bf16")) < 0.05


@pytest.mark.slow
@pytest.mark.parametrize(("runtime", "tolerance"), [("torch-compile", 1e-5), ("torch-compile-bf16", 0.02)])
def test_compiled_networks_answer_what_uncompiled_ones_do(checkpoint: Path, runtime: str, tolerance: float) -> None:
    picture = torch.rand(2, 1, 13, 21).numpy()
    answers = [
        torch.from_numpy(open_predictor(checkpoint, runtime=each, threads=1)(picture))
        for each in (runtime, RUNTIMES[runtime].uncompiled)
    ]
    torch.testing.assert_close(*answers, atol=tolerance, rtol=0)


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", TORCH_RUNTIMES)
def test_on_a_gpu_every_runtime_answers_the_same(checkpoint: Path, runtime: str) -> None:
    assert max(differences(checkpoint, runtime, "cuda")) < 0.05


def test_half_precision_is_for_gpus_and_is_never_replaced(checkpoint: Path) -> None:
    for runtime in ("torch-fp16", "torch-cuda-graph"):
        with pytest.raises(MachineError, match="needs a GPU"):
            open_predictor(checkpoint, runtime=runtime)


def test_what_each_computes_in(checkpoint: Path) -> None:
    def opened(runtime: str) -> TimedPredictor:
        return RUNTIMES[runtime].open_network(checkpoint, Opening(threads=1))  # on the CPU, whatever it needs

    found = {runtime: opened(runtime).compute_precision(SIZES[0]) for runtime in TORCH_RUNTIMES}
    assert found == {
        "torch": "fp32", "torch-channels-last": "fp32", "torch-compile": "fp32", "torch-bf16": "bf16",
        "torch-compile-bf16": "bf16", "torch-fp16": "fp16", "torch-cuda-graph": "fp16",
    }  # fmt: skip
