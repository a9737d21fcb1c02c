"""How long a call takes: every variant in fresh processes, in interleaved rounds of random order.

One process at a time: a runtime's idle threads spin for a while, and would slow whatever is timed beside them.
A model that fails, crashes its process, runs out of memory or hangs is a result like any other.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.variants import Variant, describe_variant
from colorpress.config import ArchConfig, BenchmarkConfig
from colorpress.console import progress, warn
from colorpress.cores import usable_cores
from colorpress.errors import GateError

_ROOT = Path(__file__).resolve().parent.parent
_WORKER = (sys.executable, "-m", "benchmarks.latency_worker")
NOISY_CV_PCT = 2.5
_AA_SUFFIX = " (again)"


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


@dataclass(frozen=True)
class Condition:
    """What a call is given: pictures, their side in pixels, and CPU threads."""

    batch: int
    size: int
    threads: int

    def differences(self, other: Condition) -> list[str]:
        """What is another than in `other`, for people."""
        return [
            text
            for text, own, its in (
                (f"batch {self.batch}", self.batch, other.batch),
                (f"{self.size} px", self.size, other.size),
                (f"{self.threads} thread{'s' if self.threads > 1 else ''}", self.threads, other.threads),
            )
            if own != its
        ]


@dataclass(frozen=True)
class Arm:
    """One row of the benchmark: a variant under a condition; under the first one it is called as the variant is."""

    name: str
    variant: Variant
    condition: Condition


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


@dataclass(frozen=True)
class LatencyResult:
    """What was timed.

    Attributes:
        arms: in the order of the rows: all variants under the first condition, then under the next.
        timings: by arm.
        aa_ratios: the baseline against itself, timed as two arms, by device and condition: "cpu", "cpu, batch 8".
    """

    arms: tuple[Arm, ...]
    timings: Mapping[str, Timing]
    aa_ratios: Mapping[str, Ratio]


def make_conditions(config: BenchmarkConfig, threads: int = 0) -> tuple[Condition, ...]:
    """Every combination of batch, size and threads that is asked for; the first of each make the first.

    Args:
        threads: where the config names none; 0: one per usable core.
    """
    return tuple(
        Condition(batch, size, count)
        for count in config.bench_threads or (threads or usable_cores(),)
        for size in config.bench_size
        for batch in config.bench_batch
    )


def make_arms(variants: Sequence[Variant], conditions: Sequence[Condition]) -> tuple[Arm, ...]:
    """Every variant under every condition: "best @ openvino, batch 8"."""
    return tuple(
        Arm(", ".join([variant.name, *condition.differences(conditions[0])]), variant, condition)
        for condition in conditions
        for variant in variants
    )


def time_variants(
    variants: Sequence[Variant], config: BenchmarkConfig, *, threads: int = 0, seed: int = 0, timeout_s: float = 900.0
) -> LatencyResult:
    """Time every variant under every condition.

    The first variant of each device is that device's baseline, and under every condition it is timed as two arms.

    Args:
        threads: CPU threads of every runtime alike, where the config names none; 0: one per usable core.
        seed: of the input and of the order of the rounds.
        timeout_s: for one process.
    """
    names = [variant.name for variant in variants]
    if len(set(names)) != len(names):
        raise ValueError(f"variant names must differ, got {names}")
    conditions = make_conditions(config, threads)
    arms = make_arms(variants, conditions)
    baselines: dict[tuple[str, Condition], Arm] = {}
    for arm in arms:
        baselines.setdefault((arm.variant.device, arm.condition), arm)
    again = tuple(replace(arm, name=arm.name + _AA_SUFFIX) for arm in baselines.values())
    answers = _run_rounds((*arms, *again), config, seed, timeout_s)
    rounds = {name: _paired_p50(each) for name, each in answers.items()}
    timings = {}
    for arm in arms:
        baseline = baselines[arm.variant.device, arm.condition].name
        timing = summarize_rounds(answers[arm.name], arm.condition.batch)
        speedup = pair_ratio(rounds[baseline], rounds[arm.name]) if timing.status == "ok" else None
        timings[arm.name] = replace(timing, speedup=speedup)
    _warn_noise(timings)
    aa_ratios = {}
    for (device, condition), arm in baselines.items():
        ratio = pair_ratio(rounds[arm.name], rounds[arm.name + _AA_SUFFIX])
        if ratio:
            aa_ratios[", ".join([device, *condition.differences(conditions[0])])] = ratio
    return LatencyResult(arms, timings, aa_ratios)


def time_quickly(path: Path, config: BenchmarkConfig, *, threads: int = 0) -> float:
    """The p50 of one picture in milliseconds, from one process and few calls: enough to choose by, not to report.

    Raises:
        GateError: it cannot be timed.
    """
    # Called directly, without the A/A control: a second process would say nothing that is used.
    condition = Condition(1, config.bench_size[0], threads or usable_cores())
    quick = replace(config, rounds=1, runs=50, min_seconds=0.3)
    arm = Arm(path.stem, describe_variant(path.stem, path), condition)
    answer = run_worker(_make_job(arm, quick, seed=0), threads=condition.threads, timeout_s=900.0)
    timing = summarize_rounds([answer], condition.batch)
    if timing.statistics is None:
        raise GateError("candidate", None, f"could not be timed: {timing.error}", "try again")
    return timing.statistics.p50_ms


def _run_rounds(
    arms: Sequence[Arm], config: BenchmarkConfig, seed: int, timeout_s: float
) -> dict[str, list[dict[str, Any]]]:
    order = random.Random(seed)
    answers: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    with progress("timing", len(arms) * config.rounds) as bar:
        for _ in range(config.rounds):
            shuffled = list(arms)
            order.shuffle(shuffled)
            for arm in shuffled:
                # What failed once fails again: a hanging model costs one timeout, not one per round.
                if all(answer["status"] == "ok" for answer in answers[arm.name]):
                    job = _make_job(arm, config, seed)
                    answers[arm.name].append(run_worker(job, threads=arm.condition.threads, timeout_s=timeout_s))
                bar.advance(note=arm.name)
    return answers


def _make_job(arm: Arm, config: BenchmarkConfig, seed: int) -> dict[str, Any]:
    return {
        "path": str(arm.variant.path.resolve()),
        "arch": asdict(absolute_arch(arm.variant.arch)),
        "runtime": arm.variant.runtime,
        "device": arm.variant.device,
        **asdict(arm.condition),
        "seed": seed,
        "warmup": config.warmup,
        "runs": -(-config.runs // config.rounds),
        "min_seconds": config.min_seconds / config.rounds,
    }


def absolute_arch(arch: ArchConfig) -> ArchConfig:
    """The same options for a process in another folder: the file by its whole path."""
    return replace(arch, arch=str(Path(arch.arch).absolute())) if arch.arch else arch


def run_worker(job: Mapping[str, Any], *, threads: int, timeout_s: float, module: str | None = None) -> dict[str, Any]:
    """Run one worker process to its end and return its answer; a dead worker's answer is how it died.

    Args:
        module: what `python -m` runs; None: the worker that times a model.
    """
    command = (sys.executable, "-m", module) if module else _WORKER
    pools = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
    environment = {**os.environ, **dict.fromkeys(pools, str(threads))}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
    try:
        done = subprocess.run(
            command, input=json.dumps(job).encode(), capture_output=True, timeout=timeout_s, env=environment, cwd=_ROOT
        )
    except subprocess.TimeoutExpired:
        return {"status": "timeout", "error": f"no answer within {timeout_s:g} s"}
    last_words = " ".join(done.stderr.decode("utf-8", "replace").split())[-300:]
    if done.returncode < 0:
        name = _signal_name(-done.returncode)
        likely = "killed from outside, as a machine short of memory does" if name == "SIGKILL" else last_words
        return {"status": f"crashed({name})", "error": likely or "the process died"}
    try:
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer if "status" in answer else {"status": "error", "error": "the worker's answer has no status"}
    except (IndexError, ValueError):
        return {"status": "error", "error": f"exit {done.returncode} without an answer: {last_words}"}


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


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
    p50, p90, p95, p99 = (float(value) for value in np.percentile(ms, (50, 90, 95, 99)))
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


def _paired_p50(answers: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(np.median(answer["times_ns"])) / 1e6 for answer in answers if answer["status"] == "ok"]


def _warn_noise(timings: Mapping[str, Timing]) -> None:
    noisy = [
        f"{name} {timing.statistics.cv_pct:.0f} %"
        for name, timing in timings.items()
        if timing.statistics and timing.statistics.cv_pct > NOISY_CV_PCT
    ]
    if noisy:
        warn(f"call times vary by more than {NOISY_CV_PCT} % (noisy machine): {', '.join(noisy)}")
