"""What a worker does with one candidate, cheap before dear: predicted cost, measured cost, and a short distillation.

A candidate over a budget ends where that is seen, so nothing over a budget is ever trained. Latency is measured by one
worker at a time on a machine, and this one does not train meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from colorpress.core.config import PruneConfig, SearchEffort
from colorpress.core.console import muted, warn
from colorpress.core.errors import DivergedError, GateError, InputError
from colorpress.core.files import sha256_bytes, sha256_file, write_bytes
from colorpress.core.machine import machine_key
from colorpress.core.processes import share_answer, working_together
from colorpress.core.source_code import hash_code
from compress.budgets import Figures, Limit, find_excess, fits, read_limits
from compress.distillation import ask_about_crops
from compress.importance import Evidence
from compress.measures import Scale, Score, Scores
from compress.prune_plan import PrunePlan
from compress.pruning import apply_pruning, plan_pruning
from compress.students.search_front import STAGES, ControlRow, FrontRow
from compress.students.search_space import (
    CHANNEL_BLOCK,
    Point,
    PrunedPoint,
    SearchSpace,
    make_space,
    pruned_points,
    read_point,
    suggest,
)
from compress.students.search_study import SAME_AS
from compress.students.student_job import LARGEST_MACS, StudentJob, build_student, measure_packed, measure_stand_in
from compress.yardstick import score_onnx
from export.controls import CONTROL_TITLES, control_path
from training.network import ColorNetwork
from training.unet import UNet, UNetPlan

# What is measured of a candidate before it learns, by user attribute.
COSTS = ("params", "macs", "size_bytes", "latency_ms")
# Of the photographs that choose, those that choose a candidate's best epoch.
_EPOCH_PHOTOS = 64
# Ahead of the name of a figure that was not measured.
_PREDICTED = "predicted "
# How far the predicted size of a file may be off.
_SIZE_MARGIN = 0.01
# Without --keep-params, the most that a student may have of best.pt's parameters.
_LARGEST_PARAMS = 0.5
# What the machines that share a latency are compared by: a network of a fixed shape.
_REFERENCE = UNetPlan(encoder=((32, 32),) * 4, decoder=((32, 32),), upsample="nearest", stem_stride=4)


@dataclass(frozen=True)
class SearchJob(StudentJob):
    """What all candidates of a search share on this machine.

    Attributes:
        output_strides: that the oracle keeps.
        decided_by: the name of the measure that decides.
        worker: name of this one in the study.
        weights: folder of finished weights by their hash; shared by machines where the study is in a shared folder.
    """

    output_strides: tuple[int, ...]
    decided_by: str
    worker: str
    weights: Path

    @cached_property
    def effort(self) -> SearchEffort:
        """How much is tried, and for how long."""
        return self.run.settings.search.effort()

    @cached_property
    def limits(self) -> tuple[Limit, ...]:
        """The budgets; without those for parameters and multiply-accumulates, a part of best.pt's.

        Where best.pt is tiny itself, that part is what the smallest network has.
        """
        whole = self.original_cost
        space = SearchSpace(self.output_strides, CHANNEL_BLOCK, self.effort.crops, self.run.settings.count.rank_size)
        least = space.cost(space.smallest("size_bytes"))
        otherwise = {
            "keep_params": max(_LARGEST_PARAMS * whole["params"], least["params"]),
            "keep_macs": max(LARGEST_MACS * whole["macs"], least["macs"]),
        }
        return read_limits(self.run.settings.budget, whole=whole, otherwise=otherwise)

    @cached_property
    def space(self) -> SearchSpace:
        """The points that are tried."""
        side = self.run.settings.count.rank_size
        return make_space(self.output_strides, self.limits, crops=self.effort.crops, side=side)

    def list_pruned(self) -> Iterator[tuple[PrunedPoint, dict[str, int]]]:
        """Pruned networks that may learn to the end, those to be tried first ahead, and "params" and "macs" of each.

        Of those within the budgets that were given, as far as these counts tell. No short training chooses among them:
        it says nothing of what they keep later.
        """
        network = self.best.build_network()
        # Narrow layers have no 16ths, so that two shares may be the same network, or nothing goes.
        known = {self.original_cost["params"]}
        for point in pruned_points(self.effort.full_crops, self._pruned_stride(network)):
            if point not in self._counted:
                self._counted[point] = self._count_pruned(point)
            counts = self._counted[point]
            if counts is None or counts["params"] in known:
                continue
            known.add(counts["params"])
            # A file has a byte for each weight at least; of a foreign network some weights may not be in it.
            least = {"size_bytes": counts["params"]} if isinstance(network, UNet) else {}
            if fits(self.budgets, {**counts, **least}):
                yield point, counts

    @cached_property
    def _counted(self) -> dict[PrunedPoint, dict[str, int] | None]:
        """What `_count_pruned` said already: a share takes seconds, and few of them are asked for."""
        return {}

    def _count_pruned(self, point: PrunedPoint) -> dict[str, int] | None:
        """Its "params" and "macs"; None where best.pt cannot be pruned so, which is said."""
        try:
            return self.count(self.build(point))
        except GateError as error:
            warn(f"{point.describe()} is left out: {error.why}")
            return None

    def _pruned_stride(self, network: ColorNetwork) -> int:
        """Half of the coarsest stride that loses next to nothing; a foreign network stays as it is."""
        coarser = min(self.output_strides[-1] // 2, network.size_multiple) if isinstance(network, UNet) else 1
        return max(network.output_stride, coarser)

    @cached_property
    def budgets(self) -> tuple[Limit, ...]:
        """The limits that were given, which are all that pruned networks have to keep."""
        return tuple(limit for limit in self.limits if limit.given)

    def prune_plan(self, point: PrunedPoint) -> PrunePlan:
        """Which channels of best.pt go, as `prune` has it by its defaults: the share of each layer, by magnitude.

        Where the answer may be coarser the finest levels of the decoder go before.

        Raises:
            GateError: its channels cannot be followed, or none of them can go.
        """
        config = PruneConfig(prune_ratio=1.0 - point.kept_channels, prune_output_stride=point.output_stride)
        try:
            return plan_pruning(self.best.build_network(), config, Evidence(seed=self.run.settings.data.seed))
        except InputError as error:  # which may be so of this share alone
            raise GateError("best.pt", None, f"cannot be pruned: {error.why}", error.hint) from error

    def build(self, point: Point) -> ColorNetwork:
        """The network of a point before it learns: one that answers grey, or best.pt without a part of its channels.

        Raises:
            GateError: best.pt cannot be pruned to that share.
        """
        if isinstance(point, PrunedPoint):
            return apply_pruning(self.best.build_network(), self.prune_plan(point))
        return build_student(point.network(), self.run.settings.data.seed)

    @cached_property
    def controls(self) -> tuple[ControlRow, ...]:
        """What sees no picture, on the photographs that choose."""
        choosing, found = self.jury.choosing, []
        for name, title in CONTROL_TITLES.items():
            path = control_path(self.run, name)
            score = score_onnx(choosing, path, threads=self.run.settings.machine.threads).by(self.decided_by)
            file = path.relative_to(self.run.folder).as_posix()
            found.append(ControlRow(title, file, path.stat().st_size, score))
        return tuple(found)

    def measure(self, network: UNetPlan | ColorNetwork) -> tuple[int, float]:
        """Bytes of the file that a network will have, and its latency in milliseconds on this machine.

        Args:
            network: one with its weights, or the plan of one that was not trained yet.
        """
        settings = self.run.settings
        with muted():
            if isinstance(network, UNetPlan):
                size_bytes, latency_ms = measure_stand_in(network, settings, self.time_alone)
            else:
                made = replace(self.best, architecture=network.architecture, state_dict=network.state_dict())
                size_bytes, latency_ms = measure_packed(made, settings, self.time_alone)
        assert latency_ms is not None
        return size_bytes, latency_ms


def make_identity(job: SearchJob) -> dict[str, Any]:
    """What the study's answers depend on, as JSON-ready values: a worker with others is refused."""
    settings = job.run.settings
    return {
        "best.pt": job.best.sha256,
        "photographs": job.data_key(),
        "measure": job.decided_by,
        "space": {**asdict(job.space), "output_strides": list(job.output_strides)},
        "budgets": settings.budget.given(),
        "settings": {
            **vars(settings.distil),
            **vars(settings.fit),
            **vars(settings.export),
            "search_full_crops": job.effort.full_crops,
            "search_pruned": job.effort.pruned,
            "search_sampler": settings.search.search_sampler,
            "bench_size": settings.time.bench_size[0],
        },
        "network": job.run.arch_key(),
        "code": hash_code(__name__),
    }


def describe_speed(job: SearchJob) -> dict[str, Any]:
    """This machine and its time for a network of a fixed shape, as the study keeps that of the one that began it."""
    _, reference_ms = job.measure(_REFERENCE)
    return {"machine": _machine_hash(), "reference_ms": reference_ms}


def find_latency_factor(job: SearchJob, speed: Mapping[str, Any]) -> float:
    """What latencies measured here are multiplied by to be those of the machine that began the study."""
    if _machine_hash() == speed["machine"]:
        return 1.0
    return float(speed["reference_ms"]) / float(describe_speed(job)["reference_ms"])


def _machine_hash() -> str:
    return sha256_bytes(repr(machine_key()).encode())


def try_short(job: SearchJob, trial: optuna.Trial, factor: float) -> tuple[float, ...]:
    """The objective of the first study: a candidate's size, latency and lost colour after a short distillation.

    Args:
        factor: see `find_latency_factor`.
    Raises:
        TrialPruned: it is over a limit; nothing was trained.
    """
    trial.set_user_attr("worker", job.worker)
    point = suggest(trial, job.space)
    started_s = _processor_s()
    network, cost = point.network(), job.space.cost(point)
    trial.set_user_attr("point", point.to_dict())
    predicted: Figures = {**cost, "size_bytes": cost["size_bytes"] / (1 + _SIZE_MARGIN)}
    _refuse(trial, {_PREDICTED + name: share for name, share in find_excess(job.limits, predicted).items()})
    _note(trial, network=sha256_bytes(repr(network).encode()))
    if known := _find_same(trial):
        same = {name: known.user_attrs[name] for name in (*COSTS, "score", "weights")}
        _note(trial, **same, **{SAME_AS: known.number}, processor_s=0.0)
        return tuple(known.values)
    _note(trial, **cost)
    _measure(job, trial, network, job.limits, factor)
    return _learn_for(job, trial, point, started_s)


def try_full(job: SearchJob, trial: optuna.Trial, factor: float) -> tuple[float, ...]:
    """The objective of the second study: a network, queued with what is known of it, distilled to the end.

    Args:
        factor: see `find_latency_factor`.
    Raises:
        TrialPruned: it is over a budget; nothing was trained.
        GateError: best.pt, pruned, has no ONNX file.
    """
    trial.set_user_attr("worker", job.worker)
    if "point" not in trial.user_attrs:  # two workers asked for the last one that was queued
        raise optuna.TrialPruned
    point, started_s = read_point(trial.user_attrs["point"]), _processor_s()
    if isinstance(point, PrunedPoint):
        try:
            _measure(job, trial, job.build(point), job.budgets, factor)
        except (GateError, InputError) as error:
            warn(f"{point.describe()} is left out: {error.why}")
            raise GateError("best.pt", None, error.why, error.hint) from error
    return _learn_for(job, trial, point, started_s)


def _measure(
    job: SearchJob, trial: optuna.Trial, network: UNetPlan | ColorNetwork, limits: Sequence[Limit], factor: float
) -> None:
    size_bytes, latency_ms = job.measure(network)
    measured = {"size_bytes": size_bytes, "latency_ms": latency_ms * factor}
    _refuse(trial, find_excess(limits, measured))
    _note(trial, **measured)


def _learn_for(job: SearchJob, trial: optuna.Trial, point: Point, started_s: float) -> tuple[float, ...]:
    path, score, asking_s = learn(job, point)
    # All candidates learn from the same answers, which are no cost of whichever comes first.
    processor_s = _processor_s() - started_s - asking_s
    _note(trial, score=score.to_dict(), weights=path.stem, processor_s=round(processor_s, 3))
    known = trial.user_attrs
    return float(known["size_bytes"]), float(known["latency_ms"]), score.loss


def _processor_s() -> float:
    """Seconds of processor time of this process and of those that it started and that have ended."""
    return sum(os.times()[:4])


def learn(job: SearchJob, point: Point) -> tuple[Path, Score, float]:
    """Distil the network of a point from its start.

    What an interruption left is gone on with. Processes of torchrun share the work.

    Returns:
        The file of its weights, its score, and the seconds of processor time that asking best.pt took here.
    """
    scale = job.jury.choosing.scale(_EPOCH_PHOTOS)  # alone, since the others wait for what they are to learn
    with working_together():
        destination, asking_s = _distil(job, *share_answer(lambda: (point, scale)))
    with muted():
        # Near the border another machine's rounding would decide for another measure.
        score = job.jury.choosing.score(job.run.load(destination).build_network()).by(job.decided_by)
    path = job.weights / f"{sha256_file(destination)}.pt"
    if not path.exists():
        write_bytes(path, destination.read_bytes())
    return path, score, asking_s


def assist(job: SearchJob) -> None:
    """Distil with the process that chooses, until it says that there is no more: for the others of torchrun."""
    while (task := share_answer(lambda: None)) is not None:
        # It comes in all processes at the same step, and the first one fails the trial.
        with suppress(DivergedError, GateError):
            _distil(job, *task)


def _distil(job: SearchJob, point: Point, scale: Scale) -> tuple[Path, float]:
    name = sha256_bytes(repr(point).encode())[:16]
    destination = job.run.folder / "study" / "trials" / name / "model.pt"
    started_s = _processor_s()
    with muted():
        ask_about_crops(job.lesson(point.crops, epoch_photos=_EPOCH_PHOTOS, scale=scale))
        asking_s = _processor_s() - started_s
        job.distil(job.build(point), point.crops, destination, epoch_photos=_EPOCH_PHOTOS, scale=scale)
    return destination, asking_s


def find_weights(job: SearchJob, trial: FrozenTrial) -> Path:
    """The weights of a finished trial; those that another machine keeps to itself are learned again, once."""
    path = job.weights / f"{trial.user_attrs['weights']}.pt"
    if path.is_file() and sha256_file(path) == path.stem:
        return path
    # The same network, but its file tells of another training.
    again = path.with_name(f"{path.stem}-again.pt")
    if not again.is_file():
        learned, *_ = learn(job, read_point(trial.user_attrs["point"]))
        write_bytes(again, learned.read_bytes())
    return again


def make_row(trial: FrozenTrial, stage: str = STAGES[0]) -> FrontRow:
    """The row of a finished trial."""
    known, point = trial.user_attrs, read_point(trial.user_attrs["point"])
    # The short trial and the full one of a student have the same name, and no two networks have.
    if isinstance(point, PrunedPoint):
        name = f"pruned-{100 * point.kept_channels:.0f}pct"
    else:
        name = f"{max(1, round(known['size_bytes'] / 1000))}kb-{known.get('number', trial.number)}"
    return FrontRow(
        name=name,
        stage=stage,
        point=point,
        **{name: known[name] for name in COSTS},
        scores=Scores(Score.of(known["score"])),
    )


def _refuse(trial: optuna.Trial, excess: Mapping[str, float]) -> None:
    """Tell the sampler how far a candidate is over each limit, and end the trial where it is over one."""
    for name, share in excess.items():
        trial.set_constraint(name, share)
    if over := [name for name, share in excess.items() if share > 0]:
        trial.set_user_attr("refused", ", ".join(over))
        raise optuna.TrialPruned


def refused_figures(trial: FrozenTrial) -> list[str]:
    """The figures, such as "macs", that a trial was ended for; of a trial that was not none."""
    return [name.removeprefix(_PREDICTED) for name in trial.user_attrs.get("refused", "").split(", ") if name]


def _note(trial: optuna.Trial, **values: Any) -> None:
    for name, value in values.items():
        trial.set_user_attr(name, value)


def _find_same(trial: optuna.Trial) -> FrozenTrial | None:
    """A finished trial whose point rounds to the same network."""
    done = trial.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    return next((each for each in done if each.user_attrs["network"] == trial.user_attrs["network"]), None)
