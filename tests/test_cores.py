"""Threads that wait, and who sees that they sleep."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

from colorpress.core import cores
from export.timing import run_worker

ECHO = "import json, os; print(json.dumps({'status': 'ok', 'policy': os.environ.get('OMP_WAIT_POLICY')}))"


@pytest.fixture
def echo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """A worker that answers the policy it was started with."""
    (tmp_path / "echo_policy.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(cores, "_set_here", set())
    return ModuleType("echo_policy")


def test_waiting_threads_sleep_here_and_not_in_what_is_timed(echo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "to be put back")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    assert "torch" in sys.modules  # too late for this process, which only shows what is handed on
    cores.let_waiting_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    assert run_worker({}, threads=1, module=echo)["policy"] is None


def test_what_the_environment_says_of_waiting_stays(echo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    cores.let_waiting_threads_sleep()
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"
    assert run_worker({}, threads=1, module=echo)["policy"] == "ACTIVE"
