"""pareto.png: what each variant costs in size and in time, against the colour it keeps."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.tables import Row, format_bytes, format_number
from colorpress.errors import printable
from colorpress.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

_BASELINE, _VARIANT, _GREY_LINE = "#b3261e", "#1f5fbf", "#777777"
# Where a label may stand from its point, in points of 1/72 inch: nearest places first.
_PLACES = tuple(
    (dx * far, dy * far)
    for far in (1.0, 2.0, 3.2, 4.6, 6.2)
    for dx, dy in ((9, 5), (9, -11), (-9, 5), (-9, -11), (0, 11), (0, -17))
)


def draw_pareto(rows: Sequence[Row], grey_l1: float | None, path: Path) -> Path:
    """Two panels, file size and p50 latency (log scales) against L1; points are named, the front is joined.

    Failed rows are left out. The L1 of a grey answer is a line where the panel reaches it.
    """
    from matplotlib.figure import Figure

    shown = [row for row in rows if row["status"] == "ok" and row["l1"] is not None and row["p50_ms"] is not None]
    figure = Figure(figsize=(12, 5), dpi=120, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    labels = []
    for axes, column, title in zip(
        panels, ("size_bytes", "p50_ms"), ("File size", "Time for a call (p50)"), strict=True
    ):
        labels.append(_draw_panel(axes, shown, column, title, grey_l1))
    panels[0].set_ylabel("L1 on held-out photographs (ab/128), lower is better")
    figure.draw_without_rendering()
    for axes, named in zip(panels, labels, strict=True):
        place_labels(axes, named)
    # What has been placed must not move again.
    figure.set_layout_engine("none")
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
    return path


def _draw_panel(axes: Axes, rows: Sequence[Row], column: str, title: str, grey_l1: float | None) -> list[Annotation]:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_title(f"{title} against L1")
    axes.set_xscale("log")
    axes.grid(alpha=0.25, which="both")
    axes.set_axisbelow(True)
    axes.margins(x=0.25, y=0.2)
    if not rows:
        axes.text(0.5, 0.5, "no variant finished", transform=axes.transAxes, ha="center")
        return []
    xs, ys = [float(row[column]) for row in rows], [float(row["l1"]) for row in rows]
    front = find_front(list(zip(xs, ys, strict=True)))
    axes.plot(*zip(*front, strict=True), color=_VARIANT, alpha=0.35, linewidth=1.5, zorder=2)
    colours = [_BASELINE if row["runtime"] == "torch" else _VARIANT for row in rows]
    axes.scatter(xs, ys, c=colours, s=42, zorder=3)
    axes.set_xlim(min(xs) / 1.8, max(xs) * 1.8)
    low, high = min(ys), max(ys)
    room = max(0.25 * (high - low), 0.01 * high, 1e-6)
    axes.set_ylim(low - room, high + room)
    reach = 4 * max(high - low, 0.02 * high)
    if grey_l1 is not None and low - reach <= grey_l1 <= high + reach:
        axes.set_ylim(min(low, grey_l1) - room, max(high, grey_l1) + room)
        axes.axhline(grey_l1, color=_GREY_LINE, linestyle="--", linewidth=1)
        axes.text(0.99, grey_l1, f"grey answer, L1 {grey_l1:.4f} ", color=_GREY_LINE, va="bottom", ha="right",
                  transform=axes.get_yaxis_transform(), fontsize=9)  # fmt: skip
    if column == "size_bytes":
        formatter = FuncFormatter(lambda value, _: format_bytes(int(value)))
    else:
        formatter = FuncFormatter(lambda value, _: format_number(value, " ms"))
    # Less than two decades have too few powers of ten to read a value by.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(xs) / min(xs) < 100 else (1.0,)))
    axes.xaxis.set_major_formatter(formatter)
    axes.xaxis.set_minor_formatter(NullFormatter())
    return [
        # A name is text, also with dollar signs, and is placed only after the layout is settled.
        axes.annotate(
            printable(row["model"])[:40],
            (x, y),
            xytext=_PLACES[0],
            textcoords="offset points",
            fontsize=9,
            parse_math=False,
            in_layout=False,
        )
        for row, x, y in zip(rows, xs, ys, strict=True)
    ]


def find_front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other point beats in both coordinates (lower is better), by their first coordinate."""
    front: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not front or y < front[-1][1]:
            front.append((x, y))
    return front


def place_labels(axes: Axes, annotations: Sequence[Annotation]) -> None:
    """Move each label to the nearest place where it covers no other label and no point, inside the axes."""
    taken: list[Bbox] = [_point_box(axes, annotation) for annotation in annotations]
    taken += [text.get_window_extent() for text in axes.texts if text not in annotations]
    frame = axes.get_window_extent()
    for annotation in annotations:
        for place in _PLACES:
            _move(annotation, place)
            box = annotation.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                break
        else:
            _move(annotation, _PLACES[0])
        taken.append(annotation.get_window_extent())


def _move(annotation: Annotation, place: tuple[float, float]) -> None:
    annotation.set_position(place)
    annotation.set_horizontalalignment("left" if place[0] > 0 else "right" if place[0] < 0 else "center")


def _point_box(axes: Axes, annotation: Annotation) -> Any:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform(annotation.xy)
    return Bbox.from_extents(x - 5, y - 5, x + 5, y + 5)
