"""Where the channels of a network go: which parts of which weights belong to each channel, found by one forward pass.

Every operation of the pass is done twice: to the tensors, and to tensors of labels that say which channel each value
comes from. What moves values (concatenation, pixel shuffle, any view) moves their labels by itself; values that meet
in an addition or a product belong together from then on; a convolution reads labels and makes new ones. So nothing
has to be known of the modules of a network, and what is not followed is told: such channels have to stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.channel_labels import varies
from compress.channel_rules import ChannelTracer, layer_of
from compress.ranking import hooked
from export.autocast import without_autocast
from training.foreign import AdaptedNetwork
from training.network import ColorNetwork

_STAY = -1


@dataclass(frozen=True)
class Cut:
    """One dimension of a parameter or buffer along which channels lie.

    Attributes:
        name: in the state_dict. `dimension`: of the tensor.
        channels: the channel that each position belongs to, -1 where it belongs to none and has to stay.
        reads: whether a layer reads these channels here; else they are made, or something is done to each alone.
    """

    name: str
    dimension: int
    channels: tuple[int, ...]
    reads: bool


@dataclass(frozen=True)
class ChannelFlow:
    """The channels of a network; those that cannot go without one another have one number.

    Attributes:
        layers: the channel that each output of a layer belongs to, by the layer's name; only of layers that make
            channels, so of no depthwise convolution, and of none that the forward pass does not reach.
        answers: those of them with channels that reach the answer of the network, and are read by no layer on the way.
        cuts: everything that changes with channels, in the order in which it is reached.
        fixed: why a channel has to stay, by its number.
    """

    layers: Mapping[str, tuple[int, ...]]
    answers: frozenset[str]
    cuts: tuple[Cut, ...]
    fixed: Mapping[int, str]


@without_autocast()  # a layer would read copies of its weights in which they are not known
def follow_channels(network: ColorNetwork, example: Tensor) -> ChannelFlow:
    """The channels of `network`, by its answer to `example`: L (1, 1, H, W), of a size that needs no padding.

    Raises:
        Exception: of any kind, from the network's own code.
    """
    tracer = ChannelTracer(network)
    answers: list[Tensor] = []
    # What is made of its answer, such as ab of RGB, is behind all of its layers.
    asked = network.net if isinstance(network, AdaptedNetwork) else network
    with torch.inference_mode(False), torch.no_grad():
        example = example.clone()
        with hooked(network, [asked], lambda _module, _inputs, answer: answers.append(answer)), tracer:
            answers.append(network.forward_coarse(example))
    return _conclude(tracer, answers[0])


def _conclude(trace: ChannelTracer, answer: Tensor) -> ChannelFlow:
    """What was found in the pass whose answer this is, each channel by one number."""
    answered = trace.resolved(answer)
    # Before channels are numbered, since this may fix some.
    riders = {name: _find_rider(trace, name, labels) for name, labels in trace.own.items()}
    numbers: dict[int, int] = {}

    def number(labels: Tensor) -> tuple[int, ...]:
        resolved = trace.labels.resolve(labels).int().tolist()
        return tuple(numbers.setdefault(each, len(numbers)) if each else _STAY for each in resolved)

    made = {name: number(labels) for name, labels in trace.made.items()}
    known = set(numbers)

    def is_known(labels: Tensor) -> Tensor:
        return torch.tensor([each in known for each in trace.labels.resolve(labels).int().tolist()])

    passed = {name: number(labels * is_known(labels)) for name, labels in trace.passed.items()}
    cuts: list[Cut] = []

    def add(name: str, dimension: int, channels: tuple[int, ...], reads: bool) -> None:
        # All groups of a grouped convolution have the same ones.
        channels = channels[: trace.tensors[name].shape[dimension]]
        if any(channel != _STAY for channel in channels):
            for each in trace.aliases(name):  # a transposed convolution reads where another one of them makes
                turned = trace.tensors[name].ndim > 1 and trace.is_transposed(each) != trace.is_transposed(name)
                cuts.append(Cut(each, dimension, channels, reads != turned))

    for name in trace.order:
        if name in trace.read:
            dimension, labels = trace.read[name]
            add(name, dimension, number(labels * is_known(labels)), reads=True)
        if name in made:
            add(name, trace.output_dimension(name), made[name], reads=False)
        if name in passed:
            add(name, 0, passed[name], reads=False)
        if name in riders and riders[name] is not None:
            dimension, labels = riders[name]  # type: ignore[misc]
            add(name, dimension, number(labels * is_known(labels)), reads=False)
    reached = set() if answered is None else set(torch.unique(answered).int().tolist()) - {0}
    last = {numbers[each] for each in reached if each in numbers}
    roots = trace.labels.resolve(torch.tensor([*trace.fixed], dtype=torch.float32)).int().tolist()
    whys = dict(zip(reversed(roots), reversed(trace.fixed.values()), strict=True))  # the first one of each
    fixed = {numbers[root]: why for root, why in whys.items() if root in numbers}
    layers = {layer_of(name): channels for name, channels in made.items()}
    answers = frozenset(name for name, channels in layers.items() if not last.isdisjoint(channels))
    return ChannelFlow(layers, answers, tuple(cuts), fixed)


def _find_rider(trace: ChannelTracer, name: str, labels: Tensor) -> tuple[int, Tensor] | None:
    """The dimension of a parameter along which its values belong to channels, and the channel at each position."""
    resolved = trace.labels.resolve(labels)
    made = [trace.labels.resolve(each) for each in trace.made.values()]
    known = torch.unique(torch.cat(made)) if made else torch.zeros(0)
    resolved = resolved * torch.isin(resolved, known)
    if not bool(resolved.any()):
        return None
    for dimension in range(resolved.ndim):
        rows = resolved.movedim(dimension, 0).reshape(resolved.shape[dimension], -1)
        if bool((rows == rows[:, :1]).all()) and (resolved.ndim == 1 or varies(resolved, dimension)):
            return dimension, rows[:, 0]
    trace.fix(resolved, f"they share the values of {name}")
    return None
