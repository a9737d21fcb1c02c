"""What a worker does with one candidate, cheap before dear: predicted cost, measured cost, and a short distillation.

A candidate over a budget ends where that is seen, so nothing over a budget is ever trained. Latency is measured by one
worker at a time on a machine, and this one does not train meanwhile.
"""

from __future__ import annotations

import getpass
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from colorpress.core.config import PATH_OPTIONS, SearchEffort
from colorpress.core.console import muted
from colorpress.core.errors import DivergedError
from colorpress.core.files import sha256_bytes, sha256_file, with_nan, without_nan, write_bytes
from colorpress.core.machine import machine_key
from colorpress.core.processes import share_answer, working_together
from colorpress.core.source_code import hash_code
from compress.distillation import Lesson, distil_network
from compress.students.ladder import build_student
from compress.students.search_front import STAGES, Demand, FrontRow, list_demands, loss_of
from compress.students.search_space import CHANNEL_BLOCK, CostLimits, SearchSpace, StudentPoint, make_space, suggest
from compress.students.student_job import StudentJob
from compress.students.student_stages import measure_stand_in
from compress.yardstick import Score
from export.timing import time_quickly
from training.checkpoint import load_checkpoint
from training.unet import UNetPlan

# Validation photographs that choose a candidate's best epoch.
_EPOCH_PHOTOS = 64
# How far the predicted size of a file may be off.
_SIZE_MARGIN = 0.01
# Without options that say so, the most that a student may have of what best.pt has: one with more is slow to train.
_LARGEST_PARAMS, _LARGEST_MACS = 0.5, 0.1
# What the machines that share a latency are compared by: a network of a fixed shape.
_REFERENCE = UNetPlan(encoder=((32, 32),) * 4, decoder=((32, 32),), upsample="nearest", stem_stride=4)


@contextmanager
def alone_on_machine() -> Iterator[None]:
    """Hold the lock under which latency is measured: one process of a user at a time on a machine."""
    from filelock import FileLock

    owner = os.getuid() if hasattr(os, "getuid") else getpass.getuser()
    with FileLock(Path(tempfile.gettempdir()) / f"colorpress-latency-{owner}.lock"):
        yield


def _processor_s() -> float:
    """Seconds of processor time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


@dataclass(frozen=True)
class SearchJob(StudentJob):
    """What all candidates of a search share on this machine.

    Attributes:
        output_strides: that the oracle keeps.
        worker: name of this one in the study.
        weights: folder of finished weights by their hash; shared by machines where the study is in a shared folder.
    """

    output_strides: tuple[int, ...]
    worker: str
    weights: Path

    @cached_property
    def effort(self) -> SearchEffort:
        """How much is tried, and for how long."""
        return self.run.settings.search.effort()

    @cached_property
    def limits(self) -> CostLimits:
        """The budgets; without those for parameters and multiply-accumulates, a part of best.pt's.

        Where best.pt is tiny itself, that part is what the smallest network has.
        """
        given = self.run.settings.budget.given()
        params, macs = self.original_cost
        space = SearchSpace(self.output_strides, CHANNEL_BLOCK, self.effort.crops, self.run.settings.count.rank_size)
        least = space.cost(space.smallest("size_bytes"))
        return CostLimits(
            params=given["keep_params"] * params
            if "keep_params" in given
            else max(_LARGEST_PARAMS * params, least.params),
            macs=given["keep_macs"] * macs if "keep_macs" in given else max(_LARGEST_MACS * macs, least.macs),
            size_bytes=given.get("target_size"),
            latency_ms=given.get("target_latency_ms"),
        )

    @cached_property
    def demands(self) -> list[Demand]:
        """The goals and budgets, which the recommended file meets."""
        settings, (params, macs) = self.run.settings, self.original_cost
        # Asks best.pt about every photograph that chooses, so not without need.
        grey = self.yardstick.grey_increase_pct if settings.goal.max_l1_increase is not None else math.nan
        return list_demands(settings.goal, settings.budget, params=params, macs=macs, grey_increase_pct=grey)

    @cached_property
    def space(self) -> SearchSpace:
        """The points that are tried."""
        side = self.run.settings.count.rank_size
        return make_space(self.output_strides, self.limits, crops=self.effort.crops, side=side)

    def identity(self) -> dict[str, Any]:
        """What the study's answers depend on, as JSON-ready values: a worker with others is refused."""
        settings = self.run.settings
        distil = {name: value for name, value in vars(settings.distil).items() if name not in PATH_OPTIONS}
        used = replace(self.photos, test=())
        return {
            "best.pt": self.best.sha256,
            "photographs": self.run.data_key(used),
            "space": {**asdict(self.space), "output_strides": list(self.output_strides)},
            "budgets": settings.budget.given(),
            "settings": {
                **distil,
                **vars(settings.fit),
                **vars(settings.export),
                "search_full_crops": self.effort.full_crops,
                "search_sampler": settings.search.search_sampler,
                "eval_size": settings.score.eval_size,
                "bench_size": settings.time.bench_size[0],
            },
            "network": self.run.arch_key(),
            "code": hash_code(__name__),
        }

    def time_alone(self, path: Path) -> float:
        """The p50 of a file in milliseconds, while no other worker of this user measures here."""
        with alone_on_machine():
            return time_quickly(
                path, size=self.run.settings.time.bench_size[0], threads=self.run.settings.machine.threads
            )

    def time_reference(self) -> float:
        """The p50 of a network of a fixed shape, in milliseconds: what machines are compared by."""
        _, latency_ms = measure_stand_in(_REFERENCE, self.run.settings, self.time_alone)
        assert latency_ms is not None
        return latency_ms

    def describe_speed(self) -> dict[str, Any]:
        """This machine and its time for the reference, as the study keeps that of the one that began it."""
        return {"machine": sha256_bytes(repr(machine_key()).encode()), "reference_ms": self.time_reference()}

    def latency_factor(self, speed: Mapping[str, Any]) -> float:
        """What latencies measured here are multiplied by to be those of the machine that began the study."""
        if sha256_bytes(repr(machine_key()).encode()) == speed["machine"]:
            return 1.0
        return float(speed["reference_ms"]) / self.time_reference()

    def try_short(self, trial: optuna.Trial, factor: float) -> tuple[float, float, float]:
        """The objective of the first study: a candidate's size, latency and lost colour after a short distillation.

        Raises:
            TrialPruned: it is over a limit; nothing was trained.
        """
        trial.set_user_attr("worker", self.worker)
        point = suggest(trial, self.space)
        network, cost = point.network(), self.space.cost(point)
        trial.set_user_attr("point", point.to_dict())
        predicted = self.limits.excess(
            params=cost.params, macs=cost.macs, size_bytes=cost.size_bytes / (1 + _SIZE_MARGIN)
        )
        _refuse(trial, {f"predicted {name}": share for name, share in predicted.items()})
        if known := _find_same(trial, network):
            for name in ("params", "macs", "size_bytes", "latency_ms", "score", "weights"):
                trial.set_user_attr(name, known.user_attrs[name])
            trial.set_user_attr("processor_s", 0.0)
            size_bytes, latency_ms, loss = known.values
            return size_bytes, latency_ms, loss
        started_s = _processor_s()
        with muted():
            size_bytes, latency_ms = measure_stand_in(network, self.run.settings, self.time_alone)
        assert latency_ms is not None
        latency_ms *= factor
        _refuse(trial, self.limits.excess(size_bytes=size_bytes, latency_ms=latency_ms))
        _note(trial, params=cost.params, macs=cost.macs, size_bytes=size_bytes, latency_ms=latency_ms)
        return self._learn_for(trial, point, started_s)

    def try_full(self, trial: optuna.Trial) -> tuple[float, float, float]:
        """The objective of the second study: one of the front, after a full distillation."""
        trial.set_user_attr("worker", self.worker)
        point = StudentPoint.from_dict(trial.user_attrs["point"])
        # Queued with what the first study measured of it.
        suggest(trial, self.space)
        return self._learn_for(trial, point, _processor_s())

    def _learn_for(self, trial: optuna.Trial, point: StudentPoint, started_s: float) -> tuple[float, float, float]:
        path, score = self.learn(point)
        _note(
            trial, score=without_nan(asdict(score)), weights=path.stem, processor_s=round(_processor_s() - started_s, 3)
        )
        known = trial.user_attrs
        return float(known["size_bytes"]), float(known["latency_ms"]), loss_of(score)

    def learn(self, point: StudentPoint) -> tuple[Path, Score]:
        """Distil the network of a point from the start; the file of its weights, and its score.

        What an interruption left is gone on with. Processes of torchrun share the work.
        """
        with working_together():
            destination = self._distil(*share_answer(lambda: (point, self.reference_l1(_EPOCH_PHOTOS))))
        with muted():
            score = self.yardstick.score(load_checkpoint(destination).build_network())
        path = self.weights / f"{sha256_file(destination)}.pt"
        if not path.exists():
            write_bytes(path, destination.read_bytes())
        return path, score

    def assist(self) -> None:
        """Distil with the process that chooses, until it says that there is no more: for the others of torchrun."""
        while (task := share_answer(lambda: None)) is not None:
            # It comes in all processes at the same step, and the first one fails the trial.
            with suppress(DivergedError):
                self._distil(*task)

    def _distil(self, point: StudentPoint, reference_l1: tuple[float, float]) -> Path:
        settings = self.run.settings
        recipe = settings.distil.recipe(
            settings.fit,
            crops=point.crops,
            photos=len(self.photos.train),
            val_size=settings.score.eval_size,
        )
        name = sha256_bytes(repr((point.network(), point.crops)).encode())[:16]
        destination = self.run.folder / "study" / "trials" / name / "model.pt"
        # An epoch shows every photograph: of more than there are crops to look at the first ones serve.
        learned_from = self.photos.train[: max(1, recipe.epochs * recipe.epoch_crops)]
        photos = replace(self.photos, train=learned_from, val=self.photos.val[:_EPOCH_PHOTOS])
        weight = settings.distil.student_teacher_weight
        lesson = Lesson.of(self.run, self.best, photos, recipe, teacher_weight=weight)
        with muted():
            student = build_student(point.network(), settings.data.seed)
            distil_network(student, replace(lesson, reference_l1=reference_l1), destination, label="student")
        return destination

    def find_weights(self, row_trial: FrozenTrial) -> Path:
        """The weights of a finished trial; those that another machine keeps to itself are learned again, once."""
        path = self.weights / f"{row_trial.user_attrs['weights']}.pt"
        if path.is_file() and sha256_file(path) == path.stem:
            return path
        # The same network, but its file tells of another training.
        again = path.with_name(f"{path.stem}-again.pt")
        if not again.is_file():
            learned, _ = self.learn(StudentPoint.from_dict(row_trial.user_attrs["point"]))
            write_bytes(again, learned.read_bytes())
        return again


def make_row(trial: FrozenTrial, stage: str) -> FrontRow:
    """The row of a finished trial."""
    known = trial.user_attrs
    score = Score(**with_nan(known["score"]))
    kilobytes = max(1, round(known["size_bytes"] / 1000))
    return FrontRow(
        # The short trial and the full one of a point have the same name, and no two points have.
        name=f"{kilobytes}kb-{known.get('number', trial.number)}",
        stage=stage,
        point=StudentPoint.from_dict(known["point"]),
        params=known["params"],
        macs=known["macs"],
        size_bytes=known["size_bytes"],
        latency_ms=known["latency_ms"],
        score=score,
    )


def make_rows(trials: list[FrozenTrial], stage: str) -> list[FrontRow]:
    """The rows of the finished ones among some trials."""
    assert stage in STAGES
    return [make_row(trial, stage) for trial in trials if trial.state == TrialState.COMPLETE]


def _refuse(trial: optuna.Trial, excess: Mapping[str, float]) -> None:
    """Tell the sampler how far a candidate is over each limit, and end the trial where it is over one."""
    for name, share in excess.items():
        trial.set_constraint(name, share)
    if over := [name for name, share in excess.items() if share > 0]:
        trial.set_user_attr("refused", ", ".join(over))
        raise optuna.TrialPruned


def _note(trial: optuna.Trial, **values: Any) -> None:
    for name, value in values.items():
        trial.set_user_attr(name, value)


def _find_same(trial: optuna.Trial, network: UNetPlan) -> FrozenTrial | None:
    """A finished trial whose point rounds to the same network."""
    done = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return next((each for each in done if StudentPoint.from_dict(each.user_attrs["point"]).network() == network), None)
