"""pareto.png: what each variant costs in size and in time, against the colour it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.rows import Row, base_rows, one_per_file
from colorpress.core.charts import drawn, format_cost, number_log_axis, place_labels
from colorpress.core.errors import printable
from compress.front import find_front
from export.runtimes import RUNTIMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axes._secondary_axes import SecondaryAxis
    from matplotlib.text import Annotation

_GREY_LINE, _FRONT, _LEADER, _NUMBER = "#777777", "#1f5fbf", "#999999", "#555555"
_LONGEST_NAME = 34
_LEGEND_ROWS = 26


class _Kind(NamedTuple):
    """How the points of some rows look, and what the legend says of them."""

    label: str
    colour: str
    face: str
    marker: str


_BASELINE = _Kind("best.pt", "#b3261e", "#b3261e", "s")
_PEER = _Kind("other tools", "#c26a00", "#c26a00", "D")
_OURS = {
    "PyTorch": _Kind("ours, PyTorch", "#1f5fbf", "white", "o"),
    "ONNX Runtime": _Kind("ours, ONNX Runtime", "#1f5fbf", "#1f5fbf", "o"),
    "OpenVINO": _Kind("ours, OpenVINO", "#1f5fbf", "#1f5fbf", "^"),
}


class _Point(NamedTuple):
    """A row in one panel: where it stands, and what it is called there and in the list at the side."""

    x: float
    l1: float
    name: str
    model: str
    kind: _Kind


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
    shown = [row for row in base_rows(rows) if row.is_ok and row.l1 is not None and row.p50_ms is not None]
    kinds = {row.model: _PEER if row.peer else _OURS[RUNTIMES[row.runtime].family] for row in shown}
    kinds |= {row.model: _BASELINE for row in shown if row is rows[0]}
    times = [_Point(row.p50_ms or 0.0, row.l1 or 0.0, row.model, row.model, kinds[row.model]) for row in shown]
    sizes = [
        _Point(float(row.fair_size_bytes), row.l1 or 0.0, row.variant, row.model, kinds[row.model])
        for row in one_per_file(shown)
    ]
    numbers = _number_points(times, {point.model for points in (sizes, times) for point in _find_front(points)})
    best_l1 = rows[0].l1 if rows else None
    with drawn(path, width=15, height=6.2, dpi=120) as figure:
        size_panel, time_panel, side = figure.subplots(1, 3, width_ratios=(1, 1, 0.42))
        time_panel.sharey(size_panel)
        labels = [
            _draw_panel(axes, points, column, numbers, grey_l1)
            for axes, points, column in ((size_panel, sizes, "size_bytes"), (time_panel, times, "p50_ms"))
        ]
        if times and grey_l1 is not None and best_l1 is not None and grey_l1 > best_l1:
            _add_retained_axis(size_panel, best_l1, grey_l1).tick_params(labelright=False)
            _add_retained_axis(time_panel, best_l1, grey_l1).set_ylabel("retained colour G (1: best.pt, 0: grey)")
        size_panel.set_title("File size (weights of a checkpoint)")
        time_panel.set_title("Time for a call (p50)")
        size_panel.set_ylabel("L1 on held-out photographs (ab/128), less is above")
        time_panel.tick_params(labelleft=False)
        _write_side(side, times, numbers)
        figure.draw_without_rendering()
        for axes, named_points in zip((size_panel, time_panel), labels, strict=True):
            place_labels(axes, named_points)
        # What has been placed must not move again.
        figure.set_layout_engine("none")
    return path


def _find_front(points: Sequence[_Point]) -> list[_Point]:
    """Of points at one place the first."""
    first = {point[:2]: point for point in reversed(points)}
    return find_front(list(first.values()), lambda point: point[:2])


def _number_points(points: Sequence[_Point], front: set[str]) -> dict[str, str]:
    """The models that a number stands for: of a few points none, else those that a reader does not look for."""
    if len(points) <= 8:
        return {}
    plain = [point.model for point in points[1:] if point.kind != _PEER and point.model not in front]
    return {model: str(number) for number, model in enumerate(plain, start=1)}


def _draw_panel(
    axes: Axes, points: Sequence[_Point], column: str, numbers: Mapping[str, str], grey_l1: float | None
) -> list[Annotation]:
    axes.set_xscale("log")
    axes.grid(alpha=0.25, which="both")
    axes.set_axisbelow(True)
    if not points:
        axes.text(0.5, 0.5, "no variant finished", transform=axes.transAxes, ha="center")
        return []
    front = _find_front(points)
    axes.plot([p.x for p in front], [p.l1 for p in front], color=_FRONT, alpha=0.35, linewidth=1.5, zorder=2)
    for x, l1, _, _, kind in points:
        above = 4 if kind == _BASELINE else 3
        axes.scatter([x], [l1], s=42, marker=kind.marker, facecolors=kind.face, edgecolors=kind.colour, zorder=above)
    _set_limits(axes, points, column, grey_l1)
    return [
        # A name is text, also with dollar signs, and is placed only after the layout is settled.
        axes.annotate(
            numbers.get(point.model) or _short(point.name),
            (point.x, point.l1),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=8 if point.model in numbers else 9,
            color=_NUMBER if point.model in numbers else point.kind.colour,
            arrowprops={"arrowstyle": "-", "color": _LEADER, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            parse_math=False,
            in_layout=False,
            va="center",
        )
        for point in sorted(points, key=lambda point: point.model in numbers)
    ]


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"


def _set_limits(axes: Axes, points: Sequence[_Point], column: str, grey_l1: float | None) -> None:
    xs, ys = [point.x for point in points], [point.l1 for point in points]
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


def _add_retained_axis(axes: Axes, best_l1: float, grey_l1: float) -> SecondaryAxis:
    """G = (L1 grey - L1) / (L1 grey - L1 best) on the right: linear in L1."""
    gain = grey_l1 - best_l1
    axes.axhline(best_l1, color=_BASELINE.colour, linewidth=0.8, alpha=0.4, zorder=1)
    to_retained_and_back = (lambda l1: (grey_l1 - l1) / gain, lambda retained: grey_l1 - retained * gain)
    return axes.secondary_yaxis("right", functions=to_retained_and_back)


def _write_side(axes: Axes, points: Sequence[_Point], numbers: Mapping[str, str]) -> None:
    """The markers that occur, and below them the names of the numbered points."""
    axes.axis("off")
    kinds = dict.fromkeys(point.kind for point in points)
    for kind in kinds:
        axes.plot([], [], kind.marker, color=kind.colour, markerfacecolor=kind.face, label=kind.label)
    if kinds:
        axes.legend(loc="upper left", frameon=False, fontsize=9, borderaxespad=0)
    lines = [f"{number}  {_short(name)}" for name, number in numbers.items()]
    if len(lines) > _LEGEND_ROWS:
        lines = [*lines[: _LEGEND_ROWS - 1], f"and {len(lines) - _LEGEND_ROWS + 1} more, in benchmark.csv"]
    top = 0.95 - 0.05 * len(kinds)
    axes.text(0, top, "\n".join(lines), transform=axes.transAxes, va="top", fontsize=8, parse_math=False)
