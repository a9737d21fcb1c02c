"""Scores by hand, and against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

from training.lab import l_ab_to_rgb, rgb_to_l_ab
from training.metrics import bootstrap_interval, colourfulness, retained_colour, score_photo, show_colours


def test_a_perfect_answer_and_a_grey_one() -> None:
    rgb = torch.from_numpy(np.random.default_rng(0).integers(40, 200, (1, 3, 20, 24), dtype=np.uint8))
    lightness, ab = rgb_to_l_ab(rgb)
    truth, nothing = show_colours(lightness, ab), show_colours(lightness, torch.zeros_like(ab))
    perfect = score_photo(truth, truth)
    assert (perfect.l1_ab, perfect.l1_rgb, perfect.psnr_db, perfect.delta_e) == (0, 0, pytest.approx(100), 0)
    assert perfect.ssim == pytest.approx(1)
    grey = score_photo(truth, nothing)
    assert grey.l1_ab == pytest.approx(ab.abs().mean().item())
    pictures = [l_ab_to_rgb(lightness, each).numpy() for each in (ab, torch.zeros_like(ab))]
    assert grey.psnr_db == pytest.approx(peak_signal_noise_ratio(*pictures, data_range=1.0), abs=1e-4)
    assert 0 < grey.ssim < 1
    shown = [rgb2lab(each[0].transpose(1, 2, 0)) for each in pictures]
    assert grey.delta_e == pytest.approx(deltaE_ciede2000(*shown).mean(), abs=1e-3)


def test_a_photograph_too_small_for_ssim_has_none() -> None:
    lightness, ab = rgb_to_l_ab(torch.full((1, 3, 1, 30), 90, dtype=torch.uint8))
    truth = show_colours(lightness, ab)
    assert math.isnan(score_photo(truth, truth).ssim)


def test_retained_colour_by_hand() -> None:
    grey, best = np.array([0.10, 0.20]), np.array([0.08, 0.14])
    assert retained_colour(grey, best, best) == pytest.approx(1)
    assert retained_colour(grey, grey, best) == pytest.approx(0)
    assert retained_colour(grey, np.array([0.09, 0.17]), best) == pytest.approx(0.5)
    assert retained_colour(grey, np.array([0.12, 0.22]), best) == pytest.approx(-0.5)
    assert math.isnan(retained_colour(grey, grey, grey))


def test_the_interval_holds_the_value_narrows_with_photographs_and_repeats() -> None:
    generator = np.random.default_rng(1)
    grey = generator.uniform(0.08, 0.12, 400)
    best, model = grey * 0.85, grey * 0.87 + generator.normal(0, 0.005, 400)
    low, high = bootstrap_interval(grey, model, best)
    assert low < retained_colour(grey, model, best) < high
    few_low, few_high = bootstrap_interval(grey[:20], model[:20], best[:20])
    assert few_high - few_low > 2 * (high - low)
    assert (low, high) == bootstrap_interval(grey, model, best)
    assert all(map(math.isnan, bootstrap_interval(grey[:1], model[:1], best[:1])))


def test_colourfulness_of_grey_is_zero_and_of_two_pure_colours_by_hand() -> None:
    assert colourfulness(torch.full((1, 3, 4, 4), 0.4)) == 0
    red_and_green = torch.zeros(1, 3, 2, 2)
    red_and_green[0, 0, 0] = 1
    red_and_green[0, 1, 1] = 1
    # rg is +-255 (spread 255, mean 0), yb is 127.5 everywhere.
    assert colourfulness(red_and_green) == pytest.approx(255 + 0.3 * 127.5)
