"""Measures of importance: each formula against one computed by hand, and what data knows that weights do not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from colorpress.core.config import DATA_DRIVEN, PruneConfig
from colorpress.core.errors import ConfigError
from compress.dependency_graph import ChannelGroup, Member, find_groups, layer_widths
from compress.importance import IMPORTANCES, Evidence, Picture, _by_channel, score_groups
from compress.pruning import plan_pruning
from tests.conftest import make_network
from training.unet import UNet, UNetPlan

# Sums in another order: float32 rounding, a few hundred terms.
CLOSE: dict[str, float] = {"rtol": 1e-4, "atol": 1e-9}
ROOT = "encoder.0.3"  # read by the level below and, as a skip connection, by the decoder


@pytest.fixture
def network() -> UNet:
    return make_network(UNetPlan.classic(4, 1))


@pytest.fixture
def pictures() -> tuple[Picture, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((12, 9), (16, 16), (7, 20))
    return tuple(
        (torch.rand(1, 1, *size, generator=generator), torch.rand(1, 2, *size, generator=generator) - 0.5)
        for size in sizes
    )


def scores_of(network: UNet, measure: str, pictures: tuple[Picture, ...] = (), root: str = ROOT) -> Tensor:
    return score_groups(network, find_groups(network, [root]), measure, Evidence(pictures))[root].values


def channel_changes(network: UNet, picture: Picture) -> list[list[Tensor]]:
    """g * w of every weight that reads each channel of `ROOT`, by hand, for one picture."""
    lightness, ab = picture
    network.zero_grad()
    (network(lightness) - ab).abs().mean().backward()
    state = dict(network.named_parameters())
    product = {name: tensor.grad * tensor.detach() for name, tensor in state.items() if tensor.grad is not None}
    network.zero_grad()
    return [
        [
            product["encoder.1.0.weight"][:, channel],
            product["decoder.0.0.weight"][:, channel],
        ]
        for channel in range(4)
    ]


@pytest.mark.parametrize("measure", IMPORTANCES)
class TestEveryImportance:
    def test_scores_are_finite_and_one_for_each_channel(
        self, network: UNet, pictures: tuple[Picture, ...], measure: str
    ) -> None:
        groups = find_groups(network, layer_widths(network))
        given = pictures if measure in DATA_DRIVEN else ()
        found = score_groups(network, groups, measure, Evidence(given))
        assert list(found) == [group.root for group in groups]
        for group in groups:
            values = found[group.root].values
            assert values.shape == (group.channels,) and values.dtype == torch.float64
            assert bool(values.isfinite().all()) and float(values.min()) >= 0 and float(values.max()) > 0
            assert found[group.root].measure

    def test_it_answers_alike_each_time(self, network: UNet, pictures: tuple[Picture, ...], measure: str) -> None:
        assert torch.equal(scores_of(network, measure, pictures), scores_of(network, measure, pictures))

    def test_the_network_stays_as_it_is(self, network: UNet, pictures: tuple[Picture, ...], measure: str) -> None:
        network.train()
        before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
        scores_of(network, measure, pictures)
        assert network.training
        assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
        assert not any(module._forward_hooks for module in network.modules())

    def test_photographs_are_demanded_where_they_are_looked_at(self, network: UNet, measure: str) -> None:
        if measure in DATA_DRIVEN:
            with pytest.raises(ConfigError, match=f"'--importance': {measure} needs training photographs"):
                scores_of(network, measure)
        else:
            scores_of(network, measure)

    def test_it_is_an_option(self, measure: str) -> None:
        assert PruneConfig(importance=measure).importance == measure


def test_every_option_is_an_importance() -> None:
    (choices,) = (each.metadata["choices"] for each in fields(PruneConfig) if each.name == "importance")
    assert set(choices) == set(IMPORTANCES)


def test_taylor_is_the_mean_square_of_the_joint_first_order_change(
    network: UNet, pictures: tuple[Picture, ...]
) -> None:
    expected = [
        sum(float(sum(part.sum() for part in channel_changes(network, each)[channel])) ** 2 for each in pictures) / 3
        for channel in range(4)
    ]
    found = scores_of(network, "taylor", pictures)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **CLOSE)


def test_taylor_is_the_slope_of_a_gate(network: UNet, pictures: tuple[Picture, ...]) -> None:
    """Multiply a channel by a little less than 1 and see what the loss does."""
    (lightness, ab), step = pictures[0], 1e-3

    def loss(gate: float) -> Tensor:
        def shrink(_module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            return output * torch.tensor([1.0, gate, 1.0, 1.0])[:, None, None]

        handle = network.encoder[0][5].register_forward_hook(shrink)  # behind the ReLU, ahead of both readers
        with torch.no_grad():
            answer = (network.double()(lightness.double()) - ab).abs().mean()
        handle.remove()
        return answer

    slope = float(loss(1 + step) - loss(1 - step)) / (2 * step)
    network.float()
    assert scores_of(network, "taylor", pictures[:1])[1] == pytest.approx(slope**2, rel=0.05)


def test_hessian_is_half_the_mean_of_the_squared_changes(network: UNet, pictures: tuple[Picture, ...]) -> None:
    expected = [
        sum(sum(float(part.square().sum()) for part in channel_changes(network, each)[channel]) for each in pictures)
        / 6
        for channel in range(4)
    ]
    found = scores_of(network, "hessian", pictures)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize(
    ("root", "readers"),
    [
        (ROOT, {"encoder.1.0": slice(0, 4), "decoder.0.0": slice(0, 4)}),
        ("up.0", {"decoder.0.0": slice(4, 8)}),  # read without a ReLU between, so of either sign
    ],
)
def test_activation_is_the_mean_size_of_what_the_readers_get(
    network: UNet, pictures: tuple[Picture, ...], root: str, readers: dict[str, slice]
) -> None:
    expected = torch.zeros(4, dtype=torch.float64)
    for name, channels in readers.items():
        seen: list[Tensor] = []
        handle = network.get_submodule(name).register_forward_pre_hook(lambda _m, inputs, s=seen: s.append(inputs[0]))
        with torch.no_grad():
            for lightness, _ in pictures:
                network(lightness)
        handle.remove()
        expected += sum(each[0, channels].abs().mean((1, 2)).double() for each in seen) / 3
    torch.testing.assert_close(scores_of(network, "activation", pictures, root), expected, **CLOSE)


def test_fpgm_is_the_sum_of_distances_to_the_other_filters(network: UNet) -> None:
    with torch.no_grad():
        network.encoder[0][3].weight[1] = network.encoder[0][3].weight[[0, 2, 3]].mean(0)  # as replaceable as can be
    filters = network.encoder[0][3].weight.detach().flatten(1).double()
    expected = torch.stack([(filters - one).norm(dim=1).sum() for one in filters])
    found = scores_of(network, "fpgm")
    torch.testing.assert_close(found, expected, **CLOSE)
    assert found.argmin() == 1


@pytest.mark.parametrize("measure", DATA_DRIVEN)
def test_data_finds_a_channel_that_matters_though_its_weights_are_small(
    network: UNet, pictures: tuple[Picture, ...], measure: str
) -> None:
    """Channel 2 has the smallest weights and is the only one that ever gives anything but 0."""
    with torch.no_grad():
        norm = network.encoder[0][4]
        network.encoder[0][3].weight[2] *= 0.05
        norm.running_mean.zero_()
        norm.weight[2], norm.bias[2] = 0.01, 0.5
        norm.bias[[0, 1, 3]] = -100.0  # dead behind the ReLU, whatever their weights
        for reader in (network.encoder[1][0], network.decoder[0][0]):
            reader.weight[:, 2] *= 0.1
    assert scores_of(network, "magnitude").argmin() == 2
    found = scores_of(network, measure, pictures)
    assert found.argmax() == 2
    assert found[2] > 10 * found[[0, 1, 3]].max()
    config = PruneConfig(largest_share=1.0, round_to=1, importance=measure)
    plan = plan_pruning(network, config, Evidence(pictures))
    group = next(group for group in plan.groups if group.root == ROOT)
    assert 2 not in group.removed
    assert f"channels of least {measure} go" in group.reason


@pytest.mark.parametrize("measure", DATA_DRIVEN)
def test_every_photograph_counts(network: UNet, pictures: tuple[Picture, ...], measure: str) -> None:
    one_by_one = [scores_of(network, measure, (picture,)) for picture in pictures]
    torch.testing.assert_close(scores_of(network, measure, pictures), torch.stack(one_by_one).mean(0), **CLOSE)


@pytest.mark.parametrize("measure", DATA_DRIVEN)
@pytest.mark.parametrize("surroundings", [torch.inference_mode, torch.no_grad])
def test_measuring_leaves_the_network_as_it_is(network: UNet, measure: str, surroundings: Callable[[], Any]) -> None:
    network.train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with surroundings():
        picture = (torch.rand(1, 1, 8, 8), torch.zeros(1, 2, 8, 8))  # tensors as inference mode makes them
        scores_of(network, measure, (picture,))
    assert network.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize("measure", DATA_DRIVEN)
def test_a_measure_of_data_without_photographs_is_refused(network: UNet, measure: str) -> None:
    with pytest.raises(ConfigError, match=f"'--importance': {measure} needs training photographs"):
        plan_pruning(network, PruneConfig(importance=measure))


def test_a_group_says_which_channel_of_each_layer_goes_with_which(network: UNet) -> None:
    group = next(iter(find_groups(network, ["up.0"])))
    assert (group.channels, group.coupled, group.obstacle, group.step) == (layer_widths(network)["up.0"], (), "", 1)
    reader = next(member for member in group.members if member.layer == "decoder.0.0")
    assert reader == Member("decoder.0.0", "Conv2d", True, own=(4, 5, 6, 7), of=(0, 1, 2, 3))  # behind the skip


def test_a_batch_norm_without_scales_counts_for_nothing(network: UNet) -> None:
    network.encoder[0][4] = nn.BatchNorm2d(4, affine=False)
    groups = find_groups(make_network(UNetPlan.classic(4, 1)), [ROOT])
    found = {measure: score_groups(network, groups, measure)[ROOT] for measure in ("magnitude", "bn-scale")}
    assert found["bn-scale"].measure == "magnitude"
    assert torch.equal(found["bn-scale"].values, found["magnitude"].values)


def layers() -> Iterator[tuple[nn.Module, bool, Callable[[nn.Module, int], None]]]:
    """A layer, which side of it, and how to silence one channel of that side by hand."""

    def silence_output(layer: Any, channel: int) -> None:
        width = layer.out_channels // layer.groups
        if isinstance(layer, nn.ConvTranspose2d):
            inputs = layer.in_channels // layer.groups
            part = channel // width
            layer.weight.data[part * inputs : (part + 1) * inputs, channel % width] = 0
        else:
            layer.weight.data[channel] = 0

    def silence_input(layer: Any, channel: int) -> None:
        width, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
        part = channel // width
        if isinstance(layer, nn.ConvTranspose2d):
            layer.weight.data[channel] = 0
        else:
            layer.weight.data[part * outputs : (part + 1) * outputs, channel % width] = 0

    for kind in (nn.Conv2d, nn.ConvTranspose2d):
        for groups in (1, 2):
            yield kind(4, 6, 3, groups=groups), False, silence_output
            yield kind(4, 6, 3, groups=groups), True, silence_input


@pytest.mark.parametrize(("layer", "reads", "silence"), list(layers()))
def test_the_weights_of_a_channel_are_those_that_it_needs(
    layer: Any, reads: bool, silence: Callable[[nn.Module, int], None]
) -> None:
    channels = layer.in_channels if reads else layer.out_channels
    member = Member("any", "any", reads, tuple(range(channels)), tuple(range(channels)))
    for channel in range(channels):
        nn.init.constant_(layer.weight, 1.0)
        silence(layer, channel)
        sums = _by_channel(layer, layer.weight.detach(), member).sum(1)
        assert sums[channel] == 0
        assert (sums != 0).sum() == channels - 1
        assert sums.sum() == layer.weight.sum()


def test_a_layer_that_is_flattened_counts_every_value_of_a_channel() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 2)

    network = Flat()
    nn.init.constant_(network.linear.weight, 0.0)
    network.linear.weight.data[:, 4] = 3.0
    member = Member("linear", "Linear", True, own=tuple(range(6)), of=(0, 0, 0, 1, 1, 1))
    group = ChannelGroup("linear", 2, (member,), (), "", 1)
    assert score_groups(network, [group], "magnitude")["linear"].values.tolist() == [0.0, 18.0]  # type: ignore[arg-type]
