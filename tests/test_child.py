"""A process that was started for another ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parent.parent
PARENT = """
import os, subprocess, sys
parent = sys.argv[1] or str(os.getpid())
child = subprocess.Popen([sys.executable, "-m", "colorpress.core.child", parent, "sleeper"])
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel of Linux does it")
@pytest.mark.parametrize("named", ["", "1"], ids=["its parent", "one that has died"])
def test_a_child_ends_with_its_parent(tmp_path: Path, named: str) -> None:
    (tmp_path / "sleeper.py").write_text("import time\nprint('asleep', flush=True)\ntime.sleep(60)\n")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, "-c", PARENT, named]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        if named:  # it does not even begin
            assert parent.wait(timeout=20) == 0 and "asleep" not in parent.stdout.read()
            return
        assert parent.stdout.readline() == "asleep\n" and child.is_running()
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        deadline = time.monotonic() + 5
        while child.is_running() and child.status() != psutil.STATUS_ZOMBIE and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
