"""The report in the browser, where there is one. Nothing heavy is imported here."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from colorpress.core.errors import InputError

REPORT = "report.html"


def find_report(folder: Path) -> Path:
    """The report of a run folder.

    Raises:
        InputError: it has none; the hint says how to get it.
    """
    path = folder / REPORT
    if path.is_file():
        return path
    why = f"holds no {REPORT}" if folder.is_dir() else "no such folder"
    if (folder / "benchmark.json").is_file():
        raise InputError("folder", folder, why, f"write it: `colorpress report -o {folder}`")
    if (folder / ".stages").is_dir():
        raise InputError("folder", folder, why, "its run has not ended: give the command of it again")
    raise InputError("folder", folder, why, "name a run folder: `colorpress open FOLDER`; `colorpress run` makes one")


def show_report(path: Path) -> bool:
    """Open a report in the browser; False where there is no display, or no browser begins."""
    import webbrowser

    return has_display() and webbrowser.open(path.resolve().as_uri())


def has_display() -> bool:
    """Whether there is a screen to open a window on; a browser that the user names needs none."""
    if os.environ.get("BROWSER") or sys.platform in ("darwin", "win32"):
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
