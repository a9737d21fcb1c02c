"""What tortures say is counted: a figure that nobody reads would pass for none."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from torture import __main__ as torture
from torture import children
from torture.faults import choose_calls
from torture.figures import Figures
from torture.kills import plan_kills
from torture.sound_run import Stage


def test_what_becomes_of_inputs_is_in_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    became = ["read", "refused", "refused", "hang", "internal ValueError: x", "crash -11", "memory"]
    monkeypatch.setattr(
        children, "run_limited", lambda *_: iter([(number, each, 0.1, 50) for number, each in enumerate(became)])
    )
    kept: list[int] = []
    figures = Figures()
    children.torture(figures, "a.module", "inputs", 0, len(became), tmp_path, keep=kept.append)
    figures.leave("inputs", ["one", "two"])
    assert kept == [3, 4, 5, 6] and figures.finish() == 1
    *_, last = capsys.readouterr().out.splitlines()
    found = torture.read_figures(last)
    assert +found == {"cases": 7, "went_on": 1, "refused": 2, "hangs": 1, "internal": 3, "leftovers": 2}
    *_, row, total = torture.write_table({"part": found})
    assert row == "| part | 7 | 2 | 1 | 0 | 1 | 0 | 3 | 2 | 0 | 0 |" and total == row.replace("part", "all")


def test_a_part_is_done_once_unless_anything_was_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    started: list[str] = []

    def start(self: torture.Torture, part: torture.Part) -> Counter[str]:
        started.append(part.name)
        return Counter(cases=2, went_on=1, losses=part.name == "lossy")

    monkeypatch.setattr(torture.Torture, "_start", start)
    parts = [torture.Part(name, "kills", ("--count", "1")) for name in ("clean", "lossy")]
    for _ in range(2):
        again = torture.Torture(tmp_path)
        assert [again.run(part)["losses"] for part in parts] == [0, 1]
    assert started == ["clean", "lossy", "lossy"]
    again.run(torture.Part("clean", "kills", ("--count", "2")))
    monkeypatch.setattr(torture, "hash_project", lambda: "other code")
    torture.Torture(tmp_path).run(parts[0])
    assert started[3:] == ["clean", "clean"]


def test_kills_are_spread_over_all_stages_however_long_they_take() -> None:
    stages = [Stage("short", (0.0,)), Stage("long", (0.1, 500.0, 0.0)), Stage("busy", (0.01,) * 300)]
    kills = plan_kills(stages, 61, random.Random(0))
    assert sorted(Counter(each.stages_over for each in kills).values()) == [20, 20, 21]
    for each in kills:
        pauses_s = stages[each.stages_over].pauses_s
        assert 1 <= each.number <= len(pauses_s) and 0.0 <= each.pause_s <= pauses_s[each.number - 1]
    assert any(each.pause_s > 100.0 for each in kills) and sum(not each.pause_s for each in kills) > 15
    assert len({each.number for each in kills if each.stages_over == 2}) > 15


def test_every_place_fails_and_a_loop_at_its_ends_and_once_between() -> None:
    places = ["a", *["loop"] * 100, "b", "c"]
    chosen = choose_calls(places, 1.0, random.Random(0))
    assert {1, 2, 101, 102, 103} <= set(chosen) and len(chosen) == 6
    assert len(choose_calls(places, 0.01, random.Random(0))) == 1
