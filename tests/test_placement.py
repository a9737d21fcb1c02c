"""Kernel calls are counted where they run; sessions of one size each work out what depends on it before the first."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from colorpress.cli import run_command
from colorpress.core.errors import ConfigError, MachineError
from export import onnx_probe, sessions
from export.colorize_folder import DEMONSTRATION_MODEL
from export.picture_graph import build_picture_graph
from export.placement import KernelCalls, count_kernel_calls
from export.predictors import OnnxPredictor
from export.renewal import take_network


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    onnx.save(take_network(onnx.load(DEMONSTRATION_MODEL)), path)
    return path


@pytest.fixture
def sized(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU's sessions are for one size each, as WebGPU's are."""
    monkeypatch.setitem(sessions._PROVIDERS, "cpu", replace(sessions._PROVIDERS["cpu"], sized=True))


def test_kernel_calls_of_a_network_and_of_a_picture_graph(network: Path, tmp_path: Path) -> None:
    counted = count_kernel_calls(network, "onnxruntime", side=20)
    convolutions = sum(node.op_type == "Conv" for node in onnx.load(network).graph.node)
    assert counted.calls.keys() == {"CPUExecutionProvider"} and counted.shape == (1, 1, 20, 20)
    assert counted.calls["CPUExecutionProvider"]["Conv"] == convolutions
    assert counted.on_cpu == counted.total and counted.copies == 0
    pictures = tmp_path / "colorizer.onnx"
    pictures.write_bytes(build_picture_graph(onnx.load(network)).SerializeToString())
    around = count_kernel_calls(pictures, "onnxruntime", side=20)
    assert around.shape == (1, 20, 20, 3) and around.total > counted.total
    with pytest.raises(ConfigError, match="no provider of ONNX Runtime"):
        count_kernel_calls(network, "openvino")


def test_what_is_left_to_the_cpu_is_named() -> None:
    calls = {"GpuExecutionProvider": {"Conv": 5, "MemcpyToHost": 2}, "CPUExecutionProvider": {"Range": 1, "Cast": 2}}
    counted = KernelCalls("GpuExecutionProvider", (1, 8, 8, 3), calls)
    assert (counted.total, counted.on_cpu, counted.copies) == (10, 3, 2)
    assert counted.describe() == (
        "GpuExecutionProvider: 10 kernel calls at 1x8x8x3, 2 of them copies between devices, "
        "3 on the CPU, 30.0%: 2 Cast, 1 Range"
    )


def test_a_session_of_one_size_each_answers_the_same_in_fewer_calls(network: Path, sized: None) -> None:
    before, predictor = count_kernel_calls(network, "onnxruntime", side=20), OnnxPredictor(network, threads=1)
    assert "Shape" not in before.calls["CPUExecutionProvider"]
    whole = predictor.session._session
    for shape in [(1, 1, 5, 9), (2, 1, 5, 9), (1, 1, 5, 9)]:
        lightness = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.testing.assert_allclose(predictor(lightness), whole.run(None, {"L": lightness})[0], atol=1e-6)
    found = predictor.session._session_for.cache_info()
    assert (found.misses, found.hits) == (2, 1)


def test_inspect_counts_on_the_runtimes_that_are_named(
    network: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_probe, "inspect_onnx", lambda path: onnx_probe.describe_graph(onnx.load(path)))
    assert run_command(["inspect", str(network), "--runtime", "onnxruntime"]) == 0
    assert "\nonnxruntime: CPUExecutionProvider: " in capsys.readouterr().out
    assert run_command(["inspect", str(network), "--runtime", "onnxruntime", "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["kernel_calls"]["onnxruntime"]
    assert counted["on_cpu"] == counted["total"] > 0


def test_without_its_wheel_webgpu_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = replace(sessions._PROVIDERS["webgpu"], name="NoExecutionProvider", plugin="no_such_wheel")
    monkeypatch.setitem(sessions._PROVIDERS, "webgpu", missing)
    with pytest.raises(MachineError, match="is not installed") as caught:
        sessions.require_provider("webgpu")
    assert "colorpress[webgpu]" in caught.value.hint and sessions.SOFTWARE_ADAPTER in caught.value.hint
