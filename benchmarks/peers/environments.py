"""An environment of its own for a tool that needs other packages: a virtual environment above the current one.

pip installs only what is missing or has to be of another version; the rest, torch among it, is found below. What it
installs there never reaches the project's own environment.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from colorpress.core.console import say
from colorpress.core.errors import MachineError
from colorpress.core.files import write_text
from colorpress.core.machine import installed_version

_LONGEST_S = 3 * 3600.0
_VERSIONS = (
    "import json, sys; from importlib.metadata import version; print(json.dumps([version(n) for n in sys.argv[1:]]))"
)


@dataclass(frozen=True)
class Environment:
    """Where a recipe runs: the interpreter, and the versions of the packages that it is there for."""

    python: Path
    versions: Mapping[str, str]


def find_environment(folder: Path, requirements: Sequence[str], distributions: Sequence[str]) -> Environment:
    """The current environment where it has all that is required, else the one in `folder`, made where it is missing.

    Args:
        folder: of the virtual environment; it is kept for the next time.
        requirements: as pip reads them.
        distributions: whose versions are told.
    Raises:
        MachineError: pip cannot install the requirements; its output is in `<folder>.log`.
    """
    here = {name: installed_version(name) for name in (*distributions, *map(name_of, requirements))}
    if all(here[name_of(requirement)] for requirement in requirements):
        return Environment(Path(sys.executable), {name: found for name in distributions if (found := here[name])})
    record = folder / "environment.json"
    wanted = json.dumps({"requirements": list(requirements), "below": sys.prefix, "python": sys.version})
    # Not resolved: the link in the folder is what makes it this environment.
    python = folder.absolute() / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not (python.exists() and record.is_file() and record.read_bytes() == wanted.encode()):
        say(f"{folder.name}: installing {', '.join(requirements)} into an environment of its own")
        _make_environment(folder, python, requirements)
        write_text(record, wanted)
    told = _run([str(python), "-P", "-c", _VERSIONS, *distributions], folder)
    return Environment(python, dict(zip(distributions, json.loads(told), strict=True)))


def name_of(requirement: str) -> str:
    """The name in a requirement: "olive-ai" of "olive-ai[cpu]>=0.9"."""
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0]


def _make_environment(folder: Path, python: Path, requirements: Sequence[str]) -> None:
    try:
        venv.create(folder, clear=True, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        why = f"cannot be made ({type(error).__name__}: {error})"
        raise MachineError("environment", folder, why, "the module venv, with pip, has to work") from error
    own = Path(_run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], folder))
    paths = sysconfig.get_paths()
    write_text(own / "below.pth", "\n".join(dict.fromkeys((paths["purelib"], paths["platlib"]))) + "\n")
    _run([str(python), "-m", "pip", "install", "--no-input", *requirements], folder)


def _run(command: Sequence[str], folder: Path) -> str:
    """The last line that a command printed.

    Raises:
        MachineError: it failed; with what it said last.
    """
    log = folder.with_name(f"{folder.name}.log")
    ended, said = run_logged(command, log, cwd=folder)
    if ended != "exit 0":
        told = next((line for line in said if line.startswith("ERROR:")), (said or [ended])[-1])
        raise MachineError("environment", folder, f"cannot be installed: {told[:300]}", f"see {log}")
    return said[-1] if said else ""


def run_logged(command: Sequence[str], log: Path, *, cwd: Path) -> tuple[str, list[str]]:
    """How a command ended, such as "exit 0", and the lines that it printed, which are in `log`, too."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_LONGEST_S,
            # An environment is its own: nothing of this one's search path.
            env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")},
            cwd=cwd,
        )
    except subprocess.TimeoutExpired:
        return f"no end after {_LONGEST_S:g} s", []
    said = done.stdout.decode("utf-8", "replace")
    write_text(log, said)
    return f"exit {done.returncode}", [line for line in said.splitlines() if line.strip()]
