"""What a single convolution costs in ONNX Runtime: the table that pruning for latency chooses by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from export.latency_worker import time_calls
from export.sessions import open_session

_OPSET = 18
_WARMUP = 3
_RUNS, _SECONDS = 5, 0.03


@dataclass(frozen=True)
class ConvShape:
    """All that the time of a convolution depends on.

    Attributes:
        transposed: whether it is a ConvTranspose2d.
        inputs, outputs: channels.
        height, width: of its input, in pixels.
    """

    transposed: bool
    inputs: int
    outputs: int
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    height: int
    width: int


# Milliseconds of one call for one picture.
ConvTimer = Callable[[ConvShape], float]


@cache
def time_convolution(shape: ConvShape, threads: int = 0) -> float:
    """Milliseconds of one call on this machine: the shortest of several, since noise only ever adds.

    The graph is what export makes of the layer: a transposed convolution of 2x2 and stride 2 is a 1x1 convolution and
    DepthToSpace. Alone it also pays for changing the layout of its input and output, which in a whole network
    neighbours share: times of different counts can be compared, but do not add up to the network's.

    Args:
        threads: of the CPU; 0: one per core.
    """
    session = open_session(Path("convolution"), build_convolution(shape).SerializeToString(), threads=threads)
    picture = np.random.default_rng(0).random((1, shape.inputs, shape.height, shape.width), dtype=np.float32)
    for _ in range(_WARMUP):
        session.run(None, {"x": picture})
    return min(time_calls(lambda: session.run(None, {"x": picture}), _RUNS, _SECONDS)) / 1e6


def build_convolution(shape: ConvShape) -> onnx.ModelProto:
    """An ONNX model `x` (1, inputs, height, width) -> `y` of one convolution with random weights."""
    is_shuffle = shape.transposed and shape.kernel == shape.stride == (2, 2) and shape.groups == 1
    if is_shuffle:
        outputs = 4 * shape.outputs
        sides: tuple[int, ...] = (outputs, shape.inputs, 1, 1)
        nodes = [
            helper.make_node("Conv", ["x", "weight", "bias"], ["wide"]),
            helper.make_node("DepthToSpace", ["wide"], ["y"], blocksize=2),
        ]
    else:
        outputs, operator = shape.outputs, "ConvTranspose" if shape.transposed else "Conv"
        first, second = (shape.inputs, outputs) if shape.transposed else (outputs, shape.inputs)
        sides = (first, second // shape.groups, *shape.kernel)
        attributes: dict[str, Any] = {"strides": shape.stride, "pads": shape.padding * 2, "dilations": shape.dilation}
        nodes = [helper.make_node(operator, ["x", "weight", "bias"], ["y"], group=shape.groups, **attributes)]
    weight = np.random.default_rng(1).standard_normal(sides).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "convolution",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, shape.inputs, shape.height, shape.width])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "weight"), numpy_helper.from_array(np.zeros(outputs, np.float32), "bias")],
    )
    imports = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=imports, ir_version=helper.find_min_ir_version_for(imports))
