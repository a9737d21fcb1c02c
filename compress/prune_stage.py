"""What pruning is asked for and what it measures: plans within budgets, and steps with fine-tuning between them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from colorpress.core.config import DATA_DRIVEN
from colorpress.core.console import say, warn
from colorpress.core.files import without_nan
from colorpress.core.machine import machine_key
from colorpress.core.processes import is_main_process, share_answer
from colorpress.core.stages import StageRecord
from compress.budgets import read_limits
from compress.distillation import DistillResult, Lesson, distil_network
from compress.importance import load_pictures
from compress.prune_budget import MeasuredLimits, misses
from compress.prune_plan import PrunePlan, read_plan, write_plan
from compress.pruning import PruneResult, apply_pruning, measure_pruning, plan_pruning, prune_in_steps
from compress.ranking import count_macs
from export.conv_latency import time_convolution
from export.graph import ExportResult, export_onnx
from export.timing import time_quickly
from training.checkpoint import Checkpoint
from training.fitting import forget_fit
from training.network import ColorNetwork
from training.photos import PhotoSplit
from training.run_folder import Run, warn_of_other_split
from training.unet import count_parameters

# A network and the passes over the photographs that it gets: the network of its best epoch.
StepTuning = Callable[[ColorNetwork, int, int], ColorNetwork]


def prune(run: Run, checkpoint: Path, photos: PhotoSplit) -> StageRecord:
    """Prune the largest layers and distil: pruned/plan.json, pruned/model.pt."""
    settings, folder = run.settings, run.folder / "pruned"
    given, size = settings.prune.prune_plan, settings.count.rank_size

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        teacher = run.load(checkpoint)
        warn_of_other_split(teacher, photos)
        if run.force and is_main_process():
            forget_fit(folder / "last.pt")

        def distil(network: ColorNetwork, destination: Path, epochs: int) -> DistillResult:
            finetune = replace(settings.finetune, finetune_epochs=epochs)
            recipe = finetune.recipe(settings.fit, val_size=settings.score.eval_size)
            lesson = Lesson.of(run, teacher, photos, recipe, teacher_weight=finetune.teacher_weight)
            distilled = distil_network(network, lesson, destination, tune=epochs > 0)
            say(distilled.summary())
            return distilled

        def tune(network: ColorNetwork, step: int, epochs: int) -> ColorNetwork:
            return distil(network, folder / f"step{step}" / "model.pt", epochs).checkpoint.build_network()

        pruned = prune_checkpoint(run, teacher, photos, tune)
        say(pruned.summary())
        if is_main_process():
            write_plan(folder / "plan.json", pruned.plan)
        steps = 1 if given else settings.prune.prune_steps
        epochs = split_epochs(settings.finetune.finetune_epochs, steps)[-1]
        distilled = distil(pruned.network, folder / "model.pt", epochs)
        scores = {name: getattr(distilled, name) for name in ("val_l1_before", "val_l1_after", "retained_colour")}
        result = {**pruned.figures(), **without_nan(scores)}
        return [folder / "plan.json", *distilled.paths], result

    used = {**vars(settings.prune), **vars(settings.finetune), **vars(settings.fit), "size": size}
    used |= {**run.arch_key(), **run.data_key(photos), **_measured_key(run), **vars(settings.score)}
    inputs = [checkpoint] if given is None else [checkpoint, given]
    return run.do("prune", action, inputs=inputs, settings=used)


def prune_checkpoint(run: Run, teacher: Checkpoint, photos: PhotoSplit, tune: StepTuning) -> PruneResult:
    """Choose a plan within the budgets and carry it out, in steps where they are asked for; or the plan that is given.

    Args:
        tune: fine-tunes the network of a step between two: (network, number of the step from 1, epochs). It is not
            asked after the last step.
    """
    settings, network = run.settings, teacher.build_network()
    config, size = settings.prune, settings.count.rank_size
    with tempfile.TemporaryDirectory(prefix="colorpress-prune-") as folder:
        limits = prune_limits(run, teacher, Path(folder))
        if config.prune_plan is None:
            plan, pruned = _choose_and_prune(run, network, photos, limits, tune)
        else:
            plan = read_plan(config.prune_plan)
            pruned = apply_pruning(network, plan)
            for why in misses(limits, pruned):
                warn(f"the plan of --prune-plan misses a budget: {why}")
    return measure_pruning(network, pruned, plan, height=size, width=size)


def _choose_and_prune(
    run: Run, network: ColorNetwork, photos: PhotoSplit, limits: MeasuredLimits, tune: StepTuning
) -> tuple[PrunePlan, ColorNetwork]:
    settings, seed = run.settings, run.settings.data.seed
    config, size = settings.prune, settings.count.rank_size
    looks = config.importance in DATA_DRIVEN or config.prune_strategy == "latency"
    looked_at = photos.train[: config.importance_photos] if looks else ()
    pictures = load_pictures(looked_at, short_side=settings.score.eval_size, data=settings.data)
    # Times differ from process to process, and all have to prune alike.
    plan = share_answer(
        lambda: plan_pruning(
            network,
            config,
            seed=seed,
            height=size,
            width=size,
            pictures=pictures,
            limits=limits,
            time_convolution=partial(time_convolution, threads=settings.machine.threads),
        )
    )
    if limits:
        say(f"prune: a ratio of {plan.settings['prune_ratio']:.3f} meets the budgets")
    epochs = split_epochs(settings.finetune.finetune_epochs, config.prune_steps)
    return prune_in_steps(
        network, plan, config, seed=seed, pictures=pictures, tune=lambda each, step: tune(each, step, epochs[step - 1])
    )


def split_epochs(epochs: int, steps: int) -> list[int]:
    """The epochs of each step, the last one's fine-tuning included: as even as can be, never fewer later on."""
    return [epochs * (step + 1) // steps - epochs * step // steps for step in range(steps)]


def prune_limits(run: Run, original: Checkpoint, folder: Path) -> MeasuredLimits:
    """The budgets of the pruned network, and how each is measured.

    Args:
        folder: where networks are exported to be weighed and timed.
    """
    settings, size = run.settings, run.settings.count.rank_size

    def macs(network: ColorNetwork) -> int:
        return count_macs(network, height=size, width=size)

    @lru_cache(maxsize=1)
    def exported(network: ColorNetwork) -> ExportResult:
        # As long a description as the published file's, so that it is not larger.
        described = replace(original, sha256="0" * 64, val_l1=0.0123456789)
        trial = replace(described, architecture=network.architecture, state_dict=network.state_dict())
        return export_onnx(trial, folder / "model.onnx", settings.export)

    def latency_ms(network: ColorNetwork) -> float:
        return time_quickly(exported(network).path, size=settings.time.bench_size[0], threads=settings.machine.threads)

    measures: dict[str, Callable[[ColorNetwork], float]] = {
        "params": count_parameters,
        "macs": macs,
        "size_bytes": lambda network: exported(network).size_bytes,
        "latency_ms": latency_ms,
    }
    network = original.build_network()
    limits = read_limits(settings.budget, params=count_parameters(network), macs=macs(network))
    return {limit: measures[limit.figure] for limit in limits}


def _measured_key(run: Run) -> dict[str, Any]:
    """What a plan depends on beside its config: budgets, and how what they ask for is measured."""
    settings, budgets = run.settings, run.settings.budget.given()
    used: dict[str, Any] = {"budget": budgets}
    if {"target_size", "target_latency_ms"} & budgets.keys():
        used |= {"export": vars(settings.export)}
    if "target_latency_ms" in budgets or settings.prune.prune_strategy == "latency":
        used |= {
            "machine": machine_key(),
            "threads": settings.machine.threads,
            "bench_size": settings.time.bench_size[0],
        }
    return used
