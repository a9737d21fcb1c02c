"""Making a float graph lose less in 8 bits: equalized channels before rounding, corrected biases after it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper

from compress.int8.calibration import Floats
from compress.int8.graph_network import GraphNetwork
from training.network import pad_to_multiple

# A channel is scaled by no more than this: further out, what it gains is lost in the weights behind it.
_LARGEST_SCALE = 8.0


def equalize_channels(model: onnx.ModelProto, pictures: Sequence[Floats]) -> onnx.ModelProto:
    """A copy of `model` that computes the same with channels of more even ranges, which share 256 levels better.

    Where a convolution's ReLU feeds nothing but another convolution, each channel in between is divided by a scale
    and the weights that read it are multiplied: s = sqrt(largest activation / largest weight), with a geometric mean
    of one. Weights have a scale per output channel anyway, so those of the first convolution lose nothing.
    Source: Nagel et al. 2019, cross-layer equalization, with activations in the place of the first weights.

    Args:
        pictures: L (1, 1, H, W) float32.
    """
    pairs = _find_pairs(model.graph)
    relus = [relu for _, relu, _ in pairs]
    largest = _join_values(GraphNetwork(model), relus, pictures, lambda value: value.amax(dim=(0, 2, 3)), torch.maximum)
    copy = deepcopy(model)
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


def correct_biases(
    model: onnx.ModelProto,
    pictures: Sequence[Floats],
    layers: Collection[str],
    rounding: Callable[[onnx.ModelProto], GraphNetwork],
) -> onnx.ModelProto:
    """A copy of `model` whose convolutions answer in 8 bits, on average, what they answer in float.

    Rounding shifts the mean of each channel; its bias takes the shift back, layer after layer, each seeing what the
    corrected ones before it answer. Source: Nagel et al. 2019, bias correction from data.

    Args:
        pictures: L (1, 1, H, W) float32.
        layers: the convolutions whose weights are in 8 bits.
        rounding: a graph like `model` as a network that rounds as the int8 file will.
    """
    copy = deepcopy(model)
    uses = Counter(name for node in copy.graph.node for name in node.input)
    # A bias that several layers share cannot take back the shift of each.
    order = [n for n in copy.graph.node if n.name in layers and len(n.input) > 2 and uses[n.input[2]] == 1]
    float_means = _channel_means(GraphNetwork(model), [node.output[0] for node in order], pictures)
    constants = {tensor.name: tensor for tensor in copy.graph.initializer}
    for node in order:
        name, bias = node.output[0], constants[node.input[2]]
        shift = float_means[name] - _channel_means(rounding(copy), [name], pictures)[name]  # (C,)
        _set(bias, numpy_helper.to_array(bias) + shift)
    return copy


def _channel_means(network: GraphNetwork, names: Collection[str], pictures: Sequence[Floats]) -> dict[str, Floats]:
    sums = _join_values(network, names, pictures, lambda value: value.double().mean(dim=(0, 2, 3)), torch.add)
    return {name: (total / len(pictures)).astype(np.float32) for name, total in sums.items()}


@torch.inference_mode()
def _join_values(
    network: GraphNetwork,
    names: Collection[str],
    pictures: Sequence[Floats],
    of_value: Callable[[torch.Tensor], torch.Tensor],
    join: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
) -> dict[str, NDArray[Any]]:
    """`of_value` the values (1, C, h, w) of these names, (C,), joined over all pictures."""
    found: dict[str, torch.Tensor] = {}
    for picture in pictures:
        lightness = pad_to_multiple(torch.from_numpy(picture), network.size_multiple)
        for name, value in network.forward_values(lightness, frozenset(names)).items():
            found[name] = join(found[name], of_value(value)) if name in found else of_value(value)
    return {name: value.numpy() for name, value in found.items()}


def _set(tensor: onnx.TensorProto, value: NDArray[np.floating[Any]]) -> None:
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(value, dtype=np.float32), tensor.name))
