"""ICC profiles of curves and a matrix applied in 16 bits: Pillow's colour management converts 8 bits alone.

Such are the profiles of working spaces (Adobe RGB, ProPhoto, Display P3) and of grey scans. Those with tables of
colours, as of printing machines, are not. Source of the formats: ICC.1:2022, parts 10.6 (curves) and 10.18 (parametric
curves), F.3 (matrix model).
"""

from __future__ import annotations

import io
import struct
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageCms

Deep = NDArray[np.uint16]
Floats = NDArray[np.float64]
_STRIPE_PIXELS = 1 << 18
_CURVES = {"RGB": (b"rTRC", b"gTRC", b"bTRC"), "GRAY": (b"kTRC",)}
_TABLE_OF_COLOURS = b"A2B0"
# Of each kind of parametric curve, which of g, a, b, c, d, e, f it has.
_PARAMETERS = ("g", "gab", "gabc", "gabcd", "gabcdef")


def convert_deep(values: Deep, profile: bytes) -> Deep | None:
    """16-bit values (H, W, 1 or 3) of a profile as 16-bit sRGB of the same shape.

    Returns:
        None where the profile is of another kind or of other channels than these.
    Raises:
        PyCMSError, ValueError, struct.error and the like: the profile is broken.
    """
    header = ImageCms.ImageCmsProfile(io.BytesIO(profile)).profile
    tags = _read_tags(profile)
    names = _CURVES.get(header.xcolor_space.strip(), ())
    if len(names) != values.shape[2] or _TABLE_OF_COLOURS in tags or any(name not in tags for name in names):
        return None
    curves = [_read_curve(tags[name]).astype(np.float32) for name in names]
    matrix = np.eye(1) if len(names) == 1 else np.linalg.solve(_srgb_matrix(), _matrix_of(header))
    height, width, channels = values.shape
    converted = np.empty_like(values)
    step = max(1, _STRIPE_PIXELS // width)
    for start in range(0, height, step):
        rows = values[start : start + step]
        linear = np.stack([curves[each][rows[..., each]] for each in range(channels)], axis=2)  # (rows, W, C)
        mixed = np.clip(linear @ matrix.T.astype(np.float32), 0.0, 1.0)
        encoded = np.where(mixed > 0.0031308, 1.055 * np.power(mixed, 1 / 2.4) - 0.055, 12.92 * mixed)
        converted[start : start + step] = np.rint(encoded * 65535.0)
    return converted


@cache
def _srgb_matrix() -> Floats:
    return _matrix_of(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).profile)


def _matrix_of(header: Any) -> Floats:
    """From linear RGB to XYZ of the profile connection space, (3, 3)."""
    rows: Floats = np.array([header.red_colorant[0], header.green_colorant[0], header.blue_colorant[0]])
    return np.asarray(rows.T)


def _read_tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    entries = (struct.unpack_from(">4sII", profile, 132 + 12 * number) for number in range(min(count, 100)))
    return {name: profile[start : start + size] for name, start, size in entries}


def _read_curve(tag: bytes) -> Floats:
    """The linear light of each of 65,536 values, in [0, 1]."""
    x = np.linspace(0.0, 1.0, 65536)
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        points = np.frombuffer(tag, ">u2", count, 12).astype(float)
        if count == 1:
            return np.asarray(x ** (points[0] / 256.0))
        return np.asarray(np.interp(x, np.linspace(0.0, 1.0, count), points / 65535.0)) if count else x
    if tag[:4] != b"para":
        raise ValueError("a curve of another kind")
    names = _PARAMETERS[struct.unpack_from(">H", tag, 8)[0]]
    given = struct.unpack_from(f">{len(names)}i", tag, 12)
    values = {"a": 1.0, "b": 0.0, "c": 0.0, "e": 0.0, "f": 0.0} | {
        name: number / 65536.0 for name, number in zip(names, given, strict=True)
    }
    powered = np.maximum(values["a"] * x + values["b"], 0.0) ** values["g"]
    if "d" in values:
        y = np.where(x >= values["d"], powered + values["e"], values["c"] * x + values["f"])
    else:  # where the power has not begun these curves are flat
        y = powered + values["c"]
    return np.asarray(np.clip(y, 0.0, 1.0))
