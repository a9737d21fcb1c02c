"""The end of an affine network's ONNX graph, ab = B + A (L - 1/2), and the graph without it; imports no torch.

What it computes is defined by `training.network.apply_field`.
"""

from __future__ import annotations

import onnx
from onnx import helper

# Short, since in the smallest files names weigh as much as weights.
BASE_NAME, SLOPE_NAME = "field.b", "field.a"
_SHIFTED, _PRODUCT = "field.l", "field.al"


def field_nodes(lightness: str, half: str, answer: str) -> list[onnx.NodeProto]:
    """The nodes behind B and A, both (N, 2, H, W).

    Args:
        lightness, answer: names of L (N, 1, H, W) and of ab (N, 2, H, W).
        half: of a constant, 1/2.
    """
    return [
        helper.make_node("Sub", [lightness, half], [_SHIFTED], _SHIFTED),
        helper.make_node("Mul", [SLOPE_NAME, _SHIFTED], [_PRODUCT], _PRODUCT),
        helper.make_node("Add", [BASE_NAME, _PRODUCT], [answer], "field"),
    ]


def is_affine(graph: onnx.GraphProto) -> bool:
    """Whether a bare network ends in an affine field."""
    return any(SLOPE_NAME in node.output for node in graph.node)


def take_field(network: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of a bare network that answers its field, (N, 4, H, W): B and A; of one without a field, the copy alone.

    The answer keeps its name.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(network)
    if not is_affine(copy.graph):
        return copy
    (answer,) = copy.graph.output
    left = [node for node in copy.graph.node if not {_SHIFTED, _PRODUCT, answer.name}.intersection(node.output)]
    del copy.graph.node[:]
    copy.graph.node.extend([*left, helper.make_node("Concat", [BASE_NAME, SLOPE_NAME], [answer.name], "field", axis=1)])
    read = {name for node in copy.graph.node for name in node.input}
    constants = [tensor for tensor in copy.graph.initializer if tensor.name in read]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(constants)
    answer.type.tensor_type.shape.dim[1].dim_value = 4
    return copy
