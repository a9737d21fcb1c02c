"""The training loop: what it keeps, how it goes on, when it stops."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from colorpress.config import DataConfig, MachineConfig, TrainConfig
from colorpress.errors import ConfigError, DivergedError, InputError
from tests.conftest import make_network
from training.checkpoint import load_checkpoint
from training.fitting import FitConfig, FitResult, _set_learning_rate, fit_network, l1_objective
from training.original import train_unet
from training.photos import PhotoSplit, scan_photos
from training.unet import UNet

CONFIG = FitConfig(
    epochs=3, batch_size=8, imgsz=16, val_size=24, learning_rate=5e-3, weight_decay=0.01, seed=0, max_pixels=10**6,
    workers=0,
)  # fmt: skip


@pytest.fixture
def split(photo_folder: Path) -> PhotoSplit:
    return scan_photos(DataConfig(data=photo_folder, val_share=0.2), workers=0)


def fit(
    split: PhotoSplit, folder: Path, config: FitConfig = CONFIG, network: UNet | None = None, **extra: object
) -> FitResult:
    arguments: dict[str, object] = {
        "best_path": folder / "best.pt", "last_path": folder / "last.pt", "label": "fit", "extra": {}, **extra,
    }  # fmt: skip
    network = network or make_network()
    return fit_network(network, split.train, split.val, l1_objective, config, **arguments)  # type: ignore[arg-type]


def weights(path: Path) -> list[Tensor]:
    return list(load_checkpoint(path).state_dict.values())


def same(first: Path, second: Path) -> bool:
    return all(torch.equal(a, b) for a, b in zip(weights(first), weights(second), strict=True))


def test_training_lowers_the_loss_and_best_is_the_lowest_validation_l1(split: PhotoSplit, tmp_path: Path) -> None:
    fitted = fit(split, tmp_path, replace(CONFIG, epochs=6))
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3, 4, 5, 6]
    assert fitted.history[-1]["train_l1"] < 0.9 * fitted.history[0]["train_l1"]
    best = load_checkpoint(tmp_path / "best.pt")
    assert best.val_l1 == min(row["val_l1"] for row in fitted.history)
    assert fitted.history[best.epoch - 1]["val_l1"] == best.val_l1
    assert best.training_state is None
    assert load_checkpoint(tmp_path / "last.pt").epoch == 6


class StopAfterEpochError(Exception):
    pass


def test_an_interrupted_fit_goes_on_to_the_same_bit(
    split: PhotoSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit(split, tmp_path / "whole")

    def stop_in_epoch_three(optimizer: torch.optim.Optimizer, config: FitConfig, done_share: float) -> None:
        if done_share >= 2 / 3:
            raise StopAfterEpochError
        _set_learning_rate(optimizer, config, done_share)

    monkeypatch.setattr("training.fitting._set_learning_rate", stop_in_epoch_three)
    with pytest.raises(StopAfterEpochError):
        fit(split, tmp_path / "cut")
    monkeypatch.undo()
    resumed = fit(split, tmp_path / "cut")
    assert resumed.epochs_run == 1
    assert same(tmp_path / "whole" / "last.pt", tmp_path / "cut" / "last.pt")
    assert same(tmp_path / "whole" / "best.pt", tmp_path / "cut" / "best.pt")


def test_a_finished_fit_trains_no_more(split: PhotoSplit, tmp_path: Path) -> None:
    fit(split, tmp_path)
    before = (tmp_path / "best.pt").read_bytes()
    assert fit(split, tmp_path).epochs_run == 0
    assert (tmp_path / "best.pt").read_bytes() == before


def test_two_fits_are_the_same_and_workers_change_nothing(split: PhotoSplit, tmp_path: Path) -> None:
    fit(split, tmp_path / "a")
    fit(split, tmp_path / "b", replace(CONFIG, workers=1))
    assert same(tmp_path / "a" / "last.pt", tmp_path / "b" / "last.pt")


@pytest.mark.parametrize("change", [{"epochs": 4}, {"seed": 1}, {"learning_rate": 1e-3}])
def test_a_fit_with_other_settings_is_not_overwritten(
    split: PhotoSplit, tmp_path: Path, change: dict[str, float]
) -> None:
    fit(split, tmp_path)
    before = (tmp_path / "best.pt").read_bytes()
    with pytest.raises(ConfigError) as caught:
        fit(split, tmp_path, replace(CONFIG, **change))  # type: ignore[arg-type]
    name, value = next(iter(change.items()))
    assert f"{name} {getattr(CONFIG, name)} -> {value}" in str(caught.value)
    assert (tmp_path / "best.pt").read_bytes() == before
    assert fit(split, tmp_path, replace(CONFIG, **change), restart=True).epochs_run == (change.get("epochs") or 3)  # type: ignore[arg-type]


def test_other_photographs_or_starting_weights_are_another_fit(split: PhotoSplit, tmp_path: Path) -> None:
    fit(split, tmp_path)
    with pytest.raises(ConfigError, match="other starting weights"):
        fit(split, tmp_path, network=make_network(seed=1))
    with pytest.raises(ConfigError, match="other photographs"):
        fit(replace(split, train=split.train[1:]), tmp_path)


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_nan_stops_training_and_keeps_the_best_epoch(split: PhotoSplit, tmp_path: Path, kind: str) -> None:
    steps = 0

    def poisoned(answer: Tensor, lightness: Tensor, ab: Tensor) -> Tensor:
        nonlocal steps
        steps += 1
        loss = l1_objective(answer, lightness, ab)
        if steps <= 9:  # eight steps are the first epoch
            return loss
        return loss * float("nan") if kind == "loss" else loss + (answer - answer.detach()).clamp(min=0).sqrt().sum()

    with pytest.raises(DivergedError, match="epoch 2"):
        fit_network(
            make_network(), split.train, split.val, poisoned, CONFIG,
            best_path=tmp_path / "best.pt", last_path=tmp_path / "last.pt", label="fit", extra={},
        )  # fmt: skip
    assert load_checkpoint(tmp_path / "best.pt").epoch == 1
    assert load_checkpoint(tmp_path / "last.pt").epoch == 1


def test_photographs_that_have_all_gone_are_an_input_error(split: PhotoSplit, tmp_path: Path) -> None:
    for photo in split.train:
        photo.path.unlink()
    with pytest.raises(InputError, match="no training photograph"):
        fit(split, tmp_path)


def test_the_learning_rate_warms_up_and_decays_to_zero() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rates = []
    for share in (0.0, 0.05, 0.525, 1.0):
        _set_learning_rate(optimizer, replace(CONFIG, learning_rate=2.0), share)
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.2, 2.0, 1.0, 0.0])


def test_train_unet_writes_its_files_and_leaves_the_generator_alone(split: PhotoSplit, tmp_path: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    config = TrainConfig(base=4, depth=2, epochs=2, batch_size=8, imgsz=16, val_size=24)
    trained = train_unet(split, tmp_path, config, data=DataConfig(), machine=MachineConfig(workers=0, threads=1))
    assert torch.equal(torch.rand(1), expected)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "best.pt", "history.csv", "last.pt", "training_loss.png",
    ]  # fmt: skip
    best = load_checkpoint(trained.best_path)
    assert (best.epoch, best.val_l1) == (trained.epoch, trained.val_l1)
    assert math.isfinite(trained.val_l1)
