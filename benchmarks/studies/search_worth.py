"""What a search is worth: its front against chance, a ladder of flat networks and one of pruning, at equal compute.

    python -m benchmarks.studies.search_worth best.pt --data photos --trials 24 --crops 3000 --seeds 0 1 2

Search, chance and the ladder of flat networks, which a search starts from, look at candidates of the same space with
the same short distillation; a network that is drawn again counts as a candidate that costs nothing. Chance and ladder
are cut off where they have spent as much processor time on candidates as the search, or go on until then (a ladder ends
with its last rung). The ladder of pruning takes the same share of each layer's channels from best.pt, at several
ratios, and fine-tunes with as many crops; it is not cut off. All are judged by the hypervolume of what they have by
then, over the logarithms of file size and latency and the lost colour, each from the best to the worst seen by anybody,
where nothing is kept at most. Lost colour is by the measure that decides: of candidates on the photographs that choose,
of the pruned on the others, which choose nothing.
Then the same search by one and by two workers here, and the wall time of up to 64 by the recorded times of its
candidates. That says nothing of what a sampler loses when it has to propose before others have answered.
Options that are not known here, such as --arch, go to every command.
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
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd
from numpy.typing import NDArray
from optuna._hypervolume import compute_hypervolume  # no public name
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from colorpress.core.files import write_json
from compress.measures import Score
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
Values = NDArray[np.float64]


class Found(NamedTuple):
    """Finished candidates in order: (N, 3) bytes, milliseconds and lost colour, and (N,) seconds of processor time."""

    values: Values
    seconds: Values


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
    given, further = parser.parse_known_args(arguments)
    given.further = further
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
    seen: dict[tuple[str, int], Found] = {}
    limits_s: dict[int, float] = {}
    for seed in given.seeds:
        for way in WAYS:
            found = look_for(way, seed, given, limits_s.get(seed))
            seen[way, seed] = found
            limits_s.setdefault(seed, float(found.seconds.sum()))
            print(f"{way} {seed}: {found.seconds.sum():.0f} s of processor time", flush=True)
        if not given.no_pruning:
            front = json.loads((given.output_dir / f"{WAYS[0]}-{seed}" / "front.json").read_text())
            seen[PRUNING, seed] = prune_rungs(given, seed, front["measure"])
    best, worst = find_bounds([found.values for found in seen.values()])
    rows: list[dict[str, Any]] = []
    for (way, seed), (values, seconds) in seen.items():
        limit_s = math.inf if way == PRUNING else limits_s[seed]
        done = values[np.cumsum(seconds) <= limit_s * (1 + 1e-9)]
        rows.append({
            "way": way,
            "seed": seed,
            "hypervolume": measure_hypervolume(done, best, worst),
            "candidates": len(done),
            "processor_s": min(limit_s, float(seconds.sum())),
        })  # fmt: skip
    return {"rows": rows, "best": best.tolist(), "worst": worst.tolist()}


def look_for(way: str, seed: int, given: argparse.Namespace, limit_s: float | None) -> Found:
    """What one way finds, ended where it has spent `limit_s` seconds of processor time on its candidates."""
    folder = given.output_dir / f"{way}-{seed}"
    _share_answers(given.output_dir, folder)
    options = ("--search-sampler", way, "--data", given.data, "--seed", seed)
    trials = given.trials if limit_s is None else _ENOUGH_TRIALS
    process = start_command("compress", folder, given, *options, "--search-trials", trials)
    while process.poll() is None:
        time.sleep(_POLL_SECONDS)
        begun = limit_s is not None and (folder / "front.csv").is_file()
        if begun and _read_found(folder).seconds.sum() >= limit_s:
            process.terminate()
            process.wait()
            return _read_found(folder)
    _wait_for(process)
    return _read_found(folder)


def _read_found(folder: Path) -> Found:
    """Of the study that was used last in a run folder, which has one for each set of options."""
    trials = read_trials(max((folder / "study").glob("*/journal.log"), key=lambda path: path.stat().st_mtime))
    values = np.array([trial.values for trial in trials], dtype=np.float64).reshape(-1, 3)
    return Found(values, np.array([trial.user_attrs["processor_s"] for trial in trials]))


def read_trials(journal: Path) -> list[FrozenTrial]:
    """The finished candidates of a study, in order."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(journal.absolute())))
    return optuna.load_study(study_name=_STUDY, storage=storage).get_trials(states=(TrialState.COMPLETE,))


def _share_answers(output_dir: Path, folder: Path) -> None:
    """Give a run folder what others asked of best.pt already, so that it is asked once."""
    for asked in output_dir.glob("*/.answers/*"):
        if asked.parents[1] != folder:
            shutil.copytree(asked, folder / ".answers" / asked.name, dirs_exist_ok=True)
    strides = ".stages/strides.json"
    known = sorted(output_dir.glob(f"*/{strides}"), key=lambda path: path.stat().st_mtime)
    if known and not (folder / strides).exists():
        (folder / strides).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(known[-1], folder / strides)


def start_command(
    command: str,
    folder: Path,
    given: argparse.Namespace,
    *options: object,
    checkpoint: Path | None = None,
    stdout: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start a process of colorpress on a run folder."""
    words: list[object] = [command, "-o", folder, "--quiet", "-c", checkpoint or given.checkpoint]
    words += [] if command == "export" else ["--threads", given.threads]
    words += ["--search-crops", given.crops, "--search-front", 0] if command == "compress" else []
    words += ["--config", given.config] if command in ("compress", "prune") and given.config else []
    line = [sys.executable, "-m", "colorpress", *map(str, [*words, *given.further, *options])]
    return subprocess.Popen(line, stdout=stdout)


def _wait_for(process: subprocess.Popen[bytes]) -> bytes:
    """What a process printed, where its output is a pipe; a failed one ends the measurement."""
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"a process failed with {process.returncode}: {process.args!r}")
    return printed


def prune_rungs(given: argparse.Namespace, seed: int, measure: str) -> Found:
    """best.pt, each layer pruned by the same ratio and fine-tuned, by ratio; judged by the measure of this name."""
    values, seconds = [], []
    for ratio in PRUNE_RATIOS:
        folder = given.output_dir / f"{PRUNING}-{seed}-{ratio:g}"
        _share_answers(given.output_dir, folder)
        before = _children_s()
        pruning = start_command(
            "prune", folder, given, "--data", given.data, "--seed", seed, "--largest-share", 1, "--prune-ratio", ratio,
            "--round-to", 4, "--finetune-crops", given.crops, "--json",
            stdout=subprocess.PIPE,
        )  # fmt: skip
        # Of the best epoch, or of what it was before them where none is better.
        score = read_score(json.loads(_wait_for(pruning))["prune"], measure)
        network = folder / "pruned" / "model.pt"
        _wait_for(start_command("export", folder, given, checkpoint=network))
        pack_onnx(folder / "pruned" / "model.onnx", packed := folder / "packed.onnx")
        seconds.append(_children_s() - before)
        latency_ms = time_quickly(packed, size=256, threads=given.threads)
        values.append((packed.stat().st_size, latency_ms, score.loss))
        print(f"{PRUNING} {seed}, {ratio:g}: {packed.stat().st_size:,} bytes, {latency_ms:.2f} ms, {score.describe()}, "
              f"{seconds[-1]:.0f} s of processor time", flush=True)  # fmt: skip
    return Found(np.array(values), np.array(seconds))


def read_score(result: Mapping[str, Any], measure: str) -> Score:
    """The score among the figures of a pruning, as the measure of this name sees it."""
    return replace(Score.of({each.name: result[each.name] for each in fields(Score)}), measure=measure)


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
    # What keeps nothing is worth nothing.
    return together.min(axis=0), together.max(axis=0).clip(max=(np.inf, np.inf, 1.0))


def measure_hypervolume(values: Values, best: Values, worst: Values) -> float:
    """The share of the box between best and worst that some of the values (N, 3) are better than."""
    if not len(values):
        return 0.0
    scaled = (_logarithmic(values) - best) / np.where(worst > best, worst - best, 1.0)
    return float(compute_hypervolume(np.clip(scaled, 0.0, 1.0), np.ones(3)))


def measure_scaling(given: argparse.Namespace) -> dict[str, Any]:
    """Wall time of the same search by one and by two workers here, and of more by simulation."""
    measured: dict[int, float] = {}
    durations: list[float] = []
    for workers in (1, 2):
        folder = given.output_dir / f"workers-{workers}"
        shutil.rmtree(folder, ignore_errors=True)
        other_folders = [folder / f"other-{number}" for number in range(1, workers)]
        for each in (folder / "leader", *other_folders):
            _share_answers(given.output_dir, each)
        journal = folder / "shared" / "journal.log"
        common = ("--study", journal, "--data", given.data)
        started = time.monotonic()
        own = ("--seed", given.seeds[0], "--search-trials", given.trials)
        leader = start_command("compress", folder / "leader", given, *common, *own)
        while not (journal.is_file() and '"wanted"' in journal.read_text()) and leader.poll() is None:
            time.sleep(0.2)
        others = [start_command("worker", each, given, *common) for each in other_folders]
        _wait_for(leader)
        measured[workers] = time.monotonic() - started
        for process in others:
            process.wait()
        durations = durations or [trial.duration.total_seconds() for trial in read_trials(journal) if trial.duration]
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
    """The hypervolumes as a table, and how those of each way differ."""
    rows = pd.DataFrame(worth["rows"])
    print(rows.round({"processor_s": 0, "hypervolume": 4}).to_string(index=False))
    print(rows.groupby("way", sort=False)["hypervolume"].agg(["mean", "min", "max"]).round(4).to_string())


def print_scaling(scaling: dict[str, Any]) -> None:
    """Measured and simulated wall times."""
    for workers, seconds in scaling["measured_s"].items():
        print(f"{workers} worker(s) on this machine: {seconds:.0f} s")
    alone = scaling["simulated_s"][1]
    for workers, seconds in scaling["simulated_s"].items():
        print(f"{workers} workers, simulated: {seconds:.0f} s, {alone / seconds:.1f} times faster")


if __name__ == "__main__":
    main()
