"""Pruning for time with an invented table of latencies: slow and unimportant channels go first."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from colorpress.core.config import PruneConfig
from compress.channel_counts import Counts
from compress.dependency_graph import find_groups, layer_widths
from compress.importance import ChannelScores, score_groups
from compress.knapsack import Trade, trade_for_latency
from compress.pruning import Evidence, apply_pruning, plan_pruning
from export.conv_latency import ConvShape
from tests.conftest import make_network
from training.unet import UNet, UNetPlan


@pytest.fixture
def network() -> UNet:
    return make_network(UNetPlan.classic(8, 2))


def macs_ms(shape: ConvShape) -> float:
    """A machine whose time is the number of multiplications."""
    taps = shape.kernel[0] * shape.kernel[1]
    return shape.inputs * shape.outputs // shape.groups * taps * shape.height * shape.width / 1e6


def trade(network: UNet, time_convolution: Callable[[ConvShape], float], values: dict[str, float]) -> Trade:
    """Even scores, or `values` for the channels of some groups, beside which the others' do not matter."""
    groups = find_groups(network, layer_widths(network))
    scores = {
        group.root: ChannelScores(
            torch.cat((torch.full((group.channels - 1,), values.get(group.root, 1.0)), torch.ones(1))).double(), "hand"
        )
        for group in groups
    }
    worth = dict.fromkeys(scores, 1.0)
    return trade_for_latency(network, groups, scores, worth, time_convolution, round_to=2, height=16, width=16)


def lost(before: Counts, after: Counts) -> set[str]:
    return {root for root in before if after[root] < before[root]}


def test_the_slow_layer_gives_first(network: UNet) -> None:
    def one_slow_size(shape: ConvShape) -> float:
        return macs_ms(shape) * (100 if (shape.height, shape.outputs) == (4, 32) else 1)

    found = trade(network, one_slow_size, {})
    half_way = found.keep(0.3)
    assert lost(found.counts[0], half_way) <= {"encoder.1.3", "encoder.2.0", "encoder.2.3"}  # at the slow convolutions


def test_of_equally_slow_layers_the_less_important_gives_first(network: UNet) -> None:
    # encoder.2.0 and encoder.2.3 are of the same width; the time depends on outputs of one size alone.
    def outputs_of_the_deepest(shape: ConvShape) -> float:
        return float(shape.outputs) if shape.height == 4 and not shape.transposed else 1e-3

    for unimportant, other in (("encoder.2.0", "encoder.2.3"), ("encoder.2.3", "encoder.2.0")):
        found = trade(network, outputs_of_the_deepest, {unimportant: 1e-3})
        assert found.keep(0.3)[unimportant] < 32 == found.keep(0.3)[other]


def test_every_ratio_is_met_and_larger_ones_never_keep_more(network: UNet) -> None:
    found = trade(network, macs_ms, {})
    kept = [found.keep(ratio / 20) for ratio in range(20)]
    assert kept[0] == found.counts[0]
    for ratio, counts in enumerate(kept):
        time_ms = found.times_ms[found.counts.index(counts)]
        assert time_ms <= (1 - ratio / 20) * found.times_ms[0] or counts == found.counts[-1]
    assert all(later[root] <= count for earlier, later in pairwise(kept)
               for root, count in earlier.items())  # fmt: skip
    assert set(found.counts[-1].values()) == {2}


def test_time_is_that_of_the_pruned_network(network: UNet) -> None:
    """The shapes that were asked about at the end are those of the network that the counts give."""
    asked: list[ConvShape] = []

    def note(shape: ConvShape) -> float:
        asked.append(shape)
        return macs_ms(shape)

    found = trade(network, note, {})
    assert len(asked) == len(set(asked))
    config = PruneConfig(prune_strategy="latency", prune_ratio=0.6, round_to=2)
    plan = plan_pruning(network, config, Evidence(height=16, width=16, time_convolution=macs_ms))
    pruned = apply_pruning(network, plan)
    groups = find_groups(pruned, layer_widths(pruned))
    scores = score_groups(pruned, groups, "magnitude")
    worth = dict.fromkeys(scores, 1.0)
    again = trade_for_latency(pruned, groups, scores, worth, macs_ms, round_to=2, height=16, width=16)
    before = trade(network, macs_ms, {}).times_ms[0]
    assert again.times_ms[0] <= 0.4 * before
    assert again.times_ms[0] > 0.3 * before  # and not much more than asked for
    assert found.times_ms[0] == before


def test_a_noisy_step_is_no_reason_to_stop() -> None:
    found = Trade(({"a": 8}, {"a": 6}, {"a": 4}, {"a": 2}), (10.0, 11.0, 5.0, 6.0))
    assert [found.keep(ratio)["a"] for ratio in (0.0, 0.3, 0.5, 0.9)] == [8, 4, 4, 2]


def test_layers_that_the_answer_does_not_need_give_first(network: UNet) -> None:
    # What the deepest level says is multiplied by nothing.
    ups = [module for module in network.modules() if isinstance(module, torch.nn.ConvTranspose2d)]
    deepest = max(ups, key=lambda module: module.in_channels)
    torch.nn.init.zeros_(deepest.weight)
    generator = torch.Generator().manual_seed(0)
    pictures = [(torch.rand(1, 1, 24, 20, generator=generator), torch.zeros(1, 2, 24, 20)) for _ in range(2)]
    config = PruneConfig(prune_strategy="latency", prune_ratio=0.1, round_to=2)

    def pruned(looked_at: list[tuple[torch.Tensor, torch.Tensor]]) -> set[str]:
        plan = plan_pruning(network, config, Evidence(looked_at, height=16, width=16, time_convolution=macs_ms))
        return {group.root for group in plan.groups if group.removed}

    assert pruned(pictures) <= {"encoder.2.0", "encoder.2.3"}
    assert not pruned([]) <= {"encoder.2.0", "encoder.2.3"}
    # One pixel tells nothing of a layer.
    assert pruned([(torch.rand(1, 1, 1, 1), torch.zeros(1, 2, 1, 1))]) == pruned([])


def test_without_a_table_there_is_no_plan(network: UNet) -> None:
    with pytest.raises(ValueError, match="needs a way to time"):
        plan_pruning(network, PruneConfig(prune_strategy="latency"))
