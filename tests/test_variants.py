"""Sizes read from disk, and multiply-accumulates of exported files, which are those of the networks they came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import make_network
from onnx import TensorProto, helper, numpy_helper

from benchmarks.variants import count_graph_macs, describe_models, describe_variant, in_runtimes
from colorpress.core.config import ArchConfig, ExportConfig
from colorpress.core.errors import ConfigError, InputError, MachineError
from compress.packing import pack_onnx
from compress.ranking import count_macs
from compress.students.student_stages import flat_ladder, growing_ladder
from export.graph import export_onnx
from export.runtimes import open_predictor
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.unet import UNetPlan, count_parameters


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
    assert (variant.precision, variant.macs, variant.peer) == ("fp32", 0, False)


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
    variant = describe_variant("q", path)
    assert (variant.params, variant.weights_bytes, variant.precision) == (32, 32, "w8")


def test_unusable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        describe_variant("x", tmp_path / "x.onnx")
    for name, error in (("x.txt", ConfigError), ("x.pt", InputError), ("x.onnx", InputError)):
        (tmp_path / name).write_bytes(b"\xff\xffnothing")
        with pytest.raises(error):
            describe_variant("x", tmp_path / name)


def test_files_that_somebody_names_are_called_as_their_folders_are(tiny_checkpoint: Path, tmp_path: Path) -> None:
    exported = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "best" / "model.onnx", ExportConfig()).path
    variants = describe_models([tiny_checkpoint, exported], size=64, arch=ArchConfig())
    assert [(each.name, each.runtime, each.macs > 0) for each in variants] == [
        ("tiny.pt", "torch", True), ("best", "onnxruntime", True),
    ]  # fmt: skip
    other = tmp_path / "elsewhere" / "best.onnx"
    other.parent.mkdir()
    other.write_bytes(exported.read_bytes())
    with pytest.raises(ConfigError, match="second one called 'best'"):
        describe_models([tiny_checkpoint, exported, other], size=64, arch=ArchConfig())


def test_openvino_files_are_two(tiny_checkpoint: Path, tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    exported = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "m.onnx", ExportConfig()).path
    openvino.save_model(openvino.convert_model(exported), tmp_path / "m.xml", compress_to_fp16=False)
    variant = describe_variant("ir", tmp_path / "m.xml", peer=True)
    weights_bytes = (tmp_path / "m.bin").stat().st_size
    assert (variant.runtime, variant.precision, variant.peer) == ("openvino", "fp32", True)
    assert variant.size_bytes == (tmp_path / "m.xml").stat().st_size + weights_bytes > weights_bytes
    assert variant.weights_bytes == weights_bytes
    picture = np.random.default_rng(0).random((1, 1, 9, 13), dtype=np.float32)
    answers = [open_predictor(path)(picture) for path in (tmp_path / "m.xml", exported)]
    np.testing.assert_allclose(*answers, atol=2e-2)  # OpenVINO computes in bf16 where the processor has it
    (tmp_path / "m.bin").unlink()
    with pytest.raises(InputError, match=r"no m\.bin beside it"):
        describe_variant("ir", tmp_path / "m.xml")


def test_runtimes_are_rows_of_their_own(tiny_checkpoint: Path, tmp_path: Path) -> None:
    exported = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "m.onnx", ExportConfig()).path
    best, onnx = describe_variant("best.pt", tiny_checkpoint), describe_variant("best", exported)
    both = [best, onnx]

    def names(runtimes: tuple[str, ...], device: str = "cpu") -> list[str]:
        return [each.name for each in in_runtimes(both, runtimes, device)]

    assert names(()) == ["best.pt", "best"]
    assert names(("openvino",)) == ["best.pt", "best @ openvino"]  # nothing of it runs best.pt
    assert names(("torch-bf16", "openvino", "onnxruntime")) == [
        "best.pt", "best.pt @ torch-bf16", "best", "best @ openvino",
    ]  # fmt: skip
    assert names((), "cuda") == ["best.pt", "best", "best.pt @ cuda", "best @ cuda"]
    assert names(("torch-fp16", "openvino"), "cuda:1") == [
        "best.pt", "best @ openvino", "best.pt @ cuda:1", "best.pt @ torch-fp16, cuda:1",
    ]  # fmt: skip
    assert [each.file_name for each in in_runtimes(both, ("openvino",), "cpu")] == ["best.pt", "best"]
    peer = describe_variant("best.pt @ torch-bf16", tiny_checkpoint, runtime="torch-bf16", peer=True)
    assert [each.name for each in in_runtimes([peer], (), "cpu")] == ["best.pt @ torch-bf16"]
    with pytest.raises(MachineError, match="torch-fp16': needs a GPU"):
        in_runtimes(both, ("torch-fp16",), "cpu")
    with pytest.raises(ConfigError, match="cannot run tiny"):
        describe_variant("x", tiny_checkpoint, runtime="openvino")


@pytest.mark.parametrize(
    "plan", [UNetPlan.classic(4, 2), flat_ladder(8)[0], growing_ladder(1)[0]], ids=["classic", "coarse", "fine"]
)
def test_a_graph_and_what_is_packed_of_it_have_the_macs_of_the_network(plan: UNetPlan, tmp_path: Path) -> None:
    network = make_network(plan)
    exported = export_onnx(Checkpoint(plan, network.state_dict()), tmp_path / "m.onnx", ExportConfig()).path
    pack_onnx(exported, tmp_path / "packed.onnx")
    for size in (64, 96):
        expected = count_macs(network, height=size, width=size)
        assert (
            count_graph_macs(exported, size=size) == count_graph_macs(tmp_path / "packed.onnx", size=size) == expected
        )


def test_a_graph_that_does_not_run_has_none(tmp_path: Path) -> None:
    exported = export_onnx(
        Checkpoint(UNetPlan.classic(4, 2), make_network().state_dict()), tmp_path / "m.onnx", ExportConfig()
    ).path
    model = onnx.load(str(exported))
    model.graph.node[-1].input[0] = "nowhere"
    onnx.save(model, str(tmp_path / "broken.onnx"))
    assert count_graph_macs(tmp_path / "broken.onnx", size=64) == 0


def test_a_file_is_not_called_as_a_control_is(tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "control: grey" / "model.pt"
    path.parent.mkdir()
    path.write_bytes(tiny_checkpoint.read_bytes())
    with pytest.raises(ConfigError, match="is the second one called 'control: grey'"):
        describe_models([path], size=8, arch=ArchConfig())
