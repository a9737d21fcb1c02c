"""Sensitivities: what does not matter costs nothing, what is pruned is what PyTorch says, and nothing is done twice."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from torch import Tensor

from compress.measures import Reference, Score
from compress.ranking import convolution_channels
from compress.sensitivity import Sensitivity, measure_sensitivities, prune_layer
from compress.yardstick import Picture, Yardstick
from export.graph import build_graph
from export.layer_latency import find_convolutions
from tests.conftest import make_network
from tests.test_layer_latency import Theirs
from training.conventions import Conventions
from training.foreign import AdaptedNetwork, ForeignArchitecture
from training.network import ColorNetwork
from training.unet import UNet, UNetPlan

# Batch norm is folded in and sums are reordered: float32 rounding through a few layers.
ATOL = 1e-5


def run_graph(content: bytes, lightness: Tensor) -> Tensor:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"L": lightness.numpy()})[0])


class Bench:
    """A network, its graph, and photographs whose truth is what it answers: all is kept, and a loss is its own."""

    def __init__(self, network: ColorNetwork) -> None:
        self.network, self.model = network, build_graph(network, opset=18)
        self.convolutions = convolution_channels(network)
        generator = torch.Generator().manual_seed(3)
        pictures = [torch.rand(1, 1, 16, side, generator=generator) for side in (16, 24)]
        with torch.no_grad():
            answers = [network(lightness) for lightness in pictures]
        truths = tuple(Picture(lightness, ab, ab) for lightness, ab in zip(pictures, answers, strict=True))
        grey, nothing = np.array([float(ab.abs().mean()) for ab in answers]), np.zeros(len(answers))
        self.yardstick = Yardstick(truths, Reference(grey, grey + math.nan, nothing, grey, grey, grey))
        self.scored = 0
        self.stop_after: int | None = None

    def score(self, content: bytes) -> Score:
        if self.scored == self.stop_after:
            raise KeyboardInterrupt
        self.scored += 1
        return self.yardstick.score(lambda lightness: run_graph(content, lightness))

    def measure(self, cache: Path, key: str = "key") -> dict[str, Sensitivity]:
        pictures = [picture.lightness.numpy() for picture in self.yardstick.pictures]
        return measure_sensitivities(
            self.model, self.convolutions, pictures, self.score, cache, key=key, threads=1
        )  # fmt: skip


@pytest.fixture(scope="module")
def bench() -> Bench:
    network = make_network(UNetPlan.classic(8, 1))
    with torch.no_grad():
        # What comes up from below is multiplied by zero: the skip connection alone makes the answer.
        network.decoder[0][0].weight[:, 8:] = 0.0
    return Bench(network)


def test_what_is_multiplied_by_zero_costs_nothing_and_what_is_not_does(bench: Bench, tmp_path: Path) -> None:
    found = bench.measure(tmp_path / "cache.json")
    assert set(found) == set(bench.convolutions)
    for name in ("encoder.1.0", "encoder.1.3", "up.0"):
        assert found[name].prune_loss == pytest.approx(0.0, abs=ATOL), name
        assert found[name].int8_loss == pytest.approx(0.0, abs=ATOL), name
    for name in ("encoder.0.0", "encoder.0.3", "decoder.0.0", "decoder.0.3"):
        pruned, rounded = found[name].prune_loss, found[name].int8_loss
        assert pruned is not None and rounded is not None
        assert pruned > 0.01 > rounded > 1e-5, name
    assert found["head"].prune_loss is None  # its channels are the answer
    assert found["head"].int8_loss is not None and found["head"].int8_loss > 1e-5


@pytest.mark.parametrize("upsample", ["transpose", "bilinear"])
def test_pruned_graphs_answer_as_the_network_with_silent_channels(upsample: str) -> None:
    network = make_network(UNetPlan.classic(8, 2, upsample), seed=5)
    model = build_graph(network, opset=18)
    convolutions = convolution_channels(network)
    modules = dict(network.named_modules())
    lightness = torch.rand(1, 1, 12, 20, generator=torch.Generator().manual_seed(0))
    for name, nodes in find_convolutions(model.graph, convolutions).items():
        block, _, position = name.rpartition(".")
        norm = modules.get(f"{block}.{int(position) + 1}") if block else None
        weight = modules[name].weight.detach()
        weight = weight.transpose(0, 1) if isinstance(modules[name], torch.nn.ConvTranspose2d) else weight
        norms = weight.flatten(1).norm(dim=1)
        if isinstance(norm, torch.nn.BatchNorm2d):
            norms = norms * (norm.weight / (norm.running_var + norm.eps).sqrt()).abs()
        silent = norms.argsort()[: convolutions[name] // 2]
        last = norm if isinstance(norm, torch.nn.BatchNorm2d) else modules[name]

        def silence(_: object, __: object, output: Tensor, silent: Tensor = silent) -> Tensor:
            return output.index_fill(1, silent, 0.0)

        handle = last.register_forward_hook(silence)
        with torch.no_grad():
            expected = network(lightness)
        handle.remove()
        pruned = prune_layer(model, nodes, convolutions[name])
        assert pruned is not None
        answer = run_graph(pruned.SerializeToString(), lightness)
        torch.testing.assert_close(answer, expected, rtol=0, atol=ATOL, msg=name)
        with torch.no_grad():
            assert (answer - network(lightness)).abs().max() > 10 * ATOL, name
    assert set(find_convolutions(model.graph, convolutions)) == set(convolutions)


def test_a_layer_of_another_author_that_is_called_twice_is_silent_in_both_calls() -> None:
    architecture = ForeignArchitecture("net.py:Theirs", {}, Conventions(), 1, "0" * 64)
    network = AdaptedNetwork(Theirs(), architecture, Theirs).eval()
    layer = network.get_submodule("net.again")
    model = build_graph(network, opset=18)
    nodes = find_convolutions(model.graph, convolution_channels(network))["net.again"]
    assert len(nodes) == 2
    lightness = torch.rand(1, 1, 9, 11, generator=torch.Generator().manual_seed(0))
    silent = layer.weight.detach().flatten(1).norm(dim=1).argsort()[:4]
    layer.register_forward_hook(lambda _, __, output: output.index_fill(1, silent, 0.0))
    pruned = prune_layer(model, nodes, 8)
    assert pruned is not None
    with torch.no_grad():
        torch.testing.assert_close(
            run_graph(pruned.SerializeToString(), lightness), network(lightness), rtol=0, atol=ATOL
        )


def transposed_model() -> onnx.ModelProto:
    """A grouped transposed convolution of 3x3 and stride 2 to four channels, which no rewrite changes."""
    weight = np.random.default_rng(0).normal(size=(4, 2, 3, 3)).astype(np.float32)
    weight[0:2, 1] *= 0.01  # makes output channel 1
    weight[2:4, 0] *= 0.01  # makes output channel 2
    bias = np.ones(4, np.float32)
    node = helper.make_node("ConvTranspose", ["L", "w", "b"], ["up"], "up", strides=[2, 2], group=2)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("L", 1, ["N", 4, "H", "W"])],
        [helper.make_tensor_value_info("up", 1, ["N", 4, "h", "w"])],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_a_grouped_transposed_convolution_loses_its_smallest_channels() -> None:
    model = transposed_model()
    pruned = prune_layer(model, find_convolutions(model.graph, ["up"])["up"], 4)
    assert pruned is not None
    picture = torch.rand(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    before, after = (run_graph(each.SerializeToString(), picture) for each in (model, pruned))
    assert torch.equal(after[:, [0, 3]], before[:, [0, 3]])
    assert not after[:, [1, 2]].any()
    assert before[:, [1, 2]].any()


def test_a_layer_of_one_channel_cannot_lose_half() -> None:
    model = transposed_model()
    assert prune_layer(model, list(model.graph.node), 1) is None


def test_an_interrupted_measuring_goes_on_where_it_stopped(bench: Bench, tmp_path: Path) -> None:
    whole = bench.measure(tmp_path / "whole.json")
    calls = 2 * len(whole)  # the float graph and two of each layer, but the last layer is not pruned
    cache = tmp_path / "cache.json"
    bench.scored, bench.stop_after = 0, 1 + 2 * 3 + 1
    with pytest.raises(KeyboardInterrupt):
        bench.measure(cache)
    bench.scored, bench.stop_after = 0, None
    assert len(json.loads(cache.read_bytes())["layers"]) == 3
    assert bench.measure(cache) == whole
    assert bench.scored == calls - 2 * 3
    bench.scored = 0
    assert bench.measure(cache) == whole
    assert bench.scored == 0


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"key": "key"}',
        b'{"key": "key", "layers": {"up.0": {"prune_loss": "much", "int8_loss": null}}}',
    ],
)
def test_a_damaged_cache_is_warned_of_and_made_anew(
    bench: Bench, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache.json"
    cache.write_bytes(content)
    bench.scored = 0
    found = bench.measure(cache)
    assert bench.scored == 2 * len(found)
    assert "every layer is measured again" in capsys.readouterr().err
    assert set(json.loads(cache.read_bytes())["layers"]) == set(found)


def test_another_key_measures_again(bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = bench.measure(tmp_path / "cache.json")
    bench.scored = 0
    assert bench.measure(tmp_path / "cache.json", key="other") == found
    assert bench.scored == 2 * len(found)
    assert "measured again" not in capsys.readouterr().err


def test_a_layer_that_the_runtime_refuses_leaves_its_cells_empty(bench: Bench, tmp_path: Path) -> None:
    from colorpress.core.errors import InputError

    bench.scored = 0
    plain = bench.score

    def refuse_changes(content: bytes) -> Score:
        if bench.scored:
            raise InputError("model", None, "is refused", "no hint")
        return plain(content)

    pictures = [picture.lightness.numpy() for picture in bench.yardstick.pictures]
    found = measure_sensitivities(
        bench.model, {"head": 2, "elsewhere": 3}, pictures, refuse_changes, tmp_path / "cache.json", key="key"
    )
    assert found == {"head": Sensitivity(None, None)}


def test_measuring_leaves_the_graph_as_it_is(bench: Bench, tmp_path: Path) -> None:
    before = bench.model.SerializeToString(deterministic=True)
    bench.measure(tmp_path / "cache.json")
    assert bench.model.SerializeToString(deterministic=True) == before
    assert isinstance(bench.network, UNet)
