"""What a model may take in this process: so much time and memory a run, and none of either once a signal came.

Python's own handler of a signal waits until a library is done with what it computes, and a crafted model need never be
done. So a thread looks after whatever runs: it hears signals by `signal.set_wakeup_fd`, asks the library to stop, and
ends the process where that is not obeyed. All files are written so that this may happen at any time.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from colorpress.core.errors import InputError, Interrupted, printable
from colorpress.core.signals import GO_ON, STOPPING

# Generous: a network of 8 million parameters, 32 MB, takes less than 10 s a megapixel on one core; larger ones more.
_SECONDS, _SECONDS_PER_MEGAVALUE, _USUAL_FILE_BYTES = 10.0, 100.0, 32e6
# A network of 64 channels holds some ten of their planes at a time, 4 bytes a value.
_BYTES, _BYTES_PER_VALUE = 4 << 30, 4096
# A file that is opened counts as so many values: it may take 64 times its size.
BYTES_OF_ONE_VALUE = 64
# Below so much free memory a run that grew stops, before the system ends whatever process it likes.
_LEAST_FREE_BYTES, _LARGE_GROWTH_BYTES = 256 << 20, 1 << 30
_LOOK_SECONDS = 0.25
# What was asked to stop has so long to do it; and for so long after a signal no other thread begins anything.
_GRACE_SECONDS = 3.0
Answer = TypeVar("Answer")
_HINT = "use a model that you trust, or a smaller photograph"


class BeyondLimitsError(InputError):
    """A model took more time or memory than a sound one of its input does."""


def call_limited(
    path: Path,
    values: int,
    call: Callable[..., Answer],
    *arguments: Any,
    stop: Callable[[], object] = lambda: None,
    more_seconds: float = 0.0,
) -> Answer:
    """What `call` answers, in which a library runs a model, or opens it.

    Args:
        path: the model, as errors name it.
        values: how many numbers it is given, such as pixels.
        stop: asks the library to stop; called from another thread, perhaps several times.
        more_seconds: that it may take beside what a run of so many values may.
    Raises:
        BeyondLimitsError: it took too much time or memory.
        Interrupted: SIGINT or SIGTERM arrived meanwhile.
        And whatever `call` raises.
    """
    run, watch = _Run(path, values, stop, more_seconds), _watching()
    watch.refuse_after_signal()
    runs = watch.runs
    # No call of a function of Python lies between: there the handler of a signal may raise before it begins.
    try:
        runs.add(run)
        return call(*arguments)
    except Exception:
        # What the library says of its having been stopped is of no interest.
        if run.stopped_by:
            raise Interrupted(run.stopped_by) from None
        if run.why:
            raise BeyondLimitsError("model", path, run.why, _HINT) from None
        raise
    finally:
        runs.discard(run)


@dataclass(eq=False)
class _Run:
    """A call under way: what it may take, for how long it has been, why it was asked to stop, and by what signal."""

    path: Path
    values: int
    stop: Callable[[], object]
    more_seconds: float = 0.0
    seconds: float = 0.0
    why: str = ""
    stopped_by: int = 0

    @cached_property
    def most_seconds(self) -> float:
        file_bytes = self.path.stat().st_size if self.path.is_file() else 0
        by_values = _SECONDS_PER_MEGAVALUE * self.values / 1e6 * max(1.0, file_bytes / _USUAL_FILE_BYTES)
        return _SECONDS + by_values + self.more_seconds

    @property
    def most_bytes(self) -> int:
        return _BYTES + _BYTES_PER_VALUE * self.values


class _Watch:
    """The thread and what it looks after.

    Attributes:
        runs: those under way, in all threads.
    """

    def __init__(self) -> None:
        self.runs: set[_Run] = set()
        self._ears, self._mouth = socket.socketpair()
        for each in (self._ears, self._mouth):
            each.setblocking(False)
        self._hears = False
        self._number, self._heard_at = 0, 0.0
        self._idle_bytes = _resident_bytes()
        threading.Thread(target=self._look_after, name="run limits", daemon=True).start()

    def listen(self) -> None:
        """Hear signals, once the main thread asks for it; no other may."""
        if self._hears or threading.current_thread() is not threading.main_thread():
            return
        before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        if before != -1:  # somebody else's, such as an event loop
            signal.set_wakeup_fd(before)
        self._hears = True

    def refuse_after_signal(self) -> None:
        """Begin nothing where a signal came a moment ago that the main thread has not yet acted upon.

        Raises:
            Interrupted: so it is.
        """
        # That thread itself begins nothing before it did.
        is_main = threading.current_thread() is threading.main_thread()
        if self._number and not is_main and time.monotonic() < self._heard_at + _GRACE_SECONDS:
            raise Interrupted(self._number)

    def _look_after(self) -> None:
        while True:
            ready, _, _ = select.select([self._ears], [], [], _LOOK_SECONDS)
            for number in self._ears.recv(4096) if ready else b"":
                if number in STOPPING:
                    self._number, self._heard_at = number, time.monotonic()
                    for run in tuple(self.runs):
                        run.stopped_by, run.seconds = number, 0.0
                        run.stop()
            if not ready:
                self._look()

    def _look(self) -> None:
        """Once every _LOOK_SECONDS, which are counted, since a process may be halted for hours."""
        runs = tuple(self.runs)
        if not runs:
            self._idle_bytes = _resident_bytes()
            return
        if too_much := self._judge_memory(runs):
            largest = max(runs, key=lambda each: each.values)
            if largest.why == too_much:  # one operator may take all there is without looking whether it should stop
                _end_process(largest)
            largest.why = too_much
            largest.stop()
        for run in runs:
            run.seconds += _LOOK_SECONDS
            limit = _GRACE_SECONDS if run.stopped_by else run.most_seconds
            if run.seconds > limit + _GRACE_SECONDS or (run.stopped_by and run.seconds > limit):
                _end_process(run)
            if run.seconds > limit and not run.stopped_by:
                run.why = run.why or f"takes more than {limit:.0f} s for one call; stopped"
                run.stop()

    def _judge_memory(self, runs: tuple[_Run, ...]) -> str:
        """What is wrong with the memory that all runs take together; empty where nothing is."""
        grown = _resident_bytes() - self._idle_bytes
        if grown > sum(run.most_bytes for run in runs):
            return "takes more memory than a sound model; stopped"
        if grown > _LARGE_GROWTH_BYTES:
            from colorpress.core.machine import free_memory_bytes

            if free_memory_bytes() < _LEAST_FREE_BYTES:
                return "takes all memory there is; stopped"
        return ""


def _end_process(run: _Run) -> None:
    """The end of the process from this thread: the library keeps the other one, which would say the same."""
    number = run.stopped_by
    error = Interrupted(number) if number else BeyondLimitsError("model", run.path, run.why, _HINT)
    lines = f"error: {printable(str(error))}\nhint: {GO_ON if number else _HINT}\n"
    try:
        os.write(2, lines.encode("ascii", "backslashreplace"))
    finally:
        os._exit(error.exit_code)


def _resident_bytes() -> int:
    """What this process has in memory; 0 where the system does not say so in /proc."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


_watch: _Watch | None = None


def _watching() -> _Watch:
    global _watch
    if _watch is None:
        _watch = _Watch()
    _watch.listen()
    return _watch


def _forget_in_child() -> None:
    """A forked process has no other threads, and is not to tell its signals to its parent's."""
    global _watch
    if _watch is not None:
        _watch = None
        signal.set_wakeup_fd(-1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
