"""Commands to copy: they call this program as it can be called from here, and quote what has spaces."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from colorpress.next_steps import align_pairs, format_steps, typed_name


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed colorpress in the folder that the process is in, which is not on the PATH."""
    path = tmp_path / ".venv" / "bin" / "colorpress"
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(path)])
    return path


def test_it_is_called_by_its_path_where_its_name_finds_another_or_none(
    program: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert typed_name() == ".venv/bin/colorpress"
    monkeypatch.setenv("PATH", str(program.parent))
    assert typed_name() == "colorpress"
    other = program.parent.parent / "colorpress"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{program.parent}")
    assert typed_name() == ".venv/bin/colorpress"


def test_a_module_is_called_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/some/where/colorpress/__main__.py"])
    assert typed_name() == "python -m colorpress"
    monkeypatch.setattr(sys, "argv", ["/some/where/pytest/__main__.py"])
    assert typed_name() == "colorpress"


def test_what_is_shown_is_what_a_shell_would_run(tmp_path: Path, program: Path) -> None:
    program.write_text('#!/bin/sh\nfor word in "$@"; do echo "$word"; done\n')
    words = ["colorize", "my photos", "it's", "-m", "$HOME"]
    title, line = format_steps([("colour them", words)])
    assert title == "next:" and line.startswith("  colour them  ")
    shown = line.removeprefix("  colour them  ")
    done = subprocess.run(["/bin/sh", "-c", shown], capture_output=True, text=True, check=True, env=dict(os.environ))
    assert done.stdout.splitlines() == words


def test_names_and_texts_are_in_two_columns() -> None:
    assert align_pairs([("a", "one"), ("long", "two")]) == ["  a     one", "  long  two"]
