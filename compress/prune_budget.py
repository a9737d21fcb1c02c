"""The least pruning that meets every budget, by bisection over plans whose networks are built and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from colorpress.core.errors import ConfigError
from compress.prune_plan import PrunePlan
from training.network import ColorNetwork

# The ratio is found to a thousandth.
_FINEST = 1000
_LARGEST = 0.99


@dataclass(frozen=True)
class Limit:
    """A budget: `measure` of the pruned network may be `most` at most.

    Attributes:
        option: as on the command line, for the reader. `unit`: of both, such as "parameters".
    """

    option: str
    most: float
    unit: str
    measure: Callable[[ColorNetwork], float]


def plan_within_limits(
    plan_at: Callable[[float], PrunePlan], apply: Callable[[PrunePlan], ColorNetwork], limits: Sequence[Limit]
) -> tuple[PrunePlan, float]:
    """The plan of the smallest prune ratio whose network meets all limits, and that ratio; 0 where all are met already.

    Args:
        plan_at: the plan of a ratio; larger ones have to remove at least as much.
        apply: the network of a plan.
        limits: measured in this order until one is missed, so the quick ones first.
    Raises:
        ConfigError: the largest ratio misses one.
    """
    answers: dict[tuple[int, ...], str] = {}

    def miss(plan: PrunePlan) -> str:
        widths = tuple(plan.result.values())
        if widths not in answers:
            network = apply(plan)
            answers[widths] = next(filter(None, (why_missed(limit, network) for limit in limits)), "")
        return answers[widths]

    low, high = 0, round(_LARGEST * _FINEST)
    if why := miss(plan_at(_LARGEST)):
        hint = "allow more, or let more go: a smaller --round-to, a larger --largest-share"
        raise ConfigError("budget", None, f"not even the smallest network meets it: {why}", hint)
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if miss(plan_at(middle / _FINEST)) else (low, middle)
    return plan_at(low / _FINEST), low / _FINEST


def why_missed(limit: Limit, network: ColorNetwork) -> str:
    """How a network misses a limit, in words; empty where it meets it."""
    value = limit.measure(network)
    return f"{value:,.4g} {limit.unit}, {limit.option} allows {limit.most:,.4g}" if value > limit.most else ""
