"""pareto.png: what each variant costs in size and in time, against the colour it keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.rows import Row, base_rows
from colorpress.core.charts import format_cost, number_log_axis
from colorpress.core.errors import printable
from colorpress.core.files import atomic_write
from compress.front import find_front
from export.runtimes import RUNTIMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_GREY_LINE, _FRONT, _LEADER = "#777777", "#1f5fbf", "#999999"
_LONGEST_NAME = 34
_LEGEND_ROWS = 26


@dataclass(frozen=True)
class _Kind:
    """How the points of some rows look, and what the legend says of them."""

    label: str
    colour: str
    marker: str
    is_hollow: bool = False


_BASELINE = _Kind("best.pt", "#b3261e", "s")
_PEER = _Kind("other tools", "#c26a00", "D")
# By the family of the runtime.
_OURS = {
    "PyTorch": _Kind("ours, PyTorch", "#1f5fbf", "o", is_hollow=True),
    "ONNX Runtime": _Kind("ours, ONNX Runtime", "#1f5fbf", "o"),
    "OpenVINO": _Kind("ours, OpenVINO", "#1f5fbf", "^"),
}

# Where a label may stand from its point, in points of 1/72 inch: nearest places first.
_PLACES = tuple(
    (far * 9.0 * math.cos(math.radians(angle)), far * 9.0 * math.sin(math.radians(angle)))
    for far in (1.0, 1.5, 2.2, 3.0, 4.0, 5.2, 6.6, 8.2, 10.0)
    for angle in (25, -25, 155, -155, 90, -90, 55, -55, 125, -125, 0, 180)
)


def draw_pareto(rows: Sequence[Row], grey_l1: float | None, path: Path) -> Path:
    """Two panels, file size and p50 latency (log scales) against L1, lower L1 above, with G as the other axis.

    Rows of the base condition that finished are points. Named are best.pt, other tools' and those on the front, which
    a line joins; the others have numbers, with their names at the side. One file is one point among the sizes. The L1
    of a grey answer is a line where the panel reaches it.

    Args:
        rows: best.pt first.
        grey_l1: L1 of a grey answer; with best.pt's it makes the axis of retained colour.
    Raises:
        MachineError: the file cannot be written.
    """
    from matplotlib.figure import Figure

    shown = [
        row for row in (base_rows(rows) if rows else []) if row.is_ok and row.l1 is not None and row.p50_ms is not None
    ]
    figure = Figure(figsize=(15, 6.2), dpi=120, layout="constrained")
    panels = figure.subplots(1, 3, width_ratios=(1, 1, 0.42))
    size_panel, time_panel, side = panels
    time_panel.sharey(size_panel)
    side.axis("off")
    sizes = list({row.variant: row for row in reversed(shown)}.values())[::-1]
    named = _choose_named(shown, _front_rows(sizes, "size_bytes") + _front_rows(shown, "p50_ms"))
    numbers: dict[str, str] = {}
    for row in shown:
        if row.model not in named:
            numbers[row.model] = str(len(numbers) + 1)
    labels = [
        _draw_panel(axes, points, column, numbers, rows, grey_l1)
        for axes, points, column in ((size_panel, sizes, "size_bytes"), (time_panel, shown, "p50_ms"))
    ]
    size_panel.set_title("File size (weights of a checkpoint)")
    time_panel.set_title("Time for a call (p50)")
    size_panel.set_ylabel("L1 on held-out photographs (ab/128), less is above")
    time_panel.tick_params(labelleft=False)
    _write_side(side, shown, numbers, has_baseline=bool(rows))
    figure.draw_without_rendering()
    for axes, named_points in zip((size_panel, time_panel), labels, strict=True):
        place_labels(axes, named_points)
    # What has been placed must not move again.
    figure.set_layout_engine("none")
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
    return path


def _choose_named(rows: Sequence[Row], front: Sequence[Row]) -> set[str]:
    """The rows whose names stand beside their points: all of a few, else those that a reader looks for."""
    if len(rows) <= 8:
        return {row.model for row in rows}
    return {rows[0].model, *(row.model for row in front), *(row.model for row in rows if row.peer)}


def _kind_of(row: Row, baseline: bool) -> _Kind:
    if baseline:
        return _BASELINE
    return _PEER if row.peer else _OURS[RUNTIMES[row.runtime].family]


def _value(row: Row, column: str) -> float:
    return float(row.fair_size_bytes if column == "size_bytes" else getattr(row, column))


def _point(row: Row, column: str) -> tuple[float, float]:
    assert row.l1 is not None
    return _value(row, column), row.l1


def _front_rows(rows: Sequence[Row], column: str) -> list[Row]:
    points = {_point(row, column): row for row in reversed(rows)}
    return find_front(list(points.values()), lambda row: _point(row, column))


def _draw_panel(
    axes: Axes, points: Sequence[Row], column: str, numbers: dict[str, str], rows: Sequence[Row], grey_l1: float | None
) -> list[Annotation]:
    axes.set_xscale("log")
    axes.grid(alpha=0.25, which="both")
    axes.set_axisbelow(True)
    if not points:
        axes.text(0.5, 0.5, "no variant finished", transform=axes.transAxes, ha="center")
        return []
    front = [_point(row, column) for row in _front_rows(points, column)]
    axes.plot(*zip(*front, strict=True), color=_FRONT, alpha=0.35, linewidth=1.5, zorder=2)
    for row in points:
        kind = _kind_of(row, row is rows[0])
        axes.scatter(
            [_value(row, column)],
            [row.l1],
            s=42,
            marker=kind.marker,
            facecolors="white" if kind.is_hollow else kind.colour,
            edgecolors=kind.colour,
            zorder=4 if row is rows[0] else 3,
        )
    _set_limits(axes, points, column, grey_l1)
    _add_retained_axis(axes, rows[0], grey_l1, is_labelled=column == "p50_ms")
    return [
        # A name is text, also with dollar signs, and is placed only after the layout is settled.
        axes.annotate(
            numbers.get(row.model) or _short(row.model if column == "p50_ms" else row.variant),
            (_value(row, column), row.l1),
            xytext=_PLACES[0],
            textcoords="offset points",
            fontsize=8 if row.model in numbers else 9,
            color="#555555" if row.model in numbers else _kind_of(row, row is rows[0]).colour,
            arrowprops={"arrowstyle": "-", "color": _LEADER, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            parse_math=False,
            in_layout=False,
            va="center",
        )
        for row in sorted(points, key=lambda row: row.model in numbers)
    ]


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"


def _set_limits(axes: Axes, points: Sequence[Row], column: str, grey_l1: float | None) -> None:
    xs, ys = [_value(row, column) for row in points], [float(row.l1) for row in points]
    # In decades: room for the names beside the outermost points.
    room = 10.0 ** (0.15 + 0.12 * math.log10(max(xs) / min(xs)))
    axes.set_xlim(min(xs) / room, max(xs) * room)
    low, high = min(ys), max(ys)
    margin = max(0.12 * (high - low), 0.005 * high, 1e-6)
    reach = 4 * max(high - low, 0.02 * high)
    if grey_l1 is not None and low - reach <= grey_l1 <= high + reach:
        low, high = min(low, grey_l1), max(high, grey_l1)
        axes.axhline(grey_l1, color=_GREY_LINE, linestyle="--", linewidth=1)
        axes.text(0.99, grey_l1, f"grey answer, L1 {grey_l1:.4f} ", color=_GREY_LINE, va="bottom", ha="right",
                  transform=axes.get_yaxis_transform(), fontsize=9)  # fmt: skip
    # Upside down, so that above is better, as G has it.
    axes.set_ylim(high + margin, low - margin)
    number_log_axis(axes, xs, format_cost(column))


def _add_retained_axis(axes: Axes, best: Row, grey_l1: float | None, *, is_labelled: bool) -> None:
    """G = (L1 grey - L1) / (L1 grey - L1 best) on the right: linear in L1."""
    if grey_l1 is None or best.l1 is None or grey_l1 <= best.l1:
        return
    grey, gain = grey_l1, grey_l1 - best.l1

    def to_retained(l1: Any) -> Any:
        return (grey - l1) / gain

    def to_l1(retained: Any) -> Any:
        return grey - retained * gain

    right = axes.secondary_yaxis("right", functions=(to_retained, to_l1))
    axes.axhline(best.l1, color=_BASELINE.colour, linewidth=0.8, alpha=0.4, zorder=1)
    if is_labelled:
        right.set_ylabel("retained colour G (1: best.pt, 0: grey)")
    else:
        right.tick_params(labelright=False)


def _write_side(axes: Axes, rows: Sequence[Row], numbers: dict[str, str], *, has_baseline: bool) -> None:
    """The markers that occur, and below them the names of the numbered points."""
    from matplotlib.lines import Line2D

    kinds = dict.fromkeys(_kind_of(row, has_baseline and row is rows[0]) for row in rows)
    handles = [
        Line2D(
            [],
            [],
            linestyle="",
            marker=kind.marker,
            color=kind.colour,
            markerfacecolor="white" if kind.is_hollow else kind.colour,
            label=kind.label,
        )
        for kind in kinds
    ]
    if handles:
        axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=9, borderaxespad=0)
    lines = [f"{number}  {_short(name)}" for name, number in numbers.items()]
    if len(lines) > _LEGEND_ROWS:
        lines = [*lines[: _LEGEND_ROWS - 1], f"and {len(lines) - _LEGEND_ROWS + 1} more, in benchmark.csv"]
    top = 0.95 - 0.05 * len(handles)
    axes.text(0, top, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=8, parse_math=False)


def place_labels(axes: Axes, annotations: Sequence[Annotation]) -> None:
    """Move each label to the nearest place where it covers no other label and no point, inside the axes.

    One that finds no place is hidden: a point without a label misleads less than two labels over each other.
    """
    taken: list[Bbox] = [_point_box(axes, annotation) for annotation in annotations]
    taken += [text.get_window_extent() for text in axes.texts if text not in annotations]
    frame = axes.get_window_extent()
    for annotation in annotations:
        for place in _PLACES:
            _move(annotation, place)
            box = _text_box(annotation)
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                break
        else:
            annotation.set_visible(False)


def _text_box(annotation: Annotation) -> Bbox:
    """Of the text alone, without the line to its point."""
    from matplotlib.text import Text

    return Text.get_window_extent(annotation)


def _move(annotation: Annotation, place: tuple[float, float]) -> None:
    annotation.set_position(place)
    annotation.set_horizontalalignment("left" if place[0] > 2 else "right" if place[0] < -2 else "center")
    # A line only to labels that do not touch their point.
    if annotation.arrow_patch is not None:
        annotation.arrow_patch.set_visible(math.hypot(*place) > 16)


def _point_box(axes: Axes, annotation: Annotation) -> Any:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform(annotation.xy)
    return Bbox.from_extents(x - 5, y - 5, x + 5, y + 5)
