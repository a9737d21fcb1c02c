"""When the learning rate falls and when training stops: functions of the recipe and of what is behind, nothing else.

They keep no state, so a training that goes on after an interruption cannot disagree with one that ran through.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from colorpress.core.config import Recipe

_PLATEAU_FACTOR = 0.3
_WARMUP_START = 0.05

History = Sequence[Mapping[str, float]]


def learning_rate_at(recipe: Recipe, done_share: float, history: History) -> float:
    """The learning rate of the next step.

    Args:
        recipe: `learning_rate` is reached after a linear warm-up over `warmup_share` of the steps; then `schedule`
            "cosine" falls to zero (Loshchilov and Hutter 2017), "plateau" falls to 0.3 of itself whenever
            `plateau_patience` epochs brought no lower validation L1, and "constant" stays.
        done_share: steps done, of all steps of all epochs; in [0, 1].
        history: the finished epochs.
    """
    if done_share < recipe.warmup_share:
        return recipe.learning_rate * (_WARMUP_START + (1 - _WARMUP_START) * done_share / recipe.warmup_share)
    if recipe.schedule == "cosine":
        decayed = (done_share - recipe.warmup_share) / (1 - recipe.warmup_share)
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * decayed))
    if recipe.schedule == "plateau":
        plateaus = count_plateaus(history, recipe.plateau_patience, recipe.min_delta)
        return recipe.learning_rate * _PLATEAU_FACTOR**plateaus
    return recipe.learning_rate


def count_plateaus(history: History, patience: int, min_delta: float) -> int:
    """How often `patience` epochs in a row brought no validation L1 at least `min_delta` below the lowest before."""
    lowest, without, plateaus = math.inf, 0, 0
    for row in history:
        if row["val_l1"] < lowest - min_delta:
            lowest, without = row["val_l1"], 0
        else:
            without += 1
        if without == patience:
            plateaus, without = plateaus + 1, 0
    return plateaus


def has_stalled(history: History, patience: int, min_delta: float) -> bool:
    """Whether training should stop early: `patience` epochs in a row without progress; 0 never stops."""
    return patience > 0 and count_plateaus(history, patience, min_delta) > 0
