"""Sizes read from disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from benchmarks.variants import describe_variant, on_device
from colorpress.config import ExportConfig
from colorpress.errors import ConfigError, InputError
from export.graph import export_onnx
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.unet import count_parameters


def test_checkpoint_sizes_tell_weights_from_training_state(tiny_checkpoint: Path, tmp_path: Path) -> None:
    plain = describe_variant("best.pt", tiny_checkpoint, macs=7)
    checkpoint = load_checkpoint(tiny_checkpoint)
    state = {"exp_avg": torch.zeros(50_000)}
    heavy_path = save_checkpoint(
        tmp_path / "last.pt", Checkpoint(checkpoint.architecture, checkpoint.state_dict, training_state=state)
    )
    heavy = describe_variant("last.pt", heavy_path)
    assert (plain.runtime, plain.macs, plain.device) == ("torch", 7, "cpu")
    assert plain.params == count_parameters(checkpoint.build_network())
    assert plain.size_bytes == tiny_checkpoint.stat().st_size
    assert heavy.weights_bytes == plain.weights_bytes < plain.size_bytes
    assert heavy.size_bytes > plain.size_bytes + 200_000


def test_exported_graph_counts_folded_weights(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "m.onnx", ExportConfig()).path
    variant = describe_variant("best", path)
    params = count_parameters(load_checkpoint(tiny_checkpoint).build_network())
    assert variant.runtime == "onnxruntime"
    # A batch norm of C channels, 2 C parameters, becomes a bias of C.
    assert 0.9 * params < variant.params < params
    assert variant.weights_bytes == 4 * variant.params
    assert describe_variant("best", path, params=123).params == 123
    assert on_device(variant, "cuda").name == "best @ cuda"


def test_external_data_counts(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 64])], [weights],
    )  # fmt: skip
    path = tmp_path / "big.onnx"
    onnx.save_model(
        helper.make_model(graph), str(path), save_as_external_data=True, location="big.data", size_threshold=0
    )
    variant = describe_variant("big", path)
    assert (variant.params, variant.weights_bytes) == (4096, 16384)
    assert variant.size_bytes == path.stat().st_size + (tmp_path / "big.data").stat().st_size > 16384


def test_int8_scales_are_no_weights(tmp_path: Path) -> None:
    weights = numpy_helper.from_array(np.ones((8, 4), np.int8), "w")
    scale = numpy_helper.from_array(np.ones(8, np.float32), "s")
    zero = numpy_helper.from_array(np.zeros(8, np.int8), "z")
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["y"], axis=0)], "g", [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 4])], [weights, scale, zero],
    )  # fmt: skip
    path = tmp_path / "q.onnx"
    onnx.save_model(helper.make_model(graph), str(path))
    variant = describe_variant("q", path, precision="int8")
    assert (variant.params, variant.weights_bytes) == (32, 32)


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        describe_variant("x", tmp_path / "x.onnx")
    for name, error in (("x.txt", ConfigError), ("x.pt", InputError), ("x.onnx", InputError)):
        (tmp_path / name).write_bytes(b"\xff\xffnothing")
        with pytest.raises(error):
            describe_variant("x", tmp_path / name)
