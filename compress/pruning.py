"""Structured pruning: layers lose output channels, and with them all that depends on these.

Groups of channels that go together -> their importance -> how many each keeps -> a plan -> a smaller network.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from colorpress.core.config import GRADIENTS, PruneConfig
from colorpress.core.console import warn
from colorpress.core.errors import ConfigError, GateError, InputError
from compress.batch_norm import recalibrate_batch_norm_
from compress.budgets import Limit
from compress.channel_counts import Counts, keep_of_all_layers, keep_of_each_layer, trade_for_latency
from compress.dependency_graph import (
    ChannelGroup,
    copy_network,
    find_groups,
    layer_widths,
    remove_channels,
    silence_channels,
    widths_without,
)
from compress.importance import WEIGHTS_ALONE, ChannelScores, Evidence, score_groups
from compress.prune_plan import PrunedGroup, PrunePlan, compose_plans
from compress.ranking import LayerSize, count_macs, largest_layers, rank_layers
from export.autocast import without_autocast
from training.network import ColorNetwork
from training.unet import UNet, count_parameters, hash_weights
from training.user_code import describe_failure

# Fine-tunes the network of a step, numbered from 1, between two steps of pruning.
Tuning = Callable[[ColorNetwork, int], ColorNetwork]
# Budgets, each with what measures its figure of a pruned network; the quick ones first.
MeasuredLimits = Mapping[Limit, Callable[[ColorNetwork], float]]

# Sums in another order: of the largest answer, and of its standard deviation.
_ROUNDING, _SPREAD_ROUNDING = 1e-6, 1e-4
# With budgets the ratio is found to a thousandth.
_FINEST = 1000
_LARGEST_RATIO = 0.99
_LEFT_WHOLE = "left whole: "


@dataclass(frozen=True)
class PruneResult:
    """A pruned network, and what was removed.

    Attributes:
        network: the pruned network, in eval mode.
        before, after: "channels", the output channels of all layers that can lose some; "params"; and "macs",
            multiply-accumulates for one picture of `height` x `width` pixels.
    """

    plan: PrunePlan
    network: ColorNetwork
    before: Mapping[str, int]
    after: Mapping[str, int]
    height: int
    width: int

    def removed_pct(self, kind: str) -> float:
        """Share of the "channels", "params" or "macs" that went, in percent."""
        return 100 * (1 - self.after[kind] / self.before[kind])

    def figures(self) -> dict[str, int | float]:
        """All figures, JSON-ready."""
        sizes = {"before": self.before, "after": self.after}
        counts = {f"{kind}_{when}": sizes[when][kind] for kind in self.before for when in sizes}
        return {**counts, **{f"{kind}_removed_pct": self.removed_pct(kind) for kind in self.before}}

    def summary(self) -> str:
        """One paragraph: channels, parameters and multiply-accumulates removed."""
        pruned = sum(1 + len(group.coupled) for group in self.plan.groups if group.removed)
        before, after = self.before, self.after
        return (
            f"pruned {pruned} of {len(layer_widths(self.network))} layers: "
            f"{before['channels']:,} -> {after['channels']:,} channels (-{self.removed_pct('channels'):.1f} %), "
            f"{before['params']:,} -> {after['params']:,} parameters (-{self.removed_pct('params'):.1f} %), "
            f"{before['macs'] / 1e9:,.3f} -> {after['macs'] / 1e9:,.3f} G multiply-accumulates at "
            f"{self.height} x {self.width} (-{self.removed_pct('macs'):.1f} %)"
        )


def prune_network(network: ColorNetwork, config: PruneConfig, evidence: Evidence = WEIGHTS_ALONE) -> PruneResult:
    """Plan and apply; `network` stays as it is."""
    plan = plan_pruning(network, config, evidence)
    return measure_pruning(network, apply_pruning(network, plan), plan, height=evidence.height, width=evidence.width)


def prune_in_steps(
    network: ColorNetwork,
    target: PrunePlan,
    config: PruneConfig,
    evidence: Evidence = WEIGHTS_ALONE,
    *,
    tune: Tuning | None = None,
) -> tuple[PrunePlan, ColorNetwork]:
    """Prune to the channel counts of `target` in `config.prune_steps` steps, each by the importance there is then.

    Budgets are kept, since only which channels go is decided anew after each fine-tuning, and not how many. Each step
    takes the same share of what goes in all.

    Returns:
        One plan for `network` that does what all steps did, and the network after the last one, which is not tuned.
    """
    if config.prune_steps == 1:
        return target, apply_pruning(network, target)
    final = {group.root: group.channels_after for group in target.groups if group.removed}
    before = {root: target.source[root] for root in final}
    plan, current = target, network
    for step in range(1, config.prune_steps + 1):
        done = step / config.prune_steps
        keep = {root: before[root] - int(done * (before[root] - count)) for root, count in final.items()}
        next_plan = _Prospect.of(current, config, evidence, tuple(final)).plan(keep)
        current = apply_pruning(current, next_plan)
        plan = next_plan if step == 1 else compose_plans(plan, next_plan)
        if tune is not None and step < config.prune_steps:
            current = tune(current, step)
    whole = tuple(group for group in target.groups if not group.removed)
    return replace(plan, groups=(*plan.groups, *whole), settings=target.settings), current


def measure_pruning(
    network: ColorNetwork, pruned: ColorNetwork, plan: PrunePlan, *, height: int = 256, width: int = 256
) -> PruneResult:
    """The figures of `pruned` against `network`, at a size in pixels."""
    before, after = (
        {
            "channels": sum(layer_widths(each).values()),
            "params": count_parameters(each),
            "macs": count_macs(each, height=height, width=width),
        }
        for each in (network, pruned)
    )
    return PruneResult(plan, pruned, before, after, height, width)


def plan_pruning(
    network: ColorNetwork,
    config: PruneConfig,
    evidence: Evidence = WEIGHTS_ALONE,
    *,
    limits: MeasuredLimits | None = None,
) -> PrunePlan:
    """Decide which output channels of which convolutions go; `network` stays as it is.

    Strategy "largest": of the layers that can lose channels the largest, which together hold `config.largest_share` of
    their parameters, lose the share `config.prune_ratio`, each of its own or all together (`config.scope`). Strategy
    "latency": any layer loses channels until that share of the measured time of all convolutions is gone, always where
    the answer moves least per millisecond. Those of least `config.importance` go, counted over everything that goes
    with the channel.

    Where the answer may be coarser, by `config.prune_output_stride`, the finest levels of the decoder go first, whole.
    The channels of the network's answer always stay. A layer that cannot lose channels is left whole, with the reason
    in the plan: one that is read by what cannot be followed, or by code that counts on its number of channels.

    Args:
        limits: budgets; where there are any, the smallest prune ratio that meets them all replaces the config's, and
            the plan's settings say which.
    Raises:
        ConfigError: no prune ratio meets the limits; the measure of importance needs photographs; or it, or the
            strategy, asks an answer whose last layer has not learned yet.
        InputError: the network's channels cannot be followed, or no layer of it can lose any; or it cannot answer at
            that stride.
    """
    by_answer = config.importance in GRADIENTS or config.prune_strategy == "latency"
    if by_answer and config.prune_output_stride > network.output_stride:
        why = f"does not go with --importance {', '.join(GRADIENTS)} or --prune-strategy latency, which ask the answer"
        hint = "choose channels by another importance: the last layer has not learned yet"
        raise ConfigError("option", "--prune-output-stride", why, hint)
    prospect = _Prospect.of(network, config, evidence)
    groups, scores = prospect.free, prospect.scores
    if config.prune_strategy == "latency":
        worth = _measure_worth(prospect)
        keep_at = trade_for_latency(prospect.network, groups, scores, worth, evidence, round_to=config.round_to).keep
    elif config.scope == "global":
        keep_at = partial(keep_of_all_layers, groups, scores, round_to=config.round_to)
    else:
        keep_at = partial(keep_of_each_layer, groups, round_to=config.round_to)

    def plan_at(ratio: float) -> PrunePlan:
        return prospect.plan(keep_at(ratio))

    if not limits:
        plan = plan_at(config.prune_ratio)
        _refuse_where_all_is_whole(network, plan)
        return plan
    _refuse_where_all_is_whole(network, plan_at(_LARGEST_RATIO))
    plan, ratio = _plan_within_limits(plan_at, lambda plan: apply_pruning(network, plan), limits)
    found = {"prune_ratio": ratio, "budgets": {limit.option: f"{limit.bound:g} {limit.unit}" for limit in limits}}
    return replace(plan, settings={**plan.settings, **found})


def _refuse_where_all_is_whole(network: ColorNetwork, plan: PrunePlan) -> None:
    whole = [group for group in plan.groups if _LEFT_WHOLE in group.reason]
    if len(whole) == len(plan.groups):
        why = "none of its layers makes channels that another layer reads, as far as they can be followed"
        if whole:
            reason = whole[0].reason.partition(_LEFT_WHOLE)[2]
            why = f"none of its {len(whole)} groups of layers can lose channels; {whole[0].root!r}: {reason}"
        raise InputError("network", network.title, why, "export and quantize it unpruned")


def _plan_within_limits(
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

    if why := miss(plan_at(_LARGEST_RATIO)):
        hint = "allow more, or let more go: a smaller --round-to, a larger --largest-share"
        raise ConfigError("budget", None, f"not even the smallest network meets it: {why}", hint)
    thousandths = range(round(_LARGEST_RATIO * _FINEST))
    ratio = bisect_left(thousandths, True, key=lambda each: not miss(plan_at(each / _FINEST))) / _FINEST
    return plan_at(ratio), ratio


def misses(limits: MeasuredLimits, network: ColorNetwork) -> Iterator[str]:
    """How a network misses each limit that it misses, in words; measured when it is asked for."""
    for limit, measure in limits.items():
        value = measure(network)
        if not limit.is_met({limit.figure: value}):
            yield f"{limit.count(value)}, {limit.option} allows {limit.bound:,.4g}"


def apply_pruning(network: ColorNetwork, plan: PrunePlan) -> ColorNetwork:
    """A new network without the channels that `plan` removes, in eval mode; `network` stays as it is.

    Raises:
        InputError: the plan is for a network of other channel counts; they are listed. Or the network cannot answer at
            the plan's stride.
        GateError: the pruned network does not answer as `network` does where nothing reads these channels.
    """
    network = answer_coarsely(network, plan.output_stride)
    if wrong := _compare_widths(plan.source, layer_widths(network)):
        hint = "give the checkpoint that the plan was made from, or make a new plan"
        raise InputError("prune plan", None, f"is for another network ({wrong})", hint)
    if plan.weights_sha256 and plan.weights_sha256 != hash_weights(network):
        warn("the prune plan chose its channels by other weights than these; the channel counts fit, so it is applied")
    removed = {group.root: group.removed for group in plan.groups if group.removed}
    if wrong := _compare_widths(plan.result, widths_without(network, removed)):
        why = f"would have other channels than planned ({wrong})"
        raise GateError("pruned network", None, why, "delete that group from the plan, or make a new plan")
    try:
        pruned = network.with_weights(remove_channels(network, removed))
    except (RuntimeError, InputError) as error:
        why = f"cannot be made again from its weights ({' '.join(str(error).split())[:200]})"
        raise GateError("pruned network", None, why, "prune fewer layers: edit the plan") from error
    _check_answers(pruned, network.with_weights(silence_channels(network, removed)))
    return pruned


def answer_coarsely(network: ColorNetwork, stride: int) -> ColorNetwork:
    """The network, or where its answers are finer than 1 / stride of the size, one that answers there.

    Raises:
        InputError: it cannot.
    """
    if stride <= network.output_stride:
        return network
    if not isinstance(network, UNet):
        why = f"is no UNet of colorpress, so it cannot be made to answer at 1/{stride} of the size"
        raise InputError("network", network.title, why, "leave out --prune-output-stride, or take another plan")
    return network.with_output_stride(stride)


def _compare_widths(planned: Mapping[str, int], found: Mapping[str, int]) -> str:
    """Which channel counts differ, in words; empty where none does."""
    wrong = [
        f"{name}: plan {planned.get(name, 'none')}, network {found.get(name, 'none')}"
        for name in {**planned, **found}
        if planned.get(name) != found.get(name)
    ]
    return "; ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")


@dataclass(frozen=True)
class _Prospect:
    """All groups that may be pruned and how important their channels are: enough for plans of any channel counts.

    `network` is without the levels that go.
    """

    network: ColorNetwork
    config: PruneConfig
    evidence: Evidence
    groups: tuple[ChannelGroup, ...]
    layers: Mapping[str, LayerSize]
    scores: Mapping[str, ChannelScores]

    @staticmethod
    def of(
        network: ColorNetwork, config: PruneConfig, evidence: Evidence, roots: Sequence[str] | None = None
    ) -> _Prospect:
        """Of the layers `roots`; None: of those that the config chooses by their size, and of all that stay whole."""
        network = answer_coarsely(network, config.prune_output_stride)
        layers, widths = rank_layers(network), layer_widths(network)
        # Batch norm goes with its convolution; the layers that make the answer stay.
        prunable = [layer for layer in layers if layer.name in widths]
        groups = find_groups(network, [layer.name for layer in prunable] if roots is None else roots)
        if roots is None:
            whole = {name for group in groups if group.obstacle for name in (group.root, *group.coupled)}
            share = config.largest_share if config.prune_strategy == "largest" else 1.0
            able = [layer for layer in prunable if layer.name not in whole]
            chosen = {layer.name for layer in largest_layers(able, share)}
            groups = tuple(g for g in groups if g.obstacle or not chosen.isdisjoint((g.root, *g.coupled)))
        free = [group for group in groups if not group.obstacle]
        scores = score_groups(network, free, config.importance, evidence)
        return _Prospect(network, config, evidence, groups, {layer.name: layer for layer in layers}, scores)

    @property
    def free(self) -> list[ChannelGroup]:
        """The groups that may lose channels."""
        return [group for group in self.groups if not group.obstacle]

    def plan(self, keep: Counts) -> PrunePlan:
        """The plan that leaves so many channels of each group, by its root; a group that is not named stays whole."""
        plan = PrunePlan(
            source=layer_widths(self.network),
            groups=tuple(self._plan_group(group, keep.get(group.root, group.channels)) for group in self.groups),
            settings={**asdict(self.config), "seed": self.evidence.seed},
            weights_sha256=hash_weights(self.network),
            output_stride=self.config.prune_output_stride,
        )
        return _leave_whole_what_breaks(self.network, plan)

    def _plan_group(self, group: ChannelGroup, keep: int) -> PrunedGroup:
        layer = self.layers[group.root]
        removed: tuple[int, ...] = ()
        each_its_own = self.config.prune_strategy == "largest" and self.config.scope == "layer"
        why = f"a multiple of {self.config.round_to} is kept" if each_its_own else "those of others are given up first"
        what = f"all {group.channels} channels stay, as {why}"
        if group.obstacle:
            what = f"{_LEFT_WHOLE}{group.obstacle}"
        elif removed := _choose_channels(group, self.scores[group.root], group.channels - keep):
            measure = self.scores[group.root].measure
            what = f"the {len(removed)} of {group.channels} channels of least {measure} go"
        return PrunedGroup(
            root=group.root,
            layers=tuple(member.describe() for member in group.members),
            channels_before=group.channels,
            removed=removed,
            reason=f"rank {layer.rank} with {layer.share_pct:.2f} % of the parameters; {what}",
            coupled=group.coupled if removed else (),
        )


def _measure_worth(prospect: _Prospect) -> dict[str, float]:
    """How far a unit of each group's normalized importance moves the answer, by the root of the group; 1 if unknown.

    Measured without the less important half of the group's channels, as mean |change of ab / 128| over the pictures,
    the batch norm statistics taken anew from them: importance alone says nothing of one layer against another, and
    the deepest layers have the most channels but may matter least.
    """
    network, worth = prospect.network, {group.root: 1.0 for group in prospect.free}
    # Of a smaller picture the deepest batch norm sees a single value.
    pictures = prospect.evidence.pictures
    seen = [lightness for lightness, _ in pictures if max(lightness.shape[-2:]) > network.size_multiple]
    if not seen:
        return worth
    # With such statistics too, or their own change would count.
    whole = copy_network(network)
    recalibrate_batch_norm_(whole, seen)
    with torch.no_grad():
        answers = [whole(lightness) for lightness in seen]
        for group in prospect.free:
            half = group.channels // 2
            plan = prospect.plan({group.root: group.channels - half})
            lost = float(prospect.scores[group.root].normalized.sort().values[:half].sum())
            if lost > 0 and any(each.removed for each in plan.groups):
                smaller = apply_pruning(network, plan)
                recalibrate_batch_norm_(smaller, seen)
                pairs = zip(seen, answers, strict=True)
                moved = [float((smaller(lightness) - answer).abs().mean()) for lightness, answer in pairs]
                worth[group.root] = sum(moved) / len(moved) / lost
    return worth


def _choose_channels(group: ChannelGroup, scores: ChannelScores, count: int) -> tuple[int, ...]:
    """The `count` least important channels, ascending; fewer where only several go at a time."""
    chosen = sorted(group.units, key=lambda unit: float(scores.values[list(unit)].mean()))[: count // group.step]
    return tuple(sorted(channel for unit in chosen for channel in unit))


def _leave_whole_what_breaks(network: ColorNetwork, plan: PrunePlan) -> PrunePlan:
    """The plan without the groups that make the network fail or answer otherwise, each with its reason.

    Code of other authors may count on channel numbers that are seen nowhere, such as in a `chunk` or `view`.
    """
    if isinstance(network, UNet) or not _why_broken(network, plan):
        return plan
    groups = []
    for group in plan.groups:
        alone = replace(plan, groups=(group,))
        if group.removed and (why := _why_broken(network, alone)):
            rank = group.reason.partition(";")[0]
            group = replace(group, removed=(), coupled=(), reason=f"{rank}; {_LEFT_WHOLE}without channels it {why}")
        groups.append(group)
    found = replace(plan, groups=tuple(groups))
    if why := _why_broken(network, found):
        raise InputError("network", network.title, f"pruned, it {why}", "prune a smaller --largest-share")
    return found


def _why_broken(network: ColorNetwork, plan: PrunePlan) -> str:
    try:
        apply_pruning(network, plan)
    except GateError as error:
        return error.why
    except Exception as error:  # code of other authors fails in any way
        return f"fails: {describe_failure(error)}"
    return ""


@without_autocast()
def _check_answers(pruned: ColorNetwork, silenced: ColorNetwork) -> None:
    """Compare with the network in which nothing reads the removed channels: a proof that all went that belongs to them.

    At sizes that need no padding, padding on one side, and padding nearly everywhere.
    """
    side = pruned.size_multiple
    weight = next(pruned.parameters())
    generator = torch.Generator().manual_seed(0)
    for height, width in ((side, side), (side + 1, side - 1 or 1), (1, 1), (3 * side, 5 * side)):
        size = f"{height} x {width} pixels"
        picture = torch.rand(1, 1, height, width, generator=generator).to(weight)
        with torch.no_grad():
            answer = pruned(picture)
            if answer.shape != (1, 2, height, width) or not bool(torch.isfinite(answer).all()):
                why = f"answers {tuple(answer.shape)} to {size}, or not finitely"
                raise GateError("pruned network", None, why, "check the checkpoint; prune less")
            if height == width == 1:  # padded to one value: a norm over places would enlarge the rounding of it
                continue
            with _NormsOfEachValue():  # type: ignore[no-untyped-call]
                difference = (pruned(picture) - (expected := silenced(picture))).abs().max()
        allowed = _ROUNDING * float(expected.abs().max()) + _SPREAD_ROUNDING * float(expected.std(correction=0))
        if not float(difference) <= allowed:
            why = f"answers {size} otherwise than the original without these channels, by {float(difference):.2g}"
            raise GateError("pruned network", None, why, "delete that group from the plan, or make a new plan")


class _NormsOfEachValue(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Layer and group norms with something else in their place that computes each value alone.

    What they compute of all channels changes with the number of these, as pruning means it to. Everything around them
    has to stay as it was, and this shows whether it does.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func.overloadpacket)
        if name not in ("aten.native_layer_norm", "aten.native_group_norm"):
            return func(*args, **(kwargs or {}))
        source, (weight, bias) = args[0], args[2:4] if name == "aten.native_layer_norm" else args[1:3]
        answer = source / (1 + source.abs())
        shape = [1, -1, *[1] * (source.ndim - 2)] if name == "aten.native_group_norm" else None
        if weight is not None:
            answer = answer * (weight.reshape(shape) if shape else weight)
        if bias is not None:
            answer = answer + (bias.reshape(shape) if shape else bias)
        return answer, source.new_zeros(0), source.new_zeros(0)
