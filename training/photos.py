"""Photographs: found in a folder, checked by decoding, told apart by content, and split by source folder."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image

from colorpress.core.config import DataConfig
from colorpress.core.console import progress, warn
from colorpress.core.errors import ConfigError, GateError, InputError
from colorpress.core.files import read_json, sha256_bytes, write_csv, write_json
from training.decoding import DecodedPhoto, decode_photo, open_regular_file

NO_COLOUR = "no colour (grey photograph)"

_SUFFIXES = {
    *("jpg", "jpeg", "jpe", "jfif", "png", "apng", "webp", "tif", "tiff", "bmp", "dib", "gif", "mpo"),
    # Pictures that are not decoded here: named in skipped_images.csv rather than passed over in silence.
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
# Fewer folders than this are kinds of pictures rather than shoots: none of them is held out whole.
_FEWEST_WHOLE_FOLDERS = 20


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
    """Photographs by use; no content is in two of them.

    What chose is never what is reported, so those of `val` are two parts: `choosing` tells which candidate or setting
    is best, and `confirming` scores what was chosen. Within a part the order is that of a hash: the first so many
    photographs are a random sample of it.

    Attributes:
        choosers: how many of `val`, from its first, choose; None: half of them, one more where they are odd.
        whole_folders: source folders of which each lies in one part.
        shared_folders: source folders of which each gives its share to every part.
    """

    train: tuple[Photo, ...]
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]
    skipped: tuple[SkippedPhoto, ...]
    choosers: int | None = None
    whole_folders: int = 0
    shared_folders: int = 0

    @property
    def choosing(self) -> tuple[Photo, ...]:
        """The first part of `val`: half of it, or as near as whole folders allow."""
        return self.val[: self._middle]

    @property
    def confirming(self) -> tuple[Photo, ...]:
        """The rest of `val`; empty where that is a single photograph."""
        return self.val[self._middle :]

    @property
    def _middle(self) -> int:
        return (len(self.val) + 1) // 2 if self.choosers is None else self.choosers

    def describe_folders(self) -> str:
        """How folders were split, in a few words; empty where all photographs lie in one."""
        whole, shared = self.whole_folders, self.shared_folders
        if whole and shared:
            return f"whole folders kept together: {whole} folders, and {shared} larger ones give every part their share"
        if whole:
            return f"whole folders kept together: {whole} folders"
        return f"each of {shared} folders gives every part its share" if shared > 1 else ""

    def limit_halves(self, count: int) -> PhotoSplit:
        """With the first `count` photographs at most of either half of `val`, which stay the halves that they are."""
        first, second = self.choosing[:count], self.confirming[:count]
        return replace(self, val=first + second, choosers=len(first))


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


def load_rgb(path: Path, *, max_pixels: int, short_side: int | None = None) -> NDArray[np.uint8]:
    """A photograph as 8-bit sRGB (H, W, 3), upright by its EXIF orientation.

    Args:
        path: a JPEG, PNG, WebP, TIFF, BMP, GIF or MPO file; its first frame is taken.
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


def walk_photos(folder: Path, *, leave_out: Path | None = None) -> Iterator[Path]:
    """Every file below `folder` whose suffix is one of a picture, in an order that does not depend on the disk.

    Hidden files and folders are passed over, links to folders are followed once. `leave_out` is a folder not to
    enter. Nothing is opened: what a file really is shows when it is decoded.
    """
    seen = {_identity(leave_out)} if leave_out and leave_out.is_dir() else set()
    pending = [folder]  # os.walk calls itself for each level, and folders may be nested deeply
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
            if entry.name.rpartition(".")[2].lower() in _SUFFIXES and "." in entry.name:
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
    """Find photographs, decode each once to see that it can be used, and split them by source folder and content.

    Files are taken from `config.data`, or from scikit-image where that is None. Files with equal content count once.
    The split orders photographs by a hash of seed and content: names, copies and the order of the disk do not change
    it, only which photographs lie together in a folder does.

    Those of one folder may be one shoot, nearly the same picture many times. So a folder of at most half of the
    smallest part goes to one part whole, where there are at least 20 such folders. Every other folder may be a kind
    of pictures, and gives its share to every part, to within a photograph or two. Parts are as large as `config`
    asks; where whole folders are in the way, as near to it as half of one.

    Args:
        config: where to look, shares of the split, limits.
        workers: threads that decode; 0 counts as 1.
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
    found = _PhotoIndex(index_path, root, config.max_pixels).inspect_all(paths, workers)
    photos, skipped = _drop_copies(found)
    if skipped_path is not None:
        rows = ({"path": str(each.path), "reason": each.reason} for each in skipped)
        write_csv(skipped_path, ("path", "reason"), rows)
    _check_counts(root, found, len(photos), config)
    return _split(_by_folder(photos, found), skipped, config)


def scan_folder(
    folder: Path,
    *,
    option: str,
    max_pixels: int,
    workers: int,
    index_path: Path | None = None,
    leave_out: Path | None = None,
) -> tuple[tuple[Photo, ...], tuple[SkippedPhoto, ...]]:
    """Every photograph of a folder that can be used, however few, in the order of their content; and what cannot.

    Args:
        option: that names the folder, for the error.
        workers, index_path: as `scan_photos`. `leave_out`: as `walk_photos`.
    Raises:
        ConfigError: it is not a folder.
        InputError: none of its files can be used.
    """
    _require_folder(folder, option)
    found = _PhotoIndex(index_path, folder, max_pixels).inspect_all(
        list(walk_photos(folder, leave_out=leave_out)), workers
    )
    photos, skipped = _drop_copies(found)
    if not photos:
        why = f"holds no colour photograph that can be used; {len(found)} picture files"
        why += f" ({skipped[0].path.name}: {skipped[0].reason})" if skipped else ""
        raise InputError("folder", folder, why, f"give another folder with {option}")
    return tuple(sorted(photos, key=lambda photo: photo.sha256)), tuple(skipped)


def hash_photos(*parts: Sequence[Photo]) -> str:
    """The SHA-256 of which photographs, by content, are in which part."""
    return sha256_bytes("|".join(",".join(photo.sha256 for photo in part) for part in parts).encode())


def _list_files(data: Path | None) -> tuple[Path, list[Path]]:
    if data is None:
        paths = embedded_photos()
        return paths[0].parent, list(paths)
    _require_folder(data, "--data")
    return data, list(walk_photos(data))


def _require_folder(folder: Path, option: str) -> None:
    if not folder.is_dir():
        why = "not a folder" if folder.exists() else "no such folder"
        raise ConfigError(f"option {option}", folder, why, f"give a folder of photographs, or leave {option} out")


def inspect_photo(path: Path, max_pixels: int) -> Photo | SkippedPhoto:
    """Hash a file and decode it (a JPEG at reduced size, which still reads all of it)."""
    try:
        with open_regular_file(path) as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
            stream.seek(0)
            picture = decode_photo(stream, path, max_pixels=max_pixels, at_least=_CHECK_SIDE)
    except InputError as error:
        return SkippedPhoto(path, error.why)
    pixels = np.asarray(_shrink(picture, _CHECK_SIDE))
    if np.ptp(pixels, axis=2).max() <= _GREY_DIFFERENCE:
        return SkippedPhoto(path, NO_COLOUR)
    return Photo(path, sha256, picture.width, picture.height)


_Entry = tuple[int, int, str, int, int, str]


class _PhotoIndex:
    """What is known of the files of one folder: relative path -> (size, mtime_ns, sha256, width, height, reason)."""

    def __init__(self, path: Path | None, root: Path, max_pixels: int) -> None:
        self.path, self.root, self.max_pixels = path, root, max_pixels
        folder = str(root.resolve())
        self.header = {"format": _INDEX_FORMAT, "folder": folder, "max_pixels": max_pixels, "pillow": PIL.__version__}
        self.known: dict[str, _Entry] = {}
        self.current: dict[str, _Entry] = {}
        if path is None or not path.exists():
            return
        try:
            content = read_json(path, "index", "remove it")
            entries = {str(name): _checked_entry(entry) for name, entry in content.pop("files").items()}
            self.known = entries if content == self.header else {}
        except (InputError, OSError, ValueError, TypeError, KeyError, AttributeError):
            warn(f"index '{path}' cannot be used; every photograph is checked again")

    def inspect_all(self, paths: Sequence[Path], workers: int) -> list[Photo | SkippedPhoto]:
        found: list[Photo | SkippedPhoto] = []
        # In portions, so that a signal does not wait for a queue of a million files.
        portion = 32 * max(1, workers)
        try:
            with ThreadPoolExecutor(max(1, workers)) as pool, progress("checking photographs", len(paths)) as shown:
                for start in range(0, len(paths), portion):
                    for each in pool.map(self.inspect, paths[start : start + portion]):
                        found.append(each)
                        shown.advance()
        finally:
            if self.path is not None and self.current != self.known:
                write_json(self.path, {**self.header, "files": dict(sorted(self.current.items()))})
        return found

    def inspect(self, path: Path) -> Photo | SkippedPhoto:
        try:
            status = path.stat()
        except OSError:
            return inspect_photo(path, self.max_pixels)
        name, stamp = path.relative_to(self.root).as_posix(), (status.st_size, status.st_mtime_ns)
        entry = self.known.get(name)
        if entry is None or entry[:2] != stamp:
            match inspect_photo(path, self.max_pixels):
                case Photo(_, sha256, width, height):
                    entry = (*stamp, sha256, width, height, "")
                case SkippedPhoto(_, reason):
                    entry = (*stamp, "", 0, 0, reason)
        self.current[name] = entry
        _, _, sha256, width, height, reason = entry
        return SkippedPhoto(path, reason) if reason else Photo(path, sha256, width, height)


def _checked_entry(entry: Any) -> _Entry:
    size, mtime_ns, sha256, width, height, reason = entry
    usable = reason or (re.fullmatch("[0-9a-f]{64}", str(sha256)) and min(width, height) > 0)
    if [type(value) for value in entry] != [int, int, str, int, int, str] or not usable:
        raise ValueError("an index entry of another shape")
    return size, mtime_ns, sha256, width, height, reason


def _drop_copies(found: Sequence[Photo | SkippedPhoto]) -> tuple[list[Photo], list[SkippedPhoto]]:
    photos: dict[str, Photo] = {}
    skipped: list[SkippedPhoto] = []
    for each in found:
        if isinstance(each, SkippedPhoto):
            skipped.append(each)
        elif (original := photos.setdefault(each.sha256, each)) is not each:
            skipped.append(SkippedPhoto(each.path, f"same content as {original.path.name}"))
    return list(photos.values()), skipped


def _check_counts(root: Path, found: Sequence[Photo | SkippedPhoto], photos: int, config: DataConfig) -> None:
    refused = [each for each in found if isinstance(each, SkippedPhoto)]
    bad = [each for each in refused if each.reason != NO_COLOUR]
    if copies := len(found) - len(refused) - photos:
        warn(f"{copies} files have the same content as others; each photograph is used once")
    examples = "; ".join(f"{each.path.name}: {each.reason}" for each in bad[:3])
    if photos < 3:
        grey = len(refused) - len(bad)
        counts = f"{len(found)} picture files: {photos} usable, {len(bad)} unreadable, {grey} grey, {copies} copies"
        why = f"at least 3 colour photographs are needed; {counts}" + (f" ({examples})" if bad else "")
        raise InputError("folder", root, why, "give a folder with more photographs with --data")
    share = len(bad) / len(found)
    if share > config.max_bad_share:
        shares = f"{share:.1%}, allowed {config.max_bad_share:.1%}"
        why = f"{len(bad)} of {len(found)} files cannot be used ({shares}): {examples}"
        raise GateError("folder", root, why, "mend or remove them, or allow more with --max-bad-share")


def _by_folder(photos: Sequence[Photo], found: Sequence[Photo | SkippedPhoto]) -> list[list[Photo]]:
    """Photographs by the folder that directly holds them.

    One that several folders hold counts in the one with the most that no other holds: in its shoot rather than in a
    collection of the best. Among equals the smaller folder comes first, then the contents decide, never the names.
    """
    contents: dict[Path, set[str]] = defaultdict(set)
    holders: dict[str, set[Path]] = defaultdict(set)
    for each in found:
        if isinstance(each, Photo):
            contents[each.path.parent].add(each.sha256)
            holders[each.sha256].add(each.path.parent)
    own = Counter(folder for folders in holders.values() if len(folders) == 1 for folder in folders)
    # Folders with the same contents are equals to the last: whichever comes first takes all of them.
    ordered = sorted(contents, key=lambda folder: (-own[folder], len(contents[folder]), sorted(contents[folder])))
    rank = {folder: place for place, folder in enumerate(ordered)}
    sources: dict[Path, list[Photo]] = defaultdict(list)
    for photo in photos:
        sources[min(holders[photo.sha256], key=rank.__getitem__)].append(photo)
    return list(sources.values())


# What goes to one part as one: a photograph, or all those of a folder.
_Unit = Sequence[Photo]


def _split(sources: Sequence[Sequence[Photo]], skipped: Sequence[SkippedPhoto], config: DataConfig) -> PhotoSplit:
    """Split the photographs of each source folder as `scan_photos` says."""
    count = sum(map(len, sources))
    tested, validated = (max(1, math.floor(share * count + 0.5)) for share in (config.test_share, config.val_share))
    trained = count - tested - validated
    if trained <= 0:
        why = f"got {config.val_share} and a --test-share of {config.test_share}: no photograph is left to train on"
        raise ConfigError("option", "--val-share", why, "give smaller shares")
    # Folders so small move the border of a part by a quarter of it at most, and every part has two or more of them.
    largest = min(tested, validated, trained) // 2
    if sum(len(source) <= largest for source in sources) < _FEWEST_WHOLE_FOLDERS:
        largest = 0
    whole = [source for source in sources if len(source) <= largest]
    shared = [source for source in sources if len(source) > largest]
    units = [*_place_whole(whole, config.seed), *_place_shared(shared, config.seed)]
    test, rest = _cut([unit for *_, unit in sorted(units, key=itemgetter(0, 1))], tested)
    val, train = _cut(rest, validated)
    choosing, confirming = _cut(val, (sum(map(len, val)) + 1) // 2)
    parts = {"train": train, "choosing": choosing, "confirming": confirming, "test": test}
    ordered = {name: _in_order(itertools.chain(*part), config.seed) for name, part in parts.items()}
    return PhotoSplit(
        train=ordered["train"],
        val=ordered["choosing"] + ordered["confirming"],
        test=ordered["test"],
        skipped=tuple(skipped),
        choosers=len(ordered["choosing"]),
        whole_folders=len(whole),
        shared_folders=len(shared),
    )


def _order_key(photo: Photo, seed: int) -> str:
    return sha256_bytes(f"{seed}:{photo.sha256}".encode())


def _in_order(photos: Iterable[Photo], seed: int) -> tuple[Photo, ...]:
    return tuple(sorted(photos, key=lambda photo: _order_key(photo, seed)))


def _folder_key(source: Sequence[Photo], seed: int) -> str:
    # By one photograph of it: those that are added later seldom move the folder, and many are no likelier to be first.
    return _order_key(min(source, key=lambda photo: photo.sha256), seed)


def _place_whole(sources: Sequence[Sequence[Photo]], seed: int) -> Iterator[tuple[float, str, _Unit]]:
    """Folders in a row, each at its middle, from 0 to 1; with the place a key that orders equal ones."""
    total, passed = sum(map(len, sources)), 0
    for key, source in sorted(((_folder_key(source, seed), source) for source in sources), key=itemgetter(0)):
        yield (passed + len(source) / 2) / total, key, source
        passed += len(source)


def _place_shared(sources: Sequence[Sequence[Photo]], seed: int) -> Iterator[tuple[float, str, _Unit]]:
    """The photographs of each folder at equal distances from 0 to 1, so every stretch of that has its share of each.

    Where the first one lies is the folder's hash: rounding would leave small folders to the same part.
    """
    for source in sources:
        start = int(_folder_key(source, seed), 16) / 2**256
        for number, photo in enumerate(_in_order(source, seed)):
            yield (number + start) / len(source), _order_key(photo, seed), (photo,)


def _cut(units: Sequence[_Unit], wanted: int) -> tuple[Sequence[_Unit], Sequence[_Unit]]:
    """The first of them, at least one, that have together as near to `wanted` photographs as can be; and the rest."""
    passed = list(itertools.accumulate(map(len, units)))
    end = 1 + min(range(len(units)), key=lambda place: abs(passed[place] - wanted))
    return units[:end], units[end:]
