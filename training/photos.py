"""A photograph: found in a folder, checked by decoding, told apart by content, and read."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from colorpress.core.console import say, warn
from colorpress.core.errors import InputError
from colorpress.core.files import sha256_bytes
from training.decoding import DecodedPhoto, decode_photo, open_regular_file
from training.deep_pixels import FULL
from training.picture_types import HEAD_BYTES, find_type, type_of_suffix

NO_COLOUR = "no colour (grey photograph)"

# Who made them, and under which licences: NOTICE.md in it.
_EMBEDDED = Path(__file__).parent / "photographs"
_CHECK_SIDE = 64
_LARGEST_ASPECT = 8
_GREY_DIFFERENCE = 6
_said_whites: set[int] = set()


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph that decodes; `width` and `height` in pixels after EXIF orientation."""

    path: Path
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class SkippedPhoto:
    """A file or folder that is not used, and why in a few words.

    Attributes:
        is_photo: whether its name or content says that it is a photograph. What is none is named, and no more.
    """

    path: Path
    reason: str
    is_photo: bool = True


def embedded_photos() -> tuple[Path, ...]:
    """The colour photographs that come along, at most 160 pixels long, most of them taken outdoors; by name.

    Raises:
        InputError: colorpress is installed without them.
    """
    paths = tuple(sorted(_EMBEDDED.glob("*.jpg")))
    if not paths:
        hint = "install it again, or give a folder with --data"
        raise InputError("package", "colorpress", "without its photographs", hint)
    return paths


def load_rgb(path: Path, *, max_pixels: int, short_side: int | None = None) -> NDArray[np.uint8]:
    """A photograph as 8-bit sRGB (H, W, 3), upright by its EXIF orientation.

    Args:
        path: a file of one of `training.picture_types`; its first page or frame is taken.
        max_pixels: more pixels than this are refused before decoding.
        short_side: the answer's short side is at most this many pixels; pictures are never enlarged.
    Raises:
        InputError: the file cannot be used; its `why` is one plain reason.
    """
    with open_regular_file(path) as stream:
        picture = decode_photo(stream, path, max_pixels=max_pixels, at_least=short_side)
    return np.array(picture.rgb if short_side is None else _shrink(picture, short_side))


def _shrink(picture: DecodedPhoto, short_side: int) -> Image.Image:
    """A picture, which may have been decoded smaller already, at the size of its file or a short side of `short_side`.

    It has at most as many pixels as eight squares of that side, or a long strip would fill the memory of a network.
    """
    width, height = picture.width, picture.height
    ratio = min(1.0, short_side / min(width, height), math.sqrt(_LARGEST_ASPECT * short_side**2 / (width * height)))
    size = (max(1, round(width * ratio)), max(1, round(height * ratio)))
    return picture.rgb if picture.rgb.size == size else picture.rgb.resize(size, Image.Resampling.LANCZOS)


def walk_photos(folder: Path, *, leave_out: Path | None = None) -> Iterator[Path | SkippedPhoto]:
    """Every file below `folder` that may be a photograph, in an order that does not depend on the disk.

    Those are files whose suffix is one of a picture, whatever they hold, and files without a suffix that begin as a
    picture does. What else has no suffix, what cannot be followed and what cannot be listed come as skipped. Files of
    other suffixes, hidden files and hidden folders are passed over, and links to folders are followed once.

    Args:
        leave_out: a folder not to enter.
    """
    seen = {_identity(leave_out)} if leave_out and leave_out.is_dir() else set()
    pending = [folder]  # os.walk calls itself for each level, and folders may be nested deeply
    while pending:
        current = pending.pop()
        try:
            identity = _identity(current)
            if identity in seen:
                continue
            seen.add(identity)
            # As bytes: the names alone, and in an order that does not depend on their encoding.
            names = sorted(os.listdir(os.fsencode(current)))  # noqa: PTH208, pathlib makes a path of each
        except OSError as error:
            yield SkippedPhoto(current, f"folder cannot be read: {error.strerror or error}", is_photo=False)
            continue
        folders = []
        for name in map(os.fsdecode, names):
            if name.startswith("."):
                continue
            path, dot = current / name, "." in name
            # A folder with a picture's name is a candidate as well: it is reported as "not a regular file".
            if dot and type_of_suffix(f".{name.rpartition('.')[2]}") is not None:
                yield path
            elif os.path.isdir(path):  # noqa: PTH112, pathlib's raises for a link to itself
                folders.append(path)
            elif not dot:
                yield _sniff(path)
        pending.extend(reversed(folders))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _sniff(path: Path) -> Path | SkippedPhoto:
    """A file without a suffix, if it begins as a picture."""
    try:
        with open_regular_file(path) as stream:
            kind = find_type(stream.read(HEAD_BYTES))
    except InputError as error:
        return SkippedPhoto(path, error.why, is_photo=False)
    if kind is not None and kind.suffixes:
        return path
    return SkippedPhoto(path, "no suffix, and no picture by its content", is_photo=False)


def inspect_photo(path: Path, max_pixels: int) -> Photo | SkippedPhoto:
    """Hash a file and decode it (a JPEG at reduced size, which still reads all of it)."""
    try:
        with open_regular_file(path) as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            picture = decode_photo(stream, path, max_pixels=max_pixels, at_least=_CHECK_SIDE)
    except InputError as error:
        return SkippedPhoto(path, error.why)
    say_white(path, picture)
    pixels = np.asarray(_shrink(picture, _CHECK_SIDE))
    if np.ptp(pixels, axis=2).max() <= _GREY_DIFFERENCE:
        return SkippedPhoto(path, NO_COLOUR)
    return Photo(path, sha256, picture.width, picture.height)


def warn_of_passed_over(skipped: Sequence[SkippedPhoto]) -> None:
    """Warn of what is in a folder of photographs and says nowhere that it is one, in a line."""
    others = [each for each in skipped if not each.is_photo]
    if others:
        examples = "; ".join(f"{each.path.name}: {each.reason}" for each in others[:3])
        more = f"; and {len(others) - 3} more" if len(others) > 3 else ""
        warn(f"passed over as no photographs: {examples}{more}")


def say_white(path: Path, picture: DecodedPhoto) -> None:
    """Say what was taken for white in a photograph of 16 bits that uses fewer, once for all that are like it."""
    if picture.white in (0, FULL) or picture.white in _said_whites:
        return
    _said_whites.add(picture.white)
    say(f"'{path.name}' and others like it do not use all of 16 bits: {picture.white} is taken for white")


def hash_photos(*parts: Sequence[Photo]) -> str:
    """The SHA-256 of which photographs, by content, are in which part."""
    return sha256_bytes("|".join(",".join(photo.sha256 for photo in part) for part in parts).encode())
