"""Levers of distillation: each of them really changes the training, and nothing of it stays in the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_network

from benchmarks.studies.distillation_levers import (
    ClassLoss,
    FullSizeLoss,
    HintLoss,
    LeverJob,
    compare_levers,
    find_layer_of_stride,
    forget_weights,
    format_levers,
    prune_evenly,
)
from colorpress.cli import run_command
from colorpress.core.errors import DivergedError
from compress.distillation import DistilLoss
from compress.students.student_plan import StudentPlan, write_student_plan
from training.losses import Batch
from training.unet import UNetPlan

STUDENT = UNetPlan(encoder=((8,), (8,)), decoder=(), upsample="nearest", stem_stride=2)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    # The student pads 34 to 36, its teacher to 40.
    lightness = torch.rand(2, 1, 34, 34, generator=generator)
    ab = torch.rand(2, 2, 34, 34, generator=generator) - 0.5
    return Batch(lightness, ab, torch.nn.functional.avg_pool2d(ab, 4, ceil_mode=True) / 2)


def test_hints_come_from_the_last_layer_of_the_stride() -> None:
    network = make_network(UNetPlan.classic(4, 2))
    assert find_layer_of_stride(network, 2) == (list(network.decoder[0].modules())[-1], 8)
    assert find_layer_of_stride(network, 4) == (network.dropout, 16)
    assert find_layer_of_stride(network, 8) is None


@pytest.mark.parametrize("kind", ["hints", "classes", "full size"])
def test_a_lever_changes_what_the_student_learns(kind: str) -> None:
    gradients = []
    teacher = make_network(UNetPlan.classic(4, 3), seed=1)
    layer, channels = find_layer_of_stride(teacher, STUDENT.output_stride) or (teacher, 0)
    for lever in (kind, "recipe"):
        network = make_network(STUDENT).train()
        criterion = {
            "recipe": lambda net: DistilLoss(net, 0.5),
            "full size": lambda net: FullSizeLoss(net, 0.5),
            "classes": lambda net: ClassLoss(net, 0.5),
            "hints": lambda net: HintLoss(net, 0.5, teacher=teacher, layer=layer, channels=channels),
        }[lever](network)
        if hasattr(criterion, "tell"):
            # From zero it teaches the network nothing yet.
            torch.nn.init.normal_(criterion.tell.weight)
        loss, l1 = criterion.loss(criterion(batch().lightness), batch())
        loss.backward()
        assert 0 < l1 < 1
        gradients.append(network.encoder[0][0].weight.grad.clone())
        if lever == "hints":
            assert criterion.tell.weight.grad.abs().sum() > 0
            assert all(weight.grad is None for weight in teacher.parameters())
            assert not any(name.startswith("asked") for name in criterion.state_dict()) and not layer._forward_hooks
    assert not torch.allclose(gradients[0], gradients[1])


def test_validation_leaves_no_features_behind() -> None:
    criterion = ClassLoss(make_network(STUDENT), 0.5)
    criterion.network(batch().lightness)
    assert criterion.features == []


def test_from_scratch_means_other_weights_in_the_same_channels() -> None:
    small = prune_evenly(make_network(UNetPlan.classic(8, 2)), 0.5)
    fresh = forget_weights(small, 0)
    assert small.architecture == UNetPlan.classic(4, 2) == fresh.architecture
    assert not torch.equal(small.head.weight, fresh.head.weight)
    assert torch.equal(forget_weights(small, 0).head.weight, fresh.head.weight)


@pytest.mark.parametrize(("measure", "symbol"), [("content_colour", "C"), ("fidelity", "F")])
def test_the_table_compares_seed_by_seed(measure: str, symbol: str) -> None:
    def row(lever: str, seed: int, kept: float) -> dict[str, object]:
        usual = {"params": 1234, "l1_delta_pct": 0.5, "seconds": 3, "retained_colour": 1.0}
        return {"lever": lever, "seed": seed, measure: kept, "measure": measure, **usual}

    table = format_levers([row("recipe", 0, 0.9), row("recipe", 1, 0.8), row("other", 1, 0.7)])
    assert f"| {symbol} |" in table.splitlines()[0]
    assert table.splitlines()[2] == "| recipe | 1,234 | 2 | 0.850 | 0.800-0.900 |  | +0.50 % |"
    assert table.splitlines()[3] == "| other | 1,234 | 1 | 0.700 | 0.700-0.700 | -0.100 | +0.50 % |"


@pytest.fixture
def line(tmp_path: Path, tiny_checkpoint: Path, photo_folder: Path) -> list[str]:
    """The comparison of a student of the tiny original, as a command line."""
    plan = write_student_plan(tmp_path / "plan.json", StudentPlan(STUDENT, "for a test"))
    return [str(tiny_checkpoint), str(plan), "--data", str(photo_folder), "-o", str(tmp_path / "out"), "--quiet"]


def test_a_comparison_goes_on_where_it_was(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line += ["--crops", "32", "--distil-imgsz", "16", "--workers", "0", "--pruned", "0.5"]

    def compare(*options: str) -> int:
        return run_command([*line, *options], compare_levers, "levers")

    names = ["recipe", "hints of best.pt's features", "from a wider one, pruned", "best.pt pruned by 0.5, from scratch"]
    assert compare("--seeds", "1", *(word for name in names for word in ("--lever", name))) == 0
    written = tmp_path / "out" / "levers.json"
    rows = json.loads(written.read_text())["rows"]
    assert [row["lever"] for row in rows] == names
    assert rows[3]["params"] > rows[2]["params"] == rows[0]["params"]
    assert compare("--seeds", "2", "--lever", "recipe") == 0
    again = json.loads(written.read_text())["rows"]
    assert again[:4] == rows and [row["seed"] for row in again] == [0, 0, 0, 0, 1]
    capsys.readouterr()
    assert compare("--crops", "48") == 2
    assert compare("--seed", "1") == 2
    assert "compares other trainings" in capsys.readouterr().err
    assert compare("--lever", "magic") == 2
    assert "error: option '--lever': got 'magic'" in capsys.readouterr().err


def test_what_is_left_of_an_interrupted_training_answers_no_other_question(
    line: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise DivergedError("training", None, "was stopped", "go on")

    monkeypatch.setattr(LeverJob, "learn", stop)
    assert run_command([*line, "--crops", "32"], compare_levers, "levers") == 6
    assert run_command([*line, "--crops", "48"], compare_levers, "levers") == 2
    assert run_command([*line, "--crops", "32"], compare_levers, "levers") == 6
