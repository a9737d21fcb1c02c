"""The int8 stage: ways to quantize are judged by best.pt's colour, what loses too much is trained, and then explained.

Beside each int8 file lies int8.json: every way that was tried with its score, what was chosen on other photographs than
those that chose, and every node with its share of time and the reason why it computes in float.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from colorpress.core.config import Recipe
from colorpress.core.console import say
from colorpress.core.errors import GateError
from colorpress.core.files import write_bytes, write_json
from colorpress.core.locks import scratch_folder
from colorpress.core.machine import machine_key
from colorpress.core.stages import StageRecord
from compress.budgets import Limit, read_goals
from compress.importance import load_pictures
from compress.int8.graph_network import GraphNetwork
from compress.int8.int8_choice import Judge, QuantizeResult, has_int8_layers, has_vnni, quantize_onnx
from compress.int8.int8_profile import Int8Profile, profile_int8, why_float
from compress.int8.int8_tuning import ParentLoss
from compress.measures import Score, Scores
from compress.precisions import variant_name
from compress.ranking import count_macs
from compress.yardstick import Jury, answering_of
from export.parity import check_parity
from export.predictors import OnnxPredictor
from training.crops import CropSides
from training.device import torch_threads
from training.fitting import FitFiles, FitJob, fit_network
from training.metrics import mean_l1
from training.photo_split import PhotoSplit
from training.run_folder import Run

# Multiply-accumulates forward that training in 8 bits takes at most: about five minutes of two cores.
_MOST_TUNING_MACS = 2 * 10**12
_PARTLY_FLOAT = 0.5
_MANY_CONVERSIONS = 0.15


@dataclass(frozen=True)
class _Compared:
    """An int8 file beside its float parent.

    Attributes:
        jury: what scored both.
    """

    jury: Jury
    parent: Scores
    int8: Scores

    @staticmethod
    def of(jury: Jury, source: Path, chosen: Path, *, threads: int) -> _Compared:
        """Ask both files."""
        return _Compared(
            jury, *(jury.score(answering_of(OnnxPredictor(path, threads=threads))) for path in (source, chosen))
        )

    def describe(self) -> str:
        """In a few words."""
        photos = len(self.jury.reporting.pictures)
        noun = "photograph" if photos == 1 else "photographs"
        return f"{self.int8.reported.describe()} on {photos} {noun}, {self.parent.reported.describe()} in float"

    def to_dict(self) -> dict[str, Any]:
        """As int8.json has it."""
        halves = {"chosen_by": self.jury.choosing, "confirmed": self.jury.confirming}
        parent, int8 = self.parent.to_dict(), self.int8.to_dict()
        return {
            name: {"photos": len(half.pictures), "float": parent[name], "int8": int8[name]}
            for name, half in halves.items()
            if half
        }


def quantize(run: Run, source: Path, variant: str, photos: PhotoSplit) -> StageRecord:
    """Quantize an exported model to <variant>/model.onnx, and say in <variant>/int8.json what was tried and is int8.

    Ranges are from training photographs, choices by one half of the validation photographs; what was chosen is scored
    by the other half. Without a best.pt in the run folder nothing is there to judge by, and the defaults are taken.
    """
    settings, destination = run.settings, run.folder / variant / "model.onnx"
    config = settings.quantize
    judged = run.best_path.exists()
    calibrating, judging = photos.train[: config.calibration_photos], photos.limit_halves(config.choosing_photos)

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        if not judged:
            say(
                f"{variant}: nothing judges it or trains it, since '{run.folder}' has no best.pt (see colorpress adopt)"
            )
        with scratch_folder() as folder:
            trial = folder / "model.onnx"
            seen = load_pictures(calibrating, short_side=config.calibration_size, data=settings.data)
            pictures = [lightness.numpy() for lightness, _ in seen]
            jury = Jury(run, run.load(run.best_path), judging) if judged else None
            judge = _make_judge(jury, source, folder) if jury else None
            quantized = quantize_onnx(source, trial, pictures, config, judge, threads=settings.machine.threads)
            compared = _Compared.of(jury, source, trial, threads=settings.machine.threads) if jury else None
            # Reported, not judged: how far int8 may be off is for the benchmark's photographs to say.
            parity = check_parity(OnnxPredictor(source), OnnxPredictor(trial), atol=None)
            if not math.isfinite(parity.max_abs):
                raise GateError("int8 model", variant, "answers NaN or Inf", "try another --calibration-percentile")
            profile = profile_int8(trial, side=settings.count.rank_size, threads=settings.machine.threads)
            write_bytes(destination, trial.read_bytes())
        record = _describe(source, quantized, profile, compared)
        layers = len(quantized.quantized) + len(quantized.kept_float)
        say(
            f"{variant}: {quantized.size_bytes:,} bytes, {quantized.way.describe()}, {len(quantized.quantized)} of "
            f"{layers} convolutions and {quantized.weight_share:.1%} of their weights in int8, "
            f"{profile.int8_share:.0%} of the time, mean difference to float {parity.mean_abs:.1e}"
            + (f"; {compared.describe()}" if compared else "")
        )
        return [destination, write_json(destination.with_name("int8.json"), record)], {
            "size_bytes": quantized.size_bytes,
            "way": quantized.way.describe(),
            "int8_layers": len(quantized.quantized),
            "int8_weight_share": quantized.weight_share,
            "int8_time_share": profile.int8_share,
            "weight_bits": quantized.way.weight_bits,
            "mean_abs_diff": parity.mean_abs,
            "max_abs_diff": parity.max_abs,
        }

    # The judge knows a lightness table, which is fitted on the training photographs.
    seen_by_all, distil = replace(judging, train=photos.train if judged else calibrating, test=()), settings.distil
    used = {
        **vars(config),
        **vars(settings.goal),
        **vars(settings.qat),
        "training": [distil.distil_imgsz, distil.distil_batch_size, vars(settings.fit)]
        if settings.qat.qat_crops
        else [],
        "machine": machine_key(),
        "threads": settings.machine.threads,
        "eval_size": settings.score.eval_size,
        "profile_size": settings.count.rank_size,
        **run.data_key(seen_by_all),
        **run.arch_key(),
    }
    inputs = [source, run.best_path] if judged else [source]
    return run.do(f"quantize-{variant}", action, inputs=inputs, settings=used)


def quantize_each(run: Run, sources: Sequence[Path], photos: PhotoSplit) -> list[StageRecord]:
    """`quantize` each exported model of the run folder to <its folder>-int8, but for those with nothing to quantize."""
    stages = []
    for source in sources:
        name = source.parent.relative_to(run.folder).as_posix()
        if has_int8_layers(source):
            stages.append(quantize(run, source, variant_name(name, "int8"), photos))
        else:
            say(f"{name}: no convolution between the first and the last, so nothing to compute in int8")
    return stages


def _make_judge(jury: Jury, source: Path, folder: Path) -> Judge:
    """Judges int8 files by the photographs that choose, and trains what loses too much on those of `train`."""
    settings, photos = jury.run.settings, jury.photos
    yardstick, threads = jury.choosing, settings.machine.threads

    def ask(path: Path) -> list[Tensor]:
        answering = answering_of(OnnxPredictor(path, threads=threads))
        return [answering(picture.lightness) for picture in yardstick.pictures]

    def score(answers: Sequence[Tensor]) -> Score:
        given = iter(answers)
        return yardstick.score(lambda _: next(given))

    expected = ask(source)

    def judge(content: bytes) -> tuple[Score, float]:
        answers = ask(write_bytes(folder / "candidate.onnx", content))
        return score(answers), float(np.mean([mean_l1(*both) for both in zip(answers, expected, strict=True)]))

    def tune(network: GraphNetwork, parent: GraphNetwork) -> None:
        distil = settings.distil
        side = CropSides.of(photos.train, Recipe(imgsz=distil.distil_imgsz)).middle
        checkpoint = source.with_name("model.pt")
        origin = jury.run.load(checkpoint) if checkpoint.exists() else jury.best
        macs_of_a_crop = count_macs(origin.build_network(), height=side, width=side)
        crops = min(settings.qat.qat_crops, max(1, _MOST_TUNING_MACS // macs_of_a_crop))
        seen = photos.train[:crops]
        recipe = distil.recipe(settings.fit, crops=crops, photos=len(seen), val_size=settings.score.eval_size)
        # Once, as the last step is the nearest one; on photographs as they will come, in the precision of ranges. By
        # AdamW, whose steps may be as small as what rounding left: with Muon C came to 0.980 instead of 0.994.
        recipe = replace(
            recipe,
            optimizer="adamw",
            epochs=1,
            epoch_crops=crops,
            epoch_steps=0,
            tone_jitter=0.0,
            crop_share=settings.fit.crop_share,
            learning_rate=settings.qat.qat_learning_rate,
            precision="fp32",
            compile=False,
        )
        with torch_threads(threads):
            fitted = fit_network(
                ParentLoss(network, parent),
                FitJob(seen, photos.choosing, recipe, settings.data, settings.machine),
                FitFiles(folder / "tuned.pt", {"stage": "int8"}, restart=True),
                label="int8 training",
            )
        network.load_state_dict(fitted.best.state_dict)

    return Judge(
        scoring=judge,
        is_enough=what_is_enough(score(expected), read_goals(settings.goal), settings.quantize.int8_loss),
        tuning=tune if settings.qat.qat_crops else None,
    )


def what_is_enough(parent: Score, goals: Sequence[Limit], int8_loss: float) -> Callable[[Score], bool]:
    """Whether an int8 file of a score is good enough.

    A loss that is not known is none, and a goal that the float model misses is not for int8 to reach.

    Args:
        parent: the score of the float model.
        int8_loss: how much more than that one it may lose.
    """
    reached = parent.likely_figures()
    reachable = [goal for goal in goals if goal.is_met(reached)]
    most_loss = math.inf if math.isnan(parent.kept) else parent.loss + int8_loss

    def is_enough(score: Score) -> bool:
        figures = score.likely_figures()
        return not score.loss > most_loss and all(goal.is_met(figures) for goal in reachable)

    return is_enough


def _describe(
    source: Path, quantized: QuantizeResult, profile: Int8Profile, compared: _Compared | None
) -> dict[str, Any]:
    """What int8.json holds."""
    reasons = why_float(onnx.load(source).graph, quantized, profile)
    return {
        "way": quantized.way.describe(),
        "tries": [each.to_dict() for each in quantized.tries],
        **(compared.to_dict() if compared else {}),
        "int8_time_share": profile.int8_share,
        "conversion_time_share": profile.conversion_share,
        "caution": _what_slows(quantized, profile),
        "operators": [asdict(each) for each in profile.operators],
        "nodes": [{**asdict(node), "why_float": reasons.get(node.name, "")} for node in profile.nodes],
    }


def _what_slows(quantized: QuantizeResult, profile: Int8Profile) -> str:
    """What may make an int8 file slower than its float parent, as the rest of a sentence; empty where nothing does."""
    causes = []
    if not has_vnni():
        causes.append("this processor has no VNNI")
    if profile.conversion_share > _MANY_CONVERSIONS:
        causes.append(f"{profile.conversion_share:.0%} of its time is conversions between int8 and float")
    if profile.int8_share < _PARTLY_FLOAT:
        slowest = max((node for node in profile.nodes if not node.int8), key=lambda node: node.share)
        causes.append(
            f"only {profile.int8_share:.0%} of its time is in int8 ({slowest.operator} {slowest.name} in float takes "
            f"{slowest.share:.0%})"
        )
    return ", and ".join(causes)
