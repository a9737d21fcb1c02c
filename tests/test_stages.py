"""A stage runs when it must, and only then."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.page import report
from colorpress.core import source_code
from colorpress.core.files import write_text
from colorpress.core.source_code import ROOT
from colorpress.core.stages import RUN_RECORD, make_key, run_stage
from colorpress.deploy_stages import verify
from compress.ranking import rank_layers
from compress.students.student_stages import make_student
from training.fitting import fit_network
from training.original import train


class Counter:
    def __init__(self, folder: Path) -> None:
        self.folder, self.calls = folder, 0

    def __call__(self) -> tuple[Sequence[Path], Mapping[str, Any]]:
        self.calls += 1
        return [write_text(self.folder / "out.txt", "answer")], {"value": 42}


def test_a_finished_stage_is_skipped_with_its_result(tmp_path: Path) -> None:
    action = Counter(tmp_path)
    first = run_stage(tmp_path, "stage", "key", action)
    second = run_stage(tmp_path, "stage", "key", action)
    assert action.calls == 1
    assert (first.skipped, second.skipped) == (False, True)
    assert second.result == {"value": 42}
    assert list(second.outputs) == ["out.txt"]


@pytest.mark.parametrize("change", ["key", "file missing", "file edited", "record damaged", "force"])
def test_a_stage_runs_again_when_something_changed(tmp_path: Path, change: str) -> None:
    action = Counter(tmp_path)
    run_stage(tmp_path, "stage", "key", action)
    if change == "file missing":
        (tmp_path / "out.txt").unlink()
    if change == "file edited":
        (tmp_path / "out.txt").write_text("other")
    if change == "record damaged":
        (tmp_path / ".stages" / "stage.json").write_text("{")
    run_stage(tmp_path, "stage", "other" if change == "key" else "key", action, force=change == "force")
    assert action.calls == 2


def test_a_stage_that_runs_takes_the_sign_of_completeness_away(tmp_path: Path) -> None:
    action = Counter(tmp_path)
    run_stage(tmp_path, "stage", "key", action)
    (tmp_path / RUN_RECORD).write_text("{}")
    run_stage(tmp_path, "stage", "key", action)
    assert (tmp_path / RUN_RECORD).exists()
    run_stage(tmp_path, "stage", "other", action)
    assert not (tmp_path / RUN_RECORD).exists()


def test_a_stage_that_fails_leaves_no_record(tmp_path: Path) -> None:
    def fail() -> tuple[Sequence[Path], Mapping[str, Any]]:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        run_stage(tmp_path, "stage", "key", fail)
    assert not list(tmp_path.rglob("*.json"))


def test_the_key_depends_on_inputs_settings_and_code(tmp_path: Path) -> None:
    path = write_text(tmp_path / "in.txt", "one")
    keys = [make_key(fit_network, inputs=[path], settings={"a": 1})]
    keys.append(make_key(fit_network, inputs=[path], settings={"a": 2}))
    keys.append(make_key(rank_layers, inputs=[path], settings={"a": 1}))
    write_text(path, "two")
    keys.append(make_key(fit_network, inputs=[path], settings={"a": 1}))
    assert len(set(keys)) == 4


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project's code, which keys are then made of."""
    root = tmp_path / "tree"
    for package in ("colorpress", "training", "export", "compress", "benchmarks"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(source_code, "ROOT", root)
    return root


def append_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


@pytest.mark.parametrize(
    ("changed", "again", "not_again"),
    [
        # What times candidates is a process of its own.
        ("export/latency_worker.py", {"student"}, {"train"}),
        ("benchmarks/report/report.html.j2", {"report"}, {"train", "student", "verify"}),
        # Included by the template that the page names.
        ("benchmarks/report/report_pictures.html.j2", {"report"}, {"train", "student", "verify"}),
        ("benchmarks/report/report.css", {"report"}, {"train", "student", "verify"}),
        ("benchmarks/report/report.js", {"report"}, {"train", "student", "verify"}),
        ("benchmarks/report/page.py", {"report"}, {"train", "student", "verify"}),
        ("training/cie.py", {"train", "student", "verify"}, set()),
        ("export/bundle/templates/colorize.py", set(), {"train", "student", "verify", "report"}),
    ],
)
def test_a_stage_runs_again_when_code_that_it_reaches_changes(
    tree: Path, tmp_path: Path, changed: str, again: set[str], not_again: set[str]
) -> None:
    stages = {"train": train, "student": make_student, "report": report, "verify": verify}
    actions = dict.fromkeys(stages, 0)

    def run_all() -> None:
        for name, stage in stages.items():

            def action(name: str = name) -> tuple[Sequence[Path], Mapping[str, Any]]:
                actions[name] += 1
                return [], {}

            run_stage(tmp_path, name, make_key(stage, inputs=[], settings={}), action)

    run_all()
    append_byte(tree / changed)
    run_all()
    found = {name for name, times in actions.items() if times == 2}
    assert again <= found and not found & not_again
