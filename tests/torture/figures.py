"""What a torture counts, how one command's end is judged, and how a command is run so that nothing of it is left."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from colorpress.core.child import end_with_parent

LONGEST_S = 30.0
SEVERE = ("losses", "hangs", "tracebacks", "internal", "leftovers")
# Options of a run as small as it can be, with every stage in it.
TINY = (
    "--base", "2", "--depth", "2", "--imgsz", "32", "--epochs", "2", "--val-size", "32", "--batch-size", "4",
    "--threads", "1", "--device", "cpu", "--no-roof", "--rank-size", "32", "--rank-photos", "2", "--rank-runs", "2",
    "--finetune-crops", "16", "--round-to", "1", "--student-crops", "16",
    "--student-trial-crops", "16", "--distil-imgsz", "32", "--search-trials", "1", "--search-crops", "16",
    "--search-full-crops", "16", "--search-front", "1", "--no-search-int8", "--bench-size", "32", "--rounds", "1",
    "--runs", "3", "--warmup", "1", "--min-seconds", "0", "--eval-size", "32", "--calibration-size", "32",
)  # fmt: skip


def patience() -> float:
    """How much longer anything may take here: as many times as there are processes for a core that want to run."""
    return max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


@dataclass
class Figures:
    """How many cases there were and how they ended; what is wrong is printed at once."""

    cases: int = 0
    refused: int = 0
    went_on: int = 0
    losses: int = 0
    hangs: int = 0
    tracebacks: int = 0
    internal: int = 0
    leftovers: int = 0

    def count(self, what: str, ended: Ended, allowed: Sequence[int] = (0, 4)) -> bool:
        """Count how a command ended; whether it did as it should."""
        return self.add(what, ended.kind(allowed), ended.describe())

    def add(self, what: str, kind: str, ended: str) -> bool:
        """Count a case as one of the figures; whether it is none of `SEVERE`, which are said with how it ended."""
        self.cases += 1
        setattr(self, kind, getattr(self, kind) + 1)
        if kind in SEVERE:
            print(f"{kind}: {what}: {ended}", flush=True)
        return kind not in SEVERE

    def lose(self, what: str) -> None:
        """Count something that is not as it has to be after a case that was counted already."""
        self.losses += 1
        print(f"losses: {what}", flush=True)

    def leave(self, what: str, left: Sequence[str]) -> None:
        """Count what a case left over in the way of temporary files, where it did."""
        if left:
            self.leftovers += len(left)
            print(f"leftovers: {what}: {', '.join(left[:3])}", flush=True)

    @property
    def is_clean(self) -> bool:
        """Whether nothing severe happened."""
        return not any(getattr(self, name) for name in SEVERE)

    def finish(self) -> int:
        """Print the figures, as a line of JSON; the exit code."""
        print(json.dumps(asdict(self)), flush=True)
        return 0 if self.is_clean else 1


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: a signal; None: it hung and was killed), what it said, seconds."""

    code: int | None
    said: str  # on standard error
    printed: str
    seconds: float

    def kind(self, allowed: Sequence[int]) -> str:
        """The name among `Figures` that this end counts as."""
        if self.code is None:
            return "hangs"
        if "Traceback" in self.said or "Exception ignored" in self.said:
            return "tracebacks"
        if "error: internal" in self.said or self.code not in allowed:
            return "internal"
        if self.code == 0:
            return "went_on"
        two_lines = re.search(r"^error: .*\nhint: .*\n?\Z", self.said, re.MULTILINE)
        return "refused" if two_lines else "internal"

    def describe(self) -> str:
        """In one line."""
        return f"exit {self.code} after {self.seconds:.1f} s: {' | '.join(self.said.splitlines()[-4:])[-600:]}"


class Child:
    """A process that runs a function in a copy of this one: everything is imported already, so thousands are cheap.

    It leads a process group of its own, and what it says and prints goes to files.
    """

    def __init__(self, work: Callable[[], int]) -> None:
        self._said, self._printed = (tempfile.TemporaryFile() for _ in range(2))  # noqa: SIM115 - closed in `wait`
        self.started = time.monotonic()
        self._code: int | None = None
        sys.stdout.flush()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.setsid()
                end_with_parent(parent)
                null = os.open(os.devnull, os.O_RDONLY)
                for target, source in enumerate((null, self._printed.fileno(), self._said.fileno())):
                    os.dup2(source, target)
                code = work()
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                for stream in (sys.stdout, sys.stderr):
                    stream.flush()
                os._exit(code)

    def is_running(self) -> bool:
        """Whether it has not ended yet."""
        if self._code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._code = os.waitstatus_to_exitcode(status) if pid else None
        return self._code is None

    def kill(self) -> None:
        """As a machine short of memory does: this process alone, and without a warning."""
        os.kill(self.pid, signal.SIGKILL)

    def wait(self, longest_s: float = 10 * LONGEST_S) -> Ended:
        """How it ended; past the time, on a machine that is not busy, it is killed, and hung."""
        while self.is_running() and time.monotonic() - self.started < longest_s * patience():
            time.sleep(0.02)
        hangs = self.is_running()
        if hangs:
            self.kill()
            os.waitpid(self.pid, 0)
        seconds = time.monotonic() - self.started
        texts = []
        for stream in (self._said, self._printed):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "replace"))
            stream.close()
        return Ended(self._code, texts[0], texts[1], seconds)

    def orphans(self, patience_s: float = 3.0) -> list[int]:
        """Processes of its group that live on although it has died."""
        import psutil

        end = time.monotonic() + patience_s
        while True:
            left = [
                each.pid for each in psutil.process_iter(["pid", "status"])
                if each.info["status"] != psutil.STATUS_ZOMBIE and _group_of(each.pid) == self.pid
            ]  # fmt: skip
            if not left or time.monotonic() > end:
                return left
            time.sleep(0.05)


def _group_of(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return 0


def start(*arguments: object, before: Callable[[], None] | None = None) -> Child:
    """`colorpress` with these arguments, in a child; `before` is called there first."""
    from colorpress.cli import run_command

    def work() -> int:
        if before is not None:
            before()
        return run_command([str(each) for each in arguments])

    return Child(work)


def load_all() -> None:
    """Import what commands import, and read what they hash, so that children have it; no thread is started."""
    import matplotlib.backends.backend_agg
    import onnxruntime
    import optuna
    import pandas
    import torch._dynamo
    import torch.onnx

    import colorpress.deploy_stages
    import colorpress.pipeline
    from colorpress.core.source_code import hash_code

    hash_code("colorpress.cli")
    del matplotlib, onnxruntime, optuna, pandas, torch, colorpress


def make_photos(folder: Path, count: int = 12) -> Path:
    """A folder of small photographs that a network can learn a little from."""
    from tests.conftest import make_photo

    folder.mkdir(parents=True)
    for index in range(count):
        make_photo(index, 64, 56).save(folder / f"photo{index}.png")
    return folder


def leftovers(*folders: Path) -> list[str]:
    """Names of temporary files and folders of this program's in folders."""
    names = [
        str(path) for folder in folders for path in folder.rglob("*")
        if ".colorpress-tmp" in path.name or path.name == ".scratch" or path.name.startswith("colorpress-work-")
    ]  # fmt: skip
    return sorted(names)
