"""What a network cannot be made into is a row that says why; everything else is done."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from benchmarks.left_out import LeftOut, going_on
from colorpress import pipeline
from colorpress.core.config import Settings
from colorpress.core.errors import ConfigError, GateError, InputError, MachineError
from colorpress.pipeline import run_pipeline
from compress.students.student_plan import StudentPlan, write_student_plan
from tests.conftest import make_photo
from tests.test_pipeline import OPTIONS
from training.run_folder import Run
from training.unet import UNetPlan

# Python looks at the values, so nothing can trace it, and what answers is no convolution.
SOURCE = """
import torch
from torch import nn


class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 2)

    def forward(self, x):
        seen = torch.relu(self.first(x))
        if float(seen.mean()) > 5:
            seen = 2 * seen
        return torch.tanh(self.head(seen.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
"""
NO_NETWORK = InputError("network", "net.py:Net", "cannot be traced", "give another")


@pytest.mark.parametrize(
    "name, covered, others",
    [
        ("pruned.pt", ["pruned.pt", "pruned", "pruned-int8"], ["best", "auto-int8"]),
        ("pruned", ["pruned", "pruned-int8", "pruned-w8"], ["pruned.pt", "best.pt"]),
        ("pruned-int8", ["pruned-int8"], ["pruned", "pruned.pt", "pruned-w8", "best-int8"]),
    ],
)
def test_what_is_left_out_covers_what_would_have_been_made_from_it(
    name: str, covered: list[str], others: list[str]
) -> None:
    left_out = LeftOut(name, NO_NETWORK)
    assert all(left_out.covers(each) for each in covered)
    assert not any(left_out.covers(each) for each in others)


def test_a_machine_that_fails_stops_everything_and_a_network_nothing() -> None:
    left_out: list[LeftOut] = []
    for error in (NO_NETWORK, GateError("export", None, "differs", "raise"), IndexError("odd")):
        with going_on(left_out, "pruned.pt"):
            raise error
    assert [each.is_of_the_network for each in left_out] == [True, True, False]
    assert left_out[0].why == "network 'net.py:Net': cannot be traced; give another"
    assert left_out[2].why.startswith("internal: IndexError at test_left_out.py:")
    for fatal in (MachineError("disk", None, "is full", "make room"), MemoryError()):
        with pytest.raises(type(fatal)), going_on(left_out, "pruned.pt"):
            raise fatal
    assert len(left_out) == 3


def bring_odd(tmp_path: Path) -> Run:
    """A run folder, the network and six photographs."""
    (tmp_path / "odd.py").write_text(SOURCE)
    for index in range(6):
        make_photo(index).save(tmp_path / f"{index}.png")
    namespace: dict[str, type[torch.nn.Module]] = {}
    exec(SOURCE, namespace)
    torch.save(namespace["Odd"]().state_dict(), tmp_path / "odd.pt")
    plan = write_student_plan(tmp_path / "plan.json", StudentPlan(UNetPlan.classic(4, 1, "nearest"), "small"))
    given = {"student_plan": plan, "rank_photos": 0, "search_effort": "none", "arch": f"{tmp_path}/odd.py:Odd"}
    settings = {**OPTIONS, **given, "data": tmp_path, "test_share": 0.4, "prune_ratio": 0.5}
    return Run(tmp_path.with_name(f"{tmp_path.name}-out"), Settings.from_options(settings))


@pytest.mark.usefixtures("timed_here")
def test_a_network_that_nothing_can_be_made_of_is_still_taught_from(tmp_path: Path) -> None:
    run = bring_odd(tmp_path)
    result = run_pipeline(run, checkpoint=tmp_path / "odd.pt")
    assert [each.name for each in result.left_out] == ["best", "pruned.pt"]
    result.raise_faults()  # none
    table = pd.read_csv(run.folder / "benchmark.csv").set_index("model")
    assert list(table[table["status"] == "not made"].index) == ["best", "pruned.pt"]
    why = "decides by the values of the picture, at odd.py"
    assert why in table.loc["best", "error"] and table.loc["auto-w8", "status"] == "ok"
    assert why in result.report_path.read_text()
    assert set(json.loads((run.folder / "run.json").read_text())["left_out"]) == {"best", "pruned.pt"}


@pytest.mark.usefixtures("timed_here")
def test_without_any_export_there_is_a_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NO_NETWORK

    monkeypatch.setattr(pipeline, "export", refuse)
    run = bring_odd(tmp_path)
    result = run_pipeline(run, checkpoint=tmp_path / "odd.pt")
    table = pd.read_csv(run.folder / "benchmark.csv").set_index("model")
    assert {"best.pt", "auto.pt"} <= set(table[table["status"] == "ok"].index) and table.loc["auto", "error"]
    assert result.report_path.is_file() and [each.name for each in result.left_out] == ["best", "pruned.pt", "auto"]


def test_an_option_that_cannot_be_met_ends_the_run_once_the_rest_is_done() -> None:
    from colorpress.pipeline import RunResult

    wrong = ConfigError("budget", None, "not even the smallest network meets it", "loosen it")
    result = RunResult(Path(), Path(), (), (LeftOut("best", NO_NETWORK), LeftOut("pruned.pt", wrong)))
    with pytest.raises(ConfigError, match="smallest"):
        result.raise_faults()
