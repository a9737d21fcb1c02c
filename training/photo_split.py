"""Photographs by use: to train on, to choose by, to confirm what was chosen, and to test; split by source folder."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from pathlib import Path

from colorpress.core.config import DataConfig
from colorpress.core.errors import ConfigError
from colorpress.core.files import sha256_bytes
from training.photos import Photo, SkippedPhoto

# Fewer folders than this are kinds of pictures rather than shoots: none of them is held out whole.
_FEWEST_WHOLE_FOLDERS = 20
# What goes to one part as one: a photograph, or all those of a folder.
_Unit = Sequence[Photo]


@dataclass(frozen=True)
class PhotoSplit:
    """Photographs by use; no content is in two parts.

    Within a part the order is that of a hash: the first so many photographs are a random sample of it.

    Attributes:
        choosing: that tell which candidate or setting is best.
        confirming: that score what was chosen, for what chose is never what is reported. About as many; none where a
            single photograph is there to choose by.
        skipped: files that are not used.
        folders: how source folders were split, in a few words; empty where all photographs lie in one.
    """

    train: tuple[Photo, ...]
    choosing: tuple[Photo, ...] = ()
    confirming: tuple[Photo, ...] = ()
    test: tuple[Photo, ...] = ()
    skipped: tuple[SkippedPhoto, ...] = ()
    folders: str = ""

    @property
    def val(self) -> tuple[Photo, ...]:
        """Those that are neither trained on nor held out for the benchmark."""
        return self.choosing + self.confirming

    def limit_halves(self, count: int) -> PhotoSplit:
        """With the first `count` photographs at most of those that choose, and of those that confirm."""
        return replace(self, choosing=self.choosing[:count], confirming=self.confirming[:count])


def group_by_folder(photos: Sequence[Photo], found: Sequence[Photo | SkippedPhoto]) -> list[list[Photo]]:
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


def split_photos(sources: Sequence[Sequence[Photo]], skipped: Sequence[SkippedPhoto], config: DataConfig) -> PhotoSplit:
    """Split the photographs of each source folder, as `scan_photos` says.

    Raises:
        ConfigError: the shares leave nothing to train on.
    """
    count, seed = sum(map(len, sources)), config.seed
    tested, validated = (max(1, math.floor(share * count + 0.5)) for share in (config.test_share, config.val_share))
    trained = count - tested - validated
    if trained <= 0:
        why = f"got {config.val_share} and a --test-share of {config.test_share}: no photograph is left to train on"
        raise ConfigError("option", "--val-share", why, "give smaller shares")
    whole, shared = _part_folders(sources, min(tested, validated, trained))
    test, rest = _cut(_in_row(whole, shared, seed), tested)
    val, train = _cut(rest, validated)
    choosing, confirming = _cut(val, (sum(map(len, val)) + 1) // 2)
    return PhotoSplit(
        train=_in_order(itertools.chain(*train), seed),
        choosing=_in_order(itertools.chain(*choosing), seed),
        confirming=_in_order(itertools.chain(*confirming), seed),
        test=_in_order(itertools.chain(*test), seed),
        skipped=tuple(skipped),
        folders=_describe_folders(len(whole), len(shared)),
    )


def halve_photos(photos: Sequence[Photo], seed: int) -> tuple[tuple[Photo, ...], tuple[Photo, ...]]:
    """Two halves, the first one larger by one where they are odd, split by source folder as `split_photos` does."""
    sources: dict[Path, list[Photo]] = defaultdict(list)
    for photo in photos:
        sources[photo.path.parent].append(photo)
    parts = _part_folders(list(sources.values()), len(photos) // 2)
    first, second = _cut(_in_row(*parts, seed), (len(photos) + 1) // 2)
    return _in_order(itertools.chain(*first), seed), _in_order(itertools.chain(*second), seed)


def _part_folders(
    sources: Sequence[Sequence[Photo]], smallest_part: int
) -> tuple[list[Sequence[Photo]], list[Sequence[Photo]]]:
    """The folders that stay whole, and those that give every part their share."""
    # Folders so small move the border of a part by a quarter of it at most, and every part has two or more of them.
    largest = smallest_part // 2
    if sum(len(source) <= largest for source in sources) < _FEWEST_WHOLE_FOLDERS:
        largest = 0
    whole = [source for source in sources if len(source) <= largest]
    return whole, [source for source in sources if len(source) > largest]


def _in_row(whole: Sequence[Sequence[Photo]], shared: Sequence[Sequence[Photo]], seed: int) -> list[_Unit]:
    """Every folder that stays whole, and every photograph of the others, so that a cut anywhere is a fair one."""
    placed = sorted([*_place_whole(whole, seed), *_place_shared(shared, seed)], key=itemgetter(0, 1))
    return [unit for *_, unit in placed]


def _describe_folders(whole: int, shared: int) -> str:
    if not whole:
        return f"each of {shared} folders gives every part its share" if shared > 1 else ""
    text = f"whole folders kept together: {whole} folders"
    which = f"each of {shared} larger ones" if shared > 1 else "a larger one"
    return f"{text}, and {which} gives every part its share" if shared else text


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
    """The first of them that have together as near to `wanted` photographs as can be, and the rest."""
    # Never none of them: every unit is smaller than twice `wanted`, so with it that is nearer than with nothing.
    passed = list(itertools.accumulate(map(len, units), initial=0))
    end = min(range(len(passed)), key=lambda place: abs(passed[place] - wanted))
    return units[:end], units[end:]
