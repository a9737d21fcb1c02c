"""Several processes compute what one does, one of them writes, and a stop reaches all; kills lose an epoch at most."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import numpy as np
import pytest
import torch
from PIL import Image

from colorpress.cli import run_command
from colorpress.core.errors import InputError
from colorpress.core.processes import is_main_process, process_count, share_answer, started_processes
from tests.conftest import make_network
from training.checkpoint import load_checkpoint
from training.shared_batch_norm import share_batch_norm_

ROOT = Path(__file__).resolve().parent.parent
TRAIN = [
    "train", "--base", "4", "--depth", "2", "--imgsz", "16", "--val-size", "24", "--batch-size", "6", "--epochs", "3",
    "--precision", "fp32", "--workers", "0", "--threads", "1", "--device", "cpu", "--dropout", "0",
]  # fmt: skip
# Sums over processes are added up in another order than in one.
ROUNDING = 1e-5


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def command(folder: Path, photos: Path, *more: str, processes: int = 1) -> list[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    start = [sys.executable, *(torchrun if processes > 1 else []), "-m", "colorpress"]
    return [*start, *TRAIN, "--data", str(photos), "-o", str(folder), *more]


def run(folder: Path, photos: Path, *more: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, photos, *more, processes=processes),
        env=environment(), capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip


def run_here(folder: Path, photos: Path, *more: str) -> None:
    """The same in this process, which has imported what it needs."""
    assert run_command([*TRAIN, "--data", str(photos), "-o", str(folder), *more]) == 0


def start(arguments: list[str], said: str) -> tuple[subprocess.Popen[str], IO[str]]:
    """A command in a process group of its own that has just said a text, and the rest of what it says."""
    process = subprocess.Popen(arguments, env=environment(), stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    assert any(said in line for line in process.stderr)
    return process, process.stderr


def losses(folder: Path) -> list[float]:
    return [row[name] for row in load_checkpoint(folder / "best.pt").history for name in ("train_l1", "val_l1")]


@pytest.fixture(scope="module")
def noise_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs without even areas, where pooling and ReLU would choose by rounding."""
    folder, dice = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir()
        for number in range(5):
            small = Image.fromarray(dice.integers(0, 256, (4, 5, 3), dtype=np.uint8))
            small.resize((40, 32), Image.Resampling.BICUBIC).save(folder / name / f"{number}.png")
    return folder


def test_two_processes_train_as_one_does(
    noise_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(tmp_path / "one", noise_folder)
    two = run(tmp_path / "two", noise_folder, processes=2)
    assert two.returncode == 0, two.stderr
    assert two.stdout.count("best.pt") == 1
    assert two.stderr.count("train 3/3: train L1") == 1
    first, second = (load_checkpoint(tmp_path / name / "last.pt") for name in ("one", "two"))
    assert len(first.history) == len(second.history) == 3
    for row, other in zip(first.history, second.history, strict=True):
        assert other["train_l1"] == pytest.approx(row["train_l1"], rel=ROUNDING)
        assert other["val_l1"] == pytest.approx(row["val_l1"], rel=ROUNDING)
    for name, tensor in first.state_dict.items():
        torch.testing.assert_close(second.state_dict[name], tensor, rtol=ROUNDING, atol=ROUNDING, msg=name)
    # One goes on with what two left: there is nothing left to do.
    capsys.readouterr()
    run_here(tmp_path / "two", noise_folder)
    assert "up to date" in capsys.readouterr().err


def test_an_error_of_the_main_process_ends_all_with_its_message_once(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    refused = run(tmp_path / "out", tmp_path / "none", processes=2)
    assert refused.returncode != 0
    assert "at least 3 colour photographs are needed" in refused.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(ROOT / "colorpress") not in refused.stderr


def test_other_commands_refuse_to_run_several_times(tmp_path: Path) -> None:
    answer = subprocess.run(
        [sys.executable, "-m", "colorpress", "report", "-o", str(tmp_path)],
        env={**environment(), "TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 2
    assert "which only help to train" in answer.stderr


def test_alone_nothing_is_shared() -> None:
    assert (started_processes(), process_count(), is_main_process()) == (1, 1, True)
    assert share_answer(lambda: 5) == 5
    with pytest.raises(InputError):
        share_answer(lambda: (_ for _ in ()).throw(InputError("x", None, "y", "z")))


def test_shared_batch_norm_keeps_names_weights_and_eval_answers(tmp_path: Path) -> None:
    network, twin = make_network(), make_network()
    share_batch_norm_(network)
    assert list(network.state_dict()) == list(twin.state_dict())
    picture = torch.rand(1, 1, 12, 16)
    assert torch.equal(network(picture), twin(picture))


def test_shared_batch_norm_is_batch_norm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a group of one process its sums are those of torch's own: outputs, gradients and running statistics."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    monkeypatch.setattr("colorpress.core.processes._joined", True)
    try:
        network, twin = make_network().train(), make_network().train()
        share_batch_norm_(network)
        picture = torch.rand(3, 1, 12, 16, generator=torch.Generator().manual_seed(0))
        for each in (network, twin):
            each(picture).square().sum().backward()
        for (name, mine), theirs in zip(network.named_parameters(), twin.parameters(), strict=True):
            assert mine.grad is not None and theirs.grad is not None
            assert (mine.grad - theirs.grad).norm() < 1e-3 * theirs.grad.norm(), name
        for (name, buffer), other in zip(network.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(buffer, other, msg=name)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(("number", "workers"), [(signal.SIGINT, "0"), (signal.SIGTERM, "0"), (signal.SIGTERM, "1")])
def test_a_signal_to_the_group_ends_the_command_with_its_code(
    photo_folder: Path, tmp_path: Path, number: signal.Signals, workers: str
) -> None:
    process, errors = start(command(tmp_path, photo_folder, "--epochs", "200", "--workers", workers), "train 2/200")
    os.killpg(process.pid, number)
    sent = time.monotonic()
    rest = errors.read()
    assert process.wait(timeout=60) == 128 + number
    assert time.monotonic() - sent < 15  # a dead loader is noticed within five seconds
    assert f"error: stopped by {number.name}" in rest
    assert len(load_checkpoint(tmp_path / "last.pt").history) >= 2
    assert (tmp_path / "best.pt").is_file() and not list(tmp_path.glob("*.colorpress-tmp*"))


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_kills_at_any_moment_leave_loadable_files_and_the_same_weights(
    photo_folder: Path, tmp_path: Path, kills: int
) -> None:
    run_here(tmp_path / "whole", photo_folder, "--epochs", "12")
    delays = random.Random(0)
    killed = 0
    for _ in range(kills):
        process = subprocess.Popen(
            command(tmp_path / "cut", photo_folder, "--epochs", "12"), env=environment(), stderr=subprocess.PIPE
        )
        assert process.stderr is not None
        process.stderr.readline()  # the photographs are counted: training begins
        time.sleep(delays.uniform(0.0, 0.5))
        process.kill()
        process.wait()
        process.stderr.close()
        killed += process.returncode == -signal.SIGKILL
        for name in ("best.pt", "last.pt", "last.prev.pt"):
            if (tmp_path / "cut" / name).exists():
                load_checkpoint(tmp_path / "cut" / name)
    assert killed
    run_here(tmp_path / "cut", photo_folder, "--epochs", "12")
    for name in ("best.pt", "last.pt"):
        whole, cut = (load_checkpoint(tmp_path / folder / name) for folder in ("whole", "cut"))
        assert all(torch.equal(tensor, cut.state_dict[key]) for key, tensor in whole.state_dict.items())
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    assert not list((tmp_path / "cut").glob("*colorpress-tmp*"))


def test_a_stop_reaches_all_processes(photo_folder: Path, tmp_path: Path) -> None:
    process, errors = start(command(tmp_path, photo_folder, "--epochs", "500", processes=2), "train 2/500")
    os.killpg(process.pid, signal.SIGINT)
    errors.read()
    process.wait(timeout=60)
    assert len(load_checkpoint(tmp_path / "last.pt").history) >= 2
