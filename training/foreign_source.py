"""The code of a network that colorpress did not make: a file that the user names, run once, and what it makes.

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
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from colorpress.core.errors import ConfigError
from colorpress.core.files import sha256_bytes

# What Python writes for what JSON writes otherwise; "False" as a text would count as true.
_PYTHON_WORDS = {"True": "true", "False": "false", "None": "null"}
ADAPTER_HINT = "name a function of your own that returns an nn.Module from L/100 (N, 1, H, W) to ab (N, 2, H, W)"


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


def construct_network(source: LoadedSource, args: Mapping[str, Any]) -> nn.Module:
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
        raise ConfigError("network file", source.path, why, ADAPTER_HINT)
    return network.eval()
