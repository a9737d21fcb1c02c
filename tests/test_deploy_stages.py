"""Picture graphs of a run folder: made, checked over many sizes, and shipped."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pandas as pd
import pytest
from conftest import TINY_PLAN, make_network, make_photo
from onnx import numpy_helper

from benchmarks.rows import FORMAT_VERSION
from colorpress import deploy_stages
from colorpress.cli import run_command
from colorpress.core.config import ExportConfig, Settings
from colorpress.core.errors import ConfigError, GateError, InputError
from colorpress.core.stages import StageRecord
from colorpress.deploy_stages import bundle, deploy, exported_variants, verify
from compress.export_stages import pack
from compress.measures import Strength
from export import deployable, picture_graph
from export.colorizers import OnnxColorizer
from export.deployable import export_colorizer, write_ort
from export.graph import export_onnx, read_metadata
from export.metadata_figures import MEASURED
from export.parity import PictureParity
from export.runtimes import RUNTIMES
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run folder with best.pt and its exported network."""
    folder = tmp_path / "out"
    save_checkpoint(folder / "best.pt", Checkpoint(TINY_PLAN, make_network().state_dict(), val_l1=0.1))
    export_onnx(load_checkpoint(folder / "best.pt"), folder / "best" / "model.onnx", ExportConfig())
    return Run(folder, Settings.from_options({"work_size": 48, "saturation": 1.5, "ort": True}))


@pytest.fixture
def photos(tmp_path: Path) -> list[Photo]:
    found = []
    for index in range(4):
        make_photo(index, 70, 90).save(tmp_path / f"{index}.png")
        found.append(Photo(tmp_path / f"{index}.png", str(index), 70, 90))
    return found


def row_of(name: str, path: Path, **figures: object) -> dict[str, object]:
    return {"model": name, "variant": name, "peer": False, "batch": 1, "height": 256, "width": 256, "threads": 2,
            "size_bytes": path.stat().st_size, "photos": 7, "l1": 0.08, "l1_delta_pct": 0.5, "retained_colour": 0.97,
            "content_colour": 0.96, "fidelity": 0.95, "chroma_to_truth": 0.55,
            "status": "ok", "device": "cpu", "runtime": "onnxruntime", **figures}  # fmt: skip


STRONG = Strength(7, 21.0, 19.2, 18.5, 19.9, 0.6)
WEAK = Strength(7, 13.9, 2.4, 1.1, 3.6, 0.31)


def write_rows(run: Run, *rows: dict[str, object], strength: Strength | None = STRONG) -> None:
    head = {"format_version": FORMAT_VERSION, "date": "2026-01-01", "machine": {}}
    head |= {"strength": strength.to_dict() if strength else None}
    document = {**head, "rows": list(rows), "aa_ratios": {}}
    (run.folder / "benchmark.json").write_text(json.dumps(document))


def test_a_picture_graph_is_published_with_what_was_measured_and_made_once(run: Run, photos: list[Photo]) -> None:
    write_rows(run, row_of("best", run.folder / "best" / "model.onnx"))
    first = deploy(run, "best", photos)
    path = run.folder / "best" / "colorizer.onnx"
    metadata = read_metadata(path)
    expected = {"work_size": "48", "saturation": "1.5", "retained_colour": "0.9700", "l1": "0.080000",
                "content_colour": "0.9600", "fidelity": "0.9500", "chroma_to_truth": "0.5500",
                "measure": "content_colour", "original_below_grey_pct": "21.00", "original_below_table_pct": "19.20",
                "measured_photos": "7", "precision": "fp32", "producer": "colorpress"}  # fmt: skip
    assert {name: metadata[name] for name in expected} == expected
    assert metadata["checkpoint_sha256"] == load_checkpoint(run.best_path).sha256
    assert first.result["pictures"] == 12 and first.result["max_levels"] <= 1
    assert deploy(run, "best", photos).skipped
    pixels = np.asarray(make_photo(9, 50, 60))[None]
    answers = []
    for name in ("colorizer.onnx", "colorizer.ort"):
        session = ort.InferenceSession(str(path.with_name(name)), providers=["CPUExecutionProvider"])
        answers.append(session.run(None, {"image": pixels})[0])
    np.testing.assert_array_equal(*answers)


def test_a_plain_graph_is_published_verified_and_shipped(
    run: Run, photos: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deploy_stages, "matrix_shapes", lambda: ((1, 33, 17), (1, 64, 64)))
    plain = run.folder / "best" / "colorizer-plain.onnx"
    for size, shape, pictures in (("", "(N,H,W,3)", 9), ("61x90", "(1,61,90,3)", 2)):
        options = {"work_size": 48, "saturation": 1.5, "plain": not size, "plain_size": size}
        run = Run(run.folder, Settings.from_options(options))
        deploy(run, "best", [])
        assert read_metadata(plain)["input"].startswith(f"image uint8 {shape}")
        verify(run, ["best"], [])
        found = json.loads((run.folder / "parity.json").read_text())["variants"]["best"]["pictures"]
        assert found["plain"]["max_levels"] <= 1 and found["plain"]["pictures"] == pictures
    split = PhotoSplit(tuple(photos[:1]), tuple(photos[1:2]), ())
    shipped = bundle(run, "best", run.folder / "ship", split, web=False)
    assert (shipped.folder / plain.name).read_bytes() == plain.read_bytes()
    assert f"`{plain.name}`" in (shipped.folder / "MODEL_CARD.md").read_text()
    right = deploy_stages.check_colorizer

    def spoil(graph: OnnxColorizer, *others: Any, **options: Any) -> PictureParity:
        found = right(graph, *others, **options)
        return replace(found, max_levels=2) if graph.path == plain else found

    monkeypatch.setattr(deploy_stages, "check_colorizer", spoil)
    with pytest.raises(GateError, match="best differ from PyTorch"):
        verify(replace(run, force=True), ["best"], [])
    deploy(Run(run.folder, Settings.from_options({"work_size": 48, "saturation": 1.5})), "best", [])
    left = {path.name for path in plain.parent.glob("colorizer*")}
    assert left == {"colorizer.onnx"}, "the others may be of another network"


def test_a_size_that_is_none_is_refused() -> None:
    for size in ("61", "61x", "0x9", "61x90x3", "-1x5"):
        with pytest.raises(ConfigError, match="--plain-size"):
            Settings.from_options({"plain_size": size})


def test_what_was_not_measured_is_not_in_the_file_and_inspect_says_so(
    run: Run, photos: list[Photo], capsys: pytest.CaptureFixture[str]
) -> None:
    path = run.folder / "best" / "model.onnx"
    unknown = {"content_colour": None, "fidelity": None, "chroma_to_truth": None, "retained_colour": None}
    colourless = Strength(7, *(math.nan,) * 5)
    write_rows(run, row_of("best", path, **unknown, l1_delta_pct=None), strength=colourless)
    deploy(run, "best", photos)
    metadata = read_metadata(run.folder / "best" / "colorizer.onnx")
    assert {name for name in metadata if name in MEASURED} == {"measured_photos", "l1", "measure"}
    for strength, measure in ((STRONG, "content_colour"), (WEAK, "fidelity")):
        write_rows(run, row_of("best", path, fidelity=None), strength=strength)
        deploy(run, "best", photos)
        assert run_command(["inspect", str(run.folder / "best" / "colorizer.onnx")]) == 0
        said = capsys.readouterr().out.partition("\nmeasured\n")[2].partition("\n\n")[0].splitlines()
        assert len(said) == len(MEASURED)
        assert "  content colour C: 0.9600" in said and "  fidelity F: not measured" in said
        assert f"  the measure that decides: {measure}" in said
        assert f"  L1 of the original below a lightness table's, in percent: {strength.below_table_pct:.2f}" in said
    assert run_command(["inspect", str(path)]) == 0
    assert "\nmeasured\n" not in capsys.readouterr().out  # a bare network says nothing of the kind


def test_figures_of_another_file_are_not_those_of_this_one(run: Run, photos: list[Photo]) -> None:
    path = run.folder / "best" / "model.onnx"
    write_rows(run, {**row_of("best", path), "size_bytes": path.stat().st_size + 1})
    deploy(run, "best", photos)
    assert not MEASURED.keys() & read_metadata(run.folder / "best" / "colorizer.onnx").keys()


def test_a_graph_that_colours_otherwise_is_not_published(run: Run, tmp_path: Path, monkeypatch: object) -> None:
    real = deployable.build_picture_graph

    def build_wrongly(*arguments: object, **options: object) -> onnx.ModelProto:
        model = real(*arguments, **options)
        for tensor in model.graph.initializer:
            if tensor.name == "saturation":
                tensor.CopyFrom(numpy_helper.from_array(np.array(1.8, np.float32), tensor.name))
        return model

    monkeypatch.setattr(deployable, "build_picture_graph", build_wrongly)  # type: ignore[attr-defined]
    with pytest.raises(GateError, match=r"colorizer\.onnx': a pixel differs by \d+ grey levels"):
        export_colorizer(run.folder / "best" / "model.onnx", tmp_path / "colorizer.onnx")
    assert not (tmp_path / "colorizer.onnx").exists()


def test_rounding_that_a_network_enlarges_is_its_own_and_another_lightness_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in 8 bits, other colours come of lightness that differs by 1e-7; that of the picture work differs by 1e-3."""
    source, made = tmp_path / "model.onnx", tmp_path / "colorizer.onnx"
    text = """<ir_version: 8, opset_import: ["" : 18]>
        network (float[N, 1, H, W] L) => (float[N, 2, H, W] ab) <float factor = {10000000.0}, float half = {0.5}> {
            large = Mul(L, factor)  wave = Sin(large)  colour = Mul(wave, half)  ab = Concat<axis = 1>(colour, wave)
        }"""
    onnx.save(onnx.parser.parse_model(text), source)
    assert export_colorizer(source, made, work_size=48).parity.max_levels <= 1
    made.unlink()
    right = picture_graph._measure_lightness
    monkeypatch.setattr(picture_graph, "_measure_lightness", lambda g, code: g("Mul", right(g, code), 0.999))
    with pytest.raises(GateError, match="sees another lightness of a picture of"):
        export_colorizer(source, made, work_size=48)
    assert not made.exists()


def test_verification_judges_float_and_reports_the_rest(run: Run, photos: list[Photo]) -> None:
    pack(run, run.folder / "best" / "model.onnx", "best-w8")
    deploy(run, "best", photos)
    record = verify(run, exported_variants(run), photos)
    assert exported_variants(run) == ["best", "best-w8"]
    written = json.loads((run.folder / "parity.json").read_text())
    found, matrix = written["variants"], written["providers"]
    assert list(matrix) == ["best/model.onnx", "best-w8/model.onnx", "best/colorizer.onnx"]
    rows = {row["provider"]: row for row in matrix["best/colorizer.onnx"]}
    assert (rows["onnxruntime"]["how"], rows["onnxruntime"]["max_difference"]) == ("executed here", 0.0)
    assert rows["cuda-graph"]["how"] == "checked only" and not rows["cuda-graph"]["takes"]
    assert "best/colorizer.onnx" in (run.folder / "providers.txt").read_text()
    assert found["best"]["max_abs"] < 1e-4 < found["best-w8"]["max_abs"]
    assert found["best"]["pictures"]["own_network"]["max_levels"] <= 1
    assert not found["best-w8"]["pictures"] and record.result["failed"] == []
    table = pd.read_csv(run.folder / "parity.csv")
    assert table.groupby("variant").size().to_dict() == {"best": 208, "best-w8": 208}
    assert table["max_abs"].max() == pytest.approx(found["best-w8"]["max_abs"])
    assert verify(run, exported_variants(run), photos).skipped


def test_verification_is_done_again_once_another_runtime_is_here(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    decides: list[Any] = []

    def note(self: Run, name: str, action: Any, *, inputs: Any, settings: dict[str, Any]) -> StageRecord:
        decides.append(settings["runtimes"])
        return StageRecord(name, "", {}, {"failed": []}, 0.0)

    monkeypatch.setattr(Run, "do", note)
    verify(run, ["best"], [])
    arrived = replace(RUNTIMES["onnxruntime-coreml"], require=lambda: None)
    monkeypatch.setattr(deploy_stages, "RUNTIMES", {**RUNTIMES, arrived.name: arrived})
    verify(run, ["best"], [])
    assert set(decides[1]) - set(decides[0]) == {arrived.name} and "onnxruntime" in decides[0]


def test_verification_fails_for_a_file_that_answers_otherwise(run: Run, photos: list[Photo]) -> None:
    path = run.folder / "best" / "model.onnx"
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name.endswith("head.bias"):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.01), tensor.name))
    onnx.save(model, path)
    for _ in range(2):  # the second time from the record
        with pytest.raises(GateError, match="best differ from PyTorch"):
            verify(run, ["best"], photos)
    assert json.loads((run.folder / "parity.json").read_text())["failed"] == ["best"]


def test_a_bundle_is_of_the_variant_that_is_named_or_recommended(run: Run, photos: list[Photo]) -> None:
    split = PhotoSplit(train=tuple(photos), test=tuple(photos))
    path = run.folder / "best" / "model.onnx"
    with pytest.raises(ConfigError, match=r"holds no benchmark\.json to choose by"):
        bundle(run, None, run.folder / "bundle", split, web=False)
    with pytest.raises(ConfigError, match="no such variant"):
        bundle(run, "other", run.folder / "bundle", split, web=False)
    made = bundle(run, "best", run.folder / "one", split, web=False)
    assert (made.folder / "colorizer.onnx").read_bytes() == (run.folder / "best" / "colorizer.onnx").read_bytes()
    common = {"weights_bytes": 1, "p50_ms": 2.0, "content_low": 0.955, "content_high": 0.98}
    original = row_of("best.pt", run.best_path, runtime="torch", speedup=1.0, **common)
    write_rows(run, original, row_of("best", path, speedup=3.0, **common))
    with pytest.raises(ConfigError, match="recommends nothing: No variant"):
        write_rows(run, original, row_of("best", path, speedup=0.2, **common))
        bundle(run, None, run.folder / "two", split, web=False)
    write_rows(run, original, row_of("best", path, speedup=3.0, **common))
    card = (bundle(run, None, run.folder / "two", split, web=False).folder / "MODEL_CARD.md").read_text()
    assert "| content colour C | 0.960 (95 % interval 0.95 to 0.98) |" in card and "4 to learn from" in card
    assert "| the measure that decides | content colour C |" in card
    assert "How strong the original is: best.pt on 7 photographs: L1 21.0 % below grey" in card and "Beware" not in card
    # The same figures recommend nothing where the original is weak, since fidelity decides.
    poor = [{**original, "fidelity": 1.0}, row_of("best", path, speedup=3.0, **common, fidelity=0.7)]
    write_rows(run, *poor)
    assert bundle(run, None, run.folder / "three", split, web=False).folder.is_dir()
    write_rows(run, *poor, strength=WEAK)
    with pytest.raises(ConfigError, match="recommends nothing: No variant"):
        bundle(run, None, run.folder / "four", split, web=False)
    weak = bundle(run, "best", run.folder / "four", split, web=False).folder / "MODEL_CARD.md"
    assert "**Beware:** That is not clearly better than a table of colours" in weak.read_text()


def test_the_commands(run: Run, photos: list[Photo], capsys: pytest.CaptureFixture[str]) -> None:
    folder = photos[0].path.parent
    options = ["-o", str(run.folder), "--data", str(folder)]
    # Photographs beside the run folder, not above it.
    (folder / "photos").mkdir()
    for photo in photos:
        photo.path.rename(folder / "photos" / photo.path.name)
    options[3] = str(folder / "photos")
    assert run_command(["deploy", *options, "--work-size", "40"]) == 0
    assert "colorizer.onnx" in capsys.readouterr().out
    path = str(run.folder / "best" / "colorizer.onnx")
    assert run_command(["inspect", path]) == 0
    assert "work_size: 40" in capsys.readouterr().out
    assert run_command(["bundle", *options, "--variant", "best", "--no-web", "--json"]) == 0
    assert "colorize.py" in json.loads(capsys.readouterr().out)["files"]
    arguments = ["--model", path, "-o", str(folder / "coloured"), "--runtime", "openvino", "--saturation", "0"]
    assert run_command(["colorize", str(folder / "photos"), *arguments]) == 0
    assert len(list((folder / "coloured").iterdir())) == 4


def test_ort_format_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        write_ort(tmp_path / "gone.onnx", tmp_path / "gone.ort")
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    with pytest.raises(InputError, match=r"bad\.onnx"):
        write_ort(tmp_path / "bad.onnx", tmp_path / "bad.ort")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bad.onnx"]


def test_a_folder_without_networks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no model\.onnx"):
        exported_variants(Run(tmp_path))
