"""Colour of a picture of 8 bits a channel on the lightness of the same picture with 16."""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
from numpy.typing import NDArray

from export.predictors import Pixels

Deep = NDArray[np.uint16]
_STRIPE_PIXELS = 1 << 18
# Colours that sRGB does not have are clipped, as in the picture that the chroma is of.
warnings.filterwarnings("ignore", message="Conversion from CIE-LAB", category=UserWarning)


def keep_deep_lightness(colored: Pixels, deep: Deep) -> Deep:
    """The a* and b* of `colored` with the L* of `deep`, which 8 bits would round to 256 steps.

    Args:
        colored: sRGB (H, W, 3), the answer of a colorizer to `deep` rounded to 8 bits.
        deep: sRGB (H, W, 1 or 3).
    Returns:
        sRGB (H, W, 3) of 16 bits; where `colored` has no colour, the lightness of `deep` to one step of 65,535.
    """
    from skimage.color import lab2rgb, rgb2lab

    height, width, _ = colored.shape
    answer = np.empty((height, width, 3), np.uint16)
    step = max(1, _STRIPE_PIXELS // width)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        lab = rgb2lab(colored[rows].astype(np.float32) / 255.0)  # (rows, W, 3)
        if deep.shape[2] == 1:
            lab[..., 0] = _grey_lightness()[deep[rows, :, 0]]
        else:
            lab[..., 0] = rgb2lab(deep[rows].astype(np.float32) / 65535.0)[..., 0]
        answer[rows] = np.rint(lab2rgb(lab) * 65535.0).astype(np.uint16)
    return answer


@cache
def _grey_lightness() -> NDArray[np.float32]:
    """L* of each of 65,536 greys."""
    from skimage.color import rgb2lab

    greys = np.repeat(np.linspace(0.0, 1.0, 65536, dtype=np.float32)[:, None], 3, axis=1)
    return np.asarray(rgb2lab(greys)[:, 0])
