"""A run folder and how its stages are configured: what every stage asks of it, whichever floor it is on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from colorpress.core.config import RESOLVED_OPTIONS, ArchConfig, Settings
from colorpress.core.console import say, warn
from colorpress.core.errors import ConfigError
from colorpress.core.files import write_text
from colorpress.core.processes import share_answer
from colorpress.core.stages import Action, StageRecord, make_key, run_stage
from training.checkpoint import Checkpoint, load_checkpoint
from training.foreign_source import load_source
from training.photo_scan import scan_photos
from training.photo_split import PhotoSplit
from training.photos import hash_photos
from training.unet import UNetPlan


@dataclass(frozen=True)
class Run:
    """A run folder and how its stages are configured; `force` redoes stages that are up to date."""

    folder: Path
    settings: Settings = field(default_factory=Settings)
    force: bool = False

    @property
    def best_path(self) -> Path:
        """The original model of this run."""
        return self.folder / "best.pt"

    @property
    def answer_folder(self) -> Path:
        """Where best.pt's answers are kept for networks that learn from them."""
        return self.folder / ".answers"

    def load(self, checkpoint: Path) -> Checkpoint:
        """Read a checkpoint, whose network may be the foreign one that the options of this run name.

        Raises:
            ConfigError, InputError: as `load_checkpoint`; or they name one, and this is neither that nor its student.
        """
        found = load_checkpoint(checkpoint, self.settings.arch)
        if isinstance(found.architecture, UNetPlan) and self.settings.arch.arch:
            if "teacher_sha256" not in found.extra:
                why, hint = "holds colorpress' own UNet", "leave --arch out, or give another --checkpoint"
                raise ConfigError("checkpoint", checkpoint, why, hint)
            return replace(found, arch=ArchConfig())
        return found

    def do(
        self, name: str, action: Action, *, inputs: Sequence[Path] = (), settings: Mapping[str, Any] | None = None
    ) -> StageRecord:
        """Run a stage of this folder, unless its inputs, settings and the code of `action` are those of the last time.

        Raises:
            ConfigError: an input is no file.
        """
        key = make_key(action, inputs=inputs, settings={"stage": name, **(settings or {})})
        return run_stage(self.folder, name, key, action, force=self.force)

    def arch_key(self) -> dict[str, Any]:
        """What the answer of a stage that reads a checkpoint depends on of a foreign network: its code and options.

        Raises:
            ConfigError: the file that is named cannot be run.
        """
        arch = self.settings.arch
        return {"arch": {**vars(arch), "arch": load_source(arch.arch).sha256}} if arch.arch else {}

    def data_key(self, photos: PhotoSplit) -> dict[str, Any]:
        """What a stage's answer depends on of the photographs: their content by use, the seed, and the size limit."""
        data = self.settings.data
        content = hash_photos(photos.train, photos.choosing, photos.confirming, photos.test)
        return {"photos": content, "seed": data.seed, "max_pixels": data.max_pixels}

    def write_settings(self) -> Path:
        """Write the effective options to config.resolved.toml, which `--config` reads."""
        return write_text(self.folder / RESOLVED_OPTIONS, self.settings.to_toml())


def find_photos(run: Run) -> PhotoSplit:
    """Scan and split the photographs, and say how; names the files that cannot be used in skipped_images.csv.

    Raises:
        ConfigError: the run folder lies among the photographs, so its pictures would become some of them.
    """
    machine, folder = run.settings.machine, run.settings.data.data
    if folder is not None and run.folder.resolve().is_relative_to(folder.resolve()):
        raise ConfigError("folder", run.folder, f"lies inside --data {folder}", "choose an --output-dir outside of it")
    photos = share_answer(
        lambda: scan_photos(
            run.settings.data,
            workers=machine.workers,
            index_path=run.folder / ".photos.json",
            skipped_path=run.folder / "skipped_images.csv",
        )
    )
    say(
        f"photographs: {len(photos.train)} to train on, {len(photos.val)} to choose by, "
        f"{len(photos.test)} held out for the benchmark, {len(photos.skipped)} skipped"
        + (f"; {photos.folders}" if photos.folders else "")
    )
    return photos


def warn_of_other_split(original: Checkpoint, photos: PhotoSplit) -> None:
    """Warn when best.pt says that it was trained on other photographs than `photos` says."""
    trained_on = original.extra.get("fit", {}).get("photographs")
    if trained_on is not None and trained_on != hash_photos(photos.train, photos.val):
        why = "other files or folders, or another --seed or share"
        warn(f"best.pt was trained on another split of photographs ({why}): it may have seen those held out here")
