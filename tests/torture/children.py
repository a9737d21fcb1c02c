"""Inputs one after another in child processes with limits on time and memory, and figures of what became of them."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Timer

from tests.torture.figures import LONGEST_S, Figures, patience

# By its seed, its number and a folder to work in, what becomes of an input: one of `GOOD`, or what is raised.
Task = Callable[[int, int, Path], str]

GOOD = ("read", "refused")
# What becomes of an input, and the figure that it is.
_COUNTED_AS = {
    "read": "went_on", "refused": "refused", "hang": "hangs", "internal": "internal", "crash": "internal",
    "memory": "internal",
}  # fmt: skip
# Address space: what the libraries take once loaded, and 1 GiB of work.
MEMORY_BYTES = 4 << 30


def run_child(task: Task, seed: int, start: int, end: int, folder: Path) -> None:
    """Say a line of each input: its number, what became of it, seconds and the most memory so far, in MB."""
    logging.disable()
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for number in range(start, end):
        begun = time.perf_counter()
        try:
            outcome = task(seed, number, folder)
        except MemoryError:
            outcome = "memory"
        except Exception as error:
            outcome = f"internal {type(error).__name__}: {error}".replace("\n", " ").replace("\t", " ")[:200]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{number}\t{outcome}\t{time.perf_counter() - begun:.2f}\t{peak}", flush=True)


def run_limited(module: str, task: str, seed: int, count: int, folder: Path) -> Iterator[tuple[int, str, float, int]]:
    """Every input's line of `run_child`; one that ends its process is "crash", one that never ends is "hang".

    Args:
        module: of `tests.torture`, which takes --child TASK --seed --start --count --folder and calls `run_child`.
    """
    number = 0
    while number < count:
        arguments = ["--child", task, "--seed", f"{seed}", "--start", f"{number}", "--count", f"{count}"]
        command = [sys.executable, "-m", module, *arguments, "--folder", str(folder)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as child:
            assert child.stdout is not None
            while number < count:
                # The first input of a child waits for its imports.
                timer = Timer(2 * LONGEST_S * patience(), child.kill)
                timer.start()
                line = child.stdout.readline()
                is_late = not timer.is_alive()
                timer.cancel()
                if not line:
                    yield number, "hang" if is_late else f"crash {child.wait()}", 2 * LONGEST_S if is_late else 0.0, 0
                    number += 1
                    break
                _, outcome, seconds, peak = line.rstrip("\n").split("\t")
                is_late = float(seconds) > LONGEST_S * patience()
                yield number, "hang" if is_late else outcome, float(seconds), int(peak)
                number += 1
            child.kill()


def torture(
    figures: Figures, module: str, task: str, seed: int, count: int, folder: Path, *,
    keep: Callable[[int], None] = lambda number: None,
) -> None:  # fmt: skip
    """Run a task, count what became of its inputs, and say how long and large the worst of them was.

    Args:
        keep: is given the numbers of the inputs that anything but reading and refusing became of.
    """
    slowest, largest = (0.0, 0), 0
    for number, outcome, seconds, peak in run_limited(module, task, seed, count, folder):
        slowest, largest = max(slowest, (seconds, number)), max(largest, peak)
        kind = _COUNTED_AS[outcome.split()[0]]
        figures.add(f"{task} {number}", kind, outcome)
        if outcome not in GOOD:
            keep(number)
    print(f"{task}: {count}; slowest {slowest[0]:.1f} s ({slowest[1]}), most memory {largest} MB", flush=True)
