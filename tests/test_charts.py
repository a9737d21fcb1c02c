"""The Pareto chart: which points are on the front, and that no label covers another."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from PIL import Image

from benchmarks import charts
from benchmarks.charts import draw_pareto, find_front


def row(model: str, size: int, ms: float | None, l1: float | None, status: str = "ok") -> dict[str, Any]:
    runtime = "torch" if model.endswith(".pt") else "onnxruntime"
    return {"model": model, "runtime": runtime, "size_bytes": size, "p50_ms": ms, "l1": l1, "status": status}


ROWS = [
    row("best.pt", 31_100_000, 100.0, 0.1000),
    row("best", 31_000_000, 59.0, 0.1000),
    row("best-int8", 7_900_000, 27.0, 0.1077),
    row("pruned.pt", 8_200_000, 40.0, 0.1004),
    row("pruned", 8_100_000, 20.0, 0.1004),
    row("pruned-int8", 2_200_000, 19.0, 0.1005),
    row("broken", 1000, None, None, "crashed(SIGSEGV)"),
]


def test_front_is_what_nothing_beats() -> None:
    assert find_front([(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.5, 2.5), (2.0, 2.2), (4.0, 1.0)]) == [
        (1.0, 3.0), (2.0, 2.0), (3.0, 1.0),
    ]  # fmt: skip
    assert find_front([]) == []


@pytest.mark.parametrize("grey_l1", [None, 0.1100, 0.5])
def test_no_label_covers_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grey_l1: float | None) -> None:
    figures: list[Figure] = []
    original = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: (figures.append(self), original(self, *a, **k))[1])
    path = draw_pareto(ROWS, grey_l1, tmp_path / "pareto.png")
    with Image.open(path) as picture:
        assert picture.size == (1440, 600)
    for axes in figures[0].axes:
        frame = axes.get_window_extent()
        boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
        assert set(boxes) >= {each["model"] for each in ROWS[:6]}
        assert "broken" not in boxes
        assert any("grey" in text for text in boxes) == (grey_l1 == 0.11)
        for (name, box), (other_name, other) in combinations(boxes.items(), 2):
            assert not box.overlaps(other), (name, other_name)
        assert all(frame.x0 <= box.x0 and box.x1 <= frame.x1 + 1 for box in boxes.values())


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
    assert charts.find_front([(1.0, 1.0)]) == [(1.0, 1.0)]
