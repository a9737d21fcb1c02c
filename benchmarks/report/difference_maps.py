"""Where two colourings differ: maps of the mean |Δab| of each pixel, all on one scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from benchmarks.report.sample_photos import Floats, Pixels

# Perceptually uniform and monotonic in lightness, so that it is read right without colour vision and in print too.
COLOUR_MAP = "magma"
_CLIPPED_PCT = 1.0
_BAR_STOPS = 9


def map_difference(ab: Floats, other: Floats) -> Floats:
    """The mean over a and b of the absolute difference at each pixel, (H, W): its own mean is the L1 of the two.

    Args:
        ab, other: (2, H, W), ab/128.
    """
    difference: Floats = np.abs(ab - other).mean(axis=0, dtype=np.float32)
    return difference


def choose_scale(maps: Sequence[Floats]) -> float:
    """The difference at the top of the colour map: what 99 % of all pixels stay below, rounded up to two digits."""
    values: NDArray[np.float32] = np.concatenate([each.ravel() for each in maps]) if maps else np.zeros(1, np.float32)
    top = float(np.percentile(values, 100.0 - _CLIPPED_PCT))
    if top <= 0.0 or not math.isfinite(top):
        return 0.01
    step = 10.0 ** (math.floor(math.log10(top)) - 1)
    return round(math.ceil(top / step) * step, 12)


def paint_map(difference: Floats, scale: float) -> Pixels:
    """A map as RGB (H, W, 3): the colour map from 0 to `scale`; what is above has the colour of its end."""
    import matplotlib

    return np.asarray(matplotlib.colormaps[COLOUR_MAP](np.clip(difference / scale, 0.0, 1.0), bytes=True)[..., :3])


def bar_colours() -> list[str]:
    """Colours at even steps from 0 to the scale's end, such as "#000004": what a colour bar is made of."""
    painted = paint_map(np.linspace(0.0, 1.0, _BAR_STOPS, dtype=np.float32)[None], scale=1.0)
    return ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in painted[0]]
