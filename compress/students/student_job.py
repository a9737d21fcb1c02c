"""What choosing a student asks of a run, whoever chooses: best.pt, the photographs, and best.pt's answers to them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from colorpress.core.console import say
from compress.ranking import count_macs
from compress.yardstick import Yardstick, make_yardstick
from training.checkpoint import Checkpoint
from training.photos import Photo, PhotoSplit, scan_photos
from training.run_folder import Run, warn_of_other_split
from training.unet import count_parameters

# Validation photographs that choose, at most: all are held in memory, one megabyte each.
MOST_CHOOSING = 500


@dataclass(frozen=True)
class StudentJob:
    """Base of what chooses students; what only some of it needs is made when it is asked for.

    Attributes:
        checkpoint: best.pt.
        given: the photographs of the run.
    """

    run: Run
    checkpoint: Path
    given: PhotoSplit

    @cached_property
    def best(self) -> Checkpoint:
        """best.pt."""
        found = self.run.load(self.checkpoint)
        warn_of_other_split(found, self.given)
        return found

    @cached_property
    def photos(self) -> PhotoSplit:
        """The photographs, with those of --unlabelled to learn from."""
        return with_unlabelled(self.run, self.given)

    @cached_property
    def yardstick(self) -> Yardstick:
        """best.pt's answers to the photographs that choose."""
        size = self.run.settings.score.eval_size
        return make_yardstick(self.run, self.best, self.given.val[:MOST_CHOOSING], short_side=size)

    def reference_l1(self, photos: int) -> tuple[float, float]:
        """L1 (ab/128) of the grey answer and of best.pt, on the first so many of the photographs that choose."""
        grey, best = (each[:photos].mean() for each in (self.yardstick.grey_l1, self.yardstick.best_l1))
        return float(grey), float(best)

    @cached_property
    def original_cost(self) -> tuple[int, int]:
        """Parameters and multiply-accumulates of best.pt."""
        network, size = self.best.build_network(), self.run.settings.count.rank_size
        return count_parameters(network), count_macs(network, height=size, width=size)


def with_unlabelled(run: Run, photos: PhotoSplit) -> PhotoSplit:
    """The photographs with those of --unlabelled to learn from; what validates or tests is never learned from."""
    folder = run.settings.distil.unlabelled
    if folder is None:
        return photos
    machine = run.settings.machine
    index = run.folder / ".unlabelled.json"
    found = scan_photos(replace(run.settings.data, data=folder), workers=machine.workers, index_path=index)
    known = {photo.sha256 for photo in (*photos.train, *photos.val, *photos.test)}
    further = [photo for photo in (*found.train, *found.val, *found.test) if photo.sha256 not in known]
    say(f"photographs: {len(further)} more to learn from in '{folder}'")
    ordered: list[Photo] = sorted(further, key=lambda photo: photo.sha256)
    return replace(photos, train=(*photos.train, *ordered))
