"""Networks that colorpress did not make: a class in a file that the user names, adapted to what the stages ask.

The file is code and is run. Only the user names it, on the command line or in a file given with --config: never a
checkpoint, and never a run folder, which may be somebody else's.
"""

from __future__ import annotations

import inspect
import json
import sys
import tomllib
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.core.config import ArchConfig
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import sha256_bytes
from training.cie import AB_SCALE
from training.network import ColorNetwork

_MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# What Python writes for what JSON writes otherwise; "False" as a text would count as true.
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
_ADAPTER_HINT = "name a function of your own that returns an nn.Module from L/100 (N, 1, H, W) to ab (N, 2, H, W)"


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
            "size_multiple": type(multiple) is int and multiple in _MULTIPLES,
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
    construct = partial(_construct_network, loaded, args)
    net = construct()
    multiple = recorded.size_multiple if recorded else _find_size_multiple(net, loaded.name)
    source = ForeignArchitecture(loaded.name, args, float(scale), multiple, loaded.sha256)
    return AdaptedNetwork(net, source, construct).eval()


@dataclass(frozen=True)
class LoadedSource:
    """A file of the user's that was run: its name with the class or function in it, that object, and its hash."""

    name: str
    path: Path
    make: Callable[..., Any]
    sha256: str


def load_source(spec: str) -> LoadedSource:
    """Run the file of "FILE.py:NAME" and find NAME in it; a file that was run before, unchanged, is not run again.

    Raises:
        ConfigError: the text is no such pair, there is no such file or name, or running the file fails.
    """
    file, _, name = spec.rpartition(":")
    if not file or not name.isidentifier():
        raise ConfigError("option", "--arch", f"got {spec!r}", "give FILE.py:NAME, such as networks/unet.py:UNet")
    path = Path(file)
    if not path.is_file():
        raise ConfigError("network file", path, "no such file", "give FILE.py:NAME with --arch")
    content = path.read_bytes()
    sha256 = sha256_bytes(content)
    module = _run_file(path, content, sha256)
    if not callable(made := getattr(module, name, None)):
        networks = [
            key
            for key, value in vars(module).items()
            if inspect.isclass(value) and value.__module__ == module.__name__ and issubclass(value, nn.Module)
        ]
        hint = f"its networks: {', '.join(networks)}" if networks else "name a class or function of that file"
        raise ConfigError("network file", path, f"holds no class or function {name!r}", hint)
    return LoadedSource(f"{path.name}:{name}", path, made, sha256)


def _run_file(path: Path, content: bytes, sha256: str) -> ModuleType:
    name = f"colorpress_foreign_{sha256_bytes(str(path.resolve()).encode())[:12]}_{sha256[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(path)
    # Registered first: dataclasses and typing look their module up. Compiled here, so that what is hashed is what is
    # run, and nothing is written beside the user's file.
    sys.modules[name] = module
    try:
        with _as_a_script(path):
            exec(compile(content, str(path), "exec"), vars(module))
    except (Exception, SystemExit) as error:  # a user's file fails in any way
        del sys.modules[name]
        hint = f"it must run by itself: try `python {path.name}` in its folder"
        raise ConfigError("network file", path, f"cannot be run: {_reason(error, path)}", hint) from error
    return module


@contextmanager
def _as_a_script(path: Path) -> Iterator[None]:
    """The file's own folder first among those that `import` searches; what it prints is no result of ours."""
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        sys.path.remove(folder)


def _reason(error: BaseException, path: Path) -> str:
    """An exception in one line, with the line of the user's file that it came from where there is one."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}{f' in line {lines[-1]}' if lines else ''}{f': {text}' if text else ''}"


def parse_arguments(given: Sequence[str]) -> dict[str, Any]:
    """NAME=VALUE texts as keyword arguments: numbers, booleans, null, quoted texts and lists as in TOML or JSON.

    Any other value is a text.

    Raises:
        ConfigError: a text is no NAME=VALUE, or a name is there twice.
    """
    args: dict[str, Any] = {}
    for each in given:
        name, equals, text = each.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name.isidentifier() or name in args:
            why = f"got {name!r} twice" if name in args else f"got {each!r}"
            raise ConfigError("option", "--arch-arg", why, "give NAME=VALUE, such as base=32, each name once")
        args[name] = _parse_value(text.strip())
    return args


def _parse_value(text: str) -> Any:
    with suppress(ValueError):
        return json.loads(_PYTHON_WORDS.get(text, text))
    with suppress(ValueError):
        value = tomllib.loads(f"value = {text}")["value"]
        return value if isinstance(value, bool | int | float | str | list) else text
    return text


def _construct_network(source: LoadedSource, args: Mapping[str, Any]) -> nn.Module:
    """Call the user's class or function; the random state is as before."""
    name = source.name.rpartition(":")[2]
    try:
        with torch.random.fork_rng(devices=[]), _as_a_script(source.path), torch.inference_mode(False):
            network = source.make(**args)
    except (Exception, SystemExit) as error:  # as above
        given = ", ".join(f"{name}={value!r}" for name, value in args.items())
        why = f"{name}({given}) failed: {_reason(error, source.path)}"
        raise ConfigError("network file", source.path, why, "give its arguments with --arch-arg NAME=VALUE") from error
    if not isinstance(network, nn.Module):
        why = f"{name} gave a {type(network).__name__}, not an nn.Module"
        raise ConfigError("network file", source.path, why, _ADAPTER_HINT)
    return network.eval()


def _find_size_multiple(net: nn.Module, name: str) -> int:
    """The smallest power of two whose multiples the network takes as height and width, answering ab of that size."""
    why = ""
    for multiple in _MULTIPLES:
        if not (why := find_fault(net, multiple)):
            return multiple
    raise InputError("network", name, why, _ADAPTER_HINT)


def find_fault(net: nn.Module, multiple: int) -> str:
    """What is wrong with the network's answers to sizes that are multiples; empty when nothing is."""
    weight = next(net.parameters(), torch.empty(0))
    # One by one may be too small for what works otherwise; 3 and 5 times are odd at every level but the deepest.
    for rows, columns in ((1, 1), (1, 2), (3, 5), (5, 3)):
        height, width = multiple * rows, multiple * columns
        size = f"an input of 1x1x{height}x{width}"
        try:
            with torch.no_grad():
                answer = net(weight.new_zeros(1, 1, height, width))
        except Exception as error:  # a network of any kind fails in any way
            return f"fails on {size}: {' '.join(str(error).split())[:200] or type(error).__name__}"
        if not isinstance(answer, Tensor):
            return f"answers a {type(answer).__name__} to {size}, not a tensor"
        if answer.shape != (1, 2, height, width):
            return f"answers {'x'.join(map(str, answer.shape))} to {size}, not 1x2x{height}x{width}"
    return ""


def rename_keys(found: Mapping[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """`found` without the prefixes that wrappers put before every name, where that makes the names those expected."""
    named = {name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}  # of torch.compile
    while named and not expected & named.keys():
        heads = {name.partition(".")[0] for name in named}
        if len(heads) > 1 or any("." not in name for name in named):
            break
        # `module` of DistributedDataParallel, or whatever a LightningModule calls its network.
        named = {name.partition(".")[2]: tensor for name, tensor in named.items()}
    return named


def resize_layers_(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Change layers in place to the channel counts of pruned weights; their values are left undefined.

    A layer that has fewer channels than its weights is left alone.
    """
    # Shared ones under each of their names: every layer that has one is resized.
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers(remove_duplicate=False)]
    for name, tensor in tensors:
        shape, before = weights.get(name, tensor).shape, tensor.shape
        fewer = len(shape) == len(before) and all(new <= old for new, old in zip(shape, before, strict=True))
        if fewer and shape != before:
            layer, _, own_name = name.rpartition(".")
            module = network.get_submodule(layer)
            with torch.inference_mode(False):
                smaller = tensor.detach().new_zeros(shape)
                is_parameter = isinstance(tensor, nn.Parameter)
                setattr(module, own_name, nn.Parameter(smaller, tensor.requires_grad) if is_parameter else smaller)
            _count_channels_(module)


def _count_channels_(module: nn.Module) -> None:
    """Set the channel counts of a layer to those of its weights."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        first, second = module.weight.shape[:2]
        if module.groups > 1 and module.groups == module.in_channels:  # depthwise: a group for each channel
            module.groups = first
        reads_second = isinstance(module, nn.Conv2d)
        module.in_channels = second * module.groups if reads_second else first
        module.out_channels = first if reads_second else second * module.groups
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, nn.modules.batchnorm._NormBase):
        module.num_features = len(module.weight if module.weight is not None else module.running_mean)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
    elif isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = len(module.weight)
