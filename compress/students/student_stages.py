"""A student of another shape, chosen by measurement within goal and budgets, that learns from best.pt.

Oracle (how coarse may the answer be) -> candidates -> short trials -> the smallest that keeps the colour -> its plan
-> its training. Each is a stage, so a choice that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from colorpress.core.console import say, warn
from colorpress.core.errors import ConfigError
from colorpress.core.files import without_nan
from colorpress.core.machine import machine_key
from colorpress.core.stages import StageRecord
from compress.budgets import Limit, fits, goals_or_whole, read_limits
from compress.distillation import DistillResult
from compress.export_stages import export, pack
from compress.int8.int8_stage import quantize_each
from compress.measures import FIDELITY, MEASURES, Score, Scores
from compress.precisions import origin_of, variant_name
from compress.ranking import count_macs
from compress.students import student_job
from compress.students.student_job import LARGEST_MACS, Oracle, StudentJob
from compress.students.student_plan import (
    FINER_PATCHES,
    FINEST_AFFINE_STRIDE,
    Candidate,
    StudentPlan,
    read_student_network,
    write_student_plan,
)
from training.fitting import forget_fit
from training.photo_split import PhotoSplit
from training.run_folder import Run
from training.unet import UNetPlan, count_parameters

# What a student is called where nothing else is asked for, and names that mean something else in a run folder.
STUDENT = "auto"
_TAKEN = ("best", "pruned", "trials", "front", "study", "pictures", "bundle")
_NOT_TRIED = "not tried: "
# Channels of all levels of flat students. Below 8 convolutions cost the same time; above 128 nothing was gained.
FLAT_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128)
# Channels of the finest level of growing ones, whose deeper levels have more.
GROWING_WIDTHS = (4, 6, 8, 10, 12, 16, 24, 32, 48, 64, 96)
# Without --keep-macs, so that students of a large best.pt learn in about half an hour too.
_LARGEST_MACS_A_PIXEL = 4_000
_DEEPEST_STRIDE = 32


def distil_student(run: Run, photos: PhotoSplit, name: str = STUDENT) -> list[StageRecord]:
    """One student of best.pt, ready to ship: chosen, trained, exported, in int8 and with packed weights."""
    stages = [*make_student(run, photos, name), export(run, run.folder / name / "model.pt", name)]
    return [*stages, *quantize_each(run, [run.folder / name / "model.onnx"], photos), pack_student(run, name)]


def pack_student(run: Run, name: str) -> StageRecord:
    """An exported student with its weights in 8 bits; warns where it misses a given size."""
    packed = pack(run, run.folder / name / "model.onnx", variant_name(name, "w8"))
    limits = read_limits(run.settings.budget, whole={})
    if not fits([limit for limit in limits if limit.figure == "size_bytes"], packed.result):
        warn(f"{name}-w8 has {packed.result['size_bytes']:,} bytes, more than the --target-size")
    return packed


def make_student(run: Run, photos: PhotoSplit, name: str = STUDENT) -> list[StageRecord]:
    """Choose a student and train it: <name>/plan.json, <name>/model.pt, and its training as table and chart.

    Args:
        name: of its folder; a run folder holds as many students as one likes, and trials serve all of them.
    Raises:
        ConfigError: no student fits the budgets, or the name cannot be used.
        ColorpressError: as the training does.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in _TAKEN or origin_of(name) != name:
        raise ConfigError("option", "--name", f"got {name!r}", "give letters and digits, such as smallest")
    job = StudentJob(run, photos)
    given = run.settings.student.student_plan
    network = read_student_network(given) if given else None
    oracle, asked = student_job.ask_oracle(job)
    records = [asked]
    if given is None or network is None:
        plan, trials = _choose(job, name, oracle)
        records += trials
    else:
        plan = StudentPlan(network, f"given with --student-plan {given.name}")
        limits = read_limits(run.settings.budget, whole=job.original_cost)
        if limits and (why := _why_too_large(limits, _make_candidate(job, network, limits))):
            warn(f"the network of --student-plan misses a budget: {why}")
    return [*records, _write_plan(run, name, plan), _train(job, name, plan.network)]


def _choose(job: StudentJob, name: str, oracle: Oracle) -> tuple[StudentPlan, list[StageRecord]]:
    """The smallest network of the ladder that keeps the colour after a short training."""
    settings = job.run.settings
    records: list[StageRecord] = []

    def try_out(candidate: Candidate) -> Score:
        records.append(_try_out(job, candidate.network))
        return Score.of(records[-1].result["score"])

    goals = goals_or_whole(settings.goal, oracle.strength.measure)
    candidates = choose_ladder(job, oracle, goals)
    chosen, seen, reason = choose_candidate(candidates, goals=goals, try_out=try_out)
    control: Mapping[str, Any] = {}
    if oracle.strength.beats_table:
        # The same network and crops without a teacher.
        records.append(_try_out(job, chosen.network, taught=False))
        control = records[-1].result["score"]
    say(f"{name}: {chosen.params:,} parameters, {reason}")
    plan = StudentPlan(
        network=chosen.network,
        reason=reason,
        strides=oracle.strides,
        candidates=seen,
        control=control,
        settings={**{goal.name: goal.bound for goal in goals}, **settings.budget.given()},
    )
    return plan, records


def choose_ladder(job: StudentJob, oracle: Oracle, goals: Sequence[Limit]) -> list[Candidate]:
    """The candidates of the ladder that is climbed, smallest first: growing networks or flat ones.

    Growing ones at the coarsest stride whose answers keep the colour keep more in as much time, flat ones at half of
    that stride are smaller (docs/students.md). So it is flat ones where bytes alone keep the others narrow, and where F
    is asked for: best.pt's own answers of that stride have hardly more of it, so students need finer ones.
    """
    coarsest = student_job.find_coarsest_stride(oracle.strides)
    if oracle.strength.beats_table and not any(goal.figure == FIDELITY.name for goal in goals):
        growing, limits = list_candidates(job, growing_ladder(coarsest)), _find_limits(job)
        if not any(_misses_bytes_alone(limits, each) for each in growing):
            return growing
    return list_candidates(job, flat_ladder(max(1, coarsest // 2)))


def _misses_bytes_alone(limits: Sequence[Limit], candidate: Candidate) -> bool:
    missed = {limit.figure for limit in limits if limit.is_met(vars(candidate)) is False}
    return bool(missed) and missed <= {"size_bytes", "params"}


def _find_limits(job: StudentJob) -> tuple[Limit, ...]:
    """The budgets. Without `keep_macs` a tenth of best.pt's multiply-accumulates, and 4,000 for each pixel, are too."""
    whole, pixels = job.original_cost, job.run.settings.count.rank_size**2
    largest_macs = min(LARGEST_MACS * whole["macs"], _LARGEST_MACS_A_PIXEL * pixels)
    otherwise = {"keep_params": whole["params"], "keep_macs": largest_macs}
    return read_limits(job.run.settings.budget, whole=whole, otherwise=otherwise)


def list_candidates(job: StudentJob, ladder: Sequence[UNetPlan]) -> list[Candidate]:
    """A ladder with what each network costs, and why it is not tried where it misses a budget."""
    limits = _find_limits(job)
    found: list[Candidate] = []
    why = ""
    for network in ladder:
        # Exports take seconds each, and what is wider than one that misses a budget misses it too.
        is_hopeless = bool(why) and _needs_file(limits)
        candidate = _make_candidate(job, network, () if is_hopeless else limits)
        # Budgets that nobody asked for bound all but the smallest, so that there is a student.
        counted = [limit for limit in limits if limit.given or found]
        why = "wider than one that misses a budget" if is_hopeless else _why_too_large(counted, candidate)
        found.append(replace(candidate, verdict=f"{_NOT_TRIED}{why}" if why else ""))
    return found


def _needs_file(limits: Sequence[Limit]) -> bool:
    return any(limit.figure in ("size_bytes", "latency_ms") for limit in limits)


def _make_candidate(job: StudentJob, network: UNetPlan, limits: Sequence[Limit]) -> Candidate:
    """A network with what it costs; the size of its file and its latency as far as there are budgets for them."""
    settings, size = job.run.settings, job.run.settings.count.rank_size
    built = student_job.build_student(network, settings.data.seed)
    candidate = Candidate(network, count_parameters(built), count_macs(built, height=size, width=size))
    if not _needs_file(limits):
        return candidate
    is_timed = any(limit.figure == "latency_ms" for limit in limits)

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        timing = job.time_alone if is_timed else None
        size_bytes, latency_ms = student_job.measure_stand_in(network, settings, timing)
        return [], {"size_bytes": size_bytes, "latency_ms": latency_ms}

    used: dict[str, Any] = {"network": network.to_dict(), "export": vars(settings.export)}
    if is_timed:
        used |= {"machine": machine_key(), "threads": settings.machine.threads, "size": settings.time.bench_size[0]}
    return replace(candidate, **job.run.do(f"cost-{_label(network)}", action, settings=used).result)


def _why_too_large(limits: Sequence[Limit], candidate: Candidate) -> str:
    """The first budget that a candidate misses; empty when it misses none that is known."""
    figures = vars(candidate)
    missed = (limit for limit in limits if limit.is_met(figures) is False)
    return next((f"{limit.count(figures[limit.figure])}, at most {limit.bound:,.4g}" for limit in missed), "")


def _try_out(job: StudentJob, network: UNetPlan, *, taught: bool = True) -> StageRecord:
    """A short training, by the truth alone where not taught, and what it scores on the photographs that choose."""
    name = f"{'trial' if taught else 'control'}-{_label(network)}"
    destination = job.run.folder / "trials" / name / "model.pt"

    def describe(distilled: DistillResult) -> tuple[Sequence[Path], Mapping[str, Any]]:
        return [destination], {"score": job.jury.choosing.score(distilled.checkpoint.build_network()).to_dict()}

    crops = job.run.settings.student.student_trial_crops
    return _learn(job, name, network, crops, destination, describe, teacher_weight=None if taught else 0.0)


def _train(job: StudentJob, name: str, network: UNetPlan) -> StageRecord:
    """Train the network of a plan from the start: <name>/model.pt, with table and chart of the training."""
    settings, destination = job.run.settings, job.run.folder / name / "model.pt"

    def describe(distilled: DistillResult) -> tuple[Sequence[Path], Mapping[str, Any]]:
        student, size = distilled.checkpoint.build_network(), settings.count.rank_size
        scores = job.jury.score(student)
        say(f"{name}: {distilled.summary()}; {scores.describe(intervals=True)}")
        goals = goals_or_whole(settings.goal, MEASURES[scores.chosen_by.measure])
        if missed := describe_missed(goals, scores):
            bounds = " or ".join(f"--{name.replace('_', '-')}" for name in settings.budget.given() or ("keep_macs",))
            wider = "a wider --student-plan" if settings.student.student_plan else f"a larger {bounds}"
            warn(f"{name} {missed}; try --student-effort long, or {wider}")
        return distilled.paths, {
            "params": count_parameters(student),
            "macs": count_macs(student, height=size, width=size),
            "output_stride": network.output_stride,
            "val_l1": distilled.val_l1_after,
            **scores.to_dict(),
            "best_val_l1": distilled.scale.best_l1,
            "grey_val_l1": distilled.scale.grey_l1,
        }

    return _learn(job, f"student-{name}", network, settings.student.crops, destination, describe, confirms=True)


def describe_missed(goals: Sequence[Limit], scores: Scores) -> str:
    """Which goals a student misses by what is reported of it, as the rest of a sentence; empty where it misses none.

    The figures themselves count: the margin is for the winner of many, and what is reported chose nothing.
    """
    figures = vars(scores.reported)
    told = [
        f"{'nothing' if math.isnan(value) else goal.show(value)} instead of {goal.show(goal.bound)}"
        for goal in goals
        if not goal.is_met(figures)
        for value in [figures[goal.figure]]
    ]
    where = "other photographs" if scores.confirmed else "the photographs that chose"
    return f"misses what is asked of it on {where}: {', '.join(told)}" if told else ""


def _learn(
    job: StudentJob,
    stage: str,
    network: UNetPlan,
    crops: int,
    destination: Path,
    describe: Callable[[DistillResult], tuple[Sequence[Path], Mapping[str, Any]]],
    *,
    teacher_weight: float | None = None,
    confirms: bool = False,
) -> StageRecord:
    """Distil a network to `destination` as a stage, whose files and result `describe` gives.

    Args:
        teacher_weight: another one than that of the lesson.
        confirms: whether that looks at the photographs that choose nothing.
    """

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        if job.run.force:
            forget_fit(destination.parent)
        student = student_job.build_student(network, job.run.settings.data.seed)
        return describe(job.distil(student, crops, destination, teacher_weight=teacher_weight))

    used = {
        "network": network.to_dict(),
        "recipe": vars(job.recipe(crops)),
        "teacher_weight": job.run.settings.distil.teacher_weight if teacher_weight is None else teacher_weight,
        **vars(job.run.settings.count),
        **job.run.arch_key(),
        **job.data_key(confirms=confirms),
    }
    return job.run.do(stage, action, inputs=[job.run.best_path], settings=used)


def _write_plan(run: Run, name: str, plan: StudentPlan) -> StageRecord:
    """Write <name>/plan.json, which says more than the training depends on: another reason trains nothing again."""

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        return [write_student_plan(run.folder / name / "plan.json", plan)], {}

    return run.do(f"plan-{name}", action, settings={"plan": plan.to_dict()})


def _label(network: UNetPlan) -> str:
    """What tells a network from the others of a run folder: the channels of its finest and of its deepest level."""
    return f"{network.encoder[0][-1]}-{network.encoder[-1][-1]}"


def flat_ladder(output_stride: int) -> tuple[UNetPlan, ...]:
    """UNets that answer at `output_stride`, one for each width, which all of their levels have, smallest first.

    Deep levels that double it hold nearly all parameters and do not earn their bytes (Lean UNet, 2025).
    """
    return tuple(_rung(output_stride, width, growth=0) for width in FLAT_WIDTHS)


def growing_ladder(output_stride: int) -> tuple[UNetPlan, ...]:
    """UNets that answer at `output_stride`, whose levels have once, twice, three times ... a width, smallest first."""
    return tuple(_rung(output_stride, width, growth=width) for width in GROWING_WIDTHS)


def _rung(output_stride: int, width: int, growth: int) -> UNetPlan:
    """A UNet whose finest level has `width` channels, and each deeper one `growth` more.

    All levels have one convolution: levels of finer patches than the answer's pixels bring more than a second one in
    each does. Levels go down to 1/32 of the size for context, and up again to the output stride. Coarse answers are
    affine fields of lightness.
    """
    stem = max(1, output_stride // FINER_PATCHES)
    levels = 1 + int(math.log2(max(_DEEPEST_STRIDE, output_stride) // stem))
    ups = levels - 1 - int(math.log2(output_stride // stem))
    widths = [width + growth * level for level in range(levels)]
    return UNetPlan(
        encoder=tuple((width,) for width in widths),
        # The skip connections come from the levels above the deepest one.
        decoder=tuple((width, width) for width in widths[-2 : -2 - ups : -1]),
        upsample="nearest",
        stem_stride=stem,
        affine=output_stride >= FINEST_AFFINE_STRIDE,
    )


def choose_candidate(
    candidates: Sequence[Candidate], *, goals: Sequence[Limit], try_out: Callable[[Candidate], Score]
) -> tuple[Candidate, tuple[Candidate, ...], str]:
    """The smallest candidate that meets the goals after a short training, found by bisection.

    Args:
        candidates: smallest first; what a larger one costs more of, it also keeps more colour with. One that has a
            verdict already misses a budget.
        goals: to be met on other photographs with 80 % confidence.
        try_out: trains a candidate for a short while and scores it; called for as few as possible.
    Returns:
        The chosen candidate, all of them with their verdicts, and the choice in a sentence. Where none meets the goals
        it is the one that kept most colour.
    Raises:
        ConfigError: no candidate fits the budgets.
    """
    seen = list(candidates)
    fitting = [place for place, candidate in enumerate(seen) if not candidate.verdict]
    if not fitting:
        why = f"the smallest student misses it: {seen[0].verdict.removeprefix(_NOT_TRIED)}"
        raise ConfigError("budget", None, why, "loosen it")
    asked = " and ".join(goal.show(goal.bound) for goal in goals)
    scores: dict[int, Score] = {}

    def meets_goals(place: int) -> bool:
        if place not in scores:
            scores[place] = try_out(seen[place])
        score = scores[place]
        is_met = all(goal.is_met(score.likely_figures()) for goal in goals)
        seen[place] = _note_score(seen[place], score, f"{'enough' if is_met else 'not enough'} for {asked}")
        return is_met

    smallest = fitting[bisect_left(fitting[:-1], True, key=meets_goals)]
    if meets_goals(smallest):
        return seen[smallest], tuple(seen), f"the smallest of {len(seen)} candidates that meets the goal"
    best = min(scores, key=lambda place: scores[place].loss)
    return seen[best], tuple(seen), "no candidate within the budgets meets the goal; this one kept most colour"


def _note_score(candidate: Candidate, score: Score, meaning: str) -> Candidate:
    """A candidate that was tried, with what it scored and what that means."""
    what = f"{score.describe()}{score.describe_interval()}"
    figures = {
        "l1_delta_pct": score.l1_delta_pct,
        "kept": score.kept,
        "low": score.interval[0],
        "high": score.interval[1],
    }
    verdict = f"after a short training {what}: {meaning}"
    return replace(candidate, **without_nan(figures), measure=score.measure, verdict=verdict)
