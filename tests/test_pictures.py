"""Sheets: their layout, their labels, and that the colours in them are the variants'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import pictures
from benchmarks.pictures import (
    ColoredPhoto,
    color_photos,
    draw_comparison,
    draw_input_output,
    draw_outputs,
    save_picture,
    shorten_label,
)
from benchmarks.variants import Variant, describe_variant
from colorpress.files import sha256_file
from training.photos import Photo, load_rgb

CELL, GAP, LINES = 100, 8, 40


def solid(colour: tuple[int, int, int], width: int = 50, height: int = 40) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def colored(name: str = "cat.jpg", width: int = 50, height: int = 40) -> ColoredPhoto:
    return ColoredPhoto(
        name=name,
        grey=solid((128, 128, 128), width, height),
        truth=solid((200, 30, 30), width, height),
        answers={"best.pt": solid((30, 200, 30), width, height)},
        l1={"grey": 0.2, "best.pt": 0.1},
    )


def test_real_photographs_are_coloured(tiny_checkpoint: Path, photo_folder: Path) -> None:
    path = photo_folder / "photo0.png"
    photo = Photo(path, sha256_file(path), 48, 40)
    broken = Variant("broken", photo_folder / "none.onnx", "onnxruntime", "cpu", "fp32", 1, 1, 1, 1)
    variants = [describe_variant("best.pt", tiny_checkpoint), broken]
    (result,) = color_photos(variants, [photo], short_side=32, max_pixels=10_000_000)
    truth = load_rgb(path, max_pixels=10_000_000, short_side=32)
    assert result.name == "photo0.png"
    assert np.array_equal(result.truth, truth)
    assert list(result.answers) == ["best.pt"]  # the broken one is left out
    assert set(result.l1) == {"grey", "best.pt"}
    assert np.ptp(result.grey.astype(int), axis=2).max() <= 1
    # Grey and answer share the photograph's luminance (Rec. 709 weights on linear light, roughly).
    assert result.answers["best.pt"].shape == truth.shape
    assert abs(float(result.grey.mean()) - float(truth.mean())) < 25


def test_the_sheet_has_a_row_for_each_photograph_and_a_column_for_each_variant() -> None:
    sheet = draw_comparison([colored(), colored(width=40, height=40)], ["best.pt", "gone"], cell=CELL)
    assert sheet.size == (GAP + 4 * (CELL + GAP), GAP + (80 + LINES + GAP) + (100 + LINES + GAP))
    middle = [sheet.getpixel((GAP + column * (CELL + GAP) + 50, GAP + 40)) for column in range(4)]
    assert middle[:3] == [(128, 128, 128), (200, 30, 30), (30, 200, 30)]
    assert middle[3] == (255, 255, 255)  # an empty frame where a variant has no answer


def test_a_tall_photograph_keeps_its_shape() -> None:
    sheet = draw_comparison([colored(width=20, height=80)], ["best.pt"], cell=CELL)
    assert sheet.height == GAP + 100 + LINES + GAP  # a cell high, so 25 wide
    assert sheet.getpixel((GAP + 50, GAP + 50)) == (128, 128, 128)
    assert sheet.getpixel((GAP + 10, GAP + 50)) == (255, 255, 255)


def test_samples(tmp_path: Path) -> None:
    photos = [colored(f"{index}.jpg") for index in range(4)]
    pair = draw_input_output(photos[:2], "best.pt", cell=CELL)
    assert pair.width == GAP + 3 * (CELL + GAP)
    grid = draw_outputs(photos, "best.pt", columns=3, cell=CELL)
    assert grid.size == (GAP + 3 * (CELL + GAP), GAP + 2 * (80 + LINES + GAP))
    assert grid.getpixel((GAP + 50, GAP + 40)) == (30, 200, 30)
    with Image.open(save_picture(grid, tmp_path / "x.png")) as saved:
        assert (saved.format, saved.size) == ("PNG", grid.size)


@pytest.mark.parametrize(
    "name", ["x", "a" * 200, "тест 画像 é.png", "new\nline.png", "pruned-int8-with-a-long-name", ""]
)
def test_labels_fit_their_cell(name: str) -> None:
    font = pictures._load_font()
    label = shorten_label(name, CELL, font)
    assert font.getlength(label) <= CELL
    assert "\n" not in label
    assert draw_comparison([colored(name)], ["best.pt"], cell=CELL).width == GAP + 3 * (CELL + GAP)


def test_labels_keep_both_ends() -> None:
    label = shorten_label("holiday-in-the-mountains-0042.jpg", 120, pictures._load_font())
    assert label.startswith("holi") and label.endswith(".jpg") and "…" in label
