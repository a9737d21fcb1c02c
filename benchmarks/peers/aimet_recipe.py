"""AIMET's int8 for ONNX files, by calibration alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from aimet_onnx.quantsim import QuantizationSimModel


def make_files(graph: Path, calibration: Path, folder: Path, options: Mapping[str, Any]) -> None:
    """Write model.onnx: a simulation with the defaults, calibrated and written out.

    With one option in its favour: by default it keeps weights in float32, in front of a quantizer.
    """
    simulation = QuantizationSimModel(onnx.load(graph))
    simulation.compute_encodings([{"L": np.load(path)} for path in sorted(calibration.glob("*.npy"))])
    whole = simulation.to_onnx_qdq(prequantize_constants=True)
    # It has all metadata twice, which is no valid file.
    onnx.helper.set_model_props(whole, {each.key: each.value for each in whole.metadata_props})
    onnx.save(whole, folder / "model.onnx")
