"""A process that loads one model, times its calls and prints one line of JSON: `python -m export.latency_worker`.

The job comes as JSON on standard input (see `latency.py`). A worker of an ONNX model never imports torch, so that
neither its memory nor its thread pool is counted.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Call = Callable[[], object]
_MIN_WARMUP_SECONDS = 0.2


@dataclass(frozen=True)
class Loaded:
    """A model ready to be timed.

    Attributes:
        call: an array in memory in, an array in memory out.
        load_ms: file to ready session, imports not counted.
        provider: what really runs: an execution provider, a GPU's name, or "cpu".
        compute: what float layers compute in: "fp32", "bf16" or "fp16".
        compute_ms: on a GPU, the milliseconds of one call whose input and output stay there; None elsewhere.
    """

    call: Call
    load_ms: float
    provider: str
    compute: str = "fp32"
    compute_ms: Callable[[], float] | None = None


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load, warm up, time; the timed call takes an array in memory and gives one back, also on a GPU.

    Returns:
        times_ns (one per timed call), load_ms, first_ms, compute_ms (GPU alone: one per timed call without transfers),
        rss_loaded_mb, peak_rss_mb (MB of 1e6 bytes), warmup (calls), provider, compute, imported_torch.
    """
    shape = (job["batch"], 1, job["size"], job["size"])
    lightness = np.random.default_rng(job["seed"]).random(shape, dtype=np.float32)
    kind, _, _ = job["runtime"].partition("-")
    loaded = {"torch": _load_torch, "onnxruntime": _load_onnx, "openvino": _load_openvino}[kind](job, lightness)
    rss_loaded_mb = _read_memory_mb("VmRSS")
    started = time.perf_counter_ns()
    loaded.call()
    first_ms = (time.perf_counter_ns() - started) / 1e6
    warmup = _call_at_least(loaded.call, job["warmup"], _MIN_WARMUP_SECONDS)
    times_ns = _call_at_least(loaded.call, job["runs"], job["min_seconds"])
    answer = {
        "status": "ok",
        "times_ns": times_ns,
        "load_ms": loaded.load_ms,
        "first_ms": first_ms,
        "rss_loaded_mb": rss_loaded_mb,
        "peak_rss_mb": _read_memory_mb("VmHWM"),
        "warmup": len(warmup) + 1,
        "provider": loaded.provider,
        "compute": loaded.compute,
        "imported_torch": "torch" in sys.modules,
    }
    if loaded.compute_ms is not None:
        loaded.compute_ms()
        answer["compute_ms"] = [loaded.compute_ms() for _ in range(job["runs"])]
    return answer


def _call_at_least(call: Call, runs: int, seconds: float) -> list[int]:
    times_ns: list[int] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while len(times_ns) < runs or time.perf_counter_ns() < end:
        started = time.perf_counter_ns()
        call()
        times_ns.append(time.perf_counter_ns() - started)
    return times_ns


def _load_torch(job: Mapping[str, Any], lightness: Floats) -> Loaded:
    import torch

    from colorpress.core.config import ArchConfig
    from export.torch_runtimes import compute_precision, prepare_network
    from training.checkpoint import load_checkpoint

    arch = ArchConfig(**{**job["arch"], "arch_arg": tuple(job["arch"]["arch_arg"])})
    torch.set_num_threads(job["threads"])
    device = torch.device(job["device"])
    # ONNX Runtime searches the fastest convolution too; without this PyTorch would run with a handicap.
    torch.backends.cudnn.benchmark = True
    started = time.perf_counter_ns()
    network = load_checkpoint(Path(job["path"]), arch).build_network().to(device)
    run = prepare_network(network, job["runtime"], device)
    load_ms = (time.perf_counter_ns() - started) / 1e6
    picture = torch.from_numpy(lightness)

    @torch.inference_mode()
    def call() -> object:
        # The copy back waits for the GPU, so the clock does too.
        return run(picture.to(device)).cpu()

    compute = compute_precision(job["runtime"])
    if device.type != "cuda":
        return Loaded(call, load_ms, "cpu", compute)
    resident = picture.to(device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    @torch.inference_mode()
    def compute_ms() -> float:
        start.record()
        run(resident)
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end))

    return Loaded(call, load_ms, torch.cuda.get_device_name(device), compute, compute_ms)


def _load_onnx(job: Mapping[str, Any], lightness: Floats) -> Loaded:
    from export.predictors import OnnxPredictor, provider_of

    ort = import_module("onnxruntime")  # ahead of the clock: its import is not part of the load time
    provider = provider_of(job["runtime"], job["device"])
    started = time.perf_counter_ns()
    predictor = OnnxPredictor(Path(job["path"]), provider=provider, threads=job["threads"])
    load_ms = (time.perf_counter_ns() - started) / 1e6
    name = str(predictor.session.get_providers()[0])
    if job["device"] == "cpu":
        return Loaded(lambda: predictor(lightness), load_ms, name)
    binding = predictor.session.io_binding()
    index = int(job["device"].partition(":")[2] or 0)
    binding.bind_ortvalue_input(predictor.input_name, ort.OrtValue.ortvalue_from_numpy(lightness, "cuda", index))
    binding.bind_output(predictor.output_name, "cuda", index)

    def compute_ms() -> float:
        binding.synchronize_inputs()
        begun = time.perf_counter_ns()
        predictor.session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return (time.perf_counter_ns() - begun) / 1e6

    return Loaded(lambda: predictor(lightness), load_ms, name, compute_ms=compute_ms)


def _load_openvino(job: Mapping[str, Any], lightness: Floats) -> Loaded:
    from export.predictors import OpenVinoPredictor

    openvino = import_module("openvino")
    started = time.perf_counter_ns()
    predictor = OpenVinoPredictor(Path(job["path"]), threads=job["threads"])
    predictor(lightness)  # compiles the graph for this size, which belongs to loading it
    load_ms = (time.perf_counter_ns() - started) / 1e6
    provider = f"OpenVINO {openvino.__version__.partition('-')[0]}"
    return Loaded(lambda: predictor(lightness), load_ms, provider, predictor.compute_precision(lightness.shape))


def _read_memory_mb(field: str) -> float:
    """VmRSS or VmHWM (peak) of this process in MB.

    Not getrusage's ru_maxrss where it can be avoided: Linux carries it over exec, so a child shows its parent's.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _describe_failure(error: Exception) -> dict[str, Any]:
    message = " ".join(str(error).split())[:500] or type(error).__name__
    lowered = message.lower()
    is_memory = isinstance(error, MemoryError) or any(
        sign in lowered for sign in ("out of memory", "can't allocate memory", "failed to allocate", "bad_alloc")
    )
    return {"status": "oom" if is_memory else "error", "error": f"{type(error).__name__}: {message}"}


def main() -> None:
    """Read a job, print its answer as the last line of standard output. Errors are answers too."""
    job = json.load(sys.stdin)
    try:
        answer = run_job(job)
    except Exception as error:  # any failure of a model is a row of the benchmark
        answer = _describe_failure(error)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
