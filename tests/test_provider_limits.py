"""What is read in a graph about providers that are not here, on graphs that hold one thing each; and what runs here."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from colorpress.core.errors import InputError, MachineError
from export import provider_matrix
from export.graph import build_graph
from export.provider_limits import LIMITS, LimitsCheck, check_limits, check_providers
from export.provider_matrix import CHECKED, EXECUTED, format_matrix, list_matrix, list_providers
from export.runtimes import RUNTIMES, Opening, Runtime
from training.unet import UNet, UNetPlan

FIXED: Sequence[int | str] = (1, 1, 8, 8)
ANY: Sequence[int | str] = ("N", 1, "H", "W")
CONV = helper.make_node("Conv", ["L", "weight"], ["wide"], pads=[1, 1, 1, 1])
RELU = helper.make_node("Relu", ["wide"], ["ab"])
SIZED = [
    helper.make_node("Shape", ["L"], ["size"]),
    helper.make_node("Mod", ["size", "four"], ["amount"]),
    helper.make_node("Concat", ["amount", "amount"], ["amounts"], axis=0),
    helper.make_node("Pad", ["L", "amounts"], ["padded"], mode="edge"),
    helper.make_node("Conv", ["padded", "weight"], ["ab"], pads=[1, 1, 1, 1]),
]


def make_model(nodes: Sequence[onnx.NodeProto], sides: Sequence[int | str] = FIXED, opset: int = 18) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((2, 1, 3, 3)).astype(np.float32)
    constants = {
        "weight": weight, "four": np.array(4), "yes": np.array(True), "scale": np.array(0.1, np.float32),
        "zero": np.array(0, np.int8), "shifted": np.array(128, np.uint8), "half": np.array(0.5, np.float32),
    }  # fmt: skip
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "graph", [value("L", TensorProto.FLOAT, sides)],
        [value("ab", TensorProto.FLOAT, [sides[0], 2, *sides[2:]])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def check(nodes: Sequence[onnx.NodeProto], provider: str, **more: Any) -> LimitsCheck:
    return check_limits(make_model(nodes, **more), LIMITS[provider])


def test_a_convolution_of_one_size_fits_everywhere_and_every_limit_names_its_source() -> None:
    for found in check_providers(make_model([CONV, RELU])):
        assert found.takes and not found.why and not found.left and found.is_fixed
        assert (found.copies, found.control_flow, found.opset) == (0, 0, 18)
    assert set(LIMITS) - {"cuda-graph"} <= set(RUNTIMES)
    assert all(each.source.startswith("https://github.com/") for each in LIMITS.values())


def test_sizes_that_are_not_fixed_are_refused_where_they_have_to_be() -> None:
    found = {each.provider: each for each in check_providers(make_model([CONV, RELU], ANY))}
    refusing = {name for name, each in found.items() if "sizes are not fixed" in each.why}
    assert refusing == {"cuda-graph", "onnxruntime-qnn"} and not any(each.is_fixed for each in found.values())


def test_what_works_out_sizes_runs_on_the_cpu_anyway_and_other_work_is_copied_there_and_back() -> None:
    sizing = check(SIZED, "onnxruntime-webgpu", sides=ANY)
    assert (sizing.takes, sizing.copies, dict(sizing.left)) == (True, 0, {})
    between = [
        CONV,
        helper.make_node("Mod", ["wide", "half"], ["rest"], fmod=1),
        helper.make_node("Relu", ["rest"], ["ab"]),
    ]
    working = check(between, "onnxruntime-webgpu")
    assert (working.takes, working.copies, dict(working.left)) == (False, 2, {"Mod": 1})
    assert working.why == ("no kernel: 1 Mod",)
    assert check(between, "onnxruntime-cuda").takes and check([*between[:-1]], "onnxruntime-webgpu").copies == 1
    # Of a graph that ends on the CPU the answer is wanted on the device.
    last = [CONV, helper.make_node("Mod", ["wide", "half"], ["ab"], fmod=1)]
    assert check(last, "onnxruntime-webgpu").copies == 2


def test_copies_matter_to_a_cuda_graph() -> None:
    unknown = [CONV, helper.make_node("Mystery", ["wide"], ["rest"]), helper.make_node("Relu", ["rest"], ["ab"])]
    assert check(unknown, "cuda-graph").why == ("no kernel: 1 Mystery", "2 copies")
    assert check(unknown, "onnxruntime-cuda").why == ("no kernel: 1 Mystery",)


def test_control_flow_is_counted_inside_of_control_flow() -> None:
    value = helper.make_tensor_value_info("out", TensorProto.FLOAT, None)
    loop = helper.make_node("Loop", ["four", "yes", "L"], ["out"], body=helper.make_graph([], "body", [], []))
    inner = helper.make_graph([loop], "inner", [], [value])
    nodes = [CONV, helper.make_node("If", ["yes"], ["ab"], then_branch=inner, else_branch=inner)]
    assert check(nodes, "onnxruntime-tensorrt").takes
    assert check(nodes, "onnxruntime-directml").why == ("control flow: 2 Loop",)
    for name in ("cuda-graph", "onnxruntime-coreml", "onnxruntime-qnn"):
        found = check(nodes, name)
        assert "control flow: 1 If, 2 Loop" in found.why and found.control_flow == 3


def test_rules_of_single_providers() -> None:
    assert check([CONV, RELU], "onnxruntime-tensorrt", opset=23).why == ("opset 23, it takes 9 to 20",)
    for zero, why in (("zero", ()), ("shifted", ("1 zero points are not 0",))):
        quantize = helper.make_node("QuantizeLinear", ["wide", "scale", zero], ["ab"])
        assert check([CONV, quantize], "onnxruntime-tensorrt").why == why
    assert check([CONV, helper.make_node("QuantizeLinear", ["wide", "scale"], ["ab"])], "onnxruntime-tensorrt").takes
    why = check(SIZED, "onnxruntime-coreml", sides=ANY).why
    assert why == ("1 Pad of what is worked out", "1 Pad by what is at the edge")
    graph = build_graph(UNet(UNetPlan.classic(4, 2, "nearest")), opset=18)
    # What pads, and what crops to the picture's size.
    assert check_limits(graph, LIMITS["onnxruntime-coreml"]).why == ("2 Slice of what is worked out",)
    padded = [helper.make_node("Pad", ["L"], ["padded"], pads=[0] * 8), CONV]
    assert check(padded, "onnxruntime-coreml", opset=10).takes, "amounts were attributes once"


def test_what_is_here_runs_the_file_and_the_others_are_checked_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(make_model([CONV, RELU], ANY), str(path))

    def refuse(path: Path, opening: Opening) -> Any:
        raise InputError("model", path, "is too much", "")

    def fall_back(path: Path, opening: Opening) -> Any:
        raise MachineError("device", "coreml", "fell back to the CPU", "")

    devices: list[str] = []

    def note(path: Path, opening: Opening) -> Any:
        devices.append(opening.device)
        return RUNTIMES["onnxruntime"].open_network(path, opening)

    broken = replace(RUNTIMES["onnxruntime"], name="broken", title="Broken", open_network=refuse)
    failing = replace(RUNTIMES["onnxruntime-coreml"], title="CoreML", open_network=fall_back, require=lambda: None)
    absent = replace(RUNTIMES["onnxruntime-qnn"], name="absent")
    table = {name: RUNTIMES[name] for name in ("torch", "onnxruntime-cuda")}
    table |= {"onnxruntime": replace(RUNTIMES["onnxruntime"], open_network=note)}
    table |= {"broken": broken, "absent": absent, failing.name: failing}
    monkeypatch.setattr(provider_matrix, "RUNTIMES", MappingProxyType(table))
    monkeypatch.setattr("export.runtimes.RUNTIMES", MappingProxyType({**RUNTIMES, **table}))
    rows = {row.provider: row for row in list_providers(path)}
    assert set(devices) == {"cpu"}, "also where there is a GPU"
    coreml = rows["onnxruntime-coreml"]
    assert (coreml.how, coreml.takes, coreml.why) == (EXECUTED, False, ("fell back to the CPU",)), "it is here"
    assert "torch" not in rows, "it runs no such file"
    assert "absent" not in rows, "nothing is known of it"
    assert (rows["onnxruntime"].how, rows["onnxruntime"].takes, rows["onnxruntime"].max_difference) == (
        EXECUTED,
        True,
        0,
    )
    assert (rows["broken"].how, rows["broken"].takes, rows["broken"].why) == (EXECUTED, False, ("is too much",))
    assert {rows[name].how for name in ("cuda-graph", "onnxruntime-webgpu", "onnxruntime-cuda")} == {CHECKED}
    lines = format_matrix({"model.onnx": [row.to_dict() for row in rows.values()]})
    assert lines[0].split() == ["file", "provider", "how", "takes", "it", "difference", "copies", "what", "speaks",
                                "against", "it"]  # fmt: skip
    assert any("CUDA graph" in line and CHECKED in line and line.endswith("sizes are not fixed") for line in lines)
    assert any("ONNX Runtime  executed here  yes       0" in line for line in lines)


def test_a_provider_that_ends_its_process_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.onnx", "b.onnx"):
        onnx.save(make_model([CONV, RELU], ANY), str(tmp_path / name))
    (tmp_path / "a_driver.py").write_text(
        "import os\nfrom export.runtimes import Runtime\n"
        "crashing = Runtime(\n"
        "    'crashing', 'Crashing', lambda *_: os.abort(), family='Drivers', suffixes=('.onnx',), modules=()\n"
        ")\n"
    )
    (tmp_path / "a_driver-1.dist-info").mkdir()
    (tmp_path / "a_driver-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: a-driver\nVersion: 1\n")
    entry = "[colorpress.runtimes]\ncrashing = a_driver:crashing\n"
    (tmp_path / "a_driver-1.dist-info" / "entry_points.txt").write_text(entry)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))  # the process finds it as another package's
    theirs = Runtime("crashing", "Crashing", lambda *_: os.abort(), family="Drivers", suffixes=(".onnx",), modules=())
    table = MappingProxyType({"onnxruntime": RUNTIMES["onnxruntime"], "crashing": theirs})
    monkeypatch.setattr(provider_matrix, "RUNTIMES", table)
    for rows in list_matrix([tmp_path / "a.onnx", tmp_path / "b.onnx"]):
        found = {row["provider"]: row for row in rows}
        assert found["onnxruntime"]["takes"] and not found["crashing"]["takes"]
        assert "crashed(SIGABRT)" in found["crashing"]["why"][0]
