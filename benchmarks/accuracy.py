"""How good the colours are: every variant on the same held-out photographs, whole.

Photographs outside, variants inside: each photograph is decoded and converted once for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.variants import Variant
from colorpress.core.config import BenchmarkPlan
from colorpress.core.console import progress
from export.onnx_probe import refuse_hostile
from training.batches import whole_photos
from training.lab import rgb_to_l_ab
from training.metrics import (
    PhotoScores,
    ShownColours,
    bootstrap_interval,
    colourfulness,
    mean_l1,
    retained_colour,
    score_photo,
    show_colours,
)
from training.photos import Photo

Predictor = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Accuracy:
    """The colours of one variant over all photographs: means, and each photograph's own values.

    Attributes:
        status: "ok" or "error"; the figures of a failed variant are None.
        error: what went wrong; empty when ok.
        l1, l1_rgb, psnr_db, ssim, delta_e: means over photographs (see PhotoScores); ssim without photographs under 7
            pixels.
        l1_delta_pct: L1 above best.pt's, in percent of it; negative is better than best.pt.
        retained_colour: G; None where best.pt is no better than grey.
        retained_low, retained_high: its 95 % bootstrap interval; None for fewer than two photographs.
        agreement_l1: L1 (ab/128) to best.pt's answer rather than to the truth.
        colourfulness: mean over photographs, on the scale of 0 to 255.
        colourfulness_ratio: the same over that of the photographs themselves.
        scores: one per photograph, in the result's order.
    """

    status: str
    error: str = ""
    l1: float | None = None
    l1_rgb: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    delta_e: float | None = None
    l1_delta_pct: float | None = None
    retained_colour: float | None = None
    retained_low: float | None = None
    retained_high: float | None = None
    agreement_l1: float | None = None
    colourfulness: float | None = None
    colourfulness_ratio: float | None = None
    scores: tuple[PhotoScores, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether every photograph was coloured."""
        return self.status == "ok"


@dataclass(frozen=True)
class AccuracyResult:
    """Accuracies by variant name, with the photographs and the L1 of the grey answer (ab = 0) on each of them."""

    variants: Mapping[str, Accuracy]
    photos: tuple[Photo, ...]
    grey_l1: tuple[float, ...]

    def is_ok(self, name: str) -> bool:
        """Whether a variant coloured every photograph."""
        return name in self.variants and self.variants[name].is_ok

    @property
    def mean_grey_l1(self) -> float | None:
        """The mean of `grey_l1`; None without photographs."""
        return _mean(self.grey_l1)


@dataclass
class _Tally:
    """One variant's scores so far; where it fails, `error` says why, and no more are added."""

    predictor: Predictor | None = None
    error: str = ""
    scores: list[PhotoScores] = field(default_factory=list)
    agreement: list[float] = field(default_factory=list)
    colourfulness: list[float] = field(default_factory=list)


def choose_photos(photos: Sequence[Photo], count: int) -> tuple[Photo, ...]:
    """At most `count` photographs in the order of their content hash: a sample that no folder name biases."""
    return tuple(sorted(photos, key=lambda photo: photo.sha256)[:count])


def measure_accuracy(
    variants: Sequence[Variant],
    photos: Sequence[Photo],
    plan: BenchmarkPlan,
    *,
    max_pixels: int,
    threads: int = 0,
    unfit: Mapping[str, str] | None = None,
) -> AccuracyResult:
    """Score every variant on at most `plan.eval_photos` photographs; the first variant is the reference best.pt.

    A variant that cannot be opened, fails on a photograph or answers NaN is an error row; the others go on. With no
    photographs allowed nothing is opened, and there are no figures.

    Args:
        unfit: variants that are not opened at all, and why: they run in this process, and might end or hang it.
    """
    chosen = choose_photos(photos, plan.eval_photos)
    if not plan.eval_photos:
        return AccuracyResult({variant.name: Accuracy("ok") for variant in variants}, photos=(), grey_l1=())
    tallies = {variant.name: _open_tally(variant, threads, (unfit or {}).get(variant.name)) for variant in variants}
    measured: list[Photo] = []
    grey_l1: list[float] = []
    true_colourfulness: list[float] = []
    with progress("measuring colours", len(chosen)) as bar, torch.inference_mode():
        for photo, rgb in whole_photos(chosen, short_side=plan.eval_size, max_pixels=max_pixels):
            lightness, ab = rgb_to_l_ab(rgb)  # (1, 1, H, W), (1, 2, H, W)
            measured.append(photo)
            grey_l1.append(mean_l1(torch.zeros_like(ab), ab))
            truth = show_colours(lightness, ab)
            true_colourfulness.append(colourfulness(truth.rgb))
            _score_variants(list(tallies.values()), lightness, truth)
            bar.advance()
    reference = next(iter(tallies.values()), _Tally(error="no variant"))
    summaries = {name: _summarize(each, reference, grey_l1, true_colourfulness) for name, each in tallies.items()}
    return AccuracyResult(summaries, photos=tuple(measured), grey_l1=tuple(grey_l1))


def _open_tally(variant: Variant, threads: int, unfit: str | None) -> _Tally:
    if unfit:
        return _Tally(error=unfit)
    try:
        refuse_hostile(variant.path)
        return _Tally(variant.open(threads))
    except Exception as error:  # whatever a model does wrong is a row of the benchmark
        return _Tally(error=_one_line(error))


def ask(predictor: Predictor, lightness: Tensor) -> Tensor:
    """Its ab (1, 2, H, W) for lightness (1, 1, H, W).

    Raises:
        ValueError: it is of another shape, or not finite. And whatever the predictor raises.
    """
    answer = torch.from_numpy(np.ascontiguousarray(predictor(lightness.numpy()), dtype=np.float32))
    if answer.shape != (1, 2, *lightness.shape[2:]) or not bool(torch.isfinite(answer).all()):
        raise ValueError(f"answered {tuple(answer.shape)} with NaN or Inf, or another shape than the picture's")
    return answer


def _score_variants(tallies: Sequence[_Tally], lightness: Tensor, truth: ShownColours) -> None:
    """Add this photograph's scores to every tally that has not failed; the first one is the reference."""
    reference: Tensor | None = None
    for tally in tallies:
        if tally.error or tally.predictor is None:
            continue
        try:
            answer = ask(tally.predictor, lightness)
        except Exception as error:  # as above
            tally.error = _one_line(error)
            continue
        if tally is tallies[0]:
            reference = answer
        shown = show_colours(lightness, answer)
        tally.scores.append(score_photo(truth, shown))
        tally.colourfulness.append(colourfulness(shown.rgb))
        if reference is not None:
            tally.agreement.append(mean_l1(answer, reference))


def _summarize(
    tally: _Tally, reference: _Tally, grey_l1: Sequence[float], true_colourfulness: Sequence[float]
) -> Accuracy:
    """Means of one variant, against the reference where that one has no error."""
    if tally.error or not tally.scores:
        return Accuracy(status="error", error=tally.error or "no photographs to measure on")
    own = np.array([score.l1_ab for score in tally.scores])
    truth, colourful = _mean(true_colourfulness) or 0.0, _mean(tally.colourfulness) or 0.0
    figures: dict[str, Any] = {
        name: _mean([getattr(score, name) for score in tally.scores])
        for name in ("l1_rgb", "psnr_db", "ssim", "delta_e")
    }
    figures |= {"l1": float(own.mean()), "colourfulness": colourful}
    figures |= {"colourfulness_ratio": colourful / truth if truth > 0 else None, "scores": tuple(tally.scores)}
    if not reference.error:
        best, grey = np.array([score.l1_ab for score in reference.scores]), np.asarray(grey_l1)
        low, high = bootstrap_interval(grey, own, best)
        figures |= {
            "l1_delta_pct": 100.0 * (float(own.mean()) / float(best.mean()) - 1.0) if best.mean() > 0 else None,
            "retained_colour": _finite(retained_colour(grey, own, best)),
            "retained_low": _finite(low),
            "retained_high": _finite(high),
            "agreement_l1": _mean(tally.agreement),
        }
    return Accuracy("ok", **figures)


def _mean(values: Sequence[float]) -> float | None:
    """Of those that are finite."""
    finite = list(filter(math.isfinite, values))
    return sum(finite) / len(finite) if finite else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
