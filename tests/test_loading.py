"""The loading measurement: figures that fit together, from the loader and the step that training uses."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from benchmarks.studies import loading
from benchmarks.studies.loading import LoadingSetup, main, measure_loading
from colorpress.core.config import DataConfig
from colorpress.core.errors import InputError
from training.batches import Crops
from training.photo_scan import scan_photos
from training.photos import Photo

SMALL = LoadingSetup(base=1, imgsz=16, batch_size=4, workers=0, steps=2)


@pytest.fixture
def photos(photo_folder: Path) -> tuple[Photo, ...]:
    return scan_photos(DataConfig(data=photo_folder), workers=0).train


def test_a_slow_loader_shows_as_loss_and_a_slow_step_does_not(
    photos: tuple[Photo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def measure(load_s: float, step_s: float) -> loading.LoadingResult:
        def epoch(self: object, number: int) -> Iterable[Crops]:
            for _ in range(50):
                time.sleep(load_s)
                yield Crops(torch.zeros((4, 3, 16, 16), dtype=torch.uint8))

        class Step(loading._Trainer):
            def run(self, batches: Iterable[Crops]) -> float:
                return super().run(batch for batch in batches if time.sleep(step_s) is None)

        with monkeypatch.context() as patch:
            patch.setattr(loading.CropLoader, "epoch", epoch)
            patch.setattr(loading, "_Trainer", Step)
            return measure_loading(photos, replace(SMALL, steps=3, rounds=1))

    slow_loader = measure(load_s=0.1, step_s=0.0)
    assert slow_loader.lost_share > 0.5
    assert 25 < slow_loader.loader_images_per_s <= 40
    slow_step = measure(load_s=0.0, step_s=0.1)
    assert slow_step.lost_share < 0.2
    assert slow_step.step_images_per_s <= 40


def test_a_real_measurement_leaves_no_process(photos: tuple[Photo, ...]) -> None:
    before = psutil.Process().children()
    result = measure_loading(photos, replace(SMALL, workers=1, threads=1, rounds=2))
    assert min(result.loader_images_per_s, result.step_images_per_s, result.both_images_per_s) > 0
    assert result.lost_share == pytest.approx(1 - result.both_images_per_s / result.step_images_per_s)
    assert (result.setup.base, result.setup.workers, result.setup.threads, result.photos) == (1, 1, 1, 8)
    assert psutil.wait_procs([each for each in psutil.Process().children() if each not in before], timeout=5)[1] == []


def test_photographs_that_are_gone_end_the_measurement(photos: tuple[Photo, ...]) -> None:
    for photo in photos:
        photo.path.unlink()
    with pytest.raises(InputError, match="no photograph can be read"):
        measure_loading(photos, SMALL)


def test_the_command_prints_one_json_document(photo_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--base", "1", "2", "--imgsz", "16", "--batch-size", "4", "--steps", "1", "--rounds", "1"]
    assert main(["--data", str(photo_folder), *small, "--workers", "0", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [each["base"] for each in printed["results"]] == [1, 2]
    assert printed["machine"]["cores_usable"] >= 1
    assert main(["--data", str(photo_folder / "gone")]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-2:] == [
        f"error: option --data '{photo_folder / 'gone'}': no such folder",
        "hint: give a folder of photographs with --data; left out, it is that of the run folder",
    ]
