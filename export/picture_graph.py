"""The deployable graph: pixels in, pixels out, with all the picture work in plain ONNX operators.

Around the bare network stand, in this order: the picture averaged down to the working size; its lightness; the
network; its answer up-sampled to the picture's size; and colour put under the luminance of every single pixel. An
affine network's answer is up-sampled before lightness makes colours of it, so these follow the full-size one. What
is done at full size is done in stripes of rows (Loop), so memory does not grow with the picture but for its pixels,
and what one operator leaves is in the cache when the next one reads it.

ONNX Runtime has no fast power or choice (a Pow costs as much as 30 multiplications). So at full size the curves of sRGB
and Lab are looked up in tables by GatherElements (Gather costs twelve times as much), which are worked out when the
graph is opened, from exact formulas; in a plain graph, for accelerators, they are polynomials of roots, with their
linear toes as clips. At the working size they are exact.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, compose, helper, numpy_helper
from onnx.helper import make_tensor_value_info as make_value

from colorpress.core.errors import InputError
from export.affine_field import is_affine, take_field
from export.picture_contract import (
    COLORIZED_NAME,
    DEFAULT_WORK_SIZE,
    IMAGE_NAME,
    LARGEST_ASPECT,
    SATURATION_NAME,
    WORK_SIZE_NAME,
)
from export.predictors import INPUT_NAME, OUTPUT_NAME
from export.sessions import open_session
from training.cie import AB_SCALE, LAB_EPSILON, LAB_KNEE, LAB_OFFSET, LAB_SLOPE, RGB_TO_XYZ, WHITE

# Of all names inside the network.
NETWORK_PREFIX = "network."
# Steps of the tables of f(Y) and of sRGB. An error of f counts many times where one colour is nearly black beside a
# bright one, a quarter of a grey level here; the table of sRGB is a fifth of a level off at most, in its toe.
_F_STEPS, _SRGB_STEPS = 1 << 14, 1 << 13
# Pixels of a stripe: a float plane of them fits a core's second-level cache.
_STRIPE_PIXELS = 1 << 17
# And its rows, since it is enlarged by a matrix of as many rows and, in a picture that is not shrunk, columns.
_STRIPE_ROWS = 512
# What depends on the size of a picture alone is a constant of a graph for one size, up to so many bytes.
_FOLDED_BYTES = 1 << 16
# Values that triangles are laid over at a time.
_GATHERED_VALUES = 1 << 20


@dataclass(frozen=True)
class Curve:
    """y = sum of upper[i] z^i + toe * clip(x, 0, low), with z of a part of x.

    Attributes:
        upper: of z^0, z^1, ..., z = max(x, low)^(1 / root).
        low: where the line ends, and the upper part begins.
        toe: slope of the line up to `low`.
        root: 1, 2 or 4.
    """

    upper: tuple[float, ...]
    low: float
    toe: float
    root: int = 1

    def of(self, unit: float) -> Curve:
        """The same curve of x counted in `unit`; for one of root 1."""
        return Curve(
            upper=tuple(each / unit**power for power, each in enumerate(self.upper)),
            low=self.low * unit,
            toe=self.toe / unit,
        )


# The factors are minimax over [0, 1], found by linear programming. An error of the luminance counts several times
# where one colour is nearly black beside a bright one: a grey level there needs a 30th of a level here.
# Linear light to sRGB; within 0.06 of a grey level, 1 / 255.
SRGB_FROM_LINEAR = Curve(
    upper=(-0.112403718, 0.255893143, 0.952421539, -0.136749128),
    low=0.003177966,
    toe=12.78302,
    root=4,
)
# Y to f(Y) = (L* + 16) / 116; within 0.007 of a level, of which 296 are one of f.
F_FROM_Y = Curve(
    upper=(-0.088317552101, 0.547225938673, 0.704567399013, -0.309184805134, 0.076467595044),
    low=0.0089,
    toe=0.069262411134 / 0.0089,
    root=4,
)
# sRGB to linear light; within 0.013 of a level of f(Y).
LINEAR_FROM_SRGB = Curve(
    upper=(-0.0022779452958, 0.0326944184844, 0.519378478142, 0.668165266849, -0.309531298238, 0.0884973457373),
    low=10.5 / 255.0,
    toe=0.0031982241438 / (10.5 / 255.0),
)


class _Graph:
    """Nodes and constants of a graph under construction; operators are called by name and answer a value's name.

    Attributes:
        plain: no Loop and no If are made.
    """

    def __init__(self, prefix: str, *, plain: bool = False) -> None:
        self.prefix, self.plain = prefix, plain
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[tuple[str, tuple[int, ...], bytes], onnx.TensorProto] = {}

    def __call__(self, operator: str, *inputs: Any, outputs: int = 1, **attributes: Any) -> Any:
        """Add a node; inputs are names of values, "" for none, or arrays, which become constants."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        # Short names, and none for the nodes: beside a small network they weigh more than its weights.
        made = [f"{self.prefix}{len(self.nodes)}" + (f".{k}" if k else "") for k in range(outputs)]
        self.nodes.append(helper.make_node(operator, names, made, **attributes))
        return made[0] if outputs == 1 else made

    def constant(self, value: Any) -> str:
        """The name of a constant: Python's floats are float32, integers int64."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray | np.generic):
            array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = numpy_helper.from_array(array, f"{self.prefix}c.{len(self.constants)}")
        return self.constants[key].name

    def split(self, value: str, count: int = 2) -> Any:
        """The `count` equal parts of a value along its first axis."""
        return self("Split", value, outputs=count, axis=0, num_outputs=count)

    def as_float(self, value: str) -> str:
        return str(self("Cast", value, to=TensorProto.FLOAT))

    def range(self, count: str) -> str:
        """0 ... count - 1, int64; `count` is a vector of one."""
        return str(self("Range", 0, self("Squeeze", count), 1))

    def as_part(self, outputs: Mapping[str, int], inputs: Mapping[str, int] = MappingProxyType({})) -> onnx.GraphProto:
        """This graph as a branch of If or the body of Loop; names of values to their types."""
        given = [make_value(name, kind, []) for name, kind in inputs.items()]
        # Whether to go on is a number; the shape of all else is not known here.
        left = [make_value(name, kind, [] if kind == TensorProto.BOOL else None) for name, kind in outputs.items()]
        return helper.make_graph(self.nodes, self.prefix[:-1], given, left, list(self.constants.values()))


def build_picture_graph(
    network: onnx.ModelProto,
    *,
    work_size: int = DEFAULT_WORK_SIZE,
    saturation: float = 1.0,
    plain: bool = False,
    size: tuple[int, int] | None = None,
) -> onnx.ModelProto:
    """Put the picture work around a bare network, L (N, 1, H, W) to ab (N, 2, H, W), float or int8.

    The graph reads `image`, uint8 (N, H, W, 3) sRGB or (N, H, W, 1) grey, any N, H, W >= 1, and answers `colorized`,
    uint8 (N, H, W, 3) sRGB. Two more inputs may be given: `work_size`, int64, the short side that the network sees, in
    pixels (smaller pictures are not enlarged), and `saturation`, float32, by which its chroma is multiplied.

    Args:
        network: a model that `export_onnx`, `quantize_onnx` or `pack_onnx` wrote; it is not changed.
        work_size, saturation: what is taken where none is given.
        plain: without Loop and If, for what cannot run control flow: all rows at once, in memory that grows with the
            picture by some hundred bytes a pixel. It has no other inputs than `image`, so that a runtime that is told
            N, H, W and C works out all else once.
        size: rows and columns of a plain graph that takes that size alone: `image` is (1, H, W, 3), and what depends on
            the size alone is in constants.
    Raises:
        InputError: the network has other inputs or outputs.
    """
    inner = compose.add_prefix(take_field(network), NETWORK_PREFIX)
    names = [[value.name for value in values] for values in (inner.graph.input, inner.graph.output)]
    if names != [[f"{NETWORK_PREFIX}{INPUT_NAME}"], [f"{NETWORK_PREFIX}{OUTPUT_NAME}"]]:
        raise InputError("model", None, f"has inputs and outputs {names}", "give a model that colorpress exported")
    g = _Graph("picture.", plain=plain or size is not None)
    count, height, width, channels = g.split(g("Shape", IMAGE_NAME), 4)
    image = IMAGE_NAME
    if g.plain:
        channels = g.constant([3])
        image = IMAGE_NAME if size else g("Expand", IMAGE_NAME, [1, 1, 1, 3])
    small, block = _choose_sizes(g, height, width)
    rows = g("Reshape", image, g("Concat", [-1], width, channels, axis=0))  # (N * H, W, C)
    code = _shrink(g, rows, (count, height, width, channels), small, block)  # (N, C, h, w)
    lightness = _measure_lightness(g, code)  # (N, 1, h, w)
    before = len(g.nodes)
    shape = (count, height, width, channels)
    _put_under_luminance(g, rows, f"{NETWORK_PREFIX}{OUTPUT_NAME}", shape, small, affine=is_affine(network.graph))
    g.nodes[-1].output[0] = COLORIZED_NAME
    for node in inner.graph.node:
        node.input[:] = [lightness if each == f"{NETWORK_PREFIX}{INPUT_NAME}" else each for each in node.input]
    inputs = [make_value(IMAGE_NAME, TensorProto.UINT8, ["N", "H", "W", "C"])]
    if not g.plain:
        inputs.append(make_value(WORK_SIZE_NAME, TensorProto.INT64, []))
        inputs.append(make_value(SATURATION_NAME, TensorProto.FLOAT, []))
    outputs = [make_value(COLORIZED_NAME, TensorProto.UINT8, ["N", "H", "W", 3])]
    initializers = [
        numpy_helper.from_array(np.array(work_size, np.int64), WORK_SIZE_NAME),
        numpy_helper.from_array(np.array(saturation, np.float32), SATURATION_NAME),
        *g.constants.values(),
        *inner.graph.initializer,
    ]
    nodes = [*g.nodes[:before], *inner.graph.node, *g.nodes[before:]]
    graph = helper.make_graph(nodes, "colorizer", inputs, outputs, initializers)
    model = helper.make_model(
        graph,
        producer_name=network.producer_name,
        producer_version=network.producer_version,
        opset_imports=list(network.opset_import),
        ir_version=network.ir_version,
    )
    return _fix_size(model, *size) if size else model


def _fix_size(model: onnx.ModelProto, height: int, width: int) -> onnx.ModelProto:
    """The graph for one size: what depends on sizes alone is in constants.

    A picture of that size is coloured once, and what it leaves of these values taken from there, so they are what the
    graph for any size computes. Large ones, which are matrices, stay computed from small ones.
    """
    fixed = onnx.ModelProto()
    fixed.CopyFrom(model)
    graph = fixed.graph
    for value in (graph.input[0], graph.output[0]):
        value.CopyFrom(make_value(value.name, TensorProto.UINT8, [1, height, width, 3]))
    constants = {tensor.name for tensor in graph.initializer}
    of_sizes = {WORK_SIZE_NAME, SATURATION_NAME}
    for node in graph.node:
        read = {name for name in node.input if name}
        # Not what is of constants alone in the network: it unpacks weights.
        counts = read & of_sizes or not node.output[0].startswith(NETWORK_PREFIX)
        if node.op_type == "Shape" or (counts and read <= of_sizes | constants):
            of_sizes.update(node.output)
    values = _compute(fixed, sorted(of_sizes - constants), np.zeros((1, height, width, 3), np.uint8))
    small = {name: value for name, value in values.items() if value.nbytes <= _FOLDED_BYTES}
    left: list[onnx.NodeProto] = []
    needed = {COLORIZED_NAME}
    for node in reversed(graph.node):
        if needed.difference(small).intersection(node.output):
            left.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(left))
    tensors = [tensor for tensor in graph.initializer if tensor.name in needed]
    tensors += [numpy_helper.from_array(value, name) for name, value in small.items() if name in needed]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
    return fixed


def _compute(model: onnx.ModelProto, names: Sequence[str], image: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
    """Values inside a picture graph, of one picture."""
    asked = onnx.ModelProto()
    asked.CopyFrom(model)
    del asked.graph.output[:]
    asked.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = open_session(Path("colorizer.onnx"), asked.SerializeToString(), threads=1)
    return dict(zip(names, session.run(None, {IMAGE_NAME: image}), strict=True))


def keep_lightness(whole: onnx.ModelProto) -> onnx.ModelProto:
    """The part of a picture graph up to its network: `image` to what the network reads, L (N, 1, h, w) in [0, 1]."""
    nodes = [node for node in whole.graph.node if node.output[0].startswith(NETWORK_PREFIX)]
    known = {"", *(each.name for each in whole.graph.initializer), *(name for node in nodes for name in node.output)}
    (lightness,) = {name for node in nodes for name in node.input} - known
    kept = onnx.ModelProto()
    kept.CopyFrom(whole)
    kept.graph.output[0].CopyFrom(make_value(lightness, TensorProto.FLOAT, ["N", 1, "h", "w"]))
    return kept


def _choose_sizes(g: _Graph, height: str, width: str) -> tuple[str, str]:
    """The sides that the network sees, and the side of the squares that are averaged first; int64 vectors.

    In whole numbers, as `export.picture_contract.working_size`: they are exact wherever they are worked out, and
    runtimes for browsers have no float64.
    """
    long, short = g("Max", height, width), g("Min", height, width)
    scale = 2 * LARGEST_ASPECT
    work = g("Mul", WORK_SIZE_NAME, [scale])
    seen = g("Add", long, g("Mul", short, [LARGEST_ASPECT]))
    seen = g("Max", g("Max", seen, g("Mul", short, [scale])), work)
    twice = g("Mul", work, [2])
    sides = g("Add", g("Mul", g("Concat", height, width, axis=0), twice), seen)
    small = g("Max", g("Div", sides, g("Mul", seen, [2])), [1])
    # At least two of the averages lie under a pixel of the working size.
    return small, g("Max", g("Div", seen, twice), [1])


class _Stripes:
    """How the rows of pictures are gone through: a stripe at a time in a Loop or, in a plain graph, all at once.

    What is done for each stripe is added to `body`: that of the loop, or of a plain graph the graph itself, where one
    stripe holds all rows of all pictures.

    Args:
        g: the graph around.
        prefix: of names in the loop.
        count, length, width: of pictures, of rows of each and of values in a row; vectors of one.
        values: of a stripe, at most.
    Attributes:
        high: rows of a stripe, a vector of one.
        picture: which the stripe is of; (1, 1), or in a plain graph (N, 1).
        first: the first row of it in its picture; (1, 1).
    """

    def __init__(self, g: _Graph, prefix: str, count: str, length: str, width: str, values: int) -> None:
        self.graph, self.count, self.length = g, count, length
        if g.plain:
            self.body, self.high, self.stripes = g, length, g.constant([1])
            self.picture, self.first = g("Unsqueeze", g.range(count), [1]), g.constant([[0]])
            return
        self.body = _Graph(prefix)
        self.high = g("Min", g("Min", g("Max", g("Div", [values], width), [1]), [_STRIPE_ROWS]), length)
        self.stripes = g("Div", g("Sub", g("Add", length, self.high), [1]), self.high)
        number, stripes, high = f"{prefix}number", *(g("Unsqueeze", each, [1]) for each in (self.stripes, self.high))
        self.picture = self.body("Div", number, stripes)
        self.first = self.body("Mul", self.body("Mod", number, stripes), high)

    def join(self, result: str, kind: int, *rest: str | list[int]) -> str:
        """What the body leaves of all stripes, as (N, rows, *rest): as many rows as there are, or some behind them."""
        rows = self.graph("Mul", self.stripes, self.high)
        shape = self.graph("Concat", self.count, rows, *rest, axis=0)
        return str(self.graph("Reshape", self._loop(result, kind), shape))

    def cut(self, joined: str) -> str:
        """What was joined, without what is behind the rows."""
        return joined if self.graph.plain else str(self.graph("Slice", joined, [0], self.length, [1]))

    def _loop(self, result: str, kind: int) -> str:
        if self.graph.plain:
            return result
        going = f"{self.body.prefix}going"
        go_on = self.body("Identity", going)
        inputs = {f"{self.body.prefix}number": TensorProto.INT64, going: TensorProto.BOOL}
        part = self.body.as_part({go_on: TensorProto.BOOL, result: kind}, inputs)
        times = self.graph("Squeeze", self.graph("Mul", self.count, self.stripes))
        return str(self.graph("Loop", times, "", body=part))


def _shrink(g: _Graph, rows: str, shape: tuple[str, str, str, str], small: str, block: str) -> str:
    """sRGB codes 0 ... 255 at the working size, float32 (N, C, h, w).

    First squares are averaged, then a triangle of two working pixels' width is laid over the averages.
    """
    count, height, width, channels = shape
    blocks = g("Div", g("Sub", g("Add", g("Concat", height, width, axis=0), block), [1]), block)
    tall, wide = g.split(blocks)
    over = _Stripes(g, "shrink.", count, tall, g("Mul", g("Mul", width, channels), block), _STRIPE_PIXELS)
    inner_rows = g.range(g("Mul", over.high, block))
    last_row = g("Sub", height, [1])
    extra = g("Sub", g("Mul", wide, block), width)
    pads = g("Concat", [0, 0, 0, 0], extra, [0], axis=0)
    row_shape = g("Concat", [-1], block, g("Mul", width, channels), axis=0)
    flat_shape = g("Concat", [-1], width, channels, axis=0)
    across = g("Mul", block, channels)
    block_shape = g("Concat", [-1], across, axis=0)
    # A product, since ReduceSum is quick over the middle one of three axes only, and to turn squares takes as long.
    channel = g.range(channels)
    adder = g.as_float(g("Equal", g("Unsqueeze", g("Mod", g.range(across), channels), [1]), channel))  # (block * C, C)
    adder = g("Div", adder, g.as_float(g("Mul", block, block)))
    b = over.body
    at = b("Min", b("Add", inner_rows, b("Mul", over.first, block)), last_row)
    at = b("Add", at, b("Mul", over.picture, height))
    values = b("Reshape", b.as_float(b("Gather", rows, at, axis=0)), row_shape)  # (rows, block, W * C)
    sums = b("Reshape", b("ReduceSum", values, [1], keepdims=0), flat_shape)  # (rows, W, C)
    squares = b("Reshape", b("Pad", sums, pads, mode="edge"), block_shape)  # (rows * columns, block * C)
    averages = b("MatMul", squares, adder)  # (rows * columns, C)
    averaged = over.join(averages, TensorProto.FLOAT, g("Mul", wide, channels))  # (N, rows, columns * C)
    step = g("Div", g.as_float(g("Concat", height, width, axis=0)), g.as_float(g("Mul", small, block)))
    small_high, small_wide = g.split(small)
    step_high, step_wide = g.split(step)
    short = _lay_triangles(g, "rows.", averaged, tall, small_high, step_high)  # (N, h, columns * C)
    short = g("Reshape", short, g("Concat", count, small_high, wide, channels, axis=0))
    turned = g("Transpose", short, perm=[0, 2, 3, 1])  # (N, columns, C, h)
    turned = g("Reshape", turned, g("Concat", count, wide, g("Mul", channels, small_high), axis=0))
    shape_4d = g("Concat", count, small_wide, channels, small_high, axis=0)
    narrow = _lay_triangles(g, "columns.", turned, wide, small_wide, step_wide)  # (N, w, C * h)
    return str(g("Transpose", g("Reshape", narrow, shape_4d), perm=[0, 2, 3, 1]))


def _lay_triangles(g: _Graph, prefix: str, values: str, used: str, small: str, step: str) -> str:
    """(N, length, M) to (N, small, M): output i is a triangle around (i + 1/2) step - 1/2, weights adding to 1.

    Only the first `used` of the length count. `prefix` is of names in the loop, which lays some of them at a time.
    """
    reach = g("Max", step, 1.0)
    center = g("Sub", g("Mul", g("Add", g.as_float(g.range(small)), 0.5), step), 0.5)
    taps = g.range(g("Cast", g("Add", g("Ceil", g("Mul", reach, 2.0)), 1.0), to=TensorProto.INT64))
    first = g("Cast", g("Floor", g("Sub", center, reach)), to=TensorProto.INT64)
    index = g("Add", g("Unsqueeze", first, [1]), taps)  # (small, taps)
    distance = g("Abs", g("Sub", g("Unsqueeze", center, [1]), g.as_float(index)))
    near = g("Relu", g("Sub", 1.0, g("Div", distance, reach)))
    inside = g("And", g("GreaterOrEqual", index, 0), g("Less", index, used))
    near = g("Mul", near, g.as_float(inside))
    weights = g("Div", near, g("ReduceSum", near, [1], keepdims=1))
    index = g("Max", g("Min", index, g("Sub", used, [1])), 0)
    weights = g("Unsqueeze", weights, [2])
    count, length, across = g.split(g("Shape", values), 3)
    over = _Stripes(g, prefix, count, small, g("Mul", across, g("Shape", taps)), _GATHERED_VALUES)
    stripe_rows, last_row = g.range(over.high), g("Sub", small, [1])
    b = over.body
    at = b("Min", b("Add", stripe_rows, over.first), last_row)  # (1, rows)
    near = b("Add", b("Gather", index, at, axis=0), b("Unsqueeze", b("Mul", over.picture, length), [2]))
    flat = g("Reshape", values, g("Concat", [-1], across, axis=0))  # (N * length, M)
    # (1 or N, rows, taps, M)
    gathered = b("Mul", b("Gather", flat, near, axis=0), b("Gather", weights, at, axis=0))
    return over.cut(over.join(b("ReduceSum", gathered, [2], keepdims=0), TensorProto.FLOAT, across))


def _measure_lightness(g: _Graph, code: str) -> str:
    """L (N, 1, h, w) of sRGB codes (N, C, h, w), exactly."""
    linear = _light_of(g, g("Div", code, 255.0))  # (N, C, h, w)
    weights = np.array(RGB_TO_XYZ[1], np.float32).reshape(1, 3, 1, 1)
    # One channel of grey counts as three equal ones: the weights add to 1.
    y = g("ReduceSum", g("Mul", linear, weights), [1], keepdims=1)  # (N, 1, h, w)
    return str(g("Sub", g("Mul", _lab_of(g, y), 1.16), 0.16))


def _light_of(g: _Graph, srgb: str) -> str:
    """Linear light of sRGB in [0, 1], exactly."""
    power = g("Pow", g("Div", g("Add", srgb, 0.055), 1.055), 2.4)
    return str(g("Where", g("Greater", srgb, 0.04045), power, g("Div", srgb, 12.92)))


def _lab_of(g: _Graph, y: str) -> str:
    """f(Y) of Lab, exactly."""
    root = g("Pow", g("Max", y, LAB_EPSILON), 1.0 / 3.0)
    return str(g("Where", g("Greater", y, LAB_EPSILON), root, g("Add", g("Mul", y, LAB_SLOPE), LAB_OFFSET)))


def _put_under_luminance(
    g: _Graph, rows: str, field: str, shape: tuple[str, str, str, str], small: str, *, affine: bool
) -> None:
    """Add the last nodes: `field` (N, 2, h, w) enlarged, under the luminance of `rows` (N * H, W, C).

    Where it is affine, (N, 4, h, w), each pixel's own lightness makes ab of it.
    """
    count, height, width, channels = shape
    small_high, small_wide = g.split(small)
    # f of Lab is 0.2069 where its curve becomes a line; here all f are scaled so that the line's part of X, Y, Z
    # is a plain clip: X = knee_xyz * ((scaled max(f, knee))^3 + clip(f / knee, 0, 1) - 1).
    knee = LAB_KNEE
    knee_xyz = knee / LAB_SLOPE
    scale = knee_xyz ** (-1.0 / 3.0)
    ratio = g("Div", g.as_float(small), g.as_float(g("Concat", height, width, axis=0)))
    ratio_high, ratio_wide = g.split(ratio)
    last_row, last_small, last_column = (g("Sub", each, [1]) for each in (height, small_high, small_wide))
    # The columns are enlarged at once, with w in front, so that what is gathered are long rows: (W, K * N * h), K 2 or
    # 4 channels.
    turned = g("Transpose", field, perm=[3, 1, 0, 2])  # (w, K, N, h)
    turned = g("Reshape", turned, g("Concat", small_wide, [-1], axis=0))  # (w, K * N * h)
    at = g("Sub", g("Mul", g("Add", g.as_float(g.range(width)), 0.5), ratio_wide), 0.5)
    at = g("Min", g("Max", at, 0.0), g.as_float(last_column))
    left = g("Cast", at, to=TensorProto.INT64)
    share = g("Unsqueeze", g("Sub", at, g.as_float(left)), [1])
    left, right = (g("Gather", turned, each, axis=0) for each in (left, g("Min", g("Add", left, 1), last_column)))
    enlarged = g("Add", left, g("Mul", g("Sub", right, left), share))  # (W, K * N * h)
    kinds = [4 if affine else 2]
    enlarged = g("Reshape", g("Transpose", enlarged, perm=[1, 0]), g("Concat", kinds, [-1], width, axis=0))
    gains = [g("Mul", SATURATION_NAME, scale * AB_SCALE / each) for each in (500.0, -200.0)]

    def offsets(of_x: str, of_z: str) -> str:
        """Of fx and fz from f of the luminance, scaled as all f: (2, N * h, W) of two planes of ab."""
        return str(g("Concat", *(g("Mul", each, gain) for each, gain in zip((of_x, of_z), gains, strict=True)), axis=0))

    factor = ""
    if affine:
        base_x, base_z, slope_x, slope_z = g.split(enlarged, 4)
        base, slope = offsets(base_x, base_z), offsets(slope_x, slope_z)
        # f + base + slope (L - 1/2), where L = 1.16 f - 0.16, is a factor of f and an offset.
        factor = g("Add", g("Mul", slope, 1.16 / scale), 1.0)
        enlarged = g("Sub", base, g("Mul", slope, 0.66))
    else:
        enlarged = offsets(*g.split(enlarged))

    over = _Stripes(g, "colour.", count, height, width, _STRIPE_PIXELS)
    reach = g("Ceil", g("Mul", g.as_float(over.high), ratio_high))
    near_rows = g.range(g("Add", g("Cast", reach, to=TensorProto.INT64), [2]))
    stripe_rows = g.range(over.high)

    b = over.body
    at = b("Min", b("Add", stripe_rows, over.first), last_row)  # (1, rows)
    lies = b("Sub", b("Mul", b("Add", b.as_float(at), 0.5), ratio_high), 0.5)
    base = b("Cast", b("Floor", b("Gather", lies, [0], axis=1)), to=TensorProto.INT64)
    near = b("Add", near_rows, base)  # (1, near)
    distance = b("Abs", b("Sub", b("Reshape", lies, [-1, 1]), b.as_float(near)))
    weights = b("Relu", b("Sub", 1.0, distance))  # (rows, near)
    near = b("Min", b("Max", near, [0]), last_small)
    near = b("Add", near, b("Mul", over.picture, small_high))  # (1 or N, near)

    def enlarge_rows(value: str) -> str:
        enlarged = b("MatMul", weights, b("Gather", value, near, axis=1))  # (2, 1 or N, rows, W)
        return str(b("Reshape", enlarged, [2, -1]))

    offset = enlarge_rows(enlarged)
    if g.plain:
        f = _read_colours(g, rows, gain=scale)  # (1, P)
        y = _undo_lab(g, f, scale * knee)
    else:
        seen = b("Gather", rows, b("Add", at, b("Mul", over.picture, height)), axis=0)  # (1, rows, W, C)
        grey, colours = _Graph("grey."), _Graph("rgb.")
        is_grey = g("Equal", g("Squeeze", channels), 1)
        tables = _LuminanceTables(g, scale, 1.0 / knee_xyz)
        then_branch = grey.as_part(dict.fromkeys(tables.read_grey(grey, seen), TensorProto.FLOAT))
        else_branch = colours.as_part(dict.fromkeys(tables.read_colours(colours, seen), TensorProto.FLOAT))
        f, y = b("If", is_grey, then_branch=then_branch, else_branch=else_branch, outputs=2)  # (1, P) each
    f = b("Mul", f, enlarge_rows(factor)) if affine else f
    # X, Z and Y, since of Y it is known.
    xzy = b("Concat", _undo_lab(b, b("Add", offset, f), scale * knee), y, axis=0)  # (3, P)
    to_rgb = np.linalg.inv(np.array(RGB_TO_XYZ) / np.array(WHITE)[:, None])[:, [0, 2, 1]] * knee_xyz
    answer = _write_by_curve(b, to_rgb, xzy) if g.plain else _write_by_table(g, b, to_rgb, xzy)
    over.cut(over.join(answer, TensorProto.UINT8, width, [3]))


def _undo_lab(b: _Graph, f: str, knee: float) -> str:
    """(max(f, knee))^3 + clip(f / knee, 0, 1) - 1."""
    power = b("Max", f, knee)
    power = b("Mul", b("Mul", power, power), power)
    return str(b("Sub", power, b("HardSigmoid", f, alpha=-1.0 / knee, beta=1.0)))


def _write_by_table(g: _Graph, b: _Graph, to_rgb: NDArray[np.float64], xzy: str) -> str:
    """sRGB codes, uint8 (P, 3), of `to_rgb` times (3, P), which is linear light."""
    light = g("Div", g("Add", g.as_float(g("Range", 0, _SRGB_STEPS, 1)), 0.5), float(_SRGB_STEPS))
    power = g("Sub", g("Mul", g("Pow", g("Max", light, 0.0031308), 1.0 / 2.4), 1.055), 0.055)
    srgb = g("Where", g("Greater", light, 0.0031308), power, g("Mul", light, 12.92))
    table = g("Unsqueeze", g("QuantizeLinear", srgb, np.float32(1.0 / 255.0), np.uint8(0)), [0])  # (1, steps)
    step = b("MatMul", (to_rgb * _SRGB_STEPS).astype(np.float32), xzy)  # (3, P)
    step = b("Cast", b("Clip", step, 0.0, _SRGB_STEPS - 1.0), to=TensorProto.INT32)
    coded = b("GatherElements", table, b("Reshape", step, [1, -1]), axis=1)  # (1, 3 * P)
    return str(b("Transpose", b("Reshape", coded, [3, -1]), perm=[1, 0]))


def _write_by_curve(b: _Graph, to_rgb: NDArray[np.float64], xzy: str) -> str:
    """As `_write_by_table`, of operators that accelerators have.

    They have none to quantize, or to transpose what is uint8.
    """
    # In units in which the toe of the last curve is the light itself, and its leading factor -1.
    curve = SRGB_FROM_LINEAR
    constant, first_factor, second_factor, last_factor = curve.upper
    root = curve.toe / -last_factor
    unit, light = -last_factor * root**-3, root**4
    linear = b("MatMul", (to_rgb * light).astype(np.float32), xzy)  # (3, P)
    z = b("Sqrt", b("Sqrt", b("Max", linear, curve.low * light)))
    total = b("Mul", b("Sub", second_factor / unit / root**2, z), z)
    total = b("Mul", b("Add", total, first_factor / unit / root), z)
    total = b("Add", total, b("Clip", linear, 0.0, curve.low * light))
    level = b("Add", b("Mul", total, 255.0 * unit), 255.0 * constant + 0.5)
    level = b("Transpose", b("Clip", level, 0.0, 255.5), perm=[1, 0])  # (P, 3)
    return str(b("Cast", level, to=TensorProto.UINT8))


class _LuminanceTables:
    """f(Y) and Y of pixels, by tables in the graph around.

    Args:
        f_gain, y_gain: what f and Y are multiplied by.
    """

    def __init__(self, g: _Graph, f_gain: float, y_gain: float) -> None:
        light = _light_of(g, g("Div", g.as_float(g("Range", 0, 256, 1)), 255.0))
        self.grey_f = g("Unsqueeze", g("Mul", _lab_of(g, light), f_gain), [0])  # (1, 256)
        self.grey_y = g("Unsqueeze", g("Mul", light, y_gain), [0])
        # Of colours Y is summed in steps of the table of f, which is of the middle of each.
        self.parts = g(
            "Mul", light, np.array(RGB_TO_XYZ[1], np.float32)[:, None] * np.float32(_F_STEPS - 1)
        )  # (3, 256)
        middle = g("Add", g.as_float(g("Range", 0, _F_STEPS, 1)), 0.5)
        of_step = _lab_of(g, g("Div", middle, _F_STEPS - 1.0))
        self.step_f = g("Unsqueeze", g("Mul", of_step, f_gain), [0])  # (1, steps)
        self.step_gain = y_gain / (_F_STEPS - 1)

    def read_grey(self, h: _Graph, pixels: str) -> tuple[str, str]:
        """f and Y, float32 (1, P), of grey codes uint8, P of them."""
        code = h("Cast", h("Reshape", pixels, [1, -1]), to=TensorProto.INT32)  # (1, P)
        f, y = (h("GatherElements", table, code, axis=1) for table in (self.grey_f, self.grey_y))
        return f, y

    def read_colours(self, h: _Graph, pixels: str) -> tuple[str, str]:
        """f and Y, float32 (1, P), of sRGB codes uint8, P times 3."""
        code = h("Transpose", h("Reshape", pixels, [-1, 3]), perm=[1, 0])  # (3, P)
        parts = h("GatherElements", self.parts, h("Cast", code, to=TensorProto.INT32), axis=1)
        step = h("MatMul", np.ones((1, 3), np.float32), parts)  # (1, P)
        f = h("GatherElements", self.step_f, h("Cast", step, to=TensorProto.INT32), axis=1)
        return f, h("Mul", step, self.step_gain)


def _read_colours(h: _Graph, pixels: str, *, gain: float) -> str:
    """`gain` * f(Y), float32 (1, P), of sRGB codes uint8, P times 3."""
    # Accelerators transpose no uint8.
    code = h("Transpose", h.as_float(h("Reshape", pixels, [-1, 3])), perm=[1, 0])  # (3, P)
    curve = LINEAR_FROM_SRGB.of(255.0)
    # The leading factor is left to the sum over the channels.
    linear = _apply_curve(h, curve, code, gain=1.0 / curve.upper[-1])
    y = h("MatMul", (np.array([RGB_TO_XYZ[1]]) * curve.upper[-1]).astype(np.float32), linear)  # (1, P)
    return _apply_curve(h, F_FROM_Y, y, gain=gain)


def _apply_curve(g: _Graph, curve: Curve, value: str, *, gain: float) -> str:
    """`gain` * curve(value)."""
    z = g("Max", value, curve.low)
    for _ in range(round(math.log2(curve.root))):
        z = g("Sqrt", z)
    constant, *factors = (gain * each for each in curve.upper)
    total = g("Add", _evaluate(g, factors, z), constant)
    return str(g("Add", total, g("Mul", g("Clip", value, 0.0, curve.low), gain * curve.toe)))


def _evaluate(g: _Graph, factors: Sequence[float], value: str) -> str:
    """The polynomial of powers 1, 2, ... of a value."""
    total = value if math.isclose(factors[-1], 1.0) else g("Mul", value, factors[-1])
    for factor in reversed(factors[:-1]):
        total = g("Mul", g("Add", total, factor), value)
    return str(total)
