"""The benchmark as a whole, on real models and photographs: its files, and that a broken variant is only a row."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from benchmarks.report.page import write_report
from benchmarks.suite import run_benchmark
from benchmarks.variants import describe_variant
from colorpress.core.config import ExportConfig, Settings
from colorpress.core.errors import InputError, MachineError
from colorpress.core.files import sha256_file
from export.graph import export_onnx
from training.checkpoint import load_checkpoint
from training.photos import Photo
from training.run_folder import Run

QUICK = {
    "bench_size": (8,), "roof": False, "rounds": 1, "runs": 3, "min_seconds": 0.0, "warmup": 1, "eval_size": 32,
    "device": "cpu", "threads": 1,
}  # fmt: skip


def run_in(folder: Path, **options: object) -> Run:
    return Run(folder, Settings.from_options({**QUICK, **options}))


@pytest.fixture
def photos(photo_folder: Path) -> list[Photo]:
    return [Photo(path, sha256_file(path), 48, 40) for path in sorted(photo_folder.rglob("photo*"))]


def test_a_benchmark_writes_its_files_and_the_report(
    tiny_checkpoint: Path, photos: list[Photo], tmp_path: Path
) -> None:
    exported = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "best" / "model.onnx", ExportConfig()).path
    best = describe_variant("best.pt", tiny_checkpoint, macs=5)
    onnx = describe_variant("best", exported, macs=5)
    output = tmp_path / "out"
    variants = [best, onnx, replace(onnx, name="gone", path=tmp_path / "gone.onnx")]
    rows, paths = run_benchmark(run_in(output, bench_runtime=("onnxruntime", "openvino")), variants, photos)
    written = {"benchmark.csv", "benchmark.json", "pareto.png", "comparison.png"}
    written |= {"sample_input_output.png", "sample_output.png"}
    beside = {path.name for path in paths if path.parent == output}
    assert {path.name for path in output.iterdir()} == beside | {"pictures"} == written | {"pictures"}
    assert set((output / "pictures").iterdir()) <= set(paths)
    assert [(row.model, row.status) for row in rows] == [
        ("best.pt", "ok"), ("best", "ok"), ("best @ openvino", "ok"), ("gone", "error"), ("gone @ openvino", "error"),
    ]  # fmt: skip
    in_ort, in_openvino = rows[1], rows[2]
    assert in_openvino.provider.startswith("OpenVINO 20")
    assert in_openvino.l1 == pytest.approx(in_ort.l1, abs=1e-3)
    record = json.loads((output / "benchmark.json").read_text())
    assert record["grey_l1"] > 0
    assert set(record["aa_ratios"]) == {"cpu"}
    assert len(record["per_photo"]["photos"]) == len(record["per_photo"]["l1"]["best"]) == 10
    assert len(record["raw_times"]["best"][0]["times_ns"]) >= 3
    with Image.open(output / "comparison.png") as sheet:
        assert sheet.width == 8 + 4 * 248  # grey, truth, best.pt, best; not the broken one
    report = write_report(output).read_text()
    assert "10 photographs show the machinery" in report
    assert "Not finished: gone (error), gone @ openvino (error)" in report
    assert "OpenVINO fp32" in report


def test_nothing_to_measure_is_refused(tiny_checkpoint: Path, photos: list[Photo], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model"):
        run_benchmark(run_in(tmp_path), [], photos)
    with pytest.raises(InputError, match="no photographs"):
        run_benchmark(run_in(tmp_path), [describe_variant("best.pt", tiny_checkpoint)], [])


def test_a_gpu_that_is_not_there_is_refused(
    tiny_checkpoint: Path, photos: list[Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(MachineError, match="cuda"):
        run_benchmark(run_in(tmp_path, device="cuda"), [describe_variant("best.pt", tiny_checkpoint)], photos)
