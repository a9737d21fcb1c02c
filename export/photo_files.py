"""Coloured photographs as files: of the type, the depth, the pages and with the metadata that their originals had."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from colorpress.core.console import warn
from colorpress.core.errors import InputError
from colorpress.core.files import atomic_write
from export.software_tag import tag_packet
from training.decoding import DecodedPhoto, open_regular_file
from training.picture_metadata import IPTC_RESOURCE, IPTC_TAG, TIFF_TEXT_TAGS, XMP_TAG, XMP_UUID
from training.picture_types import HEAD_BYTES, PictureType, find_type, type_of_suffix

# Types that stay what they are, as Pillow calls them, with how they are saved; any other photograph becomes a PNG.
# Chroma is not subsampled: it is the product. JPEG 2000, the format of archives, stays without loss.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {},
    "WEBP": {"quality": 95},
    "TIFF": {},
    "AVIF": {"quality": 90, "subsampling": "4:4:4"},
    "HEIF": {"quality": 90, "chroma": 444},
    "JPEG2000": {"irreversible": False},
}
# What a segment of a JPEG holds.
_LONGEST_EXIF, _LONGEST_XMP, _LONGEST_RESOURCES = 65_000, 65_504, 65_519
_PHOTOSHOP = b"Photoshop 3.0\0"
_JPEG_2000_SIGNATURE = b"\0\0\0\x0cjP  "
# Suffixes of several pictures in one, of which there is one now.
_PLAIN_SUFFIXES = {".mpo": ".jpg", ".apng": ".png", ".avifs": ".avif"}
# How a PNG calls the text that is XMP: keyword, not packed, no language, no translation.
_PNG_XMP = b"XML:com.adobe.xmp\0\0\0\0\0"
_TIFF_BYTES, _TIFF_TEXT, _TIFF_UNDEFINED = 1, 2, 7
_LARGEST_TIFF_BYTES = (1 << 32) - (1 << 25)
_PNG_STRIPE_ROWS = 64
_INCHES_A_METRE = 100 / 2.54


@dataclass(frozen=True)
class ColoredPage:
    """A page of a photograph with its colours: sRGB (H, W, 3), uint8, or uint16 where `can_be_deep`.

    Attributes:
        original: without its picture, which may be closed.
        pixels: a picture of mode RGB where it is large.
        xmp: the packet that the file is to have; empty for none.
    """

    original: DecodedPhoto
    pixels: NDArray[Any] | Image.Image
    xmp: bytes


def choose_packet(original: DecodedPhoto, output: Path, *, is_tagged: bool) -> bytes:
    """The XMP packet of a photograph's result; what of the original's cannot be kept is said.

    Args:
        is_tagged: whether it is to say that software coloured it.
    """
    packet = original.metadata.xmp
    try:
        packet = tag_packet(packet) if is_tagged else packet
        if _pillow_name(output) != "JPEG" or len(packet) <= _LONGEST_XMP:
            return packet
        why = f"is longer than a JPEG holds, {len(packet):,} bytes"
    except InputError as error:
        why = error.why
    warn(f"'{output}' loses its XMP, which {why}")
    return tag_packet(b"") if is_tagged else b""


def choose_suffix(source: Path, place: Path) -> str:
    """The suffix of the file that a photograph becomes: its own, where that type is written; else .png.

    Args:
        source: the photograph. It is opened only where its name has no suffix, which its content then gives.
        place: its name.
    """
    if not place.suffix:
        kind = _find_content_type(source)
        return f".{kind.suffixes[0]}" if _is_kept(kind) and kind else ".png"
    suffix = _PLAIN_SUFFIXES.get(place.suffix.lower(), place.suffix)
    return suffix if _is_kept(type_of_suffix(suffix)) else ".png"


def _find_content_type(source: Path) -> PictureType | None:
    try:
        with open_regular_file(source) as stream:
            return find_type(stream.read(HEAD_BYTES))
    except Exception:  # why it cannot be read is said when it is to be coloured
        return None


def _is_kept(kind: PictureType | None) -> bool:
    return kind is not None and kind.pillow in _SAVE_OPTIONS and kind.is_written


def can_be_deep(output: Path) -> bool:
    """Whether a file is written with 16 bits a channel where its original had more than 8."""
    return _pillow_name(output) in ("TIFF", "PNG")


def has_pages(output: Path) -> bool:
    """Whether all pages of a photograph are written to a file, and not the first alone."""
    return _pillow_name(output) == "TIFF"


def _pillow_name(output: Path) -> str:
    kind = type_of_suffix(output.suffix)
    return kind.pillow if kind is not None else "PNG"


def save_pages(first: ColoredPage, others: Iterator[ColoredPage], output: Path, *, count: int) -> None:
    """Write a photograph, atomically; nothing is written where one of its pages raises.

    Args:
        first: its first page. `others`: those after it, taken one at a time, where `has_pages`.
        count: of all its pages at most.
    Raises:
        MachineError: the folder cannot be written or the disk is full.
    """
    kind = _pillow_name(output)
    if first.original.alpha is not None and kind == "JPEG":
        warn(f"'{output}' loses its transparency: JPEG has none")
    if _is_too_long(exif := first.original.metadata.exif, kind):
        warn(f"'{output}' loses its EXIF, which is longer than a JPEG holds, {len(exif):,} bytes")
    # Should the machine fail, the names of the last seconds are lost, and those photographs coloured again.
    with atomic_write(output, syncs_name=False) as temporary:
        if kind == "TIFF":
            _write_tiff(
                temporary, chain([first], others), is_big=count * np.asarray(first.pixels).nbytes > _LARGEST_TIFF_BYTES
            )
        elif isinstance(first.pixels, np.ndarray) and first.pixels.dtype == np.uint16:
            with temporary.open("wb") as stream:
                _write_deep_png(stream, first)
        else:
            _write_with_pillow(temporary, first, kind)


def _is_too_long(exif: bytes, kind: str) -> bool:
    return kind == "JPEG" and len(exif) > _LONGEST_EXIF


def _write_with_pillow(path: Path, page: ColoredPage, kind: str) -> None:
    original = page.original
    picture = page.pixels if isinstance(page.pixels, Image.Image) else Image.fromarray(page.pixels)
    picture.info = {}  # what is to be written of the original's is said below
    if original.alpha is not None and kind != "JPEG":
        picture.putalpha(original.alpha)
    metadata, options = original.metadata, dict(_SAVE_OPTIONS[kind])
    if metadata.exif and not _is_too_long(metadata.exif, kind):
        options["exif"] = metadata.exif
    if original.profile:
        options["icc_profile"] = original.profile
    if metadata.dots_per_inch is not None and kind in ("JPEG", "PNG"):
        options["dpi"] = metadata.dots_per_inch
    if kind == "PNG":
        options["pnginfo"] = texts = PngImagePlugin.PngInfo()
        texts.add(b"iTXt", _PNG_XMP + page.xmp) if page.xmp else None
    elif page.xmp and kind != "JPEG2000":
        options["xmp"] = page.xmp
    if kind == "JPEG":
        options["extra"] = _iptc_segment(metadata.iptc) + _extension_segments(page)
    picture.save(path, format=kind, **options)
    if kind == "JPEG2000" and page.xmp:
        _append_xmp_box(path, page.xmp)


def _iptc_segment(iptc: bytes) -> bytes:
    """The segment of a JPEG with IPTC records, which are a resource of Photoshop's; empty where there are none."""
    content = b"8BIM" + struct.pack(">HxxI", IPTC_RESOURCE, len(iptc)) + iptc + bytes(len(iptc) % 2)
    if not iptc or len(content) > _LONGEST_RESOURCES:
        return b""
    return b"\xff\xed" + struct.pack(">H", 2 + len(_PHOTOSHOP) + len(content)) + _PHOTOSHOP + content


def _extension_segments(page: ColoredPage) -> bytes:
    """The segments of a JPEG that its packet names and goes on in, as the original has them."""
    if b"HasExtendedXMP" not in page.xmp:
        return b""
    contents = page.original.metadata.extended_xmp
    return b"".join(b"\xff\xe1" + struct.pack(">H", 2 + len(each)) + each for each in contents)


def _append_xmp_box(path: Path, xmp: bytes) -> None:
    with path.open("r+b") as stream:
        if stream.read(len(_JPEG_2000_SIGNATURE)) == _JPEG_2000_SIGNATURE:  # else a bare codestream, without boxes
            stream.seek(0, os.SEEK_END)
            stream.write(struct.pack(">I4s", 8 + len(XMP_UUID) + len(xmp), b"uuid") + XMP_UUID + xmp)


def _with_alpha(page: ColoredPage) -> NDArray[Any]:
    """The pixels (H, W, 3), or (H, W, 4) with the transparency of the original."""
    pixels = np.asarray(page.pixels)
    if page.original.alpha is None:
        return pixels
    # 255 times 257 is 65535.
    alpha = np.asarray(page.original.alpha).astype(pixels.dtype) * (257 if pixels.dtype == np.uint16 else 1)
    return np.concatenate([pixels, alpha[..., None]], axis=2)


def _write_tiff(path: Path, pages: Iterator[ColoredPage], *, is_big: bool) -> None:
    """Pages of 8 or 16 bits a channel, without loss: unpacked as the original was, else deflated."""
    import tifffile

    with tifffile.TiffWriter(path, bigtiff=is_big) as writer:
        for page in pages:
            pixels = _with_alpha(page)
            packed: dict[str, Any] = {"compression": "zlib", "predictor": True} if page.original.is_packed else {}
            if page.original.metadata.dots_per_inch is not None:
                packed |= {"resolution": page.original.metadata.dots_per_inch, "resolutionunit": "INCH"}
            writer.write(
                pixels,
                photometric="rgb",
                planarconfig="contig",
                extrasamples=["unassalpha"] if pixels.shape[2] == 4 else None,
                iccprofile=page.original.profile or None,
                software=False,
                metadata=None,
                extratags=_tiff_tags(page),
                **packed,
            )


def _tiff_tags(page: ColoredPage) -> list[tuple[int, int, int, bytes, bool]]:
    """Description, maker and the like, XMP and IPTC as TIFF tags: number, type, length, content, once."""
    blocks = ((XMP_TAG, _TIFF_BYTES, page.xmp), (IPTC_TAG, _TIFF_UNDEFINED, page.original.metadata.iptc))
    found = [(tag, kind, len(content), content, True) for tag, kind, content in blocks if content]
    return found + _text_tags(page.original.metadata.exif)


def _text_tags(exif: bytes) -> list[tuple[int, int, int, bytes, bool]]:
    known = Image.Exif()
    try:
        known.load(exif)
    except Exception:  # of another file type it may be broken, which nothing before this minded
        return []
    texts = {tag: str(known[tag]) for tag in TIFF_TEXT_TAGS if known.get(tag)}
    written = {tag: text.encode("utf-8", "replace") + b"\0" for tag, text in texts.items() if not _is_layout(text)}
    return [(tag, _TIFF_TEXT, len(text), text, True) for tag, text in written.items()]


def _is_layout(text: str) -> bool:
    """Whether a description says how other programs laid out the pixels of the original, which is true no more."""
    return text.startswith(('{"shape"', "ImageJ=", "<?xml"))


def _write_deep_png(stream: BinaryIO, page: ColoredPage) -> None:
    """A PNG of 16 bits a channel, which Pillow does not write. Source: the PNG specification, third edition."""
    pixels, original = _with_alpha(page), page.original
    height, width, channels = pixels.shape

    def write_chunk(kind: bytes, content: bytes) -> None:
        checksum = zlib.crc32(kind + content)
        stream.write(struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum))

    stream.write(b"\x89PNG\r\n\x1a\n")
    write_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 6 if channels == 4 else 2, 0, 0, 0))
    if original.profile:
        write_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(original.profile))
    if original.metadata.dots_per_inch is not None:
        across, down = (round(each * _INCHES_A_METRE) for each in original.metadata.dots_per_inch)
        write_chunk(b"pHYs", struct.pack(">IIB", across, down, 1))
    if original.metadata.exif:
        write_chunk(b"eXIf", original.metadata.exif.removeprefix(b"Exif\0\0"))
    if page.xmp:
        write_chunk(b"iTXt", _PNG_XMP + page.xmp)
    packer = zlib.compressobj()
    above = np.zeros((1, width * channels * 2), np.uint8)
    for start in range(0, height, _PNG_STRIPE_ROWS):
        rows = pixels[start : start + _PNG_STRIPE_ROWS].astype(">u2").view(np.uint8).reshape(-1, above.shape[1])
        # Each row as its difference from the one above it, filter 2.
        filtered = rows - np.concatenate([above, rows[:-1]])
        if data := packer.compress(np.insert(filtered, 0, 2, axis=1).tobytes()):
            write_chunk(b"IDAT", data)
        above = rows[-1:]
    write_chunk(b"IDAT", packer.flush())
    write_chunk(b"IEND", b"")
