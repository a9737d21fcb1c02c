"""The multiply-accumulates of an ONNX file that came without its network."""

from __future__ import annotations

from math import prod
from pathlib import Path

import numpy as np

from export.sessions import open_session

_CONVOLUTIONS = ("Conv", "QLinearConv", "ConvTranspose")


def count_graph_macs(path: Path, *, size: int) -> int:
    """Multiply-accumulates of all convolutions for one picture of `size` squared; 0 where the graph does not run.

    As `compress.ranking.count_macs` counts those of a network. Shapes are found by running the graph once, since those
    of a graph for any size are not written in it.

    Args:
        path: the .onnx file, with input L (N, 1, H, W).
        size: in pixels.
    """
    import onnx

    model = onnx.load(str(path))
    nodes = [node for node in model.graph.node if node.op_type in _CONVOLUTIONS]
    # A transposed convolution multiplies at every pixel that it reads, the others at every one that they write.
    pictures = [node.input[0] if node.op_type == "ConvTranspose" else node.output[0] for node in nodes]
    weights = [node.input[3 if node.op_type == "QLinearConv" else 1] for node in nodes]
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    known = {each.name for each in (*model.graph.input, *model.graph.output)} | constants.keys()
    wanted = [name for name in dict.fromkeys((*pictures, *weights)) if name not in known]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    try:
        session = open_session(path, model.SerializeToString())
        picture = np.zeros((1, 1, size, size), np.float32)
        names = [each.name for each in session.get_outputs()]
        answers = session.run(names, {session.get_inputs()[0].name: picture})
    except Exception:  # its timing will say what is wrong with it
        return 0
    shapes = constants | {name: answer.shape for name, answer in zip(names, answers, strict=True)}
    if model.graph.input[0].name in pictures:
        shapes[model.graph.input[0].name] = picture.shape
    return sum(prod(shapes[image][2:]) * prod(shapes[weight]) for image, weight in zip(pictures, weights, strict=True))
