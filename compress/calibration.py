"""Activation ranges for int8, from histograms that grow with what they see: one pass, little memory, any sizes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from colorpress.errors import InputError

Floats = npt.NDArray[np.float32]

# The decoder's last activations have long thin tails; of 99.9 to 99.9999 this was nearest to float by a factor of
# three and more, on a trained UNet and photographs.
_HALF_BINS = 4096  # on each side of zero
_LEVELS = 255
_MSE_STEPS = 128


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
        """The (low, high) to represent in 8 bits, zero included: minmax, percentile or mse."""
        if method == "minmax" or not self.counts.any():
            return self.low, self.high
        low, high = self._percentile_range(percentile) if method == "percentile" else self._mse_range()
        return max(low, self.low), min(high, self.high)

    @property
    def _edges(self) -> npt.NDArray[np.float64]:
        return np.linspace(-self.limit, self.limit, 2 * _HALF_BINS + 1)

    def _percentile_range(self, percentile: float) -> tuple[float, float]:
        """All but the outermost (100 - percentile) percent of the values, split over both tails."""
        total = self.counts.sum()
        outside = total * (1.0 - percentile / 100.0) / 2.0
        summed = np.cumsum(self.counts)
        first = int(np.searchsorted(summed, outside, side="right"))
        last = int(np.searchsorted(summed, total - outside, side="left"))
        return min(0.0, float(self._edges[first])), max(0.0, float(self._edges[last + 1]))

    def _mse_range(self) -> tuple[float, float]:
        """The clipping of either tail with the smallest expected squared error of 255 levels.

        Clipping costs the squared distance of what lies outside, rounding a twelfth of a squared step inside.
        """
        edges = self._edges
        centres = (edges[:-1] + edges[1:]) / 2.0
        best = (math.inf, self.low, self.high)
        for fraction in np.linspace(1.0, 0.2, _MSE_STEPS):
            low, high = self.low * fraction, self.high * fraction
            step = (high - low) / _LEVELS
            outside = np.maximum(low - centres, 0.0) + np.maximum(centres - high, 0.0)
            error = float(np.sum(self.counts * np.where(outside > 0, outside**2, step**2 / 12.0)))
            best = min(best, (error, low, high))
        return best[1], best[2]


@dataclass(frozen=True)
class Calibration:
    """Histograms of tensors over some pictures.

    Attributes:
        histograms: tensor name to its histogram.
        pictures: how many were seen.
        sha256: of the pictures' shapes and values, in order.
    """

    histograms: Mapping[str, ActivationHistogram]
    pictures: int
    sha256: str


def observe_activations(
    model: onnx.ModelProto, tensors: Sequence[str], pictures: Iterable[Floats], *, threads: int = 0
) -> Calibration:
    """Run pictures through a float model one at a time and count the values of `tensors`.

    Args:
        model: with one input, L (N, 1, H, W).
        tensors: names of float values of the graph.
        pictures: L (1, 1, H, W) float32 in [0, 1], of any sizes; read once.
        threads: CPU threads; 0: ONNX Runtime's choice.
    Raises:
        InputError: no picture, a picture of another shape or type, or an answer that is not finite.
    """
    import onnxruntime as ort

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {value.name for value in watched.graph.output}
    for name in tensors:
        if name not in present:
            watched.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4
    session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
    source = session.get_inputs()[0].name
    histograms = {name: ActivationHistogram() for name in tensors}
    digest = hashlib.sha256()
    count = 0
    for picture in pictures:
        if picture.dtype != np.float32 or picture.ndim != 4 or picture.shape[1] != 1 or not picture.size:
            got = f"{picture.dtype} {picture.shape}"
            raise InputError("calibration picture", None, f"got {got}", "give float32 (1, 1, H, W)")
        digest.update(f"{picture.shape};".encode())
        digest.update(np.ascontiguousarray(picture).tobytes())
        answers: list[Any] = session.run(list(tensors), {source: picture})
        for name, values in zip(tensors, answers, strict=True):
            histograms[name].add(values)
        count += 1
    if not count:
        raise InputError("calibration", None, "got no picture", "give at least one photograph")
    return Calibration(histograms, count, digest.hexdigest())
