"""Pruning: the plan as data, its application, and that what is removed is what was planned."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from colorpress.core.config import PruneConfig
from colorpress.core.errors import ConfigError, GateError, InputError
from compress.batch_norm import recalibrate_batch_norm_
from compress.channel_counts import round_channels
from compress.dependency_graph import layer_widths
from compress.importance import Evidence
from compress.prune_plan import PrunePlan, read_plan, write_plan
from compress.pruning import apply_pruning, plan_pruning, prune_in_steps, prune_network
from compress.ranking import count_macs
from training.unet import UPSAMPLERS, UNet, UNetPlan, count_parameters

IMPORTANCES = ("magnitude", "bn-scale", "random")
# Sums in another order: float32 rounding, a few hundred terms.
SAME_ANSWER = 1e-5
_ALL = PruneConfig(largest_share=1.0, prune_ratio=0.5, round_to=1)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_network(base: int = 8, depth: int = 2, upsample: str = "transpose", seed: int = 0) -> UNet:
    """A network whose batch norm statistics, scales and biases are those of no fresh one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(UNetPlan.classic(base, depth, upsample)).eval()
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_mean", "bias")):
                tensor.copy_(torch.randn(tensor.shape) * 0.1)
            elif name.endswith("running_var") or tensor.ndim == 1:
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return network


def answer(network: UNet, height: int = 21, width: int = 18) -> torch.Tensor:
    picture = torch.linspace(0, 1, height * width).reshape(1, 1, height, width)
    with torch.no_grad():
        return network(picture)


def everything_about(network: UNet) -> list[Any]:
    tensors = [(name, tensor.numpy().tobytes()) for name, tensor in network.state_dict().items()]
    return [*tensors, [module.training for module in network.modules()], network.architecture]


@pytest.mark.parametrize(
    ("before", "ratio", "round_to", "kept"),
    [
        (512, 0.5, 8, 256),
        (64, 0.3, 8, 48),  # 44.8: nearer to 48 than to 40
        (24, 0.5, 8, 16),  # 12: half-way goes up
        (40, 0.5, 8, 24),
        (8, 0.99, 8, 8),  # at least one multiple
        (4, 0.5, 8, 4),  # fewer than a multiple: all stay
        (20, 0.1, 8, 16),  # 18: nearer to 16
        (20, 0.01, 16, 16),
        (23, 0.01, 8, 23),  # nearest multiple is 24, more than there are
        (10, 0.9, 1, 1),
        (10, 0.99, 1, 1),
        (100, 0.01, 1, 99),
    ],
)
def test_kept_channels(before: int, ratio: float, round_to: int, kept: int) -> None:
    assert round_channels(before, ratio, round_to) == kept


def test_the_default_recipe_on_the_reference_size() -> None:
    """Halving the eight largest layers of base 32: channel plan by hand; parameters by the sum over its layers."""
    network = UNet(UNetPlan.classic(32, 4))
    plan = plan_pruning(network, PruneConfig(largest_share=0.9, prune_ratio=0.5, round_to=8))
    assert [group.root for group in plan.groups] == [
        "encoder.4.3", "encoder.4.0", "decoder.0.0", "encoder.3.3", "decoder.0.3", "up.0", "encoder.3.0", "decoder.1.0",
    ]  # fmt: skip
    halved = UNetPlan(
        encoder=((32, 32), (64, 64), (128, 128), (128, 128), (256, 256)),
        decoder=((128, 128, 128), (128, 64, 128), (64, 64, 64), (32, 32, 32)),
    )
    assert plan.result == layer_widths(UNet(halved))
    assert plan.groups[0].reason.startswith("rank 1 with 30.39 % of the parameters; the 256 of 512 channels")
    assert plan.groups[0].layers == (
        "encoder.4.3 (Conv2d, output)",
        "encoder.4.4 (BatchNorm2d, output)",
        "up.0 (ConvTranspose2d, input)",
    )


def test_a_skip_connection_reaches_the_decoder() -> None:
    plan = plan_pruning(make_network(), _ALL)
    layers = {group.root: set(group.layers) for group in plan.groups}
    assert layers["encoder.0.3"] == {
        "encoder.0.3 (Conv2d, output)",
        "encoder.0.4 (BatchNorm2d, output)",
        "encoder.1.0 (Conv2d, input)",
        "decoder.1.0 (Conv2d, input)",
    }
    assert layers["up.1"] == {"up.1 (ConvTranspose2d, output)", "decoder.1.0 (Conv2d, input)"}


@pytest.mark.parametrize(
    ("depth", "upsample", "importance"),
    [  # every pair of values at least once
        *((depth, "transpose", IMPORTANCES[depth % 3]) for depth in (1, 2, 3, 4)),
        *((depth, "bilinear", IMPORTANCES[(depth + 1) % 3]) for depth in (1, 2, 3, 4)),
        *((depth, "nearest", IMPORTANCES[(depth + 2) % 3]) for depth in (1, 2, 3, 4)),
    ],
)
def test_every_network_kind_by_every_measure(depth: int, upsample: str, importance: str) -> None:
    network = make_network(4, depth, upsample)
    result = prune_network(network, dataclasses.replace(_ALL, importance=importance), Evidence(height=32, width=32))
    halves = UNetPlan.classic(2, depth, upsample)
    assert result.network.architecture == halves
    assert layer_widths(result.network) == result.plan.result
    assert result.after["params"] == count_parameters(UNet(halves)) == count_parameters(result.network)
    assert result.after["macs"] == count_macs(UNet(halves), height=32, width=32)
    assert result.after["channels"] * 2 == result.before["channels"]
    assert not result.network.training
    assert all(parameter.requires_grad for parameter in result.network.parameters())
    assert answer(result.network).shape == (1, 2, 21, 18)


@pytest.mark.parametrize("round_to", [1, 4, 8, 16])
@pytest.mark.parametrize("ratio", [0.01, 0.4, 0.99])
def test_channels_are_kept_in_multiples(round_to: int, ratio: float) -> None:
    plan = plan_pruning(make_network(8, 2), PruneConfig(largest_share=1.0, prune_ratio=ratio, round_to=round_to))
    for group in plan.groups:
        assert group.channels_after == round_channels(group.channels_before, ratio, round_to)
        assert group.channels_after % round_to == 0 or group.channels_after == group.channels_before
        assert ("stay" in group.reason) == (not group.removed)
    after = plan.result
    assert [after[group.root] for group in plan.groups] == [group.channels_after for group in plan.groups]
    assert len(plan.groups) == len(after)


@settings(max_examples=6)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    depth=st.integers(1, 3),
    upsample=st.sampled_from(UPSAMPLERS),
    share=st.floats(0.05, 1.0),
    ratio=st.floats(0.2, 0.95),
    importance=st.sampled_from(IMPORTANCES),
)
def test_pruned_networks_answer_any_size_with_fewer_parameters(
    height: int, width: int, depth: int, upsample: str, share: float, ratio: float, importance: str
) -> None:
    network = make_network(4, depth, upsample)
    config = PruneConfig(largest_share=share, prune_ratio=ratio, round_to=1, importance=importance)
    result = prune_network(network, config, Evidence(height=height, width=width))
    assert answer(result.network, height, width).shape == (1, 2, height, width)
    assert result.after["params"] < result.before["params"]
    assert result.after["macs"] < result.before["macs"]
    assert result.after["channels"] < result.before["channels"]


def silence_channels(network: UNet) -> dict[str, list[int]]:
    """Zero every third channel of each convolution on all sides, so that it gives 0 and nobody reads it."""
    silent = {}
    with torch.no_grad():
        widths = layer_widths(network)
        for root in widths:
            silent[root] = list(range(1, widths[root], 3))
        for group in plan_pruning(network, _ALL).groups:
            convolution = network.get_submodule(group.root)
            weight, dead = convolution.weight, silent[group.root]
            if isinstance(convolution, nn.ConvTranspose2d):
                weight[:, dead] = 0
            else:
                weight[dead] = 0
            if convolution.bias is not None:
                convolution.bias[dead] = 0
            for described in group.layers:
                name, kind = described[:-1].split(" (")
                if kind.startswith("BatchNorm"):
                    norm = network.get_submodule(name)
                    norm.weight[dead] = norm.bias[dead] = 0
    return silent


@pytest.mark.parametrize(
    ("upsample", "importance"), [*itertools.product(UPSAMPLERS, ("magnitude",)), ("transpose", "bn-scale")]
)
def test_channels_that_give_zero_go_first_and_the_answer_stays(upsample: str, importance: str) -> None:
    network = make_network(12, 3, upsample)
    silent = silence_channels(network)
    config = PruneConfig(largest_share=1.0, prune_ratio=1 / 3, round_to=1, importance=importance)
    plan = plan_pruning(network, config)
    assert {group.root: list(group.removed) for group in plan.groups} == silent
    pruned = apply_pruning(network, plan)
    assert count_parameters(pruned) < 0.5 * count_parameters(network)
    for size in ((21, 18), (32, 48), (1, 1)):
        torch.testing.assert_close(answer(pruned, *size), answer(network, *size), rtol=0, atol=SAME_ANSWER)


@pytest.mark.parametrize("upsample", UPSAMPLERS)
def test_removing_channels_equals_silencing_them(upsample: str) -> None:
    """Channels behind which nothing is read any more: the pruned network against the masked one, for live weights."""
    network = make_network(8, 2, upsample)
    plan = plan_pruning(network, _ALL)
    pruned = apply_pruning(network, plan)
    for group in plan.groups:
        silenced = list(group.removed)

        def mask(_module: nn.Module, _inputs: Any, output: torch.Tensor, silenced: list[int] = silenced) -> Any:
            output = output.clone()
            output[:, silenced] = 0
            return output

        normed = [name for name, kind in (d[:-1].split(" (") for d in group.layers) if kind.startswith("BatchNorm")]
        network.get_submodule(normed[0] if normed else group.root).register_forward_hook(mask)
    torch.testing.assert_close(answer(pruned), answer(network), rtol=0, atol=SAME_ANSWER)


def test_magnitude_is_the_norm_over_the_whole_group() -> None:
    network = make_network(4, 1)
    plan = plan_pruning(network, _ALL)
    removed = next(group.removed for group in plan.groups if group.root == "encoder.0.3")
    state = network.state_dict()
    squared = (
        state["encoder.0.3.weight"].pow(2).sum((1, 2, 3))
        + state["encoder.0.4.weight"].pow(2)
        + state["encoder.1.0.weight"].pow(2).sum((0, 2, 3))
        + state["decoder.0.0.weight"][:, :4].pow(2).sum((0, 2, 3))
    )
    assert sorted(removed) == sorted(squared.argsort()[:2].tolist())


def test_bn_scale_takes_the_smallest_scales_whatever_their_sign() -> None:
    network = make_network(4, 1)
    network.encoder[1][1].weight.data = torch.tensor([0.5, -0.1, 3.0, -2.0, 0.2, 1.0, 0.0, 0.9])
    plan = plan_pruning(network, dataclasses.replace(_ALL, importance="bn-scale"))
    assert next(group.removed for group in plan.groups if group.root == "encoder.1.0") == (0, 1, 4, 6)
    assert "magnitude" in next(group.reason for group in plan.groups if group.root == "up.0")  # it has no batch norm


def test_random_follows_its_seed() -> None:
    network, config = make_network(), dataclasses.replace(_ALL, importance="random")
    assert plan_pruning(network, config, Evidence(seed=1)) == plan_pruning(network, config, Evidence(seed=1))
    assert (
        plan_pruning(network, config, Evidence(seed=1)).groups != plan_pruning(network, config, Evidence(seed=2)).groups
    )


@pytest.mark.parametrize("surroundings", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_nothing_else_changes(surroundings: Callable[[], Any]) -> None:
    network = make_network().train()
    network.encoder[1].eval()
    before, random_state, threads = everything_about(network), torch.get_rng_state(), torch.get_num_threads()
    with surroundings():
        graded = torch.is_grad_enabled()
        result = prune_network(network, _ALL, Evidence(height=16, width=16))
        assert torch.is_grad_enabled() == graded
    assert everything_about(network) == before
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert not any(module._forward_hooks for module in network.modules())
    shared = {tensor.data_ptr() for tensor in network.state_dict().values()}
    assert shared.isdisjoint(tensor.data_ptr() for tensor in result.network.state_dict().values())
    result.network.train()(torch.rand(2, 1, 16, 16)).mean().backward()  # it can be trained
    assert network.head.weight.grad is None


def test_the_four_channels_of_an_affine_answer_stay() -> None:
    plan = UNetPlan(((8, 8), (16, 16), (16, 16)), ((8, 8, 8),), "nearest", stem_stride=4, affine=True)
    torch.manual_seed(0)
    pruned = prune_network(UNet(plan).eval(), PruneConfig(largest_share=1.0, prune_ratio=0.5, round_to=1)).network
    assert isinstance(pruned, UNet) and pruned.head.out_channels == 4 and pruned.architecture.affine
    assert pruned.architecture.encoder == ((4, 4), (8, 8), (8, 8))
    assert pruned(torch.rand(1, 1, 21, 18)).shape == (1, 2, 21, 18)


def test_pruning_again_prunes_further() -> None:
    once = prune_network(make_network(8, 2), _ALL, Evidence(height=16, width=16)).network
    twice = prune_network(once, _ALL, Evidence(height=16, width=16))
    assert twice.network.architecture == UNetPlan.classic(2, 2)


def test_a_recipe_may_remove_nothing() -> None:
    network = make_network(4, 1)
    result = prune_network(network, PruneConfig(prune_ratio=0.5, round_to=16), Evidence(height=16, width=16))
    assert result.removed_pct("params") == result.removed_pct("macs") == result.removed_pct("channels") == 0
    assert torch.equal(answer(network), answer(result.network))


def test_the_summary_names_channels_parameters_and_work() -> None:
    result = prune_network(make_network(4, 1), _ALL, Evidence(height=16, width=16))
    text = result.summary()
    # 4+4+8+8+4+4+4 channels; 3x3 weights, batch norm pairs, up-sampling and head by hand.
    before = 9 * (4 + 16 + 32 + 64) + 2 * (4 + 4 + 8 + 8) + (8 * 4 * 4 + 4) + 9 * (32 + 16) + 2 * 8 + (8 + 2)
    after = 9 * (2 + 4 + 8 + 16) + 2 * (2 + 2 + 4 + 4) + (4 * 2 * 4 + 2) + 9 * (8 + 4) + 2 * 4 + (4 + 2)
    assert (result.before["params"], result.after["params"]) == (before, after)
    assert f"36 -> 18 channels (-50.0 %), {before:,} -> {after:,} parameters" in text
    assert "7 of 7 layers" in text
    assert f"(-{result.removed_pct('macs'):.1f} %)" in text
    assert "\n" not in text
    figures = result.figures()
    assert json.loads(json.dumps(figures)) == figures
    assert figures["params_after"] == after


# The plan as a file


@pytest.fixture
def plan() -> PrunePlan:
    return plan_pruning(make_network(), _ALL)


@pytest.fixture
def edit(tmp_path: Path, plan: PrunePlan) -> Callable[[Callable[[dict[str, Any]], object]], Path]:
    def write_edited(change: Callable[[dict[str, Any]], object]) -> Path:
        path = write_plan(tmp_path / "plan.json", plan)
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))
        return path

    return write_edited


def test_a_plan_comes_back_from_its_file_and_does_the_same(tmp_path: Path, plan: PrunePlan) -> None:
    path = write_plan(tmp_path / "plan.json", plan)
    again = read_plan(path)
    assert again == plan
    assert PrunePlan.from_dict(plan.to_dict()) == plan
    network = make_network()
    assert everything_about(apply_pruning(network, again)) == everything_about(apply_pruning(network, plan))
    numbers = [line for line in path.read_text().splitlines() if line.strip().rstrip(",").isdigit()]
    assert numbers == []  # every list of channels is on one line
    assert list(tmp_path.iterdir()) == [path]


def test_a_group_can_be_deleted_from_the_file(edit: Callable[..., Path], plan: PrunePlan) -> None:
    edited = read_plan(edit(lambda values: values["groups"].pop(0)))
    pruned = apply_pruning(make_network(), edited)
    root = plan.groups[0].root
    assert layer_widths(pruned) == {**plan.result, root: plan.groups[0].channels_before}


def test_removed_channels_can_be_edited_in_the_file(edit: Callable[..., Path]) -> None:
    def change(values: dict[str, Any]) -> None:
        values["groups"] = [group for group in values["groups"] if group["root"] == "encoder.2.3"]
        values["groups"][0]["removed"] = [3, 0]

    network = make_network()
    edited = read_plan(edit(change))
    assert edited.groups[0].removed == (0, 3)
    assert edited.groups[0].channels_after == edited.groups[0].channels_before - 2
    pruned = apply_pruning(network, edited)
    kept = [index for index in range(32) if index not in (0, 3)]
    assert torch.equal(pruned.encoder[2][3].weight, network.encoder[2][3].weight[kept])
    assert torch.equal(pruned.up[0].weight, network.up[0].weight[kept])
    assert torch.equal(pruned.encoder[2][4].running_var, network.encoder[2][4].running_var[kept])
    assert torch.equal(pruned.decoder[0][0].weight, network.decoder[0][0].weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["groups"][0].update(removed=[32]), "'removed' holds 32, its channels are 0 to 31"),
        (lambda v: v["groups"][0].update(removed=[-1]), "'removed' holds -1"),
        (lambda v: v["groups"][0].update(removed=[1, 1]), "a channel twice"),
        (lambda v: v["groups"][0].update(removed=list(range(32))), "all 32 channels"),
        (lambda v: v["groups"][0].update(removed=[1.5]), "not a list of channel numbers"),
        (lambda v: v["groups"][0].update(removed=[True]), "not a list of channel numbers"),
        (lambda v: v["groups"][0].update(removed="1"), "not a list of channel numbers"),
        (lambda v: v["groups"][0].update(root="encoder.2.33"), "did you mean 'encoder.2.3'"),
        (lambda v: v["groups"][0].update(root="head"), "no layer 'head' can lose output channels"),
        (lambda v: v["groups"][0].update(root=3), "needs a layer name"),
        (lambda v: v["groups"][0].update(channels_before=33), "'channels_before' is 33, the layer has 32"),
        (lambda v: v["groups"][0].update(layers=[3]), "not a list of text"),
        (lambda v: v["groups"].append(v["groups"][0]), "is there twice"),
        (lambda v: v["groups"].append("all"), "a group is a str, not an object"),
        (lambda v: v["groups"][0].update(remove=[1]), "unknown key 'remove'; did you mean 'removed'"),
        (lambda v: v["groups"][0].pop("removed"), "group 'encoder.2.3' lacks 'removed'"),
        (lambda v: v.update(group=[]), "did you mean 'groups'"),
        (lambda v: v.pop("source"), "the plan lacks 'source'"),
        (lambda v: v.update(groups={}), "'groups' is not a list"),
        (lambda v: v.update(format="yolo"), "something else than a prune plan"),
        (lambda v: v.update(format_version=3), "newer than 2"),
        (lambda v: v.update(format_version=1), "older than 2"),
        (lambda v: v["source"].update(head="two"), "not an object of layers and their positive channel counts"),
        (lambda v: v["groups"][0].update(coupled=["encoder.0.9"]), "no layer 'encoder.0.9' has such a part"),
        (lambda v: v["groups"][0].update(removed=[3], coupled=["encoder.0.0"]), "'encoder.0.0' has such a part of its"),
        (lambda v: v["groups"][1].update(coupled=["encoder.2.3"]), "'encoder.2.3' would lose channels with two groups"),
    ],
)
def test_an_edit_that_makes_no_sense_is_refused_by_name(
    edit: Callable[..., Path], change: Callable[[dict[str, Any]], object], message: str
) -> None:
    path = edit(change)
    with pytest.raises(InputError) as caught:
        read_plan(path)
    assert message in str(caught.value)
    assert str(path) in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not JSON: Expecting value in line 1, column 1"),
        (b'{"groups": [', "is not JSON"),
        (b"[]", "the plan is a list, not an object"),
        (b"\xff\xfe\xfa", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_plan(path)


def test_a_missing_plan_is_an_option_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_plan(tmp_path / "plan.json")
    with pytest.raises(InputError, match="not a regular file"):
        read_plan(tmp_path)


def test_another_network_is_refused_with_what_differs(plan: PrunePlan) -> None:
    with pytest.raises(InputError) as caught:
        apply_pruning(make_network(6), plan)
    assert "encoder.0.0: plan 8, network 6" in str(caught.value)
    assert "and 7 more" in str(caught.value)
    with pytest.raises(InputError, match=r"up\.0: plan 16, network 32"):
        apply_pruning(make_network(8, 3), plan)
    with pytest.raises(InputError, match=r"up\.0: plan 16, network none"):
        apply_pruning(make_network(upsample="nearest"), plan)


def test_other_weights_of_the_same_shape_are_warned_about(plan: PrunePlan, capsys: pytest.CaptureFixture[str]) -> None:
    apply_pruning(make_network(), plan)
    assert capsys.readouterr().err == ""
    apply_pruning(make_network(seed=1), plan)
    assert "warning: the prune plan chose its channels by other weights" in capsys.readouterr().err


def test_a_network_that_does_not_answer_finitely_fails_the_gate(plan: PrunePlan) -> None:
    network = make_network()
    network.head.weight.data.fill_(float("nan"))
    with pytest.raises(GateError, match="not finitely"):
        apply_pruning(network, plan)


# Batch norm statistics


def test_batch_norm_statistics_are_the_average_over_the_batches() -> None:
    norm = nn.BatchNorm2d(1, momentum=0.3)
    norm.weight.data.fill_(2.0)
    network = nn.Sequential(norm, nn.Dropout(0.5)).train()
    norm(torch.full((4, 1, 2, 2), 50.0))  # earlier statistics count no more
    batches = [torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[4.0, 4.0]]], [[[8.0, 8.0]]]])]
    random_state = torch.get_rng_state()
    assert recalibrate_batch_norm_(network, iter(batches)) == 2
    assert norm.running_mean.item() == pytest.approx((1 + 6) / 2)
    assert norm.running_var.item() == pytest.approx((2 + 16 / 3) / 2)  # unbiased, as batch norm keeps it
    assert norm.momentum == 0.3
    assert norm.weight.item() == 2.0
    assert network.training
    assert torch.equal(random_state, torch.get_rng_state())  # dropout stayed off


def test_batch_norm_recalibration_brings_a_pruned_network_back_to_scale() -> None:
    pruned = prune_network(make_network(8, 2), _ALL, Evidence(height=16, width=16)).network
    batches = [torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    recalibrate_batch_norm_(pruned, batches)
    assert not any(module.training for module in pruned.modules())
    seen: list[torch.Tensor] = []
    norm = pruned.decoder[-1][4]
    norm.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        pruned(torch.cat(batches))
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=0.2, atol=0.05)


@pytest.mark.parametrize(
    "batches", [[], [torch.full((1, 1, 16, 16), torch.nan)], [torch.rand(2, 1, 16, 16), torch.rand(1, 3, 16, 16)]]
)
def test_batch_norm_statistics_survive_a_failed_recalibration(batches: list[torch.Tensor]) -> None:
    network = make_network().train()
    before = everything_about(network)
    with pytest.raises((InputError, RuntimeError)):
        recalibrate_batch_norm_(network, batches)
    assert everything_about(network) == before
    assert network.encoder[0][1].momentum == 0.1


def test_a_network_without_batch_norm_needs_no_recalibration() -> None:
    assert recalibrate_batch_norm_(nn.Conv2d(1, 2, 1), []) == 0


def test_levels_go_whole_where_the_answer_may_be_coarser() -> None:
    network = make_network(base=8, depth=3)
    config = dataclasses.replace(_ALL, prune_output_stride=4)
    pruned = prune_network(network, config)
    plan = pruned.network.architecture
    assert plan.output_stride == 4 and [level[0] for level in plan.decoder] == [16]
    assert [level[0] for level in plan.encoder] == [4, 8, 16, 32]
    assert answer(pruned.network).shape == (1, 2, 21, 18)
    assert pruned.after["params"] == count_parameters(pruned.network) < pruned.before["params"] / 4
    # All but the new head is what a finer answer has of it.
    fine = prune_network(network, _ALL).network.state_dict()
    coarse = pruned.network.state_dict()
    assert all(torch.equal(tensor, fine[name]) for name, tensor in coarse.items() if not name.startswith("head."))
    assert coarse["head.weight"].shape != fine["head.weight"].shape and coarse["head.weight"].std() > 0.01
    again = PrunePlan.from_dict(json.loads(json.dumps(pruned.plan.to_dict())))
    assert again == pruned.plan and again.output_stride == 4
    assert everything_about(apply_pruning(network, again)) == everything_about(pruned.network)
    # What answers so anyway has no level to lose.
    assert prune_network(pruned.network, config).network.architecture.output_stride == 4


def test_without_levels_to_lose_a_plan_says_nothing_of_them() -> None:
    assert "output_stride" not in prune_network(make_network(), _ALL).plan.to_dict()


@pytest.mark.parametrize("stride", [3, 16])
def test_an_answer_at_no_level_of_the_decoder_is_refused(stride: int) -> None:
    with pytest.raises(InputError, match=f"cannot answer at 1/{stride} of the size") as caught:
        plan_pruning(make_network(depth=3), dataclasses.replace(_ALL, prune_output_stride=stride))
    assert caught.value.hint == "give one of 1, 2, 4, 8"


@pytest.mark.parametrize("value", [0, "2", None, [2]])
def test_a_plan_with_another_output_stride_is_refused(value: object) -> None:
    values = plan_pruning(make_network(), _ALL).to_dict()
    with pytest.raises(InputError, match="'output_stride' is not a positive number"):
        PrunePlan.from_dict({**values, "output_stride": value})


def test_steps_take_levels_once() -> None:
    config = dataclasses.replace(_ALL, prune_output_stride=2, prune_steps=2)
    network = make_network(depth=3)
    plan, pruned = prune_in_steps(network, plan_pruning(network, config), config)
    assert pruned.output_stride == plan.output_stride == 2
    assert everything_about(apply_pruning(network, plan)) == everything_about(pruned)
