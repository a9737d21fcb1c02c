"""Other losses of a student than `compress.distillation.DistilLoss`, each that one and something beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.distillation import DistilLoss, resize_answers
from training.losses import CLASS_CELL, CLASSES_PER_AXIS, Batch, class_cross_entropy
from training.network import ColorNetwork, pad_to_multiple
from training.unet import UNet

# So large that what is beside the L1 is about as large as it, 0.05.
_HINT_WEIGHT, _CLASS_WEIGHT, _MAP_WEIGHT = 0.02, 0.05, 0.05
# In cells of the grid of classes: how far from a colour classes still belong to it (Zhang, Isola and Efros 2016).
_CLASS_SPREAD = 0.5


class FullSizeLoss(DistilLoss):
    """The same loss, but on every pixel of an answer that is up-sampled to the size of the crop."""

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network, teacher_weight)
        self.stride = 1


class _FeatureLoss(DistilLoss):
    """A loss that also sees the features that the student's head reads."""

    network: UNet

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network, teacher_weight)
        self.features: list[Tensor] = []

        def keep(head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Validation asks the network too.
            if head.training:
                self.features.append(inputs[0])

        self.network.head.register_forward_pre_hook(keep)

    def forward(self, lightness: Tensor) -> Any:
        """The answer, and the features (N, C, S / stride, S / stride, rounded up)."""
        answer = super().forward(lightness)
        return answer, self.features.pop()


class _TellingLoss(_FeatureLoss):
    """A 1x1 convolution tells something of the features.

    It starts from zero: it knows nothing, and what comes after it draws the same random numbers.

    Args:
        channels: that it tells, at the student's output stride.
    """

    def __init__(self, network: ColorNetwork, teacher_weight: float, channels: int) -> None:
        super().__init__(network, teacher_weight)
        self.tell = nn.Conv2d(self.network.head.in_channels, channels, 1)
        for parameter in self.tell.parameters():
            nn.init.zeros_(parameter)

    def forward(self, lightness: Tensor) -> Any:
        """The answer, and what the convolution tells (N, channels, S / stride, S / stride, rounded up)."""
        answer, features = super().forward(lightness)
        return answer, self.tell(features)


class ClassLoss(_TellingLoss):
    """The second loss of the original's training, at the student's output stride: classes of the truth's colours."""

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network, teacher_weight, CLASSES_PER_AXIS**2)

    def loss(self, answered: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        answer, logits = answered
        loss, l1 = super().loss(answer, batch)
        return loss + _CLASS_WEIGHT * self.class_loss(logits, batch), l1

    def class_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """The mean cross-entropy of logits (N, 256, h, w) at the student's output stride."""
        return class_cross_entropy(logits, batch.ab, self.network.output_stride)


class TeacherClassLoss(ClassLoss):
    """The same with the classes of the teacher's colours, softly: each colour belongs to those around it."""

    def class_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        assert batch.answers is not None
        wanted = soften_classes(resize_answers(batch.answers, self.network.output_stride))
        height, width = (min(sides) for sides in zip(logits.shape[-2:], wanted.shape[-2:], strict=True))
        return F.cross_entropy(logits[..., :height, :width].float(), wanted[..., :height, :width])


def soften_classes(ab: Tensor) -> Tensor:
    """How much colours (N, 2, H, W) in ab/128 belong to each class: (N, 256, H, W) of sum 1, a normal distribution."""
    places = torch.arange(CLASSES_PER_AXIS, dtype=ab.dtype, device=ab.device)[:, None, None]  # (16, 1, 1)
    cells = ab / CLASS_CELL + (CLASSES_PER_AXIS - 1) / 2  # in cells from the middle of the first
    near = [torch.softmax(-0.5 * ((each[:, None] - places) / _CLASS_SPREAD).square(), 1) for each in cells.unbind(1)]
    return (near[0][:, :, None] * near[1][:, None]).flatten(1, 2)  # of (N, 16, H, W) twice


class HintLoss(_TellingLoss):
    """Hints: features of best.pt that have the student's output stride (FitNets, 2015).

    Args:
        teacher: best.pt.
        layer, channels: whose answer is told, and how many it has.
    """

    def __init__(
        self, network: ColorNetwork, teacher_weight: float, *, teacher: ColorNetwork, layer: nn.Module, channels: int
    ) -> None:
        super().__init__(network, teacher_weight, channels)
        # In a tuple, so that they are no part of what is trained or saved.
        self.asked = (teacher.eval(), layer)
        self.scale = nn.BatchNorm2d(channels, affine=False)

    def forward(self, lightness: Tensor) -> Any:
        """The answer, and how far the convolution is from the teacher's features."""
        answer, told = super().forward(lightness)
        wanted = _hear(*self.asked, self.network, lightness, like=told)
        return answer, F.mse_loss(told.float(), self.scale(wanted))

    def loss(self, answered: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        answer, hint = answered
        loss, l1 = super().loss(answer, batch)
        return loss + _HINT_WEIGHT * hint, l1


class AttentionLoss(_FeatureLoss):
    """Attention transfer (Zagoruyko and Komodakis 2017): where a teacher's features of the student's stride are large.

    Args:
        teacher: best.pt. `layer`: whose answer is looked at.
    """

    def __init__(
        self, network: ColorNetwork, teacher_weight: float, *, teacher: ColorNetwork, layer: nn.Module
    ) -> None:
        super().__init__(network, teacher_weight)
        self.asked = (teacher.eval(), layer)

    def forward(self, lightness: Tensor) -> Any:
        """The answer, and the mean squared distance of what `describe` says of the student's and the teacher's."""
        answer, features = super().forward(lightness)
        wanted = _hear(*self.asked, self.network, lightness, like=features)
        return answer, (self.describe(features.float()) - self.describe(wanted)).square().sum(1).mean()

    def describe(self, features: Tensor) -> Tensor:
        """Features (N, C, H, W) as one vector of length 1 for each crop: their squares' map (N, H x W)."""
        return F.normalize(features.square().mean(1).flatten(1), dim=1)

    def loss(self, answered: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        answer, distance = answered
        loss, l1 = super().loss(answer, batch)
        return loss + _MAP_WEIGHT * distance, l1


class RelationLoss(AttentionLoss):
    """Relational transfer (Tung and Mori 2019): which crops of a batch the teacher takes for alike."""

    def describe(self, features: Tensor) -> Tensor:
        """How alike each crop is to each: (N, N) from features (N, C, H, W)."""
        flat = features.flatten(1)
        return F.normalize(flat @ flat.T, dim=1)


def _hear(teacher: ColorNetwork, layer: nn.Module, student: UNet, lightness: Tensor, *, like: Tensor) -> Tensor:
    """The teacher's features of L (N, 1, S, S) at the student's output stride: float32 (N, C, *sides of `like`)."""
    # As far as the one of them that needs more.
    padded = pad_to_multiple(lightness, max(teacher.size_multiple, student.size_multiple))
    with torch.no_grad(), _listening(layer) as heard:
        teacher.to(lightness.device)(padded)
    # A layer that is called at several sizes is heard at each of them.
    side = padded.shape[-1] // student.output_stride
    wanted = [features for _, features in heard if features.shape[-1] == side][-1]  # (N, C, side, side)
    cropped: Tensor = wanted[..., : like.shape[-2], : like.shape[-1]]
    return cropped.float()


@contextmanager
def _listening(*layers: nn.Module) -> Iterator[list[tuple[nn.Module, Any]]]:
    """A list that gets each of the layers with its answer, as they answer within the block."""
    heard: list[tuple[nn.Module, Any]] = []
    hooks = [layer.register_forward_hook(lambda each, _, answer: heard.append((each, answer))) for layer in layers]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def find_layer_of_stride(network: ColorNetwork, stride: int) -> tuple[nn.Module, int] | None:
    """The layer that answers at 1 / `stride` of the size, and its channels: of several the last, which has seen most.

    The answer's own layer, of two channels, is none; None where there is no other.
    """
    side = network.size_multiple * 2 * stride
    leaves = [module for module in network.modules() if not list(module.children())]
    with torch.no_grad(), _listening(*leaves) as heard:
        network.eval()(torch.zeros(1, 1, side, side))
    maps = [(layer, each) for layer, each in heard if isinstance(each, Tensor) and each.ndim == 4]
    found = [(layer, each.shape[1]) for layer, each in maps if each.shape[-1] * stride == side and each.shape[1] > 2]
    return found[-1] if found else None
