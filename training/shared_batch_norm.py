"""Batch norm over the parts of a batch that several processes hold: the statistics are those of the whole batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colorpress.core.processes import process_count


def share_batch_norm_(network: nn.Module) -> None:
    """Make every batch norm inside `network` use the statistics of all processes; parameters and names stay."""
    if next(network.parameters()).is_cuda:
        nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
        return
    for layer in network.modules():
        if type(layer) is nn.BatchNorm2d:
            layer.__class__ = _SharedBatchNorm2d  # the same state, computed with in another way


class _SharedBatchNorm2d(nn.BatchNorm2d):
    """What nn.SyncBatchNorm is on GPUs, which it alone runs on: sums by all-reduce, forward and backward."""

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return super().forward(features)
        from torch.distributed.nn.functional import all_reduce

        assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
        assert self.num_batches_tracked is not None
        wide = features.float()
        count = wide.new_full((1,), wide.numel() / self.num_features)
        own = torch.cat((wide.sum((0, 2, 3)), wide.square().sum((0, 2, 3)), count))
        # The loss of every process depends on the sums, so gradients are summed on the way back.
        sums: Tensor = all_reduce(own) if process_count() > 1 else own  # type: ignore[no-untyped-call]
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
