"""Every write, fsync, rename and opening for writing of a command fails once, for each of them in turn.

    python -m tests.torture.faults [--share 0.1] [--only run --since 146]

As SQLite is tested: the n-th call fails, for every n, but of those that the same lines make in a loop the first, the
last and one between; of every fourth all that follow fail, too, as on a full disk. The command has to end with 4 in
two lines, or go on where it can do without; whatever is there is whole; and the same command, undisturbed, completes.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.torture.figures import TINY, Ended, Figures, leftovers, load_all, start
from tests.torture.file_calls import FileCalls
from tests.torture.kills import digest_run
from tests.torture.sound_run import make_sound_run

# What does the same for each variant has one here.
_OF_EACH_VARIANT = ("export", "quantize", "deploy", "verify")


# Of a whole run, whose calls take hours: how far it is, and from where another process could go on.
_TOLD_EACH = 20


class Failing:
    """What a call below a folder is: the n-th fails, and every one is noted.

    Args:
        log: a file, outside of the folder, that gets a line for each call, which says by what lines of code it is made.
        fails_at: from 1; 0: none.
        stays: whether all that follow fail, too.
    """

    def __init__(self, log: Path, fails_at: int, *, stays: bool) -> None:
        self._fails_at, self._stays, self._calls = fails_at, stays, 0
        self._log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def __call__(self, number: int, path: str) -> None:
        self._calls += 1
        os.write(self._log, f"{number} {_hash_stack():x}\n".encode())
        if self._calls == self._fails_at or (self._stays and self._fails_at and self._calls > self._fails_at):
            raise OSError(number, os.strerror(number), path)


def _hash_stack() -> int:
    frame, found = sys._getframe(1), 0
    while frame is not None:
        found = hash((found, frame.f_code.co_filename, frame.f_lineno))
        frame = frame.f_back  # type: ignore[assignment]
    return found & 0xFFFFFFFFFFFF


def choose_calls(places: Sequence[str], share: float, dice: random.Random) -> list[int]:
    """Numbers, from 1, of calls that are to fail: of all that one place makes the first, the last and one between.

    Args:
        places: by what lines each call is made.
        share: of those that is taken, by chance; one at least.
    """
    numbers: dict[str, list[int]] = {}
    for number, place in enumerate(places, 1):
        numbers.setdefault(place, []).append(number)
    chosen = sorted({each for of_one in numbers.values() for each in (of_one[0], of_one[-1], dice.choice(of_one))})
    return sorted(dice.sample(chosen, max(1, round(share * len(chosen)))))


def list_commands(photos: Path, out: Path) -> dict[str, list[Any]]:
    """Commands by name, on a run folder where everything is there."""
    data = ["--data", photos]
    return {
        "train": ["train", *data, *_only("train"), "-o", out, "--force"],
        "rank": ["rank", "-o", out, "--force"],
        "prune": ["prune", "-o", out, "--force"],
        "export": ["export", "-o", out, "--force"],
        "quantize": ["quantize", "-o", out, "--force"],
        "pack": ["pack", "-c", out / "best" / "model.onnx", "-o", out, "--force"],
        "deploy": ["deploy", "-o", out, "--force"],
        "verify": ["verify", "-o", out, "--force"],
        "bundle": ["bundle", "-o", out, "--variant", "best", "--no-web", "--force"],
        "report": ["report", "-o", out, "--force"],
        "explain": ["explain", "-o", out],
        "colorize": ["colorize", photos / "photo0.png", photos / "photo1.png", "-o", out / "coloured", "--overwrite"],
        "run": ["run", *data, *TINY, "--workers", "0", "-o", out],
    }


def _only(command: str) -> list[str]:
    """Of TINY, what the command knows."""
    from colorpress.cli import cli

    known = {name for each in cli.commands[command].params for name in (*each.opts, *each.secondary_opts)}
    kept: list[str] = []
    for position, name in enumerate(TINY):
        if name in known:
            follows = TINY[position + 1 : position + 2]
            kept += [name, *(each for each in follows if not each.startswith("--"))]
    return [*kept, "--workers", "0"]


def torture(share: float, seed: int, folder: Path, sound_folder: Path, only: str = "", since: int = 1) -> Figures:
    """Fail a share of the calls of every command, from one on."""
    figures, dice = Figures(), random.Random(seed)
    out, log = folder / "out", folder / "log"
    scratch = folder / "out-tmp"  # below what is watched, since names that begin with it are
    scratch.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    sound = make_sound_run(sound_folder, figures)
    if sound is None:
        return figures
    for name, command in list_commands(sound.photos, out).items():
        if only in ("", name):
            _fail_each(figures, dice, share, name, command, (sound.run, out, log), since)
    return figures


def _fail_each(
    figures: Figures,
    dice: random.Random,
    share: float,
    name: str,
    command: list[Any],
    paths: tuple[Path, Path, Path],
    since: int,
) -> None:
    whole, out, log = paths

    def attempt(fails_at: int, *, stays: bool = False) -> Ended:
        return start(*command, before=FileCalls(out, Failing(log, fails_at, stays=stays)).install).wait()

    def restore() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        if name in _OF_EACH_VARIANT:
            for path in out.iterdir():
                if path.is_dir() and path.name != "best" and not path.name.startswith("."):
                    shutil.rmtree(path)
        if name == "run":  # goes on from where a kill was, late enough to be quick
            for path in [*out.glob(".stages/colorizer*"), *out.glob(".stages/report*"), out / "run.json"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    restore()
    first = attempt(0)
    if not figures.count(f"{name}, undisturbed", first, (0,)):
        return
    places = log.read_text().splitlines()
    calls, chosen = len(places), [each for each in choose_calls(places, share, dice) if each >= since]
    if not chosen:
        figures.lose(f"{name} makes {calls} calls, so none from {since} on failed")
    for done, number in enumerate(chosen):
        if done and done % _TOLD_EACH == 0:
            print(f"{name}: call {number} of {calls} is next, {len(chosen) - done} are left", flush=True)
        for stays in (False, True) if number % 4 == 0 else (False,):
            restore()
            what = f"{name}, call {number} of {calls}{' and all after it' if stays else ''}"
            ended = attempt(number, stays=stays)
            figures.count(what, ended, (0, 4))
            _check(figures, what, out)
            # It takes as long as the case itself, so half of them, by chance, have to do.
            if stays or dice.random() < 0.5:
                figures.count(f"{what}, and again", attempt(0), (0,))
            figures.leave(what, leftovers(out, out.with_name("out-tmp")))
    print(f"{name}: {len(chosen)} of {calls} calls failed", flush=True)


def _check(figures: Figures, what: str, out: Path) -> None:
    """What is there can be read."""
    try:
        if out.exists():
            digest_run(out)
    except Exception as error:
        figures.lose(f"{what}: {type(error).__name__}: {error}")


def main() -> int:
    """Torture by the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the calls, drawn by chance")
    parser.add_argument("--only", default="", choices=list(list_commands(Path(), Path())), help="one command")
    parser.add_argument(
        "--since", type=int, default=1, help="call to begin with, such as the next of a part that ended"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sound", type=Path, help="folder of a run that nobody disturbed; made where it is missing")
    given = parser.parse_args()
    if given.since > 1 and not given.only:
        parser.error("--since counts the calls of one command: name it by --only")
    load_all()
    with tempfile.TemporaryDirectory(prefix="torture-faults-") as name:
        folder = Path(name)
        sound = given.sound or folder / "sound"
        return torture(given.share, given.seed, folder, sound, given.only, given.since).finish()


if __name__ == "__main__":
    sys.exit(main())
