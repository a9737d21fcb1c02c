"""Activation ranges for int8, from histograms that grow with what they see: one pass, little memory, any sizes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from colorpress.core.errors import InputError
from export.sessions import open_session

Floats = npt.NDArray[np.float32]

_HALF_BINS = 4096  # on each side of zero


class ActivationHistogram:
    """Counts of a tensor's values in equal bins around zero; the range doubles whenever a value lies outside it.

    Bins are merged in pairs when that happens, so neither memory nor the answer depends on how many pictures are
    seen or on their order.
    """

    def __init__(self) -> None:
        self.limit = 2.0**-20
        self.counts = np.zeros(2 * _HALF_BINS, dtype=np.int64)
        self.low, self.high = 0.0, 0.0

    def add(self, values: Floats) -> None:
        """Count `values`, of any shape."""
        flat = values.reshape(-1)
        low, high = float(flat.min()), float(flat.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InputError("model", None, "answers NaN or Inf to a calibration photograph", "check its weights")
        self.low, self.high = min(self.low, low), max(self.high, high)
        self._grow_to(max(-self.low, self.high))
        bins = (flat * np.float32(_HALF_BINS / self.limit) + np.float32(_HALF_BINS)).astype(np.int32)
        np.minimum(bins, 2 * _HALF_BINS - 1, out=bins)
        self.counts += np.bincount(bins, minlength=2 * _HALF_BINS)

    def _grow_to(self, magnitude: float) -> None:
        while self.limit < magnitude:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            quarter = _HALF_BINS // 2
            self.counts = np.concatenate((np.zeros(quarter, np.int64), pairs, np.zeros(quarter, np.int64)))
            self.limit *= 2.0

    def range_of(self, percentile: float) -> tuple[float, float]:
        """The (low, high) that hold so many percent of the values, zero included; of 100 those of all values.

        What is left out is split over both tails.
        """
        if percentile == 100.0 or not self.counts.any():
            return self.low, self.high
        total = self.counts.sum()
        outside = total * (1.0 - percentile / 100.0) / 2.0
        summed = np.cumsum(self.counts)
        first = int(np.searchsorted(summed, outside, side="right"))
        last = int(np.searchsorted(summed, total - outside, side="left"))
        edges = np.linspace(-self.limit, self.limit, 2 * _HALF_BINS + 1)
        return max(self.low, min(0.0, float(edges[first]))), min(self.high, max(0.0, float(edges[last + 1])))


def observe_activations(
    model: onnx.ModelProto, tensors: Sequence[str], pictures: Sequence[Floats], *, threads: int = 0
) -> dict[str, ActivationHistogram]:
    """Run pictures through a float model one at a time and count the values of each of `tensors`.

    Args:
        model: with one input, L (N, 1, H, W).
        tensors: names of float values of the graph.
        pictures: L (1, 1, H, W) float32 in [0, 1], of any sizes.
        threads: CPU threads; 0: ONNX Runtime's choice.
    Raises:
        InputError: no picture, a picture of another shape or type, or an answer that is not finite.
    """
    if not pictures:
        raise InputError("calibration", None, "got no picture", "give at least one photograph")
    watched = deepcopy(model)
    present = {value.name for value in watched.graph.output}
    for name in tensors:
        if name not in present:
            watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    session = open_session(Path("calibration"), watched.SerializeToString(), threads=threads or None)
    source = session.get_inputs()[0].name
    histograms = {name: ActivationHistogram() for name in tensors}
    for picture in pictures:
        if picture.dtype != np.float32 or picture.ndim != 4 or picture.shape[1] != 1 or not picture.size:
            got = f"{picture.dtype} {picture.shape}"
            raise InputError("calibration picture", None, f"got {got}", "give float32 (1, 1, H, W)")
        answers: list[Any] = session.run(list(tensors), {source: picture})
        for name, values in zip(tensors, answers, strict=True):
            histograms[name].add(values)
    return histograms


def hash_pictures(pictures: Sequence[Floats]) -> str:
    """The SHA-256 over shapes and values of pictures, in order."""
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(f"{picture.shape};".encode())
        digest.update(np.ascontiguousarray(picture).tobytes())
    return digest.hexdigest()
