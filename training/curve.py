"""The training curve as facts: phases, best epoch, noise, what came after; decided from the numbers alone.

A difference counts only where it is larger than what validation does by chance from one epoch to the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Literal

from colorpress.core.errors import InputError

# A loss beyond this has diverged as surely as NaN has, and sums of smaller ones cannot overflow.
_MAX_LOSS = 1e30
# Mean swing of white noise of standard deviation 1; see `_noise_of`.
_SWING_OF_NOISE = 0.565
_CHANCE = 3.0
# Less than half a percent is not worth a sentence, however smooth the curve.
_WORTH = 0.005
# How far a curve must run ahead of an even pace, as a share of its whole fall, to have a fast and a slow part.
_BEND = 0.15


@dataclass(frozen=True)
class Phase:
    """A stretch of the run; neighbours share the epoch where one ends and the other begins.

    Attributes:
        kind: "rapid" and "slow" learning, "steady" where learning has no bend, "after_best", or "flat" where nothing
            was learned beyond the noise.
        first_epoch, last_epoch: as numbered in the history.
        train_first, train_last, val_first, val_last: the losses at both ends; training None where not recorded.
        share_pct: of all that validation improved from the first epoch to the best; None outside learning.
    """

    kind: Literal["rapid", "slow", "steady", "after_best", "flat"]
    first_epoch: int
    last_epoch: int
    train_first: float | None
    train_last: float | None
    val_first: float
    val_last: float
    share_pct: float | None


@dataclass(frozen=True)
class EarlyStop:
    """What early stopping would have done.

    Attributes:
        patience: epochs in a row without a new best (an equal one counts as new) after which the run stops.
        stop_epoch: the epoch after which it would have stopped; None where the run ends first.
        kept_epoch, kept_val: the best until then.
        saved_epochs: rows of the history that would not have been run; 0 or more.
        saved_seconds: their time; None where the history does not say.
        cost: `kept_val` less the best of the whole run, in units of the loss; 0 or more. `cost_pct` of that best.
    """

    patience: int
    stop_epoch: int | None
    kept_epoch: int
    kept_val: float
    saved_epochs: int
    saved_seconds: float | None
    cost: float
    cost_pct: float | None


@dataclass(frozen=True)
class LearningRate:
    """How the learning rate went; all values as recorded, at the end of an epoch."""

    shape: Literal["constant", "decaying", "step decay", "warm-up, then decay", "rising", "varying"]
    first: float
    peak: float
    last: float
    at_best: float | None


@dataclass(frozen=True)
class CurveReading:
    """The facts of a training history; losses in the unit of the history, None where a fact cannot be had.

    Attributes:
        epochs: rows of the history, 1 or more.
        first_epoch, last_epoch: as numbered in the history.
        missing_epochs: those without a finite validation loss, the ones after a divergence left out.
        broke_epoch: the first of the epochs at the end of the run whose loss is not finite.
        best_epoch, best_val: the lowest validation loss; the later of equals, as training keeps it.
        train_first, train_at_best, train_last, val_first, val_last: finite ones.
        val_last_epoch: the epoch of `val_last`.
        noise: what validation does by chance from one epoch to the next, as a standard deviation.
        margin: how far two epochs must differ before the difference is called real.
        noisy: the margin is more than 5 % of the best loss.
        near_best: epochs within the margin of the best, the best included.
        learned: the best is better than the first epoch by more than the margin.
        rise, rise_pct: last less best validation loss; 0 where the best is the last.
        rise_is_real: the level of the last epochs is above that of the best by more than the margin.
        rise_epoch: from which on every epoch is above the best by more than the margin; only of a real rise.
        train_after_best: what the training loss did after the best epoch.
        overfitting: validation rose beyond the margin while training kept falling; None where that cannot be told.
        diverged: training and validation rose together beyond their margins, or the run ends in NaN or Inf.
        still_falling: the best is at the end, and the fall of the last epochs is more than chance.
        final_pace: what validation still loses per epoch at the end; only while still falling.
        plateau_epoch: from which on the smoothed validation loss stays within one margin to the end.
        train_flat: the training loss has levelled off by the end, too.
        gap_at_best, gap_at_end: validation less training loss; below 0 is normal, see `explain_curve`.
        timing: whether the run ended too "early", too "late", about "right", or "unclear".
        late_by: epochs at the end that brought nothing; 0 unless late.
        seconds: of all epochs together.
    """

    epochs: int
    first_epoch: int
    last_epoch: int
    missing_epochs: tuple[int, ...]
    broke_epoch: int | None
    best_epoch: int | None
    best_val: float | None
    train_first: float | None
    train_at_best: float | None
    train_last: float | None
    val_first: float | None
    val_last: float | None
    val_last_epoch: int | None
    noise: float | None
    margin: float | None
    noisy: bool
    near_best: int
    learned: bool | None
    rise: float | None
    rise_pct: float | None
    rise_is_real: bool
    rise_epoch: int | None
    train_after_best: Literal["falling", "level", "rising"] | None
    overfitting: bool | None
    diverged: bool
    still_falling: bool
    final_pace: float | None
    plateau_epoch: int | None
    train_flat: bool | None
    gap_at_best: float | None
    gap_at_end: float | None
    timing: Literal["early", "late", "right", "unclear"]
    late_by: int
    phases: tuple[Phase, ...]
    early_stopping: tuple[EarlyStop, ...]
    learning_rate: LearningRate | None
    seconds: float | None


@dataclass(frozen=True)
class _Point:
    """One epoch with a finite validation loss; `row` is its position in the history."""

    row: int
    epoch: int
    val: float
    train: float | None


def read_curve(history: Sequence[Mapping[str, float]], *, patience: Sequence[int] = (2, 3)) -> CurveReading:
    """What the numbers of a history say; pure data, no text.

    Args:
        history: one row per epoch in their order, as `read_history` and `fit_network` give them. Rows may lack any
            key but `val_l1`; values that are not finite count as not measured.
        patience: those that early stopping is replayed with, each 1 or more.
    Raises:
        InputError: the history has no rows.
    """
    if not history:
        raise InputError("history", None, "has no rows", "train for one epoch or more")
    epochs = [_epoch_of(row, index) for index, row in enumerate(history)]
    trains = [_finite(row.get("train_l1")) for row in history]
    vals = [_finite(row.get("val_l1")) for row in history]
    points = [_Point(index, epochs[index], val, trains[index]) for index, val in enumerate(vals) if val is not None]
    broke = _broken_from(vals, trains)
    tail = len(history) if broke is None else broke
    values = [point.val for point in points]
    # The last of equals, as `fit_network` keeps it.
    best = min(reversed(range(len(points))), key=values.__getitem__) if points else None
    noise = _noise_of(values)
    margin = _margin_of(values, noise)
    smooth = _smooth(values)
    enough = len(points) >= 3 and margin is not None
    rise_is_real = bool(enough and margin is not None and best is not None and _level_rise(values, best) > margin)
    after_best = _train_after(points, best)
    falls = enough and best is not None and noise is not None and _final_fall(values, best, noise)
    flat_from = _flat_from(smooth, margin) if enough and margin is not None and not falls and not rise_is_real else None
    learned = _learned(values, best, margin, flat_from) if enough and best is not None and margin is not None else None
    if flat_from is not None and len(values) - flat_from < max(4, len(values) / 4):
        flat_from = None
    finite_trains = [value for value in trains if value is not None]
    train_margin = _margin_of(finite_trains, _noise_of(finite_trains))
    train_flat_from = None if train_margin is None else _flat_from(_smooth(finite_trains), train_margin)
    diverged = broke is not None or (rise_is_real and after_best == "rising")
    late_by = _late_by(points, best, flat_from, rise_is_real) if enough else 0
    rises = best is not None and best < len(points) - 1
    best_point = points[best] if best is not None else None
    seconds = _total_seconds(history)
    return CurveReading(
        epochs=len(history),
        first_epoch=epochs[0],
        last_epoch=epochs[-1],
        missing_epochs=tuple(epochs[index] for index in range(tail) if vals[index] is None),
        broke_epoch=None if broke is None else epochs[broke],
        best_epoch=best_point.epoch if best_point else None,
        best_val=best_point.val if best_point else None,
        train_first=next((point.train for point in points if point.train is not None), None),
        train_at_best=best_point.train if best_point else None,
        train_last=points[-1].train if points else None,
        val_first=points[0].val if points else None,
        val_last=points[-1].val if points else None,
        val_last_epoch=points[-1].epoch if points else None,
        noise=noise,
        margin=margin,
        noisy=bool(best_point and margin is not None and margin > 0.05 * abs(best_point.val)),
        near_best=sum(value - best_point.val <= margin for value in values) if best_point and margin is not None else 0,
        learned=learned,
        rise=points[-1].val - best_point.val if best_point else None,
        rise_pct=_percent(points[-1].val - best_point.val, best_point.val) if best_point else None,
        rise_is_real=rise_is_real,
        rise_epoch=_rise_epoch(points, best, margin) if rise_is_real else None,
        train_after_best=after_best if rises else None,
        overfitting=_overfits(rise_is_real, after_best, enough),
        diverged=diverged,
        still_falling=falls and broke is None,
        final_pace=-_slope(values[-_window(len(values)) :]) if falls and broke is None else None,
        plateau_epoch=None if flat_from is None else points[flat_from].epoch,
        train_flat=None
        if train_margin is None
        else train_flat_from is not None and _is_long(train_flat_from, finite_trains),
        gap_at_best=_gap(best_point),
        gap_at_end=_gap(points[-1]) if points else None,
        timing=_timing(enough, falls, late_by, diverged),
        late_by=late_by,
        phases=_phases(points, best, learned),
        early_stopping=tuple(_stop_early(history, vals, epochs, each) for each in patience) if best_point else (),
        learning_rate=_learning_rate(history, best_point),
        seconds=seconds,
    )


def _epoch_of(row: Mapping[str, float], index: int) -> int:
    value = row.get("epoch")
    return int(value) if value is not None and math.isfinite(value) else index + 1


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) and abs(value) < _MAX_LOSS else None


def _percent(part: float, whole: float) -> float | None:
    """`part` in percent of `whole`; None where that says nothing."""
    if whole <= 0 or abs(part) > 1e4 * whole:
        return None
    return 100 * part / whole


def _broken_from(vals: Sequence[float | None], trains: Sequence[float | None]) -> int | None:
    """The first row of those at the end that are not finite, None where the run ends well."""
    has_train = any(value is not None for value in trains)
    tail = len(vals)
    while tail and vals[tail - 1] is None:
        tail -= 1
    if tail == len(vals):
        return None
    # Validated only now and then, with a training loss throughout: nothing broke.
    sampled = any(value is None for value in vals[:tail]) or tail == 0
    return None if has_train and sampled and trains[-1] is not None else tail


def _noise_of(values: Sequence[float]) -> float | None:
    """The standard deviation of what moves a curve by chance; None for fewer than three values.

    How far neighbours swing up and down around the straight trend: nothing for a smooth curve, bent or not. One outlier
    swings far, so that twice the median second difference, which no outlier moves, is the most that is believed.
    """
    if len(values) < 3:
        return None
    # Fast learning at the start says little about noise at the end.
    steady = values[len(values) // 4 :] if len(values) >= 8 else values
    slope = _slope(steady)
    steps = [b - a - slope for a, b in pairwise(steady)]
    swings = [min(abs(a), abs(b)) if (a < 0) != (b < 0) else 0.0 for a, b in pairwise(steps)]
    bends = [abs(b - a) for a, b in pairwise(steps)]
    return min(fmean(swings) / _SWING_OF_NOISE, 2 * 1.4826 * median(bends) / math.sqrt(6))


def _margin_of(values: Sequence[float], noise: float | None) -> float | None:
    """What a difference must exceed to count: more in short runs, whose noise is known less well."""
    return None if noise is None else max(_CHANCE * (1 + 3 / len(values)) * noise, _WORTH * abs(min(values)))


def _smooth(values: Sequence[float]) -> list[float]:
    """Running medians over 3 epochs, over more in long runs."""
    half = max(1, min(10, len(values) // 20))
    return [median(values[max(0, index - half) : index + half + 1]) for index in range(len(values))]


def _flat_from(smooth: Sequence[float], margin: float) -> int | None:
    """The first position from which all later values lie within one margin."""
    low = high = smooth[-1]
    for index in reversed(range(len(smooth))):
        low, high = min(low, smooth[index]), max(high, smooth[index])
        if high - low > margin:
            return index + 1
    return 0


def _is_long(start: int, values: Sequence[float]) -> bool:
    return len(values) - start >= max(4, len(values) / 4)


def _learned(values: Sequence[float], best: int, margin: float, flat_from: int | None) -> bool:
    if best == 0:
        return False
    # The lowest of many epochs is low by chance, so the rest is judged by its middle, or by the epochs around the best.
    level = median(values[1:]) if flat_from == 0 else median(values[max(1, best - 1) : best + 2])
    return values[0] - level > margin


def _level_rise(values: Sequence[float], best: int) -> float:
    """How far the last epochs lie above those around the best, outliers aside."""
    after = len(values) - 1 - best
    if after == 0:
        return 0.0
    around = values[max(0, best - 1) : best + 1] if after == 1 else values[max(0, best - 1) : best + 2]
    return median(values[-min(3, after) :]) - median(around)


def _train_after(points: Sequence[_Point], best: int | None) -> Literal["falling", "level", "rising"] | None:
    if best is None:
        return None
    after = [point.train for point in points[best:] if point.train is not None]
    if len(after) < 2 or points[best].train is None:
        return None
    trains = [point.train for point in points if point.train is not None]
    noise = _noise_of(trains) or 0.0
    change = fmean(after[-2:]) - after[0] if len(after) > 3 else after[-1] - after[0]
    least = max(_CHANCE * noise, 0.002 * abs(after[0]))
    if abs(change) <= least:
        return "level"
    return "falling" if change < 0 else "rising"


def _overfits(rise_is_real: bool, after_best: str | None, enough: bool) -> bool | None:
    if not enough:
        return None
    if not rise_is_real:
        return False
    return None if after_best is None else after_best == "falling"


def _rise_epoch(points: Sequence[_Point], best: int | None, margin: float | None) -> int | None:
    assert best is not None and margin is not None
    found = None
    for point in reversed(points[best + 1 :]):
        if point.val - points[best].val <= margin:
            break
        found = point.epoch
    return found


def _window(count: int) -> int:
    """How many epochs at the end tell whether a curve still falls."""
    return min(count, max(4, count // 3))


def _final_fall(values: Sequence[float], best: int, noise: float) -> bool:
    last = values[-_window(len(values)) :]
    # Noise may put the best of a falling curve an epoch or two before its end.
    if len(values) - 1 - best > (len(values) // 8 if noise > 0 else 0):
        return False
    count = len(last)
    fall = -_slope(last) * (count - 1)
    chance = 2.5 * noise * (count - 1) / math.sqrt(count * (count * count - 1) / 12)
    return fall > max(chance, _WORTH * abs(values[best]))


def _slope(values: Sequence[float]) -> float:
    """Of the straight line through equally spaced values; per step."""
    middle = (len(values) - 1) / 2
    spread = sum((index - middle) ** 2 for index in range(len(values)))
    return sum((index - middle) * value for index, value in enumerate(values)) / spread if spread else 0.0


def _late_by(points: Sequence[_Point], best: int | None, flat_from: int | None, rise_is_real: bool) -> int:
    """Epochs at the end that brought nothing, where they are many enough to say so."""
    assert best is not None
    after = len(points) - 1 - best
    if flat_from is not None and len(points) - flat_from >= 2 / 3 * len(points):
        return len(points) - 1 - flat_from
    if rise_is_real or (flat_from is not None and after >= max(3, 0.2 * len(points))):
        return after
    return 0


def _timing(enough: bool, falls: bool, late_by: int, diverged: bool) -> Literal["early", "late", "right", "unclear"]:
    if not enough or diverged:
        return "unclear"
    if falls:
        return "early"
    return "late" if late_by else "right"


def _gap(point: _Point | None) -> float | None:
    return None if point is None or point.train is None else point.val - point.train


def _phases(points: Sequence[_Point], best: int | None, learned: bool | None) -> tuple[Phase, ...]:
    if best is None or len(points) < 2:
        return ()
    if learned is False and best > 0:
        return (_phase("flat", points[0], points[-1], None),)
    won = points[0].val - points[best].val
    found = []
    if best > 0:
        knee = _knee(points, best)
        pieces: list[tuple[Literal["rapid", "slow", "steady"], int, int]] = (
            [("steady", 0, best)] if knee is None else [("rapid", 0, knee), ("slow", knee, best)]
        )
        for kind, start, end in pieces:
            share = _percent(points[start].val - points[end].val, won)
            found.append(_phase(kind, points[start], points[end], share))
    if best < len(points) - 1:
        found.append(_phase("after_best", points[best], points[-1], None))
    return tuple(found)


def _phase(
    kind: Literal["rapid", "slow", "steady", "after_best", "flat"], first: _Point, last: _Point, share: float | None
) -> Phase:
    return Phase(kind, first.epoch, last.epoch, first.train, last.train, first.val, last.val, share)


def _knee(points: Sequence[_Point], best: int) -> int | None:
    """Where fast learning ends: the new best that lies furthest above an even pace; None where there is no bend."""
    first, last = points[0], points[best]
    won = first.val - last.val
    lowest = first.val
    train_won = first.train - last.train if first.train is not None and last.train is not None else 0.0
    ahead: dict[int, float] = {}
    for index in range(1, best):
        point = points[index]
        if point.val > lowest:
            continue
        lowest = point.val
        progress = (first.val - point.val) / won if won > 0 else 0.0
        if train_won > 0 and first.train is not None and point.train is not None:
            progress = (progress + (first.train - point.train) / train_won) / 2
        ahead[index] = progress - index / best
    furthest = max(ahead.values(), default=0.0)
    if furthest <= _BEND:
        return None
    # A bend is seldom sharp: of epochs that are nearly as good the last one is still fast.
    return max(index for index, distance in ahead.items() if distance >= 0.9 * furthest)


def _stop_early(
    history: Sequence[Mapping[str, float]], vals: Sequence[float | None], epochs: Sequence[int], patience: int
) -> EarlyStop:
    finite = [(val, index) for index, val in enumerate(vals) if val is not None]
    kept, waited, stop = finite[0][1], 0, None
    lowest = math.inf
    for index, val in enumerate(vals):
        if val is not None and val <= lowest:
            lowest, kept, waited = val, index, 0
            continue
        waited += 1
        if waited >= patience and lowest < math.inf:
            stop = index
            break
    kept_val = vals[kept]
    assert kept_val is not None
    best = min(val for val, _ in finite)
    rest = [] if stop is None else history[stop + 1 :]
    return EarlyStop(
        patience=patience,
        stop_epoch=None if stop is None else epochs[stop],
        kept_epoch=epochs[kept],
        kept_val=kept_val,
        saved_epochs=len(rest),
        saved_seconds=_total_seconds(rest) if rest else None,
        cost=kept_val - best,
        cost_pct=_percent(kept_val - best, best),
    )


def _total_seconds(history: Sequence[Mapping[str, float]]) -> float | None:
    known = [_finite(row.get("seconds")) for row in history]
    return sum(each for each in known if each is not None) if None not in known else None


def _learning_rate(history: Sequence[Mapping[str, float]], best: _Point | None) -> LearningRate | None:
    rates = [rate for rate in (_finite(row.get("learning_rate")) for row in history) if rate is not None and rate >= 0]
    if not rates:
        return None
    at_best = _finite(history[best.row].get("learning_rate")) if best is not None else None
    return LearningRate(_rate_shape(rates), rates[0], max(rates), rates[-1], at_best)


def _rate_shape(
    rates: Sequence[float],
) -> Literal["constant", "decaying", "step decay", "warm-up, then decay", "rising", "varying"]:
    if max(rates) - min(rates) <= 0.01 * max(rates):
        return "constant"
    steps = [b - a for a, b in pairwise(rates)]
    peak = rates.index(max(rates))
    if all(step <= 0 for step in steps):
        # A schedule that moves at most every third epoch goes in steps.
        return "step decay" if sum(step < 0 for step in steps) * 3 <= len(steps) else "decaying"
    if all(step >= 0 for step in steps):
        return "rising"
    if all(step >= 0 for step in steps[:peak]) and all(step <= 0 for step in steps[peak:]):
        return "warm-up, then decay"
    return "varying"
