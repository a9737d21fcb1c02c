"""Which conventions a foreign network was trained with, found on photographs: what is not said is tried."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from colorpress.core.config import GREY_RANGES, INPUTS, L_RANGES, RGB_RANGES
from colorpress.core.console import progress
from colorpress.core.errors import InputError
from training.batches import whole_photos
from training.cie import AB_SCALE
from training.conventions import Conventions
from training.foreign import AdaptedNetwork
from training.input_sizes import InputSizes
from training.lab import rgb_to_l_ab
from training.metrics import Floats, kept_interval, mean_chroma
from training.photos import Photo

# Squares of this side at least, in pixels.
_LEAST_SIDE, _BATCH = 128, 4
# All conventions are tried on so many photographs, and those that may be the best on so many.
_FEW_PHOTOS, _MANY_PHOTOS = 24, 96
# Colours are held against the truth as they are, halved and quartered: vivid ones cost L1 even where they are right.
_STRENGTHS = (1.0, 0.5, 0.25)
# Of grey's L1: less is no difference, however sure.
_LEAST_SHARE = 0.01
# The usual input, and L* rather than the grey photograph, is taken where it gains so much of what the best one does: a
# network that was trained on it may be a little nearer to the truth of some photographs by another lightness.
_USUAL_SHARE = 0.6
# Of the mean of an answer: another one that is nearer to it than this is as good as the same picture.
_ALIKE_SHARE = 0.25
_STRIDE, _NO_CHROMA = 4, 1e-6
# a*b* = answer * scale + offset, as public projects have it: over 128 or so, as it is, or moved to 0..1.
_AB_SCALES = ((AB_SCALE, 0.0), (1.0, 0.0), (255.0, -128.0))


@dataclass(frozen=True)
class Squares:
    """The middles of photographs: L (N, 1, H, W) in [0, 1] and ab (N, 2, H, W) in ab/128, at one size."""

    lightness: Tensor
    ab: Tensor

    @cached_property
    def grey_l1(self) -> Floats:
        """L1 (ab/128) of the grey answer to each."""
        return _l1(torch.zeros_like(self.ab), self.ab)

    @cached_property
    def blind_l1(self) -> Floats:
        """The same of the one colour for all that is nearest to the truth: what an answer is that sees nothing."""
        colour = self.ab.transpose(0, 1).flatten(1).median(1).values.view(1, 2, 1, 1)
        return _l1(colour.expand_as(self.ab), self.ab)

    def first(self, count: int) -> Squares:
        """The first so many."""
        return Squares(self.lightness[:count], self.ab[:count])


@dataclass(frozen=True, eq=False)
class Trial:
    """What a network answers to photographs when it is asked by some conventions.

    Attributes:
        l1, grey_l1, blind_l1: L1 (ab/128) of its answer to each photograph, of grey and of one colour for all.
        tuned_l1: as `l1`, of all its colours halved or quartered where that is nearer to the truth.
        chroma_share: mean chroma over that of the truth.
        misfit: how far the size of its numbers is from what they are said to be; compared within a `family`.
        small: the answers averaged over areas, (N, 2, H / 4, W / 4).
    """

    conventions: Conventions
    l1: Floats
    grey_l1: Floats
    blind_l1: Floats
    tuned_l1: Floats
    chroma_share: float
    misfit: float
    small: Tensor

    @property
    def family(self) -> Conventions:
        """The same for conventions that differ by the size of numbers alone, which L1 cannot tell from paleness."""
        known = self.conventions
        return replace(known, ab_scale=known.ab_scale if known.ab_offset else 1.0, rgb_range="0,1")

    def to_dict(self) -> dict[str, Any]:
        """Means over the photographs, as JSON-ready primitives."""
        return {
            "conventions": self.conventions.options(),
            "photographs": len(self.l1),
            "l1": _mean(self.l1),
            "grey_l1": _mean(self.grey_l1),
            "tuned_l1": _mean(self.tuned_l1),
            "chroma_share": self.chroma_share,
        }

    @property
    def above_grey_pct(self) -> float:
        """Its L1 above grey's, in percent of that; negative is nearer to the truth than grey."""
        return 100.0 * (_mean(self.l1) / _mean(self.grey_l1) - 1.0)

    @property
    def gain(self) -> float:
        """How far its L1 is below grey's, at the best strength."""
        return _mean(self.grey_l1) - _mean(self.tuned_l1)

    @property
    def beats_grey(self) -> bool:
        """Whether its colours are clearly nearer to the truth than grey and any other tint, at some strength."""
        return all(_is_clearly_below(self.tuned_l1, each, self.grey_l1) for each in (self.grey_l1, self.blind_l1))

    def beats(self, other: Trial) -> bool:
        """Whether its colours are clearly nearer to the truth than another's."""
        return _is_clearly_below(self.tuned_l1, other.tuned_l1, self.grey_l1)

    def is_like(self, other: Trial) -> bool:
        """Whether both give as good as the same picture."""
        return float((self.small - other.small).abs().mean()) <= _ALIKE_SHARE * float(self.small.abs().mean())


@dataclass(frozen=True)
class Finding:
    """What was tried, and what is taken.

    Attributes:
        trials: the nearest to the truth first; those tried on many photographs before the others.
        taken: what fits clearly, or else what was assumed.
        doubt: why nothing fits clearly, as a clause; empty where something does.
    """

    trials: tuple[Trial, ...]
    taken: Conventions
    doubt: str = ""

    def describe(self) -> str:
        """What fits, by how much, in a sentence."""
        if self.doubt:
            return self.doubt
        best = next(each for each in self.trials if each.conventions == self.taken)
        text = f"it {self.taken.describe()}: {_percent(best.above_grey_pct)} grey on {len(best.l1)} photographs"
        other = next((each for each in self.trials if each.conventions != self.taken), None)
        if other is None:
            return text
        return f"{text}; the nearest other, one that {other.conventions.describe()}, {_percent(other.above_grey_pct)}"

    def to_rows(self) -> list[list[str]]:
        """A table for people, the header first."""
        rows = [["conventions", "L1", "to grey", "chroma", "photographs"]]
        for each in self.trials:
            mark = " (taken)" if each.conventions == self.taken else ""
            figures = [f"{_mean(each.l1):.4f}", f"{each.above_grey_pct:+.1f} %", f"{100 * each.chroma_share:.0f} %"]
            rows.append([each.conventions.describe() + mark, *figures, str(len(each.l1))])
        return rows


def _percent(above: float) -> str:
    return f"L1 {abs(above):.1f} % {'above' if above > 0 else 'below'}"


def _mean(values: Floats) -> float:
    return float(values.mean())


def cut_squares(photos: Sequence[Photo], sizes: InputSizes, *, max_pixels: int) -> Squares:
    """The middles of the first photographs, at a side that a network of these sizes takes.

    Raises:
        InputError: no photograph can be read.
    """
    side = -(-_LEAST_SIDE // sizes.multiple) * sizes.multiple
    size = sizes.fixed or (side, side)
    middles = [
        _cut_middle(rgb, size)
        for _, rgb in whole_photos(photos[:_MANY_PHOTOS], short_side=min(size), max_pixels=max_pixels)
    ]
    if not middles:
        raise InputError("data set", None, "no photograph can be read", "check the folder of --data")
    return Squares(*rgb_to_l_ab(torch.cat(middles)))


def _cut_middle(rgb: Tensor, size: tuple[int, int]) -> Tensor:
    """The middle square of uint8 (1, 3, H, W) as float (1, 3, *size) in [0, 1]."""
    height, width = rgb.shape[-2:]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = rgb[..., top : top + edge, left : left + edge] / 255.0
    return square if size == (edge, edge) else F.interpolate(square, size, mode="bilinear", antialias=True)


@torch.inference_mode()
def find_conventions(network: AdaptedNetwork, given: Mapping[str, Any], squares: Squares) -> Finding:
    """Try all conventions that `given` leaves open, and say which fit.

    They fit clearly where the colours are nearer to the truth than grey, than one tint for all, and than by any other
    conventions, with a confidence of 95 % (paired bootstrap over photographs) and by 1 % of grey's L1 at least. The
    input that is assumed is not given up for one that is a little better, see `_USUAL_SHARE`, and where answers hardly
    differ the plainer one is taken unless the other is better beyond noise. How vivid colours are decides nothing: L1
    prefers pale ones, so all are also tried at a half and a quarter of their chroma; and of scales alone that is taken
    whose chroma is nearest to the truth's.

    Args:
        network: with the conventions that are assumed where nothing fits clearly.
        given: what the user says, by the names of `Conventions`.
    """
    assumed = network.architecture.conventions
    tried = list_conventions(assumed, given)
    ordered = _try_all(network, tried, squares.first(_FEW_PHOTOS))
    if not ordered:
        return Finding((), assumed, "it answers no numbers, however it is asked")
    may_be = _find_likely(ordered, assumed)
    if len(squares.ab) > _FEW_PHOTOS and (len(may_be) > 1 or not ordered[0].beats_grey):
        again = _try_all(network, [each.conventions for each in may_be], squares)
        ordered = [*again, *(each for each in ordered if each not in may_be)]
        may_be = _find_likely(again, assumed)
    for usual in _usual_inputs(ordered[0], assumed):
        best = max(
            (each for each in may_be if _input_of(each.conventions) == usual), key=lambda each: each.gain, default=None
        )
        if best and best.beats_grey and best.gain >= _USUAL_SHARE * ordered[0].gain:
            ordered = [best, *(each for each in ordered if each is not best)]
            break
    return _judge(ordered, [each for each in may_be if not ordered[0].beats(each)], assumed, tried)


def _usual_inputs(best: Trial, assumed: Conventions) -> tuple[Conventions, Conventions]:
    """The input that is assumed, and that of the nearest with L* for the grey photograph, or the other way round."""
    return _input_of(assumed), replace(_input_of(best.conventions), input=assumed.input)


def _find_likely(ordered: Sequence[Trial], assumed: Conventions) -> list[Trial]:
    """Those that the nearest one does not clearly beat, and those of a usual input that gain nearly as much."""
    best = ordered[0]
    usual = _usual_inputs(best, assumed)
    return [
        each
        for each in ordered
        if not best.beats(each) or (_input_of(each.conventions) in usual and each.gain >= _USUAL_SHARE * best.gain)
    ]


def _judge(
    ordered: Sequence[Trial], may_be: Sequence[Trial], assumed: Conventions, tried: Sequence[Conventions]
) -> Finding:
    best = ordered[0]
    if not best.beats_grey:
        nearest = f"the nearest, one that {best.conventions.describe()}, has an {_percent(best.above_grey_pct)} grey's"
        why = f"it is not clearly better than grey, or than a tint, by any of {len(tried)} conventions: {nearest}"
        return Finding(tuple(ordered), assumed, why)
    if other := next((each for each in may_be if not best.is_like(each)), None):
        why = f"nothing tells one that {best.conventions.describe()} from one that {other.conventions.describe()}"
        return Finding(tuple(ordered), assumed, why)
    as_good = [each for each in may_be if not _is_below(best.tuned_l1, each.tuned_l1)]
    known = [each.conventions for each in as_good]
    usual = _usual_inputs(best, assumed)
    taken = min(known, key=lambda each: (_input_of(each) not in usual, tried.index(each)))
    return Finding(tuple(ordered), taken)


def list_conventions(assumed: Conventions, given: Mapping[str, Any]) -> list[Conventions]:
    """Those that are tried, the usual ones first, with the same input side by side: what is given is in all of them."""
    channels, answered = assumed.input_channels, assumed.output_channels
    inputs: list[dict[str, Any]] = [{"input": "l", "l_range": each} for each in L_RANGES]
    inputs += [{"input": "grey", "l_range": each} for each in GREY_RANGES]
    if channels == 3:
        inputs += [{"input": each, "input_norm": "imagenet"} for each in INPUTS]
    usual: list[dict[str, Any]] = [dict(zip(("ab_scale", "ab_offset"), pair, strict=True)) for pair in _AB_SCALES]
    scaled = {name: given[name] for name in ("ab_scale", "ab_offset") if name in given}
    scales = [each for each in usual if each | scaled == each] or [usual[0] | scaled]
    outputs: list[dict[str, Any]] = [{"output": "ab" if answered == 2 else "lab", **each} for each in scales]
    if answered == 3 and not scaled:
        outputs = [{"output": "rgb", "rgb_range": each} for each in RGB_RANGES] + outputs
    return [
        found
        for read, answer in itertools.product(inputs, outputs)
        if (found := Conventions(**{**read, **answer, "input_channels": channels})).agrees(given)
    ]


def _try_all(network: AdaptedNetwork, tried: Sequence[Conventions], squares: Squares) -> list[Trial]:
    """Each on all squares, the nearest to the truth first; of a family the one whose numbers are of the right size."""
    by_input: dict[Conventions, list[Conventions]] = {}
    for each in tried:
        by_input.setdefault(_input_of(each), []).append(each)
    best: dict[Conventions, Trial] = {}
    with progress("conventions", len(by_input)) as shown:
        for presented, group in by_input.items():
            parts = torch.split(squares.lightness, _BATCH)
            answers = torch.cat([network.net(presented.present(lightness)) for lightness in parts])
            for trial in filter(None, (_try(each, answers, squares) for each in group)):
                best[trial.family] = min(best.get(trial.family, trial), trial, key=lambda each: each.misfit)
            shown.advance()
    return sorted(best.values(), key=lambda trial: _mean(trial.tuned_l1))


def _input_of(known: Conventions) -> Conventions:
    """What they say of the input alone."""
    return Conventions(known.input, known.l_range, known.input_channels, known.input_norm)


def _try(known: Conventions, answers: Tensor, squares: Squares) -> Trial | None:
    """None where there are numbers that are none."""
    ab = known.interpret(answers)
    if not bool(torch.isfinite(ab).all()):
        return None
    chroma_share = mean_chroma(ab) / max(mean_chroma(squares.ab), _NO_CHROMA)
    if known.output == "rgb":
        # What a generator of pictures answers has the lightness that it was given.
        lightness, _ = rgb_to_l_ab(known.decode_rgb(answers).clamp(0.0, 1.0))
        misfit = float((lightness - squares.lightness).abs().mean())
    else:
        misfit = abs(math.log(max(chroma_share, _NO_CHROMA)))
    l1, *paler = (_l1(strength * ab, squares.ab) for strength in _STRENGTHS)
    return Trial(
        conventions=known,
        l1=l1,
        grey_l1=squares.grey_l1,
        blind_l1=squares.blind_l1,
        tuned_l1=min(l1, *paler, key=_mean),
        chroma_share=chroma_share,
        misfit=misfit,
        small=F.avg_pool2d(ab, _STRIDE, ceil_mode=True),
    )


def _l1(answer: Tensor, truth: Tensor) -> Floats:
    return np.asarray((answer - truth).abs().mean((1, 2, 3)).numpy(), np.float64)


def _is_below(l1: Floats, other: Floats) -> bool:
    """Whether an L1 is below another one beyond the noise of photographs."""
    low, _ = kept_interval(other, l1, np.zeros_like(l1))
    return low > 0


def _is_clearly_below(l1: Floats, other: Floats, grey_l1: Floats) -> bool:
    """The same, and by enough to mean something."""
    return _is_below(l1, other) and _mean(other) - _mean(l1) >= _LEAST_SHARE * _mean(grey_l1)
