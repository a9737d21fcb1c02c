"""Weights packed into bytes: a quarter of the size, the float network when it is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

from benchmarks.variants import describe_variant
from colorpress.core.config import ExportConfig
from colorpress.core.errors import ConfigError, InputError
from compress.int8.calibration import Floats
from compress.int8.int8_choice import quantize_onnx
from compress.packing import pack_onnx, round_to_4_bits
from export.graph import export_onnx, read_metadata
from export.onnx_probe import describe_graph
from export.predictors import OnnxPredictor, OpenVinoPredictor
from export.provider_limits import LIMITS, check_limits
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


def tensors_of(path: Path) -> dict[str, Floats]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}


def waves() -> list[Floats]:
    return [np.linspace(0, 1, 40 * 56, dtype=np.float32).reshape(1, 1, 40, 56) ** power for power in (0.5, 1, 2)]


@pytest.mark.parametrize("widths", [8, 9])  # 9 channels: an odd number of weights in 4 bits
def test_4_bits_answer_bit_for_bit_as_float_weights_that_are_rounded_so(tmp_path: Path, widths: int) -> None:
    plan = UNetPlan(((widths, widths), (widths, widths)), ((widths, widths),))
    source = exported(tmp_path, plan)
    result = pack_onnx(source, tmp_path / "w4.onnx", precision="w4")
    model, before, packed = onnx.load(source), tensors_of(source), tensors_of(result.path)
    inner = [name for name in before if f"{name}.d" in packed]
    assert "encoder.0.3.weight" in inner and "encoder.0.0.weight" not in inner and "head.weight" not in inner
    assert sum(before[name].size for name in inner) % 2 == widths % 2
    codes = np.concatenate([packed["4b"] & 15, packed["4b"] >> 4]).astype(np.int8) - 8
    for name in inner:
        whole, codes = codes[: before[name].size], codes[before[name].size :]
        assert np.abs(whole).max() == 7
        before[name] = whole.reshape(before[name].shape).astype(np.float32) * packed[f"{name}.s"]
    for name in (name for name in before if f"{name}.q" in packed):
        before[name] = packed[f"{name}.q"].astype(np.float32) * packed[f"{name}.s"]
    del model.graph.initializer[:]
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in before.items())
    onnx.save(model, tmp_path / "rounded.onnx")
    picture = np.random.default_rng(0).random((2, 1, 37, 50), dtype=np.float32)
    expected, got = (OnnxPredictor(path, threads=1)(picture) for path in (tmp_path / "rounded.onnx", result.path))
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_allclose(OpenVinoPredictor(result.path, threads=1)(picture), got, atol=5e-3)


def test_4_bits_take_half_of_8_and_are_known_for_what_they_are(tmp_path: Path) -> None:
    source = exported(tmp_path, UNetPlan.classic(24, 2, "bilinear"))
    eight, four = (pack_onnx(source, tmp_path / f"{name}.onnx", precision=name) for name in ("w8", "w4"))
    assert four.size_bytes < 0.62 * eight.size_bytes and four.packed == eight.packed
    found = describe_graph(onnx.load(four.path))
    float_found = describe_graph(onnx.load(source))
    assert [each["shape"] for each in found["layers"]] == [each["shape"] for each in float_found["layers"]]
    stored = {each["name"]: (each["stored"], each["size_bytes"]) for each in found["layers"]}
    assert stored["encoder.0.0"] == ("int8", 24 * 9) and stored["encoder.0.3"] == ("int4", 24 * 24 * 9 // 2)
    silent = onnx.load(four.path)
    del silent.metadata_props[:]
    onnx.save(silent, tmp_path / "silent.onnx")
    for path in (four.path, tmp_path / "silent.onnx"):
        known = describe_variant("w4", path)
        float_known = describe_variant("float", source)
        assert known.precision == "w4" and 0 <= known.params - float_known.params <= 1
    # Unpacking is worked out before a provider is asked.
    for name in ("onnxruntime-webgpu", "onnxruntime-coreml"):
        limits = LIMITS[name]
        assert check_limits(onnx.load(four.path), limits).why == check_limits(onnx.load(source), limits).why


def test_steps_of_4_bits_leave_less_error_than_the_largest_weight_sets() -> None:
    values = np.random.default_rng(0).standard_t(4, (5, 6, 3, 3))
    values[1] = 0
    whole, steps = round_to_4_bits(values, (1, 2, 3))
    assert whole.dtype == np.int8 and np.abs(whole).max() == 7 and steps.shape == (5, 1, 1, 1) and (steps > 0).all()
    assert not whole[1].any()
    widest = np.abs(values).max(axis=(1, 2, 3), keepdims=True) / 7
    widest[1] = 1
    plain = np.clip(np.rint(values / widest), -7, 7) * widest
    errors, plain_errors = (np.square(each - values).sum(axis=(1, 2, 3)) for each in (whole * steps, plain))
    assert (errors <= plain_errors + 1e-9).all() and errors.sum() < 0.95 * plain_errors.sum()


def test_on_photographs_channels_keep_the_mean_and_deviation_that_they_have_in_float(tmp_path: Path) -> None:
    source = exported(tmp_path, UNetPlan.classic(12, 1, "bilinear"))
    plain = pack_onnx(source, tmp_path / "plain.onnx", precision="w4")
    matched = pack_onnx(source, tmp_path / "w4.onnx", precision="w4", pictures=waves())
    assert matched.matched and not plain.matched and matched.size_bytes <= plain.size_bytes
    np.testing.assert_array_equal(tensors_of(matched.path)["4b"], tensors_of(plain.path)["4b"])

    def moments(path: Path) -> Floats:
        answers = [OnnxPredictor(path, threads=1)(wave) for wave in waves()]
        values = np.arctanh(np.stack(answers).astype(np.float64))  # what the last convolution answers
        return np.array([values.mean(axis=(0, 1, 3, 4)), values.std(axis=(0, 1, 3, 4))])

    expected = moments(source)
    off, matched_off = (np.abs(moments(each.path) - expected).max() for each in (plain, matched))
    assert off > 1e-3 and matched_off < 0.05 * off


def test_4_bits_of_nothing_but_outer_convolutions_are_8(tmp_path: Path) -> None:
    source = exported(tmp_path, UNetPlan(((24,),), (), stem_stride=4))
    four = pack_onnx(source, tmp_path / "w4.onnx", precision="w4")
    eight = pack_onnx(source, tmp_path / "w8.onnx")
    assert four.size_bytes == eight.size_bytes and "4b" not in tensors_of(four.path)


def test_what_pytorch_does_not_know_is_packed_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = exported(tmp_path, UNetPlan.classic(8, 1, "bilinear"))
    model = onnx.load(source)
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.op_type = "Softplus"
    onnx.save(model, source)
    assert not pack_onnx(source, tmp_path / "w4.onnx", precision="w4", pictures=waves()).matched
    assert "is Softplus, which is not known here" in capsys.readouterr().err


@pytest.mark.parametrize("precision", ["w8", "w4"])
def test_unpacking_is_done_while_loading(tmp_path: Path, precision: str) -> None:
    result = pack_onnx(exported(tmp_path, UNetPlan.classic(8, 1)), tmp_path / "packed.onnx", precision=precision)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "loaded.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(result.path), options, providers=["CPUExecutionProvider"])
    loaded = onnx.load(tmp_path / "loaded.onnx")
    unpacking = {"Cast", "Concat", "DequantizeLinear", "Div", "Floor", "Mul", "Reshape", "Split", "Sub"}
    # Concat of skips and Sub of sizes are the network's own.
    assert not unpacking - {"Concat"} & {node.op_type for node in loaded.graph.node}


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


def test_channels_of_grouped_transposed_convolutions_are_left_as_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shapes = {"a": (8, 1, 3, 3), "b": (8, 4, 2, 2), "c": (2, 8, 3, 3)}  # b: two groups, so 4 of 8 channels in a place
    constants = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    constants |= {f"{name}_bias": np.zeros(count, np.float32) for name, count in {"a": 8, "b": 8, "c": 2}.items()}
    nodes = [
        helper.make_node("Conv", ["L", "a", "a_bias"], ["x"], name="a", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("ConvTranspose", ["x", "b", "b_bias"], ["y"], name="b", strides=[2, 2], group=2),
        helper.make_node("Conv", ["y", "c", "c_bias"], ["ab"], name="c", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("L", onnx.TensorProto.FLOAT, [1, 1, "H", "W"])],
        [helper.make_tensor_value_info("ab", onnx.TensorProto.FLOAT, [1, 2, "H", "W"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(tmp_path / "grouped.onnx"))
    assert pack_onnx(tmp_path / "grouped.onnx", tmp_path / "w4.onnx", precision="w4", pictures=waves()).packed
    assert onnxruntime.InferenceSession(str(tmp_path / "w4.onnx")).run(None, {"L": waves()[0]})[0].shape == (
        1,
        2,
        40,
        56,
    )
