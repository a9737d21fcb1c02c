"""One picture file of any origin to 8-bit sRGB, or one plain reason why not.

Files are foreign: the type is told by content and taken from a short list, sizes are checked in the header before
a pixel is decoded, and everything that a decoder may throw ends as InputError.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from colorpress.core.errors import InputError
from colorpress.core.files import find_impostor

# MPO, a JPEG with more pictures behind it, comes with JPEG.
ACCEPTED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")

_ACCEPTED = ", ".join(ACCEPTED_FORMATS).lower()
# Of a TIFF, whose EXIF block is the file's own directory: description, make, model, software, date, artist, copyright.
_TIFF_TEXT_TAGS = {0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B, 0x8298}
# First bytes of formats that people do keep among photographs but that are not decoded here.
_REFUSED = {
    "PDF": rb"%PDF-",
    "EPS": rb"%!PS|\xc5\xd0\xd3\xc6",
    "PSD": rb"8BPS",
    "FITS": rb"SIMPLE  =",
    "AVIF": rb".{4}ftypavi[fs]",
    "HEIC": rb".{4}ftyp(hei|hev|mif1|msf1)",
    "raw CR3": rb".{4}ftypcrx",
    "JPEG 2000": rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
    "JPEG XL": rb"\x00\x00\x00\x0cJXL |\xff\x0a",
    "SVG": rb"\s*(<\?xml.*)?<svg",
}
_KNOWN_START = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF.{4}WEBP|II\*\x00|MM\x00\*|BM|GIF8[79]a", re.DOTALL)

# Thread-safe, unlike warnings.catch_warnings: over Pillow's own limit a picture fails before it is decoded.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)
# Remarks about odd metadata that name no file; whether the file can be used is said by us.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
# Registers every plugin now, since first use may be in several threads at once.
Image.init()


@dataclass(frozen=True)
class DecodedPhoto:
    """A decoded picture, upright."""

    rgb: Image.Image  # 8-bit sRGB, mode RGB; of a JPEG perhaps smaller than the file's (see `decode_photo`)
    alpha: Image.Image | None  # mode L, same size as `rgb`; None where nothing is transparent
    width: int  # of the picture in the file, in pixels, after EXIF orientation
    height: int
    exif: bytes  # without the orientation tag; empty where there is none
    profile: bytes  # an ICC profile of sRGB, where the file has one of any colour space; else empty


class _Refusal(Exception):
    """Why a picture cannot be used, in a few words."""


@contextmanager
def open_regular_file(path: Path) -> Iterator[io.BufferedReader]:
    """Open a regular file (or a link to one) for reading; a FIFO or device is never opened, so nothing hangs.

    Raises:
        InputError: there is no such file, it is not a regular file, or reading it fails inside the block.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise _unusable(path, "not a regular file")
        # Without blocking, should a FIFO have taken its place since.
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                raise _unusable(path, "not a regular file")
            yield stream
    except OSError as error:
        reason = "no such file" if error.errno == errno.ENOENT else f"cannot be read: {error.strerror or error}"
        if path.is_symlink() and error.errno in (errno.ENOENT, errno.ELOOP):
            reason = "not a regular file"
        raise _unusable(path, reason) from error


def _unusable(path: Path, reason: str) -> InputError:
    hint = "run `git lfs pull`" if "Git LFS" in reason else "leave it out, or save it again as JPEG or PNG"
    if reason == "no such file":
        hint = "check the path"
    if "--max-pixels" in reason:
        hint = "raise --max-pixels if you trust the file, or save it smaller"
    return InputError("photo", path, reason, hint)


def decode_photo(stream: BinaryIO, path: Path, *, max_pixels: int, at_least: int | None = None) -> DecodedPhoto:
    """Decode all of a picture file: its first frame, upright, as 8-bit sRGB.

    Deeper grey pictures are scaled, not clipped; CMYK, Lab and embedded ICC profiles are converted to sRGB; the
    colours under transparent pixels are kept as they are.

    Args:
        stream: the file's content, at its start; `path` only names it in errors.
        max_pixels: a picture with more pixels by its header is refused before anything is decoded.
        at_least: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its short side does not go below
            this; None: at full size.
    Raises:
        InputError: the file is no picture, damaged, truncated, too large, or of a format that is not accepted.
    """
    head = stream.read(512)
    stream.seek(0)
    try:
        _check_head(head)
        picture = _open_header(stream, max_pixels)
        full = picture.size
        if picture.format == "JPEG" and at_least is not None:
            ratio = min(1.0, at_least / min(full))
            picture.draft(None, (math.ceil(full[0] * ratio), math.ceil(full[1] * ratio)))
        picture.load()
        # After loading: Pillow turns TIFF pictures upright itself and then drops the tag.
        width, height = full[::-1] if _turn_upright_(picture) else full
        exif = _read_exif(picture)
        rgb, alpha, icc = _to_srgb(picture)
    except Exception as error:
        # Decoders of damaged files throw nearly anything: OSError, SyntaxError, struct.error, KeyError ...
        raise _unusable(path, _decoding_reason(head, error)) from error
    return DecodedPhoto(rgb, alpha, width, height, exif, icc)


def _check_head(head: bytes) -> None:
    if reason := find_impostor(head):
        raise _Refusal(reason)
    name = next((name for name, start in _REFUSED.items() if re.match(start, head, re.DOTALL)), None)
    if name is not None and not _KNOWN_START.match(head):
        raise _Refusal(f"format {name} not accepted ({_ACCEPTED})")


def _open_header(stream: BinaryIO, max_pixels: int) -> Image.Image:
    # Pillow's limit is one number for the process; a larger one of ours must get past it.
    Image.MAX_IMAGE_PIXELS = max(max_pixels, Image.MAX_IMAGE_PIXELS or 0)
    try:
        picture = Image.open(stream, formats=ACCEPTED_FORMATS)
        pixels = picture.width * picture.height
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        found = re.search(r"(\d+) pixels", str(error))
        pixels = int(found[1]) if found else max_pixels + 1
    if pixels > max_pixels:
        raise _Refusal(f"{pixels / 1e6:.4g} Mpx > limit {max_pixels / 1e6:.4g} Mpx (--max-pixels)")
    if picture.width < 1 or picture.height < 1:
        raise _Refusal("damaged (no pixels)")
    return picture


def _decoding_reason(head: bytes, error: Exception) -> str:
    text = str(error)
    if isinstance(error, _Refusal):
        return text
    if isinstance(error, UnidentifiedImageError):
        return "truncated or damaged (header)" if _KNOWN_START.match(head) else "not an image (cannot identify)"
    if isinstance(error, MemoryError):
        return "not enough memory to decode it"
    if isinstance(error, EOFError) or "truncated" in text.lower() or "unexpected end" in text.lower():
        return "truncated"
    return f"damaged ({text.lower().partition(chr(10))[0][:80] or type(error).__name__})"


def _turn_upright_(picture: Image.Image) -> bool:
    """Turn the pixels as the EXIF orientation says; whether width and height changed places."""
    on_its_side = False
    try:
        on_its_side = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        ImageOps.exif_transpose(picture, in_place=True)
    except MemoryError:
        raise
    except Exception:  # broken metadata counts as none, as in any viewer: the pixels are fine
        return on_its_side
    return on_its_side


def _read_exif(picture: Image.Image) -> bytes:
    """The EXIF block without the orientation; empty where there is none or it is broken."""
    try:
        exif = picture.getexif()
        kept = _TIFF_TEXT_TAGS if picture.format == "TIFF" else set(exif) - {ExifTags.Base.Orientation}
        for tag in set(exif) - kept:
            del exif[tag]
        return exif.tobytes() if len(exif) else b""
    except Exception:  # as above
        return b""


def _to_srgb(picture: Image.Image) -> tuple[Image.Image, Image.Image | None, bytes]:
    """The picture in mode RGB, its transparency, and the profile of sRGB where it had one."""
    if picture.mode[0] == "I" or picture.mode == "F":
        return _scale_deep_grey(picture).convert("RGB"), None, b""
    alpha = None
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        alpha, plain = rgba.getchannel("A"), rgba.convert("RGB")
    else:
        plain = picture if picture.mode in ("L", "RGB", "CMYK") else picture.convert("RGB")
    converted, profile = _apply_profile(plain, picture.info.get("icc_profile") or b"")
    return converted if converted.mode == "RGB" else converted.convert("RGB"), alpha, profile


def _scale_deep_grey(picture: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating-point grey to 8 bits, where Pillow's own conversion would clip at 255."""
    values = np.asarray(picture)
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise _Refusal("damaged (NaN or infinite pixels)")
    low, high = min(float(values.min()), 0.0), float(values.max())
    # What counts as white: all of 16 bits; else the smallest usual range that holds the brightest pixel.
    usual = (65535.0,) if picture.mode.startswith("I;16") else (1.0, 255.0, 65535.0)
    white = next((full for full in usual if high - low <= full), high - low)
    scaled = (values.astype(np.float32) - low) * (255.0 / white)
    return Image.fromarray(np.clip(np.rint(scaled), 0, 255).astype(np.uint8))


def _apply_profile(picture: Image.Image, profile: bytes) -> tuple[Image.Image, bytes]:
    """`picture` (L, RGB or CMYK) converted to sRGB, and a profile that says so; as it is where there is none."""
    if not profile:
        return picture, b""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "srgb" in ImageCms.getProfileDescription(source).lower():
            return picture, profile if picture.mode == "RGB" else b""
        target = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
        converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
        assert converted is not None
        return converted, target.tobytes()
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return picture, b""  # of another colour space than the pixels, or broken: viewers ignore such profiles too
