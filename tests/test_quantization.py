"""Static int8: close to float, the layers asked for, any size; and the histograms behind the ranges."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from colorpress.core.config import ExportConfig, QuantizeConfig
from colorpress.core.errors import ConfigError, InputError
from compress.int8.calibration import ActivationHistogram, hash_pictures
from compress.int8.int8_choice import has_int8_layers, has_vnni, quantize_onnx
from compress.int8.int8_graph import (
    choose_layers,
    insert_qdq,
    nodes_to_quantize,
    spread_ranges,
    tensors_to_observe,
    weight_sizes,
)
from compress.int8.int8_profile import profile_int8, summarize_profile
from export.graph import export_onnx
from export.onnx_probe import inspect_onnx
from export.parity import check_parity
from export.predictors import OnnxPredictor
from training.checkpoint import Checkpoint
from training.unet import UPSAMPLERS, UNet, UNetPlan

SIZES = ((24, 32), (17, 40), (32, 32), (1, 9))


def smooth_pictures(count: int = 6, seed: int = 0) -> list[np.ndarray]:
    """L of different sizes: waves, as photographs are smooth."""
    rng = np.random.default_rng(seed)
    pictures = []
    for index in range(count):
        height, width = SIZES[index % len(SIZES)]
        rows, columns = np.mgrid[:height, :width]
        waves = sum(
            np.sin(rng.uniform(0, 0.4) * rows + rng.uniform(0, 0.4) * columns + p) for p in rng.uniform(0, 6, 3)
        )
        pictures.append((0.5 + waves / 6.0).astype(np.float32)[None, None])
    return pictures


def export_model(folder: Path, upsample: str) -> Path:
    torch.manual_seed(1)
    plan = UNetPlan.classic(8, 2, upsample)
    network = UNet(plan)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.2)
            nn.init.uniform_(module.running_var, 0.2, 0.6)
            nn.init.uniform_(module.weight, 0.6, 1.2)
            nn.init.normal_(module.bias, 0.0, 0.2)
    checkpoint = Checkpoint(plan, network.state_dict(), sha256="cd" * 32)
    return export_onnx(checkpoint, folder / f"{upsample}.onnx", ExportConfig()).path


@pytest.fixture(scope="module")
def float_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantization")
    return {upsample: export_model(folder, upsample) for upsample in UPSAMPLERS}


@pytest.fixture
def float_model(float_models: dict[str, Path]) -> Path:
    return float_models["transpose"]


def read_weight(graph: onnx.GraphProto, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the file holds of a convolution's weights: integers, scale and zero."""
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    weight = next(node.input[1] for node in graph.node if node.name == name)
    made = next(node for node in graph.node if weight in node.output)
    integers, scale, zero = (constants[each] for each in made.input)
    return integers, scale, zero


def quantize(source: Path, target: Path, **options):
    return quantize_onnx(source, target, smooth_pictures(), QuantizeConfig(**options))


@pytest.mark.parametrize("upsample", UPSAMPLERS)
@pytest.mark.parametrize("percentile", [None, 100.0, 99.9])
def test_int8_is_close_to_float(float_models, tmp_path, upsample, percentile):
    float_model = float_models[upsample]
    result = quantize(float_model, tmp_path / "int8.onnx", calibration_percentile=percentile)
    reference, candidate = OnnxPredictor(float_model, threads=1), OnnxPredictor(result.path, threads=1)
    for picture in smooth_pictures(seed=9):
        expected, got = reference(picture), candidate(picture)
        assert got.shape == expected.shape
        # A tenth of how much the answer varies: 8 bits lose little, a wrong scale or layout loses all.
        assert np.abs(got - expected).mean() < 0.1 * reference(smooth_pictures()[0]).std()
    report = check_parity(reference, candidate, atol=None)
    assert report.passed and report.max_abs > 0.0


def test_what_is_int8_and_what_is_not(float_model, tmp_path):
    result = quantize(float_model, tmp_path / "int8.onnx")
    assert "head" in result.kept_float
    assert "encoder.0.0" in result.kept_float
    assert result.weight_share > 0.97
    found = inspect_onnx(result.path)
    assert found["quantized"]
    assert found["int8_share"] == pytest.approx(result.weight_share, abs=1e-6)
    assert found["metadata"]["precision"] == "int8"
    assert found["metadata"]["checkpoint_sha256"] == "cd" * 32
    assert found["metadata"]["calibration_pictures"] == "6"
    assert found["metadata"]["calibration_sha256"] == hash_pictures(smooth_pictures())
    assert result.size_bytes == result.path.stat().st_size


@pytest.mark.parametrize("bits", [8, 7])
def test_weights_are_int8_per_channel_and_symmetric(float_model, tmp_path, bits):
    result = quantize(float_model, tmp_path / "int8.onnx", int8_weight_bits=str(bits))
    model = onnx.load(result.path)
    widest = 0
    for name in result.quantized:
        weight, scale, zero = read_weight(model.graph, name)
        assert weight.dtype == np.int8
        assert scale.shape == zero.shape == weight.shape[:1]
        assert not zero.any()
        widest = max(widest, int(np.abs(weight.astype(int)).max()))
    assert widest == {8: 127, 7: 64}[bits]
    assert inspect_onnx(result.path)["metadata"]["weight_bits"] == str(bits)


def test_what_the_quantizer_adds_is_named_shortly_and_held_once(float_model, tmp_path):
    graph = onnx.load(quantize(float_model, tmp_path / "int8.onnx").path).graph
    source = onnx.load(float_model).graph
    own = {name for node in source.node for name in (*node.input, *node.output)}
    assert not graph.value_info
    added = [tensor for tensor in graph.initializer if tensor.name not in own]
    contents = [(each.data_type, tuple(each.dims), onnx.numpy_helper.to_array(each).tobytes()) for each in added]
    assert len(set(contents)) == len(contents) > 20
    names = {name for node in graph.node for name in (*node.input, *node.output)} - own
    assert names and all(re.fullmatch(r"q\d+", name) for name in names)
    # What computes is called as in float, by which tools and people find a layer.
    computing = [node for node in graph.node if node.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    assert {node.name for node in computing} <= {node.name for node in source.node}
    assert {node.name for node in graph.node} - {node.name for node in computing} == {""}


def test_names_of_the_network_are_not_taken(float_model, tmp_path):
    model = onnx.load(float_model)
    for node in model.graph.node:
        node.name = {"decoder.0.3": "q1"}.get(node.name, node.name)
        for part in (node.input, node.output):
            part[:] = [{"decoder.0.3.weight": "q0", "encoder.1.5": "q2"}.get(each, each) for each in part]
    for tensor in model.graph.initializer:
        tensor.name = {"decoder.0.3.weight": "q0"}.get(tensor.name, tensor.name)
    del model.graph.value_info[:]
    onnx.save(model, tmp_path / "named.onnx")
    results = [quantize(path, tmp_path / f"{path.stem}8.onnx") for path in (float_model, tmp_path / "named.onnx")]
    both = [OnnxPredictor(result.path, threads=1)(smooth_pictures()[1]) for result in results]
    np.testing.assert_array_equal(*both)


def test_only_the_largest_layers(float_model, tmp_path):
    share = 0.5
    result = quantize(float_model, tmp_path / "half.onnx", quantize_share=share)
    model = onnx.load(float_model)
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    chosen = [sizes[f"{name}.weight"] for name in result.quantized]
    kept = [sizes[f"{name}.weight"] for name in result.kept_float]
    assert share <= result.weight_share < share + max(chosen) / sum(chosen + kept)
    assert sum(chosen[:-1]) < share * sum(chosen + kept)
    assert min(chosen) >= max(kept)
    found = inspect_onnx(result.path)
    assert found["int8_share"] == pytest.approx(result.weight_share)
    answer = OnnxPredictor(result.path, threads=1)(smooth_pictures()[1])
    assert np.isfinite(answer).all()


def test_same_input_same_bytes_and_nothing_left_behind(float_model, tmp_path, monkeypatch, capfd):
    folder, scratch = tmp_path / "elsewhere", tmp_path / "scratch"
    folder.mkdir()
    scratch.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    results = [quantize(float_model, tmp_path / name) for name in ("a.onnx", "b.onnx")]
    assert results[0].sha256 == results[1].sha256
    assert not list(folder.iterdir()) and not list(scratch.iterdir())
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.onnx", "b.onnx", "elsewhere", "scratch"]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("upsample", UPSAMPLERS)
def test_int8_stays_int8_between_convolutions(float_models, tmp_path, upsample):
    result = quantize(float_models[upsample], tmp_path / "int8.onnx")
    profile = profile_int8(result.path, side=32, calls=2, threads=1)
    assert sum(each.share for each in profile.operators) == pytest.approx(1.0)
    in_bytes = {each.operator: each.kernels for each in profile.operators if each.int8}
    assert in_bytes["QLinearConv"] == len(result.quantized)
    assert in_bytes["QLinearConcat"] == 2
    in_float = {each.operator: each.kernels for each in profile.operators if not each.int8}
    # ONNX Runtime 1.32 interpolates in float only: each of the two is wrapped in a conversion from and to int8.
    islands = 2 if upsample == "bilinear" else 0
    assert in_float["QuantizeLinear"] == in_float["DequantizeLinear"] == 1 + islands
    assert in_float.get("Resize", 0) == islands
    assert not {"MaxPool", "DepthToSpace"} & in_float.keys()
    assert 0.0 < profile.int8_share < 1.0


def test_what_cannot_be_quantized(float_model, tmp_path):
    result = quantize(float_model, tmp_path / "int8.onnx")
    (tmp_path / "half.onnx").write_bytes(float_model.read_bytes()[:999])
    before = sorted(tmp_path.iterdir())
    target = tmp_path / "out.onnx"
    with pytest.raises(InputError, match="already quantized") as caught:
        quantize(result.path, target)
    assert "fp32" in caught.value.hint
    with pytest.raises(InputError, match="no valid ONNX"):
        quantize(tmp_path / "half.onnx", target)
    with pytest.raises(ConfigError, match="no such file"):
        quantize(tmp_path / "none.onnx", target)
    with pytest.raises(InputError, match="got no picture"):
        quantize_onnx(float_model, target, [], QuantizeConfig())
    with pytest.raises(InputError, match="got float64"):
        quantize_onnx(float_model, target, [np.zeros((1, 1, 8, 8))], QuantizeConfig())
    with pytest.raises(InputError, match="NaN or Inf"):
        quantize_onnx(float_model, target, [np.full((1, 1, 8, 8), np.nan, np.float32)], QuantizeConfig())
    assert sorted(tmp_path.iterdir()) == before


def test_a_network_of_a_first_and_a_last_convolution_is_left_to_packing(float_model, tmp_path):
    plan = UNetPlan(encoder=((4,),), decoder=(), upsample="nearest", stem_stride=4)
    checkpoint = Checkpoint(plan, UNet(plan).state_dict(), sha256="cd" * 32)
    source = export_onnx(checkpoint, tmp_path / "two.onnx", ExportConfig()).path
    with pytest.raises(InputError, match="no convolution between its first and its last") as caught:
        quantize(source, tmp_path / "int8.onnx")
    assert "colorpress pack" in caught.value.hint
    assert not has_int8_layers(source) and has_int8_layers(float_model)


def test_choosing_keeps_first_and_last_in_float(float_model):
    graph = onnx.load(float_model).graph
    chosen = choose_layers(graph, 1.0)
    assert set(weight_sizes(graph)) - set(chosen) == {"encoder.0.0", "head"}
    assert chosen[0] == "encoder.2.3"


def test_what_stays_float_before_a_layer_in_int8_is_watched():
    """As a ResNet begins: an addition reads the MaxPool too, so it is not between two layers in int8."""
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[1, 1, H, W] L) => (float[1, 2, h, w] ab)
        <float[2, 1, 1, 1] a = {1, 2}, float[2, 2, 1, 1] b = {1, 2, 3, 4}, float[2, 2, 1, 1] c = {1, 2, 3, 4},
         float[2, 2, 1, 1] d = {1, 2, 3, 4}> {
            first = Conv(L, a) seen = Relu(first) pooled = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (seen)
            one = Conv(pooled, b) bent = Relu(one) sides = Shape <start = 2> (L) counts = Shape <end = 2> (bent)
            size = Concat <axis = 0> (counts, sides) large = Resize (bent, , , size) two = Conv(large, c)
            small = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (two) added = Add(small, pooled)
            ab = Conv(added, d)
        }""")
    for node in model.graph.node:
        node.name = node.output[0]
    model = onnx.shape_inference.infer_shapes(model)
    for convolution in ("one", "two"):
        nodes = nodes_to_quantize(model.graph, {convolution})
        observed = dict.fromkeys(tensors_to_observe(model.graph, nodes), (-1.0, 1.0))
        assert ("pooled" in observed) == (convolution == "one") and "pooled" not in nodes and "size" not in observed
        made = insert_qdq(model, nodes, spread_ranges(model.graph, observed), weight_bits=8)
        assert any(node.op_type == "QuantizeLinear" for node in made.graph.node)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("fpu avx2 avx512f", False), ("fpu avx2 avx512_vnni", True), ("avx_vnni", True), ("xavx_vnnix", False)],
)
def test_vnni_is_read_from_the_flags(tmp_path, monkeypatch, flags, expected):
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor : 0\nflags\t\t: {flags}\nbugs : avx_vnni\n")
    assert has_vnni(path) is expected
    assert not has_vnni(tmp_path / "none")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert has_vnni(path)


def filled(*parts) -> ActivationHistogram:
    histogram = ActivationHistogram()
    for part in parts:
        histogram.add(np.asarray(part, dtype=np.float32))
    return histogram


def test_histogram_does_not_depend_on_order():
    rng = np.random.default_rng(0)
    parts = [rng.normal(0, scale, 500) for scale in (0.01, 1.0, 30.0)]
    one, other = filled(*parts), filled(*reversed(parts))
    assert one.limit == other.limit >= max(np.abs(part).max() for part in parts)
    assert one.counts.sum() == other.counts.sum() == 1500
    # Bins are merged where they lie, so a value moves by a bin at most.
    assert np.abs(np.cumsum(one.counts) - np.cumsum(other.counts)).max() <= 2
    assert one.range_of(100.0) == other.range_of(100.0)


def test_a_range_leaves_out_what_is_far_out():
    values = np.concatenate((np.linspace(0, 1, 1_000_000), [50.0])).astype(np.float32)
    histogram = filled(values)
    assert histogram.range_of(100.0) == (0.0, 50.0)
    low, high = histogram.range_of(99.5)
    assert low == 0.0 and 0.98 < high < 1.02


def test_zero_is_always_in_the_range():
    for percentile in (100.0, 99.0):
        low, high = filled([3.0, 4.0]).range_of(percentile)
        assert low == 0.0 and high >= 3.9
        low, high = filled([-4.0, -3.0]).range_of(percentile)
        assert low <= -3.9 and high == 0.0
        assert filled([0.0]).range_of(percentile) == (0.0, 0.0)


def test_pictures_are_hashed():
    seen, again, other = (hash_pictures(smooth_pictures(2, seed)) for seed in (0, 0, 5))
    assert seen == again != other
    assert hash_pictures([np.zeros((1, 1, 2, 3))]) != hash_pictures([np.zeros((1, 1, 3, 2))])


def test_profile_of_hand_made_events():
    def event(name, operator, kind, micros):
        arguments = {"op_name": operator, "input_type_shape": [{"float": [1]}, {kind: [2]}]}
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": micros, "args": arguments}

    first = [event("a", "QLinearConv", "uint8", 999), event("b", "Tanh", "float", 999)]
    second = [event("a", "QLinearConv", "uint8", 30), event("b", "Tanh", "float", 10)]
    profile = summarize_profile([{"cat": "Session", "name": "x", "dur": 1}, *first, *second], calls=2)
    assert [(each.operator, each.share) for each in profile.operators] == [("QLinearConv", 0.75), ("Tanh", 0.25)]
    assert [node.name for node in profile.nodes if not node.int8] == ["b"]
    assert profile.int8_share == 0.75
