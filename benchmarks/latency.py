"""How long a call takes: every variant in fresh processes, in interleaved rounds of random order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from benchmarks.rows import NOISY_CV_PCT
from benchmarks.variants import Variant
from colorpress.core.config import BenchmarkPlan
from colorpress.core.console import progress, warn
from colorpress.core.cores import usable_cores
from export.onnx_probe import refused_before
from export.timing import Condition, Ratio, Timing, make_job, pair_ratio, run_worker, summarize_rounds

_AA_SUFFIX = " (again)"


@dataclass(frozen=True)
class Arm:
    """One row of the benchmark: a variant under a condition; under the first one it is called as the variant is."""

    name: str
    variant: Variant
    condition: Condition


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


def make_conditions(plan: BenchmarkPlan, threads: int = 0) -> tuple[Condition, ...]:
    """Every combination of batch, size and threads that is asked for; the first of each make the first.

    Args:
        threads: where the plan names none; 0: one per usable core.
    """
    counts = plan.bench_threads or (threads or usable_cores(),)
    return tuple(
        Condition(batch, size, count) for count, size, batch in product(counts, plan.bench_size, plan.bench_batch)
    )


def make_arms(variants: Sequence[Variant], conditions: Sequence[Condition]) -> tuple[Arm, ...]:
    """Every variant under every condition: "best @ openvino, batch 8"."""
    return tuple(
        Arm(", ".join([variant.name, *condition.differences(conditions[0])]), variant, condition)
        for condition in conditions
        for variant in variants
    )


def time_variants(
    variants: Sequence[Variant], plan: BenchmarkPlan, *, threads: int = 0, seed: int = 0, timeout_s: float = 900.0
) -> LatencyResult:
    """Time every variant under every condition.

    The first variant of each device is that device's baseline, and under every condition it is timed as two arms.

    Args:
        threads: CPU threads of every runtime alike, where the plan names none; 0: one per usable core.
        seed: of the input and of the order of the rounds.
        timeout_s: for one process.
    """
    names = [variant.name for variant in variants]
    if len(set(names)) != len(names):
        raise ValueError(f"variant names must differ, got {names}")
    conditions = make_conditions(plan, threads)
    arms = make_arms(variants, conditions)
    baselines: dict[tuple[str, Condition], Arm] = {}
    for arm in arms:
        baselines.setdefault((arm.variant.device, arm.condition), arm)
    again = [replace(arm, name=arm.name + _AA_SUFFIX) for arm in baselines.values()]
    answers = _run_rounds((*arms, *again), plan, seed, timeout_s)
    p50_ms = {
        name: [float(np.median(each["times_ns"])) / 1e6 for each in rounds if each["status"] == "ok"]
        for name, rounds in answers.items()
    }
    timings = {}
    for arm in arms:
        timing = summarize_rounds(answers[arm.name], arm.condition.batch)
        if timing.status == "ok":
            baseline = baselines[arm.variant.device, arm.condition]
            timing = replace(timing, speedup=pair_ratio(p50_ms[baseline.name], p50_ms[arm.name]))
        timings[arm.name] = timing
    _warn_noise(timings)
    aa_ratios = {
        ", ".join([device, *condition.differences(conditions[0])]): ratio
        for (device, condition), arm in baselines.items()
        if (ratio := pair_ratio(p50_ms[arm.name], p50_ms[arm.name + _AA_SUFFIX]))
    }
    return LatencyResult(arms, timings, aa_ratios)


def _run_rounds(
    arms: Sequence[Arm], plan: BenchmarkPlan, seed: int, timeout_s: float
) -> dict[str, list[dict[str, Any]]]:
    order = random.Random(seed)
    answers: dict[str, list[dict[str, Any]]] = {arm.name: [] for arm in arms}
    with progress("timing", len(arms) * plan.rounds) as bar:
        for _ in range(plan.rounds):
            shuffled = list(arms)
            order.shuffle(shuffled)
            for arm in shuffled:
                # What failed once fails again: a hanging model costs one timeout, not one per round.
                if all(answer["status"] == "ok" for answer in answers[arm.name]):
                    answers[arm.name].append(_run_once(arm, plan, seed, timeout_s))
                bar.advance(note=arm.name)
    return answers


def _run_once(arm: Arm, plan: BenchmarkPlan, seed: int, timeout_s: float) -> dict[str, Any]:
    if why := refused_before(arm.variant.path, runtime=arm.variant.runtime):
        return {"status": "error", "error": why}
    return run_worker(_make_job(arm, plan, seed), threads=arm.condition.threads, timeout_s=timeout_s)


def _make_job(arm: Arm, plan: BenchmarkPlan, seed: int) -> dict[str, Any]:
    variant = arm.variant
    return make_job(
        variant.path,
        variant.runtime,
        arm.condition,
        warmup=plan.warmup,
        runs=-(-plan.runs // plan.rounds),
        min_seconds=plan.min_seconds / plan.rounds,
        device=variant.device,
        arch=variant.arch,
        seed=seed,
    )


def _warn_noise(timings: Mapping[str, Timing]) -> None:
    measured = {name: timing.statistics.cv_pct for name, timing in timings.items() if timing.statistics}
    if noisy := [f"{name} {cv_pct:.0f} %" for name, cv_pct in measured.items() if cv_pct > NOISY_CV_PCT]:
        warn(f"call times vary by more than {NOISY_CV_PCT} % (noisy machine): {', '.join(noisy)}")
