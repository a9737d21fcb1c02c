"""A single convolution as ONNX Runtime runs it: the right graph, and more work takes more time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime as ort
import pytest

from export.conv_latency import ConvShape, build_convolution, time_convolution

CONV = ConvShape(False, 8, 12, (3, 3), (1, 1), (1, 1), (1, 1), 1, 10, 14)


@pytest.mark.parametrize(
    ("shape", "operators", "answer"),
    [
        (CONV, ["Conv"], (1, 12, 10, 14)),
        (replace(CONV, stride=(2, 2)), ["Conv"], (1, 12, 5, 7)),
        (replace(CONV, groups=4, kernel=(5, 3), padding=(2, 1)), ["Conv"], (1, 12, 10, 14)),
        (replace(CONV, inputs=12, groups=12), ["Conv"], (1, 12, 10, 14)),
        (ConvShape(True, 8, 12, (2, 2), (2, 2), (0, 0), (1, 1), 1, 10, 14), ["Conv", "DepthToSpace"], (1, 12, 20, 28)),
        (ConvShape(True, 8, 12, (4, 4), (2, 2), (1, 1), (1, 1), 2, 10, 14), ["ConvTranspose"], (1, 12, 20, 28)),
    ],
)
def test_the_graph_is_that_of_the_layer(shape: ConvShape, operators: list[str], answer: tuple[int, ...]) -> None:
    model = build_convolution(shape)
    assert [node.op_type for node in model.graph.node] == operators
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    picture = np.zeros((1, shape.inputs, shape.height, shape.width), np.float32)
    assert session.run(None, {"x": picture})[0].shape == answer


def test_far_more_work_takes_more_time_and_a_shape_is_timed_once() -> None:
    small, large = replace(CONV, height=16, width=16), replace(CONV, inputs=64, outputs=64, height=64, width=64)
    assert 0 < time_convolution(small, 1) < time_convolution(large, 1)
    assert time_convolution(small, 1) == time_convolution(small, 1)  # a second measurement would differ
