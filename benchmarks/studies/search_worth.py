"""What a search is worth: its front against chance, a ladder of flat networks and one of pruning, at equal compute.

    python -m benchmarks.studies.search_worth best.pt --data photos --trials 24 --crops 3000 --seeds 0 1 2

The search, chance and the ladder of flat networks that a search starts from look at candidates of the same space with
the same short distillation, in a run folder of their own. The others are cut off where the search ended, in seconds of
processor time spent on candidates, or go on as long as it took (a ladder ends with its last rung). The ladder of
pruning takes best.pt and the same share of each layer's channels away, at several ratios, and fine-tunes with as many
crops; it is not cut off. All are judged by the hypervolume of what they have by then (Optuna's own), over the
logarithms of file size and latency and the lost colour, each from the best to the worst seen by anybody, grey at most.
Then the same search by one and by two workers on this machine, and the wall time that 8 to 64 workers would need for
the recorded times of its candidates: each takes the next candidate when it is free. That says nothing of what a sampler
loses when it has to propose before others have answered. Options that are not known here, such as --arch, go to every
command.
"""

from __future__ import annotations

import argparse
import heapq
import json
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
from optuna.trial import FrozenTrial, TrialState

from colorpress.core.files import write_json
from compress.packing import pack_onnx
from export.timing import time_quickly

WAYS = ("tpe", "random", "ladder")
PRUNING = "pruning"
PRUNE_RATIOS = (0.4, 0.6, 0.75, 0.875, 0.9375)
SIMULATED_WORKERS = (1, 2, 4, 8, 16, 32, 64)
_STUDY = "candidates"
# More than fit into the time that the search takes.
_ENOUGH_TRIALS = 1000
_POLL_SECONDS = 2.0
_ROOT = Path(__file__).resolve().parent.parent.parent
Values = NDArray[np.float64]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; all of it is in ways.json and workers.json too, each written when it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output-dir", type=Path, default=Path("worth"))
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--crops", type=int, default=2000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--config", type=Path, default=None, help="More options of search and pruning, as TOML.")
    parser.add_argument("--no-pruning", action="store_true", help="Leave out what takes longest.")
    parser.add_argument("--only", choices=("ways", "workers"), help="The comparison of ways, or one and two workers.")
    given, given_on = parser.parse_known_args(arguments, argparse.Namespace())
    given.given_on = given_on
    if given.only != "workers":
        worth = compare_ways(given)
        write_json(given.output_dir / "ways.json", worth)
        print_worth(worth)
    if given.only != "ways":
        scaling = measure_scaling(given)
        write_json(given.output_dir / "workers.json", scaling)
        print_scaling(scaling)


def compare_ways(given: argparse.Namespace) -> dict[str, Any]:
    """The hypervolume of each way for each seed, at equal compute."""
    seen: dict[tuple[str, int], tuple[Values, Values]] = {}
    for seed in given.seeds:
        for way in WAYS:
            folder = given.output_dir / f"{way}-{seed}"
            _share_answers(given.output_dir, folder)
            most_s = None if way == WAYS[0] else float(seen[WAYS[0], seed][1].sum())
            seen[way, seed] = look_for(way, seed, folder, given, most_s)
            print(f"{way} {seed}: {seen[way, seed][1].sum():.0f} s of processor time", flush=True)
        if not given.no_pruning:
            seen[PRUNING, seed] = prune_rungs(given, seed)
    best, worst = find_bounds([values for values, _ in seen.values()])
    rows: list[dict[str, Any]] = []
    for (way, seed), (values, seconds) in seen.items():
        limit_s = math.inf if way == PRUNING else float(seen[WAYS[0], seed][1].sum())
        done = values[np.cumsum(seconds) <= limit_s * (1 + 1e-9)]
        rows.append({
            "way": way,
            "seed": seed,
            "hypervolume": measure_hypervolume(done, best, worst),
            "candidates": len(done),
            "processor_s": min(limit_s, float(seconds.sum())),
        })  # fmt: skip
    return {"rows": rows, "best": best.tolist(), "worst": worst.tolist()}


def look_for(
    way: str, seed: int, folder: Path, given: argparse.Namespace, most_s: float | None
) -> tuple[Values, Values]:
    """`read_trials` of one way, which ends where it has spent `most_s` seconds of processor time on its candidates."""
    options = ("--search-sampler", way, "--data", str(given.data), "--seed", str(seed))
    trials = given.trials if most_s is None else _ENOUGH_TRIALS
    line = [*make_command("compress", folder, given, *options), "--search-trials", str(trials)]
    process = subprocess.Popen(line, env=_environment())
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        begun = most_s is not None and (folder / "front.csv").is_file()
        if begun and read_trials(find_journal(folder))[1].sum() >= most_s:
            process.terminate()
            process.wait()
            return read_trials(find_journal(folder))
    if process.returncode:
        raise SystemExit(f"the search failed with {process.returncode}")
    return read_trials(find_journal(folder))


def _share_answers(output_dir: Path, folder: Path) -> None:
    """Give a run folder what another one asked of best.pt already, so that it is asked once."""
    for name in (".answers", ".stages/strides.json"):
        known = sorted(output_dir.glob(f"*/{name}"), key=lambda path: path.stat().st_mtime)
        if known and not (folder / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if known[-1].is_dir() else shutil.copy)(known[-1], folder / name)


def make_command(
    command: str, folder: Path, given: argparse.Namespace, *options: str, checkpoint: Path | None = None
) -> list[str]:
    """The command line of one process."""
    words = [sys.executable, "-m", "colorpress", command, "-o", str(folder), "--quiet"]
    words += ["-c", str(checkpoint or given.checkpoint)]
    words += [] if command == "export" else ["--threads", str(given.threads)]
    if command == "compress":
        words += ["--search-crops", str(given.crops), "--search-front", "0"]
    if command in ("compress", "prune") and given.config:
        words += ["--config", str(given.config)]
    return [*words, *given.given_on, *options]


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))}


def find_journal(folder: Path) -> Path:
    """The study that was used last in a run folder, which has one for each set of options."""
    return max((folder / "study").glob("*/journal.log"), key=lambda path: path.stat().st_mtime)


def read_trials(journal: Path) -> tuple[Values, Values]:
    """Of the finished candidates of a study in order: values (N, 3) and seconds of processor time (N,)."""
    trials = _finished(journal)
    seconds = [trial.user_attrs["processor_s"] for trial in trials]
    return np.array([trial.values for trial in trials], dtype=np.float64).reshape(-1, 3), np.array(seconds)


def read_wall_times(journal: Path) -> list[float]:
    """Seconds that each finished candidate of a study took, in order."""
    return [trial.duration.total_seconds() for trial in _finished(journal) if trial.duration]


def _finished(journal: Path) -> list[FrozenTrial]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(journal.absolute())))
    return optuna.load_study(study_name=_STUDY, storage=storage).get_trials(states=(TrialState.COMPLETE,))


def prune_rungs(given: argparse.Namespace, seed: int) -> tuple[Values, Values]:
    """best.pt, each layer pruned by the same ratio and fine-tuned: values (N, 3) and processor time (N,), by ratio."""
    values, seconds = [], []
    photos = ("--data", str(given.data), "--seed", str(seed))
    for ratio in PRUNE_RATIOS:
        folder = given.output_dir / f"{PRUNING}-{seed}-{ratio:g}"
        _share_answers(given.output_dir, folder)
        before = _children_s()
        tuning = ("--epoch-crops", str(given.crops), "--finetune-epochs", "1", "--batch-size", "16")
        pruning = ("--largest-share", "1", "--prune-ratio", str(ratio), "--round-to", "4")
        line = make_command("prune", folder, given, *photos, *pruning, *tuning, "--json")
        pruned = subprocess.run(line, check=True, env=_environment(), stdout=subprocess.PIPE)
        # Of the best epoch, or of what it was before them where none is better.
        kept = float(json.loads(pruned.stdout)["prune"]["retained_colour"])
        network = folder / "pruned" / "model.pt"
        subprocess.run(make_command("export", folder, given, checkpoint=network), check=True, env=_environment())
        pack_onnx(folder / "pruned" / "model.onnx", packed := folder / "packed.onnx")
        seconds.append(_children_s() - before)
        latency_ms = time_quickly(packed, size=256, threads=given.threads)
        values.append((packed.stat().st_size, latency_ms, 1.0 - kept))
        print(f"{PRUNING} {seed}, {ratio:g}: {packed.stat().st_size:,} bytes, {latency_ms:.2f} ms, G {kept:.3f}, "
              f"{seconds[-1]:.0f} s of processor time", flush=True)  # fmt: skip
    return np.array(values), np.array(seconds)


def _children_s() -> float:
    """Seconds of processor time of all processes that were started here and have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _logarithmic(values: Values) -> Values:
    """Size and latency by their logarithms: halving a file is worth the same at any size."""
    return np.column_stack([np.log(values[:, 0]), np.log(values[:, 1]), values[:, 2]])


def find_bounds(sets: Sequence[Values]) -> tuple[Values, Values]:
    """The best and the worst of each objective in all sets together, (3,) each, sizes and latencies as logarithms."""
    together = _logarithmic(np.concatenate(sets))
    # What is worse than grey is worth nothing.
    return together.min(axis=0), together.max(axis=0).clip(max=(np.inf, np.inf, 1.0))


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
        for name in ("leader", *(f"other-{number}" for number in range(1, workers))):
            _share_answers(given.output_dir, folder / name)
        journal = folder / "shared" / "journal.log"
        common = ("--study", str(journal), "--data", str(given.data))
        own = ("--seed", str(seed), "--search-trials", str(given.trials))
        started = time.monotonic()
        leader = subprocess.Popen(make_command("compress", folder / "leader", given, *common, *own), env=_environment())
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
            durations = read_wall_times(journal)
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
    print(f"{'way':8} {'seed':>4} {'candidates':>10} {'processor':>9} {'hypervolume':>11}")
    for row in worth["rows"]:
        cells = f"{row['way']:8} {row['seed']:4} {row['candidates']:10} {row['processor_s']:7.0f} s"
        print(f"{cells} {row['hypervolume']:11.4f}")
    for way in dict.fromkeys(row["way"] for row in worth["rows"]):
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
