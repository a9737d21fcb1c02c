"""Levers of distillation: each of them really changes the training, and nothing of it stays in the network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import make_network

from benchmarks.studies.distillation_levers.__main__ import compare_levers
from benchmarks.studies.distillation_levers.lever_job import LeverJob, format_levers
from benchmarks.studies.distillation_levers.levers import (
    GROUPS,
    forget_weights,
    list_levers,
    pick_levers,
    prune_evenly,
)
from benchmarks.studies.distillation_levers.rounded_weights import RoundedNetwork, stored_bytes
from benchmarks.studies.distillation_levers.student_losses import (
    AttentionLoss,
    ClassLoss,
    FullSizeLoss,
    HintLoss,
    RelationLoss,
    TeacherClassLoss,
    find_layer_of_stride,
    soften_classes,
)
from benchmarks.studies.distillation_levers.student_shapes import (
    answer_at,
    convolve,
    list_shapes,
    read_patches,
    scale_widths,
)
from colorpress.cli import run_command
from colorpress.core.config import DistilConfig
from colorpress.core.errors import DivergedError
from compress.distillation import DistilLoss
from compress.ranking import count_macs
from compress.students.student_job import build_student
from compress.students.student_plan import StudentPlan, write_student_plan
from training.batches import ANSWER_STRIDE
from training.losses import Batch, class_cross_entropy
from training.unet import UNetPlan

STUDENT = UNetPlan(encoder=((8,), (8,)), decoder=(), upsample="nearest", stem_stride=2)
# Of the kind that the search finds: three levels, answers at 1/4.
RESIDUAL = UNetPlan(
    encoder=((16, 16),) * 3, decoder=((16, 16, 16),) * 2, upsample="nearest", stem_stride=4, residual=True
)


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    # The student pads 34 to 36, its teacher to 40.
    lightness = torch.rand(2, 1, 34, 34, generator=generator)
    ab = torch.rand(2, 2, 34, 34, generator=generator) - 0.5
    return Batch(lightness, ab, torch.nn.functional.avg_pool2d(ab, ANSWER_STRIDE, ceil_mode=True) / 2)


def test_hints_come_from_the_last_layer_of_the_stride() -> None:
    network = make_network(UNetPlan.classic(4, 2))
    assert find_layer_of_stride(network, 2) == (list(network.decoder[0].modules())[-1], 8)
    assert find_layer_of_stride(network, 4) == (network.dropout, 16)
    assert find_layer_of_stride(network, 8) is None


@pytest.mark.parametrize("kind", ["hints", "classes", "teacher classes", "full size", "attention", "relations"])
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
            "teacher classes": lambda net: TeacherClassLoss(net, 0.5),
            "attention": lambda net: AttentionLoss(net, 0.5, teacher=teacher, layer=layer),
            "relations": lambda net: RelationLoss(net, 0.5, teacher=teacher, layer=layer),
            "hints": lambda net: HintLoss(net, 0.5, teacher=teacher, layer=layer, channels=channels),
        }[lever](network)
        if hasattr(criterion, "tell"):
            # From zero it teaches the network nothing yet.
            torch.nn.init.normal_(criterion.tell.weight)
        loss, l1 = criterion.loss(criterion(batch().lightness), batch())
        loss.backward()
        assert 0 < l1 < 1
        gradients.append(network.encoder[0][0].weight.grad.clone())
        assert all(weight.grad is None for weight in teacher.parameters())
        assert not any(name.startswith("asked") for name in criterion.state_dict()) and not layer._forward_hooks
        if lever == "hints":
            assert criterion.tell.weight.grad.abs().sum() > 0
    assert not torch.allclose(gradients[0], gradients[1])


def test_validation_leaves_no_features_behind() -> None:
    criterion = ClassLoss(make_network(STUDENT), 0.5)
    criterion.network(batch().lightness)
    assert criterion.features == []


def test_soft_classes_are_those_of_the_original_s_training() -> None:
    colour = torch.tensor([0.23, -0.41])[:, None, None].expand(1, 2, 4, 4)
    soft = soften_classes(colour)  # (1, 256, 4, 4)
    assert soft.sum(1) == pytest.approx(torch.ones(1, 4, 4))
    # Where all of it is in the class that is likeliest by it, the cross-entropy with hard classes is none.
    likeliest = torch.nn.functional.one_hot(soft.argmax(1), 256).permute(0, 3, 1, 2) * 100.0
    assert class_cross_entropy(likeliest, colour, 1) < 1e-6
    assert 0.2 < soft.max() < 0.8


@pytest.mark.parametrize(
    "name",
    [
        "depth-wise separable",
        "inverted residuals",
        "self-attention",
        "answers at 1/2",
        "answers at 1/16, affine",
        "patches of 2",
        "one convolution a level",
    ],
)
def test_another_shape_computes_as_much(name: str) -> None:
    wanted = count_macs(make_network(RESIDUAL), height=128, width=128)
    network = list_shapes(RESIDUAL)[name].build_alike(wanted, 128, seed=0)
    macs = count_macs(network, height=128, width=128)
    assert macs == pytest.approx(wanted, rel=0.3)
    network.train()(batch().lightness).sum().backward()
    again = network.with_weights(network.state_dict())
    assert torch.equal(again(batch().lightness), network.eval()(batch().lightness))
    assert again(batch().lightness).shape == (2, 2, 34, 34)
    assert f"answers at 1/{network.output_stride}" in name or network.output_stride == 4


def test_shapes_are_what_their_names_say() -> None:
    shapes = list_shapes(RESIDUAL)
    assert not {"answers at 1/4", "answers at 1/4, affine"} & set(shapes)
    deep, fine = (shapes[name].build(1.0).architecture for name in ("narrow fine, wide deep", "wide fine, narrow deep"))
    assert [level[0] for level in deep.encoder] == [16, 24, 32] and [level[0] for level in deep.decoder] == [24, 16]
    assert [level[0] for level in fine.encoder] == [16, 12, 8]
    assert shapes["answers at 1/8, affine"].plan.affine and not shapes["answers at 1/8"].plan.affine
    assert not shapes["plain blocks"].build(1.0).architecture.residual
    for name, kind in (("depth-wise separable", 16), ("inverted residuals", 64)):
        groups = {m.groups for m in shapes[name].build(1.0).modules() if isinstance(m, torch.nn.Conv2d)}
        assert kind in groups
    # What looks at the whole picture begins as if it were not there.
    for name in ("pooled context", "self-attention"):
        plain, changed = build_student(RESIDUAL, 3), shapes[name].build(1.0, seed=3)
        answers = []
        for network, head in ((plain, plain.head), (changed, changed.student.head)):
            torch.nn.init.ones_(head.weight)
            answers.append(network.eval()(batch().lightness))
        assert torch.equal(*answers) and answers[0].std() > 0
        for parameter in changed.student.encoder[-1][1].tell.parameters():
            torch.nn.init.ones_(parameter)
        assert not torch.equal(changed(batch().lightness), answers[1])


def test_a_plan_answers_finer_and_coarser() -> None:
    for stride in (1, 2, 4, 8, 16):
        other = answer_at(RESIDUAL, stride)
        assert (other.output_stride, other.size_multiple) == (stride, 16)
        assert other.stem_stride == min(4, stride)
    assert answer_at(answer_at(RESIDUAL, 16), 4) == RESIDUAL
    assert answer_at(STUDENT, 1).decoder == ((8, 8), (8, 8))
    for stride in (1, 2, 4):
        other = read_patches(RESIDUAL, stride)
        assert (other.stem_stride, other.output_stride, other.size_multiple) == (stride, 4, 16)
        assert read_patches(other, 4) == RESIDUAL
    assert convolve(convolve(RESIDUAL, 1), 2) == RESIDUAL and not convolve(RESIDUAL, 1).residual
    assert scale_widths(RESIDUAL, 2.0).encoder == ((32, 32),) * 3


@pytest.mark.parametrize("bits", [4, 8])
def test_rounded_weights_take_few_values_and_learn_all_the_same(bits: int) -> None:
    plain = make_network(RESIDUAL)
    network = RoundedNetwork(plain, bits)
    seen = {}
    for name, module in plain.named_modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(lambda each, _, name=name: seen.update({name: each.weight.detach()}))
    network(batch().lightness).sum().backward()
    inner = seen["decoder.0.0"]
    assert max(len(channel.unique()) for channel in inner) <= 2**bits - 1
    assert 2**bits - 1 < max(len(channel.unique()) for channel in seen["encoder.0.0"]) <= 255 or bits == 8
    assert plain.decoder[0][0].weight.grad.abs().sum() > 0
    # The weights themselves stay what they were, for the steps to come.
    assert len(plain.decoder[0][0].weight[0].unique()) > 2**bits
    convolutions = [m for m in plain.modules() if isinstance(m, torch.nn.Conv2d)]
    sizes = [m.weight.numel() for m in convolutions]
    outer = sizes[0] + sizes[-1]
    assert stored_bytes(network) == (
        outer + (sum(sizes) - outer) * bits // 8 + 8 * sum(m.out_channels for m in convolutions)
    )


def test_a_lever_comes_behind_what_it_goes_on_from() -> None:
    levers = list_levers(RESIDUAL, make_network(UNetPlan.classic(4, 2)), DistilConfig(), side=64)
    assert {lever.group for lever in levers.values()} == set(GROUPS)
    assert pick_levers(levers, ["taught by a wider one"], []) == ["twice the channels", "taught by a wider one"]
    bits = pick_levers(levers, [], ["bits"])
    controls = [name for name, lever in levers.items() if lever.group == "control"]
    assert bits[: len(controls)] == controls and {levers[name].group for name in bits} == {"bits", "control"}
    every = pick_levers(levers, [], [])
    assert sorted(every) == sorted(levers)
    assert all(not (after := levers[name].after) or every.index(after) < every.index(name) for name in every)


def test_from_scratch_means_other_weights_in_the_same_channels() -> None:
    small = prune_evenly(make_network(UNetPlan.classic(8, 2)), 0.5)
    fresh = forget_weights(small, 0)
    assert small.architecture == UNetPlan.classic(4, 2) == fresh.architecture
    assert not torch.equal(small.head.weight, fresh.head.weight)
    assert torch.equal(forget_weights(small, 0).head.weight, fresh.head.weight)


@pytest.mark.parametrize(
    ("measure", "prefix", "symbol"), [("content_colour", "content", "C"), ("fidelity",) * 2 + ("F",)]
)
def test_the_table_compares_seed_by_seed(measure: str, prefix: str, symbol: str) -> None:
    def row(lever: str, seed: int, kept: float) -> dict[str, object]:
        usual = {"params": 1234, "macs": 5_000_000, "bytes": 4936, "crops": 2000, "seconds": 3.2, "chroma": 0.5}
        scores = {"content_colour": 0.25, "fidelity": 0.25} | {measure: kept}
        ends = {f"{prefix}_low": kept - 0.1, f"{prefix}_high": kept + 0.1}
        return {"lever": lever, "seed": seed, "measure": measure, **usual, **scores, **ends}

    rows = [row("other", 1, 0.7), row("recipe", 0, 0.9), row("recipe", 1, 0.8), row("better", 0, 0.95)]
    head, _, *lines = format_levers(rows).splitlines()
    other = "C" if symbol == "F" else "F"
    assert f"| {symbol} (95 % interval) | to the recipe | {other} | chroma |" in head
    costs = "1,234 | 5 M | 4.94 kB | 2,000 | 3"
    assert lines == [
        f"| better | {costs} | 1 | 0.950 (0.850 to 1.050) | +0.050 | 0.250 | 0.50 |",
        f"| recipe | {costs} | 2 | 0.850 (0.750 to 0.950) |  | 0.250 | 0.50 |",
        f"| other | {costs} | 1 | 0.700 (0.600 to 0.800) | -0.100 | 0.250 | 0.50 |",
    ]


@pytest.fixture
def line(tmp_path: Path, tiny_checkpoint: Path, photo_folder: Path) -> list[str]:
    """The comparison of a student of the tiny original, as a command line."""
    plan = write_student_plan(tmp_path / "plan.json", StudentPlan(STUDENT, "for a test"))
    return [str(tiny_checkpoint), str(plan), "--data", str(photo_folder), "-o", str(tmp_path / "out"), "--quiet"]


def test_a_comparison_goes_on_where_it_was(line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line += ["--crops", "32", "--distil-imgsz", "16", "--workers", "0", "--pruned", "0.5"]

    def compare(*options: str) -> int:
        return run_command([*line, *options], compare_levers, "levers")

    names = [
        "recipe", "lightness table", "4 bits, rounded", "4 bits, a tenth more crops", "inverted residuals",
        "twice the channels", "taught by a wider one",
    ]  # fmt: skip
    assert compare("--seeds", "1", *(word for name in names for word in ("--lever", name))) == 0
    written = tmp_path / "out" / "levers.json"
    rows = json.loads(written.read_text())["rows"]
    assert [row["lever"] for row in rows] == names
    by_name = {row["lever"]: row for row in rows}
    recipe = by_name["recipe"]
    assert by_name["taught by a wider one"]["params"] == recipe["params"] < by_name["twice the channels"]["params"]
    assert by_name["4 bits, rounded"]["crops"] == recipe["crops"] < by_name["4 bits, a tenth more crops"]["crops"]
    assert by_name["4 bits, rounded"]["bytes"] < recipe["bytes"] == 4 * recipe["params"]
    # The crops of a curve are its rates times its rounded seconds.
    assert by_name["taught by a wider one"]["crops"] == pytest.approx(recipe["crops"], abs=3)
    assert by_name["lightness table"]["content_colour"] in (None, 0.0) and by_name["lightness table"]["macs"] == 0
    assert compare("--seeds", "2", "--lever", "recipe") == 0
    again = json.loads(written.read_text())["rows"]
    assert again[:-1] == rows and (again[-1]["lever"], again[-1]["seed"]) == ("recipe", 1)
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
