"""Pruning through what other authors build: each network with channels removed against itself with these silent."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torch_pruning as tp
from torch import Tensor, nn

from colorpress.core.config import PruneConfig
from colorpress.core.errors import GateError, InputError
from compress import pruning
from compress.dependency_graph import find_groups, layer_widths, remove_channels
from compress.importance import IMPORTANCES, Evidence
from compress.prune_plan import PrunedGroup, PrunePlan
from compress.pruning import apply_pruning, plan_pruning
from compress.ranking import rank_layers
from export.conv_latency import ConvShape
from training.conventions import Conventions
from training.foreign import AdaptedNetwork, ForeignArchitecture
from training.unet import UPSAMPLERS, UNet, UNetPlan

HALF = PruneConfig(largest_share=1.0, prune_ratio=0.5, round_to=1)
# Sums in another order: float32 rounding, a few hundred terms.
SAME_ANSWER = 1e-5
Make = Callable[[int], nn.Module]


def conv(inner: int, outer: int, **options: Any) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inner, outer, 3, padding=1, **options), nn.BatchNorm2d(outer), nn.ReLU())


class Net(nn.Module):
    """Two levels and a skip connection; what is in the middle, goes up and answers is exchanged."""

    def __init__(
        self, middle: Make = lambda _: nn.Identity(), up: Make | None = None, head: Make | None = None
    ) -> None:
        super().__init__()
        self.fine, self.coarse = conv(1, 8), conv(8, 16)
        self.middle = middle(16)
        self.up = up(16) if up else nn.ConvTranspose2d(16, 8, 2, 2)
        self.join = conv(16, 8)
        self.head = head(8) if head else nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.fine(x)
        up: Tensor = self.up(self.middle(self.coarse(F.max_pool2d(fine, 2))))
        answer: Tensor = self.head(self.join(torch.cat([fine, up], 1)))
        return answer


def adapt(make: Callable[[], nn.Module]) -> AdaptedNetwork:
    """A network whose batch norms have statistics of their own."""
    torch.manual_seed(0)
    architecture = ForeignArchitecture("nets.py:Net", {}, Conventions(), 4, "0" * 64)
    network = AdaptedNetwork(make(), architecture, make)
    for name, tensor in network.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(torch.rand(tensor.shape) + 0.5)
        elif tensor.ndim == 1:
            tensor.add_(torch.randn(tensor.shape) * 0.1)
    return network.eval()


def answer(network: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(torch.rand(1, 1, 12, 20, generator=torch.Generator().manual_seed(0)))
    return found


def without(network: AdaptedNetwork, removed: Mapping[str, tuple[int, ...]]) -> AdaptedNetwork:
    source = layer_widths(network)
    groups = find_groups(network, removed)
    assert [group.obstacle for group in groups] == [""] * len(groups)
    plan = PrunePlan(
        source,
        tuple(PrunedGroup(each.root, (), each.channels, removed[each.root], "", each.coupled) for each in groups),
    )
    pruned = apply_pruning(network, plan)
    assert isinstance(pruned, AdaptedNetwork) and layer_widths(pruned) == plan.result
    return pruned


# Against torch-pruning

# A layer, whether its inputs are meant, and a channel of it.
Side = tuple[str, bool, int]


def by_torch_pruning(network: UNet) -> set[frozenset[Side]]:
    """What goes with each channel that may go, found by walking the graph of autograd through known modules."""
    names = {module: name for name, module in network.named_modules()}
    graph = tp.DependencyGraph().build_dependency(
        network,
        torch.zeros(1, 1, 64, 64),
        forward_fn=lambda traced, lightness: traced.forward_coarse(lightness),
        **{name: [] for name in ("unwrapped_parameters", "ignored_layers", "ignored_params")},
        customized_pruners={},
        verbose=False,
    )
    found = set()
    for name, width in layer_widths(network).items():
        layer = network.get_submodule(name)
        prune = graph.get_pruner_of_module(layer).prune_out_channels
        for channel in range(width):
            items = graph.get_pruning_group(layer, prune, [channel]).items
            known = [each for each in items if each.dep.target.module in names]
            found.add(
                frozenset(
                    (names[each.dep.target.module], each.dep.handler.__name__ == "prune_in_channels", int(one))
                    for each in known
                    for one in each.idxs
                )
            )
    return found


@pytest.mark.parametrize(
    "plan",
    [
        *(UNetPlan.classic(4, 2, upsample) for upsample in UPSAMPLERS),
        UNetPlan(((4, 4, 4), (6, 6)), ((5, 5, 5),), residual=True),
        UNetPlan(((6, 3), (5,), (4, 7)), ((3, 5),), stem_stride=2, affine=True),
        UNetPlan(((4, 4), (4, 4, 4)), (), "nearest", stem_stride=4, affine=True, residual=True),
    ],
    ids=lambda plan: f"{plan.upsample}{' residual' * plan.residual}{' affine' * plan.affine}",
)
def test_groups_of_a_unet_are_those_of_torch_pruning(plan: UNetPlan) -> None:
    network = UNet(plan).eval()
    groups = find_groups(network, layer_widths(network))
    assert not any(group.obstacle for group in groups)
    found = {
        frozenset(
            (member.layer, member.reads, own)
            for member in group.members
            for own, of in zip(member.own, member.of, strict=True)
            if of == channel
        )
        for group in groups
        for channel in range(group.channels)
    }
    assert found == by_torch_pruning(network)


# Channels where they are


class HandMadeShuffle(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        x = x.view(count, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
        return x.reshape(count, channels // 4, 2 * height, 2 * width)


class HandMadeMix(nn.Module):
    """A channel shuffle of two groups, as ShuffleNet has it."""

    def forward(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        return x.view(count, 2, channels // 2, height, width).transpose(1, 2).reshape(x.shape)


class Blur(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x, (1, 0, 1, 0), mode="replicate"), 2, 1)


def shuffled(*behind: nn.Module) -> Make:
    return lambda inner: nn.Sequential(nn.Conv2d(inner, 32, 1), nn.PReLU(), *behind)


def unshuffled(inner: int) -> nn.Module:
    behind = nn.PixelUnshuffle(2), nn.Conv2d(16, 4 * inner, 1), nn.PixelShuffle(2)
    return nn.Sequential(nn.Conv2d(inner, 4, 1), *behind)


def grouped(groups: int, mix: nn.Module) -> Make:
    return lambda inner: nn.Sequential(nn.Conv2d(inner, 16, 1, groups=2), mix, nn.Conv2d(16, inner, 1, groups=groups))


@pytest.mark.parametrize(
    ("parts", "root", "channels"),
    [
        ({"up": shuffled(nn.PixelShuffle(2))}, "net.up.0", (4, 5, 6, 7)),
        ({"up": shuffled(HandMadeShuffle(), Blur())}, "net.up.0", (0, 1, 2, 3, 28, 29, 30, 31)),
        ({"up": shuffled(nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.PixelShuffle(2))}, "net.up.0", (8, 9, 10, 11)),
        ({"middle": unshuffled}, "net.middle.0", (2,)),
        ({"middle": grouped(1, nn.ChannelShuffle(2))}, "net.middle.0", (1, 9)),
        ({"middle": grouped(4, HandMadeMix())}, "net.middle.0", (1, 3, 5, 7, 9, 11, 13, 15)),
    ],
    ids=["pixel shuffle", "by hand", "chain", "unshuffle", "channel shuffle", "channel shuffle by hand"],
)
def test_channels_that_are_moved_are_found_where_they_went(
    parts: dict[str, Make], root: str, channels: tuple[int, ...]
) -> None:
    """Those that answer 0 by themselves can go without a change of the answer."""
    network = adapt(lambda: Net(**parts))
    layer: Any = network.get_submodule(root)
    with torch.no_grad():
        layer.weight[list(channels)] = layer.bias[list(channels)] = 0
    pruned = without(network, {root: channels})
    torch.testing.assert_close(answer(pruned), answer(network), rtol=0, atol=SAME_ANSWER)
    if len(channels) > 1:
        with pytest.raises(InputError, match="goes together with one that is removed"):
            remove_channels(network, {root: channels[:-1]})


def test_what_goes_by_four_is_coupled_with_what_goes_by_one() -> None:
    class Added(Net):
        def forward(self, x: Tensor) -> Tensor:
            fine = self.fine(x)
            up = self.up(self.middle(self.coarse(F.max_pool2d(fine, 2)))) + fine
            found: Tensor = self.head(self.join(torch.cat([fine, up], 1)))
            return found

    network = adapt(lambda: Added(up=shuffled(nn.PixelShuffle(2))))
    (group,) = find_groups(network, ["net.up.0", "net.fine.0"])
    assert (group.coupled, group.step, group.units[1]) == (("net.fine.0",), 4, (4, 5, 6, 7))
    pictures = ((torch.rand(1, 1, 12, 12), torch.zeros(1, 2, 12, 12)),)
    for importance in IMPORTANCES:
        plan = plan_pruning(network, replace(HALF, importance=importance), Evidence(pictures))
        assert plan.result["net.up.0"] == 16 and plan.result["net.fine.0"] == 4
        assert layer_widths(apply_pruning(network, plan)) == plan.result


def test_each_group_of_a_convolution_is_counted() -> None:
    network = adapt(lambda: Net(grouped(4, nn.ReLU()), up=lambda _: nn.ConvTranspose2d(16, 8, 2, 2, groups=4)))
    inner, up = find_groups(network, ["net.middle.0", "net.up"])
    reader = next(member for member in inner.members if member.layer == "net.middle.2")
    assert (reader.reads, reader.own, inner.step) == (True, tuple(range(16)), 4)
    assert up.members[0].own == tuple(range(8)) and up.step == 4
    plan = plan_pruning(network, HALF, Evidence(height=16, width=16))
    macs = {layer.name: layer.macs for layer in rank_layers(apply_pruning(network, plan), height=16, width=16)}
    shapes: list[ConvShape] = []

    def note(shape: ConvShape) -> float:
        shapes.append(shape)
        return shape.inputs * shape.outputs / shape.groups

    latency = replace(HALF, prune_strategy="latency")
    plan_pruning(network, latency, Evidence(height=16, width=16, time_convolution=note))
    assert all(not shape.inputs % shape.groups and not shape.outputs % shape.groups for shape in shapes)
    assert macs["net.middle.2"] == 8 * 8 * 8 * 8 // 4


# Networks of many kinds


class Gate(nn.Module):
    """Squeeze and excitation by linear layers, and one map for all channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite, self.map = nn.Linear(width, 4), nn.Linear(4, width), nn.Conv2d(width, 1, 1)
        self.strength = nn.Parameter(torch.rand(1))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))[:, :, None, None]
        return x * gate + torch.sigmoid(self.map(x)) * x + self.strength * x


class Next(nn.Module):
    """ConvNeXt's block: channels last, a layer norm, linear layers, a scale of its own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(width, width, 3, padding=1, groups=width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.scale, self.place = nn.Parameter(torch.rand(width)), nn.Parameter(torch.rand(1, width, 4, 4))

    def forward(self, x: Tensor) -> Any:
        x = x + F.interpolate(self.place, x.shape[-2:], mode="bilinear")
        hidden = F.gelu(self.wide(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
        return x + (self.scale * self.narrow(hidden)).permute(0, 3, 1, 2)


class CalledTwice(nn.Module):
    mean: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.same, self.unused = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 5, 1)
        self.register_buffer("mean", torch.rand(1, width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.same(F.relu(self.same(x)) - self.mean))
        one, other = x.chunk(2, 1)
        return torch.cat([one * other, F.glu(x, 1)], 1)


class Values(nn.Module):
    """Attention: what it is computed by stays, what it passes on need not."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.query, self.value = nn.Conv1d(width, 4, 1), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Any:
        flat = x.flatten(2)
        seen = torch.softmax(self.query(flat).transpose(1, 2) @ self.query(flat), -1)
        return x + (self.value(flat) @ seen).reshape(len(x), -1, *x.shape[2:])


class Half(nn.Module):
    """Its layers compute in copies of their weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(width, 2 * width, 3, padding=1), nn.Conv2d(2 * width, width, 1)

    def forward(self, x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            made = self.narrow(F.relu(self.wide(x)))
        return made.float()


def norms(inner: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(inner, 16, 1, bias=False), nn.InstanceNorm2d(16), nn.LeakyReLU(0.2, True),
        nn.Conv2d(16, 32, 3, padding=1, groups=16), nn.InstanceNorm2d(32, affine=True, track_running_stats=True),
        nn.PReLU(32), nn.Conv2d(32, inner, 3, padding=2, dilation=2, groups=4), nn.BatchNorm2d(inner, affine=False),
        nn.GroupNorm(2, inner), nn.Hardswish(), nn.ConvTranspose2d(inner, inner, 3, padding=1, groups=4),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("middle", "whole"),
    [
        (Gate, {"net.middle.map": "it scales or moves several channels"}),
        (Next, {}),
        (CalledTwice, {}),
        (Half, {}),
        (norms, {}),
        (Values, {"net.middle.query": "its channels are multiplied with each other"}),
    ],
)
def test_half_of_every_layer_goes_but_what_cannot(middle: Make, whole: dict[str, str]) -> None:
    network = adapt(lambda: Net(middle))
    before, plan = layer_widths(network), plan_pruning(network, HALF)
    assert "net.head" not in before and "net.middle.unused" not in before and len(before) >= 5
    assert plan.result == {name: width if name in whole else width // 2 for name, width in before.items()}
    for group in plan.groups:
        assert whole.get(group.root, "channels of least") in group.reason
    pruned = apply_pruning(network, plan)
    assert layer_widths(pruned) == plan.result
    assert layer_widths(apply_pruning(pruned, plan_pruning(pruned, HALF))) != plan.result  # it can be pruned again


# Heads


class TwoHeads(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.a, self.b = (nn.Sequential(nn.Conv2d(width, 4, 1), nn.ReLU(), nn.Conv2d(4, 1, 1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(torch.cat([self.a(x), self.b(x)], 1))


class LinearHead(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Sliced(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[:, 1:]


class Moved(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.last, self.beside = nn.Conv2d(width, 2, 1), nn.Conv2d(width, 2, 1)
        self.offset = nn.Parameter(torch.rand(2, 1, 1))

    def forward(self, x: Tensor) -> Any:
        return torch.tanh(self.last(x) + self.offset) + self.beside(x)


@pytest.mark.parametrize(
    ("head", "last"),
    [
        (lambda width: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(width, 8, 1), nn.PixelShuffle(2)), {"net.head.1"}),
        (TwoHeads, {"net.head.a.2", "net.head.b.2"}),
        (lambda width: LinearHead(width, 2), {"net.head"}),
        (lambda width: Sliced(width, 3, 1), {"net.head"}),
        (Moved, {"net.head.last", "net.head.beside"}),
        (lambda width: nn.Sequential(nn.Conv2d(width, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 2, 1)), {"net.head.2"}),
    ],
    ids=["shuffled", "two", "linear", "sliced", "moved", "transposed"],
)
def test_the_last_layers_before_the_answer_keep_their_channels(head: Make, last: set[str]) -> None:
    network = adapt(lambda: Net(head=head))
    kinds = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
    layers = {name for name, each in network.named_modules() if isinstance(each, kinds)}
    assert layers - layer_widths(network).keys() == last
    plan = plan_pruning(network, HALF)
    assert all(group.removed for group in plan.groups) and plan.result["net.join.0"] == 4
    assert answer(apply_pruning(network, plan)).shape == (1, 2, 12, 20)


# What is left whole


class Computed(nn.Conv2d):
    """Weight standardization."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / self.weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, padding=1)


class Turned(nn.Module):
    """Counts on its channels by number, where the answer has the same shape without some of them."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, 4:], x[:, :4]], 1)


class OverChannels(nn.Module):
    def forward(self, x: Tensor) -> Any:
        return x / x.norm(dim=1, keepdim=True).clamp(min=1)


class ManyHeads(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        tokens = x.flatten(2).transpose(1, 2)
        return x + super().forward(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (lambda width: Computed(width, width, 3), "weights that are computed"),
        (lambda _: Turned(), "otherwise than the original without these channels"),
        (lambda _: OverChannels(), "a figure over all of its channels"),
        (lambda width: ManyHeads(width, 2, batch_first=True), "native_multi_head_attention, which is not followed"),
    ],
)
def test_what_cannot_be_followed_is_left_whole_with_the_reason(middle: Make, reason: str) -> None:
    network = adapt(lambda: Net(middle))
    plan = plan_pruning(network, HALF)
    assert reason in next(group.reason for group in plan.groups if group.root == "net.coarse.0")
    assert plan.result["net.coarse.0"] == 16 and plan.result["net.fine.0"] == plan.result["net.up"] == 4


def test_a_parameter_of_its_own_counts_for_no_share() -> None:
    class Large(Net):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(torch.rand(1, 1, 200, 200))

        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + self.place.mean())

    plan = plan_pruning(adapt(Large), replace(HALF, largest_share=0.5))
    assert [group.root for group in plan.groups if group.removed] == ["net.coarse.0", "net.join.0"]


def test_a_network_of_which_nothing_can_go_is_refused_with_the_reason() -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(1, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.b(torch.softmax(self.a(x), 1))
            return found

    with pytest.raises(InputError, match=r"'net\.a': its channels are weighed against each other"):
        plan_pruning(adapt(Whole), HALF)
    with pytest.raises(InputError, match="none of its layers makes channels"):
        plan_pruning(adapt(lambda: nn.Conv2d(1, 2, 1)), HALF)


def test_what_is_removed_wrongly_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    network = adapt(Net)
    plan = plan_pruning(network, HALF)

    def remove_others(network: AdaptedNetwork, removed: Mapping[str, Any]) -> dict[str, Tensor]:
        weights = remove_channels(network, removed)
        return {**weights, "net.join.0.weight": weights["net.join.0.weight"].flip(1)}

    monkeypatch.setattr(pruning, "remove_channels", remove_others)
    with pytest.raises(GateError, match="otherwise than the original without these channels"):
        apply_pruning(network, plan)
