"""Labels of channels, which of them are one and the same, and where they are in a tensor of labels."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

# Labels are float32, which every operation that moves values takes; they are exact up to 2 ** 24.
_MOST_LABELS = 1 << 24


class Labels:
    """Labels from 1 on, some of them one and the same; each set of them is named by its least. 0 is none."""

    def __init__(self) -> None:
        self._least = torch.zeros(1, dtype=torch.int64)  # of the set of each label

    def new(self, count: int) -> Tensor:
        """So many further labels (count,), each one for itself.

        Raises:
            OverflowError: there are too many to be told apart.
        """
        first = len(self._least)
        if first + count >= _MOST_LABELS:
            raise OverflowError(f"more than {_MOST_LABELS:,} channels and values of its own parameters")
        labels = torch.arange(first, first + count)
        self._least = torch.cat((self._least, labels))
        return labels.float()

    def unite(self, one: Tensor, other: Tensor) -> None:
        """Labels at the same place are one from now on."""
        one, other = one.flatten().long(), other.flatten().long()
        while True:
            sets = torch.stack((self._least[one], self._least[other])).sort(0).values
            if torch.equal(sets[0], sets[1]):
                return
            self._least.scatter_reduce_(0, sets[1], sets[0], "amin")
            while not torch.equal(shorter := self._least[self._least], self._least):
                self._least = shorter

    def resolve(self, labels: Tensor) -> Tensor:
        """Each label replaced by the least of those that are one with it."""
        return self._least[labels.long()].float()


def varies(labels: Tensor, dimension: int) -> bool:
    """Whether labels differ along a dimension."""
    return labels.shape[dimension] > 1 and not bool((labels == labels.narrow(dimension, 0, 1)).all())


def extents_of(tensor: Tensor, shape: torch.Size) -> tuple[bool, ...]:
    """Along which dimensions of `shape` a tensor has values of its own, and is not repeated."""
    missing = len(shape) - tensor.ndim
    own = [size > 1 and stride != 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return (*(False,) * missing, *own)


def split_sizes(before: Sequence[int], after: Sequence[int]) -> list[tuple[int, list[int]]]:
    """For a view: which of the new sizes each old dimension is split into; the ones that are merged are left out."""
    found: list[tuple[int, list[int]]] = []
    place, sizes = 0, list(after)
    for dimension, size in enumerate(before):
        factors: list[int] = []
        while prod(factors) < size and place < len(sizes):
            factors.append(sizes[place])
            place += 1
        if prod(factors) != size:
            return found
        found.append((dimension, [each for each in factors if each > 1] or [1]))
    return found
