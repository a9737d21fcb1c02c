"""Training the original UNet: photographs in, `best.pt` out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from colorpress.core.config import DataConfig, MachineConfig, Recipe, UNetConfig
from colorpress.core.processes import is_main_process
from colorpress.core.stages import StageRecord
from training.device import choose_device, torch_threads
from training.fitting import fit_network, forget_fit
from training.history import plot_history, write_history
from training.losses import ChromaClassLoss, L1Loss
from training.photos import PhotoSplit
from training.run_folder import Run
from training.unet import UNet, UNetPlan, count_parameters


def train(run: Run, photos: PhotoSplit) -> StageRecord:
    """Train the original: best.pt, last.pt, history.csv, training_loss.png."""
    settings = run.settings

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        choose_device(settings.machine.device)
        if run.force and is_main_process():
            forget_fit(run.folder / "last.pt")
        trained = train_unet(
            photos,
            run.folder,
            settings.unet,
            settings.train.recipe(settings.fit),
            data=settings.data,
            machine=settings.machine,
            restart=run.force,
        )
        files = [trained.best_path, trained.history_path, trained.plot_path]
        return files, {"epoch": trained.epoch, "val_l1": trained.val_l1, "params": trained.params}

    used = {**vars(settings.unet), **vars(settings.train), **vars(settings.fit), **run.data_key(photos)}
    return run.do("train", action, settings=used)


@dataclass(frozen=True)
class TrainResult:
    """A trained original: the files written, and the epoch and validation L1 (ab/128) that `best.pt` holds."""

    best_path: Path
    history_path: Path
    plot_path: Path
    epoch: int
    val_l1: float
    params: int


def train_unet(
    photos: PhotoSplit,
    output_dir: Path,
    unet: UNetConfig,
    recipe: Recipe,
    *,
    data: DataConfig,
    machine: MachineConfig,
    restart: bool = False,
) -> TrainResult:
    """Train a UNet from L to ab with L1 loss; writes best.pt, last.pt, history.csv and training_loss.png.

    A training that was interrupted in `output_dir` goes on after its last finished epoch; with `restart`, one with
    other settings that is in the way is replaced.

    Raises:
        ConfigError: `output_dir` holds a training with other settings, or half of one.
        DivergedError: the loss became NaN or Inf.
        MachineError: the device is missing or the folder cannot be written.
    """
    with torch.random.fork_rng(devices=[]), torch_threads(machine.threads):
        torch.manual_seed(data.seed)
        network = UNet(UNetPlan.classic(unet.base, unet.depth, unet.upsample))
        network.dropout.p = recipe.dropout
        # It starts from grey, the best answer that knows nothing, instead of having to unlearn random colours.
        for parameter in network.head.parameters():
            nn.init.zeros_(parameter)
        fitted = fit_network(
            ChromaClassLoss(network, recipe.class_weight) if recipe.class_weight else L1Loss(network),
            photos.train,
            photos.val,
            recipe,
            data=data,
            machine=machine,
            best_path=output_dir / "best.pt",
            last_path=output_dir / "last.pt",
            label="train",
            extra={"stage": "train", "train_photos": len(photos.train), "val_photos": len(photos.val)},
            restart=restart,
        )
    assert fitted.best.val_l1 is not None
    history_path, plot_path = output_dir / "history.csv", output_dir / "training_loss.png"
    if is_main_process():
        write_history(history_path, fitted.history)
        plot_history(plot_path, fitted.history)
    return TrainResult(
        best_path=output_dir / "best.pt",
        history_path=history_path,
        plot_path=plot_path,
        epoch=fitted.best.epoch,
        val_l1=fitted.best.val_l1,
        params=count_parameters(network),
    )
