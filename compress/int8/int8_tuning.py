"""Making a float graph lose less in 8 bits: equalized channels, ranges by what they cost, training while rounded."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor

from compress.derived_onnx import set_values_
from compress.distillation import DistilLoss
from compress.int8.calibration import ActivationHistogram, Floats
from compress.int8.graph_network import GraphNetwork, round_value
from compress.int8.int8_graph import Range
from training.losses import Batch
from training.network import pad_to_multiple

# Percent of the values that a range may cover, to choose from.
PERCENTILES = (100.0, 99.99, 99.9, 99.7, 99.5, 99.0)
# The same where nothing can choose, or where many layers are tried and none is kept.
USUAL_PERCENTILE = 99.9
# A channel is scaled by no more than this: only one that is dead or blind would be.
_LARGEST_SCALE = 1e4
# Operators that a channel passes as a whole, whatever positive number it is multiplied by.
_HOMOGENEOUS = ("Relu", "LeakyRelu", "MaxPool", "Resize")


def choose_ranges(
    model: onnx.ModelProto, histograms: Mapping[str, ActivationHistogram], pictures: Sequence[Floats]
) -> dict[str, Range]:
    """For each value the one of several ranges that changes the answers least when that value alone is rounded to it.

    How much of a value's tail may be cut cannot be told from the value: what a few bright pixels need costs the dark
    ones their levels where the last layers decide, and is all that counts in the first ones.

    Args:
        model: the float graph.
        histograms: of the values. One that the answer of the network does not depend on has all it showed.
        pictures: L (1, 1, H, W) float32.
    """
    network = GraphNetwork(model)
    ranges = {
        name: list(dict.fromkeys(each.range_of(percentile) for percentile in PERCENTILES))
        for name, each in histograms.items()
    }
    changes: dict[str, NDArray[np.float64]] = {name: np.zeros(len(each)) for name, each in ranges.items()}
    with torch.inference_mode():
        for picture in pictures:
            lightness = pad_to_multiple(torch.from_numpy(picture), network.size_multiple)
            known = network.forward_values(lightness, network.value_names)
            answer = network.forward_changed(lightness, known, {})
            for name in ranges.keys() & known.keys():
                for place, bounds in enumerate(ranges[name]):
                    changed = {name: round_value(known[name], bounds)}
                    other = network.forward_changed(lightness, known, changed)
                    changes[name][place] += float((other - answer).abs().mean())
    return {name: ranges[name][int(np.argmin(changes[name]))] for name in ranges}


def equalize_channels(model: onnx.ModelProto, pictures: Sequence[Floats]) -> onnx.ModelProto:
    """A copy of `model` that computes the same with channels of more even ranges, which share 256 levels better.

    Each channel that a convolution answers is divided by a scale, and the weights that read it are multiplied: s =
    sqrt(largest activation / largest weight), after which both are equally large. Weights have a scale per output
    channel anyway, so those of the first convolution lose nothing. Channels that are pooled, enlarged, concatenated,
    added or moved to other pixels on the way keep their scale, or share one; where anything else reads them they stay.
    Source: Nagel et al. 2019, cross-layer equalization, with activations in the place of the first weights.

    Args:
        pictures: L (1, 1, H, W) float32.
    """
    network, channels = GraphNetwork(model), _Channels.of(model.graph)
    names = network.value_names & channels.answers.keys()
    largest = _find_largest(network, names, pictures)
    count = len(channels.shared)
    active, reading = np.zeros(count), np.zeros(count)
    copy = deepcopy(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    weights = {node.name: numpy_helper.to_array(constants[node.input[1]]) for node in channels.convolutions}
    for name in names:
        np.maximum.at(active, channels.roots(channels.answers[name]), largest[name])
    for node in channels.convolutions:
        if (read := channels.read.get(node.name)) is not None:
            np.maximum.at(reading, channels.roots(read), np.abs(weights[node.name]).max(axis=(0, 2, 3)))
    known = (active > 0) & (reading > 0)
    known[list(channels.roots(sorted(channels.fixed)))] = False
    scale = np.ones(count, np.float32)
    scale[known] = np.sqrt(active[known] / reading[known]).clip(1 / _LARGEST_SCALE, _LARGEST_SCALE)
    for node in channels.convolutions:
        own = scale[channels.roots(channels.written[node.name])]
        weight = weights[node.name] / own[:, None, None, None]
        if (read := channels.read.get(node.name)) is not None:
            weight = weight * scale[channels.roots(read)][None, :, None, None]
        set_values_(constants[node.input[1]], weight)
        if len(node.input) > 2:
            set_values_(constants[node.input[2]], numpy_helper.to_array(constants[node.input[2]]) / own)
    return copy


@dataclass
class _Channels:
    """Which channels of a graph's values are the same, by number.

    Attributes:
        shared: another channel that has to have the same scale, or the channel itself.
        fixed: channels that cannot be scaled.
        values: the channels of each value between nodes.
        answers: those of each convolution's answer, behind its ReLU where nothing else reads it, by the value's name.
        convolutions: those with weights of their own and one group.
        written, read: the channels that each of `convolutions` answers and reads, by its name; the first ones read
            none.
    """

    shared: list[int] = field(default_factory=list)
    fixed: set[int] = field(default_factory=set)
    values: dict[str, list[int]] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    convolutions: list[onnx.NodeProto] = field(default_factory=list)
    written: dict[str, list[int]] = field(default_factory=dict)
    read: dict[str, list[int]] = field(default_factory=dict)

    @staticmethod
    def of(graph: onnx.GraphProto) -> _Channels:
        """Follow the channels through a graph."""
        channels = _Channels()
        uses = Counter(name for node in graph.node for name in node.input)
        shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        readers = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                readers[name].append(node)
        for node in graph.node:
            known = [channels.values[name] for name in node.input if name in channels.values]
            if node.op_type == "Conv" and node.input[1] in shapes:
                is_own = all(name in shapes and uses[name] == 1 for name in node.input[1:])
                channels._convolve(node, known, shapes[node.input[1]][0], is_own=is_own)
                relus = [each for each in readers[node.output[0]] if each.op_type == "Relu"]
                seen = relus[0] if len(readers[node.output[0]]) == len(relus) == 1 else node
                channels.answers[seen.output[0]] = channels.values[node.output[0]]
            elif known:
                channels._pass(node, known)
        for output in graph.output:
            channels.fixed.update(channels.values.get(output.name, ()))
        return channels

    def roots(self, channels: Sequence[int]) -> NDArray[np.int64]:
        """The channels that stand for these."""
        return np.array([self._root(each) for each in channels], dtype=np.int64)

    def _root(self, channel: int) -> int:
        while self.shared[channel] != channel:
            channel = self.shared[channel]
        return channel

    def _join(self, one: int, other: int) -> None:
        self.shared[self._root(one)] = self._root(other)

    def _convolve(self, node: onnx.NodeProto, known: Sequence[list[int]], count: int, *, is_own: bool) -> None:
        new = list(range(len(self.shared), len(self.shared) + count))
        self.shared += new
        self.values[node.output[0]] = new
        groups = next((each.i for each in node.attribute if each.name == "group"), 1)
        if is_own and groups == 1:
            self.convolutions.append(node)
            self.written[node.name] = new
            if known:
                self.read[node.name] = known[0]
        else:
            self.fixed.update(new, *known)

    def _pass(self, node: onnx.NodeProto, known: Sequence[list[int]]) -> None:
        if node.op_type == "Shape":
            return
        answer: list[int] | None = None
        is_all = len(known) == len(node.input)
        if node.op_type in _HOMOGENEOUS:
            answer = known[0]
        elif node.op_type == "Concat" and is_all and node.attribute[0].i == 1:
            answer = [channel for part in known for channel in part]
        elif node.op_type == "Add" and is_all and len(known[0]) == len(known[1]):
            for one, other in zip(*known, strict=True):
                self._join(one, other)
            answer = known[0]
        elif node.op_type == "DepthToSpace":
            answer = self._move(node, known[0])
        if answer is None:
            self.fixed.update(*known)
        else:
            self.values[node.output[0]] = answer

    def _move(self, node: onnx.NodeProto, channels: list[int]) -> list[int]:
        """Those that become pixels of one channel share a scale."""
        attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
        pixels = attributes["blocksize"] ** 2
        count = len(channels) // pixels
        is_dcr = attributes.get("mode", b"DCR") == b"DCR"
        parts = [channels[each::count] if is_dcr else channels[each * pixels :][:pixels] for each in range(count)]
        for part in parts:
            for each in part:
                self._join(each, part[0])
        return [part[0] for part in parts]


class ParentLoss(DistilLoss):
    """L1 to what the float graph answers to the same crops: nothing is learned but to compute it in 8 bits.

    The truth, or a better teacher, would teach the network other colours than those of the file that it stands for.

    Args:
        network: the graph that rounds.
        parent: the same graph in float; it is not trained.
    """

    def __init__(self, network: GraphNetwork, parent: GraphNetwork) -> None:
        super().__init__(network, teacher_weight=1.0)
        self.parent = parent.requires_grad_(False)

    def loss(self, answered: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        lightness = batch.lightness
        with torch.no_grad():
            coarse = self.parent.forward_coarse(pad_to_multiple(lightness, self.parent.size_multiple))
            expected = self.parent.complete(coarse, lightness, self.stride)
        truth = F.avg_pool2d(batch.ab, self.stride, ceil_mode=True)  # all (N, 2, S / stride, S / stride)
        return (answered - expected).abs().mean(), (answered - truth).abs().mean().detach()


@torch.inference_mode()
def _find_largest(network: GraphNetwork, names: Collection[str], pictures: Sequence[Floats]) -> dict[str, NDArray[Any]]:
    """The largest magnitude in each channel (C,) of values (1, C, h, w), over all pictures."""
    found: dict[str, Tensor] = {}
    for picture in pictures:
        lightness = pad_to_multiple(torch.from_numpy(picture), network.size_multiple)
        for name, value in network.forward_values(lightness, frozenset(names)).items():
            largest = value.abs().amax(dim=(0, 2, 3))
            found[name] = torch.maximum(found[name], largest) if name in found else largest
    return {name: value.numpy() for name, value in found.items()}
