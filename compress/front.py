"""The Pareto front: what nothing else beats."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def find_front(items: Sequence[Item], costs: Callable[[Item], tuple[float, ...]]) -> list[Item]:
    """The items that no other is as good as in every cost and better than in one, by their costs, smallest first.

    Items of equal costs stand on it together.

    Args:
        costs: of an item; each should be small.
    """
    priced = sorted(((costs(item), item) for item in items), key=lambda each: each[0])

    def is_beaten(own: tuple[float, ...]) -> bool:
        return any(its != own and all(mine >= other for mine, other in zip(own, its, strict=True)) for its, _ in priced)

    return [item for own, item in priced if not is_beaten(own)]
