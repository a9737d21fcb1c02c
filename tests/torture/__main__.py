"""All tortures, as many at a time as there are cores, and their figures in one table: `make torture`.

    python -m tests.torture --scale 0.1 [--only kills] [--again]

What a part found is kept with what it said in `.torture`, so that a torture that was stopped goes on with the parts
that are left; a part is done again once the code, or the length that is asked for, is another, or where anything was
wrong. Exit code 1 where anything was lost, left over, hung for more than half a minute, or ended in a traceback or as
"internal".
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.torture.figures import SEVERE

_ROOT = Path(__file__).resolve().parent.parent.parent
_KILLING = 4
_COMMANDS = (
    "train", "rank", "prune", "export", "quantize", "pack", "deploy", "verify", "bundle", "report", "explain",
    "colorize", "run",
)  # fmt: skip
# Hostile models that are tried one after another: those that fill the memory never two at a time.
_MODELS = {
    "loops": ("loop-always", "loop-elsewhere", "loop-on-photographs", "loop-in-loops"),
    "memory": ("memory-always", "memory-elsewhere", "memory-on-photographs", "constant-of-gigabytes"),
    "others": ("long-product", "crash-always", "crash-elsewhere", "deep-branches", "names-of-markup"),
}
_SOUND = "sound run"
_COLUMNS = ("cases", "refused", "went_on", *SEVERE)


@dataclass(frozen=True)
class Part:
    """A module of this package, and the options that it is run with."""

    name: str
    module: str
    options: tuple[str, ...]


def list_parts(scale: float, folder: Path) -> list[Part]:
    """All parts at a share of their full length, those that take longest first.

    Args:
        folder: where the run lies that nobody disturbs, which the first part makes.
    """

    def count(number: float, name: str = "--count") -> tuple[str, ...]:
        return (name, str(max(1, round(scale * number))))

    def of(module: str, names: Sequence[str], options: tuple[str, ...]) -> list[Part]:
        return [Part(f"{module}: {name}", module, ("--only", name, *options)) for name in names]

    sound = ("--sound", str(folder / "sound"))
    models = {kind: [each for name in names for each in ("--only", name)] for kind, names in _MODELS.items()}
    kills = [(*count(240 / _KILLING), "--seed", str(seed)) for seed in range(_KILLING)]
    return [
        Part(_SOUND, "sound_run", sound),
        *(Part(f"kills: {number + 1} of {_KILLING}", "kills", (*kills[number], *sound)) for number in range(_KILLING)),
        *(Part(f"hostile_models: {kind}", "hostile_models", tuple(given)) for kind, given in models.items()),
        *of("faults", _COMMANDS, ("--share", str(min(1.0, scale)), *sound)),
        Part("meetings", "meetings", count(10)),
        *of("damaged_pictures", ("damaged", "aspect"), count(2000)),
        *of("damaged_files", ("checkpoints", "pickles", "journals", "plans", "records", "options"), count(2000)),
    ]  # fmt: skip


class Torture:
    """The parts that are done, in a folder, and those that are to do.

    Args:
        folder: what they said, and `results.json`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._code = hash_project()
        folder.mkdir(exist_ok=True)
        self._record = folder / "results.json"
        self._results = json.loads(self._record.read_bytes()) if self._record.exists() else {}
        self._writing = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._is_stopped = False

    def forget(self) -> None:
        """Begin anew."""
        self._results = {}

    def stop(self) -> None:
        """End what is under way, which is to be done again."""
        self._is_stopped = True
        for process in tuple(self._running):
            process.kill()

    def run(self, part: Part) -> Counter[str]:
        """The figures of a part, which is run unless it was clean before with the same options and code."""
        key = [self._code, part.module, *part.options]
        kept = self._results.get(part.name)
        if kept and kept["key"] == key and not any(kept["figures"].get(each) for each in SEVERE):
            return Counter(kept["figures"])
        if part.name == _SOUND:
            shutil.rmtree(self.folder / "sound", ignore_errors=True)
        began = time.monotonic()
        figures = self._start(part)
        figures["seconds"] = round(time.monotonic() - began)
        if self._is_stopped:
            return figures
        with self._writing:
            self._results[part.name] = {"key": key, "figures": figures}
            self._record.write_text(json.dumps(self._results, indent=1))
        print(f"{part.name}: {', '.join(f'{name} {number}' for name, number in figures.items() if number)}", flush=True)
        return figures

    def _start(self, part: Part) -> Counter[str]:
        command = [sys.executable, "-m", f"tests.torture.{part.module}", *part.options]
        found: Counter[str] = Counter()
        # A folder for passing work that goes even where the part is killed, and no lock of timing shared with others.
        with (
            tempfile.TemporaryDirectory(prefix="torture-") as passing,
            (self.folder / f"{part.name.replace(': ', '-').replace(' ', '-')}.log").open("w") as log,
        ):
            given = os.environ | {"TMPDIR": passing, "XDG_RUNTIME_DIR": passing, "PYTHONUNBUFFERED": "1"}
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, cwd=_ROOT, env=given
            ) as process:
                assert process.stdout is not None
                self._running.add(process)
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    if line.startswith(tuple(f"{each}:" for each in SEVERE)):
                        print(f"  {part.name}: {line}", end="", flush=True)
                    found += read_figures(line)
                # Of it and of all that it waited for.
                self._running.remove(process)
                _, status, used = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
        found["processor_s"] = round(used.ru_utime + used.ru_stime)
        if process.returncode and not any(found[each] for each in SEVERE):
            found["internal"] += 1  # it ended before it could say what was wrong
        return found


def hash_project() -> str:
    """The SHA-256 of all code of the project and of this package."""
    digest = hashlib.sha256()
    for folder in ("colorpress", "training", "export", "compress", "benchmarks", "tests/torture"):
        for path in sorted((_ROOT / folder).rglob("*.py")):
            digest.update(f"{path.relative_to(_ROOT)} {len(path.read_bytes())}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def read_figures(line: str) -> Counter[str]:
    """What a line of a torture counts: JSON of `Figures`; nothing of other lines."""
    return Counter(json.loads(line)) if line.startswith('{"cases"') else Counter()


def write_table(rows: dict[str, Counter[str]]) -> Iterator[str]:
    """The lines of a table in Markdown, with their sum."""
    columns = (*_COLUMNS, "seconds", "processor_s")
    total = {column: sum(row[column] for row in rows.values()) for column in columns}
    yield "| part | " + " | ".join(column.replace("_", " ") for column in columns) + " |"
    yield "|---" * (len(columns) + 1) + "|"
    for name, row in {**rows, "all": total}.items():
        yield "| " + " | ".join([name, *(str(row[column]) for column in columns)]) + " |"


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of the cases")
    parser.add_argument("--only", action="append", default=[], help="parts whose name begins so; repeat it for more")
    parser.add_argument("--again", action="store_true", help="also what is done already")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="parts at a time")
    parser.add_argument("--folder", type=Path, default=_ROOT / ".torture", help="what is kept of it")
    given = parser.parse_args()
    began = time.monotonic()
    torture = Torture(given.folder.resolve())
    if given.again:
        torture.forget()
    first, *rest = list_parts(given.scale, torture.folder)
    chosen = [part for part in rest if not given.only or part.name.startswith(tuple(given.only))]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    # One thread a part, which waits for the process that does it.
    pool = ThreadPoolExecutor(given.jobs)
    try:
        rows = {first.name: pool.submit(torture.run, first).result()}
        rows |= dict(zip((part.name for part in chosen), pool.map(torture.run, chosen), strict=True))
    except BaseException:
        torture.stop()
        raise
    finally:
        pool.shutdown(cancel_futures=True)
    print("\n".join(write_table(rows)))
    print(f"{time.monotonic() - began:.0f} s, {given.jobs} parts at a time; what each said is in {given.folder}")
    return 1 if any(row[each] for row in rows.values() for each in SEVERE) else 0


if __name__ == "__main__":
    sys.exit(main())
