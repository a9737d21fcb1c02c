"""Which sizes of pictures a network takes, found by asking it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from colorpress.core.errors import InputError
from training.foreign_source import ADAPTER_HINT

MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def find_size_multiple(net: nn.Module, name: str) -> int:
    """The smallest power of two whose multiples the network takes as height and width, answering ab of that size."""
    why = ""
    for multiple in MULTIPLES:
        if not (why := find_fault(net, multiple)):
            return multiple
    raise InputError("network", name, why, ADAPTER_HINT)


def find_fault(net: nn.Module, multiple: int) -> str:
    """What is wrong with the network's answers to sizes that are multiples; empty when nothing is."""
    weight = next(net.parameters(), torch.empty(0))
    # One by one may be too small for what works otherwise; 3 and 5 times are odd at every level but the deepest.
    for rows, columns in ((1, 1), (1, 2), (3, 5), (5, 3)):
        height, width = multiple * rows, multiple * columns
        size = f"an input of 1x1x{height}x{width}"
        try:
            with torch.no_grad():
                answer = net(weight.new_zeros(1, 1, height, width))
        except Exception as error:  # a network of any kind fails in any way
            return f"fails on {size}: {' '.join(str(error).split())[:200] or type(error).__name__}"
        if not isinstance(answer, Tensor):
            return f"answers a {type(answer).__name__} to {size}, not a tensor"
        if answer.shape != (1, 2, height, width):
            return f"answers {'x'.join(map(str, answer.shape))} to {size}, not 1x2x{height}x{width}"
    return ""
