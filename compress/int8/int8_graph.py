"""Int8 in an ONNX graph: which nodes, which ranges, and ONNX Runtime's QDQ form of both."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from copy import deepcopy
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from colorpress.core.console import silence_libraries

# Operators between convolutions that ONNX Runtime computes in 8 bits when what comes in is in 8 bits.
_GLUE_OPS = ("Relu", "MaxPool", "DepthToSpace", "Concat", "Resize")
# Those that only move or select values: what comes out has the scale of what went in.
_SAME_SCALE_OPS = ("Relu", "MaxPool", "DepthToSpace", "Resize")

Range = tuple[float, float]


def weight_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Weight elements of each convolution with constant weights, by node name."""
    elements = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    return {node.name: elements[node.input[1]] for node in graph.node if _is_conv(node) and node.input[1] in elements}


def _is_conv(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose")


def choose_layers(graph: onnx.GraphProto, share: float) -> tuple[str, ...]:
    """The largest convolutions that together hold `share` of the weights, largest first.

    Never the first and the last convolution, nor a ConvTranspose, which has no int8 kernel.
    """
    sizes, outer = weight_sizes(graph), outer_convolutions(graph)
    possible = {node.name for node in graph.node if node.op_type == "Conv" and node.name not in outer}
    chosen: list[str] = []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if name in possible and sum(sizes[each] for each in chosen) < share * sum(sizes.values()):
            chosen.append(name)
    return tuple(chosen)


def outer_convolutions(graph: onnx.GraphProto) -> set[str]:
    """The convolutions that read the picture, and those whose answer leaves the network."""
    before, _ = _convolutions_around(graph)
    reading = {node.name for node in graph.node if _is_conv(node) and not before[node.name]}
    return reading | output_convolutions(graph)


def output_convolutions(graph: onnx.GraphProto) -> set[str]:
    """The convolutions whose answer leaves the network without another one behind them."""
    _, after = _convolutions_around(graph)
    return {node.name for node in graph.node if _is_conv(node) and not after[node.name]}


def _convolutions_around(graph: onnx.GraphProto) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """For each node the nearest convolutions before it and, for each node, those after it."""
    producer = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    before: dict[str, set[str]] = {}
    after: dict[str, set[str]] = {}
    for node in graph.node:  # topological order
        sources = [producer[name] for name in node.input if name in producer]
        before[node.name] = set().union(*({s.name} if _is_conv(s) else before[s.name] for s in sources))
    for node in reversed(graph.node):
        users = [user for name in node.output for user in consumers[name]]
        after[node.name] = set().union(*({u.name} if _is_conv(u) else after[u.name] for u in users))
    return before, after


def nodes_to_quantize(graph: onnx.GraphProto, convolutions: set[str]) -> set[str]:
    """The chosen convolutions, and what lies between them: glue with int8 on all of one side."""
    before, after = _convolutions_around(graph)
    is_float = _float_values(graph)
    glue = {
        node.name
        for node in graph.node
        if node.op_type in _GLUE_OPS
        and is_float.get(node.output[0], False)  # sizes are concatenated too
        and any(around[node.name] and around[node.name] <= convolutions for around in (before, after))
    }
    return convolutions | glue


def _float_values(graph: onnx.GraphProto) -> dict[str, bool]:
    """Whether a value between nodes is in float32; sizes are not."""
    return {value.name: value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in graph.value_info}


def tensors_to_observe(graph: onnx.GraphProto, nodes: set[str]) -> list[str]:
    """Values to watch: what enters or leaves a quantized node, each scale once."""
    taking = {name for node in graph.node if node.name in nodes for name in (*node.input, *node.output)}
    is_float = _float_values(graph)
    constants = {tensor.name for tensor in graph.initializer} | {""}
    # Only within `nodes`: what stays float, such as a MaxPool that an addition reads as well, is watched itself.
    copies = {node.output[0] for node in graph.node if node.op_type in _GLUE_OPS and node.name in nodes}
    relu_inputs = values_inside_convolutions(graph)
    relu_outputs = {node.output[0] for node in graph.node if node.op_type == "Relu"}
    return sorted(
        name
        for name in taking - constants
        if is_float.get(name, True) and name not in relu_inputs and (name not in copies or name in relu_outputs)
    )


def values_inside_convolutions(graph: onnx.GraphProto) -> set[str]:
    """What nothing but a ReLU reads: it is never seen, since the ReLU becomes a bound of the convolution before it."""
    uses = Counter([*(name for node in graph.node for name in node.input), *(each.name for each in graph.output)])
    return {node.input[0] for node in graph.node if node.op_type == "Relu" and uses[node.input[0]] == 1}


def values_moved(graph: onnx.GraphProto) -> set[str]:
    """What an operator only moves or selects: its values are on the grid of what went in."""
    return {node.output[0] for node in graph.node if node.op_type in ("MaxPool", "DepthToSpace")}


def spread_ranges(graph: onnx.GraphProto, observed: Mapping[str, Range]) -> dict[str, Range]:
    """A range for every value: what only moves values keeps the range, a Concat spans those of its parts.

    The parts of a Concat keep their own ranges. On one range they would be copied as they are; but a skip connection
    comes from a ReLU and what is up-sampled does not, so the ReLU's range would reach below zero, and ONNX Runtime
    then computes that ReLU in float instead of as a bound of its convolution.

    Args:
        observed: (low, high) of the values that `tensors_to_observe` names.
    """
    ranges, inside = dict(observed), values_inside_convolutions(graph)
    for node in graph.node:
        if node.op_type == "Relu" and node.output[0] in ranges:
            if node.input[0] in inside:
                ranges[node.input[0]] = ranges[node.output[0]]
        elif node.op_type in _SAME_SCALE_OPS and node.input[0] in ranges:
            ranges.setdefault(node.output[0], ranges[node.input[0]])
        elif node.op_type == "Concat" and all(name in ranges for name in node.input):
            parts = [ranges[name] for name in node.input]
            ranges[node.output[0]] = (min(low for low, _ in parts), max(high for _, high in parts))
    return ranges


def insert_qdq(
    model: onnx.ModelProto,
    nodes: set[str],
    ranges: Mapping[str, Range],
    *,
    weight_bits: int,
    signed_activations: bool = False,
) -> onnx.ModelProto:
    """A copy of `model` with quantization around `nodes`: weights per channel and symmetric, activations by `ranges`.

    Args:
        weight_bits: 8, or 7, for processors that would saturate.
        signed_activations: int8 instead of uint8, which some processors' kernels prefer.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data: dict[str, Any] = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
    }
    with silence_libraries():
        quantizer = QDQQuantizer(
            deepcopy(model),
            per_channel=True,
            reduce_range=weight_bits == 7,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QInt8 if signed_activations else QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=sorted(nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv", *_GLUE_OPS],
            extra_options={"WeightSymmetric": True},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    _shorten_names_(quantized.graph, model.graph)
    _keep_in_float_(
        quantized.graph, [node.name for node in model.graph.node if _is_conv(node) and node.name not in nodes]
    )
    # The quantizer calls itself the producer, and adds an entry of its own.
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    onnx.helper.set_model_props(quantized, {entry.key: entry.value for entry in model.metadata_props})
    return quantized


def _shorten_names_(graph: onnx.GraphProto, source: onnx.GraphProto) -> None:
    """Give what the quantizer made short names, and each constant once; what `source` names is called that still.

    The quantizer's names, a zero for every layer and the shapes of all values took more than a quarter of the file of
    a student of 50,000 weights. Whoever loads the file finds the shapes inside again.
    """
    named = {"", *(each.name for each in (*source.node, *source.initializer, *source.input))}
    named |= {name for node in source.node for name in node.output}
    free = (name for name in (f"q{number}" for number in count()) if name not in named)
    short: dict[str, str] = {}
    constants: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    for tensor in graph.initializer:
        if tensor.name not in named:
            content = tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes()
            if content not in constants:
                constants[content] = next(free)
            short[tensor.name] = constants[content]
    for node in graph.node:
        short |= {name: next(free) for name in node.output if name not in named}
        node.input[:], node.output[:] = ([short.get(name, name) for name in part] for part in (node.input, node.output))
        if node.name not in named:
            node.ClearField("name")
    kept = {short.get(tensor.name, tensor.name): tensor for tensor in graph.initializer}
    for name, tensor in kept.items():
        tensor.name = name
    del graph.initializer[:], graph.value_info[:]
    graph.initializer.extend(kept.values())


def _keep_in_float_(graph: onnx.GraphProto, convolutions: Iterable[str]) -> None:
    """Put a copy between convolutions that are to stay float and what quantizes their answers; changes `graph`.

    Where values in 8 bits go in and come out, ONNX Runtime takes it for an oversight that the weights are float, and
    rounds them, with one scale for all channels (its WeightBiasQuantization, seen in 1.32). A Concat of one input is
    the cheapest operator between that no optimizer removes.
    """
    producer = {output: node for node in graph.node for output in node.output}
    for convolution in [node for node in graph.node if node.name in set(convolutions)]:
        source = producer.get(convolution.input[0])
        if source is None or source.op_type != "DequantizeLinear":
            continue
        answer = convolution.output[0]
        relu = next((node for node in graph.node if node.op_type == "Relu" and node.input[0] == answer), None)
        answer = relu.output[0] if relu is not None else answer
        rounding = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == answer]
        if not rounding:
            continue
        copied = f"{answer}.float"
        for node in rounding:
            node.input[0] = copied
        place = list(graph.node).index(producer[answer])
        graph.node.insert(place + 1, onnx.helper.make_node("Concat", [answer], [copied], name=copied, axis=1))
