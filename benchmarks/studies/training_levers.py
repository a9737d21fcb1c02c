"""What each part of training the original is worth, measured by changing it, and what a plain loop reaches.

    python -m benchmarks.studies.training_levers --data photos -o levers

One UNet, the same crops, each lever of its training in turn left out or put in: parts of the recipe, the bare loop that
anybody writes first, and what the literature has against colours that are averaged away. Scores are on the validation
photographs that did not choose the epochs; levers.png shows twelve of them as each lever colours them.
"""

from __future__ import annotations

import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn

from benchmarks.studies.colour_losses import (
    DECODERS,
    LEVELS_LEFT_OUT,
    ClassAnswerLoss,
    ClassNetwork,
    Critic,
    RebalancedLoss,
    TermLoss,
    compare_edges,
    compare_scales,
    rebalance_classes,
)
from benchmarks.studies.lever_rows import Row, choose_levers, learn_rows
from benchmarks.studies.lever_sheet import draw_sheet, draw_strip, save_picture
from benchmarks.studies.plain_loop import PlainLoop
from colorpress.cli import run_command
from colorpress.command_options import PATH, config_options, debug_option, quiet_option
from colorpress.core.config import Recipe, Settings
from colorpress.core.console import say
from colorpress.core.errors import ConfigError
from colorpress.core.files import with_nan
from colorpress.core.locks import locked_folder
from colorpress.core.source_code import hash_code
from colorpress.core.text import format_interval
from compress.measures import Reference, Strength
from compress.students.student_job import MOST_CHOOSING
from compress.yardstick import Answering, answering_of, hold_against
from export.controls import TABLE, control_path, make_controls
from export.predictors import OnnxPredictor
from training.batches import whole_photos
from training.device import choose_device, torch_threads
from training.fitting import FitFiles, FitJob, fit_network, forget_fit
from training.lab import rgb_to_l_ab
from training.losses import Loss
from training.metrics import Floats, kept_interval, kept_share
from training.original import choose_loss, new_unet
from training.photo_split import PhotoSplit
from training.photos import Photo
from training.run_folder import Run, find_photos
from training.unet import UNet

_NAME = "python -m benchmarks.studies.training_levers"
_CROPS_HELP = "Of each training, in whole epochs.  [default: those of --epochs]"
_RECIPE, _PLAIN, _AS_LONG = "recipe", "plain loop", "plain loop, as many seconds"
_SHOWN_PHOTOS = 12
# What AdamW has by itself, which a plain loop keeps that says nothing of it.
_PLAIN_RATE = 1e-3
_EDGES_WEIGHT, _SCALES_WEIGHT, _CRITIC_WEIGHT = 1.0, 1.0, 0.01
# What vividness costs that is bought without any training: `deploy --saturation`.
_SATURATIONS = (1.3, 1.7)
_SPEED_ROUNDS, _SPEED_CROPS = 3, 1200


@dataclass(frozen=True)
class Learned:
    """What a training made: how it may be asked, by name ("": the usual way), of how many crops in how many seconds."""

    answers: Mapping[str, Answering]
    crops: int
    seconds: float


@dataclass(frozen=True)
class Lever:
    """One change of how the original learns.

    Attributes:
        recipe: other values of it.
        make: the loss of an untrained UNet and a recipe.
        crops_share: of the crops.
        plain: another loop altogether.
        as_long: that one takes the time of the recipe, by the speeds of both.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    make: Callable[[UNet, Recipe], Loss] = choose_loss
    crops_share: float = 1.0
    plain: PlainLoop | None = None
    as_long: bool = False


@dataclass(frozen=True)
class LeverJob:
    """All trainings of a comparison.

    Attributes:
        run: its folder and options. `photos`: those that choose are the epochs' alone.
        crops: of each training.
    """

    run: Run
    photos: PhotoSplit
    crops: int

    @property
    def recipe(self) -> Recipe:
        """The product's, for so many crops."""
        settings = self.run.settings
        epochs = max(1, round(self.crops / _epoch_crops(self.photos.train, settings.fit.epoch_crops)))
        return replace(settings.train, epochs=epochs).recipe(settings.fit)

    def learn(self, lever: Lever, label: str, seed: int) -> Learned:
        """Train as the lever says; raises as `fit_network`."""
        crops = int(lever.crops_share * self.crops)
        if lever.plain is None:
            recipe = replace(replace(self, crops=crops).recipe, **lever.recipe)
            return self._fit(lever, recipe, self.photos.train, self.photos.choosing, label, seed)
        return self._loop(lever.plain, self.photos.train, round(crops * (self.speed_up if lever.as_long else 1)), seed)

    @cached_property
    def speed_up(self) -> float:
        """The plain loop's images per second over the recipe's: short trainings in turn, the fastest of each."""
        photos, loops = self.photos.train[:_SPEED_CROPS], list_plain_loops(self.recipe, self.run.settings)
        recipe, rates = replace(self.recipe, epochs=1), {_RECIPE: 0.0, _PLAIN: 0.0}
        for _ in range(_SPEED_ROUNDS):
            # Validation is no part of it.
            fitted = self._fit(Lever(), recipe, photos, self.photos.choosing[:1], "speed", seed=0)
            looped = self._loop(loops[_PLAIN], photos, _epoch_crops(photos, recipe.epoch_crops), 0)
            for name, learned in ((_RECIPE, fitted), (_PLAIN, looped)):
                rates[name] = max(rates[name], learned.crops / learned.seconds)
        share = rates[_RECIPE] / rates[_PLAIN]
        say(f"recipe: {rates[_RECIPE]:.1f} images/s, plain loop: {rates[_PLAIN]:.1f}; {share:.2f} of it")
        return 1.0 / share

    def _fit(
        self, lever: Lever, recipe: Recipe, photos: Sequence[Photo], choosing: Sequence[Photo], label: str, seed: int
    ) -> Learned:
        settings = self.run.settings
        files = FitFiles(self.run.folder / file_name(label, seed) / "best.pt", {"lever": label}, restart=True)
        # One that was interrupted begins anew: its seconds are those of all of it.
        forget_fit(files.best_path.parent)
        data = replace(settings.data, seed=seed)
        with torch.random.fork_rng(devices=[]), torch_threads(settings.machine.threads):
            torch.manual_seed(seed)
            criterion = lever.make(new_unet(settings.unet), recipe)
            job = FitJob(photos, choosing, recipe, data, settings.machine)
            started = self._now()
            fitted = fit_network(criterion, job, files, label=f"{label}, seed {seed}")
            seconds = self._now() - started
        network = criterion.network.cpu().with_weights(fitted.best.state_dict)
        crops = recipe.epochs * _epoch_crops(photos, recipe.epoch_crops)
        return Learned(_ways_to_ask(network, saturated=lever == Lever()), crops, seconds)

    def _loop(self, loop: PlainLoop, photos: Sequence[Photo], crops: int, seed: int) -> Learned:
        machine = self.run.settings.machine
        device = choose_device(machine.device)
        with torch_threads(machine.threads):
            started = self._now()
            network = loop.train(photos, crops, seed=seed, device=device, workers=machine.workers)
            seconds = self._now() - started
        return Learned({"": network}, crops // loop.batch_size * loop.batch_size, seconds)

    def _now(self) -> float:
        """Seconds of the processor where it does all the work by one thread, else of the clock."""
        machine = self.run.settings.machine
        alone = machine.threads == 1 and machine.workers == 0 and choose_device(machine.device).type == "cpu"
        return time.process_time() if alone else time.perf_counter()


def _epoch_crops(photos: Sequence[Photo], least: int) -> int:
    return len(photos) * -(-max(len(photos), least) // len(photos))


def _ways_to_ask(network: nn.Module, *, saturated: bool) -> dict[str, Answering]:
    if isinstance(network, ClassNetwork):
        return {name: partial(_decode_by, network, name) for name in DECODERS}
    ways: dict[str, Answering] = {"": network}
    if saturated:
        ways |= {f"chroma x {gain:g}": partial(_saturate, network, gain) for gain in _SATURATIONS}
    return ways


def _saturate(network: nn.Module, gain: float, lightness: Tensor) -> Tensor:
    answer: Tensor = network(lightness)
    return (gain * answer).clamp(-1.0, 1.0)


def _decode_by(network: ClassNetwork, name: str, lightness: Tensor) -> Tensor:
    network.decode = DECODERS[name]
    answer: Tensor = network(lightness)
    return answer


def list_plain_loops(recipe: Recipe, settings: Settings) -> dict[str, PlainLoop]:
    """The bare loop with a rate that falls and with a constant one, of the recipe's crops and batches."""
    loop = PlainLoop(settings.unet, recipe.imgsz, recipe.batch_size, recipe.crop_share, recipe.learning_rate, True)
    return {_PLAIN: loop, "plain loop, constant rate": replace(loop, learning_rate=_PLAIN_RATE, falls=False)}


def list_levers(job: LeverJob) -> dict[str, Lever]:
    """The recipe itself, the plain loop, and changes of the recipe, by name.

    Colour classes as the answer only where the UNet is deep enough to leave levels out.
    """
    recipe, settings = job.recipe, job.run.settings
    loops = list_plain_loops(recipe, settings)
    larger = min(4096, round(1.5 * recipe.imgsz))
    smaller = max(8, recipe.imgsz // 2)
    levers = {
        _RECIPE: Lever(),
        **{name: Lever(plain=loop) for name, loop in loops.items()},
        _AS_LONG: Lever(plain=loops[_PLAIN], as_long=True),
        "no second task": Lever({"class_weight": 0.0}),
        "second task x 4": Lever({"class_weight": 4 * recipe.class_weight}),
        f"crops of {larger}": Lever({"imgsz": larger}),
        f"crops of {larger}, as many pixels": Lever({"imgsz": larger}, crops_share=(recipe.imgsz / larger) ** 2),
        "whole photographs": Lever({"crop_share": 1.0}),
        f"growing crops, {smaller} to {recipe.imgsz}": Lever({"start_imgsz": smaller}),
        f"growing crops, {smaller} to {larger}": Lever({"start_imgsz": smaller, "imgsz": larger}),
        "one size": Lever({"size_jitter": 0.0}),
        "last weights, no average": Lever({"ema_decay": 0.0}),
        "AdamW for all weights": Lever({"optimizer": "adamw"}),
        "constant rate": Lever({"schedule": "constant"}),
        "no warm-up": Lever({"warmup_share": 0.0}),
        "half the rate": Lever({"learning_rate": recipe.learning_rate / 2}),
        "twice the rate": Lever({"learning_rate": recipe.learning_rate * 2}),
        "no weight decay": Lever({"weight_decay": 0.0}),
        "weight decay x 5": Lever({"weight_decay": 5 * recipe.weight_decay}),
        "dropout": Lever({"dropout": 0.2}),
        "other tones": Lever({"tone_jitter": 0.2}),
        "batches of twice as many": Lever({"batch_size": 2 * recipe.batch_size}),
        "random first colours": Lever(make=_start_from_chance),
        "edges": Lever(make=partial(_with_term, compare_edges, _EDGES_WEIGHT)),
        "several scales": Lever(make=partial(_with_term, compare_scales, _SCALES_WEIGHT)),
        "a critic (PatchGAN)": Lever(make=lambda *with_: _with_term(Critic(), _CRITIC_WEIGHT, *with_)),
        "second task, rebalanced": Lever(make=lambda net, made: RebalancedLoss(net, made.class_weight, rare())),
    }

    def rare() -> Tensor:
        return rebalance_classes(job.photos.train, max_pixels=settings.data.max_pixels)

    if settings.unet.depth > LEVELS_LEFT_OUT:
        levers["classes answer"] = Lever(make=lambda net, _: ClassAnswerLoss(_answer_classes(net)))
        levers["classes answer, rebalanced"] = Lever(make=lambda net, _: ClassAnswerLoss(_answer_classes(net), rare()))
    return levers


def _start_from_chance(network: UNet, recipe: Recipe) -> Loss:
    network.head.reset_parameters()
    return choose_loss(network, recipe)


def _with_term(term: Callable[..., Tensor], weight: float, network: UNet, recipe: Recipe) -> Loss:
    return TermLoss(network, recipe.class_weight, term, weight)


def _answer_classes(network: UNet) -> ClassNetwork:
    return ClassNetwork(network.architecture, DECODERS["median"])


@dataclass(frozen=True)
class Judge:
    """Photographs that chose nothing: of each L (1, 1, H, W), ab and the lightness table's answer (1, 2, H, W)."""

    pictures: Sequence[tuple[Tensor, Tensor, Tensor]]

    @staticmethod
    def of(run: Run, photos: PhotoSplit) -> Judge:
        """Those that confirm; raises InputError where none can be read."""
        make_controls(run, photos)
        table = answering_of(OnnxPredictor(control_path(run, TABLE), threads=run.settings.machine.threads))
        limits = {"short_side": run.settings.score.eval_size, "max_pixels": run.settings.data.max_pixels}
        pictures = [rgb_to_l_ab(rgb) for _, rgb in whole_photos(photos.confirming, **limits)]
        return Judge([(lightness, ab, table(lightness)) for lightness, ab in pictures])

    def score(self, answering: Answering) -> tuple[Reference, Image.Image]:
        """What answers are worth on each, and what the first of them look like."""
        with torch.inference_mode():
            answers = [answering(lightness) for lightness, _, _ in self.pictures]
        against = [hold_against(ab, own, table) for own, (_, ab, table) in zip(answers, self.pictures, strict=True)]
        return Reference.of(against), self.draw(answers)

    def draw(self, answers: Sequence[Tensor]) -> Image.Image:
        """The first photographs with these colours, (1, 2, H, W) each."""
        seen = zip(self.pictures[:_SHOWN_PHOTOS], answers, strict=False)
        return draw_strip([(lightness, answer) for (lightness, _, _), answer in seen])


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COLORPRESS"})
@click.option("--output-dir", "-o", type=PATH, default=Path("levers"), show_default=True, help="Where all of it goes.")
@click.option("--crops", type=click.IntRange(min=1), help=_CROPS_HELP)
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="How many trainings of each.")
@click.option("--lever", "names", multiple=True, help="Only this one; repeatable.  [default: all]")
@quiet_option
@debug_option
@config_options("unet", "data", "train", "fit", "score", "machine", without=("start_from",))
def compare_levers(output_dir: Path, crops: int | None, seeds: int, names: tuple[str, ...], **options: Any) -> None:
    """Train the original with each lever of its recipe changed: levers.json, levers.png, and a table.

    What levers.json has already is not trained again.
    """
    run = Run(output_dir, Settings.from_options(options))
    with locked_folder(output_dir):
        photos = find_photos(run).limit_halves(MOST_CHOOSING)
        if not photos.confirming:
            hint = "give more photographs, or a larger --val-share"
            raise ConfigError("option", "--val-share", "leaves no photograph to judge by", hint)
        wanted = crops or run.settings.train.epochs * _epoch_crops(photos.train, run.settings.fit.epoch_crops)
        job, judge = LeverJob(run, photos, wanted), Judge.of(run, photos)
        levers = list_levers(job)

        def learn(name: str, seed: int) -> list[Row]:
            learned = job.learn(levers[name], name, seed)
            rows = []
            for way, answering in learned.answers.items():
                reference, strip = judge.score(answering)
                path = save_picture(strip, output_dir / "strips" / f"{file_name(f'{name} {way}', seed)}.png")
                figures = {"answer": way, "crops": learned.crops, "seconds": learned.seconds, "strip": path.name}
                if levers[name].as_long:
                    figures["speed_share"] = 1.0 / job.speed_up
                rows.append({**figures, **reference.strength.to_dict(), "l1": reference.best_l1.tolist()})
            return rows

        chosen = choose_levers(names, levers)
        rows = learn_rows(output_dir / "levers.json", describe_question(job), chosen, seeds, learn)
        save_picture(draw_levers(judge, rows, output_dir / "strips"), output_dir / "levers.png")
    click.echo(format_levers(rows))


def describe_question(job: LeverJob) -> dict[str, Any]:
    """What all rows of levers.json have in common, JSON-ready."""
    run, settings = job.run, job.run.settings
    used = {**vars(settings.unet), **vars(settings.fit), **vars(settings.train), **vars(settings.score)}
    return {
        "crops": job.crops,
        "photographs": run.data_key(job.photos),
        "settings": {name: str(value) for name, value in used.items()},
        "code": hash_code("benchmarks.studies.training_levers"),
    }


def file_name(label: str, seed: int) -> str:
    """A name of plain characters for what belongs to a training."""
    return f"{re.sub('[^a-z0-9.]+', '-', label.lower()).strip('-')}-{seed}"


def draw_levers(judge: Judge, rows: Sequence[Mapping[str, Any]], strips: Path) -> Image.Image:
    """The sheet: grey, truth, and each row of the first seed."""
    truth = [ab for _, ab, _ in judge.pictures]
    lines = [("grey", judge.draw([torch.zeros_like(ab) for ab in truth])), ("truth", judge.draw(truth))]
    for row in rows:
        if row["seed"] == 0:
            strength = _strength_of(row)
            figures = f"{strength.below_table_pct:.1f} % below the table, {100 * strength.chroma_share:.0f} % of chroma"
            with Image.open(strips / row["strip"]) as strip:
                lines.append((f"{_title(row)}\n{figures}", strip.copy()))
    return draw_sheet(lines)


def _title(row: Mapping[str, Any]) -> str:
    return ", ".join(filter(None, (row["lever"], row["answer"])))


def _strength_of(row: Mapping[str, Any]) -> Strength:
    return Strength.of({name: row[name] for name in Strength.__dataclass_fields__})


def format_levers(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table: of each lever the means over seeds, and how far its L1 is above the recipe's with the same seeds.

    Intervals are 95 % bootstrap intervals over photographs; what another seed changes is no part of them.
    """
    frame = pd.DataFrame([{**with_nan(row), "title": _title(row), "l1": np.array(row["l1"])} for row in rows])
    recipe = frame[frame["title"] == _RECIPE].set_index("seed")["l1"]
    columns = ("lever", "seeds", "below grey", "below the table (95 %)", "chroma", "L1 to the recipe's (95 %)")
    head = f"| {' | '.join((*columns, 'crops', 'seconds', 'images/s'))} |"
    lines = [head, "|---|---|---|---|---|---|---|---|---|"]
    for title, own in frame.groupby("title", sort=False):
        mean = own.mean(numeric_only=True)
        cells = [
            f"{title} | {len(own)} | {mean['below_grey_pct']:.1f} %",
            f"{mean['below_table_pct']:.1f} %{_interval(mean['below_table_low'], mean['below_table_high'], digits=1)}",
            f"{100 * mean['chroma_share']:.0f} %",
            "" if title == _RECIPE else _compare(own[own["seed"].isin(recipe.index)], recipe),
            f"{mean['crops']:,.0f} | {mean['seconds']:.0f} | {(own['crops'] / own['seconds']).mean():.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    if "speed_share" in frame:
        share = frame["speed_share"].mean()
        lines.append(f"\nImages per second of the recipe over those of the plain loop, in turn: {share:.2f}.")
    return "\n".join(lines)


def _compare(own: pd.DataFrame, recipe: pd.Series[Any]) -> str:
    """How much higher the L1 of a lever is than the recipe's with the same seeds, in percent of it."""
    if own.empty:
        return ""
    known: Floats = np.mean(recipe.loc[own["seed"]].tolist(), axis=0)
    l1: Floats = np.mean(own["l1"].tolist(), axis=0)
    # With 0 for the best, what is "kept" is the part of the recipe's L1 that the lever is below it.
    share, (low, high) = kept_share(known, l1, 0 * known), kept_interval(known, l1, 0 * known)
    return f"{-100 * share:+.2f} %{_interval(-100 * high, -100 * low, digits=2)}"


def _interval(low: float, high: float, *, digits: int) -> str:
    """As a remark behind a figure; empty where there is none."""
    return "" if math.isnan(low) else f" ({format_interval(low, high, digits=digits)})"


if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:], compare_levers, _NAME))
