"""Networks that colorpress did not make, adapted to what the stages ask."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from torch import Tensor, nn

from colorpress.core.config import ArchConfig
from colorpress.core.errors import ConfigError
from training.cie import AB_SCALE
from training.foreign_source import construct_network, load_source, parse_arguments
from training.input_sizes import MULTIPLES, find_size_multiple
from training.network import ColorNetwork
from training.resizing import resize_layers_


@dataclass(frozen=True)
class ForeignArchitecture:
    """What a checkpoint says of a network that colorpress did not make; not enough to run it.

    Attributes:
        source: file name and class or function, such as "foreign_unet.py:UNet"; no folder.
        args: keyword arguments of the class, primitives.
        ab_scale: the network answers a*b* divided by this.
        size_multiple: height and width inside the network are multiples of this power of two.
        source_sha256: of the file.
    """

    source: str
    args: Mapping[str, Any]
    ab_scale: float
    size_multiple: int
    source_sha256: str

    def describe(self) -> dict[str, Any]:
        return {"name": "foreign", **vars(self), "args": dict(self.args)}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> ForeignArchitecture:
        """Rebuild from `describe`'s answer.

        Raises:
            ValueError: a value is of another kind than `describe` writes.
        """
        found = ForeignArchitecture(**{field.name: values[field.name] for field in fields(ForeignArchitecture)})
        args, scale, multiple = found.args, found.ab_scale, found.size_multiple
        good = {
            "source": isinstance(found.source, str),
            "source_sha256": isinstance(found.source_sha256, str),
            "args": isinstance(args, dict) and all(isinstance(name, str) for name in args),
            "ab_scale": type(scale) in (int, float) and 0 < scale < 1e6,
            "size_multiple": type(multiple) is int and multiple in MULTIPLES,
        }
        for name, is_good in good.items():
            if not is_good:
                raise ValueError(f"its {name} is {getattr(found, name)!r}")
        return found

    def as_arguments(self) -> str:
        """The options that name this network, but for the folder of its file."""
        args = tuple(f"{name}={json.dumps(value)}" for name, value in self.args.items())
        return ArchConfig(arch=self.source, arch_arg=args, ab_scale=self.ab_scale).as_arguments()


class AdaptedNetwork(ColorNetwork):
    """A network of another author behind the interface of `ColorNetwork`: its answer scaled to ab/128.

    Args:
        net: L (N, 1, H, W) in [0, 1] to ab / ab_scale (N, 2, H, W), for H and W that are multiples.
        construct: makes a network like `net` as its author's code does.
    """

    def __init__(self, net: nn.Module, architecture: ForeignArchitecture, construct: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.net = net
        self.size_multiple = architecture.size_multiple
        self._architecture, self._construct = architecture, construct
        self._factor = architecture.ab_scale / AB_SCALE

    @property
    def architecture(self) -> ForeignArchitecture:
        """Where the network comes from; its channel counts are those of its weights."""
        return self._architecture

    @property
    def title(self) -> str:
        return self._architecture.source

    def forward_coarse(self, lightness: Tensor) -> Tensor:
        answer: Tensor = self.net(lightness)
        return answer if self._factor == 1.0 else answer * self._factor

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
        arch: names the file to run. Arguments and scale that it leaves open are those of `recorded`.
        recorded: what the checkpoint says; None for a checkpoint that is not of this project.
    Raises:
        ConfigError: no such file or name, or it does not give a network, or another scale than the recorded one.
        InputError: the network does not answer as a colorizer must, at any multiple up to 256.
    """
    assert arch.arch is not None
    loaded = load_source(arch.arch)
    args = {**(recorded.args if recorded else {}), **parse_arguments(arch.arch_arg)}
    if recorded and arch.ab_scale not in (None, recorded.ab_scale):
        raise ConfigError(
            "option", "--ab-scale", f"got {arch.ab_scale:g}, but the checkpoint says {recorded.ab_scale:g}",
            "leave it out, or start again from the original weights with `colorpress run --force`",
        )  # fmt: skip
    scale = recorded.ab_scale if recorded else AB_SCALE if arch.ab_scale is None else arch.ab_scale
    construct = partial(construct_network, loaded, args)
    net = construct()
    multiple = recorded.size_multiple if recorded else find_size_multiple(net, loaded.name)
    source = ForeignArchitecture(loaded.name, args, float(scale), multiple, loaded.sha256)
    return AdaptedNetwork(net, source, construct).eval()
