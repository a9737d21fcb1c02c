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
from benchmarks.report.page import report
from benchmarks.suite import benchmark, require_measured
from benchmarks.variants import list_variants
from colorpress import __version__
from colorpress.browser import REPORT
from colorpress.core.config import NO_SEARCH
from colorpress.core.files import sha256_file, write_json
from colorpress.core.machine import describe_machine
from colorpress.core.stages import RUN_RECORD, StageRecord
from colorpress.deploy_stages import deploy, exported_variants
from compress.export_stages import export
from compress.int8.int8_stage import quantize_each
from compress.prune_stage import prune
from compress.ranking_stages import rank, rank_views
from compress.students.search_stages import search_stage
from compress.students.student_stages import distil_student
from training.curve_prose import explain
from training.original import adopt_checkpoint, train
from training.run_folder import Run, find_photos


@dataclass(frozen=True)
class RunResult:
    """A complete run: the report, and every stage's record."""

    folder: Path
    report_path: Path
    stages: tuple[StageRecord, ...]


def run_pipeline(run: Run, *, checkpoint: Path | None = None, argv: Sequence[str] = ()) -> RunResult:
    """Everything from photographs (or from `checkpoint`) to `report.html`.

    Args:
        checkpoint: a trained model to start from; it is copied into the run folder. None trains one.
        argv: the command line, for the record.
    Raises:
        ColorpressError: as the stages do; what is finished stays and is skipped the next time.
    """
    started = datetime.now(UTC)
    (run.folder / RUN_RECORD).unlink(missing_ok=True)
    photos = find_photos(run)
    also = find_also(run, photos)  # before the hours that a mistyped folder would cost
    # What cannot be used is nothing that other stages should take from this folder.
    run.write_settings()
    stages = [train(run, photos)] if checkpoint is None else []
    adopt_checkpoint(run, checkpoint)
    stages += [rank(run, run.best_path), rank_views(run, run.best_path, photos)]
    stages += [*explain(run), prune(run, run.best_path, photos)]
    stages += [export(run, run.best_path, "best"), export(run, run.folder / "pruned" / "model.pt", "pruned")]
    stages += quantize_each(run, [run.folder / name / "model.onnx" for name in ("best", "pruned")], photos)
    stages += distil_student(run, photos)
    if run.settings.search.search_effort != NO_SEARCH:
        stages.append(search_stage(run, photos))
    measured = benchmark(run, list_variants(run), photos, also)
    stages.append(measured)
    stages += [deploy(run, variant, photos.test) for variant in exported_variants(run)]
    stages.append(report(run, argv))
    require_measured(run, measured)
    write_run_record(run, stages, started, argv)
    return RunResult(run.folder, run.folder / REPORT, tuple(stages))


def write_run_record(run: Run, stages: Sequence[StageRecord], started: datetime, argv: Sequence[str]) -> Path:
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
        "artifacts": {"best.pt": sha256_file(run.best_path)}
        | {path: digest for stage in stages for path, digest in stage.outputs.items()},
    }  # fmt: skip
    return write_json(run.folder / RUN_RECORD, record)
