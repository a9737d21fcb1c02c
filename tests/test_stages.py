"""A stage runs when it must, and only then."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from colorpress.files import write_text
from colorpress.stages import RUN_RECORD, run_stage, stage_key


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
    keys = [stage_key(inputs=[path], settings={"a": 1}, code=["training"])]
    keys.append(stage_key(inputs=[path], settings={"a": 2}, code=["training"]))
    keys.append(stage_key(inputs=[path], settings={"a": 1}, code=["compress"]))
    write_text(path, "two")
    keys.append(stage_key(inputs=[path], settings={"a": 1}, code=["training"]))
    assert len(set(keys)) == 4
