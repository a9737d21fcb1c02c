"""Files that are never half written, their hashes, and the lock of an output folder."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from colorpress.core.errors import ConfigError, InputError, MachineError

_TEMPORARY = ".colorpress-tmp"


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, else it is removed.

    The reader of `path` sees the old file or the complete new one, never a mix: the temporary file is in the
    same folder, it is fsynced before the rename and the folder after it. The mode follows the umask.

    Args:
        path: the file to publish; its folder is made where it is missing.
    Raises:
        MachineError: the folder cannot be written or the disk is full. `path` is as it was.
    """
    path = Path(path)
    # The suffix stays, since torch, onnx and matplotlib choose a format by it. The name is cut so that a
    # target of 255 bytes still has a temporary name that a file system takes.
    stem = os.fsencode(path.name)[:150].decode("utf-8", "ignore")
    temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}{_TEMPORARY}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _fsync(temporary)
        temporary.replace(path)
        _fsync(path.parent)
    except OSError as error:
        raise as_machine_error(error, path) from error
    finally:
        temporary.unlink(missing_ok=True) if path.parent.is_dir() else None


def as_machine_error(error: OSError, path: Path) -> MachineError:
    """The two-line error for an operating-system error met while writing `path`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return MachineError("file", path, "disk full", "free some space, or choose another --output-dir")
    why = error.strerror or str(error)
    return MachineError("file", path, f"cannot write: {why}", "choose a folder you can write to with --output-dir")


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content` to `path` atomically and return `path`."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
    return path


def write_text(path: Path, text: str) -> Path:
    """Write `text` to `path` atomically as UTF-8; lone surrogates of odd file names are escaped."""
    return write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, value: Any) -> Path:
    """Write `value` as indented JSON, atomically; NaN and Infinity are refused (ValueError)."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def without_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with None in the place of NaN, which JSON has none of."""
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def with_nan(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `without_nan` was given, where nothing in it was None."""
    return {name: math.nan if value is None else value for name, value in values.items()}


def read_json(path: Path, what: str, hint: str) -> Any:
    """The value in a JSON file that somebody may have edited.

    Args:
        what: the kind of file, for the error. `hint`: what to do about a bad one.
    Raises:
        ConfigError: there is no such file.
        InputError: it is not a regular file, or not JSON; the message says where.
    """
    if not path.exists():
        raise ConfigError(what, path, "no such file", hint)
    if not path.is_file():
        raise InputError(what, path, "not a regular file", hint)
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        why = f"is not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise InputError(what, path, why, hint) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise InputError(what, path, "is not JSON text", hint) from error


def find_impostor(start: bytes) -> str:
    """Why the first bytes of a file are plainly none of a picture, checkpoint or model; empty where they may be.

    Args:
        start: 64 bytes at least, or all there are.
    """
    if not start:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer; what it stands for was not fetched"
    page = start.removeprefix(b"\xef\xbb\xbf").lstrip()[:15].lower()
    return "is an HTML page" if page.startswith((b"<!doctype html", b"<html", b"<head", b"<body")) else ""


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write `rows` under the header `columns`, atomically; None becomes an empty cell.

    Text cells that a spreadsheet would run as a formula are prefixed with an apostrophe.
    """
    import pandas

    cells = [[_csv_cell(row.get(column)) for column in columns] for row in rows]
    # As objects, since a whole number beside an empty cell would become a float.
    table = pandas.DataFrame(cells, columns=list(columns), dtype=object)
    return write_text(path, table.to_csv(index=False, lineterminator="\n", na_rep="nan"))


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def sha256_bytes(content: bytes) -> str:
    """The SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content in hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the one-writer lock of an output folder; makes the folder, and sweeps temporaries of killed runs.

    Raises:
        MachineError: another process holds the lock, or the folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock_path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path)
        lock.acquire(timeout=0)
    except Timeout:
        holder = lock_path.read_text(errors="replace").strip() or "another process"
        raise MachineError(
            "folder", folder, f"locked by {holder}", "wait for that run to end, or choose another --output-dir"
        ) from None
    except OSError as error:
        raise as_machine_error(error, folder) from error
    try:
        lock_path.write_text(f"pid {os.getpid()}")
        for stale in folder.rglob(f".*{_TEMPORARY}*"):
            # A run folder may hold others, whose own runs may be writing just now.
            inner = stale.relative_to(folder).parents
            if not any((folder / parent / ".lock").exists() for parent in inner if parent != Path()):
                stale.unlink(missing_ok=True)
        yield
    finally:
        lock.release()
