"""What to type first, and next: commands that can be copied as they are. Nothing heavy is imported here."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from colorpress.core.errors import printable

# What to do, and the words of a command that does it.
Step = tuple[str, Sequence[str]]


def describe_start() -> list[str]:
    """What colorpress does and what people type first, for whoever types nothing."""
    first: list[Step] = [
        ("colour photographs right now", ["colorize", "old.jpg"]),
        ("make a small, fast model", ["run", "--data", "photos/", "-o", "out"]),
        ("... of a model of your own", ["run", "--data", "photos/", "-o", "out", "--checkpoint", "best.pt"]),
        ("look at what came out", ["open", "out"]),
        ("pack it to ship", ["bundle", "-o", "out"]),
    ]
    then: list[Step] = [("all commands", ["--help"]), ("what this machine can do", ["doctor"])]
    return [
        "colorpress turns a trained network that colorizes photographs into a small, fast ONNX model,",
        "and measures what that costs: size, latency, memory and colour.",
        "",
        *format_steps([*first, *then], title="begin with:"),
        "",
        "No photographs at hand? `make demo`, in the folder of the project, takes those that come along.",
    ]


def format_steps(steps: Sequence[Step], *, title: str = "next:") -> list[str]:
    """A title, and below it a line for each step."""
    own = typed_name()
    return [title, *align_pairs([(what, f"{own} {printable(shlex.join(words))}") for what, words in steps])]


def align_pairs(pairs: Sequence[tuple[str, str]]) -> list[str]:
    """Names and texts in two columns, indented."""
    width = max(len(name) for name, _ in pairs)
    return [f"  {name:{width}}  {text}" for name, text in pairs]


def typed_name() -> str:
    """What this program is to be called by from here: its name where that finds it, else its path."""
    own = Path(sys.argv[0])
    if own.name == "__main__.py" and own.parent.name == "colorpress":
        return "python -m colorpress"
    found = shutil.which("colorpress")
    if own.name != "colorpress" or (found and os.path.realpath(found) == os.path.realpath(own)):
        return "colorpress"
    return shlex.quote(min(str(own), os.path.relpath(own), key=len))
