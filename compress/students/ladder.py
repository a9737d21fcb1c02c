"""Choosing a student by measurement: how coarse the answer may be, and the smallest network that keeps the colour."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from colorpress.core.console import say
from colorpress.core.errors import ConfigError
from colorpress.core.files import with_nan, without_nan
from colorpress.core.stages import StageRecord
from compress.students.student_job import StudentJob
from compress.students.student_plan import Candidate, StrideScore
from compress.yardstick import Score, Yardstick
from training.device import choose_device
from training.network import ColorNetwork, pad_to_multiple, upsample_bilinear
from training.unet import UNetPlan

# Widths of the ladder of students. Below 8 channels convolutions cost the same time; above 128 nothing was gained.
LADDER_WIDTHS = (8, 12, 16, 24, 32, 48, 64, 96, 128)
ORACLE_STRIDES = (1, 2, 4, 8, 16, 32)
# An output stride is taken when best.pt's own answer, made that coarse, keeps this much of its colour.
_ORACLE_FLOOR = 0.99
_LARGEST_STEM = 8
_DEEPEST_STRIDE = 32


def score_strides(
    best: ColorNetwork, yardstick: Yardstick, *, device: torch.device, strides: Sequence[int] = ORACLE_STRIDES
) -> tuple[StrideScore, ...]:
    """What coarse answers cost at least: best.pt's own answers, averaged to each stride and up-sampled again.

    An oracle: no student that answers at a stride can be expected to do better than this by being coarse.

    Args:
        best: on `device`, in eval mode.
    """

    def coarse_at(stride: int) -> Callable[[Tensor], Tensor]:
        def answer(lightness: Tensor) -> Tensor:
            height, width = lightness.shape[-2:]
            padded = pad_to_multiple(best(lightness.to(device)), stride)  # (1, 2, H, W), each side up to a multiple
            return upsample_bilinear(F.avg_pool2d(padded, stride), stride)[..., :height, :width].cpu()

        return answer

    scores = [(stride, yardstick.score(coarse_at(stride))) for stride in strides]
    return tuple(StrideScore(stride, score.l1_delta_pct, score.retained_colour) for stride, score in scores)


def score_output_strides(job: StudentJob) -> tuple[tuple[StrideScore, ...], StageRecord]:
    """The oracle of a run folder, where it is measured once."""

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        device = choose_device(job.run.settings.machine.device)
        scores = score_strides(job.best.build_network().to(device), job.yardstick, device=device)
        kept = ", ".join(f"1/{each.stride} {each.l1_delta_pct:+.2f} %" for each in scores)
        say(f"best.pt's own answer made coarse changes its L1 by: {kept}")
        return [], {"strides": [without_nan(asdict(each)) for each in scores]}

    used = {**job.run.arch_key(), **job.data_key(train=False)}
    record = job.run.do("strides", action, inputs=[job.checkpoint], settings=used)
    return tuple(StrideScore(**with_nan(each)) for each in record.result["strides"]), record


def choose_output_stride(strides: Sequence[StrideScore]) -> int:
    """The coarsest stride whose answers keep at least 0.99 of best.pt's colour; 1 where none does."""
    return max((each.stride for each in strides if each.retained_colour >= _ORACLE_FLOOR), default=1)


def list_output_strides(strides: Sequence[StrideScore]) -> tuple[int, ...]:
    """The strides that are worth a search, finest first: a finer one costs more, so it has to keep as much colour.

    Where best.pt is no better than grey there is no G, and every stride is as good.
    """
    kept: list[StrideScore] = []
    for each in sorted(strides, key=lambda each: -each.stride):
        if not each.retained_colour < max([_ORACLE_FLOOR, *(coarser.retained_colour for coarser in kept)]):
            kept.append(each)
    return tuple(each.stride for each in reversed(kept)) or (1,)


def student_ladder(output_stride: int, widths: Sequence[int] = LADDER_WIDTHS) -> tuple[UNetPlan, ...]:
    """Flat UNets that answer at `output_stride`, one for each width, smallest first.

    All levels have the same width, since deep levels that double it hold nearly all parameters and do not earn them
    (Lean UNet, 2025). Patches as coarse as the answer, up to 8 pixels, replace the levels above; levels go down to
    1/32 of the size for context, and up again to the output stride.
    """
    stem = min(output_stride, _LARGEST_STEM)
    levels = 1 + int(math.log2(max(_DEEPEST_STRIDE, output_stride) // stem))
    ups = levels - 1 - int(math.log2(output_stride // stem))
    return tuple(
        UNetPlan(
            encoder=((width, width),) * levels, decoder=((width, width),) * ups, upsample="nearest", stem_stride=stem
        )
        for width in widths
    )


def choose_candidate(
    candidates: Sequence[Candidate],
    *,
    floor: float,
    increase_pct: float = 0.0,
    why_too_large: Callable[[Candidate], str],
    try_out: Callable[[Candidate], Score],
) -> tuple[Candidate, tuple[Candidate, ...], str]:
    """The smallest candidate that meets the goal after a short training, found by bisection.

    Args:
        candidates: smallest first; what a larger one costs more of, it also keeps more colour with.
        floor, increase_pct: the goal, see `Score.keeps`.
        why_too_large: the budget that a candidate misses, in words; empty when it misses none.
        try_out: trains a candidate for a short while and scores it; called for as few as possible.
    Returns:
        The chosen candidate, all of them with their verdicts, and the choice in a sentence. Where none meets the goal
        it is the one that kept most colour.
    Raises:
        ConfigError: no candidate fits the budgets.
    """
    seen = list(candidates)
    fitting: list[int] = []
    for place, candidate in enumerate(seen):
        if why := why_too_large(candidate):
            seen[place] = replace(candidate, verdict=f"not tried: {why}")
        else:
            fitting.append(place)
    if not fitting:
        raise ConfigError("budget", None, f"the smallest student misses it: {why_too_large(seen[0])}", "loosen it")
    met: dict[int, bool] = {}

    def meets_goal(place: int) -> bool:
        if place not in met:
            score = try_out(seen[place])
            met[place] = score.keeps(floor, most_increase_pct=increase_pct)
            seen[place] = _with_score(seen[place], score, floor, met[place])
        return met[place]

    low, high = 0, len(fitting) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if meets_goal(fitting[middle]) else (middle + 1, high)
    if meets_goal(fitting[low]):
        return seen[fitting[low]], tuple(seen), f"the smallest of {len(seen)} candidates that meets the goal"
    best = min(met, key=lambda place: seen[place].l1_delta_pct or 0.0)
    return seen[best], tuple(seen), "no candidate within the budgets meets the goal; this one kept most colour"


def _with_score(candidate: Candidate, score: Score, floor: float, met: bool) -> Candidate:
    values = score.to_dict()
    what = f"keeps {score.retained_colour:.3f} of the colour{score.interval}"
    if math.isnan(score.retained_colour):
        what = score.describe()
    verdict = f"after a short training {what}: {'enough' if met else 'not enough'} for {floor:g}"
    return replace(
        candidate,
        l1_delta_pct=score.l1_delta_pct,
        retained_colour=values["retained_colour"],
        low=values["low"],
        high=values["high"],
        verdict=verdict,
    )
