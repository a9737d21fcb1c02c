"""The pruning plan: which channels of which layers go, as data one can read, edit and apply again."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colorpress.core.errors import InputError
from colorpress.core.files import write_text
from colorpress.core.reading import read_json

FORMAT_VERSION = 2
_HINT = "make a plan with `colorpress prune`, or edit one: delete groups, or change their `removed` channels"
_NOTE = (
    "To change what is pruned, delete groups or edit their 'removed' channels (numbered from 0). "
    "'channels_after' and 'result' follow from them and are not read."
)
_PLAN_KEYS = (
    "format", "format_version", "note", "settings", "output_stride", "source", "weights_sha256", "result", "groups",
)  # fmt: skip
_GROUP_KEYS = ("root", "channels_before", "channels_after", "reason", "layers", "coupled", "removed")


@dataclass(frozen=True)
class PrunedGroup:
    """Channels that go together: the outputs of one layer, and all that depends on them.

    Attributes:
        root: name of the layer that loses output channels.
        layers: every layer that changes with it, and how, in words; for the reader.
        channels_before: output channels of `root` in the network that the plan is for.
        removed: the output channels of `root` that go, from 0, ascending; empty keeps the layer whole.
        reason: why this layer, and why these channels, or why it is left whole; for the reader.
        coupled: other layers that lose the same share of their output channels with these, as those added to it.
    """

    root: str
    layers: tuple[str, ...]
    channels_before: int
    removed: tuple[int, ...]
    reason: str
    coupled: tuple[str, ...] = ()

    @property
    def channels_after(self) -> int:
        """Output channels of `root` that stay."""
        return self.channels_before - len(self.removed)

    def to_dict(self) -> dict[str, Any]:
        """The group as JSON-ready primitives."""
        values = {key: getattr(self, key) for key in _GROUP_KEYS}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> PrunedGroup:
        """Rebuild a group from `to_dict`'s answer, edited or not.

        Raises:
            InputError: a key is missing or unknown, or `removed` is not a choice of the group's channels.
        """
        root = values.get("root") if isinstance(values, Mapping) else None
        where = f"group {root!r}" if isinstance(root, str) else "a group"
        _check_keys(values, where, _GROUP_KEYS, needed=("root", "channels_before", "removed"))
        before, removed = values["channels_before"], values["removed"]
        if not isinstance(root, str) or type(before) is not int or before < 1:
            raise _bad_plan(f"{where} needs a layer name as 'root' and a positive 'channels_before'")
        if not isinstance(removed, list) or not all(type(index) is int for index in removed):
            raise _bad_plan(f"{where}: 'removed' is not a list of channel numbers")
        if outside := [index for index in removed if not 0 <= index < before]:
            raise _bad_plan(f"{where}: 'removed' holds {outside[0]}, its channels are 0 to {before - 1}")
        if len(set(removed)) < len(removed):
            raise _bad_plan(f"{where}: 'removed' holds a channel twice")
        if len(removed) == before:
            raise _bad_plan(f"{where}: 'removed' holds all {before} channels, at least one has to stay")
        texts = {"layers": [], "coupled": [], "reason": "", **values}
        words = [texts["layers"], texts["coupled"], [texts["reason"]]]
        if not all(isinstance(some, list) and all(isinstance(each, str) for each in some) for some in words):
            raise _bad_plan(f"{where}: 'layers' or 'coupled' is not a list of text, or 'reason' is not text")
        layers, coupled = tuple(texts["layers"]), tuple(texts["coupled"])
        return PrunedGroup(root, layers, before, tuple(sorted(removed)), texts["reason"], coupled)


@dataclass(frozen=True)
class PrunePlan:
    """Everything that `apply_pruning` does, decided beforehand.

    Attributes:
        source: output channels of every layer that may lose some, in the network that the plan is for, without the
            levels that go; no other network is accepted.
        groups: what goes, largest layer first.
        settings: the options that led to the plan; for the reader.
        weights_sha256: of the weights that the channels were chosen by; empty when unknown.
        output_stride: the answer is at 1 / this of the size at least: the finest levels of a UNet's decoder go first.
    """

    source: Mapping[str, int]
    groups: tuple[PrunedGroup, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights_sha256: str = ""
    output_stride: int = 1

    def __post_init__(self) -> None:
        roots = Counter(group.root for group in self.groups)
        for group in self.groups:
            if group.root not in self.source:
                raise _bad_plan(f"no layer {group.root!r} can lose output channels{_meant(group.root, self.source)}")
            if self.source[group.root] != group.channels_before:
                raise _bad_plan(
                    f"group {group.root!r}: 'channels_before' is {group.channels_before}, "
                    f"the layer has {self.source[group.root]}"
                )
            if roots[group.root] > 1:
                raise _bad_plan(f"group {group.root!r} is there twice")
            for name in group.coupled:
                if self.source.get(name, 0) * len(group.removed) % group.channels_before or name not in self.source:
                    raise _bad_plan(f"group {group.root!r}: no layer {name!r} has such a part of its channels to lose")
        lost = Counter(name for group in self.groups if group.removed for name in (group.root, *group.coupled))
        if twice := [name for name, count in lost.items() if count > 1]:
            raise _bad_plan(f"layer {twice[0]!r} would lose channels with two groups")

    @property
    def result(self) -> dict[str, int]:
        """Output channels of the same layers in the pruned network."""
        after = dict(self.source)
        for group in self.groups:
            for name in (group.root, *group.coupled):
                after[name] -= len(group.removed) * self.source[name] // group.channels_before
        return after

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready primitives."""
        return {
            "format": "colorpress prune plan",
            "format_version": FORMAT_VERSION,
            "note": _NOTE,
            "settings": dict(self.settings),
            **({"output_stride": self.output_stride} if self.output_stride > 1 else {}),
            "source": dict(self.source),
            "weights_sha256": self.weights_sha256,
            "result": self.result,
            "groups": [group.to_dict() for group in self.groups],
        }

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> PrunePlan:
        """Rebuild a plan from `to_dict`'s answer, edited or not.

        Raises:
            InputError: it is no plan, of another format, or a group does not fit.
        """
        _check_keys(values, "the plan", _PLAN_KEYS, needed=("format", "format_version", "source", "groups"))
        version, source, groups = values["format_version"], values["source"], values["groups"]
        settings = values.get("settings", {})
        if values["format"] != "colorpress prune plan" or type(version) is not int:
            raise _bad_plan("it says it is something else than a prune plan")
        if version != FORMAT_VERSION:
            newer = version > FORMAT_VERSION
            why = f"format {version} is {'newer' if newer else 'older'} than {FORMAT_VERSION}"
            raise InputError("prune plan", None, why, "update colorpress" if newer else "make a new plan")
        if not isinstance(source, Mapping) or not all(type(width) is int and width > 0 for width in source.values()):
            raise _bad_plan("'source' is not an object of layers and their positive channel counts")
        if not isinstance(groups, list) or not isinstance(settings, Mapping):
            raise _bad_plan("'groups' is not a list, or 'settings' not an object")
        sha256, output_stride = values.get("weights_sha256", ""), values.get("output_stride", 1)
        if type(output_stride) is not int or output_stride < 1:
            raise _bad_plan("'output_stride' is not a positive number")
        return PrunePlan(
            source=dict(source),
            groups=tuple(PrunedGroup.from_dict(group) for group in groups),
            settings=dict(settings),
            weights_sha256=sha256 if isinstance(sha256, str) else "",
            output_stride=output_stride,
        )


def compose_plans(first: PrunePlan, second: PrunePlan) -> PrunePlan:
    """One plan that does to the source of `first` what `first` and then `second` do.

    Raises:
        InputError: `second` is not for the network that `first` leaves.
    """
    if first.result != dict(second.source):
        raise _bad_plan("it is not for the network that the plan before it leaves")
    further = {group.root: group for group in second.groups}
    groups = []
    for group in first.groups:
        then = further.pop(group.root, None)
        if then is not None and then.removed:
            kept = [channel for channel in range(group.channels_before) if channel not in group.removed]
            removed = sorted((*group.removed, *(kept[channel] for channel in then.removed)))
            rank, _, what = group.reason.partition("; ")
            what = f"{what}; then " if group.removed else ""
            reason = f"{rank}; {what}{then.reason.partition('; ')[2]}"
            coupled = tuple(dict.fromkeys((*group.coupled, *then.coupled)))
            group = replace(group, removed=tuple(removed), reason=reason, coupled=coupled)
        groups.append(group)
    return replace(first, groups=(*groups, *further.values()))


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
    values = read_json(path, "prune plan", _HINT)
    try:
        return PrunePlan.from_dict(values)
    except InputError as error:
        raise InputError("prune plan", path, error.why, error.hint) from error


def _check_keys(values: Any, where: str, known: Sequence[str], needed: Sequence[str]) -> None:
    if not isinstance(values, Mapping):
        raise _bad_plan(f"{where} is a {type(values).__name__}, not an object")
    for key in values:
        if key not in known:
            raise _bad_plan(f"{where} has an unknown key {key!r}{_meant(str(key), known)}")
    if missing := [key for key in needed if key not in values]:
        raise _bad_plan(f"{where} lacks {', '.join(map(repr, missing))}")


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _bad_plan(why: str) -> InputError:
    return InputError("prune plan", None, why, _HINT)
