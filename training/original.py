"""The original of a run folder, `best.pt`: trained here from photographs, or brought by somebody."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from colorpress.core.config import UNetConfig
from colorpress.core.errors import ConfigError
from colorpress.core.files import sha256_bytes, sha256_file, write_bytes
from colorpress.core.processes import is_main_process, share_answer
from colorpress.core.stages import StageRecord, forget_stage
from training.checkpoint import dump_checkpoint
from training.device import choose_device, torch_threads
from training.fitting import FitFiles, FitJob, FitResult, fit_network, forget_fit
from training.history import EXPLANATION_NAME, plot_history, write_history
from training.losses import ChromaClassLoss, L1Loss
from training.photo_split import PhotoSplit
from training.run_folder import Run
from training.unet import UNet, UNetPlan, count_parameters


def train(run: Run, photos: PhotoSplit) -> StageRecord:
    """Train the original: best.pt, last.pt, history.csv, training_loss.png."""
    settings = run.settings

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        choose_device(settings.machine.device)
        if run.force and is_main_process():
            forget_fit(run.folder)
        recipe = settings.train.recipe(settings.fit)
        # best.pt's epoch is chosen by all of them: that can only flatter best.pt, never what is compared with it.
        job = FitJob(photos.train, photos.val, recipe, settings.data, settings.machine)
        best = train_unet(job, settings.unet, run.folder, restart=run.force).best
        params = count_parameters(best.build_network())
        files = [run.folder / name for name in ("best.pt", "history.csv", "training_loss.png")]
        return files, {"epoch": best.epoch, "val_l1": best.val_l1, "params": params}

    used = {**vars(settings.unet), **vars(settings.train), **vars(settings.fit), **run.data_key(photos)}
    return run.do("train", action, settings=used)


def train_unet(job: FitJob, unet: UNetConfig, folder: Path, *, restart: bool = False) -> FitResult:
    """Train a UNet from L to ab; writes best.pt, last.pt, history.csv and training_loss.png.

    A training that was interrupted in `folder` goes on; with `restart`, one with other settings that is in the way is
    replaced.

    Raises: as `fit_network`; MachineError, where the device is missing or the folder cannot be written.
    """
    extra = {"stage": "train", "train_photos": len(job.train), "val_photos": len(job.val)}
    with torch.random.fork_rng(devices=[]), torch_threads(job.machine.threads):
        torch.manual_seed(job.data.seed)
        network = UNet(UNetPlan.classic(unet.base, unet.depth, unet.upsample))
        network.dropout.p = job.recipe.dropout
        # It starts from grey, the best answer that knows nothing, instead of having to unlearn random colours.
        for parameter in network.head.parameters():
            nn.init.zeros_(parameter)
        weight = job.recipe.class_weight
        criterion = ChromaClassLoss(network, weight) if weight else L1Loss(network)
        fitted = fit_network(criterion, job, FitFiles(folder / "best.pt", extra, restart), label="train")
    if is_main_process():
        write_history(folder / "history.csv", fitted.history)
        plot_history(folder / "training_loss.png", fitted.history)
    return fitted


def adopt_checkpoint(run: Run, checkpoint: Path | None) -> None:
    """Copy a trained model into the run folder as its best.pt; one of another program in the format of this one.

    None leaves the folder as it is.

    Raises:
        ConfigError: the folder holds another best.pt, which would be lost; or a foreign network is not named.
        InputError: the checkpoint cannot be used.
    """
    if checkpoint is not None:
        share_answer(lambda: _adopt(run, checkpoint))


def _adopt(run: Run, checkpoint: Path) -> None:
    found = run.load(checkpoint)
    found.build_network()
    content = checkpoint.read_bytes()
    if found.converted:
        content = dump_checkpoint(replace(found, extra={"stage": "convert", "converted_sha256": found.sha256}))
    if run.best_path.exists() and sha256_file(run.best_path) == sha256_bytes(content):
        return
    if run.best_path.exists() and not run.force:
        hint = "choose another --output-dir, or replace it with --force"
        raise ConfigError("folder", run.folder, "holds another best.pt", hint)
    # What told of the model that was there would be read as telling of this one.
    forget_fit(run.folder)
    for name in ("history.csv", "training_loss.png", EXPLANATION_NAME):
        (run.folder / name).unlink(missing_ok=True)
    forget_stage(run.folder, "train")
    write_bytes(run.best_path, content)
