"""The machine's roof: real kernels for a moment, the fastest of each kind, and the bound's arithmetic by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import pytest

from benchmarks import roof
from benchmarks.roof import KERNELS, Roof, format_roof, lower_bound_ms, measure_roof, run_job
from benchmarks.rows import Row

ROOF = Roof(2, {"fp32": 1e11, "int8": 4e11}, {"fp32": "torch.mm", "int8": "MatMulInteger"}, bytes_per_s=2e10)
ROW = Row(
    model="x", variant="x", runtime="onnxruntime", device="cpu", status="ok", size_bytes=5_000_000, threads=2,
    compute="fp32", macs=500_000_000, batch=2, height=100, width=50, weights_bytes=4_000_000,
)  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_kernel_runs(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roof, "_COPY_BYTES", 4_000_000)
    try:
        answer = run_job({"kernel": kernel, "threads": 1, "seconds": 0.0})
    except (ImportError, RuntimeError) as error:
        if KERNELS[kernel][0] in ("bf16", "int8") or "OpenVINO" in kernel:
            pytest.skip(f"not on this machine: {error}")
        raise
    assert answer["status"] == "ok"
    assert answer["rate"] > 1e6
    assert answer["calls"] == 6  # three at each of two scales


def test_the_rate_is_work_over_the_shortest_call(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[tuple[int, int]] = []

    def build(threads: int, scale: int) -> roof.Work:
        built.append((threads, scale))
        return list, 600.0 * scale

    monkeypatch.setitem(KERNELS, "made up", ("fp32", build))
    monkeypatch.setattr(roof, "_time_calls", lambda call, least, seconds: [3000, 2000, 5000])
    answer = run_job({"kernel": "made up", "threads": 16, "seconds": 1.0})
    assert built == [(16, 2), (16, 4)]
    assert answer["rate"] == pytest.approx(2400 / 2e-6)


def test_onnx_runtime_computes_the_int8_graph_in_8_bits(tmp_path: Path) -> None:
    model = roof._build_convolutions(8, in_int8=True)
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 4
    ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert operators["QLinearConv"] == 4
    assert set(operators) <= {"QLinearConv", "Transpose"}


def test_a_graphs_work_is_that_of_its_shapes() -> None:
    call, work = roof._onnx_conv(1, 1, "fp32")
    (answer,) = call()  # type: ignore[misc]
    assert answer.shape == (1, 128, 32, 32)
    assert work == 4 * 128 * 128 * 3 * 3 * 32 * 32
    call, work = roof._onnx_matmul(1, 1, "int8")
    (answer,) = call()  # type: ignore[misc]
    assert (answer.shape, answer.dtype.name, work) == ((512, 512), "int32", 512**3)


def test_a_copy_counts_what_is_read_and_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roof, "_COPY_BYTES", 4000)
    call, work = roof._copy(3, 1)
    call()
    assert work == 8000.0


def test_the_worker_answers_with_an_error_where_a_kernel_cannot_run() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.roof"], input=b'{"kernel": "none", "threads": 1, "seconds": 0}',
        capture_output=True, cwd=Path(roof.__file__).parent.parent, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {"status": "error", "error": "KeyError: 'none'"}


def test_a_roof_is_measured_and_a_kernel_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)  # from any working directory
    some = {name: KERNELS[name] for name in ("numpy copy", "ONNX Runtime MatMul", "ONNX Runtime MatMulInteger")}
    monkeypatch.setattr(roof, "KERNELS", {**some, "not there": ("fp32", None), "nor this": ("bf16", None)})
    measured = measure_roof(threads=1, seconds=0.01)
    record = json.loads(json.dumps(asdict(measured), allow_nan=False))
    assert list(record) == ["threads", "macs_per_s", "kernels", "bytes_per_s"]
    assert record["threads"] == 1
    assert record["kernels"] == {"fp32": "ONNX Runtime MatMul", "int8": "ONNX Runtime MatMulInteger"}
    assert list(record["macs_per_s"]) == ["fp32", "int8"]
    assert min(record["macs_per_s"].values()) > 1e6
    assert record["bytes_per_s"] > 1e6
    assert Roof(**record) == measured


def test_the_fastest_kernel_of_each_kind_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"torch.mm": 5.0, "ONNX Runtime MatMul": 9.0, "OpenVINO Conv 3x3": 7.0, "torch._int_mm": 8.0}

    def fake(job: dict[str, Any], *, threads: int, timeout_s: float, module: object) -> dict[str, Any]:
        assert (job["threads"], job["seconds"], threads, module) == (3, 0.5, 3, roof)
        rate = rates.get(job["kernel"])
        return {"status": "ok", "rate": rate} if rate else {"status": "crashed(SIGILL)", "error": "the process died"}

    monkeypatch.setattr(roof, "run_worker", fake)
    kernels = {"fp32": "ONNX Runtime MatMul", "int8": "torch._int_mm"}
    assert measure_roof(threads=3, seconds=0.5) == Roof(3, {"fp32": 9.0, "int8": 8.0}, kernels, None)


def test_the_bound_is_the_larger_of_arithmetic_and_memory() -> None:
    assert lower_bound_ms(ROW, ROOF) == pytest.approx(10.0)  # 2 * 5e8 / 1e11 s
    assert lower_bound_ms(replace(ROW, compute="int8"), ROOF) == pytest.approx(2.5)
    # 4e6 bytes of weights and 2 pictures of 100 * 50 pixels of three float32: 4.12e6 / 2e10 s
    assert lower_bound_ms(replace(ROW, macs=1000), ROOF) == pytest.approx(0.206)
    assert lower_bound_ms(replace(ROW, macs=1000, weights_bytes=None), ROOF) == pytest.approx(0.006)
    assert lower_bound_ms(ROW, Roof(2, {"fp32": 1e11}, {}, None)) == pytest.approx(10.0)


@pytest.mark.parametrize("unknown", [{"compute": "bf16"}, {"compute": None}, {"macs": None}, {"macs": 0}])
def test_there_is_no_bound_where_work_or_rate_is_unknown(unknown: dict[str, Any]) -> None:
    assert lower_bound_ms(replace(ROW, **unknown), ROOF) is None


def test_a_roof_for_people() -> None:
    assert format_roof(ROOF) == (
        "roof on 2 threads: fp32 100 GMAC/s (torch.mm), int8 400 GMAC/s (MatMulInteger), memory 20.0 GB/s"
    )
    assert format_roof(Roof(1, {}, {}, None)) == "roof on 1 thread: unknown"
