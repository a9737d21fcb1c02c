"""NVIDIA Model Optimizer's int8 for ONNX files, with two options in its favour where a CPU runs the file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from modelopt.onnx.quantization import quantize
from onnxruntime.quantization.calibrate import CalibrationDataReader


class _PhotoReader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, folder: Path) -> None:
        self.all = sorted(folder.glob("*.npy"))
        self.rewind()

    def rewind(self) -> None:
        self.left = iter(self.all)

    def get_first(self) -> dict[str, Any]:
        return {"L": np.load(self.all[0])}

    def get_next(self) -> dict[str, Any] | None:
        path = next(self.left, None)
        return None if path is None else {"L": np.load(path)}


def make_files(graph: Path, calibration: Path, folder: Path, options: Mapping[str, Any]) -> None:
    """Write model.onnx.

    Its other defaults are for TensorRT, which folds: float layers in fp16, and weights in float32 behind a quantizer.
    """
    quantize(
        str(graph),
        quantize_mode="int8",
        calibration_data_reader=_PhotoReader(calibration),
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        dq_only=True,
        output_path=str(folder / "model.onnx"),
    )
