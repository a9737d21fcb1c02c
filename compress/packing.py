"""Weights stored in 8 or 16 bits and computed with in float: a small file for a network that is fast in float anyway.

Networks of a few thousand weights gain nothing from int8 arithmetic, whose conversions cost them more than it saves;
but their file does. The graph multiplies bytes by scales in front of each convolution, which every runtime does once,
while it loads the file: what runs then is the float network, with its weights rounded to 8 bits per output channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from colorpress.core.files import sha256_bytes, write_bytes
from compress.int8.int8_choice import load_float_model

_LEVELS = 127  # symmetric int8; -128 is not used, so that the sign of a weight never changes its precision
_SMALLEST_WEIGHT = 64  # with fewer elements, scale and nodes take more bytes than rounding saves


@dataclass(frozen=True)
class PackResult:
    """A published file with packed weights: the names of the convolutions whose weights are bytes now."""

    path: Path
    size_bytes: int
    sha256: str
    packed: tuple[str, ...]


def pack_onnx(
    source: Path, destination: Path, *, precision: str = "w8", metadata: Mapping[str, str] | None = None
) -> PackResult:
    """Write a version of a float32 ONNX file whose convolution weights are stored in fewer bits.

    Args:
        source: a file written by `export_onnx`.
        precision: "w8", int8 with a scale per output channel, or "fp16", half precision.
        metadata: further entries of metadata_props; the source's are kept.
    Raises:
        ConfigError: no such source.
        InputError: the source is damaged or quantized already.
        MachineError: the destination cannot be written.
    """
    model = load_float_model(source)
    packed = pack_weights_(model.graph, precision)
    # The validation L1 is that of the unrounded weights; this file's own is not known here.
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key != "val_l1"}
    entries |= {"precision": precision, "source_sha256": sha256_bytes(source.read_bytes()), **(metadata or {})}
    helper.set_model_props(model, {key: entries[key] for key in sorted(entries)})
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    write_bytes(destination, content)
    return PackResult(destination, len(content), sha256_bytes(content), packed)


def pack_weights_(graph: onnx.GraphProto, precision: str = "w8") -> tuple[str, ...]:
    """Replace the float weights of convolutions by fewer bits, Cast and Mul; the names of its convolutions.

    Cast and Mul instead of DequantizeLinear: runtimes fold ordinary arithmetic on constants when they load a graph,
    but leave DequantizeLinear where it is, in case a quantized kernel wants it.
    """
    weights = {tensor.name: tensor for tensor in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type in ("Conv", "ConvTranspose")]
    chosen = {
        node.input[1]: node.op_type
        for node in convolutions
        if node.input[1] in weights and np.prod(weights[node.input[1]].dims) >= _SMALLEST_WEIGHT
    }
    unpacking: list[onnx.NodeProto] = []
    for name, operator in chosen.items():
        values = numpy_helper.to_array(weights[name]).astype(np.float64)
        if precision == "fp16":
            graph.initializer.remove(weights[name])
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), f"{name}.h"))
            unpacking.append(helper.make_node("Cast", [f"{name}.h"], [name], to=onnx.TensorProto.FLOAT))
            continue
        # A transposed convolution keeps its output channels in the second place.
        others = tuple(axis for axis in range(values.ndim) if axis != (0 if operator == "Conv" else 1))
        scale = np.abs(values).max(axis=others, keepdims=True) / _LEVELS
        scale = np.where(scale > 0, scale, 1.0).astype(np.float32)
        rounded = np.clip(np.rint(values / scale), -_LEVELS, _LEVELS).astype(np.int8)
        graph.initializer.remove(weights[name])
        # Short names, and none for the nodes: in the smallest files names weigh as much as weights.
        byte, step, wide = f"{name}.q", f"{name}.s", f"{name}.w"
        graph.initializer.append(numpy_helper.from_array(rounded, byte))
        graph.initializer.append(numpy_helper.from_array(scale, step))
        unpacking.append(helper.make_node("Cast", [byte], [wide], to=onnx.TensorProto.FLOAT))
        unpacking.append(helper.make_node("Mul", [wide, step], [name]))
    nodes = [*unpacking, *graph.node]
    del graph.node[:], graph.value_info[:]  # shapes of inner values are found again by whoever loads the file
    graph.node.extend(nodes)
    return tuple(node.name for node in convolutions if node.input[1] in chosen)
