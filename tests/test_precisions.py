"""One contract for every precision: its file opens, answers, is no larger than float, and is known for what it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import make_network, make_photo

from benchmarks.variants import describe_variant
from colorpress.core.config import Settings
from colorpress.core.stages import StageRecord
from compress.export_stages import export, pack
from compress.int8.int8_stage import quantize
from compress.precisions import (
    FLOAT,
    PRECISIONS,
    Precision,
    find_precision,
    origin_of,
    recognize_precision,
    variant_name,
    variant_names,
)
from export.graph import read_metadata
from export.predictors import OnnxPredictor
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.photo_split import PhotoSplit
from training.run_folder import Run, find_photos
from training.unet import UNetPlan

Made = tuple[Run, Precision, Path]
Maker = Callable[[Run, Path, str, PhotoSplit, str], StageRecord]
MAKERS: dict[str, Maker] = {
    "export": lambda run, _source, variant, _photos, _name: export(run, run.best_path, variant),
    "quantize": lambda run, source, variant, photos, _name: quantize(run, source, variant, photos),
    "pack": lambda run, source, variant, photos, name: pack(run, source, variant, name, photos.train),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, PhotoSplit]:
    """A run folder with best.pt and best/model.onnx."""
    folder = tmp_path_factory.mktemp("precisions")
    (folder / "photos").mkdir()
    for index in range(8):
        make_photo(index).save(folder / "photos" / f"{index}.png")
    options = {"data": folder / "photos", "threads": 1, "rank_size": 32, "calibration_photos": 2, "choosing_photos": 1,
               "eval_size": 32, "qat_crops": 0, "test_share": 0.2, "val_share": 0.2}  # fmt: skip
    run = Run(folder / "out", Settings.from_options(options))
    plan = UNetPlan.classic(16, 2)
    save_checkpoint(run.best_path, Checkpoint(plan, make_network(plan).state_dict(), val_l1=0.1))
    export(run, run.best_path, "best")
    return run, find_photos(run)


@pytest.fixture(scope="module", params=PRECISIONS)
def made(request: pytest.FixtureRequest, exported: tuple[Run, PhotoSplit]) -> Made:
    """The best.pt of a run folder in each precision."""
    run, photos = exported
    precision = PRECISIONS[request.param]
    variant = variant_name("best", precision.name)
    MAKERS[precision.made_by](run, run.folder / "best" / "model.onnx", variant, photos, precision.name)
    return run, precision, run.folder / variant / "model.onnx"


class TestEveryPrecision:
    def test_its_file_opens_and_answers_finite_colours(self, made: Made) -> None:
        run, precision, path = made
        lightness = np.random.default_rng(0).random((2, 1, 37, 50), dtype=np.float32)
        answer = OnnxPredictor(path, threads=1)(lightness)
        assert answer.shape == (2, 2, 37, 50) and answer.dtype == np.float32 and np.isfinite(answer).all()
        with torch.no_grad():
            expected = load_checkpoint(run.best_path).build_network()(torch.from_numpy(lightness)).numpy()
        if precision.exact:
            assert np.abs(answer - expected).max() <= run.settings.export.atol
        else:  # off by rounding, but still the answer of this network and not of another
            assert 0 < np.abs(answer - expected).mean() < 0.2 * np.abs(expected).mean()

    def test_it_is_no_larger_than_float(self, made: Made) -> None:
        run, _, path = made
        assert path.stat().st_size <= (run.folder / "best" / "model.onnx").stat().st_size

    def test_metadata_says_what_it_is(self, made: Made) -> None:
        _, precision, path = made
        assert find_precision(read_metadata(path).get("precision", FLOAT.name)) is precision

    def test_a_graph_without_metadata_is_recognized(self, made: Made, tmp_path: Path) -> None:
        _, precision, path = made
        model = onnx.load(path)
        del model.metadata_props[:]
        onnx.save(model, tmp_path / "silent.onnx")
        assert describe_variant("silent", tmp_path / "silent.onnx").precision == precision.name

    def test_its_name_leads_back_to_the_float_variant(self, made: Made) -> None:
        _, precision, path = made
        name = path.parent.name
        assert name == variant_name("best", precision.name) and name in variant_names("best")
        assert origin_of(name) == "best" and name.endswith(precision.ending)
        assert (name == "best") is (precision is FLOAT)


def test_endings_tell_precisions_apart() -> None:
    endings = [each.ending for each in PRECISIONS.values() if each is not FLOAT]
    assert all(endings) and not any(a is not b and a.endswith(b) for a in endings for b in endings)
    assert variant_names("x")[0] == "x" and origin_of("front/7-w8") == "front/7" and origin_of("w8") == "w8"


@pytest.mark.parametrize(
    ("operators", "types", "expected"),
    [
        ({"Conv"}, {"float32"}, "fp32"),
        ({"QLinearConv"}, {"int8"}, "int8"),
        ({"DynamicQuantizeLinear", "ConvInteger"}, {"int8"}, "int8"),
        ({"DequantizeLinear", "Conv"}, {"int8"}, "w8"),
        ({"Conv", "DequantizeLinear"}, {"int4"}, "w4"),
        ({"Conv"}, {"float16"}, "fp16"),
        (set(), set(), "fp32"),
    ],
)
def test_graphs_of_other_tools(operators: set[str], types: set[str], expected: str) -> None:
    assert recognize_precision(operators, types).name == expected


def test_a_precision_of_another_tool_claims_nothing() -> None:
    found = find_precision("int4")
    assert (found.name, found.exact, found.computes, found.ending) == ("int4", False, "", "")
