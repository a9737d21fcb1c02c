"""What each part of distillation is worth, measured by changing it.

    python -m benchmarks.studies.distillation_levers best.pt plan.json --data photos -o levers

One student, the same crops, each lever of its training in turn left out or put in, with several seeds. And the pruned
best.pt as the start of a fine-tuning, against the same channels from scratch. Scores are on the validation photographs.
"""

from __future__ import annotations

import copy
import itertools
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorpress.cli import config_options, run_command
from colorpress.config import (
    ArchConfig,
    DataConfig,
    MachineConfig,
    PruneConfig,
    Settings,
    StudentConfig,
)
from colorpress.console import set_quiet
from colorpress.errors import ConfigError
from colorpress.files import locked_folder, write_json
from colorpress.pipeline import adopt_checkpoint, find_photos
from colorpress.run_folder import Run
from colorpress.student_job import StudentJob
from compress.distillation import DistilTask, distil_network
from compress.pruning import prune_network
from compress.student import build_student
from compress.student_plan import read_student_network
from compress.yardstick import Score
from training.colour_classes import CLASSES_PER_AXIS, class_loss
from training.network import ColorNetwork
from training.task import Batch, Task
from training.unet import UNet, UNetPlan, count_parameters

_NAME = "python -m benchmarks.studies.distillation_levers"
_PATH = click.Path(path_type=Path)
Way = Callable[[int], tuple[ColorNetwork, Score]]
_HINT_WEIGHT, _CLASS_WEIGHT = 0.02, 0.05


class FullSizeTask(DistilTask):
    """The same loss, but on every pixel of an answer that is up-sampled to the size of the crop."""

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network, teacher_weight)
        self.stride = 1


class _FeatureTask(DistilTask):
    """Beside the loss, something is asked of the features that the student's head reads, at its output stride."""

    network: UNet

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network, teacher_weight)
        self.features: list[Tensor] = []

        def keep(head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Validation asks the network too.
            if head.training:
                self.features.append(inputs[0])

        self.network.head.register_forward_pre_hook(keep)

    @property
    def channels(self) -> int:
        return self.network.head.in_channels

    def _take_features(self) -> Tensor:
        return self.features.pop()


class HintTask(_FeatureTask):
    """Hints: features of best.pt that have the student's output stride, told by a 1x1 convolution (FitNets, 2015).

    Of all layers whose answer has that stride the one that is computed last is taken: it has seen most.
    """

    def __init__(self, network: ColorNetwork, teacher_weight: float, *, teacher: ColorNetwork) -> None:
        super().__init__(network, teacher_weight)
        # In a list, so that it is no part of what is trained or saved.
        self.teacher = [teacher.eval()]
        layer, channels = find_layer_of_stride(teacher, network.output_stride)
        self.heard: list[Tensor] = []
        layer.register_forward_hook(lambda _, inputs, answer: self.heard.append(answer.detach()))
        self.scale = nn.BatchNorm2d(channels, affine=False)
        self.tell = nn.Conv2d(self.channels, channels, 1)

    def forward(self, lightness: Tensor) -> Any:
        answer, told = super().forward(lightness), self.tell(self._take_features())
        self.heard.clear()
        with torch.no_grad():
            self.teacher[0](lightness)
        # A layer that is called at several sizes is heard at each of them.
        wanted = self.scale([heard for heard in self.heard if heard.shape[-2:] == told.shape[-2:]][-1].float())
        return answer, F.mse_loss(told.float(), wanted)

    def loss(self, answered: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        answer, hint = answered
        loss, l1 = super().loss(answer, batch)
        return loss + _HINT_WEIGHT * hint, l1


class ClassTask(_FeatureTask):
    """The second task of the original's training, at the student's output stride."""

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network, teacher_weight)
        self.classes = nn.Conv2d(self.channels, CLASSES_PER_AXIS**2, 1)

    def forward(self, lightness: Tensor) -> Any:
        answer = super().forward(lightness)
        return answer, self.classes(self._take_features())

    def loss(self, answered: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        answer, logits = answered
        loss, l1 = super().loss(answer, batch)
        return loss + _CLASS_WEIGHT * class_loss(logits, batch.ab, self.network.output_stride), l1


def find_layer_of_stride(network: ColorNetwork, stride: int) -> tuple[nn.Module, int]:
    """The layer computed last whose answer is at 1 / `stride` of the size, and its channels; no head of two."""
    side = network.size_multiple * 2 * stride
    found: list[tuple[nn.Module, int]] = []

    def watch(layer: nn.Module, _: Any, answer: Any) -> None:
        if (
            isinstance(answer, Tensor)
            and answer.ndim == 4
            and answer.shape[-1] * stride == side
            and answer.shape[1] > 2
        ):
            found.append((layer, answer.shape[1]))

    leaves = [module for module in network.modules() if not list(module.children())]
    hooks = [leaf.register_forward_hook(watch) for leaf in leaves]
    try:
        with torch.no_grad():
            network.eval()(torch.zeros(1, 1, side, side))
    finally:
        for hook in hooks:
            hook.remove()
    if not found:
        raise ConfigError(
            "plan", None, f"best.pt has no layer at 1/{stride} of the size to give hints", "leave hints out"
        )
    return found[-1]


@dataclass(frozen=True)
class Lever:
    """One change of how a student learns.

    Attributes:
        recipe: other values of the recipe.
        teacher_weight: another one than that of the recipe.
        make_task: another loss; what beside the network has weights is trained too and thrown away.
        train_share: of the training photographs that are looked at.
    """

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    teacher_weight: float | None = None
    make_task: Callable[[ColorNetwork, float], Task] = DistilTask
    train_share: float = 1.0


def list_levers(teacher: ColorNetwork) -> tuple[Lever, ...]:
    """The recipe itself, and its changes."""
    return (
        Lever("recipe"),
        Lever("truth alone", teacher_weight=0.0),
        Lever("best.pt's answer alone", teacher_weight=1.0),
        Lever("same tones", recipe={"tone_jitter": 0.0}),
        Lever("one scale", recipe={"crop_share": 1.0}),
        Lever("last weights, no average", recipe={"ema_decay": 0.0}),
        Lever("constant learning rate", recipe={"schedule": "constant"}),
        Lever("half the learning rate", recipe={"learning_rate": 4e-3}),
        Lever("twice the learning rate", recipe={"learning_rate": 1.6e-2}),
        Lever("half the photographs", train_share=0.5),
        Lever("loss at full size", make_task=FullSizeTask),
        Lever("colour classes too", make_task=ClassTask),
        Lever("hints of best.pt's features", make_task=partial(HintTask, teacher=teacher)),
    )


@dataclass(frozen=True)
class LeverJob(StudentJob):
    """All trainings of a comparison, `crops` crops long each."""

    crops: int

    def learn(self, lever: Lever, start: ColorNetwork, seed: int, crops: int) -> tuple[ColorNetwork, Score]:
        """Distil a copy of a network, and score it."""
        settings = self.run.settings
        train = self.photos.train[: max(1, round(lever.train_share * len(self.photos.train)))]
        recipe = settings.student.recipe(
            settings.train, crops=crops, photos=len(train), val_size=settings.benchmark.eval_size
        )
        weight = settings.student.student_teacher_weight if lever.teacher_weight is None else lever.teacher_weight
        distilled = distil_network(
            copy.deepcopy(start),
            self.best,
            replace(self.photos, train=train),
            self.run.folder / f"{lever.name.replace(' ', '-')}-{seed}" / "model.pt",
            replace(recipe, **lever.recipe),
            teacher_weight=weight,
            make_task=lever.make_task,
            answer_folder=self.run.answer_folder,
            answer_size=settings.benchmark.eval_size,
            data=replace(settings.data, seed=seed),
            machine=settings.machine,
            label=f"{lever.name}, seed {seed}",
            reference_l1=self.reference_l1(len(self.given.val)),
        )
        network = distilled.checkpoint.build_network()
        return network, self.yardstick.score(network)

    def learn_from_wider(self, lever: Lever, plan: UNetPlan, seed: int) -> tuple[ColorNetwork, Score]:
        """Half the crops for a student of twice the channels, of which half are pruned, and half for what is left."""
        wider = replace(plan, encoder=_doubled(plan.encoder), decoder=_doubled(plan.decoder))
        large, _ = self.learn(
            replace(lever, name=f"{lever.name}, wider"), build_student(wider, seed), seed, self.crops // 2
        )
        return self.learn(lever, prune_evenly(large, 0.5), seed, self.crops // 2)


def _doubled(levels: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(2 * width for width in level) for level in levels)


def prune_evenly(network: ColorNetwork, ratio: float) -> ColorNetwork:
    """The network without that share of each layer's channels, those of least magnitude."""
    return prune_network(network, PruneConfig(largest_share=1.0, prune_ratio=ratio, round_to=4)).network


def forget_weights(network: ColorNetwork, seed: int) -> ColorNetwork:
    """The same channels with the weights that an untrained network of its kind has."""
    fresh = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in fresh.modules():
            reset = getattr(layer, "reset_parameters", None)
            if callable(reset):
                reset()
    return fresh


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COLORPRESS"})
@click.argument("checkpoint", type=_PATH)
@click.argument("plan", type=_PATH)
@click.option("--output-dir", "-o", type=_PATH, default=Path("levers"), show_default=True, help="Where all of it goes.")
@click.option("--crops", type=click.IntRange(min=1), default=12_000, show_default=True, help="Of each training.")
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="How many trainings of each.")
@click.option("--lever", "names", multiple=True, help="Only this one; repeatable.  [default: all]")
@click.option("--pruned", type=click.FloatRange(0.01, 0.99), help="Also best.pt without this share of its channels.")
@click.option("--quiet", "-q", is_flag=True, help="No progress.")
@click.option("--debug", is_flag=True, expose_value=False, help="Show the traceback of an error.")
@config_options(ArchConfig, DataConfig, StudentConfig, MachineConfig)
def compare_levers(
    checkpoint: Path,
    plan: Path,
    output_dir: Path,
    crops: int,
    seeds: int,
    names: tuple[str, ...],
    pruned: float | None,
    quiet: bool,
    **options: Any,
) -> None:
    """Train the student of PLAN from CHECKPOINT with each lever of the recipe changed: levers.json, and a table.

    What levers.json has already is not trained again.
    """
    set_quiet(quiet)
    run = Run(output_dir, Settings.from_options(options))
    network = read_student_network(plan)
    with locked_folder(output_dir):
        adopt_checkpoint(run, checkpoint)
        job = LeverJob(run, run.best_path, find_photos(run), crops)
        ways = list_ways(job, network, pruned)
        if unknown := sorted(set(names) - set(ways)):
            raise ConfigError("option", "--lever", f"got {unknown[0]!r}", f"give one of: {', '.join(ways)}")
        path = output_dir / "levers.json"
        asked = {
            "best.pt": job.best.sha256,
            "network": network.to_dict(),
            "crops": crops,
            "pruned": pruned,
            "student": {name: str(value) for name, value in vars(run.settings.student).items()},
        }
        rows = read_rows(path, asked)
        known = {(row["lever"], row["seed"]) for row in rows}
        for seed, name in itertools.product(range(seeds), names or ways):
            if (name, seed) not in known:
                started = time.monotonic()
                learned, score = ways[name](seed)
                seconds = round(time.monotonic() - started, 1)
                params = count_parameters(learned)
                rows.append({"lever": name, "seed": seed, "params": params, "seconds": seconds, **_finite(score)})
                write_json(path, {"asked": asked, "rows": rows})
    click.echo(format_levers(rows))


def read_rows(path: Path, asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows that are in a file already; none where there is no file.

    Raises:
        ConfigError: they answer another question.
    """
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if found["asked"] != json.loads(json.dumps(asked)):
        raise ConfigError("folder", path.parent, "compares other trainings", "choose another --output-dir")
    rows: list[dict[str, Any]] = found["rows"]
    return rows


def _finite(score: Score) -> dict[str, float | None]:
    """The score with None in the place of NaN, which JSON has none of."""
    return {name: None if math.isnan(value) else value for name, value in asdict(score).items()}


def list_ways(job: LeverJob, plan: UNetPlan, pruned: float | None) -> dict[str, Way]:
    """Every training that is compared, by name: from a seed to a network and its score."""
    teacher = job.best.build_network()

    def by_lever(lever: Lever) -> Way:
        return lambda seed: job.learn(lever, build_student(plan, seed), seed, job.crops)

    ways = {lever.name: by_lever(lever) for lever in list_levers(teacher)}
    wider = Lever("from a wider one, pruned")
    ways[wider.name] = lambda seed: job.learn_from_wider(wider, plan, seed)
    if pruned is not None:
        smaller = prune_evenly(teacher, pruned)
        kept, fresh = Lever("pruned best.pt"), Lever("pruned best.pt, from scratch")
        ways[kept.name] = lambda seed: job.learn(kept, smaller, seed, job.crops)
        ways[fresh.name] = lambda seed: job.learn(fresh, forget_weights(smaller, seed), seed, job.crops)
    return ways


def format_levers(rows: Sequence[Mapping[str, Any]]) -> str:
    """The mean G of each lever over its seeds, how far they differ, and its mean difference to the recipe."""
    by_name: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        known = {name: math.nan if value is None else value for name, value in row.items()}
        by_name.setdefault(row["lever"], []).append(known)
    recipe = {row["seed"]: row["retained_colour"] for row in by_name.get("recipe", [])}
    lines = [
        "| lever | parameters | seeds | G | range | to the recipe | dL1 | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, own in by_name.items():
        kept = [row["retained_colour"] for row in own]
        paired = [row["retained_colour"] - recipe[row["seed"]] for row in own if row["seed"] in recipe]
        change = f"{np.mean(paired):+.3f}" if paired and name != "recipe" else ""
        spread = f"{min(kept):.3f}-{max(kept):.3f}"
        l1, seconds = np.mean([row["l1_delta_pct"] for row in own]), np.mean([row["seconds"] for row in own])
        cells = (
            name,
            f"{own[0]['params']:,}",
            len(own),
            f"{np.mean(kept):.3f}",
            spread,
            change,
            f"{l1:+.2f} %",
            f"{seconds:.0f}",
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], compare_levers, _NAME))
