"""`best.pt`: a dictionary of tensors and primitives that is read without running any code it may hold.

Weights that other programs saved are read too, for a network that the user names.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colorpress.core.config import ArchConfig
from colorpress.core.console import warn
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import sha256_bytes, write_bytes
from training.adoption import read_foreign, require_fit
from training.cie import AB_SCALE
from training.foreign import ForeignArchitecture, adapt_network
from training.input_sizes import find_fault
from training.network import Architecture, ColorNetwork, GraphArchitecture
from training.resizing import resize_layers_
from training.unet import UNetPlan, build_unet, empty_unet
from training.weights_file import NO_CHECKPOINT, as_float32, read_weights_file, unusable_checkpoint

FORMAT_VERSION = 2


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
            raise unusable_checkpoint(self.path, why, "use the .onnx file beside it")
        if not self.arch.arch:
            why = f"holds the network {self.architecture.source}, and no code is run that you do not name"
            hint = f"name the file: {self.architecture.as_arguments()}"
            raise ConfigError("checkpoint", self.path, why, hint)
        network = adapt_network(self.arch, self.architecture)
        if network.architecture.source_sha256 != self.architecture.source_sha256:
            warn(f"{network.architecture.source} is not the file that the checkpoint was made with")
        resize_layers_(network, self.state_dict)
        require_fit(self.path, network.state_dict(), self.state_dict, "give the --arch, and the --arch-arg, it is of")
        network.load_state_dict(dict(self.state_dict))
        if why := find_fault(network.net, network.architecture.size_multiple):
            raise unusable_checkpoint(self.path, f"its network {why}", "give the --arch that it is of")
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
        raise ConfigError("checkpoint", path, "no such file", NO_CHECKPOINT)
    if not path.is_file():
        raise unusable_checkpoint(path, "not a regular file")
    raw = path.read_bytes()
    content = read_weights_file(path, raw)
    if content.get("format") == "colorpress":
        checkpoint = _read_own(path, content)
        if isinstance(checkpoint.architecture, UNetPlan):
            expected = empty_unet(checkpoint.architecture).state_dict()
            require_fit(path, expected, checkpoint.state_dict, "the weights do not fit the channel plan")
    else:
        architecture, weights = read_foreign(path, content, arch)
        checkpoint = Checkpoint(architecture, weights, converted=True)
    for name, tensor in checkpoint.state_dict.items():
        if not bool(torch.isfinite(tensor).all()):
            raise unusable_checkpoint(path, f"{name} holds NaN or Inf", "train again, or use an older checkpoint")
    if checkpoint.val_l1 is not None and not math.isfinite(checkpoint.val_l1):
        raise unusable_checkpoint(path, "its validation L1 is not finite")
    return replace(checkpoint, sha256=sha256_bytes(raw), path=path, arch=arch)


def _read_own(path: Path, content: Mapping[str, Any]) -> Checkpoint:
    version = content.get("format_version")
    if not isinstance(version, int):
        raise unusable_checkpoint(path, "holds no colorpress network")
    if version > FORMAT_VERSION:
        raise unusable_checkpoint(path, f"format {version} is newer than {FORMAT_VERSION}", "update colorpress")
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
        raise unusable_checkpoint(path, f"is incomplete ({error})") from error
    return replace(found, state_dict=as_float32(path, state_dict))


def _read_architecture(described: Mapping[str, Any]) -> Architecture:
    if described.get("name") == "foreign":
        return ForeignArchitecture.from_dict(described)
    if described.get("name") == "graph":
        return GraphArchitecture(str(described["source_sha256"]), int(described["size_multiple"]))
    return UNetPlan.from_dict(described["plan"])
