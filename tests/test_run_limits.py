"""Models that never end: what stops them, and that it stops nothing else."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from torture.hostile_models import crash_elsewhere, innocent, loop_always, memory_elsewhere

from benchmarks.variants import describe_variant
from colorpress.core.errors import InputError
from compress.derived_onnx import load_float_model
from export import onnx_probe, run_limits
from export.onnx_probe import note_made_here, refuse_hostile, refused_before
from export.predictors import OnnxPredictor
from export.run_limits import BeyondLimitsError

LIGHTNESS = np.zeros((1, 1, 8, 8), np.float32)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> OnnxPredictor:
    path = tmp_path_factory.mktemp("endless") / "endless.onnx"
    onnx.save(loop_always(), path)
    return OnnxPredictor(path, threads=1)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits of a test."""
    for name, value in {"_LOOK_SECONDS": 0.05, "_SECONDS": 0.5, "_SECONDS_PER_MEGAVALUE": 0.0}.items():
        monkeypatch.setattr(run_limits, name, value)


def test_what_never_ends_is_stopped_and_the_next_run_is_not(
    endless: OnnxPredictor, quick: None, tmp_path: Path
) -> None:
    with pytest.raises(BeyondLimitsError, match="takes more than 0 s for one call"):
        endless(LIGHTNESS)
    onnx.save(innocent(), tmp_path / "sound.onnx")
    assert OnnxPredictor(tmp_path / "sound.onnx", threads=1)(LIGHTNESS).shape == (1, 2, 8, 8)


def test_what_fills_the_memory_is_stopped(endless: OnnxPredictor, quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_limits, "_SECONDS", 60.0)
    grown = iter(range(1 << 32, 1 << 60, 1 << 32))
    time.sleep(0.3)  # until nothing of an earlier run is looked after
    monkeypatch.setattr(run_limits, "_resident_bytes", lambda: next(grown))
    with pytest.raises(BeyondLimitsError, match="takes more memory than a sound model"):
        endless(LIGHTNESS)


_SIGNALLED = """
import os, signal, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from colorpress.core.errors import Interrupted
from export.predictors import OnnxPredictor

def interrupt(number, frame):
    raise Interrupted(number)

signal.signal(signal.SIGTERM, interrupt)
endless, lightness = OnnxPredictor(Path(sys.argv[1]), threads=1), np.zeros((1, 1, 8, 8), np.float32)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    with ThreadPoolExecutor(1) as pool:  # which waits for its thread
        pool.submit(endless, lightness).result() if sys.argv[2] == "thread" else endless(lightness)
except Interrupted:
    print("interrupted")
"""


# In a process of its own, which a signal that comes too late may end.
@pytest.mark.parametrize("where", ["here", "thread"])
def test_a_signal_ends_a_run_at_once(tmp_path: Path, where: str) -> None:
    onnx.save(loop_always(), tmp_path / "endless.onnx")
    command = [sys.executable, "-c", _SIGNALLED, str(tmp_path / "endless.onnx"), where]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (0, "interrupted\n"), done.stderr


_FREED_IN_TURN = """
import gc, os, signal, sys
from pathlib import Path
import numpy as np
from export.predictors import OpenVinoPredictor

signal.signal(signal.SIGTERM, lambda *_: print("heard"))
first, second = (OpenVinoPredictor(Path(sys.argv[1]), threads=1) for _ in range(2))
for each in (first, second):
    each(np.zeros((1, 1, 8, 8), np.float32))
del first, each
gc.collect()
del second
gc.collect()
os.kill(os.getpid(), signal.SIGTERM)
"""


def test_a_signal_is_heard_after_openvino(tmp_path: Path) -> None:
    onnx.save(innocent(), tmp_path / "model.onnx")
    command = [sys.executable, "-c", _FREED_IN_TURN, str(tmp_path / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


_OBSTINATE = """
import os, signal, sys, threading, time
from pathlib import Path
from export import run_limits

run_limits._GRACE_SECONDS = run_limits._SECONDS = 0.3
signal.signal(signal.SIGTERM, lambda *_: None)

def compute():
    if os.fork() == 0:
        os._exit(0 if signal.set_wakeup_fd(-1) == -1 and run_limits._watch is None else 1)
    assert os.wait()[1] == 0
    if sys.argv[1] == "signal":
        run_limits._SECONDS = 60.0
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)

run_limits.call_limited(Path("m.onnx"), 0, compute)
"""


@pytest.mark.parametrize(
    ("why", "code", "said"), [("signal", 143, "error: stopped by SIGTERM\n"), ("time", 3, "takes more than 0 s")]
)
def test_what_does_not_obey_ends_with_its_process(why: str, code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", _OBSTINATE, why], capture_output=True, text=True, timeout=50)
    assert done.returncode == code and said in done.stderr and "hint: " in done.stderr, done.stderr


@pytest.mark.parametrize("make", [crash_elsewhere, memory_elsewhere])
def test_harm_at_another_size_is_found_in_a_child_before_anything_else(
    make: Callable[[], onnx.ModelProto], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(make(), path)
    assert refused_before(path) == ""
    for read in (refuse_hostile, load_float_model):
        with pytest.raises(BeyondLimitsError, match=r"crashes ONNX Runtime \(SIGFPE\)|needs too much memory"):
            read(path)
    # It can be described, since parsing did no harm; nothing runs it here, nor in the process that would time it.
    assert describe_variant("hostile", path, count_at=64).macs == 0
    assert "refused" in refused_before(path)


def test_a_file_is_looked_at_once_and_what_was_made_here_never(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def ask(job: dict[str, str], **_: object) -> dict[str, str]:
        asked.append((Path(job["path"]).name, job["library"]))
        return {"status": "ok"}

    monkeypatch.setattr(onnx_probe, "run_worker", ask)
    for name, width in (("a.onnx", 1), ("b.onnx", 2)):
        model = innocent()
        model.graph.doc_string = f"{tmp_path} {width}"
        onnx.save(model, tmp_path / name)
    note_made_here((tmp_path / "b.onnx").read_bytes())
    for _ in range(2):
        for name in ("a.onnx", "b.onnx"):
            refuse_hostile(tmp_path / name)
            refuse_hostile(tmp_path / name, runtime="openvino")
    # What made it did not try it in OpenVINO.
    assert asked == [("a.onnx", ""), ("a.onnx", "openvino"), ("b.onnx", "openvino")]


def test_openvinos_own_files_are_tried_in_openvino(tmp_path: Path) -> None:
    import openvino

    onnx.save(innocent(), tmp_path / "model.onnx")
    openvino.save_model(openvino.convert_model(tmp_path / "model.onnx"), tmp_path / "model.xml")
    refuse_hostile(tmp_path / "model.xml")
    (tmp_path / "model.xml").write_text((tmp_path / "model.xml").read_text().replace("Convolution", "Nothing"))
    with pytest.raises(InputError, match=r"model\.xml"):
        refuse_hostile(tmp_path / "model.xml")
