"""The Pareto front: what nothing beats, and what stands on it together."""

from __future__ import annotations

from compress.front import find_front


def test_front_is_what_nothing_beats() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.5, 2.5), (2.0, 2.2), (4.0, 1.0)]
    assert find_front(points, tuple) == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    assert find_front([], tuple) == []
    assert find_front([(1.0, 1.0)], tuple) == [(1.0, 1.0)]
