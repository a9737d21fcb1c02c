"""What depends on a channel: the one door to torch-pruning's dependency graph, which leaves as plain data.

It finds what goes with a channel: batch norm, the layers behind it, and behind skip connections. It changes modules in
place, so it only ever sees a copy; and it is given every argument, since its mutable defaults leak from one call to
the next.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch_pruning as tp
from torch import Tensor, nn

from colorpress.core.errors import InputError
from compress.ranking import convolution_channels, hooked
from training.network import ColorNetwork
from training.unet import UNet


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
    """Everything that goes with the output channels of one convolution.

    Attributes:
        root: name of the convolution. `channels`: its output channels.
        members: every layer that changes, the root first.
        coupled: the other convolutions whose output channels go one for one with the root's.
        obstacle: why none may go; empty where they may.
        parts: how many equal parts of the channels have to stay equal: the groups of its group norms.
    """

    root: str
    channels: int
    members: tuple[Member, ...]
    coupled: tuple[str, ...]
    obstacle: str
    parts: int


def layer_widths(network: ColorNetwork) -> dict[str, int]:
    """Output channels of every convolution that may lose some: all but the output layer, which gives ab."""
    output, channels = _output_layer(network), convolution_channels(network)
    return {name: width for name, width in channels.items() if network.get_submodule(name) is not output}


def find_groups(network: ColorNetwork, roots: Iterable[str]) -> tuple[ChannelGroup, ...]:
    """The groups of these convolutions, in their order; one that goes with an earlier one has none of its own.

    Raises:
        InputError: torch-pruning cannot follow the network, or no convolution gives its two output channels.
    """
    copy, widths = copy_network(network), layer_widths(network)
    names = {module: name for name, module in copy.named_modules()}
    groups: list[ChannelGroup] = []
    taken: dict[str, str] = {}
    with torch.inference_mode(False), torch.enable_grad():
        graph = _trace(copy)
        for root in roots:
            if root in taken:
                continue
            found = _find(graph, copy.get_submodule(root), range(widths[root]))
            coupled, obstacle = _find_coupled(found, names, root, widths)
            if not obstacle and (others := [name for name in coupled if name in taken]):
                obstacle = f"its channels are added to those of {others[0]}, which go with {taken[others[0]]}"
            if not obstacle:
                taken |= dict.fromkeys((root, *coupled), root)
            norms = [d.target.module.num_groups for d, _ in found if isinstance(d.target.module, nn.GroupNorm)]
            groups.append(
                ChannelGroup(root, widths[root], _members(found, names), coupled, obstacle, math.lcm(1, *norms))
            )
    return tuple(groups)


def remove_channels_(network: ColorNetwork, removed: Mapping[str, Sequence[int]]) -> None:
    """Remove output channels of convolutions by name, and all that depends on them; changes `network`."""
    with torch.inference_mode(False), torch.enable_grad():
        graph = _trace(network)
        for root, channels in removed.items():
            _find(graph, network.get_submodule(root), channels).prune(record_history=False)


def copy_network(network: ColorNetwork) -> ColorNetwork:
    """A copy with its own tensors and without hooks, in eval mode."""
    return network.with_weights(network.state_dict())


def is_depthwise(module: nn.Module) -> bool:
    """Whether each channel of a convolution is made from its own input channel alone."""
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and 1 < module.groups == module.out_channels


def _output_layer(network: ColorNetwork) -> nn.Module:
    """The convolution that gives the two channels of ab: the last one of those with two that is executed."""
    if isinstance(network, UNet):
        return network.head
    last: list[nn.Module] = []
    convolutions = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.out_channels == 2
    ]
    with hooked(network, convolutions, lambda each, *_: last.append(each)), torch.no_grad():
        network.forward_coarse(_example_input(network))
    if not last:
        why = "no convolution of it gives the two channels of ab"
        raise InputError("network", network.title, why, "this network cannot be pruned; export it as it is")
    return last[-1]


def _example_input(network: ColorNetwork) -> Tensor:
    # Not the smallest possible: at one by one a flattened picture would look like its channels.
    side = max(2 * network.size_multiple, 32)
    return next(network.parameters()).new_zeros(1, 1, side, side)


def _trace(network: ColorNetwork) -> tp.DependencyGraph:
    """The graph of one forward pass, of the part without padding and cropping, which change no channels."""
    try:
        with warnings.catch_warnings():
            # It warns of parameters outside of layers; what they would break is found out by forward passes.
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                network,
                example_inputs=_example_input(network),
                forward_fn=lambda traced, lightness: traced.forward_coarse(lightness),
                output_transform=None,
                unwrapped_parameters=[],
                customized_pruners={},
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
    except Exception as error:  # a network of any kind fails in any way
        why = f"torch-pruning cannot follow it: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError("network", network.title, why, "export and quantize it unpruned") from error


def _find(graph: tp.DependencyGraph, module: nn.Module, channels: Iterable[int]) -> tp.dependency.Group:
    return graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, list(channels))


def _members(group: tp.dependency.Group, names: Mapping[nn.Module, str]) -> tuple[Member, ...]:
    return tuple(
        Member(
            layer=names[item.dep.target.module],
            kind=type(item.dep.target.module).__name__,
            reads=_is_input(item.dep),
            own=tuple(int(channel) for channel in item.idxs),
            of=tuple(int(channel) for channel in item.root_idxs),
        )
        for item in group.items
        if item.dep.target.module in names
    )


def _find_coupled(
    group: tp.dependency.Group, names: Mapping[nn.Module, str], root: str, widths: Mapping[str, int]
) -> tuple[tuple[str, ...], str]:
    """The other convolutions whose output channels go with those of `root`, one for one; and why none may go."""
    coupled: dict[str, None] = {}
    for dependency, channels in group:
        module, name = dependency.target.module, names.get(dependency.target.module, "")
        if isinstance(module, nn.Parameter) or (not name and any(True for _ in module.parameters(recurse=False))):
            return (), "its channels reach a parameter of its own, outside of any layer"
        if isinstance(module, nn.GroupNorm) and len(channels) != widths[root]:
            return (), f"{name} normalizes groups that span several layers"
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or name == root:
            continue
        if not _is_input(dependency) or is_depthwise(module):
            if name not in widths:
                return (), "its answer is added to the network's"
            if len(channels) != widths[root] or widths[name] != widths[root]:
                return (), f"its channels are added to a part of those of {name}"
            coupled[name] = None
    return tuple(coupled), ""


def _is_input(dependency: tp.dependency.Dependency) -> bool:
    return bool(dependency.handler.__name__ == "prune_in_channels")
