"""How much each channel of a group matters, by several measures; a channel of least importance goes first.

Formulas of our own over `ChannelGroup`, since torch-pruning 1.6.1 overwrites where it should accumulate: its Hessian
measure keeps the last batch of gradients, its activation measure the last batch of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.core.config import DATA_DRIVEN, DataConfig
from colorpress.core.errors import ConfigError
from compress.dependency_graph import ChannelGroup, Member, copy_network
from training.batches import whole_photos
from training.lab import rgb_to_l_ab
from training.network import ColorNetwork
from training.photos import Photo

# L (1, 1, H, W) in [0, 1] and its true ab (1, 2, H, W) in ab/128.
Picture = tuple[Tensor, Tensor]

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_WEIGHTED = (*_CONVOLUTIONS, nn.Linear, nn.BatchNorm2d)


@dataclass(frozen=True)
class ChannelScores:
    """The importance of each channel of a group, float64 (channels,), at least 0; and what it was measured by."""

    values: Tensor
    measure: str

    @property
    def normalized(self) -> Tensor:
        """The same with a mean of 1, which compares the channels of one group with those of another."""
        mean = self.values.mean()
        return self.values / mean if mean > 0 else self.values

    @property
    def order(self) -> list[int]:
        """Channels from least to most important; of equals the first one."""
        order: list[int] = self.values.argsort(stable=True).tolist()
        return order


def load_pictures(photos: Sequence[Photo], *, short_side: int, data: DataConfig) -> tuple[Picture, ...]:
    """Whole photographs with their true colours, at a short side of at most `short_side` pixels."""
    return tuple(rgb_to_l_ab(rgb) for _, rgb in whole_photos(photos, short_side=short_side, max_pixels=data.max_pixels))


def score_groups(
    network: ColorNetwork,
    groups: Sequence[ChannelGroup],
    measure: str,
    *,
    pictures: Sequence[Picture] = (),
    seed: int = 0,
) -> dict[str, ChannelScores]:
    """The importance of every channel of `groups`, by root; `network` stays as it is.

    Without photographs:
    - magnitude: the squared L2 norm of all weights that make, scale and read the channel.
    - bn-scale: the size of its batch norm weights (Liu et al. 2017, Network Slimming); magnitude where there is none.
    - fpgm: the sum of the distances from its filter to all others of the layer; one near the geometric median of them
      all can be replaced by the others (He et al. 2019).
    - random: by `seed`; the control that the others have to beat.
    With photographs, where g is the gradient of the L1 loss of one of them in eval mode, E the mean over all, and w the
    weights that read the channel, since to remove it is to make just these 0:
    - taylor: E[(sum of g w)^2], the first-order change of the loss (Molchanov et al. 2019, equation 8; the sum is the
      gradient of a gate on the channel).
    - hessian: E[sum of (g w)^2] / 2, the second-order change with the diagonal of the Hessian taken as E[g^2] (LeCun
      et al. 1989, Optimal Brain Damage; the empirical Fisher information in place of the Hessian).
    - activation: E of the mean absolute value that the layers behind it read (Molchanov et al. 2017).

    Raises:
        ConfigError: the measure needs photographs and there are none.
    """
    if measure in DATA_DRIVEN and not pictures:
        hint = f"give a folder of photographs, or choose another than {', '.join(DATA_DRIVEN)}"
        raise ConfigError("option", "--importance", f"{measure} needs training photographs, there are none", hint)
    if measure in ("taylor", "hessian"):
        return _named(_score_by_gradients(network, groups, pictures, joint=measure == "taylor"), measure)
    if measure == "activation":
        return _named(_score_by_activations(network, groups, pictures), measure)
    if measure == "random":
        generator = torch.Generator().manual_seed(seed)
        luck = {group.root: torch.rand(group.channels, generator=generator).double() for group in groups}
        return _named(luck, "luck (random)")
    if measure == "fpgm":
        return _named({group.root: _distances(network, group) for group in groups}, "distance to other filters (fpgm)")
    found = {}
    for group in groups:
        norms = [each for each in group.members if measure == "bn-scale" and _is_scaling(_layer(network, each))]
        members, name = (norms, "batch norm scale") if norms else (group.members, "magnitude")
        value_of: Callable[[Tensor], Tensor] = torch.abs if norms else torch.square
        found[group.root] = ChannelScores(_sum_weights(network, members, group.channels, value_of), name)
    return found


def _named(values: Mapping[str, Tensor], measure: str) -> dict[str, ChannelScores]:
    return {root: ChannelScores(each, measure) for root, each in values.items()}


def _sum_weights(
    network: nn.Module, members: Sequence[Member], channels: int, value_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """The sum of `value_of` the weights of each channel in these layers: (channels,)."""
    total = torch.zeros(channels, dtype=torch.float64)
    for member in members:
        layer = _layer(network, member)
        weight: Tensor | None = layer.weight if isinstance(layer, _WEIGHTED) else None
        if weight is not None:  # a batch norm need not have one
            with torch.no_grad():
                values = _by_channel(layer, value_of(weight), member).sum(1)
            total.index_add_(0, torch.tensor(member.of), values.double().cpu())
    return total


def _readers(network: nn.Module, group: ChannelGroup) -> Sequence[Member]:
    """What reads the channels; where no layer does, the convolution that makes them."""
    readers = [each for each in group.members if each.reads and isinstance(_layer(network, each), _WEIGHTED)]
    return readers or group.members[:1]


def _is_scaling(layer: nn.Module) -> bool:
    return isinstance(layer, nn.BatchNorm2d) and layer.affine


def _by_channel(layer: nn.Module, values: Tensor, member: Member) -> Tensor:
    """`values` of a layer's weight, one row for each of the member's channels."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    if values.ndim == 1:
        rows = values[:, None]
    elif member.reads == transposed:  # the channels of this side are the first dimension
        rows = values.flatten(1)
    else:
        parts = layer.groups if isinstance(layer, _CONVOLUTIONS) else 1
        rows = values.reshape(parts, -1, *values.shape[1:]).transpose(1, 2).flatten(0, 1).flatten(1)
    return rows[list(member.own)]


def _distances(network: ColorNetwork, group: ChannelGroup) -> Tensor:
    """The sum of the Euclidean distances from each filter to all others; a coupled layer's filter lengthens it."""
    filters = []
    for member in group.members:
        layer = network.get_submodule(member.layer)
        if isinstance(layer, _CONVOLUTIONS) and not member.reads:
            rows = _by_channel(layer, layer.weight.detach(), member)
            filters.append(rows[torch.tensor(member.of).argsort()])
    joined = torch.cat(filters, 1).double().cpu()
    return torch.cdist(joined, joined, compute_mode="donot_use_mm_for_euclid_dist").sum(1)


def _score_by_gradients(
    network: ColorNetwork, groups: Sequence[ChannelGroup], pictures: Sequence[Picture], *, joint: bool
) -> dict[str, Tensor]:

    def change(weight: Tensor) -> Tensor:
        product = torch.zeros_like(weight) if weight.grad is None else weight.grad * weight
        return product if joint else product.square() / 2

    with torch.inference_mode(False), torch.enable_grad():
        totals = {group.root: torch.zeros(group.channels, dtype=torch.float64) for group in groups}
        copy = copy_network(network).requires_grad_(True)
        device = next(copy.parameters()).device
        for lightness, ab in pictures:
            copy.zero_grad()
            # Cloned, since a tensor made in inference mode cannot be part of a graph.
            (copy(lightness.to(device).clone()) - ab.to(device).clone()).abs().mean().backward()
            for group in groups:
                changes = _sum_weights(copy, _readers(copy, group), group.channels, change)
                totals[group.root] += changes.square() if joint else changes
    return {root: total / len(pictures) for root, total in totals.items()}


def _score_by_activations(
    network: ColorNetwork, groups: Sequence[ChannelGroup], pictures: Sequence[Picture]
) -> dict[str, Tensor]:
    totals = {group.root: torch.zeros(group.channels, dtype=torch.float64) for group in groups}
    copy = copy_network(network)

    def watch(group: ChannelGroup, member: Member) -> Callable[..., None]:
        def add(layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            read = inputs[0] if member.reads else output
            channel_dimension = read.ndim - 1 if isinstance(layer, nn.Linear) else 1
            means = read.abs().transpose(0, channel_dimension).flatten(1).mean(1)[list(member.own)]
            totals[group.root].index_add_(0, torch.tensor(member.of), means.double().cpu())

        return add

    for group in groups:
        for member in _readers(copy, group):
            _layer(copy, member).register_forward_hook(watch(group, member))
    with torch.inference_mode():
        device = next(copy.parameters()).device
        for lightness, _ in pictures:
            copy(lightness.to(device))
    return {root: total / len(pictures) for root, total in totals.items()}


def _layer(network: nn.Module, member: Member) -> nn.Module:
    return network.get_submodule(member.layer)
