"""Standard streams that lead nowhere, are full, closed, or nobody reads, and what a command then ends with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
REFUSED, HELP = ["no-such-command"], ["--help"]
# What a program prints by itself must not get into a file that was opened in the place of a closed stream.
NOISY = (
    "import ctypes, os, sys; from pathlib import Path; from colorpress.core.console import settle_streams\n"
    "settle_streams(); file = open(sys.argv[1], 'wb'); library = ctypes.CDLL(None)\n"
    "library.puts(b'noise'); library.fflush(None)\n"
    "os.write(2, b'noise'); print('noise', file=sys.stderr); file.write(b'kept'); file.close()"
)


def end_of(arguments: list[str], redirect: str) -> tuple[int, str]:
    """Exit code and what is left of standard error, with the shell's redirections."""
    line = f'exec "$0" -m colorpress "$@" {redirect}'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["/bin/sh", "-c", line, sys.executable, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize(
    ("arguments", "redirect", "code"),
    [
        (REFUSED, "2>/dev/full", 2),
        (REFUSED, "2>&-", 2),
        (HELP, ">/dev/full", 4),
        (HELP, ">/dev/full 2>/dev/full", 4),
        (HELP, "<&- >&- 2>&-", 0),
    ],
)
def test_an_exit_code_says_what_happened_wherever_the_streams_lead(
    arguments: list[str], redirect: str, code: int
) -> None:
    ended, error = end_of(arguments, redirect)
    assert ended == code
    expected = "error: output 'standard output': cannot be written: No space left on device\nhint: "
    assert error.startswith(expected) if redirect == ">/dev/full" else error == ""


def test_readers_that_have_gone_are_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "colorpress"]
    assert subprocess.run([*command, *REFUSED], stderr=writing, cwd=ROOT, check=False).returncode == 2
    done = subprocess.run([*command, *HELP], stdout=writing, stderr=subprocess.PIPE, cwd=ROOT, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    os.close(writing)


def test_nothing_that_is_printed_gets_into_a_file(tmp_path: Path) -> None:
    line = 'exec "$0" -c "$1" "$2" <&- >&- 2>&-'
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        ["/bin/sh", "-c", line, sys.executable, NOISY, str(tmp_path / "best.pt")], env=environment, check=True
    )
    assert (tmp_path / "best.pt").read_bytes() == b"kept"
