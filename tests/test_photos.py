"""Foreign files: every one is a picture with the right pixels, or one plain reason."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import socket
import struct
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import make_photo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from colorpress.core.errors import InputError
from training.decoding import decode_photo
from training.photos import SkippedPhoto, load_rgb, walk_photos

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
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(900))), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


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
        (b"II*\0\x10\0\0\0CR\2\0", "format raw CR2 not accepted"),
        (b"\0\0\0\x18ftypcrx \0\0\0\0", "format raw CR3 not accepted"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "format JPEG XL not accepted"),
        (b"\0\0\0\x18ftypavif\0\0\0\0", "truncated or damaged (header)"),
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


HEIC, AVIF = b"\0\0\0\x18ftypheic\0\0\0\0", b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf"


def test_what_the_installed_pillow_does_not_read_is_refused_with_what_would_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, content in (("a.heic", HEIC), ("b.avif", AVIF)):
        (tmp_path / name).write_bytes(content)
    monkeypatch.delitem(Image.OPEN, "HEIF", raising=False)
    monkeypatch.setattr("training.picture_types.features.check", lambda name: name != "avif")
    with pytest.raises(InputError, match=r"format HEIC needs the extra colorpress\[heif\]") as caught:
        load_rgb(tmp_path / "a.heic", max_pixels=LIMIT)
    assert caught.value.hint.startswith("pip install pillow-heif (it is the extra [heif] of colorpress)")
    refusal = "format AVIF not accepted (JPEG, PNG, WebP, TIFF, BMP, GIF, JPEG 2000)"
    assert reason(tmp_path / "b.avif") == refusal


@pytest.mark.parametrize(("kind", "loss"), [("AVIF", 3), ("JPEG2000", 0), ("HEIF", 12)])
def test_newer_and_archival_types_are_read_upright(tmp_path: Path, kind: str, loss: int) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = 1
    path = tmp_path / "no suffix"
    path.write_bytes(encoded(make_photo(2, 48, 32), kind, exif=exif.tobytes()))
    assert list(walk_photos(tmp_path)) == [path]
    shown = load_rgb(path, max_pixels=LIMIT)
    assert np.abs(shown.astype(int) - np.asarray(make_photo(2, 48, 32))).mean() <= loss
    path.write_bytes(path.read_bytes()[:-150])
    assert reason(path).startswith(("truncated", "damaged"))


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


def many_scans(scans: int, *, apart: bool = False) -> bytes:
    """A JPEG, progressive or with a scan for each channel, whose last scan is there so many times."""
    content = channels_apart() if apart else encoded(make_photo(1, 48, 40), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + content[-2:]


def channels_apart() -> bytes:
    """A plain JPEG with a scan for each of its three channels."""
    content = encoded(make_photo(1, 48, 40), "JPEG", subsampling=0)
    grey = encoded(make_photo(1, 48, 40).convert("L"), "JPEG")
    scan = grey[grey.index(b"\xff\xda") : -2]
    header = content[: content.index(b"\xff\xda")]
    return header + b"".join(scan[:5] + bytes([channel]) + scan[6:] for channel in (1, 2, 3)) + b"\xff\xd9"


def test_a_jpeg_of_thousands_of_scans_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(many_scans(3000))
    assert reason(tmp_path / "x.jpg") == "has 3009 scans, and at most 100 are read"
    (tmp_path / "x.jpg").write_bytes(many_scans(3000, apart=True))
    assert reason(tmp_path / "x.jpg") == "has 3002 scans, and at most 100 are read"
    # Such bytes mean nothing in metadata, nor in the film that a telephone puts behind the picture.
    plain = many_scans(60)
    hidden = b"\xff\xda" * 500
    comment = b"\xff\xfe" + (len(hidden) + 2).to_bytes(2, "big") + hidden
    (tmp_path / "x.jpg").write_bytes(plain[:2] + comment + plain[2:] + hidden)
    assert load_rgb(tmp_path / "x.jpg", max_pixels=LIMIT).shape == (40, 48, 3)


def with_chunks(chunks: bytes) -> bytes:
    content = encoded(make_photo(1), "PNG")
    return content[:33] + chunks + content[33:]


BLANKS = zlib.compress(bytes(60 << 20), 9)


@pytest.mark.parametrize(
    "content",
    [
        with_chunks(png_chunk(b"zTXt", b"Comment\0\0" + BLANKS)),
        with_chunks(png_chunk(b"iCCP", b"profile\0\0" + BLANKS)),
        with_chunks(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + BLANKS)),
    ],
    ids=["zTXt", "iCCP", "iTXt"],
)
def test_metadata_that_swells_is_refused_or_passed_over(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.png").write_bytes(content)
    tracemalloc.start()
    with contextlib.suppress(InputError):
        load_rgb(tmp_path / "x.png", max_pixels=LIMIT)
    assert tracemalloc.get_traced_memory()[1] < 20 << 20
    tracemalloc.stop()


def test_tiles_far_larger_than_their_tiff_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.asarray(make_photo(1, 48, 40)), tile=(64, 64), compression="zlib")
    content = (tmp_path / "x.tif").read_bytes()
    assert load_rgb(tmp_path / "x.tif", max_pixels=LIMIT).shape == (40, 48, 3)
    for tag in (322, 323):
        place = content.index(struct.pack("<HHII", tag, 4, 1, 64))
        changed = content[:place] + struct.pack("<HHII", tag, 4, 1, 1 << 20) + content[place + 12 :]
        (tmp_path / "x.tif").write_bytes(changed)
        assert reason(tmp_path / "x.tif") == "damaged (tiles larger than the picture)"


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


MUTANTS = {
    kind: encoded(make_photo(3, 24, 16), kind)
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "AVIF", "JPEG2000")
}


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # as training.decoding does, which pytest undoes
@pytest.mark.parametrize("kind", sorted(MUTANTS))
@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    assert 0x0112 not in (kept := _exif_of(decoded.metadata.exif))
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


@pytest.mark.parametrize("profile", [b"nonsense", swapped_profile()[:200], swapped_profile() + bytes(9 << 20)])
def test_a_broken_or_huge_profile_is_ignored(tmp_path: Path, profile: bytes) -> None:
    make_photo(1).save(tmp_path / "x.tif", icc_profile=profile)
    assert np.array_equal(load_rgb(tmp_path / "x.tif", max_pixels=LIMIT), np.asarray(make_photo(1)))


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


# Finding files in a folder.


def test_finding_ignores_other_files_and_does_not_loop(photo_folder: Path) -> None:
    (photo_folder / "notes.txt").write_text("no picture")
    (photo_folder / ".hidden.jpg").write_text("hidden")
    (photo_folder / "more" / "again").symlink_to(photo_folder)
    found = list(walk_photos(photo_folder))
    assert [path.name for path in found] == [f"photo{i}.{'jpg' if i % 2 else 'png'}" for i in range(10)]
    assert list(walk_photos(photo_folder, leave_out=photo_folder / "more")) == found[:9]


def test_finding_survives_every_kind_of_entry_and_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_photo(1).save(tmp_path / "scan", "JPEG")
    (tmp_path / "jpg").write_text("BMW, no suffix, long enough to have a header")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    (tmp_path / "there").symlink_to(tmp_path / "back")
    (tmp_path / "back").symlink_to(tmp_path / "there")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "device").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe")
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as listening:
        listening.bind(os.fsencode(tmp_path / "socket"))
    (tmp_path / "locked").mkdir()
    listdir = os.listdir

    def refuse_locked(folder: bytes) -> list[bytes]:
        if folder.endswith(b"locked"):  # permissions do not stop the superuser
            raise PermissionError(errno.EACCES, "Permission denied")
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refuse_locked)
    found = list(walk_photos(tmp_path))
    assert [each for each in found if isinstance(each, Path)] == [tmp_path / "scan"]
    skipped = {each.path.name: each.reason for each in found if isinstance(each, SkippedPhoto)}
    special = ("back", "device", "itself", "nowhere", "pipe", "socket", "there")
    assert skipped == dict.fromkeys(special, "not a regular file") | {
        "jpg": "no suffix, and no picture by its content",
        "locked": "folder cannot be read: Permission denied",
    }
    assert not any(each.is_photo for each in found if isinstance(each, SkippedPhoto))


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
