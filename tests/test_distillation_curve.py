"""Retained colour per minute of training, as table and chart."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from compress.distillation_curve import add_retained_colour, write_distillation_curve

HISTORY = [
    {"epoch": 1, "seconds": 30.0, "images_per_s": 100.0, "train_l1": 0.2, "val_l1": 0.15},
    {"epoch": 2, "seconds": 60.0, "images_per_s": 50.0, "train_l1": 0.1, "val_l1": 0.05},
]


def test_colour_minutes_and_crops_add_up() -> None:
    rows = add_retained_colour(HISTORY, grey_l1=0.2, best_l1=0.1)
    assert [row["minutes"] for row in rows] == [0.5, 1.5]
    assert [row["crops"] for row in rows] == [3000, 6000]
    assert [row["retained_colour"] for row in rows] == pytest.approx([0.5, 1.5])


def test_where_best_is_no_better_than_grey_there_is_no_g() -> None:
    assert all("retained_colour" not in row for row in add_retained_colour(HISTORY, grey_l1=0.1, best_l1=0.1))


@pytest.mark.parametrize("best_l1", [0.1, 0.3])
def test_table_and_chart_are_written(tmp_path: Path, best_l1: float) -> None:
    table, chart = write_distillation_curve(tmp_path, HISTORY, grey_l1=0.2, best_l1=best_l1)
    rows = pd.read_csv(table)
    assert rows["epoch"].tolist() == [1, 2]
    assert rows["retained_colour"].isna().all() == (best_l1 > 0.2)
    with Image.open(chart) as picture:
        picture.load()
        assert picture.width > 500
