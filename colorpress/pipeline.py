"""The stages in order, each one skipped when it is up to date: photographs -> best.pt -> variants -> report.

Run folder: best.pt and what training and ranking say about it, one folder per variant (best, best-int8, pruned,
pruned-int8, auto, auto-int8, auto-w8), the front of a search, the benchmark, the report, and `run.json`, written last.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.also import find_also
from benchmarks.left_out import LeftOut, going_on, without_left_out
from benchmarks.report.page import report
from benchmarks.suite import benchmark, require_measured
from benchmarks.variants import list_variants
from colorpress import __version__
from colorpress.browser import REPORT
from colorpress.core.config import NO_SEARCH
from colorpress.core.files import sha256_file, write_json
from colorpress.core.machine import describe_machine
from colorpress.core.stages import RUN_RECORD, StageRecord
from colorpress.deploy_stages import deploy
from compress.export_stages import export, export_for_phones
from compress.int8.int8_stage import quantize_each
from compress.precisions import variant_name
from compress.prune_stage import prune, read_given_plan
from compress.ranking_stages import rank, rank_views
from compress.students.search_stages import search_stage
from compress.students.student_plan import read_student_network
from compress.students.student_stages import STUDENT, make_student, pack_student
from training.curve_prose import explain
from training.original import adopt_checkpoint, read_named, train
from training.photo_split import PhotoSplit
from training.run_folder import Run, find_photos


@dataclass(frozen=True)
class RunResult:
    """A complete run: the report, every stage's record, and what could not be made."""

    folder: Path
    report_path: Path
    stages: tuple[StageRecord, ...]
    left_out: tuple[LeftOut, ...] = ()

    def raise_faults(self) -> None:
        """Raise what an option forbade, or a fault of this program, once everything else is done."""
        for each in self.left_out:
            if not each.is_of_the_network:
                raise each.error


def run_pipeline(run: Run, *, checkpoint: Path | None = None, argv: Sequence[str] = ()) -> RunResult:
    """Everything from photographs (or from `checkpoint`) to `report.html`.

    What this network cannot be made into is left out and is a row that says why, in benchmark and report: students need
    nothing but its answers, whatever it is.

    Args:
        checkpoint: a trained model to start from; it is copied into the run folder. None trains one.
        argv: the command line, for the record.
    Raises:
        ColorpressError: as the stages do, where nothing at all could be made or measured; what is finished stays and
            is skipped the next time.
    """
    started = datetime.now(UTC)
    (run.folder / RUN_RECORD).unlink(missing_ok=True)
    _read_given(run, checkpoint)
    photos = find_photos(run)
    also = find_also(run, photos)  # before the hours that a mistyped folder would cost
    # What cannot be used is nothing that other stages should take from this folder.
    run.write_settings()
    stages = [train(run, photos)] if checkpoint is None else []
    adopt_checkpoint(run, checkpoint, photos)
    left_out: list[LeftOut] = []
    with going_on(left_out, "ranking"):
        stages += [rank(run, run.best_path), rank_views(run, run.best_path, photos)]
    stages += explain(run)
    with going_on(left_out, "best"):
        stages.append(export(run, run.best_path, "best"))
        stages += _for_phones(run, run.best_path, "best", photos, left_out)
        stages += _quantize(run, "best", photos, left_out)
    with going_on(left_out, "pruned.pt"):
        stages.append(prune(run, run.best_path, photos))
        with going_on(left_out, "pruned"):
            stages.append(export(run, run.folder / "pruned" / "model.pt", "pruned"))
            stages += _for_phones(run, run.folder / "pruned" / "model.pt", "pruned", photos, left_out)
            stages += _quantize(run, "pruned", photos, left_out)
    with going_on(left_out, f"{STUDENT}.pt"):
        stages += make_student(run, photos, STUDENT)
        with going_on(left_out, STUDENT):
            stages.append(export(run, run.folder / STUDENT / "model.pt", STUDENT))
            stages += _for_phones(run, run.folder / STUDENT / "model.pt", STUDENT, photos, left_out)
            stages += _quantize(run, STUDENT, photos, left_out)
            with going_on(left_out, variant_name(STUDENT, "w8")):
                stages.append(pack_student(run, STUDENT))
    if run.settings.search.search_effort != NO_SEARCH:
        with going_on(left_out, "front"):
            stages.append(search_stage(run, photos))
    variants = without_left_out(list_variants(run), left_out)
    if len(variants) == 1:  # best.pt alone: why it was not even exported says most
        raise next(each.error for each in left_out if each.name == "best")
    measured = benchmark(run, variants, photos, also, left_out)
    stages.append(measured)
    for exported in (each.name for each in variants if each.path.suffix == ".onnx"):
        with going_on(left_out, f"{exported}/colorizer.onnx"):
            stages.append(deploy(run, exported, photos.test))
    stages.append(report(run, argv))
    require_measured(run, measured)
    write_run_record(run, stages, started, argv, left_out)
    return RunResult(run.folder, run.folder / REPORT, tuple(stages), tuple(left_out))


def _quantize(run: Run, variant: str, photos: PhotoSplit, left_out: list[LeftOut]) -> list[StageRecord]:
    with going_on(left_out, variant_name(variant, "int8")):
        return quantize_each(run, [run.folder / variant / "model.onnx"], photos)
    return []


def _for_phones(
    run: Run, checkpoint: Path, variant: str, photos: PhotoSplit, left_out: list[LeftOut]
) -> Sequence[StageRecord]:
    with going_on(left_out, f"{variant} for phones"):
        return export_for_phones(run, checkpoint, variant, photos.train)
    return ()


def _read_given(run: Run, checkpoint: Path | None) -> None:
    """What the user names is read before all photographs are, and before the hours that a mistyped name would cost.

    Raises:
        ConfigError, InputError: as `read_named`; or a plan is none.
    """
    read_named(run, checkpoint)
    read_given_plan(run)
    if given := run.settings.student.student_plan:
        read_student_network(given)


def write_run_record(
    run: Run, stages: Sequence[StageRecord], started: datetime, argv: Sequence[str], left_out: Sequence[LeftOut] = ()
) -> Path:
    """Write run.json, the sign that the run is complete."""
    record = {
        "status": "complete",
        "colorpress": __version__,
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(argv),
        "machine": describe_machine(),
        "settings": json.loads(json.dumps(asdict(run.settings), default=str)),  # paths as texts
        "stages": {stage.name: {"seconds": stage.seconds, "skipped": stage.skipped, "result": stage.result}
                   for stage in stages},
        "left_out": {each.name: each.why for each in left_out},
        "artifacts": {"best.pt": sha256_file(run.best_path)}
        | {path: digest for stage in stages for path, digest in stage.outputs.items()},
    }  # fmt: skip
    return write_json(run.folder / RUN_RECORD, record)
