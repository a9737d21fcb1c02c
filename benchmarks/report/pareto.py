"""pareto.png: what each variant costs in size and in time, against the colour it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from benchmarks.rows import Row, base_rows, one_per_file
from colorpress.core.charts import SMALLEST_TEXT, drawn, format_cost, number_log_axis, place_labels
from colorpress.core.errors import printable
from compress.front import find_front
from compress.measures import Measure
from export.controls import CONTROL_NAMES
from export.runtimes import RUNTIMES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

_CONTROL_LINE, _FRONT, _LEADER, _NUMBER = "#666666", "#1f5fbf", "#999999", "#555555"
_LONGEST_NAME = 30
# The numbered names below the panels, in two columns.
_MOST_LISTED = 24
# In inches: of a panel, and of a line of text.
_PANEL, _LINE = 4.0, 0.19
# Room below the points for controls, in heights of all points; what is further down is said in words.
_REACH = 2.5


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
_ELSEWHERE = _Kind("ours, for phones and others", "#1f5fbf", "#1f5fbf", "v")


class _Point(NamedTuple):
    """A row in one panel: where it stands, and what it is called there and in the list below."""

    x: float
    kept: float
    name: str
    model: str
    kind: _Kind

    @property
    def costs(self) -> tuple[float, float]:
        """Both should be small."""
        return self.x, -self.kept


def draw_pareto(rows: Sequence[Row], measure: Measure, path: Path) -> Path:
    """File size, and below it p50 latency (log scales), against what is kept of best.pt's colours.

    Rows of the base condition that finished are points. Named are best.pt, other tools' and those on the front, which
    a line joins; the others have numbers, with their names below. One file is one point among the sizes. Controls
    that see no picture are lines across both panels, since they cost nothing.

    Args:
        rows: best.pt first.
        measure: what is kept is told by it.
    Raises:
        MachineError: the file cannot be written.
    """
    scored = [(row, kept) for row in base_rows(rows) if row.is_ok and (kept := row.kept(measure)) is not None]
    kept_by_model = {row.model: kept for row, kept in scored}
    controls = {CONTROL_NAMES.get(row.control, row.control): kept for row, kept in scored if row.control}
    shown = [row for row, _ in scored if row.p50_ms is not None]
    kinds = {row.model: _PEER if row.peer else _OURS.get(RUNTIMES[row.runtime].family, _ELSEWHERE) for row in shown}
    kinds |= {row.model: _BASELINE for row in shown if row is rows[0]}
    times = [
        _Point(row.p50_ms or 0.0, kept_by_model[row.model], row.model, row.model, kinds[row.model]) for row in shown
    ]
    sizes = [
        _Point(float(row.fair_size_bytes), kept_by_model[row.model], row.variant, row.model, kinds[row.model])
        for row in one_per_file(shown)
    ]
    numbers = _number_points(times, {point.model for points in (sizes, times) for point in _find_front(points)})
    lines = _choose_lines(controls, [point.kept for point in times])
    said = _say_below(numbers, controls if times else {})
    legend_lines = math.ceil(len(set(kinds.values())) / 2)
    below = _LINE * (legend_lines + len(said)) + 0.3
    with drawn(path, height=2 * (_PANEL + 0.3) + below) as figure:
        size_panel, time_panel, side = figure.subplots(3, 1, height_ratios=(_PANEL, _PANEL, below))
        time_panel.sharey(size_panel)
        labels = [
            _draw_panel(axes, points, column, numbers, lines)
            for axes, points, column in ((size_panel, sizes, "size_bytes"), (time_panel, times, "p50_ms"))
        ]
        size_panel.set_title("File size (weights of a checkpoint)")
        time_panel.set_title("Latency: time for a call, p50")
        for axes in (size_panel, time_panel):
            axes.set_ylabel(f"{measure} kept (1: all of best.pt's)")
        _write_below(side, times, said, _LINE * legend_lines / below)
        figure.draw_without_rendering()
        for axes, named_points in zip((size_panel, time_panel), labels, strict=True):
            place_labels(axes, named_points)
        # What has been placed must not move again.
        figure.set_layout_engine("none")
    return path


def _find_front(points: Sequence[_Point]) -> list[_Point]:
    """Of points at one place the first."""
    first = {point.costs: point for point in reversed(points)}
    return find_front(list(first.values()), lambda point: point.costs)


def _choose_lines(controls: Mapping[str, float], kept: Sequence[float]) -> dict[str, float]:
    """The controls that are drawn: the best one, and those that leave the points room enough."""
    if not kept or not controls:
        return {}
    low, best = min(kept), max(controls.values())
    floor = min(low, best) - _REACH * max(max(kept) - low, max(kept) - best, 0.1) / 2
    return {name: value for name, value in controls.items() if value >= floor}


def _number_points(points: Sequence[_Point], front: set[str]) -> dict[str, str]:
    """The models that a number stands for: of a few points none, else those that a reader does not look for."""
    if len(points) <= 8:
        return {}
    plain = [point.model for point in points[1:] if point.kind != _PEER and point.model not in front]
    return {model: str(number) for number, model in enumerate(plain, start=1)}


def _draw_panel(
    axes: Axes, points: Sequence[_Point], column: str, numbers: Mapping[str, str], lines: Mapping[str, float]
) -> list[Annotation]:
    axes.set_xscale("log")
    axes.grid(alpha=0.25, which="both")
    axes.set_axisbelow(True)
    if not points:
        axes.text(0.5, 0.5, "nothing was both timed and scored", transform=axes.transAxes, ha="center")
        return []
    front = _find_front(points)
    axes.plot([p.x for p in front], [p.kept for p in front], color=_FRONT, alpha=0.35, linewidth=1.5, zorder=2)
    for x, kept, _, _, kind in points:
        above = 6 if kind == _BASELINE else 5  # labels are below
        axes.scatter([x], [kept], s=42, marker=kind.marker, facecolors=kind.face, edgecolors=kind.colour, zorder=above)
    _set_limits(axes, points, column, lines)
    return [
        # A name is text, also with dollar signs, and is placed only after the layout is settled.
        axes.annotate(
            numbers.get(point.model) or _short(point.name),
            (point.x, point.kept),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=SMALLEST_TEXT,
            color=_NUMBER if point.model in numbers else point.kind.colour,
            arrowprops={"arrowstyle": "-", "color": _LEADER, "linewidth": 0.6, "shrinkA": 0, "shrinkB": 3},
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.5},
            parse_math=False,
            in_layout=False,
            va="center",
        )
        for point in sorted(points, key=lambda point: point.model in numbers)
    ]


def _short(name: str) -> str:
    text = printable(name)
    return text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…"


def _set_limits(axes: Axes, points: Sequence[_Point], column: str, lines: Mapping[str, float]) -> None:
    xs, ys = [point.x for point in points], [*(point.kept for point in points), *lines.values()]
    # In decades: room for the names beside the outermost points.
    room = 10.0 ** (0.15 + 0.12 * math.log10(max(xs) / min(xs)))
    axes.set_xlim(min(xs) / room, max(xs) * room)
    margin = max(0.12 * (max(ys) - min(ys)), 0.02)
    axes.set_ylim(min(ys) - margin, max(ys) + margin)
    axes.axhline(1.0, color=_BASELINE.colour, linewidth=0.8, alpha=0.4, zorder=1)
    for group in _group_lines(lines, 0.05 * (max(ys) - min(ys) + 2 * margin)):
        for name in group:
            axes.axhline(lines[name], color=_CONTROL_LINE, linestyle="--", linewidth=1, zorder=1)
        axes.text(0.99, lines[group[0]], f"control: {', '.join(group)} ", color=_CONTROL_LINE, va="bottom", ha="right",
                  transform=axes.get_yaxis_transform(), fontsize=SMALLEST_TEXT)  # fmt: skip
    number_log_axis(axes, xs, format_cost(column))


def _group_lines(lines: Mapping[str, float], near: float) -> list[list[str]]:
    """The names of lines from above, those together that leave no room for words between them."""
    groups: list[list[str]] = []
    for name in sorted(lines, key=lambda name: -lines[name]):
        if groups and lines[groups[-1][-1]] - lines[name] < near:
            groups[-1].append(name)
        else:
            groups.append([name])
    return groups


def _say_below(numbers: Mapping[str, str], controls: Mapping[str, float]) -> list[tuple[str, str]]:
    """Lines of two columns: the names of the numbered points, and what controls keep."""
    listed = [f"{number}  {_short(name)}" for name, number in numbers.items()]
    if len(listed) > _MOST_LISTED:
        listed = [*listed[: _MOST_LISTED - 1], f"and {len(listed) - _MOST_LISTED + 1} more, in benchmark.csv"]
    half = math.ceil(len(listed) / 2)
    said = list(zip_longest(listed[:half], listed[half:], fillvalue=""))
    if controls:
        said += [("", ""), ("kept without looking at a picture:", "")]
        said += [(f"{name}  {kept:.3f}", "") for name, kept in controls.items()]
    return said


def _write_below(axes: Axes, points: Sequence[_Point], said: Sequence[tuple[str, str]], legend_share: float) -> None:
    """The markers that occur, and below them the lines of `_say_below`; the markers take a share of the height."""
    axes.axis("off")
    for kind in dict.fromkeys(point.kind for point in points):
        axes.plot([], [], kind.marker, color=kind.colour, markerfacecolor=kind.face, label=kind.label)
    if points:
        axes.legend(loc="upper left", frameon=False, fontsize=SMALLEST_TEXT, borderaxespad=0, ncols=2, labelspacing=0.3)
    for column, x in enumerate((0.0, 0.5)):
        text = "\n".join(line[column] for line in said)
        axes.text(x, 0.95 - legend_share, text, transform=axes.transAxes, va="top", fontsize=SMALLEST_TEXT,
                  parse_math=False)  # fmt: skip
