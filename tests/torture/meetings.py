"""Two processes in one folder, photographs that vanish while they are learned from, and an output folder that does.

python -m tests.torture.meetings --count 10
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.figures import Child, Figures, leftovers, load_all, make_photos, start
from training.checkpoint import load_checkpoint

_TRAIN = (
    "--base", "2", "--depth", "2", "--imgsz", "32", "--val-size", "32", "--batch-size", "4", "--threads", "1",
    "--device", "cpu",
)  # fmt: skip


def meet(figures: Figures, dice: random.Random, photos: Path, folder: Path) -> None:
    """Two trainings are started into one folder: one is refused, the other is whole."""
    options = ["train", "--data", photos, *_TRAIN, "--epochs", "20", "--workers", "0", "-o", folder]
    children = []
    for _ in range(2):
        children.append(start(*options))
        time.sleep(dice.choice((0.0, dice.uniform(0.0, 0.5))))
    ended = [child.wait() for child in children]
    for each in ended:
        figures.count("one of two in a folder", each, (0, 4))
    codes = sorted(str(each.code) for each in ended)
    refused = [each for each in ended if each.code == 4]
    if codes not in (["0", "4"], ["0", "0"]) or any("locked by" not in each.said for each in refused):
        figures.lose(f"two in a folder ended with {codes}")
    _require_trained(figures, "two in a folder", folder)


def vanish(figures: Figures, dice: random.Random, photos: Path, folder: Path) -> None:
    """Photographs are removed, cut short, or made unreadable while a training reads them."""
    own = Path(shutil.copytree(photos, folder.with_name(f"{folder.name}-photos")))
    workers = dice.choice(("0", "1"))
    child = start("train", "--data", own, *_TRAIN, "--epochs", "40", "--workers", workers, "-o", folder)
    names = sorted(own.iterdir())
    dice.shuffle(names)
    for path in names[: dice.randint(1, len(names))]:
        time.sleep(dice.uniform(0.0, 0.2))
        dice.choice((_remove, _cut, _make_folder))(path)
    # 5 where they were counted before the first step: more are bad than is allowed.
    figures.count("photographs that vanish", child.wait(), (0, 3, 5))
    figures.leave("photographs that vanish", leftovers(folder))


def take_away(figures: Figures, dice: random.Random, photos: Path, folder: Path) -> None:
    """The output folder is removed, or replaced by another, while a training writes to it."""
    child = start("train", "--data", photos, *_TRAIN, "--epochs", "4000", "--workers", "0", "-o", folder)
    _wait_for(child, folder / "last.pt")
    time.sleep(dice.uniform(0.0, 0.3))
    away = folder.with_name(f"{folder.name}-away")
    replace = dice.choice((False, True))
    os.rename(folder, away)  # noqa: PTH104 - one call
    if replace:
        folder.mkdir()
        (folder / "note.txt").write_text("another folder")
    ended = child.wait()
    figures.count("a folder that was taken away", ended, (4,))
    made = sorted(path.name for path in folder.iterdir()) if folder.exists() else []
    if made != (["note.txt"] if replace else []):
        figures.lose(f"written into a folder that was not locked: {made}")
    _require_trained(figures, "a folder that was taken away", away)


def _wait_for(child: Child, path: Path) -> None:
    while not path.exists() and time.monotonic() - child.started < 60:
        time.sleep(0.01)


def _require_trained(figures: Figures, what: str, folder: Path) -> None:
    try:
        load_checkpoint(folder / "best.pt").build_network()
    except Exception as error:
        figures.lose(f"{what}: best.pt: {type(error).__name__}: {error}")


def _remove(path: Path) -> None:
    path.unlink()


def _cut(path: Path) -> None:
    os.truncate(path, 100)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


MEETINGS: tuple[Callable[[Figures, random.Random, Path, Path], Any], ...] = (meet, vanish, take_away)


def main() -> int:
    """Torture by the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10, help="times of each")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    load_all()
    figures, dice = Figures(), random.Random(given.seed)
    with tempfile.TemporaryDirectory(prefix="torture-meetings-") as name:
        photos = make_photos(Path(name) / "photos")
        for number in range(given.count):
            for each in MEETINGS:
                each(figures, dice, photos, Path(name) / f"{each.__name__}{number}")
    return figures.finish()


if __name__ == "__main__":
    sys.exit(main())
