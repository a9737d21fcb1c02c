"""The training curve in words: `training_inference.md`. `training.curve` decides everything, this only says it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colorpress.core.errors import printable
from colorpress.core.files import write_text
from colorpress.core.processes import share_answer
from colorpress.core.stages import StageRecord
from training.curve import CurveReading, EarlyStop, read_curve
from training.history import EXPLANATION_NAME, read_history
from training.run_folder import Run

if TYPE_CHECKING:
    from pandas import DataFrame

_RANKING = "layer_param_counts.csv"
# What a run folder may hold beside its history, and what each is.
_RUN_FILES = {
    "history.csv": "loss, learning rate and speed of every epoch",
    "training_loss.png": "the curve",
    "best.pt": "the weights of the best epoch",
    "last.pt": "the weights of the last epoch, to go on from",
    _RANKING: "parameters and work of every layer",
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


def read_ranked_layers(path: Path) -> DataFrame | None:
    """Of a layer_param_counts.csv the layers that hold parameters, largest first: name, params, pct and cum_pct.

    Both shares are of the network's parameters, 0 to 100. None where the file is missing or not of that kind: an
    explanation of the curve does without it.
    """
    import pandas as pd

    columns = {"name": str, "params": int, "pct": float, "cum_pct": float}
    try:
        table = pd.read_csv(path, usecols=list(columns), dtype=columns, keep_default_na=False)
    except (OSError, ValueError):
        return None
    return table[table.params > 0] if np.isfinite(table[["pct", "cum_pct"]].to_numpy()).all() else None


def explain(run: Run) -> list[StageRecord]:
    """Explain the training curve in training_inference.md; nothing where the run folder holds no history."""
    source = run.folder / "history.csv"
    # The main process alone writes it, and the others may get here first.
    if not share_answer(source.is_file):
        return []

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        return [write_explanation(run.folder / EXPLANATION_NAME, read_curve(read_history(source)), source)], {}

    inputs = [path for path in (source, run.folder / _RANKING) if path.is_file()]
    return [run.do("explain", action, inputs=inputs)]


def write_explanation(path: Path, reading: CurveReading, source: Path) -> Path:
    """Explain a history in a Markdown file, atomically, and return `path`.

    Args:
        path: the file to write, such as `training_inference.md` of the run folder.
        source: the history's file; those beside it that a run writes are listed, and its layer_param_counts.csv read.
    Raises:
        MachineError: the file cannot be written.
    """
    prefix = Path(os.path.relpath(source.parent, path.parent))
    files = {
        _code_safe((prefix / name).as_posix()): what
        for name, what in {source.name: _RUN_FILES["history.csv"], **_RUN_FILES}.items()
        if (source.parent / name).is_file()
    }
    layers = read_ranked_layers(source.parent / _RANKING)
    return write_text(path, explain_curve(reading, layers=layers, files=files))


def explain_curve(
    reading: CurveReading, *, layers: DataFrame | None = None, files: Mapping[str, str] | None = None
) -> str:
    """The reading as Markdown: observations, inferences, recommendations, a caption for the figure, and the files.

    Every number is one of the reading; a recommendation is given only where the reading holds its reason.

    Args:
        layers: of the trained network, as `read_ranked_layers` gives them; with them, where to begin compression.
        files: file name -> what it is; listed as they are.
    """
    nothing = "Nothing to change: the run learned, and ended when it was done."
    recorded = "Training and validation loss" if reading.train_first is not None else "Validation loss"
    sections = {
        "Key observations": [*_observations(reading), *_after_best(reading), *_shape(reading)],
        "Practical inferences": [*_inferences(reading)],
        "Recommendations": [*_advice(reading), *_advice_on_layers(layers)] or [nothing],
        "Figure caption": f"{recorded} over {_count(reading.epochs, 'epoch')}. {_verdict(reading)}.",
        "Files": [f"`{name}`: {what}" for name, what in (files or {}).items()],
    }
    text = f"# What the training curve says\n\n**In short:** {_verdict(reading)}.\n\n"
    text += "Loss means the error that the history records; in colorpress it is the L1 error of ab / 128.\n"
    for title, said in sections.items():
        body = said if isinstance(said, str) else "\n".join(f"- {line}" for line in said)
        text += f"\n## {title}\n\n{body}\n" if body else ""
    return text


def _verdict(reading: CurveReading) -> str:
    if reading.best_epoch is None:
        return "No epoch has a finite validation loss"
    verdicts = (
        (reading.broke_epoch is not None, f"the run broke in epoch {reading.broke_epoch}"),
        (reading.noise is None, "too few epochs to see a trend"),
        (reading.diverged, "after it training and validation both rose, so the run became unstable"),
        (reading.overfitting, "after it validation rose while training kept falling: the network overfitted"),
        (reading.rise_is_real, "after it validation rose"),
        (reading.still_falling, "validation was still falling when the run ended"),
        (not reading.learned, "nothing was learned that stands out from the noise"),
        (reading.plateau_epoch is not None, f"it is level from epoch {reading.plateau_epoch} on, without overfitting"),
        (True, "there is no overfitting"),
    )
    verdict = next(text for holds, text in verdicts if holds)
    return f"Validation has its best, {_loss(reading.best_val)}, in epoch {reading.best_epoch}; {verdict}"


def _observations(reading: CurveReading) -> Iterator[str]:
    names = {"rapid": "Rapid learning", "slow": "Slower convergence", "after_best": "After the best epoch"}
    names |= {"flat": "No learning that shows", "steady": "Steady learning" if reading.learned else "What was learned"}
    for phase in reading.phases:
        epochs = f"{names[phase.kind]}, epochs {phase.first_epoch} to {phase.last_epoch}"
        train = "" if phase.train_last is None else f"training {_arrow(phase.train_first, phase.train_last)}, "
        part = phase.share_pct if phase.kind != "steady" else None
        share = "" if part is None else f"; {part:.0f} % of all that validation improved"
        yield f"**{epochs}:** {train}validation {_arrow(phase.val_first, phase.val_last)}{share}."
    if reading.best_epoch is None:
        yield "**No best epoch:** no epoch has a finite validation loss."
    else:
        train = "" if reading.train_at_best is None else f" and a training loss of {_loss(reading.train_at_best)}"
        best = f"{reading.best_epoch}** of {reading.epochs}, with a validation loss of {_loss(reading.best_val)}{train}"
        yield f"**Best epoch: {best}."
    if missing := [str(epoch) for epoch in reading.missing_epochs]:
        named = [*missing[:5], f"{len(missing) - 5} more"] if len(missing) > 5 else missing
        have = "s {} have" if len(missing) > 1 else " {} has"
        yield f"**Left out:** epoch{have.format(_join(named))} no finite validation loss."
    if reading.noise is None:
        yield "**Noise:** fewer than three epochs are too few to tell a trend from chance or to see overfitting."
        return
    text = f"**Noise:** from one epoch to the next validation swings by about {_loss(reading.noise)} by chance"
    text += f"; a difference counts here from {_loss(reading.margin)} on"
    if reading.near_best > 1:
        text += f", so that {_count(reading.near_best, 'epoch')} are as good as the best"
    yield f"{text}. That is a noisy curve: single epochs say little." if reading.noisy else f"{text}."


def _after_best(reading: CurveReading) -> Iterator[str]:
    """What happened after the best epoch, and whether that is overfitting."""
    if reading.broke_epoch is not None and reading.best_epoch is not None:
        yield f"**Divergence:** the loss is missing or not finite from epoch {reading.broke_epoch} to the end."
    if reading.rise:
        part = "" if reading.rise_pct is None else f" ({reading.rise_pct:.1f} %)"
        since = "" if reading.rise_epoch is None else f", for good from epoch {reading.rise_epoch} on"
        yield f"**After the best epoch** validation ends {_loss(reading.rise)}{part} higher{since}."
    if reading.noise is None:
        return
    if reading.still_falling or not reading.rise_is_real:
        does = "still falls at the end" if reading.still_falling else "does not rise by more than chance"
        yield f"**No overfitting:** validation {does}."
        return
    is_known = reading.train_at_best is not None and reading.train_last is not None
    train = f" ({_arrow(reading.train_at_best, reading.train_last)})" if is_known else ""
    yield {
        "falling": f"**Overfitting:** after epoch {reading.best_epoch} training keeps falling{train} while validation "
        "rises: the network learns the training photographs by heart.",
        "rising": f"**No overfitting, but divergence:** training rises, too{train}; learning by heart would have kept "
        "it falling.",
        "level": f"**No overfitting in the strict sense:** training stays level{train}, so the network did not get "
        "better on its own photographs as it got worse on others.",
        None: "**Overfitting or divergence?** That depends on the training loss, which the history does not say.",
    }[reading.train_after_best]


def _shape(reading: CurveReading) -> Iterator[str]:
    """Plateau, gap and length of the run."""
    if reading.plateau_epoch is not None and reading.learned:
        moves = f"from epoch {reading.plateau_epoch} on validation, smoothed, moves by no more than"
        train = {None: "", True: "; training has levelled off, too", False: "; training has not levelled off"}
        yield f"**Plateau:** {moves} {_loss(reading.margin)}{train[reading.train_flat]}."
    if (best := reading.gap_at_best) is not None:
        end = best if reading.gap_at_end is None else reading.gap_at_end
        normal = (
            " Validation below training is normal here: training is measured on augmented random crops with the "
            "network in training mode; validation on whole photographs in evaluation mode."
        )
        gaps = f"{_loss(best)} in the best epoch, {_loss(end)} at the end"
        yield f"**Gap:** validation less training is {gaps}.{normal if min(best, end) < 0 else ''}"
    if reading.timing == "early":
        pace = _loss(reading.final_pace)
        yield f"**Stopped too early:** at the end validation still falls by about {pace} an epoch."
    if reading.timing == "late":
        yield f"**Stopped too late:** the last {_count(reading.late_by, 'epoch')} brought nothing beyond the noise."
    if reading.timing == "right":
        yield "**Stopped about right:** validation no longer falls beyond the noise, and few epochs were wasted."


def _inferences(reading: CurveReading) -> Iterator[str]:
    if reading.best_epoch is None:
        yield "There is no checkpoint to ship: no epoch has a finite validation loss."
        return
    last = ""
    if reading.margin is not None and reading.rise and reading.broke_epoch is None:
        as_good = "those of the last epoch are as good within the noise"
        last = f"; {as_good}" if reading.rise <= reading.margin else ", not those of the last epoch"
    yield f"**Ship the weights of epoch {reading.best_epoch}** (in a colorpress run: `best.pt`){last}."
    for stop in reading.early_stopping if reading.epochs > 1 else ():
        yield _patience_text(stop, reading.margin)
    if (rate := reading.learning_rate) is not None:
        up = f" up to {rate.peak:.2g}, then" if rate.shape == "warm-up, then decay" else ""
        at_best = "" if rate.at_best is None else f"; at the best epoch it is {rate.at_best:.2g}"
        course = f", from {rate.first:.2g}{up} to {rate.last:.2g}{at_best}"
        yield f"**Learning rate:** {rate.shape}{f' at {rate.peak:.2g}' if rate.shape == 'constant' else course}."
    if reading.overfitting:
        yield (
            "**Capacity:** the network can learn more of its training photographs than carries over to others. It is "
            "not too small for these data, which speaks for compressing it."
        )
    elif reading.learned and reading.plateau_epoch is not None and reading.train_flat:
        yield (
            "**Capacity:** both losses have levelled off with nothing learned by heart. What limits the result is the "
            "learning-rate schedule, the size of the network, or how far grey tells colour; the curve cannot say which."
        )


def _patience_text(stop: EarlyStop, margin: float | None) -> str:
    start = f"**Early stopping with patience {stop.patience}** would"
    if stop.stop_epoch is None:
        return f"{start} not have stopped this run: same epochs, same weights."
    time = "" if not stop.saved_seconds else f" ({stop.saved_seconds / 60:.0f} min)"
    kept = f"after epoch {stop.stop_epoch} and kept epoch {stop.kept_epoch} ({_loss(stop.kept_val)})"
    saves = f"it saves {_count(stop.saved_epochs, 'epoch')}{time}"
    if stop.cost == 0:
        return f"{start} have stopped {kept}; {saves} and costs nothing."
    part = "" if stop.cost_pct is None else f" ({stop.cost_pct:.1f} %)"
    small = ", less than the noise margin" if margin is not None and stop.cost <= margin else ""
    return f"{start} have stopped {kept}; {saves} and costs {_loss(stop.cost)}{part} of validation loss{small}."


def _advice(reading: CurveReading) -> Iterator[str]:
    """What to change, in the order of urgency."""
    rate = reading.learning_rate
    if reading.diverged or reading.best_epoch is None:
        than = f" than {rate.peak:.2g}" if rate is not None and rate.peak else ""
        warm_up = ", with a warm-up and a decay" if rate is not None and rate.shape == "constant" else ""
        yield f"Train with a lower learning rate{than}{warm_up}, and check the data if that does not help."
        if reading.broke_epoch is not None:
            yield f"Do not use weights from epoch {reading.broke_epoch} on."
        return
    if reading.noise is None:
        yield "Train for more epochs: three or more are needed before the curve says anything."
        return
    yield from _advice_on_course(reading)
    as_good = [stop for stop in reading.early_stopping if stop.saved_epochs and stop.cost <= (reading.margin or 0.0)]
    if as_good and reading.timing == "late" and (reading.learned or reading.rise_is_real):
        stop = min(as_good, key=lambda each: each.cost)
        same = "the same weights" if stop.cost == 0 else "weights as good within the noise"
        yield f"Stop early with patience {stop.patience}: {same}, {_count(stop.saved_epochs, 'epoch')} less."
    if reading.noisy:
        yield "Validate on more photographs, or average the weights of several epochs: this curve is noisy."
    if reading.overfitting is False and reading.learned:
        yield "Keep weight decay as it is, and do without dropout: with no overfitting they have nothing to cure."


def _advice_on_course(reading: CurveReading) -> Iterator[str]:
    rate = reading.learning_rate
    constant = rate is not None and rate.shape == "constant"
    at_peak = "" if rate is None else f"it was constant at {rate.peak:.2g}"
    if reading.still_falling:
        yield "Train for more epochs: validation was still falling."
        if rate is not None and rate.last < 0.05 * rate.peak:
            at = f"it had decayed to {rate.last:.2g}"
            yield f"For that start a longer run with its schedule stretched: the learning rate is spent, {at}."
    elif reading.rise_is_real:
        if reading.overfitting:
            yield (
                "Raise weight decay, add dropout, augment more or add photographs, one at a time: training fell while "
                "validation rose."
            )
        rapid = next((phase.last_epoch for phase in reading.phases if phase.kind == "rapid"), None)
        where = f"after epoch {reading.best_epoch}, the best one"
        where = where if rapid is None else f"after epoch {rapid}, where rapid learning ends"
        if rate is None:
            yield f"If the learning rate was constant (the history does not say), lower it {where}."
        elif constant:
            yield f"Lower the learning rate {where}; {at_peak}."
        elif not reading.overfitting:
            yield "Try a lower learning rate: validation rose, and the curve does not show that this is overfitting."
    elif not reading.learned:
        yield "Look for the reason before training longer: the data, or a learning rate far too high or too low."
    elif reading.plateau_epoch is not None and constant:
        yield f"Lower the learning rate at epoch {reading.plateau_epoch}, where the plateau begins; {at_peak}."
    elif reading.plateau_epoch is not None:
        yield "Do not train longer with these settings: validation has levelled off."


def _advice_on_layers(layers: DataFrame | None) -> Iterator[str]:
    if layers is None or layers.empty:
        return
    # The fewest that hold half of the parameters.
    first = layers.head(min(5, int((layers.cum_pct < 50).sum()) + 1))
    columns = zip(first["name"], first.params, first.pct, strict=True)
    names = [f"`{_code_safe(name)}` ({params:,} parameters, {pct:.1f} %)" for name, params, pct in columns]
    held = f"which hold {first.cum_pct.iloc[-1]:.0f} % of the parameters"
    yield f"Begin compression with the {_count(len(first), 'largest layer')}, {held}: {_join(names)}."


def _loss(value: float | None) -> str:
    """A loss, or a difference of losses, as it is printed everywhere."""
    if value is None:
        return "?"
    if value == 0 or 0.001 <= abs(value) < 1000:
        return f"{value:.4f}" if value else "0"
    return f"{value:.5f}" if 5e-6 <= abs(value) < 1 else f"{value:.2g}"


def _arrow(first: float | None, last: float | None) -> str:
    return f"{_loss(first)} → {_loss(last)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _join(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _code_safe(name: str) -> str:
    return printable(name).replace("`", "'")
