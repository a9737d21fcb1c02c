"""Further folders of photographs to score on: what is read, left out and refused, and which photographs are worst."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import Accuracy, AccuracyResult
from benchmarks.also import find_also, find_worst, key_of, tell_apart
from colorpress.core.config import Settings
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import sha256_file
from compress.measures import CONTENT, FIDELITY, Reference
from training.metrics import PhotoScores
from training.photos import Photo, PhotoSplit
from training.run_folder import Run

NOTHING = PhotoSplit(train=(), val=(), test=(), skipped=())


def run_with(folder: Path, *also: Path) -> Run:
    return Run(folder, Settings.from_options({"also": also, "workers": 0}))


def test_photographs_that_the_run_learned_from_are_left_out(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three = (Photo(path, sha256_file(path), 48, 40) for path in sorted(photo_folder.rglob("photo*"))[:3])
    other = tmp_path / "sea"
    other.mkdir()
    for index, photo in enumerate((one, two, three)):
        shutil.copy(photo.path, other / f"{index}{photo.path.suffix}")
    (other / "broken.png").write_bytes(b"none")
    run = run_with(tmp_path / "out", other)
    (found,) = find_also(run, PhotoSplit(train=(one,), val=(two,), test=(three,), skipped=()))
    assert (found.name, [photo.sha256 for photo in found.photos], found.known) == ("sea", [three.sha256], 2)
    assert [each.path.name for each in found.skipped] == ["broken.png"]
    said = capsys.readouterr().err
    assert "1 more to score on in 'sea', 1 skipped, 2 left out that the run trained or chose on" in said
    assert "skipped broken.png:" in said
    # What the stage's answer depends on is their content, not where they are.
    (other / "2.png").rename(other / "renamed.png") if (other / "2.png").exists() else None
    assert key_of(find_also(run, PhotoSplit(train=(one,), val=(two,), test=(), skipped=()))) == key_of([found])
    assert key_of(find_also(run, NOTHING)) != key_of([found])
    with pytest.raises(InputError, match="holds no photograph that the run did not train or choose on; 3 it did"):
        find_also(run, PhotoSplit(train=(one, two, three), val=(), test=(), skipped=()))


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
    ],
)
def test_folders_of_one_name_are_told_apart(folders: list[str], names: list[str]) -> None:
    assert tell_apart([Path(each) for each in folders]) == names


def test_the_worst_photographs_go_by_the_measure() -> None:
    photos = tuple(Photo(Path(name), name, 9, 9) for name in "abcde")
    best_l1 = np.full(5, 0.1)

    def scored(l1: list[float], to_best: list[float]) -> Accuracy:
        return Accuracy("ok", scores=tuple(PhotoScores(e, 0, 0, 0, 0, 0, 0) for e in l1), to_best=tuple(to_best))

    x = scored([0.1, 0.15, 0.2, 0.05, 0.3], [0.5, 0.4, 0.3, 0.2, 0.1])
    y = scored([0.5, 0.15, 0.2, 0.05, 0.3], [0.0, 0.4, 0.3, 0.2, 0.1])
    reference = Reference(best_l1 * 2, best_l1 * 2, best_l1, best_l1, best_l1, best_l1)
    result = AccuracyResult({"x": x, "y": y, "gone": Accuracy("error")}, photos, tuple(best_l1 * 2), reference)
    assert find_worst(result, ["x"], CONTENT) == [
        ("e", pytest.approx(0.2)),
        ("c", pytest.approx(0.1)),
        ("b", pytest.approx(0.05)),
    ]
    assert [name for name, _ in find_worst(result, ["x"], FIDELITY)] == ["a", "b", "c"]
    assert find_worst(result, ["x", "y", "gone"], CONTENT)[0] == ("a", pytest.approx(0.2))  # the mean of both
    assert find_worst(result, ["gone"], CONTENT) == []
    assert find_worst(AccuracyResult({"x": x}, photos, ()), ["x"], CONTENT) == []
