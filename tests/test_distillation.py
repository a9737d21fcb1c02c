"""Fine-tuning by distillation: nearer to best.pt, recorded with its origin; retained colour per minute of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from colorpress.core.config import (
    ArchConfig,
    DataConfig,
    ExportConfig,
    MachineConfig,
    PruneConfig,
    Recipe,
    UNetConfig,
)
from compress.distillation import (
    DistilLoss,
    DistillResult,
    Lesson,
    ask_about_crops,
    distil_network,
    open_teacher,
    resize_answers,
    write_distillation_curve,
)
from compress.measures import Scale
from compress.pruning import prune_network
from compress.students.student_job import build_student
from export.graph import export_onnx, read_metadata
from tests.conftest import make_vivid
from training.batches import ANSWER_STRIDE, CropAnswers, CropLoader, Crops
from training.checkpoint import Checkpoint, load_checkpoint
from training.device import float32_pictures
from training.fitting import FitJob
from training.losses import Batch, prepare_batch
from training.original import train_unet
from training.photo_scan import scan_photos
from training.photo_split import PhotoSplit
from training.unet import UNetPlan, count_parameters

UNET = UNetConfig(base=8, depth=2)
# In 32 steps AdamW learns more of ten small photographs than Muon does.
TRAIN = Recipe(batch_size=8, epochs=4, imgsz=16, val_size=24, learning_rate=5e-3, optimizer="adamw")
MACHINE = MachineConfig(workers=0, threads=1)
TO_TRUTH, TO_BEST = Scale(0.2, 0.1), Scale(0.2, 0.0, to_best=True)
STUDENT = UNetPlan(encoder=((8,), (8,)), decoder=(), upsample="nearest", stem_stride=2)
HISTORY = [
    {"epoch": 1, "seconds": 30.0, "images_per_s": 100.0, "train_l1": 0.2, "val_l1": 0.15},
    {"epoch": 2, "seconds": 60.0, "images_per_s": 50.0, "train_l1": 0.1, "val_l1": 0.05},
]


@pytest.fixture
def split(photo_folder: Path) -> PhotoSplit:
    return scan_photos(DataConfig(data=photo_folder, val_share=0.2), workers=0)


@pytest.fixture
def teacher(split: PhotoSplit, tmp_path: Path) -> Checkpoint:
    return train_unet(FitJob(split.train, split.val, TRAIN, DataConfig(), MACHINE), UNET, tmp_path).best


def distil(teacher: Checkpoint, split: PhotoSplit, folder: Path, epochs: int) -> DistillResult:
    pruned = prune_network(teacher.build_network(), PruneConfig(largest_share=0.98, round_to=1)).network
    recipe = replace(TRAIN, epochs=max(1, epochs), learning_rate=3e-3, class_weight=0.0)
    lesson = Lesson(teacher, split, recipe, 0.5, TO_TRUTH, folder.parent / "answers", DataConfig(), MACHINE)
    return distil_network(pruned, lesson, folder / "model.pt", tune=epochs > 0)


def test_distillation_brings_a_pruned_network_back(teacher: Checkpoint, split: PhotoSplit, tmp_path: Path) -> None:
    result = distil(teacher, split, tmp_path / "pruned", epochs=4)
    assert result.val_l1_after < result.val_l1_before
    saved = load_checkpoint(tmp_path / "pruned" / "model.pt")
    assert saved.val_l1 == result.val_l1_after
    assert saved.extra["teacher_sha256"] == teacher.sha256
    assert count_parameters(saved.build_network()) < 0.6 * count_parameters(teacher.build_network())


def test_an_affine_student_learns_where_it_is_compared() -> None:
    torch.manual_seed(0)
    # At stride 8, compared at stride 4: colour follows the lightness, which a plain answer of 8 pixels cannot.
    lightness = torch.rand(8, 1, 48, 48)
    ab = torch.cat([lightness - 0.5, 0.5 - lightness], dim=1)
    answers = torch.nn.functional.avg_pool2d(ab, ANSWER_STRIDE)
    left = []
    for affine in (True, False):
        plan = UNetPlan(encoder=((8,),), decoder=(), upsample="nearest", stem_stride=8, affine=affine)
        criterion = DistilLoss(build_student(plan, 0).train(), 0.5)
        optimizer = torch.optim.AdamW(criterion.parameters(), lr=0.05)
        for _ in range(60):
            answered = criterion(lightness)
            assert answered.shape == (8, 2, 12, 12)
            loss, l1 = criterion.loss(answered, Batch(lightness, ab, answers))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        left.append(float(l1))
    assert left[0] < 0.4 * left[1]


@pytest.mark.parametrize("size", [48, 43])
def test_answers_are_compared_where_a_network_answers(size: int) -> None:
    torch.manual_seed(0)
    answer = torch.rand(3, 2, size, size)
    kept = torch.nn.functional.avg_pool2d(answer, ANSWER_STRIDE, ceil_mode=True)
    inside = size // 4
    coarse, half, whole = (resize_answers(kept, stride) for stride in (4, 2, 1))
    assert coarse.shape == (3, 2, -(-size // 4), -(-size // 4))
    wanted = torch.nn.functional.avg_pool2d(answer, 4)
    torch.testing.assert_close(coarse[..., :inside, :inside], wanted)
    assert torch.equal(half, kept)
    # What is not finer than it is kept comes back.
    assert min(whole.shape[-2:]) >= size
    smooth = torch.linspace(-1, 1, 48).expand(1, 2, 48, 48)
    again = resize_answers(torch.nn.functional.avg_pool2d(smooth, ANSWER_STRIDE), 1)
    torch.testing.assert_close(again[..., 2:-2], smooth[..., 2:-2])


def test_zero_epochs_still_gives_a_network_with_fresh_statistics(
    teacher: Checkpoint, split: PhotoSplit, tmp_path: Path
) -> None:
    result = distil(teacher, split, tmp_path / "pruned", epochs=0)
    assert result.val_l1_after == result.val_l1_before
    assert load_checkpoint(result.path).val_l1 == result.val_l1_before


def test_a_network_that_training_makes_worse_stays_as_it_was(
    teacher: Checkpoint, split: PhotoSplit, tmp_path: Path
) -> None:
    network = teacher.build_network()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    recipe = replace(TRAIN, epochs=1, learning_rate=10.0, class_weight=0.0, ema_decay=0.0)
    lesson = Lesson(teacher, split, recipe, 0.5, TO_TRUTH, tmp_path / "answers", DataConfig(), MACHINE)
    result = distil_network(network, lesson, tmp_path / "same" / "model.pt")
    assert result.val_l1_after == result.val_l1_before
    saved = load_checkpoint(result.path)
    assert saved.val_l1 == result.val_l1_before
    weights = [name for name in before if name.endswith("conv.weight") or name == "head.weight"]
    assert weights and all(torch.equal(saved.state_dict[name], before[name]) for name in weights)


def test_a_fine_tuning_of_another_teacher_starts_over(teacher: Checkpoint, split: PhotoSplit, tmp_path: Path) -> None:
    distil(teacher, split, tmp_path / "pruned", epochs=2)
    assert distil(teacher, split, tmp_path / "pruned", epochs=3).epochs == 3


@pytest.mark.parametrize(
    ("scale", "column", "colour"),
    [
        (Scale(0.2, 0.1), "retained_colour", [0.5, 1.5]),
        (Scale(0.2, 0.2), "retained_colour", None),  # best.pt is no better than grey: there is no G
        (Scale(0.2, 0.3), "retained_colour", None),
        (Scale(0.2, 0.0, to_best=True), "fidelity", [0.25, 0.75]),
        (Scale(0.0, 0.0, to_best=True), "fidelity", None),  # best.pt answers grey
    ],
)
def test_colour_minutes_and_crops_are_written_as_table_and_chart(
    tmp_path: Path, scale: Scale, column: str, colour: list[float] | None
) -> None:
    table, chart = write_distillation_curve(tmp_path, HISTORY, scale)
    rows = pd.read_csv(table)
    assert rows["epoch"].tolist() == [1, 2]
    assert rows["minutes"].tolist() == [0.5, 1.5]
    assert rows["crops"].tolist() == [3000, 6000]
    assert rows["val_l1"].tolist() == [0.15, 0.05]
    (other,) = {"retained_colour", "fidelity"} - {column}
    assert rows[other].isna().all()
    if colour is None:
        assert rows[column].isna().all()
    else:
        assert rows[column].tolist() == pytest.approx(colour)
    with Image.open(chart) as picture:
        picture.load()
        assert picture.width > 500


def learn_from(
    teacher: Checkpoint, split: PhotoSplit, folder: Path, *, weight: float = 1.0, scale: Scale = TO_BEST
) -> DistillResult:
    recipe = replace(TRAIN, epochs=3, learning_rate=2e-2, schedule="constant", ema_decay=0.0)
    lesson = Lesson(teacher, split, recipe, weight, scale, folder / "answers", DataConfig(), MACHINE)
    return distil_network(build_student(STUDENT, 0), lesson, folder / "student" / "model.pt")


def test_of_a_vivid_original_its_answers_alone_teach_and_judge(split: PhotoSplit, tmp_path: Path) -> None:
    result = learn_from(load_checkpoint(make_vivid(tmp_path / "vivid.pt")), split, tmp_path)
    # A student starts from grey, far from the teacher; that is its scale.
    assert result.scale == Scale(pytest.approx(np.tanh(0.8), abs=1e-3), 0.0, to_best=True)
    assert result.val_l1_before == pytest.approx(np.tanh(0.8), abs=1e-3) and result.val_l1_after < 0.2
    answer = result.checkpoint.build_network().eval()(torch.rand(1, 1, 24, 24))
    assert answer[:, 0].mean() > 0.4 > -0.4 > answer[:, 1].mean()
    assert result.checkpoint.extra["teacher_weight"] == 1.0
    # What it was chosen by is no L1 to photographs, so the exported file names none.
    exported = export_onnx(load_checkpoint(result.path), tmp_path / "vivid.onnx", ExportConfig()).path
    assert "val_l1" not in read_metadata(exported)
    history = pd.read_csv(tmp_path / "student" / "distillation.csv")
    assert history["val_l1"].min() == pytest.approx(result.val_l1_after)
    assert history["fidelity"].max() == pytest.approx(1 - result.val_l1_after / result.scale.grey_l1, abs=1e-6)
    assert "fidelity F 0." in result.summary()


def test_by_a_scale_to_the_truth_the_truth_tells_the_best_epoch(split: PhotoSplit, tmp_path: Path) -> None:
    vivid = load_checkpoint(make_vivid(tmp_path / "vivid.pt"))
    result = learn_from(vivid, split, tmp_path, weight=0.25, scale=TO_TRUTH)
    assert result.checkpoint.extra["teacher_weight"] == 0.25
    assert result.scale == TO_TRUTH
    # A distance to the truth, which is not as far from grey as best.pt is.
    assert result.val_l1_before < 0.4


def test_the_best_epoch_is_told_by_the_photographs_that_choose(split: PhotoSplit, tmp_path: Path) -> None:
    assert split.choosing and split.confirming
    # Whoever looks at these is told.
    hidden = [replace(photo, path=tmp_path / "hidden" / photo.path.name) for photo in split.confirming]
    blind = replace(split, confirming=tuple(hidden))
    vivid = load_checkpoint(make_vivid(tmp_path / "vivid.pt"))
    shown = learn_from(vivid, split, tmp_path / "a")
    assert learn_from(vivid, blind, tmp_path / "b").val_l1_after == shown.val_l1_after
    asked = {path.stem for path in (tmp_path / "a" / "answers").rglob("*.npy")}
    assert {name for name in asked if len(name) == 64} == {photo.sha256 for photo in split.choosing}


def test_best_pt_is_asked_once_about_each_crop_that_is_shown(
    teacher: Checkpoint, split: PhotoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    write = CropAnswers.write

    def watch(self: CropAnswers, epoch: int, batch: int, crops: Crops, answer: torch.Tensor) -> None:
        asked.append(self.path_of(epoch, batch))
        if len(asked) == 3 and not list((tmp_path / "answers").rglob("2-1.npy")):
            raise KeyboardInterrupt
        write(self, epoch, batch, crops, answer)

    monkeypatch.setattr(CropAnswers, "write", watch)
    # Two batches in each epoch; the crops of two epochs serve for three.
    recipe = replace(TRAIN, batch_size=4, epochs=3, fresh_epochs=2, epoch_crops=1, class_weight=0.0)
    lesson = Lesson(teacher, split, recipe, 0.5, TO_TRUTH, tmp_path / "answers", DataConfig(), MACHINE)
    with pytest.raises(KeyboardInterrupt):
        distil_network(build_student(STUDENT, 0), lesson, tmp_path / "student" / "model.pt")
    distil_network(build_student(STUDENT, 0), lesson, tmp_path / "student" / "model.pt")
    assert [path.name for path in asked] == ["1-0.npy", "1-1.npy", "2-0.npy", "2-0.npy", "2-1.npy"]
    # Another network learns from the same answers, and for longer; other crops are asked about.
    longer = replace(lesson, recipe=replace(recipe, epochs=5, learning_rate=1e-3))
    distil_network(build_student(STUDENT, 1), longer, tmp_path / "other" / "model.pt")
    assert len(asked) == 5
    for changed in (replace(lesson, recipe=replace(recipe, imgsz=20)), replace(lesson, data=DataConfig(seed=7))):
        distil_network(build_student(STUDENT, 0), changed, tmp_path / "other" / "model.pt")
    assert len(asked) == 13


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_best_pt_answers_to_the_crops_that_are_shown(
    teacher: Checkpoint, split: PhotoSplit, tmp_path: Path, precision: str
) -> None:
    recipe = replace(TRAIN, epochs=1, class_weight=0.0, tone_jitter=0.5, precision=precision)
    lesson = Lesson(teacher, split, recipe, 0.5, TO_TRUTH, tmp_path / "answers", DataConfig(), MACHINE)
    ask_about_crops(lesson)
    job, network = lesson.job, teacher.build_network().eval()
    with CropLoader(job.train, recipe, job.data, workers=0, answers=job.answers) as loader, torch.inference_mode():
        for crops in loader.epoch(1):
            batch = prepare_batch(crops, torch.device("cpu"))
            assert batch.answers is not None
            # The network alone is rounded, as when it learns: neither the lightness nor the layer that reads it.
            rounded = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
            with rounded, float32_pictures(network):
                answer = network(batch.lightness)
            answer = torch.nn.functional.avg_pool2d(answer.float(), ANSWER_STRIDE)
            assert torch.allclose(batch.answers, answer, atol=1e-3) and answer.abs().max() > 0.01
    assert (lesson.dtype == torch.bfloat16) == (precision == "bf16")


def test_a_teacher_in_bf16_sees_the_picture_as_it_is(teacher: Checkpoint, split: PhotoSplit, tmp_path: Path) -> None:
    lesson = Lesson(teacher, split, TRAIN, 0.5, TO_TRUTH, tmp_path, DataConfig(), MACHINE)
    network = teacher.build_network().eval()
    stem = next(module for module in network.modules() if isinstance(module, torch.nn.Conv2d))
    # It looks for edges that rounding takes away: 0.75 is a number of bf16, and the next one is 0.004 further.
    with torch.no_grad():
        stem.weight.copy_(3000.0 * (stem.weight - stem.weight.mean((2, 3), keepdim=True)))
    lesson = replace(lesson, teacher=replace(teacher, state_dict=network.state_dict()))
    lightness = 0.75 + 0.002 * torch.rand(2, 1, 128, 128)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rounded = network(lightness).float()
    with torch.inference_mode():
        exact = network(lightness)
    answer = open_teacher(lesson, torch.bfloat16)(lightness)
    # Far from where the picture ends, which is an edge too.
    answer_apart, rounded_apart = ((each - exact)[..., 48:80, 48:80].abs().mean() for each in (answer, rounded))
    assert answer_apart < 0.2 * rounded_apart
    assert torch.equal(open_teacher(lesson, torch.float32)(lightness), exact)


def test_answers_are_those_of_a_teacher_in_its_precision_and_settings(
    teacher: Checkpoint, split: PhotoSplit, tmp_path: Path
) -> None:
    def lesson(**changes: object) -> Lesson:
        recipe = replace(TRAIN, **{"precision": "fp32", **changes})  # type: ignore[arg-type]
        return Lesson(teacher, split, recipe, 0.5, TO_TRUTH, tmp_path / "answers", DataConfig(), MACHINE)

    same = lesson().answers.folder
    for change in ({"learning_rate": 1e-4}, {"epochs": 9}, {"fresh_epochs": 2}, {"epoch_steps": 1}):
        assert lesson(**change).answers.folder == same, change
    for change in ({"precision": "bf16"}, {"batch_size": 2}, {"tone_jitter": 0.1}, {"start_imgsz": 8}):
        assert lesson(**change).answers.folder != same, change
    # Of a network that colorpress did not make, its code too.
    seen = {same}
    for code in ("class UNet: ...\n", "class UNet: 'another'\n"):
        source = tmp_path / "nets.py"
        source.write_text(code)
        foreign = replace(lesson(), teacher=replace(teacher, arch=ArchConfig(arch=f"{source}:UNet")))
        assert foreign.judging.folder != lesson().judging.folder
        seen.add(foreign.answers.folder)
    assert len(seen) == 3


def test_without_weight_best_pt_is_not_asked(teacher: Checkpoint, split: PhotoSplit, tmp_path: Path) -> None:
    recipe = replace(TRAIN, epochs=1, class_weight=0.0)
    lesson = Lesson(teacher, split, recipe, 0.0, TO_TRUTH, tmp_path / "answers", DataConfig(), MACHINE)
    result = distil_network(build_student(STUDENT, 0), lesson, tmp_path / "student" / "model.pt")
    assert result.epochs == 1 and not (tmp_path / "answers").exists()
