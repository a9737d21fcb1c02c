"""What a search would do: its space, and how long it takes here by a few timed steps whose weights are thrown away."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import optuna
import torch
from optuna.samplers import RandomSampler
from torch import Tensor

from colorpress.core.console import muted
from colorpress.core.text import format_bytes, format_count
from compress.distillation import DistilLoss, open_teacher
from compress.ranking import count_macs
from compress.students.search_space import PrunedPoint, StudentPoint, ladder_points, predict_cost, suggest
from compress.students.search_stages import begin_job
from compress.students.search_trial import SearchJob
from training.batches import CropLoader
from training.crops import CropSides
from training.device import choose_device, choose_precision, computing_in, torch_threads
from training.network import ColorNetwork
from training.optimizer import make_optimizers, step_
from training.photo_split import PhotoSplit
from training.run_folder import Run

_DRAWN = 64
_STEPS = 3
_BATCHES = 4
# Candidates that are timed, by their place in the order of multiply-accumulates.
_TIMED = (0.0, 0.5, 0.9, 1.0)
# Export, 8-bit weights, int8 and three measurements of a network of the front, in exports of one.
_EXPORTS_TO_THE_END = 4


def describe_plan(run: Run, photos: PhotoSplit, *, study: str | None) -> tuple[list[str], dict[str, Any]]:
    """What a search would do, as lines and as JSON-ready values: space, limits, candidates, estimated time.

    Raises:
        ConfigError: the budgets cannot be met.
    """
    job, _ = begin_job(run, photos, study)
    space, effort, estimate = job.space, job.effort, estimate_search(job)
    smallest, asked_for = space.cost(space.smallest("size_bytes")), list(map(str, job.demands))
    size, params = format_bytes(smallest["size_bytes"]), format_count(smallest["params"])
    most = [f"{limit.show(limit.bound)}{' file' * (limit.figure == 'size_bytes')}" for limit in job.limits]
    seconds = estimate["seconds"]
    lasts = f"{seconds / 60:.0f} minutes" if seconds >= 120 else f"{seconds} seconds"
    lines = [
        *(f"{name}: {values}" for name, values in space.describe().items()),
        f"points: {space.count_points():,}",
        f"at most: {', '.join(most)}",
        f"smallest network: about {size}, {params} parameters",
        f"asked for: {', '.join(asked_for) or 'nothing: the whole front'}",
        f"candidates: {effort.trials}, each learns from {effort.crops:,} crops",
        f"learn to the end: {effort.front}, each from {effort.full_crops:,} crops{_describe_pruned(job)}",
        f"speed: {estimate['crops_per_s']:,} crops a second",
        f"a candidate takes {estimate['seconds_for_a_candidate']:.0f} s, one that learns to the end "
        f"{estimate['seconds_for_a_student']:.0f} s",
        f"asking best.pt about their crops takes {estimate['seconds_of_asking']:.0f} s",
        f"time: about {lasts} with one worker like this machine",
    ]
    unlimited = dict.fromkeys(("params", "macs", "size_bytes", "latency_ms"))
    return lines, {
        "space": {**space.describe(), "points": space.count_points()},
        "limits": unlimited | {limit.figure: limit.bound for limit in job.limits},
        "smallest": smallest,
        "asked_for": asked_for,
        "candidates": effort.trials,
        "crops_of_each": effort.crops,
        "students": effort.front,
        "crops_of_each_student": effort.full_crops,
        "pruned": [point.kept_channels for point in _first_pruned(job)],
        **estimate,
    }


def _describe_pruned(job: SearchJob) -> str:
    shares = [f"{100 * point.kept_channels:g} %" for point in _first_pruned(job)]
    return f", {len(shares)} of them best.pt with {', '.join(shares)} of its channels" if shares else ""


def _first_pruned(job: SearchJob) -> list[PrunedPoint]:
    """Pruned networks that are trained, as far as their counts tell."""
    return [point for point, _ in islice(job.list_pruned(), job.effort.pruned_places)]


def estimate_search(job: SearchJob) -> dict[str, float]:
    """Seconds that one worker needs on this machine, and what they are made of; nothing is kept.

    A crop costs what loading it takes, or learning from it where that is longer, which follows from the
    multiply-accumulates between the candidates that are timed.
    """
    students, pruned, side = _draw_students(job), [job.build(point) for point in _first_pruned(job)], _crop_side(job)
    macs = np.array([
        *(predict_cost(point.network(), side=side)["macs"] for point in students),
        *(count_macs(network, height=side, width=side) for network in pruned),
    ])  # fmt: skip
    ordered = np.argsort(macs)
    timed = [int(ordered[round(share * (len(ordered) - 1))]) for share in _TIMED]
    networks = [
        job.build(students[place]) if place < len(students) else pruned[place - len(students)] for place in timed
    ]
    with muted():
        # The first export loads what the others use.
        job.measure(networks[0])
        started = time.monotonic()
        job.measure(networks[1])
        measuring_s = time.monotonic() - started
        loading_s = _time_loading(job)
        learning_s = [_time_learning(job, network) for network in networks]
    crops_s = np.maximum(loading_s, np.interp(macs, macs[timed], learning_s))
    effort, crop_s = job.effort, float(crops_s[: len(students)].mean())
    from_scratch = effort.front - len(pruned)
    full_crop_s = (from_scratch * crop_s + float(crops_s[len(students) :].sum())) / max(1, effort.front)
    short_s = effort.crops * crop_s + measuring_s
    full_s = effort.full_crops * full_crop_s + _EXPORTS_TO_THE_END * measuring_s
    # The longest training asks about the crops of all.
    longest = job.recipe(max(effort.crops, effort.full_crops if effort.front else 0))
    steps = longest.different_epochs * (longest.epoch_steps or -(-longest.epoch_crops // longest.batch_size))
    asking_s = steps * longest.batch_size * _time_asking(job)
    return {
        "crops_per_s": round(1 / crop_s, 1),
        "seconds_for_a_candidate": round(short_s, 1),
        "seconds_for_a_student": round(full_s, 1),
        "seconds_of_asking": round(asking_s, 1),
        "seconds": round(asking_s + effort.trials * short_s + effort.front * full_s),
    }


def _draw_students(job: SearchJob) -> list[StudentPoint]:
    """Students that are within the limits, some of them at random."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=RandomSampler(seed=job.run.settings.data.seed))
    drawn = [suggest(study.ask(), job.space) for _ in range(_DRAWN)]
    return [*ladder_points(job.space, job.limits, 4), *job.space.fitting(drawn, job.limits)]


def _crop_side(job: SearchJob) -> int:
    return CropSides.of(job.photos.train, job.recipe(job.effort.full_crops)).middle


def _time_loading(job: SearchJob) -> float:
    """Seconds a crop, by as many processes as training has."""
    settings = job.run.settings
    with CropLoader(job.photos.train, job.recipe(job.effort.full_crops), settings.data, workers=0) as loader:
        started, crops = time.monotonic(), 0
        for batch in islice(loader.epoch(0), _BATCHES):
            crops += len(batch)
    return (time.monotonic() - started) / max(1, crops) / max(1, settings.machine.workers)


def _time_asking(job: SearchJob) -> float:
    """Seconds a crop, of best.pt's answer."""
    lesson = job.lesson(job.effort.crops)
    teacher, lightness = open_teacher(lesson, lesson.dtype), _make_crops(job, choose_device(lesson.machine.device))
    return _time_steps(job, lambda: teacher(lightness).sum()) / len(lightness)


def _time_learning(job: SearchJob, network: ColorNetwork) -> float:
    """Seconds a crop, of a training step."""
    settings = job.run.settings
    device = choose_device(settings.machine.device)
    network, lightness = network.to(device).train(), _make_crops(job, device)
    criterion = DistilLoss(network, settings.distil.teacher_weight)
    dtype = choose_precision(settings.fit.precision, device)
    recipe = job.recipe(job.effort.full_crops)
    optimizers, scaler = make_optimizers(network, recipe), torch.amp.GradScaler(device.type, enabled=False)

    def learn() -> Tensor:
        with computing_in(dtype, network, device):
            loss = criterion(lightness).abs().mean()
        network.zero_grad()
        loss.backward()
        step_(optimizers, network, scaler, recipe.gradient_norm)
        return loss  # type: ignore[no-any-return]

    return _time_steps(job, learn) / len(lightness)


def _make_crops(job: SearchJob, device: torch.device) -> Tensor:
    """L (N, 1, S, S) of a batch, at random."""
    side = _crop_side(job)
    return torch.rand(job.run.settings.distil.distil_batch_size, 1, side, side, device=device)


def _time_steps(job: SearchJob, step: Callable[[], Tensor]) -> float:
    """Seconds of a step, whose answer is waited for."""
    with torch_threads(job.run.settings.machine.threads):
        step().item()  # the first one prepares what the others use
        started = time.monotonic()
        for _ in range(_STEPS):
            step().item()  # waits for a GPU
    return (time.monotonic() - started) / _STEPS
