"""How many channels go from which group: one threshold over all layers, in multiples, never the last ones.

And for time, by an invented table of latencies: slow and unimportant channels go first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colorpress.core.config import PruneConfig
from compress.channel_counts import (
    Counts,
    Trade,
    keep_of_all_layers,
    keep_of_each_layer,
    multiples_down,
    steps_down,
    trade_for_latency,
)
from compress.dependency_graph import ChannelGroup, find_groups, layer_widths
from compress.importance import ChannelScores, Evidence, score_groups
from compress.pruning import apply_pruning, plan_pruning
from export.conv_latency import ConvShape
from tests.conftest import make_network
from training.unet import UNet, UNetPlan


def group_of(root: str, channels: int) -> ChannelGroup:
    return ChannelGroup(root, channels, (), (), "", tuple((channel,) for channel in range(channels)))


def scores(*values: float) -> ChannelScores:
    return ChannelScores(torch.tensor(values, dtype=torch.float64), "hand")


def test_the_least_important_channels_of_all_groups_go() -> None:
    groups = [group_of("even", 4), group_of("uneven", 4)]
    # Normalized: 1, 1, 1, 1 and 0.04, 0.04, 0.08, 3.84; another scale of the second group changes nothing.
    for scale in (1.0, 1000.0):
        given_scores = {"even": scores(5, 5, 5, 5), "uneven": scores(scale, 96 * scale, scale, 2 * scale)}
        assert keep_of_all_layers(groups, given_scores, 0.25, 1) == {"even": 4, "uneven": 2}
        assert keep_of_all_layers(groups, given_scores, 0.5, 1) == {"even": 3, "uneven": 1}
    assert keep_of_each_layer(groups, 0.5, 1) == {"even": 2, "uneven": 2}


def test_every_layer_keeps_one_multiple() -> None:
    groups = [group_of("dead", 8), group_of("alive", 8), group_of("narrow", 3)]
    given_scores = {"dead": scores(*[0] * 8), "alive": scores(*range(1, 9)), "narrow": scores(0, 0, 1)}
    assert keep_of_all_layers(groups, given_scores, 0.99, 4) == {"dead": 4, "alive": 4, "narrow": 3}


def test_steps_go_down_in_multiples_with_what_is_lost() -> None:
    # The mean is 2, so the normalized scores are half of these.
    assert steps_down(scores(4, 1, 2, 0, 3), multiples_down(5, 2)) == [(5, 4, 0.0), (4, 2, 1.5)]
    assert multiples_down(6, 2) == [6, 4, 2]
    assert multiples_down(2, 2) == [2]


@given(
    widths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    round_to=st.sampled_from([1, 4, 8]),
    ratio=st.floats(0.0, 0.99),
    seed=st.integers(0, 100),
)
def test_the_share_of_all_is_met_and_more_never_keeps_more(
    widths: list[int], round_to: int, ratio: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    groups = [group_of(str(position), width) for position, width in enumerate(widths)]
    values = {group.root: scores(*torch.rand(group.channels, generator=generator).tolist()) for group in groups}
    keep = keep_of_all_layers(groups, values, ratio, round_to)
    for group in groups:
        count = keep[group.root]
        assert min(round_to, group.channels) <= count <= group.channels
        assert count % round_to == 0 or count == group.channels
    floor = sum(min(round_to, width) for width in widths)
    wanted = max(floor, (1 - ratio) * sum(widths))
    assert abs(sum(keep.values()) - wanted) <= round_to
    further = keep_of_all_layers(groups, values, min(0.99, ratio + 0.1), round_to)
    assert all(further[root] <= count for root, count in keep.items())


def test_global_takes_more_from_a_layer_whose_channels_matter_less() -> None:
    network = make_network(UNetPlan.classic(8, 2))
    with torch.no_grad():  # all but two channels of one layer are next to nothing, on every side
        network.encoder[1][3].weight[2:] *= 0.01
        network.encoder[1][4].weight[2:] *= 0.01
        network.encoder[2][0].weight[:, 2:16] *= 0.01
        network.decoder[0][0].weight[:, 2:16] *= 0.01
    after = {}
    for scope in ("layer", "global"):
        config = PruneConfig(largest_share=1.0, prune_ratio=0.3, round_to=2, scope=scope)
        plan = plan_pruning(network, config)
        after[scope] = plan.result
        assert sum(plan.result.values()) == pytest.approx(0.7 * sum(plan.source.values()), abs=8)
    assert after["layer"]["encoder.1.3"] == 12  # 11.2, to the nearest multiple of 2
    assert after["global"]["encoder.1.3"] == 2
    assert sum(after["global"].values()) - 2 > sum(after["layer"].values()) - 12  # so the others keep more


@pytest.fixture
def network() -> UNet:
    return make_network(UNetPlan.classic(8, 2))


def macs_ms(shape: ConvShape) -> float:
    """A machine whose time is the number of multiplications."""
    taps = shape.kernel[0] * shape.kernel[1]
    return shape.inputs * shape.outputs // shape.groups * taps * shape.height * shape.width / 1e6


def timed(time_convolution: Callable[[ConvShape], float]) -> Evidence:
    return Evidence(height=16, width=16, time_convolution=time_convolution)


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
    return trade_for_latency(network, groups, scores, worth, timed(time_convolution), round_to=2)


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
    plan = plan_pruning(network, config, timed(macs_ms))
    pruned = apply_pruning(network, plan)
    groups = find_groups(pruned, layer_widths(pruned))
    scores = score_groups(pruned, groups, "magnitude")
    worth = dict.fromkeys(scores, 1.0)
    again = trade_for_latency(pruned, groups, scores, worth, timed(macs_ms), round_to=2)
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
        plan = plan_pruning(network, config, replace(timed(macs_ms), pictures=looked_at))
        return {group.root for group in plan.groups if group.removed}

    assert pruned(pictures) <= {"encoder.2.0", "encoder.2.3"}
    assert not pruned([]) <= {"encoder.2.0", "encoder.2.3"}
    # One pixel tells nothing of a layer.
    assert pruned([(torch.rand(1, 1, 1, 1), torch.zeros(1, 2, 1, 1))]) == pruned([])


def test_without_a_table_there_is_no_plan(network: UNet) -> None:
    with pytest.raises(ValueError, match="needs a way to time"):
        plan_pruning(network, PruneConfig(prune_strategy="latency"))
