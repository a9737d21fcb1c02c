"""How much colour a distilled network keeps, by minutes of training: table and chart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from colorpress.core.charts import drawn
from colorpress.core.files import write_csv

COLUMNS = ("epoch", "crops", "minutes", "train_l1", "val_l1", "retained_colour")
History = Sequence[Mapping[str, float]]


def add_retained_colour(history: History, *, grey_l1: float, best_l1: float) -> list[dict[str, float]]:
    """The rows of a history with crops and minutes of training so far, and G of their validation L1.

    Args:
        history: as `fit_network` gives it.
        grey_l1, best_l1: mean L1 (ab/128) of the grey answer and of best.pt on the validation photographs; where
            best.pt is no better than grey there is no G, and no such column.
    """
    rows: list[dict[str, float]] = []
    gained = grey_l1 - best_l1
    seconds = crops = 0.0
    for row in history:
        seconds += row["seconds"]
        crops += row["seconds"] * row["images_per_s"]
        kept = {"retained_colour": (grey_l1 - row["val_l1"]) / gained} if gained > 0 else {}
        learned = {name: row[name] for name in ("epoch", "train_l1", "val_l1")}
        rows.append({**learned, "crops": round(crops), "minutes": round(seconds / 60, 3), **kept})
    return rows


def write_distillation_curve(folder: Path, history: History, *, grey_l1: float, best_l1: float) -> tuple[Path, Path]:
    """Write distillation.csv and distillation.png into `folder` and return their paths."""
    rows = add_retained_colour(history, grey_l1=grey_l1, best_l1=best_l1)
    table = write_csv(folder / "distillation.csv", COLUMNS, rows)
    chart, known = folder / "distillation.png", grey_l1 > best_l1
    name = "retained_colour" if known else "val_l1"
    with drawn(chart, width=8, height=4.5, dpi=120) as figure:
        axes = figure.subplots()
        values = [row[name] for row in rows]
        axes.plot([row["minutes"] for row in rows], values, "o-", color="#4c72b0", label="student, after each epoch")
        axes.axhline(1.0 if known else best_l1, color="#55a868", linestyle="--", label="best.pt")
        axes.set(
            xlabel="minutes of training",
            ylabel="retained colour G (1: best.pt, 0: grey)" if known else "validation L1 of ab / 128",
            title="Distillation, on the validation photographs",
        )
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    return table, chart
