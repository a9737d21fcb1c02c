"""Files that are never half written, what they hold, and their hashes."""

from __future__ import annotations

import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from colorpress.core.errors import as_machine_error, printable
from colorpress.core.locks import TEMPORARY, claim_path, remove_abandoned, require_still_locked

_swept: set[Path] = set()


@contextmanager
def atomic_write(path: Path, *, syncs_name: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, else it is removed.

    The reader of `path` sees the old file or the complete new one, never a mix: the temporary file is in the
    same folder, it is fsynced before the rename, and the folder after it. The mode follows the umask. The first write
    to a folder removes the temporary files of killed processes there.

    Args:
        path: the file to publish; its folder is made where it is missing.
        syncs_name: whether the folder is fsynced, which waits for the disk once more: the file is then there after a
            power cut, else after one some seconds later.
    Raises:
        MachineError: the folder cannot be written or the disk is full, or the locked folder that it is in was removed
            or replaced meanwhile. `path` is as it was.
    """
    path = Path(path)
    temporary, claim = None, -1
    try:
        require_still_locked(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep_once(path.parent)
        temporary, claim = _make_temporary(path)
        yield temporary
        os.fsync(claim)
        require_still_locked(path)
        temporary.replace(path)
        if syncs_name:
            _fsync_folder(path.parent)
    except OSError as error:
        raise as_machine_error(error, path) from error
    finally:
        if temporary is not None:
            # What cannot be removed must not hide why; the next write to the folder removes it.
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            os.close(claim)


def _make_temporary(path: Path) -> tuple[Path, int]:
    """An empty file beside `path`, and the open descriptor that says that a living process writes it."""
    # The suffix stays, since torch, onnx and matplotlib choose a format by it. The name is cut so that a
    # target of 255 bytes still has a temporary name that a file system takes.
    stem = os.fsdecode(os.fsencode(path.name)[:150].decode("utf-8", "ignore").encode())
    while True:
        temporary = path.with_name(f".{stem}.{secrets.token_hex(4)}{TEMPORARY}{path.suffix}")
        claim = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        if claim_path(claim, temporary):
            return temporary, claim


def _sweep_once(folder: Path) -> None:
    """Remove the temporary files of killed processes from a folder, the first time that this process writes there."""
    if folder not in _swept:
        _swept.add(folder)
        for stale in folder.glob(f".*{TEMPORARY}*"):
            remove_abandoned(stale)


def _fsync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
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

    Control characters, and those that turn the direction of writing, are escaped; text cells that a spreadsheet would
    run as a formula are prefixed with an apostrophe.
    """
    import pandas

    cells = [[_csv_cell(row.get(column)) for column in columns] for row in rows]
    # As objects, since a whole number beside an empty cell would become a float.
    table = pandas.DataFrame(cells, columns=list(columns), dtype=object)
    return write_text(path, table.to_csv(index=False, lineterminator="\n", na_rep="nan"))


def _csv_cell(value: Any) -> Any:
    if value is None:
        return ""
    if not isinstance(value, str):
        return value
    # Some spreadsheets take the wide forms of these signs for the signs.
    is_formula = value.lstrip().startswith(("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
    return f"'{printable(value)}" if is_formula else printable(value)


def sha256_bytes(content: bytes) -> str:
    """The SHA-256 of `content` in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """The SHA-256 of a file's content in hexadecimal, read in pieces."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
