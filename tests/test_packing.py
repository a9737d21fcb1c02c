"""Weights packed into bytes: a quarter of the size, the float network when it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from colorpress.core.config import ExportConfig
from colorpress.core.errors import ConfigError, InputError
from compress.int8.int8_choice import quantize_onnx
from compress.packing import pack_onnx
from export.graph import export_onnx, read_metadata
from export.predictors import OnnxPredictor, OpenVinoPredictor
from tests.conftest import make_network
from training.checkpoint import Checkpoint
from training.unet import UPSAMPLERS, UNetPlan


def exported(folder: Path, plan: UNetPlan) -> Path:
    checkpoint = Checkpoint(plan, make_network(plan).state_dict(), val_l1=0.5, sha256="ab" * 32)
    return export_onnx(checkpoint, folder / "model.onnx", ExportConfig()).path


def test_an_affine_answer_is_packed_too(tmp_path: Path) -> None:
    plan = UNetPlan(((24, 24), (24,)), (), stem_stride=4, affine=True)
    source = exported(tmp_path, plan)
    result = pack_onnx(source, tmp_path / "w8.onnx")
    assert "head" in result.packed  # four channels of 24
    picture = np.random.default_rng(0).random((2, 1, 37, 50), dtype=np.float32)
    expected, got = (OnnxPredictor(path, threads=1)(picture) for path in (source, result.path))
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    np.testing.assert_allclose(OpenVinoPredictor(result.path, threads=1)(picture), got, atol=5e-3)


@pytest.mark.parametrize("upsample", UPSAMPLERS)
def test_a_quarter_of_the_size_and_the_same_answer(tmp_path: Path, upsample: str) -> None:
    source = exported(tmp_path, UNetPlan.classic(16, 2, upsample))
    result = pack_onnx(source, tmp_path / "w8.onnx")
    assert result.size_bytes == result.path.stat().st_size < 0.4 * source.stat().st_size
    assert "decoder.0.0" in result.packed and "encoder.0.3" in result.packed and "head" not in result.packed
    picture = np.random.default_rng(0).random((2, 1, 37, 50), dtype=np.float32)
    expected = OnnxPredictor(source, threads=1)(picture)
    got = OnnxPredictor(result.path, threads=1)(picture)
    assert 0 < np.abs(got - expected).max() < 0.05 * np.abs(expected).max()
    # OpenVINO computes in bf16 where the processor has it.
    np.testing.assert_allclose(OpenVinoPredictor(result.path, threads=1)(picture), got, atol=5e-3)
    metadata = read_metadata(result.path)
    assert metadata["precision"] == "w8"
    assert metadata["checkpoint_sha256"] == "ab" * 32
    assert "val_l1" not in metadata


def test_each_weight_is_off_by_half_a_step_of_its_channel_at_most(tmp_path: Path) -> None:
    source = exported(tmp_path, UNetPlan.classic(8, 1))
    before = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(source).graph.initializer}
    result = pack_onnx(source, tmp_path / "w8.onnx")
    after = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer}
    for name in result.packed:
        weight, scale = before[f"{name}.weight"], after[f"{name}.weight.s"]
        assert after[f"{name}.weight.q"].dtype == np.int8
        assert scale.shape == (len(weight), 1, 1, 1)
        assert (np.abs(after[f"{name}.weight.q"] * scale - weight) <= 0.5001 * scale).all()
        assert np.abs(after[f"{name}.weight.q"]).max(axis=(1, 2, 3)).min() == 127


def test_unpacking_is_done_while_loading(tmp_path: Path) -> None:
    result = pack_onnx(exported(tmp_path, UNetPlan.classic(8, 1)), tmp_path / "w8.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(result.path), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx")
    assert not {"Cast", "Mul", "DequantizeLinear"} & {node.op_type for node in loaded.graph.node}


def test_a_channel_of_zeros_stays_zero(tmp_path: Path) -> None:
    plan = UNetPlan.classic(8, 1)
    network = make_network(plan)
    network.head.weight.data[1] = 0
    path = export_onnx(Checkpoint(plan, network.state_dict()), tmp_path / "model.onnx", ExportConfig()).path
    answer = OnnxPredictor(pack_onnx(path, tmp_path / "w8.onnx").path)(np.zeros((1, 1, 8, 8), np.float32))
    assert np.ptp(answer[:, 1]) == pytest.approx(0.0, abs=1e-7)


def test_what_cannot_be_packed(tmp_path: Path) -> None:
    source = exported(tmp_path, UNetPlan.classic(8, 1))
    packed = pack_onnx(source, tmp_path / "w8.onnx").path
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match="already quantized"):
        pack_onnx(packed, tmp_path / "again.onnx")
    with pytest.raises(InputError, match="already quantized"):
        quantize_onnx(packed, tmp_path / "int8.onnx", [], None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="no such file"):
        pack_onnx(tmp_path / "none.onnx", tmp_path / "again.onnx")
    assert sorted(tmp_path.iterdir()) == before
