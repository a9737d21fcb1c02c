"""Distillation: a compressed network learns from best.pt's answers and from the truth.

What decides in the end is learned. Where best.pt is not clearly better than a lightness table, as tint and vivid
colours are not, that is how much of its own colours is kept: its answers alone teach, and tell which epoch is best.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorpress.core.charts import drawn
from colorpress.core.config import ArchConfig, DataConfig, MachineConfig, Recipe
from colorpress.core.console import progress, say
from colorpress.core.files import sha256_bytes, write_csv
from colorpress.core.processes import is_main_process, process_count, process_rank, sum_over_processes_
from colorpress.core.source_code import hash_code
from compress.batch_norm import recalibrate_batch_norm_
from compress.measures import FIDELITY, RETAINED, Scale
from training.batches import ANSWER_STRIDE, AnswerFolder, CropAnswers, CropLoader, whole_photos
from training.checkpoint import Checkpoint, save_checkpoint
from training.device import choose_device, choose_precision, computing_in, torch_threads
from training.fitting import FitFiles, FitJob, FitResult, fit_network, forget_fit
from training.foreign_source import load_source
from training.lab import rgb_to_l_ab
from training.losses import Batch, Loss, prepare_batch
from training.metrics import validate_l1
from training.network import ColorNetwork, copy_weights, pad_to_multiple, upsample_bilinear
from training.photo_split import PhotoSplit
from training.photos import Photo, hash_photos
from training.run_folder import Run
from training.unet import UNet

CURVE_COLUMNS = ("epoch", "crops", "minutes", "train_l1", "val_l1", RETAINED.name, FIDELITY.name)
# What is said where the scale of a lesson is to best.pt.
ANSWERS_ALONE = "fidelity F decides, so best.pt's answers alone teach"
# Up-sampling a coarser answer to every pixel would take most of a small network's training, and finds no other weights.
_COARSEST_STRIDE = 4
_BATCH_NORM_BATCHES = 16


@dataclass(frozen=True)
class DistillResult:
    """A distilled network: its checkpoint and what it scores on the photographs that told the best epoch.

    Attributes:
        val_l1_before, val_l1_after: mean L1 (ab/128), as `scale` reads it.
        paths: the checkpoint, and table and chart of the training; the checkpoint alone where nothing was trained.
    """

    path: Path
    checkpoint: Checkpoint
    val_l1_before: float
    val_l1_after: float
    scale: Scale
    epochs: int
    paths: tuple[Path, ...]

    def summary(self) -> str:
        """One sentence for a person."""
        kept, measure = self.scale.kept(self.val_l1_after), self.scale.measure
        shown = "" if math.isnan(kept) else f", {measure.title} {measure.symbol} {kept:.3f}"
        change = f"{self.scale.l1_name} {self.val_l1_before:.4f} -> {self.val_l1_after:.4f}"
        return f"distilled for {self.epochs} {'epoch' if self.epochs == 1 else 'epochs'}: {change}{shown}"


def resize_answers(answers: Tensor, stride: int) -> Tensor:
    """Answers as they are kept, (N, 2, S / 2, S / 2), averaged or up-sampled to one for `stride` x `stride` pixels.

    Of (N, 2, S / stride, S / stride, rounded up), with up to a pixel of the crop beyond its edges.
    """
    if stride > ANSWER_STRIDE:
        return F.avg_pool2d(answers, stride // ANSWER_STRIDE, ceil_mode=True)
    return upsample_bilinear(answers, ANSWER_STRIDE // stride)


class DistilLoss(Loss):
    """weight * L1 to the teacher's answer + (1 - weight) * L1 to the truth.

    A network that answers at a half of the size is compared there, and one that answers coarser at a quarter.
    Source of the idea: Hinton, Vinyals and Dean 2015, on the output, in L1 as in OMGD (Ren et al. 2021).
    """

    def __init__(self, network: ColorNetwork, teacher_weight: float) -> None:
        super().__init__(network)
        self.teacher_weight = teacher_weight
        self.stride = min(_COARSEST_STRIDE, network.output_stride)

    def forward(self, lightness: Tensor) -> Tensor:
        """L (N, 1, S, S) to ab (N, 2, S / stride, S / stride, rounded up)."""
        coarse = self.network.forward_coarse(pad_to_multiple(lightness, self.network.size_multiple))
        return self.network.complete(coarse, lightness, self.stride)

    def loss(self, answered: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        answer = answered.float()  # (N, 2, S / stride, S / stride), as both targets
        truth = F.avg_pool2d(batch.ab, self.stride, ceil_mode=True)  # of (N, 2, S, S)
        loss = l1 = (answer - truth).abs().mean()
        if self.teacher_weight:
            assert batch.answers is not None
            taught = resize_answers(batch.answers, self.stride)[..., : answer.shape[-2], : answer.shape[-1]]
            loss = self.teacher_weight * (answer - taught).abs().mean() + (1.0 - self.teacher_weight) * l1
        return loss, l1.detach()


@dataclass(frozen=True)
class Lesson:
    """What a network learns from, how long and how, and where.

    Attributes:
        teacher: best.pt.
        photos: those of `train` are learned from, and those that choose tell which epoch is best.
        teacher_weight: of the teacher's answer in the loss, 0 to 1; the truth has the rest.
        scale: what L1 on the photographs that choose is read by, and so what tells which epoch is best.
        answer_folder: where the answers of all teachers are kept.
        make_loss: the loss, from the network and `teacher_weight`.
    """

    teacher: Checkpoint
    photos: PhotoSplit
    recipe: Recipe
    teacher_weight: float
    scale: Scale
    answer_folder: Path
    data: DataConfig
    machine: MachineConfig
    make_loss: Callable[[ColorNetwork, float], Loss] = DistilLoss

    @staticmethod
    def of(run: Run, teacher: Checkpoint, photos: PhotoSplit, scale: Scale, *, crops: int) -> Lesson:
        """So many crops, as the options of a run have it. Where the scale is to best.pt, its answers alone teach."""
        settings, recipe = run.settings, distil_recipe(run, photos, crops)
        return Lesson(
            teacher, photos, recipe, 1.0 if scale.to_best else settings.distil.teacher_weight, scale,
            run.answer_folder, settings.data, settings.machine,
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        """What the teacher computes its answers to crops in: fp16 would overflow in networks not made for it."""
        chosen = choose_precision(self.recipe.precision, choose_device(self.machine.device))
        return chosen if chosen == torch.bfloat16 else torch.float32

    @cached_property
    def answers(self) -> CropAnswers:
        """Of this teacher, to the crops of this lesson that this process learns from."""
        recipe, part = self.recipe, (process_rank(), process_count())
        # All that decides which crops they are; growing ones grow by the share of the epochs.
        names = ("imgsz", "size_jitter", "crop_share", "tone_jitter", "epoch_crops", "batch_size", "start_imgsz")
        key: dict[str, Any] = {name: getattr(recipe, name) for name in names}
        key |= {"epochs": recipe.epochs if recipe.start_imgsz else 0, "photographs": hash_photos(self.photos.train)}
        key |= {"seed": self.data.seed, "max_pixels": self.data.max_pixels, "part": part, "dtype": str(self.dtype)}
        return CropAnswers(self._folder_of(key))

    @cached_property
    def judging(self) -> AnswerFolder:
        """The same to whole photographs that judge, in float32."""
        return AnswerFolder(self._folder_of({"short side": self.recipe.val_size, "max_pixels": self.data.max_pixels}))

    def _folder_of(self, key: Mapping[str, Any]) -> Path:
        """Where answers of the teacher are kept that depend on `key`, JSON-ready, and on its own code."""
        arch = self.teacher.arch
        code = [hash_code(__name__), *([load_source(arch.arch).sha256] if arch.arch else [])]
        asked = json.dumps({**key, "arch": {**vars(arch), "arch": ""}, "code": code})
        return self.answer_folder / f"{self.teacher.sha256[:16]}-{sha256_bytes(asked.encode())[:16]}"

    @property
    def target(self) -> AnswerFolder | None:
        """What tells which epoch is best: the teacher's answers to the photographs that choose; None: the truth."""
        return self.judging if self.scale.to_best else None

    @property
    def job(self) -> FitJob:
        """What a network is fitted to: other crops than those that batch norm statistics are estimated on.

        Where the teacher's answers have no weight, it is not asked.
        """
        data, photos = replace(self.data, seed=self.data.seed + 1), self.photos
        answers = self.answers if self.teacher_weight else None
        return FitJob(photos.train, photos.choosing, self.recipe, data, self.machine, answers, self.target)

    def validate(self, network: nn.Module, device: torch.device) -> float:
        """The mean L1 (ab/128) of a network on `device` to the target, on the photographs that choose."""
        limits = {"short_side": self.recipe.val_size, "max_pixels": self.data.max_pixels}
        return validate_l1(network, self.photos.choosing, **limits, device=device, target=self.target)


def distil_recipe(run: Run, photos: PhotoSplit, crops: int) -> Recipe:
    """How a network is fitted to so many crops of these photographs, as the options of a run have it."""
    settings, count = run.settings, len(photos.train)
    return settings.distil.recipe(settings.fit, crops=crops, photos=count, val_size=settings.score.eval_size)


def distil_network(
    network: ColorNetwork, lesson: Lesson, destination: Path, *, tune: bool = True, label: str = "fine-tune"
) -> DistillResult:
    """Fit `network` (changed in place) to teacher and truth; writes the best epoch to `destination`.

    Where no epoch is better than the network was, it is written as it was. Batch norm statistics are re-estimated
    first, and kept where validation L1 says that they are better.

    Args:
        tune: False leaves the weights as they are.
        label: what a person reads beside the progress bar.
    Raises: as `training.original.train_unet`.
    """
    arch = _arch_of(network, lesson.teacher)
    device = choose_device(lesson.machine.device)
    with torch_threads(lesson.machine.threads):
        network.to(device)
        if lesson.scale.to_best:
            lesson = _ask_to_choose(lesson, device)
        before = _settle_batch_norm_(network, lesson, device)
        start = copy_weights(network)
        untuned = Checkpoint(network.architecture, start, val_l1=before, extra=_origin(lesson), arch=arch)
        if not tune:
            forget_fit(destination.parent)
            save_checkpoint(destination, untuned)
            return DistillResult(destination, untuned, before, before, lesson.scale, 0, (destination,))
        ask_about_crops(lesson)
        fitted = _fit(network, lesson, destination, label)
    files: tuple[Path, ...] = ()
    if is_main_process():
        # It served to go on after an interruption; left there, it would answer for a later fine-tuning.
        forget_fit(destination.parent)
        files = write_distillation_curve(destination.parent, fitted.history, lesson.scale)
    kept, after = replace(fitted.best, arch=arch), fitted.best.val_l1
    assert after is not None
    if before < after:
        say(f"{label}: no epoch is better than the start, {lesson.scale.l1_name} {before:.4f}, which is kept")
        if is_main_process():
            save_checkpoint(destination, untuned)
        kept, after = untuned, before
    paths = (destination, *files)
    return DistillResult(destination, kept, before, after, lesson.scale, len(fitted.history), paths)


def _arch_of(network: ColorNetwork, teacher: Checkpoint) -> ArchConfig:
    """The options that name the network: the teacher's where it is the teacher, pruned; none for a UNet of our own."""
    return ArchConfig() if isinstance(network, UNet) else teacher.arch


def _origin(lesson: Lesson) -> dict[str, Any]:
    # Where its `val_l1` is to best.pt's answers, it says so: to the truth it would mean something else.
    to_best = {"to_best": True} if lesson.scale.to_best else {}
    return {"stage": "distil", "teacher_sha256": lesson.teacher.sha256, **to_best}


def _fit(network: ColorNetwork, lesson: Lesson, destination: Path, label: str) -> FitResult:
    """Train the network, on the device that it is on, with the answers that the teacher gave."""
    extra = {
        **_origin(lesson),
        "architecture": network.architecture.describe(),
        "teacher_weight": lesson.teacher_weight,
        "code": hash_code(__name__, within="compress"),
    }
    criterion = lesson.make_loss(network, lesson.teacher_weight)
    return fit_network(criterion, lesson.job, FitFiles(destination, extra, restart=True), label=label)


def _ask_to_choose(lesson: Lesson, device: torch.device) -> Lesson:
    """The lesson where the scale is to best.pt, whose answers to the photographs that choose are there afterwards."""
    _ask_about_photos(lesson, device)
    # Answers are kept coarser than best.pt gives them: what they are compared with is held against these.
    scale = Scale(lesson.validate(_Grey(), device), 0.0, to_best=True)
    return replace(lesson, scale=scale)


def _ask_about_photos(lesson: Lesson, device: torch.device) -> None:
    """Ask the teacher about each whole photograph that chooses and has no answer of it yet.

    Processes of torchrun share the work; one that does not see what the others wrote does it all.

    Raises:
        MachineError: the folder cannot be written; answers that are there already are kept.
    """
    answers, limits = lesson.judging, {"short_side": lesson.recipe.val_size, "max_pixels": lesson.data.max_pixels}

    def find_missing() -> list[Photo]:
        return [photo for photo in lesson.photos.choosing if not answers.path_of(photo).is_file()]

    def ask(missing: Sequence[Photo]) -> None:
        if not missing:
            return
        teacher = open_teacher(lesson, torch.float32)
        with progress("asking best.pt", len(missing)) as bar:
            for photo, rgb in whole_photos(missing, **limits):
                answers.write(photo, teacher(rgb_to_l_ab(rgb.to(device))[0]))
                bar.advance()

    ask(find_missing()[process_rank() :: process_count()])
    if process_count() > 1:
        sum_over_processes_(torch.zeros(()))  # waits for all
        ask(find_missing())


def ask_about_crops(lesson: Lesson) -> None:
    """Ask the teacher about the crops of this process that it was not asked about yet, batch by batch.

    It is asked about a crop as the network that learns will see it, in so many epochs as have crops of their own.

    Raises:
        MachineError: the folder cannot be written; answers that are there already are kept.
    """
    job, device, part = lesson.job, choose_device(lesson.machine.device), (process_rank(), process_count())
    if (answers := job.answers) is None:
        return
    with CropLoader(job.train, job.recipe, job.data, workers=job.machine.workers, part=part) as loader:
        epochs = range(1, job.recipe.different_epochs + 1)
        missing = {
            (epoch, batch)
            for epoch in epochs
            for batch in range(len(loader))
            if not answers.path_of(epoch, batch).is_file()
        }
        if not missing:
            return
        teacher = open_teacher(lesson, lesson.dtype)
        with torch_threads(lesson.machine.threads), progress("asking best.pt", len(missing)) as bar:
            for epoch in sorted({epoch for epoch, _ in missing}):
                first = min(batch for each, batch in missing if each == epoch)
                for batch, crops in enumerate(loader.epoch(epoch, start=first), first):
                    if (epoch, batch) not in missing:
                        continue
                    lightness = prepare_batch(crops, device).lightness
                    # Of a batch whose photographs are all lost there is nothing to ask.
                    answer = teacher(lightness) if len(crops) else lightness.expand(-1, 2, -1, -1)
                    answers.write(epoch, batch, crops, answer)
                    bar.advance()


def open_teacher(lesson: Lesson, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """What answers L (N, 1, H, W) in [0, 1], on the device of the lesson, by ab/128 (N, 2, H, W) in float32.

    Args:
        dtype: that the teacher computes in, as `training.device.computing_in` has it.
    """
    device = choose_device(lesson.machine.device)
    best = lesson.teacher.build_network().eval()
    best.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def answer(lightness: Tensor) -> Tensor:
        with torch.inference_mode(), computing_in(dtype, best, device):
            ab: Tensor = best(lightness)
        return ab.float()

    return answer


class _Grey(nn.Module):
    """The answer that knows nothing."""

    def forward(self, lightness: Tensor) -> Tensor:
        return lightness.new_zeros(len(lightness), 2, *lightness.shape[-2:])


def _settle_batch_norm_(network: ColorNetwork, lesson: Lesson, device: torch.device) -> float:
    """Re-estimate the batch norm statistics of `network` where that lowers validation L1; the L1 it then has.

    Pruning changes what a layer sees, so its statistics are stale; but those of a few crops can be worse than stale.
    """
    stale = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    stale_l1 = lesson.validate(network, device)
    if not recalibrate_batch_norm_(network, _crops(lesson, device)):
        return stale_l1
    fresh_l1 = lesson.validate(network, device)
    if fresh_l1 < stale_l1:
        return fresh_l1
    network.load_state_dict(stale)
    return stale_l1


def _crops(lesson: Lesson, device: torch.device) -> Iterator[Tensor]:
    """L (N, 1, S, S) of a few batches of training crops."""
    recipe = lesson.recipe
    plain = replace(recipe, tone_jitter=0.0, start_imgsz=0, epoch_crops=Recipe().epoch_crops, epoch_steps=0)
    loader = CropLoader(lesson.photos.train, plain, lesson.data, workers=0)
    for crops in islice(loader.epoch(0), _BATCH_NORM_BATCHES):
        # Batch norm has no variance of one value, which is what one crop may be at the deepest level.
        yield prepare_batch(crops.twice() if len(crops) == 1 else crops, device).lightness


def write_distillation_curve(folder: Path, history: Sequence[Mapping[str, float]], scale: Scale) -> tuple[Path, Path]:
    """How much colour a network keeps, by minutes of training: distillation.csv and distillation.png in `folder`.

    Args:
        history: as `fit_network` gives it.
        scale: what its validation L1 is read by. Where nothing can be kept the column is empty, and the chart shows
            the L1.
    """
    rows: list[dict[str, float]] = []
    measure, is_known = scale.measure, not math.isnan(scale.kept(0.0))
    seconds = crops = 0.0
    for row in history:
        seconds += row["seconds"]
        crops += row["seconds"] * row["images_per_s"]
        kept = {measure.name: scale.kept(row["val_l1"])} if is_known else {}
        rows.append({**row, "crops": round(crops), "minutes": round(seconds / 60, 3), **kept})
    table, chart = write_csv(folder / "distillation.csv", CURVE_COLUMNS, rows), folder / "distillation.png"
    name = measure.name if is_known else "val_l1"
    with drawn(chart, height=4.4) as figure:
        axes = figure.subplots()
        values = [row[name] for row in rows]
        axes.plot([row["minutes"] for row in rows], values, "o-", color="#4c72b0", label="student, after each epoch")
        axes.axhline(1.0 if is_known else scale.best_l1, color="#55a868", linestyle="--", label="best.pt")
        axes.set(
            xlabel="minutes of training",
            ylabel=f"{measure.title} {measure.symbol} (1: best.pt, 0: grey)" if is_known else "L1 of ab / 128",
            title="Distillation, on the photographs that choose",
            xlim=(0, None),
        )
        axes.grid(alpha=0.3)
        axes.legend(loc="best")
    return table, chart
