"""Structural similarity of pictures, as scikit-image computes it, with what is known of the truth kept for all answers.

Source: Wang, Bovik, Sheikh and Simoncelli, "Image quality assessment: from error visibility to structural similarity",
IEEE Transactions on Image Processing 13(4), 2004, with even windows of 7 x 7 and sample (co)variances.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

WINDOW = 7
_SAMPLE = WINDOW**2 / (WINDOW**2 - 1)
# (0.01 R)^2 and (0.03 R)^2, where values range over R = 1.
_C1, _C2 = 1e-4, 9e-4


@dataclass(frozen=True)
class Windows:
    """A picture (C, H, W) in [0, 1], with the mean and the variance of each window (C, H - 6, W - 6)."""

    picture: Tensor
    mean: Tensor
    variance: Tensor


def look_through_windows(picture: Tensor) -> Windows:
    """The windows of a picture (C, H, W) in [0, 1], no side of which is under 7 pixels."""
    mean = _window_means(picture)
    return Windows(picture, mean, _SAMPLE * (_window_means(picture.square()) - mean.square()))


def structural_similarity(first: Windows, second: Windows) -> float:
    """The mean similarity of two pictures of one size: 1 where they are equal."""
    means = first.mean * second.mean
    covariance = _SAMPLE * (_window_means(first.picture * second.picture) - means)
    similar = (2.0 * means + _C1) * (2.0 * covariance + _C2)
    largest = (first.mean.square() + second.mean.square() + _C1) * (first.variance + second.variance + _C2)
    return float((similar / largest).mean(dtype=torch.float64).item())


def _window_means(values: Tensor) -> Tensor:
    for dimension in (-1, -2):
        size = values.shape[dimension]
        pairs = values.narrow(dimension, 0, size - 1) + values.narrow(dimension, 1, size - 1)
        fours = pairs.narrow(dimension, 0, size - 3) + pairs.narrow(dimension, 2, size - 3)
        sixes = fours.narrow(dimension, 0, size - 6) + pairs.narrow(dimension, 4, size - 6)
        values = sixes + values.narrow(dimension, 6, size - 6)
    return values / WINDOW**2
