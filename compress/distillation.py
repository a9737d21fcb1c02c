"""Fine-tuning a compressed network by distillation: it learns from best.pt's answer and from the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor

from colorpress.config import DataConfig, FinetuneConfig, MachineConfig, TrainConfig
from colorpress.files import sha256_source
from colorpress.processes import is_main_process
from compress.batch_norm import recalibrate_batch_norm_
from training.batches import CropLoader
from training.checkpoint import Checkpoint, save_checkpoint
from training.device import choose_device, torch_threads
from training.evaluation import prepare_batch, validate_l1
from training.fitting import Objective, fit_network, forget_fit
from training.network import ColorNetwork
from training.photos import PhotoSplit

_BATCH_NORM_BATCHES = 16


@dataclass(frozen=True)
class DistillResult:
    """A fine-tuned network: its checkpoint, and validation L1 (ab/128) before and after."""

    path: Path
    checkpoint: Checkpoint
    val_l1_before: float
    val_l1_after: float
    epochs: int

    def summary(self) -> str:
        """One sentence for a person."""
        return f"distilled for {self.epochs} epochs: validation L1 {self.val_l1_before:.4f} -> {self.val_l1_after:.4f}"


def distil_network(
    network: ColorNetwork,
    teacher: Checkpoint,
    photos: PhotoSplit,
    destination: Path,
    config: FinetuneConfig,
    *,
    train: TrainConfig,
    data: DataConfig,
    machine: MachineConfig,
) -> DistillResult:
    """Fine-tune `network` (changed in place) towards `teacher` and the truth; writes the best epoch to `destination`.

    Batch norm statistics are re-estimated first, and kept where validation L1 says that they are better.
    The loss is teacher_weight * L1(answer, teacher) + (1 - teacher_weight) * L1(answer, truth).
    Source of the idea: Hinton, Vinyals and Dean 2015, on the output, in L1 as in OMGD (Ren et al. 2021).

    Raises: as `training.original.train_unet`.
    """
    device = choose_device(machine.device)
    with torch_threads(machine.threads):
        network.to(device)
        before = _settle_batch_norm_(network, photos, train, data, device)
        last_path = destination.with_name("last.pt")
        extra = {
            **_origin(teacher),
            "architecture": network.architecture.describe(),
            "teacher_weight": config.teacher_weight,
            "code": sha256_source(["compress/distillation.py", "training/foreign.py"]),
        }
        if config.finetune_epochs == 0:
            forget_fit(last_path)
            untuned = Checkpoint(
                network.architecture,
                network.cpu().state_dict(),
                val_l1=before,
                extra=_origin(teacher),
                arch=teacher.arch,
            )
            save_checkpoint(destination, untuned)
            return DistillResult(destination, untuned, before, before, 0)
        # The teacher's answer says more of each pixel than a class of colour does.
        recipe = replace(
            train, epochs=config.finetune_epochs, learning_rate=config.finetune_learning_rate, class_weight=0.0
        )
        fitted = fit_network(
            network,
            photos.train,
            photos.val,
            _distillation_objective(teacher, config.teacher_weight, device),
            recipe,
            data=replace(data, seed=data.seed + 1),
            machine=machine,
            best_path=destination,
            last_path=last_path,
            label="fine-tune",
            extra=extra,
            restart=True,
        )
    # It served to go on after an interruption; left there, it would answer for a later fine-tuning.
    if is_main_process():
        forget_fit(last_path)
    assert fitted.best.val_l1 is not None
    best = replace(fitted.best, arch=teacher.arch)
    return DistillResult(destination, best, before, fitted.best.val_l1, config.finetune_epochs)


def _origin(teacher: Checkpoint) -> dict[str, str]:
    return {"stage": "prune", "teacher_sha256": teacher.sha256}


def _settle_batch_norm_(
    network: ColorNetwork, photos: PhotoSplit, train: TrainConfig, data: DataConfig, device: torch.device
) -> float:
    """Re-estimate the batch norm statistics of `network` where that lowers validation L1; the L1 it then has.

    Pruning changes what a layer sees, so its statistics are stale; but those of a few crops can be worse than stale.
    """

    def validate() -> float:
        return validate_l1(network, photos.val, short_side=train.val_size, max_pixels=data.max_pixels, device=device)

    stale = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stale_l1 = validate()
    recalibrate_batch_norm_(network, _crops(photos, train, data, device))
    fresh_l1 = validate()
    if fresh_l1 < stale_l1:
        return fresh_l1
    network.load_state_dict(stale)
    return stale_l1


def _distillation_objective(teacher: Checkpoint, weight: float, device: torch.device) -> Objective:
    network = teacher.build_network().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def objective(answer: Tensor, lightness: Tensor, ab: Tensor) -> Tensor:
        with torch.no_grad():
            target = network(lightness)
        loss: Tensor = weight * (answer - target).abs().mean() + (1.0 - weight) * (answer - ab).abs().mean()
        return loss

    return objective


def _crops(photos: PhotoSplit, train: TrainConfig, data: DataConfig, device: torch.device) -> Iterator[Tensor]:
    """L of a few batches of training crops."""
    loader = CropLoader(
        photos.train,
        imgsz=train.imgsz,
        batch_size=train.batch_size,
        seed=data.seed,
        workers=0,
        max_pixels=data.max_pixels,
        crop_share=train.crop_share,
    )
    for rgb in islice(loader.epoch(0), _BATCH_NORM_BATCHES):
        yield prepare_batch(rgb, device)[0]
