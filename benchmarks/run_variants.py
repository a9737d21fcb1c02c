"""The variants that a run folder holds: best.pt and every file made from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.variants import Variant, describe_variant
from colorpress.core.console import warn
from colorpress.core.errors import ConfigError
from compress.precisions import origin_of, variant_names
from compress.ranking import count_macs
from compress.students.search_front import list_front
from compress.students.student_plan import list_students
from export.graph import read_metadata
from training.checkpoint import Checkpoint
from training.run_folder import Run
from training.unet import count_parameters


def list_variants(run: Run) -> tuple[Variant, ...]:
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
    for name in ("pruned", *list_students(run.folder)):
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
        exported, origin = run.folder / name / "model.onnx", run.folder / origin_of(name) / "model.pt"
        if not (exported.is_file() and origin.is_file()):
            warn(f"{name} of the front is not there any more and is left out: run `colorpress compress` again")
            continue
        made = run.load(origin)
        if made.extra.get("teacher_sha256") == best.sha256 and _is_of(exported, made):
            variants.append(_describe(run, name, exported, made))
        else:
            warn(f"{name} is not of this best.pt and is left out: run `colorpress compress` again")
    return variants


def _variants_of(run: Run, name: str, path: Path, checkpoint: Checkpoint) -> list[Variant]:
    """A checkpoint and every file that it was exported to."""
    variants = [_describe(run, f"{name}.pt", path, checkpoint)]
    for variant in variant_names(name):
        exported = run.folder / variant / "model.onnx"
        if exported.exists() and _is_of(exported, checkpoint):
            variants.append(_describe(run, variant, exported, checkpoint))
        elif exported.exists():
            warn(f"{variant}/model.onnx is not of {path.name} and is left out: make it again")
    return variants


def _is_of(exported: Path, checkpoint: Checkpoint) -> bool:
    return read_metadata(exported).get("checkpoint_sha256") == checkpoint.sha256


def _describe(run: Run, name: str, path: Path, checkpoint: Checkpoint) -> Variant:
    """A checkpoint or a file that was exported from it, with the sizes of the checkpoint's network."""
    size, network = run.settings.time.bench_size[0], checkpoint.build_network()
    macs = count_macs(network, height=size, width=size)
    known: dict[str, Any] = {"params": count_parameters(network), "macs": macs, "macs_size": size}
    if path.suffix == ".onnx":
        return describe_variant(name, path, precision=read_metadata(path).get("precision", "fp32"), **known)
    return describe_variant(name, path, arch=checkpoint.arch, **known)
