"""Weights that another program saved: which part of its file fits the network that the user names.

It is found by fit, not by form. A part of a file is what has one prefix, and it fits where the names behind the prefix
and the shapes are those of the network, or of the one module in it that holds all that is learned, as in an adapter.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.core.config import ArchConfig
from colorpress.core.console import say, warn
from colorpress.core.errors import ConfigError, InputError
from training.file_tensors import TOP, FileTensors, common_names, ends, some, unwrapped
from training.foreign import adapt_network
from training.foreign_source import construct_network, load_source, parse_arguments
from training.network import Architecture, shared_names
from training.plain_weights import make_plain_, wrap_as_
from training.unet import UNetPlan, empty_unet, plan_of_weights
from training.weights_file import match_kinds, unusable_checkpoint

_NAME_ITS_NETWORK = "name its network: --arch FILE.py:CLASS [--arch-arg NAME=VALUE]"
# Counts that are no weights: of batch norm, and of a profiler that leaves them in every layer.
_COUNTERS = {"num_batches_tracked", "total_ops", "total_params"}
_STATISTICS = {"running_mean", "running_var"}
_NEARLY_ALL = 0.8
_OWN_HEAD = "head.weight"


def read_foreign(path: Path, content: Mapping[str, Any], arch: ArchConfig) -> tuple[Architecture, dict[str, Tensor]]:
    """Weights that another program saved, for the network that `arch` names, or for colorpress' own UNet.

    Raises:
        ConfigError: `arch` names what cannot be run, or --state-key no weights, or several parts of the file fit.
        InputError: no weights in the file fit.
    """
    found = FileTensors.of(path, content, arch.state_key)
    if arch.arch is None:
        return _read_own_unet(found)
    architecture = adapt_network(arch).architecture
    construct = partial(construct_network, load_source(arch.arch), parse_arguments(arch.arch_arg))
    weights = adopt_weights(found, construct, architecture.source)
    return architecture, {f"net.{name}": tensor for name, tensor in weights.items()}


def adopt_weights(found: FileTensors, construct: Callable[[], nn.Module], title: str) -> dict[str, Tensor]:
    """The weights of the one part of a file that fits, plain ones in float32, in the network's own order.

    Args:
        construct: makes the network as its author's code does, in eval mode.
        title: what the network is called.
    Raises:
        ConfigError: several parts of the file fit.
        InputError: none does; it says what the nearest one differs in.
    """
    target = _Target(construct(), construct)
    if not (fits := target.find_fits(found)):
        # The file may hold plain weights where the network has weight norm, or the other way round.
        wrapped = _Target(wrap_as_(construct(), _Ends(found, target).find), construct)
        if not (fits := wrapped.find_fits(found)):
            raise _describe_misfit(target, found, title)
        target = wrapped
    fit = _choose(fits, found)
    if fit.lacking:
        learned = dict(target.net.named_parameters(remove_duplicate=False))
        tell = warn if any(name in learned for name in fit.lacking) else say
        tell(f"'{found.path.name}' lacks {some(fit.lacking)}: what the network's code sets is taken")
    target.load_(fit, found)
    weights = make_plain_(target.net).state_dict()
    return {
        name: each.detach().float().contiguous() if each.is_floating_point() else each for name, each in weights.items()
    }


def _read_own_unet(found: FileTensors) -> tuple[UNetPlan, dict[str, Tensor]]:
    plans: dict[str, UNetPlan] = {}
    fits = []
    for prefix in found.find_parts({_OWN_HEAD}):
        inside = found.inside(prefix)
        if plan := _own_plan(found.path, inside):
            plans[prefix] = plan
            fits += _Target(empty_unet(plan), partial(empty_unet, plan)).fits_at(found, "", prefix, inside.keys())
    if not fits:
        keys = some(found.inside(f"{found.largest}." if found.largest else ""))
        raise unusable_checkpoint(found.path, f"holds no colorpress network (keys {keys})", _NAME_ITS_NETWORK)
    fit = _choose(fits, found)
    named = found.take(fit.names)
    return plans[fit.prefix], {
        name: named[name] if name in named else torch.zeros((), dtype=torch.long)  # batches that were counted
        for name in empty_unet(plans[fit.prefix]).state_dict()
    }


def _own_plan(path: Path, state_dict: Mapping[str, Tensor]) -> UNetPlan | None:
    """The plan of colorpress' own UNet that these weights may be of; None where they are of none."""
    if "up.0.0.weight" in state_dict:
        why = "holds a UNet that up-samples by bilinear or by nearest: its weights alone do not tell"
        raise unusable_checkpoint(path, why, "give the checkpoint that `colorpress train` wrote")
    try:
        return plan_of_weights(state_dict, "transpose")
    except InputError:
        return None


@dataclass(frozen=True)
class _Fit:
    """A part of a file that fits, or several that do together.

    Attributes:
        prefix: what the names of its tensors in the file begin with.
        label: what the user calls it.
        names: of the network's tensors, each with its name in the file.
        lacking: what the file lacks of the network and its code sets.
    """

    prefix: str
    label: str
    names: Mapping[str, str]
    lacking: tuple[str, ...] = ()


class _Target:
    """A network as its author's code makes it, and what a part of a file must have to fit it.

    Names of its tensors are in common form here, but for those of `own_names`.
    """

    def __init__(self, net: nn.Module, construct: Callable[[], nn.Module]) -> None:
        self.net, self._construct = net, construct
        state = {name: each for name, each in net.state_dict(keep_vars=True).items() if isinstance(each, Tensor)}
        self.own_names = {common: name for name, common in common_names(state).items()}
        self.tensors: dict[str, Tensor] = {common: state[name] for common, name in self.own_names.items()}
        # With those that are not saved.
        self._buffers = {unwrapped(name) for name, _ in net.named_buffers(remove_duplicate=False)}
        self._modules = {unwrapped(name) for name, _ in net.named_modules(remove_duplicate=False)}
        newer = {name: common for common, name in self.own_names.items()}
        same = shared_names(net)
        self._twins = {common: [newer[twin] for twin in same[name]] for common, name in self.own_names.items()}

    @cached_property
    def constants(self) -> set[str]:
        """Tensors that the code sets to the same values whatever the random state."""
        states = []
        for seed in (0, 1):
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                states.append(self._construct().state_dict())
        first, second = states
        return {
            common
            for common, name in self.own_names.items()
            if name in first and name in second and _is_same(first[name], second[name])
        }

    def wanted(self, outer: str) -> dict[str, Tensor]:
        """The tensors at `outer` in the network, by their names without it."""
        return {name[len(outer) :]: tensor for name, tensor in self.tensors.items() if name.startswith(outer)}

    def find_fits(self, found: FileTensors) -> list[_Fit]:
        """Every part of the file that fits; parts that fit together, where none does alone."""
        for learned in (lambda: self.tensors, lambda: self.tensors.keys() - self.constants):
            fits = [
                fit
                for outer in shared_prefixes(learned())
                for prefix, got in found.find_parts(self.wanted(outer)).items()
                for fit in self.fits_at(found, outer, prefix, got)
            ]
            # What an adapter wraps may be found with and without its prefix: the same tensors.
            if fits:
                return list({tuple(sorted(each.names.items())): each for each in reversed(fits)}.values())[::-1]
        return self._find_pieces(found)

    def fits_at(self, found: FileTensors, outer: str, prefix: str, got: Collection[str]) -> list[_Fit]:
        """The part of `prefix` for what lies at `outer` in the network, if it fits and the rest is set by code.

        Args:
            got: the names that the part has, of those that are wanted.
        """
        names = self._match(found, outer, prefix, got)
        lacking = [name for name in self.tensors if not self._has(name, names)]
        if not names or (lacking and not all(self._may_lack(name, outer) for name in lacking)):
            return []
        return [_Fit(prefix, prefix.rstrip(".") or TOP, names, tuple(self.own_names[name] for name in lacking))]

    def _match(self, found: FileTensors, outer: str, prefix: str, got: Collection[str]) -> dict[str, str]:
        """The tensors at `outer` with their names in the file; empty where shapes or modules are others."""
        wanted = self.wanted(outer)
        names = {outer + each: prefix + each for each in wanted if each in got}
        others = {name for name, there in names.items() if found.tensors[there].shape != self.tensors[name].shape}
        weights = {name for name in names if not _is_counter(name)}
        if not weights or others & weights or self.find_surplus(found, outer, prefix):
            return {}
        return {name: there for name, there in names.items() if name not in others}

    def _has(self, name: str, names: Mapping[str, str]) -> bool:
        return _is_counter(name) or any(twin in names for twin in self._twins[name])

    def _may_lack(self, name: str, outer: str) -> bool:
        """Whether a file may lack a tensor, since the code sets it: a buffer, or a part of an adapter around."""
        is_learned = name not in self._buffers or name.rpartition(".")[2] in _STATISTICS
        return not (is_learned and name.startswith(outer)) and name in self.constants

    def _find_pieces(self, found: FileTensors) -> list[_Fit]:
        """The parts that fit the modules of the network one by one, as an encoder and a decoder saved in two."""
        names: dict[str, str] = {}
        labels = []
        for outer in dict.fromkeys(f"{name.partition('.')[0]}." for name in self.tensors):
            wanted = self.wanted(outer)
            pieces = {
                prefix: piece
                for prefix, got in found.find_parts(wanted).items()
                if (piece := self._match(found, outer, prefix, got))
                and all(self._has(outer + each, piece) for each in wanted)
                and all(name in wanted or _is_counter(name) for name in found.inside(prefix))
            }
            # Where several do, the one of the same name.
            same = {prefix: piece for prefix, piece in pieces.items() if _ends_with(prefix, outer)}
            if len(chosen := pieces if len(pieces) == 1 else same) != 1:
                return []
            ((prefix, piece),) = chosen.items()
            names |= piece
            labels.append(prefix.rstrip("."))
        # A piece that fits two modules is of one of them, and the other one is missing.
        is_whole = 1 < len(labels) == len(set(labels))
        return [_Fit(_start_of(names.values()), ", ".join(labels), names)] if is_whole else []

    def find_surplus(self, found: FileTensors, outer: str, prefix: str) -> dict[str, Tensor]:
        """What a part holds of modules that the network has, and the network does not: it is of another one."""
        wanted = self.wanted(outer)
        modules = {name[len(outer) :].partition(".")[0] for name in self._modules if name.startswith(outer)} - {""}
        return {
            name: tensor
            for name, tensor in found.inside(prefix).items()
            if name.partition(".")[0] in modules
            and name not in wanted
            and outer + name not in self._buffers
            and not _is_counter(name)
        }

    def load_(self, fit: _Fit, found: FileTensors) -> None:
        """Copy weights into the network.

        Raises:
            InputError: the network has one tensor under two names, and the file has two; or whole numbers stand there
                for weights.
        """
        weights = match_kinds(found.path, self.tensors, found.take(fit.names))
        with torch.inference_mode(False), torch.no_grad():
            for name, tensor in weights.items():
                first = next(twin for twin in self._twins[name] if twin in weights)
                if first != name and not _is_same(weights[first], tensor):
                    why = f"{fit.names[first]} and {fit.names[name]} differ, which are one tensor in the network"
                    raise unusable_checkpoint(found.path, why, "give the network that they were saved from")
                self.tensors[name].copy_(tensor)


class _Ends:
    """The tensors of a file by the ends of their names, which begin otherwise in a network."""

    def __init__(self, found: FileTensors, target: _Target) -> None:
        self._tensors = {end: tensor for name, tensor in found.tensors.items() for end in ends(name)}
        self._outers = shared_prefixes(target.tensors)

    def find(self, name: str) -> Tensor | None:
        """The tensor in the file of a name in the network."""
        name = unwrapped(name)
        ends = [name[len(outer) :] for outer in self._outers if name.startswith(outer)]
        return next((self._tensors[end] for end in ends if end in self._tensors), None)


def shared_prefixes(names: Iterable[str]) -> list[str]:
    """The prefixes, whole parts of dotted names, that all names have: the empty one first."""
    start = _start_of(names)
    parts = start.split(".")[:-1]
    return ["".join(f"{part}." for part in parts[:count]) for count in range(len(parts) + 1)]


def _start_of(names: Iterable[str]) -> str:
    """What all dotted names begin with, as whole parts: "" or with a dot at its end."""
    # The first and the last in order differ earliest.
    ordered = sorted(name.split(".")[:-1] for name in names)
    return "".join(f"{part}." for part in ordered[0][: _count_shared(ordered[0], ordered[-1])]) if ordered else ""


def _ends_with(prefix: str, outer: str) -> bool:
    """Whether a prefix in a file is called as a module is, as "net_encoder." and "a.encoder." are "encoder."."""
    return f".{prefix}".endswith((f".{outer}", f"_{outer}"))


def _count_shared(one: Sequence[str], other: Sequence[str]) -> int:
    """How many parts two names begin with together."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (left, right) in pairs if left != right), min(len(one), len(other)))


def _is_counter(name: str) -> bool:
    return name.rpartition(".")[2] in _COUNTERS


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def _choose(fits: Sequence[_Fit], found: FileTensors) -> _Fit:
    """The only one of the parts that fit, those of equal tensors taken for one; says what else is in the file.

    Raises:
        ConfigError: there are several, and --state-key names none of them.
    """
    different: list[_Fit] = []
    for fit in fits:
        if not any(_holds_the_same(fit, other, found) for other in different):
            different.append(fit)
    named = [fit for fit in different if found.key is not None and fit.label == (found.key.strip(".") or TOP)]
    if len(different) > 1 and len(named) != 1:
        labels = [fit.label for fit in different]
        why = f"holds weights at {', '.join(labels)}, and {'both' if len(labels) == 2 else 'all'} fit"
        raise ConfigError("checkpoint", found.path, why, f"choose: --state-key {labels[0]}")
    chosen = (named or different)[0]
    used = {there for fit in fits if _holds_the_same(fit, chosen, found) for there in fit.names.values()}
    if ignored := _name_parts(found.tensors.keys() - used, chosen.prefix):
        where = "its top level" if chosen.label == TOP else chosen.label
        say(f"'{found.path.name}': the weights are taken from {where}; ignored: {some(ignored, 8)}")
    return chosen


def _holds_the_same(fit: _Fit, other: _Fit, found: FileTensors) -> bool:
    return fit is other or (
        fit.names.keys() == other.names.keys()
        and all(_is_same(found.tensors[there], found.tensors[other.names[name]]) for name, there in fit.names.items())
    )


def _name_parts(names: Iterable[str], prefix: str) -> list[str]:
    """What other parts of a file than that of `prefix` are called: their names as far as they have to be told."""
    here = prefix.split(".")[:-1]
    parts = set()
    for name in names:
        if not _is_counter(name):
            there = name.split(".")
            parts.add(".".join(there[: _count_shared(here, there) + 1]))
    return sorted(parts)


def _describe_misfit(target: _Target, found: FileTensors, title: str) -> InputError:
    """What the nearest part of a file differs in from the network."""
    # What an adapter wraps is nearly all of it: the file lacks the rest.
    children = [f"{name}." for name, _ in target.net.named_children()]
    children = [outer for outer in children if len(target.wanted(outer)) > _NEARLY_ALL * len(target.tensors)]
    candidates = [
        (outer, prefix, got)
        for outer in dict.fromkeys((*shared_prefixes(target.tensors), *children))
        for prefix, got in found.find_parts(target.wanted(outer)).items()
    ]

    def count_fitting(candidate: tuple[str, str, set[str]]) -> tuple[int, int]:
        outer, prefix, got = candidate
        same = (found.tensors[prefix + each].shape == target.tensors[outer + each].shape for each in got)
        return len(got), sum(same)

    hint = f"these are not the weights of {title}: check --arch-arg{' and --state-key' if found.key else ''}"
    if candidates:
        outer, prefix, got = max(candidates, key=count_fitting)
        held = {outer + name: found.tensors[prefix + name] for name in got}
        held |= {outer + name: tensor for name, tensor in target.find_surplus(found, outer, prefix).items()}
    else:
        prefix = f"{found.largest}." if found.largest else ""
        held = found.inside(prefix)
        if [each.shape for each in target.tensors.values()] == [each.shape for each in held.values()]:
            hint = "shapes agree, names do not: load it by your own code, and save network.state_dict()"
        else:
            hint += ", or name its own class with --arch"
    where = f"nearest is {prefix.rstrip('.')}: " if prefix else ""
    wanted = {name: tensor for name, tensor in target.tensors.items() if name in held or not _is_counter(name)}
    return unusable_checkpoint(found.path, where + compare_shapes(wanted, held), hint)


def require_fit(path: Path | None, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], hint: str) -> None:
    """Refuse weights of other names or shapes than `expected`; lists the first five that differ."""
    if wrong := compare_shapes(expected, found):
        raise unusable_checkpoint(path, wrong, hint)


def compare_shapes(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """The first five names that differ, or whose shapes do, and how many do; empty where none does."""
    wanted, got = ({name: tuple(tensor.shape) for name, tensor in each.items()} for each in (expected, found))
    wrong = [
        f"{name}: expected {wanted.get(name, 'nothing')} got {got.get(name, 'nothing')}"
        for name in wanted | got
        if wanted.get(name) != got.get(name)
    ]
    if not wrong:
        return ""
    missing, unexpected = len(wanted.keys() - got), len(got.keys() - wanted)
    counts = f"; {missing} missing, {unexpected} unexpected" if missing or unexpected else ""
    return "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "") + counts
