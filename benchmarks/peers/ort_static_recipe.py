"""ONNX Runtime's own static quantization, with its defaults or with a scale per channel."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process


class PhotoReader(CalibrationDataReader):  # type: ignore[misc]
    """One calibration photograph at a time."""

    def __init__(self, folder: Path) -> None:
        self.inputs = ({"L": np.load(path)} for path in sorted(folder.glob("*.npy")))

    def get_next(self) -> dict[str, Any] | None:
        """The next photograph as the model's input; None after the last."""
        return next(self.inputs, None)


def make_files(graph: Path, calibration: Path, folder: Path, options: Mapping[str, Any]) -> None:
    """Write model.onnx: pre-processed as the documentation advises, then QDQ, min-max, its default types.

    Args:
        options: "per_channel": whether each output channel's weights have a scale of their own.
    """
    prepared = folder / "prepared.onnx"
    # Its symbolic shape inference is for transformers by the documentation, and fails on a graph for any picture size.
    quant_pre_process(str(graph), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared), str(folder / "model.onnx"), PhotoReader(calibration), per_channel=options["per_channel"]
    )
    prepared.unlink()
