"""Goals and budgets of a run, and whether its measured variants meet them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.tables import Row
from benchmarks.verdict import merit, own_rows
from colorpress.core.config import BudgetConfig, Config, GoalConfig, option_name
from colorpress.core.text import format_bytes, format_count, format_number, format_percent


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


@dataclass(frozen=True)
class _Limit:
    figure: Callable[[Row], float | None]
    show: Callable[[float], str]
    most: float
    is_floor: bool = False

    def holds(self, row: Row) -> bool | None:
        value = self.figure(row)
        if value is None:
            return None
        return value >= self.most if self.is_floor else value <= self.most


def judge_budgets(options: Mapping[str, Any], rows: Sequence[Row], recommended: str | None) -> list[BudgetLine]:
    """A line for each goal and budget among the options of a run; none where none was given.

    Args:
        options: by name as in TOML, such as {"target-size": "310KB"}; other options may be among them.
        rows: best.pt first; what the budgets are shares of.
        recommended: the name of a row.
    Raises:
        ConfigError: a value is outside its range.
    """
    goal, budget = GoalConfig(**_pick(GoalConfig, options)), BudgetConfig(**_pick(BudgetConfig, options))
    given = {name: value for name, value in vars(goal).items() if value is not None} | budget.given()
    if not rows:
        return []
    ours = [row for row in own_rows(rows) if row["status"] == "ok" and row["speedup"]]
    ours.sort(key=lambda row: -merit(row, rows[0]))
    chosen = next((row for row in ours if row["model"] == recommended), None)
    lines = []
    for name, value in given.items():
        title = f"{option_name(name)} {options[option_name(name)]}"
        limit = _make_limit(name, float(value), rows[0])
        lines.append(_judge(title, limit, chosen, ours) if limit else BudgetLine(title, None, "best.pt has no figure."))
    return lines


def _pick(config: type[Config], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one config by field name."""
    names = {each.name: option_name(each.name) for each in fields(config)}
    return {name: options[written] for name, written in names.items() if written in options}


def _make_limit(name: str, value: float, best: Row) -> _Limit | None:
    """What an option asks of a row; None where best.pt lacks the figure that it is a share of."""
    if name == "min_retained_colour":
        return _Limit(lambda row: row["retained_colour"], "G {:.3f}".format, value, is_floor=True)
    if name == "max_l1_increase":
        return _Limit(lambda row: row["l1_delta_pct"], lambda figure: f"ΔL1 {format_percent(figure)}", value)
    if name == "target_size":
        return _Limit(lambda row: row["size_bytes"], lambda figure: format_bytes(int(figure)), value)
    if name == "target_latency_ms":
        return _Limit(
            lambda row: row["p50_ms"] / row["batch"], lambda figure: f"{format_number(figure)} ms a picture", value
        )
    column, noun = ("params", "parameters") if name == "keep_params" else ("macs", "multiply-accumulates")
    if not best[column]:
        return None
    return _Limit(
        lambda row: row[column] or None,
        lambda figure: f"{format_count(int(figure))} {noun}, {100 * figure / best[column]:.3g} % of best.pt's",
        value * best[column],
    )


def _judge(title: str, limit: _Limit, chosen: Row | None, ours: Sequence[Row]) -> BudgetLine:
    met = None if chosen is None else limit.holds(chosen)
    if chosen is None:
        sentence = "Nothing is recommended"
    elif met is None:
        sentence = f"{chosen['model']} has no such figure"
    else:
        sentence = f"{chosen['model']}: {_show(limit, chosen)}"
    if not met:
        other = next((row for row in ours if limit.holds(row)), None)
        sentence += f"; {other['model']} meets it: {_show(limit, other)}" if other else "; no variant meets it"
    return BudgetLine(title, met, f"{sentence}.")


def _show(limit: _Limit, row: Row) -> str:
    value = limit.figure(row)
    assert value is not None
    return limit.show(value)
