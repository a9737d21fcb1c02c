"""Times of layers: which time is whose, medians without the first call, and nothing of the network changes."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from compress.ranking import convolution_channels
from export import layer_latency
from export.graph import build_graph
from export.layer_latency import (
    assign_names,
    find_layer,
    sum_layer_events,
    time_onnx_layers,
    time_torch_layers,
    warn_when_busy,
)
from tests.conftest import make_network
from training.conventions import Conventions
from training.foreign import AdaptedNetwork, ForeignArchitecture
from training.unet import UPSAMPLERS, UNetPlan


class Theirs(nn.Module):
    """Functional activations, an addition, a layer that is called twice, and one that never is."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.spare = nn.Conv2d(8, 8, 1)
        self.last = nn.Conv2d(8, 2, 1)

    def forward(self, picture: Tensor) -> Tensor:
        features = F.relu(self.first(picture))
        features = features + self.again(F.relu(self.again(features)))
        return torch.tanh(self.last(features))


@pytest.fixture(scope="module")
def theirs() -> AdaptedNetwork:
    return AdaptedNetwork(Theirs(), ForeignArchitecture("net.py:Theirs", {}, Conventions(), 1, "0" * 64), Theirs).eval()


@pytest.mark.parametrize(
    ("node", "layer"),
    [("up.0", "up.0"), ("up.0.1", "up.0"), ("conv_2", "conv_2"), ("conv_3", "conv"), ("up.1", None), ("concat", None)],
)
def test_layers_are_found_by_the_names_of_their_nodes(node: str, layer: str | None) -> None:
    assert find_layer(node, ["up.0", "conv", "conv_2"]) == layer


def test_an_activation_counts_for_the_convolution_before_it(theirs: AdaptedNetwork) -> None:
    network = make_network()
    names = assign_names(build_graph(network, opset=18).graph, convolution_channels(network))
    assert names["encoder.0.2"] == "encoder.0.0"  # its ReLU, whose name the fused kernel has
    assert names["ab.padded"] == "head"
    assert names["up.0.1"] == "up.0"
    assert not {"pool", "concat", "crop", "pad"} & names.keys()
    graph = build_graph(theirs, opset=18).graph
    names = assign_names(graph, convolution_channels(theirs))
    assert set(names.values()) == {"net.first", "net.again", "net.last"}
    assert names["ab"] == "net.last"
    (addition,) = (node for node in graph.node if node.op_type == "Add")
    assert names[addition.name] == "net.again"


@pytest.mark.parametrize("upsample", UPSAMPLERS)
def test_every_convolution_is_timed_in_onnx_runtime(upsample: str) -> None:
    network = make_network(UNetPlan.classic(8, 2, upsample))
    layers = convolution_channels(network)
    times = time_onnx_layers(build_graph(network, opset=18), layers, side=32, runs=3, threads=1)
    assert set(times.by_layer) == set(layers)
    assert 0 < sum(times.by_layer.values()) < 1.5 * times.call_ms


def test_layers_of_another_author_are_timed(theirs: AdaptedNetwork) -> None:
    layers = convolution_channels(theirs)
    onnx_times = time_onnx_layers(build_graph(theirs, opset=18), layers, side=32, runs=3, threads=1)
    torch_times = time_torch_layers(theirs, layers, side=32, runs=3, threads=1)
    assert list(torch_times.by_layer) == ["net.first", "net.again", "net.last"]
    assert set(onnx_times.by_layer) == set(torch_times.by_layer)


def test_each_call_of_a_layer_adds_up(theirs: AdaptedNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 1_000_000)  # a millisecond passes at each look
    monkeypatch.setattr("export.layer_latency.time.perf_counter_ns", lambda: next(clock))
    times = time_torch_layers(theirs, convolution_channels(theirs), side=8, runs=3)
    assert times.by_layer == {"net.first": 1.0, "net.again": 2.0, "net.last": 1.0}
    assert times.call_ms == 9.0  # two looks for each of four calls, and its own
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in theirs.modules())


def test_medians_leave_out_the_first_call() -> None:
    def call(first: float, reorder: float, last: float) -> list[dict[str, Any]]:
        micros = {"relu_nchwc": first, "reorder": reorder, "last_token_12": last, "last.1": 500}
        return [{"cat": "Node", "name": f"{name}_kernel_time", "dur": value} for name, value in micros.items()]

    events = [*call(9e6, 9e6, 9e6), *call(1000, 1, 2000), *call(3000, 1, 9000), *call(2000, 1, 4000)]
    names = {"relu": "first", "last": "last", "last.1": "last"}
    times = sum_layer_events([{"cat": "Session", "name": "x", "dur": 1}, *events], names, runs=3)
    assert times.by_layer == {"first": 2.0, "last": 4.5}
    assert times.call_ms == pytest.approx(6.501)


def test_a_busy_machine_is_warned_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(layer_latency, "_BUSY_PER_S", float("inf"))
    with warn_when_busy():
        pass
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(layer_latency, "_BUSY_PER_S", -1.0)
    with warn_when_busy():
        pass
    assert "do not trust the times of layers" in capsys.readouterr().err
