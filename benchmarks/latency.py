"""How long a call takes: every variant in fresh processes, in interleaved rounds of random order."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from benchmarks.variants import Variant
from colorpress.core.config import BenchmarkPlan
from colorpress.core.console import progress, warn
from colorpress.core.cores import usable_cores
from export.timing import Condition, Ratio, Timing, make_job, pair_ratio, run_worker, summarize_rounds

NOISY_CV_PCT = 2.5
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


def make_conditions(config: BenchmarkPlan, threads: int = 0) -> tuple[Condition, ...]:
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
    variants: Sequence[Variant], config: BenchmarkPlan, *, threads: int = 0, seed: int = 0, timeout_s: float = 900.0
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


def _run_rounds(
    arms: Sequence[Arm], config: BenchmarkPlan, seed: int, timeout_s: float
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


def _make_job(arm: Arm, config: BenchmarkPlan, seed: int) -> dict[str, Any]:
    variant = arm.variant
    return make_job(
        variant.path,
        variant.runtime,
        arm.condition,
        warmup=config.warmup,
        runs=-(-config.runs // config.rounds),
        min_seconds=config.min_seconds / config.rounds,
        device=variant.device,
        arch=variant.arch,
        seed=seed,
    )


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
