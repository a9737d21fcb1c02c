"""`colorpress compress`: say the budget, get the model. Two Optuna studies, and the files of the front they find.

The first study looks for candidates, each after a short distillation; the second distils what is queued from its front
to the end, and best.pt, pruned. Workers on any machine join both. The process that began the search then
exports, packs, quantizes and measures, one file after another.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import optuna
import torch
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from colorpress.core import processes
from colorpress.core.config import PATH_OPTIONS, QatConfig, Settings
from colorpress.core.console import live_table, muted, say, warn
from colorpress.core.errors import ConfigError, DivergedError, GateError
from colorpress.core.files import sha256_bytes, sha256_file, write_bytes
from colorpress.core.machine import machine_key
from colorpress.core.reading import as_damaged
from colorpress.core.stages import StageRecord
from colorpress.core.text import format_number
from compress.budgets import Limit
from compress.export_stages import export, pack
from compress.int8.int8_stage import quantize_each
from compress.measures import MEASURES, Scores
from compress.precisions import variant_name
from compress.prune_plan import write_plan
from compress.students import search_front, search_study, search_trial
from compress.students.search_front import ControlRow, FrontRow, Recommendation
from compress.students.search_space import PrunedPoint, ladder_points
from compress.students.search_trial import SearchJob, make_row, refused_figures
from compress.students.student_job import Oracle, StudentJob, ask_oracle, list_output_strides, with_unlabelled
from compress.students.student_plan import StudentPlan, write_student_plan
from compress.yardstick import answering_of
from export.predictors import OnnxPredictor
from training.photo_split import PhotoSplit
from training.run_folder import Run

CANDIDATES, FULL = "candidates", "front"
_TABLE_ROWS = 12
_POLL_SECONDS = 1.0
# What became of a candidate, in words.
_STATES = {
    TrialState.COMPLETE: "finished", TrialState.PRUNED: "over a budget", TrialState.FAIL: "failed",
    TrialState.RUNNING: "running", TrialState.WAITING: "waiting",
}  # fmt: skip
_SAME = "the same as others"
# Of the second study: what will come to nothing, and what may still come.
_LOST, _UNDER_WAY = (TrialState.PRUNED, TrialState.FAIL), (TrialState.RUNNING, TrialState.WAITING)
# Refused by a limit that nobody asked for.
_TOO_LARGE = "larger than is tried without a budget"
# Configs that decide what a worker does and that it takes from the study: all but where things are and who works.
# Options that name a place are each worker's own.
_OF_THE_STUDY = ("data", "fit", "count", "time", "score", "budget", "distil", "search", "export")


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        rows: of the front: files where they are exported, candidates before.
        controls: what sees no picture, beside them.
        recommendation: which of them to take.
        best_bytes: of best.pt's weights in 32 bits.
        paths: front.csv, front.json and front.png.
    """

    rows: tuple[FrontRow, ...]
    controls: tuple[ControlRow, ...]
    recommendation: Recommendation
    best_bytes: int
    paths: tuple[Path, ...]


def begin_job(run: Run, photos: PhotoSplit, study: str | None) -> tuple[SearchJob, Oracle]:
    """What the candidates of a search share, and what its oracle said.

    Raises:
        ConfigError: no network of the space meets the budgets.
    """
    # The answer follows from best.pt and the photographs: a run that redoes everything has just measured it.
    oracle, _ = ask_oracle(StudentJob(replace(run, force=False), photos))
    job = _make_job(run, photos, study, list_output_strides(oracle.strides), oracle.strength.measure.name)
    _require_possible(job)
    return job, oracle


def _make_job(
    run: Run, photos: PhotoSplit, study: str | None, output_strides: Sequence[int], measure: str
) -> SearchJob:
    folder = run.folder / "study"
    if study is not None and not search_study.is_database(study):
        folder = Path(study).expanduser().absolute().parent
    # By machine and run folder, so that a worker started again has the same name.
    worker = f"{socket.gethostname()}:{run.folder.resolve()}"
    return SearchJob(run, photos, tuple(output_strides), measure, worker, folder / "weights")


def _require_possible(job: SearchJob) -> None:
    """Refuse budgets that no network of the space meets, with the smallest that there is."""
    space, limits = job.space, job.limits
    for limit in limits:
        if limit.figure != "latency_ms":
            least = space.cost(space.smallest(limit.figure))[limit.figure]
            if least > limit.bound:
                share = f", {_round_up(least / limit.whole):g} of best.pt's" if limit.whole else ""
                why = f"allows {math.floor(limit.bound):,} {limit.unit}, and the smallest network has {least:,}{share}"
                raise ConfigError("budget", limit.option, why, "allow that at least")
    if not space.fitting(space.narrow_points(), limits):
        asked = ", ".join(limit.option for limit in limits if limit.given)
        raise ConfigError("budgets", None, f"no network meets all of them: {asked}", "loosen one of them")
    for limit in limits:
        if limit.figure == "latency_ms":
            _, latency_ms = job.measure(space.smallest("macs").network())
            if latency_ms > limit.bound:
                allowed, least_ms = format_number(limit.bound), format_number(latency_ms)
                why = f"allows {allowed} ms, and the smallest network takes {least_ms} ms here"
                raise ConfigError("budget", limit.option, why, f"allow {format_number(1.1 * latency_ms)} ms at least")


def _round_up(share: float) -> float:
    digits = 2 - math.ceil(math.log10(share))
    return math.ceil(share * 10.0**digits) / 10.0**digits


def lead_or_assist(run: Run, photos: PhotoSplit, study: str | None, lead: Callable[[], None]) -> None:
    """Call `lead`, a search or a worker, in the main process; the others of torchrun help it train."""
    if processes.process_count() == 1:
        lead()
    elif not processes.is_main_process():
        search_trial.assist(_make_job(run, photos, study, (), ""))
    else:
        try:
            with processes.working_alone():
                lead()
        finally:
            if not processes.is_cut_off():
                processes.share_answer(lambda: None)


def _what_fails_a_trial() -> tuple[type[Exception], ...]:
    """Errors that end a candidate and not the search.

    Of several processes one may be out of memory, and the others would wait for it: that ends all of them.
    """
    out_of_memory = (MemoryError, torch.OutOfMemoryError) if processes.started_processes() == 1 else ()
    return (DivergedError, GateError, *out_of_memory)


@dataclass(frozen=True)
class _Search:
    """What the process that began or goes on with a search leads: it alone queues, exports and writes the front.

    Attributes:
        oracle: how strong best.pt is.
        candidates, full: the two studies.
        started: on the monotonic clock, in seconds.
        files: the rows of what is exported, by the network's name.
    """

    job: SearchJob
    oracle: Oracle
    candidates: Study
    full: Study
    started: float
    files: dict[str, list[FrontRow]] = field(default_factory=dict)

    @property
    def best_bytes(self) -> int:
        """Of best.pt's weights in 32 bits."""
        return 4 * self.job.original_cost["params"]


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
    led = _open_search(*begin_job(run, photos, study), study)
    _begin(led.job, led.candidates)
    with live_table(search_front.table_header(led.job.decided_by)) as table:
        shown = -1

        def show(*_: object) -> None:
            nonlocal shown
            rows = _list_rows(led)
            # A candidate that is refused takes less time than the chart.
            if len(rows) != shown or led.files:
                shown = len(rows)
                _write_result(led, rows)
                front = search_front.front_of(rows)[:_TABLE_ROWS]
                table([search_front.table_cells(row, led.best_bytes) for row in front], _describe_progress(led))

        def publish(*_: object) -> None:
            _queue_full(led)  # of what a pruned network that was over a budget, or failed, leaves room for
            _publish(led, (trial for trial in _finished(led.full) if make_row(trial).name not in led.files))
            show()

        terms = _read_terms(led.job, led.candidates)
        _try_short(led.job, led.candidates, terms, after=show)
        # Again where it was another worker's that left room.
        while _queue_full(led):
            _try_full(led.job, led.full, terms, after=publish)
        # Once more, for the files whose latency was measured while other workers were busy.
        _publish(led, _finished(led.full))
    rows = _list_rows(led)
    return _write_result(led, [row for row in rows if row.file] if led.job.effort.front else rows)


class _Terms(NamedTuple):
    """Of whoever began a search: how many candidates are wanted, and what latencies measured here are multiplied by."""

    wanted: int
    factor: float


def _read_terms(job: SearchJob, candidates: Study) -> _Terms:
    terms = _wait_for(candidates, "terms", job.run.settings.worker.worker_timeout)
    with as_damaged("study", candidates.study_name, "begin another one: give another --study"):
        wanted, speed = int(terms["wanted"]), {name: terms["speed"][name] for name in ("machine", "reference_ms")}
    return _Terms(wanted, search_trial.find_latency_factor(job, speed))


def _try_short(job: SearchJob, candidates: Study, terms: _Terms, after: Callable[[Study, FrozenTrial], None]) -> None:
    """Work through the first study."""
    search_study.work_through(
        candidates,
        lambda trial: search_trial.try_short(job, trial, terms.factor),
        wanted=terms.wanted,
        catch=_what_fails_a_trial(),
        after=after,
    )


def _try_full(job: SearchJob, full: Study, terms: _Terms, after: Callable[[Study, FrozenTrial], None]) -> None:
    """Work through the second study."""

    def objective(trial: optuna.Trial) -> Sequence[float]:
        return search_trial.try_full(job, trial, terms.factor)

    search_study.work_through(full, objective, catch=_what_fails_a_trial(), after=after)


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


def _study_options(settings: Settings) -> dict[str, Any]:
    """The options that workers take from the study, by field name, as JSON-ready values."""
    return {
        name: value
        for config in _OF_THE_STUDY
        for name, value in vars(getattr(settings, config)).items()
        if name not in PATH_OPTIONS and value is not None
    }


def _open_search(job: SearchJob, oracle: Oracle, study: str | None) -> _Search:
    """Both studies, begun or gone on with."""
    run, identity = job.run, search_trial.make_identity(job)
    own = run.folder / "study" / sha256_bytes(json.dumps(identity, sort_keys=True).encode())[:12] / "journal.log"
    if run.force:
        shutil.rmtree(own.parent, ignore_errors=True)
    storage = search_study.open_storage(study or str(own), timeout_s=run.settings.worker.worker_timeout, create=True)
    sampler = _make_sampler(run)
    candidates, full = (search_study.create_study(storage, name, sampler, identity) for name in (CANDIDATES, FULL))
    for each in (candidates, full):
        search_study.check_trials(each, _read_trial)
        if count := search_study.retire_own_trials(each, job.worker):
            say(f"begun again: {count} of the {each.study_name} that an earlier process of this folder left")
    return _Search(job, oracle, candidates, full, time.monotonic())


def _make_sampler(run: Run) -> search_study.NumberedSampler:
    return search_study.NumberedSampler(run.settings.data.seed, random=run.settings.search.search_sampler == "random")


def _begin(job: SearchJob, candidates: Study) -> None:
    """Queue the first candidates, and say to workers, which wait for it, what they need to know."""
    trials, sampler = job.effort.trials, job.run.settings.search.search_sampler
    if not candidates.get_trials(deepcopy=False):
        # A third of the candidates are a ladder of sizes, until the sampler knows enough to choose the others.
        startup = max(1, min(search_study.STARTUP_TRIALS, trials // 3 + 1))
        count = {"tpe": startup, "random": 0, "ladder": trials}[sampler]
        for point in ladder_points(job.space, job.limits, count):
            candidates.enqueue_trial(point.parameters())
    known = candidates.user_attrs.get("terms", {})
    terms = {
        "options": {**_study_options(job.run.settings), **vars(job.run.settings.worker)},
        "speed": known.get("speed") or search_trial.describe_speed(job),
        # A ladder has as many rungs as it has, and nothing is drawn beside them.
        "wanted": 0 if sampler == "ladder" else trials,
    }
    candidates.set_user_attr("terms", terms)


def _read_trial(trial: FrozenTrial) -> None:
    """What every later use of a finished trial reads."""
    make_row(trial).describe()
    if not all(type(trial.user_attrs[name]) is str for name in ("weights", "network")):
        raise TypeError("a hash is no text")


def _finished(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _list_rows(led: _Search) -> list[FrontRow]:
    """Every network that is finished, as far as it came: its files, or what it would be."""
    last = {row.name: row for row in _list_candidates(led)}
    last |= {row.name: row for row in (make_row(trial, search_front.STAGES[1]) for trial in _finished(led.full))}
    return [row for name, learned in last.items() for row in led.files.get(name, [learned])]


def _list_candidates(led: _Search) -> dict[FrontRow, FrozenTrial]:
    """Of the first study, each network once."""
    found: dict[str, FrozenTrial] = {}
    for trial in _finished(led.candidates):
        found.setdefault(trial.user_attrs["network"], trial)
    return {make_row(trial): trial for trial in found.values()}


def _queue_full(led: _Search) -> bool:
    """Queue for a full distillation, but for those that were queued before: pruned networks, and of the front.

    Returns:
        Whether any waits for it now, from this call or an earlier one.
    Raises:
        ConfigError: there is no candidate.
    """
    candidates, job = _list_candidates(led), led.job
    if not candidates:
        why = "failed or missed a budget, every one of them"
        raise ConfigError("candidates", None, why, "loosen the budgets, or give more --search-trials")
    known = {trial.user_attrs["network"]: trial.state for trial in _queued(led.full)}
    # Those over a budget, or that failed, leave their place to the next.
    pruned = (
        {**counts, "network": sha256_bytes(repr(point).encode()), "point": point.to_dict()}
        for point, counts in job.list_pruned()
    )
    wanted = [*islice((each for each in pruned if known.get(each["network"]) not in _LOST), job.effort.pruned_places)]
    for row in search_front.choose_spread(list(candidates), job.effort.front - len(wanted)):
        trial = candidates[row]
        costs = {name: trial.user_attrs[name] for name in (*search_trial.COSTS, "network")}
        longer = replace(row.point, crops=job.effort.full_crops)
        wanted.append({**costs, "point": longer.to_dict(), "number": trial.number})
    for each in wanted:
        if each["network"] not in known:
            led.full.enqueue_trial({}, user_attrs=each)
    led.full.set_user_attr("queued_at", job.effort.trials)
    return any(trial.state in _UNDER_WAY for trial in _queued(led.full))


def _queued(full: Study) -> list[FrozenTrial]:
    """Of the second study what was queued: where two workers ask for the last one, Optuna gives one of them nothing."""
    return [trial for trial in full.get_trials(deepcopy=False) if "network" in trial.user_attrs]


def _publish(led: _Search, trials: Iterable[FrozenTrial]) -> None:
    """Export networks that learned to the end; pack, quantize and measure."""
    job = led.job
    # Trained 8-bit weights would take longer than all of the search; `colorpress quantize` has them.
    settings = replace(job.run.settings, qat=QatConfig(qat_crops=0))
    # By --force the study began anew; what is exported of it is never another one's.
    run = replace(job.run, settings=settings, force=False)
    for trial in trials:
        row = make_row(trial, search_front.STAGES[1])
        with muted():
            led.files[row.name] = _publish_one(led, run, trial, row)


def _publish_one(led: _Search, run: Run, trial: FrozenTrial, row: FrontRow) -> list[FrontRow]:
    folder = f"front/{row.name}"
    target = run.folder / folder / "model.pt"
    reason = f"{row.name} of a search: {row.describe()}"
    if isinstance(row.point, PrunedPoint):
        pruning = led.job.prune_plan(row.point)
        write_plan(target.with_name("plan.json"), replace(pruning, settings={**pruning.settings, "reason": reason}))
    else:
        plan = StudentPlan(row.point.network(), reason, settings={"point": row.point.to_dict()})
        write_student_plan(target.with_name("plan.json"), plan)
    weights = search_trial.find_weights(led.job, trial)
    if not target.is_file() or sha256_file(target) != sha256_file(weights):
        write_bytes(target, weights.read_bytes())
    export(run, target, folder)
    source = target.with_name("model.onnx")
    pack(run, source, variant_name(folder, "w8"))
    made = ["fp32", "w8"]
    if led.job.effort.int8 and quantize_each(run, [source], led.job.given):
        made.append("int8")
    return [
        _measure_file(led, run, replace(row, file=f"{variant_name(folder, each)}/model.onnx", precision=each))
        for each in made
    ]


def _measure_file(led: _Search, run: Run, row: FrontRow) -> FrontRow:
    """Its bytes, its latency, and what it is worth on the photographs that choose and on the others."""
    settings, path, job = run.settings, run.folder / row.file, led.job

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        answering = answering_of(OnnxPredictor(path, threads=settings.machine.threads))
        return [], {"latency_ms": job.time_alone(path), **job.jury.score(answering).to_dict()}

    others_run = any(
        trial.user_attrs.get("worker") != led.job.worker
        for study in (led.candidates, led.full)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
    )
    used = {
        "machine": machine_key(),
        "alone": not others_run,
        "threads": settings.machine.threads,
        "size": settings.time.bench_size[0],
        **run.arch_key(),
        **job.data_key(learns=False, confirms=True),
    }
    result = run.do(f"measure-{path.parent.name}", action, inputs=[path, run.best_path], settings=used).result
    return replace(
        row,
        stage=search_front.STAGES[2],
        size_bytes=path.stat().st_size,
        latency_ms=result["latency_ms"],
        scores=Scores.of(result),
    )


def _write_result(led: _Search, rows: Sequence[FrontRow]) -> SearchResult:
    """Write the front as it is now."""
    job = led.job
    found = search_front.recommend(rows, job.demands)
    record = {
        "recommended": found.label,
        "sentence": found.sentence,
        "asked_for": list(map(str, job.demands)),
        "measure": job.decided_by,
        "strength": led.oracle.strength.to_dict(),
        "candidates": count_candidates(led.candidates.get_trials(deepcopy=False), job.limits),
        "seconds": round(time.monotonic() - led.started, 1),
    }
    controls = job.controls
    paths = search_front.write_front(job.run.folder, rows, controls, best_bytes=led.best_bytes, record=record)
    return SearchResult(tuple(search_front.front_of(rows)), controls, found, led.best_bytes, paths)


def count_candidates(trials: Sequence[FrozenTrial], limits: Sequence[Limit]) -> dict[str, int]:
    """Trials of the first study by what became of them, in words.

    Args:
        limits: that they had to keep.
    """
    counts = dict.fromkeys([*_STATES.values(), _TOO_LARGE, _SAME], 0)
    asked = {limit.figure for limit in limits if limit.given}
    for trial in trials:
        is_too_large = trial.state is TrialState.PRUNED and not asked & set(refused_figures(trial))
        is_same = trial.state is TrialState.COMPLETE and search_study.SAME_AS in trial.user_attrs
        counts[_TOO_LARGE if is_too_large else _SAME if is_same else _STATES[trial.state]] += 1
    return counts


def _describe_progress(led: _Search) -> str:
    """How far the search is, and the candidate that was finished last."""
    counts = count_candidates(led.candidates.get_trials(deepcopy=False), led.job.limits)
    parts = [f"{counts['finished']} of {led.job.effort.trials} candidates"]
    parts += [f"{count} {name}" for name, count in counts.items() if count and name not in ("finished", "waiting")]
    if full := len([trial for trial in _queued(led.full) if trial.state not in _LOST]):
        parts.append(f"{len(_finished(led.full))} of {full} to the end")
    parts.append(f"{time.monotonic() - led.started:.0f} s")
    done = [*_finished(led.candidates), *_finished(led.full)]
    last = max(done, key=lambda trial: str(trial.datetime_complete), default=None)
    return f"{', '.join(parts)}{f'; newest: {make_row(last).describe()}' if last else ''}"


def work(run: Run, photos: PhotoSplit, *, study: str) -> int:
    """Join a search as a worker: its candidates first, then the full distillations; the trials done here.

    Raises:
        ConfigError: no such study, or this worker has another best.pt, other photographs or other code.
    """
    timeout_s = run.settings.worker.worker_timeout
    storage = search_study.open_storage(study, timeout_s=timeout_s, create=False)
    sampler = _make_sampler(run)
    candidates, full = (search_study.join_study(storage, name, sampler) for name in (CANDIDATES, FULL))
    # The oracle's answer is the study's: rounding differs between machines.
    with as_damaged("study", candidates.study_name, "begin another one: give another --study"):
        asked = candidates.user_attrs["identity"]
        output_strides = [int(stride) for stride in asked["space"]["output_strides"]]
        measure = str(asked.get("measure", ""))
    job = _make_job(run, photos, study, output_strides, measure)
    identity = search_trial.make_identity(job)
    for each in (candidates, full):
        search_study.require_same(each, identity)
        search_study.check_trials(each, _read_trial)
        search_study.retire_own_trials(each, job.worker)

    def show(joined: Study, trial: FrozenTrial) -> None:
        if trial.state == TrialState.COMPLETE:
            say(f"{joined.study_name} {trial.number}: {make_row(trial).describe()}")

    terms = _read_terms(job, candidates)
    _try_short(job, candidates, terms, after=show)
    try:
        _wait_for(full, "queued_at", timeout_s)
    except ConfigError:
        warn("the search that this worker joined has not gone on to its front: start it again, then this worker")
    _try_full(job, full, terms, after=show)
    done = [*_finished(candidates), *_finished(full)]
    return sum(trial.user_attrs.get("worker") == job.worker for trial in done)


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
    storage = search_study.open_storage(study, timeout_s=timeout_s, create=False)
    joined = search_study.join_study(storage, CANDIDATES, search_study.NumberedSampler(0))
    terms = _wait_for(joined, "terms", timeout_s)
    with as_damaged("study", joined.study_name, "begin another one: give another --study"):
        # Checked as options are, and without what names files or code.
        return {name: value for name, value in terms["options"].items() if name not in PATH_OPTIONS}


def summarize(found: SearchResult) -> dict[str, Any]:
    """A finished search as JSON-ready values."""
    names = (
        "name", "file", "precision", "size_bytes", "latency_ms", "measure", "l1_delta_pct", *MEASURES,
        *search_front.CONFIRMED,
    )  # fmt: skip
    return {
        "recommended": found.recommendation.label,
        "sentence": found.recommendation.sentence,
        "front": [{name: figures[name] for name in names} for figures in (row.figures() for row in found.rows)],
        "files": [str(path) for path in found.paths],
    }


def result_lines(found: SearchResult) -> list[str]:
    """A finished search in lines for a terminal."""
    table = search_front.format_front(found.rows, found.best_bytes, found.controls)
    return [*table, "", found.recommendation.sentence, *(str(path) for path in found.paths)]
