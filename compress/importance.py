"""How much each channel of a group matters, by several measures; a channel of least importance goes first.

Formulas of our own over `ChannelGroup`, since torch-pruning 1.6.1 overwrites where it should accumulate: its Hessian
measure keeps the last batch of gradients, its activation measure the last batch of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from colorpress.core.config import DATA_DRIVEN, DataConfig
from colorpress.core.errors import ConfigError
from compress.dependency_graph import ChannelGroup, Member, copy_network
from export.conv_latency import ConvTimer
from training.batches import whole_photos
from training.lab import rgb_to_l_ab
from training.network import ColorNetwork
from training.photos import Photo

# L (1, 1, H, W) in [0, 1] and its true ab (1, 2, H, W) in ab/128.
Picture = tuple[Tensor, Tensor]

_MAKING = (_ConvNd, nn.Linear)
_NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d)
_WEIGHTED = (*_MAKING, *_NORMS)


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


@dataclass(frozen=True)
class Evidence:
    """What is looked at to decide which channels go.

    Attributes:
        pictures: photographs for the measures of importance that look at some, and for strategy "latency", which
            without them takes the channels of all layers to be worth the same.
        seed: for importance "random" alone.
        height, width: of the picture that convolutions are timed for and work is counted at, in pixels.
        time_convolution: measures a convolution, for strategy "latency".
    """

    pictures: Sequence[Picture] = ()
    seed: int = 0
    height: int = 256
    width: int = 256
    time_convolution: ConvTimer | None = None


WEIGHTS_ALONE = Evidence()


def score_groups(
    network: ColorNetwork, groups: Sequence[ChannelGroup], measure: str, evidence: Evidence = WEIGHTS_ALONE
) -> dict[str, ChannelScores]:
    """The importance of every channel of `groups`, by root; `network` stays as it is.

    Args:
        measure: a name of `IMPORTANCES`.
    Raises:
        ConfigError: the measure needs photographs and there are none.
    """
    if measure in DATA_DRIVEN and not evidence.pictures:
        hint = f"give a folder of photographs, or choose another than {', '.join(DATA_DRIVEN)}"
        raise ConfigError("option", "--importance", f"{measure} needs training photographs, there are none", hint)
    return IMPORTANCES[measure](_Case(network, groups, evidence))


@dataclass(frozen=True)
class _Case:
    network: ColorNetwork
    groups: Sequence[ChannelGroup]
    evidence: Evidence


def _score_by_magnitude(case: _Case) -> dict[str, ChannelScores]:
    """The squared L2 norm of all weights that make, scale and read the channel."""
    return {
        group.root: ChannelScores(_sum_weights(case.network, group.members, group.channels, torch.square), "magnitude")
        for group in case.groups
    }


def _score_by_scale(case: _Case) -> dict[str, ChannelScores]:
    """The size of its batch norm weights (Liu et al. 2017, Network Slimming), or instance norm's; else magnitude."""
    found = _score_by_magnitude(case)
    for group in case.groups:
        layers = [(each, case.network.get_submodule(each.layer)) for each in group.members]
        if norms := [each for each, layer in layers if isinstance(layer, _NORMS) and layer.affine]:
            scales = _sum_weights(case.network, norms, group.channels, torch.abs)
            found[group.root] = ChannelScores(scales, "batch norm scale")
    return found


def _score_by_distance(case: _Case) -> dict[str, ChannelScores]:
    """The sum of the Euclidean distances from its filter to all others; a coupled layer's filter lengthens it.

    One near the geometric median of them all can be replaced by the others. Source: He et al. 2019, FPGM.
    """
    found = {}
    for group in case.groups:
        filters = []
        place = {channel: number for number, unit in enumerate(group.units) for channel in unit}
        for member in group.members:
            layer = case.network.get_submodule(member.layer)
            makes = member.layer in (group.root, *group.coupled) and not member.reads
            if makes and isinstance(layer, _MAKING):
                rows = _by_channel(layer, layer.weight.detach(), member)
                # Equally many for each unit, which go together and so are one filter.
                unit_of = torch.tensor([place[channel] for channel in member.of])
                filters.append(rows[unit_of.argsort(stable=True)].reshape(len(group.units), -1))
        joined = torch.cat(filters, 1).double().cpu()  # (units, weights of a filter)
        distances = torch.cdist(joined, joined, compute_mode="donot_use_mm_for_euclid_dist").sum(1)
        by_channel = torch.tensor([place[channel] for channel in range(group.channels)])
        found[group.root] = ChannelScores(distances[by_channel], "distance to other filters (fpgm)")
    return found


def _score_by_luck(case: _Case) -> dict[str, ChannelScores]:
    """The control that the others have to beat."""
    generator = torch.Generator().manual_seed(case.evidence.seed)
    return {
        group.root: ChannelScores(torch.rand(group.channels, generator=generator).double(), "luck (random)")
        for group in case.groups
    }


def _score_by_taylor(case: _Case) -> dict[str, ChannelScores]:
    """E[(sum of g w)^2], the first-order change of the loss.

    g is the gradient of the L1 loss of one photograph in eval mode, E the mean over all, and w the weights that read
    the channel, since to remove it is to make just these 0. Source: Molchanov et al. 2019, equation 8; the sum is the
    gradient of a gate on the channel.
    """
    return _mean_changes(case, "taylor", lambda product: product, torch.square)


def _score_by_hessian(case: _Case) -> dict[str, ChannelScores]:
    """E[sum of (g w)^2] / 2, the second-order change with the diagonal of the Hessian taken as E[g^2].

    Source: LeCun et al. 1989, Optimal Brain Damage, with the empirical Fisher information in place of the Hessian.
    """
    return _mean_changes(case, "hessian", lambda product: product.square() / 2, lambda change: change)


def _mean_changes(
    case: _Case, measure: str, of_weight: Callable[[Tensor], Tensor], of_channel: Callable[[Tensor], Tensor]
) -> dict[str, ChannelScores]:
    """E[of_channel(sum of of_weight(g w))] of every channel."""

    def change(weight: Tensor) -> Tensor:
        return of_weight(torch.zeros_like(weight) if weight.grad is None else weight.grad * weight)

    with torch.inference_mode(False), torch.enable_grad():
        totals = {group.root: torch.zeros(group.channels, dtype=torch.float64) for group in case.groups}
        copy = copy_network(case.network).requires_grad_(True)
        device = next(copy.parameters()).device
        for lightness, ab in case.evidence.pictures:
            copy.zero_grad()
            # Cloned, since a tensor made in inference mode cannot be part of a graph.
            (copy(lightness.to(device).clone()) - ab.to(device).clone()).abs().mean().backward()
            for group in case.groups:
                totals[group.root] += of_channel(_sum_weights(copy, _readers(copy, group), group.channels, change))
    return {root: ChannelScores(total / len(case.evidence.pictures), measure) for root, total in totals.items()}


def _score_by_activation(case: _Case) -> dict[str, ChannelScores]:
    """E of the mean absolute value that the layers behind it read. Source: Molchanov et al. 2017."""
    totals = {group.root: torch.zeros(group.channels, dtype=torch.float64) for group in case.groups}
    copy = copy_network(case.network)

    def add(root: str, member: Member, layer: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        read = inputs[0] if member.reads else output  # (1, C, H, W), or (1, ..., C) of a linear layer
        channel_dimension = read.ndim - 1 if isinstance(layer, nn.Linear) else 1
        means = read.abs().transpose(0, channel_dimension).flatten(1).mean(1)[list(member.own)]  # (member.own,)
        totals[root].index_add_(0, torch.tensor(member.of), means.double().cpu())

    for group in case.groups:
        for member in _readers(copy, group):
            copy.get_submodule(member.layer).register_forward_hook(partial(add, group.root, member))
    with torch.inference_mode():
        device = next(copy.parameters()).device
        for lightness, _ in case.evidence.pictures:
            copy(lightness.to(device))
    return {root: ChannelScores(total / len(case.evidence.pictures), "activation") for root, total in totals.items()}


# Those of `config.DATA_DRIVEN` look at photographs.
IMPORTANCES: Mapping[str, Callable[[_Case], dict[str, ChannelScores]]] = {
    "magnitude": _score_by_magnitude,
    "bn-scale": _score_by_scale,
    "fpgm": _score_by_distance,
    "taylor": _score_by_taylor,
    "hessian": _score_by_hessian,
    "activation": _score_by_activation,
    "random": _score_by_luck,
}


def _sum_weights(
    network: nn.Module, members: Sequence[Member], channels: int, value_of: Callable[[Tensor], Tensor]
) -> Tensor:
    """The sum of `value_of` the weights of each channel in these layers: (channels,)."""
    total = torch.zeros(channels, dtype=torch.float64)
    for member in members:
        layer = network.get_submodule(member.layer)
        weight: Tensor | None = layer.weight if isinstance(layer, _WEIGHTED) else None
        if weight is not None:  # a batch norm need not have one
            with torch.no_grad():
                values = _by_channel(layer, value_of(weight), member).sum(1)
            total.index_add_(0, torch.tensor(member.of), values.double().cpu())
    return total


def _readers(network: nn.Module, group: ChannelGroup) -> Sequence[Member]:
    """What reads the channels; where no layer does, the convolution that makes them."""
    reading = [each for each in group.members if each.reads]
    readers = [each for each in reading if isinstance(network.get_submodule(each.layer), _WEIGHTED)]
    return readers or group.members[:1]


def _by_channel(layer: nn.Module, values: Tensor, member: Member) -> Tensor:
    """`values` of a layer's weight, one row for each of the member's channels: (member.own, weights of a channel)."""
    transposed = isinstance(layer, _ConvNd) and layer.transposed
    if values.ndim == 1:
        rows = values[:, None]  # (C, 1) of a batch norm
    elif member.reads == transposed:  # the channels of this side are the first dimension
        rows = values.flatten(1)  # (C, other side / groups * kH * kW)
    else:
        parts = layer.groups if isinstance(layer, _ConvNd) else 1
        # (groups, other side / groups, C / groups, kH, kW) -> (C, other side / groups * kH * kW)
        rows = values.reshape(parts, -1, *values.shape[1:]).transpose(1, 2).flatten(0, 1).flatten(1)
    return rows[list(member.own)]
