"""A whole run that nobody disturbs, and what it did when: others are compared with it, and disturbed at its moments.

python -m tests.torture.sound_run --sound FOLDER
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.torture.figures import TINY, Ended, Figures, load_all, make_photos, start
from tests.torture.file_calls import FileCalls, hear_lines

_RECORD = "moments.json"
_STAGE_ENDS = re.compile(r"^(\S+): (?:done in|up to date)", re.MULTILINE)


@dataclass(frozen=True)
class Stage:
    """What a stage does, counted in files that change and in lines that are said.

    Attributes:
        pauses_s: between one such moment and the next; the last one is its own line that it is done.
    """

    name: str
    pauses_s: tuple[float, ...]


@dataclass(frozen=True)
class SoundRun:
    """A finished run, in a folder with its photographs.

    Attributes:
        stages: in their order; what is up to date when it is asked for again is one, too.
    """

    folder: Path
    seconds: float
    stages: tuple[Stage, ...]

    @property
    def photos(self) -> Path:
        """What it learned from."""
        return self.folder / "photos"

    @property
    def run(self) -> Path:
        """Its run folder."""
        return self.folder / "run"

    def command(self, out: Path) -> list[object]:
        """The command that made it, with another run folder."""
        return ["run", "--data", self.photos, *TINY, "--workers", "1", "-o", out]


def ended_stages(said: str) -> list[str]:
    """Names of the stages that a run says are over, in their order."""
    return _STAGE_ENDS.findall(said)


class Moments:
    """Calls `on_moment` with how many stages are over and the number of a moment in the next one, ahead of each."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._process = folder, 0
        self.stages_over, self.number = 0, 0

    def on_moment(self) -> None:
        """What happens at one; `stages_over` and `number`, from 1, say which it is."""

    def install(self) -> None:
        """From here on, in this process alone."""
        self._process = os.getpid()
        FileCalls(self._folder, lambda *_: self._pass()).install()
        hear_lines(self._hear)

    def _pass(self) -> None:
        if os.getpid() == self._process:
            self.number += 1
            self.on_moment()

    def _hear(self, text: str) -> None:
        self._pass()
        if names := ended_stages(text):
            self.stages_over, self.number = self.stages_over + len(names), 0


class _Recorder(Moments):
    """Writes when each moment is."""

    def __init__(self, folder: Path, log: Path) -> None:
        super().__init__(folder)
        self._log = log.open("w")

    def on_moment(self) -> None:
        self._log.write(f"{self.stages_over} {time.monotonic():.4f}\n")
        self._log.flush()


def make_sound_run(folder: Path, figures: Figures) -> SoundRun | None:
    """The one that is in `folder`, or a new one there; None where it failed, which is counted."""
    if (folder / _RECORD).exists():
        found = json.loads((folder / _RECORD).read_bytes())
        stages = tuple(Stage(each["name"], tuple(each["pauses_s"])) for each in found["stages"])
        return SoundRun(folder, found["seconds"], stages)
    made = SoundRun(folder, 0.0, ())
    make_photos(made.photos)
    log = folder / "log"
    ended = start(*made.command(made.run), before=_Recorder(made.run, log).install).wait(3600.0)
    if not figures.count("the undisturbed run", ended, (0,)):
        return None
    made = SoundRun(folder, ended.seconds, _read_stages(ended, log))
    (folder / _RECORD).write_text(json.dumps({"seconds": made.seconds, "stages": [asdict(one) for one in made.stages]}))
    print(f"an undisturbed run takes {made.seconds:.0f} s and has {len(made.stages)} stages", flush=True)
    return made


def _read_stages(ended: Ended, log: Path) -> tuple[Stage, ...]:
    names = ended_stages(ended.said)
    times: list[list[float]] = [[] for _ in names]
    for line in log.read_text().splitlines():
        place, moment = line.split()
        if int(place) < len(names):  # behind the last stage the run says how it went
            times[int(place)].append(float(moment))
    return tuple(
        Stage(name, tuple(later - one for one, later in zip(each, [*each[1:], each[-1]], strict=True)))
        for name, each in zip(names, times, strict=True)
    )


def main() -> int:
    """Make it by the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sound", type=Path, required=True, help="folder of the run")
    given = parser.parse_args()
    load_all()
    figures = Figures()
    make_sound_run(given.sound, figures)
    return figures.finish()


if __name__ == "__main__":
    sys.exit(main())
