"""The int8 stage: one half of the validation photographs chooses, the other scores what was chosen."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from colorpress.core.config import Settings
from compress.export_stages import export
from compress.int8 import int8_stage
from compress.int8.int8_stage import quantize
from compress.measures import Score
from compress.yardstick import make_yardstick, score_onnx
from tests.conftest import make_network, make_photo
from training.checkpoint import Checkpoint, save_checkpoint
from training.photo_split import PhotoSplit
from training.photos import inspect_photo
from training.run_folder import Run
from training.unet import UNetPlan

PLAN = UNetPlan.classic(8, 1)
# One way alone, that cuts a tenth of the values off: it loses more than nothing, and is quickly tried.
CUT = {"calibration_percentile": 90.0, "equalize": "off", "int8_weight_bits": "8"}
OPTIONS = {
    "threads": 1, "workers": 0, "device": "cpu", "rank_size": 16, "calibration_photos": 2, "eval_size": 32,
    "choosing_photos": 2, "qat_crops": 0, "distil_imgsz": 16, **CUT,
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, PhotoSplit]:
    """A run folder with best.pt, vivid at random, and best/model.onnx; three photographs choose and three confirm."""
    folder = tmp_path_factory.mktemp("int8")
    photos = []
    for index in range(11):
        make_photo(index).save(folder / f"{index}.png")
        photos.append(inspect_photo(folder / f"{index}.png", 10**6))
    run = Run(folder / "out", Settings.from_options(OPTIONS))
    save_checkpoint(run.best_path, Checkpoint(PLAN, make_network(PLAN).state_dict(), val_l1=0.1))
    export(run, run.best_path, "best")
    split = PhotoSplit(*(tuple(photos[i:j]) for i, j in ((0, 4), (4, 7), (7, 10), (10, 11))))  # type: ignore[arg-type]
    return run, split


def changed(run: Run, **options: Any) -> Run:
    return replace(run, settings=Settings.from_options({**OPTIONS, **options}))


def quantized(run: Run, photos: PhotoSplit, variant: str) -> dict[str, Any]:
    """What int8.json says."""
    quantize(run, run.folder / "best" / "model.onnx", variant, photos)
    found: dict[str, Any] = json.loads((run.folder / variant / "int8.json").read_text())
    return found


def test_what_was_chosen_is_scored_on_photographs_that_did_not_choose(
    exported: tuple[Run, PhotoSplit], capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = exported
    record = quantized(changed(run, calibration_percentile=None, equalize="auto"), photos, "auto-int8")
    printed = capsys.readouterr().err
    best = run.load(run.best_path)
    for name, part in (("chosen_by", photos.choosing[:2]), ("confirmed", photos.confirming[:2])):
        yardstick = make_yardstick(run, best, photos, part, short_side=32)
        for key, folder in (("float", "best"), ("int8", "auto-int8")):
            score = score_onnx(yardstick, run.folder / folder / "model.onnx", threads=1)
            assert Score.of(record[name][key]).kept == pytest.approx(score.kept), (name, key)
        assert record[name]["photos"] == 2 and record[name]["float"]["fidelity"] > 0.999
    assert record["chosen_by"]["int8"] != record["confirmed"]["int8"]
    chosen = next(each for each in record["tries"] if each["way"] == record["way"])
    assert len(record["tries"]) > 1 and chosen["parent_l1"] == min(each["parent_l1"] for each in record["tries"])
    assert {name: chosen[name] for name in record["chosen_by"]["int8"]} == record["chosen_by"]["int8"]
    confirmed = Score.of(record["confirmed"]["int8"])
    assert f"; {confirmed.describe()} on 2 photographs, F 1.000 in float" in printed


def test_a_single_photograph_chooses_and_nothing_confirms(
    exported: tuple[Run, PhotoSplit], capsys: pytest.CaptureFixture[str]
) -> None:
    run, photos = exported
    record = quantized(run, replace(photos, choosing=photos.choosing[:1], confirming=()), "single-int8")
    assert "confirmed" not in record and record["chosen_by"]["photos"] == 1
    assert f"; {Score.of(record['chosen_by']['int8']).describe()} on 1 photograph, " in capsys.readouterr().err


def test_all_photographs_that_decide_are_in_the_key_and_no_others(exported: tuple[Run, PhotoSplit]) -> None:
    run, photos = exported
    source = run.folder / "best" / "model.onnx"

    def is_done(some: PhotoSplit) -> bool:
        quantize(run, source, "key-int8", photos)
        return quantize(run, source, "key-int8", some).skipped

    (one, two, three), (four, five, six) = photos.choosing, photos.confirming
    assert is_done(photos) and is_done(replace(photos, test=photos.train[:1]))
    # The third of either half is not read.
    assert is_done(replace(photos, choosing=(one, two, six), confirming=(four, five, three)))
    assert not is_done(replace(photos, choosing=(three, two, one)))
    assert not is_done(replace(photos, confirming=(six, five, four)))
    assert not is_done(replace(photos, train=photos.train[:3]))  # the table is fitted on all of them


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Labels of the trainings, none of which is done."""
    seen: list[str] = []

    def pretend(criterion: torch.nn.Module, *_: object, label: str) -> Any:
        seen.append(label)
        return type("Result", (), {"best": Checkpoint(PLAN, criterion.network.state_dict())})

    monkeypatch.setattr(int8_stage, "fit_network", pretend)
    return seen


def test_a_goal_that_the_float_model_misses_is_not_for_int8_to_reach(
    exported: tuple[Run, PhotoSplit], tuned: list[str]
) -> None:
    run, photos = exported
    lenient = {"int8_loss": 1.0, "qat_crops": 16}
    # best.pt, random as it is, is above grey in L1, and no int8 of it will have less.
    record = quantized(changed(run, max_l1_increase=-50.0, **lenient), photos, "goal-int8")
    assert not tuned and len(record["tries"]) == 1
    lost = 1 - record["tries"][0]["fidelity"]
    assert lost > 1e-3
    record = quantized(changed(run, min_fidelity=1 - lost / 2, **lenient), photos, "goal-int8")
    assert tuned == ["int8 training"] and any(each["float_layers"] for each in record["tries"])
    record = quantized(changed(run, min_fidelity=0.5, **lenient), photos, "goal-int8")
    assert tuned == ["int8 training"] and len(record["tries"]) == 1
    # The loss counts as well where a goal asks for less.
    quantized(changed(run, min_fidelity=0.5, qat_crops=16, int8_loss=lost / 2), photos, "goal-int8")
    assert tuned == ["int8 training"] * 2


def test_int8_learns_what_its_float_parent_answers(exported: tuple[Run, PhotoSplit]) -> None:
    run, photos = exported
    record = quantized(
        changed(run, qat_crops=64, distil_batch_size=4, qat_learning_rate=1e-3, int8_loss=0.0), photos, "taught-int8"
    )
    plain, tuned = record["tries"][:2]
    assert (plain["tuned"], tuned["tuned"]) == (False, True)
    assert tuned["parent_l1"] < 0.95 * plain["parent_l1"]


def test_without_best_the_defaults_are_taken(exported: tuple[Run, PhotoSplit], tmp_path: Path) -> None:
    run, photos = exported
    alone = replace(run, folder=tmp_path)
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "model.onnx").write_bytes((run.folder / "best" / "model.onnx").read_bytes())
    record = quantized(alone, photos, "best-int8")
    assert record["tries"] == [] and not {"chosen_by", "confirmed"} & record.keys()
    assert not (tmp_path / "controls").exists()
