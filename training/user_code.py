"""Why code of another author failed, in one line that names the place in it."""

from __future__ import annotations

import os
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

_OWN, _PACKAGES, _PYTHON = (
    Path(file).resolve().parent for file in (Path(__file__).parent, torch.__path__[0], os.__file__)
)
# Where a failure is passed on, and no author's mistake is.
_PASSING = (
    *(_OWN / floor for floor in ("colorpress", "training", "export", "compress", "benchmarks")),
    *(_PACKAGES / package for package in ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime", "sympy")),
)
_LONGEST = 200


def describe_failure(error: BaseException) -> str:
    """The first cause of an error in one line, with the line of the author's code that it came from."""
    cause = first_cause(error)
    text = " ".join(str(cause).split())[:_LONGEST] or type(cause).__name__
    place = find_place(error)
    return f"{text} ({place})" if place else text


def first_cause(error: BaseException) -> BaseException:
    """The error that an error was raised from, and that one from, and so on."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def find_place(error: BaseException) -> str:
    """File name, line and text of the innermost line of an author's code that an error passed; empty without any."""
    found = ""
    for each in _causes(error):
        for frame in traceback.extract_tb(each.__traceback__):
            if _is_of_an_author(frame.filename):
                found = f"{Path(frame.filename).name}, line {frame.lineno}: {(frame.line or '').strip()}".rstrip(": ")
    return found


def _causes(error: BaseException) -> Iterator[BaseException]:
    yield error
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


def _is_of_an_author(filename: str) -> bool:
    # As the packages are: an environment may be reached by a link.
    path = Path(filename).resolve()
    # Python's own modules lie side by side; the packages of others may lie in a folder below.
    return path.is_file() and path.parent != _PYTHON and not any(path.is_relative_to(folder) for folder in _PASSING)
