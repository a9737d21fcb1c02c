"""What a network is trained for: how its answers to a batch of crops become a loss."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from training.batches import Crops
from training.lab import rgb_to_l_ab
from training.network import ColorNetwork


@dataclass(frozen=True)
class Batch:
    """Crops of photographs as the network's tensors, on the training device.

    Attributes:
        lightness: (N, 1, S, S), L in [0, 1], channels last.
        ab: (N, 2, S, S), the truth in [-1, 1].
        answers: what a teacher answered there, (N, 2, S / 4, S / 4) in [-1, 1]; None without a teacher.
    """

    lightness: Tensor
    ab: Tensor
    answers: Tensor | None = None


def prepare_batch(crops: Crops, device: torch.device) -> Batch:
    """Crops from the loader on `device`; the colour conversion runs there, and the change of tones."""
    lightness, ab = rgb_to_l_ab(crops.rgb.to(device, non_blocking=True))
    if crops.tones is not None:
        lightness = lightness.clamp(min=0.0) ** crops.tones.to(device)[:, None, None, None]
    answers = None if crops.answers is None else crops.answers.to(device, torch.float32, non_blocking=True)
    return Batch(lightness.contiguous(memory_format=torch.channels_last), ab, answers)


class Task(nn.Module, ABC):
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


class L1Task(Task):
    """Plain L1 to the truth."""

    def forward(self, lightness: Tensor) -> Tensor:
        answer: Tensor = self.network(lightness)
        return answer

    def loss(self, answered: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        l1 = (answered.float() - batch.ab).abs().mean()
        return l1, l1.detach()
