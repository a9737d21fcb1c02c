"""Fine-tuning by distillation: nearer to best.pt, recorded with its origin; retained colour per minute of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from colorpress.core.config import DataConfig, FinetuneConfig, FitConfig, MachineConfig, PruneConfig, Recipe, UNetConfig
from compress.distillation import DistillResult, Lesson, distil_network, write_distillation_curve
from compress.pruning import prune_network
from training.checkpoint import Checkpoint, load_checkpoint
from training.fitting import FitJob
from training.original import train_unet
from training.photos import PhotoSplit, scan_photos
from training.unet import count_parameters

UNET = UNetConfig(base=8, depth=2)
FIT = FitConfig(batch_size=8)
TRAIN = Recipe(batch_size=8, epochs=4, imgsz=16, val_size=24, learning_rate=5e-3)
MACHINE = MachineConfig(workers=0, threads=1)
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
    pruned = prune_network(teacher.build_network(), PruneConfig(prune_ratio=0.5, round_to=1)).network
    recipe = FinetuneConfig(finetune_epochs=epochs, finetune_learning_rate=3e-3, finetune_imgsz=16).recipe(
        FIT, val_size=24
    )
    lesson = Lesson(teacher, split, recipe, 0.5, folder.parent / "answers", 64, DataConfig(), MACHINE)
    return distil_network(pruned, lesson, folder / "model.pt", tune=epochs > 0)


def test_distillation_brings_a_pruned_network_back(teacher: Checkpoint, split: PhotoSplit, tmp_path: Path) -> None:
    result = distil(teacher, split, tmp_path / "pruned", epochs=4)
    assert result.val_l1_after < result.val_l1_before
    saved = load_checkpoint(tmp_path / "pruned" / "model.pt")
    assert saved.val_l1 == result.val_l1_after
    assert saved.extra["teacher_sha256"] == teacher.sha256
    assert count_parameters(saved.build_network()) < 0.6 * count_parameters(teacher.build_network())


def test_fine_tuning_sees_crops_of_its_own_and_is_judged_at_the_size_it_is_used_at() -> None:
    recipe = FinetuneConfig(finetune_epochs=2, finetune_learning_rate=4e-3).recipe(FIT, val_size=256)
    assert recipe == replace(TRAIN, epochs=2, learning_rate=4e-3, imgsz=128, val_size=256, class_weight=0.0)


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
    recipe = FinetuneConfig(finetune_epochs=1, finetune_learning_rate=10.0, finetune_imgsz=16).recipe(
        replace(FIT, ema_decay=0.0), val_size=24
    )
    lesson = Lesson(teacher, split, recipe, 0.5, tmp_path / "answers", 64, DataConfig(), MACHINE)
    result = distil_network(network, lesson, tmp_path / "same" / "model.pt")
    assert result.val_l1_after == result.val_l1_before
    saved = load_checkpoint(result.path)
    assert saved.val_l1 == result.val_l1_before
    weights = [name for name in before if name.endswith("conv.weight") or name == "head.weight"]
    assert weights and all(torch.equal(saved.state_dict[name], before[name]) for name in weights)


def test_a_fine_tuning_of_another_teacher_starts_over(teacher: Checkpoint, split: PhotoSplit, tmp_path: Path) -> None:
    distil(teacher, split, tmp_path / "pruned", epochs=2)
    assert distil(teacher, split, tmp_path / "pruned", epochs=3).epochs == 3


@pytest.mark.parametrize(("best_l1", "colour"), [(0.1, [0.5, 1.5]), (0.2, None), (0.3, None)])
def test_colour_minutes_and_crops_are_written_as_table_and_chart(
    tmp_path: Path, best_l1: float, colour: list[float] | None
) -> None:
    """Where best.pt is no better than grey there is no G."""
    table, chart = write_distillation_curve(tmp_path, HISTORY, grey_l1=0.2, best_l1=best_l1)
    rows = pd.read_csv(table)
    assert rows["epoch"].tolist() == [1, 2]
    assert rows["minutes"].tolist() == [0.5, 1.5]
    assert rows["crops"].tolist() == [3000, 6000]
    assert rows["val_l1"].tolist() == [0.15, 0.05]
    if colour is None:
        assert rows["retained_colour"].isna().all()
    else:
        assert rows["retained_colour"].tolist() == pytest.approx(colour)
    with Image.open(chart) as picture:
        picture.load()
        assert picture.width > 500
