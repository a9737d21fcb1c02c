"""Colour maths against scikit-image."""

from __future__ import annotations

import numpy as np
import torch
from skimage.color import lab2rgb, rgb2lab

from training.cie import AB_SCALE
from training.lab import l_ab_to_rgb, rgb_to_l_ab

# The promise is 1e-4 of the tensors' own units; float32 keeps it with two digits to spare.
TOLERANCE = 1e-4


def every_corner_and_noise() -> np.ndarray:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (40, 33, 3), dtype=np.uint8)
    noise[:8, :8] = (
        np.stack(np.meshgrid([0, 1, 10, 11, 127, 128, 254, 255], [0, 255], indexing="ij"), -1)
        .sum(-1)
        .repeat(4, axis=1)[:, :8, None]
        .clip(0, 255)
    )
    noise[8:10, :4] = [
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [0, 0, 0]],
        [[255] * 3, [0, 255, 255], [255, 0, 255], [1] * 3],
    ]
    return noise


def test_rgb_to_l_ab_is_scikit_images_lab() -> None:
    rgb = every_corner_and_noise()
    lightness, ab = rgb_to_l_ab(torch.from_numpy(rgb).permute(2, 0, 1)[None])
    lab = rgb2lab(rgb)
    assert np.abs(lightness[0, 0].numpy() - lab[..., 0] / 100).max() < TOLERANCE
    assert np.abs(ab[0].permute(1, 2, 0).numpy() - lab[..., 1:] / AB_SCALE).max() < TOLERANCE


def test_float_input_gives_the_same_as_bytes() -> None:
    rgb = torch.from_numpy(every_corner_and_noise()).permute(2, 0, 1)[None]
    for ours, theirs in zip(rgb_to_l_ab(rgb), rgb_to_l_ab(rgb.double() / 255), strict=True):
        assert (ours - theirs).abs().max() < TOLERANCE


def test_l_ab_to_rgb_is_scikit_images_answer_and_the_way_back() -> None:
    rgb = every_corner_and_noise()
    lightness, ab = rgb_to_l_ab(torch.from_numpy(rgb).permute(2, 0, 1)[None])
    back = l_ab_to_rgb(lightness, ab)[0].permute(1, 2, 0).numpy()
    assert np.array_equal((back * 255).round().astype(np.uint8), rgb)
    # Colours that no screen has are clipped as scikit-image clips them.
    strong = torch.tensor([0.9, -0.9]).view(1, 2, 1, 1).expand_as(ab)
    lab = np.concatenate([lightness[0].numpy() * 100, strong[0].numpy() * AB_SCALE]).transpose(1, 2, 0)
    ours = l_ab_to_rgb(lightness, strong)[0].permute(1, 2, 0).numpy()
    assert np.abs(ours - lab2rgb(lab)).max() < 1e-3
