"""SIGKILL at random moments of a whole run, and the run goes on: nothing is lost, left over, or other than undisturbed.

    python -m tests.torture.kills --count 240

Every run is killed and started again until it ends; then its networks, history and records are compared with those of
a run that nobody disturbed, and the next run begins, until there were as many kills.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.torture.figures import LONGEST_S, TINY, Figures, leftovers, load_all, make_photos, start

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
    return value


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


def torture(count: int, seed: int, folder: Path) -> Figures:
    """Kill `count` times; the figures count every start as a case."""
    figures, dice = Figures(), random.Random(seed)
    photos = make_photos(folder / "photos")
    # Not below the run folders: what is left there has to be noticed.
    scratch = folder / "tmp"
    scratch.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    options = ["run", "--data", photos, *TINY, "--workers", "1"]
    began = time.monotonic()
    undisturbed = start(*options, "-o", folder / "undisturbed").wait(3600.0)
    if undisturbed.code != 0:
        figures.count("the undisturbed run", undisturbed, (0,))
        return figures
    expected, whole_s = digest_run(folder / "undisturbed"), time.monotonic() - began
    print(f"an undisturbed run takes {whole_s:.0f} s", flush=True)
    kills, runs, stages = 0, 0, Counter[str]()
    while kills < count:
        runs += 1
        out = folder / f"killed{runs}"
        kills += _kill_until_done(figures, dice, [*options, "-o", out], count - kills, whole_s, stages)
        if changed := compare_runs(expected, digest_run(out)):
            figures.lose(f"run {runs} ended otherwise than undisturbed: {'; '.join(changed[:3])}")
        if left := leftovers(out, scratch):
            figures.lose(f"left over after run {runs}: {left[:3]}")
        print(f"run {runs}: {kills} kills", flush=True)
    print("killed after:", ", ".join(f"{name} {number}" for name, number in sorted(stages.items())))
    return figures


def _kill_until_done(
    figures: Figures, dice: random.Random, options: list[Any], most: int, whole_s: float, stages: Counter[str]
) -> int:
    kills = 0
    while True:
        child = start(*options)
        # Long enough that stages end now and then, and short enough that most do not.
        time.sleep(dice.uniform(0.0, max(0.5, whole_s / 6)) if kills < most else 0.0)
        if kills < most:
            child.kill()
        ended = child.wait(3 * whole_s + LONGEST_S)
        if orphans := child.orphans():
            figures.lose(f"{len(orphans)} processes of a killed one live on")
        if ended.code != -9:
            figures.count(f"the run after {kills} kills", ended, (0,))
            if ended.code != 0 or kills:
                return kills
            return 0
        kills += 1
        figures.cases += 1
        figures.went_on += 1
        done = re.findall(r"^(\S+): (?:done in|up to date)", ended.said, re.MULTILINE)
        stages[done[-1].partition("/")[0] if done else "the start"] += 1


def main() -> int:
    """Torture by the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=240, help="kills")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    load_all()
    with tempfile.TemporaryDirectory(prefix="torture-kills-") as name:
        return torture(given.count, given.seed, Path(name)).finish()


if __name__ == "__main__":
    sys.exit(main())
