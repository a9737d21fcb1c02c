"""The training curve in words: `training_inference.md`. `training.curve` decides everything, this only says it."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorpress.core.errors import printable
from colorpress.core.files import write_text
from colorpress.core.processes import share_answer
from colorpress.core.stages import StageRecord
from training.curve import CurveReading, EarlyStop, Phase, read_curve
from training.history import read_history
from training.run_folder import Run

INFERENCE_NAME = "training_inference.md"
# What a run folder may hold beside its history, and what each is.
ARTIFACTS = {
    "history.csv": "loss, learning rate and speed of every epoch",
    "training_loss.png": "the curve",
    "best.pt": "the weights of the best epoch",
    "last.pt": "the weights of the last epoch, to go on from",
    "layer_param_counts.csv": "parameters and work of every layer",
    "model_summary.txt": "the same as a table to read",
    "top20_layers.png": "the 20 largest layers",
    "pruned/plan.json": "the channels that pruning kept",
    "pruned/model.pt": "the pruned and fine-tuned model",
    "best/model.onnx": "the original as ONNX",
    "pruned/model.onnx": "the pruned model as ONNX",
    "best-int8/model.onnx": "the original as int8 ONNX",
    "pruned-int8/model.onnx": "the pruned model as int8 ONNX",
    "benchmark.csv": "size, speed and accuracy of every variant",
    "pareto.png": "the same as a chart",
    "sample_output.png": "photographs coloured by every variant",
    "sample_input_output.png": "photographs before and after",
    "report.html": "everything on one page",
}


@dataclass(frozen=True)
class RankedLayer:
    """One row of layer_param_counts.csv: a layer, its parameters, and their share (0 to 100) of the network's."""

    name: str
    type: str
    params: int
    share_pct: float
    cumulative_pct: float


def read_ranked_layers(path: Path) -> tuple[RankedLayer, ...]:
    """The rows of a layer_param_counts.csv that hold parameters, largest first.

    Empty where the file is missing or not of that kind: an explanation of the curve does without it.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            rows = [
                RankedLayer(row["name"], row["type"], int(row["params"]), float(row["pct"]), float(row["cum_pct"]))
                for row in csv.DictReader(stream)
            ]
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return ()
    good = all(math.isfinite(row.share_pct) and math.isfinite(row.cumulative_pct) for row in rows)
    return tuple(row for row in rows if row.params > 0) if good else ()


def explain_curve(
    reading: CurveReading, *, layers: Sequence[RankedLayer] = (), artifacts: Mapping[str, str] | None = None
) -> str:
    """The reading as Markdown: observations, inferences, recommendations, a caption for the figure, and the files.

    Every number is one of the reading; a recommendation is given only where the reading holds its reason.

    Args:
        reading: the answer of `read_curve`.
        layers: of the trained network, largest first; with them it is said where compression should begin.
        artifacts: file name -> what it is; listed as they are.
    """
    sections = [
        ("Key observations", _observations(reading)),
        ("Practical inferences", _inferences(reading)),
        ("Recommendations", _recommendations(reading, layers)),
        ("Figure caption", [_caption(reading)]),
        ("Files", [f"`{name}`: {what}" for name, what in (artifacts or {}).items()]),
    ]
    parts = [
        "# What the training curve says",
        _in_short(reading),
        "Loss means the error that the history records; in colorpress it is the L1 error of ab / 128.",
    ]
    for title, lines in sections:
        if lines:
            body = lines[0] if title == "Figure caption" else "\n".join(f"- {line}" for line in lines)
            parts.append(f"## {title}\n\n{body}")
    return "\n\n".join(parts) + "\n"


def write_inference(
    path: Path,
    history: Sequence[Mapping[str, float]],
    *,
    folder: Path | None = None,
    artifacts: Mapping[str, str] = ARTIFACTS,
    reading: CurveReading | None = None,
) -> Path:
    """Explain a history in a Markdown file, atomically, and return `path`.

    Args:
        path: the file to write, such as `training_inference.md` of the run folder.
        history: as for `read_curve`.
        folder: where the run's files lie; default: beside `path`. Its layer_param_counts.csv is read, too.
        artifacts: file name in `folder` -> what it is; those that exist are listed.
        reading: of this history, where the caller has it already.
    Raises:
        InputError: the history has no rows.
        MachineError: the file cannot be written.
    """
    folder = path.parent if folder is None else folder
    prefix = Path(os.path.relpath(folder, path.parent))
    present = {
        _code_safe((prefix / name).as_posix()): what for name, what in artifacts.items() if (folder / name).is_file()
    }
    layers = read_ranked_layers(folder / "layer_param_counts.csv")
    reading = read_curve(history) if reading is None else reading
    return write_text(path, explain_curve(reading, layers=layers, artifacts=present))


def _in_short(reading: CurveReading) -> str:
    if reading.best_epoch is None:
        return f"**In short:** {_count(reading.epochs, 'epoch')}, and none with a finite validation loss."
    best = f"the best of {_count(reading.epochs, 'epoch')} is epoch {reading.best_epoch} ({_loss(reading.best_val)})"
    if reading.epochs == 1:
        best = f"one epoch, with a validation loss of {_loss(reading.best_val)}"
    return f"**In short:** {best}; {_verdict(reading)}."


def _verdict(reading: CurveReading) -> str:
    if reading.broke_epoch is not None:
        return f"the run broke in epoch {reading.broke_epoch}"
    if reading.noise is None:
        return "too few epochs to see a trend"
    if reading.diverged:
        return "after it training and validation both rose, so the run became unstable"
    if reading.overfitting:
        return "after it the network overfitted"
    if reading.rise_is_real:
        return "after it validation rose"
    if reading.still_falling:
        return "validation was still falling when the run ended"
    if not reading.learned:
        return "nothing was learned that stands out from the noise"
    if reading.plateau_epoch is not None:
        return f"validation is level from epoch {reading.plateau_epoch} on, and there is no overfitting"
    return "there is no overfitting"


def _observations(reading: CurveReading) -> list[str]:
    lines = [_phase_text(reading, phase) for phase in reading.phases]
    if reading.best_epoch is None:
        lines.append("**No best epoch:** no epoch has a finite validation loss.")
    else:
        lines.append(_best_text(reading))
    lines += _noise_text(reading)
    lines += _after_text(reading)
    lines += _missing_text(reading)
    lines += _plateau_text(reading)
    lines += _gap_text(reading)
    lines += _length_text(reading)
    return lines


def _phase_text(reading: CurveReading, phase: Phase) -> str:
    name = {
        "rapid": "Rapid learning",
        "slow": "Slower convergence",
        "steady": "Steady learning" if reading.learned else "What was learned",
        "after_best": "After the best epoch",
        "flat": "No learning that shows",
    }[phase.kind]
    if phase.kind == "steady" and phase.val_last >= phase.val_first:
        name = "No change"
    losses = f"validation {_arrow(phase.val_first, phase.val_last)}"
    if phase.train_first is not None and phase.train_last is not None:
        losses = f"training {_arrow(phase.train_first, phase.train_last)}, {losses}"
    text = f"**{name}, epochs {phase.first_epoch} to {phase.last_epoch}:** {losses}"
    if phase.share_pct is not None and phase.kind in ("rapid", "slow"):
        text += f"; {_share(phase.share_pct)} of all that validation improved"
    return text + "."


def _best_text(reading: CurveReading) -> str:
    text = (
        f"**Best epoch: {reading.best_epoch}** of {reading.epochs}, with a validation loss of {_loss(reading.best_val)}"
    )
    if reading.epochs == 1:
        text = f"**One epoch**, with a validation loss of {_loss(reading.best_val)}"
    if reading.train_at_best is not None:
        text += f" and a training loss of {_loss(reading.train_at_best)}"
    return text + "."


def _noise_text(reading: CurveReading) -> list[str]:
    if reading.noise is None or reading.margin is None:
        return [
            "**Noise:** fewer than three epochs have a validation loss, too few to tell a trend from chance or to see "
            "overfitting."
        ]
    if reading.margin == 0:
        return ["**Noise:** none; validation does not move at all."]
    chance = "does not swing" if reading.noise == 0 else f"swings by about {_loss(reading.noise)} by chance"
    text = f"**Noise:** from one epoch to the next validation {chance}"
    text += f"; a difference counts here from {_loss(reading.margin)} on."
    if reading.noisy:
        text += " That is a noisy curve: single epochs say little."
    if reading.epochs < 5:
        text += f" With {reading.epochs} epochs all of this is a hint at most."
    if reading.near_best > 1:
        others = reading.near_best - 1
        text += (
            f" {_count(others, 'other epoch')} {'is' if others == 1 else 'are'} no worse than the best by this measure."
        )
    return [text]


def _after_text(reading: CurveReading) -> list[str]:
    """What happened after the best epoch, and whether that is overfitting."""
    if reading.best_epoch is None or reading.rise is None:
        return []
    lines = []
    if reading.broke_epoch is not None:
        lines.append(
            f"**Divergence:** the loss is not finite from epoch {reading.broke_epoch} to the end "
            f"(NaN, infinite or missing in the history)."
        )
    if reading.noise is None:
        if reading.rise > 0:
            lines.append(f"**After the best epoch** validation is higher by {_amount(reading)} at the end.")
        return lines
    if not reading.rise_is_real:
        if reading.rise > 0:
            lines.append(
                f"**After the best epoch** validation ends {_amount(reading)} above the best, which is no lasting rise."
            )
        lines.append(f"**No overfitting:** {_why_no_overfitting(reading)}.")
        return lines
    since = "" if reading.rise_epoch is None else f" and stays above the margin from epoch {reading.rise_epoch} on"
    lines.append(f"**Rise after the best epoch:** validation ends {_amount(reading)} higher{since}.")
    train = ""
    if reading.train_at_best is not None and reading.train_last is not None:
        train = f" ({_arrow(reading.train_at_best, reading.train_last)})"
    if reading.overfitting:
        lines.append(
            f"**Overfitting:** after epoch {reading.best_epoch} training keeps falling{train} while validation "
            "rises: the network learns the training photographs by heart."
        )
    elif reading.train_after_best == "rising":
        lines.append(
            f"**No overfitting, but divergence:** training rises, too{train}. The optimization lost its way; "
            "learning by heart would have kept training falling."
        )
    elif reading.train_after_best == "level":
        lines.append(
            f"**No overfitting in the strict sense:** training stays level after epoch {reading.best_epoch}{train}, "
            "so the network did not get better on its own photographs as it got worse on others."
        )
    else:
        lines.append(
            "**Overfitting or divergence?** That depends on whether training kept falling, which the history does not "
            "say."
        )
    return lines


def _why_no_overfitting(reading: CurveReading) -> str:
    if reading.still_falling:
        return "validation still falls at the end"
    if reading.broke_epoch is not None:
        return f"before epoch {reading.broke_epoch} validation does not rise by more than chance"
    if reading.train_after_best == "falling":
        return "training keeps falling after the best epoch, but validation does not rise by more than chance"
    return "validation does not rise by more than chance"


def _missing_text(reading: CurveReading) -> list[str]:
    missing = reading.missing_epochs
    if not missing or reading.best_epoch is None:
        return []
    many = len(missing) > 1
    return [
        f"**Left out:** epoch{'s' if many else ''} {_join_epochs(missing)} {'have' if many else 'has'} no finite "
        "validation loss."
    ]


def _plateau_text(reading: CurveReading) -> list[str]:
    if reading.plateau_epoch is None or not reading.learned:
        return []
    text = f"**Plateau:** from epoch {reading.plateau_epoch} on validation, smoothed, moves by no more than "
    text += _loss(reading.margin)
    if reading.train_flat is not None:
        text += "; training has levelled off, too" if reading.train_flat else "; training has not levelled off"
    return [text + "."]


def _gap_text(reading: CurveReading) -> list[str]:
    best, end = reading.gap_at_best, reading.gap_at_end
    if best is None:
        return []
    text = f"**Gap:** in epoch {reading.best_epoch} validation is {_gap_words(best)} training"
    if end is not None and reading.val_last_epoch != reading.best_epoch:
        text += f", in epoch {reading.val_last_epoch} it is {_gap_words(end)} training"
    text += "."
    if best < 0 or (end is not None and end < 0):
        text += (
            " Validation below training is normal here: training is measured on augmented random crops with the "
            "network in training mode; validation on whole photographs in evaluation mode."
        )
    return [text]


def _length_text(reading: CurveReading) -> list[str]:
    if reading.timing == "early":
        pace = _loss(reading.final_pace)
        return [f"**Stopped too early:** at the end validation still falls by about {pace} an epoch."]
    if reading.timing == "late":
        if reading.plateau_epoch is not None and not reading.learned:
            return ["**Stopped too late:** no epoch after the first brought anything beyond the noise."]
        beyond = " beyond the noise" if reading.plateau_epoch is not None else ""
        return [f"**Stopped too late:** the last {_count(reading.late_by, 'epoch')} brought nothing{beyond}."]
    if reading.timing == "right":
        return ["**Stopped about right:** validation no longer falls beyond the noise, and few epochs were wasted."]
    return []


def _inferences(reading: CurveReading) -> list[str]:
    if reading.best_epoch is None:
        return ["There is no checkpoint to ship: no epoch has a finite validation loss."]
    lines = [
        f"**Ship the weights of epoch {reading.best_epoch}** (in a colorpress run: `best.pt`){_not_the_last(reading)}."
    ]
    if reading.epochs > 1:
        lines += [_patience_text(reading, stop) for stop in reading.early_stopping]
    lines += _rate_text(reading)
    lines += _capacity_text(reading)
    return lines


def _not_the_last(reading: CurveReading) -> str:
    if reading.broke_epoch is not None or reading.val_last_epoch != reading.last_epoch or not reading.rise:
        return ""
    if reading.margin is not None and reading.rise <= reading.margin:
        return "; those of the last epoch are as good within the noise"
    return f", not those of the last epoch, whose validation loss is {_amount(reading)} higher"


def _patience_text(reading: CurveReading, stop: EarlyStop) -> str:
    start = f"**Early stopping with patience {stop.patience}** "
    if stop.stop_epoch is None:
        return start + "would not have stopped this run: same epochs, same weights."
    kept = f"epoch {stop.kept_epoch} ({_loss(stop.kept_val)})"
    text = f"{start}would have stopped after epoch {stop.stop_epoch} and kept {kept}"
    if stop.saved_epochs == 0:
        text += "; that is the end of the run, so it saves nothing"
    else:
        text += f"; it saves {_count(stop.saved_epochs, 'epoch')}"
        if stop.saved_seconds:
            text += f" ({_duration(stop.saved_seconds)})"
    if stop.cost == 0:
        return text + " and costs nothing." if stop.saved_epochs else text + "."
    cost = _loss(stop.cost) + ("" if stop.cost_pct is None else f" ({_pct(stop.cost_pct)})")
    text += f" and costs {cost} of validation loss"
    if reading.margin is not None and stop.cost <= reading.margin:
        text += ", less than the noise margin"
    return text + "."


def _rate_text(reading: CurveReading) -> list[str]:
    rate = reading.learning_rate
    if rate is None:
        return []
    at_best = "" if rate.at_best is None else f"; at the best epoch it is {_rate(rate.at_best)}"
    if rate.shape == "constant":
        return [f"**Learning rate:** constant at {_rate(rate.peak)}."]
    course = f"from {_rate(rate.first)} to {_rate(rate.last)}"
    if rate.shape == "warm-up, then decay":
        course = f"from {_rate(rate.first)} up to {_rate(rate.peak)}, then down to {_rate(rate.last)}"
    text = f"**Learning rate:** {rate.shape}, {course}{at_best}."
    slow = next((phase for phase in reading.phases if phase.kind == "slow"), None)
    if (
        slow is not None
        and slow.share_pct is not None
        and rate.shape in ("decaying", "warm-up, then decay", "step decay")
    ):
        won = f"{_share(slow.share_pct)} of the improvement"
        text += f" Epochs {slow.first_epoch} to {slow.last_epoch}, at falling rates, won {won}."
    return [text]


def _capacity_text(reading: CurveReading) -> list[str]:
    if reading.overfitting and not reading.broke_epoch:
        return [
            "**Capacity:** the network can learn more of its training photographs than carries over to others. It is "
            "not too small for these data, which speaks for compressing it."
        ]
    if reading.learned and reading.plateau_epoch is not None and reading.train_flat and not reading.diverged:
        return [
            "**Capacity:** both losses have levelled off with nothing learned by heart. More epochs of the same will "
            "not help; what limits the result is the learning-rate schedule, the size of the network, or how far grey "
            "tells colour. The curve alone cannot say which."
        ]
    return []


def _recommendations(reading: CurveReading, layers: Sequence[RankedLayer]) -> list[str]:
    lines: list[str] = []
    if reading.diverged or reading.best_epoch is None:
        lines += _advice_diverged(reading)
    elif reading.noise is None:
        lines.append("Train for more epochs: three or more are needed before the curve says anything.")
    elif reading.still_falling:
        lines += _advice_falling(reading)
    elif not reading.learned and not reading.rise_is_real:
        lines += _advice_flat(reading)
    if reading.rise_is_real and not reading.diverged:
        lines += _advice_rise(reading)
    if reading.plateau_epoch is not None and reading.learned and not reading.diverged:
        lines += _advice_plateau(reading)
    lines += _advice_patience(reading)
    if reading.noisy and not reading.diverged:
        lines.append("Validate on more photographs, or average the weights of several epochs: this curve is noisy.")
    if reading.overfitting is False and not reading.diverged and reading.learned:
        lines.append(
            "Keep weight decay as it is, and do without dropout: with no overfitting they have nothing to cure."
        )
    lines += _advice_layers(layers)
    return lines or ["Nothing to change: the run learned, and ended when it was done."]


def _advice_diverged(reading: CurveReading) -> list[str]:
    rate = reading.learning_rate
    lower = "Train with a lower learning rate" + (f" than {_rate(rate.peak)}" if rate is not None and rate.peak else "")
    lines = [lower + ", and check the data if that does not help: that is what a run that breaks calls for first."]
    if reading.broke_epoch is not None and reading.best_epoch is not None:
        lines.append(f"Do not use weights from epoch {reading.broke_epoch} on.")
    if rate is not None and rate.shape == "constant":
        lines.append("Let the learning rate warm up and decay; it was constant.")
    return lines


def _advice_falling(reading: CurveReading) -> list[str]:
    rate = reading.learning_rate
    text = "Train for more epochs: validation was still falling"
    if rate is not None and rate.peak > 0 and rate.last <= 0.05 * rate.peak:
        text += (
            f". The learning rate had decayed to {_rate(rate.last)}, so start a longer run with its schedule "
            "stretched; going on at that rate would change little"
        )
    return [text + "."]


def _advice_flat(reading: CurveReading) -> list[str]:
    lines = []
    if reading.train_after_best == "falling" and reading.train_flat is False:
        lines.append("Check the validation photographs: training falls, and validation does not follow.")
    else:
        lines.append(
            "Look for the reason before training longer: the data, or a learning rate that is far too high or too low."
        )
    return lines


def _advice_rise(reading: CurveReading) -> list[str]:
    lines = []
    rapid = next((phase for phase in reading.phases if phase.kind == "rapid"), None)
    rate = reading.learning_rate
    if reading.overfitting:
        lines.append(
            "Raise weight decay, add dropout, augment more or add photographs, one at a time: training fell while "
            "validation rose."
        )
    if rate is None or rate.shape == "constant":
        when = rapid.last_epoch if rapid is not None else reading.best_epoch
        reason = "where rapid learning ends" if rapid is not None else "the best one"
        if rate is None:
            lines.append(
                f"If the learning rate was constant (the history does not say), lower it after epoch {when}, {reason}."
            )
        else:
            lines.append(
                f"Lower the learning rate after epoch {when}, {reason}; it was constant at {_rate(rate.peak)}."
            )
    elif reading.overfitting is not True:
        lines.append(
            "Try a lower learning rate: validation rose, and the curve does not show that this is overfitting."
        )
    return lines


def _advice_plateau(reading: CurveReading) -> list[str]:
    rate = reading.learning_rate
    if rate is not None and rate.shape == "constant":
        return [
            f"Lower the learning rate at epoch {reading.plateau_epoch}, where the plateau begins: it was constant at "
            f"{_rate(rate.peak)}."
        ]
    if reading.timing == "late":
        return ["Train for fewer epochs, or change something else: more of the same epochs bring nothing."]
    return ["Do not train longer with these settings: validation has levelled off."]


def _advice_patience(reading: CurveReading) -> list[str]:
    """The shortest patience that would have kept weights as good as the best ones."""
    if reading.timing != "late" or not (reading.learned or reading.rise_is_real):
        return []
    worth = [stop for stop in reading.early_stopping if stop.saved_epochs]
    free = next((stop for stop in worth if stop.cost == 0), None)
    if free is not None:
        return [
            f"Stop early with patience {free.patience}: the same weights, {_count(free.saved_epochs, 'epoch')} less."
        ]
    cheap = next((stop for stop in worth if reading.margin is not None and stop.cost <= reading.margin), None)
    if cheap is not None:
        return [
            f"Stop early with patience {cheap.patience}: {_count(cheap.saved_epochs, 'epoch')} less for a difference "
            "within the noise."
        ]
    if worth:
        longest = max(stop.patience for stop in worth)
        return [f"Use a patience above {longest}: with {longest} the run would have ended before its best epoch."]
    return []


def _advice_layers(layers: Sequence[RankedLayer]) -> list[str]:
    if not layers:
        return []
    count = next((n for n, layer in enumerate(layers, start=1) if layer.cumulative_pct >= 50), len(layers))
    first = layers[: min(count, 5)]
    each = [f"`{_code_safe(layer.name)}` ({layer.params:,} parameters, {layer.share_pct:.1f} %)" for layer in first]
    if len(first) == 1:
        return [f"Begin compression with the largest layer: {each[0]}."]
    return [
        f"Begin compression with the {len(first)} largest layers, which hold {first[-1].cumulative_pct:.0f} % of the "
        f"parameters: {_join(each)}."
    ]


def _caption(reading: CurveReading) -> str:
    recorded = "Training and validation loss" if reading.train_first is not None else "Validation loss"
    text = f"{recorded} over {_count(reading.epochs, 'epoch')}."
    if reading.best_epoch is None or reading.val_first is None or reading.best_val is None:
        return text + " No epoch has a finite validation loss."
    if reading.epochs == 1:
        return text
    if reading.best_val < reading.val_first:
        text += (
            f" Validation falls from {_loss(reading.val_first)} to its best, {_loss(reading.best_val)}, in epoch "
            f"{reading.best_epoch} (dashed line)"
        )
    else:
        text += f" Validation has its best, {_loss(reading.best_val)}, in epoch {reading.best_epoch} (dashed line)"
    if reading.overfitting:
        return text + f", then rises to {_loss(reading.val_last)} while training keeps falling: overfitting."
    if reading.rise_is_real:
        also = " together with training" if reading.train_after_best == "rising" else ""
        return text + f", then rises to {_loss(reading.val_last)}{also}."
    if reading.broke_epoch is not None:
        return text + f"; from epoch {reading.broke_epoch} on the loss is not finite."
    if reading.still_falling:
        return text + " and was still falling when the run ended."
    if reading.plateau_epoch is not None and reading.learned:
        return text + f"; it is level from epoch {reading.plateau_epoch} on, without overfitting."
    return text + "."


def _loss(value: float | None) -> str:
    """A loss, or a difference of losses, as it is printed everywhere."""
    assert value is not None
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:
        return f"{value:.4f}"
    return f"{value:.5f}" if 5e-6 <= abs(value) < 1 else f"{value:.2g}"


def _arrow(first: float, last: float) -> str:
    return f"{_loss(first)} → {_loss(last)}"


def _amount(reading: CurveReading) -> str:
    assert reading.rise is not None
    return _loss(reading.rise) + ("" if reading.rise_pct is None else f" ({_pct(reading.rise_pct)})")


def _gap_words(gap: float) -> str:
    return "equal to" if gap == 0 else f"{_loss(abs(gap))} {'above' if gap > 0 else 'below'}"


def _pct(value: float) -> str:
    return f"{value:.1f} %" if abs(value) >= 0.05 else "under 0.1 %"


def _share(percent: float) -> str:
    if percent < 1:
        return "under 1 %"
    return "over 99 %" if percent > 99 else f"{percent:.0f} %"


def _rate(value: float) -> str:
    return f"{value:.2g}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _join_epochs(epochs: Sequence[int]) -> str:
    if len(epochs) <= 5:
        return _join([str(epoch) for epoch in epochs])
    return ", ".join(str(epoch) for epoch in epochs[:5]) + f" and {len(epochs) - 5} more"


def _code_safe(name: str) -> str:
    return printable(name).replace("`", "'")


def explain(run: Run) -> list[StageRecord]:
    """Explain the training curve in training_inference.md; nothing where the run folder holds no history."""
    source = run.folder / "history.csv"
    # The main process alone writes it, and the others may get here first.
    if not share_answer(source.is_file):
        return []

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        return [write_inference(run.folder / INFERENCE_NAME, read_history(source))], {}

    ranking = run.folder / "layer_param_counts.csv"
    inputs = [source, ranking] if ranking.is_file() else [source]
    return [run.do("explain", action, inputs=inputs)]
