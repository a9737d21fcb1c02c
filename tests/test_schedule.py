"""The learning rate and early stopping, as functions of what is behind."""

from __future__ import annotations

import pytest

from colorpress.core.config import Recipe
from training.schedule import count_plateaus, has_stalled, learning_rate_at


def rows(*values: float) -> list[dict[str, float]]:
    return [{"val_l1": value} for value in values]


def test_cosine_warms_up_and_decays_to_zero() -> None:
    recipe = Recipe(learning_rate=2.0, warmup_share=0.1)
    found = [learning_rate_at(recipe, share, []) for share in (0.0, 0.05, 0.1, 0.55, 1.0)]
    assert found == pytest.approx([0.1, 1.05, 2.0, 1.0, 0.0])


def test_without_warm_up_it_starts_at_the_top() -> None:
    assert learning_rate_at(Recipe(learning_rate=2.0, warmup_share=0.0), 0.0, []) == 2.0


def test_constant_stays() -> None:
    recipe = Recipe(learning_rate=2.0, schedule="constant", warmup_share=0.1)
    assert [learning_rate_at(recipe, share, []) for share in (0.05, 0.1, 0.99)] == pytest.approx([1.05, 2.0, 2.0])


def test_plateau_falls_whenever_nothing_was_gained() -> None:
    recipe = Recipe(learning_rate=1.0, schedule="plateau", plateau_patience=2, warmup_share=0.0)
    losses = (0.5, 0.4, 0.41, 0.42, 0.43, 0.39, 0.40, 0.40)
    found = [learning_rate_at(recipe, 0.5, rows(*losses[:count])) for count in range(len(losses) + 1)]
    assert found == pytest.approx([1, 1, 1, 1, 0.3, 0.3, 0.3, 0.3, 0.09])


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "expected"),
    [
        ([], 1, 0.0, 0),
        ([0.5], 1, 0.0, 0),
        ([0.5, 0.5], 1, 0.0, 1),
        ([0.5, 0.5, 0.5], 1, 0.0, 2),
        ([0.5, 0.49], 1, 0.02, 1),
        ([0.5, 0.49, 0.47], 2, 0.02, 0),  # together they are progress
    ],
)
def test_plateaus_are_counted(losses: list[float], patience: int, min_delta: float, expected: int) -> None:
    assert count_plateaus(rows(*losses), patience, min_delta) == expected


def test_patience_of_zero_never_stops() -> None:
    assert not has_stalled(rows(*[0.5] * 100), 0, 0.0)
    assert has_stalled(rows(0.5, 0.5, 0.6), 2, 0.0)
    assert not has_stalled(rows(0.5, 0.5, 0.4), 2, 0.0)
