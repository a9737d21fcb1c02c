"""Scores by hand, and against scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap
from skimage.color import deltaE_ciede2000, rgb2lab
from skimage.metrics import peak_signal_noise_ratio

from training.cie import AB_SCALE
from training.lab import l_ab_to_rgb, rgb_to_l_ab
from training.metrics import (
    Floats,
    colourfulness,
    find_chroma_edges,
    kept_interval,
    kept_share,
    mean_chroma,
    score_photo,
    show_colours,
)


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


def test_what_is_kept_by_hand() -> None:
    grey, best = np.array([0.10, 0.20]), np.array([0.08, 0.14])
    assert kept_share(grey, best, best) == 1
    assert kept_share(grey, grey, best) == 0
    assert kept_share(grey, np.array([0.09, 0.17]), best) == pytest.approx(0.5)
    assert kept_share(grey, np.array([0.12, 0.22]), best) == pytest.approx(-0.5)
    assert kept_share(grey, grey / 4, np.zeros(2)) == pytest.approx(0.75)  # fidelity: best.pt is no distance away
    assert math.isnan(kept_share(grey, grey, grey)) and math.isnan(kept_share(grey, best, 1.1 * grey))
    assert math.isnan(kept_share(grey + math.nan, best, best))


def test_the_interval_holds_the_value_narrows_with_photographs_and_repeats() -> None:
    generator = np.random.default_rng(1)
    grey = generator.uniform(0.08, 0.12, 400)
    best, model = grey * 0.85, grey * 0.87 + generator.normal(0, 0.005, 400)
    low, high = kept_interval(grey, model, best)
    assert low < kept_share(grey, model, best) < high
    few_low, few_high = kept_interval(grey[:20], model[:20], best[:20])
    assert few_high - few_low > 2 * (high - low)
    assert (low, high) == kept_interval(grey, model, best)
    assert all(map(math.isnan, kept_interval(grey[:1], model[:1], best[:1])))
    assert all(map(math.isnan, kept_interval(grey, model, grey)))


def test_the_interval_is_the_bootstrap_of_scipy() -> None:
    generator = np.random.default_rng(3)
    grey = generator.gamma(4, 0.025, 80)
    best, model = grey * 0.8 + generator.normal(0, 0.004, 80), grey * 0.85 + generator.normal(0, 0.01, 80)

    def share(without: Floats, own: Floats, other: Floats, axis: int) -> Floats:
        """Over all draws at once."""
        gained, whole = ((without - each).mean(axis) for each in (own, other))
        return np.asarray(gained / whole)

    expected = bootstrap(
        (grey, model, best), share, paired=True, vectorized=True, n_resamples=4000, method="percentile", rng=generator
    ).confidence_interval
    low, high = kept_interval(grey, model, best)
    width = expected.high - expected.low
    assert low == pytest.approx(expected.low, abs=0.08 * width)
    assert high == pytest.approx(expected.high, abs=0.08 * width)


def test_a_picture_of_two_colours_has_its_edge_where_they_meet() -> None:
    ab = torch.zeros(1, 2, 6, 9)
    ab[:, 0, :, 4:] = 0.3
    edges = find_chroma_edges(ab)
    assert edges.shape == (1, 1, 6, 9) and edges.dtype == torch.bool
    assert edges[0, 0].any(0).nonzero().flatten().tolist() == [3, 4] and bool(edges[..., 3:5].all())
    assert not find_chroma_edges(ab / 4).any()  # under 13 units of Lab
    assert not find_chroma_edges(torch.full((1, 2, 1, 1), 0.9)).any()
    gradual = torch.linspace(0, 0.9, 60).expand(1, 2, 4, 60)
    assert not find_chroma_edges(gradual).any()


def test_errors_near_edges_are_counted_there_alone() -> None:
    lightness, ab = torch.full((1, 1, 6, 9), 0.5), torch.zeros(1, 2, 6, 9)
    ab[:, 0, :, 4:] = 0.3
    blurred = ab.clone()
    blurred[:, 0, :, 3:5] = 0.15
    truth, answer = show_colours(lightness, ab), show_colours(lightness, blurred)
    # a is 0.15 off in two of nine columns, b nowhere.
    assert score_photo(truth, answer).edge_l1 == pytest.approx(0.075)
    assert score_photo(truth, answer).l1_ab == pytest.approx(0.075 * 2 / 9)
    elsewhere = ab.clone()
    elsewhere[..., 8] = 0.9
    assert score_photo(truth, show_colours(lightness, elsewhere)).edge_l1 == 0
    plain = show_colours(lightness, torch.full_like(ab, 0.1))
    assert math.isnan(score_photo(plain, answer).edge_l1)


def test_chroma_is_the_distance_from_grey() -> None:
    assert mean_chroma(torch.zeros(1, 2, 3, 4)) == 0
    ab = torch.tensor([30.0, -40.0]).view(1, 2, 1, 1).expand(1, 2, 3, 4) / AB_SCALE
    assert mean_chroma(ab) == pytest.approx(50)
    grey = torch.zeros_like(ab)
    assert mean_chroma(torch.cat((ab, grey), 3)) == pytest.approx(25)
    lightness = torch.full((1, 1, 3, 4), 0.5)
    shown = show_colours(lightness, ab)
    assert score_photo(show_colours(lightness, grey), shown).chroma == pytest.approx(50)


def test_colourfulness_of_grey_is_zero_and_of_two_pure_colours_by_hand() -> None:
    assert colourfulness(torch.full((1, 3, 4, 4), 0.4)) == 0
    red_and_green = torch.zeros(1, 3, 2, 2)
    red_and_green[0, 0, 0] = 1
    red_and_green[0, 1, 1] = 1
    # rg is +-255 (spread 255, mean 0), yb is 127.5 everywhere.
    assert colourfulness(red_and_green) == pytest.approx(255 + 0.3 * 127.5)
