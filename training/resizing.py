"""Layers in place at the channel counts of pruned weights."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

# What an instance norm without weights says of other channels than it was made for, which it does not count.
warnings.filterwarnings("ignore", r"input's size at dim=\d does not match num_features", UserWarning)


def resize_layers_(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Change layers in place to the channel counts of pruned weights; their values are left undefined.

    A layer that has fewer channels than its weights is left alone. A tensor that several layers share stays one where
    its weights are one, and is as many as its weights are: pruned or trained on, layers may have come apart.
    """
    named = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    shared: defaultdict[Tensor, list[str]] = defaultdict(list)
    for name, tensor in named:
        if name in weights:
            shared[tensor].append(name)
    for tensor, names in shared.items():
        for same in _group_equal(network, names, weights):
            shape, before = weights[same[0]].shape, tensor.shape
            fewer = len(shape) == len(before) and all(new <= old for new, old in zip(shape, before, strict=True))
            if fewer and (shape != before or len(same) < len(names)):
                _replace_tensor_(network, same, tensor, shape)


def _group_equal(network: nn.Module, names: list[str], weights: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of one tensor by what they hold in `weights`; those that are one layer's stay together."""
    groups: list[list[str]] = []
    for name in names:
        for group in groups:
            one, other = weights[group[0]], weights[name]
            if _owner(network, group[0]) == _owner(network, name) or (
                one.shape == other.shape and (one is other or torch.equal(one, other))
            ):
                group.append(name)
                break
        else:
            groups.append([name])
    return groups


def _owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The layer that has a tensor, and its name there."""
    layer, _, own_name = name.rpartition(".")
    return network.get_submodule(layer), own_name


def _replace_tensor_(network: nn.Module, names: list[str], tensor: Tensor, shape: torch.Size) -> None:
    """Give layers a tensor of another shape, the same to all."""
    with torch.inference_mode(False):
        smaller = tensor.detach().new_zeros(shape)
        if isinstance(tensor, nn.Parameter):
            smaller = nn.Parameter(smaller, tensor.requires_grad)
    for name in names:
        module, own_name = _owner(network, name)
        setattr(module, own_name, smaller)
        _count_channels_(module)


def _count_channels_(module: nn.Module) -> None:
    """Set the channel counts of a layer to those of its weights."""
    if isinstance(module, _ConvNd):
        first, second = module.weight.shape[:2]
        reads_second = not module.transposed
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise: a group for each channel
            module.groups = first * module.in_channels // module.out_channels if reads_second else first
        module.in_channels = second * module.groups if reads_second else first
        module.out_channels = first if reads_second else second * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(module.weight if module.weight is not None else module.running_mean)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
