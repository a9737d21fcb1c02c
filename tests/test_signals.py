"""A signal ends a command with its code and two lines from its first moment on, inside imports too."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# As the entry point does, with a library that takes a signal for a missing module of its own, as numpy does.
ENTRY = """
import os, signal, sys
from colorpress.core.errors import Interrupted
from colorpress.core.signals import obey_as_any_process, obey_at_once, obey_by_raising

if sys.argv[2] == "early":
    obey_at_once()
else:
    obey_by_raising()
try:
    if sys.argv[2] == "inside":
        os.kill(os.getpid(), int(sys.argv[1]))
    import library
except Interrupted as stopped:
    print("kept", flush=True)
    sys.exit(stopped.exit_code)
"""
LIBRARY = """
import os, sys
try:
    import part
except BaseException as error:
    raise ImportError("part is missing") from error
"""
PART = "import os, sys, time\nos.kill(os.getpid(), int(sys.argv[1]))\ntime.sleep(5)\n"


@pytest.mark.parametrize("when", ["early", "importing", "inside"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_command_whatever_it_is_doing(
    tmp_path: Path, number: signal.Signals, code: int, when: str
) -> None:
    for name, text in {"entry": ENTRY, "library": LIBRARY, "part": PART}.items():
        (tmp_path / f"{name}.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "entry.py"), str(int(number)), when]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == code, done.stderr
    if when == "inside":
        assert (done.stdout, done.stderr) == ("kept\n", "")
    else:
        assert done.stderr.startswith(f"error: stopped by {number.name}\nhint: ") and done.stderr.count("\n") == 2


def test_signals_are_obeyed_before_anything_is_imported() -> None:
    code = (
        "import signal, sys; from colorpress.core import signals; known = set(sys.modules)\n"
        # As in a terminal: a shell starts what runs in the background with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        handler = signal.getsignal(signal.SIGINT)\n"
        "        if handler is signal.default_int_handler: print(name)\n"
        "sys.meta_path.insert(0, Watch()); import colorpress.__main__"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["colorpress.__main__"]
