"""The stages in order, each one skipped when it is up to date: photographs -> best.pt -> variants -> report.

Run folder: best.pt and what training and ranking say about it, one folder per variant (best, best-int8, pruned,
pruned-int8), the benchmark, the report, and `run.json`, written last.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import write_report
from benchmarks.suite import run_benchmark
from benchmarks.variants import Variant, describe_variant
from colorpress import __version__
from colorpress.config import Settings
from colorpress.console import say
from colorpress.errors import ConfigError, InputError
from colorpress.files import sha256_bytes, sha256_file, write_bytes, write_json, write_text
from colorpress.stages import RUN_RECORD, StageRecord, run_stage, stage_key
from compress.distillation import distil_network
from compress.pruning import prune_network, write_plan
from compress.quantization import quantize_onnx
from compress.ranking import count_macs, rank_layers, write_ranking
from export.graph import export_onnx
from training.batches import whole_photos
from training.checkpoint import load_checkpoint
from training.color import rgb_to_l_ab
from training.original import train_unet
from training.photos import PhotoSplit, scan_photos
from training.unet import count_parameters

_LIBRARIES = ("torch", "onnx", "onnxscript", "onnxruntime", "torch-pruning", "numpy", "pillow", "scikit-image")


@dataclass(frozen=True)
class Run:
    """A run folder and how its stages are configured; `force` redoes stages that are up to date."""

    folder: Path
    settings: Settings = field(default_factory=Settings)
    force: bool = False

    @property
    def best_path(self) -> Path:
        """The original model of this run."""
        return self.folder / "best.pt"

    def stage(self, name: str, inputs: Sequence[Path], settings: Mapping[str, Any], code: Sequence[str]) -> str:
        """The key of a stage of this run."""
        return stage_key(inputs=inputs, settings={"stage": name, **settings}, code=code)


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
    write_text(run.folder / "config.resolved.toml", run.settings.to_toml())
    photos = find_photos(run)
    stages = [train(run, photos)] if checkpoint is None else []
    if checkpoint is not None:
        adopt_checkpoint(run, checkpoint)
    stages += [rank(run, run.best_path), prune(run, run.best_path, photos)]
    exported = [export(run, run.best_path, "best"), export(run, run.folder / "pruned" / "model.pt", "pruned")]
    stages += exported
    for name in ("best", "pruned"):
        stages.append(quantize(run, run.folder / name / "model.onnx", f"{name}-int8", photos))
    stages.append(benchmark(run, run_variants(run), photos))
    stages.append(report(run, argv))
    write_run_record(run, stages, started, argv)
    return RunResult(run.folder, run.folder / "report.html", tuple(stages))


def find_photos(run: Run) -> PhotoSplit:
    """Scan and split the photographs; names the files that cannot be used in skipped_images.csv."""
    machine = run.settings.machine
    photos = scan_photos(
        run.settings.data,
        workers=machine.workers,
        index_path=run.folder / ".photos.json",
        skipped_path=run.folder / "skipped_images.csv",
    )
    say(
        f"photographs: {len(photos.train)} to train on, {len(photos.val)} to choose the best epoch, "
        f"{len(photos.test)} held out for the benchmark, {len(photos.skipped)} skipped"
    )
    return photos


def train(run: Run, photos: PhotoSplit) -> StageRecord:
    """Train the original: best.pt, last.pt, history.csv, training_loss.png."""
    settings = run.settings
    if run.force:
        (run.folder / "last.pt").unlink(missing_ok=True)

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        trained = train_unet(photos, run.folder, settings.train, data=settings.data, machine=settings.machine)
        files = [trained.best_path, trained.history_path, trained.plot_path]
        return files, {"epoch": trained.epoch, "val_l1": trained.val_l1, "params": trained.params}

    key = run.stage("train", [], {**vars(settings.train), "photos": _split_hash(photos)}, ["training"])
    return run_stage(run.folder, "train", key, action, force=run.force)


def adopt_checkpoint(run: Run, checkpoint: Path) -> None:
    """Copy a trained model into the run folder as its best.pt.

    Raises:
        ConfigError: the folder holds another best.pt, which would be lost.
        InputError: the checkpoint cannot be used.
    """
    load_checkpoint(checkpoint)
    if run.best_path.exists() and sha256_file(run.best_path) == sha256_file(checkpoint):
        return
    if run.best_path.exists() and not run.force:
        raise ConfigError(
            "folder", run.folder, "holds another best.pt", "choose another --output-dir, or replace it with --force"
        )
    write_bytes(run.best_path, checkpoint.read_bytes())


def rank(run: Run, checkpoint: Path) -> StageRecord:
    """Rank the layers by parameters: model_summary.txt, layer_param_counts.csv, top20_layers.png."""
    size = run.settings.rank.rank_size

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        network = load_checkpoint(checkpoint).build_network()
        ranked = write_ranking(
            rank_layers(network, height=size, width=size), network, run.folder, height=size, width=size
        )
        return ranked.paths, {"params": ranked.params, "macs": ranked.macs}

    key = run.stage("rank", [checkpoint], {"size": size}, ["training", "compress"])
    return run_stage(run.folder, "rank", key, action, force=run.force)


def prune(run: Run, checkpoint: Path, photos: PhotoSplit) -> StageRecord:
    """Prune the largest layers and distil: pruned/plan.json, pruned/model.pt."""
    settings, folder = run.settings, run.folder / "pruned"

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        teacher = load_checkpoint(checkpoint)
        pruned = prune_network(teacher.build_network(), settings.prune)
        say(pruned.summary())
        write_plan(folder / "plan.json", pruned.plan)
        distilled = distil_network(
            pruned.network,
            teacher,
            photos,
            folder / "model.pt",
            settings.finetune,
            train=settings.train,
            data=settings.data,
            machine=settings.machine,
        )
        say(distilled.summary())
        result = {**pruned.figures(), "val_l1_before": distilled.val_l1_before, "val_l1_after": distilled.val_l1_after}
        return [folder / "plan.json", distilled.path], result

    used = {**vars(settings.prune), **vars(settings.finetune), **vars(settings.train), "photos": _split_hash(photos)}
    key = run.stage("prune", [checkpoint], used, ["training", "compress"])
    return run_stage(run.folder, "prune", key, action, force=run.force)


def export(run: Run, checkpoint: Path, variant: str) -> StageRecord:
    """Export a checkpoint to <variant>/model.onnx, published only when it answers as PyTorch does."""
    destination = run.folder / variant / "model.onnx"

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        exported = export_onnx(load_checkpoint(checkpoint), destination, run.settings.export, metadata={})
        difference, sizes = exported.parity.max_abs, len(exported.parity.shapes)
        say(f"{variant}: {exported.size_bytes:,} bytes, within {difference:.1e} of PyTorch at {sizes} sizes")
        return [exported.path], {"size_bytes": exported.size_bytes, "max_abs_diff": exported.parity.max_abs}

    key = run.stage(variant, [checkpoint], vars(run.settings.export), ["training", "export"])
    return run_stage(run.folder, f"export-{variant}", key, action, force=run.force)


def quantize(run: Run, source: Path, variant: str, photos: PhotoSplit) -> StageRecord:
    """Quantize an exported model to <variant>/model.onnx, calibrated on training photographs."""
    settings = run.settings
    destination = run.folder / variant / "model.onnx"
    chosen = PhotoSplit(train=photos.train[: settings.quantize.calibration_photos], val=(), test=(), skipped=())

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        quantized = quantize_onnx(source, destination, _calibration(run, chosen), settings.quantize)
        layers = len(quantized.quantized) + len(quantized.kept_float)
        say(
            f"{variant}: {quantized.size_bytes:,} bytes, {len(quantized.quantized)} of {layers} convolutions and "
            f"{quantized.weight_share:.1%} of their weights in int8"
        )
        return [quantized.path], {
            "size_bytes": quantized.size_bytes,
            "int8_layers": len(quantized.quantized),
            "int8_weight_share": quantized.weight_share,
            "reduce_range": quantized.reduce_range,
        }

    used = {**vars(settings.quantize), "photos": _split_hash(chosen)}
    key = run.stage(variant, [source], used, ["training", "compress"])
    return run_stage(run.folder, f"quantize-{variant}", key, action, force=run.force)


def run_variants(run: Run) -> tuple[Variant, ...]:
    """best.pt and every variant that the run folder holds, in the order of the pipeline."""
    size = run.settings.benchmark.bench_size
    variants: list[Variant] = []
    for name, checkpoint in (("best", run.best_path), ("pruned", run.folder / "pruned" / "model.pt")):
        if not checkpoint.exists():
            continue
        network = load_checkpoint(checkpoint).build_network()
        params, macs = count_parameters(network), count_macs(network, height=size, width=size)
        files = {
            f"{name}.pt": (checkpoint, "fp32"),
            name: (run.folder / name / "model.onnx", "fp32"),
            f"{name}-int8": (run.folder / f"{name}-int8" / "model.onnx", "int8"),
        }
        for variant, (path, precision) in files.items():
            if path.exists():
                variants.append(describe_variant(variant, path, precision=precision, params=params, macs=macs))
    if not any(variant.name == "best.pt" for variant in variants):
        raise ConfigError(
            "folder", run.folder, "holds no best.pt to compare with", "run `colorpress train`, or give --checkpoint"
        )
    return tuple(variants)


def benchmark(run: Run, variants: Sequence[Variant], photos: PhotoSplit) -> StageRecord:
    """Time and score best.pt and every variant: benchmark.csv, benchmark.json and the pictures."""
    settings = run.settings

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        measured = run_benchmark(
            variants, photos.test, settings.benchmark, run.folder, machine=settings.machine, data=settings.data
        )
        return measured.paths, {"rows": len(measured.rows)}

    used = {
        **vars(settings.benchmark),
        **vars(settings.machine),
        "names": [variant.name for variant in variants],
        "photos": sha256_bytes("".join(photo.sha256 for photo in photos.test).encode()),
    }
    code = ["training", "compress", "export", "benchmarks"]
    key = run.stage("benchmark", [variant.path for variant in variants], used, code)
    return run_stage(run.folder, "benchmark", key, action, force=run.force)


def report(run: Run, argv: Sequence[str] = ()) -> StageRecord:
    """Write report.html from what the run folder holds.

    Raises:
        InputError: there is no benchmark.json to report on.
    """
    source = run.folder / "benchmark.json"
    if not source.is_file():
        raise InputError("folder", run.folder, "holds no benchmark.json", "run `colorpress benchmark` first")

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        return [write_report(run.folder, command=" ".join(argv))], {}

    shown = [*sorted(run.folder.glob("*.png")), run.folder / "pruned" / "plan.json"]
    inputs = [source, *(path for path in shown if path.is_file())]
    key = run.stage("report", inputs, {}, ["benchmarks"])
    return run_stage(run.folder, "report", key, action, force=run.force)


def write_run_record(run: Run, stages: Sequence[StageRecord], started: datetime, argv: Sequence[str]) -> Path:
    """Write run.json, the sign that the run is complete."""
    record = {
        "status": "complete",
        "colorpress": __version__,
        "started": started.isoformat(timespec="seconds"),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        "argv": list(argv),
        "python": platform.python_version(),
        "libraries": {name: metadata.version(name) for name in _LIBRARIES},
        "settings": {name: {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
                     for name, values in asdict(run.settings).items()},
        "stages": {stage.name: {"seconds": stage.seconds, "skipped": stage.skipped, "result": stage.result}
                   for stage in stages},
        "artifacts": {path: digest for stage in stages for path, digest in stage.outputs.items()},
    }  # fmt: skip
    return write_json(run.folder / RUN_RECORD, record)


def _calibration(run: Run, photos: PhotoSplit) -> Iterator[NDArray[np.float32]]:
    size, max_pixels = run.settings.quantize.calibration_size, run.settings.data.max_pixels
    for _, rgb in whole_photos(photos.train, short_side=size, max_pixels=max_pixels):
        yield rgb_to_l_ab(rgb)[0].numpy()


def _split_hash(photos: PhotoSplit) -> str:
    parts = (photos.train, photos.val, photos.test)
    return sha256_bytes("|".join(",".join(photo.sha256 for photo in part) for part in parts).encode())
