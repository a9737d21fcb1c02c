"""The whole benchmark: timing, colours, tables and pictures of best.pt and every variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.accuracy import AccuracyResult, measure_accuracy
from benchmarks.also import AlsoFolder, describe_also, key_of
from benchmarks.latency import LatencyResult, time_variants
from benchmarks.left_out import LeftOut
from benchmarks.report.pareto import draw_pareto
from benchmarks.report.pictures import write_picture_set
from benchmarks.roof import Roof, measure_roof
from benchmarks.rows import FORMAT_VERSION, Row, write_benchmark_json
from benchmarks.tables import make_rows, write_benchmark_csv
from benchmarks.variants import Variant, in_runtimes, list_controls
from benchmarks.verdict import judge_rows, measure_of
from colorpress.core.config import BenchmarkPlan
from colorpress.core.errors import GateError, InputError
from colorpress.core.machine import describe_machine, machine_key
from colorpress.core.stages import StageRecord, forget_stage
from export.runtimes import CHECKPOINT_SUFFIXES
from training.checkpoint import load_checkpoint
from training.device import choose_device
from training.photo_split import PhotoSplit
from training.run_folder import Run, warn_of_other_split

# What benchmark.json keeps of a worker's answer.
_RAW = ("status", "error", "load_ms", "first_ms", "times_ns", "compute_ms")


def benchmark(
    run: Run,
    variants: Sequence[Variant],
    photos: PhotoSplit | None,
    also: Sequence[AlsoFolder] = (),
    left_out: Sequence[LeftOut] = (),
) -> StageRecord:
    """`run_benchmark` as a stage.

    Args:
        photos: None measures time and size alone.
        also: further folders, see `find_also`.
        left_out: what could not be made.
    """
    settings = run.settings

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        if photos and variants[0].path.suffix in CHECKPOINT_SUFFIXES:
            warn_of_other_split(load_checkpoint(variants[0].path, variants[0].arch), photos)
        rows, paths = run_benchmark(run, variants, photos, also, left_out)
        return paths, {"rows": len(rows), "failed": [row.model for row in rows if row.is_failed]}

    used = {
        **vars(settings.benchmark_plan),
        **vars(settings.machine),
        **run.arch_key(),
        # Controls are fitted on the training photographs.
        **(run.data_key(PhotoSplit(photos.train, test=photos.test)) if photos else {}),
        "also": key_of(also),
        "names": [variant.name for variant in variants],
        "cautions": [variant.caution for variant in variants],
        "left_out": [[each.name, each.why] for each in left_out],
        "machine": machine_key(),
    }
    return run.do("benchmark", action, inputs=[variant.path for variant in variants], settings=used)


def require_measured(run: Run, measured: StageRecord) -> None:
    """Raise GateError when a variant could not be measured, and let the benchmark run again the next time."""
    if failed := measured.result["failed"]:
        forget_stage(run.folder, "benchmark")
        why = f"{', '.join(failed)} could not be measured"
        raise GateError("benchmark", run.folder, why, "see status and error in benchmark.csv, and run it again")


def run_benchmark(
    run: Run,
    variants: Sequence[Variant],
    photos: PhotoSplit | None,
    also: Sequence[AlsoFolder] = (),
    left_out: Sequence[LeftOut] = (),
) -> tuple[list[Row], list[Path]]:
    """Time and score every variant, and write benchmark.csv, benchmark.json, pareto.png and the sample pictures.

    A variant that fails is a row that says so. Every file is run in the runtimes that the option bench-runtime names
    for its kind, as "<name> @ openvino", and timed under every combination of batch, size and threads, as "<name>,
    batch 8". With the device auto or cuda, and a GPU that both PyTorch and ONNX Runtime can use, every variant is
    measured there too, as "<name> @ cuda". The controls that see no picture are scored beside them, and not timed.

    Args:
        run: its folder and its options.
        variants: the first one is best.pt, which the others are compared with.
        photos: the test ones are scored on, at least one, and the controls are fitted on the training ones; None, or
            eval-photos 0: time alone.
        also: further photographs to score on.
        left_out: what could not be made; each is a row that says why.
    Returns:
        The rows, best.pt first, and the files.
    Raises:
        InputError: no variant, or no photograph.
        MachineError: a CUDA device was asked for and is not there, or a file cannot be written.
    """
    plan, machine, data = run.settings.benchmark_plan, run.settings.machine, run.settings.data
    test = photos.test if photos else ()
    if not variants or (plan.eval_photos and not test):
        missing = "photographs" if variants else "model"
        raise InputError("benchmark", None, f"got no {missing}", "hold photographs out with --test-share")
    variants = in_runtimes(variants, plan.bench_runtime, _find_gpu(machine.device))
    latency = time_variants(variants, plan, threads=machine.threads, seed=data.seed)
    threads = latency.arms[0].condition.threads
    roof = measure_roof(threads=threads) if plan.roof else None
    unfit = {name: f"its timing ended as {t.status}" for name, t in latency.timings.items() if t.status != "ok"}
    controls = list_controls(run, photos) if photos and plan.eval_photos else ()
    scored = [*variants, *controls]
    score = partial(measure_accuracy, scored, plan=plan, max_pixels=data.max_pixels, threads=threads, unfit=unfit)
    accuracy = score(photos=test)
    elsewhere = {folder.name: score(photos=folder.photos) for folder in also if plan.eval_photos}
    rows = make_rows(latency, accuracy, roof, controls=controls, also=elsewhere)
    rows += [each.as_row(rows[0]) for each in left_out]
    measure = measure_of(accuracy.strength)
    recommended = judge_rows(rows, latency.aa_ratios, accuracy.strength).recommended
    described = describe_also(also, elsewhere, rows, recommended, measure) if elsewhere else {}
    record = make_record(rows, latency, accuracy, plan, seed=data.seed, roof=roof, also=described)
    paths = [
        write_benchmark_csv(run.folder / "benchmark.csv", rows),
        write_benchmark_json(run.folder / "benchmark.json", record),
    ]
    if accuracy.photos:
        paths.append(draw_pareto(rows, measure, run.folder / "pareto.png"))
        paths += write_picture_set(run, scored, accuracy, test, rows, recommended)
    return rows, paths


def _find_gpu(device: str) -> str:
    """The GPU to measure on as well, or "cpu"."""
    import onnxruntime
    import torch

    chosen = choose_device(device)
    both = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return str(chosen) if both or device != "auto" else "cpu"


def make_record(
    rows: Sequence[Row],
    latency: LatencyResult,
    accuracy: AccuracyResult,
    plan: BenchmarkPlan,
    *,
    seed: int,
    roof: Roof | None = None,
    also: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What benchmark.json holds: rows, raw call times, values of each photograph, and the conditions.

    Args:
        also: `describe_also`'s answer.
    """
    strength = accuracy.strength
    return {
        "format_version": FORMAT_VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": {**asdict(plan), "also": [str(folder) for folder in plan.also]},
        "seed": seed,
        "machine": describe_machine(),
        "grey_l1": accuracy.mean_grey_l1,
        "strength": strength.to_dict() if strength else None,
        "aa_ratios": {label: asdict(ratio) for label, ratio in latency.aa_ratios.items()},
        "roof": asdict(roof) if roof else None,
        "rows": [asdict(row) for row in rows],
        "per_photo": {
            "photos": [photo.path.name for photo in accuracy.photos],
            "grey_l1": list(accuracy.grey_l1),
            "l1": {name: [score.l1_ab for score in each.scores] for name, each in accuracy.variants.items()},
            "to_best": {name: list(each.to_best) for name, each in accuracy.variants.items()},
        },
        "also": also or {},
        "raw_times": {
            name: [{key: answer[key] for key in _RAW if key in answer} for answer in timing.rounds]
            for name, timing in latency.timings.items()
        },
    }
