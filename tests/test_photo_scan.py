"""Folders: every file is a photograph or skipped with a reason, and the split holds by content."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import make_photo
from PIL import Image

from colorpress.core.config import DataConfig
from colorpress.core.errors import ConfigError, GateError, InputError, printable
from colorpress.core.source_code import ROOT
from training import photos
from training.photo_scan import scan_photos
from training.photo_split import PhotoSplit
from training.photos import NO_COLOUR, embedded_photos, inspect_photo, walk_photos
from training.picture_types import names_of_read_types

PARTS = ("train", "choosing", "confirming", "test")


def contents(split: PhotoSplit) -> list[list[str]]:
    return [[photo.sha256 for photo in getattr(split, part)] for part in PARTS]


def data(folder: Path, **options: object) -> DataConfig:
    return DataConfig(data=folder, max_bad_share=1.0, **options)


def test_a_scan_checks_splits_and_names_what_it_skips(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photo(0).save(photo_folder / "zz copy.png")
    Image.new("RGB", (32, 32), (90, 92, 91)).save(photo_folder / "grey.jpg")
    (photo_folder / "broken.jpg").write_bytes(b"no")
    (photo_folder / "=phone.cr3").write_bytes(b"\0\0\0\x18ftypcrx ")
    (photo_folder / "gpj.\u202eexe.\x1b[2J.jpg").write_bytes(b"")
    (photo_folder / "README").write_text("no suffix")
    before = sorted((path, path.stat().st_mtime_ns) for path in photo_folder.rglob("*"))
    split = scan_photos(data(photo_folder), workers=0, skipped_path=tmp_path / "skipped_images.csv")
    assert (len(split.train), len(split.val), len(split.test)) == (8, 1, 1)
    assert {each.path.name: each.reason for each in split.skipped} == {
        "=phone.cr3": f"format raw CR3 not accepted ({names_of_read_types()})",
        "README": "no suffix, and no picture by its content",
        "gpj.\u202eexe.\x1b[2J.jpg": "is empty",
        "broken.jpg": "not an image (cannot identify)",
        "grey.jpg": NO_COLOUR,
        "zz copy.png": "same content as photo0.png",
    }
    with (tmp_path / "skipped_images.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["path"] for row in rows] == [printable(str(each.path)) for each in split.skipped]
    assert str(photo_folder / r"gpj.\u202eexe.\x1b[2J.jpg") in [row["path"] for row in rows]
    said = capsys.readouterr().err
    assert "1 files have the same content" in said
    assert "passed over as no photographs: README: no suffix" in said
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
    assert contents(renamed) == contents(plain)
    assert scan_photos(data(photo_folder, seed=1), workers=0) != renamed


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
    assert split.folders == "whole folders kept together: 24 folders"
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
    assert split.folders == "whole folders kept together: 24 folders"
    assert contents(split) == contents(alone)


def test_an_index_saves_decoding_and_notices_changes(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "index.json"
    first = scan_photos(data(photo_folder), workers=1, index_path=index)
    decoded: list[str] = []

    def inspect(path: Path, limit: int) -> object:
        decoded.append(path.name)
        return inspect_photo(path, limit)

    monkeypatch.setattr("training.photo_scan.inspect_photo", inspect)
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
        (photo_folder / f"NOTES{copy}").write_text("of no suffix, and no picture")
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
    with pytest.raises(InputError, match="holds no photographs, and at least 3 colour photographs are needed"):
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


def test_the_embedded_photographs_are_there_in_colour_and_no_two_are_the_same() -> None:
    split = scan_photos(DataConfig(), workers=1)
    assert len(embedded_photos()) == 55
    assert (len(split.train), len(split.val), len(split.test), split.skipped) == (43, 6, 6, ())


def test_without_its_photographs_the_package_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos, "_EMBEDDED", tmp_path)
    with pytest.raises(InputError, match="package 'colorpress': without its photographs") as caught:
        scan_photos(DataConfig(), workers=1)
    assert "--data" in caught.value.hint


def test_the_demo_holds_out_enough_of_them_to_be_believed() -> None:
    share = re.search(r"--test-share ([\d.]+)", (ROOT / "Makefile").read_text())
    assert share
    split = scan_photos(DataConfig(test_share=float(share[1])), workers=1)
    assert len(split.test) >= 15
    assert min(len(split.choosing), len(split.confirming)) >= 3
    assert len(split.train) >= 30
