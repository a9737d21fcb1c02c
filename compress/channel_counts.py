"""How many channels each group keeps: the same share of every layer, or the least important ones of all together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch

from compress.dependency_graph import ChannelGroup
from compress.importance import ChannelScores

# Channels to keep by the root of the group.
Counts = dict[str, int]


def keep_of_each_layer(groups: Sequence[ChannelGroup], ratio: float, round_to: int) -> Counts:
    """Every group loses the share `ratio` of its own channels, rounded to a multiple of `round_to`."""
    return {group.root: round_channels(group.channels, ratio, round_to) for group in groups}


def round_channels(before: int, ratio: float, round_to: int) -> int:
    """The nearest multiple of `round_to`, halves up, at least one of it; never more channels than there are."""
    nearest = math.floor(before * (1 - ratio) / round_to + 0.5) * round_to
    return min(before, max(round_to, nearest))


def keep_of_all_layers(
    groups: Sequence[ChannelGroup], scores: Mapping[str, ChannelScores], ratio: float, round_to: int
) -> Counts:
    """The least important channels of all groups go until the share `ratio` of all is gone: one threshold for all.

    Channels go `round_to` at a time, by the mean of their scores, which are normalized to a mean of 1 in each group;
    a group keeps `round_to` at least, so the share may not be reached.
    """
    keep = {group.root: group.channels for group in groups}
    blocks: list[tuple[float, int, int, int]] = []
    for position, group in enumerate(groups):
        mean = 0.0
        for high, low, loss in steps_down(scores[group.root], multiples_down(group.channels, round_to)):
            # They rise as channels go, so that a group's blocks come in order; rounding must not change that.
            mean = max(mean, loss / (high - low))
            blocks.append((mean, position, low, high - low))
    left = ratio * sum(keep.values())
    for _, position, low, size in sorted(blocks, key=lambda block: (block[0], block[1], -block[2])):
        if left < size / 2:
            break
        keep[groups[position].root] = low
        left -= size
    return keep


def multiples_down(channels: int, step: int) -> list[int]:
    """`channels` and all smaller multiples of `step`, down to one of it."""
    return [channels, *range((channels - 1) // step * step, 0, -step)]


def steps_down(scores: ChannelScores, counts: Sequence[int]) -> list[tuple[int, int, float]]:
    """From each of `counts`, which fall, to the next one: (channels before, channels after, importance that goes)."""
    lost = torch.cat((torch.zeros(1).double(), scores.normalized.sort().values.cumsum(0))).tolist()
    return [(high, low, lost[len(lost) - 1 - low] - lost[len(lost) - 1 - high]) for high, low in pairwise(counts)]
