"""Batch norm statistics measured anew, for a network whose activations changed."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from colorpress.core.errors import InputError


def recalibrate_batch_norm_(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running mean and variance of every batch norm by their average over `batches`; changes `network`.

    Removing channels shifts what the layers behind them see, while their statistics are still the old ones. Nothing
    but these statistics changes: weights, modes, momenta and gradients stay. When anything fails, the old
    statistics are back. Source: "precise BN", fvcore.nn.precise_bn.

    Args:
        network: any network with batch norm layers; without one nothing happens.
        batches: L (N, 1, H, W) in [0, 1], each counted once whatever its N. More than one value per channel must
            reach the deepest layer: a single picture has to be larger than the size multiple of the network.
    Returns:
        The number of batches seen.
    Raises:
        InputError: `batches` is empty, or a statistic is not finite afterwards.
    """
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    if not layers:
        return 0
    modes = [(module, module.training) for module in network.modules()]
    momenta = [layer.momentum for layer in layers]
    before = [{name: buffer.clone() for name, buffer in layer.named_buffers(recurse=False)} for layer in layers]
    device = next(layer.running_mean.device for layer in layers if layer.running_mean is not None)
    count = 0
    try:
        network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # torch's way to ask for the plain average over all batches
            layer.training = True
        with torch.no_grad():
            for batch in batches:
                network(batch.to(device))
                count += 1
        _check_statistics(layers, count)
    except BaseException:
        with torch.no_grad():
            for layer, saved in zip(layers, before, strict=True):
                for name, buffer in layer.named_buffers(recurse=False):
                    buffer.copy_(saved[name])
        raise
    finally:
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
        for module, training in modes:
            module.training = training
    return count


def _check_statistics(layers: Iterable[_BatchNorm], count: int) -> None:
    hint = "give at least one batch of finite pictures"
    if count == 0:
        raise InputError("batch norm", None, "got no picture to measure its statistics on", hint)
    for layer in layers:
        for statistic in (layer.running_mean, layer.running_var):
            if statistic is not None and not bool(torch.isfinite(statistic).all()):
                raise InputError("batch norm", None, "its statistics came out NaN or Inf", hint)
