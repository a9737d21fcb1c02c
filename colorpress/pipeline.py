"""The stages in order, each one skipped when it is up to date: photographs -> best.pt -> variants -> report.

Run folder: best.pt and what training and ranking say about it, one folder per variant (best, best-int8, pruned,
pruned-int8), the benchmark, the report, and `run.json`, written last.
"""

from __future__ import annotations

import math
import shlex
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import describe_machine
from benchmarks.report import write_report
from benchmarks.suite import run_benchmark
from benchmarks.variants import Variant, describe_variant
from colorpress import __version__
from colorpress.config import Settings
from colorpress.console import say, warn
from colorpress.errors import ConfigError, GateError, InputError
from colorpress.files import sha256_bytes, sha256_file, write_bytes, write_json, write_text
from colorpress.processes import is_main_process, share_answer
from colorpress.stages import RUN_RECORD, StageRecord, forget_stage, run_stage, stage_key
from compress.distillation import distil_network
from compress.prune_plan import read_plan, write_plan
from compress.pruning import apply_pruning, measure_pruning, prune_network
from compress.quantization import has_vnni, quantize_onnx
from compress.ranking import count_macs, rank_layers, write_ranking
from export.graph import export_onnx, read_metadata
from export.int8_profile import profile_int8
from export.parity import check_parity
from export.predictors import OnnxPredictor
from training.batches import whole_photos
from training.checkpoint import Checkpoint, dump_checkpoint, load_checkpoint
from training.color import rgb_to_l_ab
from training.device import choose_device
from training.fitting import forget_fit
from training.foreign import load_source
from training.history import read_history
from training.inference import INFERENCE_NAME, write_inference
from training.original import train_unet
from training.photos import PhotoSplit, hash_photos, scan_photos
from training.unet import count_parameters


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

    @property
    def answer_folder(self) -> Path:
        """Where best.pt's answers are kept for networks that learn from them."""
        return self.folder / ".answers"

    def load(self, checkpoint: Path) -> Checkpoint:
        """Read a checkpoint, whose network may be the foreign one that the options of this run name."""
        return load_checkpoint(checkpoint, self.settings.arch)

    def stage(self, name: str, inputs: Sequence[Path], settings: Mapping[str, Any], code: Sequence[str]) -> str:
        """The key of a stage of this run."""
        return stage_key(inputs=inputs, settings={"stage": name, **settings}, code=code)

    def arch_key(self) -> dict[str, Any]:
        """What the answer of a stage that reads a checkpoint depends on of a foreign network: its code and options.

        Raises:
            ConfigError: the file that is named cannot be run.
        """
        arch = self.settings.arch
        return {"arch": {**vars(arch), "arch": load_source(arch.arch).sha256}} if arch.arch else {}


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
    write_settings(run)
    photos = find_photos(run)
    stages = [train(run, photos)] if checkpoint is None else []
    if checkpoint is not None:
        adopt_checkpoint(run, checkpoint)
    stages += [rank(run, run.best_path), *explain(run), prune(run, run.best_path, photos)]
    exported = [export(run, run.best_path, "best"), export(run, run.folder / "pruned" / "model.pt", "pruned")]
    stages += exported
    for name in ("best", "pruned"):
        stages.append(quantize(run, run.folder / name / "model.onnx", f"{name}-int8", photos))
    measured = benchmark(run, run_variants(run), photos)
    stages += [measured, report(run, argv)]
    require_measured(run, measured)
    write_run_record(run, stages, started, argv)
    return RunResult(run.folder, run.folder / "report.html", tuple(stages))


def write_settings(run: Run) -> Path:
    """Write the effective options to config.resolved.toml, which `--config` reads."""
    return write_text(run.folder / "config.resolved.toml", run.settings.to_toml())


def find_photos(run: Run) -> PhotoSplit:
    """Scan and split the photographs; names the files that cannot be used in skipped_images.csv.

    Raises:
        ConfigError: the run folder lies among the photographs, so its pictures would become some of them.
    """
    machine, folder = run.settings.machine, run.settings.data.data
    if folder is not None and run.folder.resolve().is_relative_to(folder.resolve()):
        raise ConfigError("folder", run.folder, f"lies inside --data {folder}", "choose an --output-dir outside of it")
    photos = share_answer(
        lambda: scan_photos(
            run.settings.data,
            workers=machine.workers,
            index_path=run.folder / ".photos.json",
            skipped_path=run.folder / "skipped_images.csv",
        )
    )
    say(
        f"photographs: {len(photos.train)} to train on, {len(photos.val)} to choose the best epoch, "
        f"{len(photos.test)} held out for the benchmark, {len(photos.skipped)} skipped"
    )
    return photos


def train(run: Run, photos: PhotoSplit) -> StageRecord:
    """Train the original: best.pt, last.pt, history.csv, training_loss.png."""
    settings = run.settings

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        choose_device(settings.machine.device)
        if run.force and is_main_process():
            forget_fit(run.folder / "last.pt")
        trained = train_unet(
            photos, run.folder, settings.train, data=settings.data, machine=settings.machine, restart=run.force
        )
        files = [trained.best_path, trained.history_path, trained.plot_path]
        return files, {"epoch": trained.epoch, "val_l1": trained.val_l1, "params": trained.params}

    key = run.stage("train", [], {**vars(settings.train), **_data_key(run, photos)}, ["training"])
    return run_stage(run.folder, "train", key, action, force=run.force)


def adopt_checkpoint(run: Run, checkpoint: Path) -> None:
    """Copy a trained model into the run folder as its best.pt; one of another program in the format of this one.

    Raises:
        ConfigError: the folder holds another best.pt, which would be lost; or a foreign network is not named.
        InputError: the checkpoint cannot be used.
    """
    found = run.load(checkpoint)
    found.build_network()
    content = checkpoint.read_bytes()
    if found.converted:
        content = dump_checkpoint(replace(found, extra={"stage": "convert", "converted_sha256": found.sha256}))
    if run.best_path.exists() and sha256_file(run.best_path) == sha256_bytes(content):
        return
    if run.best_path.exists() and not run.force:
        raise ConfigError(
            "folder", run.folder, "holds another best.pt", "choose another --output-dir, or replace it with --force"
        )
    # What told of the model that was there would be read as telling of this one.
    forget_fit(run.folder / "last.pt")
    for name in ("history.csv", "training_loss.png", INFERENCE_NAME):
        (run.folder / name).unlink(missing_ok=True)
    forget_stage(run.folder, "train")
    write_bytes(run.best_path, content)


def rank(run: Run, checkpoint: Path) -> StageRecord:
    """Rank the layers by parameters: model_summary.txt, layer_param_counts.csv, top20_layers.png."""
    size = run.settings.rank.rank_size

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        network = run.load(checkpoint).build_network()
        ranked = write_ranking(
            rank_layers(network, height=size, width=size), network, run.folder, height=size, width=size
        )
        return ranked.paths, {"params": ranked.params, "macs": ranked.macs}

    key = run.stage("rank", [checkpoint], {"size": size, **run.arch_key()}, ["training", "compress"])
    return run_stage(run.folder, "rank", key, action, force=run.force)


def explain(run: Run) -> list[StageRecord]:
    """Explain the training curve in training_inference.md; nothing where the run folder holds no history."""
    source = run.folder / "history.csv"
    if not source.is_file():
        return []

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        return [write_inference(run.folder / INFERENCE_NAME, read_history(source))], {}

    ranking = run.folder / "layer_param_counts.csv"
    inputs = [source, ranking] if ranking.is_file() else [source]
    key = run.stage("explain", inputs, {}, [f"training/{name}.py" for name in ("curve", "history", "inference")])
    return [run_stage(run.folder, "explain", key, action, force=run.force)]


def prune(run: Run, checkpoint: Path, photos: PhotoSplit) -> StageRecord:
    """Prune the largest layers and distil: pruned/plan.json, pruned/model.pt."""
    settings, folder = run.settings, run.folder / "pruned"
    given, size, seed = settings.prune.prune_plan, settings.rank.rank_size, settings.data.seed

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        teacher = run.load(checkpoint)
        _warn_of_other_split(teacher, photos)
        if run.force and is_main_process():
            forget_fit(folder / "last.pt")
        network = teacher.build_network()
        if given is None:
            pruned = prune_network(network, settings.prune, seed=seed, height=size, width=size)
        else:
            plan = read_plan(given)
            pruned = measure_pruning(network, apply_pruning(network, plan), plan, height=size, width=size)
        say(pruned.summary())
        if is_main_process():
            write_plan(folder / "plan.json", pruned.plan)
        distilled = distil_network(
            pruned.network,
            teacher,
            photos,
            folder / "model.pt",
            settings.finetune.recipe(settings.train),
            teacher_weight=settings.finetune.teacher_weight,
            answer_folder=run.answer_folder,
            answer_size=settings.benchmark.eval_size,
            data=settings.data,
            machine=settings.machine,
            tune=settings.finetune.finetune_epochs > 0,
        )
        say(distilled.summary())
        result = {**pruned.figures(), "val_l1_before": distilled.val_l1_before, "val_l1_after": distilled.val_l1_after}
        return [folder / "plan.json", distilled.path], result

    # What builds the original is inside the checkpoint, and fine-tuning has its own epochs and learning rate.
    own = ("base", "depth", "upsample", "epochs", "learning_rate", "class_weight")
    train = {name: value for name, value in vars(settings.train).items() if name not in own}
    used = {**vars(settings.prune), **vars(settings.finetune), **train, "size": size}
    used |= {**run.arch_key(), **_data_key(run, photos)}
    inputs = [checkpoint] if given is None else [checkpoint, given]
    modules = ("batch_norm", "distillation", "prune_plan", "pruning", "ranking")
    key = run.stage("prune", inputs, used, ["training", *(f"compress/{name}.py" for name in modules)])
    return run_stage(run.folder, "prune", key, action, force=run.force)


def export(run: Run, checkpoint: Path, variant: str) -> StageRecord:
    """Export a checkpoint to <variant>/model.onnx, published only when it answers as PyTorch does."""
    destination = run.folder / variant / "model.onnx"

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        exported = export_onnx(run.load(checkpoint), destination, run.settings.export, metadata={})
        difference, sizes = exported.parity.max_abs, len(exported.parity.shapes)
        say(f"{variant}: {exported.size_bytes:,} bytes, within {difference:.1e} of PyTorch at {sizes} sizes")
        return [exported.path], {"size_bytes": exported.size_bytes, "max_abs_diff": exported.parity.max_abs}

    key = run.stage(variant, [checkpoint], {**vars(run.settings.export), **run.arch_key()}, ["training", "export"])
    return run_stage(run.folder, f"export-{variant}", key, action, force=run.force)


def quantize(run: Run, source: Path, variant: str, photos: PhotoSplit) -> StageRecord:
    """Quantize an exported model to <variant>/model.onnx, calibrated on training photographs."""
    settings = run.settings
    destination = run.folder / variant / "model.onnx"
    chosen = PhotoSplit(train=photos.train[: settings.quantize.calibration_photos], val=(), test=(), skipped=())

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="colorpress-quantize-") as trial_folder:
            trial = Path(trial_folder) / "model.onnx"
            pictures = _calibration(run, chosen)
            quantized = quantize_onnx(source, trial, pictures, settings.quantize, threads=settings.machine.threads)
            # Reported, not judged: how far int8 may be off is for the benchmark's photographs to say.
            parity = check_parity(OnnxPredictor(source), OnnxPredictor(trial), atol=None)
            if not math.isfinite(parity.max_abs):
                raise GateError("int8 model", variant, "answers NaN or Inf", "try another --calibration-method")
            profile = profile_int8(trial, threads=settings.machine.threads)
            write_bytes(destination, trial.read_bytes())
        layers = len(quantized.quantized) + len(quantized.kept_float)
        say(
            f"{variant}: {quantized.size_bytes:,} bytes, {len(quantized.quantized)} of {layers} convolutions and "
            f"{quantized.weight_share:.1%} of their weights in int8, {profile.int8_share:.0%} of the time, "
            f"mean difference to float {parity.mean_abs:.1e}"
        )
        return [destination], {
            "size_bytes": quantized.size_bytes,
            "int8_layers": len(quantized.quantized),
            "int8_weight_share": quantized.weight_share,
            "int8_time_share": profile.int8_share,
            "reduce_range": quantized.reduce_range,
            "mean_abs_diff": parity.mean_abs,
            "max_abs_diff": parity.max_abs,
        }

    used = {**vars(settings.quantize), **_data_key(run, chosen), "vnni": has_vnni()}
    key = run.stage(variant, [source], used, ["training", "compress", "export"])
    return run_stage(run.folder, f"quantize-{variant}", key, action, force=run.force)


def run_variants(run: Run) -> tuple[Variant, ...]:
    """best.pt and every variant of it that the run folder holds, in the order of the pipeline.

    Files that were made from another best.pt than the folder's are left out with a warning.

    Raises:
        ConfigError: there is no best.pt.
    """
    if not run.best_path.exists():
        raise ConfigError(
            "folder", run.folder, "holds no best.pt to compare with", "run `colorpress train`, or give --checkpoint"
        )
    best = run.load(run.best_path)
    variants = _variants_of(run, "best", run.best_path, best)
    pruned_path = run.folder / "pruned" / "model.pt"
    if pruned_path.exists():
        pruned = run.load(pruned_path)
        if pruned.extra.get("teacher_sha256") == best.sha256:
            variants += _variants_of(run, "pruned", pruned_path, pruned)
        else:
            warn("pruned/model.pt is of another best.pt and is left out: run `colorpress prune` again")
    return tuple(variants)


def _variants_of(run: Run, name: str, path: Path, checkpoint: Checkpoint) -> list[Variant]:
    size, network = run.settings.benchmark.bench_size, checkpoint.build_network()
    params, macs = count_parameters(network), count_macs(network, height=size, width=size)
    variants = [describe_variant(f"{name}.pt", path, params=params, macs=macs, arch=run.settings.arch)]
    for variant, precision, again in ((name, "fp32", "export"), (f"{name}-int8", "int8", "quantize")):
        exported = run.folder / variant / "model.onnx"
        if not exported.exists():
            continue
        if read_metadata(exported).get("checkpoint_sha256") == checkpoint.sha256:
            variants.append(describe_variant(variant, exported, precision=precision, params=params, macs=macs))
        else:
            warn(f"{variant}/model.onnx is not of {path.name} and is left out: run `colorpress {again}` again")
    return variants


def benchmark(run: Run, variants: Sequence[Variant], photos: PhotoSplit) -> StageRecord:
    """Time and score best.pt and every variant: benchmark.csv, benchmark.json and the pictures."""
    settings = run.settings

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        _warn_of_other_split(load_checkpoint(run.best_path), photos)
        measured = run_benchmark(
            variants, photos.test, settings.benchmark, run.folder, machine=settings.machine, data=settings.data
        )
        failed = [str(row["model"]) for row in measured.rows if row["status"] != "ok"]
        return measured.paths, {"rows": len(measured.rows), "failed": failed}

    used = {
        **vars(settings.benchmark),
        **vars(settings.machine),
        **run.arch_key(),
        **_data_key(run, PhotoSplit(train=(), val=(), test=photos.test, skipped=())),
        "names": [variant.name for variant in variants],
        "machine": {key: value for key, value in describe_machine().items() if not key.startswith("memory")},
    }
    code = ["training", "compress", "export", "benchmarks"]
    key = run.stage("benchmark", [variant.path for variant in variants], used, code)
    return run_stage(run.folder, "benchmark", key, action, force=run.force)


def require_measured(run: Run, measured: StageRecord) -> None:
    """Raise GateError when a variant could not be measured, and let the benchmark run again the next time."""
    if failed := measured.result["failed"]:
        forget_stage(run.folder, "benchmark")
        why = f"{', '.join(failed)} could not be measured"
        raise GateError("benchmark", run.folder, why, "see status and error in benchmark.csv, and run it again")


def report(run: Run, argv: Sequence[str] = ()) -> StageRecord:
    """Write report.html from what the run folder holds.

    Raises:
        InputError: there is no benchmark.json to report on.
    """
    source = run.folder / "benchmark.json"
    if not source.is_file():
        raise InputError("folder", run.folder, "holds no benchmark.json", "run `colorpress benchmark` first")

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        return [write_report(run.folder, command=shlex.join(argv))], {}

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
        "machine": describe_machine(),
        "settings": {name: {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
                     for name, values in asdict(run.settings).items()},
        "stages": {stage.name: {"seconds": stage.seconds, "skipped": stage.skipped, "result": stage.result}
                   for stage in stages},
        "artifacts": {"best.pt": sha256_file(run.best_path)}
        | {path: digest for stage in stages for path, digest in stage.outputs.items()},
    }  # fmt: skip
    return write_json(run.folder / RUN_RECORD, record)


def _calibration(run: Run, photos: PhotoSplit) -> Iterator[NDArray[np.float32]]:
    size, max_pixels = run.settings.quantize.calibration_size, run.settings.data.max_pixels
    for _, rgb in whole_photos(photos.train, short_side=size, max_pixels=max_pixels):
        yield rgb_to_l_ab(rgb)[0].numpy()


def _data_key(run: Run, photos: PhotoSplit) -> dict[str, Any]:
    """What a stage's answer depends on of the photographs: their content by use, the seed, and the size limit."""
    data = run.settings.data
    content = hash_photos(photos.train, photos.val, photos.test)
    return {"photos": content, "seed": data.seed, "max_pixels": data.max_pixels}


def _warn_of_other_split(original: Checkpoint, photos: PhotoSplit) -> None:
    trained_on = original.extra.get("fit", {}).get("photographs")
    if trained_on is not None and trained_on != hash_photos(photos.train, photos.val):
        warn("best.pt was trained on another split of photographs: it may have seen those held out here")
