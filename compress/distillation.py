"""Distillation: a compressed network learns from best.pt's answers and from the truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from colorpress.config import DataConfig, MachineConfig, TrainConfig
from colorpress.files import sha256_source
from colorpress.processes import is_main_process
from compress.batch_norm import recalibrate_batch_norm_
from compress.teacher import ask_teacher
from training.answers import ANSWER_STRIDE
from training.batches import CropLoader
from training.checkpoint import Checkpoint, save_checkpoint
from training.device import choose_device, torch_threads
from training.evaluation import validate_l1
from training.fitting import fit_network, forget_fit
from training.network import ColorNetwork, pad_to_multiple, upsample_bilinear
from training.photos import PhotoSplit
from training.task import Batch, Task, prepare_batch

_BATCH_NORM_BATCHES = 16


@dataclass(frozen=True)
class DistillResult:
    """A distilled network: its checkpoint, and validation L1 (ab/128) before and after."""

    path: Path
    checkpoint: Checkpoint
    val_l1_before: float
    val_l1_after: float
    epochs: int

    def summary(self) -> str:
        """One sentence for a person."""
        return f"distilled for {self.epochs} epochs: validation L1 {self.val_l1_before:.4f} -> {self.val_l1_after:.4f}"


class DistilTask(Task):
    """weight * L1 to the teacher's answer + (1 - weight) * L1 to the truth.

    A network that answers at a quarter of the size or coarser is compared at a quarter: up-sampling to every pixel
    would take most of a small network's training, and finds no other weights.
    Source of the idea: Hinton, Vinyals and Dean 2015, on the output, in L1 as in OMGD (Ren et al. 2021).
    """

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network)
        self.teacher_weight = teacher_weight
        self.stride = min(ANSWER_STRIDE, network.output_stride)

    def forward(self, lightness: Tensor) -> Tensor:
        """L (N, 1, S, S) to ab (N, 2, S / stride, S / stride, rounded up)."""
        height, width = (-(-side // self.stride) for side in lightness.shape[-2:])
        coarse = self.network.forward_coarse(pad_to_multiple(lightness, self.network.size_multiple))
        return upsample_bilinear(coarse, self.network.output_stride // self.stride)[..., :height, :width]

    def loss(self, answered: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        assert batch.answers is not None
        answer = answered.float()
        truth = F.avg_pool2d(batch.ab, self.stride, ceil_mode=True)
        taught = upsample_bilinear(batch.answers, ANSWER_STRIDE // self.stride)
        taught = taught[..., : answer.shape[-2], : answer.shape[-1]]
        l1 = (answer - truth).abs().mean()
        loss = self.teacher_weight * (answer - taught).abs().mean() + (1.0 - self.teacher_weight) * l1
        return loss, l1.detach()


def distil_network(
    network: ColorNetwork,
    teacher: Checkpoint,
    photos: PhotoSplit,
    destination: Path,
    recipe: TrainConfig,
    *,
    teacher_weight: float,
    answer_folder: Path,
    answer_size: int,
    data: DataConfig,
    machine: MachineConfig,
    tune: bool = True,
    label: str = "fine-tune",
) -> DistillResult:
    """Fit `network` (changed in place) to `teacher` and the truth; writes the best epoch to `destination`.

    Batch norm statistics are re-estimated first, and kept where validation L1 says that they are better.

    Args:
        recipe: how long and how.
        teacher_weight: of the teacher's answer in the loss, 0 to 1; the truth has the rest.
        answer_folder: where the answers of all teachers are kept.
        answer_size: short side of the photographs that the teacher is asked about.
        tune: False leaves the weights as they are.
    Raises: as `training.original.train_unet`.
    """
    device = choose_device(machine.device)
    with torch_threads(machine.threads):
        network.to(device)
        before = _settle_batch_norm_(network, photos, recipe, data, device)
        last_path = destination.with_name("last.pt")
        extra = {
            **_origin(teacher),
            "architecture": network.architecture.describe(),
            "teacher_weight": teacher_weight,
            "answer_size": answer_size,
            "code": sha256_source(["compress/distillation.py", "compress/teacher.py", "training/foreign.py"]),
        }
        if not tune:
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
        answers = ask_teacher(
            teacher.build_network().to(device, memory_format=torch.channels_last),  # type: ignore[call-overload]
            photos.train,
            answer_folder / f"{teacher.sha256[:16]}-{answer_size}",
            short_side=answer_size,
            max_pixels=data.max_pixels,
            device=device,
        )
        fitted = fit_network(
            DistilTask(network, teacher_weight),
            photos.train,
            photos.val,
            recipe,
            data=replace(data, seed=data.seed + 1),
            machine=machine,
            best_path=destination,
            last_path=last_path,
            label=label,
            extra=extra,
            answers=answers,
            restart=True,
        )
    # It served to go on after an interruption; left there, it would answer for a later fine-tuning.
    if is_main_process():
        forget_fit(last_path)
    assert fitted.best.val_l1 is not None
    best = replace(fitted.best, arch=teacher.arch)
    return DistillResult(destination, best, before, fitted.best.val_l1, len(fitted.history))


def _origin(teacher: Checkpoint) -> dict[str, str]:
    return {"stage": "prune", "teacher_sha256": teacher.sha256}


def _settle_batch_norm_(
    network: ColorNetwork, photos: PhotoSplit, recipe: TrainConfig, data: DataConfig, device: torch.device
) -> float:
    """Re-estimate the batch norm statistics of `network` where that lowers validation L1; the L1 it then has.

    Pruning changes what a layer sees, so its statistics are stale; but those of a few crops can be worse than stale.
    """

    def validate() -> float:
        return validate_l1(network, photos.val, short_side=recipe.val_size, max_pixels=data.max_pixels, device=device)

    stale = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stale_l1 = validate()
    recalibrate_batch_norm_(network, _crops(photos, recipe, data, device))
    fresh_l1 = validate()
    if fresh_l1 < stale_l1:
        return fresh_l1
    network.load_state_dict(stale)
    return stale_l1


def _crops(photos: PhotoSplit, recipe: TrainConfig, data: DataConfig, device: torch.device) -> Iterator[Tensor]:
    """L of a few batches of training crops."""
    loader = CropLoader(
        photos.train,
        imgsz=recipe.imgsz,
        batch_size=recipe.batch_size,
        seed=data.seed,
        workers=0,
        max_pixels=data.max_pixels,
        crop_share=recipe.crop_share,
    )
    for crops in islice(loader.epoch(0), _BATCH_NORM_BATCHES):
        yield prepare_batch(crops, device).lightness
