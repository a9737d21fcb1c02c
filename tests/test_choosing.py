"""Choosing on one part of the photographs, and confirming on the other."""

from __future__ import annotations

import math
from itertools import permutations

import pytest

from compress.choosing import Candidate, choose_confirmed

SAFE, MIDDLE, SMALL = (Candidate(name, merit, 1.0, 0.97) for merit, name in enumerate(("safe", "middle", "small")))


def lost(candidate: Candidate, *, choosing: float = 1.0, likely: float = 0.97) -> Candidate:
    return Candidate(candidate.name, candidate.merit, choosing, likely)


@pytest.mark.parametrize(
    ("candidates", "chosen"),
    [
        ((SAFE, MIDDLE, SMALL), "small"),
        ((SAFE, MIDDLE, lost(SMALL, choosing=0.94)), "middle"),  # does not qualify
        ((SAFE, MIDDLE, lost(SMALL, likely=0.94)), "middle"),  # is not confirmed
        ((SAFE, lost(MIDDLE, likely=0.94), SMALL), "safe"),  # ends it, lest the luckiest of many wins
        ((SAFE, lost(MIDDLE, choosing=0.94, likely=0.0), SMALL), "small"),  # is not tried at all
        ((lost(SAFE, likely=0.94), MIDDLE, SMALL), None),
        ((SAFE, lost(MIDDLE, likely=math.nan), SMALL), "safe"),
        ((SAFE, MIDDLE, lost(SMALL, choosing=math.nan)), "middle"),
        ((), None),
    ],
)
def test_whatever_their_order(candidates: tuple[Candidate, ...], chosen: str | None) -> None:
    assert {choose_confirmed(each, 0.95) for each in permutations(candidates)} == {chosen}
