"""Opening models: the good ones answer, every bad one is one line with the right exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import export.onnx_probe
from benchmarks.accuracy import measure_accuracy
from benchmarks.variants import describe_variant
from colorpress.cli import run_command
from colorpress.core.config import BenchmarkPlan, ExportConfig
from colorpress.core.errors import ColorpressError, ConfigError, InputError, MachineError
from compress.packing import pack_onnx
from export.colorize_folder import DEMONSTRATION_MODEL
from export.colorizers import OpenVinoColorizer
from export.deployable import export_colorizer
from export.graph import export_onnx
from export.onnx_probe import format_inspection, inspect_onnx, refuse_hostile
from export.predictors import OnnxPredictor, OpenVinoPredictor
from export.runtimes import open_colorizer, open_predictor, provider_on
from export.torch_runtimes import TorchPredictor
from training.checkpoint import Checkpoint, save_checkpoint
from training.photos import Photo
from training.unet import UNet, UNetPlan

PLAN = UNetPlan.classic(2, 1)
PICTURE = np.linspace(0, 1, 35, dtype=np.float32).reshape(1, 1, 5, 7)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    checkpoint = Checkpoint(PLAN, UNet(PLAN).state_dict())
    save_checkpoint(folder / "best.pt", checkpoint)
    export_onnx(checkpoint, folder / "model.onnx", ExportConfig())
    return folder / "best.pt", folder / "model.onnx"


def test_both_kinds_open_and_agree(models):
    from_torch, from_onnx = (open_predictor(path, device="cpu", threads=1) for path in models)
    assert isinstance(from_torch, TorchPredictor) and isinstance(from_onnx, OnnxPredictor)
    np.testing.assert_allclose(from_torch(PICTURE), from_onnx(PICTURE), atol=1e-6)


def test_inspection_describes_the_file(models):
    found = inspect_onnx(models[1])
    assert found["inputs"] == {"L": ["N", 1, "H", "W"]}
    assert found["outputs"] == {"ab": ["N", 2, "H", "W"]}
    assert found["opset"] == 18
    assert found["metadata"]["precision"] == "fp32"
    assert found["nodes"]["DepthToSpace"] == 1
    assert found["int8_share"] == 0.0 and not found["quantized"]
    assert {layer["operator"] for layer in found["layers"]} == {"Conv"}
    assert found["weights"] == sum(layer["weights"] for layer in found["layers"])
    assert all(layer["size_bytes"] == 4 * layer["weights"] for layer in found["layers"])


def test_inspection_of_a_picture_graph_of_packed_weights_in_words(models, tmp_path):
    packed = pack_onnx(models[1], tmp_path / "model.onnx").path
    made = export_colorizer(packed, tmp_path / "colorizer.onnx", metadata={"retained_colour": "0.9876"})
    found = inspect_onnx(made.path)
    assert found["inputs"] == {"image": ["N", "H", "W", "C"], "work_size": [], "saturation": []}
    assert not found["quantized"] and {"int8", "fp32"} == {layer["stored"] for layer in found["layers"]}
    assert {layer["computed"] for layer in found["layers"]} == {"fp32"}
    assert found["nodes"]["Loop"] == 4 and found["nodes"]["If"] == 1 and found["nodes"]["QuantizeLinear"] == 1
    text = format_inspection(made.path, found)
    for line in ("reads   image (N, H, W, C)", "retained_colour: 0.9876", "precision: w8", "4 Loop"):
        assert line in text


def test_onnx_predictor_imports_no_torch(models):
    code = (
        "import sys, numpy; from pathlib import Path; from export.runtimes import open_colorizer, open_predictor;"
        "import export.colorize_folder; from export.onnx_probe import refuse_hostile;"
        "refuse_hostile(Path(sys.argv[1]));"
        "open_predictor(Path(sys.argv[1]), device='cpu', threads=1)(numpy.zeros((1, 1, 3, 3), numpy.float32));"
        "open_colorizer(Path(sys.argv[1]), threads=1)(numpy.zeros((3, 3, 3), numpy.uint8));"
        "sys.exit('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(export.onnx_probe.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, str(models[1])], check=True, env=environment)


def test_a_colorizer_opens_whatever_there_is(models, tmp_path):
    export_colorizer(models[1], tmp_path / "colorizer.onnx", work_size=32)
    pixels = np.random.default_rng(0).integers(0, 256, (45, 38, 3), dtype=np.uint8)
    files = (*models, tmp_path / "colorizer.onnx")
    answers = [open_colorizer(path, work_size=32, threads=1)(pixels).astype(int) for path in files]
    answers.append(open_colorizer(files[2], threads=1, runtime="openvino")(pixels).astype(int))
    assert max(np.abs(each - answers[0]).max() for each in answers[1:]) <= 2
    with pytest.raises(ConfigError, match="no such file"):
        open_colorizer(tmp_path / "gone.onnx")


def test_a_network_of_older_operators_is_coloured_with_too(models, tmp_path):
    """Split, Pad and ReduceSum of the picture work are not those of opset 13."""
    nodes = [helper.make_node("Concat", ["L", "L"], ["ab"], axis=1)]
    sides = ["N", 1, "H", "W"]
    graph = helper.make_graph(
        nodes,
        "old",
        [helper.make_tensor_value_info("L", TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info("ab", TensorProto.FLOAT, ["N", 2, "H", "W"])],
    )
    old = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.save(old, tmp_path / "old.onnx")
    assert open_colorizer(tmp_path / "old.onnx", threads=1)(np.zeros((9, 7, 1), np.uint8)).shape == (9, 7, 3)


def test_a_network_that_answers_nan_is_refused(models, tmp_path):
    model = onnx.load(models[1])
    for tensor in model.graph.initializer:
        if tensor.name.endswith("head.bias"):
            tensor.CopyFrom(numpy_helper.from_array(np.full(2, np.nan, np.float32), tensor.name))
    onnx.save(model, tmp_path / "nan.onnx")
    with pytest.raises(InputError, match="answers NaN or infinity"):
        refuse_hostile(tmp_path / "nan.onnx")


def test_threads_are_explicit(models):
    assert OnnxPredictor(models[1], threads=2).session.get_session_options().intra_op_num_threads == 2


def test_cuda_never_falls_back(models, monkeypatch):
    import onnxruntime as ort

    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(MachineError, match="no CUDA") as caught:
        OnnxPredictor(models[1], provider="cuda")
    assert caught.value.exit_code == 4
    # Offered but not usable: ONNX Runtime then takes the CPU without a word.
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", lambda *args, providers: real(*args, providers=providers[1:]))
    with pytest.raises(MachineError, match="fell back"):
        OnnxPredictor(models[1], provider="cuda:0")


def test_other_providers_of_onnx_runtime_are_named_and_never_replaced(models):
    assert provider_on("", "cuda:1") == "cuda:1"
    assert provider_on("tensorrt", "cuda:1") == "tensorrt:1"
    assert provider_on("openvino", "cpu") == "openvino"
    available = onnxruntime.get_available_providers()
    for runtime, device, title in (
        ("onnxruntime-openvino", "cpu", "OpenVINO"), ("onnxruntime-tensorrt", "cuda", "TensorRT"),
    ):  # fmt: skip
        if f"{title.replace('RT', 'rt')}ExecutionProvider" not in available:
            with pytest.raises(MachineError, match=f"has no {title}"):
                open_predictor(models[1], runtime=runtime, device=device)


@pytest.mark.parametrize("name", ["gpu", "cpu:1", "cuda:x", ""])
def test_unknown_providers(models, name):
    with pytest.raises(ConfigError):
        OnnxPredictor(models[1], provider=name)


def one_node(operator, inputs, *, name_in="L", name_out="ab", shape_in=("N", 1, "H", "W"), constants=(), **attributes):
    """A model of one node between a network's input and output."""
    node = helper.make_node(operator, [name_in, *inputs], [name_out], **attributes)
    value_in = helper.make_tensor_value_info(name_in, TensorProto.FLOAT, shape_in)
    value_out = helper.make_tensor_value_info(name_out, TensorProto.FLOAT, ("N", 2, "H", "W"))
    graph = helper.make_graph([node], "g", [value_in], [value_out], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def weights(shape, name="w"):
    return numpy_helper.from_array(np.ones(shape, np.float32), name)


def outside_tensor(location, dims=(2, 1, 1, 1)):
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=dims, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def bad_files(good: bytes) -> dict[str, bytes]:
    conv = {"constants": [weights((2, 1, 1, 1))]}
    opset = helper.make_model(onnx.load_model_from_string(good).graph, ir_version=10)
    del opset.opset_import[:]
    opset.opset_import.add(domain="", version=9999)
    domain = one_node("Conv", ["w"], **conv)
    domain.graph.node[0].domain = "evil.custom"
    domain.opset_import.add(domain="evil.custom", version=1)
    shape = numpy_helper.from_array(np.array([1, 2, 1 << 13, 1 << 13], np.int64), "w")
    models = {
        "zero stride": one_node("Conv", ["w"], strides=[0, 0], **conv),
        "blocks": one_node("DepthToSpace", [], blocksize=1 << 31),
        "zero block": one_node("DepthToSpace", [], blocksize=0),
        "escape": one_node("Conv", ["w"], constants=[outside_tensor("../../../../etc/passwd")]),
        "absolute": one_node("Conv", ["w"], constants=[outside_tensor("/etc/passwd")]),
        "sidecar": one_node("Conv", ["w"], constants=[outside_tensor("model.onnx.data")]),
        "input name": one_node("Conv", ["w"], name_in="input", **conv),
        "output name": one_node("Conv", ["w"], name_out="output", **conv),
        "rank": one_node("Conv", ["w"], shape_in=("N", 1, "W"), **conv),
        "channels": one_node("Conv", ["w"], shape_in=("N", 3, "H", "W"), constants=[weights((2, 3, 1, 1))]),
        "answer size": one_node("Conv", ["w"], strides=[2, 2], **conv),
        "too much memory": one_node("Tile", ["w"], constants=[shape]),
        "custom domain": domain,
        "opset": opset,
        "no nodes": helper.make_model(helper.make_graph([], "g", [], []), ir_version=10),
    }
    return {
        "empty": b"",
        "text": b"this is no model\n" * 9,
        "random": np.random.default_rng(0).bytes(5000),
        "zeros": bytes(5000),
        "half": good[: len(good) // 2],
        "one byte short": good[:-1],
        "lfs": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n",
        "html": b"\n<!DOCTYPE html><html>404</html>",
        "zip": b"PK\x03\x04" + bytes(100),
        **{name: model.SerializeToString() for name, model in models.items()},
    }


def test_hostile_files_end_in_one_line(models, tmp_path):
    good = models[1].read_bytes()
    (tmp_path / "model.onnx.data").write_bytes(bytes(8))
    wrong = {}
    for name, content in bad_files(good).items():
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        try:
            refuse_hostile(path)
            wrong[name] = "looked at without complaint"
        except InputError as error:
            if "\n" in str(error) or "Traceback" in str(error) or "root:" in str(error):
                wrong[name] = str(error)
        except ColorpressError as error:
            wrong[name] = repr(error)
    assert not wrong
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bad.onnx", "model.onnx.data"]


def test_missing_and_unsuitable_paths(tmp_path):
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "model.h5").write_bytes(b"x")
    for name, kind in (("none.onnx", ConfigError), ("folder.onnx", InputError), ("model.h5", ConfigError)):
        with pytest.raises(kind):
            open_predictor(tmp_path / name, device="cpu", threads=1)


def child_that(code: str, monkeypatch) -> None:
    """Let the probe's child run `code` in place of the inspection."""
    real = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **options: real([sys.executable, "-c", code], **options))


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGFPE, signal.SIGABRT, signal.SIGKILL])
def test_a_crash_of_the_child_is_an_input_error(models, monkeypatch, number):
    child_that(f"import os; os.kill(os.getpid(), {int(number)})", monkeypatch)
    with pytest.raises(InputError, match=number.name):
        inspect_onnx(models[1])


def test_a_child_that_hangs_is_ended(models, monkeypatch):
    child_that("import time; time.sleep(60)", monkeypatch)
    with pytest.raises(InputError, match=r"took more than 0\.2 s"):
        inspect_onnx(models[1], timeout_seconds=0.2)


def test_a_child_that_says_nothing(models, monkeypatch):
    child_that("raise SystemExit(7)", monkeypatch)
    with pytest.raises(InputError, match="exit 7"):
        inspect_onnx(models[1])


def test_openvino_answers_as_onnx_runtime_does_at_every_size(models):
    reference, other = OnnxPredictor(models[1], threads=1), OpenVinoPredictor(models[1], threads=1)
    for height, width in ((24, 32), (17, 40), (1, 9), (24, 32)):
        picture = np.random.default_rng(height).random((1, 1, height, width), dtype=np.float32)
        # OpenVINO computes in bf16 where the processor has it.
        np.testing.assert_allclose(other(picture), reference(picture), atol=2e-3)


def test_several_threads_share_what_openvino_computes_in(models, monkeypatch):
    under_way: list[int] = []

    class Request:
        """Answers the first value that it is given, a while later, in memory of its own."""

        answer = np.zeros((1, 1, 1, 1))

        def infer(self, given, *, share_inputs):
            under_way.append(1)
            self.answer[:] = next(iter(given.values())).flat[0]
            time.sleep(0.02)
            assert len(under_way) == 1, "another picture's answer would be in the same place"
            under_way.clear()
            return {"colorized": self.answer, 0: self.answer.copy()}

        def cancel(self):
            pass

    colorizer = OpenVinoColorizer(DEMONSTRATION_MODEL, DEMONSTRATION_MODEL.read_bytes(), threads=1)
    predictor = OpenVinoPredictor(models[1], threads=1)
    request = Request()
    monkeypatch.setattr(colorizer, "_request", request)
    monkeypatch.setattr(predictor, "_request_for", lambda shape: request)
    for ask, shape in ((colorizer, (1, 1, 3)), (predictor, (1, 1, 1, 1))):
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda value, ask=ask, shape=shape: ask(np.full(shape, value)), range(5)))
        assert [each.item() for each in answers] == list(range(5))


def test_openvino_says_what_it_cannot_read(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"no graph")
    with pytest.raises(InputError, match=r"bad\.onnx"):
        OpenVinoPredictor(tmp_path / "bad.onnx")
    with pytest.raises(ConfigError, match="no such file"):
        OpenVinoPredictor(tmp_path / "none.onnx")


def test_commands_let_a_child_open_a_users_file_first(models, tmp_path, capsys):
    """This file ends the process that opens it, by a division by zero."""
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(bad_files(models[1].read_bytes())["zero stride"])
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.png")
    command = ["colorize", str(tmp_path / "photo.png"), "--model", str(bad), "-o", str(tmp_path / "out")]
    assert run_command(command) == 3
    assert "bad.onnx" in capsys.readouterr().err
    photo = Photo(tmp_path / "photo.png", "0", 8, 8)
    variants = [describe_variant("best.pt", models[0]), describe_variant("bad", bad)]
    scored = measure_accuracy(variants, [photo], BenchmarkPlan(eval_size=16), max_pixels=10_000, threads=1).variants
    assert (scored["best.pt"].status, scored["bad"].status) == ("ok", "error")
