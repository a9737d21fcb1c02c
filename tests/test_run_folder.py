"""What every stage asks of a run folder: its photographs, and how they were split."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from conftest import make_photo

from colorpress.core.config import DataConfig, Settings
from training.checkpoint import Checkpoint
from training.original import adopt_checkpoint
from training.photos import hash_photos
from training.run_folder import Run, find_photos, warn_of_other_split
from training.unet import UNetPlan


def make_run(tmp_path: Path, folders: int, size: int) -> Run:
    for number in range(folders * size):
        folder = tmp_path / "photos" / str(number // size)
        folder.mkdir(parents=True, exist_ok=True)
        make_photo(number, 16, 12).save(folder / f"{number}.png")
    (tmp_path / "run").mkdir()
    return Run(tmp_path / "run", Settings(data=DataConfig(data=tmp_path / "photos", val_share=0.2, test_share=0.2)))


@pytest.mark.parametrize(
    ("folders", "size", "end"),
    [
        (1, 10, "0 skipped"),
        (2, 5, "0 skipped; each of 2 folders gives every part its share"),
        (20, 2, "0 skipped; whole folders kept together: 20 folders"),
    ],
)
def test_it_says_how_photographs_were_split(
    tmp_path: Path, folders: int, size: int, end: str, capsys: pytest.CaptureFixture[str]
) -> None:
    find_photos(make_run(tmp_path, folders, size))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "to train on" in line)
    assert line.endswith(end)


def test_stages_know_which_half_a_photograph_is_in(tmp_path: Path) -> None:
    run = make_run(tmp_path, 1, 20)
    photos = find_photos(run)
    one, two = photos.choosing
    assert run.data_key(replace(photos, skipped=(), folders="")) == run.data_key(photos)
    assert run.data_key(replace(photos, choosing=(one,), confirming=(two, *photos.confirming))) != run.data_key(photos)


def test_it_warns_of_a_model_that_may_have_seen_what_is_held_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = find_photos(make_run(tmp_path, 1, 10))
    capsys.readouterr()
    for extra, warned in (
        ({}, False),
        ({"fit": {"photographs": hash_photos(photos.train, photos.val)}}, False),
        ({"fit": {"photographs": hash_photos(photos.train, photos.test)}}, True),
    ):
        warn_of_other_split(Checkpoint(UNetPlan.classic(4, 2, "bilinear"), {}, extra=extra), photos)
        assert ("may have seen those held out here" in capsys.readouterr().err) is warned


def test_files_beside_a_model_that_is_brought_stay_where_no_model_was(tmp_path: Path, tiny_checkpoint: Path) -> None:
    run = Run(tmp_path / "somebodys", force=True)
    run.folder.mkdir()
    own = [run.folder / name for name in ("history.csv", "training_loss.png")]
    for each in own:
        each.write_text("of another program")
    adopt_checkpoint(run, tiny_checkpoint)
    assert run.best_path.exists() and all(each.exists() for each in own)
    # Those of the model that is replaced go with it.
    run.best_path.write_bytes(b"another")
    adopt_checkpoint(run, tiny_checkpoint)
    assert not any(each.exists() for each in own)
