"""`best.pt`: a dictionary of tensors and primitives that is read without running any code it may hold.

Weights that other programs saved are read too, for a network that the user names.
"""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor

from colorpress.core.config import ArchConfig
from colorpress.core.console import say, warn
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import find_impostor, sha256_bytes, write_bytes
from training.cie import AB_SCALE
from training.foreign import ForeignArchitecture, adapt_network, find_fault, rename_keys, resize_layers_
from training.network import Architecture, ColorNetwork, GraphArchitecture
from training.unet import UNetPlan, build_unet, empty_unet, plan_of_weights

FORMAT_VERSION = 2
_NO_CHECKPOINT = "give a checkpoint written by `colorpress train` or `colorpress prune`, or a state_dict with --arch"
_NAME_ITS_NETWORK = "name its network: --arch FILE.py:CLASS [--arch-arg NAME=VALUE]"


@dataclass(frozen=True)
class Checkpoint:
    """A network as saved: architecture, weights and how it came about.

    Attributes:
        architecture: the channel plan of a UNet, or what is known of a foreign network.
        state_dict: weights, on the CPU, float32.
        epoch: the epoch (1-based) the weights are from; 0 when unknown.
        val_l1: validation L1 (ab/128) of that epoch, to whatever it was chosen by; None when unknown.
        history: one dictionary of numbers per epoch so far.
        extra: primitives of the stage that wrote it, such as the hash of the teacher.
        training_state: optimizer, sampler and generator state of `last.pt`; None in files that are shipped.
        path, sha256: of the file it was read from; None and empty when it was never written.
        converted: whether that file was of another program.
        arch: the options that name a foreign network; never from the file itself.
    """

    architecture: Architecture
    state_dict: Mapping[str, Tensor]
    epoch: int = 0
    val_l1: float | None = None
    history: tuple[Mapping[str, float], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    training_state: Mapping[str, Any] | None = None
    sha256: str = ""
    path: Path | None = field(default=None, compare=False)
    converted: bool = field(default=False, compare=False)
    arch: ArchConfig = field(default_factory=ArchConfig, compare=False)

    def build_network(self) -> ColorNetwork:
        """The network with these weights, in eval mode on the CPU.

        Raises:
            ConfigError: the network is foreign and `arch` does not name it, or names what cannot be run.
            InputError: the weights are of another network.
        """
        if isinstance(self.architecture, UNetPlan):
            if self.arch.arch:
                why = "holds colorpress' own UNet"
                raise ConfigError("checkpoint", self.path, why, "leave --arch out, or give another --checkpoint")
            return build_unet(self.architecture, self.state_dict)
        if not isinstance(self.architecture, ForeignArchitecture):
            why = "holds the weights of a tuned ONNX graph, and not the graph"
            raise _unusable(self.path, why, "use the .onnx file beside it")
        if not self.arch.arch:
            why = f"holds the network {self.architecture.source}, and no code is run that you do not name"
            hint = f"name the file: {self.architecture.as_arguments()}"
            raise ConfigError("checkpoint", self.path, why, hint)
        network = adapt_network(self.arch, self.architecture)
        if network.architecture.source_sha256 != self.architecture.source_sha256:
            warn(f"{network.architecture.source} is not the file that the checkpoint was made with")
        resize_layers_(network, self.state_dict)
        _require_fit(self.path, network.state_dict(), self.state_dict, "give the --arch, and the --arch-arg, it is of")
        network.load_state_dict(dict(self.state_dict))
        if why := find_fault(network.net, network.architecture.size_multiple):
            raise _unusable(self.path, f"its network {why}", "give the --arch that it is of")
        return network.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically and return `path`.

    Raises:
        MachineError: the file cannot be written; an older one at `path` is intact.
    """
    return write_bytes(path, dump_checkpoint(checkpoint))


def dump_checkpoint(checkpoint: Checkpoint) -> bytes:
    """The content of a checkpoint's file; the same for the same checkpoint."""
    content = {
        "format": "colorpress",
        "format_version": FORMAT_VERSION,
        "architecture": checkpoint.architecture.describe(),
        "task": {"input": "L*/100", "output": "ab", "ab_scale": AB_SCALE},
        "state_dict": {name: tensor.detach().cpu() for name, tensor in checkpoint.state_dict.items()},
        "epoch": checkpoint.epoch,
        "val_l1": checkpoint.val_l1,
        "history": [dict(row) for row in checkpoint.history],
        "extra": dict(checkpoint.extra),
        "training_state": checkpoint.training_state,
    }
    # Into memory first: the zip writer of torch gives up half-way on a full disk with an error of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def load_checkpoint(path: Path, arch: ArchConfig | None = None) -> Checkpoint:
    """Read a checkpoint of this project or, with `arch`, of another one; code inside it is refused, never run.

    Weights of another project are: a state_dict, alone or in a dictionary, in a .pt or .safetensors file. Those of
    colorpress' own UNet are recognized without `arch`. A foreign checkpoint of this project can be read without
    `arch`, but not built.

    Raises:
        ConfigError: there is no such file, or a foreign network is not named, or cannot be made.
        InputError: the file is damaged, is no checkpoint, holds code, is newer than this program, or its weights
            are not finite or do not fit its network.
    """
    arch = arch or ArchConfig()
    if not path.exists():
        raise ConfigError("checkpoint", path, "no such file", _NO_CHECKPOINT)
    if not path.is_file():
        raise _unusable(path, "not a regular file")
    raw = path.read_bytes()
    if impostor := find_impostor(raw[:512]):
        raise _unusable(path, impostor)
    # The safetensors format has no magic number: a length in 8 bytes, then JSON.
    is_safetensors = path.suffix == ".safetensors" or raw[8:9] == b"{"
    content = _read_safetensors(path, raw) if is_safetensors else _read_dictionary(path, raw)
    if content.get("format") == "colorpress":
        checkpoint = _read_own(path, content)
        if isinstance(checkpoint.architecture, UNetPlan):
            expected = empty_unet(checkpoint.architecture).state_dict()
            _require_fit(path, expected, checkpoint.state_dict, "the weights do not fit the channel plan")
    else:
        checkpoint = _read_foreign(path, content, arch)
    for name, tensor in checkpoint.state_dict.items():
        if not bool(torch.isfinite(tensor).all()):
            raise _unusable(path, f"{name} holds NaN or Inf", "train again, or use an older checkpoint")
    if checkpoint.val_l1 is not None and not math.isfinite(checkpoint.val_l1):
        raise _unusable(path, "its validation L1 is not finite")
    return replace(checkpoint, sha256=sha256_bytes(raw), path=path, arch=arch)


def _unusable(path: Path | None, why: str, hint: str = _NO_CHECKPOINT) -> InputError:
    return InputError("checkpoint", path, why, hint)


def _read_own(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    version = content.get("format_version")
    if not isinstance(version, int):
        raise _unusable(path, "holds no colorpress network")
    if version > FORMAT_VERSION:
        raise _unusable(path, f"format {version} is newer than {FORMAT_VERSION}", "update colorpress")
    try:
        state_dict = dict(content["state_dict"])
        if wrong := [name for name, tensor in state_dict.items() if not isinstance(tensor, Tensor)]:
            raise TypeError(f"{wrong[0]} is no tensor")
        found = Checkpoint(
            architecture=_read_architecture(content["architecture"]),
            state_dict=state_dict,
            epoch=int(content["epoch"]),
            val_l1=content["val_l1"],
            history=tuple(content["history"]),
            extra=dict(content["extra"]),
            training_state=content["training_state"],
        )
    except (AttributeError, KeyError, TypeError, ValueError, InputError) as error:
        raise _unusable(path, f"is incomplete ({error})") from error
    return replace(found, state_dict=_as_float32(path, state_dict))


def _read_architecture(described: Mapping[str, Any]) -> Architecture:
    if described.get("name") == "foreign":
        return ForeignArchitecture.from_dict(described)
    if described.get("name") == "graph":
        return GraphArchitecture(str(described["source_sha256"]), int(described["size_multiple"]))
    return UNetPlan.from_dict(described["plan"])


def _read_foreign(path: Path, content: Mapping[str, Any], arch: ArchConfig) -> Checkpoint:
    """Weights that another program saved, for the network that `arch` names, or for colorpress' own UNet."""
    state_dict = _as_float32(path, _find_state_dict(path, content, arch.state_key))
    if arch.arch is None:
        named = rename_keys(state_dict, {"head.weight"})
        if plan := _own_plan(path, named):
            return Checkpoint(plan, named, converted=True)
        raise _unusable(path, f"holds no colorpress network (keys {_some(named)})", _NAME_ITS_NETWORK)
    network = adapt_network(arch)
    expected = network.net.state_dict()
    named = rename_keys(state_dict, set(expected))
    _require_fit(path, expected, named, f"these are not the weights of {network.architecture.source}: check --arch-arg")
    if arch.ab_scale is None:
        warn(f"--ab-scale is not given: {network.architecture.source} is taken to answer a*b* / {AB_SCALE:g}")
    # In the network's own order, so that the same weights give the same file.
    return Checkpoint(network.architecture, {f"net.{name}": named[name] for name in expected}, converted=True)


def _find_state_dict(path: Path, content: Mapping[str, Any], key: str | None) -> Mapping[str, Tensor]:
    """The weights in what another program saved: all of it, or its only dictionary of tensors, or the one at `key`."""
    found = {str(name): value for name, value in content.items() if _is_state_dict(value)}
    places = ", ".join(found)
    if key is not None:
        if key not in found:
            hint = f"weights are at: {places or 'none'}"
            raise ConfigError("option", "--state-key", f"got {key!r}, no weights there", hint)
        return found[key]
    if _is_state_dict(content):
        return content
    if len(found) > 1:
        raise ConfigError("checkpoint", path, f"holds weights at {places}", f"choose: --state-key {next(iter(found))}")
    if not found:
        why = f"holds no dictionary of weights (keys {_some(content)})"
        raise _unusable(path, why, "save the weights: torch.save(network.state_dict(), 'weights.pt')")
    return next(iter(found.values()))


def _is_state_dict(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    return named and len(value) > 0 and all(isinstance(item, Tensor) for item in value.values())


def _as_float32(path: Path, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float32; other floats are converted and said, other kinds of numbers refused."""
    converted, kinds = {}, set()
    for name, tensor in state_dict.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            why = f"{name} is {'quantized' if tensor.is_quantized else f'{tensor.layout} {tensor.dtype}'}"
            raise _unusable(path, why, "save the weights in float32")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kinds.add(str(tensor.dtype).removeprefix("torch."))
            tensor = tensor.float()
        converted[name] = tensor.detach().contiguous()
    if kinds:
        say(f"'{path.name}' holds {', '.join(sorted(kinds))} weights: converted to float32")
    return converted


def _own_plan(path: Path, state_dict: Mapping[str, Tensor]) -> UNetPlan | None:
    """The plan of colorpress' own UNet that these weights fit; None when they fit none."""
    if {"up.0.0.weight", "head.weight"} <= state_dict.keys():
        why = "holds a UNet that up-samples by bilinear or by nearest: its weights alone do not tell"
        raise _unusable(path, why, "give the checkpoint that `colorpress train` wrote")
    try:
        plan = plan_of_weights(state_dict, "transpose")
    except InputError:
        return None
    return plan if _shapes(empty_unet(plan).state_dict()) == _shapes(state_dict) else None


def _require_fit(path: Path | None, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], hint: str) -> None:
    """Refuse weights of other names or shapes than `expected`; lists the first five that differ."""
    wanted, got = _shapes(expected), _shapes(found)
    wrong = [
        f"{name}: expected {wanted.get(name, 'nothing')} got {got.get(name, 'nothing')}"
        for name in wanted | got
        if wanted.get(name) != got.get(name)
    ]
    if wrong:
        missing, unexpected = len(wanted.keys() - got), len(got.keys() - wanted)
        counts = f"; {missing} missing, {unexpected} unexpected" if missing or unexpected else ""
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise _unusable(path, "; ".join(wrong[:5]) + more + counts, hint)


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def _some(values: Mapping[Any, Any]) -> str:
    names = [str(name) for name in values]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")


def _read_safetensors(path: Path, raw: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(raw))
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise _unusable(path, "is corrupt or truncated, or no safetensors file") from error


def _read_dictionary(path: Path, raw: bytes) -> dict[str, Any]:
    if raw.startswith(b"PK") and not zipfile.is_zipfile(io.BytesIO(raw)):
        raise _unusable(path, "is corrupt or truncated")
    if not raw.startswith((b"PK", b"\x80")):
        raise _unusable(path, "is not a PyTorch file")
    try:
        with warnings.catch_warnings():
            # Files of other programs may use newer pickle protocols; what counts is whether they can be read.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, and its text advises to read unsafely: it is not shown
        if "Weights only load failed" in str(error) or "Unsupported" in str(error):
            hint = "save the weights alone, torch.save(network.state_dict(), 'weights.pt'), and give that file"
            raise _unusable(path, "contains code, refused", hint) from error
        raise _unusable(path, "is corrupt or truncated") from error
    if not isinstance(content, dict):
        raise _unusable(path, f"holds a {type(content).__name__}, not a dictionary")
    return content
