"""The levers of a student's distillation: one change each, of its training, its shape, its length or its bits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from benchmarks.studies.distillation_levers.rounded_weights import RoundedNetwork
from benchmarks.studies.distillation_levers.student_losses import (
    AttentionLoss,
    ClassLoss,
    FullSizeLoss,
    HintLoss,
    RelationLoss,
    TeacherClassLoss,
    find_layer_of_stride,
)
from benchmarks.studies.distillation_levers.student_shapes import Shape, list_shapes, scale_widths
from benchmarks.studies.lever_rows import choose_levers
from colorpress.core.config import DistilConfig, PruneConfig
from compress.pruning import prune_network
from compress.ranking import count_macs
from compress.students.student_job import build_student
from export.controls import CONTROL_NAMES, TABLE
from training.network import ColorNetwork
from training.unet import UNetPlan, empty_unet

RECIPE, LIGHTNESS_TABLE = "recipe", CONTROL_NAMES[TABLE]
# "control" goes with each of the others.
GROUPS = ("control", "learn", "bits", "shape", "length", "recipe", "features", "start")
_WIDER = "twice the channels"
_LENGTHS = {"a quarter of": 0.25, "half of": 0.5, "twice": 2.0, "four times": 4.0}
_TEACHER_WEIGHTS = {"a quarter of": 0.25, "half of": 0.5, "three quarters of": 0.75, "all of": 1.0}
_BITS = (8, 6, 4)
# Spread of the logarithm of the crops' gamma.
_TONES = 0.2
# Of the crops, for what is learned while weights are rounded, and of the peak rate.
_ROUNDING_SHARE, _ROUNDING_RATE = 0.1, 0.1
# Any that is no seed of another row.
_OTHER_SEED = 1000


@dataclass(frozen=True)
class Lever:
    """One change of how a student learns.

    Attributes:
        group: one of `GROUPS`.
        recipe, lesson: other values of theirs; what a loss has beside the network is trained too and thrown away.
        train_share: of the training photographs that are looked at. `crops_share`: of the crops; 0 trains nothing.
        seed_shift: makes other weights at the start, and other crops, of the same seed.
        start: the network that learns, from a seed; None: the student, untrained.
        after: the name of the lever that learns first, if any.
        go_on: the network that learns, from what `after` has learned; None: that is the teacher.
    """

    name: str
    group: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    lesson: Mapping[str, Any] = field(default_factory=dict)
    train_share: float = 1.0
    crops_share: float = 1.0
    seed_shift: int = 0
    start: Callable[[int], ColorNetwork] | None = None
    after: str = ""
    go_on: Callable[[ColorNetwork], ColorNetwork] | None = None


def list_levers(
    plan: UNetPlan, teacher: ColorNetwork, distil: DistilConfig, *, side: int, pruned: float | None = None
) -> dict[str, Lever]:
    """The recipe itself, its controls, and all its changes, by name.

    Args:
        plan: of the student.
        teacher: best.pt; hints and maps only where it has features of the student's stride.
        side: of the pictures, in pixels, that multiply-accumulates are counted of.
        pruned: also best.pt itself without this share of its channels.
    Returns:
        In the order in which they are learned: what tells most in the least time comes first.
    """
    levers = [
        Lever(RECIPE, "control"),
        Lever(LIGHTNESS_TABLE, "control", crops_share=0.0),
        Lever("recipe, other chance", "control", seed_shift=_OTHER_SEED),
        Lever("truth alone", "control", lesson={"teacher_weight": 0.0}),
        *_list_lessons(plan, distil.teacher_weight),
        *_list_bits(distil.distil_learning_rate),
        *_list_shapes(plan, side),
        *(Lever(f"{name} the crops", "length", crops_share=share) for name, share in _LENGTHS.items()),
        *_list_recipes(distil),
        *_list_features(plan, teacher),
        Lever(
            "from a wider one, pruned", "start", crops_share=0.5, after=_WIDER, go_on=partial(prune_evenly, ratio=0.5)
        ),
    ]
    if pruned is not None:
        smaller, name = prune_evenly(teacher, pruned), f"best.pt pruned by {pruned:g}"
        levers.append(Lever(name, "start", start=lambda seed: smaller))
        levers.append(Lever(f"{name}, from scratch", "start", start=partial(forget_weights, smaller)))
    return {lever.name: lever for lever in levers}


def _list_lessons(plan: UNetPlan, teacher_weight: float) -> list[Lever]:
    """What is learned."""
    wider = partial(build_student, scale_widths(plan, 2.0))
    return [
        *(
            Lever(f"{name} the loss from best.pt", "learn", lesson={"teacher_weight": weight})
            for name, weight in _TEACHER_WEIGHTS.items()
            if weight != teacher_weight
        ),
        Lever("colour classes too", "learn", lesson={"make_loss": ClassLoss}),
        Lever("best.pt's colour classes too", "learn", lesson={"make_loss": TeacherClassLoss}),
        Lever(_WIDER, "learn", crops_share=0.5, start=wider),
        Lever("taught by a wider one", "learn", crops_share=0.5, after=_WIDER),
    ]


def _list_features(plan: UNetPlan, teacher: ColorNetwork) -> list[Lever]:
    """What needs best.pt's features of each crop, each time: several times as long as the student's own work."""
    losses: dict[str, Callable[..., Any]] = {}
    if found := find_layer_of_stride(teacher, plan.output_stride):
        layer, channels = found
        losses["hints of best.pt's features"] = partial(HintLoss, teacher=teacher, layer=layer, channels=channels)
        losses["attention of best.pt"] = partial(AttentionLoss, teacher=teacher, layer=layer)
        losses["relations of best.pt"] = partial(RelationLoss, teacher=teacher, layer=layer)
    return [Lever(name, "features", lesson={"make_loss": loss}) for name, loss in losses.items()]


def _list_shapes(plan: UNetPlan, side: int) -> list[Lever]:
    """Other students with as much to compute."""
    macs = count_macs(empty_unet(plan), height=side, width=side)

    def build(shape: Shape, seed: int) -> ColorNetwork:
        return shape.build_alike(macs, side, seed)

    return [Lever(name, "shape", start=partial(build, shape)) for name, shape in list_shapes(plan).items()]


def _list_bits(learning_rate: float) -> list[Lever]:
    """What the recipe has learned in fewer bits: rounded, or learned on while rounded, beside as much without."""
    further = {"learning_rate": _ROUNDING_RATE * learning_rate}
    ways: dict[str, Callable[[ColorNetwork], ColorNetwork]] = {
        f"{bits} bits": partial(RoundedNetwork, bits=bits) for bits in _BITS
    }
    rounded = [
        Lever(f"{name}, rounded", "bits", crops_share=0.0, after=RECIPE, go_on=go_on) for name, go_on in ways.items()
    ]
    return rounded + [
        Lever(f"{name}, a tenth more crops", "bits", further, crops_share=_ROUNDING_SHARE, after=RECIPE, go_on=go_on)
        for name, go_on in {**ways, "float": copy.deepcopy}.items()
    ]


def _list_recipes(distil: DistilConfig) -> list[Lever]:
    """How it is learned."""
    rate = distil.distil_learning_rate
    changes: dict[str, dict[str, Any]] = {
        **(
            {"same tones": {"tone_jitter": 0.0}}
            if distil.distil_tone_jitter
            else {"many tones": {"tone_jitter": _TONES}}
        ),
        "the crops of one epoch": {"fresh_epochs": 1},
        "one scale": {"crop_share": 1.0},
        "one size": {"size_jitter": 0.0},
        # Shown again they would be as small again.
        "growing crops": {"start_imgsz": max(16, distil.distil_imgsz // 3), "fresh_epochs": 0},
        "last weights, no average": {"ema_decay": 0.0},
        "AdamW for all weights": {"optimizer": "adamw"},
        "constant learning rate": {"schedule": "constant"},
        "half the learning rate": {"learning_rate": rate / 2},
        "twice the learning rate": {"learning_rate": rate * 2},
    }
    return [
        *(Lever(name, "recipe", recipe=change) for name, change in changes.items()),
        Lever("half the photographs", "recipe", train_share=0.5),
        Lever("loss at full size", "recipe", lesson={"make_loss": FullSizeLoss}),
    ]


def pick_levers(levers: Mapping[str, Lever], names: Sequence[str], groups: Sequence[str]) -> list[str]:
    """Those of --lever and --group, or all; each behind the one that learns first. A group brings the controls.

    Raises:
        ConfigError: there is no such lever.
    """
    wanted = {*groups, "control"} if groups else set() if names else set(GROUPS)
    chosen = choose_levers(names, levers) if names else []
    chosen += [name for name, lever in levers.items() if lever.group in wanted]
    behind = [each for name in chosen for each in (levers[name].after, name) if each]
    return list(dict.fromkeys(behind))


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
