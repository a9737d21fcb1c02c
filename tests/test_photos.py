"""Foreign files: every one is a picture with the right pixels, or one plain reason; the split holds by content."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import make_photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from colorpress.core.config import DataConfig
from colorpress.core.errors import ConfigError, GateError, InputError
from training.decoding import decode_photo
from training.photos import (
    NO_COLOUR,
    Photo,
    PhotoSplit,
    _by_folder,
    _split,
    embedded_photos,
    inspect_photo,
    load_rgb,
    scan_photos,
    walk_photos,
)

LIMIT = 1_000_000
EXACT, JPEG_LOSS = 1, 12
LOSSLESS = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def reason(path: Path, max_pixels: int = LIMIT) -> str:
    with pytest.raises(InputError) as caught:
        load_rgb(path, max_pixels=max_pixels)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value.why


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(900))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


# What is refused, and how that is said.


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n",
            "is a Git LFS pointer; what it stands for was not fetched",
        ),
        (b"<!DOCTYPE html><html>404</html>", "is an HTML page"),
        (b"\n <HTML><body>", "is an HTML page"),
        (b"just some text", "not an image (cannot identify)"),
        (bytes(range(256)) * 8, "not an image (cannot identify)"),
        (b"%PDF-1.7\n", "format PDF not accepted"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "format EPS not accepted"),
        (b"8BPS\0\1", "format PSD not accepted"),
        (b"SIMPLE  =                    T", "format FITS not accepted"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "format HEIC not accepted"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "format AVIF not accepted"),
        (b'<?xml version="1.0"?>\n<svg xmlns="x"/>', "format SVG not accepted"),
        (b"<svg/>", "format SVG not accepted"),
        (b"\xff\xd8\xff", "truncated or damaged (header)"),
        (png_header(60_000, 60_000), "3600 Mpx > limit 1 Mpx (--max-pixels)"),
        (png_header(1001, 1000), "1.001 Mpx > limit 1 Mpx (--max-pixels)"),
        (png_header(100, 100), "truncated"),
    ],
)
def test_what_is_no_photograph_is_refused_by_name(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "x.jpg"
    path.write_bytes(content)
    assert reason(path).startswith(expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_file_cut_in_half_is_refused(tmp_path: Path, kind: str) -> None:
    content = encoded(make_photo(1, 64, 64), kind)
    path = tmp_path / "cut"
    path.write_bytes(content[: len(content) // 2])
    assert reason(path).startswith(("truncated", "damaged"))
    path.write_bytes(content)
    assert load_rgb(path, max_pixels=LIMIT).shape == (64, 64, 3)


def test_a_jpeg_cut_at_its_end_is_refused_even_when_decoded_at_reduced_size(tmp_path: Path) -> None:
    content = encoded(make_photo(1, 640, 640), "JPEG")
    path = tmp_path / "cut.jpg"
    path.write_bytes(content[:-200])
    with pytest.raises(InputError, match="truncated"):
        load_rgb(path, max_pixels=LIMIT, short_side=32)


def test_a_png_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    content = bytearray(encoded(make_photo(1), "PNG"))
    content[content.index(b"IDAT") + 10] ^= 0xFF
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert reason(path).startswith("damaged")


@pytest.mark.parametrize("place", [11, 36])
def test_errors_that_pillow_lets_through_as_they_are_become_reasons(tmp_path: Path, place: int) -> None:
    content = bytearray(encoded(make_photo(3, 16, 12), "PNG"))
    content[place] = 0  # length of IHDR, length of IDAT: ValueError and SyntaxError instead of OSError
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert reason(path).startswith(("truncated", "damaged"))


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for path in tmp_path.iterdir():
        assert reason(path) == "not a regular file"
    assert reason(tmp_path / "gone.jpg") == "no such file"


def test_max_pixels_counts_exactly_and_may_exceed_pillows_own_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photo(0, 10, 10).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert load_rgb(tmp_path / "x.png", max_pixels=100).shape == (10, 10, 3)
    assert "--max-pixels" in reason(tmp_path / "x.png", max_pixels=99)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)
    assert "--max-pixels" in reason(tmp_path / "x.png", max_pixels=19)


MUTANTS = {kind: encoded(make_photo(3, 24, 16), kind) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP")}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as training.decoding does, which pytest undoes
@pytest.mark.parametrize("kind", sorted(MUTANTS))
@settings(max_examples=80, deadline=5000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_damaged_file_does_anything_but_decode_or_be_refused(kind: str, data: st.DataObject) -> None:
    content = bytearray(MUTANTS[kind])
    places = st.integers(0, len(content) - 1)
    for place, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        content[place] = value
    end = data.draw(st.one_of(st.just(len(content)), places))
    try:
        decoded = decode_photo(io.BytesIO(content[:end]), Path("mutant"), max_pixels=LIMIT, at_least=8)
    except InputError as error:
        assert error.why
    else:
        assert decoded.rgb.mode == "RGB"
        assert decoded.width * decoded.height <= LIMIT


# What is accepted, and its pixels.


def stored_for(orientation: int, upright: np.ndarray) -> np.ndarray:
    """What a camera stores so that a viewer, by the EXIF standard's definitions, shows `upright`."""
    turned = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    return np.ascontiguousarray(turned[orientation])


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, kind: str, orientation: int) -> None:
    upright = np.asarray(make_photo(5, 48, 32))
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "a camera"
    path = tmp_path / "x"
    stored = Image.fromarray(stored_for(orientation, upright))
    path.write_bytes(encoded(stored, kind, exif=exif, **LOSSLESS.get(kind, {})))
    shown = load_rgb(path, max_pixels=LIMIT)
    assert shown.shape == upright.shape
    assert np.abs(shown.astype(int) - upright).max() <= (JPEG_LOSS if kind == "JPEG" else 0)
    with path.open("rb") as stream:
        decoded = decode_photo(stream, path, max_pixels=LIMIT)
    assert (decoded.width, decoded.height) == (48, 32)
    assert 0x0112 not in (kept := _exif_of(decoded.exif))
    assert kept[0x010F] == "a camera"
    assert load_rgb(path, max_pixels=LIMIT, short_side=16).shape == (16, 24, 3)


def test_a_long_strip_is_bounded_too(tmp_path: Path) -> None:
    make_photo(0, 16, 4000).save(tmp_path / "strip.png")
    assert load_rgb(tmp_path / "strip.png", max_pixels=LIMIT, short_side=16).shape == (716, 3, 3)
    assert load_rgb(tmp_path / "strip.png", max_pixels=LIMIT).shape == (4000, 16, 3)


def _exif_of(block: bytes) -> Image.Exif:
    exif = Image.Exif()
    exif.load(block)
    return exif


def test_a_photograph_with_broken_exif_is_read_as_if_it_had_none(tmp_path: Path) -> None:
    for number, block in enumerate((b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")):
        path = tmp_path / f"{number}.jpg"
        make_photo(5).save(path, exif=block)
        assert load_rgb(path, max_pixels=LIMIT).shape == (40, 48, 3)


RAMP = np.linspace(0, 1, 32)[None, :].repeat(8, 0)
GREY = np.rint(RAMP * 255).astype(np.uint8)


def _in_mode(mode: str) -> tuple[Image.Image, np.ndarray]:
    """A picture in `mode` and the sRGB pixels that it shows."""
    colour = np.asarray(make_photo(2, 32, 8))
    grey = np.stack([GREY] * 3, axis=2)
    if mode == "1":
        half = GREY > 127
        return Image.fromarray(half), np.stack([half * 255] * 3, axis=2)
    if mode in ("L", "LA"):
        return Image.fromarray(GREY).convert(mode), grey
    if mode == "P":
        palette = Image.fromarray(colour).quantize(16)
        return palette, np.asarray(palette.convert("RGB"))
    if mode == "RGBA":
        picture = Image.fromarray(colour)
        picture.putalpha(Image.fromarray(GREY))
        return picture, colour
    if mode == "CMYK":
        return Image.fromarray(colour).convert("CMYK"), colour
    if mode == "LAB":
        lab = np.zeros((8, 32, 3), np.uint8)
        lab[..., 0] = 255  # L* 100, a* = b* = 0: white
        return Image.frombytes("LAB", (32, 8), lab.tobytes()), np.full((8, 32, 3), 255)
    if mode in ("I;16", "I;16B"):
        values = np.rint(RAMP * 65535).astype("<u2" if mode == "I;16" else ">u2")
        return Image.frombytes(mode, (32, 8), values.tobytes()), grey
    if mode == "I":
        return Image.fromarray(np.rint(RAMP * 65535).astype(np.int32)), grey
    assert mode == "F"
    return Image.fromarray(RAMP.astype(np.float32)), grey


@pytest.mark.parametrize(
    ("mode", "kind", "tolerance"),
    [
        *((mode, "PNG", 0) for mode in ("1", "L", "LA", "P", "RGBA")),
        *(("P", "GIF", 0), ("RGBA", "TIFF", 0), ("L", "JPEG", JPEG_LOSS), ("CMYK", "JPEG", 2 * JPEG_LOSS)),
        *((mode, "TIFF", EXACT) for mode in ("I;16", "I;16B", "I", "F", "CMYK", "LAB")),
        ("I;16", "PNG", EXACT),
    ],
)
def test_every_colour_mode_becomes_srgb(tmp_path: Path, mode: str, kind: str, tolerance: int) -> None:
    picture, expected = _in_mode(mode)
    path = tmp_path / "x"
    path.write_bytes(encoded(picture, kind, **LOSSLESS.get(kind, {})))
    shown = load_rgb(path, max_pixels=LIMIT)
    assert shown.dtype == np.uint8
    assert np.abs(shown.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("scale", [1.0, 255.0, 65535.0, 1e6])
def test_floating_point_grey_is_scaled_not_clipped(tmp_path: Path, scale: float) -> None:
    Image.fromarray((RAMP * scale).astype(np.float32)).save(tmp_path / "x.tif")
    assert np.abs(load_rgb(tmp_path / "x.tif", max_pixels=LIMIT)[..., 0].astype(int) - GREY).max() <= EXACT


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_floating_point_pixels_that_are_no_numbers_are_refused(tmp_path: Path, bad: float) -> None:
    values = RAMP.astype(np.float32)
    values[3, 3] = bad
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert reason(tmp_path / "x.tif") == "damaged (NaN or infinite pixels)"


def swapped_profile() -> bytes:
    """sRGB's profile with the red and green primaries exchanged, under another name."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace("sRGB".encode("utf-16-be"), "Swap".encode("utf-16-be"))
    return profile.replace(b"rXYZ", b"????", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"????", b"gXYZ", 1)


def test_an_embedded_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    make_photo(1).save(tmp_path / "plain.png")
    make_photo(1).save(tmp_path / "swapped.png", icc_profile=swapped_profile())
    plain, swapped = (load_rgb(tmp_path / name, max_pixels=LIMIT) for name in ("plain.png", "swapped.png"))
    assert np.abs(swapped.astype(int) - plain[..., [1, 0, 2]]).max() <= 2


@pytest.mark.parametrize("profile", [b"nonsense", swapped_profile()[:200]])
def test_a_broken_profile_is_ignored(tmp_path: Path, profile: bytes) -> None:
    make_photo(1).save(tmp_path / "x.png", icc_profile=profile)
    assert np.array_equal(load_rgb(tmp_path / "x.png", max_pixels=LIMIT), np.asarray(make_photo(1)))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "MPO"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, kind: str) -> None:
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    path = tmp_path / "x"
    path.write_bytes(encoded(red, kind, save_all=True, append_images=[blue], **LOSSLESS.get(kind, {})))
    assert np.abs(load_rgb(path, max_pixels=LIMIT)[8, 8].astype(int) - (255, 0, 0)).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (3, 3), (255, 257)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_short_side_never_enlarges_and_keeps_the_shape(tmp_path: Path, kind: str, size: tuple[int, int]) -> None:
    path = tmp_path / "x"
    path.write_bytes(encoded(make_photo(1, *size), kind))
    assert load_rgb(path, max_pixels=LIMIT).shape == (size[1], size[0], 3)
    height, width, _ = load_rgb(path, max_pixels=LIMIT, short_side=32).shape
    if min(size) <= 32:
        assert (width, height) == size
    else:
        assert min(width, height) == 32
        assert abs(width / height - size[0] / size[1]) < 0.03


def test_reduced_decoding_gives_the_picture_that_full_decoding_gives(tmp_path: Path) -> None:
    make_photo(4, 1200, 900).save(tmp_path / "x.jpg", quality=95)
    make_photo(4, 1200, 900).save(tmp_path / "x.png")
    jpeg, png = (load_rgb(tmp_path / name, max_pixels=2 * LIMIT, short_side=100) for name in ("x.jpg", "x.png"))
    assert jpeg.shape == png.shape == (100, 133, 3)
    assert np.abs(jpeg.astype(int) - png).mean() < 1.5


@pytest.mark.parametrize("name", ["тест 画像 é.png", "a\nb.png", "[red].png", "=1+1.png", "<script>.png", "\udcff.png"])
def test_any_file_name_works(tmp_path: Path, name: str) -> None:
    make_photo(0).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(tmp_path / name)
    assert [path.name for path in walk_photos(tmp_path)] == [name]
    assert load_rgb(tmp_path / name, max_pixels=LIMIT).shape == (40, 48, 3)


# Folders: finding, checking, splitting.


def data(folder: Path, **options: object) -> DataConfig:
    return DataConfig(data=folder, max_bad_share=1.0, **options)


def test_finding_ignores_other_files_and_does_not_loop(photo_folder: Path) -> None:
    (photo_folder / "notes.txt").write_text("no picture")
    (photo_folder / "jpg").write_text("no suffix")
    (photo_folder / ".hidden.jpg").write_text("hidden")
    (photo_folder / "more" / "again").symlink_to(photo_folder)
    found = list(walk_photos(photo_folder))
    assert [path.name for path in found] == [f"photo{i}.{'jpg' if i % 2 else 'png'}" for i in range(10)]
    assert list(walk_photos(photo_folder, leave_out=photo_folder / "more")) == found[:9]


def test_folders_may_be_nested_deeply(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(1200):
        Path("d").mkdir()
        os.chdir("d")
    Path("a.png").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    try:
        assert [path.name for path in walk_photos(Path("d"))] == ["a.png"]
    finally:
        subprocess.run(["rm", "-rf", "d"], check=True)  # too deep for shutil.rmtree


def test_a_scan_checks_splits_and_names_what_it_skips(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photo(0).save(photo_folder / "zz copy.png")
    Image.new("RGB", (32, 32), (90, 92, 91)).save(photo_folder / "grey.jpg")
    (photo_folder / "broken.jpg").write_bytes(b"no")
    (photo_folder / "=phone.heic").write_bytes(b"\0\0\0\x18ftypheic")
    before = sorted((path, path.stat().st_mtime_ns) for path in photo_folder.rglob("*"))
    split = scan_photos(data(photo_folder), workers=0, skipped_path=tmp_path / "skipped_images.csv")
    assert (len(split.train), len(split.val), len(split.test)) == (8, 1, 1)
    assert {each.path.name: each.reason for each in split.skipped} == {
        "=phone.heic": "format HEIC not accepted (jpeg, png, webp, tiff, bmp, gif)",
        "broken.jpg": "not an image (cannot identify)",
        "grey.jpg": NO_COLOUR,
        "zz copy.png": "same content as photo0.png",
    }
    with (tmp_path / "skipped_images.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [str(each.path) for each in split.skipped]
    assert "1 files have the same content" in capsys.readouterr().err
    assert sorted((path, path.stat().st_mtime_ns) for path in photo_folder.rglob("*")) == before
    photo = next(each for each in (*split.train, *split.val, *split.test) if each.path.name == "photo9.jpg")
    assert (photo.width, photo.height) == (48, 40)


def test_a_split_does_not_depend_on_workers_names_or_index(photo_folder: Path, tmp_path: Path) -> None:
    plain = scan_photos(data(photo_folder), workers=0)
    index = tmp_path / "index.json"
    for workers in (1, 2):
        assert scan_photos(data(photo_folder), workers=workers, index_path=index) == plain
    for number, path in enumerate(list(walk_photos(photo_folder))):
        path.rename(path.parent / f"{97 - number}{path.suffix}")
    renamed = scan_photos(data(photo_folder), workers=2, index_path=index)
    for part in ("train", "val", "test"):
        assert [photo.sha256 for photo in getattr(renamed, part)] == [photo.sha256 for photo in getattr(plain, part)]
    assert scan_photos(data(photo_folder, seed=1), workers=0) != renamed


@settings(max_examples=15, deadline=None)
@given(st.integers(4, 10), st.integers(0, 99), st.sampled_from([0.1, 0.3]), st.sampled_from([0.1, 0.2]))
def test_split_properties(count: int, seed: int, val: float, test: float) -> None:
    photos = [Photo(Path(str(i)), f"{i:064x}", 8, 8) for i in range(count * 10)]
    config = DataConfig(seed=seed, val_share=val, test_share=test)
    split, smaller = _split([photos], (), config), _split([photos[:-3]], (), config)
    parts = (*split.test, *split.val, *split.train)
    assert sorted(parts, key=lambda photo: photo.sha256) == photos
    assert (len(split.val), len(split.test)) == (round(val * count * 10), round(test * count * 10))
    # Photographs keep their order when others are added, so only a few at the borders change sides.
    kept = [photo for photo in parts if photo in photos[:-3]]
    assert kept == [*smaller.test, *smaller.val, *smaller.train]


# Source folders.

PARTS = ("train", "choosing", "confirming", "test")


def folders_of(*sizes: int) -> list[list[Photo]]:
    """Folders with so many photographs each, all different."""
    numbers = iter(range(sum(sizes)))
    return [
        [
            Photo(Path(f"{name}/{i}.png"), f"{number:064x}", 8, 8)
            for i, number in zip(range(size), numbers, strict=False)
        ]
        for name, size in enumerate(sizes)
    ]


def counts(split: PhotoSplit) -> dict[str, dict[str, int]]:
    """Folder -> part -> photographs."""
    counted: dict[str, dict[str, int]] = {}
    for part in PARTS:
        for photo in getattr(split, part):
            counted.setdefault(photo.path.parent.name, dict.fromkeys(PARTS, 0))[part] += 1
    return counted


def contents(split: PhotoSplit) -> list[list[str]]:
    return [[photo.sha256 for photo in getattr(split, part)] for part in PARTS]


@pytest.mark.parametrize("folder", ["one folder", "one photograph in each"])
def test_photographs_of_one_folder_keep_the_split_they_always_had(folder: str) -> None:
    (photos,) = folders_of(20)
    sources = [photos] if folder == "one folder" else [[photo] for photo in photos]
    split = _split(sources, (), DataConfig(seed=3, val_share=0.2, test_share=0.1))
    assert [int(photo.sha256, 16) for photo in split.test] == [9, 14]
    assert [int(photo.sha256, 16) for photo in split.choosing] == [13, 11]
    assert [int(photo.sha256, 16) for photo in split.confirming] == [16, 17]
    assert [int(photo.sha256, 16) for photo in split.train] == [10, 2, 19, 3, 6, 18, 7, 8, 15, 5, 0, 1, 4, 12]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=60, max_size=90), st.integers(0, 99), st.sampled_from([0.1, 0.25]))
def test_small_folders_are_whole_in_one_part(sizes: list[int], seed: int, share: float) -> None:
    total = sum(sizes)
    split = _split(folders_of(*sizes), (), DataConfig(seed=seed, val_share=share, test_share=share))
    if max(sizes) > share * total / 2 - 1:  # some were too large for that
        return
    assert (split.whole_folders, split.shared_folders) == (len(sizes), 0)
    assert split.describe_folders() == f"whole folders kept together: {len(sizes)} folders"
    for of_folder in counts(split).values():
        assert sorted(of_folder.values())[:3] == [0, 0, 0]
    for part in (split.test, split.val):
        assert abs(len(part) - share * total) <= max(sizes) / 2 + 0.5
    assert abs(len(split.choosing) - len(split.confirming)) <= max(sizes) + 1
    assert split.val == split.choosing + split.confirming
    assert sum(map(len, contents(split))) == total


def test_the_first_photographs_of_a_part_are_of_many_folders() -> None:
    split = _split(folders_of(*[10] * 100), (), DataConfig())
    for part in (split.train, split.choosing, split.test):
        assert len({photo.path.parent for photo in part[:10]}) >= 4


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=19), st.integers(0, 99))
def test_few_folders_give_every_part_their_share(sizes: list[int], seed: int) -> None:
    total = sum(sizes)
    if total < 10:
        return
    split = _split(folders_of(*sizes), (), DataConfig(seed=seed))
    assert (split.whole_folders, split.shared_folders) == (0, len(sizes))
    assert split.describe_folders() == f"each of {len(sizes)} folders gives every part its share"
    assert len(split.test) == len(split.val) == int(total / 10 + 0.5)
    assert len(split.choosing) == (len(split.val) + 1) // 2
    for name, of_folder in counts(split).items():
        for part, found in of_folder.items():
            assert abs(found - sizes[int(name)] * len(getattr(split, part)) / total) < 2


def test_every_kind_of_picture_is_in_every_part() -> None:
    sizes = (2600, 2000, 1500, 1200, 700, 261)
    of_folders = counts(_split(folders_of(*sizes), (), DataConfig()))
    assert len(of_folders) == 6
    for name, of_folder in of_folders.items():
        expected = {"train": 0.8, "choosing": 0.05, "confirming": 0.05, "test": 0.1}
        for part, share in expected.items():
            assert abs(of_folder[part] - share * sizes[int(name)]) <= 1.5


def test_the_smallest_folders_do_not_all_go_to_the_same_part() -> None:
    held_out = [0] * 10
    for seed in range(100):
        for name, of_folder in counts(_split(folders_of(*[3] * 10), (), DataConfig(seed=seed))).items():
            held_out[int(name)] += of_folder["test"]
    assert sum(held_out) == 300
    assert min(held_out) >= 15  # of 30, give or take 5


def test_a_folder_with_one_photograph_may_be_held_out_too() -> None:
    splits = [_split(folders_of(19, 1), (), DataConfig(seed=seed, test_share=0.3)) for seed in range(60)]
    held_out = sum(counts(split)["1"]["test"] for split in splits)
    assert 8 <= held_out <= 30  # of 60, 18 expected


def test_one_huge_folder_among_small_ones_is_shared_and_they_stay_whole() -> None:
    split = _split(folders_of(1500, *[30] * 50), (), DataConfig())
    assert split.describe_folders() == (
        "whole folders kept together: 50 folders, and 1 larger ones give every part their share"
    )
    of_folders = counts(split)
    huge = of_folders.pop("0")
    assert abs(huge["test"] - 150) <= 15
    assert abs(huge["choosing"] + huge["confirming"] - 150) <= 15
    for of_folder in of_folders.values():
        assert sorted(of_folder.values()) == [0, 0, 0, 30]
    # Both kinds are in every part.
    for part in PARTS:
        assert sum(of_folder[part] for of_folder in of_folders.values()) >= 60


def test_three_photographs_in_three_folders() -> None:
    split = _split(folders_of(1, 1, 1), (), DataConfig())
    assert [len(getattr(split, part)) for part in PARTS] == [1, 1, 0, 1]


def test_a_tiny_share_is_one_photograph_and_keeps_no_folder_whole() -> None:
    split = _split(folders_of(*[5] * 200), (), DataConfig(test_share=0.001))
    assert (len(split.test), len(split.val), split.whole_folders) == (1, 100, 0)


def test_whole_folders_leave_something_to_train_on() -> None:
    for seed in range(30):
        split = _split(folders_of(*[4] * 50), (), DataConfig(seed=seed, val_share=0.5, test_share=0.45))
        assert split.whole_folders == 50
        assert len(split.train) >= 4
        assert len(split.confirming) >= 4
    # Ten are left to train on: a folder of six would be most of that.
    assert _split(folders_of(*[5] * 40), (), DataConfig(val_share=0.5, test_share=0.45)).whole_folders == 40
    assert _split(folders_of(*[6] * 40), (), DataConfig(val_share=0.5, test_share=0.46)).whole_folders == 0


def test_halves_of_fewer_photographs_stay_the_halves_that_they_were() -> None:
    split = _split(folders_of(*[7] * 90), (), DataConfig())
    assert (len(split.choosing), len(split.confirming)) == (35, 28)
    fewer = split.limit_halves(30)
    assert fewer.choosing == split.choosing[:30]
    assert fewer.confirming == split.confirming


def write_folders(root: Path, names: Sequence[str], size: int, *, reverse: bool = False) -> Path:
    """One folder per name; the same pictures in the same folders, whatever the names."""
    for number, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for place in range(size):
            picture = make_photo(number * size + place, 16, 12)
            picture.save(root / name / f"{size - place if reverse else place}.png")
    return root


def test_names_of_folders_and_files_do_not_matter(tmp_path: Path) -> None:
    first = write_folders(tmp_path / "a", [f"shoot{number}" for number in range(24)], 3)
    names = [f"{97 - number}/{'deep/' * (number % 2)}x" for number in range(24)]
    second = write_folders(tmp_path / "b", names, 3, reverse=True)
    split, renamed = (scan_photos(data(each, val_share=0.2), workers=1) for each in (first, second))
    assert split.whole_folders == 24
    assert contents(split) == contents(renamed)
    assert contents(split) != contents(scan_photos(data(first, val_share=0.2, seed=1), workers=1))


@pytest.mark.parametrize(("best", "copies"), [("0 best", 24), ("zz best", 24), ("0 best", 2)])
def test_copies_count_in_their_shoot_whatever_the_names(tmp_path: Path, best: str, copies: int) -> None:
    root = write_folders(tmp_path / "a", [f"shoot{number}" for number in range(24)], 3)
    alone = scan_photos(data(root, val_share=0.2), workers=1)
    (root / best).mkdir()
    for number in range(copies):
        (root / best / f"{number}.png").write_bytes((root / f"shoot{number}" / "1.png").read_bytes())
    split = scan_photos(data(root, val_share=0.2), workers=1)
    assert split.whole_folders == 24
    assert contents(split) == contents(alone)


def test_a_folder_and_its_copy_are_one() -> None:
    first, other = folders_of(4, 5)
    copy = [Photo(Path(f"copy/{i}.png"), photo.sha256, 8, 8) for i, photo in enumerate(first)]
    for found in ([*first, *other, *copy], [*copy, *other, *first]):
        sources = _by_folder(list({photo.sha256: photo for photo in found}.values()), found)
        together = sorted(sorted(photo.sha256 for photo in source) for source in sources)
        assert together == [[photo.sha256 for photo in source] for source in (first, other)]


def test_an_index_saves_decoding_and_notices_changes(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index.json"
    first = scan_photos(data(photo_folder), workers=1, index_path=index)
    decoded: list[str] = []

    def inspect(path: Path, limit: int) -> object:
        decoded.append(path.name)
        return inspect_photo(path, limit)

    monkeypatch.setattr("training.photos.inspect_photo", inspect)
    assert scan_photos(data(photo_folder), workers=1, index_path=index) == first
    assert decoded == []
    make_photo(77).save(photo_folder / "photo0.png")
    assert scan_photos(data(photo_folder), workers=1, index_path=index) != first
    assert decoded == ["photo0.png"]
    scan_photos(data(photo_folder, max_pixels=10_000), workers=1, index_path=index)
    assert len(decoded) == 11


@pytest.mark.parametrize("poison", ["", "{", "[]", '{"files": 3}', "sha", "size", "shape", "pickle"])
def test_a_poisoned_index_is_made_anew(
    photo_folder: Path, tmp_path: Path, poison: str, capsys: pytest.CaptureFixture[str]
) -> None:
    index = tmp_path / "index.json"
    first = scan_photos(data(photo_folder), workers=0, index_path=index)
    good = index.read_bytes()
    content = json.loads(good)
    bad = {"sha": (2, "../../etc/passwd"), "size": (3, -5), "shape": (0, None)}
    if poison in bad:
        place, value = bad[poison]
        content["files"]["photo0.png"][place] = value
        index.write_text(json.dumps(content))
    else:
        index.write_bytes(b"\x80\x04." if poison == "pickle" else poison.encode())
    assert scan_photos(data(photo_folder), workers=0, index_path=index) == first
    assert "cannot be used; every photograph is checked again" in capsys.readouterr().err
    assert index.read_bytes() == good


def test_too_many_unreadable_files_fail_the_gate(photo_folder: Path, tmp_path: Path) -> None:
    (photo_folder / "broken.jpg").write_bytes(b"no")
    skipped = tmp_path / "skipped_images.csv"
    with pytest.raises(GateError, match=r"1 of 11 files cannot be used \(9.1%, allowed 1.0%\): broken.jpg: not an"):
        scan_photos(DataConfig(data=photo_folder), workers=0, skipped_path=skipped)
    assert "broken.jpg" in skipped.read_text()
    (photo_folder / "broken.jpg").unlink()
    for copy in range(5):
        make_photo(0).save(photo_folder / f"copy{copy}.png")
        Image.new("L", (9, 9), 10 * copy).save(photo_folder / f"grey{copy}.png")
    assert len(scan_photos(DataConfig(data=photo_folder), workers=0).train) == 8


def test_folders_that_cannot_be_trained_on(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        scan_photos(DataConfig(data=tmp_path / "gone"), workers=0)
    with pytest.raises(ConfigError, match="not a folder"):
        scan_photos(DataConfig(data=photo_folder / "photo0.png"), workers=0)
    with pytest.raises(ConfigError, match="no photograph is left to train on"):
        scan_photos(data(photo_folder, val_share=0.5, test_share=0.5), workers=0)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InputError, match="0 picture files: 0 usable"):
        scan_photos(data(empty), workers=0)
    for index in range(2):
        make_photo(index).save(empty / f"{index}.png")
        Image.new("L", (9, 9), index).save(empty / f"grey{index}.png")
    (empty / "bad.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"2 usable, 1 unreadable, 2 grey, 0 copies \(bad.png: is empty\)"):
        scan_photos(data(empty), workers=0)


def test_a_fifo_in_the_folder_does_not_hang_the_scan(photo_folder: Path) -> None:
    os.mkfifo(photo_folder / "a.jpg")
    split = scan_photos(data(photo_folder), workers=2)
    assert [each.reason for each in split.skipped] == ["not a regular file"]


def test_the_embedded_photographs_are_there_and_in_colour() -> None:
    split = scan_photos(DataConfig(), workers=1)
    assert len(embedded_photos()) == 5
    assert (len(split.train), len(split.val), len(split.test), split.skipped) == (3, 1, 1, ())
