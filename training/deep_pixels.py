"""Pixels of more than eight bits a channel, of which Pillow alone would keep the upper eight or clip what is above 255.

What counts as white in them, `find_white` says.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Deep = NDArray[np.uint16]
FULL = 65535
# Scanners and cameras count in so many bits and write them into 16.
_USUAL_BITS = (8, 10, 12, 14)
_BITS_TAG, _PHOTOMETRIC_TAG, _PLANES_TAG, _ORIENTATION_TAG = 258, 262, 284, 274
_WHITE_LEVEL_TAG, _MAXIMUM_TAGS = 50717, (281, 341)
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _APART = 0, 1, 2, 2
_ASSOCIATED_ALPHA = 1
_CHANNELS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3}
# The same bytes of a channel of 16 bits, the lower one in the place of the upper one.
_LOW_BYTES = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
_SAMPLED = 1 << 20
# What tifffile decodes by itself: plain, deflate in its two numbers, PackBits.
_COMPRESSIONS = (1, 8, 32946, 32773)


class DeepRefusal(Exception):
    """Why such a picture cannot be used, in a few words."""


@dataclass(frozen=True)
class DeepPixels:
    """A picture of more than eight bits a channel.

    Attributes:
        values: (H, W, 1 or 3), upright; black is 0.
        alpha: uint8 (H, W), the transparency; None where there is none.
        white: what of `values` is white.
    """

    values: Deep
    alpha: NDArray[np.uint8] | None
    white: int

    def to_16_bits(self) -> Deep:
        """The same with white at 65535."""
        return self.values if self.white == FULL else _scale_table(self.white, FULL).astype(np.uint16)[self.values]

    def to_8_bits(self) -> NDArray[np.uint8]:
        """The same with white at 255, (H, W, 1 or 3)."""
        return _scale_table(self.white, 255).astype(np.uint8)[self.values]


def _scale_table(white: int, full: int) -> NDArray[np.float64]:
    table: NDArray[np.float64] = np.minimum(np.rint(np.arange(FULL + 1) * (full / white)), full)
    return table


def find_white(values: Deep, tags: Mapping[int, Any] | None = None) -> int:
    """What counts as white among 16-bit values, for scans of 12 bits are often stored as they are and look black.

    1. What the file says: of a TIFF fewer than 16 bits a sample, the white level of a raw file, or a largest value of
       10, 12, 14 or 16 bits (any other largest value is only that of this picture). Values above it belie it.
    2. All of 16 bits, where every value is a multiple of 257 or of 4: they were scaled to 16 bits already, from fewer.
    3. The fewest of 8, 10, 12 and 14 bits that hold all values, where the picture fills that range. Of up to 12 bits,
       which taken for 16 show nothing brighter than a sixteenth of white, it is enough that the brightest hundredth
       lies above a quarter of the range; a dark frame with a few hot pixels stays dark. Of 14, which may well be a
       photograph by night, the maximum must lie in the last tenth.
    4. All of 16 bits.

    Args:
        values: of any shape.
        tags: of a TIFF page, by number.
    """
    highest = int(values.max(initial=0))
    tagged = _tagged_white(tags or {})
    if tagged and highest <= tagged:
        return tagged
    bits = next((each for each in _USUAL_BITS if highest < 1 << each), 16)
    if bits == 16 or not np.bitwise_or.reduce(values, axis=None) & 3 or not (values % 257).any():
        return FULL
    white = (1 << bits) - 1
    if bits == 14:
        return white if highest > 0.9 * white else FULL
    flat = values.reshape(-1)
    brightest = np.percentile(flat[:: max(1, flat.size // _SAMPLED)], 99)
    return white if brightest > 0.25 * white else FULL


def _tagged_white(tags: Mapping[int, Any]) -> int:
    """What the tags of a TIFF page say; 0 where they say nothing."""
    bits = first_number(tags, _BITS_TAG)
    if 8 < bits < 16:
        return (1 << bits) - 1
    if 255 < (level := first_number(tags, _WHITE_LEVEL_TAG)) <= FULL:
        return level
    said = (first_number(tags, tag) for tag in _MAXIMUM_TAGS)
    return next((each for each in said if each in (1023, 4095, 16383, FULL)), 0)


def first_number(tags: Mapping[int, Any], tag: int) -> int:
    """The first number of a tag of a TIFF page; 0 where there is none up to 65535."""
    value = tags.get(tag, 0)
    value = value[0] if isinstance(value, tuple) and value else value
    return int(value) if isinstance(value, int | float) and 0 <= value <= FULL else 0


def deep_rawmode(picture: Image.Image) -> str:
    """How the file of a picture that is not loaded yet stores channels of 16 bits, in Pillow's words; else empty."""
    tiles = getattr(picture, "tile", [])
    args = tiles[0].args if tiles else ""
    rawmode = args[0] if isinstance(args, tuple) and args else args
    is_deep = isinstance(rawmode, str) and picture.mode in ("RGB", "RGBA") and rawmode[:-1].endswith(";16")
    return str(rawmode) if is_deep else ""


def is_misread(tags: Mapping[int, Any]) -> bool:
    """Whether Pillow takes the pixels of a TIFF page wrongly: of 16 bits, each channel stored apart."""
    return first_number(tags, _BITS_TAG) > 8 and first_number(tags, _PLANES_TAG) == _APART


def read_deep_grey(picture: Image.Image, tags: Mapping[int, Any]) -> DeepPixels:
    """A loaded picture of one channel of 16 bits, 32 bits or floating point.

    Raises:
        DeepRefusal: a pixel is NaN or infinite.
    """
    return _finish(np.asarray(picture)[..., None], None, tags)


def read_deep_colors(
    rawmode: str, load: Callable[[Callable[[str], str]], Image.Image], tags: Mapping[int, Any]
) -> DeepPixels:
    """A picture of several channels of 16 bits: decoded twice, to the upper and to the lower byte of each.

    Pillow has no mode for them; its decoders pick the upper bytes out, and the lower ones where they are told that the
    file has the other byte order.

    Args:
        rawmode: of `deep_rawmode`.
        load: decodes the picture, upright, with its raw mode changed by the function that it is given.
    """
    # Alpha times colour is divided below, where there are bits for it.
    plain = rawmode.replace("RGBa", "RGBA")
    if plain == "LA;16B":
        # Grey and alpha lie in the file as the four bytes of one pixel.
        pairs: Deep = np.asarray(load(lambda _: "RGBA")).astype(np.uint16)  # (H, W, 4)
        values: Deep = (pairs[..., (0, 2)] << np.uint16(8)) | pairs[..., (1, 3)]
    else:
        values = np.asarray(load(lambda _: plain)).astype(np.uint16)
        values <<= np.uint16(8)
        values |= np.asarray(load(lambda _: plain[:-1] + _LOW_BYTES[plain[-1]]))
    count = min(3, values.shape[-1] // 2 * 2 - 1) if values.shape[-1] != 3 else 3
    colors, alpha = values[..., :count], values[..., count:]
    if "RGBa" in rawmode:
        colors = _divide_by_alpha(colors, alpha)
    white = find_white(colors, tags)
    return DeepPixels(np.ascontiguousarray(colors), _as_8_bits(alpha), white)


def _divide_by_alpha(colors: Deep, alpha: Deep) -> Deep:
    return np.minimum(colors * (float(FULL) / np.maximum(alpha, 1)), FULL).astype(np.uint16)


def _finish(stored: NDArray[Any], alpha: NDArray[np.uint8] | None, tags: Mapping[int, Any]) -> DeepPixels:
    values, is_scaled = _to_16_bits(stored)
    white = FULL if is_scaled else find_white(values, tags)
    if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO:
        values = white - np.minimum(values, np.uint16(white))
    return DeepPixels(values, alpha, white)


def _as_8_bits(alpha: NDArray[Any]) -> NDArray[np.uint8] | None:
    """Transparency (H, W, 1) of any depth as (H, W); None where it has no channel."""
    return (_to_16_bits(alpha)[0][..., 0] >> 8).astype(np.uint8) if alpha.size else None


def _to_16_bits(stored: NDArray[Any]) -> tuple[Deep, bool]:
    """Values of any type as 16 bits, and whether they were scaled for that: then white is 65535.

    What is not of 16 bits has for white the smallest usual range that holds the brightest pixel, 1, 255 or 65535, or
    else that pixel. Where values are below 0, the lowest is black.

    Raises:
        DeepRefusal: a value is NaN or infinite.
    """
    if stored.dtype.kind == "u" and stored.dtype.itemsize == 2:
        return np.ascontiguousarray(stored, np.uint16), False
    if stored.dtype.kind == "f" and not np.isfinite(stored).all():
        raise DeepRefusal("damaged (NaN or infinite pixels)")
    low, high = min(float(stored.min()), 0.0), float(stored.max())
    white = next((full for full in (1.0, 255.0, float(FULL)) if high - low <= full), high - low)
    return np.rint((stored.astype(np.float64) - low) * (FULL / white)).astype(np.uint16), white != FULL


def read_deep_tiff(stream: BinaryIO, number: int, max_pixels: int) -> tuple[DeepPixels, Mapping[int, Any]]:
    """A page of a TIFF that Pillow does not read: channels stored apart, floating point or 32 bits in colour, and more.

    Args:
        number: of the page, from 0.
    Returns:
        Its pixels, upright, and its tags by number.
    Raises:
        DeepRefusal: neither is it read here, or it has more pixels than `max_pixels`.
    """
    import tifffile

    stream.seek(0)
    with tifffile.TiffFile(stream, name="page") as file:  # what it would call it, a descriptor has no name
        page = file.pages[number]
        assert isinstance(page, tifffile.TiffPage)
        tags = {tag.code: tag.value for tag in page.tags}
        height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
        if min(height, width) < 1:
            raise DeepRefusal("damaged (no pixels)")
        if height * width > max_pixels:
            raise DeepRefusal(describe_excess(height * width, max_pixels))
        colors = _CHANNELS.get(int(page.photometric), 0)
        is_plain = int(page.compression) in _COMPRESSIONS and page.imagedepth == 1 and page.dtype is not None
        if not is_plain or not 0 < colors <= samples <= 4 or np.dtype(page.dtype).itemsize < 2:
            kind = f"{samples} channels of {page.bitspersample} bits"
            raise DeepRefusal(f"a TIFF of this kind is not read ({kind})")
        values, kinds = page.asarray(), page.extrasamples
    if int(page.planarconfig) == _APART:
        values = np.moveaxis(values.reshape(samples, height, width), 0, -1)
    values = _turn_upright(values.reshape(height, width, samples), first_number(tags, _ORIENTATION_TAG))
    shown, alpha = (
        values[..., :colors],
        values[..., colors : colors + 1] if kinds and int(kinds[0]) else values[..., :0],
    )
    if kinds and int(kinds[0]) == _ASSOCIATED_ALPHA:
        shown = _divide_by_alpha(_to_16_bits(shown)[0], _to_16_bits(alpha)[0])
    return _finish(shown, _as_8_bits(alpha), tags), tags


def count_deep_pages(stream: BinaryIO) -> int:
    """Pages of a TIFF that Pillow does not open."""
    import tifffile

    stream.seek(0)
    with tifffile.TiffFile(stream, name="pages") as file:
        return len(file.pages)


def describe_excess(pixels: int, max_pixels: int) -> str:
    """Why a picture of so many pixels is refused."""
    return f"{pixels / 1e6:.4g} Mpx > limit {max_pixels / 1e6:.4g} Mpx (--max-pixels)"


def _turn_upright(values: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Pixels (H, W, C) as the EXIF orientation says."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values
