"""Goals and budgets: what the options ask of a network or of a file, as numbers.

Figures of a network or a file go by name: "params", "macs", "size_bytes", "latency_ms", those of `compress.measures`
and "l1_delta_pct". One that is missing or None is unknown. A goal has to hold on other photographs than those that
choose; whoever makes the figures of a candidate subtracts the margin (`compress.measures.Score.likely_figures`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from colorpress.core.config import BudgetConfig, GoalConfig, option_name, parse_size
from colorpress.core.text import format_bytes, format_count, format_number, format_percent
from compress.measures import MEASURES, Measure

Figures = Mapping[str, Any]


@dataclass(frozen=True)
class _Kind:
    """What an option limits: the figure, the unit it is counted in, and how a value is shown to people."""

    figure: str
    unit: str
    show: Callable[[float], str]
    is_floor: bool = False


_KINDS = {
    **{
        f"min_{each.name}": _Kind(each.name, each.symbol, f"{each.symbol} {{:.3f}}".format, is_floor=True)
        for each in MEASURES.values()
    },
    "max_l1_increase": _Kind("l1_delta_pct", "%", lambda value: f"ΔL1 {format_percent(value)}"),
    "keep_params": _Kind("params", "parameters", lambda value: f"{format_count(int(value))} parameters"),
    "keep_macs": _Kind(
        "macs", "multiply-accumulates", lambda value: f"{format_count(int(value))} multiply-accumulates"
    ),
    "target_size": _Kind("size_bytes", "bytes", lambda value: format_bytes(int(value))),
    "target_latency_ms": _Kind("latency_ms", "ms", lambda value: f"{format_number(value)} ms a picture"),
}
_SHARES = ("keep_params", "keep_macs")


@dataclass(frozen=True)
class Limit:
    """One goal or budget.

    Attributes:
        name: of the option, such as "target_size".
        bound: the most of the figure that is allowed; the least where `is_floor`.
        given: the value as it was given, such as "200KB"; empty for a limit that nobody asked for.
        whole: best.pt's figure, where the option is a share of it.
    """

    name: str
    bound: float
    given: str = ""
    whole: float | None = None

    @property
    def option(self) -> str:
        """As on the command line, such as "--target-size"."""
        return f"--{option_name(self.name)}"

    @property
    def figure(self) -> str:
        """The name of what is limited."""
        return _KINDS[self.name].figure

    @property
    def unit(self) -> str:
        """What the figure is counted in, such as "bytes"."""
        return _KINDS[self.name].unit

    @property
    def is_floor(self) -> bool:
        """Whether the figure has to be large."""
        return _KINDS[self.name].is_floor

    @property
    def is_goal(self) -> bool:
        """Whether it is about accuracy, and no budget."""
        return self.figure in (*MEASURES, "l1_delta_pct")

    def is_met(self, figures: Figures) -> bool | None:
        """Whether the figure is good enough, which NaN never is; None where it is unknown."""
        value = figures.get(self.figure)
        if value is None:
            return None
        return bool(value >= self.bound if self.is_floor else value <= self.bound)

    def excess(self, figures: Figures) -> float:
        """How far a known figure is beyond the bound, as a share of it: above 0 is too far, NaN infinitely."""
        value = figures[self.figure]
        if math.isnan(value):
            return math.inf
        if self.bound > 0 and not self.is_floor:
            return float(value / self.bound - 1.0)
        beyond = self.bound - value if self.is_floor else value - self.bound
        return float(beyond / abs(self.bound) if self.bound else beyond)

    def count(self, value: float) -> str:
        """A value of the figure in its unit, such as "3e+05 bytes"."""
        return f"{value:,.4g} {self.unit}"

    def show(self, value: float) -> str:
        """A value of the figure for people, such as "300 kB"."""
        return _KINDS[self.name].show(value)

    def __str__(self) -> str:
        return f"{self.option} {self.given}"


def read_limits(
    budget: BudgetConfig,
    goal: GoalConfig | None = None,
    *,
    whole: Figures,
    otherwise: Mapping[str, float] | None = None,
) -> tuple[Limit, ...]:
    """What the options ask for, goals first, budgets from the quickest to measure to the slowest.

    Args:
        goal: None leaves goals out.
        whole: "params" and "macs" of best.pt. A share of what is unknown or 0 is left out.
        otherwise: bounds by the name of an option, for budgets that were not given.
    """
    limits = []
    for name, value in {**(vars(goal) if goal else {}), **vars(budget)}.items():
        best = whole.get(_KINDS[name].figure) if name in _SHARES else None
        if value is None:
            if otherwise and name in otherwise:
                limits.append(Limit(name, otherwise[name], whole=best))
        elif name in _SHARES:
            if best:
                limits.append(Limit(name, value * best, f"{value:g}", best))
        elif name == "target_size":
            limits.append(Limit(name, parse_size(value), value))
        else:
            limits.append(Limit(name, value, f"{value:g}{'%' if name == 'max_l1_increase' else ''}"))
    return tuple(limits)


def read_goals(goal: GoalConfig) -> tuple[Limit, ...]:
    """What the goals alone ask for."""
    return read_limits(BudgetConfig(), goal, whole={})


def goals_or_whole(goal: GoalConfig, measure: Measure) -> tuple[Limit, ...]:
    """What the goals ask for; where nobody gave any, that the measure that decides is whole."""
    return read_goals(goal) or (Limit(f"min_{measure.name}", measure.whole),)


def find_excess(limits: Sequence[Limit], figures: Figures) -> dict[str, float]:
    """How far each known figure is beyond its limit, by its name."""
    known = [limit for limit in limits if figures.get(limit.figure) is not None]
    return {limit.figure: limit.excess(figures) for limit in known}


def fits(limits: Sequence[Limit], figures: Figures) -> bool:
    """Whether no known figure is beyond its limit."""
    return all(share <= 0 for share in find_excess(limits, figures).values())
