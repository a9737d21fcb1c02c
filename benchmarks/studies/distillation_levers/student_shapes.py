"""Students of other shapes than a plan, with as many multiply-accumulates, and of blocks that a plan cannot name."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.ranking import count_macs
from compress.students.student_job import build_student
from compress.students.student_plan import FINEST_AFFINE_STRIDE
from training.network import ColorNetwork, GraphArchitecture
from training.unet import ConvBlock, UNet, UNetPlan

_STRIDES = (2, 4, 8, 16)
# Widths of a level over those of the finer one: MACs of equal levels fall to a quarter, so do these to a half.
_GROWTH = 2**0.5
_WIDTH_STEP = 4
# Inner width of an inverted residual over its outer one.
_EXPANSION = 4
# Of widths, until the MACs fit.
_TRIES = 4


class StudyNetwork(ColorNetwork):
    """A network that no plan describes: a student with something of it changed, known to this study alone."""

    def __init__(self, student: ColorNetwork) -> None:
        super().__init__()
        self.student = student
        self.size_multiple, self.output_stride = student.size_multiple, student.output_stride
        self.affine = student.affine

    @property
    def architecture(self) -> GraphArchitecture:
        # All that a checkpoint can say of it. The study builds it again by itself.
        return GraphArchitecture("", self.size_multiple)

    def forward_coarse(self, lightness: Tensor) -> Tensor:
        return self.student.forward_coarse(lightness)

    def with_weights(self, state_dict: Mapping[str, Tensor]) -> ColorNetwork:
        fresh = copy.deepcopy(self)
        fresh.load_state_dict(state_dict)
        return fresh.eval()


@dataclass(frozen=True)
class Shape:
    """Another shape of a student.

    Attributes:
        plan: its levels, whose widths are all multiplied by what makes the MACs fit.
        growth: widths of a level over those of the finer one, beside what the plan has.
        change_: puts other layers into the network, in place.
    """

    plan: UNetPlan
    growth: float = 1.0
    change_: Callable[[UNet], None] | None = None

    def build(self, width: float, seed: int = 0) -> ColorNetwork:
        """The untrained student, with so many times the plan's channels."""
        student = build_student(scale_widths(self.plan, width, self.growth), seed)
        if self.change_ is None:
            return student
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.change_(student)
        return StudyNetwork(student)

    def build_alike(self, macs: int, side: int, seed: int) -> ColorNetwork:
        """The untrained student of the MACs that are nearest to `macs`, of a picture of side x side pixels."""
        width, tried = 1.0, list[tuple[int, float]]()
        for _ in range(_TRIES):
            found = self._macs(width, side)
            tried.append((abs(found - macs), width))
            width *= (macs / found) ** 0.5  # a convolution has its width in and its width out
        return self.build(min(tried)[1], seed)

    def _macs(self, width: float, side: int) -> int:
        return count_macs(self.build(width), height=side, width=side)


def list_shapes(plan: UNetPlan) -> dict[str, Shape]:
    """Each change of the shape of a student, by name; those that its plan has already are left out."""
    shapes = {
        "pooled context": Shape(plan, change_=add_pooled_context_),
        "self-attention": Shape(plan, change_=add_attention_),
        "narrow fine, wide deep": Shape(plan, _GROWTH),
        "wide fine, narrow deep": Shape(plan, 1 / _GROWTH),
    }
    if plan.residual:
        shapes["plain blocks"] = Shape(replace(plan, residual=False))
    for count, name in ((1, "one convolution a level"), (2, "two convolutions a level")):
        if count != len(plan.encoder[0]):
            shapes[name] = Shape(convolve(plan, count))
    for stride in (1, *_STRIDES):
        if stride <= plan.output_stride and stride != plan.stem_stride:
            shapes[f"patches of {stride}"] = Shape(read_patches(plan, stride))
    for stride in _STRIDES:
        if stride <= plan.size_multiple:
            coarser = answer_at(plan, stride)
            plans = {f"answers at 1/{stride}": replace(coarser, affine=False)}
            if stride >= FINEST_AFFINE_STRIDE:
                plans[f"answers at 1/{stride}, affine"] = replace(coarser, affine=True)
            shapes |= {name: Shape(each) for name, each in plans.items() if each != plan}
    # Last, since they take two or three times as long to train.
    return {
        **shapes,
        "depth-wise separable": Shape(plan, change_=use_separable_),
        "inverted residuals": Shape(plan, change_=use_inverted_),
    }


def scale_widths(plan: UNetPlan, width: float, growth: float = 1.0) -> UNetPlan:
    """The plan with channels times width * growth**level, to whole multiples of 4; level 0 is the finest."""

    def scale(counts: tuple[int, ...], level: int) -> tuple[int, ...]:
        factor = width * growth**level / _WIDTH_STEP
        return tuple(_WIDTH_STEP * max(1, round(count * factor)) for count in counts)

    deepest = len(plan.encoder) - 1
    encoder = tuple(scale(counts, level) for level, counts in enumerate(plan.encoder))
    decoder = tuple(scale(counts, deepest - 1 - place) for place, counts in enumerate(plan.decoder))
    return replace(plan, encoder=encoder, decoder=decoder)


def convolve(plan: UNetPlan, count: int) -> UNetPlan:
    """A plan with so many 3x3 convolutions in each level, as wide as its first; residual where that can be."""
    encoder = tuple((level[0],) * count for level in plan.encoder)
    decoder = tuple((level[0],) + (level[1],) * count for level in plan.decoder)
    return replace(plan, encoder=encoder, decoder=decoder, residual=count > 1)


def read_patches(plan: UNetPlan, stride: int) -> UNetPlan:
    """A plan as deep as the other that reads patches of stride x stride pixels, no coarser than its answer."""
    encoder = plan.encoder[max(0, int(math.log2(stride / plan.stem_stride))) :]
    more = max(0, int(math.log2(plan.stem_stride / stride)))
    return replace(plan, stem_stride=stride, encoder=(encoder[0],) * more + encoder)


def answer_at(plan: UNetPlan, stride: int) -> UNetPlan:
    """A plan as deep as the other that answers at 1 / stride: its finest decoder levels go, or are there once more."""
    while plan.output_stride < stride:
        plan = replace(plan, decoder=plan.decoder[:-1], affine=False)
    while plan.output_stride > stride:
        if stride < plan.stem_stride == plan.output_stride:
            plan = replace(plan, stem_stride=plan.stem_stride // 2, encoder=(plan.encoder[0], *plan.encoder))
        level = plan.encoder[len(plan.encoder) - 2 - len(plan.decoder)]
        finer = plan.decoder[-1] if plan.decoder else (level[0], *level)
        plan = replace(plan, decoder=(*plan.decoder, finer))
    return plan


class LightBlock(nn.Module):
    """A `ConvBlock` whose 3x3 convolutions are made of smaller ones; the one that reads the picture stays as it is.

    Args:
        make: from input and output channels, one of them without its last ReLU. `bent`: whether it has that ReLU.
    """

    def __init__(self, block: ConvBlock, make: Callable[[int, int], nn.Module], *, bent: bool) -> None:
        super().__init__()
        self.residual, self.bent = block.residual or not bent, bent
        self.units = nn.ModuleList()
        layers = list(block)
        for place in range(0, len(layers), 3):  # convolution, batch norm, ReLU
            convolution = layers[place]
            assert isinstance(convolution, nn.Conv2d)
            inner, outer = convolution.in_channels, convolution.out_channels
            kept = nn.Sequential(*layers[place : place + 3])
            self.units.append(make(inner, outer) if inner > 1 else kept)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C, H / patch, W / patch)."""
        for place, unit in enumerate(self.units):
            answer = unit(features)
            if self.residual and place and answer.shape == features.shape:
                answer = answer + features
            features = F.relu(answer) if self.bent else answer
        return features


def _separable(inner: int, outer: int) -> nn.Module:
    """Depth-wise 3x3, then 1x1 (Howard et al. 2017, MobileNets)."""
    return nn.Sequential(*_bent(nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)), *_flat(inner, outer))


def _inverted(inner: int, outer: int) -> nn.Module:
    """1x1 to four times the channels, depth-wise 3x3, 1x1 back without a ReLU (Sandler et al. 2018, MobileNetV2)."""
    wide = _EXPANSION * outer
    depth_wise = nn.Conv2d(wide, wide, 3, padding=1, groups=wide, bias=False)
    return nn.Sequential(*_bent(nn.Conv2d(inner, wide, 1, bias=False)), *_bent(depth_wise), *_flat(wide, outer))


def _bent(convolution: nn.Conv2d) -> list[nn.Module]:
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


def _flat(inner: int, outer: int) -> list[nn.Module]:
    return [nn.Conv2d(inner, outer, 1, bias=False), nn.BatchNorm2d(outer)]


def use_separable_(student: UNet) -> None:
    """Depth-wise separable convolutions in all blocks."""
    _change_blocks_(student, _separable, bent=True)


def use_inverted_(student: UNet) -> None:
    """Inverted residuals in all blocks."""
    _change_blocks_(student, _inverted, bent=False)


def _change_blocks_(student: UNet, make: Callable[[int, int], nn.Module], *, bent: bool) -> None:
    for blocks in (student.encoder, student.decoder):
        for place, block in enumerate(blocks):
            assert isinstance(block, ConvBlock)
            blocks[place] = LightBlock(block, make, bent=bent)


class PooledContext(nn.Module):
    """Adds a 1x1 convolution of the features' means over all places (Liu, Rabinovich and Berg 2016, ParseNet)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.tell = _silent(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        told: Tensor = self.tell(features.mean((2, 3), keepdim=True))
        return features + told


class SelfAttention(nn.Module):
    """Adds what each place reads of all others (Wang et al. 2018, non-local networks), by one head.

    `count_macs` leaves the products of places out: at 1/32 of 256 x 256 pixels they are 2 x 64 x 64 x C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.ask = nn.Conv2d(channels, 3 * channels, 1)
        self.tell = _silent(channels)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        places = self.ask(features).flatten(2).transpose(1, 2)  # (N, H x W, 3 C)
        heard = F.scaled_dot_product_attention(*places.chunk(3, dim=-1))  # (N, H x W, C)
        told: Tensor = self.tell(heard.transpose(1, 2).reshape(features.shape))
        return features + told


def _silent(channels: int) -> nn.Conv2d:
    """A 1x1 convolution that tells nothing before it is trained, so that the network begins as it was."""
    convolution = nn.Conv2d(channels, channels, 1)
    for parameter in convolution.parameters():
        nn.init.zeros_(parameter)
    return convolution


def add_pooled_context_(student: UNet) -> None:
    """`PooledContext` behind the deepest level."""
    _add_behind_(student, PooledContext)


def add_attention_(student: UNet) -> None:
    """`SelfAttention` behind the deepest level."""
    _add_behind_(student, SelfAttention)


def _add_behind_(student: UNet, make: Callable[[int], nn.Module]) -> None:
    channels = student.architecture.encoder[-1][-1]
    student.encoder[-1] = nn.Sequential(student.encoder[-1], make(channels))
