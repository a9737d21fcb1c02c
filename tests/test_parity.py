"""The comparison itself: hand-made differences are found, measured and refused."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest

from colorpress.core.errors import GateError
from export.parity import (
    DEFAULT_SHAPES,
    check_parity,
    check_picture_parity,
    matrix_shapes,
    require_parity,
    require_picture_parity,
)

SHAPES = ((1, 1, 1), (3, 5, 4))


def double(lightness):
    return np.concatenate((lightness, -lightness), axis=1)


def test_equal_answers_pass_with_nothing_between_them():
    result = check_parity(double, double, atol=0.0)
    assert result.passed
    assert len(result.shapes) == len(DEFAULT_SHAPES)
    assert all(each.max_abs == each.mean_abs == 0.0 and each.psnr_db is None for each in result.shapes)


def test_a_known_difference_is_measured():
    result = check_parity(double, lambda x: double(x) + np.float32(0.5), shapes=SHAPES, atol=0.1)
    assert not result.passed
    assert result.max_abs == pytest.approx(0.5, abs=1e-6)
    assert result.mean_abs == pytest.approx(0.5, abs=1e-6)
    assert result.shapes[1].psnr_db == pytest.approx(10 * math.log10(4 / 0.25), abs=1e-4)
    with pytest.raises(GateError, match=r"differ from PyTorch by 0\.5 at") as caught:
        require_parity(result, "model.onnx")
    assert caught.value.exit_code == 5


def test_one_wrong_pixel_of_one_shape_is_enough():
    def wrong(lightness):
        answer = double(lightness).copy()
        if lightness.shape[0] == 3:
            answer[2, 1, 4, 3] += 1e-3
        return answer

    result = check_parity(double, wrong, shapes=SHAPES, atol=1e-4)
    assert not result.passed
    with pytest.raises(GateError, match="3x1x5x4"):
        require_parity(result, "model.onnx")


@pytest.mark.parametrize("factor", [np.nan, np.inf])
@pytest.mark.filterwarnings("ignore:invalid value")
def test_what_is_not_finite_never_passes(factor: float):
    result = check_parity(double, lambda x: (double(x) + 1) * np.float32(factor), shapes=SHAPES, atol=1.0)
    assert not result.passed and result.shapes[0].psnr_db is None
    with pytest.raises(GateError, match=r"nan|inf"):
        require_parity(result, "model.onnx")


def test_another_shape_is_refused():
    with pytest.raises(GateError, match="answer is"):
        check_parity(double, lambda x: x, shapes=SHAPES)


def test_without_a_tolerance_it_only_reports():
    result = check_parity(double, lambda x: 2 * double(x), shapes=SHAPES, atol=None)
    assert result.passed
    require_parity(result, "int8")
    assert result.max_abs > 0.1


def test_the_same_seed_asks_the_same_questions():
    seen = []
    for _ in range(2):
        check_parity(double, double, shapes=SHAPES, seed=4)
        check_parity(lambda x: (seen.append(x.sum()), double(x))[1], double, shapes=SHAPES, seed=4)
    assert seen[:2] == seen[2:]


def test_what_is_made_of_rounding_alone_is_not_compared():
    def spread(lightness, eps=1e-12):
        """A norm over places: of one value all over it enlarges the rounding."""
        centred = lightness - lightness.mean((2, 3), keepdims=True)
        made = np.sin(1e9 * lightness) if lightness[0].size == 1 else centred / np.sqrt((centred**2).mean() + eps)
        return np.repeat(made, 2, axis=1).astype(np.float32)

    def other(lightness):
        return spread(lightness - 1e-7)

    result = check_parity(spread, other, shapes=SHAPES, atol=1e-4)
    assert [(each.height, each.width) for each in result.undecided] == [(1, 1)] and len(result.shapes) == 1
    assert "at 1 sizes; not compared at 1 x 1, where PyTorch's own answer" in result.describe()
    assert result.passed and result.max_abs < 1e-4
    # Rounding is no excuse where the reference knows its answer, for NaN, or where it is so everywhere.
    wrong = check_parity(double, lambda x: double(x) + 0.01, shapes=[(1, 1, 1)], atol=1e-4)
    lost = check_parity(spread, lambda x: spread(x) * np.nan, shapes=SHAPES, atol=1e-4)
    alone = check_parity(spread, other, shapes=[(1, 1, 1)], atol=1e-4)
    assert not any(each.passed or each.undecided for each in (wrong, lost, alone))


def test_result_is_json():
    result = check_parity(double, double, shapes=SHAPES)
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["shapes"][0]["psnr_db"] is None


def test_the_matrix_has_what_it_promises():
    shapes = matrix_shapes()
    assert len(shapes) == len(set(shapes)) == 208
    batches, heights, widths = (set(values) for values in zip(*shapes, strict=True))
    assert batches == set(range(1, 9))
    assert {1, 513} <= heights & widths
    assert any(height >= 100 * width for _, height, width in shapes)
    assert any(width >= 100 * height for _, height, width in shapes)
    assert max(n * h * w for n, h, w in shapes) <= 513 * 513


def tint(pixels, work_size):
    return np.repeat(pixels[..., :1], 3, axis=2)


def test_pictures_one_level_apart_pass_and_two_do_not():
    def shifted(levels):
        def color(pixels, work_size):
            answer = tint(pixels, work_size)
            answer[0, 0, 0] ^= levels
            return answer

        return check_picture_parity(tint, color, photographs=[np.zeros((40, 50, 3), np.uint8)])

    same = check_picture_parity(tint, tint)
    assert (same.max_levels, same.mean_levels, same.psnr_db) == (0, 0.0, None)
    one = shifted(1)
    assert (one.max_levels, one.pictures) == (1, 10)
    assert 0.0 < one.mean_levels < 1e-3 and one.p999_levels == 0.0 and 50 < one.psnr_db < 120
    require_picture_parity(one, "colorizer.onnx")
    with pytest.raises(GateError, match=r"colorizer.onnx': a pixel differs by 2 grey levels"):
        require_picture_parity(shifted(2), "colorizer.onnx")


def test_pictures_of_another_shape_are_refused():
    with pytest.raises(GateError, match="where the reference's is"):
        check_picture_parity(tint, lambda pixels, size: tint(pixels, size)[1:])


def test_every_picture_is_asked_for_at_its_working_size():
    seen = []
    check_picture_parity(lambda p, size: (seen.append((p.shape, size)), tint(p, size))[1], tint, work_size=99,
                         photographs=[np.zeros((40, 50, 3), np.uint8)])  # fmt: skip
    assert ((131, 517, 3), 32) in seen and seen[-1] == ((40, 50, 3), 99)
