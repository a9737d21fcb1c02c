"""The contract that every runtime of the table keeps, and what is true of the table itself."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_PLAN, make_network

from colorpress.core.config import ArchConfig, ExportConfig
from colorpress.core.errors import ConfigError, MachineError
from export import latency_worker, runtimes
from export.deployable import export_colorizer
from export.graph import export_onnx
from export.predictors import Floats, TimedPredictor
from export.runtimes import (
    RUNTIMES,
    Opening,
    Runtime,
    check_names,
    find_runtime,
    open_colorizer,
    open_predictor,
    runtimes_of,
)
from export.timing import Condition, make_job, run_worker
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

PICTURE = np.random.default_rng(0).random((2, 1, 13, 21), dtype=np.float32)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bf16 keeps 8 bits; chroma of this network is within a few hundredths.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 0.05}


class Grey(TimedPredictor):
    """What another package might bring."""

    provider = "mine"

    def __call__(self, lightness: Floats) -> Floats:
        return np.zeros((len(lightness), 2, *lightness.shape[2:]), np.float32)


MINE = Runtime("mine", "Mine", lambda path, opening: Grey(), family="Mine", suffixes=(".mine",), modules=())
OTHER_TORCH = replace(MINE, name="torch")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same small network as a file of every kind, by its suffix, and as a picture graph."""
    folder = tmp_path_factory.mktemp("runtimes")
    checkpoint = save_checkpoint(folder / "best.pt", Checkpoint(TINY_PLAN, make_network().state_dict()))
    found = {".pt": checkpoint, ".onnx": folder / "model.onnx", "pictures": folder / "colorizer.onnx"}
    export_onnx(load_checkpoint(checkpoint), found[".onnx"], ExportConfig())
    export_colorizer(found[".onnx"], found["pictures"], work_size=16)
    try:
        import openvino
    except ImportError:
        return found
    found[".xml"] = folder / "model.xml"
    openvino.save_model(openvino.convert_model(found[".onnx"]), found[".xml"], compress_to_fp16=False)
    return found


@pytest.mark.parametrize("name", RUNTIMES)
class TestEveryRuntime:
    def open(self, name: str, path: Path) -> Any:
        """The file opened, or a skip where this machine lacks what it takes, which has to be said by exit code 4."""
        runtime = RUNTIMES[name]
        try:
            return open_predictor(path, runtime=name, device=DEVICE, threads=1)
        except MachineError as error:
            assert error.exit_code == 4 and error.hint
            assert runtime.needs_gpu or runtime.family != "PyTorch"
            pytest.skip(str(error))

    def suffixes_of(self, name: str, files: dict[str, Path]) -> list[str]:
        """What it runs of the files, or a skip where none can be made here: `test_mobile_files` makes its own."""
        runtime = RUNTIMES[name]
        if not (found := [each for each in runtime.suffixes if each in files]):
            with pytest.raises(MachineError, match="is not installed"):
                runtime.require()
            pytest.skip(f"no {runtime.suffixes[0]} can be made here")
        return found

    def test_it_is_named_for_people_and_for_the_option(self, name: str) -> None:
        runtime = RUNTIMES[name]
        assert runtime.name == name and runtime.title and runtime.family
        assert runtime.suffixes and set(runtime.devices) <= {"cpu", "cuda"} and runtime.devices

    def test_what_answers_without_a_compiler_runs_the_same_files_and_compiles_nothing(self, name: str) -> None:
        runtime = RUNTIMES[name]
        plain = RUNTIMES[runtime.uncompiled]
        assert plain.uncompiled == plain.name
        assert (plain.suffixes, plain.devices, plain.family) == (runtime.suffixes, runtime.devices, runtime.family)

    def test_it_answers_as_eager_pytorch_does(self, name: str, files: dict[str, Path]) -> None:
        if RUNTIMES[name].uncompiled != name:
            pytest.skip("compiling takes half a minute: a slow test of test_torch_runtimes does it")
        expected = open_predictor(files[".pt"], threads=1)(PICTURE)
        for suffix in self.suffixes_of(name, files):
            predictor = self.open(name, files[suffix])
            answer = predictor(PICTURE)
            assert answer.dtype == np.float32 and np.isfinite(answer).all()
            tolerance = TOLERANCE[predictor.compute_precision(PICTURE.shape)]
            np.testing.assert_allclose(answer, expected, atol=tolerance, rtol=0)
            assert predictor.provider and (predictor.time_resident(PICTURE) is None) == (DEVICE == "cpu")

    def test_it_refuses_what_it_does_not_run(self, name: str, files: dict[str, Path]) -> None:
        others = [path for suffix, path in files.items() if path.suffix not in RUNTIMES[name].suffixes]
        assert others
        for path in others:
            with pytest.raises(ConfigError, match="cannot run"):
                open_predictor(path, runtime=name)

    def test_it_never_runs_elsewhere_than_it_is_asked_to(self, name: str, files: dict[str, Path]) -> None:
        runtime = RUNTIMES[name]
        if not runtime.needs_gpu:
            pytest.skip("runs on a CPU")
        with pytest.raises(MachineError, match="needs a GPU"):
            open_predictor(next(files[each] for each in runtime.suffixes if each in files), runtime=name, device="cpu")

    def test_a_worker_times_it(self, name: str, files: dict[str, Path]) -> None:
        runtime = RUNTIMES[name]
        if runtime.uncompiled != name:
            pytest.skip("compiling takes half a minute")
        suffix = self.suffixes_of(name, files)[0]
        self.open(name, files[suffix])
        job = make_job(files[suffix], name, Condition(1, 16, 1), warmup=1, runs=2, min_seconds=0.0, device=DEVICE)
        done = run_worker(job, threads=1, timeout_s=120, module=latency_worker)
        assert done["status"] == "ok", done
        assert len(done["times_ns"]) >= 2 and done["provider"] and done["compute"] in TOLERANCE
        assert done["imported_torch"] == ("torch" in runtime.modules)

    def test_it_colours_pictures(self, name: str, files: dict[str, Path]) -> None:
        runtime = RUNTIMES[name]
        if runtime.uncompiled != name or DEVICE not in runtime.devices:
            pytest.skip("compiling takes half a minute, and a GPU is not here")
        pixels = np.random.default_rng(1).integers(0, 256, (19, 23, 3), dtype=np.uint8)
        kinds = [*self.suffixes_of(name, files)[:1], *(["pictures"] if runtime.open_pictures else [])]
        expected = open_colorizer(files[".pt"], work_size=16, threads=1)(pixels).astype(int)
        for kind in kinds:
            self.open(name, files[kind if kind != "pictures" else ".onnx"])
            answer = open_colorizer(files[kind], runtime=name, work_size=16, device=DEVICE, threads=1)(pixels)
            assert answer.dtype == np.uint8 and answer.shape == (19, 23, 3)
            assert np.abs(answer - expected).max() <= 4


def test_an_unknown_name_is_refused_before_a_file_is_read() -> None:
    check_names(["torch", "litert"])
    with pytest.raises(ConfigError, match="'tensorflow': is unknown") as caught:
        check_names(["torch", "tensorflow"])
    assert "executorch" in caught.value.hint
    with pytest.raises(ConfigError, match="is unknown"):
        find_runtime(Path("model.onnx"), "tensorflow")


def test_another_package_adds_a_runtime_by_an_entry_point(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"mine": "MINE", "torch": "OTHER_TORCH", "gone": "NO_SUCH", "odd": "PICTURE"}
    theirs = [EntryPoint(name, f"{__name__}:{place}", "colorpress.runtimes") for name, place in places.items()]
    monkeypatch.setattr(runtimes, "entry_points", lambda group: theirs if group == "colorpress.runtimes" else [])
    table = runtimes.make_table()
    assert table["mine"] is MINE and list(table) == [*RUNTIMES, "mine"]
    assert table["torch"] is RUNTIMES["torch"], "ours stays"
    said = capsys.readouterr().err
    assert "runtime gone of another package is left out: AttributeError" in said
    assert "runtime odd of another package is left out" in said and "is no export.runtimes.Runtime" in said
    monkeypatch.setattr(runtimes, "RUNTIMES", table)
    assert runtimes_of(Path("model.mine")) == ("mine",)
    assert np.array_equal(open_predictor(Path("model.mine"))(PICTURE), np.zeros((2, 2, 13, 21)))


def test_a_files_own_runtime_stands_first(files: dict[str, Path]) -> None:
    own = {".pt": "torch", ".onnx": "onnxruntime", ".xml": "openvino"}
    for suffix, name in own.items():
        assert runtimes_of(Path(f"model{suffix}"))[0] == find_runtime(Path(f"model{suffix}")).name == name
    with pytest.raises(ConfigError, match=r"ends in '\.h5'"):
        runtimes_of(Path("model.h5"))
    with pytest.raises(ConfigError, match=r"cannot run best\.pt"):
        open_colorizer(files[".pt"], runtime="openvino")


def test_auto_is_the_cpu_where_there_is_no_gpu(files: dict[str, Path]) -> None:
    if DEVICE == "cuda":
        pytest.skip("there is one")
    for runtime, suffix in (("torch", ".pt"), ("onnxruntime", ".onnx")):
        assert open_predictor(files[suffix], runtime=runtime, device="auto", threads=1)(PICTURE).shape == (2, 2, 13, 21)
    with pytest.raises(MachineError, match="not present"):
        RUNTIMES["torch-fp16"].open(files[".pt"], Opening("auto", 1, ArchConfig()))


def test_the_table_imports_no_runtime() -> None:
    code = (
        "import sys, export.runtimes; sys.exit(bool({'torch', 'onnxruntime', 'openvino', 'onnx'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
