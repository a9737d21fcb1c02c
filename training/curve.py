"""The training curve, explained: a history is read, turned into facts, and the facts into `training_inference.md`.

Facts first, text second: `read_curve` decides everything from the numbers, `explain_curve` only words it. A
difference counts only where it is larger than what validation does by chance from one epoch to the next.
"""

from __future__ import annotations

import csv
import io
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median
from typing import Literal

from colorpress.errors import ConfigError, InputError, printable
from colorpress.files import write_text
from training.history import HISTORY_COLUMNS

INFERENCE_NAME = "training_inference.md"
# What a run folder may hold beside its history, and what each is.
ARTIFACTS = {
    "history.csv": "loss, learning rate and speed of every epoch",
    "training_loss.png": "the curve",
    "best.pt": "the weights of the best epoch",
    "last.pt": "the weights of the last epoch, to go on from",
    "layer_param_counts.csv": "parameters and work of every layer",
    "model_summary.txt": "the same as a table to read",
    "top20_layers.png": "the 20 largest layers",
    "pruned/plan.json": "the channels that pruning kept",
    "pruned/model.pt": "the pruned and fine-tuned model",
    "best/model.onnx": "the original as ONNX",
    "pruned/model.onnx": "the pruned model as ONNX",
    "best-int8/model.onnx": "the original as int8 ONNX",
    "pruned-int8/model.onnx": "the pruned model as int8 ONNX",
    "benchmark.csv": "size, speed and accuracy of every variant",
    "pareto.png": "the same as a chart",
    "sample_output.png": "photographs coloured by every variant",
    "sample_input_output.png": "photographs before and after",
    "report.html": "everything on one page",
}

_MAX_BYTES = 16 * 1024 * 1024
_MAX_ROWS = 100_000
_MAX_EPOCH = 10**9
# A loss beyond this has diverged as surely as NaN has, and sums of smaller ones cannot overflow.
_MAX_LOSS = 1e30
_EMPTY = {"", "nan", "+nan", "-nan", "null", "none", "na", "n/a", "-", "inf", "+inf", "-inf", "infinity", "-infinity"}
_METRICS = ("l1", "loss", "mae", "l1loss", "maeloss", "lossepoch", "")
_VALIDATION = ("val", "validation", "valid", "eval")
_TRAINING = ("train", "training", "")
_RATES = ("learningrate", "lr", "lradam", "lradamw", "lrsgd")
_HINT = "name its columns epoch, train_l1 and val_l1 (train_loss and val_loss are understood too)"

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
class RankedLayer:
    """One row of layer_param_counts.csv: a layer, its parameters, and their share (0 to 100) of the network's."""

    name: str
    type: str
    params: int
    share_pct: float
    cumulative_pct: float


# --- reading the file ---------------------------------------------------------------------------------------------


def read_history(path: Path) -> tuple[Mapping[str, float], ...]:
    """The rows of a training history, one per epoch, sorted by epoch, under the names of `HISTORY_COLUMNS`.

    Takes CSV from elsewhere too: separated by commas, semicolons (then also with decimal commas) or tabs; columns
    such as `loss`, `val_loss` or `lr`, whatever their case. Only the validation loss must be there: epochs are numbered
    from 1 where they are not given, and other columns may be missing. Rows of one epoch that complete each other are
    one row, as loggers write them that log training and validation apart.

    Returns:
        Rows with `epoch` and those columns that the file has; NaN where a cell is empty, NaN or infinite.
    Raises:
        ConfigError: there is no such file.
        InputError: not a CSV of numbers, too large, no validation column, no rows, or an epoch twice.
    """
    header, body = _split_rows(path, _read_text(path))
    columns = _find_columns(path, header)
    merged: dict[int, dict[str, float]] = {}
    for line, cells in body:
        values = {name: _number(path, header, cells, index, line) for name, index in columns.items()}
        epoch = _epoch_number(path, values["epoch"], line) if "epoch" in values else len(merged) + 1
        row = merged.setdefault(epoch, dict.fromkeys(columns, math.nan) | {"epoch": epoch})
        for name, value in values.items():
            if name == "epoch" or math.isnan(value):
                continue
            if name in ("train_l1", "val_l1") and not math.isnan(row[name]) and row[name] != value:
                raise InputError(
                    "history", path, f"line {line}: epoch {epoch} is there twice", "keep one row for each epoch"
                )
            row[name] = value
    if not merged:
        raise InputError("history", path, "has no rows", "give the history of a training of one epoch or more")
    return tuple(merged[epoch] for epoch in sorted(merged))


def _read_text(path: Path) -> str:
    give = "give the CSV with one row per epoch, such as history.csv of a run folder"
    try:
        if not path.exists():
            raise ConfigError("history", path, "no such file", give)
        # Opening a pipe would wait for its writer, and reading a device need not end.
        if not path.is_file():
            raise InputError("history", path, "is a folder" if path.is_dir() else "is not a regular file", give)
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise InputError(
            "history", path, f"cannot be read: {getattr(error, 'strerror', None) or error}", give
        ) from None
    if len(content) > _MAX_BYTES:
        raise InputError("history", path, f"is larger than {_MAX_BYTES // 1024**2} MiB", give)
    encoding = "utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        raise InputError("history", path, "is not text", give) from None
    if "\0" in text:
        raise InputError("history", path, "is not text", give)
    return text


def _split_rows(path: Path, text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows with their line numbers; blank lines are left out."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    # Without strict a quote that is never closed would swallow the rest of the file as one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    body: list[tuple[int, list[str]]] = []
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = cells
                continue
            if any(cell.strip() for cell in cells[len(header) :]):
                why = f"line {reader.line_num} has {len(cells)} values for {len(header)} columns"
                raise InputError("history", path, why, "write numbers with a decimal point, one value for each column")
            body.append((reader.line_num, [c.replace(",", ".") for c in cells] if delimiter != "," else cells))
            if len(body) > _MAX_ROWS:
                raise InputError("history", path, f"has more than {_MAX_ROWS:,} rows", "keep one row for each epoch")
    except csv.Error as error:
        raise InputError("history", path, f"is not a CSV: {error}", _HINT) from None
    if not header:
        raise InputError("history", path, "is empty", _HINT)
    return header, body


def _find_columns(path: Path, header: Sequence[str]) -> dict[str, int]:
    """The position of each column of `HISTORY_COLUMNS` that the header has under any name."""
    names = [re.sub(r"[\W_]+", "", name.casefold()) for name in header]

    def position(wanted: Iterable[str]) -> int | None:
        name = next((each for each in wanted if each and each in names), None)
        if name is not None and names.count(name) > 1:
            raise InputError("history", path, f"has two columns '{header[names.index(name)]}'", _HINT)
        return None if name is None else names.index(name)

    val, metric = None, ""
    for metric in _METRICS:
        val = position([f"{each}{metric}" for each in _VALIDATION] + [f"metrics{each}{metric}" for each in _VALIDATION])
        if val is not None:
            break
    if val is None:
        raise InputError("history", path, "has no column with the validation loss", _HINT)
    # A gap between two different measures would mean nothing, so the same one is looked for first.
    train = position(f"{each}{name}" for name in (metric, *_METRICS) for each in _TRAINING)
    found = {
        "epoch": position(("epoch", "epochs")),
        "train_l1": train,
        "val_l1": val,
        "learning_rate": position(_RATES),
        "seconds": position(("seconds", "epochseconds")),
        "images_per_s": position(("imagespers",)),
    }
    return {name: found[name] for name in HISTORY_COLUMNS if found[name] is not None}  # type: ignore[misc]


def _number(path: Path, header: Sequence[str], cells: Sequence[str], index: int, line: int) -> float:
    text = cells[index].strip() if index < len(cells) else ""
    if text.casefold() in _EMPTY:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        shown = text if len(text) <= 40 else text[:40] + "..."
        why = f"line {line}: {header[index].strip()} is '{shown}', which is no number"
        raise InputError("history", path, why, _HINT) from None
    return value if math.isfinite(value) else math.nan


def _epoch_number(path: Path, value: float, line: int) -> int:
    if not 0 <= value <= _MAX_EPOCH or value != int(value):
        why = f"line {line}: its epoch is {'missing' if math.isnan(value) else f'{value:g}'}"
        raise InputError("history", path, why, "number the epochs with whole numbers from 0 or 1")
    return int(value)


def read_ranked_layers(path: Path) -> tuple[RankedLayer, ...]:
    """The rows of a layer_param_counts.csv that hold parameters, largest first.

    Empty where the file is missing or not of that kind: an explanation of the curve does without it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [
                RankedLayer(row["name"], row["type"], int(row["params"]), float(row["pct"]), float(row["cum_pct"]))
                for row in csv.DictReader(stream)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return ()
    good = all(math.isfinite(row.share_pct) and math.isfinite(row.cumulative_pct) for row in rows)
    return tuple(row for row in rows if row.params > 0) if good else ()


# --- the facts ----------------------------------------------------------------------------------------------------


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


# --- the text -----------------------------------------------------------------------------------------------------


def explain_curve(
    reading: CurveReading, *, layers: Sequence[RankedLayer] = (), artifacts: Mapping[str, str] | None = None
) -> str:
    """The reading as Markdown: observations, inferences, recommendations, a caption for the figure, and the files.

    Every number is one of the reading; a recommendation is given only where the reading holds its reason.

    Args:
        reading: the answer of `read_curve`.
        layers: of the trained network, largest first; with them it is said where compression should begin.
        artifacts: file name -> what it is; listed as they are.
    """
    sections = [
        ("Key observations", _observations(reading)),
        ("Practical inferences", _inferences(reading)),
        ("Recommendations", _recommendations(reading, layers)),
        ("Figure caption", [_caption(reading)]),
        ("Files", [f"`{name}`: {what}" for name, what in (artifacts or {}).items()]),
    ]
    parts = [
        "# What the training curve says",
        _in_short(reading),
        "Loss means the error that the history records; in colorpress it is the L1 error of ab / 128.",
    ]
    for title, lines in sections:
        if lines:
            body = lines[0] if title == "Figure caption" else "\n".join(f"- {line}" for line in lines)
            parts.append(f"## {title}\n\n{body}")
    return "\n\n".join(parts) + "\n"


def write_inference(
    path: Path,
    history: Sequence[Mapping[str, float]],
    *,
    folder: Path | None = None,
    artifacts: Mapping[str, str] = ARTIFACTS,
    reading: CurveReading | None = None,
) -> Path:
    """Explain a history in a Markdown file, atomically, and return `path`.

    Args:
        path: the file to write, such as `training_inference.md` of the run folder.
        history: as for `read_curve`.
        folder: where the run's files lie; default: beside `path`. Its layer_param_counts.csv is read, too.
        artifacts: file name in `folder` -> what it is; those that exist are listed.
        reading: of this history, where the caller has it already.
    Raises:
        InputError: the history has no rows.
        MachineError: the file cannot be written.
    """
    folder = path.parent if folder is None else folder
    prefix = Path(os.path.relpath(folder, path.parent))
    present = {
        _code_safe((prefix / name).as_posix()): what for name, what in artifacts.items() if (folder / name).is_file()
    }
    layers = read_ranked_layers(folder / "layer_param_counts.csv")
    reading = read_curve(history) if reading is None else reading
    return write_text(path, explain_curve(reading, layers=layers, artifacts=present))


def _in_short(reading: CurveReading) -> str:
    if reading.best_epoch is None:
        return f"**In short:** {_count(reading.epochs, 'epoch')}, and none with a finite validation loss."
    best = f"the best of {_count(reading.epochs, 'epoch')} is epoch {reading.best_epoch} ({_loss(reading.best_val)})"
    if reading.epochs == 1:
        best = f"one epoch, with a validation loss of {_loss(reading.best_val)}"
    return f"**In short:** {best}; {_verdict(reading)}."


def _verdict(reading: CurveReading) -> str:
    if reading.broke_epoch is not None:
        return f"the run broke in epoch {reading.broke_epoch}"
    if reading.noise is None:
        return "too few epochs to see a trend"
    if reading.diverged:
        return "after it training and validation both rose, so the run became unstable"
    if reading.overfitting:
        return "after it the network overfitted"
    if reading.rise_is_real:
        return "after it validation rose"
    if reading.still_falling:
        return "validation was still falling when the run ended"
    if not reading.learned:
        return "nothing was learned that stands out from the noise"
    if reading.plateau_epoch is not None:
        return f"validation is level from epoch {reading.plateau_epoch} on, and there is no overfitting"
    return "there is no overfitting"


def _observations(reading: CurveReading) -> list[str]:
    lines = [_phase_text(reading, phase) for phase in reading.phases]
    if reading.best_epoch is None:
        lines.append("**No best epoch:** no epoch has a finite validation loss.")
    else:
        lines.append(_best_text(reading))
    lines += _noise_text(reading)
    lines += _after_text(reading)
    lines += _missing_text(reading)
    lines += _plateau_text(reading)
    lines += _gap_text(reading)
    lines += _length_text(reading)
    return lines


def _phase_text(reading: CurveReading, phase: Phase) -> str:
    name = {
        "rapid": "Rapid learning",
        "slow": "Slower convergence",
        "steady": "Steady learning" if reading.learned else "What was learned",
        "after_best": "After the best epoch",
        "flat": "No learning that shows",
    }[phase.kind]
    if phase.kind == "steady" and phase.val_last >= phase.val_first:
        name = "No change"
    losses = f"validation {_arrow(phase.val_first, phase.val_last)}"
    if phase.train_first is not None and phase.train_last is not None:
        losses = f"training {_arrow(phase.train_first, phase.train_last)}, {losses}"
    text = f"**{name}, epochs {phase.first_epoch} to {phase.last_epoch}:** {losses}"
    if phase.share_pct is not None and phase.kind in ("rapid", "slow"):
        text += f"; {_share(phase.share_pct)} of all that validation improved"
    return text + "."


def _best_text(reading: CurveReading) -> str:
    text = (
        f"**Best epoch: {reading.best_epoch}** of {reading.epochs}, with a validation loss of {_loss(reading.best_val)}"
    )
    if reading.epochs == 1:
        text = f"**One epoch**, with a validation loss of {_loss(reading.best_val)}"
    if reading.train_at_best is not None:
        text += f" and a training loss of {_loss(reading.train_at_best)}"
    return text + "."


def _noise_text(reading: CurveReading) -> list[str]:
    if reading.noise is None or reading.margin is None:
        return [
            "**Noise:** fewer than three epochs have a validation loss, too few to tell a trend from chance or to see "
            "overfitting."
        ]
    if reading.margin == 0:
        return ["**Noise:** none; validation does not move at all."]
    chance = "does not swing" if reading.noise == 0 else f"swings by about {_loss(reading.noise)} by chance"
    text = f"**Noise:** from one epoch to the next validation {chance}"
    text += f"; a difference counts here from {_loss(reading.margin)} on."
    if reading.noisy:
        text += " That is a noisy curve: single epochs say little."
    if reading.epochs < 5:
        text += f" With {reading.epochs} epochs all of this is a hint at most."
    if reading.near_best > 1:
        others = reading.near_best - 1
        text += (
            f" {_count(others, 'other epoch')} {'is' if others == 1 else 'are'} no worse than the best by this measure."
        )
    return [text]


def _after_text(reading: CurveReading) -> list[str]:
    """What happened after the best epoch, and whether that is overfitting."""
    if reading.best_epoch is None or reading.rise is None:
        return []
    lines = []
    if reading.broke_epoch is not None:
        lines.append(
            f"**Divergence:** the loss is not finite from epoch {reading.broke_epoch} to the end "
            f"(NaN, infinite or missing in the history)."
        )
    if reading.noise is None:
        if reading.rise > 0:
            lines.append(f"**After the best epoch** validation is higher by {_amount(reading)} at the end.")
        return lines
    if not reading.rise_is_real:
        if reading.rise > 0:
            lines.append(
                f"**After the best epoch** validation ends {_amount(reading)} above the best, which is no lasting rise."
            )
        lines.append(f"**No overfitting:** {_why_no_overfitting(reading)}.")
        return lines
    since = "" if reading.rise_epoch is None else f" and stays above the margin from epoch {reading.rise_epoch} on"
    lines.append(f"**Rise after the best epoch:** validation ends {_amount(reading)} higher{since}.")
    train = ""
    if reading.train_at_best is not None and reading.train_last is not None:
        train = f" ({_arrow(reading.train_at_best, reading.train_last)})"
    if reading.overfitting:
        lines.append(
            f"**Overfitting:** after epoch {reading.best_epoch} training keeps falling{train} while validation "
            "rises: the network learns the training photographs by heart."
        )
    elif reading.train_after_best == "rising":
        lines.append(
            f"**No overfitting, but divergence:** training rises, too{train}. The optimization lost its way; "
            "learning by heart would have kept training falling."
        )
    elif reading.train_after_best == "level":
        lines.append(
            f"**No overfitting in the strict sense:** training stays level after epoch {reading.best_epoch}{train}, "
            "so the network did not get better on its own photographs as it got worse on others."
        )
    else:
        lines.append(
            "**Overfitting or divergence?** That depends on whether training kept falling, which the history does not "
            "say."
        )
    return lines


def _why_no_overfitting(reading: CurveReading) -> str:
    if reading.still_falling:
        return "validation still falls at the end"
    if reading.broke_epoch is not None:
        return f"before epoch {reading.broke_epoch} validation does not rise by more than chance"
    if reading.train_after_best == "falling":
        return "training keeps falling after the best epoch, but validation does not rise by more than chance"
    return "validation does not rise by more than chance"


def _missing_text(reading: CurveReading) -> list[str]:
    missing = reading.missing_epochs
    if not missing or reading.best_epoch is None:
        return []
    many = len(missing) > 1
    return [
        f"**Left out:** epoch{'s' if many else ''} {_join_epochs(missing)} {'have' if many else 'has'} no finite "
        "validation loss."
    ]


def _plateau_text(reading: CurveReading) -> list[str]:
    if reading.plateau_epoch is None or not reading.learned:
        return []
    text = f"**Plateau:** from epoch {reading.plateau_epoch} on validation, smoothed, moves by no more than "
    text += _loss(reading.margin)
    if reading.train_flat is not None:
        text += "; training has levelled off, too" if reading.train_flat else "; training has not levelled off"
    return [text + "."]


def _gap_text(reading: CurveReading) -> list[str]:
    best, end = reading.gap_at_best, reading.gap_at_end
    if best is None:
        return []
    text = f"**Gap:** in epoch {reading.best_epoch} validation is {_gap_words(best)} training"
    if end is not None and reading.val_last_epoch != reading.best_epoch:
        text += f", in epoch {reading.val_last_epoch} it is {_gap_words(end)} training"
    text += "."
    if best < 0 or (end is not None and end < 0):
        text += (
            " Validation below training is normal here: training is measured on augmented random crops with the "
            "network in training mode; validation on whole photographs in evaluation mode."
        )
    return [text]


def _length_text(reading: CurveReading) -> list[str]:
    if reading.timing == "early":
        pace = _loss(reading.final_pace)
        return [f"**Stopped too early:** at the end validation still falls by about {pace} an epoch."]
    if reading.timing == "late":
        if reading.plateau_epoch is not None and not reading.learned:
            return ["**Stopped too late:** no epoch after the first brought anything beyond the noise."]
        beyond = " beyond the noise" if reading.plateau_epoch is not None else ""
        return [f"**Stopped too late:** the last {_count(reading.late_by, 'epoch')} brought nothing{beyond}."]
    if reading.timing == "right":
        return ["**Stopped about right:** validation no longer falls beyond the noise, and few epochs were wasted."]
    return []


def _inferences(reading: CurveReading) -> list[str]:
    if reading.best_epoch is None:
        return ["There is no checkpoint to ship: no epoch has a finite validation loss."]
    lines = [
        f"**Ship the weights of epoch {reading.best_epoch}** (in a colorpress run: `best.pt`){_not_the_last(reading)}."
    ]
    if reading.epochs > 1:
        lines += [_patience_text(reading, stop) for stop in reading.early_stopping]
    lines += _rate_text(reading)
    lines += _capacity_text(reading)
    return lines


def _not_the_last(reading: CurveReading) -> str:
    if reading.broke_epoch is not None or reading.val_last_epoch != reading.last_epoch or not reading.rise:
        return ""
    if reading.margin is not None and reading.rise <= reading.margin:
        return "; those of the last epoch are as good within the noise"
    return f", not those of the last epoch, whose validation loss is {_amount(reading)} higher"


def _patience_text(reading: CurveReading, stop: EarlyStop) -> str:
    start = f"**Early stopping with patience {stop.patience}** "
    if stop.stop_epoch is None:
        return start + "would not have stopped this run: same epochs, same weights."
    kept = f"epoch {stop.kept_epoch} ({_loss(stop.kept_val)})"
    text = f"{start}would have stopped after epoch {stop.stop_epoch} and kept {kept}"
    if stop.saved_epochs == 0:
        text += "; that is the end of the run, so it saves nothing"
    else:
        text += f"; it saves {_count(stop.saved_epochs, 'epoch')}"
        if stop.saved_seconds:
            text += f" ({_duration(stop.saved_seconds)})"
    if stop.cost == 0:
        return text + " and costs nothing." if stop.saved_epochs else text + "."
    cost = _loss(stop.cost) + ("" if stop.cost_pct is None else f" ({_pct(stop.cost_pct)})")
    text += f" and costs {cost} of validation loss"
    if reading.margin is not None and stop.cost <= reading.margin:
        text += ", less than the noise margin"
    return text + "."


def _rate_text(reading: CurveReading) -> list[str]:
    rate = reading.learning_rate
    if rate is None:
        return []
    at_best = "" if rate.at_best is None else f"; at the best epoch it is {_rate(rate.at_best)}"
    if rate.shape == "constant":
        return [f"**Learning rate:** constant at {_rate(rate.peak)}."]
    course = f"from {_rate(rate.first)} to {_rate(rate.last)}"
    if rate.shape == "warm-up, then decay":
        course = f"from {_rate(rate.first)} up to {_rate(rate.peak)}, then down to {_rate(rate.last)}"
    text = f"**Learning rate:** {rate.shape}, {course}{at_best}."
    slow = next((phase for phase in reading.phases if phase.kind == "slow"), None)
    if (
        slow is not None
        and slow.share_pct is not None
        and rate.shape in ("decaying", "warm-up, then decay", "step decay")
    ):
        won = f"{_share(slow.share_pct)} of the improvement"
        text += f" Epochs {slow.first_epoch} to {slow.last_epoch}, at falling rates, won {won}."
    return [text]


def _capacity_text(reading: CurveReading) -> list[str]:
    if reading.overfitting and not reading.broke_epoch:
        return [
            "**Capacity:** the network can learn more of its training photographs than carries over to others. It is "
            "not too small for these data, which speaks for compressing it."
        ]
    if reading.learned and reading.plateau_epoch is not None and reading.train_flat and not reading.diverged:
        return [
            "**Capacity:** both losses have levelled off with nothing learned by heart. More epochs of the same will "
            "not help; what limits the result is the learning-rate schedule, the size of the network, or how far grey "
            "tells colour. The curve alone cannot say which."
        ]
    return []


def _recommendations(reading: CurveReading, layers: Sequence[RankedLayer]) -> list[str]:
    lines: list[str] = []
    if reading.diverged or reading.best_epoch is None:
        lines += _advice_diverged(reading)
    elif reading.noise is None:
        lines.append("Train for more epochs: three or more are needed before the curve says anything.")
    elif reading.still_falling:
        lines += _advice_falling(reading)
    elif not reading.learned and not reading.rise_is_real:
        lines += _advice_flat(reading)
    if reading.rise_is_real and not reading.diverged:
        lines += _advice_rise(reading)
    if reading.plateau_epoch is not None and reading.learned and not reading.diverged:
        lines += _advice_plateau(reading)
    lines += _advice_patience(reading)
    if reading.noisy and not reading.diverged:
        lines.append("Validate on more photographs, or average the weights of several epochs: this curve is noisy.")
    if reading.overfitting is False and not reading.diverged and reading.learned:
        lines.append(
            "Keep weight decay as it is, and do without dropout: with no overfitting they have nothing to cure."
        )
    lines += _advice_layers(layers)
    return lines or ["Nothing to change: the run learned, and ended when it was done."]


def _advice_diverged(reading: CurveReading) -> list[str]:
    rate = reading.learning_rate
    lower = "Train with a lower learning rate" + (f" than {_rate(rate.peak)}" if rate is not None and rate.peak else "")
    lines = [lower + ", and check the data if that does not help: that is what a run that breaks calls for first."]
    if reading.broke_epoch is not None and reading.best_epoch is not None:
        lines.append(f"Do not use weights from epoch {reading.broke_epoch} on.")
    if rate is not None and rate.shape == "constant":
        lines.append("Let the learning rate warm up and decay; it was constant.")
    return lines


def _advice_falling(reading: CurveReading) -> list[str]:
    rate = reading.learning_rate
    text = "Train for more epochs: validation was still falling"
    if rate is not None and rate.peak > 0 and rate.last <= 0.05 * rate.peak:
        text += (
            f". The learning rate had decayed to {_rate(rate.last)}, so start a longer run with its schedule "
            "stretched; going on at that rate would change little"
        )
    return [text + "."]


def _advice_flat(reading: CurveReading) -> list[str]:
    lines = []
    if reading.train_after_best == "falling" and reading.train_flat is False:
        lines.append("Check the validation photographs: training falls, and validation does not follow.")
    else:
        lines.append(
            "Look for the reason before training longer: the data, or a learning rate that is far too high or too low."
        )
    return lines


def _advice_rise(reading: CurveReading) -> list[str]:
    lines = []
    rapid = next((phase for phase in reading.phases if phase.kind == "rapid"), None)
    rate = reading.learning_rate
    if reading.overfitting:
        lines.append(
            "Raise weight decay, add dropout, augment more or add photographs, one at a time: training fell while "
            "validation rose."
        )
    if rate is None or rate.shape == "constant":
        when = rapid.last_epoch if rapid is not None else reading.best_epoch
        reason = "where rapid learning ends" if rapid is not None else "the best one"
        if rate is None:
            lines.append(
                f"If the learning rate was constant (the history does not say), lower it after epoch {when}, {reason}."
            )
        else:
            lines.append(
                f"Lower the learning rate after epoch {when}, {reason}; it was constant at {_rate(rate.peak)}."
            )
    elif reading.overfitting is not True:
        lines.append(
            "Try a lower learning rate: validation rose, and the curve does not show that this is overfitting."
        )
    return lines


def _advice_plateau(reading: CurveReading) -> list[str]:
    rate = reading.learning_rate
    if rate is not None and rate.shape == "constant":
        return [
            f"Lower the learning rate at epoch {reading.plateau_epoch}, where the plateau begins: it was constant at "
            f"{_rate(rate.peak)}."
        ]
    if reading.timing == "late":
        return ["Train for fewer epochs, or change something else: more of the same epochs bring nothing."]
    return ["Do not train longer with these settings: validation has levelled off."]


def _advice_patience(reading: CurveReading) -> list[str]:
    """The shortest patience that would have kept weights as good as the best ones."""
    if reading.timing != "late" or not (reading.learned or reading.rise_is_real):
        return []
    worth = [stop for stop in reading.early_stopping if stop.saved_epochs]
    free = next((stop for stop in worth if stop.cost == 0), None)
    if free is not None:
        return [
            f"Stop early with patience {free.patience}: the same weights, {_count(free.saved_epochs, 'epoch')} less."
        ]
    cheap = next((stop for stop in worth if reading.margin is not None and stop.cost <= reading.margin), None)
    if cheap is not None:
        return [
            f"Stop early with patience {cheap.patience}: {_count(cheap.saved_epochs, 'epoch')} less for a difference "
            "within the noise."
        ]
    if worth:
        longest = max(stop.patience for stop in worth)
        return [f"Use a patience above {longest}: with {longest} the run would have ended before its best epoch."]
    return []


def _advice_layers(layers: Sequence[RankedLayer]) -> list[str]:
    if not layers:
        return []
    count = next((n for n, layer in enumerate(layers, start=1) if layer.cumulative_pct >= 50), len(layers))
    first = layers[: min(count, 5)]
    each = [f"`{_code_safe(layer.name)}` ({layer.params:,} parameters, {layer.share_pct:.1f} %)" for layer in first]
    if len(first) == 1:
        return [f"Begin compression with the largest layer: {each[0]}."]
    return [
        f"Begin compression with the {len(first)} largest layers, which hold {first[-1].cumulative_pct:.0f} % of the "
        f"parameters: {_join(each)}."
    ]


def _caption(reading: CurveReading) -> str:
    recorded = "Training and validation loss" if reading.train_first is not None else "Validation loss"
    text = f"{recorded} over {_count(reading.epochs, 'epoch')}."
    if reading.best_epoch is None or reading.val_first is None or reading.best_val is None:
        return text + " No epoch has a finite validation loss."
    if reading.epochs == 1:
        return text
    if reading.best_val < reading.val_first:
        text += (
            f" Validation falls from {_loss(reading.val_first)} to its best, {_loss(reading.best_val)}, in epoch "
            f"{reading.best_epoch} (dashed line)"
        )
    else:
        text += f" Validation has its best, {_loss(reading.best_val)}, in epoch {reading.best_epoch} (dashed line)"
    if reading.overfitting:
        return text + f", then rises to {_loss(reading.val_last)} while training keeps falling: overfitting."
    if reading.rise_is_real:
        also = " together with training" if reading.train_after_best == "rising" else ""
        return text + f", then rises to {_loss(reading.val_last)}{also}."
    if reading.broke_epoch is not None:
        return text + f"; from epoch {reading.broke_epoch} on the loss is not finite."
    if reading.still_falling:
        return text + " and was still falling when the run ended."
    if reading.plateau_epoch is not None and reading.learned:
        return text + f"; it is level from epoch {reading.plateau_epoch} on, without overfitting."
    return text + "."


def _loss(value: float | None) -> str:
    """A loss, or a difference of losses, as it is printed everywhere."""
    assert value is not None
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:.5f}" if 5e-6 <= abs(value) < 1 else f"{value:.2g}"


def _arrow(first: float, last: float) -> str:
    return f"{_loss(first)} → {_loss(last)}"


def _amount(reading: CurveReading) -> str:
    assert reading.rise is not None
    return _loss(reading.rise) + ("" if reading.rise_pct is None else f" ({_pct(reading.rise_pct)})")


def _gap_words(gap: float) -> str:
    return "equal to" if gap == 0 else f"{_loss(abs(gap))} {'above' if gap > 0 else 'below'}"


def _pct(value: float) -> str:
    return f"{value:.1f} %" if abs(value) >= 0.05 else "under 0.1 %"


def _share(percent: float) -> str:
    if percent < 1:
        return "under 1 %"
    return "over 99 %" if percent > 99 else f"{percent:.0f} %"


def _rate(value: float) -> str:
    return f"{value:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _join_epochs(epochs: Sequence[int]) -> str:
    if len(epochs) <= 5:
        return _join([str(epoch) for epoch in epochs])
    return ", ".join(str(epoch) for epoch in epochs[:5]) + f" and {len(epochs) - 5} more"


def _code_safe(name: str) -> str:
    return printable(name).replace("`", "'")
