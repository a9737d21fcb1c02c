"""Structured pruning by the user's recipe: the layers that hold most parameters lose output channels.

The only importer of torch_pruning, which finds what depends on a channel: batch norm, the layers behind it, and
behind skip connections. It changes modules in place, so it only ever sees a copy; and it is given every argument,
since its mutable defaults leak from one call to the next.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from colorpress.config import PruneConfig
from colorpress.console import warn
from colorpress.errors import GateError, InputError
from compress.prune_plan import PrunedGroup, PrunePlan, read_plan, write_plan
from compress.ranking import count_macs, largest_layers, rank_layers
from training.network import ColorNetwork
from training.unet import UNet, count_parameters, hash_weights

__all__ = [
    "PrunePlan",
    "PruneResult",
    "PrunedGroup",
    "apply_pruning",
    "layer_widths",
    "plan_pruning",
    "prune_network",
    "read_plan",
    "write_plan",
]


@dataclass(frozen=True)
class PruneResult:
    """A pruned network, and what was removed.

    Attributes:
        plan: what was done.
        network: the pruned network, in eval mode.
        channels_before, channels_after: output channels of all convolutions but the output layer.
        params_before, params_after: parameters.
        macs_before, macs_after: multiply-accumulates for one picture of `height` x `width` pixels.
    """

    plan: PrunePlan
    network: ColorNetwork
    channels_before: int
    channels_after: int
    params_before: int
    params_after: int
    macs_before: int
    macs_after: int
    height: int
    width: int

    @property
    def channels_removed_pct(self) -> float:
        """Share of the channels that went, in percent."""
        return 100 * (1 - self.channels_after / self.channels_before)

    @property
    def params_removed_pct(self) -> float:
        """Share of the parameters that went, in percent."""
        return 100 * (1 - self.params_after / self.params_before)

    @property
    def macs_removed_pct(self) -> float:
        """Share of the multiply-accumulates that went, in percent."""
        return 100 * (1 - self.macs_after / self.macs_before)

    def figures(self) -> dict[str, int | float]:
        """All figures, JSON-ready."""
        kinds = ("channels", "params", "macs")
        counts = {f"{kind}_{when}": getattr(self, f"{kind}_{when}") for kind in kinds for when in ("before", "after")}
        return {**counts, **{f"{kind}_removed_pct": getattr(self, f"{kind}_removed_pct") for kind in kinds}}

    def summary(self) -> str:
        """One paragraph: channels, parameters and multiply-accumulates removed."""
        pruned = sum(1 + len(group.coupled) for group in self.plan.groups if group.removed)
        return (
            f"pruned {pruned} of {len(layer_widths(self.network))} convolutions: "
            f"{self.channels_before:,} -> {self.channels_after:,} channels (-{self.channels_removed_pct:.1f} %), "
            f"{self.params_before:,} -> {self.params_after:,} parameters (-{self.params_removed_pct:.1f} %), "
            f"{self.macs_before / 1e9:,.3f} -> {self.macs_after / 1e9:,.3f} G multiply-accumulates at "
            f"{self.height} x {self.width} (-{self.macs_removed_pct:.1f} %)"
        )


def prune_network(
    network: ColorNetwork, config: PruneConfig, *, seed: int = 0, height: int = 256, width: int = 256
) -> PruneResult:
    """Plan and apply; `network` stays as it is. A plan that removes nothing is warned about.

    Args:
        seed: for `importance` "random" alone.
        height, width: the size that multiply-accumulates are counted at, in pixels.
    """
    plan = plan_pruning(network, config, seed=seed)
    if not any(group.removed for group in plan.groups):
        warn(
            f"nothing was pruned: --prune-ratio {config.prune_ratio} of the chosen layers, "
            f"kept to multiples of --round-to {config.round_to}, leaves every channel"
        )
    return measure_pruning(network, apply_pruning(network, plan), plan, height=height, width=width)


def measure_pruning(
    network: ColorNetwork, pruned: ColorNetwork, plan: PrunePlan, *, height: int = 256, width: int = 256
) -> PruneResult:
    """The figures of `pruned` against `network`, at a size in pixels."""
    return PruneResult(
        plan=plan,
        network=pruned,
        channels_before=sum(layer_widths(network).values()),
        channels_after=sum(layer_widths(pruned).values()),
        params_before=count_parameters(network),
        params_after=count_parameters(pruned),
        macs_before=count_macs(network, height=height, width=width),
        macs_after=count_macs(pruned, height=height, width=width),
        height=height,
        width=width,
    )


def plan_pruning(network: ColorNetwork, config: PruneConfig, *, seed: int = 0) -> PrunePlan:
    """Decide which output channels of which convolutions go; `network` stays as it is.

    The largest layers that together hold `config.largest_share` of the parameters each lose `config.prune_ratio` of
    their output channels: those of least importance, counted over the channel's whole dependency group.
    - magnitude: the L2 norm of all weights that make, scale and read the channel.
    - bn-scale: the size of its batch norm weight; magnitude for the layers without batch norm.
    - random: chosen by `seed`; the control that the others have to beat.
    The network's one input and two output channels always stay. A layer that cannot lose channels on its own is left
    whole, with the reason in the plan: one whose answer is added to the network's, or that its author's code reads
    by channel number.

    Raises:
        InputError: torch-pruning cannot follow the network, or no convolution gives its two output channels.
    """
    copy = _copy_network(network)
    widths = layer_widths(network)
    generator = torch.Generator().manual_seed(seed)
    groups: list[PrunedGroup] = []
    taken: dict[str, str] = {}
    with torch.inference_mode(False), torch.enable_grad():
        graph = _trace_dependencies(copy)
        for layer in largest_layers(rank_layers(network), config.largest_share):
            if layer.name not in widths:
                continue  # batch norm goes with its convolution; the output layer stays
            before = widths[layer.name]
            rank = f"rank {layer.rank} with {layer.share_pct:.2f} % of the parameters"
            if layer.name in taken:
                continue  # it loses what the layer it is added to loses
            group = _dependency_group(graph, copy.get_submodule(layer.name), range(before))
            coupled, obstacle = _find_coupled(group, copy, layer.name, widths)
            if not obstacle and (others := [name for name in coupled if name in taken]):
                obstacle = f"its channels are added to those of {others[0]}, which go with {taken[others[0]]}"
            count = before - _channels_to_keep(before, config.prune_ratio, config.round_to)
            order, measure = _order_channels(group, config.importance, before, generator)
            removed = [] if obstacle else _choose_channels(order, count, group, before)
            if obstacle:
                what = f"left whole: {obstacle}"
            elif removed:
                what = f"the {len(removed)} of {before} channels of least {measure} go"
            else:
                what = f"all {before} channels stay, as a multiple of {config.round_to} is kept"
            taken |= dict.fromkeys((layer.name, *coupled), layer.name) if removed else {}
            groups.append(
                PrunedGroup(
                    root=layer.name,
                    layers=_describe_group(group, copy),
                    channels_before=before,
                    removed=tuple(sorted(removed)),
                    reason=f"{rank}; {what}",
                    coupled=coupled if removed else (),
                )
            )
    return _leave_whole_what_breaks(
        network,
        PrunePlan(
            source=widths,
            groups=tuple(groups),
            settings={**asdict(config), "seed": seed},
            weights_sha256=hash_weights(network),
        ),
    )


def apply_pruning(network: ColorNetwork, plan: PrunePlan) -> ColorNetwork:
    """A new network without the channels that `plan` removes, in eval mode; `network` stays as it is.

    Raises:
        InputError: the plan is for a network of other channel counts; they are listed.
        GateError: the pruned network does not answer as it must.
    """
    _check_source(network, plan)
    pruned = _remove_channels(network, plan.groups)
    if (found := layer_widths(pruned)) != plan.result:
        wrong = [f"{name}: {found.get(name)}" for name, width in plan.result.items() if found.get(name) != width]
        why = f"has other channels than planned ({'; '.join(wrong[:5])})"
        raise GateError("pruned network", None, why, "delete that group from the plan, or make a new plan")
    return pruned


def layer_widths(network: ColorNetwork) -> dict[str, int]:
    """Output channels of every convolution that may lose some: all but the output layer, which gives ab."""
    output = _output_layer(network)
    return {
        name: module.out_channels
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module is not output
    }


def _output_layer(network: ColorNetwork) -> nn.Module:
    """The convolution that gives the two channels of ab: the last one of those with two that is executed."""
    if isinstance(network, UNet):
        return network.head
    last: list[nn.Module] = []
    convolutions = [
        module
        for module in network.modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.out_channels == 2
    ]
    handles = [module.register_forward_hook(lambda each, *_: last.append(each)) for module in convolutions]
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval().forward_coarse(_example_input(network))
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    if not last:
        why = "no convolution of it gives the two channels of ab"
        raise InputError("network", network.title, why, "this network cannot be pruned; export it as it is")
    return last[-1]


def _example_input(network: ColorNetwork) -> Tensor:
    # Not the smallest possible: at one by one a flattened picture would look like its channels.
    side = max(2 * network.size_multiple, 32)
    return next(network.parameters()).new_zeros(1, 1, side, side)


def _remove_channels(network: ColorNetwork, groups: Sequence[PrunedGroup]) -> ColorNetwork:
    copy = _copy_network(network)
    with torch.inference_mode(False), torch.enable_grad():
        graph = _trace_dependencies(copy)
        for group in groups:
            if group.removed:
                _dependency_group(graph, copy.get_submodule(group.root), group.removed).prune(record_history=False)
    # A new module, so that nothing torch_pruning left behind stays with the network.
    try:
        pruned = network.with_weights(copy.state_dict())
    except (RuntimeError, InputError) as error:
        why = f"cannot be made again from its weights ({' '.join(str(error).split())[:200]})"
        raise GateError("pruned network", None, why, "prune fewer layers: edit the plan") from error
    _check_forward(pruned)
    return pruned


def _leave_whole_what_breaks(network: ColorNetwork, plan: PrunePlan) -> PrunePlan:
    """The plan without the groups that make the network fail, each with its reason.

    Code of other authors may count on channel numbers that no dependency graph sees, such as in a `chunk` or `view`.
    """
    if isinstance(network, UNet) or not _why_broken(network, plan):
        return plan
    groups = []
    for group in plan.groups:
        alone = replace(plan, groups=(group,))
        if group.removed and (why := _why_broken(network, alone)):
            rank = group.reason.partition(";")[0]
            group = replace(group, removed=(), coupled=(), reason=f"{rank}; left whole: without channels it {why}")
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
    except Exception as error:  # torch_pruning and code of other authors fail in any way
        return f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    return ""


def _find_coupled(
    group: tp.dependency.Group, network: ColorNetwork, root: str, widths: Mapping[str, int]
) -> tuple[tuple[str, ...], str]:
    """The other convolutions whose output channels go with those of `root`, one for one; and why none may go."""
    names = {module: name for name, module in network.named_modules()}
    coupled: dict[str, None] = {}
    for dependency, channels in group:
        module, name = dependency.target.module, names.get(dependency.target.module, "")
        if isinstance(module, nn.Parameter) or (not name and any(True for _ in module.parameters(recurse=False))):
            return (), "its channels reach a parameter of its own, outside of any layer"
        if isinstance(module, nn.GroupNorm) and len(channels) != widths[root]:
            return (), f"{name} normalizes groups that span several layers"
        if not isinstance(module, nn.Conv2d | nn.ConvTranspose2d) or name == root:
            continue
        if dependency.handler.__name__ != "prune_in_channels" or _is_depthwise(module):
            if name not in widths:
                return (), "its answer is added to the network's"
            if len(channels) != widths[root] or widths[name] != widths[root]:
                return (), f"its channels are added to a part of those of {name}"
            coupled[name] = None
    return tuple(coupled), ""


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and 1 < module.groups == module.out_channels


def _choose_channels(order: Sequence[int], count: int, group: tp.dependency.Group, before: int) -> list[int]:
    """The first `count` channels of `order`; as many from each group of a group norm, so that its groups stay."""
    norms = {d.target.module.num_groups for d, _ in group if isinstance(d.target.module, nn.GroupNorm)}
    parts = math.lcm(*norms) if norms else 1
    if parts == 1 or before % parts:
        return list(order[:count])
    size = before // parts
    return [channel for part in range(parts) for channel in [c for c in order if c // size == part][: count // parts]]


def _channels_to_keep(before: int, prune_ratio: float, round_to: int) -> int:
    """The nearest multiple of `round_to`, halves up, at least one of it; never more channels than there are."""
    nearest = math.floor(before * (1 - prune_ratio) / round_to + 0.5) * round_to
    return min(before, max(round_to, nearest))


def _order_channels(
    group: tp.dependency.Group, importance: str, count: int, generator: torch.Generator
) -> tuple[list[int], str]:
    """Channels from least to most important, and the name of the measure."""
    if importance == "random":
        return torch.randperm(count, generator=generator).tolist(), "luck (random)"
    if importance == "bn-scale":
        scores = _score_channels(group, 1, [nn.BatchNorm2d])
        if scores is not None:
            return scores.argsort(stable=True).tolist(), "batch norm scale"
    scores = _score_channels(group, 2, [nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d])
    assert scores is not None  # every group has its convolution
    return scores.argsort(stable=True).tolist(), "magnitude"


def _score_channels(group: tp.dependency.Group, power: int, types: list[type[nn.Module]]) -> Tensor | None:
    """Sum of |weight|^power over the group, one score per channel; None where the group has none of `types`."""
    score = tp.importance.GroupMagnitudeImportance(
        p=power, group_reduction="sum", normalizer=None, bias=False, target_types=types
    )
    scores: Tensor | None = score(group)
    return scores


def _trace_dependencies(network: ColorNetwork) -> tp.DependencyGraph:
    """The graph of one forward pass, of the part without padding and cropping, which change no channels."""
    try:
        with warnings.catch_warnings():
            # It warns of parameters outside of layers; what they would break is found out by forward passes.
            warnings.simplefilter("ignore")
            return tp.DependencyGraph().build_dependency(
                network,
                example_inputs=_example_input(network),
                forward_fn=lambda traced, lightness: traced.forward_coarse(lightness),
                output_transform=None,
                unwrapped_parameters=[],
                customized_pruners={},
                ignored_layers=[],
                ignored_params=[],
                verbose=False,
            )
    except Exception as error:  # a network of any kind fails in any way
        why = f"torch-pruning cannot follow it: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise InputError("network", network.title, why, "export and quantize it unpruned") from error


def _dependency_group(graph: tp.DependencyGraph, module: nn.Module, channels: Any) -> tp.dependency.Group:
    return graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, list(channels))


def _describe_group(group: tp.dependency.Group, network: ColorNetwork) -> tuple[str, ...]:
    """Every layer of a group by name, and which side of it changes."""
    names = {module: name for name, module in network.named_modules()}
    described = []
    for dependency, _ in group:
        module = dependency.target.module
        if module in names:
            kind = type(module).__name__
            reads = not isinstance(module, nn.BatchNorm2d) and dependency.handler.__name__ == "prune_in_channels"
            described.append(f"{names[module]} ({kind}, {'input' if reads else 'output'})")
    return tuple(described)


def _copy_network(network: ColorNetwork) -> ColorNetwork:
    """A copy with its own tensors and without hooks, in eval mode."""
    return network.with_weights(network.state_dict())


def _check_source(network: ColorNetwork, plan: PrunePlan) -> None:
    found, expected = layer_widths(network), plan.source
    wrong = [
        f"{name}: plan {expected.get(name, 'none')}, network {found.get(name, 'none')}"
        for name in {**expected, **found}
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise InputError(
            "prune plan",
            None,
            f"is for another network ({'; '.join(wrong[:5])}{more})",
            "give the checkpoint that the plan was made from, or make a new plan",
        )
    if plan.weights_sha256 and plan.weights_sha256 != hash_weights(network):
        warn("the prune plan chose its channels by other weights than these; the channel counts fit, so it is applied")


def _check_forward(network: ColorNetwork) -> None:
    """Run sizes that need no padding, padding on one side, and padding nearly everywhere."""
    side = network.size_multiple
    weight = next(network.parameters())
    for height, width in ((side, side), (side + 1, side - 1 or 1), (1, 1), (3 * side, 5 * side)):
        ramp = torch.linspace(0, 1, height * width, device=weight.device, dtype=weight.dtype)
        with torch.no_grad():
            answer = network(ramp.reshape(1, 1, height, width))
        if answer.shape != (1, 2, height, width) or not bool(torch.isfinite(answer).all()):
            raise GateError(
                "pruned network",
                None,
                f"answers {tuple(answer.shape)} to {height} x {width} pixels, or not finitely",
                "check the checkpoint; prune less",
            )
