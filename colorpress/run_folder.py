"""A run folder and how its stages are configured: what every stage of the pipeline asks of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from colorpress.config import ArchConfig, Settings
from colorpress.console import warn
from colorpress.stages import stage_key
from compress.student_plan import is_student_plan
from compress.yardstick import Score, Yardstick
from export.predictors import OnnxPredictor
from training.checkpoint import Checkpoint, load_checkpoint
from training.device import choose_device
from training.foreign import load_source
from training.photos import Photo, PhotoSplit, hash_photos


@dataclass(frozen=True)
class Run:
    """A run folder and how its stages are configured; `force` redoes stages that are up to date."""

    folder: Path
    settings: Settings = field(default_factory=Settings)
    force: bool = False

    @property
    def best_path(self) -> Path:
        """The original model of this run."""
        return self.folder / "best.pt"

    @property
    def answer_folder(self) -> Path:
        """Where best.pt's answers are kept for networks that learn from them."""
        return self.folder / ".answers"

    def load(self, checkpoint: Path) -> Checkpoint:
        """Read a checkpoint, whose network may be the foreign one that the options of this run name."""
        return load_checkpoint(checkpoint, self.arch_of(checkpoint))

    def arch_of(self, checkpoint: Path) -> ArchConfig:
        """The options that name a checkpoint's network: those of this run, but a student is a UNet of our own."""
        return ArchConfig() if is_student_plan(checkpoint.with_name("plan.json")) else self.settings.arch

    def students(self) -> tuple[str, ...]:
        """Names of the students in this folder, in alphabetical order."""
        plans = sorted(self.folder.glob("*/plan.json"))
        return tuple(plan.parent.name for plan in plans if is_student_plan(plan))

    def yardstick(self, best: Checkpoint, photos: Sequence[Photo], *, short_side: int) -> Yardstick:
        """best.pt's answers to whole photographs, which candidates are scored by; `short_side` in pixels at most.

        Raises:
            InputError: no photograph can be read.
        """
        device = choose_device(self.settings.machine.device)
        max_pixels, network = self.settings.data.max_pixels, best.build_network().to(device)
        return Yardstick.of(network, photos, short_side=short_side, max_pixels=max_pixels, device=device)

    def stage(self, name: str, inputs: Sequence[Path], settings: Mapping[str, Any], code: Sequence[str]) -> str:
        """The key of a stage of this run."""
        return stage_key(inputs=inputs, settings={"stage": name, **settings}, code=code)

    def arch_key(self) -> dict[str, Any]:
        """What the answer of a stage that reads a checkpoint depends on of a foreign network: its code and options.

        Raises:
            ConfigError: the file that is named cannot be run.
        """
        arch = self.settings.arch
        return {"arch": {**vars(arch), "arch": load_source(arch.arch).sha256}} if arch.arch else {}

    def data_key(self, photos: PhotoSplit) -> dict[str, Any]:
        """What a stage's answer depends on of the photographs: their content by use, the seed, and the size limit."""
        data = self.settings.data
        content = hash_photos(photos.train, photos.val, photos.test)
        return {"photos": content, "seed": data.seed, "max_pixels": data.max_pixels}


def score_onnx(yardstick: Yardstick, path: Path, *, threads: int) -> Score:
    """What an ONNX file of this project is worth."""
    predictor = OnnxPredictor(path, threads=threads)
    return yardstick.score(lambda lightness: torch.from_numpy(predictor(lightness.numpy())))


def warn_of_other_split(original: Checkpoint, photos: PhotoSplit) -> None:
    """Warn when best.pt says that it was trained on other photographs than `photos` says."""
    trained_on = original.extra.get("fit", {}).get("photographs")
    if trained_on is not None and trained_on != hash_photos(photos.train, photos.val):
        warn("best.pt was trained on another split of photographs: it may have seen those held out here")
