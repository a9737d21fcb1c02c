"""Files for phones: what they say of themselves, what is done around them, and their answers where the extras are."""

from __future__ import annotations

import importlib.util
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_PLAN, make_network

from benchmarks import variants
from benchmarks.variants import describe_models, list_variants
from colorpress.core.config import ArchConfig, Settings
from colorpress.core.errors import InputError, MachineError
from compress.export_stages import export_for_phones
from export import latency_worker
from export.mobile_files import MOBILE_FORMATS, export_mobile, worst_db
from export.mobile_predictors import MobileDescription, MobilePredictor, read_description, resize_area
from export.onnx_probe import refuse_hostile
from export.predictors import Floats
from export.runtimes import RUNTIMES, find_runtime, open_predictor
from export.timing import Condition, make_job, run_worker
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.input_sizes import resize
from training.run_folder import Run
from training.unet import UNetPlan


class Recorded(MobilePredictor):
    """Answers L and -L, and keeps the shapes that it was asked for."""

    provider = "recorded"

    def _load(self, threads: int) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def _infer(self, lightness: Floats) -> Floats:
        self.shapes.append(lightness.shape)
        self.last = lightness
        return np.concatenate([lightness, -lightness], axis=1)


def write(path: Path, multiple: int, longest: int, sha256: str = "abc") -> Path:
    path.write_bytes(b"TFL3 and weights" + MobileDescription("int8", multiple, longest, sha256).to_bytes() + b"more")
    return path


def test_a_file_says_what_it_reads_in_any_place(tmp_path: Path) -> None:
    assert read_description(write(tmp_path / "a.tflite", 16, 512)) == MobileDescription("int8", 16, 512, "abc")
    for content in (
        b"TFL3 weights alone",
        b"colorpress-mobile:{}",
        MobileDescription("int8", 0, 512, "abc").to_bytes(),
        MobileDescription("int8", 64, 32, "abc").to_bytes(),
        b'colorpress-mobile:{"size_multiple": 1e999}',
    ):
        (tmp_path / "b.pte").write_bytes(content)
        with pytest.raises(InputError, match="does not say what it reads"):
            read_description(tmp_path / "b.pte")


def test_pictures_are_padded_cropped_and_averaged_down_to_what_the_file_reads(tmp_path: Path) -> None:
    several = Recorded(write(tmp_path / "a.pte", 8, 64))
    lightness = np.random.default_rng(0).random((2, 1, 13, 21), dtype=np.float32)
    np.testing.assert_array_equal(several(lightness), np.concatenate([lightness, -lightness], axis=1))
    assert several.shapes == [(1, 1, 16, 24)] * 2, "one at a time, the next multiples"
    np.testing.assert_array_equal(several.last[0, 0, 13:, :21], lightness[1, 0, 12:13].repeat(3, 0), "the edge goes on")
    one = Recorded(write(tmp_path / "b.tflite", 32, 32))
    assert one(lightness).shape == (2, 2, 13, 21)
    wide = np.linspace(0.0, 1.0, 40 * 80, dtype=np.float32).reshape(1, 1, 40, 80)
    answer = one(wide)
    assert set(one.shapes) == {(1, 1, 32, 32)} and answer.shape == (1, 2, 40, 80)
    # A ramp survives but for its ends.
    assert np.abs(answer[:, :1] - wide)[..., 4:-4, 4:-4].max() < 0.02


def test_several_threads_share_a_file_that_computes_one_picture_at_a_time(tmp_path: Path) -> None:
    class Slow(Recorded):
        is_busy = False

        def _infer(self, lightness: Floats) -> Floats:
            assert not self.is_busy, "another picture's answer would be in the same place"
            self.is_busy = True
            time.sleep(0.02)
            self.is_busy = False
            return super()._infer(lightness)

    slow = Slow(write(tmp_path / "a.pte", 8, 64))
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda value: slow(np.full((1, 1, 8, 8), value, np.float32)), range(4)))
    assert [each[0, 0, 0, 0] for each in answers] == [0, 1, 2, 3]


def test_resizing_without_torch_is_resizing_with_it() -> None:
    values = np.random.default_rng(1).random((2, 3, 17, 40), dtype=np.float32)
    for size in ((17, 40), (5, 9), (31, 64)):
        np.testing.assert_allclose(resize_area(values, size), resize(torch.from_numpy(values), size), atol=1e-6)


def test_a_library_that_is_not_installed_is_said_before_anything_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for suffix, module in (
        (".tflite", "ai_edge_litert.interpreter"),
        (".pte", "executorch.extension.pybindings.portable_lib"),
    ):
        monkeypatch.setitem(sys.modules, module, None)
        path = write(tmp_path / f"a{suffix}", 8, 64)
        for ask in (refuse_hostile, open_predictor, lambda path: find_runtime(path).require()):
            with pytest.raises(MachineError, match="is not installed") as caught:
                ask(path)
            assert "its extra" in caught.value.hint
    checkpoint = tmp_path / "best.pt"
    save_checkpoint(checkpoint, Checkpoint(TINY_PLAN, make_network().state_dict()))
    for name, kind in MOBILE_FORMATS.items():
        monkeypatch.setitem(sys.modules, kind.tool, None)
        run = Run(tmp_path, Settings.from_options({"mobile_format": [name]}))
        with pytest.raises(MachineError, match="is not installed"):
            export_for_phones(run, checkpoint, "best", ())


@pytest.mark.parametrize("name", ["tflite", "pte"])
def test_what_is_traced_is_within_what_the_file_reads(name: str, tmp_path: Path) -> None:
    traced: list[tuple[int, ...]] = []

    def write_nothing(whole: torch.nn.Module, example: torch.Tensor, described: MobileDescription, _: object) -> bytes:
        traced.append(tuple(example.shape))
        assert max(example.shape) <= described.longest_side
        return b""

    kind = replace(MOBILE_FORMATS[name], tool="json", write=write_nothing)
    with pytest.raises(InputError, match="is empty"):
        export_mobile(Checkpoint(TINY_PLAN, make_network().state_dict()), tmp_path / "model", kind, side=2048)
    assert traced and (not kind.has_one_size or traced == [(1, 1, 2048, 2048)])


def test_a_run_folder_lists_those_that_can_run_and_says_why_others_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    save_checkpoint(run.best_path, Checkpoint(TINY_PLAN, make_network().state_dict()))
    sha256 = load_checkpoint(run.best_path).sha256
    for folder, made_of in (("best", sha256), ("best-int8", "another")):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "model.tflite", 16, 512, made_of)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    assert [each.name for each in list_variants(run)] == ["best.pt"]
    said = capsys.readouterr().err
    assert "best/model.tflite is left out: runtime 'litert': is not installed" in said
    assert "best-int8/model.tflite is of another checkpoint" in said
    monkeypatch.setattr(variants, "find_runtime", lambda path, name="": replace(RUNTIMES["litert"], require=list))
    best, ours = list_variants(run)
    assert (ours.name, ours.runtime, ours.precision, ours.params) == ("best.tflite", "litert", "int8", best.params)
    assert ours.size_bytes == ours.path.stat().st_size and ours.macs == best.macs > 0
    (named,) = describe_models([tmp_path / "best" / "model.tflite"], size=32, arch=ArchConfig())
    assert (named.name, named.macs) == ("best.tflite", 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", MOBILE_FORMATS)
def test_it_answers_as_pytorch_does_at_any_size(name: str, tmp_path: Path) -> None:
    """Needs the extras; translating takes half a minute each."""
    kind = MOBILE_FORMATS[name]
    if importlib.util.find_spec(kind.tool.partition(".")[0]) is None:
        pytest.skip(f"{kind.package} is not installed")
    plan = UNetPlan.classic(4, 2)
    saved = save_checkpoint(tmp_path / "best.pt", Checkpoint(plan, make_network(plan).state_dict()))
    checkpoint, path = load_checkpoint(saved), tmp_path / f"model{kind.suffix}"
    seen = [np.random.default_rng(seed).random((1, 1, 32, 48), dtype=np.float32) for seed in range(4)]
    made = export_mobile(checkpoint, path, kind, side=30, pictures=seen)
    assert made.path == path and made.size_bytes == path.stat().st_size
    assert read_description(path).size_multiple == (32 if kind.has_one_size else 4)
    assert (worst_db(made.parity) or 999.0) > (100.0 if kind.precision == "fp32" else 15.0)
    refuse_hostile(path)
    runtime = find_runtime(path)
    again, reference = open_predictor(path, threads=1), open_predictor(saved, threads=1)
    sizes = ((2, 1, 32, 32),) if kind.has_one_size else ((2, 1, 13, 21), (1, 1, 64, 32), (1, 1, 1, 1))
    for size in sizes:
        lightness = np.random.default_rng(1).random(size, dtype=np.float32)
        atol = 1e-5 if kind.precision == "fp32" else 0.5
        np.testing.assert_allclose(again(lightness), reference(lightness), atol=atol, rtol=0)
    assert open_predictor(path)(np.zeros((1, 1, 100, 50), np.float32)).shape == (1, 2, 100, 50)
    job = make_job(path, runtime.name, Condition(1, 32, 1), warmup=1, runs=3, min_seconds=0.0)
    done = run_worker(job, threads=1, timeout_s=120, module=latency_worker)
    assert done["status"] == "ok" and done["imported_torch"] == ("torch" in runtime.modules), done
    path.write_bytes(
        path.read_bytes()[: path.stat().st_size * 2 // 3] + MobileDescription("fp32", 4, 64, "").to_bytes()
    )
    with pytest.raises(InputError):
        refuse_hostile(path)
