"""What a network is trained for: how its answers to a batch of crops become a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.batches import Crops
from training.lab import rgb_to_l_ab
from training.network import ColorNetwork, pad_to_multiple
from training.unet import UNet

# A grid over ab: cells of 0.1 (12.8 in a* and b*), from -0.8 to 0.8; colours beyond belong to the outermost cells.
CLASSES_PER_AXIS = 16
CLASS_CELL = 0.1
_LEVELS_UP = 2  # of the decoder: a quarter of the height and width


@dataclass(frozen=True)
class Batch:
    """Crops of photographs as the network's tensors, on the training device.

    Attributes:
        lightness: (N, 1, S, S), L in [0, 1], of one channel, so whatever layout the weights have.
        ab: (N, 2, S, S), the truth in [-1, 1].
        answers: what a teacher answered there, (N, 2, S / 2, S / 2) in [-1, 1]; None without a teacher.
    """

    lightness: Tensor
    ab: Tensor
    answers: Tensor | None = None


def prepare_batch(crops: Crops, device: torch.device) -> Batch:
    """Crops from the loader on `device`; the colour conversion runs there, and the change of tones."""
    lightness, ab = rgb_to_l_ab(crops.rgb.to(device, non_blocking=True))  # (N, 1, S, S), (N, 2, S, S)
    if crops.tones is not None:
        lightness = lightness.clamp(min=0.0) ** crops.tones.to(device)[:, None, None, None]
    answers = None if crops.answers is None else crops.answers.to(device, torch.float32, non_blocking=True)
    return Batch(lightness, ab, answers)


class Loss(nn.Module, ABC):
    """A network and what it is trained for; layers beside the network are trained too and then thrown away."""

    def __init__(self, network: ColorNetwork) -> None:
        super().__init__()
        self.network = network

    @abstractmethod
    def forward(self, lightness: Tensor) -> Any:
        """L (N, 1, S, S) to what `loss` judges; runs in the precision of training."""

    @abstractmethod
    def loss(self, answered: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss of what `forward` answered, a mean over the batch, and the answer's L1 to the truth (ab/128)."""


class L1Loss(Loss):
    """Plain L1 to the truth."""

    def forward(self, lightness: Tensor) -> Tensor:
        answer: Tensor = self.network(lightness)
        return answer

    def loss(self, answered: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        l1 = (answered.float() - batch.ab).abs().mean()
        return l1, l1.detach()


class ChromaClassLoss(Loss):
    """L1 to the truth, and a 1x1 convolution that names colour classes from the features decoded at quarter size.

    Where several colours are possible L1 is content with a brownish grey, whatever the thing is; the cross-entropy of
    the classes goes on telling them apart, and the features it asks for serve the L1 too. Source of the classes: Zhang,
    Isola and Efros 2016; of the head that is thrown away afterwards: Lee et al. 2015 (deep supervision).

    The convolution starts from zero: every class is equally likely, and no random number is drawn.

    Args:
        network: with at least one decoder level.
        weight: of the classes beside the L1.
    """

    network: UNet

    def __init__(self, network: UNet, weight: float) -> None:
        super().__init__(network)
        self.weight = weight
        levels_up = min(_LEVELS_UP, len(network.decoder) - 1)
        self.level, self.stride = -1 - levels_up, network.output_stride << levels_up
        channels = [m.out_channels for m in network.decoder[self.level].modules() if isinstance(m, nn.Conv2d)][-1]
        self.head = nn.Conv2d(channels, CLASSES_PER_AXIS**2, 1)
        for parameter in self.head.parameters():
            nn.init.zeros_(parameter)

    def forward(self, lightness: Tensor) -> tuple[Tensor, Tensor]:
        """L (N, 1, H, W) to the network's ab, and to logits (N, 256, H / 4, W / 4, rounded up)."""
        coarse, levels = self.network.forward_levels(pad_to_multiple(lightness, self.network.size_multiple))
        answer = self.network.complete(coarse, lightness)  # (N, 2, H, W)
        return answer, self.head(levels[self.level])  # levels[...]: (N, C, H/4, W/4), rounded up

    def loss(self, answered: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        answer, logits = answered
        l1 = (answer.float() - batch.ab).abs().mean()
        return l1 + self.weight * class_cross_entropy(logits, batch.ab, self.stride), l1.detach()


def class_cross_entropy(logits: Tensor, ab: Tensor, stride: int, weights: Tensor | None = None) -> Tensor:
    """The mean cross-entropy of logits (N, 256, >= H / stride, >= W / stride) with the classes of `ab` (N, 2, H, W).

    Args:
        weights: (256,), of each class in the mean; None: all count alike.
    """
    classes = find_classes(ab, stride)
    height, width = classes.shape[-2:]
    # Logits are channels last: as rows they take a third of the time.
    rows = logits[..., :height, :width].permute(0, 2, 3, 1).flatten(0, 2)  # (N * H/stride * W/stride, 256)
    return F.cross_entropy(rows.float(), classes.flatten(), weights)


def find_classes(ab: Tensor, stride: int) -> Tensor:
    """The classes, 0 to 255, of the mean colours of areas of stride x stride pixels.

    Args:
        ab: (N, 2, H, W) in ab/128.
    Returns:
        (N, H / stride, W / stride), rounded up.
    """
    pooled = F.avg_pool2d(ab, stride, ceil_mode=True)  # (N, 2, H/stride, W/stride), rounded up
    cells = ((pooled / CLASS_CELL).floor() + CLASSES_PER_AXIS // 2).clamp(0, CLASSES_PER_AXIS - 1).long()
    return cells[:, 0] * CLASSES_PER_AXIS + cells[:, 1]
