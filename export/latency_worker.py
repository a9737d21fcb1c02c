"""A process that loads one model, times its calls and prints one line of JSON: `python -m export.latency_worker`.

The job comes as JSON on standard input (see `timing.make_job`). A worker of an ONNX model never imports torch, so that
neither its memory nor its thread pool is counted.
"""

from __future__ import annotations

import json
import re
import resource
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from colorpress.core.config import ArchConfig
from colorpress.core.errors import is_out_of_memory
from export.runtimes import RUNTIMES, Opening

_MIN_WARMUP_SECONDS = 0.2


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Load, warm up, time; the timed call takes an array in memory and gives one back, also on a GPU.

    Returns:
        times_ns (one per timed call), load_ms, first_ms, compute_ms (GPU alone: one per timed call without transfers),
        rss_loaded_mb, peak_rss_mb (MB of 1e6 bytes), warmup (calls), provider, compute, imported_torch.
    """
    shape = (job["batch"], 1, job["size"], job["size"])
    lightness = np.random.default_rng(job["seed"]).random(shape, dtype=np.float32)
    runtime = RUNTIMES[job["runtime"]]
    for module in runtime.modules:  # ahead of the clock: their import is not part of the load time
        import_module(module)
    arch = ArchConfig(**{**job["arch"], "arch_arg": tuple(job["arch"]["arch_arg"])})
    started = time.perf_counter_ns()
    predictor = runtime.open(Path(job["path"]), Opening(job["device"], job["threads"], arch, alone=True))
    if runtime.loads_at_call:
        predictor(lightness)
    load_ms = (time.perf_counter_ns() - started) / 1e6
    rss_loaded_mb = _read_memory_mb("VmRSS")
    started = time.perf_counter_ns()
    predictor(lightness)
    first_ms = (time.perf_counter_ns() - started) / 1e6
    warmup = time_calls(partial(predictor, lightness), job["warmup"], _MIN_WARMUP_SECONDS)
    times_ns = time_calls(partial(predictor, lightness), job["runs"], job["min_seconds"])
    answer = {
        "status": "ok",
        "times_ns": times_ns,
        "load_ms": load_ms,
        "first_ms": first_ms,
        "rss_loaded_mb": rss_loaded_mb,
        "peak_rss_mb": _read_memory_mb("VmHWM"),
        "warmup": len(warmup) + 1,
        "provider": predictor.provider,
        "compute": predictor.compute_precision(shape),
        "imported_torch": "torch" in sys.modules,
    }
    if (call_resident := predictor.time_resident(lightness)) is not None:
        call_resident()
        answer["compute_ms"] = [call_resident() for _ in range(job["runs"])]
    return answer


def time_calls(call: Callable[[], object], runs: int, seconds: float) -> list[int]:
    """Nanoseconds of each of at least `runs` calls over at least `seconds`."""
    times_ns: list[int] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while len(times_ns) < runs or time.perf_counter_ns() < end:
        started = time.perf_counter_ns()
        call()
        times_ns.append(time.perf_counter_ns() - started)
    return times_ns


def _read_memory_mb(field: str) -> float:
    """VmRSS or VmHWM (peak) of this process in MB.

    Not getrusage's ru_maxrss where it can be avoided: Linux carries it over exec, so a child shows its parent's.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (found := re.search(rf"^{field}:\s*(\d+)", status.read_text(), re.MULTILINE)):
        return int(found[1]) * 1024 / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def _describe_failure(error: Exception) -> dict[str, Any]:
    message = " ".join(str(error).split())[:500] or type(error).__name__
    status = "oom" if is_out_of_memory(error) else "error"
    return {"status": status, "error": f"{type(error).__name__}: {message}"}


def main() -> None:
    """Read a job, print its answer as the last line of standard output. Errors are answers too."""
    try:
        answer = run_job(json.load(sys.stdin))
    except Exception as error:  # any failure of a model is a row of the benchmark
        answer = _describe_failure(error)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
