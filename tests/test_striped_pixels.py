"""Colouring in stripes: within a level of the definition, from where the pixels lie to there, and for large files."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_photo
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from colorpress.core.errors import InputError
from export.colorize_folder import DEMONSTRATION_MODEL, Coloring, colorize_each
from export.large_pictures import open_network_of
from export.picture_contract import AskedNetwork, is_picture_graph
from export.picture_reference import color_pixels
from export.runtimes import Opening, open_colorizer
from export.striped_pixels import ArrayRows, PictureRows, color_rows

Pixels = NDArray[np.uint8]


def waves(channels: int) -> AskedNetwork:
    """A network that answers smooth colours, up to the strongest there are, as ab (2) or as an affine field (4)."""

    def predict(lightness: NDArray[np.float32]) -> NDArray[np.float32]:
        rows, columns = np.mgrid[: lightness.shape[2], : lightness.shape[3]]
        planes = [np.sin(columns / 9.0 + each) * np.cos(rows / 7.0) for each in range(channels)]
        return np.stack(planes)[None].astype(np.float32)

    return AskedNetwork(predict, work_size=32, saturation=0.8)


@pytest.mark.parametrize(
    ("shape", "channels"),
    [((1, 1, 3), 2), ((37, 53, 3), 4), ((300, 211, 1), 2), ((40, 900, 3), 4), ((600, 450, 1), 4), ((333, 500, 3), 2)],
)
def test_stripes_are_within_a_level_of_the_definition(
    shape: tuple[int, int, int], channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.striped_pixels._STRIPE_PIXELS", 4096)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    network = waves(channels)
    expected = color_pixels(pixels, **vars(network)).astype(int)
    colored = np.empty((*shape[:2], 3), np.uint8)
    color_rows(ArrayRows(pixels), ArrayRows(colored), network, threads=2)
    assert np.abs(colored - expected).max() <= 1
    # A picture of Pillow's, in its place.
    picture = Image.fromarray(pixels if shape[2] == 3 else pixels[..., 0])
    target = picture if shape[2] == 3 else Image.new("RGB", picture.size)
    color_rows(PictureRows(picture), PictureRows(target), network)
    assert np.array_equal(np.asarray(target), colored)


def test_threads_write_one_picture_though_pillow_copies_it_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(picture: Any) -> None:
        copied = picture.im.copy()
        time.sleep(0.002)  # as for a large one, after which another thread has its turn
        picture.im, picture.readonly = copied, 0

    monkeypatch.setattr("export.striped_pixels._STRIPE_PIXELS", 64)
    monkeypatch.setattr(Image.Image, "_copy", copy)
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    picture = Image.fromarray(pixels)
    picture.readonly = 1  # as HEIC is when it was loaded
    color_rows(PictureRows(picture), PictureRows(picture), waves(2), threads=4)
    color_rows(ArrayRows(pixels), ArrayRows(pixels), waves(2))
    assert np.array_equal(np.asarray(picture), pixels)


def test_a_network_that_answers_no_colours_is_refused() -> None:
    def fail(lightness: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.full((1, 2, *lightness.shape[2:]), np.nan, np.float32)

    rows = ArrayRows(np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(InputError, match="not finite"):
        color_rows(rows, rows, AskedNetwork(fail))


def test_large_photographs_are_coloured_in_stripes_as_others_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    profile = b"no profile that anybody reads"
    make_photo(0, 90, 60).save(tmp_path / "in" / "a.png", icc_profile=profile, dpi=(300, 300))
    make_photo(1, 60, 90).convert("L").save(tmp_path / "in" / "b.png")
    make_photo(2, 60, 90).save(tmp_path / "in" / "c.tif")
    make_photo(3, 60, 90).convert("L").save(tmp_path / "in" / "d.tif")
    Image.fromarray(np.asarray(make_photo(4).convert("L")).astype(np.uint16) * 257).save(tmp_path / "in" / "e.png")
    usual = open_colorizer(DEMONSTRATION_MODEL, work_size=32, threads=1)
    opened: list[AskedNetwork] = []

    def open_network() -> AskedNetwork:
        opened.append(open_network_of(DEMONSTRATION_MODEL, Opening(threads=1, work_size=32)))
        return opened[0]

    whole = colors_of(tmp_path / "whole", Coloring(usual, open_network=open_network), tmp_path / "in")
    assert not opened
    monkeypatch.setattr("export.colorize_folder._PIXELS_A_WORKER", 1000)

    def refuse(pixels: Pixels) -> Pixels:
        raise AssertionError

    striped = colors_of(tmp_path / "striped", Coloring(refuse, open_network=open_network), tmp_path / "in")
    assert len(opened) == 1 and set(striped) == set(whole) == {"a.png", "b.png", "c.tif", "d.tif", "e.png"}
    assert all(np.abs(striped[name] - whole[name]).max() <= 2 for name in whole)
    with Image.open(tmp_path / "striped" / "a.png") as picture:
        assert "icc_profile" not in picture.info and picture.info["dpi"] == pytest.approx((300, 300), abs=0.1)
    # Where no network can be had, the colorizer does those too.
    again = colors_of(tmp_path / "again", Coloring(usual), tmp_path / "in")
    assert all(np.array_equal(again[name], whole[name]) for name in whole)


def colors_of(output: Path, coloring: Coloring, folder: Path) -> dict[str, NDArray[np.int64]]:
    list(colorize_each([folder], output, coloring))
    return {path.name: np.asarray(Image.open(path)).astype(int) for path in output.iterdir()}


def test_a_picture_graph_is_told_from_any_other_file() -> None:
    content = DEMONSTRATION_MODEL.read_bytes()
    assert is_picture_graph(content)
    lightness = helper.make_tensor_value_info("image_of_L", TensorProto.FLOAT, [1, 1, 8, 8])
    bare = helper.make_model(helper.make_graph([], "image", [lightness], []), doc_string="image")
    assert not is_picture_graph(bare.SerializeToString())
    for damaged in (b"", b"\x80", content[:2000], b"\xff" * 100, bytes(100), content[1:]):
        assert not is_picture_graph(damaged)
