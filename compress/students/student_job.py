"""What every student asks of a run, whoever chooses it: how coarse it may be, how it is built, weighed and taught."""

from __future__ import annotations

import getpass
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorpress.core.config import Recipe, Settings
from colorpress.core.console import say
from colorpress.core.files import with_nan, without_nan
from colorpress.core.stages import StageRecord
from compress.budgets import Limit, read_limits
from compress.distillation import DistillResult, Lesson, distil_network
from compress.packing import pack_onnx
from compress.ranking import count_macs
from compress.students.student_plan import StrideScore
from compress.yardstick import Yardstick, make_yardstick
from export.graph import export_onnx
from export.timing import time_quickly
from training.checkpoint import Checkpoint
from training.device import choose_device
from training.network import ColorNetwork, pad_to_multiple, upsample_bilinear
from training.photos import PhotoSplit, scan_photos
from training.run_folder import Run, warn_of_other_split
from training.unet import UNet, UNetPlan, count_parameters

# Validation photographs that choose, at most: all are held in memory, one megabyte each.
MOST_CHOOSING = 500
ORACLE_STRIDES = (1, 2, 4, 8, 16, 32)
# An output stride is taken when best.pt's own answer, made that coarse, keeps this much of its colour.
_ORACLE_FLOOR = 0.99


def build_student(plan: UNetPlan, seed: int) -> UNet:
    """A student that was never trained: it answers grey, and no random state is changed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = UNet(plan)
    # It starts from the best answer that knows nothing, instead of having to unlearn random colours.
    for parameter in network.head.parameters():
        nn.init.zeros_(parameter)
    return network


def measure_stand_in(
    network: UNetPlan, settings: Settings, timing: Callable[[Path], float] | None
) -> tuple[int, float | None]:
    """Bytes of the file with packed weights that a network will have, and its latency, before it is trained.

    Args:
        timing: gives the latency of a file in milliseconds; None leaves it out.
    """
    stand_in = build_student(network, settings.data.seed)
    # Weights as different from each other as trained ones: equal ones, such as zeros, would be stored once.
    generator = torch.Generator().manual_seed(settings.data.seed)
    for parameter in stand_in.parameters():
        parameter.data.normal_(0.0, 0.1, generator=generator)
    with tempfile.TemporaryDirectory(prefix="colorpress-candidate-") as folder:
        source, packed = Path(folder) / "model.onnx", Path(folder) / "packed.onnx"
        # As long a description as the published file's, so that it is not larger.
        trial = Checkpoint(network, stand_in.state_dict(), val_l1=0.0123456789, sha256="0" * 64)
        export_onnx(trial, source, settings.export)
        size_bytes = pack_onnx(source, packed).size_bytes
        return size_bytes, timing(packed) if timing else None


@dataclass(frozen=True)
class StudentJob:
    """Base of what chooses students; what only some of it needs is made when it is asked for.

    Attributes:
        given: the photographs of the run.
    """

    run: Run
    given: PhotoSplit

    @cached_property
    def best(self) -> Checkpoint:
        """best.pt."""
        found = self.run.load(self.run.best_path)
        warn_of_other_split(found, self.given)
        return found

    @cached_property
    def photos(self) -> PhotoSplit:
        """The photographs, with those of --unlabelled to learn from."""
        return with_unlabelled(self.run, self.given)

    @cached_property
    def yardstick(self) -> Yardstick:
        """best.pt's answers to the photographs that choose."""
        size = self.run.settings.score.eval_size
        return make_yardstick(self.run, self.best, self.given.val[:MOST_CHOOSING], short_side=size)

    @cached_property
    def original_cost(self) -> dict[str, int]:
        """The "params" and "macs" (multiply-accumulates) of best.pt."""
        network, size = self.best.build_network(), self.run.settings.count.rank_size
        return {"params": count_parameters(network), "macs": count_macs(network, height=size, width=size)}

    @cached_property
    def demands(self) -> tuple[Limit, ...]:
        """The goals and budgets that were given."""
        return read_limits(self.run.settings.budget, self.run.settings.goal, whole=self.original_cost)

    def data_key(self, *, train: bool = True) -> dict[str, Any]:
        """What depends on the photographs: those that choose, and those that are learned from where `train`."""
        used = replace(self.photos, train=self.photos.train if train else (), test=())
        return {**self.run.data_key(used), "eval_size": self.run.settings.score.eval_size}

    def time_alone(self, path: Path) -> float:
        """The p50 of a file in milliseconds, while no other process of this user measures here."""
        from filelock import FileLock

        settings, owner = self.run.settings, os.getuid() if hasattr(os, "getuid") else getpass.getuser()
        with FileLock(Path(tempfile.gettempdir()) / f"colorpress-latency-{owner}.lock"):
            return time_quickly(path, size=settings.time.bench_size[0], threads=settings.machine.threads)

    def recipe(self, crops: int) -> Recipe:
        """How a student learns from so many crops."""
        settings, photos = self.run.settings, len(self.photos.train)
        return settings.distil.recipe(settings.fit, crops=crops, photos=photos, val_size=settings.score.eval_size)

    def distil(
        self,
        network: UNetPlan,
        crops: int,
        destination: Path,
        *,
        teacher_weight: float | None = None,
        epoch_photos: int = MOST_CHOOSING,
        reference_l1: tuple[float, float] | None = None,
    ) -> DistillResult:
        """Train the network of a plan from the start; what an interruption left is gone on with.

        Args:
            teacher_weight: another one than that of the options.
            epoch_photos: how many of the photographs that choose tell the best epoch.
            reference_l1: on those, where another process of the same training asked best.pt already.
        """
        recipe, usual = self.recipe(crops), self.run.settings.distil.student_teacher_weight
        weight = usual if teacher_weight is None else teacher_weight
        # An epoch shows every photograph: of more than there are crops to look at the first ones serve.
        seen = self.photos.train[: max(1, recipe.epochs * recipe.epoch_crops)]
        photos = replace(self.photos, train=seen, val=self.photos.val[:epoch_photos])
        lesson = Lesson.of(self.run, self.best, photos, recipe, teacher_weight=weight)
        lesson = replace(lesson, reference_l1=reference_l1 or self.yardstick.means(epoch_photos))
        student = build_student(network, self.run.settings.data.seed)
        return distil_network(student, lesson, destination, label=destination.parent.name)


def with_unlabelled(run: Run, photos: PhotoSplit) -> PhotoSplit:
    """The photographs with those of --unlabelled to learn from; what validates or tests is never learned from."""
    folder = run.settings.further.unlabelled
    if folder is None:
        return photos
    machine = run.settings.machine
    index = run.folder / ".unlabelled.json"
    found = scan_photos(replace(run.settings.data, data=folder), workers=machine.workers, index_path=index)
    known = {photo.sha256 for photo in (*photos.train, *photos.val, *photos.test)}
    further = [photo for photo in (*found.train, *found.val, *found.test) if photo.sha256 not in known]
    say(f"photographs: {len(further)} more to learn from in '{folder}'")
    return replace(photos, train=(*photos.train, *sorted(further, key=lambda photo: photo.sha256)))


def score_strides(
    best: ColorNetwork, yardstick: Yardstick, *, device: torch.device, strides: Sequence[int] = ORACLE_STRIDES
) -> tuple[StrideScore, ...]:
    """What coarse answers cost at least: best.pt's own answers, averaged to each stride and up-sampled again.

    An oracle: no student that answers at a stride can be expected to do better than this by being coarse.

    Args:
        best: on `device`, in eval mode.
    """

    def coarse_at(stride: int) -> Callable[[Tensor], Tensor]:
        def answer(lightness: Tensor) -> Tensor:
            height, width = lightness.shape[-2:]
            padded = pad_to_multiple(best(lightness.to(device)), stride)  # (1, 2, H, W), each side up to a multiple
            return upsample_bilinear(F.avg_pool2d(padded, stride), stride)[..., :height, :width].cpu()

        return answer

    scores = [(stride, yardstick.score(coarse_at(stride))) for stride in strides]
    return tuple(StrideScore(stride, score.l1_delta_pct, score.retained_colour) for stride, score in scores)


def score_output_strides(job: StudentJob) -> tuple[tuple[StrideScore, ...], StageRecord]:
    """The oracle of a run folder, where it is measured once."""

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        device = choose_device(job.run.settings.machine.device)
        scores = score_strides(job.best.build_network().to(device), job.yardstick, device=device)
        kept = ", ".join(f"1/{each.stride} {each.l1_delta_pct:+.2f} %" for each in scores)
        say(f"best.pt's own answer made coarse changes its L1 by: {kept}")
        return [], {"strides": [without_nan(asdict(each)) for each in scores]}

    used = {**job.run.arch_key(), **job.data_key(train=False)}
    record = job.run.do("strides", action, inputs=[job.run.best_path], settings=used)
    return tuple(StrideScore(**with_nan(each)) for each in record.result["strides"]), record


def choose_output_stride(strides: Sequence[StrideScore]) -> int:
    """The coarsest stride whose answers keep at least 0.99 of best.pt's colour; 1 where none does."""
    return max((each.stride for each in strides if each.retained_colour >= _ORACLE_FLOOR), default=1)


def list_output_strides(strides: Sequence[StrideScore]) -> tuple[int, ...]:
    """The strides that are worth a search, finest first: a finer one costs more, so it has to keep as much colour.

    Where best.pt is no better than grey there is no G, and every stride is as good.
    """
    kept: list[StrideScore] = []
    for each in sorted(strides, key=lambda each: -each.stride):
        if not each.retained_colour < max([_ORACLE_FLOOR, *(coarser.retained_colour for coarser in kept)]):
            kept.append(each)
    return tuple(each.stride for each in reversed(kept)) or (1,)
