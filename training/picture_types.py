"""Types of picture files: told by their first bytes, whatever a file is called."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from PIL import Image, features

# First bytes that tell every type; more of a file is read only to decode it.
HEAD_BYTES = 512


@dataclass(frozen=True)
class PictureType:
    """One type of file.

    Attributes:
        name: for people.
        start: what its first bytes match.
        pillow: Pillow's name for it; empty where it is not decoded here.
        suffixes: of its files, the usual one first; of types that are not decoded too, so that such a file among
            photographs is named rather than passed over.
        extra, package: what decodes it, as an extra of colorpress and as a package.
        feature: Pillow's name for the library that decodes it, where a Pillow may be built without.
    """

    name: str
    start: bytes
    pillow: str = ""
    suffixes: tuple[str, ...] = ()
    extra: str = ""
    package: str = ""
    feature: str = ""

    @property
    def is_read(self) -> bool:
        """Whether the Pillow that is installed decodes it."""
        return self.pillow in Image.OPEN and self._has_library

    @property
    def is_written(self) -> bool:
        """Whether the Pillow that is installed encodes it."""
        return self.pillow in Image.SAVE and self._has_library

    @property
    def _has_library(self) -> bool:
        return not self.feature or bool(features.check(self.feature))


def _load_decoders() -> None:
    """Register every decoder of ours now, since first use may be in several threads at once; Pillow has 30 more."""
    Image.preinit()
    for each in ("Avif", "Jpeg2K", "Mpo", "Tiff", "WebP"):
        import_module(f"PIL.{each}ImagePlugin")
    if find_spec("pillow_heif") is not None:
        # Against untyped names: the package is an extra.
        import_module("pillow_heif").register_heif_opener()


_load_decoders()

# The first that matches is it: an AVIF may begin as a HEIC does, and names its own kind a little later.
TYPES = (
    # MPO, a JPEG with more pictures behind it, comes with JPEG.
    PictureType("JPEG", rb"\xff\xd8\xff", "JPEG", ("jpg", "jpeg", "jpe", "jfif", "mpo")),
    PictureType("PNG", rb"\x89PNG\r\n", "PNG", ("png", "apng")),
    PictureType("WebP", rb"RIFF.{4}WEBP", "WEBP", ("webp",), feature="webp"),
    PictureType("raw CR2", rb"II\*\x00.{4}CR", suffixes=("cr2", "dng", "nef", "arw", "orf", "rw2", "pef")),
    PictureType("TIFF", rb"II[*+]\x00|MM\x00[*+]", "TIFF", ("tif", "tiff")),
    # Two letters may begin any text; behind them stands the size of the header, of which there are few.
    PictureType("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00\x00\x00", "BMP", ("bmp", "dib")),
    PictureType("GIF", rb"GIF8[79]a", "GIF", ("gif",)),
    PictureType(
        "AVIF", rb".{4}ftyp(avi[fs]|(mif1|msf1).{4}(.{4}){0,16}avi[fs])", "AVIF", ("avif", "avifs"), feature="avif"
    ),
    PictureType("HEIC", rb".{4}ftyp(hei|hev|mif1|msf1)", "HEIF", ("heic", "heif", "hif"), "heif", "pillow-heif"),
    PictureType(
        "JPEG 2000",
        rb"\x00\x00\x00\x0cjP  |\xff\x4f\xff\x51",
        "JPEG2000",
        ("jp2", "j2k", "jpf", "jpx", "j2c", "jpc"),
        feature="jpg_2000",
    ),
    PictureType("raw CR3", rb".{4}ftypcrx", suffixes=("cr3",)),
    PictureType("PDF", rb"%PDF-"),
    PictureType("EPS", rb"%!PS|\xc5\xd0\xd3\xc6", suffixes=("eps",)),
    PictureType("PSD", rb"8BPS", suffixes=("psd", "psb")),
    PictureType("FITS", rb"SIMPLE  =", suffixes=("fits",)),
    PictureType("JPEG XL", rb"\x00\x00\x00\x0cJXL |\xff\x0a", suffixes=("jxl",)),
    PictureType("SVG", rb"\s*(<\?xml.*)?<svg", suffixes=("svg",)),
)
_BY_SUFFIX = {f".{suffix}": each for each in TYPES for suffix in each.suffixes}


def find_type(head: bytes) -> PictureType | None:
    """The type of a file that begins with `head`, its first 512 bytes at most; None for any other."""
    return next((each for each in TYPES if re.match(each.start, head, re.DOTALL)), None)


def type_of_suffix(suffix: str) -> PictureType | None:
    """The type that a suffix such as ".JPG" promises; None for any other."""
    return _BY_SUFFIX.get(suffix.lower())


def names_of_read_types() -> str:
    """The types that are decoded here, for a message."""
    return ", ".join(each.name for each in TYPES if each.is_read)
