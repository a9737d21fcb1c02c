"""The training curve as facts: phases, best epoch, noise, what came after; decided from the numbers alone.

A difference counts only where it is larger than what validation does by chance from one epoch to the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from colorpress.core.errors import InputError

Losses = NDArray[np.float64]
PhaseKind = Literal["rapid", "slow", "steady", "after_best", "flat"]
RateShape = Literal["constant", "decaying", "step decay", "warm-up, then decay", "rising", "varying"]

# A loss beyond this has diverged as surely as NaN has, and sums of smaller ones cannot overflow.
_MAX_LOSS = 1e30
# Mean swing of white noise of standard deviation 1; see `_noise_of`.
_SWING_OF_NOISE = 0.565
_CHANCE = 3.0
# Less than half a percent is not worth a sentence, however smooth the curve.
_WORTH = 0.005
# What early stopping is replayed with.
_PATIENCES = (2, 3)
# How far a curve must run ahead of an even pace, as a share of its whole fall, to have a fast and a slow part.
_BEND = 0.15


@dataclass(frozen=True)
class Phase:
    """A stretch of the run; neighbours share the epoch where one ends and the other begins."""

    kind: PhaseKind  # "steady" where learning has no bend, "flat" where nothing was learned beyond the noise
    first_epoch: int
    last_epoch: int
    train_first: float | None  # the losses at both ends; of training None where not recorded
    train_last: float | None
    val_first: float
    val_last: float
    share_pct: float | None  # of all that validation improved from the first epoch to the best; None outside learning


@dataclass(frozen=True)
class EarlyStop:
    """What early stopping would have done."""

    patience: int  # epochs in a row without a new best (an equal one counts as new) after which the run stops
    stop_epoch: int | None  # the epoch after which it would have stopped; None where the run ends first
    kept_epoch: int  # the best until then
    kept_val: float
    saved_epochs: int  # rows of the history that would not have been run; 0 or more
    saved_seconds: float | None  # their time; None where the history does not say
    cost: float  # `kept_val` less the best of the whole run, in units of the loss; 0 or more
    cost_pct: float | None  # of that best


@dataclass(frozen=True)
class LearningRate:
    """How the learning rate went; all values as recorded, at the end of an epoch."""

    shape: RateShape
    first: float
    peak: float
    last: float
    at_best: float | None


@dataclass(frozen=True)
class CurveReading:
    """The facts of a training history; losses in the unit of the history, None where a fact cannot be had.

    Epochs are as the history numbers them, losses are finite ones.
    """

    epochs: int  # rows of the history, 1 or more
    first_epoch: int
    last_epoch: int
    missing_epochs: tuple[int, ...] = ()  # without a finite validation loss, but for those after a divergence
    broke_epoch: int | None = None  # the first of those at the end of the run whose loss is not finite
    best_epoch: int | None = None  # of the lowest validation loss; the later of equals, as training keeps it
    best_val: float | None = None
    train_first: float | None = None
    train_at_best: float | None = None
    train_last: float | None = None
    val_first: float | None = None
    val_last: float | None = None
    val_last_epoch: int | None = None  # the epoch of `val_last`
    noise: float | None = None  # what validation does by chance between epochs, as a standard deviation
    margin: float | None = None  # how far two epochs must differ before the difference is called real
    noisy: bool = False  # the margin is more than 5 % of the best loss
    near_best: int = 0  # epochs within the margin of the best, the best included
    learned: bool | None = None  # the best is better than the first epoch by more than the margin
    rise: float | None = None  # last less best validation loss; 0 where the best is the last
    rise_pct: float | None = None
    rise_is_real: bool = False  # the level of the last epochs is above that of the best by more than the margin
    rise_epoch: int | None = None  # from which on every epoch is above the best by the margin; only of a real rise
    train_after_best: Literal["falling", "level", "rising"] | None = None
    overfitting: bool | None = None  # validation rose beyond the margin while training kept falling
    diverged: bool = False  # training and validation rose together beyond their margins, or the run ends in NaN or Inf
    still_falling: bool = False  # the best is at the end, and the fall of the last epochs is more than chance
    final_pace: float | None = None  # what validation still loses per epoch at the end; only while still falling
    plateau_epoch: int | None = None  # from which on the smoothed validation loss stays within one margin to the end
    train_flat: bool | None = None  # the training loss has levelled off by the end, too
    gap_at_best: float | None = None  # validation less training loss; below 0 is normal, see `explain_curve`
    gap_at_end: float | None = None
    timing: Literal["early", "late", "right", "unclear"] = "unclear"  # whether the run ended too early, too late ...
    late_by: int = 0  # epochs at the end that brought nothing; 0 unless late
    phases: tuple[Phase, ...] = ()
    early_stopping: tuple[EarlyStop, ...] = ()
    learning_rate: LearningRate | None = None
    seconds: float | None = None  # of all epochs together


@dataclass(frozen=True)
class _Points:
    """The epochs with a finite validation loss, at least one; training is NaN where it is not recorded."""

    epochs: Sequence[int]
    val: Losses
    train: Losses
    best: int  # position of the lowest validation loss

    def phase(self, kind: PhaseKind, first: int, last: int) -> Phase:
        """Between two positions."""
        val, train = self.val, self.train
        losses = (_known(train[first]), _known(train[last]), float(val[first]), float(val[last]))
        share_pct = _percent(float(val[first] - val[last]), float(val[0] - val[self.best]))
        is_learning = kind in ("rapid", "slow", "steady")
        return Phase(kind, self.epochs[first], self.epochs[last], *losses, share_pct if is_learning else None)


def read_curve(history: Sequence[Mapping[str, float]]) -> CurveReading:
    """What the numbers of a history say; pure data, no text.

    Args:
        history: one row per epoch in their order, as `read_history` and `fit_network` give them. Rows may lack any
            key but `val_l1`; values that are not finite count as not measured.
    Raises:
        InputError: the history has no rows.
    """
    if not history:
        raise InputError("history", None, "has no rows", "train for one epoch or more")
    names = ("epoch", "val_l1", "train_l1", "learning_rate", "seconds")
    table = np.array([[row.get(name, math.nan) for row in history] for name in names], np.float64)  # (5, epochs)
    table[~(np.abs(table) < _MAX_LOSS)] = math.nan
    numbers, vals, trains, rates, seconds = table
    epochs = [count if math.isnan(number) else int(number) for count, number in enumerate(numbers, start=1)]
    broke = _broken_from(vals, trains)
    rows = np.flatnonzero(np.isfinite(vals))
    # The last of equals, as `fit_network` keeps it.
    best = len(rows) - 1 - int(np.argmin(vals[rows][::-1])) if len(rows) else None
    reading = CurveReading(
        epochs=len(history),
        first_epoch=epochs[0],
        last_epoch=epochs[-1],
        missing_epochs=tuple(epochs[row] for row in np.flatnonzero(np.isnan(vals[:broke]))),
        broke_epoch=None if broke is None else epochs[broke],
        diverged=broke is not None,
        train_flat=_levels_off(trains[np.isfinite(trains)]),
        learning_rate=_learning_rate(rates, math.nan if best is None else rates[rows[best]]),
        seconds=_known(sum(seconds)),
    )
    if best is None:
        return reading
    points = _Points([epochs[row] for row in rows], vals[rows], trains[rows], best)
    reading = _judge(_read_points(reading, points), points)
    stops = tuple(_stop_early(epochs, vals, seconds, each) for each in _PATIENCES)
    return replace(reading, phases=_phases(points, reading.learned), early_stopping=stops)


def _read_points(reading: CurveReading, points: _Points) -> CurveReading:
    """What can be said of one epoch or more."""
    val, train, best = points.val, points.train, points.best
    rise, recorded = float(val[-1] - val[best]), train[np.isfinite(train)]
    return replace(
        reading,
        best_epoch=points.epochs[best],
        best_val=float(val[best]),
        train_first=float(recorded[0]) if len(recorded) else None,
        train_at_best=_known(train[best]),
        train_last=_known(train[-1]),
        val_first=float(val[0]),
        val_last=float(val[-1]),
        val_last_epoch=points.epochs[-1],
        rise=rise,
        rise_pct=_percent(rise, float(val[best])),
        train_after_best=_train_after(points),
        gap_at_best=_known(val[best] - train[best]),
        gap_at_end=_known(val[-1] - train[-1]),
    )


def _judge(reading: CurveReading, points: _Points) -> CurveReading:
    """What only three epochs or more can tell: anything that noise might feign."""
    val, best = points.val, points.best
    noise = _noise_of(val)
    if noise is None:
        return reading
    margin = _margin_of(val, noise)
    is_near = val - val[best] <= margin
    after = np.flatnonzero(is_near)[-1] + 1
    rise_is_real = _level_rise(val, best) > margin
    pace = _final_pace(val, best, noise)
    flat_from = None if pace is not None or rise_is_real else _flat_from(val, margin)
    diverged = reading.diverged or (rise_is_real and reading.train_after_best == "rising")
    late_by = _late_by(len(val), best, flat_from, rise_is_real)
    overfitting = None if reading.train_after_best is None else reading.train_after_best == "falling"
    return replace(
        reading,
        noise=noise,
        margin=margin,
        noisy=bool(margin > 0.05 * abs(val[best])),
        near_best=int(np.count_nonzero(is_near)),
        learned=_learned(val, best, margin, flat_from),
        rise_is_real=rise_is_real,
        rise_epoch=points.epochs[after] if rise_is_real and after < len(val) else None,
        overfitting=overfitting if rise_is_real else False,
        diverged=diverged,
        still_falling=pace is not None and not reading.diverged,
        final_pace=None if reading.diverged else pace,
        plateau_epoch=None if flat_from is None else points.epochs[flat_from],
        timing="unclear" if diverged else "early" if pace is not None else "late" if late_by else "right",
        late_by=late_by,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _percent(part: float, whole: float) -> float | None:
    """`part` in percent of `whole`; None where that says nothing."""
    return None if whole <= 0 or abs(part) > 1e4 * whole else 100 * part / whole


def _broken_from(vals: Losses, trains: Losses) -> int | None:
    """The first row of those at the end that are not finite, None where the run ends well."""
    tail = int(max(np.flatnonzero(np.isfinite(vals)), default=-1)) + 1
    # Validated only now and then, with a training loss throughout: nothing broke.
    is_sampled = (tail == 0 or np.isnan(vals[:tail]).any()) and math.isfinite(trains[-1])
    return None if tail == len(vals) or is_sampled else tail


def _noise_of(values: Losses) -> float | None:
    """The standard deviation of what moves a curve by chance; None for fewer than three values.

    How far neighbours swing up and down around the straight trend: nothing for a smooth curve, bent or not. One outlier
    swings far, so that twice the median second difference, which no outlier moves, is the most that is believed.
    """
    if len(values) < 3:
        return None
    # Fast learning at the start says little about noise at the end.
    steady = values[len(values) // 4 :] if len(values) >= 8 else values
    steps = np.diff(steady) - _slope(steady)
    nearest = np.minimum(np.abs(steps[:-1]), np.abs(steps[1:]))
    swings = np.where((steps[:-1] < 0) != (steps[1:] < 0), nearest, 0.0)
    return float(min(swings.mean() / _SWING_OF_NOISE, 2 * 1.4826 * np.median(np.abs(np.diff(steps))) / math.sqrt(6)))


def _margin_of(values: Losses, noise: float) -> float:
    """What a difference must exceed to count: more in short runs, whose noise is known less well."""
    return max(_CHANCE * (1 + 3 / len(values)) * noise, _WORTH * abs(float(values.min())))


def _flat_from(values: Losses, margin: float) -> int | None:
    """The first position from which all later values lie within one margin, by running medians; None if too few do."""
    half = max(1, min(10, len(values) // 20))
    smooth = [np.median(values[max(0, index - half) : index + half + 1]) for index in range(len(values))]
    spread = np.maximum.accumulate(smooth[::-1]) - np.minimum.accumulate(smooth[::-1])
    flat = int(np.count_nonzero(spread <= margin))
    return len(values) - flat if flat >= max(4, len(values) / 4) else None


def _levels_off(values: Losses) -> bool | None:
    noise = _noise_of(values)
    return None if noise is None else _flat_from(values, _margin_of(values, noise)) is not None


def _learned(values: Losses, best: int, margin: float, flat_from: int | None) -> bool:
    # The lowest of many epochs is low by chance, so the rest is judged by its middle, or by the epochs around the best.
    level = np.median(values[1:] if flat_from == 0 else values[max(1, best - 1) : best + 2])
    return bool(best > 0 and values[0] - level > margin)


def _level_rise(values: Losses, best: int) -> float:
    """How far the last epochs lie above those around the best, outliers aside."""
    after = len(values) - 1 - best
    if after == 0:
        return 0.0
    around = values[max(0, best - 1) : best + (1 if after == 1 else 2)]
    return float(np.median(values[-min(3, after) :]) - np.median(around))


def _train_after(points: _Points) -> Literal["falling", "level", "rising"] | None:
    """How training went on from the best epoch."""
    recorded, after = (train[np.isfinite(train)] for train in (points.train, points.train[points.best :]))
    if len(after) < 2 or math.isnan(points.train[points.best]):
        return None
    change = (after[-2:].mean() if len(after) > 3 else after[-1]) - after[0]
    if abs(change) <= max(_CHANCE * (_noise_of(recorded) or 0.0), 0.002 * abs(after[0])):
        return "level"
    return "falling" if change < 0 else "rising"


def _final_pace(values: Losses, best: int, noise: float) -> float | None:
    """What an epoch at the end still gains; None where that is not more than chance."""
    # Noise may put the best of a falling curve an epoch or two before its end.
    if len(values) - 1 - best > (len(values) // 8 if noise > 0 else 0):
        return None
    count = min(len(values), max(4, len(values) // 3))
    pace = -_slope(values[-count:])
    chance = 2.5 * noise * (count - 1) / math.sqrt(count * (count * count - 1) / 12)
    return pace if pace * (count - 1) > max(chance, _WORTH * abs(values[best])) else None


def _slope(values: Losses) -> float:
    """Of the straight line through two or more equally spaced values; per step."""
    steps = np.arange(len(values)) - (len(values) - 1) / 2
    return float(steps @ values / (steps @ steps))


def _late_by(count: int, best: int, flat_from: int | None, rise_is_real: bool) -> int:
    """Epochs at the end that brought nothing, where they are many enough to say so."""
    after = count - 1 - best
    if flat_from is not None and count - flat_from >= 2 / 3 * count:
        return count - 1 - flat_from
    return after if rise_is_real or (flat_from is not None and after >= max(3, 0.2 * count)) else 0


def _phases(points: _Points, learned: bool | None) -> tuple[Phase, ...]:
    best, last = points.best, len(points.val) - 1
    if learned is False and best > 0:
        return (points.phase("flat", 0, last),)
    knee = _knee(points.val[: best + 1], points.train[: best + 1])
    pieces: list[tuple[PhaseKind, int, int]]
    pieces = [("steady", 0, best)] if knee is None else [("rapid", 0, knee), ("slow", knee, best)]
    pieces.append(("after_best", best, last))
    return tuple(points.phase(kind, start, end) for kind, start, end in pieces if start < end)


def _knee(val: Losses, train: Losses) -> int | None:
    """Where fast learning ends on the way to the best, which is last: None where there is no bend.

    It is the new best that lies furthest above an even pace.
    """
    if len(val) < 3:
        return None
    progress = np.nanmean([_share_of_fall(val, 0.0), _share_of_fall(train, math.nan)], axis=0)
    ahead = progress - np.arange(len(val)) / (len(val) - 1)
    is_new_best = val[1:-1] <= np.minimum.accumulate(val)[:-2]
    candidates = np.flatnonzero(is_new_best) + 1
    furthest = max(ahead[candidates], default=0.0)
    if furthest <= _BEND:
        return None
    # A bend is seldom sharp: of epochs that are nearly as good the last one is still fast.
    return int(candidates[ahead[candidates] >= 0.9 * furthest][-1])


def _share_of_fall(losses: Losses, otherwise: float) -> Losses:
    """How much of the fall from the first to the last loss is behind at each; `otherwise` where nothing fell."""
    fall = losses[0] - losses[-1]
    return (losses[0] - losses) / fall if fall > 0 else np.full(len(losses), otherwise)


def _stop_early(epochs: Sequence[int], vals: Losses, seconds: Losses, patience: int) -> EarlyStop:
    kept, stop = int(np.flatnonzero(np.isfinite(vals))[0]), None
    for row in range(kept + 1, len(vals)):
        if vals[row] <= vals[kept]:
            kept = row
        elif row - kept >= patience:
            stop = row
            break
    best, kept_val = float(np.nanmin(vals)), float(vals[kept])
    rest = seconds[len(vals) if stop is None else stop + 1 :]
    return EarlyStop(
        patience=patience,
        stop_epoch=None if stop is None else epochs[stop],
        kept_epoch=epochs[kept],
        kept_val=kept_val,
        saved_epochs=len(rest),
        saved_seconds=_known(sum(rest)) if len(rest) else None,
        cost=kept_val - best,
        cost_pct=_percent(kept_val - best, best),
    )


def _learning_rate(recorded: Losses, at_best: float) -> LearningRate | None:
    rates = recorded[recorded >= 0]
    if not len(rates):
        return None
    return LearningRate(_rate_shape(rates), float(rates[0]), float(rates.max()), float(rates[-1]), _known(at_best))


def _rate_shape(rates: Losses) -> RateShape:
    steps, peak = np.diff(rates), int(np.argmax(rates))
    if rates.max() - rates.min() <= 0.01 * rates.max():
        return "constant"
    if (steps <= 0).all():
        # A schedule that moves at most every third epoch goes in steps.
        return "step decay" if np.count_nonzero(steps) * 3 <= len(steps) else "decaying"
    if (steps >= 0).all():
        return "rising"
    return "warm-up, then decay" if (steps[:peak] >= 0).all() and (steps[peak:] <= 0).all() else "varying"
