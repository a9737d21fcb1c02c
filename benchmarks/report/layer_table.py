"""The layers of the original as the report shows them: where its size and its time are, and what each is worth."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.report.report_table import Cell, Line, Table
from colorpress.core.errors import InputError
from colorpress.core.text import format_bytes, format_count

# More rows than these are looked up in the file.
_MOST_LAYERS = 40


class LayerTable(NamedTuple):
    """A table of layers, and how many more are in the file."""

    table: Table
    left_out: int


class LayerColumn(NamedTuple):
    """A column of layer_ranking.csv: its header, and what a cell says and notes below.

    Attributes:
        text, small: of a row's figures by the names of their columns.
    """

    key: str
    title: str
    text: Callable[[Mapping[str, float]], str]
    note: str = ""
    small: Callable[[Mapping[str, float]], str] = lambda figures: ""
    is_extra: bool = False
    is_more_better: bool = True


def _percent(key: str) -> Callable[[Mapping[str, float]], str]:
    return lambda figures: f"{figures[key]:.1f} %"


def _loss(key: str) -> Callable[[Mapping[str, float]], str]:
    return lambda figures: f"{100 * figures[key]:.2f} %"


_COLUMNS = (
    LayerColumn("params_pct", "Parameters", _percent("params_pct"), "share, and count",
                lambda figures: format_count(int(figures.get("params", 0)))),
    LayerColumn("ort_pct", "Time", _percent("ort_pct"), "share, ONNX Runtime"),
    LayerColumn("prune_loss", "Colour lost", _loss("prune_loss"), "when half pruned"),
    LayerColumn("int8_loss", "Colour lost", _loss("int8_loss"), "in int8"),
    LayerColumn("macs_pct", "MACs", _percent("macs_pct"), "share, and count",
                lambda figures: format_count(int(figures.get("macs", 0))), is_extra=True),
    LayerColumn("torch_pct", "Time", _percent("torch_pct"), "share, PyTorch", is_extra=True),
    LayerColumn("activation_bytes", "Output", lambda figures: format_bytes(int(figures["activation_bytes"])),
                "of one picture", is_extra=True),
)  # fmt: skip


def read_layer_table(path: Path) -> LayerTable | None:
    """The table that layer_ranking.csv makes, with bars; None without such a file.

    The layers with most parameters come first. Columns without any figure are left out.

    Raises:
        InputError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            rows = list(reader)
        if not {"name", "type"} <= set(reader.fieldnames or ()):
            raise ValueError("it has no names of layers")
        named = [(row["name"], row["type"], _read_figures(row)) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError("layer ranking", path, f"is damaged ({error})", "run `colorpress rank` again") from error
    shown = named[:_MOST_LAYERS]
    columns = [column for column in _COLUMNS if any(column.key in figures for _, _, figures in shown)]
    longest = {
        column.key: max(figures.get(column.key, 0.0) for _, _, figures in shown) or math.inf for column in columns
    }
    lines = [Line(name, kind, "", _make_cells(figures, columns, longest), "") for name, kind, figures in shown]
    table = Table(columns, sum(not column.is_extra for column in columns), lines)
    return LayerTable(table, len(named) - len(shown))


def _read_figures(row: Mapping[str, str]) -> dict[str, float]:
    """The finite numbers of a row by column; what could not be measured is empty."""
    texts = {name: text for name, text in row.items() if name not in ("name", "type") and text}
    figures = {name: float(text) for name, text in texts.items()}
    if not all(map(math.isfinite, figures.values())):
        raise ValueError(f"a figure of {row['name']} is not finite")
    return figures


def _make_cells(
    figures: Mapping[str, float], columns: Sequence[LayerColumn], longest: Mapping[str, float]
) -> list[Cell]:
    return [
        Cell(
            column.text(figures),
            column.small(figures),
            figures[column.key],
            bar_pct=max(0.0, 100.0 * figures[column.key] / longest[column.key]),
        )
        if column.key in figures
        else Cell("-")
        for column in columns
    ]
