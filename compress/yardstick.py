"""What a candidate is worth, on whole photographs that choose between candidates or score what was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colorpress.core.config import GoalConfig
from colorpress.core.errors import InputError
from compress.budgets import Limit, goals_or_whole
from compress.measures import Reference, Score, Strength
from export.controls import TABLE, control_path, make_controls
from export.predictors import OnnxPredictor
from training.batches import whole_photos
from training.checkpoint import Checkpoint
from training.device import choose_device
from training.lab import rgb_to_l_ab
from training.metrics import Floats, mean_chroma, mean_l1
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run

# L (1, 1, H, W) in [0, 1] to ab (1, 2, H, W) in ab/128, any H and W.
Answering = Callable[[Tensor], Tensor]
# Scores an ONNX file, given as its bytes, by the photographs of a yardstick.
Scoring = Callable[[bytes], Score]


@dataclass(frozen=True)
class Picture:
    """A photograph on the CPU: L (1, 1, H, W), the truth and best.pt's answer (1, 2, H, W) in ab/128."""

    lightness: Tensor
    ab: Tensor
    best: Tensor


@dataclass(frozen=True)
class Yardstick:
    """Whole photographs, each of its own size, and what models are held against on them."""

    pictures: tuple[Picture, ...]
    reference: Reference

    @property
    def strength(self) -> Strength:
        """How strong best.pt is on them."""
        return self.reference.strength

    def means(self, photos: int | None = None) -> tuple[float, float]:
        """The mean L1 (ab/128) of the grey answer and of best.pt, on the first so many of the photographs or on all."""
        return float(self.reference.grey_l1[:photos].mean()), float(self.reference.best_l1[:photos].mean())

    def goals(self, config: GoalConfig) -> tuple[Limit, ...]:
        """The goals that were given; without any, that the measure that decides is whole."""
        return goals_or_whole(config, self.strength.measure)

    def score(self, answering: Answering) -> Score:
        """Ask a candidate about every photograph; raises as `measure`."""
        return self.reference.score(*self.measure(answering))

    def measure(self, answering: Answering) -> tuple[Floats, Floats]:
        """A candidate's L1 (ab/128) to the truth and to best.pt's answer on every photograph.

        Raises:
            InputError: an answer is not finite or of another shape.
        """
        l1, to_best = [], []
        with torch.inference_mode():
            for picture in self.pictures:
                answer = answering(picture.lightness)
                if answer.shape != picture.ab.shape or not bool(torch.isfinite(answer).all()):
                    why = f"answers {tuple(answer.shape)} or NaN to {tuple(picture.lightness.shape)}"
                    raise InputError("network", None, why, "use another setting for this step")
                l1.append(mean_l1(answer.cpu(), picture.ab))
                to_best.append(mean_l1(answer.cpu(), picture.best))
        return np.array(l1), np.array(to_best)


def make_yardstick(
    run: Run, best: Checkpoint, photos: PhotoSplit, scored: Sequence[Photo], *, short_side: int
) -> Yardstick:
    """best.pt's answers, and those of the lightness table, to whole photographs.

    Args:
        photos: whose training ones the table is fitted on.
        scored: the photographs; `short_side` in pixels at most.
    Raises:
        InputError: no photograph can be read.
    """
    # --force redoes the stage that asks, and no more.
    make_controls(replace(run, force=False), photos)
    table = OnnxPredictor(control_path(run, TABLE), threads=run.settings.machine.threads)
    device = choose_device(run.settings.machine.device)
    network = best.build_network().to(device)
    pictures, rows = [], []
    with torch.inference_mode():
        for _, rgb in whole_photos(scored, short_side=short_side, max_pixels=run.settings.data.max_pixels):
            lightness, ab = rgb_to_l_ab(rgb)
            answer = network(lightness.to(device)).cpu()
            pictures.append(Picture(lightness, ab, answer))
            grey = torch.zeros_like(ab)
            rows.append((
                mean_l1(grey, ab), mean_l1(torch.from_numpy(table(lightness.numpy())), ab), mean_l1(answer, ab),
                mean_l1(grey, answer), mean_chroma(answer), mean_chroma(ab),
            ))  # fmt: skip
    if not pictures:
        raise InputError("data set", None, "no photograph can be read", "check the folder of --data")
    if not all(map(math.isfinite, np.ravel(rows))):
        raise InputError("network", best.path, "answers NaN to a photograph", "check the checkpoint")
    return Yardstick(tuple(pictures), Reference(*np.array(rows).T))


def score_onnx(yardstick: Yardstick, path: Path, *, threads: int) -> Score:
    """What an ONNX file of this project is worth."""
    predictor = OnnxPredictor(path, threads=threads)
    return yardstick.score(lambda lightness: torch.from_numpy(predictor(lightness.numpy())))
