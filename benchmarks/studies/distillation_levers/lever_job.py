"""The trainings of a comparison of levers, what each of them is worth, and the table of all."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from benchmarks.studies.distillation_levers.levers import LIGHTNESS_TABLE, RECIPE, Lever
from benchmarks.studies.distillation_levers.rounded_weights import stored_bytes
from benchmarks.studies.lever_rows import Row
from colorpress.core.files import with_nan, without_nan
from colorpress.core.source_code import hash_code
from colorpress.core.text import format_bytes, format_count, format_interval
from compress.distillation import Lesson, distil_network
from compress.measures import CONTENT, FIDELITY, MEASURES
from compress.ranking import count_macs
from compress.students.student_job import StudentJob, build_student
from compress.yardstick import Answering, answering_of
from export.controls import LIGHTNESSES, TABLE, control_path
from export.predictors import OnnxPredictor
from training.checkpoint import Checkpoint
from training.device import torch_threads
from training.metrics import mean_chroma
from training.network import ColorNetwork
from training.unet import UNetPlan, count_parameters

# Photographs that tell the best epoch: validation should be a small part of short trainings, and the last one wins.
_EPOCH_PHOTOS = 128


@dataclass(frozen=True)
class LeverJob(StudentJob):
    """All trainings of a comparison: the student, and how many crops each training takes, in whole epochs."""

    plan: UNetPlan
    crops: int

    def learn(self, levers: Mapping[str, Lever], name: str, seed: int) -> Row:
        """The row of a lever, trained where it has anything to learn; what it comes after is there already."""
        if name == LIGHTNESS_TABLE:
            return self._table_row()
        network, side = self._distil(levers[name], seed), self.run.settings.count.rank_size
        taken = [self._taken(each, seed) for each in (name, levers[name].after) if each]
        return {
            "params": count_parameters(network),
            "macs": count_macs(network, height=side, width=side),
            "bytes": stored_bytes(network),
            "crops": sum(crops for crops, _ in taken),
            "seconds": round(sum(seconds for _, seconds in taken), 1),
            **self._score(network),
        }

    def _table_row(self) -> Row:
        nothing = {"params": 2 * LIGHTNESSES, "macs": 0, "bytes": 8 * LIGHTNESSES, "crops": 0, "seconds": 0.0}
        assert self.jury.choosing  # whoever makes it writes the table
        threads = self.run.settings.machine.threads
        return {**nothing, **self._score(answering_of(OnnxPredictor(control_path(self.run, TABLE), threads=threads)))}

    def _distil(self, lever: Lever, seed: int) -> ColorNetwork:
        """What a lever learns."""
        earlier = self.run.load(self._folder(lever.after, seed) / "model.pt") if lever.after else None
        chance = seed + lever.seed_shift
        start = self._start(lever, earlier, chance)
        if not lever.crops_share:
            return start.eval()
        lesson = self._lesson(lever, self.best if lever.go_on or not earlier else earlier, chance)
        destination, label = self._folder(lever.name, seed) / "model.pt", f"{lever.name}, seed {seed}"
        distilled = distil_network(copy.deepcopy(start), lesson, destination, label=label)
        return start.with_weights(distilled.checkpoint.state_dict)

    def _start(self, lever: Lever, earlier: Checkpoint | None, seed: int) -> ColorNetwork:
        if earlier and lever.go_on:
            return lever.go_on(earlier.build_network())
        make = lever.start or partial(build_student, self.plan)
        return make(seed)

    def _lesson(self, lever: Lever, teacher: Checkpoint, seed: int) -> Lesson:
        train = self.photos.train[: max(1, round(lever.train_share * len(self.photos.train)))]
        photos = replace(self.photos, train=train).limit_halves(_EPOCH_PHOTOS)
        scale, crops = self.jury.choosing.scale(_EPOCH_PHOTOS), max(1, round(lever.crops_share * self.crops))
        lesson = Lesson.of(self.run, teacher, photos, scale, crops=crops)
        recipe, data = replace(lesson.recipe, **lever.recipe), replace(self.run.settings.data, seed=seed)
        return replace(lesson, recipe=recipe, data=data, **lever.lesson)

    def _folder(self, name: str, seed: int) -> Path:
        return self.run.folder / f"{name.replace(' ', '-')}-{seed}"

    def _taken(self, name: str, seed: int) -> tuple[int, float]:
        """The crops that a lever learned from, and the seconds of its steps; none where it learned nothing."""
        curve = self._folder(name, seed) / "distillation.csv"
        if not curve.is_file():
            return 0, 0.0
        last = pd.read_csv(curve).iloc[-1]
        return int(last["crops"]), 60.0 * float(last["minutes"])

    def _score(self, answering: Answering) -> Row:
        """What answers are worth on the photographs that report, and their chroma over the truth's."""
        yardstick, chroma = self.jury.reporting, list[float]()

        def answer(lightness: Tensor) -> Tensor:
            colours = answering(lightness)
            chroma.append(mean_chroma(colours))
            return colours

        with torch_threads(self.run.settings.machine.threads):
            score = yardstick.score(answer).by(self.jury.choosing.strength.measure.name)
        true_chroma = float(yardstick.reference.true_chroma.mean())
        share = float(np.mean(chroma)) / true_chroma if true_chroma else math.nan
        return without_nan({"chroma": share, **asdict(score)})


def describe_question(job: LeverJob) -> dict[str, Any]:
    """What all rows of levers.json have in common, JSON-ready."""
    run, settings = job.run, job.run.settings
    used = {**vars(settings.distil), **vars(settings.further), **vars(settings.score), **run.arch_key()}
    return {
        "best.pt": job.best.sha256,
        "network": job.plan.to_dict(),
        "crops": job.crops,
        "photographs": run.data_key(job.photos),
        "settings": {name: str(value) for name, value in used.items()},
        "code": hash_code(__name__),
    }


def format_levers(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table of what each lever keeps, the mean of its seeds, best first; and of its change to the recipe's.

    The interval is the mean of those of its seeds, over photographs; `crops` and `seconds` are of a seed's trainings.
    """
    frame, measure = pd.DataFrame([with_nan(row) for row in rows]), MEASURES[rows[0]["measure"]]
    other = CONTENT if measure is FIDELITY else FIDELITY
    recipe = frame[frame["lever"] == RECIPE].set_index("seed")[measure.name]
    frame["change"] = frame[measure.name] - frame["seed"].map(recipe)
    head = "| lever | parameters | MACs | weights | crops | seconds | seeds | "
    head += f"{measure.symbol} (95 % interval) | to the recipe | {other.symbol} | chroma |"
    lines = [head, "|---" * 11 + "|"]
    means = frame.groupby("lever", sort=False).mean(numeric_only=True).sort_values(measure.name, ascending=False)
    for name, mean in means.iterrows():
        low, high = mean[measure.low], mean[measure.high]
        cells = [
            str(name),
            f"{mean['params']:,.0f}",
            format_count(int(mean["macs"])),
            format_bytes(int(mean["bytes"])),
            f"{mean['crops']:,.0f}",
            f"{mean['seconds']:.0f}",
            str((frame["lever"] == name).sum()),
            f"{mean[measure.name]:.3f}" + ("" if math.isnan(low) else f" ({format_interval(low, high)})"),
            "" if name == RECIPE or math.isnan(mean["change"]) else f"{mean['change']:+.3f}",
            "-" if math.isnan(mean[other.name]) else f"{mean[other.name]:.3f}",
            f"{mean['chroma']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
