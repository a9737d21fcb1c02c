"""Making a float graph lose less in 8 bits: equalized channels before rounding, corrected biases after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from compress.int8.calibration import Floats
from compress.int8.graph_network import GraphNetwork
from compress.int8.int8_graph import Range
from training.network import pad_to_multiple

# A channel is scaled by no more than this: further out, what it gains is lost in the weights behind it.
_LARGEST_SCALE = 8.0


def equalize_channels(model: onnx.ModelProto, pictures: Iterable[Floats]) -> onnx.ModelProto:
    """A copy of `model` that computes the same with channels of more even ranges, which share 256 levels better.

    Where a convolution's ReLU feeds nothing but another convolution, each channel in between is divided by a scale
    and the weights that read it are multiplied: s = sqrt(largest activation / largest weight), with a geometric mean
    of one. Weights have a scale per output channel anyway, so those of the first convolution lose nothing.
    Source: Nagel et al. 2019, cross-layer equalization, with activations in the place of the first weights.

    Args:
        pictures: L (1, 1, H, W) float32, read once.
    """
    pairs = _find_pairs(model.graph)
    largest = _largest_by_channel(model, [relu for _, relu, _ in pairs], pictures)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for first, relu, second in pairs:
        weight, after = (numpy_helper.to_array(constants[node.input[1]]) for node in (first, second))
        reading = np.abs(after).max(axis=(0, 2, 3))
        known = (largest[relu] > 0) & (reading > 0)
        scale = np.ones(len(reading), np.float32)
        scale[known] = np.sqrt(largest[relu][known] / reading[known])
        scale[known] /= np.exp(np.log(scale[known]).mean()) if known.any() else 1.0
        scale = np.clip(scale, 1 / _LARGEST_SCALE, _LARGEST_SCALE).astype(np.float32)
        _set(constants[first.input[1]], weight / scale[:, None, None, None])
        if len(first.input) > 2:
            _set(constants[first.input[2]], numpy_helper.to_array(constants[first.input[2]]) / scale)
        _set(constants[second.input[1]], after * scale[None, :, None, None])
    return copy


def _find_pairs(graph: onnx.GraphProto) -> list[tuple[onnx.NodeProto, str, onnx.NodeProto]]:
    """Convolution, the name of its ReLU's answer, and the one convolution that reads it; weights used once."""
    constants = {tensor.name for tensor in graph.initializer}
    uses = Counter(name for node in graph.node for name in node.input)
    reader = {name: node for node in graph.node for name in node.input}
    pairs = []
    for first in graph.node:
        if first.op_type != "Conv" or uses[first.output[0]] != 1:
            continue
        relu = reader[first.output[0]]
        second = reader.get(relu.output[0])
        if relu.op_type != "Relu" or uses[relu.output[0]] != 1 or second is None or second.op_type != "Conv":
            continue
        groups = [a.i for node in (first, second) for a in node.attribute if a.name == "group" and a.i != 1]
        own = [name for node in (first, second) for name in node.input[1:]]
        if not groups and all(name in constants and uses[name] == 1 for name in own):
            pairs.append((first, relu.output[0], second))
    return pairs


def _largest_by_channel(
    model: onnx.ModelProto, names: Sequence[str], pictures: Iterable[Floats]
) -> Mapping[str, Floats]:
    network = GraphNetwork(model)
    largest: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for picture in pictures:
            lightness = pad_to_multiple(torch.from_numpy(picture), network.size_multiple)
            for name, value in network.forward_values(lightness, frozenset(names)).items():
                seen = value.amax(dim=(0, 2, 3))
                largest[name] = torch.maximum(largest[name], seen) if name in largest else seen
    return {name: value.numpy() for name, value in largest.items()}


def correct_biases(
    model: onnx.ModelProto,
    pictures: Sequence[Floats],
    *,
    ranges: Mapping[str, Range],
    layers: Sequence[str],
    weight_levels: int,
) -> onnx.ModelProto:
    """A copy of `model` whose convolutions answer in 8 bits, on average, what they answer in float.

    Rounding shifts the mean of each channel; its bias takes the shift back, layer after layer, each seeing what the
    corrected ones before it answer. Source: Nagel et al. 2019, bias correction from data.

    Args:
        pictures: L (1, 1, H, W) float32.
        ranges: (low, high) of every value in 8 bits. `layers`: the convolutions whose weights are.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    uses = Counter(name for node in copy.graph.node for name in node.input)
    # A bias that several layers share cannot take back the shift of each.
    order = [
        node
        for node in copy.graph.node
        if node.name in set(layers) and len(node.input) > 2 and uses[node.input[2]] == 1
    ]
    names = frozenset(node.output[0] for node in order)
    float_means = _channel_means(GraphNetwork(model), names, pictures)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in order:
        rounded = GraphNetwork(copy, rounded=ranges, rounded_layers=frozenset(layers), weight_levels=weight_levels)
        name = node.output[0]
        shift = float_means[name] - _channel_means(rounded, frozenset({name}), pictures)[name]
        bias = constants[node.input[2]]
        _set(bias, numpy_helper.to_array(bias) + shift)
    return copy


def _channel_means(network: GraphNetwork, names: frozenset[str], pictures: Sequence[Floats]) -> dict[str, Floats]:
    sums: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for picture in pictures:
            lightness = pad_to_multiple(torch.from_numpy(picture), network.size_multiple)
            for name, value in network.forward_values(lightness, names).items():
                mean = value.double().mean(dim=(0, 2, 3))
                sums[name] = sums[name] + mean if name in sums else mean
    return {name: (total / len(pictures)).float().numpy() for name, total in sums.items()}


def _set(tensor: onnx.TensorProto, value: NDArray[np.floating[Any]]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), tensor.name))
