"""The stages that write a checkpoint's ONNX file: as it is, and with its weights stored in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colorpress.core.console import say
from colorpress.core.stages import StageRecord
from compress.packing import pack_onnx
from export.graph import export_onnx
from export.parity import check_parity
from export.predictors import OnnxPredictor
from training.run_folder import Run


def export(run: Run, checkpoint: Path, variant: str) -> StageRecord:
    """Export a checkpoint to <variant>/model.onnx, published only when it answers as PyTorch does."""
    destination = run.folder / variant / "model.onnx"

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        exported = export_onnx(run.load(checkpoint), destination, run.settings.export, metadata={})
        say(f"{variant}: {exported.size_bytes:,} bytes, {exported.parity.describe()}")
        return [exported.path], {"size_bytes": exported.size_bytes, "max_abs_diff": exported.parity.max_abs}

    used = {**vars(run.settings.export), **run.arch_key()}
    return run.do(f"export-{variant}", action, inputs=[checkpoint], settings=used)


def pack(run: Run, source: Path, variant: str, precision: str = "w8") -> StageRecord:
    """Write <variant>/model.onnx, whose weights are stored in 8 or 16 bits and computed with in float."""
    destination = run.folder / variant / "model.onnx"

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        packed = pack_onnx(source, destination, precision=precision)
        parity = check_parity(OnnxPredictor(source), OnnxPredictor(destination), atol=None)
        say(f"{variant}: {packed.size_bytes:,} bytes, mean difference to 32-bit weights {parity.mean_abs:.1e}")
        return [destination], {
            "size_bytes": packed.size_bytes,
            "mean_abs_diff": parity.mean_abs,
            "max_abs_diff": parity.max_abs,
        }

    return run.do(f"pack-{variant}", action, inputs=[source], settings={"precision": precision})
