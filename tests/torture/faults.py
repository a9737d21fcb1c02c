"""Every write, fsync, rename and opening for writing of a command fails once, for each of them in turn.

    python -m tests.torture.faults [--share 0.1]

As SQLite is tested: the n-th call fails, for every n; of every fourth all that follow fail, too, as on a full disk. The
command has to end with 4 in two lines, or go on where it can do without; whatever is there is whole; and the same
command, undisturbed, completes.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.torture.figures import TINY, Ended, Figures, leftovers, load_all, make_photos, start
from tests.torture.kills import digest_run

_CALLS = "calls"


class Shim:
    """Replaces the calls of this process that change files below a folder; the n-th of them fails.

    Args:
        log: a file, outside of the folder, that gets a byte for each call.
        fails_at: from 1; 0: none.
        stays: whether all that follow fail, too.
    """

    def __init__(self, folder: Path, log: Path, fails_at: int, *, stays: bool) -> None:
        self.folder, self.fails_at, self.stays, self.calls = os.path.realpath(folder), fails_at, stays, 0
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def install(self) -> None:
        """From here on."""
        self._replace(os, "replace", errno.EIO, lambda source, target, **_: target)
        self._replace(os, "rename", errno.EIO, lambda source, target, **_: target)
        self._replace(os, "mkdir", errno.ENOSPC, lambda path, *_, **__: path)
        self._replace(os, "open", errno.ENOSPC, lambda path, flags, *_, **__: path if flags & os.O_CREAT else "")
        self._replace(os, "fsync", errno.EIO, lambda descriptor: Path(f"/proc/self/fd/{descriptor}").readlink())
        given = io.open
        shim = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                shim.pass_by(errno.ENOSPC, str(self.name))
                return super().write(data)

        def opened(
            path: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, errors: Any = None,
            newline: Any = None, *more: Any, **options: Any,
        ) -> Any:  # fmt: skip
            if not isinstance(path, str | os.PathLike) or not set(mode) & set("wax+") or not shim.watches(path):
                return given(path, mode, buffering, encoding, errors, newline, *more, **options)
            shim.pass_by(errno.ENOSPC, path)
            raw = Raw(path, mode.replace("b", "").replace("t", ""))
            buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
            if "b" in mode:
                return buffered
            return io.TextIOWrapper(buffered, encoding, errors, newline)

        io.open = builtins.open = opened  # type: ignore[assignment]

    def _replace(self, module: Any, name: str, number: int, path_of: Callable[..., Any]) -> None:
        given = getattr(module, name)

        def called(*arguments: Any, **options: Any) -> Any:
            path = path_of(*arguments, **options)
            if path and self.watches(path):
                self.pass_by(number, path)
            return given(*arguments, **options)

        setattr(module, name, called)

    def watches(self, path: Any) -> bool:
        """Whether a path is below the folder."""
        return os.path.realpath(os.fsdecode(path)).startswith(self.folder)

    def pass_by(self, number: int, path: Any) -> None:
        """Count a call; raises where it is one that fails."""
        self.calls += 1
        os.write(self.log, b".")
        if self.calls == self.fails_at or (self.stays and self.fails_at and self.calls > self.fails_at):
            raise OSError(number, os.strerror(number), os.fsdecode(path))


def list_commands(photos: Path, out: Path) -> dict[str, list[Any]]:
    """Commands by name, on a run folder where everything is there."""
    data = ["--data", photos]
    return {
        "train": ["train", *data, *_only("train"), "-o", out, "--force"],
        "rank": ["rank", "-o", out, "--force"],
        "prune": ["prune", "-o", out, "--force"],
        "export": ["export", "-o", out, "--force"],
        "quantize": ["quantize", "-o", out, "--force"],
        "pack": ["pack", out / "best" / "model.onnx", "-o", out, "--force"],
        "deploy": ["deploy", "-o", out, "--force"],
        "verify": ["verify", "-o", out, "--force"],
        "bundle": ["bundle", "-o", out, "--variant", "best", "--no-web"],
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


def torture(share: float, seed: int, folder: Path, only: str = "") -> Figures:
    """Fail a share of the calls of every command."""
    figures, dice = Figures(), random.Random(seed)
    photos, whole, out, log = make_photos(folder / "photos", 6), folder / "whole", folder / "out", folder / "log"
    scratch = folder / "out-tmp"  # below what the shim watches, since names that begin with it are
    scratch.mkdir()
    os.environ["TMPDIR"] = tempfile.tempdir = str(scratch)
    ended = start("run", "--data", photos, *TINY, "--workers", "0", "-o", whole).wait(3600.0)
    if ended.code != 0:
        figures.count("the undisturbed run", ended, (0,))
        return figures
    for name, command in list_commands(photos, out).items():
        if only in ("", name):
            _fail_each(figures, dice, share, name, command, (whole, out, log))
    return figures


def _fail_each(
    figures: Figures, dice: random.Random, share: float, name: str, command: list[Any], paths: tuple[Path, Path, Path]
) -> None:
    whole, out, log = paths

    def attempt(fails_at: int, *, stays: bool = False) -> Ended:
        return start(*command, before=Shim(out, log, fails_at, stays=stays).install).wait()

    def restore() -> None:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        if name == "run":  # goes on from where a kill was, late enough to be quick
            for path in [*out.glob(".stages/colorizer*"), *out.glob(".stages/report*"), out / "run.json"]:
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)

    restore()
    first = attempt(0)
    if not figures.count(f"{name}, undisturbed", first, (0,)):
        return
    calls = log.stat().st_size
    chosen = sorted(dice.sample(range(1, calls + 1), max(1, round(share * calls))))
    for number in chosen:
        for stays in (False, True) if number % 4 == 0 else (False,):
            restore()
            what = f"{name}, call {number} of {calls}{' and all after it' if stays else ''}"
            ended = attempt(number, stays=stays)
            figures.count(what, ended, (0, 4))
            _check(figures, what, out)
            again = attempt(0)
            figures.count(f"{what}, and again", again, (0,))
            if left := leftovers(out, out.with_name("out-tmp")):
                figures.lose(f"{what}: left over {left[:3]}")
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
    parser.add_argument("--only", default="", help="one command")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    load_all()
    with tempfile.TemporaryDirectory(prefix="torture-faults-") as name:
        return torture(given.share, given.seed, Path(name), given.only).finish()


if __name__ == "__main__":
    sys.exit(main())
