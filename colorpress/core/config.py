"""Every knob of colorpress: one frozen dataclass per stage, read by the command line, TOML files and Python alike.

They live together and import nothing heavy, so that the command line can build its options (names, ranges, help
and defaults) from them without loading torch. Each value is checked when a config is made.
"""

from __future__ import annotations

import difflib
import json
import math
import re
import shlex
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields, replace
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

from colorpress.core.errors import ConfigError, printable

# The effective options of a run folder.
RESOLVED_OPTIONS = "config.resolved.toml"


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    units: Mapping[str, float] | None = None,
    commas: bool = False,
    alias: str = "",
    common: bool = False,
) -> Any:
    """A config field: its default, one line of help, and the values it allows (`low` and `high` included).

    A default that is a tuple makes it a list, and what is allowed holds for each item. On the command line a number may
    carry one of `units`, each with its factor.

    Args:
        commas: a list of texts is written with commas; so are those of numbers and of choices.
        alias: a second name, such as "max-size", on commands where it is free.
        common: among the options that people set first, which `colorpress run --help` shows.
    """
    allowed = {"low": low, "high": high, "choices": choices, "units": units, "commas": commas}
    return field(default=default, metadata={"help": help, "alias": alias, "common": common, **allowed})


@dataclass(frozen=True)
class Config:
    """Base of all configs: checks every field against the values its `option` allows.

    Raises:
        ConfigError: a value is outside its range; the message names the option, the value and the range.
    """

    def __post_init__(self) -> None:
        for each in fields(self):
            check_value(type(self), each, getattr(self, each.name))


def option_name(field_name: str) -> str:
    """The name of a field on the command line and in TOML: `batch_size` is `batch-size`."""
    return field_name.replace("_", "-")


def check_value(config: type[Config], each: Field[Any], value: Any) -> None:
    """Refuse a value that is of another type than the field's, or outside the values its `option` allows.

    Raises:
        ConfigError: with the option's name, the value and what is allowed.
    """
    if value is None and each.default is None:
        return
    if not is_list(each):
        _check_item(config, each, value)
        return
    name = f"--{option_name(each.name)}"
    if not isinstance(value, tuple):
        raise ConfigError("option", name, f"got {value!r}", "give a list")
    for item in value:
        _check_item(config, each, item)
    if each.default and not value:
        raise ConfigError("option", name, "got an empty list", "give one value at least")
    if is_comma_list(config, each) and len(set(value)) < len(value):
        raise ConfigError("option", name, f"got {list(value)}", "give each value once")


def _check_item(config: type[Config], each: Field[Any], value: Any) -> None:
    low, high, choices = (each.metadata.get(key) for key in ("low", "high", "choices"))
    name, kind = f"--{option_name(each.name)}", field_type(config, each)
    if choices:
        if value not in choices:
            raise ConfigError("option", name, f"got {value!r}", f"choose one of: {', '.join(choices)}")
        return
    if kind not in (int, float):
        if not isinstance(value, kind):
            raise ConfigError("option", name, f"got {value!r}", "give true or false" if kind is bool else "give a text")
        return
    bounds = f"at least {low}" if high is None else f"from {low} to {high}"
    noun = "a whole number" if kind is int else "a number"
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float) or math.isnan(value):
        raise ConfigError("option", name, f"got {value!r}", f"give {noun} {bounds}")
    if (low is not None and value < low) or (high is not None and value > high) or math.isinf(value):
        raise ConfigError("option", name, f"got {value}", f"give {noun} {bounds}")


# Each time that they are asked for, Python compiles the types of all fields.
_hints: dict[type[Config], dict[str, Any]] = {}


def field_type(config: type[Config], each: Field[Any]) -> Any:
    """The type of a field's values: `X` also for `X | None`, and for each item of a list."""
    if config not in _hints:
        _hints[config] = get_type_hints(config)
    hint = _hints[config][each.name]
    return next((kind for kind in get_args(hint) if kind not in (NoneType, ...)), hint)


def is_list(each: Field[Any]) -> bool:
    """Whether a field is a tuple of values rather than one."""
    return isinstance(each.default, tuple)


def is_comma_list(config: type[Config], each: Field[Any]) -> bool:
    """Whether a list is written with commas (`1,8`); one of free texts or paths is given by repeating its option."""
    free = field_type(config, each) in (str, Path) and not each.metadata["choices"]
    return is_list(each) and (each.metadata["commas"] or not free)


@dataclass(frozen=True)
class MachineConfig(Config):
    """Where work runs. Results do not depend on it beyond rounding."""

    device: str = option("auto", "Where to train and evaluate: auto, cpu, cuda or cuda:N.", common=True)
    threads: int = option(
        0, "CPU threads for training and for every timed runtime; 0: one per core.", low=0, high=1024, common=True
    )
    workers: int = option(
        1, "Processes (training) or threads (scanning) that decode photographs; 0: none.", low=0, high=256
    )


@dataclass(frozen=True)
class DataConfig(Config):
    """Which photographs, and how they are split: by source folder and content, never by crop."""

    data: Path | None = option(
        None,
        "Folder of photographs, searched recursively; default: the 55 small photographs that come along.",
        common=True,
    )
    seed: int = option(0, "Seed of the split, of initialisation, and of sampling.", low=0, high=2**31 - 1, common=True)
    val_share: float = option(
        0.1,
        "Share of photographs to validate on: one half chooses epochs, candidates and int8, the other scores them.",
        low=0.001,
        high=0.5,
    )
    test_share: float = option(0.1, "Share of photographs held out for the benchmark alone.", low=0.001, high=0.5)
    max_pixels: int = option(89_478_485, "Larger photographs are refused unread.", low=1)
    max_bad_share: float = option(
        0.01, "Fail when more than this share of the files cannot be used.", low=0.0, high=1.0
    )


@dataclass(frozen=True)
class UNetConfig(Config):
    """The original UNet."""

    base: int = option(
        32, "Channels of the first level; each deeper level has twice as many.", low=1, high=512, common=True
    )
    depth: int = option(4, "Number of times the picture is halved.", low=1, high=6)
    upsample: str = option("transpose", "How the decoder up-samples.", choices=("transpose", "bilinear", "nearest"))
    start_from: Path | None = option(
        None, "A UNet of colorpress whose training goes on with these photographs, instead of a new one."
    )


@dataclass(frozen=True)
class FitConfig(Config):
    """How the original is fitted; what learns from it takes over what `DistilConfig` leaves open."""

    batch_size: int = option(
        8, "Crops per training step, over all processes of torchrun together.", low=1, high=65_536, common=True
    )
    epoch_crops: int = option(
        64, "Crops of an epoch at least: of fewer photographs each is cropped several times.", low=1, high=10**9
    )
    crop_share: float = option(
        0.35, "Smallest share of a photograph's area that a training crop shows; the largest is 1.", low=0.01, high=1.0
    )
    size_jitter: float = option(
        0.4, "Crops of a batch are smaller or larger than asked for by up to this share.", low=0.0, high=0.9
    )
    tone_jitter: float = option(
        0.0, "Training crops are lightened or darkened: spread of the logarithm of their gamma.", low=0.0, high=2.0
    )
    dropout: float = option(
        0.0, "Share of the deepest level's channels that is dropped at random while training.", low=0.0, high=0.9
    )
    optimizer: str = option(
        "muon",
        "How weights follow their gradients; muon: those between channels by Muon, the others by AdamW.",
        choices=("muon", "adamw"),
    )
    schedule: str = option(
        "cosine", "How the learning rate falls after the warm-up.", choices=("cosine", "plateau", "constant")
    )
    warmup_share: float = option(0.1, "Share of all steps in which the learning rate rises.", low=0.0, high=0.9)
    plateau_patience: int = option(
        2, "Epochs without progress before --schedule plateau lowers the learning rate.", low=1, high=100_000
    )
    weight_decay: float = option(1e-2, "Decoupled weight decay of convolution weights.", low=0.0, high=10.0)
    gradient_norm: float = option(1.0, "Gradients are clipped to this norm.", low=1e-6, high=1e9)
    ema_decay: float = option(
        0.998,
        "Decay of the moving average of the weights (EMA), which is what is kept; 0: the weights themselves.",
        low=0.0,
        high=0.99999,
    )
    patience: int = option(0, "Stop after this many epochs without progress; 0: never.", low=0, high=100_000)
    min_delta: float = option(0.0, "Validation L1 must fall by more than this to be progress.", low=0.0, high=1.0)
    precision: str = option(
        "auto",
        "Arithmetic of training; auto: bf16 where the processor has it, else fp32. Validation is always fp32.",
        choices=("auto", "fp32", "bf16", "fp16"),
    )
    compile: bool = option(False, "Compile the network with torch.compile (needs a C++ compiler on a CPU).")


@dataclass(frozen=True)
class TrainConfig(Config):
    """How long and on what the original is trained: L to ab, L1 loss, best epoch by validation L1."""

    epochs: int = option(15, "Passes over the training photographs.", low=1, high=100_000, common=True)
    imgsz: int = option(64, "Side of the square training crops, in pixels, in the mean.", low=8, high=4096, common=True)
    start_imgsz: int = option(
        0, "The same of the first epoch, from which crops grow to --imgsz; 0: they do not.", low=0, high=4096
    )
    val_size: int = option(
        128, "Short side of the whole photographs validated on (never enlarged), in pixels.", low=8, high=4096
    )
    learning_rate: float = option(2e-3, "Peak learning rate.", low=1e-9, high=10.0, common=True)
    class_weight: float = option(
        0.05, "Weight of a second task in training, naming colour classes; 0: L1 alone.", low=0.0, high=10.0
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start_imgsz > self.imgsz:
            why = f"got {self.start_imgsz}, and crops grow to {self.imgsz}"
            raise ConfigError("option", "--start-imgsz", why, "give less than --imgsz, or 0")

    def recipe(self, fit: FitConfig) -> Recipe:
        """How the original is fitted."""
        return Recipe(**vars(self), **vars(fit))


@dataclass(frozen=True)
class Recipe(FitConfig, TrainConfig):
    """All that decides how one network is fitted: the options of a stage, and what the stage itself says."""

    fresh_epochs: int = option(
        0, "Epochs of crops that were not shown before; further ones show those again. 0: all.", low=0, high=100_000
    )
    epoch_steps: int = option(0, "Steps after which an epoch ends early; 0: it never does.", low=0, high=1_000_000_000)

    @property
    def different_epochs(self) -> int:
        """Epochs whose crops no other has."""
        return min(self.fresh_epochs or self.epochs, self.epochs)


# What colorizers of other authors read and answer; the first of each is what is taken where nothing tells.
INPUTS = ("l", "grey")
L_RANGES = ("0,1", "-1,1", "-50,50", "0,100", "-0.5,0.5")
GREY_RANGES = L_RANGES[:2]
INPUT_NORMS = ("none", "imagenet")
OUTPUTS = ("ab", "rgb", "lab")
RGB_RANGES = ("0,1", "-1,1", "imagenet")


@dataclass(frozen=True)
class ArchConfig(Config):
    """A network that colorpress did not make. It names code to run, so it is never read from a run folder.

    How it is asked and what it answers, from `input` on, is by the names of `Conventions`; None is the checkpoint's, or
    what fits the photographs.
    """

    arch: str | None = option(
        None,
        "FILE.py:NAME or package.module:NAME of what makes the checkpoint's network, where that is not our own UNet.",
        common=True,
    )
    arch_arg: tuple[str, ...] = option(
        (),
        "NAME=VALUE for what --arch names; repeatable; default: as in the checkpoint.",
        common=True,
    )
    state_key: str | None = option(
        None, "Where a foreign file has the weights, such as state_dict.net_G; default: the one place where they fit."
    )
    input: str | None = option(
        None,
        "The network of --arch reads lightness L* or the grey photograph in sRGB; default: found on photographs.",
        choices=INPUTS,
    )
    l_range: str | None = option(
        None, "What its input goes from black to white in; default: found on photographs.", choices=L_RANGES
    )
    input_channels: int | None = option(
        None, "1, or 3 that are the same; default: what the network takes.", low=1, high=3
    )
    input_norm: str | None = option(
        None,
        "imagenet: less the mean and over the spread of ImageNet's channels; default: found on photographs.",
        choices=INPUT_NORMS,
    )
    output: str | None = option(
        None,
        "It answers a* and b*, sRGB, or all three channels of Lab; default: found on photographs.",
        choices=OUTPUTS,
    )
    ab_scale: float | None = option(
        None, "a*b* = its answer x this (+ --ab-offset); default: found on photographs, else 128.", low=1e-3, high=1e4
    )
    ab_offset: float | None = option(
        None, "See --ab-scale: -128 where it answers (a*b* + 128) / 255; default: as there, else 0.", low=-1e4, high=1e4
    )
    rgb_range: str | None = option(
        None, "What its sRGB goes from black to white in; default: found on photographs.", choices=RGB_RANGES
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [*(["arch_arg"] if self.arch_arg else []), *self.conventions]
        if self.arch is None and given:
            name = f"--{option_name(given[0])}"
            raise ConfigError("option", name, "says nothing without --arch", "give --arch FILE.py:NAME too")
        self._check_conventions()

    def _check_conventions(self) -> None:
        three, grey, norm = self.input_channels in (None, 3), self.input == "grey", self.input_norm == "imagenet"
        ab, rgb = self.output != "rgb", self.output in (None, "rgb")
        rules = (
            ("input_channels", self.input_channels != 2, "give 1, or 3"),
            ("input_norm", three or not norm, "ImageNet's mean and spread are of three channels: --input-channels 3"),
            ("input_norm", self.l_range in (None, "0,1") or not norm, "they are of values in 0,1: leave --l-range out"),
            ("l_range", not grey or self.l_range in (None, *GREY_RANGES), "a grey photograph is in 0,1 or -1,1"),
            ("ab_scale", self.ab_scale is None or ab, "--output rgb has none: see --rgb-range"),
            ("ab_offset", self.ab_offset is None or ab, "--output rgb has none: see --rgb-range"),
            ("rgb_range", self.rgb_range is None or rgb, "it goes with --output rgb alone"),
        )
        for name, holds, hint in rules:
            if not holds:
                raise ConfigError("option", f"--{option_name(name)}", f"got {getattr(self, name)}", hint)

    @property
    def conventions(self) -> dict[str, Any]:
        """What is given of `CONVENTION_OPTIONS`, by name."""
        return {name: getattr(self, name) for name in CONVENTION_OPTIONS if getattr(self, name) is not None}

    @property
    def left_open(self) -> tuple[str, ...]:
        """Those of `CONVENTION_OPTIONS` that count and are not given."""
        idle = ("ab_scale", "ab_offset") if self.output == "rgb" else ("rgb_range",)
        return tuple(name for name in CONVENTION_OPTIONS if name not in idle and getattr(self, name) is None)

    def as_arguments(self) -> str:
        """The options as one would type them."""
        values: list[tuple[str, Any]] = [("--arch", self.arch), *(("--arch-arg", each) for each in self.arch_arg)]
        values += [("--state-key", self.state_key)]
        for name, value in self.conventions.items():
            values.append((f"--{option_name(name)}", f"{value:g}" if isinstance(value, float) else value))
        return shlex.join(str(word) for name, value in values if value is not None for word in (name, value))


CONVENTION_OPTIONS = tuple(
    each.name for each in fields(ArchConfig) if each.name not in ("arch", "arch_arg", "state_key")
)


@dataclass(frozen=True)
class CountConfig(Config):
    """What work is counted at."""

    rank_size: int = option(
        256,
        "Side of the square picture that MACs are counted at and layers are timed at, in pixels.",
        low=16,
        high=8192,
    )


@dataclass(frozen=True)
class TimeConfig(Config):
    """What networks are timed at."""

    bench_size: tuple[int, ...] = option(
        (256,),
        "Side of the square input that is timed, in pixels; several: 256,512. Candidates are timed at the first.",
        low=8,
        high=8192,
        alias="imgsz",
    )


@dataclass(frozen=True)
class ScoreConfig(Config):
    """What networks are scored at, whoever scores: pruning, students, searches, int8 and the benchmark."""

    eval_size: int = option(
        256,
        "Short side of the whole photographs that networks are scored on (never enlarged), in pixels.",
        low=8,
        high=4096,
    )


@dataclass(frozen=True)
class RankConfig(Config):
    """The layer ranking."""

    rank_photos: int = option(
        8, "Validation photographs that sensitivities are measured on; 0: no sensitivities.", low=0, high=100_000
    )
    rank_runs: int = option(10, "Timed calls that each layer's latency is the median of.", low=1, high=100_000)


# Measures of importance that ask how the answer changes, and all that look at photographs.
GRADIENTS = ("taylor", "hessian")
DATA_DRIVEN = (*GRADIENTS, "activation")


@dataclass(frozen=True)
class PruneConfig(Config):
    """Which layers lose channels, how many, and which ones."""

    prune_strategy: str = option(
        "largest",
        "Which layers lose channels: the largest, or those that take most time for the colour they give.",
        choices=("largest", "latency"),
    )
    largest_share: float = option(
        1.0, "Prune the largest layers that together hold this share of what can be pruned.", low=0.01, high=1.0
    )
    prune_ratio: float = option(
        0.5,
        "Share of channels to prune (with --prune-strategy latency: of the time); found by search with a budget.",
        low=0.01,
        high=0.99,
        common=True,
    )
    scope: str = option(
        "layer",
        "Prune each layer by the same ratio, or the least important channels of all layers together.",
        choices=("layer", "global"),
    )
    round_to: int = option(8, "Pruned layers keep a multiple of this many channels.", low=1, high=256)
    prune_output_stride: int = option(
        1, "Answer at 1/this of the size at least, without the finest levels of a UNet's decoder.", low=1, high=64
    )
    importance: str = option(
        "magnitude",
        "How important a channel is: the least important ones are pruned.",
        choices=("magnitude", "bn-scale", "fpgm", *DATA_DRIVEN, "random"),
    )
    importance_photos: int = option(
        16,
        f"Training photographs that --importance {', '.join(DATA_DRIVEN)} and --prune-strategy latency look at.",
        low=1,
        high=100_000,
    )
    prune_steps: int = option(
        1, "Prune in this many steps, fine-tuning between them; they share --finetune-crops.", low=1, high=100
    )
    prune_plan: Path | None = option(None, "Apply this plan.json, perhaps edited, instead of making one.")
    finetune_crops: int = option(
        64_000, "Crops that the pruned network learns from; 0: none.", low=0, high=10**12, common=True
    )


@dataclass(frozen=True)
class GoalConfig(Config):
    """What a variant has to keep of best.pt's colours, on other photographs with 80 % confidence."""

    min_content_colour: float | None = option(
        None,
        "Content colour C to keep, of best.pt's gain over a table of colours by lightness. Default for students: 1 "
        "where best.pt clearly beats that table.",
        low=-10.0,
        high=10.0,
        common=True,
    )
    min_fidelity: float | None = option(
        None,
        "Fidelity F to keep, of best.pt's own colours, true or not. Default for students: 0.8 where best.pt does not "
        "beat that table.",
        low=-10.0,
        high=1.0,
        common=True,
    )
    min_retained_colour: float | None = option(
        None,
        "Retained colour G to keep, of what best.pt gains over grey; one tint for all pictures has much of it.",
        low=-10.0,
        high=10.0,
    )
    max_l1_increase: float | None = option(
        None,
        "Percent that the L1 may be above best.pt's; one tint for all pictures may be within a few.",
        low=-100.0,
        high=1000.0,
        units={"%": 1.0},
    )


@dataclass(frozen=True)
class BudgetConfig(Config):
    """What a pruned network or a student may cost; each that is given has to be met."""

    keep_params: float | None = option(None, "Share of best.pt's parameters to keep at most.", low=1e-6, high=1.0)
    keep_macs: float | None = option(
        None,
        "Share of best.pt's multiply-accumulates to keep at most. Without it a student has 0.1, and at most 4,000 a "
        "pixel where `student` chooses it; the narrowest is always allowed.",
        low=1e-6,
        high=1.0,
    )
    target_size: str | None = option(
        None, "Largest ONNX file, such as 310KB (1 KB is 1000 bytes).", alias="max-size", common=True
    )
    target_latency_ms: float | None = option(
        None,
        "Longest latency of one picture (p50) in ONNX Runtime on this machine, in milliseconds.",
        low=1e-3,
        high=1e6,
        units={"ms": 1.0, "us": 1e-3, "s": 1e3},
        alias="max-latency",
        common=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.target_size is not None:
            parse_size(self.target_size)

    def given(self) -> dict[str, float]:
        """The budgets that were given, by name; `target_size` in bytes."""
        values = {name: value for name, value in vars(self).items() if value is not None}
        return {name: parse_size(value) if name == "target_size" else value for name, value in values.items()}


_SIZE_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "GB": 1000**3, "KIB": 1024, "MIB": 1024**2, "GIB": 1024**3}


def parse_size(text: str) -> int:
    """Bytes of a size such as 310KB, 1.5 MB or 64KiB.

    Raises:
        ConfigError: it is none.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = _SIZE_UNITS.get(found[2].upper()) if found else None
    if found is None or unit is None or float(found[1]) * unit < 1:
        hint = "give a size of at least 1 byte such as 310KB or 1.5MB; units are B, KB, MB, GB, KiB, MiB and GiB"
        raise ConfigError("option", "--target-size", f"got {text!r}", hint)
    return int(float(found[1]) * unit)


def parse_quantity(text: str, name: str, units: Mapping[str, float]) -> float:
    """The number in a text such as `2ms` or `1 %`, times the factor of its unit; without a unit as it stands.

    Args:
        name: of the option, for the error.
    Raises:
        ConfigError: it is no number, or its unit is none of `units`.
    """
    found = re.fullmatch(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(\S*)\s*", text)
    if found is None or (found[2] and found[2].lower() not in units):
        raise ConfigError("option", name, f"got {text!r}", f"give a number, or one in {', '.join(units)}")
    return float(found[1]) * (units[found[2].lower()] if found[2] else 1.0)


@dataclass(frozen=True)
class FurtherConfig(Config):
    """What students learn from beside the photographs of a run."""

    unlabelled: Path | None = option(
        None, "Folder of further photographs to learn from; those among the validation or test ones are left out."
    )


@dataclass(frozen=True)
class DistilConfig(Config):
    """How networks learn from best.pt, pruned ones and students; training in 8 bits has the same crops and batches."""

    distil_imgsz: int = option(128, "Side of the square crops, in pixels, in the mean.", low=8, high=4096)
    distil_batch_size: int = option(16, "Crops per step.", low=1, high=65_536)
    distil_crop_share: float = option(
        0.12, "Smallest share of a photograph's area that a crop shows; the largest is 1.", low=0.01, high=1.0
    )
    distil_tone_jitter: float = option(
        0.0, "Crops are lightened or darkened: spread of the logarithm of their gamma.", low=0.0, high=2.0
    )
    distil_asked_crops: int = option(
        24_000,
        "About so many crops, in whole passes, best.pt is asked about; a longer training shows those again.",
        low=1,
        high=1_000_000_000,
    )
    distil_learning_rate: float = option(3e-3, "Peak learning rate.", low=1e-9, high=10.0)
    teacher_weight: float = option(
        0.75,
        "Weight of best.pt's answer beside the truth; always 1 where fidelity F decides.",
        low=0.0,
        high=1.0,
    )

    def recipe(self, fit: FitConfig, *, crops: int, photos: int, val_size: int) -> Recipe:
        """How a network is fitted to `crops` crops of `photos` photographs.

        Args:
            val_size: short side of the photographs that choose the best epoch, in pixels: the size it is used at.
        """
        # An epoch shows each photograph equally often. A shorter training ends inside one: it sees what longer ones
        # see first, and best.pt is asked once for all of them.
        epoch_crops = photos * max(1, round(_DISTIL_EPOCH / photos))
        epochs = max(1, round(crops / epoch_crops))
        own = {
            "epoch_crops": epoch_crops,
            "batch_size": self.distil_batch_size,
            "crop_share": self.distil_crop_share,
            "tone_jitter": self.distil_tone_jitter,
            "schedule": "cosine",
            "warmup_share": 0.05,
            "dropout": 0.0,
            "ema_decay": 0.998,
            "patience": 0,
            "fresh_epochs": min(epochs, max(1, round(self.distil_asked_crops / epoch_crops))),
            "epoch_steps": -(-crops // self.distil_batch_size) if crops < epoch_crops else 0,
        }
        return Recipe(
            **{**vars(fit), **own},
            epochs=epochs,
            imgsz=self.distil_imgsz,
            learning_rate=self.distil_learning_rate,
            # best.pt's answer says more of each pixel than a class of colour does.
            class_weight=0.0,
            val_size=val_size,
        )


# Crops of an epoch at least: validation after each should be a small part of the work.
_DISTIL_EPOCH = 8_000


@dataclass(frozen=True)
class StudentConfig(Config):
    """A network of another shape, chosen by measurement within goal and budgets."""

    student_effort: str = option(
        "default",
        "How long the student trains: a quarter of --student-crops, once, or four times.",
        choices=("fast", "default", "long"),
        common=True,
    )
    student_crops: int = option(96_000, "Crops that the student learns from.", low=1, high=10**12)
    student_trial_crops: int = option(
        24_000, "Crops that each candidate learns from before one is chosen.", low=1, high=10**12
    )
    student_plan: Path | None = option(
        None, "Train the network of this plan.json, perhaps edited, instead of choosing."
    )

    @property
    def crops(self) -> int:
        """Crops that the student learns from, by effort; trials do not shrink with it, or none would reach the goal."""
        return max(1, round(self.student_crops * _EFFORTS[self.student_effort]))


_EFFORTS = {"fast": 0.25, "default": 1.0, "long": 4.0}


@dataclass(frozen=True)
class SearchEffort:
    """How much a search does: candidates, crops of each, crops of those that learn to the end, how many those are,
    int8, and whether a third of those are pruned networks."""

    trials: int
    crops: int
    full_crops: int
    front: int
    int8: bool
    pruned: bool

    @property
    def pruned_places(self) -> int:
        """How many pruned networks learn to the end at most."""
        return self.front // 3 if self.pruned else 0


NO_SEARCH = "none"
SEARCH_EFFORTS = {
    "demo": SearchEffort(trials=5, crops=400, full_crops=1_600, front=3, int8=False, pruned=False),
    "default": SearchEffort(trials=24, crops=4_000, full_crops=24_000, front=10, int8=True, pruned=True),
    "long": SearchEffort(trials=64, crops=12_000, full_crops=96_000, front=12, int8=True, pruned=True),
    "longest": SearchEffort(trials=200, crops=24_000, full_crops=384_000, front=16, int8=True, pruned=True),
}


@dataclass(frozen=True)
class SearchConfig(Config):
    """A search for the Pareto front of small networks: file size, latency and colour."""

    search_effort: str = option(
        "default",
        "How many candidates are tried, and for how long; none: `run` does not search.",
        choices=(*SEARCH_EFFORTS, NO_SEARCH),
        common=True,
    )
    search_trials: int | None = option(None, "Candidates that learn for a short while.", low=1, high=1_000_000)
    search_crops: int | None = option(None, "Crops that each of them learns from.", low=1, high=10**12)
    search_full_crops: int | None = option(
        None, "Crops that each network that is exported learns from in the end.", low=1, high=10**12
    )
    search_front: int | None = option(
        None, "Networks that learn to the end and are exported; 0: candidates alone.", low=0, high=1000
    )
    search_int8: bool | None = option(None, "Quantize each network that is exported to int8 too.")
    search_pruned: bool | None = option(None, "Of the networks that learn to the end, a third is best.pt, pruned.")
    search_sampler: str = option(
        "tpe",
        "What proposes candidates: Optuna's tree-structured Parzen estimator, chance, or widths from small to large.",
        choices=("tpe", "random", "ladder"),
    )

    def effort(self) -> SearchEffort:
        """What the preset says, and the options that were given instead. In place of none it is the default."""
        preset = SEARCH_EFFORTS["default" if self.search_effort == NO_SEARCH else self.search_effort]
        given = {name: getattr(self, f"search_{name}") for name in vars(preset)}
        return replace(preset, **{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True)
class WorkerConfig(Config):
    """Processes that share a search."""

    worker_timeout: int = option(
        120, "Seconds without a sign of life after which a worker's candidate goes to another.", low=2, high=86_400
    )


@dataclass(frozen=True)
class ExportConfig(Config):
    """ONNX export and its check against PyTorch."""

    opset: int = option(18, "ONNX operator set.", low=18, high=23)
    atol: float = option(
        1e-4, "Largest absolute difference to PyTorch (ab/128); a file beyond it is not published.", low=0.0, high=1.0
    )


@dataclass(frozen=True)
class MobileConfig(Config):
    """Files of the bare network for phones, beside the ONNX ones."""

    mobile_format: tuple[str, ...] = option(
        (),
        "Write these too: tflite is LiteRT's, pte ExecuTorch's; int8 in a folder of its own.",
        choices=("tflite", "tflite-int8", "pte", "pte-int8"),
        alias="to",
    )
    mobile_size: int = option(256, "Side of the one size that a .tflite file reads, in pixels.", low=16, high=2048)


@dataclass(frozen=True)
class DeployConfig(Config):
    """The picture graph, colorizer.onnx."""

    work_size: int = option(256, "Short side that the network sees of a picture, in pixels.", low=16, high=8192)
    saturation: float = option(
        1.0,
        "What the network's chroma is multiplied by; above 1 for one that learned to be careful.",
        low=0.0,
        high=4.0,
    )
    ort: bool = option(False, "Write ONNX Runtime's own format, colorizer.ort, as well.")
    plain: bool = option(
        False, "Write colorizer-plain.onnx as well, without Loop and If: for CUDA graphs, TensorRT, CoreML, WebGPU."
    )
    plain_size: str = option("", "The one size that colorizer-plain.onnx takes, as HEIGHTxWIDTH; default: any.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plain_size and not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", self.plain_size):
            why = f"got {self.plain_size!r}"
            raise ConfigError("option", "--plain-size", why, "give rows and columns in pixels, such as 512x768")

    @property
    def plain_shape(self) -> tuple[int, int] | None:
        """Rows and columns that the plain graph is for; None: any."""
        height, _, width = self.plain_size.partition("x")
        return (int(height), int(width)) if width else None


@dataclass(frozen=True)
class QuantizeConfig(Config):
    """Static int8 by ONNX Runtime: QDQ, per-channel weights, calibrated on training photographs."""

    quantize_share: float = option(
        1.0, "Quantize the largest layers that together hold this share of the weights.", low=0.01, high=1.0
    )
    calibration_photos: int = option(64, "Training photographs that set the activation ranges.", low=1, high=100_000)
    calibration_size: int = option(
        256, "Short side of the calibration photographs (never enlarged), in pixels.", low=8, high=4096
    )
    calibration_percentile: float | None = option(
        None,
        "Percent of the values that the range of every activation covers, 100 for all. Default: of several for each "
        "activation that which changes the answers least.",
        low=90.0,
        high=100.0,
    )
    int8_weight_bits: str = option(
        "auto",
        "Bits of int8 weights: 7 never saturate on x86 processors without VNNI, 8 may a little, wherever the file was "
        "made. Auto: 8 with VNNI; without it whichever is nearer to float, 7 where nothing judges.",
        choices=("auto", "7", "8"),
    )
    equalize: str = option(
        "auto",
        "Cross-layer equalization of channel ranges first; auto: where int8 is closer to float then.",
        choices=("auto", "on", "off"),
    )
    activation_type: str = option(
        "auto", "Bytes of activations; auto: int8 on ARM, else uint8.", choices=("auto", "uint8", "int8")
    )
    choosing_photos: int = option(
        96,
        "Validation photographs that choose between int8 files; as many others score the one that was chosen.",
        low=1,
        high=100_000,
    )
    int8_loss: float = option(
        0.01,
        "Share of the colour that int8 may lose against its float parent before it is trained: of content colour where "
        "best.pt clearly beats a lightness table, else of fidelity. Goals that the parent meets have to be met too.",
        low=0.0,
        high=1.0,
    )


@dataclass(frozen=True)
class QatConfig(Config):
    """Training of int8 files that lose too much."""

    qat_crops: int = option(
        32_000,
        "Crops of quantization-aware training, where int8 loses more than --int8-loss; 0: none.",
        low=0,
        high=10**9,
    )
    qat_learning_rate: float = option(2e-5, "Peak learning rate of quantization-aware training.", low=1e-9, high=10.0)


@dataclass(frozen=True)
class BenchmarkConfig(Config):
    """Latency, accuracy and size of best.pt and every variant."""

    bench_batch: tuple[int, ...] = option(
        (1,), "Pictures per timed call; several: 1,8.", low=1, high=4096, alias="batch-size"
    )
    bench_threads: tuple[int, ...] = option(
        (),
        "CPU threads of every timed runtime alike; several: 1,2. Default: --threads.",
        low=1,
        high=1024,
        alias="threads",
    )
    bench_runtime: tuple[str, ...] = option(
        (),
        "What runs the files, such as torch,torch-bf16,onnxruntime,openvino; `colorpress doctor` lists all. Default: "
        "PyTorch and ONNX Runtime.",
        commas=True,
        alias="runtime",
        common=True,
    )
    rounds: int = option(3, "Fresh processes per variant, interleaved in random order.", low=1, high=100)
    runs: int = option(100, "Timed calls per variant at least, over all rounds.", low=3, high=1_000_000)
    min_seconds: float = option(3.0, "Timed seconds per variant at least, over all rounds.", low=0.0, high=3600.0)
    warmup: int = option(10, "Untimed calls in each process first.", low=1, high=10_000)
    roof: bool = option(True, "Measure the roofline of this machine (8 s), and each variant's share of it.")
    eval_photos: int = option(500, "Test photographs measured at most; 0: time only.", low=0, high=10_000_000)
    also: tuple[Path, ...] = option(
        (), "Folder of further photographs to score every variant on, such as of another kind; repeatable."
    )


@dataclass(frozen=True)
class BenchmarkPlan(BenchmarkConfig, ScoreConfig, TimeConfig):
    """All that decides what a benchmark measures."""


@dataclass(frozen=True)
class Settings:
    """The configs of all stages together: one flat name space of options."""

    machine: MachineConfig = field(default_factory=MachineConfig)
    data: DataConfig = field(default_factory=DataConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    fit: FitConfig = field(default_factory=FitConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    arch: ArchConfig = field(default_factory=ArchConfig)
    count: CountConfig = field(default_factory=CountConfig)
    time: TimeConfig = field(default_factory=TimeConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    rank: RankConfig = field(default_factory=RankConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    goal: GoalConfig = field(default_factory=GoalConfig)
    budget: BudgetConfig = field(default_factory=BudgetConfig)
    further: FurtherConfig = field(default_factory=FurtherConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    worker: WorkerConfig = field(default_factory=WorkerConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    mobile: MobileConfig = field(default_factory=MobileConfig)
    deploy: DeployConfig = field(default_factory=DeployConfig)
    quantize: QuantizeConfig = field(default_factory=QuantizeConfig)
    qat: QatConfig = field(default_factory=QatConfig)
    benchmark: BenchmarkConfig = field(default_factory=BenchmarkConfig)

    @property
    def benchmark_plan(self) -> BenchmarkPlan:
        """What is measured, at which sizes."""
        return BenchmarkPlan(**vars(self.benchmark), **vars(self.score), **vars(self.time))

    @staticmethod
    def from_options(options: Mapping[str, Any]) -> Settings:
        """Settings with the given values by field name, such as {"batch_size": 8}; the rest are defaults.

        Raises:
            ConfigError: a name is unknown, or a value is outside its range.
        """
        for name in options:
            if name not in OPTION_NAMES:
                raise unknown_option(option_name(name))
        configs: dict[str, Any] = {
            stage: config(
                **{
                    each.name: _frozen(config, each, options[each.name])
                    for each in fields(config)
                    if each.name in options
                }
            )
            for stage, config in CONFIGS.items()
        }
        return Settings(**configs)

    def to_toml(self) -> str:
        """The effective options as TOML that `--config` reads back; options that are unset are left out.

        Those of `arch` are a comment: they name code to run, and the file may be somebody else's.
        """
        lines = []
        for stage, config in CONFIGS.items():
            if config is ArchConfig:
                if self.arch.arch:
                    lines.append(f"# {stage}, to be given again each time: {printable(self.arch.as_arguments())}")
                continue
            lines.append(f"# {stage}")
            values = {each.name: getattr(getattr(self, stage), each.name) for each in fields(config)}
            lines += [f"{option_name(name)} = {_toml(value)}" for name, value in values.items() if value is not None]
        return "\n".join(lines) + "\n"


CONFIGS: dict[str, type[Config]] = get_type_hints(Settings)
PATH_OPTIONS = tuple(
    each.name for config in CONFIGS.values() for each in fields(config) if field_type(config, each) is Path
)
OPTION_NAMES = tuple(each.name for config in CONFIGS.values() for each in fields(config))
ARCH_OPTIONS = tuple(each.name for each in fields(ArchConfig))


def unknown_option(name: str, allowed: tuple[str, ...] = OPTION_NAMES) -> ConfigError:
    """The error for an option that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(name, [option_name(each) for each in allowed], n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see `colorpress run --help` for all options"
    return ConfigError("option", name, "is unknown", hint)


def _frozen(config: type[Config], each: Field[Any], value: Any) -> Any:
    """TOML has lists where configs have tuples; where commas stand between values one will do for a list of one."""
    if isinstance(value, list):
        return tuple(value)
    is_number = isinstance(value, int)
    is_name = isinstance(value, str) and field_type(config, each) is str
    return (value,) if is_comma_list(config, each) and (is_number or is_name) else value


def _toml(value: Any) -> str:
    # JSON's strings, numbers and booleans are TOML's too; surrogates of odd file names are not.
    return json.dumps(value, ensure_ascii=False, default=str)
