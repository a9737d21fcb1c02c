"""Batch norm statistics measured anew, for a network whose activations changed."""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from colorpress.core.errors import InputError


def recalibrate_batch_norm_(network: nn.Module, batches: Iterable[Tensor]) -> int:
    """Replace the running mean and variance of every batch norm by their average over `batches`; changes `network`.

    Removing channels shifts what the layers behind them see, while their statistics are still the old ones. Nothing
    but these statistics changes: weights, modes, momenta and gradients stay. When anything fails, the old
    statistics are back. Source: "precise BN", fvcore.nn.precise_bn. (torch.optim.swa_utils.update_bn switches dropout
    on, leaves one mode for all layers, and a network without statistics where a batch fails.)

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
    before = [(layer, layer.momentum, deepcopy(layer.state_dict())) for layer in layers]
    device, count = next(layers[0].buffers()).device, 0
    try:
        network.eval()
        for layer in layers:
            layer.reset_running_stats()
            layer.training, layer.momentum = True, None  # torch's way to ask for the plain average over all batches
        with torch.no_grad():
            for count, batch in enumerate(batches, start=1):  # noqa: B007 (it is what is returned)
                network(batch.to(device))
        whole = all(bool(tensor.isfinite().all()) for layer in layers for tensor in layer.buffers())
        if not count or not whole:
            why = "its statistics came out NaN or Inf" if count else "got no picture to measure its statistics on"
            raise InputError("batch norm", None, why, "give at least one batch of finite pictures")
    except BaseException:
        for layer, _, statistics in before:
            layer.load_state_dict(statistics)
        raise
    finally:
        for layer, momentum, _ in before:
            layer.momentum = momentum
        for module, training in modes:
            module.training = training
    return count
