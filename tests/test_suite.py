"""The benchmark as a whole, on real models and photographs: its files, and that a broken variant is only a row."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import TINY_PLAN, make_network
from PIL import Image

from benchmarks.also import find_also
from benchmarks.report.page import write_report
from benchmarks.rows import read_benchmark_json
from benchmarks.suite import benchmark, run_benchmark
from benchmarks.variants import describe_variant
from colorpress.core.config import ExportConfig, Settings
from colorpress.core.errors import InputError, MachineError
from colorpress.core.files import sha256_file
from export.controls import CONTROL_TITLES
from export.graph import export_onnx
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run

QUICK = {
    "bench_size": (8,), "roof": False, "rounds": 1, "runs": 3, "min_seconds": 0.0, "warmup": 1, "eval_size": 32,
    "device": "cpu", "threads": 1,
}  # fmt: skip


def run_in(folder: Path, **options: object) -> Run:
    return Run(folder, Settings.from_options({**QUICK, **options}))


@pytest.fixture
def photos(photo_folder: Path) -> PhotoSplit:
    """All ten are held out, and the controls are fitted on three of them."""
    found = tuple(Photo(path, sha256_file(path), 48, 40) for path in sorted(photo_folder.rglob("photo*")))
    return PhotoSplit(train=found[:3], test=found)


def test_a_benchmark_writes_its_files_and_the_report(tiny_checkpoint: Path, photos: PhotoSplit, tmp_path: Path) -> None:
    exported = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "best" / "model.onnx", ExportConfig()).path
    best = describe_variant("best.pt", tiny_checkpoint, macs=5)
    onnx = describe_variant("best", exported, macs=5)
    output = tmp_path / "out"
    variants = [best, onnx, replace(onnx, name="gone", path=tmp_path / "gone.onnx")]
    rows, paths = run_benchmark(run_in(output, bench_runtime=("onnxruntime", "openvino")), variants, photos)
    written = {"benchmark.csv", "benchmark.json", "pareto.png", "comparison.png"}
    written |= {"sample_input_output.png", "sample_output.png"}
    beside = {path.name for path in paths if path.parent == output}
    assert {path.name for path in output.iterdir()} - {".stages"} == beside | {"pictures", "controls"}
    assert beside == written
    assert set((output / "pictures").iterdir()) <= set(paths)
    assert [(row.model, row.status) for row in rows] == [
        ("best.pt", "ok"), ("best", "ok"), ("best @ openvino", "ok"), ("gone", "error"), ("gone @ openvino", "error"),
        *((title, "ok") for title in CONTROL_TITLES.values()),
    ]  # fmt: skip
    assert [row.model for row in rows if row.control] == list(CONTROL_TITLES.values())
    grey, tint, table = rows[-3:]
    assert grey.fidelity == pytest.approx(0.0, abs=1e-6)
    assert (tint.params, table.params, table.macs, table.p50_ms) == (2, 64, None, None)
    assert table.size_bytes == (output / "controls" / "table.onnx").stat().st_size
    assert rows[0].fidelity == 1.0 and table.l1 is not None and rows[0].choosing_kept == 1.0
    in_ort, in_openvino = rows[1], rows[2]
    assert in_openvino.provider.startswith("OpenVINO 20")
    assert in_openvino.l1 == pytest.approx(in_ort.l1, abs=1e-3)
    record = json.loads((output / "benchmark.json").read_text())
    assert record["grey_l1"] > 0
    assert set(record["aa_ratios"]) == {"cpu"}
    assert len(record["per_photo"]["photos"]) == len(record["per_photo"]["l1"]["best"]) == 10
    assert len(record["raw_times"]["best"][0]["times_ns"]) >= 3
    assert set(record["raw_times"]) == {row.model for row in rows if not row.control}
    assert record["per_photo"]["to_best"]["best.pt"] == [0.0] * 10
    assert len(record["per_photo"]["l1"][CONTROL_TITLES["table"]]) == 10
    assert record["strength"]["photos"] == 10
    with Image.open(output / "comparison.png") as sheet:
        # Grey, truth, best.pt and best, below them the lightness table, of four photographs; not the broken one, nor
        # the other controls.
        assert sheet.width == 8 + 4 * 248 and 8 * 240 < sheet.height < 8 * 260
    report = write_report(output).read_text()
    assert "10 photographs show the machinery" in report
    assert "Not finished: gone (error), gone @ openvino (error)" in report
    assert "OpenVINO fp32" in report


def test_nothing_to_measure_is_refused(tiny_checkpoint: Path, photos: PhotoSplit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model"):
        run_benchmark(run_in(tmp_path), [], photos)
    with pytest.raises(InputError, match="no photographs"):
        run_benchmark(run_in(tmp_path), [describe_variant("best.pt", tiny_checkpoint)], replace(photos, test=()))


def test_a_gpu_that_is_not_there_is_refused(
    tiny_checkpoint: Path, photos: PhotoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(MachineError, match="cuda"):
        run_benchmark(run_in(tmp_path, device="cuda"), [describe_variant("best.pt", tiny_checkpoint)], photos)


@pytest.mark.usefixtures("timed_here")
def test_time_alone_needs_no_photograph_and_has_no_controls(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run = run_in(tmp_path, eval_photos=0)
    rows, _ = run_benchmark(run, [describe_variant("best.pt", tiny_checkpoint)], None)
    assert [row.model for row in rows] == ["best.pt"] and rows[0].l1 is None
    assert read_benchmark_json(tmp_path / "benchmark.json").strength is None


@pytest.mark.usefixtures("timed_here")
def test_further_folders_are_scored_for_every_variant_and_redone_when_they_change(
    tiny_checkpoint: Path, photos: PhotoSplit, photo_folder: Path, tmp_path: Path
) -> None:
    other = make_network(seed=3)
    other_path = save_checkpoint(tmp_path / "other.pt", Checkpoint(TINY_PLAN, other.state_dict()))
    variants = [describe_variant("best.pt", tiny_checkpoint), describe_variant("other.pt", other_path)]
    sea = tmp_path / "sea"
    sea.mkdir()
    for photo in photos.test[:4]:
        shutil.copy(photo.path, sea)
    run = run_in(tmp_path / "out", also=(sea,), eval_photos=3)
    # What the run trains, chooses or tests on is nothing new to it.
    split = replace(photos, test=photos.test[6:], choosing=(), confirming=(), train=photos.test[3:4])
    measured = benchmark(run, variants, split, find_also(run, split))
    record = read_benchmark_json(run.folder / "benchmark.json")
    (folder,) = record.also.values()
    assert list(record.also) == ["sea"] and (folder.known, folder.photos) == (1, 3)
    assert [row.also["sea"]["photos"] for row in record.rows] == [3] * 5
    assert record.rows[0].also["sea"]["fidelity"] == 1.0
    best, found = record.rows[:2]
    assert found.also["sea"]["l1"] != pytest.approx(best.also["sea"]["l1"])
    assert {photo for photo, _ in folder.worst} <= {each.path.name for each in photos.test[:4]}
    assert record.config["also"] == [str(sea)]
    assert benchmark(run, variants, split, find_also(run, split)).skipped and not measured.skipped
    shutil.copy(photos.test[5].path, sea)
    assert not benchmark(run, variants, split, find_also(run, split)).skipped
    (folder,) = read_benchmark_json(run.folder / "benchmark.json").also.values()
    assert folder.photos == 3  # of four, by --eval-photos
    # Controls are of the training photographs, so others make another benchmark.
    assert not benchmark(run, variants, replace(split, train=photos.train[:2])).skipped
