"""Distillation: a compressed network learns from best.pt's answers and from the truth."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorpress.config import ArchConfig, DataConfig, MachineConfig, TrainConfig
from colorpress.console import say
from colorpress.files import sha256_source
from colorpress.processes import is_main_process
from compress.batch_norm import recalibrate_batch_norm_
from compress.distillation_curve import write_distillation_curve
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
from training.unet import UNet

_BATCH_NORM_BATCHES = 16


@dataclass(frozen=True)
class DistillResult:
    """A distilled network: its checkpoint and what it scores on the validation photographs.

    Attributes:
        val_l1_before, val_l1_after: mean L1 (ab/128).
        grey_l1, best_l1: of the grey answer and of best.pt there, at the same size.
        paths: the checkpoint, and table and chart of the training; the checkpoint alone where nothing was trained.
    """

    path: Path
    checkpoint: Checkpoint
    val_l1_before: float
    val_l1_after: float
    grey_l1: float
    best_l1: float
    epochs: int
    paths: tuple[Path, ...]

    @property
    def retained_colour(self) -> float:
        """G afterwards; NaN where best.pt is no better than grey."""
        gained = self.grey_l1 - self.best_l1
        return (self.grey_l1 - self.val_l1_after) / gained if gained > 0 else math.nan

    def summary(self) -> str:
        """One sentence for a person."""
        kept = "" if math.isnan(self.retained_colour) else f", {self.retained_colour:.3f} of best.pt's colour"
        change = f"validation L1 {self.val_l1_before:.4f} -> {self.val_l1_after:.4f}"
        return f"distilled for {self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}: {change}{kept}"


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
    make_task: Callable[[ColorNetwork, float], Task] = DistilTask,
    answer_folder: Path,
    answer_size: int,
    data: DataConfig,
    machine: MachineConfig,
    tune: bool = True,
    label: str = "fine-tune",
    reference_l1: tuple[float, float] | None = None,
) -> DistillResult:
    """Fit `network` (changed in place) to `teacher` and the truth; writes the best epoch to `destination`.

    Where no epoch is better than the network was, it is written as it was.

    Batch norm statistics are re-estimated first, and kept where validation L1 says that they are better.

    Args:
        recipe: how long and how.
        teacher_weight: of the teacher's answer in the loss, 0 to 1; the truth has the rest.
        make_task: the loss, from the network and `teacher_weight`.
        answer_folder: where the answers of all teachers are kept.
        answer_size: short side of the photographs that the teacher is asked about.
        tune: False leaves the weights as they are.
        reference_l1: validation L1 (ab/128) of the grey answer and of best.pt, where they are known; None asks best.pt,
            which takes longer than a short training of a small network.
    Raises: as `training.original.train_unet`.
    """
    device = choose_device(machine.device)
    with torch_threads(machine.threads):
        network.to(device)
        best = teacher.build_network().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        grey_l1, best_l1 = reference_l1 or (
            _validate(_Grey(), photos, recipe, data, device),
            _validate(best, photos, recipe, data, device),
        )
        before = _settle_batch_norm_(network, photos, recipe, data, device)
        last_path = destination.with_name("last.pt")
        extra = {
            **_origin(teacher),
            "architecture": network.architecture.describe(),
            "teacher_weight": teacher_weight,
            "answer_size": answer_size,
            "code": sha256_source(["compress/distillation.py", "compress/teacher.py", "training/foreign.py"]),
        }
        start = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}
        untuned = Checkpoint(
            network.architecture, start, val_l1=before, extra=_origin(teacher), arch=_arch_of(network, teacher)
        )
        if not tune:
            forget_fit(last_path)
            save_checkpoint(destination, untuned)
            return DistillResult(destination, untuned, before, before, grey_l1, best_l1, 0, (destination,))
        answers = ask_teacher(
            best,
            photos.train,
            answer_folder / f"{teacher.sha256[:16]}-{answer_size}",
            short_side=answer_size,
            max_pixels=data.max_pixels,
            device=device,
        )
        fitted = fit_network(
            make_task(network, teacher_weight),
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
    paths: tuple[Path, ...] = (destination,)
    if is_main_process():
        # It served to go on after an interruption; left there, it would answer for a later fine-tuning.
        forget_fit(last_path)
        paths += write_distillation_curve(destination.parent, fitted.history, grey_l1=grey_l1, best_l1=best_l1)
    assert fitted.best.val_l1 is not None
    kept = replace(fitted.best, arch=_arch_of(network, teacher))
    if before < fitted.best.val_l1:
        say(f"{label}: no epoch is better than the start, validation L1 {before:.4f}, which is kept")
        if is_main_process():
            save_checkpoint(destination, untuned)
        kept = untuned
    assert kept.val_l1 is not None
    return DistillResult(destination, kept, before, kept.val_l1, grey_l1, best_l1, len(fitted.history), paths)


def _origin(teacher: Checkpoint) -> dict[str, str]:
    return {"stage": "distil", "teacher_sha256": teacher.sha256}


def _arch_of(network: ColorNetwork, teacher: Checkpoint) -> ArchConfig:
    """The options that name the network: the teacher's where it is the teacher, pruned; none for a UNet of our own."""
    return ArchConfig() if isinstance(network, UNet) else teacher.arch


class _Grey(nn.Module):
    """The answer that knows nothing."""

    def forward(self, lightness: Tensor) -> Tensor:
        return lightness.new_zeros(len(lightness), 2, *lightness.shape[-2:])


def _validate(
    network: nn.Module, photos: PhotoSplit, recipe: TrainConfig, data: DataConfig, device: torch.device
) -> float:
    return validate_l1(network, photos.val, short_side=recipe.val_size, max_pixels=data.max_pixels, device=device)


def _settle_batch_norm_(
    network: ColorNetwork, photos: PhotoSplit, recipe: TrainConfig, data: DataConfig, device: torch.device
) -> float:
    """Re-estimate the batch norm statistics of `network` where that lowers validation L1; the L1 it then has.

    Pruning changes what a layer sees, so its statistics are stale; but those of a few crops can be worse than stale.
    """

    stale = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stale_l1 = _validate(network, photos, recipe, data, device)
    if not recalibrate_batch_norm_(network, _crops(photos, recipe, data, device)):
        return stale_l1
    fresh_l1 = _validate(network, photos, recipe, data, device)
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
