"""What each part of distillation is worth, measured by changing it.

    python -m benchmarks.studies.distillation_levers best.pt plan.json --data photos -o levers

One student, the same crops, each lever of its training in turn left out or put in, with several seeds. And the pruned
best.pt as the start of a fine-tuning, against the same channels from scratch. Scores are on the validation photographs
that did not choose the epochs, where there are any.
"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.studies.lever_rows import Row, choose_levers, learn_rows
from colorpress.cli import run_command
from colorpress.command_options import PATH, config_options, debug_option, quiet_option
from colorpress.core.config import PruneConfig, Settings
from colorpress.core.files import with_nan, without_nan
from colorpress.core.locks import locked_folder
from colorpress.core.source_code import hash_code
from compress.distillation import DistilLoss, Lesson, distil_network
from compress.measures import MEASURES, Score
from compress.pruning import prune_network
from compress.students.student_job import MOST_CHOOSING, StudentJob, build_student
from compress.students.student_plan import read_student_network
from training.losses import CLASSES_PER_AXIS, Batch, class_cross_entropy
from training.network import ColorNetwork, pad_to_multiple
from training.original import adopt_checkpoint
from training.run_folder import Run, find_photos
from training.unet import UNet, UNetPlan, count_parameters

_NAME = "python -m benchmarks.studies.distillation_levers"
_HINT_WEIGHT, _CLASS_WEIGHT = 0.02, 0.05
_CROPS_HELP = "Of each training, in epochs of 8,000."


class FullSizeLoss(DistilLoss):
    """The same loss, but on every pixel of an answer that is up-sampled to the size of the crop."""

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network, teacher_weight)
        self.stride = 1


class _FeatureLoss(DistilLoss):
    """Beside the loss, a 1x1 convolution tells something of the features that the student's head reads.

    It starts from zero: it knows nothing, and what comes after it draws the same random numbers.

    Args:
        channels: that it tells, at the student's output stride.
    """

    network: UNet

    def __init__(self, network: ColorNetwork, teacher_weight: float, channels: int) -> None:
        super().__init__(network, teacher_weight)
        self.features: list[Tensor] = []
        self.tell = nn.Conv2d(self.network.head.in_channels, channels, 1)
        for parameter in self.tell.parameters():
            nn.init.zeros_(parameter)

        def keep(head: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            # Validation asks the network too.
            if head.training:
                self.features.append(inputs[0])

        self.network.head.register_forward_pre_hook(keep)

    def forward(self, lightness: Tensor) -> Any:
        """The answer, and what the convolution tells."""
        answer = super().forward(lightness)
        return answer, self.tell(self.features.pop())  # (N, channels, S / stride, S / stride, rounded up)


class HintLoss(_FeatureLoss):
    """Hints: features of best.pt that have the student's output stride (FitNets, 2015).

    Args:
        teacher: best.pt, on the device of the network.
        layer, channels: whose answer is told, and how many it has.
    """

    def __init__(
        self, network: ColorNetwork, teacher_weight: float, *, teacher: ColorNetwork, layer: nn.Module, channels: int
    ) -> None:
        super().__init__(network, teacher_weight, channels)
        # In a tuple, so that they are no part of what is trained or saved.
        self.asked = (teacher.eval(), layer)
        self.scale = nn.BatchNorm2d(channels, affine=False)

    def forward(self, lightness: Tensor) -> Any:
        """The answer, and how far the convolution is from the teacher's features."""
        answer, told = super().forward(lightness)
        teacher, layer = self.asked
        # As far as the one of them that needs more.
        padded = pad_to_multiple(lightness, max(teacher.size_multiple, self.network.size_multiple))
        with torch.no_grad(), _listening(layer) as heard:
            teacher.to(lightness.device)(padded)
        # A layer that is called at several sizes is heard at each of them.
        side = padded.shape[-1] // self.network.output_stride
        wanted = [features for _, features in heard if features.shape[-1] == side][-1]  # (N, channels, side, side)
        return answer, F.mse_loss(told.float(), self.scale(wanted[..., : told.shape[-2], : told.shape[-1]].float()))

    def loss(self, answered: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        answer, hint = answered
        loss, l1 = super().loss(answer, batch)
        return loss + _HINT_WEIGHT * hint, l1


class ClassLoss(_FeatureLoss):
    """The second loss of the original's training, at the student's output stride."""

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network, teacher_weight, CLASSES_PER_AXIS**2)

    def loss(self, answered: Any, batch: Batch) -> tuple[Tensor, Tensor]:
        answer, logits = answered
        loss, l1 = super().loss(answer, batch)
        return loss + _CLASS_WEIGHT * class_cross_entropy(logits, batch.ab, self.network.output_stride), l1


@contextmanager
def _listening(*layers: nn.Module) -> Iterator[list[tuple[nn.Module, Any]]]:
    """A list that gets each of the layers with its answer, as they answer within the block."""
    heard: list[tuple[nn.Module, Any]] = []
    hooks = [layer.register_forward_hook(lambda each, _, answer: heard.append((each, answer))) for layer in layers]
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()


def find_layer_of_stride(network: ColorNetwork, stride: int) -> tuple[nn.Module, int] | None:
    """The layer that answers at 1 / `stride` of the size, and its channels: of several the last, which has seen most.

    The answer's own layer, of two channels, is none; None where there is no other.
    """
    side = network.size_multiple * 2 * stride
    leaves = [module for module in network.modules() if not list(module.children())]
    with torch.no_grad(), _listening(*leaves) as heard:
        network.eval()(torch.zeros(1, 1, side, side))
    maps = [(layer, each) for layer, each in heard if isinstance(each, Tensor) and each.ndim == 4]
    found = [(layer, each.shape[1]) for layer, each in maps if each.shape[-1] * stride == side and each.shape[1] > 2]
    return found[-1] if found else None


@dataclass(frozen=True)
class Lever:
    """One change of how a student learns.

    Attributes:
        recipe, lesson: other values of theirs; what a loss has beside the network is trained too and thrown away.
        train_share: of the training photographs that are looked at. `crops_share`: of the crops.
        start: the network that learns, from a seed; None: the student, untrained.
    """

    name: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    lesson: Mapping[str, Any] = field(default_factory=dict)
    train_share: float = 1.0
    crops_share: float = 1.0
    start: Callable[[int], ColorNetwork] | None = None


@dataclass(frozen=True)
class LeverJob(StudentJob):
    """All trainings of a comparison: the student, and how many crops each training takes, in whole epochs."""

    plan: UNetPlan
    crops: int

    def learn(self, lever: Lever, seed: int) -> tuple[ColorNetwork, Score]:
        """Distil a network, and score it."""
        settings = self.run.settings
        start = lever.start(seed) if lever.start else build_student(self.plan, seed)
        train = self.photos.train[: max(1, round(lever.train_share * len(self.photos.train)))]
        photos = replace(self.photos, train=train).limit_halves(MOST_CHOOSING)
        lesson = Lesson.of(self.run, self.best, photos, crops=int(lever.crops_share * self.crops))
        recipe, data = replace(lesson.recipe, **lever.recipe), replace(settings.data, seed=seed)
        lesson = replace(lesson, recipe=recipe, data=data, scale=self.jury.choosing.scale(), **lever.lesson)
        destination = self.run.folder / f"{lever.name.replace(' ', '-')}-{seed}" / "model.pt"
        distilled = distil_network(copy.deepcopy(start), lesson, destination, label=f"{lever.name}, seed {seed}")
        network = distilled.checkpoint.build_network()
        return network, self.jury.score(network).reported


def list_levers(job: LeverJob, pruned: float | None) -> dict[str, Lever]:
    """The recipe itself, and its changes, by name.

    Hints only where best.pt has features of the student's stride; best.pt itself without the share `pruned` of its
    channels, where that is given.
    """
    teacher, learning_rate = job.best.build_network(), job.run.settings.distil.distil_learning_rate
    levers = [
        Lever("recipe"),
        Lever("truth alone", lesson={"teacher_weight": 0.0}),
        Lever("best.pt's answer alone", lesson={"teacher_weight": 1.0}),
        Lever("same tones", recipe={"tone_jitter": 0.0}),
        Lever("one scale", recipe={"crop_share": 1.0}),
        Lever("one size", recipe={"size_jitter": 0.0}),
        Lever("growing crops", recipe={"start_imgsz": max(16, job.run.settings.distil.distil_imgsz // 3)}),
        Lever("last weights, no average", recipe={"ema_decay": 0.0}),
        Lever("constant learning rate", recipe={"schedule": "constant"}),
        Lever("half the learning rate", recipe={"learning_rate": learning_rate / 2}),
        Lever("twice the learning rate", recipe={"learning_rate": learning_rate * 2}),
        Lever("half the photographs", train_share=0.5),
        Lever("loss at full size", lesson={"make_loss": FullSizeLoss}),
        Lever("colour classes too", lesson={"make_loss": ClassLoss}),
    ]
    if found := find_layer_of_stride(teacher, job.plan.output_stride):
        hints = partial(HintLoss, teacher=teacher, layer=found[0], channels=found[1])
        levers.append(Lever("hints of best.pt's features", lesson={"make_loss": hints}))
    levers.append(Lever("from a wider one, pruned", start=partial(learn_wider, job), crops_share=0.5))
    if pruned is not None:
        smaller, name = prune_evenly(teacher, pruned), f"best.pt pruned by {pruned:g}"
        levers.append(Lever(name, start=lambda seed: smaller))
        levers.append(Lever(f"{name}, from scratch", start=partial(forget_weights, smaller)))
    return {lever.name: lever for lever in levers}


def learn_wider(job: LeverJob, seed: int) -> ColorNetwork:
    """A student of twice the channels that learns from half the crops, then without half of its channels."""
    levels = (job.plan.encoder, job.plan.decoder)
    encoder, decoder = (tuple(tuple(2 * width for width in level) for level in each) for each in levels)
    wider = partial(build_student, replace(job.plan, encoder=encoder, decoder=decoder))
    large, _ = job.learn(Lever("from a wider one, pruned, wider", start=wider, crops_share=0.5), seed)
    return prune_evenly(large, 0.5)


def prune_evenly(network: ColorNetwork, ratio: float) -> ColorNetwork:
    """The network without that share of each layer's channels, those of least magnitude."""
    return prune_network(network, PruneConfig(largest_share=1.0, prune_ratio=ratio, round_to=4)).network


def forget_weights(network: ColorNetwork, seed: int) -> ColorNetwork:
    """The same channels with the weights that an untrained network of its kind has."""
    fresh = copy.deepcopy(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in fresh.modules():
            if reset := getattr(layer, "reset_parameters", None):
                reset()
    return fresh


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COLORPRESS"})
@click.argument("checkpoint", type=PATH)
@click.argument("plan", type=PATH)
@click.option("--output-dir", "-o", type=PATH, default=Path("levers"), show_default=True, help="Where all of it goes.")
@click.option("--crops", type=click.IntRange(min=1), default=16_000, show_default=True, help=_CROPS_HELP)
@click.option("--seeds", type=click.IntRange(min=1), default=2, show_default=True, help="How many trainings of each.")
@click.option("--lever", "names", multiple=True, help="Only this one; repeatable.  [default: all]")
@click.option("--pruned", type=click.FloatRange(0.01, 0.99), help="Also best.pt without this share of its channels.")
@quiet_option
@debug_option
@config_options("arch", "data", "further", "distil", "score", "machine")
def compare_levers(
    checkpoint: Path,
    plan: Path,
    output_dir: Path,
    crops: int,
    seeds: int,
    names: tuple[str, ...],
    pruned: float | None,
    **options: Any,
) -> None:
    """Train the student of PLAN from CHECKPOINT with each lever of the recipe changed: levers.json, and a table.

    What levers.json has already is not trained again.
    """
    run = Run(output_dir, Settings.from_options(options))
    network = read_student_network(plan)
    with locked_folder(output_dir):
        photos = find_photos(run)
        adopt_checkpoint(run, checkpoint, photos)
        job = LeverJob(run, photos, network, crops)
        levers = list_levers(job, pruned)

        def learn(name: str, seed: int) -> list[Row]:
            learned, score = job.learn(levers[name], seed)
            return [{"params": count_parameters(learned), **without_nan(asdict(score))}]

        chosen = choose_levers(names, levers)
        rows = learn_rows(output_dir / "levers.json", describe_question(job), chosen, seeds, learn)
    click.echo(format_levers(rows))


def describe_question(job: LeverJob) -> dict[str, Any]:
    """What all rows of levers.json have in common, JSON-ready."""
    run, settings = job.run, job.run.settings
    used = {**vars(settings.distil), **vars(settings.further), **vars(settings.score), **run.arch_key()}
    return {
        "best.pt": job.best.sha256,
        "network": job.plan.to_dict(),
        "crops": job.crops,
        "photographs": run.data_key(job.photos),
        "settings": {name: str(value) for name, value in used.items()},
        "code": hash_code("benchmarks.studies.distillation_levers"),
    }


def format_levers(rows: Sequence[Mapping[str, Any]]) -> str:
    """What each lever keeps over its seeds in the mean, how far they differ, and the mean difference to the recipe."""
    frame, measure = pd.DataFrame([with_nan(row) for row in rows]), MEASURES[rows[0]["measure"]]
    recipe = frame[frame["lever"] == "recipe"].set_index("seed")[measure.name]
    frame["change"] = frame[measure.name] - frame["seed"].map(recipe)
    head = f"| lever | parameters | seeds | {measure.symbol} | range | to the recipe | dL1 |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for name, own in frame.groupby("lever", sort=False):
        kept, change = own[measure.name], own["change"].mean()
        shown = "" if name == "recipe" or math.isnan(change) else f"{change:+.3f}"
        cells = f"{kept.mean():.3f} | {kept.min():.3f}-{kept.max():.3f} | {shown} | {own['l1_delta_pct'].mean():+.2f} %"
        lines.append(f"| {name} | {own['params'].iloc[0]:,} | {len(own)} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], compare_levers, _NAME))
