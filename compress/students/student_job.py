"""What every student asks of a run, whoever chooses it: how coarse it may be, how it is built, weighed and taught."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorpress.core.config import Recipe, Settings
from colorpress.core.console import say, warn
from colorpress.core.files import with_nan, without_nan
from colorpress.core.locks import measuring_alone, scratch_folder
from colorpress.core.stages import StageRecord
from compress.budgets import Limit, read_limits
from compress.distillation import ANSWERS_ALONE, DistillResult, Lesson, distil_network, distil_recipe
from compress.measures import MEASURES, Scale, Score, Strength
from compress.packing import pack_onnx
from compress.ranking import count_macs
from compress.students.student_plan import StrideScore
from compress.yardstick import Jury, Yardstick
from export.graph import export_onnx
from export.timing import time_quickly
from training.checkpoint import Checkpoint
from training.network import ColorNetwork, pad_to_multiple, upsample_bilinear
from training.photo_scan import scan_photos
from training.photo_split import PhotoSplit
from training.run_folder import Run, warn_of_other_split
from training.unet import UNet, UNetPlan, count_parameters

# Photographs that choose, at most, and as many that score what was chosen: all are held in memory, one megabyte each.
MOST_CHOOSING = 500
# Without --keep-macs, of best.pt's multiply-accumulates, what a student may have: one with more is slow to train.
LARGEST_MACS = 0.1
ORACLE_STRIDES = (1, 2, 4, 8, 16, 32)
# What an output stride may cost of what is asked of a student: best.pt's own answer, made that coarse, has to keep all
# of that but this much.
_COARSENESS = 0.01


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
    return measure_packed(Checkpoint(network, stand_in.state_dict()), settings, timing)


def measure_packed(
    checkpoint: Checkpoint, settings: Settings, timing: Callable[[Path], float] | None
) -> tuple[int, float | None]:
    """Bytes of the file with packed weights that a network has, and its latency.

    Args:
        timing: as for `measure_stand_in`.
    """
    with scratch_folder() as folder:
        source, packed = folder / "model.onnx", folder / "packed.onnx"
        # As long a description as the published file's, so that it is not larger.
        described = replace(checkpoint, val_l1=0.0123456789, sha256="0" * 64)
        export_onnx(described, source, settings.export)
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
    def jury(self) -> Jury:
        """What chooses, candidates among each other and epochs, and what scores the chosen one."""
        return Jury(self.run, self.best, self.given.limit_halves(MOST_CHOOSING))

    @cached_property
    def original_cost(self) -> dict[str, int]:
        """The "params" and "macs" (multiply-accumulates) of best.pt."""
        return self.count(self.best.build_network())

    def count(self, network: ColorNetwork) -> dict[str, int]:
        """The "params" and "macs" (multiply-accumulates) of a network."""
        size = self.run.settings.count.rank_size
        return {"params": count_parameters(network), "macs": count_macs(network, height=size, width=size)}

    @cached_property
    def demands(self) -> tuple[Limit, ...]:
        """The goals and budgets that were given."""
        return read_limits(self.run.settings.budget, self.run.settings.goal, whole=self.original_cost)

    def data_key(self, *, learns: bool = True, confirms: bool = False) -> dict[str, Any]:
        """What depends on the photographs: those that choose, and the table is fitted on those of the run that train.

        Args:
            learns: those of --unlabelled as well.
            confirms: those that score what was chosen as well.
        """
        used = self.given.limit_halves(MOST_CHOOSING)
        used = replace(used, train=self.photos.train if learns else self.given.train, test=())
        used = used if confirms else replace(used, confirming=())
        return {**self.run.data_key(used), "eval_size": self.run.settings.score.eval_size}

    def time_alone(self, path: Path) -> float:
        """The p50 of a file in milliseconds, while no other process of this user measures here."""
        settings = self.run.settings
        with measuring_alone():
            return time_quickly(path, size=settings.time.bench_size[0], threads=settings.machine.threads)

    def recipe(self, crops: int) -> Recipe:
        """How a student learns from so many crops."""
        return distil_recipe(self.run, self.photos, crops)

    def distil(
        self,
        student: ColorNetwork,
        crops: int,
        destination: Path,
        *,
        teacher_weight: float | None = None,
        epoch_photos: int = MOST_CHOOSING,
        scale: Scale | None = None,
    ) -> DistillResult:
        """Train a network, changed in place; what an interruption left is gone on with.

        Args:
            teacher_weight: another one than that of the lesson.
            epoch_photos, scale: as for `lesson`.
        """
        lesson = self.lesson(crops, epoch_photos=epoch_photos, scale=scale)
        if teacher_weight is not None:
            lesson = replace(lesson, teacher_weight=teacher_weight)
        return distil_network(student, lesson, destination, label=destination.parent.name)

    def lesson(self, crops: int, *, epoch_photos: int = MOST_CHOOSING, scale: Scale | None = None) -> Lesson:
        """What a student learns from in so many crops.

        Args:
            epoch_photos: how many of the photographs that choose tell the best epoch.
            scale: on those, where another process of the same training asked best.pt already.
        """
        scale = scale or self.jury.choosing.scale(epoch_photos)
        lesson = Lesson.of(self.run, self.best, self.photos, scale, crops=crops)
        photos = replace(lesson.photos, choosing=self.given.choosing[:epoch_photos], confirming=())
        return replace(lesson, photos=photos)


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


def score_strides(yardstick: Yardstick, strides: Sequence[int] = ORACLE_STRIDES) -> tuple[StrideScore, ...]:
    """What coarse answers cost at least: best.pt's own answers, averaged to each stride and up-sampled again.

    An oracle: no student that answers at a stride can be expected to do better than this by being coarse.
    """

    def score_at(stride: int) -> Score:
        answers = iter(yardstick.pictures)  # asked for in this order
        return yardstick.score(lambda lightness: _make_coarse(next(answers).best, stride))

    scores = [(stride, score_at(stride)) for stride in strides]
    return tuple(StrideScore(stride, score.l1_delta_pct, score.measure, score.kept) for stride, score in scores)


def _make_coarse(ab: Tensor, stride: int) -> Tensor:
    """A picture (1, 2, H, W) averaged over areas of stride x stride pixels, at its size again."""
    height, width = ab.shape[-2:]
    padded = pad_to_multiple(ab, stride)  # each side up to a multiple
    return upsample_bilinear(F.avg_pool2d(padded, stride), stride)[..., :height, :width]


@dataclass(frozen=True)
class Oracle:
    """What best.pt itself says before anything is tried, on the photographs that choose.

    Attributes:
        strength: how strong it is. `strides`: how coarse its answers may be.
    """

    strength: Strength
    strides: tuple[StrideScore, ...]


def ask_oracle(job: StudentJob) -> tuple[Oracle, StageRecord]:
    """The oracle of a run folder, where it is measured once; says how strong best.pt is."""

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        yardstick = job.jury.choosing
        strength, scores = yardstick.strength.to_dict(), score_strides(yardstick)
        return [], {"strength": strength, "strides": [without_nan(asdict(each)) for each in scores]}

    used = {**job.run.arch_key(), **job.data_key(learns=False)}
    record = job.run.do("strides", action, inputs=[job.run.best_path], settings=used)
    found = Oracle(
        Strength.of(record.result["strength"]),
        tuple(StrideScore(**with_nan(each)) for each in record.result["strides"]),
    )
    say(found.strength.describe())
    if meaning := found.strength.caution:
        warn(meaning)
    if not found.strength.beats_table:
        say(ANSWERS_ALONE)
    kept = ", ".join(f"1/{each.stride} {each.kept:.3f} ({each.l1_delta_pct:+.2f} % L1)" for each in found.strides)
    say(f"best.pt's own answer made coarse keeps {found.strength.measure.symbol}: {kept}")
    return found, record


def _oracle_floor(score: StrideScore) -> float:
    return MEASURES[score.measure].whole - _COARSENESS


def find_coarsest_stride(strides: Sequence[StrideScore]) -> int:
    """The coarsest stride whose answers keep what is asked of a student, but for a hundredth; 1 for none."""
    return max((each.stride for each in strides if each.kept >= _oracle_floor(each)), default=1)


def list_output_strides(strides: Sequence[StrideScore]) -> tuple[int, ...]:
    """The strides that are worth a search, finest first: a finer one costs more, so it has to keep as much colour.

    Where it cannot be told what is kept, every stride is as good.
    """
    kept: list[StrideScore] = []
    for each in sorted(strides, key=lambda each: -each.stride):
        if not each.kept < max([_oracle_floor(each), *(coarser.kept for coarser in kept)]):
            kept.append(each)
    return tuple(each.stride for each in reversed(kept)) or (1,)
