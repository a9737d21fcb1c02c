"""The whole job on ten small pictures: every stage for real, then what running it again does."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image

from benchmarks.suite import require_measured
from benchmarks.variants import list_variants
from colorpress.core.config import Settings
from colorpress.core.errors import ConfigError, GateError
from colorpress.core.stages import run_stage
from colorpress.pipeline import RunResult, run_pipeline
from compress.students.search_front import list_front
from export.controls import CONTROL_TITLES
from tests.conftest import make_photo, time_here
from training.checkpoint import load_checkpoint, save_checkpoint
from training.run_folder import Run, find_photos

OPTIONS = {
    "base": 8, "depth": 2, "epochs": 2, "batch_size": 8, "imgsz": 16, "val_size": 24, "finetune_crops": 16,
    "round_to": 2, "test_share": 0.2, "workers": 0, "threads": 1, "calibration_photos": 2,
    "bench_size": (32,), "roof": False, "rounds": 1, "runs": 3, "min_seconds": 0.0, "warmup": 1, "max_bad_share": 0.2,
    "student_crops": 32, "student_trial_crops": 16, "distil_imgsz": 32, "distil_batch_size": 8,
    "rank_size": 32, "rank_photos": 1, "rank_runs": 2,
    "search_trials": 2, "search_crops": 8, "search_full_crops": 16, "search_front": 2, "search_int8": False,
}  # fmt: skip
FILES = {
    "best.pt", "last.pt", "last.prev.pt", "history.csv", "training_loss.png", "training_inference.md",
    "model_summary.txt", "layer_param_counts.csv", "layer_ranking.csv", "layer_ranking.png",
    "top20_layers.png", "sample_input_output.png", "sample_output.png", "pruned/plan.json", "pruned/model.pt",
    "pruned/distillation.csv", "pruned/distillation.png", "best/model.onnx", "pruned/model.onnx",
    "best-int8/model.onnx", "best-int8/int8.json", "pruned-int8/model.onnx", "pruned-int8/int8.json",
    "auto/plan.json", "auto/model.pt", "auto/model.onnx", "auto/distillation.csv", "auto/distillation.png",
    "auto-int8/model.onnx", "auto-int8/int8.json", "auto-w8/model.onnx",
    "benchmark.csv", "benchmark.json", "pareto.png", "comparison.png", "report.html", "skipped_images.csv",
    "config.resolved.toml", "run.json", "front.csv", "front.json", "front.png",
    "controls/grey.onnx", "controls/tint.onnx", "controls/table.onnx",
} | {
    f"{name}/colorizer.onnx" for name in ("best", "best-int8", "pruned", "pruned-int8", "auto", "auto-int8", "auto-w8")
}  # fmt: skip
VARIANTS = [
    "best.pt",
    "best",
    "best-int8",
    "pruned.pt",
    "pruned",
    "pruned-int8",
    "auto.pt",
    "auto",
    "auto-int8",
    "auto-w8",
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, RunResult]:
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "photos").mkdir()
    for index in range(10):
        make_photo(index).save(folder / "photos" / f"{index}.png")
    (folder / "photos" / "broken.jpg").write_text("no picture")
    run = Run(folder / "out", Settings.from_options({**OPTIONS, "data": folder / "photos"}))
    with pytest.MonkeyPatch.context() as patch:
        time_here(patch)
        return run, run_pipeline(run, argv=["colorpress", "run"])


def test_a_run_writes_exactly_its_files(finished: tuple[Run, RunResult]) -> None:
    folder = finished[0].folder
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    folders = (".", "trials/", "pictures/", "study/", "front/")
    assert {name for name in found if not name.startswith(folders)} == FILES
    shown = pd.read_csv(folder / "front.csv")["file"]
    assert len(shown) >= 2 and set(shown) <= found
    measured = list_front(folder)
    assert measured and {f"{name}/colorizer.onnx" for name in measured} <= found
    # What it says is there is there, and nothing else.
    pictures = json.loads((folder / "pictures" / "pictures.json").read_text())
    named = {path.name for path in (folder / "pictures").glob("*.jpg") if path.name in json.dumps(pictures)}
    assert named and named == {path.name for path in (folder / "pictures").iterdir()} - {"pictures.json"}


def test_every_variant_is_measured(finished: tuple[Run, RunResult]) -> None:
    table = pd.read_csv(finished[0].folder / "benchmark.csv").set_index("model")
    assert list(table.index) == [*VARIANTS, *list_front(finished[0].folder), *CONTROL_TITLES.values()]
    assert set(table["status"]) == {"ok"}
    is_control = table["control"].notna()
    assert (table.loc[~is_control, "p50_ms"] > 0).all() and table.loc[is_control, "p50_ms"].isna().all()
    assert table.loc["best.pt", "fidelity"] == 1 or table["fidelity"].isna().all()
    assert table.loc["best.pt", "retained_colour"] == pytest.approx(1) or table["retained_colour"].isna().all()
    assert table.loc["pruned", "params"] < table.loc["best", "params"]
    assert table.loc["pruned", "macs"] < table.loc["best", "macs"]
    assert table.loc["best", "l1"] == pytest.approx(table.loc["best.pt", "l1"], rel=1e-3)


def test_the_record_names_every_artifact_and_the_bad_file(finished: tuple[Run, RunResult]) -> None:
    run, _ = finished
    record = json.loads((run.folder / "run.json").read_text())
    assert record["status"] == "complete"
    assert {"best.pt", "pruned/plan.json", "pruned-int8/model.onnx", "report.html"} <= set(record["artifacts"])
    assert record["stages"]["prune"]["result"]["params_removed_pct"] > 0
    skipped = pd.read_csv(run.folder / "skipped_images.csv")
    assert skipped["path"].str.endswith("broken.jpg").tolist() == [True]


def test_pictures_open_and_the_report_holds_the_variants(finished: tuple[Run, RunResult]) -> None:
    run, result = finished
    for name in ("training_loss", "top20_layers", "comparison", "pareto", "sample_input_output", "sample_output"):
        with Image.open(run.folder / f"{name}.png") as picture:
            picture.load()
    html = result.report_path.read_text()
    assert all(f"{name}" in html for name in (*VARIANTS, *list_front(run.folder)))
    assert "http://" not in html.replace("http://www.w3.org", "")


def test_a_second_run_skips_everything_and_changes_no_file(finished: tuple[Run, RunResult]) -> None:
    run, first = finished
    before = {path: path.read_bytes() for path in run.folder.rglob("*") if path.is_file() and path.name != "run.json"}
    second = run_pipeline(run, argv=["colorpress", "run"])
    assert [stage.name for stage in second.stages] == [stage.name for stage in first.stages]
    assert all(stage.skipped for stage in second.stages)
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.usefixtures("timed_here")
def test_an_option_redoes_only_what_depends_on_it(finished: tuple[Run, RunResult]) -> None:
    run, _ = finished
    changed = Run(run.folder, Settings.from_options({**OPTIONS, "data": run.settings.data.data, "runs": 4}))
    redone = [stage.name for stage in run_pipeline(changed).stages if not stage.skipped]
    assert redone == ["benchmark", "report"]


@pytest.mark.usefixtures("timed_here")
def test_a_run_from_a_checkpoint_trains_nothing(finished: tuple[Run, RunResult], tmp_path: Path) -> None:
    run, _ = finished
    given = {"student_plan": run.folder / "auto" / "plan.json", "rank_photos": 0, "search_effort": "none"}
    given["data"] = run.settings.data.data
    started = Run(tmp_path / "out", Settings.from_options({**OPTIONS, **given}))
    result = run_pipeline(started, checkpoint=run.best_path)
    assert "train" not in [stage.name for stage in result.stages]
    assert started.best_path.read_bytes() == run.best_path.read_bytes()
    assert (tmp_path / "out" / "run.json").exists()
    with pytest.raises(ConfigError, match=r"another best\.pt"):
        run_pipeline(started, checkpoint=run.folder / "pruned" / "model.pt")


def test_files_of_another_original_are_left_out(finished: tuple[Run, RunResult], tmp_path: Path) -> None:
    run, _ = finished
    copy = Run(tmp_path / "out", run.settings)
    shutil.copytree(run.folder, copy.folder)
    assert [variant.name for variant in list_variants(copy)] == [*VARIANTS, *list_front(run.folder)]
    save_checkpoint(copy.best_path, replace(load_checkpoint(copy.best_path), epoch=99))
    assert [variant.name for variant in list_variants(copy)] == ["best.pt"]


def test_a_failed_variant_fails_the_run_and_is_measured_again(tmp_path: Path) -> None:
    record = run_stage(tmp_path, "benchmark", "key", lambda: ([], {"rows": 2, "failed": ["pruned"]}))
    with pytest.raises(GateError, match="pruned could not be measured"):
        require_measured(Run(tmp_path), record)
    assert not run_stage(tmp_path, "benchmark", "key", lambda: ([], {"rows": 2, "failed": []})).skipped


def test_a_run_folder_among_the_photographs_is_refused(photo_folder: Path) -> None:
    settings = Settings.from_options({**OPTIONS, "data": photo_folder})
    with pytest.raises(ConfigError, match="lies inside --data"):
        find_photos(Run(photo_folder / "out", settings))


def test_what_is_named_is_read_before_the_photographs(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of many photographs that takes minutes."""
    for options, checkpoint in (({}, Path("none")), ({"arch": "none:UNet"}, None)):
        settings = Settings.from_options({**OPTIONS, **options, "data": photo_folder})
        with pytest.raises(ConfigError, match="'none': no such file"):
            run_pipeline(Run(photo_folder.parent / "run", settings), checkpoint=checkpoint)
    assert "photographs" not in capsys.readouterr().err
