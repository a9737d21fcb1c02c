"""Validation on whole photographs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from colorpress.core.errors import InputError
from colorpress.core.processes import process_count, process_rank, sum_over_processes_
from training.batches import whole_photos
from training.lab import rgb_to_l_ab
from training.metrics import mean_l1
from training.photos import Photo


@torch.inference_mode()
def validate_l1(
    network: nn.Module, photos: Sequence[Photo], *, short_side: int, max_pixels: int, device: torch.device
) -> float:
    """The mean over photographs of each one's L1 (ab/128), whole photographs at a short side of `short_side` pixels.

    Puts the network into eval mode for the call and restores its mode. Several processes share the photographs, and
    all get the mean over all of them.

    Raises:
        InputError: no photograph can be read.
    """
    was_training = network.training
    network.eval()
    own = photos[process_rank() :: process_count()]
    try:
        errors = [
            mean_l1(network(lightness), ab)
            for _, rgb in whole_photos(own, short_side=short_side, max_pixels=max_pixels)
            for lightness, ab in [rgb_to_l_ab(rgb.to(device))]
        ]
    finally:
        network.train(was_training)
    total, count = sum_over_processes_(torch.tensor([sum(errors), len(errors)], dtype=torch.float64)).tolist()
    if not count:
        raise InputError("data set", None, "no validation photograph could be read", "check the folder of --data")
    return float(total / count)
