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
Doubles = npt.NDArray[np.float64]

METHODS = ("minmax", "percentile", "entropy", "mse")

_HALF_BINS = 4096  # on each side of zero
_LEVELS = 255
_CLIPPINGS = tuple(np.linspace(1.0, 0.2, 128))  # of the observed range, tried by mse and entropy


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

    def range_by(self, method: str, percentile: float = 99.5) -> tuple[float, float]:
        """The (low, high) to represent in 8 bits, zero included: minmax, percentile, entropy or mse."""
        if method == "minmax" or not self.counts.any():
            return self.low, self.high
        if method == "percentile":
            low, high = self._percentile_range(percentile)
        else:
            cost = {"entropy": self._divergence, "mse": self._squared_error}[method]
            centres = self._centres
            clipped = [(self.low * fraction, self.high * fraction) for fraction in _CLIPPINGS]
            low, high = min(clipped, key=lambda bounds: cost(centres, *bounds))
        return max(low, self.low), min(high, self.high)

    @property
    def _edges(self) -> Doubles:  # (bins + 1,)
        return np.linspace(-self.limit, self.limit, 2 * _HALF_BINS + 1)

    @property
    def _centres(self) -> Doubles:  # (bins,)
        return (self._edges[:-1] + self._edges[1:]) / 2.0

    def _percentile_range(self, percentile: float) -> tuple[float, float]:
        """All but the outermost (100 - percentile) percent of the values, split over both tails."""
        total = self.counts.sum()
        outside = total * (1.0 - percentile / 100.0) / 2.0
        summed = np.cumsum(self.counts)
        first = int(np.searchsorted(summed, outside, side="right"))
        last = int(np.searchsorted(summed, total - outside, side="left"))
        return min(0.0, float(self._edges[first])), max(0.0, float(self._edges[last + 1]))

    def _squared_error(self, centres: Doubles, low: float, high: float) -> float:
        """The expected squared error of 256 levels from low to high.

        Clipping costs the squared distance of what lies outside, rounding a twelfth of a squared step inside.
        """
        step = (high - low) / _LEVELS
        outside = np.maximum(low - centres, 0.0) + np.maximum(centres - high, 0.0)
        return float(np.sum(self.counts * np.where(outside > 0, outside**2, step**2 / 12.0)))

    def _divergence(self, centres: Doubles, low: float, high: float) -> float:
        """The Kullback-Leibler divergence of the values from what 256 levels from low to high make of them.

        What lies outside counts for the outermost bins inside; each level spreads evenly over its bins that are not
        empty. Source: Migacz 2017, 8-bit inference with TensorRT.
        """
        first, end = np.searchsorted(centres, low), np.searchsorted(centres, high, side="right")
        if end - first <= _LEVELS:
            return math.inf  # fewer bins than levels: nothing is rounded, and nothing can be told
        kept = self.counts[first:end].astype(np.float64)
        clipped = kept.copy()
        clipped[0] += self.counts[:first].sum()
        clipped[-1] += self.counts[end:].sum()
        level = np.arange(len(kept)) * (_LEVELS + 1) // len(kept)
        sums = np.bincount(level, weights=kept)
        filled = np.bincount(level, weights=kept > 0)
        spread = np.where(kept > 0, sums[level] / np.maximum(filled[level], 1), 0.0)
        if not spread.sum():
            return math.inf
        true, told = clipped / clipped.sum(), spread / spread.sum()
        known = true > 0
        # A bin that only clipping filled has no share in what the levels tell; it must cost something finite.
        return float(np.sum(true[known] * np.log(true[known] / np.maximum(told[known], 1e-12))))


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
