"""What pruning is asked for and what it measures: plans within budgets, and steps with fine-tuning between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from colorpress.core.config import DATA_DRIVEN
from colorpress.core.console import say, warn
from colorpress.core.errors import ConfigError
from colorpress.core.locks import scratch_folder
from colorpress.core.machine import machine_key
from colorpress.core.processes import is_main_process, share_answer
from colorpress.core.stages import StageRecord
from compress.budgets import read_limits
from compress.distillation import ANSWERS_ALONE, DistillResult, Lesson, distil_network
from compress.importance import Evidence, load_pictures
from compress.measures import Scale, Scores
from compress.prune_plan import PrunePlan, read_plan, write_plan
from compress.pruning import (
    MeasuredLimits,
    Tuning,
    apply_pruning,
    measure_pruning,
    misses,
    plan_pruning,
    prune_in_steps,
)
from compress.ranking import count_macs
from compress.yardstick import Jury
from export.conv_latency import time_convolution
from export.graph import ExportResult, export_onnx
from export.timing import time_quickly
from training.checkpoint import Checkpoint
from training.device import choose_device
from training.fitting import forget_fit
from training.network import ColorNetwork
from training.photo_split import PhotoSplit
from training.run_folder import Run, warn_of_other_split
from training.unet import count_parameters


def prune(run: Run, checkpoint: Path, photos: PhotoSplit) -> StageRecord:
    """Prune layers and distil: pruned/plan.json, pruned/model.pt."""
    settings, folder = run.settings, run.folder / "pruned"
    given, size = read_given_plan(run), settings.count.rank_size
    # Of each step; the last one's are those of the network that is kept.
    crops = split_crops(settings.prune.finetune_crops, 1 if given else settings.prune.prune_steps)

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        teacher = run.load(checkpoint)
        warn_of_other_split(teacher, photos)
        scale = _find_scale(run, teacher, photos)
        if run.force and is_main_process():
            forget_fit(folder)

        def distil(network: ColorNetwork, destination: Path, crops: int) -> DistillResult:
            lesson = Lesson.of(run, teacher, photos, scale, crops=crops or len(photos.train))
            distilled = distil_network(network, lesson, destination, tune=crops > 0)
            say(distilled.summary())
            return distilled

        def tune(network: ColorNetwork, step: int) -> ColorNetwork:
            return distil(network, folder / f"step{step}" / "model.pt", crops[step - 1]).checkpoint.build_network()

        network = teacher.build_network()
        with scratch_folder() as trials:
            limits = prune_limits(run, teacher, trials)
            if given is None:
                plan, smaller = _choose_and_prune(run, network, photos, limits, tune)
            else:
                plan, smaller = given, apply_pruning(network, given)
                for why in misses(limits, smaller):
                    warn(f"the plan of --prune-plan misses a budget: {why}")
        pruned = measure_pruning(network, smaller, plan, height=size, width=size)
        say(pruned.summary())
        if is_main_process():
            write_plan(folder / "plan.json", plan)
        distilled = distil(smaller, folder / "model.pt", crops[-1])
        scores = _score(run, teacher, distilled, photos)
        return [folder / "plan.json", *distilled.paths], {
            **pruned.figures(),
            "val_l1_before": distilled.val_l1_before,
            "val_l1_after": distilled.val_l1_after,
            **scores.to_dict(),
        }

    used = {**vars(settings.prune), **vars(settings.distil), **vars(settings.fit)}
    used |= {"size": size, **run.arch_key(), **run.data_key(photos), **_measured_key(run), **vars(settings.score)}
    inputs = [checkpoint, *filter(None, [settings.prune.prune_plan])]
    return run.do("prune", action, inputs=inputs, settings=used)


def read_given_plan(run: Run) -> PrunePlan | None:
    """The plan of --prune-plan, if there is one.

    Raises:
        ConfigError: there is no such file; or answers are to be coarser, and nothing is to be learned.
        InputError: it is no plan.
    """
    config = run.settings.prune
    plan = read_plan(config.prune_plan) if config.prune_plan else None
    stride = plan.output_stride if plan else config.prune_output_stride
    if stride > 1 and not config.finetune_crops:
        why = f"does not go with answers at 1/{stride} of the size, whose last layer has to learn"
        raise ConfigError("option", "--finetune-crops 0", why, "give the crops that it learns from")
    return plan


def _find_scale(run: Run, teacher: Checkpoint, photos: PhotoSplit) -> Scale:
    """What the pruned network is read by, alike in all processes; said where that is to best.pt."""
    yardstick = Jury(run, teacher, photos).choosing
    scale = share_answer(yardstick.scale)
    if scale.to_best and run.settings.prune.finetune_crops:
        say(yardstick.strength.describe())
        say(f"prune: {ANSWERS_ALONE}")
    return scale


def _score(run: Run, teacher: Checkpoint, distilled: DistillResult, photos: PhotoSplit) -> Scores:
    """What the pruned network is worth, on the photographs that chose its best epoch and on others."""
    device = choose_device(run.settings.machine.device)
    network = distilled.checkpoint.build_network().to(device)
    scores = Jury(run, teacher, photos).score(lambda lightness: network(lightness.to(device)).cpu())
    say(f"pruned: {scores.describe(intervals=True)}")
    return scores


def _choose_and_prune(
    run: Run, network: ColorNetwork, photos: PhotoSplit, limits: MeasuredLimits, tune: Tuning
) -> tuple[PrunePlan, ColorNetwork]:
    """A plan within the budgets, and the network after as many steps as are asked for."""
    settings, config, size = run.settings, run.settings.prune, run.settings.count.rank_size
    looks = config.importance in DATA_DRIVEN or config.prune_strategy == "latency"
    looked_at = photos.train[: config.importance_photos] if looks else ()
    evidence = Evidence(
        pictures=load_pictures(looked_at, short_side=settings.score.eval_size, data=settings.data),
        seed=settings.data.seed,
        height=size,
        width=size,
        time_convolution=partial(time_convolution, threads=settings.machine.threads),
    )
    # Times differ from process to process, and all have to prune alike.
    plan = share_answer(lambda: plan_pruning(network, config, evidence, limits=limits))
    if limits:
        say(f"prune: a ratio of {plan.settings['prune_ratio']:.3f} meets the budgets")
    elif plan.output_stride <= network.output_stride and not any(group.removed for group in plan.groups):
        warn(
            f"nothing was pruned: --prune-ratio {config.prune_ratio} of the chosen layers, "
            f"kept to multiples of --round-to {config.round_to}, leaves every channel"
        )
    return prune_in_steps(network, plan, config, evidence, tune=tune)


def split_crops(crops: int, steps: int) -> list[int]:
    """The crops of each step, the last one's fine-tuning included: as even as can be, never fewer later on."""
    return [crops * (step + 1) // steps - crops * step // steps for step in range(steps)]


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
    limits = read_limits(settings.budget, whole={"params": count_parameters(network), "macs": macs(network)})
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
