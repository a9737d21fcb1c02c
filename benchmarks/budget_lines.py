"""Who meets the goals and budgets of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.rows import Row, own_rows
from benchmarks.verdict import merit
from colorpress.core.config import BudgetConfig, Config, GoalConfig, option_name
from compress.budgets import Figures, Limit, read_limits
from compress.measures import MEASURES, Measure


@dataclass(frozen=True)
class BudgetLine:
    """One goal or budget.

    Attributes:
        option: as it was given, such as "target-size 310KB".
        met: by the recommended variant; None where nothing is recommended, or where it has no such figure.
        sentence: the figure, and who meets the budget where the recommended variant does not.
    """

    option: str
    met: bool | None
    sentence: str


def judge_budgets(
    options: Mapping[str, Any], rows: Sequence[Row], recommended: str | None, measure: Measure
) -> list[BudgetLine]:
    """A line for each goal and budget among the options of a run; none where none was given.

    Goals of L1 and of the measure that decides are held against the photographs that did not choose.

    Args:
        options: by name as in TOML, such as {"target-size": "310KB"}; other options may be among them.
        rows: best.pt first; what the budgets are shares of.
        recommended: the name of a row.
        measure: that decides.
    Raises:
        ConfigError: a value is outside its range.
    """
    goal, budget = GoalConfig(**_pick(GoalConfig, options)), BudgetConfig(**_pick(BudgetConfig, options))
    if not rows:
        return []
    ours = [row for row in own_rows(rows) if row.is_ok and row.speedup]
    figures = {row.model: _figures_of(row, measure) for row in sorted(ours, key=lambda row: -merit(row, rows[0]))}
    limits = {limit.name: limit for limit in read_limits(budget, goal, whole=_figures_of(rows[0], measure))}
    lines = []
    for name, value in {**vars(goal), **vars(budget)}.items():
        if value is not None:
            # A share of a figure that best.pt does not have is no limit.
            known = name in limits
            met, sentence = _judge(limits[name], recommended, figures) if known else (None, "best.pt has no figure.")
            lines.append(BudgetLine(f"{option_name(name)} {options[option_name(name)]}", met, sentence))
    return lines


def _pick(config: type[Config], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one config by field name."""
    names = {each.name: option_name(each.name) for each in fields(config)}
    return {name: options[written] for name, written in names.items() if written in options}


def _figures_of(row: Row, measure: Measure) -> Figures:
    return {
        "params": row.params or None,
        "macs": row.macs or None,
        "size_bytes": row.size_bytes,
        "latency_ms": None if row.p50_ms is None else row.p50_ms / row.batch,
        **{name: row.kept(each) for name, each in MEASURES.items()},
        measure.name: row.reported(measure)[0],
        "l1_delta_pct": row.reported_l1_delta_pct,
    }


def _judge(limit: Limit, recommended: str | None, figures: Mapping[str, Figures]) -> tuple[bool | None, str]:
    """Whether a limit is met, and the sentence about it; `figures` by the name of a row, best first."""

    def describe(model: str) -> str:
        value = figures[model][limit.figure]
        share = f", {100 * value / limit.whole:.3g} % of best.pt's" if limit.whole else ""
        return f"{limit.show(value)}{share}"

    met = None
    sentence = "Nothing is recommended"
    if recommended is not None and recommended in figures:
        met = limit.is_met(figures[recommended])
        sentence = f"{recommended} has no such figure" if met is None else f"{recommended}: {describe(recommended)}"
    if not met:
        other = next((model for model, known in figures.items() if limit.is_met(known)), None)
        sentence += f"; {other} meets it: {describe(other)}" if other else "; no variant meets it"
    return met, f"{sentence}."
