"""`colorpress compress` for real on ten pictures: interrupted, gone on with, joined by a worker that is killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import optuna
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState, create_trial

from colorpress.cli import run_command
from colorpress.core.config import PruneConfig, Settings, parse_quantity, parse_size
from colorpress.core.errors import ConfigError, GateError, InputError, Interrupted
from compress.budgets import Limit
from compress.dependency_graph import layer_widths
from compress.distillation import Lesson
from compress.importance import Evidence
from compress.prune_plan import PrunePlan, read_plan
from compress.prune_stage import prune
from compress.pruning import plan_pruning
from compress.students import search_trial
from compress.students.search_estimate import describe_plan
from compress.students.search_space import PrunedPoint, StudentPoint
from compress.students.search_stages import (
    CANDIDATES,
    FULL,
    _queue_full,
    _read_trial,
    _Search,
    begin_job,
    count_candidates,
    read_worker_options,
    search,
)
from compress.students.search_study import NumberedSampler, join_study, open_storage
from compress.students.search_trial import SearchJob, refused_figures
from compress.students.student_plan import read_student_network
from compress.yardstick import make_yardstick, score_onnx
from export.controls import CONTROL_TITLES
from tests import foreign_networks
from tests.conftest import make_photo, make_score, time_here
from tests.test_foreign_run import CASES, write_weights
from training.checkpoint import load_checkpoint
from training.network import ColorNetwork
from training.original import adopt_checkpoint, train
from training.photo_split import PhotoSplit
from training.run_folder import Run, find_photos
from training.unet import UNetPlan, count_parameters, hash_weights

ROOT = Path(__file__).resolve().parent.parent
OPTIONS = {
    "base": 8, "depth": 2, "epochs": 2, "batch_size": 8, "imgsz": 16, "val_size": 24, "val_share": 0.2,
    "test_share": 0.2, "workers": 0, "threads": 1, "rank_size": 64, "calibration_photos": 2, "rounds": 1, "runs": 3,
    "min_seconds": 0.0, "warmup": 1, "distil_imgsz": 32, "distil_batch_size": 8, "bench_size": (32,),
    "search_trials": 3, "search_crops": 16, "search_full_crops": 32, "search_front": 2, "search_int8": False,
    "search_pruned": False, "worker_timeout": 2,
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def _timed_here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        time_here(patch)
        yield


def read_front(folder: Path) -> pd.DataFrame:
    """The students of a front, below which the three controls stand."""
    table = pd.read_csv(folder / "front.csv")
    assert [name for name in table["name"] if name.startswith("control: ")] == list(CONTROL_TITLES.values())
    return table[table["stage"] != "control"]


def open_run(folder: Path, photos: Path, **options: object) -> Run:
    return Run(folder, Settings.from_options({**OPTIONS, "data": photos, **options}))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, PhotoSplit]:
    folder = tmp_path_factory.mktemp("search")
    (folder / "photos").mkdir()
    for index in range(10):
        make_photo(index).save(folder / "photos" / f"{index}.png")
    run = open_run(folder / "out", folder / "photos")
    photos = find_photos(run)
    train(run, photos)
    run.write_settings()
    return run, photos


def changed(run: Run, **options: object) -> Run:
    data = run.settings.data.data
    assert data is not None
    return open_run(run.folder, data, **options)


def find_journal(folder: Path) -> Path:
    """The study of a run folder that was worked on last."""
    return max((folder / "study").glob("*/journal.log"), key=lambda path: path.stat().st_mtime)


def trials(run: Run, study: str) -> list[TrialState]:
    storage = open_storage(str(find_journal(run.folder)), timeout_s=2, create=False)
    return [trial.state for trial in join_study(storage, study, NumberedSampler(0)).trials]


@pytest.fixture(scope="module")
def finished(trained: tuple[Run, PhotoSplit]) -> tuple[Run, PhotoSplit, pd.DataFrame]:
    """A search that was interrupted in its second candidate, the front it had then, and then gone on with."""
    run, photos = trained
    learn, calls = search_trial.learn, []

    def stopping(job: SearchJob, point: object) -> object:
        calls.append(point)
        if len(calls) == 2:
            raise Interrupted(signal.SIGINT)
        return learn(job, point)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_trial, "learn", stopping)
        with pytest.raises(Interrupted):
            search(run, photos)
    early = read_front(run.folder)
    search(run, photos)
    return run, photos, early


def test_an_interrupted_search_has_the_front_of_what_is_finished(
    finished: tuple[Run, PhotoSplit, pd.DataFrame],
) -> None:
    run, _, early = finished
    assert list(early["stage"]) == ["short distillation"] and list(early["on_front"]) == [True]
    states = trials(run, CANDIDATES)
    assert states.count(TrialState.COMPLETE) == 3 and states.count(TrialState.FAIL) == 1
    assert trials(run, FULL) == [TrialState.COMPLETE] * 2


def test_a_search_ends_with_files_that_can_be_deployed(finished: tuple[Run, PhotoSplit, pd.DataFrame]) -> None:
    run, _, _ = finished
    table = read_front(run.folder)
    assert set(table["stage"]) == {"exported"} and sorted(table["precision"]) == ["fp32", "fp32", "w8", "w8"]
    for each in table.to_dict("records"):
        file = run.folder / str(each["file"])
        assert file.stat().st_size == each["size_bytes"] and each["latency_ms"] > 0
        if each["precision"] == "fp32":
            made = load_checkpoint(file.with_name("model.pt"))
            assert read_student_network(file.with_name("plan.json")) == made.architecture
            assert made.extra["teacher_sha256"] == load_checkpoint(run.best_path).sha256
    content = (run.folder / "front.json").read_text()
    written = json.loads(content)
    assert written["recommended"] in set(table["file"])
    assert "NaN" not in content and set(table["measure"]) == {written["measure"]} == {"fidelity"}
    assert written["strength"]["photos"] == 1 and written["strength"]["below_grey_pct"] > 0


def test_files_are_scored_by_the_photographs_that_chose_nothing_too(
    finished: tuple[Run, PhotoSplit, pd.DataFrame],
) -> None:
    run, photos, early = finished
    assert photos.choosing and photos.confirming
    table = read_front(run.folder)
    assert table["confirmed_kept"].notna().all() and early["confirmed_kept"].isna().all()
    best = load_checkpoint(run.best_path)
    yardsticks = [
        make_yardstick(run, best, photos, part, short_side=run.settings.score.eval_size)
        for part in (photos.choosing, photos.confirming)
    ]
    for each in table.to_dict("records"):
        chose, others = (score_onnx(yardstick, run.folder / str(each["file"]), threads=1) for yardstick in yardsticks)
        assert each["fidelity"] == pytest.approx(chose.fidelity, rel=1e-5)
        assert each["confirmed_kept"] == pytest.approx(others.fidelity, rel=1e-5)
        assert each["confirmed_l1_delta_pct"] == pytest.approx(others.l1_delta_pct, rel=1e-4)
        # Students of a few crops are grey, whatever they are asked about.
        assert each["l1_delta_pct"] != pytest.approx(others.l1_delta_pct, rel=1e-4)


def test_another_goal_is_another_recommendation_and_trains_nothing(
    finished: tuple[Run, PhotoSplit, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photos, _ = finished
    monkeypatch.setattr(search_trial, "learn", lambda job, point: pytest.fail("something was trained"))
    easy = search(changed(run, min_fidelity=-9.0), photos).recommendation
    assert easy.row is not None and easy.row.size_bytes == min(row.size_bytes for row in search(run, photos).rows)
    hard = search(changed(run, min_content_colour=9.0), photos).recommendation
    assert hard.row is None and "Nothing found meets --min-content-colour 9" in hard.sentence


def test_weights_that_another_machine_has_are_learned_again(
    finished: tuple[Run, PhotoSplit, pd.DataFrame], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photos, _ = finished
    made = sorted(run.folder.glob("front/*/model.pt"))[0]
    # The files themselves differ: they say how long each epoch took.
    before = hash_weights(load_checkpoint(made).build_network())
    made.unlink()
    for path in (run.folder / "study" / "weights").iterdir():
        path.unlink()
    search(run, photos)
    assert hash_weights(load_checkpoint(made).build_network()) == before


@pytest.mark.parametrize("options", [{"search_crops": 24}, {"target_size": "30KB"}, {"distil_learning_rate": 1e-3}])
def test_a_study_of_other_settings_is_not_gone_on_with(
    finished: tuple[Run, PhotoSplit, pd.DataFrame], options: dict[str, object]
) -> None:
    run, photos, _ = finished
    with pytest.raises(ConfigError, match="was begun with something else"):
        search(changed(run, **options), photos, study=str(find_journal(run.folder)))


def test_workers_learn_from_the_study_how_long_to_wait_for_each_other(
    finished: tuple[Run, PhotoSplit, pd.DataFrame],
) -> None:
    run, photos, _ = finished
    search(changed(run, worker_timeout=77), photos)
    found = read_worker_options(str(find_journal(run.folder)), 60)
    assert found["worker_timeout"] == 77 and found["search_trials"] == run.settings.search.search_trials
    assert not found.keys() & {"data", "unlabelled", "student_plan"}


def test_other_photographs_are_refused(finished: tuple[Run, PhotoSplit, pd.DataFrame]) -> None:
    run, photos, _ = finished
    with pytest.raises(ConfigError, match="photographs photos"):
        search(run, replace(photos, train=photos.train[1:]), study=str(find_journal(run.folder)))


def test_photographs_that_choose_nothing_may_be_others(finished: tuple[Run, PhotoSplit, pd.DataFrame]) -> None:
    """They are no part of what a study depends on, but of what its files are scored by."""
    run, photos, _ = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_trial, "learn", lambda job, point: pytest.fail("something was trained"))
        before = {row.file: row.scores.confirmed for row in search(run, photos).rows}
        others = replace(photos, confirming=photos.test[:1], test=photos.confirming)
        found = search(run, others).rows
        assert all(row.scores.confirmed != before.get(row.file) for row in found)  # times may bring others in
        swapped = replace(photos, choosing=photos.confirming, confirming=photos.choosing)
        with pytest.raises(ConfigError, match="photographs photos"):
            search(run, swapped, study=str(find_journal(run.folder)))
        search(run, photos)


def test_other_options_begin_a_study_beside_the_one_that_is_there(
    finished: tuple[Run, PhotoSplit, pd.DataFrame], tmp_path: Path
) -> None:
    run, photos, _ = finished
    shutil.copytree(run.folder, tmp_path / "out")
    copy = replace(run, folder=tmp_path / "out")
    before = find_journal(copy.folder)
    search(changed(copy, search_crops=8, search_trials=1, search_front=0), photos)
    assert find_journal(copy.folder) != before and before.is_file()
    assert len(read_front(copy.folder)) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_trial, "learn", lambda job, point: pytest.fail("something was trained"))
        search(copy, photos)
    assert len(read_front(copy.folder)) == 4


def test_best_pt_pruned_learns_beside_students_foreign_as_it_is(photo_folder: Path, tmp_path: Path) -> None:
    arch = {"arch": f"{foreign_networks.__file__}:HookedUnet", "ab_scale": 110.0}
    run = open_run(tmp_path / "out", photo_folder, **arch, search_front=3, search_trials=1, search_pruned=True)
    photos = find_photos(run)
    adopt_checkpoint(run, write_weights(CASES[0], tmp_path / "weights.pt"), photos)
    search(run, photos)
    table = read_front(run.folder)
    pruned = table[table["start"] == "pruned"]
    assert set(pruned["precision"]) == {"fp32", "w8"} and set(pruned["kept_channels"]) == {0.25}
    assert set(table["start"]) == {"scratch", "pruned"}
    folder = (run.folder / str(pruned["file"].iloc[0])).parent
    plan, made, best = read_plan(folder / "plan.json"), run.load(folder / "model.pt"), run.load(run.best_path)
    planned = plan_pruning(best.build_network(), PruneConfig(prune_ratio=0.75))
    assert plan.result == planned.result == layer_widths(made.build_network()) != plan.source
    assert {group.root: group.removed for group in plan.groups} == {each.root: each.removed for each in planned.groups}
    assert made.extra["teacher_sha256"] == best.sha256 and made.val_l1 is not None
    assert set(pruned["params"]) == {count_parameters(made.build_network())}
    # The plan is one that `prune` applies, to learn for longer.
    again = prune(changed(run, **arch, prune_plan=folder / "plan.json", finetune_crops=16), run.best_path, photos)
    assert set(pruned["params"]) == {again.result["params_after"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_trial, "learn", lambda job, point: pytest.fail("something was trained"))
        search(run, photos)
    assert read_front(run.folder)["file"].tolist() == table["file"].tolist()


def test_where_a_pruned_network_has_no_file_the_next_one_is_trained(
    trained: tuple[Run, PhotoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = trained
    copy = replace(run, folder=Path(shutil.copytree(run.folder, tmp_path / "out")))
    measure, narrow = SearchJob.measure, list[int]()

    def fail_once(job: SearchJob, network: UNetPlan | ColorNetwork) -> tuple[int, float]:
        if isinstance(network, ColorNetwork) and not narrow:
            narrow.append(count_parameters(network))
            raise InputError("network", None, "cannot be traced", "none")
        return measure(job, network)

    monkeypatch.setattr(SearchJob, "measure", fail_once)
    options = {"search_front": 3, "search_pruned": True, "search_trials": 1, "search_full_crops": 16}
    search(changed(copy, **options), photos)
    table = read_front(copy.folder)
    pruned = table[table["start"] == "pruned"]
    assert set(pruned["kept_channels"]) == {0.5} and narrow[0] < pruned["params"].iloc[0]
    assert set(table["start"]) == {"scratch", "pruned"}
    assert (
        "best.pt with 25 % of its channels, answering at 1/4, is left out: cannot be traced" in capsys.readouterr().err
    )


def test_what_pruned_networks_leave_goes_to_the_next_and_then_to_students() -> None:
    network = {"size_bytes": 1000, "latency_ms": 1.0, "params": 1, "macs": 1, "score": make_score(0.5, 0.1).to_dict()}
    candidates, full = (optuna.create_study(directions=["minimize"] * 3) for _ in range(2))
    for number in range(4):
        point = StudentPoint(4, 4, 8, 8, (1.0,), 1.0, 1, 10)
        known = {**network, "point": point.to_dict(), "network": str(number), "size_bytes": 1000 << number}
        values = [float(1000 << number), 1.0, 0.5]
        candidates.add_trial(create_trial(state=TrialState.COMPLETE, values=values, user_attrs=known))
    shares = [(PrunedPoint(share, 20), {"params": 1, "macs": 1}) for share in (0.25, 0.5)]
    effort = replace(Settings().search.effort(), front=4, full_crops=20)
    job = SimpleNamespace(effort=effort, list_pruned=lambda: iter(shares))
    led = cast(_Search, SimpleNamespace(job=job, candidates=candidates, full=full))

    def queue() -> list[str]:
        assert _queue_full(led)
        waiting = full.get_trials(states=(TrialState.WAITING,))
        return [f"{trial.user_attrs['point'].get('kept_channels', 'student')}" for trial in waiting]

    assert queue() == ["0.25", "student", "student", "student"] == queue()
    full.tell(full.ask().number, state=TrialState.PRUNED)  # the quarter, which is ahead
    assert queue() == ["student", "student", "student", "0.5"]
    for _ in range(3):
        full.tell(full.ask().number, [1.0, 1.0, 1.0])
    full.tell(full.ask().number, state=TrialState.FAIL)
    full.ask()  # of two workers that ask for the last one, this one gets nothing
    assert queue() == ["student"]
    full.tell(full.ask().number, [1.0, 1.0, 1.0])
    assert not [trial for trial in full.get_trials() if trial.state == TrialState.WAITING]


def test_a_pruned_network_over_a_budget_is_not_trained(trained: tuple[Run, PhotoSplit]) -> None:
    run, photos = trained
    job, _ = begin_job(changed(run, search_front=3, search_pruned=True, target_size="9KB"), photos, None)
    (point, counts), *_ = job.list_pruned()
    assert counts["params"] < 9_000 and job.space.fitting(job.space.narrow_points(), job.limits)
    study = optuna.create_study(directions=["minimize"] * 3)
    study.enqueue_trial({}, user_attrs={**counts, "point": point.to_dict()})
    with pytest.raises(optuna.TrialPruned):
        search_trial.try_full(job, study.ask(), 1.0)
    assert refused_figures(study.trials[0]) == ["size_bytes"]
    # Two workers may ask for the last one, and Optuna gives the second one nothing.
    with pytest.raises(optuna.TrialPruned):
        search_trial.try_full(job, study.ask(), 1.0)


def test_pruned_networks_keep_budgets_that_were_given_and_no_others(trained: tuple[Run, PhotoSplit]) -> None:
    run, photos = trained

    def kept(**options: object) -> list[float]:
        job, _ = begin_job(changed(run, **{"search_front": 9, "search_pruned": True, **options}), photos, None)
        return [point.kept_channels for point, _ in job.list_pruned()]

    # More than half of the parameters and a tenth of the multiply-accumulates, which students may have at most.
    # And each network once: the others round to a quarter or to a half.
    assert kept() == [0.25, 0.5]
    assert kept(keep_params=0.15) == kept(target_size="5KB") == [0.25]  # a byte for each of 3,066 parameters
    efforts = {"demo": 0, "default": 3, "long": 4, "longest": 5}
    assert efforts == {
        name: Settings.from_options({"search_effort": name}).search.effort().pruned_places for name in efforts
    }


def test_a_share_that_cannot_be_pruned_is_left_out(
    trained: tuple[Run, PhotoSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photos = trained
    able = changed(run, search_pruned=True, search_front=6)
    plan = search_trial.plan_pruning

    def choosy(network: ColorNetwork, config: PruneConfig, evidence: Evidence) -> PrunePlan:
        if config.prune_ratio == 0.875:
            raise InputError("network", None, "breaks", "prune less")
        return plan(network, config, evidence)

    monkeypatch.setattr(search_trial, "plan_pruning", choosy)
    job, _ = begin_job(able, photos, None)
    assert [point.kept_channels for point, _ in job.list_pruned()] == [0.25, 0.5]
    with pytest.raises(GateError, match="cannot be pruned: breaks"):
        job.build(PrunedPoint(0.125, 10))
    lines, planned = describe_plan(able, photos, study=None)
    assert planned["pruned"] == [0.25, 0.5] and planned["seconds"] > 0
    assert any(line.endswith("2 of them best.pt with 25 %, 50 % of its channels") for line in lines)


def test_a_study_whose_networks_are_no_text_is_damaged() -> None:
    known = {"point": PrunedPoint(0.25, 10).to_dict(), "size_bytes": 1000, "latency_ms": 1.0, "params": 1, "macs": 1}
    known |= {"score": make_score(0.5, 0.1).to_dict(), "weights": "0" * 64, "network": "0" * 64}
    trial = create_trial(state=TrialState.COMPLETE, values=[1.0, 1.0, 1.0], user_attrs=known)
    _read_trial(trial)
    for other in ([], None, 3):
        trial.user_attrs["network"] = other
        with pytest.raises(TypeError):
            _read_trial(trial)


def test_where_nothing_can_be_pruned_students_alone_are_tried(photo_folder: Path, tmp_path: Path) -> None:
    code = "from torch import nn\n\n\ndef one_layer():\n    return nn.Conv2d(1, 2, 3, padding=1)\n"
    (tmp_path / "one.py").write_text(code)
    torch.save(torch.nn.Conv2d(1, 2, 3, padding=1).state_dict(), tmp_path / "weights.pt")
    arch = {"arch": f"{tmp_path / 'one.py'}:one_layer", "ab_scale": 110.0}
    run = open_run(tmp_path / "out", photo_folder, **arch, search_pruned=True, search_front=6)
    photos = find_photos(run)
    adopt_checkpoint(run, tmp_path / "weights.pt", photos)
    job, _ = begin_job(run, photos, None)
    assert job.effort.pruned_places == 2 and not [*job.list_pruned()]


def test_asking_best_pt_is_no_cost_of_the_candidate_that_comes_first(
    trained: tuple[Run, PhotoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photos = trained
    copy = replace(run, folder=Path(shutil.copytree(run.folder, tmp_path / "out")))
    clock, asked = [0.0], list[Path]()
    ask, distil = search_trial.ask_about_crops, SearchJob.distil

    def ask_slowly(lesson: Lesson) -> None:
        before = list(lesson.answer_folder.glob("*/1-0.npy"))
        ask(lesson)
        asked.extend(set(lesson.answer_folder.glob("*/1-0.npy")) - {*before})
        clock[0] += 100.0

    def distil_slowly(job: SearchJob, *arguments: object, **options: object) -> object:
        clock[0] += 7.0
        return distil(job, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(search_trial, "ask_about_crops", ask_slowly)
    monkeypatch.setattr(search_trial, "_processor_s", lambda: clock[0])
    monkeypatch.setattr(SearchJob, "distil", distil_slowly)
    search(changed(copy, seed=3, search_trials=2, search_front=0), photos)
    storage = open_storage(str(find_journal(copy.folder)), timeout_s=2, create=False)
    found = join_study(storage, CANDIDATES, NumberedSampler(0)).get_trials(states=(TrialState.COMPLETE,))
    assert [trial.user_attrs["processor_s"] for trial in found] == [7.0] * len(found) and len(found) == 2
    assert len(asked) == 1  # for both


def test_a_dry_run_says_what_would_be_done_and_trains_nothing(
    trained: tuple[Run, PhotoSplit], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photos = trained
    monkeypatch.setattr(search_trial, "learn", lambda job, point: pytest.fail("something was trained"))
    before = {path for path in run.folder.rglob("*") if path.is_file()}
    lines, planned = describe_plan(changed(run, target_size="20KB"), photos, study=None)
    assert planned["candidates"] == 3 and planned["seconds"] > 0
    assert planned["asked_for"] == ["--target-size 20KB"] and planned["limits"]["size_bytes"] == 20_000
    text = "\n".join(lines)
    assert "20.0 kB file" in text and "smallest network" in text and "time: about" in text
    new = {path.relative_to(run.folder).parts[0] for path in run.folder.rglob("*") if path.is_file()} - {
        path.relative_to(run.folder).parts[0] for path in before
    }
    # What best.pt and the controls answer is kept.
    assert new <= {".stages", "controls"}


def test_candidates_are_over_budgets_that_were_given_alone() -> None:
    ended = ("predicted macs", "latency_ms", "predicted params, latency_ms", None)
    trials = [
        create_trial(state=TrialState.PRUNED, user_attrs={"refused": each}) if each
        else create_trial(state=TrialState.COMPLETE, values=[1.0])
        for each in ended
    ]  # fmt: skip
    trials.append(create_trial(state=TrialState.COMPLETE, values=[1.0], user_attrs={"same_as": 3}))
    limits = (Limit("keep_params", 5), Limit("keep_macs", 5), Limit("target_latency_ms", 2.0, "2"))
    counts = count_candidates(trials, limits)
    assert {name: count for name, count in counts.items() if count} == {
        "finished": 1, "over a budget": 2, "larger than is tried without a budget": 1, "the same as others": 1,
    }  # fmt: skip
    assert count_candidates(trials, limits[:2])["over a budget"] == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--max-size", "200XB"], "units are B, KB, MB"),
        (["--max-size=-5KB"], "got '-5KB'"),
        (["--max-size", "1KB"], "allows 1,000 bytes, and the smallest network has"),
        (["--max-latency", "2 fortnights"], "give a number, or one in ms, us, s"),
        (["--max-latency=-2ms"], "from 0.001 to 1000000.0"),
        (["--max-latency", "2us"], "and the smallest network takes"),
        (["--max-l1-increase", "1kg"], "one in %"),
        (["--max-l1-increase", "5000%"], "from -100.0 to 1000.0"),
        (["--keep-params", "0.001"], "of best.pt's"),
        (["--keep-macs", "2"], "from 1e-06 to 1.0"),
        (["--search-trials", "0"], "from 1 to 1000000"),
        (["--study", "none://x"], "is no database that is known"),
    ],
)
def test_budgets_that_cannot_be_are_refused_with_what_can(
    arguments: list[str], expected: str, trained: tuple[Run, PhotoSplit], capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run_command(["compress", "-q", "-o", str(trained[0].folder), *arguments]) == 2
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)
    shown = capsys.readouterr().err
    assert expected in shown and shown.count("error: ") == shown.count("hint: ") == 1


def test_student_takes_the_spoken_names_of_budgets_too(
    trained: tuple[Run, PhotoSplit], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--max-size", "1KB", "--max-latency", "2ms", "--max-l1-increase", "1%"]
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert run_command(["student", "-q", "-o", str(trained[0].folder), *options]) == 2
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)
    assert "the smallest student misses it" in capsys.readouterr().err


def test_quantities_carry_units() -> None:
    assert parse_quantity("2ms", "x", {"ms": 1.0, "s": 1000.0}) == 2.0
    assert parse_quantity(" 1.5 S ", "x", {"ms": 1.0, "s": 1000.0}) == 1500.0
    assert parse_quantity("-3e-1", "x", {"%": 1.0}) == -0.3
    assert parse_size("200KB") == 200_000
    for text in ("", "ms", "2 2", "1,5ms", "0x3"):
        with pytest.raises(ConfigError):
            parse_quantity(text, "x", {"ms": 1.0})


def start(command: str, folder: Path, *arguments: str | Path, processes: int = 1) -> subprocess.Popen[str]:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    line = [sys.executable, *(torchrun if processes > 1 else []), "-m", "colorpress", command, "-o", str(folder)]
    line += map(str, arguments)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


@pytest.mark.slow
def test_processes_of_torchrun_train_a_candidate_together(trained: tuple[Run, PhotoSplit], tmp_path: Path) -> None:
    run, _ = trained
    values, data = {}, run.settings.data.data
    assert data is not None
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        open_run(folder, data, search_trials=2, search_front=1, precision="fp32", device="cpu").write_settings()
        process = start("compress", folder, run.best_path, processes=processes)
        output, _ = process.communicate(timeout=280)
        assert process.returncode == 0, output
        assert output.count("front.csv") == 1
        study = join_study(open_storage(str(find_journal(folder)), timeout_s=2, create=False), FULL, NumberedSampler(0))
        values[processes] = [trial.user_attrs["score"]["l1"] for trial in study.trials]
        assert len(read_front(folder)) == 2
    # Sums over processes are added up in another order than in one.
    assert values[2] == pytest.approx(values[1], rel=1e-4)


@pytest.mark.slow
def test_a_worker_joins_is_killed_and_nothing_is_lost(trained: tuple[Run, PhotoSplit], tmp_path: Path) -> None:
    run, _ = trained
    data, journal = run.settings.data.data, tmp_path / "shared" / "journal.log"
    main, joined = tmp_path / "main", tmp_path / "joined"
    for folder in (main, joined):
        replace(run, folder=folder).write_settings()
    # Long enough to be killed in, and never finished by the worker that is.
    leader = start(
        "compress", main, run.best_path, "--study", journal, "--search-trials", "4", "--search-crops", "4000"
    )
    processes = [leader]
    try:
        wait_for(lambda: journal.is_file() and '"wanted"' in journal.read_text(), leader)
        doomed = start("worker", joined, "-c", run.best_path, "--study", journal, "--data", str(data), "--workers", "0")
        processes.append(doomed)
        storage = open_storage(str(journal), timeout_s=2, create=False)
        study = join_study(storage, CANDIDATES, NumberedSampler(0))

        def runs_a_trial() -> bool:
            running = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.RUNNING]
            # One whose cost is known was within its limits: it learns.
            learning = [trial for trial in running if "latency_ms" in trial.user_attrs]
            return any(str(joined) in trial.user_attrs["worker"] for trial in learning)

        wait_for(runs_a_trial, doomed)
        doomed.kill()
        doomed.wait()
        output, _ = leader.communicate(timeout=280)
        assert leader.returncode == 0, output
    finally:
        for process in processes:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
    found = study.get_trials()
    lost = [trial for trial in found if trial.state == TrialState.FAIL]
    again = [trial for trial in found if trial.system_attrs.get("failed_trial") is not None]
    assert len(lost) == 1 and str(joined) in lost[0].user_attrs["worker"]
    assert [trial.state for trial in again] == [TrialState.COMPLETE] and again[0].params == lost[0].params
    assert [trial.state for trial in found].count(TrialState.COMPLETE) == 4
    assert (main / "front.csv").is_file()
    other = tmp_path / "other"
    replace(run, folder=other).write_settings()
    (tmp_path / "few").mkdir()
    for index in range(9):
        make_photo(index + 50).save(tmp_path / "few" / f"{index}.png")
    refused = start("worker", other, "-c", run.best_path, "--study", journal, "--data", str(tmp_path / "few"))
    output, _ = refused.communicate(timeout=120)
    assert refused.returncode == 2 and "photographs photos" in output


def wait_for(happened: object, process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    ends = time.monotonic() + seconds
    while not happened():  # type: ignore[operator]
        assert process.poll() is None, process.stdout and process.stdout.read()
        assert time.monotonic() < ends
        time.sleep(0.2)
