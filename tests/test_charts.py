"""The Pareto chart: which points are on the front, and that no label covers another."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from benchmarks.report.pareto import draw_pareto
from benchmarks.rows import Row


def row(model: str, size: int, ms: float | None, l1: float | None, status: str = "ok") -> Row:
    runtime = "torch" if model.endswith(".pt") else "onnxruntime"
    figures = {"model": model, "variant": model.partition(" @ ")[0], "peer": False, "runtime": runtime, "device": "cpu"}
    condition = {"batch": 1, "height": 256, "width": 256, "threads": 2}
    return Row(**figures, **condition, size_bytes=size, weights_bytes=size, p50_ms=ms, l1=l1, status=status)


ROWS = [
    row("best.pt", 31_100_000, 100.0, 0.1000),
    row("best", 31_000_000, 59.0, 0.1000),
    row("best-int8", 7_900_000, 27.0, 0.1077),
    row("pruned.pt", 8_200_000, 40.0, 0.1004),
    row("pruned", 8_100_000, 20.0, 0.1004),
    row("pruned-int8", 2_200_000, 19.0, 0.1005),
    row("broken", 1000, None, None, "crashed(SIGSEGV)"),
]


# As many as a real run has: every file in three runtimes, peers, and another condition.
MANY = [
    ROWS[0],
    *(
        replace(row(f"{name}{suffix}", size, ms * speed, l1), runtime=runtime)
        for name, size, ms, l1 in (
            ("best", 31_000_000, 59.0, 0.1), ("best-int8", 7_900_000, 27.0, 0.10001),
            ("pruned", 8_100_000, 20.0, 0.1004), ("pruned-int8", 2_200_000, 19.0, 0.1004),
            ("auto", 280_000, 0.35, 0.0994), ("auto-int8", 95_000, 0.25, 0.0994), ("auto-w8", 78_000, 0.34, 0.0994),
            ("smallest", 28_000, 0.19, 0.1001), ("smallest-w8", 13_000, 0.18, 0.1001),
        )
        for suffix, runtime, speed in (("", "onnxruntime", 1.0), (" @ openvino", "openvino", 0.8))
    ),
    replace(row("nncf-int8 made elsewhere", 8_000_000, 16.0, 0.1004), peer=True, runtime="openvino"),
    replace(row("default-int8", 7_900_000, 27.0, 0.1071), peer=True),
    replace(row("auto, batch 8", 280_000, 2.0, 0.0994), batch=8),
]  # fmt: skip


def drawn(rows: list[Row], grey_l1: float | None, path: Path, monkeypatch: pytest.MonkeyPatch) -> Figure:
    figures: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), original(self, *a, **k))[1])
    draw_pareto(rows, grey_l1, path)
    return figures[0]


def boxes_of(axes: Any) -> dict[str, Any]:
    return {text.get_text(): Text.get_window_extent(text) for text in axes.texts if text.get_visible()}


@pytest.mark.parametrize("rows", [ROWS, MANY], ids=["few", "many"])
@pytest.mark.parametrize("grey_l1", [None, 0.1100, 0.5])
def test_no_label_covers_another_and_none_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row], grey_l1: float | None
) -> None:
    figure = drawn(rows, grey_l1, tmp_path / "pareto.png", monkeypatch)
    with Image.open(tmp_path / "pareto.png") as picture:
        assert picture.size == (1800, 744)
    for axes in figure.axes[:2]:
        frame, boxes = axes.get_window_extent(), boxes_of(axes)
        assert any("grey" in text for text in boxes) == (grey_l1 == 0.11)
        for (name, box), (other_name, other) in combinations(boxes.items(), 2):
            assert not box.overlaps(other), (name, other_name)
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes.values())
        assert all(text.get_visible() for text in axes.texts)
    side = figure.axes[2]
    page = figure.bbox
    for text in side.texts:
        box = text.get_window_extent()
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0
        assert not box.overlaps(side.get_legend().get_window_extent())


def test_few_points_have_names_and_failed_rows_no_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(ROWS, None, tmp_path / "pareto.png", monkeypatch)
    for axes in figure.axes[:2]:
        assert set(boxes_of(axes)) == {each.model for each in ROWS[:6]}


def test_of_many_points_the_front_best_and_peers_have_names_the_others_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figure = drawn(MANY, 0.11, tmp_path / "pareto.png", monkeypatch)
    sizes, times = (set(boxes_of(axes)) for axes in figure.axes[:2])
    peers = {"nncf-int8 made elsewhere", "default-int8"}
    assert {"best.pt", "smallest-w8", "auto-w8"} | peers <= sizes
    assert {"best.pt", "smallest-w8 @ openvino", "auto-int8 @ openvino"} | peers <= times
    assert not any("batch 8" in text or "best-int8" in text for text in sizes | times)
    side = figure.axes[2].texts[0].get_text().splitlines()
    numbers = {line.split("  ")[0]: line.split("  ")[1] for line in side}
    assert "best-int8 @ openvino" in numbers.values()
    assert {text for text in times if text.isdigit()} == set(numbers)
    # One file is one point among the sizes, whatever runs it.
    assert len([text for text in sizes if text != "grey answer, L1 0.1100 "]) == 12
    assert [each.get_text() for each in figure.axes[2].get_legend().get_texts()] == [
        "best.pt", "ours, ONNX Runtime", "ours, OpenVINO", "other tools",
    ]  # fmt: skip


def test_the_right_axis_is_the_retained_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = drawn(ROWS, 0.11, tmp_path / "pareto.png", monkeypatch)
    (right,) = figure.axes[1].child_axes
    low, high = figure.axes[1].get_ylim()
    assert low > high  # less L1 is above
    for l1, retained in ((0.1, 1.0), (0.105, 0.5), (0.11, 0.0)):
        height = figure.axes[1].transData.transform((1.0, l1))[1]
        assert right.transData.transform((0.0, retained))[1] == pytest.approx(height)
    assert "retained colour G" in right.get_ylabel()
    assert not drawn(ROWS, 0.09, tmp_path / "x.png", monkeypatch).axes[1].child_axes  # best.pt is worse than grey


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("grey_l1", [0.01, 0.29, 0.305, 0.32, 0.9])
def test_a_grey_line_anywhere_leaves_the_layout_whole(tmp_path: Path, grey_l1: float) -> None:
    rows = [row("best.pt", 40_000, 0.2, 0.31), row("best", 38_000, 0.3, 0.3)]  # untrained: grey may be better
    assert draw_pareto(rows, grey_l1, tmp_path / "pareto.png").exists()


def test_one_point_and_none_are_drawn_too(tmp_path: Path) -> None:
    for name, rows in (("one", ROWS[:1]), ("none", ROWS[6:]), ("zero", [row("x", 1, 1.0, 0.0)])):
        assert draw_pareto(rows, 0.11, tmp_path / f"{name}.png").stat().st_size > 1000


def test_a_name_is_text_not_mathematics(tmp_path: Path) -> None:
    # Matplotlib reads text between dollar signs as TeX, and fails on what is none.
    assert draw_pareto([row(r"$\frac{$.onnx", 10, 1.0, 0.1)], None, tmp_path / "x.png").exists()
