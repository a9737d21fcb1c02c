"""Photographs: found in a folder, checked by decoding, told apart by content, and split."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from colorpress.core.config import DataConfig
from colorpress.core.console import progress, warn
from colorpress.core.errors import ConfigError, GateError, InputError
from colorpress.core.files import write_csv, write_json
from training.decoding import decode_photo, open_regular_file

NO_COLOUR = "no colour (grey photograph)"

_ACCEPTED_SUFFIXES = {"jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "tif", "tiff", "bmp", "dib", "gif", "mpo"}
# Pictures that are not decoded here: named in skipped_images.csv rather than passed over in silence.
_REFUSED_SUFFIXES = {
    *("heic", "heif", "avif", "jxl", "jp2", "j2k", "svg", "psd", "eps", "fits", "dng", "cr2", "cr3", "nef"),
}
# Astronaut, cat, cup, motorcycle (one of the stereo pair), rocket: what a person would photograph. The galaxy field,
# the stained tissue and the retina of the wheel have false colours that so few photographs could not outweigh; its
# other files are grey, charts or drawings.
_EMBEDDED = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")
_CHECK_SIDE = 64
_LARGEST_ASPECT = 8
_GREY_DIFFERENCE = 6
_INDEX_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Photo:
    """A photograph that decodes; `width` and `height` in pixels after EXIF orientation."""

    path: Path
    sha256: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class SkippedPhoto:
    """A file that is not used, and why in a few words."""

    path: Path
    reason: str


@dataclass(frozen=True)
class PhotoSplit:
    """Photographs by use; no content is in two of them."""

    train: tuple[Photo, ...]
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]
    skipped: tuple[SkippedPhoto, ...]


def embedded_photos() -> tuple[Path, ...]:
    """The five colour photographs inside the installed scikit-image; nothing is downloaded.

    Raises:
        InputError: scikit-image is installed without them.
    """
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    paths = tuple(folder / name for name in _EMBEDDED)
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        why = f"without its photographs {', '.join(missing)}"
        raise InputError("package", "scikit-image", why, "install it again, or give a folder with --data")
    return paths


def open_photo(path: Path, *, max_pixels: int, short_side: int | None = None) -> Image.Image:
    """Decode a photograph to 8-bit sRGB (mode RGB), upright by its EXIF orientation.

    Args:
        path: a JPEG, PNG, WebP, TIFF, BMP, GIF or MPO file; its first frame is taken.
        max_pixels: more pixels than this are refused before decoding.
        short_side: the answer's short side is at most this many pixels; pictures are never enlarged.
    Raises:
        InputError: the file cannot be used; its `why` is one plain reason.
    """
    with open_regular_file(path) as stream:
        picture = decode_photo(stream, path, max_pixels=max_pixels, at_least=short_side)
    return shrink_to(picture.rgb, (picture.width, picture.height), short_side)


def shrink_to(picture: Image.Image, full_size: tuple[int, int], short_side: int | None) -> Image.Image:
    """`picture` at `full_size` scaled to a short side of at most `short_side`; it may be a smaller copy already.

    It has at most as many pixels as eight squares of that side, or a long strip would fill the memory of a network.
    """
    ratio = 1.0
    if short_side is not None:
        largest = _LARGEST_ASPECT * short_side**2
        ratio = min(1.0, short_side / min(full_size), math.sqrt(largest / (full_size[0] * full_size[1])))
    size = (max(1, round(full_size[0] * ratio)), max(1, round(full_size[1] * ratio)))
    return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)


def load_rgb(path: Path, *, max_pixels: int, short_side: int | None = None) -> NDArray[np.uint8]:
    """`open_photo` as an array (H, W, 3), uint8."""
    return np.array(open_photo(path, max_pixels=max_pixels, short_side=short_side))


def find_photos(folder: Path, *, leave_out: Path | None = None) -> Iterator[Path]:
    """Every file below `folder` whose suffix is one of a picture, in an order that does not depend on the disk.

    Hidden files and folders are passed over, links to folders are followed once. `leave_out` is a folder not to
    enter. Nothing is opened: what a file really is shows when it is decoded.
    """
    seen = {_identity(leave_out)} if leave_out and leave_out.is_dir() else set()
    pending = [folder]
    while pending:
        current = pending.pop()
        identity = _identity(current)
        if identity in seen:
            continue
        seen.add(identity)
        try:
            with os.scandir(current) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            warn(f"folder '{current}' cannot be read: {error.strerror or error}")
            continue
        folders = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            # A folder with a picture's name is a candidate as well: it is reported as "not a regular file".
            if entry.name.rpartition(".")[2].lower() in _ACCEPTED_SUFFIXES | _REFUSED_SUFFIXES and "." in entry.name:
                yield Path(entry.path)
            elif entry.is_dir():
                folders.append(Path(entry.path))
        pending.extend(reversed(folders))


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def scan_photos(
    config: DataConfig, *, workers: int, index_path: Path | None = None, skipped_path: Path | None = None
) -> PhotoSplit:
    """Find photographs, decode each once to see that it can be used, and split them by content.

    Files are taken from `config.data`, or from scikit-image where that is None. Files with equal content count once.
    The split orders photographs by a hash of seed and content: names, folders and copies do not change it.

    Args:
        config: where to look, shares of the split, limits.
        workers: threads that decode; 0: none.
        index_path: JSON file that remembers what was found, so that unchanged files (path, size, modification time)
            are not decoded again. Anything odd in it and it is made anew.
        skipped_path: CSV file (path, reason) of what is not used; written before any of the checks below.
    Raises:
        ConfigError: `config.data` is not a folder, or the shares leave nothing to train on.
        InputError: fewer than three photographs can be used.
        GateError: a larger share of the files than `config.max_bad_share` cannot be read. Grey photographs and copies
            are not used either, but are not held against the folder.
    """
    root, paths = _list_files(config.data)
    index = _PhotoIndex.read(index_path, root, config.max_pixels)
    try:
        found = _inspect_all(paths, root, index, workers)
    finally:
        index.write(index_path)
    bad = [each for each in found if isinstance(each, SkippedPhoto) and each.reason != NO_COLOUR]
    photos, copies = _drop_copies(each for each in found if isinstance(each, Photo))
    not_used = (copies.get(each.path) if isinstance(each, Photo) else each for each in found)
    skipped = tuple(filter(None, not_used))
    if skipped_path is not None:
        rows = ({"path": str(each.path), "reason": each.reason} for each in skipped)
        write_csv(skipped_path, ("path", "reason"), rows)
    if copies:
        warn(f"{len(copies)} files have the same content as others; each photograph is used once")
    _check_counts(root, len(found), len(photos), len(copies), bad, config)
    return _split(photos, skipped, config)


def hash_photos(*parts: Sequence[Photo]) -> str:
    """The SHA-256 of which photographs, by content, are in which part."""
    return hashlib.sha256("|".join(",".join(photo.sha256 for photo in part) for part in parts).encode()).hexdigest()


def _list_files(data: Path | None) -> tuple[Path, list[Path]]:
    if data is None:
        paths = embedded_photos()
        return paths[0].parent, list(paths)
    if not data.is_dir():
        why = "not a folder" if data.exists() else "no such folder"
        raise ConfigError("option --data", data, why, "give a folder of photographs, or leave --data out")
    return data, list(find_photos(data))


def _inspect_all(paths: Sequence[Path], root: Path, index: _PhotoIndex, workers: int) -> list[Photo | SkippedPhoto]:
    found: list[Photo | SkippedPhoto] = []
    # In portions, so that a signal does not wait for a queue of a million files.
    portion = 32 * max(1, workers)
    with ThreadPoolExecutor(max(1, workers)) as pool, progress("checking photographs", len(paths)) as shown:
        for start in range(0, len(paths), portion):
            part = paths[start : start + portion]
            answers: Iterable[Photo | SkippedPhoto]
            answers = pool.map(index.inspect, part) if workers else map(index.inspect, part)
            for answer in answers:
                found.append(answer)
                shown.advance()
    return found


def inspect_photo(path: Path, max_pixels: int) -> Photo | SkippedPhoto:
    """Hash a file and decode it (a JPEG at reduced size, which still reads all of it)."""
    try:
        with open_regular_file(path) as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            picture = decode_photo(stream, path, max_pixels=max_pixels, at_least=_CHECK_SIDE)
    except InputError as error:
        return SkippedPhoto(path, error.why)
    size = (picture.width, picture.height)
    pixels = np.asarray(shrink_to(picture.rgb, size, _CHECK_SIDE)).astype(np.int16)
    if (pixels.max(axis=2) - pixels.min(axis=2)).max() <= _GREY_DIFFERENCE:
        return SkippedPhoto(path, NO_COLOUR)
    return Photo(path, sha256, *size)


_Entry = tuple[int, int, str, int, int, str]


@dataclass
class _PhotoIndex:
    """What is known of the files of one folder: relative path -> (size, mtime_ns, sha256, width, height, reason)."""

    root: Path
    max_pixels: int
    known: dict[str, _Entry] = field(default_factory=dict)
    current: dict[str, _Entry] = field(default_factory=dict)

    def header(self) -> dict[str, Any]:
        folder = str(self.root.resolve())
        return {"format": _INDEX_FORMAT, "folder": folder, "max_pixels": self.max_pixels, "pillow": PIL.__version__}

    @staticmethod
    def read(path: Path | None, root: Path, max_pixels: int) -> _PhotoIndex:
        index = _PhotoIndex(root, max_pixels)
        if path is None or not path.exists():
            return index
        try:
            with open_regular_file(path) as stream:
                content = json.load(stream)
            entries = {str(name): _checked_entry(entry) for name, entry in content.pop("files").items()}
            if content == index.header():
                index.known = entries
        except (InputError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
            warn(f"index '{path}' cannot be used; every photograph is checked again")
        return index

    def write(self, path: Path | None) -> None:
        if path is not None and self.current != self.known:
            write_json(path, {**self.header(), "files": dict(sorted(self.current.items()))})

    def inspect(self, path: Path) -> Photo | SkippedPhoto:
        try:
            status = path.stat()
        except OSError:
            return inspect_photo(path, self.max_pixels)
        name, stamp = path.relative_to(self.root).as_posix(), (status.st_size, status.st_mtime_ns)
        entry = self.known.get(name)
        if entry is None or entry[:2] != stamp:
            found = inspect_photo(path, self.max_pixels)
            if isinstance(found, Photo):
                entry = (*stamp, found.sha256, found.width, found.height, "")
            else:
                entry = (*stamp, "", 0, 0, found.reason)
        self.current[name] = entry
        _, _, sha256, width, height, reason = entry
        return SkippedPhoto(path, reason) if reason else Photo(path, sha256, width, height)


def _checked_entry(entry: Any) -> _Entry:
    size, mtime_ns, sha256, width, height, reason = entry
    usable = reason or (re.fullmatch("[0-9a-f]{64}", str(sha256)) and min(width, height) > 0)
    if [type(value) for value in entry] != [int, int, str, int, int, str] or not usable:
        raise ValueError("an index entry of another shape")
    return size, mtime_ns, sha256, width, height, reason


def _drop_copies(photos: Iterable[Photo]) -> tuple[list[Photo], dict[Path, SkippedPhoto]]:
    first: dict[str, Photo] = {}
    copies: dict[Path, SkippedPhoto] = {}
    for photo in photos:
        original = first.setdefault(photo.sha256, photo)
        if original is not photo:
            copies[photo.path] = SkippedPhoto(photo.path, f"same content as {original.path.name}")
    return list(first.values()), copies


def _check_counts(
    root: Path, files: int, photos: int, copies: int, bad: Sequence[SkippedPhoto], config: DataConfig
) -> None:
    examples = "; ".join(f"{each.path.name}: {each.reason}" for each in bad[:3])
    if photos < 3:
        grey = files - photos - copies - len(bad)
        counts = f"{files} picture files: {photos} usable, {len(bad)} unreadable, {grey} grey, {copies} copies"
        why = f"at least 3 colour photographs are needed; {counts}" + (f" ({examples})" if bad else "")
        raise InputError("folder", root, why, "give a folder with more photographs with --data")
    share = len(bad) / files
    if share > config.max_bad_share:
        why = (
            f"{len(bad)} of {files} files cannot be used ({share:.1%}, allowed {config.max_bad_share:.1%}): {examples}"
        )
        raise GateError("folder", root, why, "mend or remove them, or allow more with --max-bad-share")


def _split(photos: Sequence[Photo], skipped: tuple[SkippedPhoto, ...], config: DataConfig) -> PhotoSplit:
    ordered = sorted(photos, key=lambda photo: hashlib.sha256(f"{config.seed}:{photo.sha256}".encode()).digest())
    tested, validated = (_share_of(len(ordered), share) for share in (config.test_share, config.val_share))
    if tested + validated >= len(ordered):
        why = f"got {config.val_share} and a --test-share of {config.test_share}: no photograph is left to train on"
        raise ConfigError("option", "--val-share", why, "give smaller shares")
    return PhotoSplit(
        train=tuple(ordered[tested + validated :]),
        val=tuple(ordered[tested : tested + validated]),
        test=tuple(ordered[:tested]),
        skipped=skipped,
    )


def _share_of(count: int, share: float) -> int:
    return max(1, math.floor(share * count + 0.5)) if share > 0 else 0
