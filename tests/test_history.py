"""The history file and the curve."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import Image

from training.history import HISTORY_COLUMNS, best_epoch, plot_history, write_history

HISTORY = [
    {"epoch": epoch, "train_l1": 0.1 / epoch, "val_l1": val, "learning_rate": 1e-3, "seconds": 1, "images_per_s": 9}
    for epoch, val in ((1, 0.09), (2, 0.07), (3, 0.07), (4, 0.08))
]


def test_history_is_read_back_by_pandas(tmp_path: Path) -> None:
    table = pd.read_csv(write_history(tmp_path / "history.csv", HISTORY))
    assert tuple(table.columns) == HISTORY_COLUMNS
    assert table["val_l1"].tolist() == [0.09, 0.07, 0.07, 0.08]


def test_the_later_of_two_equal_epochs_is_best_as_the_loop_keeps_it() -> None:
    assert best_epoch(HISTORY)["epoch"] == 3


def test_the_curve_is_a_picture_even_for_one_epoch(tmp_path: Path) -> None:
    for length in (1, 4):
        with Image.open(plot_history(tmp_path / f"{length}.png", HISTORY[:length])) as picture:
            assert picture.size == (1200, 880)
            assert len(set(picture.convert("RGB").resize((96, 54)).get_flattened_data())) > 20
