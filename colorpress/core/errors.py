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

import signal
from pathlib import Path


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


def printable(text: str) -> str:
    """`text` on one line: control characters and lone surrogates escaped, the rest kept."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in text
    )
