"""An exported graph as a torch network: the same answers, the rounding of the int8 file, gradients; and its tuning."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch.nn import functional as F

from colorpress.core.config import ExportConfig, QuantizeConfig
from colorpress.core.errors import InputError
from compress.int8.calibration import observe_activations
from compress.int8.graph_network import _DEFAULTS, GraphNetwork, _convolve, _round_weight
from compress.int8.int8_choice import Int8Way, _Quantizer, has_vnni
from compress.int8.int8_graph import choose_layers, spread_ranges, tensors_to_observe
from compress.int8.int8_tuning import choose_ranges, equalize_channels
from export.graph import export_onnx
from export.predictors import OnnxPredictor
from tests.conftest import make_network
from tests.test_quantization import read_weight, smooth_pictures
from training.checkpoint import Checkpoint
from training.network import pad_to_multiple
from training.unet import UPSAMPLERS, UNetPlan

PLANS = {
    **{upsample: UNetPlan.classic(8, 2, upsample) for upsample in UPSAMPLERS},
    "coarse": UNetPlan(((8, 8), (8, 8), (8, 8)), ((8, 8),), "nearest", stem_stride=4),
    "affine": UNetPlan(((8, 8), (8, 8), (8, 8)), ((8, 8),), "nearest", stem_stride=4, affine=True),
}


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    return {
        name: export_onnx(
            Checkpoint(plan, make_network(plan).state_dict()), folder / f"{name}.onnx", ExportConfig()
        ).path
        for name, plan in PLANS.items()
    }


@pytest.mark.parametrize("name", PLANS)
def test_it_answers_as_the_file_does(graphs: dict[str, Path], name: str) -> None:
    network, predictor = GraphNetwork(onnx.load(graphs[name])), OnnxPredictor(graphs[name], threads=1)
    assert network.output_stride == PLANS[name].output_stride
    assert network.size_multiple == PLANS[name].size_multiple
    assert network.affine == PLANS[name].affine
    for picture in smooth_pictures():
        with torch.inference_mode():
            answer = network(torch.from_numpy(picture)).numpy()
        np.testing.assert_allclose(answer, predictor(picture), atol=2e-6)


@pytest.mark.parametrize(("side", "strides", "given"), [(1, (2, 3), (1, 1)), (3, (2, 2), (2, 2))])
def test_a_strided_convolution_of_single_pixels_has_none(
    monkeypatch: pytest.MonkeyPatch, side: int, strides: tuple[int, int], given: tuple[int, int]
) -> None:
    """Its gradient would write past its memory (see `choose_layout`)."""
    torch.manual_seed(0)
    value, weight, bias = torch.randn(2, 5, 8, 7), torch.randn(4, 5, side, side), torch.randn(4)
    expected, convolve, seen = F.conv2d(value, weight, bias, strides), F.conv2d, []

    def watched(*arguments: Any) -> torch.Tensor:
        seen.append(arguments[3])
        return convolve(*arguments)

    monkeypatch.setattr(F, "conv2d", watched)
    answer = _convolve([value, weight, bias], _DEFAULTS | {"strides": strides})
    torch.testing.assert_close(answer, expected)
    assert seen == [given]


WAY = Int8Way(100.0)


def quantizer_of(path: Path) -> _Quantizer:
    model = onnx.load(path)
    return _Quantizer(model, choose_layers(model.graph, 1.0), smooth_pictures(), QuantizeConfig(), 1)


# What a processor without VNNI saturates, no rounding foretells.
@pytest.mark.parametrize("bits", [7, pytest.param(8, marks=pytest.mark.skipif(not has_vnni(), reason="saturates"))])
@pytest.mark.parametrize("name", PLANS)
def test_rounded_it_answers_as_the_int8_file_does(
    graphs: dict[str, Path], tmp_path: Path, name: str, bits: int
) -> None:
    quantizer, way = quantizer_of(graphs[name]), replace(WAY, weight_bits=bits)
    path = tmp_path / "int8.onnx"
    path.write_bytes(quantizer.quantize(way).SerializeToString())
    network = quantizer.rounded_network(way, quantizer.ranges(way))
    float_answer, int8 = OnnxPredictor(graphs[name], threads=1), OnnxPredictor(path, threads=1)
    for picture in smooth_pictures(3):
        with torch.inference_mode():
            answer = network(torch.from_numpy(picture)).numpy()
        rounding = np.abs(int8(picture) - float_answer(picture)).mean()
        # The simulation is of this file's rounding, not of another one's of the same size.
        assert np.abs(answer - int8(picture)).mean() < 0.6 * rounding


@pytest.mark.parametrize("bits", [8, 7])
def test_weights_are_rounded_to_those_that_the_file_holds(graphs: dict[str, Path], bits: int) -> None:
    quantizer, way = quantizer_of(graphs["transpose"]), replace(WAY, weight_bits=bits)
    network = quantizer.rounded_network(way, quantizer.ranges(way))
    graph = quantizer.quantize(way).graph
    for node in quantizer.model.graph.node:
        if node.name in quantizer.layers and node.op_type == "Conv":
            weight = next(each for each in quantizer.model.graph.initializer if each.name == node.input[1])
            rounded = _round_weight(torch.from_numpy(numpy_helper.to_array(weight).copy()), 0, network.weight_levels)
            held, scale, _ = read_weight(graph, node.name)
            np.testing.assert_allclose(rounded, held * scale.reshape(-1, 1, 1, 1), atol=1e-7)


def test_weights_and_ranges_learn_and_go_back_into_the_graph(graphs: dict[str, Path]) -> None:
    quantizer = quantizer_of(graphs["transpose"])
    ranges = {name: (0.5 * low, 0.5 * high) for name, (low, high) in quantizer.ranges(WAY).items()}
    network = quantizer.rounded_network(WAY, ranges)
    network(torch.from_numpy(smooth_pictures(1)[0])).square().sum().backward()
    without = [name for name, each in network.named_parameters() if each.grad is None]
    assert without == []
    assert all(bool(each.grad.any()) for name, each in network.named_parameters() if name.endswith("weight"))
    assert any(bool(each.grad.any()) for each in network.ranges.values())
    with torch.no_grad():
        for each in network.weights.values():
            each.mul_(2.0)
    copy = onnx.ModelProto()
    copy.CopyFrom(quantizer.model)
    network.write_weights_(copy)
    before = {t.name: onnx.numpy_helper.to_array(t) for t in quantizer.model.graph.initializer}
    after = {t.name: onnx.numpy_helper.to_array(t) for t in copy.graph.initializer}
    np.testing.assert_allclose(after["head.weight"], 2 * before["head.weight"])
    assert all(low <= 0 <= high for low, high in network.read_ranges().values())


def test_a_range_that_is_too_wide_becomes_narrower(graphs: dict[str, Path]) -> None:
    quantizer = quantizer_of(graphs["transpose"])
    wide = {name: (8 * low, 8 * high) for name, (low, high) in quantizer.ranges(WAY).items()}
    network, parent = quantizer.rounded_network(WAY, wide), GraphNetwork(quantizer.model)
    picture, before, losses = torch.from_numpy(smooth_pictures(1)[0]), network.read_ranges(), []
    optimizer = torch.optim.Adam(network.ranges.values(), lr=2e-4)
    for _ in range(30):
        loss = (network(picture) - parent(picture).detach()).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5]), losses
    after = network.read_ranges()
    narrower = [(after[name][1] - after[name][0]) / (high - low) for name, (low, high) in before.items()]
    assert sum(narrower) < 0.9 * len(narrower), narrower
    # A ReLU's range that reached below zero would be no bound of its convolution.
    assert all(after[name][0] == 0.0 for name, (low, _) in before.items() if low == 0.0)


@pytest.mark.parametrize(("read", "least", "most"), [((1.0, 0.0), 0.9, 2.0), ((0.0, 1.0), 40.0, 51.0)])
def test_a_range_holds_what_the_answer_depends_on(read: tuple[float, float], least: float, most: float) -> None:
    """Of two channels the second is zero but for one pixel in two hundred, where it is fifty times the first."""
    model = onnx.parser.parse_model(f"""
        <ir_version: 10, opset_import: ["" : 18]>
        net (float[1, 1, H, W] L) => (float[1, 1, H, W] ab)
        <float[2, 1, 1, 1] a = {{1, 10000}}, float[2] bias = {{0, -9950}},
         float[1, 2, 1, 1] b = {{{read[0]}, {read[1]}}}> {{
            first = Conv(L, a, bias) seen = Relu(first) ab = Conv(seen, b)
        }}""")
    for node in model.graph.node:
        node.name = node.output[0]
    pictures = [np.random.default_rng(0).random((1, 1, 64, 64), dtype=np.float32)]
    histograms = observe_activations(model, ["seen"], pictures, threads=1)
    (low, high) = choose_ranges(model, histograms, pictures)["seen"]
    assert low == 0.0 and least < high < most


def test_an_unknown_operator_is_named(graphs: dict[str, Path]) -> None:
    model = onnx.load(graphs["transpose"])
    next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Erf"
    with pytest.raises(InputError, match="is Erf, which is not known here"):
        GraphNetwork(model)


@pytest.mark.parametrize(
    ("attribute", "value", "what"),
    [("coordinate_transformation_mode", "align_corners", "linear, align_corners"), ("mode", "cubic", "cubic")],
)
def test_resizing_that_would_be_computed_otherwise_is_refused(
    graphs: dict[str, Path], attribute: str, value: str, what: str
) -> None:
    model = onnx.load(graphs["bilinear"])
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    kept = [each for each in resize.attribute if each.name != attribute]
    del resize.attribute[:]
    resize.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])
    with pytest.raises(InputError, match=f"Resize in mode {what}"):
        GraphNetwork(model)


def test_a_value_that_others_read_keeps_its_negative_part(graphs: dict[str, Path]) -> None:
    model = onnx.load(graphs["transpose"])
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    before, after = relu.input[0], relu.output[0]
    assert spread_ranges(model.graph, {after: (0.0, 2.0)})[before] == (0.0, 2.0)
    model.graph.node.append(onnx.helper.make_node("Neg", [before], ["other"], name="other"))
    assert before not in spread_ranges(model.graph, {after: (0.0, 2.0)})
    nodes = {node.name for node in model.graph.node if node.op_type in ("Conv", "Relu")}
    assert before in tensors_to_observe(model.graph, nodes)


def test_a_graph_cannot_be_pruned(graphs: dict[str, Path]) -> None:
    network = GraphNetwork(onnx.load(graphs["transpose"]))
    with pytest.raises(InputError, match="keeps its channels"):
        network.with_weights(network.state_dict())


def uneven(path: Path, convolution: str) -> onnx.ModelProto:
    """The graph with one channel of a convolution's answer a hundred times as large."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in (f"{convolution}.weight", f"{convolution}.bias"):
        value = onnx.numpy_helper.to_array(tensors[name]).copy()
        value[0] *= 100.0
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
    return model


@pytest.mark.parametrize(
    ("name", "convolution"),
    [
        ("transpose", "encoder.1.0"),
        ("transpose", "encoder.1.3"),  # pooled, and concatenated
        ("transpose", "up.0.0"),  # its channels become pixels
        ("bilinear", "up.0.0"),  # enlarged
        ("coarse", "encoder.1.3"),
        ("affine", "encoder.1.3"),
    ],
)
def test_equalizing_evens_channels_out_and_keeps_the_answer(
    graphs: dict[str, Path], name: str, convolution: str
) -> None:
    model = uneven(graphs[name], convolution)
    equalized = equalize_channels(model, smooth_pictures())
    picture = torch.from_numpy(smooth_pictures(1)[0])
    spread, answers = [], []
    answered = next(node.output[0] for node in model.graph.node if node.name == convolution)
    for graph in (model, equalized):
        network = GraphNetwork(graph)
        with torch.inference_mode():
            answers.append(network(picture))
            lightness = pad_to_multiple(picture, network.size_multiple)
            value = network.forward_values(lightness, frozenset({answered}))[answered]
        largest = value.abs().amax(dim=(0, 2, 3))
        spread.append(float(largest[0] / largest[1:].median()))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    assert spread[1] < 0.3 * spread[0]
