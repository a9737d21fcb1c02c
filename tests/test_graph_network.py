"""An exported graph as a torch network: the same answers, the rounding of the int8 file, gradients; and its tuning."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from colorpress.core.config import ExportConfig, QuantizeConfig
from colorpress.core.errors import InputError
from compress.int8.graph_network import GraphNetwork
from compress.int8.int8_choice import _Quantizer, _starting_way
from compress.int8.int8_graph import choose_layers, spread_ranges, tensors_to_observe
from compress.int8.int8_tuning import correct_biases, equalize_channels
from export.graph import export_onnx
from export.predictors import OnnxPredictor
from tests.conftest import make_network
from tests.test_quantization import smooth_pictures
from training.checkpoint import Checkpoint
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


def quantizer_of(path: Path, **options) -> _Quantizer:
    model = onnx.load(path)
    config = QuantizeConfig(**{"calibration_method": "minmax", "equalize": "off", "correct_bias": "off", **options})
    return _Quantizer(model, choose_layers(model.graph, 1.0), smooth_pictures(), config, False, 1)


@pytest.mark.parametrize("name", PLANS)
def test_rounded_it_answers_as_the_int8_file_does(graphs: dict[str, Path], tmp_path: Path, name: str) -> None:
    quantizer = quantizer_of(graphs[name])
    way = _starting_way(QuantizeConfig(calibration_method="minmax", equalize="off", correct_bias="off"))
    path = tmp_path / "int8.onnx"
    path.write_bytes(quantizer.quantize(way).SerializeToString())
    network = quantizer.rounded_network(quantizer.model, quantizer.ranges(way), quantizer.layers)
    float_answer, int8 = OnnxPredictor(graphs[name], threads=1), OnnxPredictor(path, threads=1)
    for picture in smooth_pictures(3):
        with torch.inference_mode():
            answer = network(torch.from_numpy(picture)).numpy()
        rounding = np.abs(int8(picture) - float_answer(picture)).mean()
        # The simulation is of this file's rounding, not of another one's of the same size.
        assert np.abs(answer - int8(picture)).mean() < 0.6 * rounding


def test_weights_and_ranges_learn_and_go_back_into_the_graph(graphs: dict[str, Path]) -> None:
    quantizer = quantizer_of(graphs["transpose"])
    way = _starting_way(QuantizeConfig(calibration_method="minmax", equalize="off", correct_bias="off"))
    ranges = {name: (0.5 * low, 0.5 * high) for name, (low, high) in quantizer.ranges(way).items()}
    network = quantizer.rounded_network(quantizer.model, ranges, quantizer.layers)
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


def test_a_shared_bias_is_left_alone(graphs: dict[str, Path]) -> None:
    quantizer = quantizer_of(graphs["transpose"])
    model = quantizer.model
    second = next(node for node in model.graph.node if node.name == "encoder.2.3")
    second.input[2] = "encoder.2.0.bias"
    way = _starting_way(QuantizeConfig(calibration_method="minmax", equalize="off", correct_bias="off"))
    ranges = quantizer.rounded_network(quantizer.model, quantizer.ranges(way), quantizer.layers).read_ranges()
    kinds = {"rounded": ranges, "rounded_layers": frozenset(quantizer.layers), "weight_levels": 7}
    corrected = correct_biases(model, smooth_pictures(), quantizer.layers, lambda graph: GraphNetwork(graph, **kinds))
    after = {t.name: onnx.numpy_helper.to_array(t) for t in corrected.graph.initializer}
    before = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    np.testing.assert_array_equal(after["encoder.2.0.bias"], before["encoder.2.0.bias"])
    assert (after["encoder.1.3.bias"] != before["encoder.1.3.bias"]).any()


def test_a_graph_cannot_be_pruned(graphs: dict[str, Path]) -> None:
    network = GraphNetwork(onnx.load(graphs["transpose"]))
    with pytest.raises(InputError, match="keeps its channels"):
        network.with_weights(network.state_dict())


def uneven(path: Path, tmp_path: Path) -> onnx.ModelProto:
    """The graph with one channel of a convolution a hundred times the others."""
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in ("encoder.1.0.weight", "encoder.1.0.bias"):
        value = onnx.numpy_helper.to_array(tensors[name]).copy()
        value[0] *= 100.0
        tensors[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
    value = onnx.numpy_helper.to_array(tensors["encoder.1.3.weight"]).copy()
    value[:, 0] /= 100.0
    tensors["encoder.1.3.weight"].CopyFrom(onnx.numpy_helper.from_array(value, "encoder.1.3.weight"))
    return model


def test_equalizing_evens_channels_out_and_keeps_the_answer(graphs: dict[str, Path], tmp_path: Path) -> None:
    model = uneven(graphs["transpose"], tmp_path)
    equalized = equalize_channels(model, smooth_pictures())
    picture = torch.from_numpy(smooth_pictures(1)[0])
    spread, answers = [], []
    relu = next(n.output[0] for n in model.graph.node if n.op_type == "Relu" and n.input[0] == _answer_of(model))
    for graph in (model, equalized):
        network = GraphNetwork(graph)
        with torch.inference_mode():
            answers.append(network(picture))
            value = network.forward_values(picture, frozenset({relu}))[relu].amax(dim=(0, 2, 3))
        spread.append(float(value.max() / value[value > 0].median()))
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-5)
    assert spread[1] < 0.2 * spread[0]


def _answer_of(model: onnx.ModelProto) -> str:
    return next(node.output[0] for node in model.graph.node if node.name == "encoder.1.0")


def test_corrected_biases_take_the_shift_of_rounding_back(graphs: dict[str, Path]) -> None:
    quantizer = quantizer_of(graphs["transpose"])
    way = _starting_way(QuantizeConfig(calibration_method="minmax", equalize="off", correct_bias="off"))
    ranges = quantizer.rounded_network(quantizer.model, quantizer.ranges(way), quantizer.layers).read_ranges()

    def rounding(model: onnx.ModelProto) -> GraphNetwork:
        # Weights of four bits shift means enough to see it.
        return GraphNetwork(model, rounded=ranges, rounded_layers=frozenset(quantizer.layers), weight_levels=7)

    corrected = correct_biases(quantizer.model, smooth_pictures(), quantizer.layers, rounding)

    def shift(model: onnx.ModelProto) -> float:
        network = rounding(model)
        plain, total = GraphNetwork(quantizer.model), 0.0
        with torch.inference_mode():
            for picture in smooth_pictures():
                lightness = torch.from_numpy(picture)
                total += float((network(lightness) - plain(lightness)).mean(dim=(0, 2, 3)).abs().sum())
        return total

    assert shift(corrected) < 0.5 * shift(quantizer.model)
