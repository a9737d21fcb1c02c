"""How a picture graph is asked, and whether a file is one; onnx, whose import takes longer than a photograph, is not
imported for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from colorpress.core.errors import InputError

DEFAULT_WORK_SIZE = 256
IMAGE_NAME, COLORIZED_NAME = "image", "colorized"
WORK_SIZE_NAME, SATURATION_NAME = "work_size", "saturation"
# At most so many squares of the working size are seen, or a long strip would fill the memory of a network.
LARGEST_ASPECT = 8
# Numbers of fields in onnx.proto: ModelProto.graph, GraphProto.input, ValueInfoProto.name.
_GRAPH, _INPUT, _NAME = 7, 11, 1
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True)
class AskedNetwork:
    """A network with how it is asked: L to ab or an affine field, and as `export.picture_reference.color_pixels`."""

    predictor: Callable[[NDArray[np.float32]], NDArray[np.float32]]
    work_size: int = DEFAULT_WORK_SIZE
    saturation: float = 1.0


def working_size(height: int, width: int, work_size: int) -> tuple[int, int, int]:
    """What the network sees of a picture: rows, columns, and the side of the squares that are averaged first.

    The short side becomes the working size. Of a picture longer than a = LARGEST_ASPECT to 1 the side (long + a short)
    / 2a does, so that at most `a` squares of the working size are seen of any, and 2a working sizes of its length.
    """
    long, short = max(height, width), min(height, width)
    scale = 2 * LARGEST_ASPECT
    seen = max(long + LARGEST_ASPECT * short, scale * short, scale * work_size)
    rows, columns = (max(1, (2 * scale * side * work_size + seen) // (2 * seen)) for side in (height, width))
    # At least two of the averages lie under a pixel of the working size.
    return rows, columns, max(1, seen // (2 * scale * work_size))


def check_field(answer: NDArray[Any], sides: Sequence[int]) -> NDArray[np.float32]:
    """A network's answer for a picture of `sides`, rows and columns: ab or an affine field, float32 (1, 2 or 4, h, w).

    Raises:
        InputError: it is NaN, infinity or of another shape.
    """
    if answer.shape not in [(1, channels, *sides) for channels in (2, 4)] or not np.isfinite(answer).all():
        why = f"answered {'x'.join(map(str, answer.shape))} values, some perhaps not finite, instead of colours"
        raise InputError("model", None, why, "give a model that colorpress exported")
    return np.asarray(answer, np.float32)


def is_picture_graph(content: bytes) -> bool:
    """Whether an ONNX file has an input of a picture; False too for what cannot be parsed."""
    try:
        return any(
            bytes(name) == IMAGE_NAME.encode()
            for graph in _parts(memoryview(content), _GRAPH)
            for value in _parts(graph, _INPUT)
            for name in _parts(value, _NAME)
        )
    except (IndexError, ValueError):
        return False


def _parts(message: memoryview, wanted: int) -> Iterator[memoryview]:
    """The contents of one field of a protobuf message that has bytes or another message. Source: its encoding guide."""
    place = 0
    while place < len(message):
        key, place = _read_number(message, place)
        kind, length = key & 7, 0
        if kind == _VARINT:
            _, place = _read_number(message, place)
        elif kind == _BYTES:
            length, place = _read_number(message, place)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            length = 8 if kind == _EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if kind == _BYTES and key >> 3 == wanted:
            yield message[place : place + length]
        place += length


def _read_number(message: memoryview, place: int) -> tuple[int, int]:
    """A number of seven bits a byte, the lowest first, and the place behind it."""
    number = shift = 0
    while (byte := message[place]) & 0x80:
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return number | byte << shift, place + 1
