"""Colouring a picture by loops that numba compiles: what `export.picture_reference` defines, many times as fast.

Full size is gone through once, row by row: what a row needs stays in the cache, and curves are look-ups in tables that
are fine enough to stay within half a grey level of the definition. Only large pictures are worth it: numba takes half
a second to be imported, and seconds to compile when it is called first; what it compiled is kept on disk.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from numba import njit

from colorpress.core.cores import usable_cores
from export.picture_contract import DEFAULT_WORK_SIZE, AskedNetwork, working_size
from export.predictors import Floats, Pixels, Predictor
from export.striped_pixels import LIGHT_STEPS, ask_offsets, curve_tables, do_all
from training.cie import LAB_EPSILON, LAB_KNEE, LAB_OFFSET, LAB_SLOPE

# There are no NaN and no division by 0, or comparisons and quotients could not be computed many at a time.
_FAST = {"nnan", "ninf", "nsz", "arcp", "contract", "reassoc"}
_compile = partial(njit, nogil=True, cache=True, fastmath=_FAST, error_model="numpy")
_STRIPE_PIXELS = 1 << 18


def color_pixels_compiled(
    pixels: Pixels,
    predictor: Predictor,
    *,
    work_size: int = DEFAULT_WORK_SIZE,
    saturation: float = 1.0,
    threads: int = 0,
) -> Pixels:
    """Colour one picture, uint8 (H, W, 3) sRGB or (H, W, 1) grey; uint8 (H, W, 3) sRGB.

    Within one grey level of `export.picture_reference.color_pixels`, whose arguments and errors these are.

    Args:
        threads: 0: one per usable core.
    """
    height, width, channels = pixels.shape
    rows, columns, block = working_size(height, width, work_size)
    with ThreadPoolExecutor(threads or usable_cores()) as pool:
        averaged = np.empty((-(-height // block), -(-width // block) * channels), np.float32)
        flat = np.ascontiguousarray(pixels).reshape(height, width * channels)
        step = max(1, _STRIPE_PIXELS // (width * block))
        do_all(pool, partial(_average, flat, averaged, block, channels), averaged.shape[0], step)
        code = _shrink(averaged, height, width, channels, rows, columns, block)
        field = ask_offsets(code, AskedNetwork(predictor, work_size, saturation))
        wide = np.empty((len(field), rows, width), np.float32)
        _enlarge_columns(field, wide)
        colored = np.empty((height, width, 3), np.uint8)
        step = max(1, _STRIPE_PIXELS // width)
        do_all(pool, partial(_color_rows, flat, wide, colored, *curve_tables()), height, step)
    return colored


def _shrink(averaged: Floats, height: int, width: int, channels: int, rows: int, columns: int, block: int) -> Floats:
    """sRGB codes at the working size, (h, w, C), from the averages of squares."""
    short = np.zeros((rows, averaged.shape[1]), np.float32)
    _lay_triangles(averaged, height / (rows * block), short)
    turned = np.ascontiguousarray(short.reshape(rows, -1, channels).transpose(1, 0, 2)).reshape(-1, rows * channels)
    narrow = np.zeros((columns, rows * channels), np.float32)
    _lay_triangles(turned, width / (columns * block), narrow)
    return np.ascontiguousarray(narrow.reshape(columns, rows, channels).transpose(1, 0, 2))


@_compile()
def _average(flat, averaged, block, channels, first, last):  # type: ignore[no-untyped-def]
    """Averages of squares of pixels (H, W * C), the last column and row repeated, for some rows of `averaged`."""
    height, wide = flat.shape
    width = wide // channels
    sums = np.empty(wide, np.int32)
    for row in range(first, last):
        sums[:] = 0
        for inner in range(block):
            line = flat[min(row * block + inner, height - 1)]
            for i in range(wide):
                sums[i] += line[i]
        out = averaged[row]
        scale = np.float32(1.0 / (block * block))
        for i in range(out.shape[0]):
            column, channel = i // channels, i % channels
            total = np.int32(0)
            for inner in range(block):
                total += sums[min(column * block + inner, width - 1) * channels + channel]
            out[i] = np.float32(total) * scale


@_compile()
def _lay_triangles(values, step, small):  # type: ignore[no-untyped-def]
    """(length, M) to (n, M), zeros at first: a triangle around (i + 1/2) step - 1/2 each, weights adding to 1."""
    length = values.shape[0]
    reach = max(step, 1.0)
    for i in range(small.shape[0]):
        center = (i + 0.5) * step - 0.5
        first, last = max(0, int(np.floor(center - reach))), min(length - 1, int(np.ceil(center + reach)))
        total = 0.0
        for k in range(first, last + 1):
            total += max(0.0, 1.0 - abs(center - k) / reach)
        out = small[i]
        for k in range(first, last + 1):
            weight = np.float32(max(0.0, 1.0 - abs(center - k) / reach) / total)
            line = values[k]
            for j in range(out.shape[0]):
                out[j] += weight * line[j]


@_compile()
def _enlarge_columns(field, wide):  # type: ignore[no-untyped-def]
    """(K, h, w) to (K, h, W), bilinear."""
    kinds, rows, columns = field.shape
    width = wide.shape[2]
    left, share = np.empty(width, np.int32), np.empty(width, np.float32)
    for i in range(width):
        at = min(max((i + 0.5) * columns / width - 0.5, 0.0), columns - 1.0)
        left[i] = min(int(at), max(columns - 2, 0))
        share[i] = at - left[i]
    right = 1 if columns > 1 else 0
    for kind in range(kinds):
        for row in range(rows):
            line, out = field[kind, row], wide[kind, row]
            for i in range(width):
                a = line[left[i]]
                out[i] = a + share[i] * (line[left[i] + right] - a)


@_compile()
def _color_rows(flat, wide, colored, parts, f_of_grey, codes, to_linear, first, last):  # type: ignore[no-untyped-def]
    """Colour rows `first` to `last` of pixels (H, W * C) with what was enlarged along the columns, (2 or 4, h, W)."""
    height, width, _ = colored.shape
    is_grey = flat.shape[1] == width
    is_affine = wide.shape[0] == 4
    rows = wide.shape[1]
    zero = np.float32(0.0)
    knee, slope, offset = np.float32(LAB_KNEE), np.float32(1.0 / LAB_SLOPE), np.float32(-LAB_OFFSET / LAB_SLOPE)
    top = np.float32(LIGHT_STEPS - 1)
    y, f = np.empty(width, np.float32), np.empty(width, np.float32)
    index = np.empty((3, width), np.int32)
    for row in range(first, last):
        line = flat[row]
        if is_grey:
            for i in range(width):
                code = line[i]
                y[i] = parts[0, code] + parts[1, code] + parts[2, code]
                f[i] = f_of_grey[code]
        else:
            for i in range(width):
                y[i] = parts[0, line[3 * i]] + parts[1, line[3 * i + 1]] + parts[2, line[3 * i + 2]]
            for i in range(width):
                f[i] = _f_of(y[i])
        at = min(max((row + 0.5) * rows / height - 0.5, 0.0), rows - 1.0)
        above = min(int(at), max(rows - 2, 0))
        below = min(above + 1, rows - 1)
        share = np.float32(at - above)
        x_above, x_below, z_above, z_below = wide[0, above], wide[0, below], wide[1, above], wide[1, below]
        a_above, a_below, c_above, c_below = x_above, x_below, z_above, z_below
        if is_affine:
            a_above, a_below, c_above, c_below = wide[2, above], wide[2, below], wide[3, above], wide[3, below]
        for i in range(width):
            of_x = x_above[i] + share * (x_below[i] - x_above[i])
            of_z = z_above[i] + share * (z_below[i] - z_above[i])
            if is_affine:
                shifted = np.float32(1.16) * f[i] - np.float32(0.66)
                of_x += shifted * (a_above[i] + share * (a_below[i] - a_above[i]))
                of_z += shifted * (c_above[i] + share * (c_below[i] - c_above[i]))
            fx, fz = max(f[i] + of_x, zero), max(f[i] + of_z, zero)
            x = fx * fx * fx if fx > knee else slope * fx + offset
            z = fz * fz * fz if fz > knee else slope * fz + offset
            red = to_linear[0, 0] * x + to_linear[0, 1] * y[i] + to_linear[0, 2] * z
            green = to_linear[1, 0] * x + to_linear[1, 1] * y[i] + to_linear[1, 2] * z
            blue = to_linear[2, 0] * x + to_linear[2, 1] * y[i] + to_linear[2, 2] * z
            index[0, i] = np.int32(min(max(red, zero), top))
            index[1, i] = np.int32(min(max(green, zero), top))
            index[2, i] = np.int32(min(max(blue, zero), top))
        out = colored[row]
        for i in range(width):
            out[i, 0] = codes[index[0, i]]
            out[i, 1] = codes[index[1, i]]
            out[i, 2] = codes[index[2, i]]


@_compile(inline="always")
def _f_of(y):  # type: ignore[no-untyped-def]
    """f(Y) of Lab, to 2e-6: a line over the fourth root, then two steps of Newton; below, from its end, the line."""
    light = max(y, np.float32(LAB_EPSILON))
    f = np.sqrt(np.sqrt(light)) * np.float32(1.1019521) - np.float32(0.1387668)
    f = np.float32(2.0 / 3.0) * f + np.float32(1.0 / 3.0) * light / (f * f)
    f = np.float32(2.0 / 3.0) * f + np.float32(1.0 / 3.0) * light / (f * f)
    return f + np.float32(LAB_SLOPE) * (y - light)
