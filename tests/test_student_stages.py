"""Students end to end on ten small pictures: chosen, trained, several side by side; and int8 judged by best.pt."""

from __future__ import annotations

import json
import shutil
from dataclasses import fields, replace
from pathlib import Path

import pytest

from benchmarks.variants import describe_variant, list_variants
from colorpress.core.config import Settings
from colorpress.core.errors import ConfigError
from compress import yardstick
from compress.budgets import goals_or_whole
from compress.distillation import DistillResult, Lesson
from compress.export_stages import export, pack
from compress.int8.int8_choice import has_vnni
from compress.int8.int8_stage import quantize
from compress.measures import Score, Strength
from compress.students import student_job
from compress.students.student_job import Oracle, StudentJob, with_unlabelled
from compress.students.student_plan import (
    StrideScore,
    StudentPlan,
    list_students,
    read_student_network,
    write_student_plan,
)
from compress.students.student_stages import (
    choose_ladder,
    flat_ladder,
    growing_ladder,
    list_candidates,
    make_student,
)
from tests.conftest import make_photo, make_vivid
from training.checkpoint import load_checkpoint
from training.original import train
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run, find_photos
from training.unet import UNetPlan, count_parameters

OPTIONS = {
    "base": 8, "depth": 2, "epochs": 2, "batch_size": 8, "imgsz": 16, "val_size": 24, "val_share": 0.2,
    "test_share": 0.2, "workers": 0, "threads": 1, "rank_size": 64, "calibration_photos": 2, "rounds": 1, "runs": 3,
    "min_seconds": 0.0, "warmup": 1, "student_crops": 32, "student_trial_crops": 16, "distil_imgsz": 32,
    "distil_batch_size": 8, "bench_size": (32,),
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, PhotoSplit]:
    folder = tmp_path_factory.mktemp("students")
    (folder / "photos").mkdir()
    for index in range(10):
        make_photo(index).save(folder / "photos" / f"{index}.png")
    run = Run(folder / "out", Settings.from_options({**OPTIONS, "data": folder / "photos"}))
    photos = find_photos(run)
    train(run, photos)
    make_student(run, photos)
    return run, photos


def changed(run: Run, **options: object) -> Run:
    return replace(run, settings=Settings.from_options({**OPTIONS, "data": run.settings.data.data, **options}))


def test_a_student_is_chosen_by_measurement_and_says_how(trained: tuple[Run, PhotoSplit]) -> None:
    run, _ = trained
    plan = json.loads((run.folder / "auto" / "plan.json").read_text())
    assert [each["stride"] for each in plan["strides"]] == [1, 2, 4, 8, 16, 32]
    tried = [each for each in plan["candidates"] if each["l1_delta_pct"] is not None]
    assert tried and all("enough" in each["verdict"] for each in tried)
    made, best = load_checkpoint(run.folder / "auto" / "model.pt"), load_checkpoint(run.best_path)
    # One photograph that chooses says nothing of what best.pt sees, so its own colours count, and teach.
    assert plan["control_without_teacher"] == {} and made.extra["teacher_weight"] == 1.0
    assert {each["measure"] for each in (*plan["strides"], *tried)} == {"fidelity"}
    assert plan["settings"] == {"min_fidelity": 0.8}
    assert made.architecture.to_dict() == plan["network"]
    assert made.extra["teacher_sha256"] == best.sha256
    assert count_parameters(made.build_network()) in [each["params"] for each in tried]
    assert list_students(run.folder) == ("auto",)


def test_another_goal_is_a_student_beside_it_and_trials_are_made_once(trained: tuple[Run, PhotoSplit]) -> None:
    run, photos = trained
    records = make_student(changed(run, min_fidelity=-9.0), photos, "smallest")
    assert [record.name for record in records if not record.skipped][-1] == "student-smallest"
    assert next(record for record in records if record.name == "strides").skipped
    assert list_students(run.folder) == ("auto", "smallest")
    plan = read_student_network(run.folder / "smallest" / "plan.json")
    assert plan == flat_ladder(plan.output_stride)[0]
    assert all(record.skipped for record in make_student(run, photos))


@pytest.mark.parametrize("name", ["best", "pruned", "trials", "x-int8", "../x", "", "a b", ".x"])
def test_names_that_mean_something_else_are_refused(trained: tuple[Run, PhotoSplit], name: str) -> None:
    run, photos = trained
    with pytest.raises(ConfigError, match="--name"):
        make_student(run, photos, name)


def test_a_given_plan_is_trained_and_nothing_is_tried(trained: tuple[Run, PhotoSplit], tmp_path: Path) -> None:
    run, photos = trained
    network = growing_ladder(16)[2]
    given = write_student_plan(tmp_path / "mine.json", StudentPlan(network, "mine"))
    records = make_student(changed(run, student_plan=given), photos, "given")
    assert [record.name for record in records] == ["strides", "plan-given", "student-given"]
    assert load_checkpoint(run.folder / "given" / "model.pt").architecture == network


def test_budgets_are_met_or_refused(trained: tuple[Run, PhotoSplit], capsys: pytest.CaptureFixture[str]) -> None:
    run, photos = trained
    with pytest.raises(ConfigError, match="the smallest student misses it") as caught:
        make_student(changed(run, keep_macs=1e-6), photos, "none")
    assert "multiply-accumulates" in str(caught.value)
    budget = changed(run, target_size="30KB", min_content_colour=9.0)
    make_student(budget, photos, "fitting")
    assert "try --student-effort long, or a larger --target-size\n" in capsys.readouterr().err
    plan = json.loads((run.folder / "fitting" / "plan.json").read_text())
    assert plan["settings"] == {"min_content_colour": 9.0, "target_size": 30_000}
    sizes = [each["size_bytes"] for each in plan["candidates"] if each["size_bytes"]]
    assert sizes == sorted(sizes) and sizes[0] <= 30_000 < sizes[-1]
    assert "at most 3e+04" in plan["candidates"][len(sizes) - 1]["verdict"]
    assert {each["verdict"] for each in plan["candidates"][len(sizes) :]} == {
        "not tried: wider than one that misses a budget"
    }
    made = run.folder / "fitting"
    export(run, made / "model.pt", "fitting")
    assert pack(run, made / "model.onnx", "fitting-w8").result["size_bytes"] <= 30_000


def test_without_a_budget_a_student_is_no_wider_than_is_taught_in_time(trained: tuple[Run, PhotoSplit]) -> None:
    run, photos = trained

    def list_macs(whole: int, **options: object) -> list[int]:
        """Of the candidates that may be tried, where best.pt has `whole`."""
        job = StudentJob(changed(run, **options), photos)
        vars(job)["original_cost"] = {"params": 10**9, "macs": whole}
        return [each.macs for each in list_candidates(job, growing_ladder(4)) if not each.verdict]

    ladder = list_macs(10**12, keep_macs=1.0)
    assert len(ladder) == len(growing_ladder(4))
    # A tenth of best.pt's, of a large one 4,000 a pixel, and of a tiny one the smallest all the same.
    for whole, most in ((10 * ladder[1] + 10, ladder[1]), (10**12, 4_000 * 64**2), (10, ladder[0])):
        assert list_macs(whole) == [macs for macs in ladder if macs <= most]


@pytest.mark.parametrize(
    ("options", "growing"),
    [
        ({}, True),
        ({"min_content_colour": 0.9}, True),
        ({"keep_macs": 1e-3}, True),
        ({"target_size": "9MB"}, True),
        ({"target_size": "40KB"}, False),
        ({"keep_params": 1e-5}, False),
        ({"min_fidelity": 0.8}, False),
    ],
)
def test_students_grow_but_where_bytes_keep_them_narrow_or_fidelity_is_asked_for(
    trained: tuple[Run, PhotoSplit], tmp_path: Path, options: dict[str, object], growing: bool
) -> None:
    run, photos = trained
    run = elsewhere(changed(run, **options), tmp_path / "out")

    def list_networks(strength: Strength, stride: int) -> list[UNetPlan]:
        job = StudentJob(run, photos)
        vars(job)["original_cost"] = {"params": 10**9, "macs": 10**9}
        oracle = Oracle(strength, (StrideScore(stride, 0.0, strength.measure.name, 1.0),))
        goals = goals_or_whole(run.settings.goal, strength.measure)
        return [each.network for each in choose_ladder(job, oracle, goals)]

    sees, tint = Strength(60, 20.0, 18.0, 16.0, 20.0, 0.6), Strength(60, 14.0, 2.4, 1.0, 4.0, 0.5)
    assert list_networks(sees, 4) == [*(growing_ladder(4) if growing else flat_ladder(2))]
    assert list_networks(tint, 1) == [*flat_ladder(1)]


def test_further_photographs_never_validate_nor_test(trained: tuple[Run, PhotoSplit], tmp_path: Path) -> None:
    run, photos = trained
    (tmp_path / "more").mkdir()
    for index in (90, 91):
        make_photo(index).save(tmp_path / "more" / f"{index}.png")
    for known in (*photos.val, *photos.test, photos.train[0]):
        (tmp_path / "more" / f"copy-{known.path.name}").write_bytes(known.path.read_bytes())
    more = with_unlabelled(changed(run, unlabelled=tmp_path / "more"), photos)
    assert (more.val, more.test) == (photos.val, photos.test)
    assert {photo.path.name for photo in more.train} - {photo.path.name for photo in photos.train} == {
        "90.png",
        "91.png",
    }
    assert len(more.train) == len(photos.train) + 2


def test_variants_of_every_student_are_found(trained: tuple[Run, PhotoSplit]) -> None:
    run, _ = trained
    pack(run, export(run, run.folder / "auto" / "model.pt", "auto") and run.folder / "auto" / "model.onnx", "auto-w8")
    found = {variant.name: variant for variant in list_variants(run)}
    assert {"best.pt", "auto.pt", "auto", "auto-w8"} <= set(found)
    assert found["auto-w8"].precision == "w8" and found["auto"].precision == "fp32"
    assert found["auto-w8"].params == found["auto"].params
    assert found["auto-w8"].size_bytes < found["auto"].size_bytes


def test_int8_is_judged_by_best_and_trained_where_it_loses(trained: tuple[Run, PhotoSplit]) -> None:
    run, photos = trained
    export(run, run.best_path, "best")
    source = run.folder / "best" / "model.onnx"
    # Ranges that cut a tenth off lose more than nothing.
    cut = {"calibration_percentile": 90.0, "equalize": "off", "int8_weight_bits": "8"}
    strict = changed(run, qat_crops=16, int8_loss=0.0, **cut)
    quantize(strict, source, "best-int8", photos)
    record = json.loads((run.folder / "best-int8" / "int8.json").read_text())
    assert any(each["tuned"] for each in record["tries"])
    # None goes back to float where that is not enough.
    left = [each for each in record["tries"] if each["is_enough"] or not each["float_layers"]]
    assert record["way"] == min(left, key=lambda each: (not each["is_enough"], each["parent_l1"]))["way"]
    assert sum(node["share"] for node in record["nodes"]) == pytest.approx(1.0)
    assert all(bool(node["why_float"]) != node["int8"] for node in record["nodes"])
    loose = changed(run, int8_loss=1.0)
    quantize(loose, source, "best-int8", photos)
    record = json.loads((run.folder / "best-int8" / "int8.json").read_text())
    assert record["tries"] and not any(each["tuned"] or each["float_layers"] for each in record["tries"])
    variant = describe_variant("best-int8", run.folder / "best-int8" / "model.onnx")
    assert variant.caution == record["caution"]


def test_without_best_nothing_judges(trained: tuple[Run, PhotoSplit], tmp_path: Path) -> None:
    run, photos = trained
    elsewhere = replace(run, folder=tmp_path / "out")
    export(run, run.best_path, "best")
    quantize(elsewhere, run.folder / "best" / "model.onnx", "best-int8", photos)
    record = json.loads((tmp_path / "out" / "best-int8" / "int8.json").read_text())
    assert record["tries"] == []
    assert record["way"] == "ranges one by one" + ("" if has_vnni() else ", 7-bit weights")


def test_a_latency_budget_is_measured_once_and_retrains_nothing(trained: tuple[Run, PhotoSplit]) -> None:
    run, photos = trained
    budget = changed(run, target_latency_ms=1000.0)
    first = make_student(budget, photos, "timed")
    plan = json.loads((run.folder / "timed" / "plan.json").read_text())
    assert plan["candidates"][0]["latency_ms"] > 0
    assert not first[-1].skipped
    assert make_student(budget, photos, "timed")[-1].skipped


def test_another_goal_that_leads_to_the_same_network_changes_the_plan_and_trains_nothing(
    trained: tuple[Run, PhotoSplit],
) -> None:
    run, photos = trained
    for floor, skipped in ((-9.0, False), (-8.0, True)):
        records = make_student(changed(run, min_fidelity=floor), photos, "easy")
        plan = json.loads((run.folder / "easy" / "plan.json").read_text())
        assert plan["settings"]["min_fidelity"] == floor
        assert (records[-1].name, records[-1].skipped) == ("student-easy", skipped)


def test_force_trains_from_the_start(trained: tuple[Run, PhotoSplit], monkeypatch: pytest.MonkeyPatch) -> None:
    run, photos = trained
    forgotten: list[str] = []
    monkeypatch.setattr("compress.students.student_stages.forget_fit", lambda folder: forgotten.append(folder.name))
    make_student(replace(run, force=True), photos)
    assert "auto" in forgotten and any(name.startswith("trial-") for name in forgotten)


def elsewhere(run: Run, folder: Path, best: Path | None = None) -> Run:
    """Another run folder with the same options, and its best.pt or the one of `run`."""
    folder.mkdir()
    shutil.copy(best or run.best_path, folder / "best.pt")
    return replace(run, folder=folder)


def test_what_chose_is_never_what_is_reported(
    trained: tuple[Run, PhotoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photos = trained
    assert photos.choosing and photos.confirming
    scored: list[tuple[Photo, ...]] = []
    told: set[Photo] = set()
    make, distil = yardstick.make_yardstick, student_job.distil_network

    def watch_scoring(run: Run, best: object, photos: PhotoSplit, some: tuple[Photo, ...], **options: int) -> object:
        scored.append(some)
        return make(run, best, photos, some, **options)  # type: ignore[arg-type]

    def watch_learning(network: object, lesson: Lesson, *rest: object, **options: str) -> DistillResult:
        told.update(lesson.photos.choosing)
        return distil(network, lesson, *rest, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(yardstick, "make_yardstick", watch_scoring)
    monkeypatch.setattr(student_job, "distil_network", watch_learning)
    copy = elsewhere(run, tmp_path / "out")
    trained_last = make_student(copy, photos)[-1].result
    assert scored == [photos.choosing, photos.confirming] and told == set(photos.choosing)
    network = load_checkpoint(copy.folder / "auto" / "model.pt").build_network()
    found = vars(StudentJob(copy, photos).jury.score(network))
    for name, score in found.items():
        assert trained_last[name]["l1"] == pytest.approx(score.l1)
    assert found["chosen_by"].l1 != found["confirmed"].l1


@pytest.mark.parametrize("photo", [0, 1])
def test_a_student_is_held_against_the_photographs_that_chose_nothing(
    trained: tuple[Run, PhotoSplit], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], photo: int
) -> None:
    """By a goal that is met on one of two photographs alone."""
    run, photos = trained
    # The other way round the two halves have changed their roles.
    swapped = replace(photos, choosing=photos.confirming, confirming=photos.choosing)
    ordered = swapped if photo else photos
    network = load_checkpoint(run.folder / "auto" / "model.pt").build_network()
    l1, other_l1 = (score.l1_delta_pct for score in vars(StudentJob(run, ordered).jury.score(network)).values())
    given = write_student_plan(run.folder / f"given-{photo}.json", StudentPlan(network.architecture, "for a test"))
    goal = changed(run, student_plan=given, max_l1_increase=(l1 + other_l1) / 2)
    capsys.readouterr()
    result = make_student(goal, ordered, f"half{photo}")[-1].result
    shown = capsys.readouterr().err
    missed = result["confirmed"]["l1_delta_pct"] > goal.settings.goal.max_l1_increase
    assert ("misses what is asked of it on other photographs: ΔL1" in shown) is missed
    assert "on the photographs that chose, F " in shown and "on others" in shown


def test_one_photograph_chooses_and_none_confirms(trained: tuple[Run, PhotoSplit], tmp_path: Path) -> None:
    run, photos = trained
    alone = replace(photos, choosing=photos.choosing[:1], confirming=())
    assert len(alone.val) == 1
    result = make_student(elsewhere(run, tmp_path / "out"), alone)[-1].result
    assert result["confirmed"] is None and result["chosen_by"]["fidelity_low"] is None


def test_where_best_sees_more_than_a_table_its_content_is_what_is_kept(
    trained: tuple[Run, PhotoSplit], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = trained
    monkeypatch.setattr(Strength, "beats_table", True)
    copy = elsewhere(run, tmp_path / "out")
    make_student(copy, photos)
    plan = json.loads((copy.folder / "auto" / "plan.json").read_text())
    assert plan["settings"] == {"min_content_colour": 1.0}
    assert {each["measure"] for each in plan["strides"]} == {"content_colour"}
    tried = [each for each in plan["candidates"] if each["measure"]]
    assert tried and all("C 1.000" in each["verdict"] for each in tried)
    chosen = read_student_network(copy.folder / "auto" / "plan.json")
    assert chosen in growing_ladder(chosen.output_stride)
    # The truth teaches too then, and alone the control beside it.
    assert set(plan["control_without_teacher"]) == {each.name for each in fields(Score)}
    assert "to_best" not in load_checkpoint(copy.folder / "auto" / "model.pt").extra
    shown = capsys.readouterr().err
    assert shown.count("best.pt on 1 photograph: L1") == 1 and "fidelity F decides" not in shown


def test_a_vivid_original_is_not_refused_and_its_answers_teach(
    trained: tuple[Run, PhotoSplit], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = trained
    # Of one photograph alone vivid cannot be told from wrong.
    photos = replace(photos, train=photos.train[1:], choosing=(*photos.choosing, photos.train[0]))
    vivid = elsewhere(changed(run, student_crops=1600), tmp_path / "out", make_vivid(tmp_path / "vivid.pt"))
    records = make_student(vivid, photos)
    result = records[-1].result
    assert result["chosen_by"]["measure"] == result["confirmed"]["measure"] == "fidelity"
    assert result["best_val_l1"] == 0.0 and result["grey_val_l1"] > 0.5
    assert result["chosen_by"]["retained_colour"] is None
    # Nearer to its colours than to the truth, which is half as far away.
    assert result["confirmed"]["fidelity"] > 0.5
    assert not any("control" in record.name for record in records)
    plan = (vivid.folder / "auto" / "plan.json").read_text()
    assert json.loads(plan)["control_without_teacher"] == {} and "NaN" not in plan
    assert not any("NaN" in path.read_text() for path in (vivid.folder / ".stages").glob("*.json"))
    assert load_checkpoint(vivid.folder / "auto" / "model.pt").extra["teacher_weight"] == 1.0
    shown = capsys.readouterr().err
    assert "no better than grey's" in shown and "best.pt's answers alone teach" in shown
