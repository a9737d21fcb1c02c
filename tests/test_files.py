"""Files appear complete or not at all."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from colorpress.core import files, locks
from colorpress.core.errors import MachineError


def leftovers(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_write_publishes_the_content_and_leaves_nothing_else(tmp_path: Path) -> None:
    files.write_text(tmp_path / "new" / "a.txt", "first")
    files.write_text(tmp_path / "new" / "a.txt", "second")
    assert (tmp_path / "new" / "a.txt").read_text() == "second"
    assert leftovers(tmp_path / "new") == ["a.txt"]


def test_atomic_write_keeps_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), files.atomic_write(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["a.txt"]


def test_atomic_write_keeps_the_suffix_and_follows_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with files.atomic_write(tmp_path / "a.png") as temporary:
            assert temporary.suffix == ".png"
            temporary.write_bytes(b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.png").stat().st_mode & 0o777 == 0o640


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    path = files.write_text(tmp_path / ("é" * 125 + ".json"), "x")
    assert path.read_text() == "x"


@pytest.mark.parametrize(("code", "why"), [(errno.ENOSPC, "disk full"), (errno.EACCES, "Permission denied")])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failing_system_call_is_a_machine_error_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int, why: str
) -> None:
    path = files.write_text(tmp_path / "a.txt", "old")

    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), fail)
    with pytest.raises(MachineError, match=why):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert leftovers(tmp_path) == ["a.txt"]


def test_a_file_as_parent_folder_is_a_machine_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(MachineError, match="cannot write"):
        files.write_text(tmp_path / "file" / "a.txt", "x")


def test_csv_cells_are_no_formulas_and_none_is_empty(tmp_path: Path) -> None:
    path = files.write_csv(tmp_path / "a.csv", ["a", "b"], [{"a": "=1+1", "b": None}, {"a": -1.5, "b": "x,y"}])
    assert path.read_text() == 'a,b\n\'=1+1,\n-1.5,"x,y"\n'


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("\u202egpj.exe", r"\u202egpj.exe"),
        ("a\x1b[2Jb\r\n=1", r"a\x1b[2Jb\r\n=1"),
        ("\t=1+1", r"'\t=1+1"),
        (" @SUM(A1)", "' @SUM(A1)"),
        ("\uff1d1+1", "'\uff1d1+1"),
        ("\u2066a\u2069", r"\u2066a\u2069"),
    ],
)
def test_csv_cells_neither_turn_the_line_nor_end_it(tmp_path: Path, text: str, cell: str) -> None:
    assert files.write_csv(tmp_path / "a.csv", ["a"], [{"a": text}]).read_text() == f"a\n{cell}\n"


def test_json_refuses_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        files.write_json(tmp_path / "a.json", {"a": float("nan")})
    assert leftovers(tmp_path) == []


def test_names_with_lone_surrogates_can_be_written(tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "a.json", {"name": "a\udcff"})
    assert json.loads(path.read_text())["name"].startswith("a")


def test_a_locked_folder_refuses_a_second_process_and_sweeps_temporaries(tmp_path: Path) -> None:
    stale = tmp_path / f".x.abcd{files.TEMPORARY}.png"
    stale.write_bytes(b"half")
    attempt = (
        "import sys; from pathlib import Path; from colorpress.core.locks import locked_folder\n"
        "from colorpress.core.errors import MachineError\n"
        "try:\n with locked_folder(Path(sys.argv[1])): print('entered')\n"
        "except MachineError as error: print(error)"
    )
    with locks.locked_folder(tmp_path):
        assert not stale.exists()
        second = subprocess.run([sys.executable, "-c", attempt, str(tmp_path)], capture_output=True, text=True)
        assert f"locked by pid {os.getpid()}" in second.stdout, second.stderr
    third = subprocess.run([sys.executable, "-c", attempt, str(tmp_path)], capture_output=True, text=True)
    assert third.stdout.strip() == "entered", third.stderr
