"""The pruning plan: which channels of which layers go, as data one can read, edit and apply again."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from colorpress.errors import ConfigError, InputError
from colorpress.files import write_text
from training.unet import UNet, UNetPlan, plan_of

FORMAT_VERSION = 1
_HINT = "make a plan with `colorpress prune`, or edit one: delete groups, or change their `removed` channels"
_NOTE = (
    "To change what is pruned, delete groups or edit their 'removed' channels (numbered from 0). "
    "'channels_after' and 'result' follow from them and are not read."
)


@dataclass(frozen=True)
class PrunedGroup:
    """Channels that go together: the outputs of one convolution, and all that depends on them.

    Attributes:
        root: name of the convolution that loses output channels.
        layers: every layer that changes with it, and how, in words; for the reader.
        channels_before: output channels of `root` in the network that the plan is for.
        removed: the output channels of `root` that go, from 0, ascending; empty keeps the layer whole.
        reason: why this layer, and why these channels; for the reader.
    """

    root: str
    layers: tuple[str, ...]
    channels_before: int
    removed: tuple[int, ...]
    reason: str

    @property
    def channels_after(self) -> int:
        """Output channels of `root` that stay."""
        return self.channels_before - len(self.removed)

    def to_dict(self) -> dict[str, Any]:
        """The group as JSON-ready primitives."""
        return {
            "root": self.root,
            "channels_before": self.channels_before,
            "channels_after": self.channels_after,
            "reason": self.reason,
            "layers": list(self.layers),
            "removed": list(self.removed),
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> PrunedGroup:
        """Rebuild a group from `to_dict`'s answer, edited or not.

        Raises:
            InputError: a key is missing or unknown, or `removed` is not a choice of the group's channels.
        """
        root = values.get("root") if isinstance(values, Mapping) else None
        where = f"group {root!r}" if isinstance(root, str) else "a group"
        _check_keys(values, where, ("root", "channels_before", "removed"), ("channels_after", "reason", "layers"))
        before, removed = values["channels_before"], values["removed"]
        if not isinstance(root, str) or type(before) is not int or before < 1:
            raise _bad_plan(f"{where} needs a layer name as 'root' and a positive 'channels_before'")
        if not isinstance(removed, list) or not all(type(index) is int for index in removed):
            raise _bad_plan(f"{where}: 'removed' is not a list of channel numbers")
        outside = [index for index in removed if not 0 <= index < before]
        if outside:
            raise _bad_plan(f"{where}: 'removed' holds {outside[0]}, its channels are 0 to {before - 1}")
        if len(set(removed)) < len(removed):
            raise _bad_plan(f"{where}: 'removed' holds a channel twice")
        if len(removed) == before:
            raise _bad_plan(f"{where}: 'removed' holds all {before} channels, at least one has to stay")
        layers, reason = values.get("layers", []), values.get("reason", "")
        if not isinstance(reason, str) or not isinstance(layers, list) or not all(isinstance(x, str) for x in layers):
            raise _bad_plan(f"{where}: 'layers' is not a list of text, or 'reason' is not text")
        return PrunedGroup(root, tuple(layers), before, tuple(sorted(removed)), reason)


@dataclass(frozen=True)
class PrunePlan:
    """Everything that `apply_pruning` does, decided beforehand.

    Attributes:
        source: channel plan of the network that this plan is for; no other is accepted.
        groups: what goes, largest layer first.
        settings: the options that led to the plan; for the reader.
        weights_sha256: of the weights that the channels were chosen by; empty when unknown.
    """

    source: UNetPlan
    groups: tuple[PrunedGroup, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""

    def __post_init__(self) -> None:
        widths = layer_widths(empty_network(self.source))
        roots = [group.root for group in self.groups]
        for group in self.groups:
            if group.root not in widths:
                meant = difflib.get_close_matches(group.root, widths, 1)
                did_you_mean = f"; did you mean {meant[0]!r}?" if meant else ""
                raise _bad_plan(f"no layer {group.root!r} can lose output channels{did_you_mean}")
            if widths[group.root] != group.channels_before:
                raise _bad_plan(
                    f"group {group.root!r}: 'channels_before' is {group.channels_before}, "
                    f"the layer has {widths[group.root]}"
                )
            if roots.count(group.root) > 1:
                raise _bad_plan(f"group {group.root!r} is there twice")

    @property
    def result(self) -> UNetPlan:
        """Channel plan of the pruned network."""
        network = empty_network(self.source)
        for group in self.groups:
            cast("nn.Conv2d", network.get_submodule(group.root)).out_channels = group.channels_after
        return plan_of(network)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready primitives."""
        return {
            "format": "colorpress prune plan",
            "format_version": FORMAT_VERSION,
            "note": _NOTE,
            "settings": dict(self.settings),
            "source": self.source.to_dict(),
            "weights_sha256": self.weights_sha256,
            "result": self.result.to_dict(),
            "groups": [group.to_dict() for group in self.groups],
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> PrunePlan:
        """Rebuild a plan from `to_dict`'s answer, edited or not.

        Raises:
            InputError: it is no plan, of a newer format, or a group does not fit.
        """
        _check_keys(
            values,
            "the plan",
            ("format", "format_version", "source", "groups"),
            ("note", "settings", "weights_sha256", "result"),
        )
        version, groups, settings = values["format_version"], values["groups"], values.get("settings", {})
        if values["format"] != "colorpress prune plan" or type(version) is not int:
            raise _bad_plan("it says it is something else than a prune plan")
        if version > FORMAT_VERSION:
            raise InputError(
                "prune plan", None, f"format {version} is newer than {FORMAT_VERSION}", "update colorpress"
            )
        if not isinstance(groups, list) or not isinstance(settings, Mapping):
            raise _bad_plan("'groups' is not a list, or 'settings' not an object")
        sha256 = values.get("weights_sha256", "")
        return PrunePlan(
            source=UNetPlan.from_dict(values["source"]),
            groups=tuple(PrunedGroup.from_dict(group) for group in groups),
            settings=dict(settings),
            weights_sha256=sha256 if isinstance(sha256, str) else "",
        )


def layer_widths(network: UNet) -> dict[str, int]:
    """Output channels of every convolution that may lose some: all but the output layer, which gives ab."""
    convolutions = (nn.Conv2d, nn.ConvTranspose2d)
    return {
        name: module.out_channels
        for name, module in network.named_modules()
        if isinstance(module, convolutions) and module is not network.head
    }


def empty_network(plan: UNetPlan) -> UNet:
    """The network of a plan without weights: on the meta device nothing is allocated and no random number drawn."""
    with torch.device("meta"):
        return UNet(plan)


def write_plan(path: Path, plan: PrunePlan) -> Path:
    """Write a plan as JSON, atomically; every list of numbers on a line of its own."""
    text = json.dumps(plan.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    one_line = re.sub(r"\[[\d,\s]+\]", lambda found: "[" + ", ".join(re.findall(r"\d+", found[0])) + "]", text)
    return write_text(path, one_line + "\n")


def read_plan(path: Path) -> PrunePlan:
    """Read a plan that `write_plan` wrote and perhaps somebody edited.

    Raises:
        ConfigError: there is no such file.
        InputError: it is not JSON, or not a plan; the message says where.
    """
    if not path.exists():
        raise ConfigError("prune plan", path, "no such file", _HINT)
    if not path.is_file():
        raise InputError("prune plan", path, "not a regular file", _HINT)
    try:
        return PrunePlan.from_dict(json.loads(path.read_bytes()))
    except json.JSONDecodeError as error:
        why = f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise InputError("prune plan", path, why, _HINT) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InputError("prune plan", path, "is not JSON text", _HINT) from error
    except InputError as error:
        raise InputError("prune plan", path, error.why, error.hint) from error


def _check_keys(values: Any, where: str, needed: Sequence[str], optional: Sequence[str]) -> None:
    if not isinstance(values, Mapping):
        raise _bad_plan(f"{where} is a {type(values).__name__}, not an object")
    known = [*needed, *optional]
    for key in values:
        if key not in known:
            meant = difflib.get_close_matches(str(key), known, 1)
            raise _bad_plan(f"{where} has an unknown key {key!r}" + (f"; did you mean {meant[0]!r}?" if meant else ""))
    missing = [key for key in needed if key not in values]
    if missing:
        raise _bad_plan(f"{where} lacks {', '.join(map(repr, missing))}")


def _bad_plan(why: str) -> InputError:
    return InputError("prune plan", None, why, _HINT)
