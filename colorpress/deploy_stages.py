"""From a variant's bare network to what is shipped: the picture graph, its check over many sizes, the bundle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.rows import Benchmark, Row, read_benchmark_json
from benchmarks.verdict import judge_benchmark
from colorpress.core.console import progress, say, warn
from colorpress.core.errors import ConfigError, GateError, InputError, MachineError
from colorpress.core.files import write_csv, write_json, write_text
from colorpress.core.machine import machine_key
from colorpress.core.stages import StageRecord
from compress.measures import MEASURES, Strength
from compress.precisions import find_precision, origin_of, variant_names
from compress.students.search_front import list_front
from compress.students.student_plan import list_students
from export.autocast import without_autocast
from export.bundle.bundle import PLAIN_NAME, BundleResult, write_bundle
from export.colorizers import OnnxColorizer
from export.deployable import check_colorizer, export_colorizer, write_ort
from export.graph import as_exported, read_metadata
from export.metadata_figures import write_measured
from export.onnx_probe import refuse_hostile
from export.parity import ParityResult, check_parity, check_picture_parity, matrix_shapes
from export.picture_reference import color_pixels
from export.predictors import OnnxPredictor
from export.provider_matrix import format_matrix, list_matrix
from export.runtimes import RUNTIMES
from export.torch_runtimes import TorchPredictor
from training.network import FieldNetwork
from training.photo_split import PhotoSplit
from training.photos import Photo, load_rgb
from training.run_folder import Run

# Photographs that a picture graph is compared on before it is published.
_COMPARED_PHOTOS = 3
_LONGEST_SIDE = 1024
_NONE = {"max_levels": 0}
_PARITY_COLUMNS = ("variant", "precision", "batch", "height", "width", "max_abs", "mean_abs", "p999_abs", "psnr_db")


def exported_variants(run: Run) -> list[str]:
    """Names of the variants that have a bare network, in the order of the pipeline.

    Raises:
        InputError: there are none.
    """
    made = [each for name in ("best", "pruned", *list_students(run.folder)) for each in variant_names(name)]
    found = [name for name in (*made, *list_front(run.folder)) if (run.folder / name / "model.onnx").is_file()]
    if not found:
        raise InputError("folder", run.folder, "holds no model.onnx", "run `colorpress export` first")
    return found


def deploy(run: Run, variant: str, photos: Sequence[Photo]) -> StageRecord:
    """Write <variant>/colorizer.onnx, pixels in and pixels out, with what was measured of it in its metadata."""
    source, destination = run.folder / variant / "model.onnx", run.folder / variant / "colorizer.onnx"
    config, compared = run.settings.deploy, photos[:_COMPARED_PHOTOS]
    figures = _read_figures(run, variant)

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        export = partial(
            export_colorizer,
            source,
            work_size=config.work_size,
            saturation=config.saturation,
            pictures=_load_pictures(run, compared),
            metadata=figures,
        )
        plain, ort = destination.with_name(PLAIN_NAME), destination.with_suffix(".ort")
        # Those of an earlier call may be of another network, and would be taken for this one's.
        for earlier in (plain, ort):
            earlier.unlink(missing_ok=True)
        made, files = export(destination), [destination]
        if config.plain or config.plain_shape:
            files.append(export(plain, plain=True, size=config.plain_shape).path)
        if config.ort:
            files.append(write_ort(destination, ort))
        say(f"{variant}: colorizer.onnx, {made.size_bytes:,} bytes, within {made.parity.max_levels} level of PyTorch")
        return files, {"size_bytes": made.size_bytes, **asdict(made.parity)}

    used = {**vars(config), "figures": figures, "photos": [photo.sha256 for photo in compared]}
    return run.do(f"colorizer-{variant}", action, inputs=[source], settings=used)


def verify(run: Run, variants: Sequence[str], photos: Sequence[Photo]) -> StageRecord:
    """Compare every variant with PyTorch over some 200 sizes, and its pictures on photographs: parity.csv and .json.

    And run every file in all runtimes that are here, and read what the others say that they take: providers.txt.

    Raises:
        GateError: a float32 file differs by more than --atol, or any picture graph by more than a grey level from its
            own network's colours; the two files say where.
    """
    paths = [run.folder / name / "model.onnx" for name in variants]
    compared = photos[:_COMPARED_PHOTOS]

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        rows: list[dict[str, Any]] = []
        summary: dict[str, Any] = {}
        failed: list[str] = []
        with progress("comparing with PyTorch", len(variants)) as shown:
            for name in variants:
                net, summary[name] = _verify_variant(run, name, compared)
                common = {"variant": name, "precision": summary[name]["precision"]}
                rows += [common | asdict(shape) for shape in net.shapes]
                pictures = summary[name]["pictures"]
                if not net.passed or any(
                    pictures.get(kind, _NONE)["max_levels"] > 1 for kind in ("own_network", "plain")
                ):
                    failed.append(name)
                shown.advance()
        files_seen = [*paths, *colorizers]
        names = [f"{path.parent.name}/{path.name}" for path in files_seen]
        matrix = dict(zip(names, list_matrix(files_seen), strict=True))
        files = [
            write_csv(run.folder / "parity.csv", _PARITY_COLUMNS, rows),
            write_json(
                run.folder / "parity.json", found := {"variants": summary, "failed": failed, "providers": matrix}
            ),
            write_text(run.folder / "providers.txt", "\n".join([*format_matrix(matrix), ""])),
        ]
        return files, found

    used = {**vars(run.settings.export), "variants": list(variants), "photos": [each.sha256 for each in compared]}
    names = ("colorizer.onnx", PLAIN_NAME)
    colorizers = [each for name in names for each in (path.with_name(name) for path in paths) if each.is_file()]
    used |= {"colorizers": [f"{path.parent.name}/{path.name}" for path in colorizers], **run.arch_key()}
    used |= {"machine": machine_key(), "runtimes": _runtimes_here()}
    record = run.do("verify", action, inputs=[*paths, *colorizers], settings=used)
    if record.result["failed"]:
        why = f"{', '.join(record.result['failed'])} differ from PyTorch by more than is allowed"
        raise GateError("parity", run.folder, why, "see parity.csv")
    return record


def _runtimes_here() -> list[str]:
    """Those that run ONNX files; wheels of providers are not all among the libraries of `machine_key`."""
    names: list[str] = []
    for name, runtime in RUNTIMES.items():
        with suppress(MachineError):
            if ".onnx" in runtime.suffixes:
                runtime.require()
                names.append(name)
    return names


def bundle(run: Run, variant: str | None, destination: Path, photos: PhotoSplit, *, web: bool) -> BundleResult:
    """Write a folder ready to ship: a variant's picture graph with its card, an example and a web page.

    Args:
        variant: a name of the run folder; None: the one that the benchmark recommends.
    Raises:
        ConfigError: no such variant, or there is none to recommend.
    """
    measured = _read_measured(run)
    if variant is None:
        verdict = judge_benchmark(measured) if measured else None
        variant = (verdict.recommended or "").partition(" @ ")[0] if verdict else ""
        if not variant:
            why = f"recommends nothing: {verdict.sentence}" if verdict else "holds no benchmark.json to choose by"
            hint = (
                "name one with --variant" if verdict else "run `colorpress benchmark` first, or name one with --variant"
            )
            raise ConfigError("folder", run.folder, why, hint)
    names = exported_variants(run)
    if variant not in names:
        raise ConfigError("option --variant", variant, "no such variant", f"choose one of: {', '.join(names)}")
    deploy(run, variant, photos.test)
    graph, network, figures = run.folder / variant / "colorizer.onnx", run.folder / variant / "model.onnx", None
    plain = run.folder / variant / PLAIN_NAME if run.settings.deploy.plain or run.settings.deploy.plain_shape else None
    if measured:
        row, counts = _row_of(measured, variant), {"train_photos": len(photos.train), "val_photos": len(photos.val)}
        figures = {**(vars(row) if row else {}), "date": measured.date, "machine": measured.machine, **counts}
        figures |= _describe_strength(measured.strength)
    return write_bundle(graph, network, destination, web=web, plain=plain, figures=figures, force=run.force)


@without_autocast()
def _verify_variant(run: Run, variant: str, photos: Sequence[Photo]) -> tuple[ParityResult, dict[str, Any]]:
    """The parity of a bare network, and its summary with that of the picture graph, where there is one."""
    path, origin = run.folder / variant / "model.onnx", origin_of(variant)
    refuse_hostile(path)
    metadata = read_metadata(path)
    precision = metadata.get("precision", "fp32")
    checkpoint = run.best_path if origin == "best" else run.folder / origin / "model.pt"
    network = as_exported(run.load(checkpoint).build_network(), metadata)
    reference, candidate = TorchPredictor(network), OnnxPredictor(path)
    atol = run.settings.export.atol if find_precision(precision).exact else None
    net = check_parity(reference, candidate, shapes=matrix_shapes(), atol=atol)
    colorizer, plain, pictures = path.with_name("colorizer.onnx"), path.with_name(PLAIN_NAME), {}
    if colorizer.is_file():
        refuse_hostile(colorizer)
        photographs = _load_pictures(run, photos)
        graph, original = OnnxColorizer(colorizer, saturation=1.0, threads=1), TorchPredictor(FieldNetwork(network))
        own = check_colorizer(graph, OnnxPredictor(path, field=True, threads=1), photographs=photographs)
        to_original = check_picture_parity(
            lambda pixels, size: color_pixels(pixels, original, work_size=size), graph, photographs=photographs
        )
        pictures = {"own_network": asdict(own), "original_network": asdict(to_original)}
        if plain.is_file():
            refuse_hostile(plain)
            graph = OnnxColorizer(plain, threads=1)
            own = check_colorizer(graph, OnnxPredictor(path, field=True, threads=1), photographs=photographs)
            pictures["plain"] = asdict(own)
    return net, {
        "precision": precision,
        "shapes": len(net.shapes),
        "undecided": len(net.undecided),
        "max_abs": net.max_abs,
        "mean_abs": net.mean_abs,
        "p999_abs": max(shape.p999_abs for shape in net.shapes),
        "psnr_db": min((shape.psnr_db for shape in net.shapes if shape.psnr_db is not None), default=None),
        "pictures": pictures,
    }


def _load_pictures(run: Run, photos: Sequence[Photo]) -> list[NDArray[np.uint8]]:
    limit = run.settings.data.max_pixels
    return [load_rgb(photo.path, max_pixels=limit, short_side=_LONGEST_SIDE) for photo in photos]


def _read_figures(run: Run, variant: str) -> dict[str, str]:
    """What the benchmark of this run folder says of a variant's file, as metadata; empty where it says nothing."""
    measured = _read_measured(run)
    row = _row_of(measured, variant)
    # Another file may have taken the place of the one that was measured.
    if row is None or row.l1 is None or row.size_bytes != (run.folder / variant / "model.onnx").stat().st_size:
        return {}
    strength = measured.strength if measured else None
    return write_measured(
        {
            "measured_photos": row.photos,
            "measure": strength.measure.name if strength else None,
            **{name: row.kept(measure) for name, measure in MEASURES.items()},
            "l1": row.l1,
            "l1_change_pct": row.l1_delta_pct,
            "chroma_to_truth": row.chroma_to_truth,
            "original_below_grey_pct": strength.below_grey_pct if strength else None,
            "original_below_table_pct": strength.below_table_pct if strength else None,
        }
    )


def _describe_strength(strength: Strength | None) -> dict[str, str]:
    """How strong best.pt is and which measure decides, in words; empty where no colours were measured."""
    if strength is None:
        return {}
    return {"measure": str(strength.measure), "strength": strength.describe(), "warning": strength.caution}


def _read_measured(run: Run) -> Benchmark | None:
    """The benchmark of a run folder, where it has one that can be read."""
    path = run.folder / "benchmark.json"
    if not path.is_file():
        return None
    try:
        return read_benchmark_json(path)
    except InputError as error:
        warn(f"{error}, so its figures are left out")
        return None


def _row_of(measured: Benchmark | None, variant: str) -> Row | None:
    return next((row for row in (measured.rows if measured else ()) if row.variant == variant), None)
