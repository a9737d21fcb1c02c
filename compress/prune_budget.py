"""The least pruning that meets every budget, by bisection over plans whose networks are built and measured."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping

from colorpress.core.errors import ConfigError
from compress.budgets import Limit
from compress.prune_plan import PrunePlan
from training.network import ColorNetwork

# Budgets, each with what measures its figure of a pruned network; the quick ones first.
MeasuredLimits = Mapping[Limit, Callable[[ColorNetwork], float]]

# The ratio is found to a thousandth.
_FINEST = 1000
_LARGEST = 0.99


def plan_within_limits(
    plan_at: Callable[[float], PrunePlan], apply: Callable[[PrunePlan], ColorNetwork], limits: MeasuredLimits
) -> tuple[PrunePlan, float]:
    """The plan of the smallest prune ratio whose network meets all limits, and that ratio; 0 where all are met already.

    Args:
        plan_at: the plan of a ratio; larger ones have to remove at least as much.
        apply: the network of a plan.
        limits: measured in this order until one is missed.
    Raises:
        ConfigError: the largest ratio misses one.
    """
    answers: dict[tuple[int, ...], str] = {}

    def miss(plan: PrunePlan) -> str:
        widths = tuple(plan.result.values())
        if widths not in answers:
            answers[widths] = next(iter(misses(limits, apply(plan))), "")
        return answers[widths]

    if why := miss(plan_at(_LARGEST)):
        hint = "allow more, or let more go: a smaller --round-to, a larger --largest-share"
        raise ConfigError("budget", None, f"not even the smallest network meets it: {why}", hint)
    thousandths = range(round(_LARGEST * _FINEST))
    ratio = bisect_left(thousandths, True, key=lambda each: not miss(plan_at(each / _FINEST))) / _FINEST
    return plan_at(ratio), ratio


def misses(limits: MeasuredLimits, network: ColorNetwork) -> Iterator[str]:
    """How a network misses each limit that it misses, in words; measured when it is asked for."""
    for limit, measure in limits.items():
        value = measure(network)
        if not limit.is_met({limit.figure: value}):
            yield f"{limit.count(value)}, {limit.option} allows {limit.bound:,.4g}"
