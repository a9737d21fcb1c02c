"""Files that somebody may have made, edited or damaged: read by one guard, so that each ends in a sentence about it."""

from __future__ import annotations

import json
import math
import stat
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colorpress.core.errors import ConfigError, InputError
from colorpress.core.machine import free_memory_bytes

# Of text: a record, a plan or a list of options. The largest, of a large folder of photographs, has some 20 MB.
_MOST_TEXT_BYTES = 512 * 1024**2
# Whole numbers beyond 64 bits are none of a record, and are no longer numbers to numpy, PyTorch and SQLite.
_LARGEST_INT = 2**63


def read_file(path: Path, what: str, hint: str, *, most_bytes: int | None = None) -> bytes:
    """The content of a regular file.

    Args:
        what: the kind of file, for the error. `hint`: what to do about a bad one.
        most_bytes: no file of this kind is larger; None: it has to fit the free memory.
    Raises:
        ConfigError: there is no such file.
        InputError: it is a folder, a device or a pipe, too large, or cannot be read.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(what, path, "not a regular file", hint)
        # A file with holes takes no room on the disk, and all of its size in memory.
        if status.st_size > (free_memory_bytes() if most_bytes is None else most_bytes):
            than = "the free memory" if most_bytes is None else "any of its kind"
            raise InputError(what, path, f"is larger than {than} ({status.st_size / 1e9:.1f} GB)", hint)
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a name with NUL
        raise ConfigError(what, path, "no such file", hint) from None
    except OSError as error:
        raise InputError(what, path, f"cannot be read: {error.strerror or error}", hint) from error


def read_text(path: Path, what: str, hint: str, *, kind: str = "text") -> str:
    """A file of text in UTF-8, with or without a byte order mark.

    Raises: as `read_file`; InputError also where it is no such text.
    """
    content = read_file(path, what, hint, most_bytes=_MOST_TEXT_BYTES)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(what, path, f"is not {kind}: byte {error.start} is none of UTF-8", hint) from error
    if "\0" in text:
        raise InputError(what, path, f"is not {kind}: it holds NUL characters", hint)
    return text


def read_json(path: Path, what: str, hint: str) -> Any:
    """The value in a JSON file, whose whole numbers are of 64 bits; NaN and Infinity, which JSON has none of, are None.

    Raises: as `read_text`; InputError also where it is not such JSON; the message says where.
    """
    text = read_text(path, what, hint, kind="JSON")
    try:
        if "\\u0000" in text:
            raise ValueError("it holds NUL characters")
        return json.loads(text, parse_constant=lambda _: None, parse_float=_parse_float, parse_int=_parse_int)
    except json.JSONDecodeError as error:
        why = f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise InputError(what, path, why, hint) from error
    except (ValueError, RecursionError) as error:
        raise InputError(what, path, f"is not JSON: {_say_fault(error)}", hint) from error


def read_toml(path: Path, what: str, hint: str) -> dict[str, Any]:
    """The table of a TOML file.

    Raises: as `read_text`; InputError also where it is not TOML.
    """
    return parse_toml(read_text(path, what, hint, kind="TOML"), what, path, hint)


def parse_toml(text: str, what: str, path: Path, hint: str) -> dict[str, Any]:
    """The table of a TOML text, which is that of the file at `path`; whole numbers in it are of 64 bits.

    Raises:
        InputError: it is not TOML.
    """
    try:
        table = tomllib.loads(text)
        _refuse_long_numbers(table)
        return table
    except (ValueError, RecursionError) as error:
        raise InputError(what, path, f"is not TOML: {_say_fault(error)}", hint) from error


@contextmanager
def as_damaged(what: str, path: Path | str, hint: str) -> Iterator[None]:
    """Around what makes sense of the values in a file: whatever does not fit there is the fault of the file.

    Raises:
        InputError: a value is missing, or of another kind or size than was written.
    """
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        told = f"no {error}" if isinstance(error, KeyError) else f"{error}"
        raise InputError(what, path, f"is damaged: {told[:200]}", hint) from error


def is_plain(value: Any) -> bool:
    """Whether a value is made of what JSON has: dictionaries by text, lists, texts, numbers, truth values and None."""
    if isinstance(value, Mapping):
        return all(isinstance(name, str) and is_plain(item) for name, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return all(is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


def _refuse_long_numbers(value: Any) -> None:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_long_numbers(item)
    elif isinstance(value, int) and not -_LARGEST_INT <= value < _LARGEST_INT:
        raise ValueError("a whole number is too large")


def _say_fault(error: Exception) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def _parse_float(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None


def _parse_int(text: str) -> int:
    if len(text) > 20 or not -_LARGEST_INT <= int(text) < _LARGEST_INT:
        raise ValueError(f"{text[:20]} is too large a number")
    return int(text)
