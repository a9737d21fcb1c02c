"""The yardstick: G by hand, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from colorpress.core.config import DataConfig, GoalConfig, Settings
from colorpress.core.errors import InputError
from compress.budgets import read_goals
from compress.yardstick import Yardstick, make_yardstick
from tests.conftest import make_network
from training.checkpoint import load_checkpoint
from training.metrics import validate_l1
from training.photos import Photo, scan_photos
from training.run_folder import Run
from training.unet import UNet


def made_of(*truths: float, grey: tuple[float, ...] = (), best: tuple[float, ...] = ()) -> Yardstick:
    """Pictures of one colour each: ab is the given value everywhere."""
    pictures = tuple((torch.zeros(1, 1, 4, 6), torch.full((1, 2, 4, 6), value)) for value in truths)
    return Yardstick(pictures, np.array(grey or [abs(value) for value in truths]), np.array(best))


def answer(value: float) -> object:
    return lambda lightness: torch.full((1, 2, *lightness.shape[-2:]), value)


def test_scores_are_what_one_computes_by_hand() -> None:
    yardstick = made_of(0.2, 0.4, best=(0.1, 0.2))
    score = yardstick.score(answer(0.2))  # L1 0.0 and 0.2
    assert score.l1 == pytest.approx(0.1)
    assert score.l1_delta_pct == pytest.approx(100 * (0.1 / 0.15 - 1))
    assert score.retained_colour == pytest.approx((0.3 - 0.1) / (0.3 - 0.15))
    assert score.low <= score.retained_colour <= score.high
    assert yardstick.score(answer(0.0)).retained_colour == pytest.approx(0.0, abs=1e-6)


def test_l1_increase_and_retained_colour_are_two_words_for_one_thing() -> None:
    yardstick = made_of(0.2, 0.4, best=(0.1, 0.2))
    assert yardstick.floor_of(read_goals(GoalConfig(max_l1_increase=0.0))) == pytest.approx(1.0)
    # Grey has twice the L1.
    assert yardstick.floor_of(read_goals(GoalConfig(max_l1_increase=100.0))) == pytest.approx(0.0)
    assert yardstick.l1_at(1.0) == pytest.approx(0.15)
    assert yardstick.l1_at(yardstick.floor_of(read_goals(GoalConfig(max_l1_increase=10.0)))) == pytest.approx(0.165)


def test_without_colour_to_keep_there_is_no_g() -> None:
    yardstick = made_of(0.2, best=(0.3,))
    score = yardstick.score(answer(0.1))
    assert math.isnan(score.retained_colour) and math.isnan(score.low)
    assert yardstick.floor_of(read_goals(GoalConfig(max_l1_increase=1.0))) is None
    assert score.l1_delta_pct == pytest.approx(100 * (0.1 / 0.3 - 1))


def test_it_agrees_with_validation(photo_folder: Path, tiny_unet: UNet, tiny_checkpoint: Path) -> None:
    photos = scan_photos(DataConfig(data=photo_folder), workers=0).train
    cpu = torch.device("cpu")
    run = Run(tiny_checkpoint.parent, Settings.from_options({"device": "cpu", "max_pixels": 10**6}))
    yardstick = make_yardstick(run, load_checkpoint(tiny_checkpoint), photos, short_side=24)
    expected = validate_l1(tiny_unet, photos, short_side=24, max_pixels=10**6, device=cpu)
    assert yardstick.best_l1.mean() == pytest.approx(expected)
    own = yardstick.score(tiny_unet)
    assert own.retained_colour == pytest.approx(1.0) or math.isnan(own.retained_colour)
    other = make_network(seed=5)
    assert yardstick.score(other).l1 == pytest.approx(
        validate_l1(other, photos, short_side=24, max_pixels=10**6, device=cpu)
    )


def test_what_is_no_answer_is_refused(tmp_path: Path, tiny_checkpoint: Path) -> None:
    yardstick = made_of(0.2, best=(0.1,))

    def too_small(lightness: Tensor) -> Tensor:
        return torch.zeros(1, 2, 1, 1)

    for wrong in (too_small, answer(math.nan)):
        with pytest.raises(InputError, match="answers"):
            yardstick.score(wrong)
    gone = Photo(tmp_path / "gone.png", "0" * 64, 4, 4)
    with pytest.raises(InputError, match="no photograph can be read"):
        make_yardstick(Run(tmp_path), load_checkpoint(tiny_checkpoint), [gone], short_side=8)
