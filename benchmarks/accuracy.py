"""How good the colours are: every variant on the same held-out photographs, whole.

Photographs outside, variants inside: each photograph is decoded and converted once for all of them. The photographs are
in the order of their content, so that their two halves are two samples: who chooses a variant does so on the first one,
and says what it keeps on the second.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.variants import Variant
from colorpress.core.config import BenchmarkPlan
from colorpress.core.console import progress
from compress.measures import CONTENT, Measure, Reference, Score, Strength
from export.controls import TABLE
from export.onnx_probe import refuse_hostile
from training.batches import whole_photos
from training.lab import rgb_to_l_ab
from training.metrics import (
    Floats,
    PhotoScores,
    ShownColours,
    colourfulness,
    kept_share,
    mean_chroma,
    mean_l1,
    score_photo,
    show_colours,
)
from training.photo_split import halve_photos
from training.photos import Photo

Predictor = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Accuracy:
    """The colours of one variant over all photographs: means, and each photograph's own values.

    Attributes:
        status: "ok" or "error"; the figures of a failed variant are None.
        error: what went wrong; empty when ok.
        l1, l1_rgb, psnr_db, ssim, delta_e, edge_l1, chroma: means over photographs (see PhotoScores); ssim without
            photographs under 7 pixels, edge_l1 without those that have no edges; ssim and delta_e not of controls.
        l1_delta_pct, retained_*, content_*, fidelity*: see `compress.measures.Score`; None where best.pt failed.
        choosing_kept: by the measure that decides on all photographs, of the first half of them; None for fewer than
            two photographs.
        choosing_likely: what is chosen by that keeps elsewhere with 80 % confidence.
        confirming_photos: how many the other half are; 0 for a single photograph.
        confirming_kept, confirming_low, confirming_high: what is kept on those, and its 95 % interval.
        confirming_l1_delta_pct: `l1_delta_pct` on those.
        chroma_to_best, chroma_to_truth: `chroma` over that of best.pt, and over that of the photographs themselves.
        agreement_l1: L1 (ab/128) to best.pt's answer rather than to the truth.
        colourfulness: mean over photographs, on the scale of 0 to 255.
        colourfulness_ratio: the same over that of the photographs themselves.
        scores: one per photograph, in the result's order.
        to_best: L1 (ab/128) to best.pt's answer, one per photograph; none where best.pt failed.
    """

    status: str
    error: str = ""
    l1: float | None = None
    l1_rgb: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    delta_e: float | None = None
    edge_l1: float | None = None
    chroma: float | None = None
    l1_delta_pct: float | None = None
    retained_colour: float | None = None
    retained_low: float | None = None
    retained_high: float | None = None
    content_colour: float | None = None
    content_low: float | None = None
    content_high: float | None = None
    fidelity: float | None = None
    fidelity_low: float | None = None
    fidelity_high: float | None = None
    choosing_kept: float | None = None
    choosing_likely: float | None = None
    confirming_photos: int = 0
    confirming_l1_delta_pct: float | None = None
    confirming_kept: float | None = None
    confirming_low: float | None = None
    confirming_high: float | None = None
    chroma_to_best: float | None = None
    chroma_to_truth: float | None = None
    agreement_l1: float | None = None
    colourfulness: float | None = None
    colourfulness_ratio: float | None = None
    scores: tuple[PhotoScores, ...] = ()
    to_best: tuple[float, ...] = ()

    @property
    def is_ok(self) -> bool:
        """Whether every photograph was coloured."""
        return self.status == "ok"


# Of `compress.measures.Score`.
_COMPARED = {each.name for each in fields(Accuracy)} & {each.name for each in fields(Score)}


@dataclass(frozen=True)
class AccuracyResult:
    """Accuracies by variant name, with the photographs and what variants are held against on each of them.

    Attributes:
        grey_l1: L1 of the grey answer (ab = 0), of each photograph.
        reference: None without photographs, or where best.pt failed.
        mirrored_to_best: L1 (ab/128) of best.pt's answer to the mirrored photograph, mirrored back, to that to the
            photograph, of each; NaN where it failed. Another picture to a network, and the same colours to a person.
    """

    variants: Mapping[str, Accuracy]
    photos: tuple[Photo, ...]
    grey_l1: tuple[float, ...]
    reference: Reference | None = None
    mirrored_to_best: tuple[float, ...] = ()

    def is_ok(self, name: str) -> bool:
        """Whether a variant coloured every photograph."""
        return name in self.variants and self.variants[name].is_ok

    @property
    def mean_grey_l1(self) -> float | None:
        """The mean of `grey_l1`; None without photographs."""
        return _mean(self.grey_l1)

    @property
    def strength(self) -> Strength | None:
        """How strong best.pt is on them, and how like itself."""
        if self.reference is None:
            return None
        mirrored, to_grey = np.array(self.mirrored_to_best), self.reference.best_to_grey
        own = kept_share(to_grey, mirrored, np.zeros_like(to_grey)) if len(mirrored) else math.nan
        return replace(self.reference.strength, self_fidelity=own)


@dataclass
class _Tally:
    """One variant's scores so far; where it fails, `error` says why, and no more are added."""

    predictor: Predictor | None = None
    error: str = ""
    control: str = ""
    scores: list[PhotoScores] = field(default_factory=list)
    to_best: list[float] = field(default_factory=list)
    colourfulness: list[float] = field(default_factory=list)


@dataclass
class _Truth:
    """What is known of each photograph, whatever variants answer to it."""

    photos: list[Photo] = field(default_factory=list)
    grey_l1: list[float] = field(default_factory=list)
    best_to_grey: list[float] = field(default_factory=list)
    mirrored_to_best: list[float] = field(default_factory=list)
    chroma: list[float] = field(default_factory=list)
    colourfulness: list[float] = field(default_factory=list)


def choose_photos(photos: Sequence[Photo], count: int) -> tuple[Photo, ...]:
    """At most `count` photographs in the order of their content hash: a sample that no folder name biases."""
    return tuple(sorted(photos, key=lambda photo: photo.sha256)[:count])


def rank_by_harm(
    result: AccuracyResult,
    names: Sequence[str],
    measure: Measure,
    combine: Callable[..., NDArray[np.float64]] = np.mean,
) -> list[tuple[Photo, float]]:
    """Every photograph with the harm that variants do to it, worst first; none where best.pt or all of them failed.

    Harm is L1 (ab/128): by how much it is above best.pt's where content is the measure, else to best.pt's answer, which
    is not always nearer to the truth.

    Args:
        names: of variants; those that failed are left out.
        combine: their harms to a photograph, an array (variants, photographs), along axis 0.
    """
    finished = [result.variants[name] for name in names if result.is_ok(name)]
    if result.reference is None or not finished:
        return []
    if measure is CONTENT:
        l1 = combine([[score.l1_ab for score in each.scores] for each in finished], axis=0)
        harm = l1 - result.reference.best_l1
    else:
        harm = combine([each.to_best for each in finished], axis=0)
    return [(result.photos[index], float(harm[index])) for index in np.argsort(-harm, kind="stable")]


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
    photographs allowed nothing is opened, and there are no figures. The lightness table that content is measured
    against is that control among the variants; without it there is no content colour.

    Args:
        unfit: variants that are not opened at all, and why: they run in this process, and might end or hang it.
    """
    choosing, confirming = halve_photos(choose_photos(photos, plan.eval_photos), seed=0)
    chosen = (*choosing, *confirming)
    if not plan.eval_photos:
        return AccuracyResult({variant.name: Accuracy("ok") for variant in variants}, photos=(), grey_l1=())
    tallies = {variant.name: _open_tally(variant, threads, (unfit or {}).get(variant.name)) for variant in variants}
    truth = _Truth()
    with progress("measuring colours", len(chosen)) as bar, torch.inference_mode():
        for photo, rgb in whole_photos(chosen, short_side=plan.eval_size, max_pixels=max_pixels):
            lightness, ab = rgb_to_l_ab(rgb)  # (1, 1, H, W), (1, 2, H, W)
            shown = show_colours(lightness, ab)
            truth.photos.append(photo)
            truth.grey_l1.append(mean_l1(torch.zeros_like(ab), ab))
            truth.chroma.append(mean_chroma(ab))
            truth.colourfulness.append(colourfulness(shown.rgb))
            best = _score_variants(list(tallies.values()), lightness, shown)
            if best is not None:
                truth.best_to_grey.append(mean_l1(torch.zeros_like(best), best))
                truth.mirrored_to_best.append(_compare_mirrored(tallies[variants[0].name], lightness, best))
            bar.advance()
    reference = _make_reference(list(tallies.values()), truth)
    found = {name: _summarize(tally, truth, reference) for name, tally in tallies.items()}
    if reference:
        finished = {name: tally for name, tally in tallies.items() if found[name].is_ok}
        middle = sum(photo in set(choosing) for photo in truth.photos)
        found |= {name: replace(found[name], **each) for name, each in _compare(finished, reference, middle).items()}
    return AccuracyResult(found, tuple(truth.photos), tuple(truth.grey_l1), reference, tuple(truth.mirrored_to_best))


def _open_tally(variant: Variant, threads: int, unfit: str | None) -> _Tally:
    if unfit:
        return _Tally(error=unfit)
    try:
        if not variant.control:  # which was made here
            refuse_hostile(variant.path, runtime=variant.runtime)
        return _Tally(variant.open(threads), control=variant.control)
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


def _score_variants(tallies: Sequence[_Tally], lightness: Tensor, truth: ShownColours) -> Tensor | None:
    """Add this photograph's scores to every tally that has not failed; the answer of the first one, best.pt."""
    best: Tensor | None = None
    for tally in tallies:
        if tally.error or tally.predictor is None:
            continue
        try:
            answer = ask(tally.predictor, lightness)
        except Exception as error:  # as above
            tally.error = _one_line(error)
            continue
        if tally is tallies[0]:
            best = answer
        shown = show_colours(lightness, answer)
        # Nobody ships a control: what takes longest is not asked of it.
        tally.scores.append(score_photo(truth, shown, perceptual=not tally.control))
        tally.colourfulness.append(colourfulness(shown.rgb))
        if best is not None:
            tally.to_best.append(mean_l1(answer, best))
    return best


def _compare_mirrored(best: _Tally, lightness: Tensor, answer: Tensor) -> float:
    """L1 of best.pt's answer to the mirrored picture, mirrored back, to its `answer`; NaN where it fails."""
    assert best.predictor is not None
    try:
        return mean_l1(ask(best.predictor, lightness.flip(-1)).flip(-1), answer)
    except Exception:  # whatever a model does wrong, it answered the picture itself
        return math.nan


def _make_reference(tallies: Sequence[_Tally], truth: _Truth) -> Reference | None:
    """What variants are held against; None where best.pt failed, or where no photograph could be read."""
    if not tallies or tallies[0].error or not truth.photos:
        return None
    best = tallies[0].scores
    table = next((tally for tally in tallies if tally.control == TABLE and not tally.error), None)
    return Reference(
        grey_l1=np.array(truth.grey_l1),
        table_l1=_l1_of(table) if table else np.full(len(best), np.nan),
        best_l1=_l1_of(tallies[0]),
        best_to_grey=np.array(truth.best_to_grey),
        best_chroma=np.array([score.chroma for score in best]),
        true_chroma=np.array(truth.chroma),
    )


def _l1_of(tally: _Tally) -> Floats:
    return np.array([score.l1_ab for score in tally.scores])


def _summarize(tally: _Tally, truth: _Truth, reference: Reference | None) -> Accuracy:
    """Means of one variant."""
    if tally.error or not tally.scores:
        return Accuracy(status="error", error=tally.error or "no photographs to measure on")
    names = [each.name for each in fields(PhotoScores) if each.name != "l1_ab"]
    means: dict[str, Any] = {name: _mean([getattr(score, name) for score in tally.scores]) for name in names}
    return Accuracy(
        "ok",
        **means,
        l1=float(_l1_of(tally).mean()),
        chroma_to_best=_ratio(means["chroma"], float(reference.best_chroma.mean()) if reference else None),
        chroma_to_truth=_ratio(means["chroma"], _mean(truth.chroma)),
        colourfulness=_mean(tally.colourfulness),
        colourfulness_ratio=_ratio(_mean(tally.colourfulness), _mean(truth.colourfulness)),
        scores=tuple(tally.scores),
    )


def _compare(tallies: Mapping[str, _Tally], reference: Reference, middle: int) -> dict[str, dict[str, Any]]:
    """What finished variants keep of best.pt, as `Accuracy` has it; the first `middle` photographs choose."""
    measure, count = reference.strength.measure, len(reference.best_l1)
    halves = (slice(middle), slice(middle, None)) if 0 < middle < count else ()
    l1 = {name: _l1_of(tally) for name, tally in tallies.items()}
    to_best = {name: np.array(tally.to_best) for name, tally in tallies.items()}
    # One part after the other for all variants, which share the draws of its intervals.
    whole, *parts = (
        {name: held.score(l1[name][part], to_best[name][part]) for name in tallies}
        for part in (slice(None), *halves)
        for held in (reference.part(part),)
    )
    found: dict[str, dict[str, Any]] = {}
    for name, score in whole.items():
        figures = {each: value for each, value in vars(score).items() if each in _COMPARED}
        figures["agreement_l1"] = float(to_best[name].mean())
        if parts:
            choosing, confirming = (each[name] for each in parts)
            figures |= {
                "choosing_kept": getattr(choosing, measure.name),
                "choosing_likely": choosing.likely_figures()[measure.name],
                "confirming_photos": count - middle,
                "confirming_l1_delta_pct": confirming.l1_delta_pct,
                "confirming_kept": getattr(confirming, measure.name),
                "confirming_low": getattr(confirming, measure.low),
                "confirming_high": getattr(confirming, measure.high),
            }
        found[name] = {each: value if math.isfinite(value) else None for each, value in figures.items()}
        found[name]["to_best"] = tuple(tallies[name].to_best)
    return found


def _ratio(figure: float | None, other: float | None) -> float | None:
    return figure / other if figure is not None and other else None


def _mean(values: Sequence[float]) -> float | None:
    """Of those that are finite."""
    finite = list(filter(math.isfinite, values))
    return sum(finite) / len(finite) if finite else None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
