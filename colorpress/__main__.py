"""The way in, of `colorpress` and of `python -m colorpress`: signals are obeyed before anything heavy is imported.

Imports take a quarter of a second, and what a signal raises inside one would be a traceback.
"""

from __future__ import annotations

import os
import signal
from types import FrameType
from typing import NoReturn


def _stop_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """Nothing has begun, so nothing is to be kept."""
    name = signal.Signals(number).name
    try:
        os.write(2, f"error: stopped by {name}\nhint: nothing was begun\n".encode())
    finally:
        os._exit(128 + number)


def main() -> NoReturn:
    """Run the command line, whose end is this process's."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop_at_once)
    from colorpress.cli import main as run_command_line

    run_command_line()


if __name__ == "__main__":
    main()
