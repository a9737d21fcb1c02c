"""Calls of this process that change files below a folder, and lines that it says, told before they are made."""

from __future__ import annotations

import builtins
import errno
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class FileCalls:
    """Tells of each write, fsync, rename, making of a folder and opening for writing.

    Args:
        on_call: is given the `errno` of a disk that fails at it, and the path; what it raises the caller gets.
    """

    def __init__(self, folder: Path, on_call: Callable[[int, str], None]) -> None:
        self._folder, self._on_call = os.path.realpath(folder), on_call

    def install(self) -> None:
        """From here on."""
        self._replace(os, "replace", errno.EIO, lambda source, target, **_: target)
        self._replace(os, "rename", errno.EIO, lambda source, target, **_: target)
        self._replace(os, "mkdir", errno.ENOSPC, lambda path, *_, **__: path)
        self._replace(os, "open", errno.ENOSPC, lambda path, flags, *_, **__: path if flags & os.O_CREAT else "")
        self._replace(os, "fsync", errno.EIO, lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink())
        given = io.open
        calls = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                calls._tell(errno.ENOSPC, self.name)
                return super().write(data)

        def opened(
            path: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
            newline: Any = None, *more: Any, **options: Any,
        ) -> Any:  # fmt: skip
            if not isinstance(path, str | os.PathLike) or not set(mode) & set("wax+") or not calls._watches(path):
                return given(path, mode, buffering, encoding, errors, newline, *more, **options)
            calls._tell(errno.ENOSPC, path)
            raw = Raw(path, mode.replace("b", "").replace("t", ""))
            buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, encoding, errors, newline)

        io.open = builtins.open = opened  # type: ignore[assignment]

    def _replace(self, module: Any, name: str, number: int, path_of: Callable[..., Any]) -> None:
        given = getattr(module, name)

        def called(*arguments: Any, **options: Any) -> Any:
            path = path_of(*arguments, **options)
            if path and self._watches(path):
                self._tell(number, path)
            return given(*arguments, **options)

        setattr(module, name, called)

    def _watches(self, path: Any) -> bool:
        return os.path.realpath(os.fsdecode(path)).startswith(self._folder)

    def _tell(self, number: int, path: Any) -> None:
        self._on_call(number, os.fsdecode(path))


def hear_lines(on_line: Callable[[str], None]) -> None:
    """From here on be given all that this process says on standard error, before it is there."""
    from colorpress.core import console

    say = console._Messages.write

    def heard(self: Any, data: Any) -> int:
        on_line(bytes(data).decode("utf-8", "replace"))
        return say(self, data)

    console._Messages.write = heard  # type: ignore[method-assign]
