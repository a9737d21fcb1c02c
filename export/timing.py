"""How long calls of one model take: a worker process, what it is told, and the statistics of what it answers.

One process at a time: a runtime's idle threads spin for a while, and would slow whatever is timed beside them.
A model that fails, crashes its process, runs out of memory or hangs is a result like any other.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from colorpress.core import child
from colorpress.core.config import ArchConfig
from colorpress.core.cores import given_environment, usable_cores
from colorpress.core.errors import GateError, MachineError
from export import latency_worker

_ROOT = Path(__file__).resolve().parent.parent
_QUICK_WARMUP, _QUICK_RUNS, _QUICK_SECONDS = 10, 50, 0.3


@dataclass(frozen=True)
class Statistics:
    """Of the timed calls of all rounds together, in milliseconds a call.

    Attributes:
        p99_ms: None for fewer than 100 calls.
        cv_pct: standard deviation in percent of the mean.
        images_per_s: pictures in all calls over the time of all calls.
    """

    runs: int
    mean_ms: float
    std_ms: float
    cv_pct: float
    min_ms: float
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float | None
    max_ms: float
    images_per_s: float


@dataclass(frozen=True)
class Ratio:
    """A ratio taken once per round: its median over the rounds, and the 95 % bootstrap interval of that.

    With three rounds or fewer the interval goes from the lowest round to the highest.
    """

    median: float
    low: float
    high: float

    @property
    def noise(self) -> float:
        """How far the ends are from 1 at most: of two that should be equal, what is no difference."""
        return max(self.high - 1.0, 1.0 - self.low)


@dataclass(frozen=True)
class Condition:
    """What a call is given: pictures, their side in pixels, and CPU threads."""

    batch: int
    size: int
    threads: int

    def differences(self, other: Condition) -> list[str]:
        """What is another than in `other`, for people."""
        plural = "s" if self.threads > 1 else ""
        texts = {"batch": f"batch {self.batch}", "size": f"{self.size} px", "threads": f"{self.threads} thread{plural}"}
        return [text for name, text in texts.items() if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True)
class Timing:
    """The latency of one variant under one condition.

    Attributes:
        status: "ok", "error", "oom", "timeout" or "crashed(SIGNAL)".
        error: what went wrong; empty when ok.
        statistics: None unless ok.
        speedup: how many times faster than the baseline on the same device and under the same condition, paired by
            round; None if unknown.
        rounds: the workers' answers in order, with `times_ns` of each call.
        load_ms, first_ms: medians over the rounds: file to session, and the first call.
        compute_ms: on a GPU, the median of calls whose input and output stay there.
        peak_rss_mb: the largest of the rounds.
        provider: what really ran: an execution provider, a GPU's name, or "cpu".
        compute: what float layers computed in: "fp32", "bf16" or "fp16".
    """

    status: str
    error: str = ""
    statistics: Statistics | None = None
    speedup: Ratio | None = None
    rounds: tuple[Mapping[str, Any], ...] = ()
    load_ms: float | None = None
    first_ms: float | None = None
    compute_ms: float | None = None
    peak_rss_mb: float | None = None
    provider: str = ""
    compute: str = ""


def time_quickly(path: Path, *, size: int, threads: int = 0) -> float:
    """The p50 of one picture in milliseconds, from one process and few calls: enough to choose by, not to report.

    Args:
        path: an .onnx file, run by ONNX Runtime.
        size: side of the square picture, in pixels.
        threads: CPU threads; 0: one per usable core.
    Raises:
        GateError: it cannot be timed.
        MachineError: there is too little memory for it.
    """
    condition = Condition(1, size, threads or usable_cores())
    job = make_job(path, "onnxruntime", condition, warmup=_QUICK_WARMUP, runs=_QUICK_RUNS, min_seconds=_QUICK_SECONDS)
    timing = summarize_rounds([run_worker(job, threads=condition.threads)], condition.batch)
    if timing.status == "oom":
        raise MachineError(
            "candidate", None, "not enough memory to time it", "close other programs, or lower --workers"
        )
    if timing.statistics is None:
        raise GateError("candidate", None, f"could not be timed: {timing.error}", "try again")
    return timing.statistics.p50_ms


def make_job(
    path: Path,
    runtime: str,
    condition: Condition,
    *,
    warmup: int,
    runs: int,
    min_seconds: float,
    device: str = "cpu",
    arch: ArchConfig | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """What `latency_worker` is told: a model file, what runs it where, and how often it is called."""
    arch = arch or ArchConfig()
    if arch.arch:  # the worker runs in another folder
        from training.foreign_source import absolute_spec  # which imports torch

        arch = replace(arch, arch=absolute_spec(arch.arch))
    calls = {"seed": seed, "warmup": warmup, "runs": runs, "min_seconds": min_seconds}
    target = {"path": str(path.resolve()), "arch": asdict(arch), "runtime": runtime, "device": device}
    return {**target, **asdict(condition), **calls}


def run_worker(
    job: Mapping[str, Any], *, threads: int, timeout_s: float = 900.0, module: ModuleType = latency_worker
) -> dict[str, Any]:
    """Run one worker process to its end and return its answer; a dead worker's answer is how it died.

    Args:
        module: what `python -m` runs.
    """
    command = (sys.executable, "-m", child.__name__, str(os.getpid()), module.__name__)
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    environment = {**given_environment(), **dict.fromkeys(pools, str(threads))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, input=json.dumps(job).encode(), capture_output=True, timeout=timeout_s, env=environment, cwd=_ROOT
        )
    except subprocess.TimeoutExpired:
        return {"status": "timeout", "error": f"no answer within {timeout_s:g} s"}
    last_words = " ".join(done.stderr.decode("utf-8", "replace").split())[-300:]
    if done.returncode < 0:
        name = {each.value: each.name for each in signal.Signals}.get(-done.returncode, f"signal {-done.returncode}")
        likely = "killed from outside, as a machine short of memory does" if name == "SIGKILL" else last_words
        return {"status": f"crashed({name})", "error": likely or "the process died"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer if "status" in answer else {"status": "error", "error": "the worker's answer has no status"}
    except (IndexError, ValueError):
        return {"status": "error", "error": f"exit {done.returncode} without an answer: {last_words}"}


def summarize_rounds(answers: Sequence[Mapping[str, Any]], batch: int) -> Timing:
    """Pool the answers of one variant's rounds; one failed round fails the variant."""
    failed = [answer for answer in answers if answer["status"] != "ok"]
    if failed or not answers:
        first = failed[0] if failed else {"status": "error", "error": "was not timed"}
        return Timing(status=str(first["status"]), error=str(first.get("error", "")), rounds=tuple(answers))
    on_gpu = [ms for answer in answers for ms in answer.get("compute_ms", ())]
    return Timing(
        status="ok",
        statistics=compute_statistics([time_ns for answer in answers for time_ns in answer["times_ns"]], batch),
        rounds=tuple(answers),
        load_ms=float(np.median([answer["load_ms"] for answer in answers])),
        first_ms=float(np.median([answer["first_ms"] for answer in answers])),
        compute_ms=float(np.median(on_gpu)) if on_gpu else None,
        peak_rss_mb=max(float(answer["peak_rss_mb"]) for answer in answers),
        provider=str(answers[0]["provider"]),
        compute=str(answers[0]["compute"]),
    )


def compute_statistics(times_ns: Sequence[int], batch: int) -> Statistics:
    """The statistics of timed calls; percentiles interpolate linearly, the deviation is of the sample (n - 1)."""
    ms = np.asarray(times_ns, dtype=np.float64) / 1e6
    p50, p90, p95, p99 = np.percentile(ms, (50, 90, 95, 99)).tolist()
    mean, std = float(ms.mean()), float(ms.std(ddof=1)) if len(ms) > 1 else 0.0
    return Statistics(
        runs=len(ms),
        mean_ms=mean,
        std_ms=std,
        cv_pct=100.0 * std / mean,
        min_ms=float(ms.min()),
        p50_ms=p50,
        p90_ms=p90,
        p95_ms=p95,
        p99_ms=p99 if len(ms) >= 100 else None,
        max_ms=float(ms.max()),
        images_per_s=1000.0 * batch / mean,
    )


def pair_ratio(baseline_ms: Sequence[float], variant_ms: Sequence[float], *, draws: int = 2000) -> Ratio | None:
    """baseline / variant in each round that both finished; None where there is no such round.

    The interval is the percentile bootstrap of the median, rounds resampled (Efron 1979).
    """
    ratios = np.array([base / own for base, own in zip(baseline_ms, variant_ms, strict=False)])
    if not len(ratios):
        return None
    chosen = np.random.default_rng(0).integers(0, len(ratios), (draws, len(ratios)))
    low, high = np.quantile(np.median(ratios[chosen], axis=1), (0.025, 0.975))
    return Ratio(float(np.median(ratios)), float(low), float(high))
