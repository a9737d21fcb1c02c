"""Weights stored in 4, 8 or 16 bits and computed with in float: small files for networks that are fast in float anyway.

Networks of a few thousand weights gain nothing from int8 arithmetic, whose conversions cost them more than it saves;
but their file does. The graph makes float weights of bytes in front of the convolutions, which every runtime does once,
while it loads the file: what runs then is the float network, with its weights rounded per output channel.
Cast and Mul instead of DequantizeLinear: runtimes fold ordinary arithmetic on constants when they load a graph,
but leave DequantizeLinear where it is, in case a quantized kernel wants it. For the same reason two weights are taken
out of a byte by Mul and Floor, exact on whole numbers, and not by BitShift, which fewer runtimes have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from colorpress.core.console import say
from colorpress.core.errors import InputError
from compress.derived_onnx import load_float_model, set_values_, write_derived
from compress.int8.calibration import Floats
from compress.int8.graph_network import GraphNetwork
from compress.int8.int8_graph import outer_convolutions
from training.network import pad_to_multiple

# Symmetric: -128 and -8 are not used, so that the sign of a weight never changes its precision.
_LEVELS_8_BITS, _LEVELS_4_BITS = 127, 7
# A channel's scale is changed by no more: further out, what was measured of it is noise.
_LARGEST_GAIN = 1.5
_NIBBLE_ZERO = 8  # what 0 is stored as in 4 bits
_SMALLEST_WEIGHT = 64  # with fewer elements, scale and nodes take more bytes than rounding saves
# Steps that are tried for 4 bits, as shares of the one by which the largest weight is not clipped.
_SHARES = np.linspace(1.0, 0.3, 71)


@dataclass(frozen=True)
class _Weight:
    """What a convolution multiplies by.

    Attributes:
        name: of the tensor.
        values: in float64.
        channels: the dimension of its output channels; a transposed convolution keeps them in the second place.
        is_outer: it reads the picture, or its answer leaves the network.
    """

    name: str
    values: NDArray[np.float64]
    channels: int
    is_outer: bool

    @property
    def others(self) -> tuple[int, ...]:
        """The dimensions that share a scale."""
        return tuple(axis for axis in range(self.values.ndim) if axis != self.channels)


# What weights are stored as, and the nodes that make them float again.
Packed = tuple[list[onnx.TensorProto], list[onnx.NodeProto]]
Packer = Callable[[Sequence[_Weight]], Packed]


@dataclass(frozen=True)
class PackResult:
    """A published file with packed weights.

    Attributes:
        packed: the names of the convolutions whose weights are stored in fewer bits.
        matched: their channels were brought back to the mean and deviation that they have in float.
    """

    path: Path
    size_bytes: int
    sha256: str
    packed: tuple[str, ...]
    matched: bool


def pack_onnx(source: Path, destination: Path, *, precision: str = "w8", pictures: Sequence[Floats] = ()) -> PackResult:
    """Write a version of a float32 ONNX file whose convolution weights are stored in fewer bits.

    Args:
        source: a file written by `export_onnx`.
        precision: "w8", int8 with a scale per output channel; "w4", the same in 4 bits, two to a byte, with the first
            and the last convolution in 8; or "fp16", half precision.
        pictures: L (1, 1, H, W) float32, by which scales and biases bring channels back to the mean and deviation that
            they have in float; for "w8" and "w4"; none: that is left out.
    Raises:
        ConfigError: no such source.
        InputError: the source is damaged or quantized already.
        MachineError: the destination cannot be written.
    """
    model = load_float_model(source)
    weights = _find_weights(model.graph)
    layers = tuple(node.name for node in _convolutions(model.graph) if node.input[1] in weights)
    packed, matched = _PACKERS[precision](list(weights.values())), False
    if pictures:
        try:
            model, packed = _match_answers(model, weights, packed, pictures)
            matched = True
        except InputError as error:
            say(f"channels are not brought back to what they answer in float: {error.why}")
    tensors, unpacking = packed
    _replace_(model.graph, weights, tensors)
    nodes = [*unpacking, *model.graph.node]
    del model.graph.node[:], model.graph.value_info[:]  # whoever loads the file finds the shapes inside again
    model.graph.node.extend(nodes)
    size_bytes, sha256 = write_derived(model, source, destination, {"precision": precision})
    return PackResult(destination, size_bytes, sha256, layers, matched)


def _convolutions(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]


def _find_weights(graph: onnx.GraphProto) -> dict[str, _Weight]:
    """The float weights of convolutions that are worth packing, by name and in the graph's order."""
    tensors, outer = {tensor.name: tensor for tensor in graph.initializer}, outer_convolutions(graph)
    found: dict[str, _Weight] = {}
    for node in _convolutions(graph):
        name = node.input[1]
        if name not in tensors or np.prod(tensors[name].dims) < _SMALLEST_WEIGHT:
            continue
        values = numpy_helper.to_array(tensors[name]).astype(np.float64)
        is_outer = node.name in outer or (name in found and found[name].is_outer)
        found[name] = _Weight(name, values, 0 if node.op_type == "Conv" else 1, is_outer)
    return found


def _replace_(graph: onnx.GraphProto, names: Collection[str], tensors: Sequence[onnx.TensorProto]) -> None:
    """Put `tensors` in the place of those called `names`."""
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend([*kept, *tensors])


def _unpack(
    packed: Packed, names: Collection[str], opsets: Sequence[onnx.OperatorSetIdProto]
) -> list[onnx.TensorProto]:
    """The float weights that a graph makes of packed ones."""
    tensors, unpacking = packed
    outputs = [onnx.ValueInfoProto(name=name) for name in names]
    graph = helper.make_graph(unpacking, "weights", [], outputs, tensors)
    values = ReferenceEvaluator(helper.make_model(graph, opset_imports=opsets)).run(None, {})
    return [numpy_helper.from_array(value, name) for name, value in zip(names, values, strict=True)]


def _match_answers(
    model: onnx.ModelProto, weights: Mapping[str, _Weight], packed: Packed, pictures: Sequence[Floats]
) -> tuple[onnx.ModelProto, Packed]:
    """The graph with other biases, and its packed weights with other scales: channels answer as in float, on average.

    Rounding to 4 bits makes answers smaller, from layer to layer, until colours are paler, and shifts them. Scale and
    bias of each channel give it back the deviation and the mean that it has in float, layer after layer, each seeing
    what those before it answer: as batch norm does whose statistics are estimated anew (Sun et al. 2019, HFP8).
    Biases alone lost more than they gave.

    Raises:
        InputError: PyTorch cannot compute what is inside.
    """
    tensors, _ = packed
    rounded, matched = deepcopy(model), deepcopy(model)
    _replace_(rounded.graph, weights, _unpack(packed, weights, model.opset_import))
    uses = Counter(name for node in model.graph.node for name in node.input)
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    order = [
        node
        for node in _convolutions(model.graph)
        if node.input[1] in weights
        and len(node.input) > 2
        and all(uses[name] == 1 for name in node.input[1:3])
        # Of a transposed convolution with groups a channel's weights lie in several places.
        and constants.get(node.input[2]) == (weights[node.input[1]].values.shape[weights[node.input[1]].channels],)
    ]
    float_moments = _channel_moments(GraphNetwork(model), [node.output[0] for node in order], pictures)
    inside, scales = ({each.name: each for each in group} for group in (rounded.graph.initializer, tensors))
    biases = {tensor.name: tensor for tensor in matched.graph.initializer}
    for node in order:
        answer, (weight, bias) = node.output[0], node.input[1:3]
        mean, deviation = _channel_moments(GraphNetwork(rounded), [answer], pictures)[answer]
        wanted_mean, wanted_deviation = float_moments[answer]
        known = (deviation > 0) & (wanted_deviation > 0)
        gain = np.where(known, wanted_deviation / np.where(known, deviation, 1.0), 1.0)
        gain = np.clip(gain, 1 / _LARGEST_GAIN, _LARGEST_GAIN)
        along = np.expand_dims(gain, weights[weight].others)
        for tensor in (inside[weight], scales[f"{weight}.s"]):
            set_values_(tensor, numpy_helper.to_array(tensor) * along)
        value = wanted_mean - gain * (mean - numpy_helper.to_array(inside[bias]))
        for tensor in (inside[bias], biases[bias]):
            set_values_(tensor, value)
    return matched, packed


def _channel_moments(
    network: GraphNetwork, names: Collection[str], pictures: Sequence[Floats]
) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Mean and deviation (C,) of each channel of the values with these names."""
    sums: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for picture in pictures:
            lightness = pad_to_multiple(torch.from_numpy(picture), network.size_multiple)
            for name, value in network.forward_values(lightness, frozenset(names)).items():
                exact = value.double()
                both = torch.stack([exact.mean(dim=(0, 2, 3)), exact.square().mean(dim=(0, 2, 3))])
                sums[name] = sums[name] + both if name in sums else both
    moments = {name: total.numpy() / len(pictures) for name, total in sums.items()}
    return {name: (mean, np.sqrt(np.maximum(square - mean**2, 0.0))) for name, (mean, square) in moments.items()}


def _join(parts: Iterable[Packed]) -> Packed:
    kept = list(parts)
    return [each for tensors, _ in kept for each in tensors], [each for _, nodes in kept for each in nodes]


# Short names, and none for the nodes: in the smallest files names weigh as much as weights.
def _pack_bytes(weight: _Weight) -> Packed:
    byte, step, wide = f"{weight.name}.q", f"{weight.name}.s", f"{weight.name}.w"
    scale = _step_of_largest(weight.values, weight.others, _LEVELS_8_BITS).astype(np.float32)
    rounded = _round(weight.values, scale, _LEVELS_8_BITS).astype(np.int8)
    tensors = [numpy_helper.from_array(rounded, byte), numpy_helper.from_array(scale, step)]
    cast = helper.make_node("Cast", [byte], [wide], to=onnx.TensorProto.FLOAT)
    return tensors, [cast, helper.make_node("Mul", [wide, step], [weight.name])]


def _pack_halves(weight: _Weight) -> Packed:
    half = numpy_helper.from_array(weight.values.astype(np.float16), f"{weight.name}.h")
    return [half], [helper.make_node("Cast", [half.name], [weight.name], to=onnx.TensorProto.FLOAT)]


def _pack_nibbles(weights: Sequence[_Weight]) -> Packed:
    """The outer weights in bytes; all others in one tensor, since nodes for each would take what its bits save."""
    inner = [weight for weight in weights if not weight.is_outer]
    parts = [_pack_bytes(weight) for weight in weights if weight.is_outer]
    if not inner:
        return _join(parts)
    found = [round_to_4_bits(weight.values, weight.others) for weight in inner]
    flat = np.concatenate([rounded.ravel() for rounded, _ in found])
    parts.append(
        _unpack_nibbles(flat, [f"{weight.name}.f" for weight in inner], [weight.values.size for weight in inner])
    )
    for weight, (_, scale) in zip(inner, found, strict=True):
        step, shape, wide = f"{weight.name}.s", f"{weight.name}.d", f"{weight.name}.w"
        sides = np.array(weight.values.shape, np.int64)
        tensors = [numpy_helper.from_array(scale, step), numpy_helper.from_array(sides, shape)]
        reshape = helper.make_node("Reshape", [f"{weight.name}.f", shape], [wide])
        parts.append((tensors, [reshape, helper.make_node("Mul", [wide, step], [weight.name])]))
    return _join(parts)


def _unpack_nibbles(flat: NDArray[np.int8], names: Sequence[str], sizes: Sequence[int]) -> Packed:
    """Whole numbers of -7 to 7, all in one uint8 tensor, the first half of them in the lower bits; split by `names`."""
    # "4b" is the name of no module: attributes in Python begin with no digit.
    pad = [1] * (len(flat) % 2)
    low, high = np.append(flat + _NIBBLE_ZERO, pad).astype(np.uint8).reshape(2, -1)
    constants: Mapping[str, NDArray[Any]] = {
        "4b": low | high << 4,
        "4b.k": np.array(16, np.float32),
        "4b.o": np.array(_NIBBLE_ZERO, np.float32),
        "4b.z": np.array([*sizes, *pad], np.int64),
    }
    nodes = [
        helper.make_node("Cast", ["4b"], ["4b.b"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Div", ["4b.b", "4b.k"], ["4b.d"]),
        helper.make_node("Floor", ["4b.d"], ["4b.h"]),
        helper.make_node("Mul", ["4b.h", "4b.k"], ["4b.m"]),
        helper.make_node("Sub", ["4b.b", "4b.m"], ["4b.l"]),
        helper.make_node("Concat", ["4b.l", "4b.h"], ["4b.c"], axis=0),
        helper.make_node("Sub", ["4b.c", "4b.o"], ["4b.f"]),
        helper.make_node("Split", ["4b.f", "4b.z"], [*names, *("4b.x" for _ in pad)], axis=0),
    ]
    return [numpy_helper.from_array(value, name) for name, value in constants.items()], nodes


def round_to_4_bits(
    values: NDArray[np.float64], others: tuple[int, ...]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Weights as whole numbers of -7 to 7, and the step of each channel, by which their squared error is least.

    Steps are tried; what a try rounds to has a best step in closed form, w.q / q.q, which leaves w.w - (w.q)^2 / q.q.

    Args:
        others: the dimensions that share a step.
    """
    widest = _step_of_largest(values, others, _LEVELS_4_BITS)
    best, steps, most = np.zeros(values.shape), np.ones_like(widest), np.full_like(widest, -np.inf)
    for share in _SHARES:
        rounded = _round(values, share * widest, _LEVELS_4_BITS)
        shared = (values * rounded).sum(axis=others, keepdims=True)
        own = np.maximum(np.square(rounded).sum(axis=others, keepdims=True), 1.0)  # 0 where all weights are
        better = shared**2 / own > most
        best, most = np.where(better, rounded, best), np.where(better, shared**2 / own, most)
        steps = np.where(better & (shared > 0), shared / own, steps)
    return best.astype(np.int8), steps.astype(np.float32)


def _step_of_largest(values: NDArray[np.float64], others: tuple[int, ...], levels: int) -> NDArray[np.float64]:
    """The step of each channel by which its largest weight is the last level, (C, 1, 1, 1), transposed (1, C, 1, 1)."""
    largest = np.abs(values).max(axis=others, keepdims=True)
    return np.where(largest > 0, largest / levels, 1.0)


def _round(values: NDArray[np.float64], steps: NDArray[np.floating[Any]], levels: int) -> NDArray[np.float64]:
    return np.clip(np.rint(values / steps), -levels, levels)


# By the name of the precision, in `compress.precisions`.
_PACKERS: Mapping[str, Packer] = {
    "w8": lambda weights: _join(map(_pack_bytes, weights)),
    "w4": _pack_nibbles,
    "fp16": lambda weights: _join(map(_pack_halves, weights)),
}
