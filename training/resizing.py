"""Layers in place at the channel counts of pruned weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def resize_layers_(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Change layers in place to the channel counts of pruned weights; their values are left undefined.

    A layer that has fewer channels than its weights is left alone.
    """
    # Shared ones under each of their names: every layer that has one is resized.
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        shape, before = weights.get(name, tensor).shape, tensor.shape
        fewer = len(shape) == len(before) and all(new <= old for new, old in zip(shape, before, strict=True))
        if fewer and shape != before:
            layer, _, own_name = name.rpartition(".")
            module = network.get_submodule(layer)
            with torch.inference_mode(False):
                smaller = tensor.detach().new_zeros(shape)
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(module, own_name, nn.Parameter(smaller, tensor.requires_grad) if is_parameter else smaller)
            _count_channels_(module)


def _count_channels_(module: nn.Module) -> None:
    """Set the channel counts of a layer to those of its weights."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        first, second = module.weight.shape[:2]
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise: a group for each channel
            module.groups = first
        reads_second = isinstance(module, nn.Conv2d)
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
