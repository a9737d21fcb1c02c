"""How much colour a candidate keeps, on photographs that choose between candidates and are never reported on."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from colorpress.core.errors import InputError
from colorpress.core.files import with_nan, without_nan
from compress.budgets import Limit, find_bound
from export.predictors import OnnxPredictor
from training.batches import whole_photos
from training.checkpoint import Checkpoint
from training.device import choose_device
from training.lab import rgb_to_l_ab
from training.metrics import bootstrap_interval, mean_l1, retained_colour
from training.photos import Photo
from training.run_folder import Run

# L (1, 1, H, W) in [0, 1] to ab (1, 2, H, W) in ab/128, any H and W.
Answering = Callable[[Tensor], Tensor]
# Quantiles of the normal distribution: the 80 % one, and both ends of the interval that holds 95 %.
_FOUR_IN_FIVE, _NINETEEN_IN_TWENTY = 0.842, 1.960


@dataclass(frozen=True)
class Score:
    """What a candidate's answers are worth, against best.pt on the same photographs.

    Attributes:
        l1: mean L1 (ab/128).
        l1_delta_pct: L1 above best.pt's, in percent of it; negative is better than best.pt. NaN where best.pt's is 0.
        retained_colour: G; NaN where best.pt is no better than grey.
        low, high: its 95 % bootstrap interval over photographs; NaN for fewer than two.
    """

    l1: float
    l1_delta_pct: float
    retained_colour: float
    low: float
    high: float

    @property
    def margin(self) -> float:
        """How far G may be below this on other photographs, with odds of 4 to 1; 0 where there is no interval.

        The interval is taken for that of a normal distribution.
        """
        return 0.0 if math.isnan(self.low) else _FOUR_IN_FIVE * (self.high - self.low) / (2 * _NINETEEN_IN_TWENTY)

    @property
    def loss(self) -> float:
        """What should be small: 1 - G, or where there is no G the share that the L1 is above best.pt's."""
        return self.l1_delta_pct / 100.0 if math.isnan(self.retained_colour) else 1.0 - self.retained_colour

    def likely_figures(self, grey_increase_pct: float) -> dict[str, float]:
        """G and the increase of the L1 that goals are held against: what other photographs keep with odds of 4 to 1.

        Args:
            grey_increase_pct: L1 of the grey answer above best.pt's, in percent of it.
        """
        further = self.margin * grey_increase_pct if self.margin else 0.0
        return {"retained_colour": self.retained_colour - self.margin, "l1_delta_pct": self.l1_delta_pct + further}

    def keeps(self, floor: float, *, most_increase_pct: float = 0.0) -> bool:
        """Whether G on other photographs is at least `floor` with odds of 4 to 1; without a G the L1 counts."""
        if math.isnan(self.retained_colour):
            return math.isnan(self.l1_delta_pct) or self.l1_delta_pct <= most_increase_pct
        return self.retained_colour - self.margin >= floor

    @property
    def interval(self) -> str:
        """The interval as a remark behind a figure; empty where there is none."""
        return "" if math.isnan(self.low) else f" (95 % interval {self.low:.3f} to {self.high:.3f})"

    def describe(self) -> str:
        """G in a few words, else the L1."""
        kept = self.retained_colour
        return f"{self.l1_delta_pct:+.2f} % L1" if math.isnan(kept) else f"G {kept:.3f}"

    def to_dict(self) -> dict[str, float | None]:
        """The score as JSON-ready primitives."""
        return without_nan(asdict(self))

    @staticmethod
    def of(values: Mapping[str, Any]) -> Score:
        """Rebuild a score from `to_dict`'s answer."""
        return Score(**with_nan(values))


# Scores an ONNX file, given as its bytes, by the photographs of a yardstick.
Scoring = Callable[[bytes], Score]


@dataclass(frozen=True)
class Yardstick:
    """Whole photographs on the CPU, with the L1 (ab/128) of the grey answer and of best.pt on each."""

    pictures: tuple[tuple[Tensor, Tensor], ...]  # L (1, 1, H, W), ab (1, 2, H, W), each of its own size
    grey_l1: NDArray[np.float64]  # (photographs,)
    best_l1: NDArray[np.float64]  # (photographs,)

    def means(self, photos: int | None = None) -> tuple[float, float]:
        """The mean L1 (ab/128) of the grey answer and of best.pt, on the first so many of the photographs or on all."""
        return float(self.grey_l1[:photos].mean()), float(self.best_l1[:photos].mean())

    @property
    def grey_increase_pct(self) -> float:
        """The L1 of the grey answer above best.pt's, in percent of best.pt's; NaN where that is 0."""
        grey, best = self.means()
        return 100.0 * (grey / best - 1.0) if best else math.nan

    def floor_of(self, goals: Sequence[Limit]) -> float | None:
        """The G that goals ask for, the stricter one where they say it twice.

        None where they ask for nothing, or for L1 where best.pt is no better than grey.
        """
        retained, increase_pct = find_bound(goals, "retained_colour"), find_bound(goals, "l1_delta_pct")
        floors = [] if retained is None else [retained]
        grey, best = self.means()
        if increase_pct is not None and grey > best:
            floors.append(1.0 - increase_pct / 100.0 * best / (grey - best))
        return max(floors, default=None)

    def l1_at(self, retained_colour: float) -> float:
        """The mean L1 (ab/128) of this G."""
        grey, best = self.means()
        return grey - retained_colour * (grey - best)

    def score(self, answering: Answering) -> Score:
        """Ask a candidate about every photograph.

        Raises:
            InputError: an answer is not finite or of another shape.
        """
        own = []
        with torch.inference_mode():
            for lightness, ab in self.pictures:
                answer = answering(lightness)
                if answer.shape != ab.shape or not bool(torch.isfinite(answer).all()):
                    why = f"answers {tuple(answer.shape)} or NaN to {tuple(lightness.shape)}"
                    raise InputError("network", None, why, "use another setting for this step")
                own.append(mean_l1(answer.cpu(), ab))
        l1 = np.array(own)  # (photographs,)
        low, high = bootstrap_interval(self.grey_l1, l1, self.best_l1)
        _, best_l1 = self.means()
        return Score(
            l1=float(l1.mean()),
            l1_delta_pct=100.0 * (float(l1.mean()) / best_l1 - 1.0) if best_l1 else math.nan,
            retained_colour=retained_colour(self.grey_l1, l1, self.best_l1),
            low=low,
            high=high,
        )


def make_yardstick(run: Run, best: Checkpoint, photos: Sequence[Photo], *, short_side: int) -> Yardstick:
    """best.pt's answers to whole photographs, which candidates are scored by; `short_side` in pixels at most.

    Raises:
        InputError: no photograph can be read.
    """
    device = choose_device(run.settings.machine.device)
    network, max_pixels = best.build_network().to(device), run.settings.data.max_pixels
    pictures = [rgb_to_l_ab(rgb) for _, rgb in whole_photos(photos, short_side=short_side, max_pixels=max_pixels)]
    if not pictures:
        raise InputError("data set", None, "no photograph can be read", "check the folder of --data")
    grey = np.array([mean_l1(torch.zeros_like(ab), ab) for _, ab in pictures])
    with torch.inference_mode():
        own = np.array([mean_l1(network(lightness.to(device)).cpu(), ab) for lightness, ab in pictures])
    return Yardstick(tuple(pictures), grey, own)


def score_onnx(yardstick: Yardstick, path: Path, *, threads: int) -> Score:
    """What an ONNX file of this project is worth."""
    predictor = OnnxPredictor(path, threads=threads)
    return yardstick.score(lambda lightness: torch.from_numpy(predictor(lightness.numpy())))
