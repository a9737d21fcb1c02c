"""A student of another shape, chosen by measurement within goal and budgets, that learns from best.pt.

Oracle (how coarse may the answer be) -> candidates -> short trials -> the smallest that keeps the colour -> its plan
-> its training. Each is a stage, so a choice that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from colorpress.core.config import Recipe, Settings
from colorpress.core.console import say, warn
from colorpress.core.errors import ConfigError
from colorpress.core.files import with_nan, without_nan
from colorpress.core.machine import machine_key
from colorpress.core.stages import StageRecord
from compress.distillation import DistillResult, Lesson, distil_network
from compress.export_stages import export, pack
from compress.int8.int8_stage import quantize_each
from compress.packing import pack_onnx
from compress.precisions import origin_of, variant_name
from compress.ranking import count_macs
from compress.students.ladder import (
    Goal,
    build_student,
    choose_candidate,
    choose_output_stride,
    score_strides,
    student_ladder,
)
from compress.students.student_job import MOST_CHOOSING, StudentJob
from compress.students.student_plan import Candidate, StrideScore, StudentPlan, read_student_network, write_student_plan
from compress.yardstick import Score
from export.graph import export_onnx
from export.timing import time_quickly
from training.checkpoint import Checkpoint
from training.device import choose_device
from training.fitting import forget_fit
from training.photos import PhotoSplit
from training.run_folder import Run
from training.unet import UNet, UNetPlan, count_parameters

# What a student is called where nothing else is asked for, and names that mean something else in a run folder.
STUDENT = "auto"
_TAKEN = ("best", "pruned", "trials", "front", "study", "pictures", "bundle")


def make_student(run: Run, checkpoint: Path, photos: PhotoSplit, name: str = STUDENT) -> list[StageRecord]:
    """Choose a student and train it: <name>/plan.json, <name>/model.pt, and its training as table and chart.

    Args:
        name: of its folder; a run folder holds as many students as one likes, and trials serve all of them.
    Raises:
        ConfigError: no student fits the budgets, or the name cannot be used.
        ColorpressError: as the training does.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) or name in _TAKEN or origin_of(name) != name:
        raise ConfigError("option", "--name", f"got {name!r}", "give letters and digits, such as smallest")
    choice = _Choice(run, checkpoint, photos, name)
    given = run.settings.student.student_plan
    if given is not None:
        plan = StudentPlan(read_student_network(given), f"given with --student-plan {given.name}")
        if why := choice.why_over_budget(plan.network):
            warn(f"the network of --student-plan misses a budget: {why}")
        return [choice.write(plan), choice.train(plan)]
    strides, oracle = choice.choose_stride()
    plan, trials = choice.choose_plan(strides)
    return [oracle, *trials, choice.write(plan), choice.train(plan)]


def score_output_strides(run: Run, checkpoint: Path, photos: PhotoSplit) -> tuple[StrideScore, ...]:
    """The oracle: what best.pt's own answers are worth when they are made coarse; measured once in a run folder."""
    return _Choice(run, checkpoint, photos, STUDENT).choose_stride()[0]


@dataclass(frozen=True)
class _Choice(StudentJob):
    """What the stages of one choice share."""

    name: str

    @property
    def folder(self) -> Path:
        return self.run.folder / self.name

    def goal(self) -> Goal:
        """What a student has to keep, as a G: the stricter of the two options that say so, 1 without either."""
        asked = self.run.settings.goal
        if asked.max_l1_increase is None:
            return Goal(1.0 if asked.min_retained_colour is None else asked.min_retained_colour)
        floor = self.yardstick.floor_of(asked)
        return Goal(1.0 if floor is None else floor, asked.max_l1_increase)

    def choose_stride(self) -> tuple[tuple[StrideScore, ...], StageRecord]:
        """The oracle of output strides."""

        def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
            device = choose_device(self.run.settings.machine.device)
            scores = score_strides(self.best.build_network().to(device), self.yardstick, device=device)
            kept = ", ".join(f"1/{each.stride} {each.l1_delta_pct:+.2f} %" for each in scores)
            say(f"best.pt's own answer made coarse changes its L1 by: {kept}")
            return [], {"strides": [without_nan(asdict(each)) for each in scores]}

        used = {**self.run.arch_key(), **self._data_key(train=False)}
        record = self.run.do("strides", action, inputs=[self.checkpoint], settings=used)
        return tuple(StrideScore(**with_nan(each)) for each in record.result["strides"]), record

    def choose_plan(self, strides: Sequence[StrideScore]) -> tuple[StudentPlan, list[StageRecord]]:
        """The smallest network of the ladder that keeps the colour after a short training."""
        settings = self.run.settings
        records: list[StageRecord] = []

        def try_out(candidate: Candidate) -> Score:
            records.append(self._try_out(candidate.network, settings.distil.student_teacher_weight))
            return Score(**with_nan(records[-1].result["score"]))

        candidates: list[Candidate] = []
        for network in student_ladder(choose_output_stride(strides)):
            candidate = self._candidate(network)
            # Exports take seconds each, and what is wider than one that misses a budget misses it too.
            missed = bool(candidates) and bool(self._why_too_large(candidates[-1]))
            candidates.append(candidate if missed else self._with_cost(candidate))
        goal = self.goal()
        chosen, seen, reason = choose_candidate(
            candidates, goal=goal, why_too_large=self._why_too_large, try_out=try_out
        )
        # The control: the same network and crops without a teacher.
        control = self._try_out(chosen.network, teacher_weight=0.0)
        records.append(control)
        say(f"{self.name}: {chosen.params:,} parameters, {reason}")
        plan = StudentPlan(
            network=chosen.network,
            reason=reason,
            strides=tuple(strides),
            candidates=seen,
            control=control.result["score"],
            settings={"min_retained_colour": goal.min_retained_colour, **self.run.settings.budget.given()},
        )
        return plan, records

    def why_over_budget(self, network: UNetPlan) -> str:
        """The budget that a network misses, in words; empty where it misses none, or there is none."""
        given = self.run.settings.budget.given()
        return self._why_too_large(self._with_cost(self._candidate(network))) if given else ""

    def _candidate(self, network: UNetPlan) -> Candidate:
        size = self.run.settings.count.rank_size
        built = build_student(network, self.run.settings.data.seed)
        return Candidate(network, count_parameters(built), count_macs(built, height=size, width=size))

    def write(self, plan: StudentPlan) -> StageRecord:
        """Write <name>/plan.json, which says more than the training depends on: another reason trains nothing again."""

        def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
            return [write_student_plan(self.folder / "plan.json", plan)], {}

        return self.run.do(f"plan-{self.name}", action, settings={"plan": plan.to_dict()})

    def train(self, plan: StudentPlan) -> StageRecord:
        """Train the network of a plan from the start: <name>/model.pt, with table and chart of the training."""
        settings = self.run.settings
        recipe = self._recipe(settings.student.crops)

        def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
            weight = settings.distil.student_teacher_weight
            distilled = self._distil(plan.network, recipe, weight, self.folder / "model.pt", self.name)
            network, size = distilled.checkpoint.build_network(), settings.count.rank_size
            score, goal = self.yardstick.score(network), self.goal()
            interval = "" if math.isnan(score.low) else f" (95 % interval {score.low:.3f} to {score.high:.3f})"
            say(f"{self.name}: {distilled.summary()}{interval}")
            if not goal.is_met(score):
                hint = "try --student-effort long, or a wider --student-plan"
                warn(f"{self.name} does not keep G {goal.min_retained_colour:g} with odds of 4 to 1: {hint}")
            return distilled.paths, {
                "params": count_parameters(network),
                "macs": count_macs(network, height=size, width=size),
                "output_stride": plan.network.output_stride,
                "val_l1": distilled.val_l1_after,
                "val_score": without_nan(asdict(score)),
                "best_val_l1": distilled.best_l1,
                "grey_val_l1": distilled.grey_l1,
            }

        used = {
            "network": plan.network.to_dict(),
            "recipe": vars(recipe),
            "teacher_weight": settings.distil.student_teacher_weight,
            **self.run.arch_key(),
            **self._data_key(),
        }
        return self.run.do(f"student-{self.name}", action, inputs=[self.checkpoint], settings=used)

    def _try_out(self, network: UNetPlan, teacher_weight: float) -> StageRecord:
        """A short training and what it scores on the validation photographs."""
        recipe = self._recipe(self.run.settings.student.student_trial_crops)
        name = f"{'trial' if teacher_weight else 'control'}-{network.encoder[0][-1]}"
        destination = self.run.folder / "trials" / name / "model.pt"

        def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
            distilled = self._distil(network, recipe, teacher_weight, destination, name)
            score = self.yardstick.score(distilled.checkpoint.build_network())
            return [destination], {"score": without_nan(asdict(score))}

        used = {
            "network": network.to_dict(),
            "recipe": vars(recipe),
            "teacher_weight": teacher_weight,
            **self.run.arch_key(),
            **self._data_key(),
        }
        return self.run.do(name, action, inputs=[self.checkpoint], settings=used)

    def _distil(
        self, network: UNetPlan, recipe: Recipe, teacher_weight: float, destination: Path, label: str
    ) -> DistillResult:
        settings = self.run.settings
        if self.run.force:
            forget_fit(destination.with_name("last.pt"))
        photos = replace(
            self.photos,
            # An epoch shows every photograph: of more than there are crops to look at the first ones serve.
            train=self.photos.train[: max(1, recipe.epochs * recipe.epoch_crops)],
            val=self.photos.val[:MOST_CHOOSING],
        )
        lesson = Lesson.of(self.run, self.best, photos, recipe, teacher_weight=teacher_weight)
        lesson = replace(lesson, reference_l1=self.reference_l1(MOST_CHOOSING))
        return distil_network(build_student(network, settings.data.seed), lesson, destination, label=label)

    def _recipe(self, crops: int) -> Recipe:
        settings = self.run.settings
        return settings.distil.recipe(
            settings.fit, crops=crops, photos=len(self.photos.train), val_size=settings.score.eval_size
        )

    def _data_key(self, *, train: bool = True) -> dict[str, Any]:
        used = replace(self.photos, train=self.photos.train if train else (), test=())
        return {**self.run.data_key(used), "eval_size": self.run.settings.score.eval_size}

    def _with_cost(self, candidate: Candidate) -> Candidate:
        """The candidate with the size of its file and, where there is a budget for it, its measured latency."""
        budgets, settings = self.run.settings.budget.given(), self.run.settings
        if not {"target_size", "target_latency_ms"} & budgets.keys():
            return candidate
        timed, threads = "target_latency_ms" in budgets, settings.machine.threads

        def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
            timing = (
                (lambda path: time_quickly(path, size=settings.time.bench_size[0], threads=threads)) if timed else None
            )
            size_bytes, latency_ms = measure_stand_in(candidate.network, settings, timing)
            return [], {"size_bytes": size_bytes, "latency_ms": latency_ms}

        used: dict[str, Any] = {"network": candidate.network.to_dict(), "export": vars(settings.export)}
        if timed:
            used |= {"machine": machine_key(), "threads": threads, "size": settings.time.bench_size[0]}
        name = f"cost-{candidate.network.encoder[0][-1]}"
        return replace(candidate, **self.run.do(name, action, settings=used).result)

    def _why_too_large(self, candidate: Candidate) -> str:
        """The budget that a candidate misses; empty when it misses none."""
        budgets = self.run.settings.budget.given()
        params, macs = self.original_cost
        allowed = {
            "keep_params": (candidate.params, budgets.get("keep_params", 1.0) * params, "parameters"),
            "keep_macs": (candidate.macs, budgets.get("keep_macs", 1.0) * macs, "multiply-accumulates"),
            "target_size": (candidate.size_bytes or 0, budgets.get("target_size", math.inf), "bytes"),
            "target_latency_ms": (candidate.latency_ms or 0, budgets.get("target_latency_ms", math.inf), "ms"),
        }
        if candidate.size_bytes is None and {"target_size", "target_latency_ms"} & budgets.keys():
            return "wider than one that misses a budget"
        # Without a budget nothing larger than best.pt is tried, but for the smallest, so that there is a student.
        smallest = candidate.network == student_ladder(candidate.network.output_stride)[0]
        for name, (value, most, unit) in allowed.items():
            if value > most and (name in budgets or not smallest):
                return f"{value:,.4g} {unit}, at most {most:,.4g}"
        return ""


def measure_stand_in(
    network: UNetPlan, settings: Settings, timing: Callable[[Path], float] | None
) -> tuple[int, float | None]:
    """Bytes of the file with packed weights that a network will have, and its latency, before it is trained.

    Args:
        timing: gives the latency of a file in milliseconds; None leaves it out.
    """
    with tempfile.TemporaryDirectory(prefix="colorpress-candidate-") as folder:
        source, packed = Path(folder) / "model.onnx", Path(folder) / "packed.onnx"
        stand_in = _stand_in(network, settings.data.seed)
        # As long a description as the published file's, so that it is not larger.
        trial = Checkpoint(network, stand_in.state_dict(), val_l1=0.0123456789, sha256="0" * 64)
        export_onnx(trial, source, settings.export)
        size_bytes = pack_onnx(source, packed).size_bytes
        return size_bytes, timing(packed) if timing else None


def _stand_in(network: UNetPlan, seed: int) -> UNet:
    """A network of the candidate's shape with weights as different from each other as trained ones are.

    Equal tensors, such as the zeros that a network starts with, would be stored once.
    """
    student = build_student(network, seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in student.parameters():
        parameter.data.normal_(0.0, 0.1, generator=generator)
    return student


def distil_student(run: Run, photos: PhotoSplit, name: str = STUDENT) -> list[StageRecord]:
    """One student of best.pt, ready to ship: chosen, trained, exported, in int8 and with packed weights."""
    stages = make_student(run, run.best_path, photos, name)
    source = run.folder / name / "model.onnx"
    stages += [export(run, run.folder / name / "model.pt", name), *quantize_each(run, [source], photos)]
    packed = pack(run, source, variant_name(name, "w8"))
    most, size_bytes = run.settings.budget.given().get("target_size"), packed.result["size_bytes"]
    if most is not None and size_bytes > most:
        warn(f"{name}-w8 has {size_bytes:,} bytes, more than the --target-size")
    return [*stages, packed]
