"""The tensors in a file of weights, whatever they lie in: each has a dotted name, such as "state_dict.up.weight"."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from colorpress.core.errors import ConfigError
from training.plain_weights import in_one_form
from training.weights_file import as_float32, unusable_checkpoint

# How --state-key names all that is in a file.
TOP = "."
# What torch.compile, DistributedDataParallel and others put into the names of what they wrap, anywhere.
_WRAPPERS = {"_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}


@dataclass(frozen=True)
class FileTensors:
    """The tensors of a file, as far as --state-key chooses some.

    Attributes:
        key: of --state-key; None where it is not given.
        tensors: by their names in common form, see `common_names`.
        largest: the place in the file that holds most tensors itself, by its dotted name.
    """

    path: Path
    key: str | None
    tensors: Mapping[str, Tensor]
    largest: str

    @staticmethod
    def of(path: Path, content: Mapping[str, Any], key: str | None) -> FileTensors:
        """All tensors of a file, or those at `key`: a dotted path, a part of one, or what their names begin with.

        Raises:
            ConfigError: there are none at `key`.
            InputError: there are none at all.
        """
        entries = list(_walk(content))
        if not entries:
            hint = "save the weights: torch.save(network.state_dict(), 'weights.pt')"
            raise unusable_checkpoint(path, f"holds no dictionary of weights (keys {some(content)})", hint)
        names = common_names(name for _, name, _ in entries)
        chosen = names.keys() if key is None else _choose(names, key.strip("."))
        if not chosen:
            held = dict.fromkeys(place for place, _, _ in entries)
            tops = held if len(held) > 1 else dict.fromkeys(name.partition(".")[0] for name in names)
            hint = f"weights are at: {some(each or TOP for each in tops)}"
            raise ConfigError("option", "--state-key", f"got {key!r}, no weights there", hint)
        tensors = {names[name]: tensor for _, name, tensor in entries if name in chosen}
        ((largest, _),) = Counter(place for place, name, _ in entries if name in chosen).most_common(1)
        return FileTensors(path, key, tensors, unwrapped(largest))

    def take(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """The tensors at these names, in float32, by the keys that come with the names.

        Raises:
            InputError: one is of a kind that is no weights.
        """
        return as_float32(self.path, {name: self.tensors[there] for name, there in names.items()})

    def inside(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with a prefix, by what follows it."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def find_parts(self, wanted: Collection[str]) -> dict[str, set[str]]:
        """The prefixes that some of the wanted names follow, with these names."""
        parts: defaultdict[str, set[str]] = defaultdict(set)
        for name in self.tensors:
            for end in ends(name):
                if end in wanted:
                    parts[name[: len(name) - len(end)]].add(end)
        return parts


def _walk(container: Any, place: str = "") -> Iterator[tuple[str, str, Tensor]]:
    """Every tensor in nested dictionaries and lists: where it is, its dotted name, and itself."""
    for key, value in container.items() if isinstance(container, Mapping) else enumerate(container):
        name = f"{place}.{key}" if place else str(key)
        if isinstance(value, Tensor):
            yield place, name, value
        elif isinstance(value, Mapping | list | tuple):
            yield from _walk(value, name)


def _choose(names: Mapping[str, str], key: str) -> set[str]:
    """The names that --state-key chooses: those in it, else those in a part that it names, else those it begins."""
    ways: tuple[Callable[[str], bool], ...] = (
        lambda name: not key or name.startswith(f"{key}."),
        lambda name: f".{key}." in f".{name}",
        lambda name: name.startswith(key),
    )
    found = ({name for name, common in names.items() if way(name) or way(common)} for way in ways)
    return next((each for each in found if each), set())


def common_names(names: Iterable[str]) -> dict[str, str]:
    """Names by what all ways to save a network have in common: without those of wrappers, in the newer form.

    A name that would be another one's without its wrapper keeps it.
    """
    shorter = {name: unwrapped(name) for name in names}
    counts = Counter(shorter.values())
    kept = {name: short if counts[short] == 1 else name for name, short in shorter.items()}
    newer = in_one_form(kept.values())
    return {name: newer[each] for name, each in kept.items()}


def unwrapped(name: str) -> str:
    """A dotted name without the parts that torch.compile, DataParallel and others put in."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def ends(name: str) -> Iterator[str]:
    """A dotted name, and what remains of it as its parts go from the left."""
    while name:
        yield name
        name = name.partition(".")[2]


def some(values: Iterable[Any], count: int = 5) -> str:
    """The first values, in words."""
    names = [str(name) for name in values]
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
