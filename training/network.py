"""What every stage asks of a network, whoever wrote it: L in, ab out, any picture size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn


class Architecture(Protocol):
    """What a checkpoint says of its network beside the weights, as primitives."""

    @property
    def size_multiple(self) -> int:
        """Height and width inside the network are multiples of this."""

    def describe(self) -> dict[str, Any]:
        """The architecture as JSON-ready primitives, with its kind as "name"."""


@dataclass(frozen=True)
class GraphArchitecture:
    """What a checkpoint says of a graph that was tuned: the hash of its ONNX file, which alone holds the graph."""

    source_sha256: str
    size_multiple: int

    def describe(self) -> dict[str, Any]:
        return {"name": "graph", **vars(self)}


class ColorNetwork(nn.Module, ABC):
    """L (N, 1, H, W) in [0, 1] to ab (N, 2, H, W) in ab/128, any H and W >= 1.

    The input is padded at the bottom and the right by edge replication to `size_multiple`, the answer cropped. Chroma
    is smooth: a network may answer at 1 / `output_stride` of the size, and the answer is then up-sampled bilinearly.
    """

    size_multiple: int
    output_stride: int = 1

    @property
    @abstractmethod
    def architecture(self) -> Architecture:
        """Enough to rebuild the network that these weights fit, pruned or not."""

    @property
    def title(self) -> str:
        """What a reader should call it."""
        return type(self).__name__

    def forward(self, lightness: Tensor) -> Tensor:
        height, width = lightness.shape[-2:]
        answer = self.forward_coarse(pad_to_multiple(lightness, self.size_multiple))  # (N, 2, padded H/s, padded W/s)
        return upsample_bilinear(answer, self.output_stride)[..., :height, :width]  # (N, 2, H, W)

    @abstractmethod
    def forward_coarse(self, lightness: Tensor) -> Tensor:
        """The network itself: L (N, 1, H, W) of whole multiples to ab (N, 2, H / s, W / s), s the `output_stride`."""

    @abstractmethod
    def with_weights(self, state_dict: Mapping[str, Tensor]) -> ColorNetwork:
        """A new network of this kind with these weights, whose shapes decide its channel counts; in eval mode."""


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, on the CPU."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}


def pad_to_multiple(lightness: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until height and width are multiples of `multiple`."""
    height, width = lightness.shape[-2:]
    return F.pad(lightness, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def upsample_bilinear(answer: Tensor, stride: int) -> Tensor:
    """Bilinear up-sampling by a whole factor, pixel centres aligned by their areas (half-pixel)."""
    return answer if stride == 1 else F.interpolate(answer, scale_factor=stride, mode="bilinear", align_corners=False)
