"""Colouring: size, luminance, names and metadata of a photograph survive; nothing of the user's is overwritten."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import make_photo
from numpy.typing import NDArray
from PIL import Image

from colorpress.errors import ConfigError, InputError, MachineError
from export import colorize
from export.colorize import colorize_photos, colorize_picture
from export.predictors import open_predictor
from training.color import l_ab_to_rgb, rgb_to_l_ab

Floats = NDArray[np.float32]
seen_sizes: list[tuple[int, ...]] = []


def blue(lightness: Floats) -> Floats:
    """A predictor that answers one colour everywhere."""
    seen_sizes.append(lightness.shape[-2:])
    answer = np.zeros((1, 2, *lightness.shape[-2:]), np.float32)
    answer[:, 1] = -0.3
    return answer


def lightness_of(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return rgb_to_l_ab(torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None])[0][0, 0].numpy()


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_luminance_is_kept_and_colour_is_the_predictors() -> None:
    grey = np.linspace(90, 160, 64 * 48).astype(np.uint8).reshape(48, 64)
    picture = Image.fromarray(grey).convert("RGB")
    coloured = colorize_picture(picture, blue, work_size=16)
    assert coloured.shape == (48, 64, 3)
    assert np.abs(lightness_of(coloured) - lightness_of(np.asarray(picture))).max() < 0.006
    ab = rgb_to_l_ab(torch.from_numpy(coloured).permute(2, 0, 1)[None])[1][0]
    assert abs(ab[0].mean().item()) < 0.01
    assert abs(ab[1].mean().item() + 0.3) < 0.01


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3, 3), (255, 257), (64, 48)])
def test_output_size_is_input_size_and_the_predictor_sees_the_working_size(size: tuple[int, int]) -> None:
    seen_sizes.clear()
    assert colorize_picture(make_photo(0, *size), blue, work_size=32).shape == (size[1], size[0], 3)
    assert min(seen_sizes[0]) == min(32, *size)


def test_stripes_give_what_the_whole_picture_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(0)

    def noise(lightness: Floats) -> Floats:
        return np.random.default_rng(5).uniform(-0.4, 0.4, (1, 2, *lightness.shape[-2:])).astype(np.float32)

    picture = Image.fromarray(generator.integers(0, 256, (61, 47, 3), dtype=np.uint8))
    monkeypatch.setattr(colorize, "_STRIPE_PIXELS", 47 * 7)
    striped = colorize_picture(picture, noise, work_size=10)
    rgb = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    ab = F.interpolate(torch.from_numpy(noise(np.zeros((1, 1, 13, 10)))), (61, 47), mode="bilinear")
    whole = (l_ab_to_rgb(rgb_to_l_ab(rgb)[0], ab) * 255).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    assert np.abs(striped.astype(int) - whole).max() <= 1


def test_a_real_network_colours_every_kind_of_file(tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    photo = make_photo(1)
    photo.save(folder / "a.jpg")
    photo.save(folder / "a.png")
    photo.save(folder / "a.tif")
    photo.save(folder / "b.WEBP", "WEBP")
    photo.convert("L").save(folder / "sub" / "c.bmp")
    photo.quantize(8).save(folder / "d.gif")
    photo.convert("CMYK").save(folder / "sub" / "a.jpeg")
    (folder / "notes.txt").write_text("no picture")
    (folder / "broken.jpg").write_bytes(b"<html>")
    os.mkfifo(folder / "pipe.png")
    before = sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*"))
    output = tmp_path / "out"
    predictor = open_predictor(tiny_checkpoint, device="cpu", threads=1)
    result = colorize_photos([folder], output, predictor, work_size=32)
    expected = ["a.jpg", "a.png", "a.tif.png", "b.WEBP", "d.png", "sub/a.jpeg", "sub/c.png"]
    assert names_in(output) == sorted(expected)
    assert sorted(path.relative_to(output).as_posix() for path in result.colorized) == sorted(expected)
    assert {each.path.name: each.reason for each in result.skipped} == {
        "broken.jpg": "HTML page, not an image",
        "pipe.png": "not a regular file",
    }
    kinds = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
    for path in result.colorized:
        with Image.open(path) as picture:
            assert (picture.size, picture.mode, picture.format) == (photo.size, "RGB", kinds[path.suffix.lower()])
    assert sorted((path, path.stat().st_mtime_ns) for path in folder.rglob("*")) == before


def test_exif_is_kept_upright_and_transparency_where_the_format_has_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    make_photo(2, 40, 24).save(tmp_path / "turned.jpg", exif=exif)
    clear = make_photo(2, 40, 24)
    clear.putalpha(Image.linear_gradient("L").resize((40, 24)))
    clear.save(tmp_path / "clear.png", exif=exif)
    clear.save(tmp_path / "clear.webp", lossless=True)
    clear.save(tmp_path / "wrong.jpg", "PNG")
    colorize_photos([tmp_path], tmp_path / "out", blue, work_size=16)
    for name in ("turned.jpg", "clear.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            assert picture.size == (24, 40)
            assert dict(picture.getexif()) == {0x010F: "a camera"}
    for name, size in (("clear.png", (24, 40)), ("clear.webp", (40, 24))):
        with Image.open(tmp_path / "out" / name) as picture:
            assert (picture.mode, picture.size) == ("RGBA", size)
            alpha = np.asarray(picture.getchannel("A"))
            original = np.asarray(clear.getchannel("A"))
            assert np.array_equal(alpha, np.rot90(original, -1) if name == "clear.png" else original)
    with Image.open(tmp_path / "out" / "wrong.jpg") as picture:
        assert (picture.format, picture.mode) == ("JPEG", "RGB")
    assert "wrong.jpg' loses its transparency" in capsys.readouterr().err


def test_finished_photographs_are_kept_unless_overwritten(photo_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = colorize_photos([photo_folder], output, blue)
    assert (len(first.colorized), len(first.kept)) == (10, 0)
    (output / "photo0.png").write_bytes(b"mine")
    (output / "photo1.jpg").unlink()
    second = colorize_photos([photo_folder], output, blue)
    assert second.colorized == (output / "photo1.jpg",)
    assert len(second.kept) == 9
    assert (output / "photo0.png").read_bytes() == b"mine"
    third = colorize_photos([photo_folder], output, blue, overwrite=True)
    assert len(third.colorized) == 10
    assert (output / "photo0.png").read_bytes() != b"mine"


def test_an_input_is_never_overwritten(photo_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(photo_folder)
    for output in (photo_folder, tmp_path / "link"):
        with pytest.raises(ConfigError, match="would overwrite the photograph"):
            colorize_photos([photo_folder / "photo0.png"], output, blue, overwrite=True)
    # A folder of results inside the folder of photographs is not taken for photographs the next time.
    inside = photo_folder / "out"
    assert len(colorize_photos([photo_folder], inside, blue).colorized) == 10
    assert len(colorize_photos([photo_folder], inside, blue).kept) == 10
    assert len(names_in(inside)) == 10


def test_equal_names_are_told_apart_and_a_photograph_given_twice_is_coloured_once(tmp_path: Path) -> None:
    for place in ("x", "y", "z"):
        (tmp_path / place).mkdir()
        make_photo(len(place)).save(tmp_path / place / "a.png")
    make_photo(8).save(tmp_path / "z" / "A.tif")
    result = colorize_photos(
        [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png", tmp_path / "x", tmp_path / "z"], tmp_path / "out", blue
    )
    # A.tif would be A.png: a file system without case would take it for a.png.
    assert names_in(tmp_path / "out") == ["A.tif.png", "a-2.png", "a-3.png", "a.png"]
    assert len(result.colorized) == 4


def test_what_cannot_be_coloured(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a.jpg': empty file"):
        colorize_photos([tmp_path / "a.jpg"], tmp_path / "out", blue)
    with pytest.raises(InputError, match="no such file"):
        colorize_photos([tmp_path / "gone.jpg"], tmp_path / "out", blue)
    with pytest.raises(InputError, match=r"none of 2 files can be read \(a.jpg: empty file; b.jpg: not an image"):
        colorize_photos([tmp_path], tmp_path / "out", blue)
    with pytest.raises(InputError, match="no photographs in it"):
        colorize_photos([tmp_path / "empty"], tmp_path / "out", blue)
    assert not (tmp_path / "out").exists()
    make_photo(0).save(tmp_path / "c.png")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot write"):
        colorize_photos([tmp_path / "c.png"], tmp_path / "file" / "out", blue)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_an_answer_that_is_no_colour_is_refused(tmp_path: Path, bad: float) -> None:
    make_photo(0).save(tmp_path / "c.png")
    with pytest.raises(InputError, match="instead of colours"):
        colorize_photos([tmp_path / "c.png"], tmp_path / "out", lambda lightness: np.full_like(blue(lightness), bad))
    with pytest.raises(InputError, match="instead of colours"):
        colorize_photos([tmp_path / "c.png"], tmp_path / "out", lambda lightness: blue(lightness)[..., 1:])
