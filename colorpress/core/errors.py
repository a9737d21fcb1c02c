"""The errors a user can meet, and the exit code each one ends the command with.

ColorpressError            1   (never raised itself)
├── ConfigError            2   an option or a configuration value that cannot be used
├── InputError             3   an image, checkpoint, ONNX file or data set that cannot be used
├── MachineError           4   the environment: cannot write, disk full, no such device, missing extra, locked folder
├── GateError              5   a promise was measured and not kept: parity, accuracy, latency, size, bad images
└── DivergedError          6   training met NaN or Inf
Interrupted              130   SIGINT (130) or SIGTERM (143); no ColorpressError, since nothing is wrong
"""

from __future__ import annotations

import errno
import re
import signal
from collections.abc import Iterator
from pathlib import Path

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What the system says of a file, and what can be done about it; what is not here says it in its own words.
_SYSTEM_ERRORS = {
    **dict.fromkeys(_FULL, ("disk full", "free some space, or choose another --output-dir")),
    errno.EMFILE: ("too many open files", "raise the limit with `ulimit -n`, or lower --workers"),
    errno.ENFILE: ("too many open files on this machine", "close other programs"),
    errno.ENOMEM: ("not enough memory", "close other programs, or lower --workers"),
    errno.EIO: ("input/output error: the disk or its connection fails", "check the disk, or use another one"),
    errno.ENAMETOOLONG: ("its name is too long", "use shorter names"),
}
# Never said because of what a user gave.
_NEVER_THE_FILE = {*_FULL, errno.EMFILE, errno.ENFILE, errno.EROFS}
# What a machine short of memory says through PyTorch, ONNX Runtime, C++, the loader of libraries and threads.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|(can't|cannot|failed to|unable to) allocate|bad_alloc|failed to map segment|can't start new thread"
    r"|could not create a (primitive|memory)",
    re.IGNORECASE,
)


class ColorpressError(Exception):
    """Base of every error the command line shows: two lines, `error:` and `hint:`.

    Args:
        what: the kind of thing that is wrong, such as "photo" or "option".
        subject: its name or path; shown quoted, control characters escaped. None leaves it out.
        why: what is wrong with it, with the value got and what is allowed.
        hint: what to do about it.
    """

    exit_code = 1

    def __init__(self, what: str, subject: str | Path | None, why: str, hint: str) -> None:
        self.what, self.subject, self.why, self.hint = what, subject, why, hint
        super().__init__(what, subject, why, hint)

    def __str__(self) -> str:
        name = "" if self.subject is None else f" '{printable(str(self.subject))}'"
        return f"{self.what}{name}: {printable(self.why)}"


class ConfigError(ColorpressError):
    """An option or configuration value is outside what is allowed."""

    exit_code = 2


class InputError(ColorpressError):
    """A file or data set given by the user cannot be used."""

    exit_code = 3


class MachineError(ColorpressError):
    """The machine cannot do what was asked: permissions, disk, device, missing package, lock."""

    exit_code = 4


class GateError(ColorpressError):
    """Something was measured and did not hold; nothing that failed was published."""

    exit_code = 5


class DivergedError(ColorpressError):
    """Training produced NaN or Inf; the best weights so far are intact."""

    exit_code = 6


class Interrupted(KeyboardInterrupt):
    """SIGINT or SIGTERM arrived. Like KeyboardInterrupt no `except Exception` swallows it."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.exit_code - 128).name}"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the machine had no memory left; libraries say so in many ways."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or _OUT_OF_MEMORY.search(str(error)) is not None


def is_disk_full(error: OSError) -> bool:
    """Whether no more can be written, by the disk's size, a quota or a limit."""
    return error.errno in _FULL


def as_machine_error(error: OSError, path: Path | str | None, *, doing: str = "cannot write") -> MachineError:
    """The two-line error for an operating-system error met while writing `path`.

    Args:
        doing: what failed, for errors that have no words of their own.
    """
    why, hint = _SYSTEM_ERRORS.get(error.errno or 0, ("", "choose a folder you can write to with --output-dir"))
    return MachineError("file", path, why or f"{doing}: {error.strerror or error}", hint)


def find_fault(error: Exception) -> ColorpressError | None:
    """What a command that ended by `error` says: the error of the machine that lies behind it, or the error itself.

    A full disk, too many open files or too little memory are the machine's, whatever they were taken for on their way.
    None is a mistake of this program.
    """
    behind = list(_chain(error))
    what, subject = (error.what, error.subject) if isinstance(error, ColorpressError) else ("machine", None)
    if any(is_out_of_memory(each) for each in behind if not isinstance(each, ColorpressError)):
        hint = "close other programs, raise the limit, or lower --workers, --batch-size or the size of pictures"
        return MachineError(what, subject, "not enough memory for it", hint)
    if isinstance(error, MachineError):
        return error
    for each in behind:
        # Of a file that was given, what else the system says of it is said already.
        if isinstance(each, OSError) and each.errno and (each is error or each.errno in _NEVER_THE_FILE):
            return as_machine_error(each, each.filename or subject, doing="cannot be used")
    return error if isinstance(error, ColorpressError) else None


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from, newest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def printable(text: str) -> str:
    """`text` on one line: control characters and lone surrogates escaped, the rest kept."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
