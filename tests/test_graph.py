"""ONNX export: what is in the file, and that its answers are PyTorch's for any size."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import export.graph
from colorpress.core.config import ExportConfig
from colorpress.core.errors import GateError
from export.graph import build_graph, export_onnx, shuffle_from_transpose, simplify_for_export
from export.predictors import OnnxPredictor
from export.torch_runtimes import TorchPredictor
from training.checkpoint import Checkpoint
from training.unet import UPSAMPLERS, UNet, UNetPlan

REORDERED_SUMS = 1e-6  # float32 sums in another order; the rewrites themselves are exact


def lively_network(plan: UNetPlan) -> UNet:
    """A network whose batch norms do something: random weights, biases, means and variances."""
    torch.manual_seed(3)
    network = UNet(plan)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight, 1.0, 0.3)
            nn.init.normal_(module.bias)
    return network.eval()


def as_checkpoint(network: UNet, plan: UNetPlan) -> Checkpoint:
    return Checkpoint(plan, network.state_dict(), epoch=7, val_l1=0.0625, sha256="ab" * 32)


@pytest.fixture(scope="module", params=[(4, 2, "transpose"), (8, 3, "bilinear"), (2, 1, "nearest")], ids=str)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    plan = UNetPlan.classic(*request.param)
    network = lively_network(plan)
    path = tmp_path_factory.mktemp("export") / "deep" / "model.onnx"
    torch.set_num_threads(1)
    result = export_onnx(as_checkpoint(network, plan), path, ExportConfig(), metadata={"stage": "test"})
    return network, result


def test_answers_are_pytorchs_for_every_size(exported):
    network, result = exported
    reference, candidate = TorchPredictor(network), OnnxPredictor(result.path, threads=1)
    rng = np.random.default_rng(1)
    shapes = [(1, 1, 1), (2, 1, 2), (1, 2, 1), (1, 7, 1), (4, 3, 5), (1, 13, 29), (1, 64, 64), (1, 65, 63), (2, 8, 100)]
    for batch, height, width in shapes:
        picture = rng.random((batch, 1, height, width), dtype=np.float32)
        answer = candidate(picture)
        assert answer.shape == (batch, 2, height, width)
        np.testing.assert_allclose(answer, reference(picture), atol=REORDERED_SUMS, rtol=0)
    assert result.parity.passed
    assert result.parity.max_abs < REORDERED_SUMS


def test_one_file_that_says_what_it_is(exported):
    _, result = exported
    assert [each.name for each in result.path.parent.iterdir()] == ["model.onnx"]
    assert result.size_bytes == result.path.stat().st_size
    model = onnx.load(result.path)
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert metadata["stage"] == "test"
    assert metadata["producer"] == "colorpress"
    assert metadata["checkpoint_sha256"] == "ab" * 32
    assert metadata["val_l1"] == "0.0625"
    assert metadata["precision"] == "fp32"
    assert metadata["opset"] == "18"
    assert UNetPlan.from_dict(json.loads(metadata["architecture"])["plan"]).size_multiple == int(
        metadata["size_multiple"]
    )
    assert "[0,1]" in metadata["input"] and "[-1,1]" in metadata["output"]


def test_no_local_path_and_no_trace_in_the_bytes(exported):
    content = exported[1].path.read_bytes()
    for trace in (b".py", b"site-packages", str(Path.cwd()).encode(), str(Path.home()).encode(), b"pkg.torch"):
        assert trace not in content


def test_the_graph_is_clean(exported):
    model = onnx.load(exported[1].path)
    operators = [node.op_type for node in model.graph.node]
    assert not {"BatchNormalization", "ConvTranspose", "Identity", "Cast", "Pad", "Reshape"} & set(operators)
    # Sizes are computed once, ahead of the first convolution, and used again only by the crop.
    first = operators.index("Conv")
    assert operators[:first] == ["Shape", "Neg", "Mod", "Add", "Gather", "Concat", "Gather", "Concat", "Slice"]
    assert set(operators[first:]) <= {"Conv", "Relu", "MaxPool", "DepthToSpace", "Resize", "Concat", "Tanh", "Slice"}
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    assert {"encoder.0.0", "decoder.0.3", "head"} <= set(names)
    assert [value.name for value in model.graph.input] == ["L"]
    assert [value.name for value in model.graph.output] == ["ab"]
    said = {(node.op_type, each.name) for node in model.graph.node for each in node.attribute}
    assert ("Conv", "kernel_shape") in said and not {("Conv", "group"), ("Conv", "auto_pad")} & said


def test_same_checkpoint_same_bytes(exported, tmp_path):
    network, result = exported
    if network.upsample != "transpose":
        pytest.skip("one kind is enough")
    checkpoint = as_checkpoint(network, network.architecture)
    again = export_onnx(checkpoint, tmp_path / "again.onnx", ExportConfig(), metadata={"stage": "test"})
    assert again.sha256 == result.sha256


def test_another_opset_in_silence(capfd, caplog):
    disabled, filters = logging.root.manager.disable, list(warnings.filters)
    model = build_graph(lively_network(UNetPlan.classic(2, 1)), opset=21)
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 21)]
    assert capfd.readouterr() == ("", "")
    assert not [each for each in caplog.records if each.levelno >= logging.INFO]
    assert (logging.root.manager.disable, list(warnings.filters)) == (disabled, filters)


def test_a_changed_weight_is_not_published(tmp_path, monkeypatch):
    plan = UNetPlan.classic(2, 1)
    target = tmp_path / "model.onnx"
    target.write_bytes(b"an older export")

    def perturbed(network: UNet) -> UNet:
        simple = simplify_for_export(network)
        with torch.no_grad():
            simple.head.weight[0, 0] += 0.05
        return simple

    monkeypatch.setattr(export.graph, "simplify_for_export", perturbed)
    with pytest.raises(GateError, match="answers differ from PyTorch") as caught:
        export_onnx(as_checkpoint(lively_network(plan), plan), target, ExportConfig())
    assert caught.value.exit_code == 5
    assert target.read_bytes() == b"an older export"
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


def test_transposed_convolution_rewrite_is_exact():
    torch.manual_seed(0)
    transpose = nn.ConvTranspose2d(5, 3, 2, stride=2)
    picture = torch.randn(2, 5, 4, 7)
    with torch.no_grad():
        torch.testing.assert_close(shuffle_from_transpose(transpose)(picture), transpose(picture), atol=1e-6, rtol=0)


@pytest.mark.parametrize("upsample", UPSAMPLERS)
def test_simplifying_leaves_the_network_alone(upsample):
    network = lively_network(UNetPlan.classic(4, 2, upsample))
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    simple = simplify_for_export(network)
    assert not any(isinstance(m, nn.BatchNorm2d | nn.ConvTranspose2d) for m in simple.modules())
    picture = torch.rand(1, 1, 9, 14)
    with torch.inference_mode():
        torch.testing.assert_close(simple(picture), network(picture), atol=REORDERED_SUMS, rtol=0)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
