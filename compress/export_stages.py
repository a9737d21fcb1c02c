"""The stages that write a checkpoint's files: ONNX as it is and in fewer bits of weights, and those for phones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colorpress.core.console import say
from colorpress.core.machine import installed_version
from colorpress.core.stages import StageRecord
from compress.importance import load_pictures
from compress.packing import pack_onnx
from compress.precisions import PRECISIONS, variant_name
from export.graph import export_onnx
from export.mobile_files import MOBILE_FORMATS, MobileFormat, export_mobile, worst_db
from export.parity import check_parity
from export.predictors import OnnxPredictor
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run

# Photographs that channels in 4 bits are matched on: 64 gave no more content colour.
_PACKING_PHOTOS = 16


def export(run: Run, checkpoint: Path, variant: str) -> StageRecord:
    """Export a checkpoint to <variant>/model.onnx, published only when it answers as PyTorch does."""
    destination = run.folder / variant / "model.onnx"

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        exported = export_onnx(run.load(checkpoint), destination, run.settings.export, metadata={})
        say(f"{variant}: {exported.size_bytes:,} bytes, {exported.parity.describe()}")
        return [exported.path], {"size_bytes": exported.size_bytes, "max_abs_diff": exported.parity.max_abs}

    used = {**vars(run.settings.export), **run.arch_key()}
    return run.do(f"export-{variant}", action, inputs=[checkpoint], settings=used)


def pack(run: Run, source: Path, variant: str, precision: str = "w8", photos: Sequence[Photo] = ()) -> StageRecord:
    """Write <variant>/model.onnx, whose weights are stored in 4, 8 or 16 bits and computed with in float.

    Args:
        photos: training photographs, of which 4 bits look at the first; none: 4 bits of nothing but the weights.
    """
    destination = run.folder / variant / "model.onnx"
    seen = photos[:_PACKING_PHOTOS] if PRECISIONS[precision].calibrates else ()
    short_side = run.settings.quantize.calibration_size

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        pictures = load_pictures(seen, short_side=short_side, data=run.settings.data)
        lightness = [each.numpy() for each, _ in pictures]
        packed = pack_onnx(source, destination, precision=precision, pictures=lightness)
        parity = check_parity(OnnxPredictor(source), OnnxPredictor(destination), atol=None)
        say(f"{variant}: {packed.size_bytes:,} bytes, mean difference to 32-bit weights {parity.mean_abs:.1e}")
        return [destination], {
            "size_bytes": packed.size_bytes,
            "mean_abs_diff": parity.mean_abs,
            "max_abs_diff": parity.max_abs,
            **({"matched": packed.matched} if seen else {}),
        }

    used: dict[str, Any] = {"precision": precision}
    if seen:
        used |= {"short_side": short_side, **run.data_key(PhotoSplit(tuple(seen)))}
    return run.do(f"pack-{variant}", action, inputs=[source], settings=used)


def calibrates(run: Run) -> bool:
    """Whether a format that is asked for sets its ranges by photographs."""
    return any(MOBILE_FORMATS[name].calibrates for name in run.settings.mobile.mobile_format)


def export_for_phones(
    run: Run, checkpoint: Path, variant: str, photos: Sequence[Photo] = ()
) -> tuple[StageRecord, ...]:
    """Export a checkpoint as --to asks: <variant>/model.tflite, <variant>-int8/model.pte and so on.

    Args:
        photos: training photographs, of which formats that calibrate take the first.
    """
    kinds = (MOBILE_FORMATS[name] for name in run.settings.mobile.mobile_format)
    return tuple(_export_mobile(run, checkpoint, variant, kind, photos) for kind in kinds)


def _export_mobile(
    run: Run, checkpoint: Path, variant: str, kind: MobileFormat, photos: Sequence[Photo]
) -> StageRecord:
    settings, made = run.settings, variant_name(variant, kind.precision)
    destination, side = run.folder / made / f"model{kind.suffix}", settings.mobile.mobile_size
    short_side = settings.quantize.calibration_size
    seen = photos[: settings.quantize.calibration_photos] if kind.calibrates else ()

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        pictures = load_pictures(seen, short_side=short_side, data=settings.data)
        lightness = [each.numpy() for each, _ in pictures]
        exported = export_mobile(run.load(checkpoint), destination, kind, side=side, pictures=lightness)
        worst = worst_db(exported.parity)
        near = "equal to PyTorch" if worst is None else f"{worst:.0f} dB from PyTorch"
        say(f"{made}: model{kind.suffix}, {exported.size_bytes:,} bytes, {near}")
        return [exported.path], {"size_bytes": exported.size_bytes, "sha256": exported.sha256, "psnr_db": worst}

    used = {"format": kind.name, "library": installed_version(kind.package), "size": side, **run.arch_key()}
    if seen:
        used |= {"short_side": short_side, **run.data_key(PhotoSplit(tuple(seen)))}
    return run.do(f"mobile-{made}{kind.suffix}", action, inputs=[checkpoint], settings=used)
