"""What a person sees while work goes on: messages and progress, on standard error only.

On a terminal a progress bar with the time left; elsewhere one plain line per tenth of the work.
Standard output stays free for results.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, Protocol, TextIO

from colorpress.core.errors import MachineError, printable

_quiet = False


def set_quiet(quiet: bool) -> None:
    """Silence messages and progress of this process (warnings still show)."""
    global _quiet
    _quiet = quiet


@contextmanager
def muted() -> Iterator[None]:
    """Silence messages and progress inside the block; warnings still show."""
    before = _quiet
    set_quiet(True)
    try:
        yield
    finally:
        set_quiet(before)


def say(message: str) -> None:
    """Print one line to standard error."""
    if not _quiet:
        _print_line(message)


def warn(message: str) -> None:
    """Print one `warning:` line to standard error, quiet or not."""
    _print_line(f"warning: {message}")


def _print_line(message: str) -> None:
    line = printable(message)
    encoding = sys.stderr.encoding or "ascii"
    print(line.encode(encoding, "backslashreplace").decode(encoding), file=sys.stderr, flush=True)


def settle_streams() -> None:
    """Make the standard streams of this process safe to write to, wherever they lead and whatever they are told.

    Nobody may read the messages any more, or their disk be full: the work goes on all the same. Results that cannot be
    written are an error, once. What an encoding does not have is escaped. Streams that others put in the place of
    the standard ones are left alone.
    """
    # A closed one would be the next file that is opened, and what a library prints would go into that.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is sys.__stdout__:
        sys.stdout = _open_stream(_Results(1, "wb", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _open_stream(_Messages(2, "wb", closefd=False), sys.stderr)


class _Messages(io.FileIO):
    """Standard error: what cannot be written is lost."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or len(data)
        except OSError:
            return len(data)


class _Results(io.FileIO):
    """Standard output: the first failure raises, and what is left in buffers after it is lost."""

    failed = False

    def write(self, data: Any) -> int:
        if self.failed:
            return len(data)
        try:
            return super().write(data)
        except BrokenPipeError:
            self.failed = True
            raise
        except OSError as error:
            self.failed = True
            why = f"cannot be written: {error.strerror}"
            raise MachineError("output", "standard output", why, "free some space, or send it elsewhere") from error


def _open_stream(raw: io.FileIO, before: TextIO | None) -> TextIO:
    encoding = before.encoding if before is not None else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=raw.isatty())


class Progress(Protocol):
    """Counts finished items of a known total."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more items are done; `note` is shown beside the bar, such as "loss 0.081"."""


@contextmanager
def progress(label: str, total: int) -> Iterator[Progress]:
    """Show the progress of `total` items under `label` until the block ends."""
    if _quiet or total <= 0:
        yield _Silent()
    elif _can_redraw():
        yield from _bar(label, total)
    else:
        yield _Lines(label, total)


def _can_redraw() -> bool:
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and "CI" not in os.environ


@contextmanager
def live_table(header: Sequence[str]) -> Iterator[Callable[[Sequence[Sequence[str]], str], None]]:
    """Yield a function that shows the rows of a table and a line about it, in the place of those shown before.

    Where nothing can be redrawn it prints the line alone.
    """
    if _quiet or not _can_redraw():
        yield lambda rows, line: say(line)
        return
    from rich.console import Console, Group
    from rich.live import Live
    from rich.table import Table
    from rich.text import Text

    with Live(console=Console(stderr=True), auto_refresh=False) as live:

        def show(rows: Sequence[Sequence[str]], line: str) -> None:
            table = Table(*header)
            for row in rows:
                table.add_row(*(Text(printable(cell)) for cell in row))
            live.update(Group(table, Text(printable(line))), refresh=True)

        yield show


class _Silent:
    def advance(self, count: int = 1, note: str = "") -> None:
        pass


class _Lines:
    """A line at each tenth, and no more often than every ten seconds: short work says nothing."""

    def __init__(self, label: str, total: int) -> None:
        self.label, self.total, self.done = label, total, 0
        self.started = self.spoke = time.monotonic()

    def advance(self, count: int = 1, note: str = "") -> None:
        before, self.done = self.done, self.done + count
        now = time.monotonic()
        tenth_passed = self.done * 10 // self.total > before * 10 // self.total
        if tenth_passed and now - self.spoke >= 10:
            self.spoke = now
            tail = f", {note}" if note else ""
            say(f"{self.label}: {self.done}/{self.total} in {now - self.started:.0f} s{tail}")


class _RichBar:
    def __init__(self, bar: object, task: object) -> None:
        self.bar, self.task = bar, task

    def advance(self, count: int = 1, note: str = "") -> None:
        self.bar.update(self.task, advance=count, note=printable(note))  # type: ignore[attr-defined]


def _bar(label: str, total: int) -> Iterator[Progress]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        yield _RichBar(bar, bar.add_task(printable(label), total=total, note=""))


@contextmanager
def silence_libraries() -> Iterator[None]:
    """Drop what libraries log, warn of or print in a block, and restore all three afterwards.

    For calls into exporters and quantizers whose messages are about their own parts; errors still raise.
    """
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
