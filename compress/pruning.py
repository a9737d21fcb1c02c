"""Structured pruning by the user's recipe: the layers that hold most parameters lose output channels.

The only importer of torch_pruning, which finds what depends on a channel: batch norm, the layers behind it, and
behind skip connections. It changes modules in place, so it only ever sees a copy; and it is given every argument,
since its mutable defaults leak from one call to the next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from colorpress.config import PruneConfig
from colorpress.console import warn
from colorpress.errors import GateError, InputError
from compress.prune_plan import PrunedGroup, PrunePlan, empty_network, layer_widths, read_plan, write_plan
from compress.ranking import count_macs, largest_layers, rank_layers
from training.unet import UNet, UNetPlan, count_parameters, hash_weights, plan_of

__all__ = [
    "PrunePlan",
    "PruneResult",
    "PrunedGroup",
    "apply_pruning",
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
    network: UNet
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
        pruned = sum(1 for group in self.plan.groups if group.removed)
        return (
            f"pruned {pruned} of {len(layer_widths(self.network))} convolutions: "
            f"{self.channels_before:,} -> {self.channels_after:,} channels (-{self.channels_removed_pct:.1f} %), "
            f"{self.params_before:,} -> {self.params_after:,} parameters (-{self.params_removed_pct:.1f} %), "
            f"{self.macs_before / 1e9:,.3f} -> {self.macs_after / 1e9:,.3f} G multiply-accumulates at "
            f"{self.height} x {self.width} (-{self.macs_removed_pct:.1f} %)"
        )


def prune_network(
    network: UNet, config: PruneConfig, *, seed: int = 0, height: int = 256, width: int = 256
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
    network: UNet, pruned: UNet, plan: PrunePlan, *, height: int = 256, width: int = 256
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


def plan_pruning(network: UNet, config: PruneConfig, *, seed: int = 0) -> PrunePlan:
    """Decide which output channels of which convolutions go; `network` stays as it is.

    The largest layers that together hold `config.largest_share` of the parameters each lose `config.prune_ratio` of
    their output channels: those of least importance, counted over the channel's whole dependency group.
    - magnitude: the L2 norm of all weights that make, scale and read the channel.
    - bn-scale: the size of its batch norm weight; magnitude for the layers without batch norm.
    - random: chosen by `seed`; the control that the others have to beat.
    The network's one input and two output channels always stay.
    """
    copy = _copy_network(network)
    widths = layer_widths(network)
    generator = torch.Generator().manual_seed(seed)
    groups = []
    with torch.inference_mode(False), torch.enable_grad():
        graph = _trace_dependencies(copy)
        for layer in largest_layers(rank_layers(network), config.largest_share):
            if layer.name not in widths:
                continue  # batch norm goes with its convolution; the output layer stays
            before = widths[layer.name]
            group = _dependency_group(graph, copy.get_submodule(layer.name), range(before))
            count = before - _channels_to_keep(before, config.prune_ratio, config.round_to)
            order, measure = _order_channels(group, config.importance, before, generator)
            what = f"the {count} of {before} channels of least {measure} go" if count else f"all {before} channels stay"
            if not count:
                what += f", as a multiple of {config.round_to} is kept"
            groups.append(
                PrunedGroup(
                    root=layer.name,
                    layers=_describe_group(group, copy),
                    channels_before=before,
                    removed=tuple(sorted(order[:count])),
                    reason=f"rank {layer.rank} with {layer.share_pct:.2f} % of the parameters; {what}",
                )
            )
    return PrunePlan(
        source=plan_of(network),
        groups=tuple(groups),
        settings={**asdict(config), "seed": seed},
        weights_sha256=hash_weights(network),
    )


def apply_pruning(network: UNet, plan: PrunePlan) -> UNet:
    """A new network without the channels that `plan` removes, in eval mode; `network` stays as it is.

    Raises:
        InputError: the plan is for a network of other channel counts; they are listed.
        GateError: the pruned network does not answer as it must.
    """
    _check_source(network, plan)
    copy = _copy_network(network)
    with torch.inference_mode(False), torch.enable_grad():
        graph = _trace_dependencies(copy)
        for group in plan.groups:
            if group.removed:
                _dependency_group(graph, copy.get_submodule(group.root), group.removed).prune(record_history=False)
    # A new module, so that nothing torch_pruning left behind stays with the network.
    pruned = _build_network(plan_of(copy), copy.state_dict())
    if plan_of(pruned) != plan.result:
        raise GateError("pruned network", None, "has other channels than planned", "make a new plan; this is a defect")
    _check_forward(pruned)
    return pruned


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


def _trace_dependencies(network: UNet) -> tp.DependencyGraph:
    """The graph of one forward pass, of the part without padding and cropping, which change no channels."""
    side = network.size_multiple
    return tp.DependencyGraph().build_dependency(
        network,
        example_inputs=network.head.weight.new_zeros(1, 1, side, side),
        forward_fn=lambda traced, lightness: traced.forward_padded(lightness),
        output_transform=None,
        unwrapped_parameters=[],
        customized_pruners={},
        ignored_layers=[],
        ignored_params=[],
        verbose=False,
    )


def _dependency_group(graph: tp.DependencyGraph, module: nn.Module, channels: Any) -> tp.dependency.Group:
    return graph.get_pruning_group(module, graph.get_pruner_of_module(module).prune_out_channels, list(channels))


def _describe_group(group: tp.dependency.Group, network: UNet) -> tuple[str, ...]:
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


def _copy_network(network: UNet) -> UNet:
    """A copy with its own tensors and without hooks, in eval mode."""
    with torch.inference_mode(False):
        state = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
        return _build_network(plan_of(network), state)


def _build_network(plan: UNetPlan, state_dict: Mapping[str, Tensor]) -> UNet:
    with torch.inference_mode(False):
        network = empty_network(plan)
    network.load_state_dict({name: tensor.detach() for name, tensor in state_dict.items()}, assign=True)
    return network.eval()


def _check_source(network: UNet, plan: PrunePlan) -> None:
    found, expected = layer_widths(network), layer_widths(empty_network(plan.source))
    wrong = [
        f"{name}: plan {expected.get(name, 'none')}, network {found.get(name, 'none')}"
        for name in {**expected, **found}
        if expected.get(name) != found.get(name)
    ]
    if network.upsample != plan.source.upsample:
        wrong.insert(0, f"up-sampling: plan {plan.source.upsample}, network {network.upsample}")
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


def _check_forward(network: UNet) -> None:
    """Run sizes that need no padding, padding on one side, and padding nearly everywhere."""
    side = network.size_multiple
    weight = network.head.weight
    for height, width in ((side, side), (side + 1, side - 1 or 1), (1, 1)):
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
