"""The network of a picture graph, taken out of it; imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from colorpress.core.errors import InputError
from export.picture_graph import NETWORK_PREFIX
from export.predictors import INPUT_NAME, OUTPUT_NAME


def take_network(whole: onnx.ModelProto, path: Path | None = None) -> onnx.ModelProto:
    """The network in a picture graph, L (N, 1, H, W) to ab or an affine field (N, 2 or 4, H, W), without metadata.

    Args:
        path: what an error calls it.
    Raises:
        InputError: there is none that could be taken out.
    """
    nodes = [node for node in whole.graph.node if node.output[0].startswith(NETWORK_PREFIX)]
    constants = [tensor for tensor in whole.graph.initializer if tensor.name.startswith(NETWORK_PREFIX)]
    known = {"", *(each.name for each in constants), *(name for node in nodes for name in node.output)}
    read = {name for node in nodes for name in node.input} - known
    has_bodies = any(attribute.HasField("g") for node in nodes for attribute in node.attribute)
    if len(read) != 1 or f"{NETWORK_PREFIX}{OUTPUT_NAME}" not in known or has_bodies:
        why, hint = "has no network in it that could be taken out", "write it again with `colorpress deploy`"
        raise InputError("model", path, why, hint)
    names = {read.pop(): INPUT_NAME, **{name: name.removeprefix(NETWORK_PREFIX) for name in known}}
    network = onnx.ModelProto()
    network.CopyFrom(whole)
    del network.metadata_props[:]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", channels, "H", "W"])
        for name, channels in ((INPUT_NAME, 1), (OUTPUT_NAME, 2))
    ]
    network.graph.CopyFrom(helper.make_graph(nodes, "network", values[:1], values[1:], constants))
    for node in network.graph.node:
        node.name = node.name.removeprefix(NETWORK_PREFIX)
        node.input[:], node.output[:] = ([names[each] for each in part] for part in (node.input, node.output))
    for tensor in network.graph.initializer:
        tensor.name = names[tensor.name]
    _pad_all_axes_(network.graph)
    return network


def _pad_all_axes_(network: onnx.GraphProto) -> None:
    """Padding as `build_graph` wrote it, where an earlier version named two axes; what crops by them goes on so."""
    ours = [node for node in network.node if node.op_type == "Pad" and list(node.input[3:]) == ["pad.axes"]]
    if not ours:
        return
    amounts = {"pad.begin": [0] * 6, "up.border": [0, 0, 1, 1] * 2}
    crops = {"pad.begin": "crop.begin", "pad.axes": "crop.axes"}
    for node in ours:
        del node.input[2:]
    for node in network.node:
        if node.op_type == "Slice":
            node.input[:] = [crops.get(each, each) for each in node.input]
    constants = []
    for tensor in network.initializer:
        value = numpy_helper.to_array(tensor)
        constants += [
            numpy_helper.from_array(np.array(amounts.get(tensor.name, value), value.dtype), tensor.name),
            numpy_helper.from_array(value, crops.get(tensor.name, "")),
        ]
    read = {name for node in network.node for name in node.input if name}
    del network.initializer[:]
    network.initializer.extend(each for each in constants if each.name in read)
