"""What tortures say is counted: a figure that nobody reads would pass for none."""

from __future__ import annotations

from pathlib import Path

import pytest
from torture import children
from torture.__main__ import read_figures


def test_what_becomes_of_inputs_is_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    became = ["read", "refused", "refused", "hang", "internal ValueError: x", "crash -11", "memory"]
    monkeypatch.setattr(
        children, "run_limited", lambda *_: iter([(number, each, 0.1, 50) for number, each in enumerate(became)])
    )
    kept: list[int] = []
    assert not children.torture("a.module", "inputs", 0, len(became), tmp_path, keep=kept.append)
    *_, figures = capsys.readouterr().out.splitlines()
    assert read_figures(figures) == {"cases": 7, "went_on": 1, "refused": 2, "hangs": 1, "internal": 3}
    assert kept == [3, 4, 5, 6]
