"""Does a promise hold: the smallest of many files that meets a goal, chosen again and again on other photographs.

    python -m benchmarks.studies.choice_coverage best.pt out/study/weights/*.pt --data photos -o coverage

Every file answers all photographs that nobody learned from, once. Then, again and again, some of them are drawn as
those of a validation, half of which chooses the smallest file that keeps a goal, and the other half reports what it
keeps; the promise holds where the file keeps the goal on all the photographs that are left over. A goal is drawn each
time between what the files keep, so that it is always close to some: the hardest case. The rules differ in how far
above the goal a file has to be, in standard errors; "all, by G" is how it was done before, on all photographs at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
import numpy as np
import pandas as pd

from colorpress.cli import run_command
from colorpress.command_options import PATH, config_options, debug_option, quiet_option
from colorpress.core.config import Settings
from colorpress.core.console import progress
from colorpress.core.errors import ConfigError
from colorpress.core.files import write_csv
from compress.measures import MARGIN, RETAINED, Measure, Reference, Score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from training.metrics import Floats
    from training.run_folder import Run

_NAME = "python -m benchmarks.studies.choice_coverage"
COLUMNS = ("choosing", "rule", "margin", "choices", "promised", "held", "size_ratio", "reported_excess")
# Goals are drawn between these quantiles of what the files keep.
_GOALS = (0.15, 0.97)


@dataclass(frozen=True)
class Pool:
    """Files, smallest first, with what they answered: L1 (ab/128) to the truth and to best.pt, (files, photographs)."""

    size_bytes: Floats  # (files,)
    l1: Floats
    to_best: Floats
    reference: Reference

    @property
    def photos(self) -> int:
        """How many photographs there are."""
        return int(self.l1.shape[1])

    def score(self, photos: NDArray[np.int64]) -> list[Score]:
        """Every file on some of the photographs, given by their places."""
        reference = self.reference.part(photos)
        return [
            reference.score(l1, to_best)
            for l1, to_best in zip(self.l1[:, photos], self.to_best[:, photos], strict=True)
        ]


class Rule(NamedTuple):
    """How a file is chosen: by whom, by which measure (None: that of `Strength`), and how surely."""

    name: str
    measure: Measure | None
    margin: float


ALL, HALF, CROSSED = "all, by G", "one half chooses, the other reports", "each half chooses, the larger file is taken"
RULES = (
    Rule(ALL, RETAINED, 0.842),
    *(Rule(HALF, None, margin) for margin in (0.0, 0.842, 1.282, 1.645)),
    *(Rule(CROSSED, None, margin) for margin in (0.5, 0.842)),
)


class Choice(NamedTuple):
    """What came of one choice; NaN where none was made.

    Attributes:
        promised: whether a file was chosen.
        held: 1 where it keeps the goal on the photographs that are left over, else 0.
        size_ratio: its size over that of the smallest file that meets the goal on all photographs.
        reported_excess: what was reported of it above what it keeps on those that are left over.
    """

    promised: bool
    held: float
    size_ratio: float
    reported_excess: float


def choose_again(pool: Pool, *, choosing: int, draws: int, seed: int = 0) -> list[dict[str, Any]]:
    """A row of `COLUMNS` for each rule.

    Args:
        choosing: photographs of each validation; as many at least are left over.
    """
    generator = np.random.default_rng(seed)
    decides = pool.reference.strength.measure
    scores = pool.score(np.arange(pool.photos, dtype=np.int64))
    everywhere = {measure: _figures(scores, measure) for measure in {rule.measure or decides for rule in RULES}}
    found: dict[Rule, list[Choice]] = {rule: [] for rule in RULES}
    with progress("choosing", draws) as bar:
        for _ in range(draws):
            drawn, share = generator.permutation(pool.photos), generator.uniform()
            given, left = drawn[:choosing], pool.score(drawn[choosing:])
            middle = (choosing + 1) // 2
            parts = [pool.score(part) for part in (given[:middle], given[middle:], given)]
            for rule in RULES:
                measure = rule.measure or decides
                goal = float(np.quantile(everywhere[measure], _GOALS[0] + share * (_GOALS[1] - _GOALS[0])))
                chosen, reported = _choose(rule, parts, measure, goal)
                judged = _judge(pool.size_bytes, chosen, goal, everywhere[measure], reported, _figures(left, measure))
                found[rule].append(judged)
            bar.advance()
    return [{"choosing": choosing, **_summarize(rule, choices)} for rule, choices in found.items()]


def _figures(scores: Sequence[Score], measure: Measure) -> Floats:
    return np.array([getattr(score, measure.name) for score in scores])


def _choose(rule: Rule, parts: Sequence[Sequence[Score]], measure: Measure, goal: float) -> tuple[int | None, Floats]:
    """The place of the chosen file, and what is reported of each; `parts` are both halves and all of them."""
    one, other, chosen_by_all = (_choose_smallest(part, measure, goal, rule.margin) for part in parts)
    first, second, both = (_figures(part, measure) for part in parts)
    if rule.name != CROSSED:
        return (chosen_by_all, both) if rule.name == ALL else (one, second)
    if one is None or other is None:
        return None, both
    # What one half chose the other reports, and where they agree both do.
    return max(one, other), (first + second) / 2 if one == other else second if one > other else first


def _choose_smallest(scores: Sequence[Score], measure: Measure, goal: float, margin: float) -> int | None:
    """The place of the first one that keeps the goal for so sure; None where there is none."""
    likely = (score.likely_figures(margin)[measure.name] for score in scores)
    return next((place for place, kept in enumerate(likely) if kept >= goal), None)


def _judge(
    size_bytes: Floats, chosen: int | None, goal: float, everywhere: Floats, reported: Floats, left: Floats
) -> Choice:
    """What came of a choice; `everywhere`, `reported` and `left` are what each file keeps there."""
    if chosen is None:
        return Choice(False, math.nan, math.nan, math.nan)
    smallest = int(np.argmax(everywhere >= goal))  # the first
    ratio = float(size_bytes[chosen] / size_bytes[smallest])
    return Choice(True, float(left[chosen] >= goal), ratio, float(reported[chosen] - left[chosen]))


def _summarize(rule: Rule, choices: Sequence[Choice]) -> dict[str, Any]:
    table = pd.DataFrame(choices)
    return {
        "rule": rule.name,
        "margin": rule.margin,
        "choices": len(table),
        "promised": table["promised"].mean(),
        "held": table["held"].mean(),
        "size_ratio": table["size_ratio"].median(),
        "reported_excess": table["reported_excess"].mean(),
    }


@click.command(context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "COLORPRESS"})
@click.argument("checkpoint", type=PATH)
@click.argument("models", type=PATH, nargs=-1, required=True)
@click.option("--output-dir", "-o", type=PATH, default=Path("coverage"), show_default=True, help="Where it goes.")
@click.option("--choosing", "counts", type=click.IntRange(min=4), multiple=True, help="Photographs of a validation.")
@click.option("--draws", type=click.IntRange(min=1), default=200, show_default=True, help="Choices by each rule.")
@click.option(
    "--photos", "most", type=click.IntRange(min=8), default=2000, show_default=True, help="Held out, at most."
)
@quiet_option
@debug_option
@config_options("arch", "data", "score", "machine")
def measure_coverage(
    checkpoint: Path,
    models: tuple[Path, ...],
    output_dir: Path,
    counts: tuple[int, ...],
    draws: int,
    most: int,
    **options: Any,
) -> None:
    """Choose among MODELS, .pt or .onnx files made of CHECKPOINT, on re-drawn photographs: coverage.csv."""
    from colorpress.core.locks import locked_folder
    from training.original import adopt_checkpoint
    from training.run_folder import Run

    run = Run(output_dir, Settings.from_options(options))
    with locked_folder(output_dir):
        adopt_checkpoint(run, checkpoint)
        pool = ask_models(run, models, most)
    strength = pool.reference.strength
    click.echo("\n".join(strength.sentences()))
    if too_many := [count for count in counts if 2 * count > pool.photos]:
        why = f"got {too_many[0]}, and there are {pool.photos} photographs to draw from, half of which are left over"
        raise ConfigError("option", "--choosing", why, "give less, or hold more out with --test-share")
    asked = counts or (min(100, pool.photos // 2),)
    rows = [row for count in asked for row in choose_again(pool, choosing=count, draws=draws)]
    write_csv(output_dir / "coverage.csv", COLUMNS, rows)
    click.echo(format_coverage(rows))


def ask_models(run: Run, models: Sequence[Path], most: int) -> Pool:
    """What every file answers to the photographs of validation and test.

    Raises:
        ConfigError, InputError: as `benchmarks.variants.describe_variant`; or a file does not answer.
    """
    from benchmarks.variants import describe_variant
    from compress.yardstick import answering_of, make_yardstick
    from training.run_folder import find_photos

    settings, photos = run.settings, find_photos(run)
    scored = (*photos.val, *photos.test)[:most]
    yardstick = make_yardstick(run, run.load(run.best_path), photos, scored, short_side=settings.score.eval_size)
    variants = sorted((describe_variant(str(path), path) for path in models), key=lambda each: each.weights_bytes)
    answers = []
    with progress("asking", len(variants)) as bar:
        for variant in variants:
            answers.append(yardstick.measure(answering_of(variant.open(settings.machine.threads))))
            bar.advance()
    l1, to_best = (np.array(each) for each in zip(*answers, strict=True))
    return Pool(np.array([each.weights_bytes for each in variants], float), l1, to_best, yardstick.reference)


def format_coverage(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table of Markdown."""
    lines = [
        "| photographs | rule | margin | promised | held elsewhere | size | reported - kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        used = " (in use)" if row["margin"] == MARGIN else ""
        lines.append(
            f"| {row['choosing']} | {row['rule']}{used} | {row['margin']} | {row['promised']:.0%} | {row['held']:.0%} "
            f"| {row['size_ratio']:.2f}x | {row['reported_excess']:+.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    sys.exit(run_command(sys.argv[1:], measure_coverage, _NAME))
