"""Networks that colorpress did not make, adapted to what the stages ask."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.core.config import GREY_RANGES, ArchConfig, option_name
from colorpress.core.errors import ConfigError
from training.conventions import Conventions
from training.foreign_source import LoadedSource, construct_network, load_source, parse_arguments
from training.input_sizes import MULTIPLES, ONE_SIZES, InputSizes, find_sizes, resize
from training.network import ColorNetwork
from training.plain_weights import make_plain_
from training.resizing import resize_layers_


@dataclass(frozen=True)
class ForeignArchitecture:
    """What a checkpoint says of a network that colorpress did not make; not enough to run it.

    Attributes:
        source: file name and class or function, such as "foreign_unet.py:UNet"; no folder.
        args: keyword arguments of the class, primitives.
        conventions: what the network reads and answers.
        size_multiple: height and width inside the network are multiples of this power of two.
        source_sha256: of the file.
        fixed_size: the only height and width that the network takes; None where it takes all multiples.
    """

    source: str
    args: Mapping[str, Any]
    conventions: Conventions
    size_multiple: int
    source_sha256: str
    fixed_size: tuple[int, int] | None = None

    @property
    def sizes(self) -> InputSizes:
        """The sizes that the network takes."""
        return InputSizes(self.size_multiple, self.fixed_size)

    def describe(self) -> dict[str, Any]:
        described = {**vars(self), "args": dict(self.args), "conventions": vars(self.conventions)}
        # New texts: a pickle tells whether two are the same object, and a checkpoint's bytes are compared.
        return {"name": "foreign", **json.loads(json.dumps(described))}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ForeignArchitecture:
        """Rebuild from `describe`'s answer; from that of an older version too, which knew --ab-scale alone.

        Raises:
            ValueError: a value is of another kind than `describe` writes.
        """
        fixed = values.get("fixed_size")  # files of earlier versions say nothing of it
        recorded = values["conventions"] if "conventions" in values else {"ab_scale": values["ab_scale"]}
        fixed_size = tuple(fixed) if isinstance(fixed, list | tuple) else fixed
        known = {**values, "conventions": Conventions.of(recorded), "fixed_size": fixed_size}
        found = ForeignArchitecture(**{field.name: known[field.name] for field in fields(ForeignArchitecture)})
        args, multiple = found.args, found.size_multiple
        good = {
            "source": isinstance(found.source, str),
            "source_sha256": isinstance(found.source_sha256, str),
            "args": isinstance(args, dict) and all(isinstance(name, str) for name in args),
            "size_multiple": type(multiple) is int and multiple in MULTIPLES,
            "fixed_size": fixed is None or (found.fixed_size in ONE_SIZES and all(type(side) is int for side in fixed)),
        }
        for name, is_good in good.items():
            if not is_good:
                raise ValueError(f"its {name} is {getattr(found, name)!r}")
        return found

    def as_arguments(self) -> str:
        """The options that name this network, but for the folder of its file."""
        args = tuple(f"{name}={json.dumps(value)}" for name, value in self.args.items())
        return ArchConfig(arch=self.source, arch_arg=args, **self.conventions.telling_options()).as_arguments()


class AskedNetwork(nn.Module):
    """A network of another author from our L (N, 1, H, W) to ab/128 (N, 2, H, W), of the sizes that it takes."""

    def __init__(self, net: nn.Module, conventions: Conventions) -> None:
        super().__init__()
        self.net, self.conventions = net, conventions

    def forward(self, lightness: Tensor) -> Tensor:
        return self.conventions.ask(self.net, lightness)


class AdaptedNetwork(ColorNetwork):
    """A network of another author behind the interface of `ColorNetwork`.

    Args:
        net: what the architecture's conventions say it reads (N, C, H, W), to what they say it answers, for H and W
            that are multiples, or of one size: L is then resized to it, and ab back.
        construct: makes a network like `net` as its author's code does.
    """

    def __init__(self, net: nn.Module, architecture: ForeignArchitecture, construct: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net = net
        self.size_multiple = architecture.size_multiple
        self._architecture, self._construct = architecture, construct

    @property
    def architecture(self) -> ForeignArchitecture:
        """Where the network comes from; its channel counts are those of its weights."""
        return self._architecture

    @property
    def title(self) -> str:
        return self._architecture.source

    def forward_coarse(self, lightness: Tensor) -> Tensor:
        fixed = self._architecture.fixed_size
        if fixed is None:
            return self._ask(lightness)
        return resize(self._ask(resize(lightness, fixed)), (lightness.shape[-2], lightness.shape[-1]))

    def _ask(self, lightness: Tensor) -> Tensor:
        return self._architecture.conventions.ask(self.net, lightness)

    @property
    def asked(self) -> AskedNetwork:
        """The network by its conventions, weights shared, for the sizes that it takes itself."""
        return AskedNetwork(self.net, self._architecture.conventions)

    def with_sizes(self, sizes: InputSizes) -> AdaptedNetwork:
        """The same network, weights shared, asked for these sizes alone; in eval mode."""
        architecture = replace(self._architecture, size_multiple=sizes.multiple, fixed_size=sizes.fixed)
        return AdaptedNetwork(self.net, architecture, self._construct).eval()

    def with_weights(self, state_dict: Mapping[str, Tensor]) -> AdaptedNetwork:
        """A new network with these weights, in eval mode: made by its author's code, then resized to their shapes.

        Raises:
            RuntimeError: the weights are of another network.
        """
        network = AdaptedNetwork(self._construct(), self._architecture, self._construct)
        resize_layers_(network, state_dict)
        network.load_state_dict(dict(state_dict))
        return network.eval()


def adapt_network(arch: ArchConfig, recorded: ForeignArchitecture | None = None) -> AdaptedNetwork:
    """The network that `arch` names, with the weights its author's code starts with, in eval mode.

    Args:
        arch: names the file to run. Arguments and conventions that it leaves open are those of `recorded`.
        recorded: what the checkpoint says; None for a checkpoint that is not of this project: how many channels the
            network reads and answers is then found by asking it, and all else that is left open is `Conventions`'
            default.
    Raises:
        ConfigError: no such file or name, or it does not give a network, or other conventions than the recorded ones,
            or than its channels have.
        InputError: the network does not answer as a colorizer must, at any multiple up to 256 nor at one size.
    """
    assert arch.arch is not None
    loaded = load_source(arch.arch)
    args = {**(recorded.args if recorded else {}), **parse_arguments(arch.arch_arg)}
    if recorded:
        _refuse_others(arch, recorded.conventions)
    construct = partial(_construct_plain, loaded, args)
    net = construct()
    conventions = recorded.conventions if recorded else _assume_conventions(net, arch)
    sizes = recorded.sizes if recorded else find_sizes(AskedNetwork(net, conventions), loaded.name)
    source = ForeignArchitecture(loaded.name, args, conventions, sizes.multiple, loaded.sha256, sizes.fixed)
    return AdaptedNetwork(net, source, construct).eval()


def _construct_plain(source: LoadedSource, args: Mapping[str, Any]) -> nn.Module:
    """The network with plain weights where its code has weight norm and the like, as those of checkpoints are."""
    return make_plain_(construct_network(source, args))


def _refuse_others(arch: ArchConfig, recorded: Conventions) -> None:
    """Refuse conventions that the weights were not converted with."""
    for name, value in arch.conventions.items():
        if value != (known := getattr(recorded, name)):
            raise ConfigError(
                "option", f"--{option_name(name)}", f"got {_plain(value)}, but the checkpoint says {_plain(known)}",
                "leave it out, or start again from the original weights with `colorpress run --force`",
            )  # fmt: skip


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _assume_conventions(net: nn.Module, arch: ArchConfig) -> Conventions:
    """What `arch` says; of the rest the channels that the network takes and answers, and defaults.

    Raises:
        ConfigError: the network takes or answers other channels than `arch` says.
    """
    given = arch.conventions
    needs = 3 if given.get("input_norm") == "imagenet" else given.get("input_channels")
    read, answered = find_channels(net, (3, 1) if needs == 3 else (1, 3)) or (needs or 1, 2)
    if needs not in (None, read):
        name = "input_channels" if "input_channels" in given else "input_norm"
        raise _refuse_channels(given, name, f"takes {read} channel{'s' * (read > 1)}")
    three = "lab" if {"ab_scale", "ab_offset"} & given.keys() else "rgb"
    output = given.get("output", three if answered == 3 else "ab")
    # What answers pictures is given pictures.
    usual = "grey" if output == "rgb" and given.get("l_range") in (None, *GREY_RANGES) else "l"
    found = Conventions(**{"input": usual, "input_channels": read, "output": output, **given})
    if answered in (2, 3) and answered != found.output_channels:
        raise _refuse_channels(given, "output", f"answers {answered} channels")
    return found


def _refuse_channels(given: Mapping[str, Any], name: str, why: str) -> ConfigError:
    option = f"--{option_name(name)}"
    return ConfigError("option", option, f"got {given[name]}, and the network {why}", "leave it out: it is found")


def find_channels(net: nn.Module, tried: Sequence[int]) -> tuple[int, int] | None:
    """How many channels the network takes, of those tried, and answers; None where it takes no picture at all."""
    weight = next(net.parameters(), torch.empty(0))
    for (height, width), channels in itertools.product(ONE_SIZES, tried):
        with torch.no_grad(), suppress(Exception):  # a network of any kind fails in any way
            answer = net(weight.new_zeros(1, channels, height, width))
            if isinstance(answer, Tensor) and answer.ndim == 4:
                return channels, answer.shape[1]
    return None
