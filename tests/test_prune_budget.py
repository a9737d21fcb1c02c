"""The least pruning that meets every budget: met, not overshot, and refused with a hint where nothing can meet it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from colorpress.core.config import PruneConfig
from colorpress.core.errors import ConfigError
from compress.budgets import Limit
from compress.importance import Evidence
from compress.prune_plan import read_plan, write_plan
from compress.pruning import MeasuredLimits, apply_pruning, plan_pruning, prune_in_steps
from compress.ranking import count_macs
from tests.conftest import make_network
from training.network import ColorNetwork
from training.unet import UNet, UNetPlan, count_parameters

_ALL = PruneConfig(largest_share=1.0, round_to=1)


@pytest.fixture
def network() -> UNet:
    return make_network(UNetPlan.classic(8, 2))


def macs(network: ColorNetwork) -> int:
    return count_macs(network, height=16, width=16)


def limits(network: ColorNetwork, params: float = 1.0, work: float = 1.0) -> MeasuredLimits:
    return {
        Limit("keep_params", params * count_parameters(network)): count_parameters,
        Limit("keep_macs", work * macs(network)): macs,
    }


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize(("params", "work"), [(0.5, 1.0), (1.0, 0.5), (0.3, 0.3), (0.9, 0.2)])
def test_every_budget_is_met_and_a_little_less_pruning_would_miss_one(
    network: UNet, scope: str, params: float, work: float
) -> None:
    config = replace(_ALL, scope=scope)
    plan = plan_pruning(network, config, limits=limits(network, params, work))
    pruned = apply_pruning(network, plan)
    assert count_parameters(pruned) <= params * count_parameters(network)
    assert macs(pruned) <= work * macs(network)
    ratio = plan.settings["prune_ratio"]
    assert plan.result == plan_pruning(network, replace(config, prune_ratio=ratio)).result
    less = apply_pruning(network, plan_pruning(network, replace(config, prune_ratio=ratio - 0.001)))
    assert count_parameters(less) > params * count_parameters(network) or macs(less) > work * macs(network)


def test_a_budget_that_is_met_already_prunes_nothing(network: UNet, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_pruning(network, _ALL, limits=limits(network))
    assert plan.settings["prune_ratio"] == 0
    assert plan.result == plan.source
    assert "nothing was pruned" not in capsys.readouterr().err


def test_a_budget_that_nothing_meets_is_refused_with_what_is_smallest(network: UNet) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_pruning(network, PruneConfig(largest_share=1.0, round_to=4), limits=limits(network, 0.01))
    assert "not even the smallest network meets it" in str(caught.value)
    assert "--keep-params allows" in str(caught.value)
    assert "--round-to" in caught.value.hint


def test_what_takes_long_to_measure_is_asked_only_where_the_rest_is_met(network: UNet) -> None:
    weighed: list[int] = []

    def weigh(pruned: ColorNetwork) -> float:
        weighed.append(count_parameters(pruned))
        return 4.0 * count_parameters(pruned)

    slow = Limit("target_size", 4 * 0.6 * count_parameters(network))
    plan = plan_pruning(network, _ALL, limits={**limits(network, 0.5), slow: weigh})
    assert max(weighed) <= 0.5 * count_parameters(network)
    assert len(weighed) == len(set(weighed))
    assert plan.result == plan_pruning(network, _ALL, limits=limits(network, 0.5)).result
    assert plan.settings["budgets"]["--target-size"].endswith("bytes")


def test_budgets_of_the_latency_strategy(network: UNet) -> None:
    config = replace(_ALL, prune_strategy="latency", round_to=2)
    macs_ms = lambda shape: shape.inputs * shape.outputs * shape.height * shape.width / 1e6  # noqa: E731
    evidence = Evidence(height=16, width=16, time_convolution=macs_ms)
    plan = plan_pruning(network, config, evidence, limits=limits(network, work=0.4))
    assert 0.3 * macs(network) < macs(apply_pruning(network, plan)) <= 0.4 * macs(network)


# Steps


def keep_training(seen: list[int]) -> Callable[[ColorNetwork, int], ColorNetwork]:
    """A fine-tuning that turns the importance of channels around, so that the next step has to look again."""

    def tune(network: ColorNetwork, step: int) -> ColorNetwork:
        seen.append(step)
        state = {
            name: tensor * -1 if "num" in name else 1 / (tensor + 3) for name, tensor in network.state_dict().items()
        }
        return network.with_weights({name: tensor.abs() for name, tensor in state.items()})

    return tune


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_steps_make_one_plan_that_gives_the_same_network(network: UNet, steps: int, tmp_path: Path) -> None:
    config = replace(_ALL, prune_steps=steps, prune_ratio=0.6)
    target = plan_pruning(network, config)
    seen: list[int] = []
    plan, pruned = prune_in_steps(network, target, config, tune=keep_training(seen))
    assert seen == list(range(1, steps))
    assert plan.result == target.result
    assert (plan == target) == (steps == 1)  # other channels, after a fine-tuning that changed their importance
    again = apply_pruning(network, read_plan(write_plan(tmp_path / "plan.json", plan)))
    assert [each.shape for each in again.parameters()] == [each.shape for each in pruned.parameters()]
    assert plan.weights_sha256 == target.weights_sha256
    assert all(group.reason.count("; then the") == steps - 1 for group in plan.groups)
    assert all(group.reason.startswith("rank ") for group in plan.groups)


def test_steps_without_tuning_choose_what_one_step_chooses(network: UNet) -> None:
    """Importance by the filter alone does not change when other channels go, so nothing may get lost in composing."""
    config = replace(_ALL, prune_steps=3, importance="bn-scale")
    target = plan_pruning(network, config)
    plan, pruned = prune_in_steps(network, target, config)
    normed = [group.root for group in target.groups if "batch norm scale" in group.reason]
    removed = {group.root: group.removed for group in plan.groups}
    assert {root: removed[root] for root in normed} == {
        group.root: group.removed for group in target.groups if group.root in normed
    }
    again = apply_pruning(network, plan)
    assert all((a == b).all() for a, b in zip(again.state_dict().values(), pruned.state_dict().values(), strict=True))


def test_a_layer_that_stays_whole_is_still_in_the_plan_of_steps(network: UNet) -> None:
    config = PruneConfig(largest_share=1.0, prune_steps=2, round_to=8)
    target = plan_pruning(network, config)
    plan, _ = prune_in_steps(network, target, config)
    assert {group.root for group in plan.groups} == {group.root for group in target.groups}
    assert plan.result == target.result != plan.source
