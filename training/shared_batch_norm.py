"""Batch norm over the parts of a batch that several processes hold: the statistics are those of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.core.processes import sum_over_processes_


def share_batch_norm_(network: nn.Module) -> None:
    """Make every batch norm of `network` use the statistics of all processes; parameters and names stay."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                setattr(parent, name, _shared_copy(child))


def _shared_copy(layer: nn.BatchNorm2d) -> nn.Module:
    if layer.weight.is_cuda:
        convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
        return convert(layer)
    shared = _SharedBatchNorm2d(layer.num_features, layer.eps, layer.momentum)
    shared.weight, shared.bias = layer.weight, layer.bias
    for name, buffer in layer.named_buffers():
        setattr(shared, name, buffer)
    return shared.train(layer.training)


class _SumOverProcesses(torch.autograd.Function):
    """The loss of every process depends on the sum, so gradients are summed on the way back."""

    @staticmethod
    def forward(ctx: Any, own: Tensor) -> Tensor:
        return sum_over_processes_(own.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return sum_over_processes_(gradient.clone())


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """What nn.SyncBatchNorm is on GPUs, which it alone runs on: sums by all-reduce, forward and backward."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        wide = features.float()
        count = wide.new_full((1,), wide.numel() / self.num_features)
        own = torch.cat((wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), count))
        sums = _SumOverProcesses.apply(own)  # type: ignore[no-untyped-call]
        mean = sums[: self.num_features] / sums[-1]
        variance = (sums[self.num_features : -1] / sums[-1] - mean.square()).clamp(min=0.0)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            # Divided by one less than the count, as torch's own running variance is.
            self.running_var.lerp_(variance * (sums[-1] / (sums[-1] - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shift = self.bias - mean * scale
        normed: Tensor = wide * scale[:, None, None] + shift[:, None, None]
        return normed.to(features.dtype)
