"""`best.pt`: a dictionary of tensors and primitives that is read without running any code it may hold.

Weights that other programs saved are read too, for a network that the user names.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from colorpress.core.config import ArchConfig
from colorpress.core.console import warn
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import sha256_bytes, write_bytes
from colorpress.core.reading import is_plain, read_file
from training.adoption import read_foreign, require_fit
from training.cie import AB_SCALE
from training.foreign import ForeignArchitecture, adapt_network
from training.input_sizes import find_fault
from training.network import Architecture, ColorNetwork, GraphArchitecture
from training.pickled_weights import COPY_AGAIN
from training.resizing import resize_layers_
from training.unet import UNetPlan, build_unet, empty_unet
from training.weights_file import NO_CHECKPOINT, as_float32, match_kinds, read_weights_file, unusable_checkpoint

FORMAT_VERSION = 2
_LARGEST_MULTIPLE, _MOST_EPOCHS = 1024, 10**9


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
        arch: the options that name a foreign network; never from the file itself. A UNet of our own is opened as one
            whatever they name.
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
            return build_unet(self.architecture, self.state_dict)
        if not isinstance(self.architecture, ForeignArchitecture):
            why = "holds the weights of a tuned ONNX graph, and not the graph"
            raise unusable_checkpoint(self.path, why, "use the .onnx file beside it")
        if not self.arch.arch:
            why = f"holds the network {self.architecture.source}, and no code is run that you do not name"
            hint = f"name the file: {self.architecture.as_arguments()}"
            raise ConfigError("checkpoint", self.path, why, hint)
        network = adapt_network(self.arch, self.architecture)
        self._warn_of_doubts(self.architecture, network.architecture)
        resize_layers_(network, self.state_dict)
        require_fit(self.path, network.state_dict(), self.state_dict, "give the --arch, and the --arch-arg, it is of")
        network.load_state_dict(match_kinds(self.path, network.state_dict(), self.state_dict))
        if why := find_fault(network.asked, network.architecture.sizes):
            raise unusable_checkpoint(self.path, f"its network {why}", "give the --arch that it is of")
        return network.eval()

    def _warn_of_doubts(self, known: ForeignArchitecture, given: ForeignArchitecture) -> None:
        """Where the network may answer otherwise than the one that the weights are of."""
        if self.converted and self.arch.left_open:
            taken = f"{known.source} is taken for one that {known.conventions.describe()}"
            advice = "not all of that is given, and `colorpress adopt` tries on photographs what fits"
            _warn_once(self.path, f"{taken}: {advice}")
        if given.source_sha256 != known.source_sha256:
            _warn_once(self.path, f"{given.source} is not the file that the checkpoint was made with")
        if given.args != known.args:
            called, made = (", ".join(f"{k}={v!r}" for k, v in each.args.items()) for each in (given, known))
            why = f"is called with {called or 'no arguments'} and the checkpoint was made with {made or 'none'}"
            _warn_once(self.path, f"{given.source} {why}")


@cache
def _warn_once(path: Path | None, message: str) -> None:
    """Once for each file, which is opened several times in a command."""
    del path
    warn(message)


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
    raw = read_file(path, "checkpoint", NO_CHECKPOINT)
    content = read_weights_file(path, raw)
    if content.get("format") == "colorpress":
        checkpoint = _read_own(path, content)
    else:
        architecture, weights = read_foreign(path, content, arch)
        checkpoint = Checkpoint(architecture, weights, converted=True)
    if isinstance(checkpoint.architecture, UNetPlan):
        # Each weight takes a byte of the file at least, even where tensors of the file share theirs.
        if sum(tensor.numel() for tensor in checkpoint.state_dict.values()) > len(raw):
            raise unusable_checkpoint(path, "holds fewer numbers than its weights", COPY_AGAIN)
        expected = empty_unet(checkpoint.architecture).state_dict()
        require_fit(path, expected, checkpoint.state_dict, "the weights do not fit the channel plan")
        checkpoint = replace(checkpoint, state_dict=match_kinds(path, expected, checkpoint.state_dict))
    for name, tensor in checkpoint.state_dict.items():
        if not bool(torch.isfinite(tensor).all()):
            raise unusable_checkpoint(path, f"{name} holds NaN or Inf", "train again, or use an older checkpoint")
        if name.endswith("running_var") and bool((tensor < 0).any()):
            raise unusable_checkpoint(
                path, f"{name} holds a negative variance", "train again, or use an older checkpoint"
            )
    return replace(checkpoint, sha256=sha256_bytes(raw), path=path, arch=arch)


def _read_own(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    version = content.get("format_version")
    if type(version) is not int:
        raise unusable_checkpoint(path, "holds no colorpress network")
    if version > FORMAT_VERSION:
        raise unusable_checkpoint(path, f"format {version} is newer than {FORMAT_VERSION}", "update colorpress")
    try:
        state_dict, notes = _expect(content, "state_dict", dict), _expect(content, "extra", dict)
        for name, tensor in state_dict.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ValueError(f"one of its weights is a {type(tensor).__name__}")
        if not is_plain(notes) or not isinstance(notes.get("fit", {}), dict):
            raise ValueError("its notes are of another kind")
        found = Checkpoint(
            architecture=_read_architecture(_expect(content, "architecture", dict)),
            state_dict=as_float32(path, state_dict),
            epoch=_expect(content, "epoch", int),
            val_l1=_read_l1(content["val_l1"]),
            history=tuple(map(_read_row, _expect(content, "history", list | tuple))),
            extra=notes,
            training_state=None if content["training_state"] is None else _expect(content, "training_state", dict),
        )
        if not 0 <= found.epoch <= _MOST_EPOCHS:
            raise ValueError("its epoch is no number of one")
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise unusable_checkpoint(path, f"is incomplete or damaged ({str(error)[:200]})") from error
    return found


def _expect(content: Mapping[str, Any], name: str, kind: Any) -> Any:
    """The value of this name, which has to be of this kind."""
    value = content[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise ValueError(f"its {name} is a {type(value).__name__}")
    return value


def _read_l1(value: Any) -> float | None:
    if value is None:
        return None
    if type(value) not in (int, float):
        raise ValueError(f"its validation L1 is a {type(value).__name__}")
    if not (math.isfinite(value) and value >= 0):
        raise ValueError("its validation L1 is not finite, or below 0")
    return float(value)


def _read_row(row: Any) -> Mapping[str, float]:
    """A row of the history."""
    is_row = isinstance(row, dict) and all(
        isinstance(name, str) and type(value) in (int, float) and math.isfinite(value) for name, value in row.items()
    )
    if not is_row:
        raise ValueError("its history holds something else than finite numbers by their names")
    return cast(Mapping[str, float], row)


def _read_architecture(described: Mapping[str, Any]) -> Architecture:
    if not is_plain(described):
        raise ValueError("its architecture is of another kind")
    try:
        if described.get("name") == "foreign":
            return ForeignArchitecture.from_dict(described)
        if described.get("name") == "graph":
            multiple = described["size_multiple"]
            if type(multiple) is not int or not 1 <= multiple <= _LARGEST_MULTIPLE:
                raise ValueError("its size_multiple is no size")
            return GraphArchitecture(str(described["source_sha256"]), multiple)
        return UNetPlan.from_dict(_expect(described, "plan", dict))
    except InputError as error:
        raise ValueError(str(error)) from error
