"""`best.pt`: a dictionary of tensors and primitives that is read without running any code it may hold."""

from __future__ import annotations

import io
import math
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colorpress.errors import ConfigError, InputError
from colorpress.files import sha256_bytes, write_bytes
from training.color import AB_SCALE
from training.unet import UNet, UNetPlan

FORMAT_VERSION = 1
_NO_CHECKPOINT = "give a checkpoint written by `colorpress train` or `colorpress prune`"


@dataclass(frozen=True)
class Checkpoint:
    """A network as saved: plan, weights and how it came about.

    Attributes:
        plan: the channel plan; with `state_dict` it is the whole network.
        state_dict: weights, on the CPU, float32.
        epoch: the epoch (1-based) the weights are from; 0 when unknown.
        val_l1: validation L1 (ab/128) of that epoch; None when unknown.
        history: one dictionary of numbers per epoch so far.
        extra: primitives of the stage that wrote it, such as the hash of the teacher.
        training_state: optimizer, sampler and generator state of `last.pt`; None in files that are shipped.
        sha256: of the file it was read from; empty when it was never written.
    """

    plan: UNetPlan
    state_dict: Mapping[str, Tensor]
    epoch: int = 0
    val_l1: float | None = None
    history: tuple[Mapping[str, float], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    training_state: Mapping[str, Any] | None = None
    sha256: str = ""

    def build_network(self) -> UNet:
        """The network with these weights, in eval mode on the CPU."""
        network = UNet(self.plan)
        network.load_state_dict(dict(self.state_dict))
        return network.eval()


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint atomically and return `path`.

    Raises:
        MachineError: the file cannot be written; an older one at `path` is intact.
    """
    content = {
        "format": "colorpress",
        "format_version": FORMAT_VERSION,
        "architecture": {"name": "unet", "plan": checkpoint.plan.to_dict()},
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
    return write_bytes(path, buffer.getvalue())


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; code inside it is refused, never run.

    Raises:
        ConfigError: there is no such file.
        InputError: the file is damaged, is no checkpoint, holds code, is newer than this program, or its weights
            are not finite or do not fit its plan.
    """
    if not path.exists():
        raise ConfigError("checkpoint", path, "no such file", _NO_CHECKPOINT)
    if not path.is_file():
        raise InputError("checkpoint", path, "not a regular file", _NO_CHECKPOINT)
    raw = path.read_bytes()
    content = _read_dictionary(path, raw)
    version = content.get("format_version")
    if content.get("format") != "colorpress" or not isinstance(version, int):
        raise InputError("checkpoint", path, "holds no colorpress network", _NO_CHECKPOINT)
    if version > FORMAT_VERSION:
        raise InputError("checkpoint", path, f"format {version} is newer than {FORMAT_VERSION}", "update colorpress")
    try:
        plan = UNetPlan.from_dict(content["architecture"]["plan"])
        state_dict = dict(content["state_dict"])
        checkpoint = Checkpoint(
            plan=plan,
            state_dict=state_dict,
            epoch=int(content["epoch"]),
            val_l1=content["val_l1"],
            history=tuple(content["history"]),
            extra=content["extra"],
            training_state=content["training_state"],
            sha256=sha256_bytes(raw),
        )
    except (KeyError, TypeError, ValueError, InputError) as error:
        raise InputError("checkpoint", path, f"is incomplete ({error})", _NO_CHECKPOINT) from error
    _check_weights(path, plan, state_dict)
    if checkpoint.val_l1 is not None and not math.isfinite(checkpoint.val_l1):
        raise InputError("checkpoint", path, "its validation L1 is not finite", _NO_CHECKPOINT)
    return checkpoint


def _read_dictionary(path: Path, raw: bytes) -> dict[str, Any]:
    if reason := _why_no_checkpoint(raw):
        raise InputError("checkpoint", path, reason, _NO_CHECKPOINT)
    try:
        with warnings.catch_warnings():
            # Files of other programs may use newer pickle protocols; what counts is whether they can be read.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, and its text advises to read unsafely: it is not shown
        held_code = "Weights only load failed" in str(error) or "Unsupported" in str(error)
        why = "contains code, refused" if held_code else "is corrupt or truncated"
        raise InputError("checkpoint", path, why, _NO_CHECKPOINT) from error
    if not isinstance(content, dict):
        raise InputError("checkpoint", path, f"holds a {type(content).__name__}, not a dictionary", _NO_CHECKPOINT)
    return content


def _why_no_checkpoint(raw: bytes) -> str:
    if not raw:
        return "is empty"
    if raw.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; the weights were not fetched"
    if raw.lstrip()[:15].lower().startswith((b"<!doctype", b"<html")):
        return "is an HTML page"
    if raw.startswith(b"PK") and not zipfile.is_zipfile(io.BytesIO(raw)):
        return "is corrupt or truncated"
    if not raw.startswith((b"PK", b"\x80")):
        return "is not a PyTorch file"
    return ""


def _check_weights(path: Path, plan: UNetPlan, state_dict: Mapping[str, Any]) -> None:
    with torch.device("meta"):
        expected = {name: tuple(tensor.shape) for name, tensor in UNet(plan).state_dict().items()}
    found = {name: tuple(tensor.shape) if isinstance(tensor, Tensor) else () for name, tensor in state_dict.items()}
    wrong = [
        f"{name}: expected {expected.get(name, 'nothing')} got {found.get(name, 'nothing')}"
        for name in [*expected, *(name for name in found if name not in expected)]
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError("checkpoint", path, "; ".join(wrong[:5]) + more, "the weights do not fit the channel plan")
    for name, tensor in state_dict.items():
        if not bool(torch.isfinite(tensor).all()):
            raise InputError("checkpoint", path, f"{name} holds NaN or Inf", "train again, or use an older checkpoint")
