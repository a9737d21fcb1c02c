"""What SIGINT and SIGTERM do to a command. It imports next to nothing: it is there before all else."""

from __future__ import annotations

import os
import signal

TYPE_CHECKING = False  # that of `typing`, whose import takes milliseconds
if TYPE_CHECKING:
    from types import FrameType
    from typing import NoReturn

STOPPING = (signal.SIGINT, signal.SIGTERM)
GO_ON = "finished work is kept: the same command (without --force) goes on from there"


def obey_at_once() -> None:
    """From here on a signal ends the process, with the two lines of an error; every file is whole all the same."""
    for number in STOPPING:
        signal.signal(number, _end)


def obey_by_raising() -> None:
    """From here on a signal raises Interrupted, so that what is under way can be kept; the second one ends the process.

    Inside an import it ends the process as `obey_at_once` does: half imported, a library may make anything of it.
    """
    for number in STOPPING:
        signal.signal(number, _raise)


def obey_as_any_process() -> None:
    """From here on a signal ends the process as it ends any."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> NoReturn:
    name = signal.Signals(number).name
    try:
        os.write(2, f"error: stopped by {name}\nhint: {GO_ON}\n".encode())
    finally:
        os._exit(128 + number)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    if _is_importing(frame):
        _end(number, frame)
    from colorpress.core.errors import Interrupted

    obey_as_any_process()
    raise Interrupted(number)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
