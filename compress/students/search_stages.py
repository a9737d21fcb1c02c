"""`colorpress compress`: say the budget, get the model. Two Optuna studies, and the files of the front they find.

The first study looks for candidates, each after a short distillation; the second, whose trials are queued from the
first one's front, distils those to the end. Workers on any machine join both. The process that began the search then
exports, packs, quantizes and measures, one file after another.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from colorpress.core.config import CONFIGS, PATH_OPTIONS, Config, QatConfig, Settings, field_type, option_name
from colorpress.core.console import live_table, muted, say, warn
from colorpress.core.errors import ConfigError, DivergedError, GateError
from colorpress.core.files import sha256_bytes, sha256_file, with_nan, without_nan, write_bytes
from colorpress.core.machine import machine_key
from colorpress.core.processes import (
    is_cut_off,
    is_main_process,
    process_count,
    share_answer,
    started_processes,
    working_alone,
)
from colorpress.core.stages import StageRecord
from colorpress.core.text import format_bytes, format_count, format_number
from compress.export_stages import export, pack
from compress.int8.int8_stage import quantize_each
from compress.precisions import variant_name
from compress.students.ladder import list_output_strides
from compress.students.search_estimate import estimate_search, format_estimate
from compress.students.search_front import (
    STAGES,
    TABLE_HEADER,
    FrontRow,
    Recommendation,
    choose_spread,
    find_front,
    format_front,
    recommend,
    table_cells,
    write_front,
)
from compress.students.search_space import CostLimits, SearchSpace, ladder_points
from compress.students.search_study import (
    STARTUP_TRIALS,
    NumberedSampler,
    create_study,
    is_database,
    join_study,
    open_storage,
    own_name,
    require_same,
    retire_own_trials,
    work_through,
)
from compress.students.search_trial import SearchJob, make_row, make_rows
from compress.students.student_job import with_unlabelled
from compress.students.student_plan import StudentPlan, write_student_plan
from compress.students.student_stages import measure_stand_in, score_output_strides
from compress.yardstick import Score, score_onnx
from training.photos import PhotoSplit
from training.run_folder import Run
from training.unet import UNetPlan

CANDIDATES, FULL = "candidates", "front"
_JOURNAL = "journal.log"
Answer = TypeVar("Answer")
_TABLE_ROWS = 12
_POLL_SECONDS = 1.0
_FAILS_A_TRIAL = (DivergedError, GateError)
_OUT_OF_MEMORY = (MemoryError, torch.OutOfMemoryError)
# Configs that decide what a worker does and that it takes from the study: all but where things are and who works.
# Options that name a place are each worker's own.
_OF_THE_STUDY = ("data", "fit", "count", "time", "score", "budget", "distil", "search", "export")


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        rows: of the front: files where they are exported, candidates before.
        recommendation: which of them to take.
        best_bytes: of best.pt's weights in 32 bits.
        paths: front.csv, front.json and front.png.
    """

    rows: tuple[FrontRow, ...]
    recommendation: Recommendation
    best_bytes: int
    paths: tuple[Path, ...]


def begin_job(run: Run, photos: PhotoSplit, study: str | None) -> SearchJob:
    """What the candidates of a search share, its oracle asked.

    Raises:
        ConfigError: no network of the space meets the budgets.
    """
    # The answer follows from best.pt and the photographs: a run that redoes everything has just measured it.
    strides = list_output_strides(score_output_strides(replace(run, force=False), run.best_path, photos))
    job = _make_job(run, photos, study, strides)
    _require_possible(job)
    return job


def _make_job(run: Run, photos: PhotoSplit, study: str | None, output_strides: tuple[int, ...]) -> SearchJob:
    return SearchJob(
        run=run,
        checkpoint=run.best_path,
        given=photos,
        output_strides=output_strides,
        worker=own_name(run.folder),
        weights=_shared_folder(run, study) / "weights",
    )


def _shared_folder(run: Run, study: str | None) -> Path:
    if study is None or is_database(study):
        return run.folder / "study"
    return Path(study).expanduser().absolute().parent


def _require_possible(job: SearchJob) -> None:
    """Refuse budgets that no network of the space meets, with the smallest that there is."""
    space, limits = job.space, job.limits
    given = job.run.settings.budget.given()
    params, macs = job.original_cost
    measures = {
        "params": ("keep_params", "parameters", params),
        "macs": ("keep_macs", "multiply-accumulates", macs),
        "size_bytes": ("target_size", "bytes", None),
    }
    for measure, (name, unit, whole) in measures.items():
        most = getattr(limits, measure)
        least = int(getattr(space.cost(space.smallest(measure)), measure))
        if most is not None and least > most:
            option = f"--{option_name(name)}"
            share = f", {_round_up(least / whole):g} of best.pt's" if whole else ""
            why = f"allows {math.floor(most):,} {unit}, and the smallest network has {least:,}{share}"
            raise ConfigError("budget", option, why, "allow that at least")
    if not any(limits.are_met(**vars(space.cost(point))) for point in space.narrow_points()):
        asked = ", ".join(f"--{option_name(name)}" for name in given)
        raise ConfigError("budgets", None, f"no network meets all of them: {asked}", "loosen one of them")
    if limits.latency_ms is not None:
        _require_fast_enough(job, limits.latency_ms)


def _round_up(share: float) -> float:
    digits = 2 - math.ceil(math.log10(share))
    return math.ceil(share * 10.0**digits) / 10.0**digits


def _require_fast_enough(job: SearchJob, most: float) -> None:
    fastest = job.space.smallest("macs")
    _, latency_ms = measure_stand_in(fastest.network(), job.run.settings, job.time_alone)
    if latency_ms is not None and latency_ms > most:
        why = f"allows {format_number(most)} ms, and the smallest network takes {format_number(latency_ms)} ms here"
        raise ConfigError("budget", "--target-latency-ms", why, f"allow {format_number(1.1 * latency_ms)} ms at least")


def lead_or_assist(run: Run, photos: PhotoSplit, study: str | None, lead: Callable[[], Answer]) -> Answer | None:
    """The answer of `lead`, a search or a worker, in the main process; the others of torchrun help it train: None."""
    if process_count() == 1:
        return lead()
    if not is_main_process():
        _make_job(run, photos, study, ()).assist()
        return None
    try:
        with working_alone():
            return lead()
    finally:
        if not is_cut_off():
            share_answer(lambda: None)


def _what_fails_a_trial() -> tuple[type[Exception], ...]:
    """Errors that end a candidate and not the search.

    Of several processes one may be out of memory, and the others would wait for it: that ends all of them.
    """
    return _FAILS_A_TRIAL if started_processes() > 1 else (*_FAILS_A_TRIAL, *_OUT_OF_MEMORY)


def search(run: Run, photos: PhotoSplit, *, study: str | None = None) -> SearchResult:
    """Search, distil, export and measure: front/<name>/..., front.csv, front.json and front.png.

    Args:
        study: where other machines find it, see `open_storage`; None keeps it in the run folder, which has a study of
            its own for each set of options, so that one comes back to what is finished.
    Raises:
        ConfigError: the budgets cannot be met, or the study is about something else.
        ColorpressError: as the stages do; whatever is finished is gone on from the next time.
    """
    if run.force and study is not None:
        raise ConfigError("option", "--force", "does not go with --study, which others may use", "begin another one")
    job = begin_job(run, photos, study)
    sampler, identity = _make_sampler(run), job.identity()
    own = run.folder / "study" / sha256_bytes(json.dumps(identity, sort_keys=True).encode())[:12] / _JOURNAL
    if run.force:
        shutil.rmtree(own.parent, ignore_errors=True)
    storage = open_storage(study or str(own), timeout_s=run.settings.worker.worker_timeout, create=True)
    candidates, full = (create_study(storage, name, sampler, identity) for name in (CANDIDATES, FULL))
    leader = _Leader(job, candidates, full, time.monotonic())
    for each in (candidates, full):
        if count := retire_own_trials(each, job.worker):
            say(f"begun again: {count} of the {each.study_name} that an earlier process of this folder left")
    _begin(job, candidates)
    with _showing(leader) as show:
        factor = job.latency_factor(candidates.user_attrs["speed"])
        work_through(
            candidates,
            lambda trial: job.try_short(trial, factor),
            wanted=candidates.user_attrs["wanted"],
            catch=_what_fails_a_trial(),
            after=show,
        )
        leader.queue_full()

        def show_files() -> None:
            leader.publish()
            show()

        work_through(full, job.try_full, wanted=0, catch=_what_fails_a_trial(), after=show_files)
        # Once more, for the files whose latency was measured while other workers were busy.
        leader.publish(again=True)
    return leader.write(final=job.effort.front > 0)


def search_stage(run: Run, photos: PhotoSplit) -> StageRecord:
    """A search in the run folder as one stage of a whole run."""
    settings = run.settings

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        found = search(run, photos)
        say(found.recommendation.sentence)
        return [*found.paths, *(run.folder / row.file for row in found.rows if row.file)], summarize(found)

    used = {
        **_study_options(settings),
        **vars(settings.goal),
        **vars(settings.quantize),
        "machine": machine_key(),
        "threads": settings.machine.threads,
        **run.arch_key(),
        **run.data_key(replace(with_unlabelled(run, photos), test=())),
    }
    return run.do("search", action, inputs=[run.best_path], settings=used)


def _make_sampler(run: Run) -> NumberedSampler:
    return NumberedSampler(run.settings.data.seed, random=run.settings.search.search_sampler == "random")


def _begin(job: SearchJob, candidates: Study) -> None:
    if "options" not in candidates.user_attrs:
        candidates.set_user_attr("options", _study_options(job.run.settings))
    if "speed" not in candidates.user_attrs:
        candidates.set_user_attr("speed", job.describe_speed())
    if not candidates.get_trials(deepcopy=False):
        # A third of the candidates are a ladder of sizes, until the sampler knows enough to choose the others.
        counts = {
            "tpe": max(1, min(STARTUP_TRIALS, job.effort.trials // 3 + 1)),
            "random": 0,
            "ladder": job.effort.trials,
        }
        for point in ladder_points(job.space, job.limits, counts[job.run.settings.search.search_sampler]):
            candidates.enqueue_trial(point.parameters())
    # A ladder has as many rungs as it has, and nothing is drawn beside them.
    is_ladder = job.run.settings.search.search_sampler == "ladder"
    wanted = 0 if is_ladder else job.effort.trials
    # Last: workers wait for it.
    candidates.set_user_attr("wanted", wanted)


def _study_options(settings: Settings) -> dict[str, Any]:
    """The options that workers take from the study, by field name, as JSON-ready values."""
    configs: dict[str, Config] = {name: getattr(settings, name) for name in CONFIGS if name in _OF_THE_STUDY}
    return {
        each.name: getattr(config, each.name)
        for config in configs.values()
        for each in fields(config)
        if field_type(type(config), each) is not Path and getattr(config, each.name) is not None
    }


@dataclass(frozen=True)
class _Leader:
    """The process that began or goes on with a search: it alone queues, exports and writes the front.

    `files` are the rows of what is exported, by the student's name.
    """

    job: SearchJob
    candidates: Study
    full: Study
    started: float
    files: dict[str, list[FrontRow]] = field(default_factory=dict)

    @property
    def best_bytes(self) -> int:
        return 4 * self.job.original_cost[0]

    def rows(self) -> list[FrontRow]:
        """Every student that is finished, as far as it came: its files, or what it would be."""
        last = {row.name: row for row, _ in self._candidate_rows()}
        last |= {row.name: row for row in make_rows(self.full.get_trials(deepcopy=False), STAGES[1])}
        return [row for name, learned in last.items() for row in self.files.get(name, [learned])]

    def _candidate_rows(self) -> list[tuple[FrontRow, FrozenTrial]]:
        """Of the first study, each network once."""
        found: dict[UNetPlan, tuple[FrontRow, FrozenTrial]] = {}
        for trial in self.candidates.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            row = make_row(trial, STAGES[0])
            found.setdefault(row.point.network(), (row, trial))
        return list(found.values())

    def queue_full(self) -> None:
        """Queue the students of the front for a full distillation, but for those that were queued before.

        Raises:
            ConfigError: there is none.
        """
        rows = self._candidate_rows()
        if not rows:
            why = "failed or missed a budget, every one of them"
            raise ConfigError("candidates", None, why, "loosen the budgets, or give more --search-trials")
        trials = {row.name: trial for row, trial in rows}
        queued = {trial.user_attrs["number"] for trial in self.full.get_trials(deepcopy=False)}
        for row in choose_spread([row for row, _ in rows], self.job.effort.front):
            trial = trials[row.name]
            if trial.number not in queued:
                point = replace(row.point, crops=self.job.effort.full_crops).to_dict()
                known = {name: trial.user_attrs[name] for name in ("params", "macs", "size_bytes", "latency_ms")}
                self.full.enqueue_trial(trial.params, user_attrs={**known, "point": point, "number": trial.number})
        self.full.set_user_attr("queued_at", self.job.effort.trials)

    def publish(self, *, again: bool = False) -> None:
        """Export every student that learned to the end, pack and quantize it, and measure the files.

        Args:
            again: those that were published by this process too, for files measured while others were at work.
        """
        job = self.job
        # Trained 8-bit weights would take longer than all of the search; `colorpress quantize` has them.
        settings = replace(job.run.settings, qat=QatConfig(qat_crops=0))
        # By --force the study began anew; what is exported of it is never another one's.
        run = replace(job.run, settings=settings, force=False)
        for trial in self.full.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            row = make_row(trial, STAGES[1])
            if row.name in self.files and not again:
                continue
            folder = f"front/{row.name}"
            target = run.folder / folder / "model.pt"
            with muted():
                reason = f"candidate {trial.user_attrs['number']} of a search: {row.describe()}"
                plan = StudentPlan(row.point.network(), reason, settings={"point": row.point.to_dict()})
                write_student_plan(target.with_name("plan.json"), plan)
                weights = job.find_weights(trial)
                if not target.is_file() or sha256_file(target) != sha256_file(weights):
                    write_bytes(target, weights.read_bytes())
                export(run, target, folder)
                source = target.with_name("model.onnx")
                pack(run, source, variant_name(folder, "w8"))
                made = ["fp32", "w8"]
                if job.effort.int8 and quantize_each(run, [source], job.given):
                    made.append("int8")
                self.files[row.name] = [
                    self._measure(run, row, run.folder / variant_name(folder, precision) / "model.onnx", precision)
                    for precision in made
                ]

    def _is_alone(self) -> bool:
        """Whether no other worker runs a trial."""
        running = (TrialState.RUNNING,)
        return not any(
            trial.user_attrs.get("worker") != self.job.worker
            for study in (self.candidates, self.full)
            for trial in study.get_trials(deepcopy=False, states=running)
        )

    def _measure(self, run: Run, row: FrontRow, path: Path, precision: str) -> FrontRow:
        settings = run.settings

        def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
            score = score_onnx(self.job.yardstick, path, threads=settings.machine.threads)
            return [], {"latency_ms": self.job.time_alone(path), "score": without_nan(asdict(score))}

        used = {
            "machine": machine_key(),
            "alone": self._is_alone(),
            "threads": settings.machine.threads,
            "size": settings.time.bench_size[0],
            "eval_size": settings.score.eval_size,
            **run.data_key(replace(self.job.given, train=(), test=())),
        }
        name = f"measure-{path.parent.name}"
        result = run.do(name, action, inputs=[path, run.best_path], settings=used).result
        return replace(
            row,
            stage=STAGES[2],
            file=path.relative_to(run.folder).as_posix(),
            precision=precision,
            size_bytes=path.stat().st_size,
            latency_ms=result["latency_ms"],
            score=Score(**with_nan(result["score"])),
        )

    def write(self, *, final: bool = False) -> SearchResult:
        """Write the front as it is now; in the end of the exported files alone."""
        rows = [row for row in self.rows() if not final or row.file]
        demands = self.job.demands
        found = recommend(rows, demands)
        record = {
            "recommended": (found.row.file or found.row.name) if found.row else None,
            "sentence": found.sentence,
            "asked_for": [demand.option for demand in demands],
            "candidates": self.counts(),
            "seconds": round(time.monotonic() - self.started, 1),
        }
        paths = write_front(self.job.run.folder, rows, best_bytes=self.best_bytes, record=record)
        return SearchResult(tuple(find_front(rows)), found, self.best_bytes, paths)

    def counts(self) -> dict[str, int]:
        """Trials of the first study by what became of them."""
        states = [trial.state for trial in self.candidates.get_trials(deepcopy=False)]
        names = {
            "finished": TrialState.COMPLETE,
            "over a budget": TrialState.PRUNED,
            "failed": TrialState.FAIL,
            "running": TrialState.RUNNING,
            "waiting": TrialState.WAITING,
        }
        return {name: states.count(state) for name, state in names.items()}

    def newest(self) -> str:
        """The candidate that was finished last."""
        trials = [each for study in (self.candidates, self.full) for each in study.get_trials(deepcopy=False)]
        done = [trial for trial in trials if trial.state == TrialState.COMPLETE and trial.datetime_complete]
        last = max(done, key=lambda trial: str(trial.datetime_complete), default=None)
        return f"; newest: {make_row(last, STAGES[0]).describe()}" if last else ""

    def line(self) -> str:
        """How far the search is."""
        counts = self.counts()
        finished = f"{counts['finished']} of {self.job.effort.trials} candidates"
        others = [f"{count} {name}" for name, count in counts.items() if count and name not in ("finished", "waiting")]
        full = [trial.state for trial in self.full.get_trials(deepcopy=False)]
        learned = f"{full.count(TrialState.COMPLETE)} of {len(full)} to the end" if full else ""
        spent = f"{time.monotonic() - self.started:.0f} s"
        return ", ".join(filter(None, [finished, *others, learned, spent]))


@contextmanager
def _showing(leader: _Leader) -> Iterator[Callable[[], None]]:
    """A function that writes the front and shows it, to be called after each trial."""
    with live_table(TABLE_HEADER) as table:
        written = -1

        def show() -> None:
            nonlocal written
            rows = leader.rows()
            # A candidate that is refused takes less time than the chart.
            if len(rows) != written or leader.files:
                written = len(rows)
                leader.write()
                front = find_front(rows)[:_TABLE_ROWS]
                table([table_cells(row, leader.best_bytes) for row in front], f"{leader.line()}{leader.newest()}")

        yield show


def work(run: Run, photos: PhotoSplit, *, study: str) -> int:
    """Join a search as a worker: its candidates first, then the full distillations; the trials done here.

    Raises:
        ConfigError: no such study, or this worker has another best.pt, other photographs or other code.
    """
    timeout_s = run.settings.worker.worker_timeout
    storage = open_storage(study, timeout_s=timeout_s, create=False)
    sampler = _make_sampler(run)
    candidates, full = (join_study(storage, name, sampler) for name in (CANDIDATES, FULL))
    # The oracle's answer is the study's: rounding differs between machines.
    strides = candidates.user_attrs["identity"]["space"]["output_strides"]
    job = _make_job(run, photos, study, tuple(strides))
    identity = job.identity()
    for each in (candidates, full):
        require_same(each, identity)
        retire_own_trials(each, job.worker)
    factor = job.latency_factor(_wait_for(candidates, "speed", timeout_s))
    wanted = _wait_for(candidates, "wanted", timeout_s)

    def show(each: Study) -> None:
        own = [trial for trial in each.get_trials(deepcopy=False) if trial.user_attrs.get("worker") == job.worker]
        last = own[-1] if own else None
        if last is not None and last.state == TrialState.COMPLETE:
            say(f"{each.study_name} {last.number}: {make_row(last, STAGES[0]).describe()}")

    work_through(
        candidates,
        lambda trial: job.try_short(trial, factor),
        wanted=wanted,
        catch=_what_fails_a_trial(),
        after=lambda: show(candidates),
    )
    try:
        _wait_for(full, "queued_at", timeout_s)
    except ConfigError:
        warn("the search that this worker joined has not gone on to its front: start it again, then this worker")
    work_through(full, job.try_full, wanted=0, catch=_what_fails_a_trial(), after=lambda: show(full))
    return sum(
        trial.user_attrs.get("worker") == job.worker and trial.state == TrialState.COMPLETE
        for each in (candidates, full)
        for trial in each.get_trials(deepcopy=False)
    )


def _wait_for(study: Study, name: str, timeout_s: float) -> Any:
    ends = time.monotonic() + timeout_s
    while name not in study.user_attrs:
        if time.monotonic() > ends:
            raise ConfigError("study", study.study_name, "is not ready", "start `colorpress compress --study` again")
        time.sleep(_POLL_SECONDS)
    return study.user_attrs[name]


def read_worker_options(study: str, timeout_s: int) -> dict[str, Any]:
    """The options that a worker takes from the study it joins, by field name.

    Raises:
        ConfigError: there is no such study.
    """
    storage = open_storage(study, timeout_s=timeout_s, create=False)
    joined = join_study(storage, CANDIDATES, NumberedSampler(0))
    options: dict[str, Any] = _wait_for(joined, "options", timeout_s)
    # Checked as options are, and without what names files or code.
    return {name: value for name, value in options.items() if name not in PATH_OPTIONS}


def describe_space(space: SearchSpace, limits: CostLimits) -> list[str]:
    """The space and the limits, a line each."""
    lines = [f"{name}: {values}" for name, values in space.describe().items()]
    lines.append(f"points: {space.count_points():,}")
    shown = {
        "parameters": limits.params and format_count(int(limits.params)),
        "multiply-accumulates": limits.macs and format_count(int(limits.macs)),
        "file": limits.size_bytes and format_bytes(int(limits.size_bytes)),
        "latency": limits.latency_ms and f"{format_number(limits.latency_ms)} ms",
    }
    lines.append("at most: " + ", ".join(f"{value} {name}" for name, value in shown.items() if value))
    smallest = space.cost(space.smallest("size_bytes"))
    lines.append(
        f"smallest network: about {format_bytes(smallest.size_bytes)}, {format_count(smallest.params)} parameters"
    )
    return lines


def describe_plan(run: Run, photos: PhotoSplit, *, study: str | None) -> tuple[list[str], dict[str, Any]]:
    """What a search would do, as lines and as JSON-ready values: space, limits, candidates, estimated time.

    Raises:
        ConfigError: the budgets cannot be met.
    """
    job = begin_job(run, photos, study)
    estimate = estimate_search(job)
    asked = ", ".join(demand.option for demand in job.demands) or "nothing: the whole front"
    lines = [*describe_space(job.space, job.limits), f"asked for: {asked}", *format_estimate(estimate)]
    return lines, {
        "space": {**job.space.describe(), "points": job.space.count_points()},
        "limits": vars(job.limits),
        "smallest": vars(job.space.cost(job.space.smallest("size_bytes"))),
        "asked_for": [demand.option for demand in job.demands],
        **estimate,
    }


def summarize(found: SearchResult) -> dict[str, Any]:
    """A finished search as JSON-ready values."""
    row = found.recommendation.row
    return {
        "recommended": (row.file or row.name) if row else None,
        "sentence": found.recommendation.sentence,
        "front": [
            {
                "name": each.name,
                "file": each.file,
                "precision": each.precision,
                "size_bytes": each.size_bytes,
                "latency_ms": each.latency_ms,
                "l1_delta_pct": None if math.isnan(each.score.l1_delta_pct) else each.score.l1_delta_pct,
                "retained_colour": None if math.isnan(each.score.retained_colour) else each.score.retained_colour,
            }
            for each in found.rows
        ],
        "files": [str(path) for path in found.paths],
    }


def result_lines(found: SearchResult) -> list[str]:
    """A finished search in lines for a terminal."""
    table = format_front(found.rows, found.best_bytes).splitlines()
    return [*table, "", found.recommendation.sentence, *(str(path) for path in found.paths)]
