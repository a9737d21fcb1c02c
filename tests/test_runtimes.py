"""The contract that every runtime of the table keeps, and what is true of the table itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_PLAN, make_network

from colorpress.core.config import RUNTIME_NAMES, ArchConfig, ExportConfig
from colorpress.core.errors import ConfigError, MachineError
from export import latency_worker
from export.deployable import export_colorizer
from export.graph import export_onnx
from export.runtimes import RUNTIMES, Opening, find_runtime, open_colorizer, open_predictor, runtimes_of
from export.timing import Condition, make_job, run_worker
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

PICTURE = np.random.default_rng(0).random((2, 1, 13, 21), dtype=np.float32)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# bf16 keeps 8 bits; chroma of this network is within a few hundredths.
TOLERANCE = {"fp32": 1e-5, "fp16": 5e-3, "bf16": 0.05}


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

    def test_it_is_named_for_people_and_for_the_option(self, name: str) -> None:
        runtime = RUNTIMES[name]
        assert runtime.name == name and name in RUNTIME_NAMES
        assert runtime.title and runtime.family in ("PyTorch", "ONNX Runtime", "OpenVINO")
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
        for suffix in [each for each in RUNTIMES[name].suffixes if each in files]:
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
        suffix = next(each for each in runtime.suffixes if each in files)
        self.open(name, files[suffix])
        job = make_job(files[suffix], name, Condition(1, 16, 1), warmup=1, runs=2, min_seconds=0.0, device=DEVICE)
        done = run_worker(job, threads=1, timeout_s=120, module=latency_worker)
        assert done["status"] == "ok", done
        assert len(done["times_ns"]) >= 2 and done["provider"] and done["compute"] in TOLERANCE
        assert done["imported_torch"] == (runtime.family == "PyTorch")

    def test_it_colours_pictures(self, name: str, files: dict[str, Path]) -> None:
        runtime = RUNTIMES[name]
        if runtime.uncompiled != name or DEVICE not in runtime.devices:
            pytest.skip("compiling takes half a minute, and a GPU is not here")
        pixels = np.random.default_rng(1).integers(0, 256, (19, 23, 3), dtype=np.uint8)
        kinds = [".pt"] if ".pt" in runtime.suffixes else [".onnx", "pictures"]
        expected = open_colorizer(files[".pt"], work_size=16, threads=1)(pixels).astype(int)
        for kind in kinds:
            self.open(name, files[kind if kind != "pictures" else ".onnx"])
            answer = open_colorizer(files[kind], runtime=name, work_size=16, device=DEVICE, threads=1)(pixels)
            assert answer.dtype == np.uint8 and answer.shape == (19, 23, 3)
            assert np.abs(answer - expected).max() <= 4


def test_the_option_and_the_table_have_the_same_names_in_the_same_order() -> None:
    assert tuple(RUNTIMES) == RUNTIME_NAMES


def test_a_files_own_runtime_stands_first(files: dict[str, Path]) -> None:
    own = {".pt": "torch", ".onnx": "onnxruntime", ".xml": "openvino"}
    for suffix, name in own.items():
        assert runtimes_of(Path(f"model{suffix}"))[0] == find_runtime(Path(f"model{suffix}")).name == name
    with pytest.raises(ConfigError, match=r"ends in '\.tflite'"):
        runtimes_of(Path("model.tflite"))
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
