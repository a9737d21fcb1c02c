"""The code of a network that colorpress did not make: what --arch names, run once, and what it makes.

Only the user names it, on the command line or in a file given with --config: never a checkpoint, and never a run
folder, which may be somebody else's. Where it lies and what it imports is found by `code_places`.
"""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import tomllib
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from colorpress.core.errors import ConfigError
from colorpress.core.files import sha256_bytes, sha256_file
from training.code_places import CodePlace, find_place, name_file
from training.plain_weights import find_unsized

# What Python writes for what JSON writes otherwise; "False" as a text would count as true.
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
ADAPTER_HINT = "name a function of your own that returns an nn.Module from L/100 (N, 1, H, W) to ab (N, 2, H, W)"
_SIZED_HINT = "use layers of given channels there, or run it once where it is made, on zeros of (1, 1, 256, 256)"


@dataclass
class _Program:
    """Code that was run, with the modules that it brought along, which are its own.

    Attributes:
        module: what was named. `modules`: that it imported of its own folders, by name.
        files: the hash of each file that it may run, its own folders' alone.
    """

    place: CodePlace
    module: ModuleType
    modules: dict[str, ModuleType] = field(default_factory=dict)
    files: dict[Path, str] = field(default_factory=dict)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Program:
        """Itself: a copy of a network is made by the same code."""
        return self

    @property
    def is_current(self) -> bool:
        """Whether its files are as they were when they were run."""
        return all(file.is_file() and sha256_file(file) == digest for file, digest in self.files.items())

    @property
    def sha256(self) -> str:
        """Of a single file; of several with their places."""
        if len(self.files) == 1:
            return next(iter(self.files.values()))
        lines = [f"{self.place.describe(file)} {digest}" for file, digest in self.files.items()]
        return sha256_bytes("\n".join(sorted(lines)).encode())


@dataclass(frozen=True)
class LoadedSource:
    """Code of the user's that was run: its name with the class or function in it, that object, and its hash.

    The hash is over the file and all that it imports of its package, or of the folders around it.
    """

    name: str
    path: Path
    make: Callable[..., Any]
    sha256: str
    program: _Program


_programs: dict[tuple[Path, str], _Program] = {}
# The modules of all programs, by their id.
_all_modules: dict[int, ModuleType] = {}


def load_source(spec: str) -> LoadedSource:
    """Run the code that --arch names and find the class or function in it; what was run, unchanged, is not run again.

    Args:
        spec: FILE.py:NAME, where the file may be of a package, package.module:NAME, or FOLDER:NAME of a package.
    Raises:
        ConfigError: the text is none of these, there is no such code or name, or running it fails.
    """
    place, name = split_spec(spec)
    key = (place.file, place.module)
    if key not in _programs or not _programs[key].is_current:
        _programs.pop(key, None)
        _programs[key] = _run(place)
    program = _programs[key]
    if not callable(made := getattr(program.module, name, None)):
        hint = _list_networks(program) or name_file(place.file.parent, name)
        raise ConfigError("network file", place.file, f"holds no class or function {name!r}", hint)
    return LoadedSource(f"{place.title}:{name}", place.file, made, program.sha256, program)


def split_spec(spec: str) -> tuple[CodePlace, str]:
    """Where the code of --arch lies, and the class or function in it.

    Raises:
        ConfigError: the text is no such pair, or there is no such code.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name.isidentifier():
        hint = "give FILE.py:NAME, such as networks/unet.py:UNet, or package.module:NAME"
        raise ConfigError("option", "--arch", f"got {spec!r}", hint)
    return find_place(where, name), name


def absolute_spec(spec: str) -> str:
    """An --arch that names the same from any folder.

    Raises:
        ConfigError: as `split_spec`.
    """
    place, name = split_spec(spec)
    return f"{place.absolute}:{name}"


def _list_networks(program: _Program) -> str:
    own = {program.module.__name__, *program.modules}
    networks = [
        key
        for key, value in vars(program.module).items()
        if inspect.isclass(value) and value.__module__ in own and issubclass(value, nn.Module)
    ]
    return f"its networks: {', '.join(networks)}" if networks else ""


def _run(place: CodePlace) -> _Program:
    program = _Program(place, ModuleType(place.module))
    try:
        with _as_program(program):
            program.module = _import_alone(place) if place.is_alone else _import_packaged(place)
    except (Exception, SystemExit) as error:  # a user's file fails in any way
        raise ConfigError("network file", place.file, f"cannot be run: {_reason(error, place)}", place.hint) from error
    imported = (getattr(module, "__file__", None) for module in program.modules.values())
    files = {Path(file).resolve() for file in imported if file is not None}
    program.files = {file: sha256_file(file) for file in sorted(files | place.reachable_files()) if file.is_file()}
    return program


def _import_alone(place: CodePlace) -> ModuleType:
    """Run a file of no package, as a module that no `import` finds."""
    module = ModuleType(place.module)
    module.__file__ = str(place.file)
    # Registered first: dataclasses and typing look their module up. Compiled here, so that nothing is written beside
    # the user's file.
    sys.modules[place.module] = module
    try:
        exec(compile(place.file.read_bytes(), str(place.file), "exec"), vars(module))
    except BaseException:
        del sys.modules[place.module]
        raise
    return module


def _import_packaged(place: CodePlace) -> ModuleType:
    for name, folder in place.bare_packages.items():
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return importlib.import_module(place.module)


@contextmanager
def _as_program(program: _Program) -> Iterator[None]:
    """`import` finds what it would find if the user's code had been started by itself; what it prints is no result.

    Modules of the same names, of other folders or of colorpress, are out of its sight, and it is out of theirs.
    """
    place = program.place
    hidden = {
        name: module
        for name, module in sys.modules.items()
        if (id(module) in _all_modules and place.provides(name)) or place.shadows(name, module)
    }
    for name in hidden:
        del sys.modules[name]
    sys.modules.update(program.modules)
    before, path, writes = set(sys.modules), list(sys.path), sys.dont_write_bytecode
    entered = [*place.front, *path, *place.back]
    sys.path[:] = entered
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        # That they use what PyTorch is to lose is their author's business, not the user's.
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        # What the code itself added it may import from later on.
        sys.path[:] = [*path, *(each for each in sys.path if each not in entered)]
        sys.dont_write_bytecode = writes
        fresh = {name: module for name, module in sys.modules.items() if name not in before}
        own = {name: module for name, module in fresh.items() if place.owns(name, module)}
        program.modules |= own
        _all_modules.update((id(module), module) for module in own.values())
        _restore(hidden, program.modules)


def _restore(hidden: Mapping[str, ModuleType], own: Mapping[str, ModuleType]) -> None:
    """Put back what was hidden; a program's own modules stay, for what it imports as it answers, where none was."""
    others = {_top(name) for name, module in hidden.items() if id(module) not in _all_modules}
    for name in own:
        if _top(name) in others:
            sys.modules.pop(name, None)
    taken = {_top(name) for name in own} - others
    sys.modules.update({name: module for name, module in hidden.items() if _top(name) not in taken})


def _top(name: str) -> str:
    return name.partition(".")[0]


def _reason(error: BaseException, place: CodePlace) -> str:
    """An exception in one line, with the line of the user's code that it came from where there is one."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if place.holds(Path(frame.filename))]
    where = ""
    if frames:
        other = "" if Path(frames[-1].filename) == place.file else f"{Path(frames[-1].filename).name}, "
        where = f" in {other}line {frames[-1].lineno}"
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}{where}{f': {text}' if text else ''}"


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


def construct_network(source: LoadedSource, args: Mapping[str, Any]) -> nn.Module:
    """Call the user's class or function: a network in float32 and eval mode; the random state is as before.

    Raises:
        ConfigError: it fails, or gives no network, or one whose layers have no shape yet.
    """
    name = source.name.rpartition(":")[2]
    if isinstance(source.make, nn.Module):
        hint = f"name its class, {type(source.make).__name__}, or a function that returns one"
        raise ConfigError("network file", source.path, f"{name} is a network already, not what makes one", hint)
    try:
        with torch.random.fork_rng(devices=[]), _as_program(source.program), torch.inference_mode(False):
            network = source.make(**args)
    except (Exception, SystemExit) as error:  # as above
        given = ", ".join(f"{name}={value!r}" for name, value in args.items())
        why = f"{name}({given}) failed: {_reason(error, source.program.place)}"
        hint = f"give its arguments with --arch-arg NAME=VALUE{_list_arguments(source.make)}"
        raise ConfigError("network file", source.path, why, hint) from error
    if not isinstance(network, nn.Module):
        why = f"{name} gave a {type(network).__name__}, not an nn.Module"
        raise ConfigError("network file", source.path, why, ADAPTER_HINT)
    if unsized := find_unsized(network):
        why = f"{name} gave layers that have no shape before they have run: {', '.join(unsized[:5])}"
        raise ConfigError("network file", source.path, why, _SIZED_HINT)
    with torch.inference_mode(False):
        return network.float().eval()


def _list_arguments(make: Callable[..., Any]) -> str:
    with suppress(TypeError, ValueError):  # code of other authors may hide them
        if names := list(inspect.signature(make).parameters):
            return f": {', '.join(names)}"
    return ""
