"""How a colorizer that colorpress did not make is asked, and what it answers: from our L to its input, and back to ab.

Both ways are plain operations of torch that any exporter knows, so an exported graph holds them: it reads L and answers
ab like every other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.core.config import L_RANGES, ArchConfig
from colorpress.core.errors import ConfigError
from training.cie import AB_SCALE
from training.lab import lightness_to_grey, srgb_to_ab

# Of the channels of sRGB in [0, 1], as torchvision's networks are trained with.
_IMAGENET_MEAN, _IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_SAID_INPUT = {"l": "L*", "grey": "the grey photograph in sRGB"}
_SAID_OUTPUT = {"ab": "a*b*", "lab": "L*a*b*", "rgb": "sRGB"}
_BOUNDS = {text: tuple(map(float, text.split(","))) for text in L_RANGES}


@dataclass(frozen=True)
class Conventions:
    """What a network reads and answers; the defaults are those of colorpress' own.

    Attributes:
        input: "l" is L* of CIE Lab, "grey" the sRGB value of the grey of that lightness.
        l_range: what the input goes from black to white in, such as "-1,1".
        input_channels: 1, or 3 that are the same.
        input_norm: "imagenet" takes ImageNet's mean from each of three channels and divides it by its spread.
        output: "ab" is two channels, "lab" three of which the last two count, "rgb" sRGB.
        ab_scale, ab_offset: a*b* = answer * ab_scale + ab_offset.
        rgb_range: what sRGB goes from black to white in; "imagenet" is normalized as the input is.
    """

    input: str = "l"
    l_range: str = "0,1"
    input_channels: int = 1
    input_norm: str = "none"
    output: str = "ab"
    ab_scale: float = AB_SCALE
    ab_offset: float = 0.0
    rgb_range: str = "0,1"

    @property
    def output_channels(self) -> int:
        """Channels that the network answers."""
        return 2 if self.output == "ab" else 3

    def ask(self, net: nn.Module, lightness: Tensor) -> Tensor:
        """ab (N, 2, H, W) in ab/128 that a network of these conventions answers to L (N, 1, H, W) in [0, 1]."""
        answer: Tensor = net(self.present(lightness))
        # What is no tensor is passed on, for whoever asks whether the network is a colorizer.
        return self.interpret(answer) if isinstance(answer, Tensor) else answer

    def present(self, lightness: Tensor) -> Tensor:
        """L (N, 1, H, W) in [0, 1] as the network reads it: (N, `input_channels`, H, W)."""
        plane = lightness_to_grey(lightness) if self.input == "grey" else lightness
        low, high = _BOUNDS[self.l_range]
        if (low, high) != (0.0, 1.0):
            plane = plane * (high - low) + low
        if self.input_norm == "imagenet":
            means = zip(_IMAGENET_MEAN, _IMAGENET_SPREAD, strict=True)
            return torch.cat([(plane - mean) / spread for mean, spread in means], 1)
        return plane if self.input_channels == 1 else torch.cat([plane] * 3, 1)

    def interpret(self, answer: Tensor) -> Tensor:
        """ab (N, 2, H, W) in ab/128 of what the network answered, (N, `output_channels`, H, W).

        Raises:
            ValueError: it is said to answer three channels, and has other ones.
        """
        if self.output != "ab" and answer.shape[1] != self.output_channels:
            raise ValueError(f"it answers {answer.shape[1]} channels, and --output {self.output} has three")
        if self.output == "rgb":
            # Roots of numbers near 0: nothing that 16 bits are enough for.
            return srgb_to_ab(self.decode_rgb(answer.float())).to(answer.dtype)
        ab = answer[:, 1:] if self.output == "lab" else answer
        ab = ab if self.ab_scale == AB_SCALE else ab * (self.ab_scale / AB_SCALE)
        return ab + self.ab_offset / AB_SCALE if self.ab_offset else ab

    def decode_rgb(self, answer: Tensor) -> Tensor:
        """sRGB in [0, 1], perhaps a little beyond, of an answer (N, 3, H, W) in sRGB."""
        if self.rgb_range == "imagenet":
            means = enumerate(zip(_IMAGENET_MEAN, _IMAGENET_SPREAD, strict=True))
            return torch.cat([answer[:, each : each + 1] * spread + mean for each, (mean, spread) in means], 1)
        return answer if self.rgb_range == "0,1" else (answer + 1.0) / 2.0

    def options(self) -> dict[str, Any]:
        """What counts, by the names of `ArchConfig`."""
        idle = ("ab_scale", "ab_offset") if self.output == "rgb" else ("rgb_range",)
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name not in idle}

    def agrees(self, given: Mapping[str, Any]) -> bool:
        """Whether they say nothing else than what is given, by the names of `options`."""
        counts = self.options()
        return all(name in counts and counts[name] == value for name, value in given.items())

    def telling_options(self) -> dict[str, Any]:
        """Of `options` those that are not the default, and what the colours are multiplied by."""
        always = ("rgb_range", "ab_scale")
        return {
            name: value for name, value in self.options().items() if name in always or value != getattr(_DEFAULTS, name)
        }

    def as_arguments(self) -> str:
        """The options that say so, as one would type them; those that are the default are left out."""
        return ArchConfig(arch="-", **self.telling_options()).as_arguments().removeprefix("--arch - ")

    def describe(self) -> str:
        """In words, such as "reads L* in -1,1; answers a*b* / 110"."""
        channels = "" if self.input_channels == 1 else ", in three channels"
        norm = ", normalized as for ImageNet" if self.input_norm == "imagenet" else f" in {self.l_range}"
        read = f"reads {_SAID_INPUT[self.input]}{norm}{channels}"
        if self.output == "rgb":
            said = "normalized as for ImageNet" if self.rgb_range == "imagenet" else f"in {self.rgb_range}"
            return f"{read}; answers sRGB {said}"
        offset = f"({_SAID_OUTPUT[self.output]} {-self.ab_offset:+g})" if self.ab_offset else _SAID_OUTPUT[self.output]
        return f"{read}; answers {offset}{'' if self.ab_scale == 1 else f' / {self.ab_scale:g}'}"

    @staticmethod
    def of(values: Mapping[str, Any]) -> Conventions:
        """Rebuild from `vars`; what is missing is the default.

        Raises:
            ValueError: a name is unknown, or a value is not one that an option may have.
        """
        if unknown := [name for name in values if name not in vars(_DEFAULTS)]:
            raise ValueError(f"its conventions hold {unknown[0]!r}")
        found = Conventions(**values)
        try:
            ArchConfig(arch="recorded", **found.options())
        except ConfigError as error:
            raise ValueError(f"its {error.subject} is not one: {error.why}") from error
        return found


_DEFAULTS = Conventions()
