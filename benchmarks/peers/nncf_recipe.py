"""NNCF's post-training int8, of an OpenVINO or an ONNX model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nncf
import numpy as np

_SUBSET_SIZE = 300


def make_files(graph: Path, calibration: Path, folder: Path, options: Mapping[str, Any]) -> None:
    """Write model.xml and model.bin, or model.onnx, by `options["model"]`: "openvino" or "onnx".

    The preset is the default, "performance": the other one, "mixed", is for activations that ReLU does not cut.
    """
    paths = sorted(calibration.glob("*.npy"))
    if options["model"] == "openvino":
        import openvino

        dataset = nncf.Dataset(paths, np.load)
        quantized = nncf.quantize(openvino.Core().read_model(graph), dataset, subset_size=_SUBSET_SIZE)
        openvino.save_model(quantized, folder / "model.xml")
        return
    import onnx

    dataset = nncf.Dataset(paths, lambda path: {"L": np.load(path)})
    onnx.save(nncf.quantize(onnx.load(graph), dataset, subset_size=_SUBSET_SIZE), folder / "model.onnx")
