"""What a candidate is worth, on whole photographs that choose between candidates or score what was chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from colorpress.core.console import muted
from colorpress.core.errors import InputError
from compress.measures import Reference, Scale, Score, Scores, Strength
from export.controls import TABLE, control_path, make_controls
from export.predictors import OnnxPredictor, Predictor
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

    def scale(self, photos: int | None = None) -> Scale:
        """What the mean L1 of a student is read by, on the first so many of the photographs or on all.

        It is to best.pt's answers where fidelity decides on all of them.
        """
        known, to_best = self.reference, not self.strength.beats_table
        grey_l1 = (known.best_to_grey if to_best else known.grey_l1)[:photos].mean()
        return Scale(float(grey_l1), 0.0 if to_best else float(known.best_l1[:photos].mean()), to_best)

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
                if not is_answer(answer, picture.lightness):
                    why = f"answers {tuple(answer.shape)} or NaN to {tuple(picture.lightness.shape)}"
                    raise InputError("network", None, why, "use another setting for this step")
                l1.append(mean_l1(answer.cpu(), picture.ab))
                to_best.append(mean_l1(answer.cpu(), picture.best))
        return np.array(l1), np.array(to_best)


def is_answer(answer: Tensor, lightness: Tensor) -> bool:
    """Whether colours are finite, and (1, 2, H, W) for lightness (1, 1, H, W)."""
    return answer.shape == (1, 2, *lightness.shape[2:]) and bool(torch.isfinite(answer).all())


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
    with muted():  # every yardstick asks for them; --force redoes the stage that asks, and no more
        make_controls(replace(run, force=False), photos)
    table = answering_of(OnnxPredictor(control_path(run, TABLE), threads=run.settings.machine.threads))
    device = choose_device(run.settings.machine.device)
    network = best.build_network().to(device)
    pictures, against = [], []
    with torch.inference_mode():
        for _, rgb in whole_photos(scored, short_side=short_side, max_pixels=run.settings.data.max_pixels):
            lightness, ab = rgb_to_l_ab(rgb)
            answer = network(lightness.to(device)).cpu()
            pictures.append(Picture(lightness, ab, answer))
            against.append(hold_against(ab, answer, table(lightness)))
    if not pictures:
        raise InputError("data set", None, "no photograph can be read", "check the folder of --data")
    if not all(math.isfinite(value) for figures in against for value in figures.values()):
        raise InputError("network", best.path, "answers NaN to a photograph", "check the checkpoint")
    return Yardstick(tuple(pictures), Reference.of(against))


def hold_against(ab: Tensor, best: Tensor, table: Tensor | None) -> dict[str, float]:
    """The figures of one photograph in `Reference`, by name.

    Args:
        ab, best, table: the truth, best.pt's answer and a lightness table's (None: there is none), (1, 2, H, W) in
            ab/128.
    """
    grey = torch.zeros_like(ab)
    return {
        "grey_l1": mean_l1(grey, ab),
        "table_l1": math.nan if table is None else mean_l1(table, ab),
        "best_l1": mean_l1(best, ab),
        "best_to_grey": mean_l1(grey, best),
        "best_chroma": mean_chroma(best),
        "true_chroma": mean_chroma(ab),
    }


@dataclass(frozen=True)
class Jury:
    """Photographs that choose between candidates, and others that say what the chosen one is worth.

    best.pt is asked about either half when it is needed first: many choose, and few have anything to confirm.

    Attributes:
        photos: all of their `choosing` and `confirming`; the table is fitted on the training ones.
    """

    run: Run
    best: Checkpoint
    photos: PhotoSplit

    @cached_property
    def choosing(self) -> Yardstick:
        """Of the photographs that choose, whose measure is that of the others too."""
        return self._make(self.photos.choosing)

    @cached_property
    def confirming(self) -> Yardstick | None:
        """Of those that never choose; None where there are none."""
        return self._make(self.photos.confirming) if self.photos.confirming else None

    @property
    def reporting(self) -> Yardstick:
        """That of `Scores.reported`."""
        return self.confirming or self.choosing

    def score(self, answering: Answering) -> Scores:
        """Ask a model about all photographs; raises as `Yardstick.measure`."""
        chosen_by = self.choosing.score(answering)
        confirmed = self.confirming.score(answering).by(chosen_by.measure) if self.confirming else None
        return Scores(chosen_by, confirmed)

    def _make(self, scored: Sequence[Photo]) -> Yardstick:
        return make_yardstick(self.run, self.best, self.photos, scored, short_side=self.run.settings.score.eval_size)


def answering_of(predictor: Predictor) -> Answering:
    """A predictor as what a yardstick asks."""

    def answer(lightness: Tensor) -> Tensor:
        return torch.from_numpy(predictor(lightness.numpy()))

    return answer


def score_onnx(yardstick: Yardstick, path: Path, *, threads: int) -> Score:
    """What an ONNX file of this project is worth."""
    return yardstick.score(answering_of(OnnxPredictor(path, threads=threads)))
