"""The stages in order, each one skipped when it is up to date: photographs -> best.pt -> variants -> report.

Run folder: best.pt and what training and ranking say about it, one folder per variant (best, best-int8, pruned,
pruned-int8, auto, auto-int8, auto-w8), the front of a search, the benchmark, the report, and `run.json`, written last.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, machine_key
from benchmarks.report import write_report
from benchmarks.suite import run_benchmark
from benchmarks.variants import DERIVED_ENDINGS, Variant, describe_variant
from colorpress import __version__
from colorpress.config import NO_SEARCH, NOT_OF_FINETUNING
from colorpress.console import say, warn
from colorpress.deploy_stages import deploy, exported_variants
from colorpress.errors import ConfigError, GateError, InputError
from colorpress.export_stages import export, pack
from colorpress.files import sha256_bytes, sha256_file, without_nan, write_bytes, write_json, write_text
from colorpress.int8_stage import quantize_each
from colorpress.layer_views import rank_views
from colorpress.processes import is_main_process, share_answer
from colorpress.prune_choice import prune_checkpoint, prune_key, split_epochs
from colorpress.run_folder import Run, warn_of_other_split
from colorpress.search_front import list_front
from colorpress.search_stages import search_stage
from colorpress.stages import RUN_RECORD, StageRecord, forget_stage, run_stage
from colorpress.student_stages import STUDENT, make_student
from compress.distillation import DistillResult, distil_network
from compress.prune_plan import write_plan
from compress.ranking import count_macs, rank_layers, write_ranking
from export.graph import read_metadata
from training.checkpoint import Checkpoint, dump_checkpoint, load_checkpoint
from training.device import choose_device
from training.fitting import forget_fit
from training.history import read_history
from training.inference import INFERENCE_NAME, write_inference
from training.network import ColorNetwork
from training.original import train_unet
from training.photos import PhotoSplit, scan_photos
from training.unet import count_parameters

# What the report shows beside benchmark.json.
_REPORTED = (
    *("*.png", "front.json", "*/plan.json", "*/int8.json", "*/distillation.png", "pictures/*"),
    *("training_inference.md", "config.resolved.toml"),
)


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
    adopt_checkpoint(run, checkpoint)
    stages += [rank(run, run.best_path), rank_views(run, run.best_path, photos)]
    stages += [*explain(run), prune(run, run.best_path, photos)]
    stages += [export(run, run.best_path, "best"), export(run, run.folder / "pruned" / "model.pt", "pruned")]
    stages += quantize_each(run, [run.folder / name / "model.onnx" for name in ("best", "pruned")], photos)
    stages += distil_student(run, photos)
    if run.settings.search.search_effort != NO_SEARCH:
        stages.append(search_stage(run, photos))
    measured = benchmark(run, run_variants(run), photos)
    stages.append(measured)
    stages += [deploy(run, variant, photos.test) for variant in exported_variants(run)]
    stages.append(report(run, argv))
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

    key = run.stage("train", [], {**vars(settings.train), **run.data_key(photos)}, ["training"])
    return run_stage(run.folder, "train", key, action, force=run.force)


def adopt_checkpoint(run: Run, checkpoint: Path | None) -> None:
    """Copy a trained model into the run folder as its best.pt; one of another program in the format of this one.

    The main process does, and the others of torchrun wait for it. None leaves the folder as it is.

    Raises:
        ConfigError: the folder holds another best.pt, which would be lost; or a foreign network is not named.
        InputError: the checkpoint cannot be used.
    """
    if checkpoint is not None:
        share_answer(lambda: _adopt(run, checkpoint))


def _adopt(run: Run, checkpoint: Path) -> None:
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
    # The main process alone writes it, and the others may get here first.
    if not share_answer(source.is_file):
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
    given, size = settings.prune.prune_plan, settings.rank.rank_size

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        teacher = run.load(checkpoint)
        warn_of_other_split(teacher, photos)
        if run.force and is_main_process():
            forget_fit(folder / "last.pt")

        def distil(network: ColorNetwork, destination: Path, epochs: int) -> DistillResult:
            distilled = distil_network(
                network,
                teacher,
                photos,
                destination,
                replace(settings.finetune, finetune_epochs=epochs).recipe(
                    settings.train, val_size=settings.benchmark.eval_size
                ),
                teacher_weight=settings.finetune.teacher_weight,
                answer_folder=run.answer_folder,
                answer_size=settings.benchmark.eval_size,
                data=settings.data,
                machine=settings.machine,
                tune=epochs > 0,
            )
            say(distilled.summary())
            return distilled

        def tune(network: ColorNetwork, step: int, epochs: int) -> ColorNetwork:
            return distil(network, folder / f"step{step}" / "model.pt", epochs).checkpoint.build_network()

        pruned = prune_checkpoint(run, teacher, photos, tune)
        say(pruned.summary())
        if is_main_process():
            write_plan(folder / "plan.json", pruned.plan)
        steps = 1 if given else settings.prune.prune_steps
        epochs = split_epochs(settings.finetune.finetune_epochs, steps)[-1]
        distilled = distil(pruned.network, folder / "model.pt", epochs)
        scores = {name: getattr(distilled, name) for name in ("val_l1_before", "val_l1_after", "retained_colour")}
        result = {**pruned.figures(), **without_nan(scores)}
        return [folder / "plan.json", *distilled.paths], result

    # What builds the original is inside the checkpoint.
    train = {name: value for name, value in vars(settings.train).items() if name not in NOT_OF_FINETUNING}
    used = {**vars(settings.prune), **vars(settings.finetune), **train, "size": size}
    measured, measuring = prune_key(run)
    used |= {**run.arch_key(), **run.data_key(photos), **measured, "eval_size": settings.benchmark.eval_size}
    inputs = [checkpoint] if given is None else [checkpoint, given]
    modules = (
        "batch_norm", "channel_counts", "dependency_graph", "distillation", "distillation_curve", "importance",
        "latency_knapsack", "prune_budget", "prune_plan", "pruning", "ranking", "teacher",
    )  # fmt: skip
    key = run.stage("prune", inputs, used, ["training", *(f"compress/{name}.py" for name in modules), *measuring])
    return run_stage(run.folder, "prune", key, action, force=run.force)


def distil_student(run: Run, photos: PhotoSplit, name: str = STUDENT) -> list[StageRecord]:
    """One student of best.pt, ready to ship: chosen, trained, exported, in int8 and with packed weights."""
    stages = make_student(run, run.best_path, photos, name)
    source = run.folder / name / "model.onnx"
    stages += [export(run, run.folder / name / "model.pt", name), *quantize_each(run, [source], photos)]
    packed = pack(run, source, f"{name}-w8")
    most, size_bytes = run.settings.budget.given().get("target_size"), packed.result["size_bytes"]
    if most is not None and size_bytes > most:
        warn(f"{name}-w8 has {size_bytes:,} bytes, more than the --target-size")
    return [*stages, packed]


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
    for name in ("pruned", *run.students()):
        path = run.folder / name / "model.pt"
        if not path.exists():
            continue
        made = run.load(path)
        if made.extra.get("teacher_sha256") == best.sha256:
            variants += _variants_of(run, name, path, made)
        else:
            again = "prune" if name == "pruned" else f"student --name {name}"
            warn(f"{name}/model.pt is of another best.pt and is left out: run `colorpress {again}` again")
    return (*variants, *_front_variants(run, best))


def _front_variants(run: Run, best: Checkpoint) -> list[Variant]:
    """Files of the front of a search."""
    variants = []
    for name in list_front(run.folder):
        exported = run.folder / name / "model.onnx"
        stem = next((name.removesuffix(each) for each in DERIVED_ENDINGS if name.endswith(each)), name)
        origin = run.folder / stem / "model.pt"
        if not (exported.is_file() and origin.is_file()):
            warn(f"{name} of the front is not there any more and is left out: run `colorpress compress` again")
            continue
        made, metadata = run.load(origin), read_metadata(exported)
        if (made.extra.get("teacher_sha256"), metadata.get("checkpoint_sha256")) != (best.sha256, made.sha256):
            warn(f"{name} is not of this best.pt and is left out: run `colorpress compress` again")
            continue
        size, network = run.settings.benchmark.bench_size[0], made.build_network()
        params, macs = count_parameters(network), count_macs(network, height=size, width=size)
        precision = metadata.get("precision", "fp32")
        variants.append(describe_variant(name, exported, precision=precision, params=params, macs=macs))
    return variants


def _variants_of(run: Run, name: str, path: Path, checkpoint: Checkpoint) -> list[Variant]:
    size, network = run.settings.benchmark.bench_size[0], checkpoint.build_network()
    params, macs = count_parameters(network), count_macs(network, height=size, width=size)
    variants = [describe_variant(f"{name}.pt", path, params=params, macs=macs, arch=run.arch_of(path))]
    for variant in (name, *(f"{name}{ending}" for ending in DERIVED_ENDINGS)):
        exported = run.folder / variant / "model.onnx"
        if not exported.exists():
            continue
        metadata = read_metadata(exported)
        if metadata.get("checkpoint_sha256") == checkpoint.sha256:
            precision = metadata.get("precision", "fp32")
            variants.append(describe_variant(variant, exported, precision=precision, params=params, macs=macs))
        else:
            warn(f"{variant}/model.onnx is not of {path.name} and is left out: make it again")
    return variants


def benchmark(run: Run, variants: Sequence[Variant], photos: PhotoSplit | None) -> StageRecord:
    """Time and score the first variant, best.pt, and every other: benchmark.csv, benchmark.json and the pictures.

    Args:
        photos: None measures time and size alone.
    """
    settings = run.settings

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        if photos and variants[0].runtime == "torch":
            warn_of_other_split(load_checkpoint(variants[0].path, variants[0].arch), photos)
        measured = run_benchmark(
            variants,
            photos.test if photos else (),
            settings.benchmark,
            run.folder,
            machine=settings.machine,
            data=settings.data,
        )
        failed = [str(row["model"]) for row in measured.rows if row["status"] != "ok"]
        return measured.paths, {"rows": len(measured.rows), "failed": failed}

    scored = PhotoSplit(train=(), val=(), test=photos.test if photos else (), skipped=())
    used = {
        **vars(settings.benchmark),
        **vars(settings.machine),
        **run.arch_key(),
        **run.data_key(scored),
        "names": [variant.name for variant in variants],
        "cautions": [variant.caution for variant in variants],
        "machine": machine_key(),
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

    shown = [path for pattern in _REPORTED for path in sorted(run.folder.glob(pattern))]
    inputs = [source, *shown]
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
