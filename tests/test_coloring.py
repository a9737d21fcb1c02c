"""The definition of colouring: sizes, shrinking as a well-kept library does it, luminance kept, stripes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_photo
from numpy.typing import NDArray
from PIL import Image

from colorpress.core.errors import InputError
from export import picture_reference as coloring
from export.picture_contract import working_size
from export.picture_reference import color_pixels, shrink_pixels
from training.lab import l_ab_to_rgb, rgb_to_l_ab

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]


def blue(lightness: Floats) -> Floats:
    """A predictor that answers one colour everywhere."""
    answer = np.zeros((1, 2, *lightness.shape[-2:]), np.float32)
    answer[:, 1] = -0.3
    return answer


def lightness_of(pixels: Pixels) -> Floats:
    return rgb_to_l_ab(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])[0][0, 0].numpy()


def test_luminance_is_kept_and_colour_is_the_predictors() -> None:
    grey = np.linspace(90, 160, 64 * 48).astype(np.uint8).reshape(48, 64, 1)
    for pixels in (grey, np.repeat(grey, 3, axis=2)):
        coloured = color_pixels(pixels, blue, work_size=16)
        assert coloured.shape == (48, 64, 3)
        assert np.abs(lightness_of(coloured) - lightness_of(np.repeat(grey, 3, axis=2))).max() < 0.006
        ab = rgb_to_l_ab(torch.from_numpy(coloured).permute(2, 0, 1)[None])[1][0]
        assert abs(ab[0].mean().item()) < 0.01
        assert abs(ab[1].mean().item() + 0.3) < 0.01
    less = color_pixels(grey, blue, work_size=16, saturation=0.5)
    assert abs(rgb_to_l_ab(torch.from_numpy(less).permute(2, 0, 1)[None])[1][0, 1].mean().item() + 0.15) < 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3, 3), (255, 257), (64, 48)])
def test_output_size_is_input_size_and_the_predictor_sees_the_working_size(size: tuple[int, int]) -> None:
    seen: list[tuple[int, ...]] = []

    def predictor(lightness: Floats) -> Floats:
        seen.append(lightness.shape[-2:])
        return blue(lightness)

    photo = np.asarray(make_photo(0, *size))
    assert color_pixels(photo, predictor, work_size=32).shape == (size[1], size[0], 3)
    assert min(seen[0]) == min(32, *size)
    assert seen[0] == working_size(size[1], size[0], 32)[:2]


def test_a_long_strip_is_not_seen_in_full() -> None:
    for length in (400, 800, 810, 820, 1600, 10_000, 100_000):
        height, width, block = working_size(100, length, 64)
        assert height * width <= 1.02 * 8 * 64**2
        assert width <= 16 * 64
        assert (height == 64) == (length <= 810), "rounding hides the first pixels"
    assert (height, width, block) == (1, 1016, 49)


@pytest.mark.parametrize("work_size", [20, 33, 48, 100])
def test_shrinking_is_what_pillow_does(work_size: int) -> None:
    picture = make_photo(3, 240, 180)
    rows, columns, block = working_size(180, 240, work_size)
    small = shrink_pixels(np.asarray(picture), work_size)
    assert small.shape == (1, 3, rows, columns)
    averaged = picture.reduce(block)
    box = (0.0, 0.0, 240 / block, 180 / block)
    expected = np.asarray(averaged.resize((columns, rows), Image.Resampling.BILINEAR, box))
    assert np.abs(small[0].permute(1, 2, 0).numpy() * 255 - expected).max() < 1.6  # Pillow rounds twice


def test_pictures_of_the_working_size_and_below_are_seen_as_they_are() -> None:
    pixels = np.asarray(make_photo(1, 40, 30))
    np.testing.assert_allclose(shrink_pixels(pixels, 30)[0].permute(1, 2, 0) * 255, pixels, atol=1e-3)


def test_stripes_give_what_the_whole_picture_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    def noise(lightness: Floats) -> Floats:
        return np.random.default_rng(5).uniform(-0.4, 0.4, (1, 2, *lightness.shape[-2:])).astype(np.float32)

    pixels = np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8)
    small = shrink_pixels(pixels, 10)
    monkeypatch.setattr(coloring, "_STRIPE_PIXELS", 47 * 7)
    torch.testing.assert_close(shrink_pixels(pixels, 10), small)
    striped = color_pixels(pixels, noise, work_size=10)
    rgb = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    ab = F.interpolate(torch.from_numpy(noise(np.zeros((1, 1, 13, 10), np.float32))), (61, 47), mode="bilinear")
    whole = (l_ab_to_rgb(rgb_to_l_ab(rgb)[0], ab) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    assert np.abs(striped.astype(int) - whole).max() <= 1


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_no_colour_is_refused(bad: float) -> None:
    pixels = np.asarray(make_photo(0))
    with pytest.raises(InputError, match="instead of colours"):
        color_pixels(pixels, lambda lightness: np.full_like(blue(lightness), bad))
    with pytest.raises(InputError, match="instead of colours"):
        color_pixels(pixels, lambda lightness: blue(lightness)[..., 1:])
