"""How many channels go from which group: one threshold over all layers, in multiples, never the last ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from colorpress.core.config import PruneConfig
from compress.channel_counts import keep_of_all_layers, keep_of_each_layer, multiples_down, steps_down
from compress.dependency_graph import ChannelGroup
from compress.importance import ChannelScores
from compress.pruning import plan_pruning
from tests.conftest import make_network
from training.unet import UNetPlan


def group_of(root: str, channels: int) -> ChannelGroup:
    return ChannelGroup(root, channels, (), (), "", 1)


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
