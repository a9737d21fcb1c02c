"""What a search is worth: its front against a ladder of uniform widths and against chance, at equal compute.

    python -m benchmarks.search_worth best.pt --data photos --output-dir worth --trials 24 --crops 2000 --seeds 0 1 2

Every way looks at candidates of the same space with the same short distillation, in a run folder of its own. Each is
cut off where the one that was quickest ended, in seconds spent on its candidates (a ladder ends with its last rung),
and judged by the hypervolume of what
it has by then (Optuna's own), over the logarithms of file size and latency and the lost colour, each from the best to
the worst seen by anybody. Then the same search by one and by two workers on this machine, and the wall time that 8 to
64 workers would need for the recorded times of its candidates: each takes the next candidate when it is free. That says
nothing of what a sampler loses when it has to propose before others have answered. Options that are not known here,
such as --arch, go to every command.
"""

from __future__ import annotations

import argparse
import heapq
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna._hypervolume import compute_hypervolume  # no public name
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from colorpress.files import write_json

WAYS = ("tpe", "random", "ladder")
SIMULATED_WORKERS = (1, 2, 4, 8, 16, 32, 64)
_STUDY = "candidates"
_ROOT = Path(__file__).resolve().parent.parent
Values = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; everything is in search_worth.json too."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, default=Path("worth"))
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--crops", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--config", type=Path, default=None, help="Further options of `colorpress search` as TOML.")
    parser.add_argument("--no-scaling", action="store_true", help="Leave out the runs with one and two workers.")
    given, given_on = parser.parse_known_args(arguments, argparse.Namespace())
    given.given_on = given_on
    worth = compare_ways(given)
    print_worth(worth)
    if not given.no_scaling:
        worth["scaling"] = measure_scaling(given)
        print_scaling(worth["scaling"])
    write_json(given.output_dir / "search_worth.json", worth)


def compare_ways(given: argparse.Namespace) -> dict[str, Any]:
    """The hypervolume of each way for each seed, at equal compute."""
    seen: dict[tuple[str, int], tuple[Values, Values]] = {}
    for seed in given.seeds:
        for way in WAYS:
            folder = given.output_dir / f"{way}-{seed}"
            run_command(
                "search", folder, given, "--search-sampler", way, "--data", str(given.data), "--seed", str(seed)
            )
            seen[way, seed] = read_trials(folder / "study" / "journal.log")
    best, worst = find_bounds([values for values, _ in seen.values()])
    rows: list[dict[str, Any]] = []
    for seed in given.seeds:
        # A ladder of fewer rungs than there are trials is at its end: more time would not add to it.
        totals = [
            seconds.sum() for (_, own), (_, seconds) in seen.items() if own == seed and len(seconds) >= given.trials
        ]
        budget_s = float(min(totals, default=math.inf))
        for way in WAYS:
            values, seconds = seen[way, seed]
            done = values[np.cumsum(seconds) <= budget_s * (1 + 1e-9)]
            rows.append({
                "way": way,
                "seed": seed,
                "hypervolume": measure_hypervolume(done, best, worst),
                "candidates": len(done),
                "seconds": min(budget_s, float(seconds.sum())),
            })  # fmt: skip
    return {"rows": rows, "best": best.tolist(), "worst": worst.tolist()}


def run_command(command: str, folder: Path, given: argparse.Namespace, *options: str) -> None:
    """Run `colorpress search` or `worker` to its end, on candidates alone."""
    subprocess.run(make_command(command, folder, given, *options), check=True, env=_environment())


def make_command(command: str, folder: Path, given: argparse.Namespace, *options: str) -> list[str]:
    """The command line of one process."""
    words = [sys.executable, "-m", "colorpress", command, "-o", str(folder), "-c", str(given.checkpoint), "--quiet"]
    words += ["--threads", str(given.threads)]
    if command == "search":
        words += ["--search-trials", str(given.trials), "--search-crops", str(given.crops), "--search-front", "0"]
        words += ["--config", str(given.config)] if given.config else []
    return [*words, *given.given_on, *options]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}


def read_trials(journal: Path) -> tuple[Values, Values]:
    """Of the finished candidates of a study in order: the values (N, 3) and the seconds (N,) that each took."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(journal.absolute())))
    trials = optuna.load_study(study_name=_STUDY, storage=storage).get_trials(states=(TrialState.COMPLETE,))
    seconds = [trial.duration.total_seconds() if trial.duration else 0.0 for trial in trials]
    return np.array([trial.values for trial in trials], dtype=np.float64).reshape(-1, 3), np.array(seconds)


def _logarithmic(values: Values) -> Values:
    """Size and latency by their logarithms: halving a file is worth the same at any size."""
    return np.column_stack([np.log(values[:, 0]), np.log(values[:, 1]), values[:, 2]])


def find_bounds(sets: Sequence[Values]) -> tuple[Values, Values]:
    """The best and the worst of each objective in all sets together, (3,) each, sizes and latencies as logarithms."""
    together = _logarithmic(np.concatenate(sets))
    return together.min(axis=0), together.max(axis=0)


def measure_hypervolume(values: Values, best: Values, worst: Values) -> float:
    """The share of the box between best and worst that some of the values (N, 3) are better than."""
    if not len(values):
        return 0.0
    scaled = (_logarithmic(values) - best) / np.where(worst > best, worst - best, 1.0)
    return float(compute_hypervolume(np.clip(scaled, 0.0, 1.0), np.ones(3)))


def measure_scaling(given: argparse.Namespace) -> dict[str, Any]:
    """Wall time of the same search by one and by two workers here, and of more by simulation."""
    measured, seed = {}, given.seeds[0]
    durations: list[float] = []
    for workers in (1, 2):
        folder = given.output_dir / f"workers-{workers}"
        shutil.rmtree(folder, ignore_errors=True)
        journal = folder / "shared" / "journal.log"
        common = ("--study", str(journal), "--data", str(given.data))
        started = time.monotonic()
        leader = subprocess.Popen(
            make_command("search", folder / "leader", given, *common, "--seed", str(seed)), env=_environment()
        )
        while not (journal.is_file() and '"wanted"' in journal.read_text()) and leader.poll() is None:
            time.sleep(0.2)
        others = [
            subprocess.Popen(make_command("worker", folder / f"other-{number}", given, *common), env=_environment())
            for number in range(1, workers)
        ]
        if leader.wait():
            raise SystemExit(f"the search failed with {leader.returncode}")
        measured[workers] = time.monotonic() - started
        for process in others:
            process.wait()
        if workers == 1:
            durations = read_trials(journal)[1].tolist()
    return {
        "measured_s": measured,
        "trial_s": durations,
        "simulated_s": {workers: simulate_wall(durations, workers) for workers in SIMULATED_WORKERS},
    }


def simulate_wall(durations: Sequence[float], workers: int) -> float:
    """Seconds until all trials are done when each goes, in order, to the worker that is free first."""
    free = [0.0] * workers
    for duration in durations:
        heapq.heappush(free, heapq.heappop(free) + duration)
    return max(free)


def print_worth(worth: dict[str, Any]) -> None:
    """The hypervolumes as a table."""
    print(f"{'way':8} {'seed':>4} {'candidates':>10} {'seconds':>8} {'hypervolume':>11}")
    for row in worth["rows"]:
        print(f"{row['way']:8} {row['seed']:4} {row['candidates']:10} {row['seconds']:8.0f} {row['hypervolume']:11.4f}")
    for way in WAYS:
        own = [row["hypervolume"] for row in worth["rows"] if row["way"] == way]
        print(f"{way}: mean {np.mean(own):.4f}, from {min(own):.4f} to {max(own):.4f}")


def print_scaling(scaling: dict[str, Any]) -> None:
    """Measured and simulated wall times."""
    for workers, seconds in scaling["measured_s"].items():
        print(f"{workers} worker(s) on this machine: {seconds:.0f} s")
    alone = scaling["simulated_s"][1]
    for workers, seconds in scaling["simulated_s"].items():
        print(f"{workers} workers, simulated: {seconds:.0f} s, {alone / seconds:.1f} times faster")


if __name__ == "__main__":
    main()
