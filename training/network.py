"""What every stage asks of a network, whoever wrote it: L in, ab out, any picture size."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import defaultdict
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
    Where it is `affine`, what is up-sampled is a field of affine functions of lightness, see `apply_field`.
    """

    size_multiple: int
    output_stride: int = 1
    affine: bool = False

    @property
    @abstractmethod
    def architecture(self) -> Architecture:
        """Enough to rebuild the network that these weights fit, pruned or not."""

    @property
    def title(self) -> str:
        """What a reader should call it."""
        return type(self).__name__

    def forward(self, lightness: Tensor) -> Tensor:
        return apply_field(self.forward_field(lightness), lightness)

    @abstractmethod
    def forward_coarse(self, lightness: Tensor) -> Tensor:
        """The network itself: L (N, 1, H, W) of whole multiples to ab (N, 2, H / s, W / s), s the `output_stride`.

        An affine network answers B and A of `apply_field`, (N, 4, H / s, W / s).
        """

    def complete(self, coarse: Tensor, lightness: Tensor, stride: int = 1) -> Tensor:
        """ab (N, 2, H / stride, W / stride, rounded up) of what `forward_coarse` answered to L (N, 1, H, W), padded.

        Args:
            stride: divides the `output_stride`; L is averaged over areas of stride x stride pixels.
        """
        if stride > 1:
            lightness = F.avg_pool2d(lightness, stride, ceil_mode=True)  # (N, 1, H/stride, W/stride), rounded up
        height, width = lightness.shape[-2:]
        field = upsample_bilinear(coarse, self.output_stride // stride)[..., :height, :width]
        return apply_field(field, lightness)

    def forward_field(self, lightness: Tensor) -> Tensor:
        """L (N, 1, H, W) to the answer up-sampled, for `apply_field`: (N, 2, H, W), where affine (N, 4, H, W)."""
        height, width = lightness.shape[-2:]
        coarse = self.forward_coarse(pad_to_multiple(lightness, self.size_multiple))
        return upsample_bilinear(coarse, self.output_stride)[..., :height, :width]

    @abstractmethod
    def with_weights(self, state_dict: Mapping[str, Tensor]) -> ColorNetwork:
        """A new network of this kind with these weights, whose shapes decide its channel counts; in eval mode."""


class FieldNetwork(nn.Module):
    """A network that answers its field, which can be enlarged further before lightness makes colours of it."""

    def __init__(self, network: ColorNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, lightness: Tensor) -> Tensor:
        return self.network.forward_field(lightness)


def copy_weights(network: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer, on the CPU; one that has several names is copied once."""
    names, copies = shared_names(network), dict[str, Tensor]()
    for name, tensor in network.state_dict().items():
        first = names[name][0]
        copies[name] = copies[first] if first != name else tensor.detach().cpu().clone().contiguous()
    return copies


def shared_names(network: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter and buffer, by each of them: a module or a tensor may be known by several."""
    same: defaultdict[tuple[Any, ...], list[str]] = defaultdict(list)
    for name, tensor in network.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor):
            # Without data, as on the meta device, no two are told to be one but by the object.
            same[tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride()].append(name)
    return {name: names for names in same.values() for name in names}


def pad_to_multiple(lightness: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column until height and width are multiples of `multiple`."""
    height, width = lightness.shape[-2:]
    return F.pad(lightness, (0, _missing(width, multiple), 0, _missing(height, multiple)), mode="replicate")


def _missing(side: int, multiple: int) -> int:
    # The same as -side % multiple, which PyTorch 2.13 does not compile where sides vary.
    return (side + multiple - 1) // multiple * multiple - side


def upsample_bilinear(answer: Tensor, stride: int) -> Tensor:
    """Bilinear up-sampling by a whole factor, pixel centres aligned by their areas (half-pixel)."""
    return answer if stride == 1 else F.interpolate(answer, scale_factor=stride, mode="bilinear", align_corners=False)


def apply_field(field: Tensor, lightness: Tensor) -> Tensor:
    """ab (N, 2, H, W) of an up-sampled answer and of L (N, 1, H, W) in [0, 1].

    Two channels are ab itself. Four are B and A of an affine field, ab = B + A (L - 1/2): between the coarse pixels of
    an answer colours follow the lightness, so that they end where things do. B is in [-1, 1], and ab may be a little
    beyond. Source: bilateral learning (Gharbi et al. 2017), without its grid.
    """
    if field.shape[1] == 2:
        return field
    base, slope = field[:, :2], field[:, 2:]
    return base + slope * (lightness - 0.5)
