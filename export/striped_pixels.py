"""Colouring a picture in stripes of its rows: what `export.picture_reference` defines, in the memory of a stripe.

A picture need not be an array: its rows are read, twice, and written one stripe at a time, perhaps to where they came
from. Curves are look-ups in tables that are fine enough to stay within a grey level of the definition.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from export.picture_contract import AskedNetwork, check_field, working_size
from export.predictors import Floats, Pixels
from training.cie import AB_SCALE, LAB_EPSILON, LAB_KNEE, LAB_OFFSET, LAB_SLOPE, RGB_TO_XYZ, WHITE

# Linear light to sRGB in so many steps: at most a fifth of a level from the curve, where it is steepest.
LIGHT_STEPS = 8192
# A float plane of a stripe fits a core's second-level cache.
_STRIPE_PIXELS = 1 << 16


class Rows(Protocol):
    """A picture that is read and written by its rows.

    Attributes:
        shape: height, width and channels, 1 or 3.
    """

    shape: tuple[int, int, int]

    def read(self, first: int, last: int) -> Pixels:
        """Rows `first` to `last`, sRGB (rows, W, C)."""

    def write(self, first: int, pixels: Pixels) -> None:
        """Put rows (rows, W, C) from `first` on."""


def color_rows(source: Rows, target: Rows, network: AskedNetwork, *, threads: int = 1) -> None:
    """Colour the picture `source`, grey or sRGB, into `target`, sRGB of the same size; both may be the same.

    Within one grey level of `export.picture_reference.color_pixels`.

    Raises:
        InputError: the network answers NaN, infinity or another shape.
    """
    height, width, _ = source.shape
    rows, columns, block = working_size(height, width, network.work_size)
    with ThreadPoolExecutor(threads) as pool:
        code = _shrink(pool, source, rows, columns, block)  # (h, w, C)
        field = ask_offsets(code, network)
        across, down = _Bilinear.between(columns, width), _Bilinear.between(rows, height)

        def color(first: int, last: int) -> None:
            top, bottom = down.left[first], down.right[last - 1] + 1
            near = field[:, top:bottom]
            left, right = near[..., across.left], near[..., across.right]
            wide = left + across.share * (right - left)  # (2 or 4, near rows, W)
            above, below = (wide[:, each[first:last] - top] for each in (down.left, down.right))
            offsets = above + down.share[first:last, None] * (below - above)  # (2 or 4, rows, W)
            target.write(first, _color_stripe(source.read(first, last), offsets))

        do_all(pool, color, height, max(1, _STRIPE_PIXELS // width))


class ArrayRows:
    """Pixels (H, W, C) as rows."""

    def __init__(self, pixels: Pixels) -> None:
        self.pixels = pixels
        self.shape = (pixels.shape[0], pixels.shape[1], pixels.shape[2])

    def read(self, first: int, last: int) -> Pixels:
        return self.pixels[first:last]

    def write(self, first: int, pixels: Pixels) -> None:
        self.pixels[first : first + len(pixels)] = pixels


class PictureRows:
    """A picture of Pillow's, mode L or RGB, as rows."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture
        self.shape = (picture.height, picture.width, len(picture.getbands()))
        # Pillow copies a picture that it calls read-only before the first write: two threads would make two copies.
        self._writing = threading.Lock()

    def read(self, first: int, last: int) -> Pixels:
        rows = np.asarray(self.picture.crop((0, first, self.picture.width, last)))
        return rows.reshape(last - first, *self.shape[1:])

    def write(self, first: int, pixels: Pixels) -> None:
        with self._writing:
            self.picture.paste(Image.fromarray(pixels), (0, first))


def do_all(pool: ThreadPoolExecutor, work: Callable[[int, int], Any], length: int, step: int) -> list[Any]:
    """What `work` answers, from and up to which row, of stripes of all rows."""
    starts = range(0, length, step)
    return list(pool.map(work, starts, (min(start + step, length) for start in starts)))


@dataclass(frozen=True)
class _Bilinear:
    """Where the values of a longer axis lie between those of a shorter one: their neighbours, and between them."""

    left: NDArray[np.intp]
    right: NDArray[np.intp]
    share: Floats

    @classmethod
    def between(cls, short: int, long: int) -> _Bilinear:
        at = np.clip((np.arange(long) + 0.5) * (short / long) - 0.5, 0.0, short - 1.0)
        left = at.astype(np.intp)
        return cls(left, np.minimum(left + 1, short - 1), (at - left).astype(np.float32))


def _shrink(pool: ThreadPoolExecutor, source: Rows, rows: int, columns: int, block: int) -> Floats:
    """sRGB codes at the working size, float32 (h, w, C): averages of squares, then triangles laid over these."""
    height, width, channels = source.shape
    wide = -(-width // block)

    def average(first: int, last: int) -> Floats:
        pixels = source.read(first * block, min(last * block, height))
        missing = ((0, (last - first) * block - len(pixels)), (0, wide * block - width), (0, 0))
        squares = np.pad(pixels, missing, mode="edge").reshape(last - first, block, wide, block, channels)
        sums: NDArray[np.int32] = squares.sum(axis=1, dtype=np.int32).sum(axis=2, dtype=np.int32)
        return (sums / np.float32(block * block)).astype(np.float32)

    averaged = np.concatenate(do_all(pool, average, -(-height // block), max(1, _STRIPE_PIXELS // (width * block))))
    short = np.tensordot(_triangles(len(averaged), height / (rows * block), rows), averaged, 1)  # (h, wide, C)
    across = _triangles(wide, width / (columns * block), columns)
    return np.ascontiguousarray(np.tensordot(short, across, ([1], [1])).transpose(0, 2, 1), np.float32)


def _triangles(length: int, step: float, small: int) -> Floats:
    """Weights (small, length): output i is a triangle around (i + 1/2) step - 1/2."""
    center = (np.arange(small)[:, None] + 0.5) * step - 0.5
    near = np.maximum(0.0, 1.0 - np.abs(center - np.arange(length)) / max(step, 1.0))
    return np.asarray(near / near.sum(axis=1, keepdims=True), np.float32)


def ask_offsets(code: Floats, network: AskedNetwork) -> Floats:
    """What a network adds to f of the luminance for x and z, and of an affine field their slopes too.

    Args:
        code: sRGB codes at the working size, (h, w, C).
    Returns:
        (2 or 4, h, w).
    Raises:
        InputError: it answers NaN, infinity or another shape.
    """
    answer = network.predictor(_measure_lightness(code)[None, None])
    field: Floats = check_field(answer, code.shape[:2])[0] * np.float32(network.saturation)
    field *= np.resize(np.array([AB_SCALE / 500.0, -AB_SCALE / 200.0], np.float32), len(field))[:, None, None]
    return field


def _measure_lightness(code: Floats) -> Floats:
    """L (h, w) of sRGB codes (h, w, C)."""
    linear = _linear_of(code / np.float32(255.0))
    y = linear[..., 0] if code.shape[2] == 1 else linear @ np.array(RGB_TO_XYZ[1])
    return np.ascontiguousarray(1.16 * _lab_curve(y) - 0.16, np.float32)


def _linear_of(srgb: NDArray[Any]) -> NDArray[Any]:
    return np.where(srgb > 0.04045, ((srgb + 0.055) / 1.055) ** 2.4, srgb / 12.92)


def _lab_curve(light: NDArray[Any]) -> NDArray[Any]:
    return np.where(light > LAB_EPSILON, np.cbrt(light), LAB_SLOPE * light + LAB_OFFSET)


@cache
def curve_tables() -> tuple[Floats, Floats, Pixels, Floats]:
    """Light of sRGB codes as parts of Y (3, 256); f of 256 greys; sRGB codes of light; X, Y, Z / white to light."""
    linear = _linear_of(np.arange(256) / 255.0)
    light = (np.arange(LIGHT_STEPS) + 0.5) / LIGHT_STEPS
    srgb = np.where(light > 0.0031308, 1.055 * light ** (1.0 / 2.4) - 0.055, 12.92 * light)
    parts = np.array(RGB_TO_XYZ[1])[:, None] * linear
    to_linear = np.linalg.inv(np.array(RGB_TO_XYZ) / np.array(WHITE)[:, None]) * LIGHT_STEPS
    f_of_grey, codes = _lab_curve(linear).astype(np.float32), np.rint(srgb * 255.0).astype(np.uint8)
    return parts.astype(np.float32), f_of_grey, codes, to_linear.astype(np.float32)


def _color_stripe(pixels: Pixels, offsets: Floats) -> Pixels:
    """Rows (rows, W, C) coloured, (rows, W, 3); `offsets` (2 or 4, rows, W) as in `color_rows`."""
    parts, f_of_grey, codes, to_linear = curve_tables()
    if pixels.shape[2] == 1:
        y, f = (table.take(pixels[..., 0], mode="clip") for table in (parts.sum(axis=0), f_of_grey))
    else:
        red, green, blue = (parts[each].take(pixels[..., each], mode="clip") for each in range(3))
        y = red + green + blue
        f = _f_of(y)
    of_x, of_z = offsets[:2]
    if len(offsets) == 4:
        shifted = np.float32(1.16) * f - np.float32(0.66)
        of_x, of_z = of_x + shifted * offsets[2], of_z + shifted * offsets[3]
    xyz = np.stack([_light_of(f + of_x), y, _light_of(f + of_z)]).reshape(3, -1)
    light = (to_linear @ xyz).astype(np.int32).reshape(3, *y.shape)
    colored = np.empty((*y.shape, 3), np.uint8)
    for channel in range(3):
        colored[..., channel] = codes.take(light[channel], mode="clip")
    return colored


def _light_of(f: Floats) -> Floats:
    """X or Z as a part of white, of its f; not below black."""
    f = np.maximum(f, np.float32(0.0))
    line = f * np.float32(1.0 / LAB_SLOPE) - np.float32(LAB_OFFSET / LAB_SLOPE)
    return np.where(f > np.float32(LAB_KNEE), f * f * f, line)


def _f_of(y: Floats) -> Floats:
    """f of Lab, to 2e-6: a line over the fourth root, then two steps of Newton; below, from its end, the line."""
    light = np.maximum(y, np.float32(LAB_EPSILON))
    f = np.sqrt(np.sqrt(light)) * np.float32(1.1019521) - np.float32(0.1387668)
    for _ in range(2):
        f = np.float32(2.0 / 3.0) * f + np.float32(1.0 / 3.0) * light / (f * f)
    return np.asarray(f + np.float32(LAB_SLOPE) * (y - light), np.float32)
