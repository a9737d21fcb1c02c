"""Structural similarity by torch is scikit-image's."""

from __future__ import annotations

import pytest
import torch
from skimage import metrics

from training.ssim import look_through_windows, structural_similarity


@pytest.mark.parametrize("shape", [(7, 7), (7, 30), (41, 50)])
@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_it_is_that_of_scikit_image(shape: tuple[int, int], noise: float) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.rand(3, *shape, generator=generator)
    second = (first + noise * torch.randn(3, *shape, generator=generator)).clamp(0, 1)
    pictures = [each.permute(1, 2, 0).numpy() for each in (first, second)]
    expected = metrics.structural_similarity(*pictures, win_size=7, channel_axis=2, data_range=1.0)
    found = structural_similarity(look_through_windows(first), look_through_windows(second))
    assert found == pytest.approx(float(expected), abs=1e-5)


def test_a_picture_is_like_itself_even_where_it_is_flat() -> None:
    flat = look_through_windows(torch.full((3, 9, 9), 0.3))
    assert structural_similarity(flat, flat) == pytest.approx(1.0, abs=1e-6)
