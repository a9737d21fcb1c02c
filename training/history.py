"""The history of a fit: `history.csv`, one's own or another program's, and the curve in `training_loss.png`."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from colorpress.core.charts import drawn
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import write_csv
from training.decoding import open_regular_file

# What training.curve_prose tells of it.
EXPLANATION_NAME = "training_inference.md"
HISTORY_COLUMNS = ("epoch", "train_l1", "val_l1", "learning_rate", "seconds", "images_per_s")

_MAX_BYTES = 16 * 1024 * 1024
_MAX_ROWS = 100_000
_MAX_EPOCH = 10**9
_EMPTY = {"", "null", "none", "na", "n/a", "-"}
_METRICS = ("l1", "loss", "mae", "l1loss", "maeloss", "lossepoch", "")
_VALIDATION = ("val", "validation", "valid", "eval")
_TRAINING = ("train", "training", "")
_RATES = ("learningrate", "lr", "lradam", "lradamw", "lrsgd")
_HINT = "name its columns epoch, train_l1 and val_l1 (train_loss and val_loss are understood too)"
_GIVE = "give the CSV with one row per epoch, such as history.csv of a run folder"
_ONE_ROW = "keep one row for each epoch"


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> Path:
    """Write one row per epoch to a CSV file and return `path`."""
    return write_csv(path, HISTORY_COLUMNS, history)


def best_epoch(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The row with the lowest validation L1; the later one of equals, as `fit_network` keeps it."""
    return min(reversed(history), key=lambda row: row["val_l1"])


def plot_history(path: Path, history: Sequence[Mapping[str, float]]) -> Path:
    """Draw the training and validation curves with the best epoch marked, and return `path`."""
    epochs, best = [row["epoch"] for row in history], best_epoch(history)
    with drawn(path, height=4.4) as figure:
        axes = figure.subplots()
        axes.plot(epochs, [row["train_l1"] for row in history], "o-", color="#4c72b0", label="training (random crops)")
        label = "validation (whole photographs)"
        axes.plot(epochs, [row["val_l1"] for row in history], "s-", color="#dd8452", label=label)
        axes.axvline(best["epoch"], color="#55a868", linestyle="--", linewidth=1)
        axes.plot(
            best["epoch"], best["val_l1"], "*", color="#55a868", markersize=16,
            label=f"best.pt: epoch {best['epoch']:.0f}, validation L1 {best['val_l1']:.4f}",
        )  # fmt: skip
        axes.set(xlabel="epoch", ylabel="L1 of ab / 128", title="Training the UNet colorizer")
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
    return path


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
    try:
        return _merge_rows(*_split_rows(_read_text(path)))
    except InputError as error:
        raise InputError("history", path, error.why, error.hint) from None


def _unusable(why: str, hint: str = _HINT) -> InputError:
    return InputError("history", None, why, hint)


def _read_text(path: Path) -> str:
    try:
        with open_regular_file(path) as stream:
            content = stream.read(_MAX_BYTES + 1)
    except InputError as error:
        if error.why == "no such file":
            raise ConfigError("history", path, error.why, _GIVE) from None
        raise _unusable("is a folder" if path.is_dir() else error.why, _GIVE) from None
    if len(content) > _MAX_BYTES:
        raise _unusable(f"is larger than {_MAX_BYTES // 1024**2} MiB", _GIVE)
    try:
        text = content.decode("utf-16" if content.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise _unusable("is not text", _GIVE)
    return text


def _split_rows(text: str) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and the rows with their line numbers, as long as the header; blank lines are left out."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    # Without strict a quote that is never closed would swallow the rest of the file as one cell.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    body: list[tuple[int, list[str]]] = []
    try:
        filled = (cells for cells in reader if any(cell.strip() for cell in cells))
        if not (header := next(filled, [])):
            raise _unusable("is empty")
        for cells in filled:
            if any(cell.strip() for cell in cells[len(header) :]):
                why = f"line {reader.line_num} has {len(cells)} values for {len(header)} columns"
                raise _unusable(why, "write numbers with a decimal point, one value for each column")
            cells += [""] * (len(header) - len(cells))
            body.append((reader.line_num, cells if delimiter == "," else [cell.replace(",", ".") for cell in cells]))
            if len(body) > _MAX_ROWS:
                raise _unusable(f"has more than {_MAX_ROWS:,} rows", _ONE_ROW)
    except csv.Error as error:
        raise _unusable(f"is not a CSV: {error}") from None
    return header, body


def _merge_rows(header: Sequence[str], body: Sequence[tuple[int, list[str]]]) -> tuple[Mapping[str, float], ...]:
    columns = _find_columns(header)
    merged: dict[int, dict[str, float]] = {}
    for line, cells in body:
        values = {name: _number(header[index], cells[index], line) for name, index in columns.items()}
        epoch = _epoch_number(values.pop("epoch", len(merged) + 1), line)
        row = merged.setdefault(epoch, {})
        known = {name: value for name, value in values.items() if not math.isnan(value)}
        if any(row[name] != known[name] for name in ("train_l1", "val_l1") if name in row and name in known):
            raise _unusable(f"line {line}: epoch {epoch} is there twice", _ONE_ROW)
        row.update(known)
    if not merged:
        raise _unusable("has no rows", "give the history of a training of one epoch or more")
    unknown = dict.fromkeys(columns, math.nan)
    return tuple({**unknown, **merged[epoch], "epoch": epoch} for epoch in sorted(merged))


def _find_columns(header: Sequence[str]) -> dict[str, int]:
    """The position of each column of `HISTORY_COLUMNS` that the header has under any name."""
    names = [re.sub(r"[\W_]+", "", name.casefold()) for name in header]

    def position(wanted: Iterable[str]) -> int | None:
        name = next((each for each in wanted if each and each in names), None)
        if name is not None and names.count(name) > 1:
            raise _unusable(f"has two columns '{header[names.index(name)]}'")
        return None if name is None else names.index(name)

    for metric in _METRICS:
        val = position(f"{prefix}{each}{metric}" for prefix in ("", "metrics") for each in _VALIDATION)
        if val is not None:
            break
    else:
        raise _unusable("has no column with the validation loss")
    found = {
        "epoch": position(("epoch", "epochs")),
        # A gap between two different measures would mean nothing, so the same one is looked for first.
        "train_l1": position(f"{each}{name}" for name in (metric, *_METRICS) for each in _TRAINING),
        "val_l1": val,
        "learning_rate": position(_RATES),
        "seconds": position(("seconds", "epochseconds")),
        "images_per_s": position(("imagespers",)),
    }
    return {name: index for name, index in found.items() if index is not None}


def _number(column: str, cell: str, line: int) -> float:
    text = cell.strip()
    try:
        value = math.nan if text.casefold() in _EMPTY else float(text)
    except ValueError:
        shown = text if len(text) <= 40 else text[:40] + "..."
        raise _unusable(f"line {line}: {column.strip()} is '{shown}', which is no number") from None
    return value if math.isfinite(value) else math.nan


def _epoch_number(value: float, line: int) -> int:
    if not 0 <= value <= _MAX_EPOCH or value != int(value):
        why = f"line {line}: its epoch is {'missing' if math.isnan(value) else f'{value:g}'}"
        raise _unusable(why, "number the epochs with whole numbers from 0 or 1")
    return int(value)
