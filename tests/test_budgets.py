"""Goals and budgets as numbers: what is met, how far it is missed, and what is not known."""

from __future__ import annotations

import math

import pytest

from colorpress.core.config import BudgetConfig, GoalConfig
from compress.budgets import Limit, find_excess, fits, read_limits

WHOLE = {"params": 1000, "macs": 8000}


def test_options_are_numbers_goals_first_and_the_quick_ones_before_the_slow() -> None:
    budget = BudgetConfig(target_latency_ms=2.0, target_size="30KB", keep_macs=0.25, keep_params=0.5)
    goal = GoalConfig(min_content_colour=0.8, min_fidelity=0.7, min_retained_colour=0.9, max_l1_increase=1.5)
    limits = read_limits(budget, goal, whole=WHOLE)
    assert [(limit.figure, limit.bound) for limit in limits] == [
        ("content_colour", 0.8), ("fidelity", 0.7), ("retained_colour", 0.9), ("l1_delta_pct", 1.5), ("params", 500),
        ("macs", 2000), ("size_bytes", 30_000), ("latency_ms", 2.0),
    ]  # fmt: skip
    assert list(map(str, limits)) == [
        "--min-content-colour 0.8", "--min-fidelity 0.7", "--min-retained-colour 0.9", "--max-l1-increase 1.5%",
        "--keep-params 0.5", "--keep-macs 0.25", "--target-size 30KB", "--target-latency-ms 2",
    ]  # fmt: skip
    assert [limit.is_goal for limit in limits] == [True] * 4 + [False] * 4
    assert [limit.show(0.5) for limit in limits[:3]] == ["C 0.500", "F 0.500", "G 0.500"]
    assert read_limits(budget, whole=WHOLE) == limits[4:]


def test_what_was_not_given_may_have_a_bound_and_a_share_of_nothing_has_none() -> None:
    (limit,) = read_limits(BudgetConfig(), whole=WHOLE, otherwise={"keep_macs": 4000.0})
    assert (limit.name, limit.bound, limit.given) == ("keep_macs", 4000.0, "")
    assert read_limits(BudgetConfig(keep_params=0.5, keep_macs=0.5), whole={"params": 0, "macs": None}) == ()


def test_limits_say_how_far_a_cost_is_over() -> None:
    limits = (Limit("keep_params", 100), Limit("target_latency_ms", 2.0))
    assert find_excess(limits, {"params": 150, "macs": 9, "latency_ms": 1.0}) == {"params": 0.5, "latency_ms": -0.5}
    assert fits(limits, {"params": 100, "latency_ms": None}) and not fits(limits, {"params": 101})


@pytest.mark.parametrize(
    ("name", "value", "met", "excess"),
    [
        ("min_retained_colour", 0.5, True, 0.0),
        ("min_retained_colour", 0.25, False, 0.5),
        ("min_retained_colour", math.nan, False, math.inf),
        ("min_content_colour", 0.25, False, 0.5),
        ("min_fidelity", 0.75, True, -0.5),
        ("target_latency_ms", 0.5, True, 0.0),
        ("target_latency_ms", 1.0, False, 1.0),
        ("max_l1_increase", math.nan, False, math.inf),
    ],
)
def test_floors_and_ceilings(name: str, value: float, met: bool, excess: float) -> None:
    limit = Limit(name, 0.5)
    assert limit.is_met({limit.figure: value}) is met and limit.excess({limit.figure: value}) == excess
    assert limit.is_met({}) is None and limit.is_met({limit.figure: None}) is None


def test_bounds_of_zero_and_below_are_missed_by_what_is_beyond() -> None:
    assert Limit("max_l1_increase", 0.0).excess({"l1_delta_pct": 2.0}) == 2.0
    assert Limit("max_l1_increase", -4.0).excess({"l1_delta_pct": -2.0}) == 0.5
    assert Limit("min_retained_colour", -4.0).excess({"retained_colour": -6.0}) == 0.5
