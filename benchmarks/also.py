"""Further folders of photographs that every variant is scored on: whether its colours hold on other pictures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy import AccuracyResult, rank_by_harm
from benchmarks.rows import ALSO_FIGURES, Row, own_rows
from colorpress.core.console import say
from colorpress.core.errors import ConfigError, InputError, printable
from colorpress.core.files import sha256_bytes
from compress.measures import Measure
from compress.students.student_job import with_unlabelled
from training.photo_scan import scan_folder
from training.photo_split import PhotoSplit
from training.photos import Photo, SkippedPhoto, hash_photos
from training.run_folder import Run

_OPTION = "--also"
_WORST = 3


@dataclass(frozen=True)
class AlsoFolder:
    """A folder of --also.

    Attributes:
        name: the last parts of its path, as many as tell it from the others.
        photos: those to score on, in the order of their content.
        skipped: files that cannot be used.
        known: how many photographs are left out, since the run trains, chooses or tests on them.
    """

    name: str
    photos: tuple[Photo, ...]
    skipped: tuple[SkippedPhoto, ...]
    known: int


def find_also(run: Run, photos: PhotoSplit) -> tuple[AlsoFolder, ...]:
    """The folders of --also with their photographs, but for those that the run uses itself.

    Raises:
        ConfigError: no such folder, one that is given twice, or one in the run folder, whose pictures are answers.
        InputError: a folder holds no photograph to score on.
    """
    also = run.settings.benchmark.also
    folders = [folder.resolve() for folder in also]
    for given, folder in zip(also, folders, strict=True):
        if folder.is_relative_to(run.folder.resolve()):
            why = f"lies inside the run folder {run.folder}"
            raise ConfigError(f"option {_OPTION}", given, why, "give a folder of photographs outside of it")
        if folders.count(folder) > 1:
            raise ConfigError(f"option {_OPTION}", given, "is given twice", "give each folder once")
    used = with_unlabelled(run, photos) if also else photos
    seen = {photo.sha256 for photo in (*used.train, *used.val, *used.test)}
    return tuple(_scan(run, folder, name, seen) for folder, name in zip(also, tell_apart(folders), strict=True))


def _scan(run: Run, folder: Path, name: str, seen: set[str]) -> AlsoFolder:
    # Beside the index of --data, one for each folder.
    index = run.folder / f".also-{sha256_bytes(os.fsencode(folder.resolve()))[:12]}.json"
    found, skipped = scan_folder(
        folder,
        option=_OPTION,
        max_pixels=run.settings.data.max_pixels,
        workers=run.settings.machine.workers,
        index_path=index,
        leave_out=run.folder,
    )
    new = tuple(photo for photo in found if photo.sha256 not in seen)
    known = len(found) - len(new)
    if not new:
        why = f"holds no photograph that the run does not use itself; {known} it does"
        raise InputError("folder", folder, why, f"give another folder with {_OPTION}")
    of_the_run = f", {known} left out that the run uses itself" if known else ""
    say(f"photographs: {len(new)} more to score on in '{printable(name)}', {len(skipped)} skipped{of_the_run}")
    for each in skipped[:3]:
        say(f"skipped {printable(each.path.name)}: {printable(each.reason)}")
    return AlsoFolder(name, new, skipped, known)


def tell_apart(folders: Sequence[Path]) -> list[str]:
    """A name for each of different folders: its own, with those above it where others are called the same.

    Folders whose whole paths are printed alike are numbered.
    """

    def tail(folder: Path, parts: int) -> str:
        return printable("/".join(folder.parts[-parts:]))

    names: list[str] = []
    for folder in folders:
        others = [other for other in folders if other != folder]
        lengths = range(1, len(folder.parts) + 1)
        alone = (n for n in lengths if all(tail(folder, n) != tail(other, n) for other in others))
        names.append(tail(folder, next(alone, len(folder.parts))))
    return [
        f"{name} ({names[: index + 1].count(name)})" if names.count(name) > 1 else name
        for index, name in enumerate(names)
    ]


def key_of(folders: Sequence[AlsoFolder]) -> dict[str, str]:
    """What a stage's answer depends on of the folders: the photographs of each, by its name."""
    return {folder.name: hash_photos(folder.photos) for folder in folders}


def pick_figures(result: AccuracyResult, variant: str) -> dict[str, float | None]:
    """ALSO_FIGURES of a variant; None where it failed."""
    figures = {"photos": len(result.photos), **vars(result.variants[variant])}
    return {name: figures[name] for name in ALSO_FIGURES}


def describe_also(
    folders: Sequence[AlsoFolder],
    results: Mapping[str, AccuracyResult],
    rows: Sequence[Row],
    recommended: str | None,
    measure: Measure,
) -> dict[str, Any]:
    """What benchmark.json says of each folder, by its name.

    Args:
        results: by the name of a folder.
        rows: of the benchmark, best.pt first.
        recommended: the row that the worst photographs are those of; None: the mean of all of ours.
        measure: what decides: content goes by the truth, fidelity by best.pt's answers.
    """
    judged = [recommended] if recommended else [row.model for row in own_rows(rows)]
    described = {}
    for folder in folders:
        result = results[folder.name]
        described[folder.name] = {
            "strength": result.strength.to_dict() if result.strength else None,
            "photos": [photo.path.name for photo in result.photos],
            "skipped": len(folder.skipped),
            "known": folder.known,
            "judged": recommended,
            "worst": [
                {"photo": photo.path.name, "harm": harm}
                for photo, harm in rank_by_harm(result, judged, measure)[:_WORST]
                if harm > 0
            ],
        }
    return described
