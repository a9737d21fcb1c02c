"""A student whose weights are few bits each, as a packed file would store them; it can be trained while they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.studies.distillation_levers.student_shapes import StudyNetwork
from training.network import ColorNetwork
from training.unet import count_parameters

# The first and the last convolution are small and matter most (Zhou et al. 2016, DoReFa-Net).
_OUTER_BITS = 8
# Of the largest weight of a channel: where its range may end, so that the many small ones lose less.
_CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


class _Coarse(nn.Module):
    """`forward_coarse` as a module's forward, which is what `functional_call` calls."""

    def __init__(self, network: ColorNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, lightness: Tensor) -> Tensor:
        return self.network.forward_coarse(lightness)


class RoundedNetwork(StudyNetwork):
    """A student that computes with rounded weights; gradients pass the rounding as if it were not there.

    A scale per output channel, symmetric, as `compress.packing` has it; batch norm that is folded into the weights
    scales whole channels and so changes no rounding. Source of the gradient: Bengio et al. 2013, straight-through.

    Args:
        bits: of each weight of a convolution, 2 to 8; the first and the last convolution keep 8.
    """

    def __init__(self, student: ColorNetwork, bits: int) -> None:
        super().__init__(student)
        convolutions = [
            (f"network.{name}.weight", module)
            for name, module in student.named_modules()
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
        ]
        inner = {name: bits for name, _ in convolutions[1:-1]}
        self.bits = {name: inner.get(name, _OUTER_BITS) for name, _ in convolutions}
        self.axes = {name: int(isinstance(module, nn.ConvTranspose2d)) for name, module in convolutions}

    def forward_coarse(self, lightness: Tensor) -> Tensor:
        coarse = _Coarse(self.student)
        weights = dict(coarse.named_parameters())
        rounded = {name: _pass_through(weights[name], self.axes[name], bits) for name, bits in self.bits.items()}
        answer: Tensor = functional_call(coarse, rounded, (lightness,))
        return answer

    def stored_bytes(self) -> int:
        """Of its weights in a file that holds their bits, and for each channel a scale and a bias in float32."""
        weights = dict(_Coarse(self.student).named_parameters())
        bits = sum(weights[name].numel() * each for name, each in self.bits.items())
        return -(-bits // 8) + sum(8 * weights[name].shape[axis] for name, axis in self.axes.items())


def stored_bytes(network: ColorNetwork) -> int:
    """Of the weights of a network in a file: float32, or as few bits as it computes with."""
    return network.stored_bytes() if isinstance(network, RoundedNetwork) else 4 * count_parameters(network)


def _pass_through(weight: Tensor, axis: int, bits: int) -> Tensor:
    return weight + (round_weight(weight.detach(), axis, bits) - weight.detach())


def round_weight(weight: Tensor, axis: int, bits: int) -> Tensor:
    """A convolution's weight with 2**bits - 1 values per output channel, which are along `axis`.

    The range of each channel ends where the squared error is least.
    """
    levels = 2 ** (bits - 1) - 1
    others = [each for each in range(weight.ndim) if each != axis]
    largest = weight.abs().amax(others, keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    best, least = weight, torch.full_like(largest, torch.inf)
    for clip in _CLIPS:
        scale = clip * largest / levels
        rounded = (weight / scale).round().clamp(-levels, levels) * scale
        error = (rounded - weight).square().sum(others, keepdim=True)
        best = torch.where(error < least, rounded, best)
        least = torch.minimum(error, least)
    return best
