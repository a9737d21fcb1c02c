"""Which nodes of an exported graph are which layer of the network that it came from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping

import onnx

# What a runtime computes together with the convolution in front of it; the two then have the name of the later one.
FUSED_OPS = ("Relu", "LeakyRelu", "Tanh", "Sigmoid", "Clip", "HardSigmoid", "Add")


def find_layer(node_name: str, layers: Collection[str]) -> str | None:
    """The layer that a node was traced in, by its name; None for a function or a module that is not in `layers`.

    A layer that is called several times has nodes conv, conv_2 and so on; one that the export rewrites as several
    modules, as it does with a transposed convolution up.0, has nodes up.0.0 and up.0.1.
    """
    for name in (node_name, re.sub(r"_\d+$", "", node_name)):
        if name in layers:
            return name
        if parents := [layer for layer in layers if name.startswith(f"{layer}.")]:
            return max(parents, key=len)
    return None


def find_convolutions(graph: onnx.GraphProto, layers: Collection[str]) -> dict[str, tuple[onnx.NodeProto, ...]]:
    """The convolutions with constant weights of each layer that has some, in the order of the graph."""
    constants = {tensor.name for tensor in graph.initializer}
    found: dict[str, tuple[onnx.NodeProto, ...]] = {}
    for node in graph.node:
        if node.op_type in ("Conv", "ConvTranspose") and node.input[1] in constants:
            layer = find_layer(node.name, layers)
            if layer is not None:
                found[layer] = (*found.get(layer, ()), node)
    return found


def assign_names(graph: onnx.GraphProto, layers: Collection[str]) -> dict[str, str]:
    """The layer of each node and value name that time in a runtime's profile may be reported under.

    What follows a layer's convolution, and nothing else reads, counts for the layer: an activation, or an addition.
    """
    uses = Counter(name for node in graph.node for name in node.input)
    made: dict[str, str] = {}  # value name to layer, for what may still be fused
    names: dict[str, str] = {}
    for node in graph.node:
        layer = find_layer(node.name, layers)
        if layer is None and node.op_type in FUSED_OPS:
            # Of an addition's two sides the later one is computed together with it.
            layer = _latest(made, [name for name in node.input if uses[name] == 1])
        if layer is not None:
            names |= dict.fromkeys((node.name, *node.output), layer)
            if node.op_type in ("Conv", "ConvTranspose", *FUSED_OPS):
                made[node.output[0]] = layer
    return names


def _latest(made: Mapping[str, str], inputs: Collection[str]) -> str | None:
    found = [layer for value, layer in made.items() if value in inputs]
    return found[-1] if found else None
