"""Further folders of photographs to score on: what is read, left out and refused, and which photographs are worst."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.also import find_also, key_of, tell_apart
from colorpress.core.config import Settings
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import sha256_file
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run

NOTHING = PhotoSplit(train=())


def run_with(folder: Path, *also: Path) -> Run:
    return Run(folder, Settings.from_options({"also": also, "workers": 0}))


def test_photographs_that_the_run_uses_itself_are_left_out(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = (Photo(path, sha256_file(path), 48, 40) for path in sorted(photo_folder.rglob("photo*"))[:3])
    other = tmp_path / "sea"
    other.mkdir()
    for index, photo in enumerate((one, two, three)):
        shutil.copy(photo.path, other / f"{index}{photo.path.suffix}")
    (other / "broken.png").write_bytes(b"none")
    run = run_with(tmp_path / "out", other)
    (found,) = find_also(run, PhotoSplit(train=(one,), choosing=(two,)))
    assert (found.name, [photo.sha256 for photo in found.photos], found.known) == ("sea", [three.sha256], 2)
    assert [each.path.name for each in found.skipped] == ["broken.png"]
    said = capsys.readouterr().err
    assert "1 more to score on in 'sea', 1 skipped, 2 left out that the run uses itself" in said
    assert "skipped broken.png:" in said
    # What the stage's answer depends on is their content, not where they are.
    (other / "2.png").rename(other / "renamed.png") if (other / "2.png").exists() else None
    assert key_of(find_also(run, PhotoSplit(train=(one,), choosing=(two,)))) == key_of([found])
    assert key_of(find_also(run, NOTHING)) != key_of([found])
    with pytest.raises(InputError, match="holds no photograph that the run does not use itself; 3 it does"):
        find_also(run, PhotoSplit(train=(one,), confirming=(two,), test=(three,)))


def test_what_cannot_be_scored_on_is_refused(photo_folder: Path, tmp_path: Path) -> None:
    empty, output = tmp_path / "empty", tmp_path / "out"
    empty.mkdir()
    (output / "pictures").mkdir(parents=True)
    for also, kind, why in (
        ((tmp_path / "nowhere",), ConfigError, "no such folder"),
        ((empty,), InputError, "holds no colour photograph"),
        ((output / "pictures",), ConfigError, "lies inside the run folder"),
        ((output,), ConfigError, "lies inside the run folder"),
        ((photo_folder, photo_folder / "."), ConfigError, "is given twice"),
    ):
        with pytest.raises(kind, match=why):
            find_also(run_with(output, *also), NOTHING)
    with pytest.raises(ConfigError, match="option --also 'nowhere'"):
        find_also(run_with(output, Path("nowhere")), NOTHING)


def test_a_run_folder_among_the_photographs_is_not_entered(photo_folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "all"
    shutil.copytree(photo_folder, other / "photos")
    (before,) = find_also(run_with(tmp_path / "out", other), NOTHING)
    shutil.copytree(photo_folder, other / "run" / "pictures")
    for path in (other / "run" / "pictures").rglob("photo*"):
        path.write_bytes(path.read_bytes() + b"!")  # of another content
    (after,) = find_also(run_with(other / "run", other), NOTHING)
    assert after.photos == before.photos


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/a/sea", "/a/hills"], ["sea", "hills"]),
        (["/a/sea", "/b/sea", "/b/hills"], ["a/sea", "b/sea", "hills"]),
        (["/x/a/sea", "/y/a/sea"], ["x/a/sea", "y/a/sea"]),
        (["/sea", "/a/sea"], ["//sea", "a/sea"]),
        (["/a/s\ne"], ["s\\ne"]),
        (["/a/s\ne", "/a/s\\ne", "/b/sea"], ["//a/s\\ne (1)", "//a/s\\ne (2)", "sea"]),  # printed alike
    ],
)
def test_folders_of_one_name_are_told_apart(folders: list[str], names: list[str]) -> None:
    assert tell_apart([Path(each) for each in folders]) == names
