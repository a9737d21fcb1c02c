"""Controls that see no picture: their colours are medians, and their files answer what the tables say."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from colorpress.core.config import DataConfig, Settings
from colorpress.core.errors import InputError
from colorpress.core.files import sha256_file
from export.controls import (
    CONTROL_TITLES,
    GREY,
    LIGHTNESSES,
    TABLE,
    TINT,
    control_path,
    find_rows,
    fit_controls,
    make_controls,
    write_control,
)
from export.graph import read_metadata
from export.predictors import OnnxPredictor
from training.batches import whole_photos
from training.lab import rgb_to_l_ab
from training.photo_scan import scan_photos
from training.photo_split import PhotoSplit
from training.run_folder import Run

# Medians are read from levels of so much: a sixteenth of a unit of CIE Lab.
LEVEL = 2 / 4096


def random_pictures(count: int = 5) -> list[tuple[Tensor, Tensor]]:
    """Different sizes; a and b depend on the lightness, so that a table is more than one tint."""
    generator = torch.Generator().manual_seed(4)
    pictures = []
    for index in range(count):
        lightness = torch.rand(1, 1, 20 + index, 31, generator=generator)
        noise = 0.1 * torch.randn(1, 2, 20 + index, 31, generator=generator)
        pictures.append((lightness, torch.cat((lightness - 0.5, 0.3 - 0.4 * lightness), 1) + noise))
    return pictures


def test_colours_are_the_medians_of_all_pixels() -> None:
    pictures = random_pictures()
    tables = fit_controls(pictures)
    assert {name: table.shape for name, table in tables.items()} == {
        GREY: (1, 2),
        TINT: (1, 2),
        TABLE: (LIGHTNESSES, 2),
    }
    lightness = np.concatenate([each.numpy().ravel() for each, _ in pictures])
    ab = np.concatenate([each[0].numpy().reshape(2, -1) for _, each in pictures], axis=1)
    assert not tables[GREY].any()
    np.testing.assert_allclose(tables[TINT][0], np.median(ab, axis=1), atol=LEVEL)
    rows = np.minimum((lightness * LIGHTNESSES).astype(int), LIGHTNESSES - 1)
    # Of an even number of pixels the lower of the two in the middle is taken.
    by_hand = [np.sort(ab[:, rows == row], axis=1)[:, ((rows == row).sum() - 1) // 2] for row in range(LIGHTNESSES)]
    np.testing.assert_allclose(tables[TABLE], by_hand, atol=LEVEL)
    assert np.ptp(tables[TABLE][:, 0]) > 0.5


def test_on_what_it_was_fitted_on_each_control_is_better_than_the_one_before() -> None:
    pictures = random_pictures()
    errors = []
    for table in fit_controls(pictures).values():
        colours = torch.from_numpy(table)
        answers = [colours[find_rows(lightness[:, 0], len(table))].permute(0, 3, 1, 2) for lightness, _ in pictures]
        errors.append(np.mean([float((a - ab).abs().mean()) for a, (_, ab) in zip(answers, pictures, strict=True)]))
    assert errors[0] > 1.05 * errors[1] > 1.05**2 * errors[2]


def test_photographs_of_one_lightness_make_a_table_of_one_tint() -> None:
    ab = 0.2 * torch.randn(1, 2, 9, 9, generator=torch.Generator().manual_seed(1))
    tables = fit_controls([(torch.full((1, 1, 9, 9), 0.4), ab)])
    assert (tables[TABLE] == tables[TINT]).all()


def test_a_lightness_that_none_has_takes_the_nearest_ones_colours() -> None:
    dark, light = torch.full((1, 1, 4, 4), 0.1), torch.full((1, 1, 4, 4), 0.8)
    red, blue = (torch.tensor(each).view(1, 2, 1, 1).expand(1, 2, 4, 4) for each in ((0.4, 0.1), (-0.1, -0.4)))
    table = fit_controls([(dark, red), (light, blue)])[TABLE]
    rows = find_rows(torch.tensor([0.1, 0.8]), LIGHTNESSES)
    middle = int(rows.sum()) // 2
    np.testing.assert_allclose(table[: middle + 1], np.tile([[0.4, 0.1]], (middle + 1, 1)), atol=LEVEL)
    np.testing.assert_allclose(table[middle + 1 :], np.tile([[-0.1, -0.4]], (31 - middle, 1)), atol=LEVEL)


def test_extreme_colours_are_within_the_levels() -> None:
    ab = torch.tensor([1.0, -1.0]).view(1, 2, 1, 1).expand(1, 2, 3, 3)
    np.testing.assert_allclose(fit_controls([(torch.zeros(1, 1, 3, 3), ab)])[TINT], [[1.0, -1.0]], atol=LEVEL)


def test_without_a_picture_there_is_no_control() -> None:
    with pytest.raises(InputError, match="no photograph to train on can be read"):
        fit_controls([])


@pytest.mark.parametrize("name", [GREY, TINT, TABLE])
def test_files_answer_what_the_table_says(tmp_path: Path, name: str) -> None:
    table = fit_controls(random_pictures())[name]
    path = write_control(table, tmp_path / f"{name}.onnx")
    assert path.stat().st_size < 2000
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    generator = np.random.default_rng(0)
    for shape in ((1, 1, 1, 1), (1, 1, 37, 51), (3, 1, 5, 8), (2, 1, 1, 9)):
        lightness = generator.random(shape, dtype=np.float32)
        lightness.flat[0], lightness.flat[-1] = 0.0, 1.0
        (answer,) = session.run(None, {"L": lightness})
        assert answer.dtype == np.float32
        rows = np.minimum(np.floor(lightness[:, 0] * len(table)).astype(int), len(table) - 1)
        np.testing.assert_array_equal(answer, table[rows].transpose(0, 3, 1, 2))
    borders = np.arange(LIGHTNESSES + 1, dtype=np.float32).reshape(1, 1, 1, -1) / LIGHTNESSES
    (answer,) = session.run(None, {"L": borders})
    expected = table if name == TABLE else np.repeat(table, LIGHTNESSES, axis=0)
    np.testing.assert_array_equal(answer[0, :, 0].T, [*expected, expected[-1]])


def make_run(tmp_path: Path, photo_folder: Path) -> tuple[Run, PhotoSplit]:
    run = Run(tmp_path / "out", Settings.from_options({"data": photo_folder, "device": "cpu"}))
    return run, scan_photos(DataConfig(data=photo_folder), workers=0)


def test_the_stage_of_a_run_folder_fits_on_the_training_photographs(tmp_path: Path, photo_folder: Path) -> None:
    run, photos = make_run(tmp_path, photo_folder)
    record = make_controls(run, photos)
    assert set(record.outputs) == {f"controls/{name}.onnx" for name in CONTROL_TITLES}
    pictures = [rgb_to_l_ab(rgb) for _, rgb in whole_photos(photos.train, short_side=128, max_pixels=10**9)]
    (lightness, _), *_ = pictures
    for name, table in fit_controls(pictures).items():
        rows = find_rows(lightness[:, 0], len(table)).numpy()
        answer = OnnxPredictor(control_path(run, name), threads=1)(lightness.numpy())
        np.testing.assert_array_equal(answer, table[rows].transpose(0, 3, 1, 2))
    entries = read_metadata(control_path(run, TABLE))
    assert entries["task"] == "control" and entries["precision"] == "fp32"


def test_the_stage_is_done_once_for_the_same_photographs(tmp_path: Path, photo_folder: Path) -> None:
    run, photos = make_run(tmp_path, photo_folder)
    make_controls(run, photos)
    before = sha256_file(control_path(run, TABLE))
    assert make_controls(run, photos).skipped
    others = PhotoSplit(train=photos.train, choosing=photos.test)
    assert make_controls(run, others).skipped  # they are fitted on nothing else
    fewer = replace(photos, train=photos.train[1:])
    assert not make_controls(run, fewer).skipped
    assert sha256_file(control_path(run, TABLE)) != before
    control_path(run, TABLE).write_bytes(b"another")
    assert not make_controls(run, photos).skipped
    assert sha256_file(control_path(run, TABLE)) == before


def test_photographs_that_are_gone_are_said(tmp_path: Path, photo_folder: Path) -> None:
    run, photos = make_run(tmp_path, photo_folder)
    for photo in photos.train:
        photo.path.unlink()
    with pytest.raises(InputError, match="no photograph to train on can be read"):
        make_controls(run, photos)
    assert not control_path(run, TABLE).exists()
