"""SIGKILL at moments of a whole run, and the run goes on: nothing is lost, left over, or other than undisturbed.

    python -m tests.torture.kills --count 240

A moment is a change of a file or a line that is said, of a stage of the undisturbed run: ahead of it, or a while after.
All stages have as many kills, however long they take and whatever else the machine does. Every run is killed and
started again until it ends; then its networks, history and records are compared with those of the undisturbed one, and
the next run begins, until there were as many kills.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from tests.torture.figures import LONGEST_S, Figures, leftovers, load_all, start
from tests.torture.sound_run import Moments, SoundRun, Stage, ended_stages, make_sound_run

# What a clock says, or what contains it, is another in every run.
_MEASURED = re.compile(
    r"second|_ms|latency|speed|time|sha256|images_per_s|outputs|key|artifacts|began|cv_|rss|bytes|threads|fastest|slow"
    r"|sentence|finding|p\d\d|median|noise"
)
# Which networks a search goes on with and keeps, such as 7kb-151, is decided by how long they take, too.
_CHOSEN_BY_TIME = re.compile(r"front/|study/|\.stages/.*\d+kb-\d+")


def digest_run(folder: Path) -> dict[str, Any]:
    """What has to be equal of two runs, by file: networks, history, front, and the records but for times."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.name in ("best.pt", "model.pt"):
            found[name] = _digest_checkpoint(path)
        elif path.name == "model.onnx":
            found[name] = _digest_graph(path)
        elif path.is_file() and (".stages" in path.parts or path.name in ("front.json", "plan.json")):
            found[name] = _without_times(json.loads(path.read_bytes()))
    return found


def _digest_checkpoint(path: Path) -> Any:
    from training.checkpoint import load_checkpoint
    from training.unet import hash_weights

    found = load_checkpoint(path)
    rows = [_without_times(row) for row in found.history]
    return [hash_weights(found.build_network()), found.epoch, found.val_l1, rows]


def _digest_graph(path: Path) -> str:
    import onnx

    graph = onnx.load(str(path)).graph
    return hashlib.sha256(graph.SerializeToString(deterministic=True)).hexdigest()


def _without_times(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _without_times(each) for name, each in value.items() if not _MEASURED.search(name)}
    if isinstance(value, list):
        return [_without_times(each) for each in value]
    # A plan says in a sentence how long its student took.
    return re.sub(r"[\d.]+ ms", "ms", value) if isinstance(value, str) else value


def compare_runs(expected: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Where two answers of `digest_run` differ; of what is chosen by times, where both have it."""
    lone = {name for name in expected.keys() ^ found.keys() if _CHOSEN_BY_TIME.match(name)}
    lone |= {"front.json", ".stages/search.json"}
    one, two = ({name: each for name, each in run.items() if name not in lone} for run in (expected, found))
    return differences(one, two)


def differences(one: Any, two: Any, where: str = "") -> list[str]:
    """Where two values, or parts of them, differ."""
    if isinstance(one, dict) and isinstance(two, dict):
        names = sorted({*one, *two})
        return [text for name in names for text in differences(one.get(name), two.get(name), f"{where} {name}")]
    return [] if one == two else [f"{where.strip()}: {str(one)[:80]} and {str(two)[:80]}"]


@dataclass(frozen=True, order=True)
class Kill:
    """When a process is killed: ahead of a moment (from 1) of the stage after so many, or `pause_s` after it."""

    stages_over: int
    number: int
    pause_s: float = 0.0


def plan_kills(stages: Sequence[Stage], count: int, dice: random.Random) -> list[Kill]:
    """As many kills of every stage, give or take one, nearly all in the order in which a run comes to them."""
    order = dice.sample(range(len(stages)), len(stages))
    kills = []
    for place in (order[number % len(order)] for number in range(count)):
        pauses_s = stages[place].pauses_s
        if dice.random() < 0.5:
            kills.append(Kill(place, dice.randint(1, len(pauses_s))))
        else:  # in the midst of what takes long
            when = dice.uniform(0.0, sum(pauses_s))
            moments = accumulate(pauses_s, initial=0.0)
            number, begun = max(each for each in enumerate(moments, 1) if each[1] <= when)
            kills.append(Kill(place, min(number, len(pauses_s)), when - begun))
    kills.sort()
    # And some while what is done already is found to be.
    for _ in range(count // 10):
        kills.insert(dice.randint(0, count - 1), kills.pop(dice.randrange(count)))
    return kills


class Killer(Moments):
    """Kills this process at its moment, or at the first one after it."""

    def __init__(self, folder: Path, kill: Kill) -> None:
        super().__init__(folder)
        self._kill, self._is_armed = kill, False

    def on_moment(self) -> None:
        if self._is_armed or (self.stages_over, self.number) < (self._kill.stages_over, self._kill.number):
            return
        self._is_armed = True
        if self._kill.pause_s:
            timer = threading.Timer(self._kill.pause_s, os.kill, (os.getpid(), signal.SIGKILL))
            timer.daemon = True
            timer.start()
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def torture(count: int, seed: int, folder: Path, sound_folder: Path) -> Figures:
    """Kill `count` times; the figures count every start as a case."""
    figures, dice = Figures(), random.Random(seed)
    # Not below the run folders: what is left there has to be noticed.
    scratch = folder / "tmp"
    scratch.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    sound = make_sound_run(sound_folder, figures)
    if sound is None:
        return figures
    expected = digest_run(sound.run)
    kills, runs, stages = 0, 0, Counter[str]()
    while kills < count:
        runs += 1
        out = folder / f"killed{runs}"
        kills += _kill_until_done(figures, sound, out, plan_kills(sound.stages, count - kills, dice), stages)
        if changed := compare_runs(expected, digest_run(out)):
            figures.lose(f"run {runs} ended otherwise than undisturbed: {'; '.join(changed[:3])}")
        figures.leave(f"run {runs}", leftovers(out, scratch))
        print(f"run {runs}: {kills} kills", flush=True)
    print("killed in:", ", ".join(f"{name} {number}" for name, number in sorted(stages.items())))
    return figures


def _kill_until_done(figures: Figures, sound: SoundRun, out: Path, plan: Sequence[Kill], stages: Counter[str]) -> int:
    """Kill a run as it is planned, and let it end; how many kills there were before it did."""
    command = sound.command(out)
    for kills in range(len(plan) + 1):
        before = Killer(out, plan[kills]).install if kills < len(plan) else None
        child = start(*command, before=before)
        ended = child.wait(3 * sound.seconds + 10 * LONGEST_S)
        if orphans := child.orphans():
            figures.lose(f"{len(orphans)} processes of a killed one live on")
        if ended.code != -signal.SIGKILL:
            figures.count(f"the run after {kills} kills", ended, (0,))
            return kills
        figures.cases += 1
        figures.went_on += 1
        over = len(ended_stages(ended.said))
        stages[sound.stages[over].name if over < len(sound.stages) else "the end"] += 1
    raise AssertionError("a run that nobody kills ends")


def main() -> int:
    """Torture by the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=240, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sound", type=Path, help="folder of a run that nobody disturbed; made where it is missing")
    given = parser.parse_args()
    load_all()
    with tempfile.TemporaryDirectory(prefix="torture-kills-") as name:
        folder = Path(name)
        return torture(given.count, given.seed, folder, given.sound or folder / "sound").finish()


if __name__ == "__main__":
    sys.exit(main())
