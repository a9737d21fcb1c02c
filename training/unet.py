"""The UNet colorizer, described completely by its channel plan: the one definition of the network."""

from __future__ import annotations

import hashlib
import itertools
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.core.errors import InputError
from colorpress.core.machine import total_memory_bytes
from training.network import ColorNetwork

UPSAMPLERS = ("transpose", "bilinear", "nearest")
STEM_STRIDES = (1, 2, 4, 8, 16)
_LARGEST_CHANNELS, _LARGEST_DEPTH = 65_536, 8
_MOST_CONVOLUTIONS = 1_000
# In training a parameter is its value, its gradient and AdamW's two averages, of 4 bytes each.
_PARAMETER_BYTES = 16
# Of a picture of this side: what a training keeps of every layer, before its norm, behind it and behind its ReLU.
_PICTURE_SIDE, _ACTIVATION_BYTES = 256, 12
_PLAIN_CHANNELS = 2  # of an answer that is ab itself


@dataclass(frozen=True)
class UNetPlan:
    """Channel counts of every convolution: enough to rebuild the network that a state_dict fits.

    Beside the channels it holds two choices that make a network cheap where pictures are large. With a
    `stem_stride` of s the first convolution reads patches of s x s pixels, which is a 1x1 convolution of the
    pixel-unshuffled picture (Shi et al. 2016), so all work happens at 1/s of the size. With a decoder of fewer levels
    than the encoder goes down, the answer stays at `output_stride` and is up-sampled: chroma is smooth. Where such an
    answer is `affine`, its colours follow the lightness of every pixel all the same.

    Attributes:
        encoder: output channels of the 3x3 convolutions of each level, finest first; one or more in each.
        decoder: for each level from deep to shallow: output channels of the up-sampling convolution and of the one or
            more 3x3 convolutions behind the skip connection; fewer levels than the encoder has, perhaps none.
        upsample: "transpose" (2x2 transposed convolution, stride 2), or a 1x1 convolution and then "bilinear" or
            "nearest" up-sampling.
        stem_stride: of the first convolution, one of 1 (3x3), 2, 4, 8, 16 (patches).
        affine: the head answers B and A of `training.network.apply_field`, four channels, instead of ab; for an output
            stride of 2 or more.
        residual: the 3x3 convolutions behind the first one of a block add to what they read (He et al. 2016); those of
            a block then have the same width. A small network learns more with it in the same time, at no more weights.
    """

    encoder: tuple[tuple[int, ...], ...]
    decoder: tuple[tuple[int, ...], ...]
    upsample: str = "transpose"
    stem_stride: int = 1
    affine: bool = False
    residual: bool = False

    def __post_init__(self) -> None:
        counts = [count for level in (*self.encoder, *self.decoder) for count in level]
        if len(counts) > _MOST_CONVOLUTIONS:
            raise _bad_plan(f"{len(counts):,} convolutions")
        shapes_fit = all(self.encoder) and all(len(level) >= 2 for level in self.decoder)
        if not (shapes_fit and len(self.decoder) < len(self.encoder) <= _LARGEST_DEPTH + 1):
            raise _bad_plan(f"{len(self.encoder)} encoder and {len(self.decoder)} decoder levels")
        if not all(type(count) is int and 1 <= count <= _LARGEST_CHANNELS for count in counts):
            raise _bad_plan(f"channel counts {_short(counts)}")
        if type(self.upsample) is not str or self.upsample not in UPSAMPLERS:
            raise _bad_plan(f"up-sampling {_short(self.upsample)}")
        if type(self.stem_stride) is not int or self.stem_stride not in STEM_STRIDES:
            raise _bad_plan(f"stem stride {_short(self.stem_stride)}")
        if type(self.affine) is not bool or (self.affine and self.output_stride == 1):
            raise _bad_plan(f"affine {_short(self.affine)} at output stride {self.output_stride}")
        if type(self.residual) is not bool:
            raise _bad_plan(f"residual {_short(self.residual)}")
        blocks = (*self.encoder, *(level[1:] for level in self.decoder))
        if self.residual and any(len(set(widths)) > 1 for widths in blocks):
            raise _bad_plan(f"residual blocks of channel counts {_short(counts)}")
        needed, machine = self._training_bytes(), total_memory_bytes()
        if needed > machine:
            why = (
                f"needs {needed / 1e9:.1f} GB to be trained on one picture, and the machine has {machine / 1e9:.1f} GB"
            )
            raise InputError("channel plan", None, why, "give smaller channel counts")

    def _training_bytes(self) -> int:
        """Memory that training takes at least: of the parameters, and of the answers of all layers to one picture."""
        parameters = activations = 0
        below, skips, side = 1, list[int](), _PICTURE_SIDE // self.stem_stride
        for level, widths in enumerate(self.encoder):
            for place, width in enumerate(widths):
                patch = self.stem_stride if level == place == 0 and self.stem_stride > 1 else 3
                parameters += below * width * patch**2
                activations += width * max(1, side >> level) ** 2
                below = width
            skips.append(below)
        below = skips.pop()
        for level, (up, *behind) in zip(reversed(range(len(skips))), self.decoder, strict=False):
            parameters += below * up * (4 if self.upsample == "transpose" else 1)
            activations += (skips[-1] + up) * max(1, side >> level) ** 2
            below = skips.pop() + up
            for width in behind:
                parameters += below * width * 9
                activations += width * max(1, side >> level) ** 2
                below = width
        return _PARAMETER_BYTES * parameters + _ACTIVATION_BYTES * activations

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
        """Height and width inside the network are multiples of this: the stride of the deepest level."""
        return self.stem_stride << (len(self.encoder) - 1)

    @property
    def output_stride(self) -> int:
        """The network answers at 1 / this of the picture's height and width."""
        return self.size_multiple >> len(self.decoder)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready primitives; `affine` and `residual` only where they are, as older plans have it."""
        values = {
            **vars(self),
            "encoder": [list(level) for level in self.encoder],
            "decoder": [list(level) for level in self.decoder],
        }
        return {name: value for name, value in values.items() if name not in ("affine", "residual") or value}

    def describe(self) -> dict[str, Any]:
        return {"name": "unet", "plan": self.to_dict()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> UNetPlan:
        """Rebuild a plan from `to_dict`'s answer; a key that came later may be missing.

        Raises:
            InputError: a key is missing, or a value is not a channel count.
        """
        try:
            levels = [*values["encoder"], *values["decoder"]]
            if not all(isinstance(level, list | tuple) for level in levels):
                raise TypeError("a level that is no list of channel counts")
            return UNetPlan(
                encoder=tuple(map(tuple, values["encoder"])),
                decoder=tuple(map(tuple, values["decoder"])),
                upsample=values["upsample"],
                stem_stride=values.get("stem_stride", 1),
                affine=values.get("affine", False),
                residual=values.get("residual", False),
            )
        except (KeyError, TypeError) as error:
            raise _bad_plan(f"{error}") from error


def _short(value: object) -> str:
    """A value that may be anything, of any length, for an error."""
    return reprlib.repr(value)


def _bad_plan(got: str) -> InputError:
    hint = (
        "a plan has encoder levels of one or more, and fewer decoder levels of two or more, positive channel counts, "
        f"upsample one of: {', '.join(UPSAMPLERS)}, stem_stride one of: {', '.join(map(str, STEM_STRIDES))}, equal "
        "channel counts in each level where residual is true, and affine false at output stride 1"
    )
    return InputError("channel plan", None, f"got {got}", hint)


class ConvBlock(nn.Sequential):
    """For each width: convolution, batch norm, ReLU; 3x3, but the first one reads patches of `patch` pixels, if any.

    In a `residual` one the convolutions behind the first add to what they read, in front of their ReLU.
    """

    def __init__(self, in_channels: int, widths: Sequence[int], *, patch: int = 1, residual: bool = False) -> None:
        layers: list[nn.Module] = []
        for width in widths:
            kernel, padding = (patch, 0) if patch > 1 else (3, 1)
            convolution = nn.Conv2d(in_channels, width, kernel, stride=patch, padding=padding, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            in_channels, patch = width, 1
        super().__init__(*layers)
        self.residual = residual

    def forward(self, features: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C, H / patch, W / patch)."""
        layers = list(self)
        for place in range(0, len(layers), 3):
            convolution, norm, relu = layers[place : place + 3]
            answer = norm(convolution(features))
            features = relu(answer + features if self.residual and place else answer)
        return features


class UNet(ColorNetwork):
    """The network of a channel plan; its answer is in [-1, 1], that of an affine one perhaps a little beyond."""

    def __init__(self, plan: UNetPlan) -> None:
        super().__init__()
        self.size_multiple, self.output_stride = plan.size_multiple, plan.output_stride
        self.stem_stride, self.upsample = plan.stem_stride, plan.upsample
        self.affine, self.residual = plan.affine, plan.residual
        skips = [level[-1] for level in plan.encoder]
        self.encoder = nn.ModuleList(
            ConvBlock(below, level, patch=plan.stem_stride if position == 0 else 1, residual=plan.residual)
            for position, (below, level) in enumerate(zip([1, *skips[:-1]], plan.encoder, strict=True))
        )
        self.pool = nn.MaxPool2d(2)
        # Of whole channels, at the deepest level alone (Tompson et al. 2015); training sets its share.
        self.dropout = nn.Dropout2d(0.0)
        self.up = nn.ModuleList()
        self.decoder = nn.ModuleList()
        below = skips.pop()
        for up, *widths in plan.decoder:
            self.up.append(_upsampler(below, up, plan.upsample))
            self.decoder.append(ConvBlock(skips.pop() + up, widths, residual=plan.residual))
            below = widths[-1]
        self.head = nn.Conv2d(below, _PLAIN_CHANNELS * (2 if plan.affine else 1), 1)

    @property
    def architecture(self) -> UNetPlan:
        """The channel plan of the network's own convolutions, so also after they were pruned in place."""

        def widths(*blocks: nn.Module) -> tuple[int, ...]:
            modules = [module for block in blocks for module in block.modules()]
            return tuple(m.out_channels for m in modules if isinstance(m, nn.Conv2d | nn.ConvTranspose2d))

        return UNetPlan(
            encoder=tuple(map(widths, self.encoder)),
            decoder=tuple(map(widths, self.up, self.decoder)),
            upsample=self.upsample,
            stem_stride=self.stem_stride,
            affine=self.affine,
            residual=self.residual,
        )

    def with_weights(self, state_dict: Mapping[str, Tensor]) -> UNet:
        """A new UNet with these weights, in eval mode; channels as the weights' shapes say, all else as here."""
        return build_unet(replace(plan_of_weights(state_dict, self.upsample), residual=self.residual), state_dict)

    def with_output_stride(self, stride: int) -> UNet:
        """A new UNet, in eval mode, without the finest levels of the decoder: it answers at 1 / stride of the size.

        All that stays has its weights, but for the head: that is of another width, and starts at small random weights,
        always the same ones, so it has to learn.

        Args:
            stride: a power of two from this one's to that of the deepest level.
        Raises:
            InputError: it is another one.
        """
        plan = self.architecture
        strides = [plan.output_stride << levels for levels in range(len(plan.decoder) + 1)]
        if stride not in strides:
            why = f"cannot answer at 1/{stride} of the size"
            raise InputError("network", self.title, why, f"give one of {', '.join(map(str, strides))}")
        coarse = replace(plan, decoder=plan.decoder[: len(plan.decoder) - strides.index(stride)])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            fresh = UNet(coarse).state_dict()
        own = {name: tensor for name, tensor in self.state_dict().items() if not name.startswith("head.")}
        return build_unet(coarse, {name: own.get(name, tensor) for name, tensor in fresh.items()})

    def forward_coarse(self, lightness: Tensor) -> Tensor:
        return self.forward_levels(lightness)[0]

    def forward_levels(self, lightness: Tensor) -> tuple[Tensor, list[Tensor]]:
        """`forward_coarse`, and what each block of the decoder made on the way, deep to shallow."""
        skips = []
        features = lightness  # (N, 1, H, W)
        for level, block in enumerate(self.encoder):
            features = block(features if level == 0 else self.pool(features))  # (N, C_level, H/s/2^level, W/s/2^level)
            skips.append(features)
        features = self.dropout(skips.pop())
        levels = []
        for up, block in zip(self.up, self.decoder, strict=True):
            # up: twice the height and width; with the skip connection of that size in front of it.
            features = block(torch.cat([skips.pop(), up(features)], dim=1))
            levels.append(features)
        answer = self.head(features)  # (N, 2 or 4, H/output_stride, W/output_stride)
        if not self.affine:
            return torch.tanh(answer), levels
        base, slope = answer[:, :_PLAIN_CHANNELS], answer[:, _PLAIN_CHANNELS:]
        return torch.cat([torch.tanh(base), slope], dim=1), levels


def empty_unet(plan: UNetPlan) -> UNet:
    """The network of a plan whose weights have shapes and no values: nothing is allocated, no random number drawn."""
    with torch.device("meta"):
        return UNet(plan)


def build_unet(plan: UNetPlan, state_dict: Mapping[str, Tensor]) -> UNet:
    """The network of a plan with a copy of these weights, in eval mode."""
    with torch.inference_mode(False):
        network = empty_unet(plan)
        network.load_state_dict({name: tensor.detach().clone() for name, tensor in state_dict.items()}, assign=True)
    return network.eval()


def _upsampler(in_channels: int, out_channels: int, kind: str) -> nn.Module:
    if kind == "transpose":
        return nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2)
    # A 1x1 convolution commutes with interpolation, and costs a quarter when it comes first.
    align_corners = False if kind == "bilinear" else None
    upsample = nn.Upsample(scale_factor=2, mode=kind, align_corners=align_corners)
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1), upsample)


def plan_of_weights(weights: Mapping[str, Tensor], upsample: str) -> UNetPlan:
    """Read the channel plan off the shapes of a state_dict's tensors, which do not tell a residual one.

    Raises:
        InputError: they are not those of a UNet.
    """
    # A transposed convolution keeps its output channels in the second place.
    up, axis = ("up.{}.weight", 1) if upsample == "transpose" else ("up.{}.0.weight", 0)

    def present(name: str, step: int = 1) -> Iterator[int]:
        return itertools.takewhile(lambda number: name.format(number) in weights, itertools.count(0, step))

    def widths(block: str) -> tuple[int, ...]:
        # A convolution, its batch norm and a ReLU are three layers of the block.
        return tuple(len(weights[f"{block}.{layer}.weight"]) for layer in present(f"{block}.{{}}.weight", 3))

    try:
        kernel = weights["encoder.0.0.weight"].shape[-1]
        return UNetPlan(
            encoder=tuple(widths(f"encoder.{level}") for level in present("encoder.{}.0.weight")),
            decoder=tuple(
                (weights[up.format(level)].shape[axis], *widths(f"decoder.{level}"))
                for level in present("decoder.{}.0.weight")
            ),
            upsample=upsample,
            stem_stride=1 if kernel == 3 else kernel,
            affine=len(weights["head.weight"]) > _PLAIN_CHANNELS,
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
