"""Weights stored in 8 or 16 bits and computed with in float: a small file for a network that is fast in float anyway.

Networks of a few thousand weights gain nothing from int8 arithmetic, whose conversions cost them more than it saves;
but their file does. The graph multiplies bytes by scales in front of each convolution, which every runtime does once,
while it loads the file: what runs then is the float network, with its weights rounded to 8 bits per output channel.
Cast and Mul instead of DequantizeLinear: runtimes fold ordinary arithmetic on constants when they load a graph,
but leave DequantizeLinear where it is, in case a quantized kernel wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from compress.derived_onnx import load_float_model, write_derived

_LEVELS = 127  # symmetric int8; -128 is not used, so that the sign of a weight never changes its precision
_SMALLEST_WEIGHT = 64  # with fewer elements, scale and nodes take more bytes than rounding saves
# What a weight is stored as, and the nodes that make it float again.
Packed = tuple[list[onnx.TensorProto], list[onnx.NodeProto]]
# From the name of a weight, its values and the dimension of its output channels.
Packer = Callable[[str, NDArray[np.float64], int], Packed]


@dataclass(frozen=True)
class PackResult:
    """A published file with packed weights: the names of the convolutions whose weights are bytes now."""

    path: Path
    size_bytes: int
    sha256: str
    packed: tuple[str, ...]


def pack_onnx(source: Path, destination: Path, *, precision: str = "w8") -> PackResult:
    """Write a version of a float32 ONNX file whose convolution weights are stored in fewer bits.

    Args:
        source: a file written by `export_onnx`.
        precision: "w8", int8 with a scale per output channel, or "fp16", half precision.
    Raises:
        ConfigError: no such source.
        InputError: the source is damaged or quantized already.
        MachineError: the destination cannot be written.
    """
    model = load_float_model(source)
    packed = _pack_weights_(model.graph, _PACKERS[precision])
    size_bytes, sha256 = write_derived(model, source, destination, {"precision": precision})
    return PackResult(destination, size_bytes, sha256, packed)


def _pack_weights_(graph: onnx.GraphProto, pack: Packer) -> tuple[str, ...]:
    """Store the float weights of convolutions otherwise; the names of its convolutions."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    chosen = {
        node.input[1]: node.op_type
        for node in convolutions
        if node.input[1] in weights and np.prod(weights[node.input[1]].dims) >= _SMALLEST_WEIGHT
    }
    unpacking: list[onnx.NodeProto] = []
    for name, operator in chosen.items():
        # A transposed convolution keeps its output channels in the second place.
        channels = 0 if operator == "Conv" else 1
        tensors, nodes = pack(name, numpy_helper.to_array(weights[name]).astype(np.float64), channels)
        graph.initializer.remove(weights[name])
        graph.initializer.extend(tensors)
        unpacking += nodes
    nodes = [*unpacking, *graph.node]
    del graph.node[:], graph.value_info[:]  # shapes of inner values are found again by whoever loads the file
    graph.node.extend(nodes)
    return tuple(node.name for node in convolutions if node.input[1] in chosen)


# Short names, and none for the nodes: in the smallest files names weigh as much as weights.
def _pack_bytes(name: str, values: NDArray[np.float64], channels: int) -> Packed:
    byte, step, wide = f"{name}.q", f"{name}.s", f"{name}.w"
    others = tuple(axis for axis in range(values.ndim) if axis != channels)
    scale = np.abs(values).max(axis=others, keepdims=True) / _LEVELS
    scale = np.where(scale > 0, scale, 1.0).astype(np.float32)  # (C, 1, 1, 1), transposed (1, C, 1, 1)
    rounded = np.clip(np.rint(values / scale), -_LEVELS, _LEVELS).astype(np.int8)
    tensors = [numpy_helper.from_array(rounded, byte), numpy_helper.from_array(scale, step)]
    cast = helper.make_node("Cast", [byte], [wide], to=onnx.TensorProto.FLOAT)
    return tensors, [cast, helper.make_node("Mul", [wide, step], [name])]


def _pack_halves(name: str, values: NDArray[np.float64], _channels: int) -> Packed:
    half = numpy_helper.from_array(values.astype(np.float16), f"{name}.h")
    return [half], [helper.make_node("Cast", [half.name], [name], to=onnx.TensorProto.FLOAT)]


# By the name of the precision, in `compress.precisions`.
_PACKERS: Mapping[str, Packer] = {"w8": _pack_bytes, "fp16": _pack_halves}
