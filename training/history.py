"""The history of a fit: `history.csv` and the curve in `training_loss.png`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from colorpress.files import atomic_write, write_csv

HISTORY_COLUMNS = ("epoch", "train_l1", "val_l1", "learning_rate", "seconds", "images_per_s")


def write_history(path: Path, history: Sequence[Mapping[str, float]]) -> Path:
    """Write one row per epoch to a CSV file and return `path`."""
    return write_csv(path, HISTORY_COLUMNS, history)


def best_epoch(history: Sequence[Mapping[str, float]]) -> Mapping[str, float]:
    """The row with the lowest validation L1; the later one of equals, as `fit_network` keeps it."""
    return min(reversed(history), key=lambda row: row["val_l1"])


def plot_history(path: Path, history: Sequence[Mapping[str, float]]) -> Path:
    """Draw the training and validation curves with the best epoch marked, and return `path`."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    epochs = [row["epoch"] for row in history]
    best = best_epoch(history)
    figure = Figure(figsize=(8, 4.5), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, [row["train_l1"] for row in history], "o-", color="#4c72b0", label="training (random crops)")
    axes.plot(epochs, [row["val_l1"] for row in history], "s-", color="#dd8452", label="validation (whole photographs)")
    axes.axvline(best["epoch"], color="#55a868", linestyle="--", linewidth=1)
    axes.plot(
        best["epoch"], best["val_l1"], "*", color="#55a868", markersize=16,
        label=f"best.pt: epoch {best['epoch']:.0f}, validation L1 {best['val_l1']:.4f}",
    )  # fmt: skip
    axes.set(xlabel="epoch", ylabel="L1 of ab / 128", title="Training the UNet colorizer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as temporary:
        figure.savefig(temporary)
    return path
