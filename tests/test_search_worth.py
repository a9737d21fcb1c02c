"""Hypervolumes by hand, and the wall time of workers that share recorded trials."""

from __future__ import annotations

import math

import numpy as np
import pytest

from benchmarks.studies.search_worth import find_bounds, measure_hypervolume, read_score, simulate_wall
from tests.conftest import make_score


def test_hypervolume_is_the_share_of_the_box_that_is_beaten() -> None:
    values = np.array([[1.0, 1.0, 0.0], [math.e**2, math.e**2, 1.0], [math.e, math.e, 0.5]])
    best, worst = find_bounds([values[:1], values[1:]])
    assert best.tolist() == [0, 0, 0] and worst.tolist() == pytest.approx([2, 2, 1])
    assert measure_hypervolume(values, best, worst) == pytest.approx(1.0)
    assert measure_hypervolume(values[1:], best, worst) == pytest.approx(0.125)
    assert measure_hypervolume(values[:0], best, worst) == 0.0


def test_more_workers_end_when_the_last_trial_does() -> None:
    durations = [3.0, 1.0, 1.0, 1.0, 4.0]
    assert simulate_wall(durations, 1) == 10.0
    assert simulate_wall(durations, 2) == 7.0
    assert simulate_wall(durations, 64) == 4.0


def test_pruning_is_judged_as_candidates_are() -> None:
    figures = {**make_score(0.8, others=0.3).to_dict(), "params": 10}
    assert read_score(figures, "content_colour").loss == pytest.approx(0.2)
    assert read_score(figures, "fidelity").loss == pytest.approx(0.7)
    assert read_score({**figures, "content_colour": None}, "content_colour").loss == pytest.approx(0.02)
