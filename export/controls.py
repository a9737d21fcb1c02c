"""Controls that see no picture: grey, one tint, and a table of colours by lightness, as ONNX files like any other.

Whatever a colorizer is worth, it has to be more than these. They are fitted on the training photographs: the median a
and b of all pixels (one tint), and of those of each of 32 lightnesses. A median is what L1 asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from colorpress.core.config import ExportConfig
from colorpress.core.errors import InputError
from colorpress.core.stages import StageRecord
from export.graph import publish_model
from export.parity import check_parity, require_parity
from export.predictors import INPUT_NAME, OUTPUT_NAME, OnnxPredictor
from training.batches import whole_photos
from training.cie import AB_SCALE
from training.device import torch_threads
from training.lab import rgb_to_l_ab
from training.photo_split import PhotoSplit
from training.run_folder import Run

GREY, TINT, TABLE = "grey", "tint", "table"
LIGHTNESSES = 32
CONTROL_NAMES: Mapping[str, str] = {GREY: "grey", TINT: "one tint", TABLE: "lightness table"}
# What each is called beside models.
CONTROL_TITLES: Mapping[str, str] = {control: f"control: {name}" for control, name in CONTROL_NAMES.items()}
_FOLDER = "controls"
# A random sample of training photographs, reduced: 64 medians need no more.
_MOST_PHOTOS, _SHORT_SIDE = 500, 128
# Of the histograms that medians are read from: a sixteenth of a unit of CIE Lab.
_LEVELS = 4096

Floats = NDArray[np.float32]


def make_controls(run: Run, photos: PhotoSplit) -> StageRecord:
    """Fit the controls on the training photographs and write controls/<name>.onnx of the run folder, as a stage.

    Raises:
        InputError: none of the photographs can be read.
    """
    seen = photos.train[:_MOST_PHOTOS]

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        pictures = whole_photos(seen, short_side=_SHORT_SIDE, max_pixels=run.settings.data.max_pixels)
        with torch_threads(1):  # pictures are small, and others may be busy
            tables = fit_controls(rgb_to_l_ab(rgb) for _, rgb in pictures)
        return [write_control(table, control_path(run, name)) for name, table in tables.items()], {}

    used = run.data_key(PhotoSplit(train=seen))
    return run.do("controls", action, settings=used)


def control_path(run: Run, name: str) -> Path:
    """Where a control of a run folder is."""
    return run.folder / _FOLDER / f"{name}.onnx"


def fit_controls(pictures: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Floats]:
    """The colours of each control, by lightness: (K, 2) float32 of ab/128, K = 1 but for the table.

    A lightness that no pixel has takes the colours of the nearest one that has.

    Args:
        pictures: L (1, 1, H, W) in [0, 1] and ab (1, 2, H, W) in ab/128.
    Raises:
        InputError: there is none.
    """
    counts = np.zeros((LIGHTNESSES, 2, _LEVELS), np.int64)
    for lightness, ab in pictures:
        rows = find_rows(lightness[0, 0], LIGHTNESSES).numpy().ravel()  # (pixels)
        levels = ((ab[0] + 1.0) * (_LEVELS / 2)).long().clamp(0, _LEVELS - 1).numpy().reshape(2, -1)  # (2, pixels)
        for channel in range(2):
            flat = np.bincount(rows * _LEVELS + levels[channel], minlength=LIGHTNESSES * _LEVELS)
            counts[:, channel] += flat.reshape(LIGHTNESSES, _LEVELS)
    known = np.flatnonzero(counts[:, 0].sum(1))
    if not len(known):
        raise InputError("data set", None, "no photograph to train on can be read", "check the folder of --data")
    nearest = known[np.abs(np.arange(LIGHTNESSES)[:, None] - known).argmin(1)]
    return {
        GREY: np.zeros((1, 2), np.float32),
        TINT: _medians(counts.sum(0, keepdims=True)),
        TABLE: _medians(counts)[nearest],
    }


def _medians(counts: NDArray[np.int64]) -> Floats:
    """(K, 2, levels) counts to (K, 2) medians; -1 where nothing was counted."""
    below = counts.cumsum(2)
    level = (2 * below < below[..., -1:]).sum(2)  # the first one that holds half of all, or more
    return np.asarray((level + 0.5) * (2 / _LEVELS) - 1.0, np.float32)


def find_rows(lightness: Tensor, rows: int) -> Tensor:
    """The row of a table of so many lightnesses for each L in [0, 1]."""
    return (lightness * rows).floor().long().clamp(0, rows - 1)


def write_control(table: Floats, destination: Path) -> Path:
    """Write a table of colours (K, 2) as an ONNX file, L (N, 1, H, W) to ab (N, 2, H, W), checked as any other is."""
    config = ExportConfig()
    rows = len(table)
    constants = {
        "rows": np.float32(rows),
        "first": np.int64(0),
        "last": np.int64(rows - 1),
        "channel": np.array([1], np.int64),
        "colours": table,
    }
    nodes = [
        helper.make_node("Mul", [INPUT_NAME, "rows"], ["scaled"]),
        helper.make_node("Floor", ["scaled"], ["floor"]),
        helper.make_node("Cast", ["floor"], ["row"], to=TensorProto.INT64),
        helper.make_node("Clip", ["row", "first", "last"], ["index"]),
        helper.make_node("Gather", ["colours", "index"], ["found"], axis=0),  # (N, 1, H, W, 2)
        helper.make_node("Squeeze", ["found", "channel"], ["pixels"]),
        helper.make_node("Transpose", ["pixels"], [OUTPUT_NAME], perm=[0, 3, 1, 2]),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, "H", "W"])
        for name, channels in ((INPUT_NAME, 1), (OUTPUT_NAME, 2))
    ]
    weights = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "colorpress", values[:1], values[1:], weights)
    opsets = [helper.make_opsetid("", config.opset)]
    model: onnx.ModelProto = helper.make_model(
        graph,
        producer_name="colorpress",
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
    )
    colours = torch.from_numpy(table)

    def look_up(lightness: NDArray[np.float32]) -> NDArray[np.float32]:
        found = colours[find_rows(torch.from_numpy(lightness)[:, 0], rows)]  # (N, H, W, 2)
        return found.permute(0, 3, 1, 2).numpy()

    def check(trial: Path) -> Any:
        return require_parity(check_parity(look_up, OnnxPredictor(trial), atol=config.atol), destination.name)

    entries = {"task": "control", "precision": "fp32", "ab_scale": f"{AB_SCALE:g}"}
    return publish_model(model, entries, destination, check).path
