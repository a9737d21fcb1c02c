"""The photographs that come along: what they are, that each is accounted for, and how they are made."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_photo
from PIL import Image

from colorpress.core.errors import InputError
from training.photographs import make_photographs as making
from training.photographs.make_photographs import HERE, LONG_SIDE, Origin, main, read_origins, reduce_photograph
from training.photos import Photo, embedded_photos, inspect_photo


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    """Of a photograph that lies in a folder of packages."""
    source = tmp_path / "packages" / "wallpapers" / "share" / "hill.png"
    source.parent.mkdir(parents=True)
    make_photo(0, 640, 480).save(source)
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    return Origin("hill", "A hill", "Ann", "CC0-1.0", "wallpapers", "1.0", "share/hill.png", sha256, "")


def test_they_are_small_and_in_colour() -> None:
    paths = embedded_photos()
    assert sum(path.stat().st_size for path in paths) <= 1.5e6
    for path in paths:
        found = inspect_photo(path, max_pixels=LONG_SIDE**2)
        assert isinstance(found, Photo), found
        assert max(found.width, found.height) == LONG_SIDE, path.name
        assert min(found.width, found.height) >= 96, path.name  # crops of the demo are not enlarged


def test_they_carry_no_metadata() -> None:
    for path in embedded_photos():
        with Image.open(path) as picture:
            assert set(picture.info) == {"jfif", "jfif_version", "jfif_unit", "jfif_density"}, path.name


def test_each_has_an_origin_and_no_two_the_same() -> None:
    origins = read_origins()
    assert [path.name for path in embedded_photos()] == sorted(origin.file for origin in origins)
    assert len({origin.sha256 for origin in origins}) == len({(each.package, each.source) for each in origins}) == 55


def test_the_notice_names_each_with_its_author_licence_and_package() -> None:
    rows = [line for line in (HERE / "NOTICE.md").read_text().splitlines() if line.startswith("| ")]
    for origin in read_origins():
        row = next(row for row in rows if row.startswith(f"| {origin.file} |"))
        for text in (origin.title, origin.author, origin.licence, origin.package, origin.version):
            assert text, origin.file
            assert text in row, origin.file


def test_every_licence_may_be_shipped_and_has_its_text() -> None:
    notice = (HERE / "NOTICE.md").read_text()
    free = {"CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0"}
    free |= {"GPL-2.0-or-later", "LGPL-2.1-or-later", "LGPL-3.0"}
    for origin in read_origins():
        named = {word.strip("(),") for word in origin.licence.split()}
        assert named & free or origin.licence == "public domain", origin.licence
        assert not {"NC", "ND"} & {part for word in named for part in word.split("-")}, origin.licence
    for name in free:
        assert any(line.startswith("| ") and name in line.split(" | ")[0] for line in notice.splitlines()), name
    for text in ("GPL-2.txt", "GPL-3.txt", "LGPL-3.txt"):
        assert f"({text})" in notice
        assert (HERE / text).stat().st_size > 7000


def test_a_photograph_is_made_and_noticed(origin: Origin, tmp_path: Path) -> None:
    target = tmp_path / "made"
    target.mkdir()
    titled = replace(origin, origin="https://example.org/hill_(1).jpg")
    making.make_photographs([titled], tmp_path / "packages", target)
    assert {path.name for path in target.iterdir()} == {"hill.jpg", "NOTICE.md"}
    with Image.open(target / "hill.jpg") as picture:
        assert (picture.size, picture.mode) == ((160, 120), "RGB")
    last = (target / "NOTICE.md").read_text().splitlines()[-1]
    assert last == "| hill.jpg | [A hill](https://example.org/hill_%281%29.jpg) | Ann | CC0-1.0 | wallpapers 1.0 |"


@pytest.mark.parametrize(
    ("size", "small"),
    [((640, 480), (160, 120)), ((1920, 1080), (160, 96)), ((480, 1600), (96, 160)), ((80, 60), (80, 60))],
)
def test_wide_ones_lose_their_ends_and_none_is_enlarged(
    size: tuple[int, int], small: tuple[int, int], tmp_path: Path
) -> None:
    make_photo(0, *size).save(tmp_path / "a.png")
    assert reduce_photograph(tmp_path / "a.png").size == small


def test_what_is_cut_lies_at_both_ends(tmp_path: Path) -> None:
    picture = Image.new("RGB", (400, 100), "red")
    picture.paste("blue", (150, 0, 250, 100))
    picture.save(tmp_path / "a.png")
    small = reduce_photograph(tmp_path / "a.png")
    assert [small.getpixel((x, 40)) for x in (5, 80, 154)] == [(255, 0, 0), (0, 0, 255), (255, 0, 0)]


def test_another_file_is_refused_before_anything_is_written(origin: Origin, tmp_path: Path) -> None:
    target = tmp_path / "made"
    target.mkdir()
    other = replace(origin, photograph="other", sha256="0" * 64)
    with pytest.raises(InputError, match=r"another file than origins\.csv names") as caught:
        making.make_photographs([origin, other], tmp_path / "packages", target)
    assert caught.value.hint == "unpack wallpapers 1.0, no other one"
    assert not list(target.iterdir())


def test_missing_packages_are_two_lines_on_standard_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 3
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: photograph '")
    assert "no such file" in first
    assert second.startswith("hint: unpack lomiri-wallpapers-16.04 20.04.0-2 into ")
