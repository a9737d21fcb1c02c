"""A crop of a photograph: where it lies, how large it may be, its pixels, and what is kept of the photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import make_photo
from PIL import Image

from colorpress.core import machine
from colorpress.core.config import Recipe
from colorpress.core.errors import ConfigError, InputError
from training import crops, photos
from training.crops import CropDraw, CropSides, KeptPhotos, cut_crop
from training.photos import Photo

LIMIT = 1_000_000


def photo_of(path: Path, width: int, height: int) -> Photo:
    return Photo(path, path.name, width, height)


def sized(*sizes: tuple[int, int]) -> list[Photo]:
    return [photo_of(Path(f"{number}.png"), *size) for number, size in enumerate(sizes)]


def make_map() -> np.ndarray:
    """(200, 240, 3): red tells the column, green the row, so that a crop says where it was taken."""
    rows, columns = np.mgrid[0:200, 0:240]
    return np.stack([columns, rows, 0 * rows], axis=2).astype(np.uint8)


def test_crops_are_parts_of_the_photograph_of_the_promised_size() -> None:
    areas, flips = [], 0
    for number in range(200):
        crop = cut_crop(make_map(), CropDraw.by((0, number), crop_share=0.35), 64).astype(int)
        assert crop.shape == (64, 64, 3)
        width, height = (abs(crop[..., axis].max() - crop[..., axis].min()) for axis in (0, 1))
        assert 0.65 < width / max(height, 1) < 1.55
        areas.append(width * height / (200 * 240))
        flips += crop[0, 0, 0] > crop[0, -1, 0]
    assert 0.3 < min(areas) < 0.42
    assert 0.85 < max(areas) <= 1.0
    assert 70 < flips < 130


def sides_of(photos: list[Photo], recipe: Recipe, epoch: int = 1) -> list[int]:
    sides = CropSides.of(photos, recipe)
    return sorted({sides.draw(0, epoch, batch) for batch in range(200)})


def test_crops_are_of_many_sizes_and_no_larger_than_most_photographs() -> None:
    large, small, tiny = (640, 480), (101, 120), (3, 90)
    recipe = Recipe(imgsz=128, size_jitter=0.25)
    assert sides_of(sized(large, large, small), recipe) == list(range(96, 160, 4))
    assert CropSides.of(sized(large), recipe).largest == 160
    # Around the size of the photographs where that is smaller than what is asked for, and no larger.
    assert sides_of(sized(large, small, small), recipe) == list(range(76, 104, 4))
    assert CropSides.of(sized(small), recipe).largest == 100
    assert sides_of(sized(large), Recipe(imgsz=64, size_jitter=0.0)) == [64]
    assert sides_of(sized(tiny), recipe) == [3]


def test_growing_crops_reach_their_size_before_the_last_fifth() -> None:
    recipe = Recipe(imgsz=96, start_imgsz=48, epochs=10, size_jitter=0.0)
    sides = CropSides(recipe, usual=480)
    assert [sides.draw(0, epoch, 0) for epoch in range(11)] == [48, 48, 52, 60, 64, 72, 76, 84, 88, 96, 96]
    assert CropSides(recipe, usual=64).draw(0, 10, 0) == 64
    with pytest.raises(ConfigError, match="--start-imgsz"):
        Recipe(imgsz=32, start_imgsz=48)


def sides_at(imgsz: int, crop_share: float, usual: int = 10_000) -> CropSides:
    return CropSides(Recipe(imgsz=imgsz, crop_share=crop_share, size_jitter=0.0), usual)


def test_small_photographs_are_shown_nearly_whole_instead_of_enlarged() -> None:
    large, small, tiny = sized((640, 480), (100, 100), (40, 40))
    assert sides_at(128, 0.12).least_share(large) == 0.12
    # 96 pixels across are at most 1.25 times those of the photograph: 76.8 of its 100.
    assert sides_at(128, 0.12, usual=96).least_share(small) == pytest.approx(0.768**2)
    assert sides_at(96, 0.7).least_share(small) == 0.7
    assert sides_at(96, 0.12).least_share(tiny) == 1.0


def test_a_photograph_is_read_no_larger_than_its_crops_need(tmp_path: Path) -> None:
    make_photo(1, 1600, 1200).save(tmp_path / "x.jpg", quality=95)
    make_photo(1, 1600, 1200).save(tmp_path / "x.png")
    photos = [photo_of(tmp_path / name, 1600, 1200) for name in ("x.jpg", "x.png")]
    jpeg, png = (KeptPhotos(sides_at(64, 0.35), 2 * LIMIT).read(photo) for photo in photos)
    # A crop of 0.35 of the area, three pixels wide for four of height, has 64 pixels across.
    assert jpeg.shape == png.shape == (125, 167, 3)
    assert np.abs(jpeg.astype(int) - png).mean() < 3
    assert KeptPhotos(sides_at(640, 0.12), 2 * LIMIT).read(photo_of(tmp_path / "x.png", 1600, 1200)).shape == (
        1200,
        1600,
        3,
    )


def test_photographs_stay_in_memory_as_far_as_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for number in range(3):
        path = tmp_path / f"{number}.png"
        make_photo(number).save(path)
        found.append(photo_of(path, 48, 40))
    read: list[Path] = []
    load = crops.load_rgb
    monkeypatch.setattr(crops, "load_rgb", lambda path, **limits: read.append(path) or load(path, **limits))
    # Room for four photographs, which two processes share: each keeps two.
    monkeypatch.setattr(crops, "_free_bytes", lambda: 4 * 40 * 48 * 3)
    kept = KeptPhotos(sides_at(36, 1.0), LIMIT, processes=2)
    first = [kept.read(photo).copy() for photo in found]
    again = [kept.read(photo) for photo in found]
    assert [path.name for path in read] == ["0.png", "1.png", "2.png", "2.png"]
    for photo, before, after in zip(found, first, again, strict=True):
        assert np.array_equal(before, after)
        assert np.array_equal(after, photos.load_rgb(photo.path, max_pixels=LIMIT))


def test_there_is_room_for_a_quarter_of_the_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: None)
    assert 0.1 < crops._free_bytes() / psutil.virtual_memory().available < 0.4
    monkeypatch.setattr(machine, "memory_limit_bytes", lambda: 4_000)  # of a container
    assert crops._free_bytes() == 1_000


def test_a_photograph_that_cannot_be_read_is_an_input_error(tmp_path: Path) -> None:
    Image.new("RGB", (40, 40)).save(tmp_path / "x.png")
    with pytest.raises(InputError, match="limit"):
        KeptPhotos(sides_at(32, 1.0), 100).read(photo_of(tmp_path / "x.png", 40, 40))
