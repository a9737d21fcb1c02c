"""The whole benchmark: timing, colours, tables and pictures of best.pt and every variant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.accuracy import AccuracyResult, choose_photos, measure_accuracy
from benchmarks.charts import draw_pareto
from benchmarks.latency import LatencyResult, time_variants
from benchmarks.machine import describe_machine
from benchmarks.pictures import color_photos, draw_comparison, draw_input_output, draw_outputs, save_picture
from benchmarks.tables import FORMAT_VERSION, Row, make_rows, write_benchmark_csv, write_benchmark_json
from benchmarks.variants import Variant, in_openvino, on_device
from colorpress.config import BenchmarkConfig, DataConfig, MachineConfig
from colorpress.errors import InputError
from training.photos import Photo

_SHEET_PHOTOS = 4


@dataclass(frozen=True)
class BenchmarkResult:
    """A benchmark's figures and the files it wrote.

    Attributes:
        rows: one dictionary per variant, see tables.COLUMNS.
        grey_l1: the L1 of a grey answer on the same photographs.
        aa_ratios: per device, best.pt's p50 over best.pt's p50 timed as a second arm: "median", "low", "high".
        paths: benchmark.csv, benchmark.json and the pictures.
    """

    rows: tuple[Row, ...]
    grey_l1: float | None
    aa_ratios: Mapping[str, Mapping[str, float]]
    paths: tuple[Path, ...]


def run_benchmark(
    variants: Sequence[Variant],
    test_photos: Sequence[Photo],
    config: BenchmarkConfig,
    output_dir: Path,
    *,
    machine: MachineConfig,
    data: DataConfig,
) -> BenchmarkResult:
    """Time and score every variant, and write benchmark.csv, benchmark.json, pareto.png and the sample pictures.

    A variant that fails is a row that says so. With `config.openvino`, every .onnx file is measured in OpenVINO too,
    as "<name> @ openvino". With `machine.device` auto or cuda, and a GPU that both runtimes can
    use, every variant is measured there too, as "<name> @ cuda".

    Args:
        variants: the first one is best.pt, which the others are compared with.
        test_photos: held-out photographs, at least one.
    Raises:
        InputError: no variant, or no photograph.
        MachineError: a CUDA device was asked for and is not there, or a file cannot be written.
    """
    if not variants or not test_photos:
        missing = "photographs" if variants else "model"
        raise InputError("benchmark", None, f"got no {missing}", "hold photographs out with --test-share")
    if config.openvino:
        in_other = [in_openvino(variant) for variant in variants if variant.runtime == "onnxruntime"]
        variants = [*variants, *in_other]
    variants = _add_gpu_rows(variants, machine.device)
    latency = time_variants(variants, config, threads=machine.threads, seed=data.seed)
    unfit = {name: f"its timing ended as {t.status}" for name, t in latency.timings.items() if t.status != "ok"}
    accuracy = measure_accuracy(
        variants, test_photos, config, max_pixels=data.max_pixels, threads=latency.threads, unfit=unfit
    )
    rows = make_rows(variants, latency, accuracy, config)
    record = make_record(rows, latency, accuracy, config, seed=data.seed)
    paths = [
        write_benchmark_csv(output_dir / "benchmark.csv", rows),
        write_benchmark_json(output_dir / "benchmark.json", record),
        draw_pareto(rows, accuracy.mean_grey_l1, output_dir / "pareto.png"),
        *_write_pictures(variants, accuracy, test_photos, config, output_dir, data.max_pixels, latency.threads),
    ]
    return BenchmarkResult(
        rows=tuple(rows), grey_l1=accuracy.mean_grey_l1, aa_ratios=record["aa_ratios"], paths=tuple(paths)
    )


def _add_gpu_rows(variants: Sequence[Variant], device: str) -> list[Variant]:
    import onnxruntime
    import torch

    from training.device import choose_device

    chosen = choose_device(device)
    both = torch.cuda.is_available() and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    if chosen.type != "cuda" or (device == "auto" and not both):
        return list(variants)
    movable = [variant for variant in variants if variant.runtime != "openvino"]
    return [*variants, *(on_device(variant, str(chosen)) for variant in movable)]


def make_record(
    rows: Sequence[Row], latency: LatencyResult, accuracy: AccuracyResult, config: BenchmarkConfig, *, seed: int
) -> dict[str, Any]:
    """What benchmark.json holds: rows, raw call times, values of each photograph, and the conditions."""
    return {
        "format_version": FORMAT_VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": asdict(config),
        "threads": latency.threads,
        "seed": seed,
        "machine": describe_machine(),
        "grey_l1": accuracy.mean_grey_l1,
        "aa_ratios": {device: asdict(ratio) for device, ratio in latency.aa_ratios.items()},
        "rows": list(rows),
        "per_photo": {
            "photos": [photo.path.name for photo in accuracy.photos],
            "grey_l1": list(accuracy.grey_l1),
            "l1": {name: [score.l1_ab for score in each.scores] for name, each in accuracy.variants.items()},
        },
        "raw_times": {name: [_raw_round(answer) for answer in each.rounds] for name, each in latency.timings.items()},
    }


def _raw_round(answer: Mapping[str, Any]) -> dict[str, Any]:
    return {key: answer[key] for key in ("status", "error", "load_ms", "first_ms", "times_ns") if key in answer}


def choose_sheet_photos(photos: Sequence[Photo], accuracy: AccuracyResult, count: int) -> list[Photo]:
    """Photographs to show: the first ones by content hash, but the last two are those that compression hurts most."""
    ordered = list(choose_photos(photos, len(photos)))
    scored = [each.scores for each in accuracy.variants.values() if each.status == "ok"]
    if len(ordered) <= count or not scored:
        return ordered[:count]
    harm = [max(each[index].l1_ab for each in scored) - best.l1_ab for index, best in enumerate(scored[0])]
    worst = [accuracy.photos[index] for index in sorted(range(len(harm)), key=lambda index: -harm[index])[:2]]
    return [photo for photo in ordered if photo not in worst][: count - len(worst)] + worst


def _write_pictures(
    variants: Sequence[Variant],
    accuracy: AccuracyResult,
    photos: Sequence[Photo],
    config: BenchmarkConfig,
    output_dir: Path,
    max_pixels: int,
    threads: int,
) -> list[Path]:
    # A GPU's and OpenVINO's colours are those of the same file: one column for each model file.
    shown = [
        variant
        for variant in variants
        if variant.device == variants[0].device
        and variant.runtime != "openvino"
        and accuracy.variants[variant.name].status == "ok"
    ]
    chosen = choose_sheet_photos(photos, accuracy, _SHEET_PHOTOS)
    colored = color_photos(shown, chosen, short_side=config.eval_size, max_pixels=max_pixels, threads=threads)
    best = variants[0].name
    sheets = {
        "comparison.png": draw_comparison(colored, [variant.name for variant in shown]),
        "sample_input_output.png": draw_input_output(colored[:2], best),
        "sample_output.png": draw_outputs(colored, best),
    }
    return [save_picture(sheet, output_dir / name) for name, sheet in sheets.items()]
