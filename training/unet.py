"""The UNet colorizer, described completely by its channel plan: the one definition of the network."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from colorpress.errors import InputError
from training.network import ColorNetwork

UPSAMPLERS = ("transpose", "bilinear", "nearest")
_LARGEST_CHANNELS, _LARGEST_DEPTH = 65_536, 8


@dataclass(frozen=True)
class UNetPlan:
    """Channel counts of every convolution: enough to rebuild the network that a state_dict fits.

    Attributes:
        encoder: output channels of the two 3x3 convolutions of each level, full resolution first; depth + 1 pairs.
        decoder: for each level from deep to shallow: output channels of the up-sampling convolution and of the two
            3x3 convolutions behind the skip connection; depth triples.
        upsample: "transpose" (2x2 transposed convolution, stride 2), or a 1x1 convolution and then "bilinear" or
            "nearest" up-sampling.
    """

    encoder: tuple[tuple[int, int], ...]
    decoder: tuple[tuple[int, int, int], ...]
    upsample: str = "transpose"

    def __post_init__(self) -> None:
        counts = [count for level in (*self.encoder, *self.decoder) for count in level]
        shapes_fit = all(len(level) == 2 for level in self.encoder) and all(len(level) == 3 for level in self.decoder)
        if not (shapes_fit and len(self.encoder) == len(self.decoder) + 1 and 1 <= len(self.decoder) <= _LARGEST_DEPTH):
            raise _bad_plan(f"{len(self.encoder)} encoder and {len(self.decoder)} decoder levels")
        if not all(type(count) is int and 1 <= count <= _LARGEST_CHANNELS for count in counts):
            raise _bad_plan(f"channel counts {counts}")
        if self.upsample not in UPSAMPLERS:
            raise _bad_plan(f"up-sampling {self.upsample!r}")

    @staticmethod
    def classic(base: int = 32, depth: int = 4, upsample: str = "transpose") -> UNetPlan:
        """The textbook UNet: `base` channels at full resolution, twice as many at each of `depth` deeper levels."""
        widths = [base * 2**level for level in range(depth + 1)]
        return UNetPlan(
            encoder=tuple((width, width) for width in widths),
            decoder=tuple((width, width, width) for width in reversed(widths[:-1])),
            upsample=upsample,
        )

    @property
    def size_multiple(self) -> int:
        """Height and width inside the network are multiples of this: 2^depth."""
        return 1 << len(self.decoder)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready primitives."""
        return cast("dict[str, Any]", _lists(asdict(self)))

    def describe(self) -> dict[str, Any]:
        """The architecture as a checkpoint carries it."""
        return {"name": "unet", "plan": self.to_dict()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> UNetPlan:
        """Rebuild a plan from `to_dict`'s answer.

        Raises:
            InputError: a key is missing or unknown, or a value is not a channel count.
        """
        try:
            return UNetPlan(
                encoder=tuple(tuple(level) for level in values["encoder"]),
                decoder=tuple(tuple(level) for level in values["decoder"]),
                upsample=values["upsample"],
            )
        except (KeyError, TypeError) as error:
            raise _bad_plan(f"{error}") from error


def _bad_plan(got: str) -> InputError:
    return InputError(
        "channel plan",
        None,
        f"got {got}",
        "a plan has depth + 1 encoder pairs, depth decoder triples, positive channel counts, "
        f"and upsample one of: {', '.join(UPSAMPLERS)}",
    )


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, tuple) else value


class DoubleConv(nn.Sequential):
    """Twice: 3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, channels: tuple[int, int]) -> None:
        first, second = channels
        super().__init__(
            nn.Conv2d(in_channels, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.Conv2d(first, second, 3, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(inplace=True),
        )


class UNet(ColorNetwork):
    """The network of a channel plan; its answer is in [-1, 1]."""

    def __init__(self, plan: UNetPlan) -> None:
        super().__init__()
        self.size_multiple = plan.size_multiple
        self.upsample = plan.upsample
        skips = [level[1] for level in plan.encoder]
        self.encoder = nn.ModuleList(
            DoubleConv(in_channels, level) for in_channels, level in zip([1, *skips[:-1]], plan.encoder, strict=True)
        )
        self.pool = nn.MaxPool2d(2)
        # Of whole channels, at the deepest level alone (Tompson et al. 2015); training sets its share.
        self.dropout = nn.Dropout2d(0.0)
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        below = skips[-1]
        for skip, (up, first, second) in zip(reversed(skips[:-1]), plan.decoder, strict=True):
            self.up.append(_upsampler(below, up, plan.upsample))
            self.decoder.append(DoubleConv(skip + up, (first, second)))
            below = second
        self.head = nn.Conv2d(below, 2, 1)

    @property
    def architecture(self) -> UNetPlan:
        """The channel plan of the network's own convolutions."""
        return plan_of(self)

    def with_weights(self, state_dict: Mapping[str, Tensor]) -> UNet:
        """A new UNet with these weights, in eval mode; up-sampling as here, channels as the weights' shapes say."""
        shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        return build_unet(plan_of_weights(shapes, self.upsample), state_dict)

    def forward_padded(self, lightness: Tensor) -> Tensor:
        return self.forward_levels(lightness)[0]

    def forward_levels(self, lightness: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`forward_padded`, and what each block of the decoder made on the way, deep to shallow."""
        skips = []
        features = lightness
        for level, block in enumerate(self.encoder):
            features = block(features if level == 0 else self.pool(features))
            skips.append(features)
        features = self.dropout(skips.pop())
        levels = []
        for up, block in zip(self.up, self.decoder, strict=True):
            features = block(torch.cat([skips.pop(), up(features)], dim=1))
            levels.append(features)
        return torch.tanh(self.head(features)), levels


def build_unet(plan: UNetPlan, state_dict: Mapping[str, Tensor]) -> UNet:
    """The network of a plan with a copy of these weights, in eval mode."""
    with torch.inference_mode(False):
        # On the meta device nothing is allocated and no random number drawn.
        with torch.device("meta"):
            network = UNet(plan)
        network.load_state_dict({name: tensor.detach().clone() for name, tensor in state_dict.items()}, assign=True)
    return network.eval()


def _upsampler(in_channels: int, out_channels: int, kind: str) -> nn.Module:
    if kind == "transpose":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    # A 1x1 convolution commutes with interpolation, and costs a quarter when it comes first.
    convolution = nn.Conv2d(in_channels, out_channels, 1)
    if kind == "bilinear":
        return nn.Sequential(convolution, nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False))
    return nn.Sequential(convolution, nn.Upsample(scale_factor=2, mode="nearest"))


def plan_of(network: UNet) -> UNetPlan:
    """Read the channel plan off a network's own convolutions, so also after they were pruned in place."""

    def widths(block: nn.Module) -> list[int]:
        return [m.out_channels for m in block.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)]

    return UNetPlan(
        encoder=tuple(cast("tuple[int, int]", tuple(widths(block))) for block in network.encoder),
        decoder=tuple(
            cast("tuple[int, int, int]", (*widths(up), *widths(block)))
            for up, block in zip(network.up, network.decoder, strict=True)
        ),
        upsample=network.upsample,
    )


def plan_of_weights(shapes: Mapping[str, tuple[int, ...]], upsample: str) -> UNetPlan:
    """Read the channel plan off the shapes of a state_dict's tensors.

    Raises:
        InputError: they are not those of a UNet.
    """
    depth = sum(1 for name in shapes if name.startswith("decoder.") and name.endswith(".0.weight"))
    # A transposed convolution keeps its output channels in the second place.
    up, axis = ("up.{}.weight", 1) if upsample == "transpose" else ("up.{}.0.weight", 0)
    try:
        return UNetPlan(
            encoder=tuple(
                (shapes[f"encoder.{level}.0.weight"][0], shapes[f"encoder.{level}.3.weight"][0])
                for level in range(depth + 1)
            ),
            decoder=tuple(
                (
                    shapes[up.format(level)][axis],
                    shapes[f"decoder.{level}.0.weight"][0],
                    shapes[f"decoder.{level}.3.weight"][0],
                )
                for level in range(depth)
            ),
            upsample=upsample,
        )
    except (KeyError, IndexError) as error:
        raise _bad_plan(f"weights without {error}") from error


def hash_weights(network: nn.Module) -> str:
    """The SHA-256 of every parameter and buffer, with its name and shape."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def count_parameters(network: nn.Module) -> int:
    """The number of parameters, shared ones counted once (`named_parameters` leaves repeats out)."""
    return sum(parameter.numel() for parameter in network.parameters())
