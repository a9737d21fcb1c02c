"""How many channels each group keeps: a share of every layer, the most important of all, or the best for their time.

Latency is no smooth function of channel counts, so none is assumed: each convolution is timed at the counts that it may
come to have. Steps are taken greedily, which for many small items is near the best knapsack (Dantzig 1957); the idea
of a latency table under structured pruning is that of NetAdapt (Yang et al. 2018) and HALP (Shen et al. 2021).
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from compress.dependency_graph import ChannelGroup, copy_network, is_depthwise
from compress.importance import ChannelScores, Evidence
from compress.ranking import hooked
from export.conv_latency import ConvShape
from training.network import ColorNetwork

# Channels to keep by the root of the group.
Counts = dict[str, int]

# A layer is timed at about this many counts: more would take long and differ by less than the noise.
_EVEN_COUNTS = 8
# A step that saves nothing measurable is the last resort.
_LEAST_MS = 1e-6


def keep_of_each_layer(groups: Sequence[ChannelGroup], ratio: float, round_to: int) -> Counts:
    """Every group loses the share `ratio` of its own channels, rounded to a multiple of `round_to`."""
    return {group.root: round_channels(group.channels, ratio, math.lcm(round_to, group.step)) for group in groups}


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
        step = math.lcm(round_to, group.step)
        for high, low, loss in steps_down(scores[group.root], multiples_down(group.channels, step)):
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


@dataclass(frozen=True)
class Trade:
    """What the network becomes step by step, and the time of all its convolutions, in milliseconds, after each step."""

    counts: tuple[Counts, ...]
    times_ms: tuple[float, ...]

    def keep(self, ratio: float) -> Counts:
        """The counts of the first step that saves the share `ratio` of the time, or of the last one."""
        # Noise may let a step take time: what counts is the least time so far.
        least = list(accumulate(self.times_ms, min))
        enough = bisect_left([-each for each in least], -(1 - ratio) * self.times_ms[0])
        return self.counts[min(enough, len(self.counts) - 1)]


@dataclass
class _Convolution:
    shape: ConvShape
    # Channels that go with one channel of a group, by the group's root.
    inputs: dict[str, Fraction] = field(default_factory=dict)
    outputs: dict[str, Fraction] = field(default_factory=dict)
    depthwise: bool = False

    def at(self, lost: Mapping[str, int]) -> ConvShape:
        # A count that no unit of the group divides is timed at the next smaller one.
        inputs = self.shape.inputs - int(sum(lost[root] * each for root, each in self.inputs.items()))
        outputs = self.shape.outputs - int(sum(lost[root] * each for root, each in self.outputs.items()))
        if self.depthwise:
            inputs = self.shape.inputs * outputs // self.shape.outputs
            return replace(self.shape, inputs=inputs, outputs=outputs, groups=inputs)
        return replace(self.shape, inputs=inputs, outputs=outputs)


def trade_for_latency(
    network: ColorNetwork,
    groups: Sequence[ChannelGroup],
    scores: Mapping[str, ChannelScores],
    worth: Mapping[str, float],
    evidence: Evidence,
    *,
    round_to: int,
) -> Trade:
    """Give up channels, always where least is lost per millisecond saved, until there is nothing left.

    Args:
        scores: of the channels, by the root of each group.
        worth: what a unit of normalized importance is worth in each group, in a unit that all have in common.
        evidence: its `time_convolution` is asked once for each shape.
        round_to: layers keep multiples of this many channels: runtimes compute whole vectors of 8 or 16 of them.
    """
    if evidence.time_convolution is None:
        raise ValueError("strategy 'latency' needs a way to time convolutions")
    time_once = cache(evidence.time_convolution)
    convolutions = _find_convolutions(network, groups, evidence.height, evidence.width)
    touched = {group.root: [c for c in convolutions if group.root in {**c.inputs, **c.outputs}] for group in groups}
    before = {group.root: group.channels for group in groups}
    steps = {group.root: _steps(group, scores[group.root], round_to) for group in groups}

    def time_of(some: Sequence[_Convolution], keep: Mapping[str, int]) -> float:
        lost = {root: before[root] - count for root, count in keep.items()}
        return sum(time_once(each.at(lost)) for each in some)

    counts, times = [before], [time_of(convolutions, before)]
    while any(steps.values()):
        keep = counts[-1]
        ways = []
        for root, left in steps.items():
            if left:
                _, low, loss = left[0]
                saved = time_of(touched[root], keep) - time_of(touched[root], {**keep, root: low})
                ways.append((worth[root] * loss / max(saved, _LEAST_MS), root, low))
        _, root, low = min(ways)
        steps[root] = steps[root][1:]
        counts.append({**keep, root: low})
        times.append(time_of(convolutions, counts[-1]))
    return Trade(tuple(counts), tuple(times))


def _steps(group: ChannelGroup, scores: ChannelScores, round_to: int) -> list[tuple[int, int, float]]:
    """Evenly at first, and from the last of the even counts by halves."""
    round_to = math.lcm(round_to, group.step)
    multiples = -(-group.channels // (_EVEN_COUNTS * round_to))
    counts = multiples_down(group.channels, multiples * round_to)
    while half := counts[-1] // (2 * round_to) * round_to:
        counts.append(half)
    return steps_down(scores, counts)


def _find_convolutions(
    network: ColorNetwork, groups: Sequence[ChannelGroup], height: int, width: int
) -> list[_Convolution]:
    """Every convolution that a picture of this size reaches, with the groups that it depends on."""
    copy = copy_network(network)
    names = {
        module: name for name, module in copy.named_modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }
    found: dict[str, _Convolution] = {}

    def note(layer: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        shape = ConvShape(
            transposed=isinstance(layer, nn.ConvTranspose2d),
            inputs=layer.in_channels,
            outputs=layer.out_channels,
            kernel=layer.kernel_size,
            stride=layer.stride,
            padding=layer.padding if isinstance(layer.padding, tuple) else (0, 0),
            dilation=layer.dilation,
            groups=layer.groups,
            height=inputs[0].shape[2],
            width=inputs[0].shape[3],
        )
        found[names[layer]] = _Convolution(shape, depthwise=is_depthwise(layer))

    with hooked(copy, list(names), note), torch.no_grad():
        copy(next(copy.parameters()).new_zeros(1, 1, height, width))
    for group in groups:
        for member in group.members:
            if member.layer in found:
                side = found[member.layer].inputs if member.reads else found[member.layer].outputs
                side[group.root] = Fraction(len(member.own), group.channels)
    return list(found.values())
