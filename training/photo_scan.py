"""All photographs of a folder: each is checked once, copies are dropped, and what is left is split."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import PIL

from colorpress.core.config import DataConfig
from colorpress.core.console import progress, warn
from colorpress.core.errors import ConfigError, GateError, InputError
from colorpress.core.files import write_csv, write_json
from colorpress.core.reading import read_json
from training.photo_split import PhotoSplit, group_by_folder, split_photos
from training.photos import (
    NO_COLOUR,
    Photo,
    SkippedPhoto,
    embedded_photos,
    inspect_photo,
    walk_photos,
    warn_of_passed_over,
)
from training.picture_types import names_of_read_types

_INDEX_FORMAT = 2


def scan_photos(
    config: DataConfig, *, workers: int, index_path: Path | None = None, skipped_path: Path | None = None
) -> PhotoSplit:
    """Find photographs, decode each once to see that it can be used, and split them by source folder and content.

    Files are taken from `config.data`, or are `embedded_photos` where that is None. Files with equal content count
    once. The split orders photographs by a hash of seed and content: names, copies and the order of the disk do not
    change it, only which photographs lie together in a folder does.

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
    warn_of_passed_over(skipped)
    if skipped_path is not None:
        rows = ({"path": str(each.path), "reason": each.reason} for each in skipped)
        write_csv(skipped_path, ("path", "reason"), rows)
    _check_counts(root, found, len(photos), config)
    return split_photos(group_by_folder(photos, found), skipped, config)


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
    warn_of_passed_over(skipped)
    if not photos:
        why = f"holds no colour photograph that can be used; {len(found)} picture files"
        why += f" ({skipped[0].path.name}: {skipped[0].reason})" if skipped else ""
        raise InputError("folder", folder, why, f"give another folder with {option}")
    return tuple(sorted(photos, key=lambda photo: photo.sha256)), tuple(skipped)


def _list_files(data: Path | None) -> tuple[Path, list[Path | SkippedPhoto]]:
    if data is None:
        paths = embedded_photos()
        return paths[0].parent, list(paths)
    _require_folder(data, "--data")
    return data, list(walk_photos(data))


def _require_folder(folder: Path, option: str) -> None:
    if not folder.is_dir():
        why = "not a folder" if folder.exists() else "no such folder"
        raise ConfigError(
            f"option {option}",
            folder,
            why,
            f"give a folder of photographs with {option}; left out, it is that of the run folder",
        )


_Entry = tuple[int, int, str, int, int, str]


class _PhotoIndex:
    """What is known of the files of one folder: relative path -> (size, mtime_ns, sha256, width, height, reason)."""

    def __init__(self, path: Path | None, root: Path, max_pixels: int) -> None:
        self.path, self.root, self.max_pixels = path, root, max_pixels
        folder = str(root.resolve())
        decoders = {"pillow": PIL.__version__, "types": names_of_read_types()}
        self.header = {"format": _INDEX_FORMAT, "folder": folder, "max_pixels": max_pixels, **decoders}
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

    def inspect_all(self, paths: Sequence[Path | SkippedPhoto], workers: int) -> list[Photo | SkippedPhoto]:
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

    def inspect(self, path: Path | SkippedPhoto) -> Photo | SkippedPhoto:
        if isinstance(path, SkippedPhoto):
            return path
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
    found = [each for each in found if isinstance(each, Photo) or each.is_photo]
    refused = [each for each in found if isinstance(each, SkippedPhoto)]
    bad = [each for each in refused if each.reason != NO_COLOUR]
    if copies := len(found) - len(refused) - photos:
        warn(f"{copies} files have the same content as others; each photograph is used once")
    examples = "; ".join(f"{each.path.name}: {each.reason}" for each in bad[:3])
    if photos < 3:
        grey = len(refused) - len(bad)
        counts = f"{len(found)} picture files: {photos} usable, {len(bad)} unreadable, {grey} grey, {copies} copies"
        why = f"at least 3 colour photographs are needed; {counts}" + (f" ({examples})" if bad else "")
        if not found:
            why = "holds no photographs, and at least 3 colour photographs are needed"
        raise InputError("folder", root, why, f"give a folder of photographs ({names_of_read_types()}) with --data")
    share = len(bad) / len(found)
    if share > config.max_bad_share:
        shares = f"{share:.1%}, allowed {config.max_bad_share:.1%}"
        why = f"{len(bad)} of {len(found)} files cannot be used ({shares}): {examples}"
        raise GateError("folder", root, why, "mend or remove them, or allow more with --max-bad-share")
