"""Statistics against hand-computed numbers, and workers that answer, fail, crash and hang."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from conftest import TINY_PLAN, make_network

from benchmarks import latency
from benchmarks.latency import Arm, make_arms, make_conditions, time_variants
from benchmarks.variants import Variant, describe_variant
from colorpress.core.config import BenchmarkPlan, ExportConfig
from colorpress.core.cores import usable_cores
from colorpress.core.machine import describe_machine
from export.graph import export_onnx
from export.timing import Condition, compute_statistics, pair_ratio, run_worker, summarize_rounds
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint

QUICK = BenchmarkPlan(bench_size=(8,), rounds=2, runs=6, min_seconds=0.0, warmup=1)
# A worker that dies as a native library does when the model's name says so, and is the real one otherwise.
STUB = """
import io, json, os, runpy, sys, time
text = sys.stdin.read()
path = json.loads(text)["path"]
if "abort" in path:
    print("free(): invalid pointer", file=sys.stderr, flush=True)
    os.abort()
if "hang" in path:
    time.sleep(60)
if "exit" in path:
    print("loading...")
    sys.exit(7)
sys.stdin = io.StringIO(text)
runpy.run_module("export.latency_worker", run_name="__main__")
"""


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> list[Variant]:
    """best.pt by PyTorch and its export by ONNX Runtime."""
    folder = tmp_path_factory.mktemp("models")
    best = save_checkpoint(folder / "best.pt", Checkpoint(TINY_PLAN, make_network().state_dict()))
    exported = export_onnx(load_checkpoint(best), folder / "best" / "model.onnx", ExportConfig())
    return [describe_variant("best.pt", best), describe_variant("best", exported.path)]


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What `run_worker` can start, and is STUB."""
    (tmp_path / "stub_worker.py").write_text(STUB)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return ModuleType("stub_worker")


def test_statistics_match_a_hand_computation() -> None:
    ms = compute_statistics([10_000_000, 20_000_000, 30_000_000, 40_000_000, 100_000_000], batch=2)
    assert (ms.runs, ms.mean_ms, ms.min_ms, ms.p50_ms, ms.max_ms) == (5, 40.0, 10.0, 30.0, 100.0)
    assert ms.std_ms == pytest.approx(35.3553, abs=1e-4)  # sqrt(5000 / 4)
    assert ms.cv_pct == pytest.approx(88.388, abs=1e-3)
    assert (ms.p90_ms, ms.p95_ms) == (pytest.approx(76.0), pytest.approx(88.0))  # linear between 40 and 100
    assert ms.images_per_s == pytest.approx(50.0)  # 10 pictures in 0.2 s


def test_p99_needs_a_hundred_calls() -> None:
    assert compute_statistics([1_000_000] * 99, batch=1).p99_ms is None
    assert compute_statistics(list(range(1_000_000, 101_000_000, 1_000_000)), 1).p99_ms == pytest.approx(99.01)


def test_one_call_has_no_deviation() -> None:
    assert compute_statistics([5_000_000], batch=1).std_ms == 0.0


def test_speedup_is_the_median_of_paired_rounds() -> None:
    ratio = pair_ratio([100.0, 300.0, 90.0], [50.0, 100.0, 90.0])
    assert ratio is not None
    assert (ratio.median, ratio.low, ratio.high) == (2.0, 1.0, 3.0)
    assert pair_ratio([100.0], []) is None


def test_the_interval_of_a_ratio_narrows_with_rounds_and_repeats() -> None:
    generator = np.random.default_rng(3)
    base, own = list(generator.normal(100, 5, 60)), list(generator.normal(50, 5, 60))
    few, many = pair_ratio(base[:6], own[:6]), pair_ratio(base, own)
    assert few is not None and many is not None
    assert many.low < 2.0 < many.high
    assert many.high - many.low < 0.7 * (few.high - few.low)
    assert few == pair_ratio(base[:6], own[:6])


def test_conditions_are_every_combination_and_name_what_differs() -> None:
    config = replace(QUICK, bench_batch=(1, 8), bench_size=(256, 512), bench_threads=(2, 1))
    conditions = make_conditions(config, threads=4)
    assert len(set(conditions)) == 8
    assert conditions[0] == Condition(batch=1, size=256, threads=2)
    assert make_conditions(QUICK, threads=3) == (Condition(1, 8, 3),)
    best = Variant("best", Path("/best"), "onnxruntime", "cpu", "fp32", 1, 1, 1, 1)
    names = [arm.name for arm in make_arms([best, replace(best, name="best @ openvino")], conditions)]
    assert names[:4] == ["best", "best @ openvino", "best, batch 8", "best @ openvino, batch 8"]
    assert names[-1] == "best @ openvino, batch 8, 512 px, 1 thread"
    assert len(set(names)) == 16


def test_each_condition_has_its_own_baseline_and_control(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(job: dict[str, object], *, threads: int, timeout_s: float) -> dict[str, object]:
        assert threads == job["threads"]
        batch = int(str(job["batch"]))
        return answer([10.0 * batch if "best" in str(job["path"]) else 5.0])

    monkeypatch.setattr(latency, "run_worker", fake)
    best = Variant("best", Path("/best"), "onnxruntime", "cpu", "fp32", 1, 1, 1, 1)
    result = time_variants([best, replace(best, name="a", path=Path("/a"))], replace(QUICK, bench_batch=(1, 8)))
    assert [arm.name for arm in result.arms] == ["best", "a", "best, batch 8", "a, batch 8"] == list(result.timings)
    speedups = [timing.speedup.median for timing in result.timings.values() if timing.speedup]
    assert speedups == [1.0, 2.0, 1.0, 16.0]
    assert set(result.aa_ratios) == {"cpu", "cpu, batch 8"}
    eight = result.timings["a, batch 8"].statistics
    assert eight is not None and eight.images_per_s == pytest.approx(1600.0)


def answer(times_ms: list[float], peak: float = 50.0) -> dict[str, object]:
    return {
        "status": "ok", "times_ns": [int(t * 1e6) for t in times_ms], "load_ms": times_ms[0], "first_ms": 9.0,
        "peak_rss_mb": peak, "provider": "cpu", "compute": "fp32",
    }  # fmt: skip


def test_rounds_are_pooled_and_one_failure_fails_the_variant() -> None:
    timing = summarize_rounds([answer([1.0, 2.0]), answer([3.0, 6.0], peak=80.0)], batch=1)
    assert timing.statistics is not None
    assert (timing.statistics.runs, timing.statistics.p50_ms) == (4, 2.5)
    assert (timing.load_ms, timing.peak_rss_mb) == (2.0, 80.0)
    failed = summarize_rounds([answer([1.0]), {"status": "crashed(SIGSEGV)", "error": "boom"}], batch=1)
    assert (failed.status, failed.error, failed.statistics) == ("crashed(SIGSEGV)", "boom", None)


def test_real_models_are_timed(variants: list[Variant], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)  # from any working directory
    result = time_variants(variants[::-1], QUICK, threads=1, seed=3)
    assert list(result.timings) == ["best", "best.pt"]
    for timing in result.timings.values():
        assert timing.status == "ok", timing.error
        assert timing.statistics is not None
        assert timing.statistics.runs == sum(len(each["times_ns"]) for each in timing.rounds) >= 6
        assert len(timing.rounds) == 2
        assert min(each["warmup"] for each in timing.rounds) >= 2
    onnx, torch = result.timings["best"], result.timings["best.pt"]
    assert (onnx.provider, onnx.compute, onnx.compute_ms) == ("CPUExecutionProvider", "fp32", None)
    assert [each["imported_torch"] for each in (*onnx.rounds, *torch.rounds)] == [False, False, True, True]
    # Numpy and a session need a tenth of what torch needs, whatever the parent process holds.
    assert onnx.peak_rss_mb is not None and torch.peak_rss_mb is not None
    assert onnx.peak_rss_mb < torch.peak_rss_mb
    assert onnx.speedup is not None and onnx.speedup.median == 1.0
    assert result.aa_ratios["cpu"].low <= result.aa_ratios["cpu"].median <= result.aa_ratios["cpu"].high


def test_failures_are_rows_and_the_others_finish(
    variants: list[Variant], monkeypatch: pytest.MonkeyPatch, stub: ModuleType, tmp_path: Path
) -> None:
    monkeypatch.setattr(latency, "run_worker", partial(run_worker, module=stub))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a model")
    best = variants[1]
    others = [replace(best, name=name, path=tmp_path / f"{name}.onnx") for name in ("abort", "exit", "broken")]
    timings = time_variants([best, *others], QUICK, threads=1).timings
    assert timings["best"].status == "ok"
    assert timings["abort"].status == "crashed(SIGABRT)"
    assert "invalid pointer" in timings["abort"].error
    assert timings["exit"].status == "error"
    assert "exit 7" in timings["exit"].error
    assert timings["broken"].status == "error"
    assert "broken.onnx" in timings["broken"].error
    assert len(timings["abort"].rounds) == 1  # what crashed once is not started again


def test_a_hanging_worker_times_out(stub: ModuleType) -> None:
    assert run_worker({"path": "hang"}, threads=1, timeout_s=0.5, module=stub)["status"] == "timeout"


def test_rounds_are_shuffled_by_the_seed_and_never_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    def fake(job: dict[str, object], *, threads: int, timeout_s: float) -> dict[str, object]:
        calls.append(f"{job['path']}")
        assert (job["runs"], job["threads"], threads) == (34, 2, 2)  # 100 calls over 3 rounds, rounded up
        assert job["min_seconds"] == pytest.approx(1.0)
        return answer([10.0 if "best" in str(job["path"]) else 5.0])

    monkeypatch.setattr(latency, "run_worker", fake)
    arms = [
        Variant(name, Path(f"/{name}"), "onnxruntime", "cpu", "fp32", 1, 1, 1, 1) for name in ("best", "a", "b", "c")
    ]
    result = time_variants(arms, BenchmarkPlan(), threads=2, seed=1)
    rounds = [calls[start : start + 5] for start in (0, 5, 10)]
    assert [sorted(each) for each in rounds] == [["/a", "/b", "/best", "/best", "/c"]] * 3
    assert len({tuple(each) for each in rounds}) > 1
    speedup = result.timings["a"].speedup
    assert speedup is not None and speedup.median == 2.0
    assert result.aa_ratios["cpu"].median == 1.0
    again = calls.copy()
    calls.clear()
    time_variants(arms, BenchmarkPlan(), threads=2, seed=1)
    assert calls == again


def test_a_noisy_machine_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    steady, noisy = Variant("steady", Path("/s"), "torch", "cpu", "fp32", 1, 1, 1, 1), None
    noisy = replace(steady, name="noisy", path=Path("/n"))
    times = {"/s": [10.0, 10.1], "/n": [10.0, 12.0]}
    monkeypatch.setattr(latency, "run_worker", lambda job, **_: answer(times[job["path"]]))
    time_variants([steady, noisy], QUICK, threads=1)
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    assert "noisy 1" in warnings[0] and "steady" not in warnings[0]


@pytest.mark.parametrize("runtime", ["torch-channels-last", "torch-bf16"])
def test_pytorch_is_timed_as_its_runtime_says(variants: list[Variant], runtime: str) -> None:
    job = latency._make_job(Arm("best.pt", replace(variants[0], runtime=runtime), Condition(2, 16, 1)), QUICK, seed=0)
    done = run_worker(job, threads=1, timeout_s=120)
    assert (done["status"], done["compute"]) == ("ok", "bf16" if runtime.endswith("bf16") else "fp32"), done


def test_what_needs_a_gpu_never_runs_on_the_cpu(variants: list[Variant]) -> None:
    onnx = replace(variants[1], runtime="onnxruntime-tensorrt", device="cuda")
    for variant in (replace(variants[0], runtime="torch-fp16"), onnx):
        job = latency._make_job(Arm("x", variant, Condition(1, 8, 1)), QUICK, seed=0)
        done = run_worker(job, threads=1, timeout_s=120)
        assert done["status"] == "error" and "MachineError" in done["error"]


@pytest.mark.gpu
def test_on_a_gpu_computing_is_timed_apart_from_transfers(variants: list[Variant]) -> None:
    for variant, runtime in ((variants[0], "torch-cuda-graph"), (variants[1], "onnxruntime")):
        arm = Arm("x", replace(variant, runtime=runtime, device="cuda"), Condition(4, 256, 1))
        done = run_worker(latency._make_job(arm, QUICK, seed=0), threads=1, timeout_s=300)
        assert done["status"] == "ok", done
        assert 0 < np.median(done["compute_ms"]) <= np.median(done["times_ns"]) / 1e6


def test_gpu_calls_are_timed_apart_from_transfers() -> None:
    calls = [{**answer([5.0]), "compute_ms": [2.0, 3.0]}, {**answer([5.0]), "compute_ms": [4.0]}]
    assert summarize_rounds(calls, batch=1).compute_ms == 3.0
    assert summarize_rounds([answer([5.0])], batch=1).compute_ms is None


def test_names_must_differ(variants: list[Variant]) -> None:
    with pytest.raises(ValueError, match="must differ"):
        time_variants([variants[0], variants[0]], QUICK)


def test_worker_memory_is_its_own(variants: list[Variant]) -> None:
    # Linux hands ru_maxrss on over exec; a parent that once held 600 MB must not show in the child.
    ballast = np.ones(75_000_000)
    job = latency._make_job(Arm("best", variants[1], Condition(1, 8, 1)), QUICK, seed=0)
    peak = run_worker(job, threads=1, timeout_s=60)["peak_rss_mb"]
    assert peak < ballast.nbytes / 1e6


def test_machine_is_json_and_names_what_matters() -> None:
    machine = json.loads(json.dumps(describe_machine(), allow_nan=False))
    assert {"cpu", "cores_usable", "instruction_sets", "memory_bytes", "libraries", "torch_cpu_capability"} <= set(
        machine
    )
    assert machine["libraries"]["numpy"] == np.__version__
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)
