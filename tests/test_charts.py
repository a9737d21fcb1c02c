"""The Pareto chart: which points are on the front, and that no label covers another."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image
from test_history import HISTORY
from test_ranking_views import view
from test_search_front import ROWS as FRONT_ROWS

from benchmarks.report.pareto import draw_pareto
from benchmarks.rows import Row
from compress.measures import CONTENT, FIDELITY, Measure
from compress.ranking_views import write_views
from compress.students.search_front import ControlRow, write_front
from export.controls import CONTROL_TITLES
from training.history import plot_history


def row(model: str, size: int, ms: float | None, kept: float | None, status: str = "ok") -> Row:
    runtime = "torch" if model.endswith(".pt") else "onnxruntime"
    figures = {"model": model, "variant": model.partition(" @ ")[0], "runtime": runtime, "device": "cpu"}
    figures |= {"batch": 1, "height": 256, "width": 256, "threads": 2, "content_colour": kept, "fidelity": 0.5}
    return Row(**figures, size_bytes=size, weights_bytes=size, p50_ms=ms, status=status)


def controls(grey: float, tint: float, table: float) -> list[Row]:
    kept = zip(CONTROL_TITLES.items(), (grey, tint, table), strict=True)
    return [replace(row(title, 400, None, value), control=name) for (name, title), value in kept]


ROWS = [
    row("best.pt", 31_100_000, 100.0, 1.0),
    row("best", 31_000_000, 59.0, 1.0),
    row("best-int8", 7_900_000, 27.0, 0.72),
    row("pruned.pt", 8_200_000, 40.0, 0.96),
    row("pruned", 8_100_000, 20.0, 0.96),
    row("pruned-int8", 2_200_000, 19.0, 0.95),
    row("broken", 1000, None, None, "crashed(SIGSEGV)"),
]


# As many as a real run has: every file in three runtimes, peers, and another condition.
MANY = [
    ROWS[0],
    *(
        replace(row(f"{name}{suffix}", size, ms * speed, kept), runtime=runtime)
        for name, size, ms, kept in (
            ("best", 31_000_000, 59.0, 1.0), ("best-int8", 7_900_000, 27.0, 0.999),
            ("pruned", 8_100_000, 20.0, 0.96), ("pruned-int8", 2_200_000, 19.0, 0.96),
            ("auto", 280_000, 0.35, 1.06), ("auto-int8", 95_000, 0.25, 1.06), ("auto-w8", 78_000, 0.34, 1.06),
            ("smallest", 28_000, 0.19, 0.99), ("smallest-w8", 13_000, 0.18, 0.99),
        )
        for suffix, runtime, speed in (("", "onnxruntime", 1.0), (" @ openvino", "openvino", 0.8))
    ),
    replace(row("nncf-int8 made elsewhere", 8_000_000, 16.0, 0.96), peer=True, runtime="openvino"),
    replace(row("default-int8", 7_900_000, 27.0, 0.3), peer=True),
    replace(row("auto, batch 8", 280_000, 2.0, 1.06), batch=8),
]  # fmt: skip
# Between the points, below them all, too close to be told apart, none.
CONTROLS = [controls(0.0, 0.74, 0.9), controls(-5.7, -1.3, 0.0), controls(-0.114, -0.105, 0.0), []]


def drawn(rows: list[Row], path: Path, monkeypatch: pytest.MonkeyPatch, measure: Measure = CONTENT) -> Figure:
    figures: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), original(self, *a, **k))[1])
    draw_pareto(rows, measure, path)
    return figures[0]


def boxes_of(axes: Any) -> dict[str, Any]:
    return {text.get_text(): Text.get_window_extent(text) for text in axes.texts if text.get_visible()}


@pytest.mark.parametrize("rows", [ROWS, MANY], ids=["few", "many"])
@pytest.mark.parametrize("blind", CONTROLS, ids=["between", "below", "close", "none"])
def test_no_label_covers_another_and_none_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row], blind: list[Row]
) -> None:
    figure = drawn([*rows, *blind], tmp_path / "pareto.png", monkeypatch)
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.width == 1200 and picture.height < 2600
    for axes in figure.axes[:2]:
        frame, boxes = axes.get_window_extent(), boxes_of(axes)
        assert any("control: " in text for text in boxes) == bool(blind)
        for (name, box), (other_name, other) in combinations(boxes.items(), 2):
            # Two numbers side by side would be read as one.
            assert not box.padded(2 if name.isdigit() and other_name.isdigit() else 0).overlaps(other), (
                name,
                other_name,
            )
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes.values())
        assert all(frame.y0 <= box.y0 and box.y1 <= frame.y1 for box in boxes.values())
        assert all(text.get_visible() for text in axes.texts)
    below = figure.axes[2]
    page = figure.bbox
    boxes = [text.get_window_extent() for text in below.texts if text.get_text().strip()]
    boxes.append(below.get_legend().get_window_extent())
    assert all(page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 for box in boxes)
    assert not any(box.overlaps(other) for box, other in combinations(boxes, 2))


def draw_front(folder: Path) -> None:
    controls = [ControlRow("control: grey", "controls/grey.onnx", 500, FRONT_ROWS[0].score)]
    write_front(folder, FRONT_ROWS, controls, best_bytes=400_000, record={})


@pytest.mark.parametrize(
    "draw",
    [
        lambda folder: draw_pareto([*MANY, *CONTROLS[2]], CONTENT, folder / "x.png"),
        lambda folder: plot_history(folder / "x.png", HISTORY),
        lambda folder: write_views(
            [view(f"layer.{i}", 8, 10, 1.0, 0.1) for i in range(30)], [], folder, title="x" * 70, measure=CONTENT
        ),
        draw_front,
    ],
    ids=["pareto", "history", "layers", "front"],
)
def test_text_is_read_on_a_telephone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, draw: Any) -> None:
    figures: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), original(self, *a, **k))[1])
    draw(tmp_path)
    (figure,) = figures
    shown = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    # Pixels of a letter where the whole chart is as wide as a telephone's page.
    smallest = min(text.get_fontsize() for text in shown) / 72 / figure.get_figwidth() * 358
    assert len(shown) > 5 and smallest >= 8.0
    assert figure.dpi * figure.get_figwidth() >= 2 * 358


def heights_of(axes: Any) -> dict[float, str]:
    """The heights of the dashed lines, with the style of each."""
    return {line.get_ydata()[0]: line.get_linestyle() for line in axes.lines if line.get_linestyle() == "--"}


def test_controls_are_lines_with_names_and_figures_and_no_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = drawn([*ROWS, *controls(-0.114, -0.105, 0.0)], tmp_path / "pareto.png", monkeypatch)
    for axes in figure.axes[:2]:
        assert set(heights_of(axes)) == {-0.114, -0.105, 0.0}
        assert {"control: lightness table ", "control: one tint, grey "} <= set(boxes_of(axes))
        low, high = axes.get_ylim()
        assert low < -0.114 and high > 1.0  # more is above
        assert len(axes.collections) == 6
    assert "one tint  -0.105\nlightness table  0.000" in figure.axes[2].texts[0].get_text()
    # What is far below would leave the points no room: it is said below the panels alone.
    figure = drawn([*ROWS, *controls(-5.7, -3.3, 0.0)], tmp_path / "far.png", monkeypatch)
    assert set(heights_of(figure.axes[0])) == {0.0}
    assert "grey  -5.700" in figure.axes[2].texts[0].get_text()


def test_the_height_is_the_measure_that_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for measure, label in ((CONTENT, "content colour C"), (FIDELITY, "fidelity F")):
        axes = drawn(ROWS, tmp_path / "pareto.png", monkeypatch, measure).axes[0]
        assert axes.get_ylabel().startswith(label)
        heights = [float(each.get_offsets()[0][1]) for each in axes.collections]
        assert heights == [row.kept(measure) for row in ROWS[:6]]


def test_few_points_have_names_and_failed_rows_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(ROWS, tmp_path / "pareto.png", monkeypatch)
    for axes in figure.axes[:2]:
        assert set(boxes_of(axes)) == {each.model for each in ROWS[:6]}


def test_of_many_points_the_front_best_and_peers_have_names_the_others_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = drawn([*MANY, *CONTROLS[1]], tmp_path / "pareto.png", monkeypatch)
    sizes, times = (set(boxes_of(axes)) for axes in figure.axes[:2])
    peers = {"nncf-int8 made elsewhere", "default-int8"}
    assert {"best.pt", "smallest-w8", "auto-w8"} | peers <= sizes
    assert {"best.pt", "smallest-w8 @ openvino", "auto-int8 @ openvino"} | peers <= times
    assert not any("batch 8" in text or "best-int8" in text for text in sizes | times)
    said = [line for column in figure.axes[2].texts for line in column.get_text().splitlines()]
    numbers = {line.split("  ")[0]: line.split("  ")[1] for line in said if line[:1].isdigit()}
    assert "best-int8 @ openvino" in numbers.values()
    assert {text for text in times if text.isdigit()} == set(numbers)
    # One file is one point among the sizes, whatever runs it.
    assert len([text for text in sizes if not text.startswith("control: ")]) == 12
    assert [each.get_text() for each in figure.axes[2].get_legend().get_texts()] == [
        "best.pt", "ours, ONNX Runtime", "ours, OpenVINO", "other tools",
    ]  # fmt: skip


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("blind", [(0.0, 0.0, 0.0), (-900.0, -90.0, -9.0), (1.0, 1.0, 1.0), (-0.3, 0.2, 4.0)])
def test_controls_anywhere_leave_the_layout_whole(tmp_path: Path, blind: tuple[float, float, float]) -> None:
    rows = [row("best.pt", 40_000, 0.2, 1.0), row("best", 38_000, 0.3, 1.0), *controls(*blind)]
    assert draw_pareto(rows, CONTENT, tmp_path / "pareto.png").exists()


def test_one_point_and_none_are_drawn_too(tmp_path: Path) -> None:
    for name, rows in (("one", ROWS[:1]), ("none", ROWS[6:]), ("grey", [row("x", 1, 1.0, None), *CONTROLS[0]])):
        assert draw_pareto(rows, CONTENT, tmp_path / f"{name}.png").stat().st_size > 1000


def test_a_name_is_text_not_mathematics(tmp_path: Path) -> None:
    # Matplotlib reads text between dollar signs as TeX, and fails on what is none.
    assert draw_pareto([row(r"$\frac{$.onnx", 10, 1.0, 0.1)], CONTENT, tmp_path / "x.png").exists()


@pytest.mark.parametrize("span", [1.5, 8.0, 19.0, 85.0, 99.0, 3000.0])
def test_numbers_of_an_axis_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, span: float) -> None:
    figure = drawn(
        [row("best.pt", 1_000_000, 57.3, 1.0), row("a", 100_000, 57.3 / span, 0.9)], tmp_path / "p.png", monkeypatch
    )
    for axes in figure.axes[:2]:
        low, high = axes.get_xlim()
        shown = [
            label for label, at in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True) if low <= at <= high
        ]
        ends = [(box.x0, box.x1) for box in map(Text.get_window_extent, shown)]
        gap = 3.0  # pixels
        assert all(left[1] + gap <= right[0] for left, right in pairwise(ends)), [each.get_text() for each in shown]
