"""The yardstick: what a table, best.pt itself and wild colours are worth on it, and what it refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from colorpress.core.config import DataConfig, Settings
from colorpress.core.errors import InputError
from compress import yardstick
from compress.measures import CONTENT, FIDELITY, MEASURES, Reference, Scale
from compress.yardstick import Answering, Jury, Picture, Yardstick, make_yardstick, score_onnx
from export.controls import CONTROL_TITLES, GREY, TABLE, control_path
from tests.conftest import TINY_PLAN, make_network
from training.checkpoint import Checkpoint, load_checkpoint
from training.metrics import validate_l1
from training.photo_scan import scan_photos
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run
from training.unet import UNet


def made_of(*truths: float, best: tuple[float, ...], table: float = 0.0) -> Yardstick:
    """Pictures of one colour each: ab is the given value everywhere, and so are best.pt's and the table's answers."""
    pictures = tuple(
        Picture(torch.zeros(1, 1, 4, 6), torch.full((1, 2, 4, 6), value), torch.full((1, 2, 4, 6), own))
        for value, own in zip(truths, best, strict=True)
    )
    truth, own = np.array(truths), np.array(best)
    reference = Reference(abs(truth), abs(truth - table), abs(truth - own), abs(own), abs(own), abs(truth))
    return Yardstick(pictures, reference)


def answer(value: float) -> Answering:
    return lambda lightness: torch.full((1, 2, *lightness.shape[-2:]), value)


def test_scores_are_what_one_computes_by_hand() -> None:
    yardstick = made_of(0.2, 0.4, best=(0.15, 0.3), table=0.1)
    score = yardstick.score(answer(0.2))  # L1 0.0 and 0.2; best.pt's are 0.05 and 0.1, the table's 0.1 and 0.3
    assert score.l1 == pytest.approx(0.1)
    assert score.l1_delta_pct == pytest.approx(100 * (0.1 / 0.075 - 1))
    assert score.retained_colour == pytest.approx((0.3 - 0.1) / (0.3 - 0.075))
    assert score.content_colour == pytest.approx((0.2 - 0.1) / (0.2 - 0.075))
    assert score.fidelity == pytest.approx(1 - 0.075 / 0.225)  # it is 0.05 and 0.1 from best.pt's
    assert score.retained_low <= score.retained_colour <= score.retained_high
    grey = yardstick.score(answer(0.0))
    assert (grey.retained_colour, grey.fidelity) == (pytest.approx(0, abs=1e-6), pytest.approx(0, abs=1e-6))


def test_what_a_student_is_read_by_is_its_distance_to_best_where_fidelity_decides() -> None:
    tint = made_of(0.2, 0.4, best=(0.1, 0.1), table=0.1)  # truer than grey, and no better than a table
    assert tint.scale() == Scale(pytest.approx(0.1), 0.0, to_best=True)
    true, vivid = made_of(0.2, 0.4, best=(0.15, 0.3)), made_of(0.1, 0.4, best=(0.1, -0.2))
    assert true.scale() == Scale(pytest.approx(0.3), pytest.approx(0.075), to_best=False)
    assert true.scale(1) == Scale(pytest.approx(0.2), pytest.approx(0.05), to_best=False)
    assert vivid.scale() == Scale(pytest.approx(0.15), 0.0, to_best=True)
    # On the first alone it is better than grey, but the first photographs alone do not decide.
    assert vivid.scale(1) == Scale(pytest.approx(0.1), 0.0, to_best=True)


def test_what_confirms_is_by_the_measure_that_chose() -> None:
    strong, weak = made_of(0.2, 0.4, best=(0.15, 0.3), table=0.1), made_of(0.2, 0.4, best=(0.1, 0.2), table=0.15)
    jury = Jury(None, None, None)  # type: ignore[arg-type]  # asked for what it knows already
    vars(jury).update(choosing=strong, confirming=weak)
    assert (strong.strength.measure, weak.strength.measure) == (CONTENT, FIDELITY)
    scores = jury.score(answer(0.2))
    assert scores.chosen_by == strong.score(answer(0.2)) and scores.reported is scores.confirmed
    assert scores.confirmed is not None and scores.confirmed.measure == "content_colour"
    assert scores.confirmed.fidelity == weak.score(answer(0.2)).fidelity != scores.chosen_by.fidelity
    vars(jury).update(confirming=None)
    scores = jury.score(answer(0.2))
    assert scores.confirmed is None and scores.reported == strong.score(answer(0.2)) and jury.reporting is strong


def test_best_is_asked_about_either_half_when_it_is_needed(
    photo_folder: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, photos = make_run(tiny_checkpoint.parent, photo_folder)
    asked: list[object] = []
    monkeypatch.setattr(yardstick, "make_yardstick", lambda *given, **_: asked.append(given[3]) or given[3])
    jury = Jury(run, load_checkpoint(tiny_checkpoint), photos)
    assert jury.choosing == jury.choosing == photos.choosing and asked == [photos.choosing]
    jury = Jury(run, jury.best, replace(photos, confirming=photos.test))
    assert jury.confirming == photos.test and asked == [photos.choosing, photos.test]
    assert Jury(run, jury.best, replace(photos, confirming=())).confirming is None and len(asked) == 2


def make_run(folder: Path, photo_folder: Path) -> tuple[Run, PhotoSplit]:
    run = Run(folder, Settings.from_options({"device": "cpu", "max_pixels": 10**6, "threads": 1}))
    return run, scan_photos(DataConfig(data=photo_folder), workers=0)


def test_it_agrees_with_validation(photo_folder: Path, tiny_unet: UNet, tiny_checkpoint: Path) -> None:
    run, photos = make_run(tiny_checkpoint.parent, photo_folder)
    yardstick = make_yardstick(run, load_checkpoint(tiny_checkpoint), photos, photos.train, short_side=24)
    limits = {"short_side": 24, "max_pixels": 10**6, "device": torch.device("cpu")}
    assert yardstick.reference.best_l1.mean() == pytest.approx(validate_l1(tiny_unet, photos.train, **limits))
    other = make_network(seed=5)
    assert yardstick.score(other).l1 == pytest.approx(validate_l1(other, photos.train, **limits))
    own = yardstick.score(tiny_unet)
    assert own.l1_delta_pct == pytest.approx(0, abs=1e-9) and own.fidelity == 1
    for measure in MEASURES.values():
        kept = getattr(own, measure.name)
        assert kept == pytest.approx(1) or math.isnan(kept)


def test_a_table_has_no_content_and_a_fidelity_by_its_distance(photo_folder: Path, tiny_checkpoint: Path) -> None:
    run, photos = make_run(tiny_checkpoint.parent, photo_folder)
    yardstick = make_yardstick(run, load_checkpoint(tiny_checkpoint), photos, photos.train, short_side=24)
    # This best.pt is not trained: let it be as far from the truth as makes a difference.
    strong = replace(yardstick, reference=replace(yardstick.reference, best_l1=0.5 * yardstick.reference.table_l1))
    scores = {name: score_onnx(strong, control_path(run, name), threads=1) for name in CONTROL_TITLES}
    assert strong.strength.measure is CONTENT
    assert scores[TABLE].content_colour == 0 and scores[TABLE].interval == (0, 0)
    assert scores[GREY].fidelity == 0 and scores[GREY].content_colour < 0
    (table,) = (torch.from_numpy(each) for each in [_table_of(run)])
    distances, whole = [], []
    for picture in yardstick.pictures:
        rows = (picture.lightness[0, 0] * len(table)).long().clamp(max=len(table) - 1)
        distances.append(float((table[rows].permute(2, 0, 1)[None] - picture.best).abs().mean()))
        whole.append(float(picture.best.abs().mean()))
    assert scores[TABLE].fidelity == pytest.approx(1 - np.mean(distances) / np.mean(whole), abs=1e-6)


def _table_of(run: Run) -> np.ndarray:
    import onnx

    constants = onnx.load(control_path(run, TABLE)).graph.initializer
    return next(onnx.numpy_helper.to_array(each).copy() for each in constants if each.name == "colours")


def test_wild_colours_are_worth_less_than_none(photo_folder: Path, tiny_checkpoint: Path) -> None:
    run, photos = make_run(tiny_checkpoint.parent, photo_folder)
    yardstick = make_yardstick(run, load_checkpoint(tiny_checkpoint), photos, photos.train, short_side=24)
    generator = torch.Generator().manual_seed(0)

    def recolour(lightness: Tensor) -> Tensor:
        return torch.rand(1, 2, *lightness.shape[-2:], generator=generator) * 1.6 - 0.8

    score = yardstick.score(recolour)
    assert score.fidelity < score.fidelity_high < 0 < score.l1_delta_pct
    assert score.loss > 1


def test_the_photographs_are_those_asked_for_and_the_table_is_of_the_training_ones(
    photo_folder: Path, tiny_checkpoint: Path
) -> None:
    run, photos = make_run(tiny_checkpoint.parent, photo_folder)
    best = load_checkpoint(tiny_checkpoint)
    one = make_yardstick(run, best, photos, photos.choosing[:1], short_side=24)
    assert len(one.pictures) == 1 == one.strength.photos
    assert min(one.pictures[0].lightness.shape[-2:]) == 24
    assert one.score(make_network(seed=5)).measure == "fidelity"
    table, written = _table_of(run), control_path(run, TABLE).stat().st_mtime_ns
    # It stays as it is for other photographs and for --force, and follows those to train on.
    make_yardstick(replace(run, force=True), best, photos, photos.test, short_side=24)
    assert control_path(run, TABLE).stat().st_mtime_ns == written and (_table_of(run) == table).all()
    make_yardstick(run, best, replace(photos, train=photos.train[:2]), photos.test, short_side=24)
    assert (_table_of(run) != table).any()


def test_best_that_answers_nan_is_named(photo_folder: Path, tmp_path: Path, tiny_unet: UNet) -> None:
    run, photos = make_run(tmp_path, photo_folder)
    with torch.no_grad():
        tiny_unet.head.bias.fill_(math.nan)
    best = Checkpoint(TINY_PLAN, tiny_unet.state_dict())
    with pytest.raises(InputError, match="answers NaN to a photograph"):
        make_yardstick(run, best, photos, photos.val, short_side=24)


def test_what_is_no_answer_is_refused(photo_folder: Path, tmp_path: Path, tiny_checkpoint: Path) -> None:
    yardstick = made_of(0.2, best=(0.1,))

    def too_small(lightness: Tensor) -> Tensor:
        return torch.zeros(1, 2, 1, 1)

    for wrong in (too_small, answer(math.nan), answer(math.inf)):
        with pytest.raises(InputError, match="answers"):
            yardstick.score(wrong)
    run, photos = make_run(tmp_path, photo_folder)
    gone = Photo(tmp_path / "gone.png", "0" * 64, 4, 4)
    with pytest.raises(InputError, match="no photograph can be read"):
        make_yardstick(run, load_checkpoint(tiny_checkpoint), photos, [gone], short_side=8)
