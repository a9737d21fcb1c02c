"""What a killed process leaves is removed by the next, what lives is left alone, and a locked folder stays the same."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from colorpress.core import files, locks
from colorpress.core.errors import MachineError
from colorpress.core.locks import locked_folder, measuring_alone, scratch_folder

ROOT = Path(__file__).resolve().parent.parent
# Holds a folder, a scratch folder in it and one outside, and a half-written file in each of two folders.
HOLDER = """
import sys, time
from contextlib import ExitStack
from pathlib import Path
from colorpress.core.files import atomic_write
from colorpress.core.locks import locked_folder, scratch_folder

run, other = map(Path, sys.argv[1:])
with ExitStack() as held:
    held.enter_context(scratch_folder()).joinpath("model.onnx").write_bytes(b"outside")
    held.enter_context(locked_folder(run))
    held.enter_context(scratch_folder()).joinpath("model.onnx").write_bytes(b"inside")
    for path in (run / "deep" / "best.pt", other / "photo.png"):
        held.enter_context(atomic_write(path)).write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def shared_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


@pytest.fixture
def holder(tmp_path: Path, shared_tmp: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of its work on `run` and `other`."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), str(tmp_path / "other")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def names(*folders: Path) -> list[str]:
    found = [path for folder in folders for path in folder.rglob("*")]
    return sorted(path.name for path in found if path.is_file() and path.name != ".lock")


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_holds_is_not(
    tmp_path: Path, shared_tmp: Path, holder: subprocess.Popen[str]
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    with scratch_folder():
        files.write_text(other / "mine.txt", "x")
    with pytest.raises(MachineError, match=f"locked by pid {holder.pid}"), locked_folder(run):
        pass
    held = names(run, other, shared_tmp)
    assert len(held) == 5 and held.count("model.onnx") == 2 and "mine.txt" in held
    assert [path.parent.parent.name for path in run.rglob("model.onnx")] == [".scratch"]

    holder.send_signal(signal.SIGKILL)
    holder.wait()
    files._swept.clear()  # as in the next process
    with locked_folder(run):
        assert names(run) == [] and not (run / ".scratch").exists()
        with scratch_folder() as folder:
            assert folder.parent == run.absolute() / ".scratch"
        assert not (run / ".scratch").exists()
    with scratch_folder() as folder:
        assert folder.parent == shared_tmp
    files.write_text(other / "mine.txt", "y")
    assert names(run, other, shared_tmp) == ["mine.txt"] and list(shared_tmp.iterdir()) == []


def test_another_run_inside_a_folder_is_left_alone(tmp_path: Path) -> None:
    half = f".best.pt.12345678{locks.TEMPORARY}.pt"
    (tmp_path / "inner").mkdir()
    for folder in (tmp_path, tmp_path / "inner"):
        (folder / half).write_bytes(b"half")
    (tmp_path / "inner" / ".lock").write_text("")
    with locked_folder(tmp_path):
        assert names(tmp_path) == [half] and (tmp_path / "inner" / half).exists()


@pytest.mark.parametrize("replaced", [False, True])
def test_a_locked_folder_that_is_taken_away_is_not_made_again(tmp_path: Path, replaced: bool) -> None:
    run = tmp_path / "run"

    def take_away() -> None:
        run.rename(tmp_path / "away")
        if replaced:
            run.mkdir()
            (run / ".lock").write_text("")

    for write in (lambda: files.write_text(run / "best" / "a.txt", "x"), lambda: scratch_folder().__enter__()):
        shutil.rmtree(tmp_path, ignore_errors=True)
        with pytest.raises(MachineError, match="was removed or replaced"), locked_folder(run):
            take_away()
            write()
        assert names(run) == [] and run.exists() == replaced
    # Nor does it end as if all was well where nothing more had to be written.
    shutil.rmtree(tmp_path, ignore_errors=True)
    with pytest.raises(MachineError, match="was removed or replaced"), locked_folder(run):
        take_away()


def test_a_full_disk_in_passing_work_is_named(
    tmp_path: Path, shared_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MachineError, match=r"'.*colorpress-work-.*': disk full"), scratch_folder():
        raise OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    with pytest.raises(MachineError, match="gone': cannot write"), scratch_folder():
        pass


def test_where_no_passing_work_can_be_done_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tempfile, "mkdtemp", fail)
    with locked_folder(tmp_path / "run"):
        with pytest.raises(MachineError, match="scratch': input/output error"), scratch_folder():
            pass
        assert not (tmp_path / "run" / ".scratch").exists()


def test_libraries_are_told_no_name_that_is_not_utf8(tmp_path: Path, shared_tmp: Path) -> None:
    with locked_folder(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))), scratch_folder() as folder:
        assert folder.parent == shared_tmp


def test_timing_alone_is_kept_from_no_one_by_a_planted_file_or_a_stuck_process(
    tmp_path: Path, shared_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    own = shared_tmp / f"colorpress-{os.geteuid()}"
    with measuring_alone():
        assert own.stat().st_mode & 0o777 == 0o700
        with measuring_alone(patience_s=0.01):
            pass
    assert "has held" in capsys.readouterr().err
    for plant in (lambda: own.symlink_to(tmp_path), lambda: own.mkdir(mode=0o777) or own.chmod(0o777), own.touch):
        shutil.rmtree(own, ignore_errors=True)
        own.unlink(missing_ok=True)
        plant()
        with measuring_alone():
            pass
        assert "no folder of this user's alone" in capsys.readouterr().err
    assert list(tmp_path.glob("*.lock")) == []
    private = tmp_path / "runtime"
    private.mkdir(mode=0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(private))
    with measuring_alone(), pytest.raises(TimeoutError):
        FileLock(private / "colorpress-latency.lock").acquire(timeout=0)
    assert capsys.readouterr().err == ""
