"""Colouring: size, luminance, names and metadata of a photograph survive; nothing of the user's is overwritten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import make_photo
from numpy.typing import NDArray
from PIL import Image, ImageCms
from skimage.color import rgb2lab

from colorpress.core.errors import ConfigError, InputError, MachineError
from export.colorize_folder import Coloring, colorize_each, colorize_photos
from export.runtimes import open_colorizer
from training.decoding import decode_photo

Pixels = NDArray[np.uint8]


def blue(pixels: Pixels) -> Pixels:
    """A colorizer that tints."""
    return np.ascontiguousarray(np.minimum(pixels, np.array([150, 150, 255], np.uint8)))


def names_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_real_network_colours_every_kind_of_file(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    photo.save(folder / "e.avif")
    photo.save(folder / "f.jp2")
    photo.save(folder / "scan", "JPEG")
    (folder / "notes.txt").write_text("no picture")
    (folder / "README").write_text("no picture")
    (folder / "loop").symlink_to(folder / "loop")
    (folder / "broken.jpg").write_bytes(b"<html>")
    os.mkfifo(folder / "pipe.png")
    before = sorted((path, path.lstat().st_mtime_ns) for path in folder.rglob("*"))
    output = tmp_path / "out"
    colorizer = open_colorizer(tiny_checkpoint, work_size=32, threads=1)
    result = colorize_photos([folder], output, colorizer, workers=3)
    expected = [
        *("a.jpg", "a.png", "a.tif", "b.WEBP", "d.png", "e.avif", "f.jp2"),
        "scan.jpg",
        "sub/a.jpeg",
        "sub/c.png",
    ]
    assert names_in(output) == sorted(expected)
    assert sorted(path.relative_to(output).as_posix() for path in result.colorized) == sorted(expected)
    passed_over = "README: no suffix, and no picture by its content; loop: not a regular file"
    assert f"warning: passed over as no photographs: {passed_over}\n" in capsys.readouterr().err
    assert {each.path.name: each.reason for each in result.skipped} == {
        "README": "no suffix, and no picture by its content",
        "broken.jpg": "is an HTML page",
        "loop": "not a regular file",
        "pipe.png": "not a regular file",
    }
    kinds = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".jp2": "JPEG2000"}
    for path in result.colorized:
        with Image.open(path) as picture:
            assert (picture.size, picture.mode, picture.format) == (
                photo.size,
                "RGB",
                kinds.get(path.suffix, path.suffix[1:].upper()),
            )
    assert sorted((path, path.lstat().st_mtime_ns) for path in folder.rglob("*")) == before


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
    colorize_photos([tmp_path], tmp_path / "out", blue)
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


def ramp(bits: int) -> NDArray[np.uint16]:
    """A grey ramp with more steps than 8 bits have, of so many bits in 16."""
    return np.rint(np.linspace(0.0, 1.0, 2000).reshape(2, 1000) * ((1 << bits) - 1)).astype(np.uint16)


@pytest.mark.parametrize("kind", ["tif", "png"])
def test_more_than_eight_bits_a_channel_are_kept(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.photos._said_whites", set())
    exif = Image.Exif()
    exif[0x010F] = "a scanner"
    for bits in (12, 16):
        picture = Image.fromarray(ramp(bits))
        picture.save(tmp_path / f"{bits}.{kind}", dpi=(300, 300), exif=exif)

    def tint(pixels: Pixels) -> Pixels:
        # Of what is grey, on the left half it gives itself and on the right one something blue.
        colored = np.repeat(pixels, 3, axis=2)
        colored[:, 500:, 2] |= 63
        return colored

    for overwrite in (False, True):
        result = colorize_photos([tmp_path], tmp_path / "out", tint, overwrite=overwrite)
    assert [path.name for path in result.colorized] == [f"12.{kind}", f"16.{kind}"]
    for bits, path in zip((12, 16), result.colorized, strict=True):
        with path.open("rb") as stream:
            page = decode_photo(stream, path, max_pixels=10_000)
        assert page.deep is not None
        deep = page.deep.astype(int)
        expected = np.rint(ramp(bits).astype(float) * (65535 / ((1 << bits) - 1)))
        assert np.abs(deep[:, :500] - expected[:, :500, None]).max() <= 1
        assert (deep[:, 510:, 2] - deep[:, 510:, 1]).mean() > 500
        # L* of what has colour is that of the ramp too, far closer than 8 bits would have it.
        lightness, original = (rgb2lab(each / 65535.0)[..., 0] for each in (deep, np.stack([expected] * 3, axis=2)))
        assert np.abs(lightness - original).max() < 0.02  # 8 bits: 0.2
        assert page.metadata.dots_per_inch == pytest.approx((300, 300), abs=0.1)
        assert _make_of(page.metadata.exif) == "a scanner"
    said = capsys.readouterr().err
    assert said.count("do not use all of 16 bits: 4095 is taken for white") == 1


def _make_of(block: bytes) -> object:
    exif = Image.Exif()
    exif.load(block)
    return exif[0x010F]


def test_every_page_of_a_tiff_is_coloured_and_of_others_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clear = make_photo(2, 40, 24)
    clear.putalpha(Image.linear_gradient("L").resize((40, 24)))
    with tifffile.TiffWriter(tmp_path / "book.tif") as writer:
        writer.write(np.asarray(make_photo(0)), compression="zlib")  # with a description of its shape
        writer.write(np.asarray(make_photo(0, 16, 12)), subfiletype=1)  # a smaller copy
        writer.write(ramp(12))
        writer.write(np.asarray(clear), extrasamples=["unassalpha"])
    frames = [make_photo(number) for number in range(3)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    colorize_photos([tmp_path], tmp_path / "out", lambda pixels: np.repeat(pixels[..., :1], 3, axis=2))
    with tifffile.TiffFile(tmp_path / "out" / "book.tif") as book:
        found = [(page.shape, str(page.dtype), page.compression.name) for page in book.pages]
        alpha = book.pages[2].asarray()[..., 3]
        assert "ImageDescription" not in book.pages[0].tags
    assert found == [
        ((40, 48, 3), "uint8", "ADOBE_DEFLATE"),
        ((2, 1000, 3), "uint16", "NONE"),
        ((24, 40, 4), "uint8", "NONE"),
    ]
    assert np.array_equal(alpha, np.asarray(clear.getchannel("A")))
    assert "film.gif' has 3 pages or frames, of which the first alone is coloured" in capsys.readouterr().err
    # A page that is damaged leaves nothing half written, and the others are coloured.
    content = bytearray((tmp_path / "book.tif").read_bytes())
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "a.tif").write_bytes(content[:-2000])
    make_photo(3).save(tmp_path / "cut" / "b.png")
    result = colorize_photos([tmp_path / "cut"], tmp_path / "out2", blue)
    assert names_in(tmp_path / "out2") == ["b.png"]
    assert result.skipped[0].reason.startswith("after 2 pages: ")


def test_a_photograph_that_vanishes_is_named_and_the_others_are_coloured(photo_folder: Path, tmp_path: Path) -> None:
    def remove_next(pixels: Pixels) -> Pixels:
        (photo_folder / "photo5.jpg").unlink(missing_ok=True)
        return blue(pixels)

    result = colorize_photos([photo_folder], tmp_path / "out", remove_next)
    assert [(each.path.name, each.reason) for each in result.skipped] == [("photo5.jpg", "no such file")]
    assert len(result.colorized) == 9


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
    make_photo(8).save(tmp_path / "z" / "A.bmp")
    result = colorize_photos(
        [tmp_path / "x" / "a.png", tmp_path / "y" / "a.png", tmp_path / "x", tmp_path / "z"], tmp_path / "out", blue
    )
    # A.bmp would be A.png: a file system without case would take it for a.png.
    assert names_in(tmp_path / "out") == ["A.bmp.png", "a-2.png", "a-3.png", "a.png"]
    assert len(result.colorized) == 4


def test_names_that_would_grow_too_long_are_cut(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    stem = "\N{LATIN SMALL LETTER E WITH ACUTE}" * 125  # 250 bytes
    for suffix in (".BMP", ".bmp", ".gif"):
        make_photo(0).save(tmp_path / "in" / f"{stem}{suffix}")
    assert len(colorize_photos([tmp_path / "in"], tmp_path / "out", blue).colorized) == 3
    assert names_in(tmp_path / "out") == [f"{stem[:-1]}-2.png", f"{stem}..png", f"{stem}.png"]


def test_long_exif_is_kept_where_the_type_holds_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x010F], exif.get_ifd(0x8769)[0x927C] = "a camera", b"notes of the maker" * 5000
    for name in ("long.png", "long.webp", "long.jpg"):
        kind = "PNG" if name == "long.jpg" else None
        make_photo(0, 8, 8).save(tmp_path / name, kind, exif=exif)
    for path in colorize_photos([tmp_path], tmp_path / "out", blue).colorized:
        with Image.open(path) as picture:
            assert (0x010F in picture.getexif()) == (path.suffix != ".jpg"), path.name
    assert capsys.readouterr().err.count("long.jpg' loses its EXIF, which is longer than a JPEG holds") == 1


def test_what_cannot_be_coloured(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"no")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a.jpg': is empty"):
        colorize_photos([tmp_path / "a.jpg"], tmp_path / "out", blue)
    with pytest.raises(InputError, match="no such file"):
        colorize_photos([tmp_path / "gone.jpg"], tmp_path / "out", blue)
    with pytest.raises(InputError, match=r"none of 2 files can be read \(a.jpg: is empty; b.jpg: not an image"):
        colorize_photos([tmp_path], tmp_path / "out", blue)
    with pytest.raises(InputError, match="no photographs in it"):
        colorize_photos([tmp_path / "empty"], tmp_path / "out", blue)
    assert not (tmp_path / "out").exists()
    make_photo(0).save(tmp_path / "c.png")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(MachineError, match="cannot write"):
        colorize_photos([tmp_path / "c.png"], tmp_path / "file" / "out", blue)


def test_a_colorizer_sees_one_channel_of_a_grey_photograph(tmp_path: Path) -> None:
    seen: dict[int, tuple[int, ...]] = {}

    def note(pixels: Pixels) -> Pixels:
        seen[pixels.shape[1]] = pixels.shape
        return np.zeros((*pixels.shape[:2], 3), np.uint8)

    make_photo(0, 40, 30).convert("L").convert("RGB").save(tmp_path / "grey.png")
    nearly = make_photo(0, 41, 30).convert("L").convert("RGB")
    nearly.putpixel((5, 29), (9, 9, 8))
    nearly.save(tmp_path / "nearly.png")
    make_photo(0, 42, 30).save(tmp_path / "colour.png")
    colorize_photos([tmp_path], tmp_path / "out", note)
    assert seen == {40: (30, 40, 1), 41: (30, 41, 3), 42: (30, 42, 3)}


def test_a_colour_profile_becomes_that_of_srgb(tmp_path: Path) -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    make_photo(0).save(tmp_path / "tagged.jpg", icc_profile=srgb)
    make_photo(0).save(tmp_path / "wrong.png", icc_profile=lab)
    make_photo(0).save(tmp_path / "plain.png")
    colorize_photos([tmp_path], tmp_path / "out", blue)
    found = {path.name: Image.open(path).info.get("icc_profile") for path in (tmp_path / "out").iterdir()}
    assert found["tagged.jpg"] == srgb
    assert found["wrong.png"] is found["plain.png"] is None


def test_several_at_a_time_give_what_one_after_another_gives(photo_folder: Path, tmp_path: Path) -> None:
    at_once: set[int] = set()
    meeting = threading.Barrier(2, timeout=30)

    def meet(pixels: Pixels) -> Pixels:
        # Ten photographs pass in pairs, which takes two workers.
        meeting.wait()
        at_once.add(threading.get_ident())
        return blue(pixels)

    one = colorize_photos([photo_folder], tmp_path / "one", blue, workers=1)
    two = colorize_photos([photo_folder], tmp_path / "two", meet, workers=2)
    assert len(at_once) == 2
    assert [path.name for path in one.colorized] == [path.name for path in two.colorized]
    for path in one.colorized:
        place = path.relative_to(tmp_path / "one")
        assert path.read_bytes() == (tmp_path / "two" / place).read_bytes()


def test_after_an_error_nothing_more_is_begun(photo_folder: Path, tmp_path: Path) -> None:
    begun = 0

    def fail(pixels: Pixels) -> Pixels:
        nonlocal begun
        begun += 1
        raise InputError("model", None, "answers nonsense", "give another")

    with pytest.raises(InputError, match="answers nonsense"):
        colorize_photos([photo_folder], tmp_path / "out", fail, workers=2)
    assert begun <= 2


# Ends its own process in the middle of the fourth file.
_KILLED = """
import os, signal, sys
from pathlib import Path
from export import colorize_folder, photo_files
from export.colorizers import read_as_picture_graph

# Nor does that need what takes longer to import than a photograph to colour.
assert read_as_picture_graph(colorize_folder.DEMONSTRATION_MODEL)
assert not {"onnx", "torch", "tifffile", "skimage", "pandas"} & set(sys.modules)
written = []
write = photo_files._write_with_pillow

def stop_at_fourth(path, page, kind):
    written.append(path)
    if len(written) == 4:
        path.write_bytes(b"half a photograph")
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, page, kind)

photo_files._write_with_pillow = stop_at_fourth
photos = Path(sys.argv[1])
colorize_folder.colorize_photos([photos], photos / "out", lambda pixels: pixels.repeat(3 // pixels.shape[2], axis=2))
"""


def test_after_a_kill_no_photograph_is_coloured_twice_and_no_original_has_changed(photo_folder: Path) -> None:
    originals = {path: path.read_bytes() for path in photo_folder.rglob("photo*")}
    output = photo_folder / "out"
    coloured: list[Pixels] = []
    killed = subprocess.run([sys.executable, "-c", _KILLED, str(photo_folder)], check=False)
    assert killed.returncode == -signal.SIGKILL
    finished = {path: path.stat().st_mtime_ns for path in output.glob("photo*")}
    assert (len(finished), len(names_in(output))) == (3, 4)

    def color(pixels: Pixels) -> Pixels:
        coloured.append(pixels)
        return blue(pixels)

    result = colorize_photos([photo_folder], output, color)
    assert len(coloured) == len(result.colorized) == len(originals) - 3 and len(result.kept) == 3
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert len(names_in(output)) == len(originals)
    assert {path: path.read_bytes() for path in originals} == originals


def test_photographs_are_begun_a_few_ahead_however_many_there_are(photo_folder: Path, tmp_path: Path) -> None:
    for number in range(40):
        (photo_folder / f"z{number}.png").write_bytes((photo_folder / "photo0.png").read_bytes())
    coloured: list[str] = []

    def color(pixels: Pixels) -> Pixels:
        coloured.append(threading.current_thread().name)
        return pixels

    with closing(colorize_each([photo_folder], tmp_path / "out", Coloring(color))) as outcomes:
        next(outcomes)
        [worker] = (each for each in threading.enumerate() if each.name == coloured[0])
        while worker.is_alive() and len(names_in(tmp_path / "out")) < 5:
            worker.join(0.01)
        worker.join(0.2)
        assert len(coloured) <= 5


def test_threads_are_shared_by_the_photographs_that_have_room_together() -> None:
    million, alone = 1_000_000, Coloring(blue, workers=1, threads=8)
    assert [alone.threads_of(size * million) for size in (34, 40, 400)] == [8, 8, 8]
    several = Coloring(blue, workers=8, threads=8)
    assert [several.threads_of(size * million) for size in (34, 40, 100, 200, 400)] == [2, 2, 3, 6, 8]


def test_photographs_that_are_large_together_are_coloured_one_after_another(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.colorize_folder._PIXELS_A_WORKER", 48 * 40 * 3 // 4)  # three quarters of a photograph
    under_way: list[int] = []

    def color(pixels: Pixels) -> Pixels:
        under_way.append(1)
        threading.Event().wait(0.01)
        assert len(under_way) == 1
        under_way.clear()
        return blue(pixels)

    assert len(colorize_photos([photo_folder], tmp_path / "out", color, workers=2).colorized) == 10
