"""More than eight bits a channel: every way to store them gives the same picture, and white is where it belongs."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from conftest import make_photo
from numpy.typing import NDArray

from colorpress.core.errors import InputError
from training.decoding import count_frames, decode_pages, decode_photo
from training.deep_pixels import find_white
from training.matrix_profile import convert_deep

Values = NDArray[Any]
PHOTO = np.asarray(make_photo(3, 48, 40))
GREY = PHOTO[..., 1]


def of_bits(bits: int, values: Values = PHOTO) -> NDArray[np.uint16]:
    return np.rint(values / 255.0 * ((1 << bits) - 1)).astype(np.uint16)


def with_alpha(values: Values) -> Values:
    return np.concatenate([values, np.full_like(values[..., :1], np.iinfo(values.dtype).max // 2)], axis=2)


def premultiplied() -> Values:
    values = with_alpha(of_bits(16)).astype(float)
    values[..., :3] *= values[..., 3:] / 65535.0
    return np.rint(values).astype(np.uint16)


def written(values: Values, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, metadata=None, **{"photometric": "rgb" if values.ndim == 3 else None, **options})
    return buffer.getvalue()


APART = {"planarconfig": "separate"}
ALPHA, TIMES_ALPHA = {"extrasamples": ["unassalpha"]}, {"extrasamples": ["assocalpha"]}
DEFLATED: dict[str, Any] = {"compression": "zlib", "predictor": True, "tile": (16, 16)}
TURNED = {"extratags": [(274, "H", 1, 6, True)]}

KINDS: dict[str, tuple[Callable[[], bytes], Values]] = {
    "12 bits": (lambda: written(of_bits(12)), PHOTO),
    "12 bits, other byte order": (lambda: written(of_bits(12), byteorder=">"), PHOTO),
    "12 bits, deflated tiles": (lambda: written(of_bits(12), **DEFLATED), PHOTO),
    "12 bits, BigTIFF": (lambda: written(of_bits(12), bigtiff=True), PHOTO),
    "12 bits, channels apart": (lambda: written(np.moveaxis(of_bits(12), 2, 0), **APART), PHOTO),
    "12 bits, apart, turned": (lambda: written(np.moveaxis(np.rot90(of_bits(12)), 2, 0), **APART, **TURNED), PHOTO),
    "12 bits, turned": (lambda: written(np.rot90(of_bits(12)), **TURNED), PHOTO),
    "14 bits with alpha": (lambda: written(with_alpha(of_bits(14)), **ALPHA), PHOTO),
    "16 bits times alpha": (lambda: written(premultiplied(), **TIMES_ALPHA), PHOTO),
    "16 bits, deflated, apart": (
        lambda: written(np.moveaxis(of_bits(16), 2, 0), compression="zlib", **APART),
        PHOTO,
    ),
    "10 bits of grey": (lambda: written(of_bits(10, GREY)), GREY),
    "12 bits, white is 0": (lambda: written(4095 - of_bits(12, GREY), photometric="miniswhite"), GREY),
    "16 bits, white is 0, other byte order": (
        lambda: written(65535 - of_bits(16, GREY), photometric="miniswhite", byteorder=">"),
        GREY,
    ),
    "grey with alpha": (
        lambda: written(with_alpha(of_bits(16, GREY)[..., None]), photometric="minisblack", **ALPHA),
        GREY,
    ),
    "floating point": (lambda: written((PHOTO / 255.0).astype(np.float32)), PHOTO),
    "dark floating point": (lambda: written((PHOTO / 1063.0).astype(np.float32)), PHOTO * (255 / 1063)),
    "double precision": (lambda: written(GREY / 255.0), GREY),
    "half precision": (lambda: written((GREY / 255.0).astype(np.float16)), GREY),
    "32 bits": (lambda: written((PHOTO / 255.0 * (2**32 - 1)).astype(np.uint32)), PHOTO),
    "signed": (lambda: written(of_bits(12).astype(np.int16)), PHOTO),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_way_to_store_them_gives_the_same_picture(tmp_path: Path, kind: str) -> None:
    make, expected = KINDS[kind]
    path = tmp_path / "x.tif"
    path.write_bytes(make())
    with path.open("rb") as stream:
        picture = decode_photo(stream, path, max_pixels=10_000)
    assert (picture.width, picture.height) == (48, 40)
    assert picture.deep is not None
    shown = expected[..., None] if expected.ndim == 2 else expected
    assert picture.deep.shape == shown.shape
    assert np.abs(picture.deep / 257.0 - shown).max() <= (0.6 if "10" in kind or "half" in kind else 0.13)
    assert np.abs(np.asarray(picture.rgb).astype(int) - shown).max() <= 1
    assert (picture.alpha is not None) == ("alpha" in kind)
    if picture.alpha is not None:
        assert set(np.unique(np.asarray(picture.alpha))) == {127}


@pytest.mark.parametrize(
    ("values", "tags", "white"),
    [
        (of_bits(8), {}, 255),
        (of_bits(10), {}, 1023),
        (of_bits(12), {}, 4095),
        (of_bits(12, PHOTO // 2), {}, 4095),  # dark, but not as dark as 16 bits would make it
        (of_bits(14), {}, 16383),
        (of_bits(16), {}, 65535),
        # Dark photographs of 16 bits.
        (of_bits(16, PHOTO // 5), {}, 65535),
        (of_bits(16) // 5, {}, 65535),
        (of_bits(8).astype(np.uint16) // 16 * 257, {}, 65535),  # scaled from 8 bits
        (of_bits(10) // 16 << 4, {}, 65535),  # 12 bits in the upper part of 16
        (np.where(np.arange(4000) < 10, 3900, 90).astype(np.uint16), {}, 65535),  # a dark frame with hot pixels
        (np.zeros(100, np.uint16), {}, 65535),
        # What tags say wins, where the values do not belie it.
        (of_bits(12, PHOTO // 8), {281: (4095,)}, 4095),
        (of_bits(12, PHOTO // 8), {258: (12,)}, 4095),
        (of_bits(12), {281: (65535,)}, 65535),
        (of_bits(12), {258: (16, 16, 16), 50717: (15000,)}, 15000),
        (of_bits(14), {281: 4095}, 16383),
        (of_bits(16), {281: (30000,)}, 65535),  # the largest value of this picture alone
        (of_bits(16), {281: "nonsense", 258: (), 50717: float("nan")}, 65535),
    ],
)
def test_white_is_what_the_file_says_or_what_its_values_fill(values: Values, tags: dict[int, Any], white: int) -> None:
    assert find_white(values.astype(np.uint16), tags) == white


WIDTH_8, WIDTH_0 = (struct.pack("<HHII", 256, 4, 1, width) for width in (8, 0))


def test_other_tiffs_of_many_bits_are_refused_by_kind_and_size(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    cases = {
        written(np.zeros((8, 8, 6), np.uint16), photometric="separated"): "not read (6 channels of 16 bits)",
        written(np.moveaxis(of_bits(16), 2, 0), **APART): "Mpx > limit",
        written(np.full((8, 8, 3), np.nan, np.float32)): "NaN or infinite",
        written(np.full((8, 8), np.inf)): "NaN or infinite",
        written(of_bits(16)[:8, :8].astype(np.int16)).replace(WIDTH_8, WIDTH_0): "no pixels",
    }
    for content, expected in cases.items():
        path.write_bytes(content)
        with path.open("rb") as stream, pytest.raises(InputError, match=r".") as caught:
            decode_photo(stream, path, max_pixels=1000)
        assert expected in caught.value.why


def make_profile(curve: bytes, *, space: bytes = b"RGB ", more: bytes = b"") -> bytes:
    """A profile of Adobe RGB's primaries, or of grey, with one curve for all channels."""
    primaries = ((b"rXYZ", (0.60974, 0.31111, 0.01947)), (b"gXYZ", (0.20528, 0.62567, 0.06087)))
    primaries = (*primaries, (b"bXYZ", (0.14919, 0.06322, 0.74457)), (b"wtpt", (0.9642, 1.0, 0.8249)))
    points = [(name, b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(65536 * x) for x in xyz))) for name, xyz in primaries]
    names = (b"rTRC", b"gTRC", b"bTRC") if space == b"RGB " else (b"kTRC",)
    tags = [*points, *((name, curve + bytes(-len(curve) % 4)) for name in names)]
    tags += [(more, b"mft2" + bytes(60))] if more else []
    place, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, content in tags:
        table += struct.pack(">4sII", name, place + len(body), len(content))
        body += content
    content = b"lcms\2\x40\0\0mntr" + space + b"XYZ " + bytes(12) + b"acsp" + bytes(28)
    content += struct.pack(">3i", 63190, 65536, 54061) + bytes(48) + table + body
    return struct.pack(">I", len(content) + 4) + content


CURVES = {
    "gamma": b"curv\0\0\0\0" + struct.pack(">IH", 1, 563),
    "linear": b"curv\0\0\0\0" + struct.pack(">I", 0),
    "table": b"curv\0\0\0\0" + struct.pack(">I9H", 9, *(round(65535 * (x / 8) ** 1.8) for x in range(9))),
    "power": b"para\0\0\0\0" + struct.pack(">HHi", 0, 0, round(1.8 * 65536)),
    "flat foot": b"para\0\0\0\0" + struct.pack(">HH3i", 1, 0, 2 * 65536, 72090, -6554),
    "flat foot, lifted": b"para\0\0\0\0" + struct.pack(">HH4i", 2, 0, 2 * 65536, 72090, -6554, 0),
    "line and power": b"para\0\0\0\0" + struct.pack(">HH5i", 3, 0, 157286, 62119, 3417, 5072, 2651),
    "all of it": b"para\0\0\0\0" + struct.pack(">HH7i", 4, 0, 157286, 62119, 3417, 5072, 2651, -50, 0),
}


@pytest.mark.parametrize("space", [b"RGB ", b"GRAY"])
@pytest.mark.parametrize("curve", CURVES)
def test_profiles_are_applied_in_16_bits_as_in_8(tmp_path: Path, curve: str, space: bytes) -> None:
    profile = make_profile(CURVES[curve], space=space)
    for eight in (PHOTO, np.arange(1920, dtype=np.uint32).reshape(40, 48, 1).repeat(3, 2) * 255 // 1919):
        shown = eight if space == b"RGB " else eight[..., 1]
        pictures = []
        for name, stored in (("8.tif", shown.astype(np.uint8)), ("16.tif", of_bits(16, shown))):
            (tmp_path / name).write_bytes(written(stored, iccprofile=profile))
            with (tmp_path / name).open("rb") as stream:
                pictures.append(decode_photo(stream, tmp_path / name, max_pixels=10_000))
        deep = pictures[1].deep
        assert deep is not None
        # In the mean, for in 8 bits the steps of dark pixels are coarse.
        assert np.abs(deep / 257.0 - np.asarray(pictures[0].rgb)).mean() <= 0.5
        assert b"" not in (pictures[0].profile, pictures[1].profile)
    # Between two steps of 8 bits lie others.
    ramp = np.linspace(0, 65535, 1920).round().astype(np.uint16).reshape(40, 48, 1).repeat(deep.shape[2], 2)
    converted = convert_deep(ramp, profile)
    assert converted is not None
    assert len(np.unique(converted)) > 1500


def test_a_profile_with_tables_of_colours_is_applied_in_8_bits_or_not_at_all(tmp_path: Path) -> None:
    profile = make_profile(CURVES["gamma"], more=b"A2B0")
    assert convert_deep(of_bits(16), profile) is None
    assert convert_deep(of_bits(16, GREY)[..., None], make_profile(CURVES["gamma"])) is None


def test_thousands_of_pages_are_refused_and_the_first_is_read_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.tif"
    with tifffile.TiffWriter(path) as writer:
        for _ in range(5):
            writer.write(PHOTO[:2, :2], metadata=None)
    monkeypatch.setattr("training.decoding.MOST_PAGES", 4)
    with path.open("rb") as stream:
        assert count_frames(stream) == 5
        stream.seek(0)
        with pytest.raises(InputError, match="has more than 4 pages"):
            list(decode_pages(stream, path, max_pixels=100))
        stream.seek(0)
        assert decode_photo(stream, path, max_pixels=100).height == 2
    # A last page that names the first as the next one ends there.
    content = bytearray(path.read_bytes())
    first = content[4:8]
    with tifffile.TiffFile(path) as file:
        last = file.pages[4].offset
    end = last + 2 + 12 * int.from_bytes(content[last : last + 2], "little")
    content[end : end + 4] = first
    assert count_frames(io.BytesIO(content)) == 5


def test_pages_come_one_by_one_and_raw_photographs_are_not_taken_for_their_previews(tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    small = {"subfiletype": 1}
    with tifffile.TiffWriter(path) as writer:
        for values, options in ((PHOTO[:8], small), (PHOTO, {}), (of_bits(12), {}), (PHOTO[:9], small), (GREY, {})):
            writer.write(values, metadata=None, **options)
    with path.open("rb") as stream:
        pages = list(decode_pages(stream, path, max_pixels=10_000))
    assert [(page.height, page.white) for page in pages] == [(40, 0), (40, 4095), (40, 0)]
    path.write_bytes(written(PHOTO, subfiletype=1))
    with path.open("rb") as stream:
        assert decode_photo(stream, path, max_pixels=10_000).height == 40
    path.write_bytes(written(PHOTO, subfiletype=1, extratags=[(50706, "B", 4, b"\1\4\0\0", True)]))
    with path.open("rb") as stream, pytest.raises(InputError, match="raw photograph, of which only a preview"):
        decode_photo(stream, path, max_pixels=10_000)
