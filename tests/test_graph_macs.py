"""Multiply-accumulates of exported files are those of the networks they came from."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import make_network

from benchmarks.graph_macs import count_graph_macs
from colorpress.core.config import ExportConfig
from compress.packing import pack_onnx
from compress.ranking import count_macs
from compress.students.ladder import student_ladder
from export.graph import export_onnx
from training.checkpoint import Checkpoint
from training.unet import UNetPlan


@pytest.mark.parametrize(
    "plan", [UNetPlan.classic(4, 2), student_ladder(8)[0], student_ladder(1)[0]], ids=["classic", "coarse", "fine"]
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
    import onnx

    model = onnx.load(str(exported))
    model.graph.node[-1].input[0] = "nowhere"
    onnx.save(model, str(tmp_path / "broken.onnx"))
    assert count_graph_macs(tmp_path / "broken.onnx", size=64) == 0
