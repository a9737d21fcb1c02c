"""What depends on a channel: the groups of layers that lose channels together, and weights without these."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from colorpress.core.errors import InputError
from compress.channel_flow import ChannelFlow, Cut, follow_channels
from training.network import ColorNetwork
from training.unet import UNet
from training.user_code import describe_failure

_SUMMED = "its channels are added to a part of those of"


@dataclass(frozen=True)
class Member:
    """One side of a layer that loses channels with a group.

    Attributes:
        layer: its name. `kind`: its class.
        reads: whether its input channels go; else its output channels, or both where they are the same.
        own: the numbers of these channels in the layer.
        of: the channel of the group's root that each of them goes with.
    """

    layer: str
    kind: str
    reads: bool
    own: tuple[int, ...]
    of: tuple[int, ...]

    def describe(self) -> str:
        """For the reader of a plan."""
        return f"{self.layer} ({self.kind}, {'input' if self.reads else 'output'})"


@dataclass(frozen=True)
class ChannelGroup:
    """Everything that goes with the output channels of one layer.

    Attributes:
        root: name of the layer, a convolution or a linear one. `channels`: its output channels.
        members: every layer that changes, the root first.
        coupled: the other layers that make channels which go with the root's, as those do that are added to them.
        obstacle: why none may go; empty where they may.
        units: the root's channels that go together, all of one size: one by one, but by four where a pixel shuffle
            makes one of four, and one of each part where parts have to stay equal, as those of a group norm.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    coupled: tuple[str, ...]
    obstacle: str
    units: tuple[tuple[int, ...], ...]

    @property
    def step(self) -> int:
        """How many channels go at a time."""
        return len(self.units[0])


def layer_widths(network: ColorNetwork) -> dict[str, int]:
    """Output channels of every layer that may lose some: all that make channels, but those that make the answer.

    Raises:
        InputError: as `find_groups`.
    """
    if isinstance(network, UNet):  # known without asking
        convolutions = nn.Conv2d | nn.ConvTranspose2d
        named = [(name, each) for name, each in network.named_modules() if isinstance(each, convolutions)]
        return {name: each.out_channels for name, each in named if each is not network.head}
    flow = _flow(network)
    found = {name: len(channels) for name, channels in flow.layers.items() if name not in flow.answers}
    return {name: found[name] for name, _ in network.named_modules() if name in found}


def find_groups(network: ColorNetwork, roots: Iterable[str]) -> tuple[ChannelGroup, ...]:
    """The groups of these layers, in their order; one that goes with an earlier one has none of its own.

    Raises:
        InputError: its channels cannot be followed.
    """
    flow = _flow(network)
    modules = dict(network.named_modules())
    groups: list[ChannelGroup] = []
    taken: set[str] = set()
    for root in roots:
        if root not in taken:
            coupled = _find_coupled(flow, root)
            taken |= {root, *coupled}
            groups.append(_make_group(flow, modules, root, coupled))
    return tuple(groups)


def remove_channels(network: ColorNetwork, removed: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The weights of `network` without output channels of layers by name, and without all that depends on them.

    Raises:
        InputError: its channels cannot be followed, or some of these do not go without others.
    """
    weights = _copy_weights(network)
    for cut, gone in _cuts(network, removed):
        kept = [place for place, channel in enumerate(cut.channels) if channel not in gone]
        whole = weights[cut.name]
        weights[cut.name] = whole.index_select(cut.dimension, torch.tensor(kept, device=whole.device)).contiguous()
    return weights


def silence_channels(network: ColorNetwork, removed: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """The weights of `network`, 0 where these channels are read: what `remove_channels` has to answer like.

    Raises:
        InputError: as `remove_channels`.
    """
    weights = _copy_weights(network)
    for cut, gone in _cuts(network, removed):
        if cut.reads:
            silent = [place for place, channel in enumerate(cut.channels) if channel in gone]
            weight = weights[cut.name]
            weight.index_fill_(cut.dimension, torch.tensor(silent, device=weight.device), 0.0)
    return weights


def widths_without(network: ColorNetwork, removed: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """`layer_widths` of the network that `remove_channels` leaves.

    Raises:
        InputError: as `remove_channels`.
    """
    flow, gone = _flow(network), _numbers(network, removed)
    widths = layer_widths(network)
    return {name: width - sum(each in gone for each in flow.layers[name]) for name, width in widths.items()}


def copy_network(network: ColorNetwork) -> ColorNetwork:
    """A copy with its own tensors and without hooks, in eval mode."""
    return network.with_weights(network.state_dict())


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel of a convolution is made from one input channel alone."""
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and 1 < module.groups == module.in_channels


# By the network and the shapes of its weights, since one pass answers for all that is asked of it.
_KNOWN: WeakKeyDictionary[nn.Module, tuple[tuple[torch.Size, ...], ChannelFlow]] = WeakKeyDictionary()


def _flow(network: ColorNetwork) -> ChannelFlow:
    shapes = tuple(tensor.shape for tensor in network.state_dict().values())
    if network not in _KNOWN or _KNOWN[network][0] != shapes:
        try:
            copy = copy_network(network).cpu()
            found = follow_channels(copy, _example_input(copy))
        except Exception as error:  # a network of any kind fails in any way
            why = f"its channels cannot be followed: {describe_failure(error)}"
            raise InputError("network", network.title, why, "export and quantize it unpruned") from error
        _KNOWN[network] = shapes, found
    return _KNOWN[network][1]


def _example_input(network: ColorNetwork) -> Tensor:
    # Not the smallest possible: at one by one a mean over places would look like one over nothing.
    side = max(2 * network.size_multiple, 32)
    side += -side % network.size_multiple
    return torch.linspace(0, 1, side * side).reshape(1, 1, side, side)


def _copy_weights(network: ColorNetwork) -> dict[str, Tensor]:
    with torch.inference_mode(False):
        return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def _find_coupled(flow: ChannelFlow, root: str) -> tuple[str, ...]:
    """The other layers that share channels with `root`, or with one that does."""
    found, channels = {root}, set(flow.layers[root])
    while True:
        more = {name for name, own in flow.layers.items() if name not in found and not channels.isdisjoint(own)}
        if not more:
            return tuple(name for name in flow.layers if name in found and name != root)
        found |= more
        channels |= {channel for name in more for channel in flow.layers[name]}


def _make_group(flow: ChannelFlow, modules: Mapping[str, nn.Module], root: str, coupled: Sequence[str]) -> ChannelGroup:
    units: dict[int, list[int]] = {}
    for place, channel in enumerate(flow.layers[root]):
        units.setdefault(channel, []).append(place)
    obstacle = _find_obstacle(flow, root, coupled)
    members: dict[tuple[str, bool], Member] = {}
    for cut in flow.cuts:
        layer = cut.name.rpartition(".")[0]
        if layer in modules and (layer, cut.reads) not in members:
            channels = cut.channels * _groups_of(modules[layer], cut)
            own = [place for place, channel in enumerate(channels) if channel in units]
            if own:
                kind = type(modules[layer]).__name__
                members[layer, cut.reads] = Member(layer, kind, cut.reads, tuple(own), _partners(channels, own, units))
    first = members.pop((root, False))
    return ChannelGroup(
        root=root,
        channels=len(flow.layers[root]),
        members=(first, *members.values()),
        coupled=tuple(coupled),
        obstacle=obstacle,
        units=tuple(tuple(unit) for unit in units.values()),
    )


def _groups_of(module: nn.Module, cut: Cut) -> int:
    """How often the places of a cut are there: the second dimension of weights is that of one group of channels."""
    return module.groups if isinstance(module, _ConvNd) and cut.dimension == 1 else 1


def _partners(channels: Sequence[int], own: Sequence[int], units: Mapping[int, Sequence[int]]) -> tuple[int, ...]:
    """The root's channel that each place goes with: in order, where a unit is of several."""
    counts = Counter(channels)
    seen: Counter[int] = Counter()
    partners = []
    for place in own:
        channel = channels[place]
        unit = units[channel]
        partners.append(unit[seen[channel] * len(unit) // counts[channel]])
        seen[channel] += 1
    return tuple(partners)


def _find_obstacle(flow: ChannelFlow, root: str, coupled: Sequence[str]) -> str:
    """Why no channel of these layers may go, empty where some may."""
    own = Counter(flow.layers[root])
    for name in (root, *coupled):
        counts = Counter(flow.layers[name])
        if counts.keys() != own.keys() or len(set(counts.values())) > 1:
            return f"{_SUMMED} {name}" if name != root else "its channels cannot go in equal parts"
        if why := next((flow.fixed[channel] for channel in counts if channel in flow.fixed), ""):
            return why if name == root else f"its channels go with those of {name}, of which {why}"
    return "all of its channels go together" if len(own) == 1 and flow.layers[root][1:] else ""


def _cuts(network: ColorNetwork, removed: Mapping[str, Sequence[int]]) -> list[tuple[Cut, set[int]]]:
    """Everything that changes, with the numbers of the channels that go."""
    gone = _numbers(network, removed)
    return [(cut, gone) for cut in _flow(network).cuts if not gone.isdisjoint(cut.channels)]


def _numbers(network: ColorNetwork, removed: Mapping[str, Sequence[int]]) -> set[int]:
    """The channels that go, as `ChannelFlow` numbers them."""
    flow = _flow(network)
    gone: set[int] = set()
    for root, places in removed.items():
        channels = flow.layers[root]
        gone |= {channels[place] for place in places}
        together = [place for place, channel in enumerate(channels) if channel in gone]
        if missing := sorted(set(together) - set(places)):
            why = f"channel {missing[0]} of {root!r} goes together with one that is removed, and is not"
            raise InputError("prune plan", None, why, "remove all channels that go together, or none of them")
    return gone
