"""An exported ONNX graph as a torch network that can be trained, with its values rounded as int8 would round them.

What is tuned is the very graph that is shipped: batch norm folded, transposed convolutions rewritten, and 8-bit values
exactly where the file has them. So nothing about a network's own code needs to be known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor, nn

from colorpress.core.errors import InputError
from compress.derived_onnx import set_values_
from export.affine_field import is_affine
from training.network import ColorNetwork, GraphArchitecture

_COARSE_INPUT, _COARSE_OUTPUT = "pad", "ab.padded"
# What ONNX takes where a node says nothing.
_DEFAULTS: dict[str, Any] = {
    "pads": [0, 0, 0, 0],  # top, left, bottom, right
    "strides": [1, 1],
    "dilations": [1, 1],
    "output_padding": [0, 0],
    "group": 1,
    "ceil_mode": 0,
    "alpha": 0.01,
}
_LEVELS = 255  # above the lowest one
_CANNOT = "leave out what needs it: --equalize off"
# A step of training that moves a weight by the learning rate moves the bounds of a range by so many times that part of
# the range: weights hardly change, while a range may have to be half as wide.
_RANGE_STEP = 100.0


class GraphNetwork(ColorNetwork):
    """The part of an exported graph between padding and up-sampling or cropping; of an affine one it answers B and A.

    Its parameters are the weights and biases of the convolutions and, where values are rounded, the bounds of their
    ranges. Parameter names are those of the graph with "/" for ".".

    Args:
        model: as `export_onnx` writes it; it is not changed.
        rounded: values that are represented in 8 bits, with the range that they start with; none computes in float.
        rounded_layers: convolutions whose weights are in 8 bits.
        weight_levels: the largest integer of a weight, 127, or 64 of 7 bits.
    Raises:
        InputError: the graph holds an operator that is not known here.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        *,
        rounded: Mapping[str, tuple[float, float]] | None = None,
        rounded_layers: frozenset[str] = frozenset(),
        weight_levels: int = 127,
    ) -> None:
        super().__init__()
        constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        metadata = {entry.key: entry.value for entry in model.metadata_props}
        outputs = {name for node in model.graph.node for name in node.output}
        padded = _COARSE_INPUT in outputs
        self._source = _COARSE_INPUT if padded else model.graph.input[0].name
        self._target = _COARSE_OUTPUT if padded else model.graph.output[0].name
        self.size_multiple = int(constants["size.multiple"][0]) if padded else 1
        self.output_stride = round(1 / float(constants["up.step"])) if "up.step" in constants else 1
        self.affine = is_affine(model.graph)
        self._source_sha256 = metadata.get("source_sha256", "")
        self._nodes = _nodes_between(model.graph, self._source, self._target)
        self._attributes = {
            node.name: _DEFAULTS | {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
            for node in self._nodes
        }
        self.constants: dict[str, Any] = {}
        self.weights = nn.ParameterDict()
        for node in self._nodes:
            if unknown := _find_unknown(node, constants, self._attributes[node.name]):
                raise InputError("graph", None, f"{node.name} is {unknown}, which is not known here", _CANNOT)
            for place, name in enumerate(node.input):
                if name not in constants:
                    continue
                if node.op_type in ("Conv", "ConvTranspose") and place > 0:
                    self.weights[_key(name)] = nn.Parameter(torch.from_numpy(constants[name].copy()))
                else:
                    self.constants[name] = constants[name]
        bounds = {_key(name): torch.tensor(ends) for name, ends in (rounded or {}).items()}
        self._range_units = {key: _RANGE_STEP * float(ends[1] - ends[0]) or 1.0 for key, ends in bounds.items()}
        self.ranges = nn.ParameterDict(
            {key: nn.Parameter(ends / self._range_units[key]) for key, ends in bounds.items()}
        )
        self.rounded_layers, self.weight_levels = rounded_layers, weight_levels

    @property
    def architecture(self) -> GraphArchitecture:
        """Of which file it is; the graph itself is there."""
        return GraphArchitecture(self._source_sha256, self.size_multiple)

    def with_weights(self, state_dict: Mapping[str, Tensor]) -> ColorNetwork:
        raise InputError("graph", None, "a graph keeps its channels", "prune the checkpoint, before it is exported")

    def forward_coarse(self, lightness: Tensor) -> Tensor:
        return self.forward_values(lightness, frozenset({self._target}))[self._target]

    def forward_values(self, lightness: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
        """The values of the graph that are named `wanted`, for L (N, 1, H, W) of whole multiples; before rounding."""
        values: dict[str, Any] = {**self.constants, "": None, self._source: self._round(self._source, lightness)}
        found: dict[str, Tensor] = {}
        for node in self._nodes:
            inputs = [self._read(name, values) for name in node.input]
            if node.name in self.rounded_layers:
                inputs[1] = _round_weight(inputs[1], 0 if node.op_type == "Conv" else 1, self.weight_levels)
            answer = _OPERATORS[node.op_type](inputs, self._attributes[node.name])
            name = node.output[0]
            if name in wanted:
                found[name] = answer
                if len(found) == len(wanted):
                    break
            values[name] = self._round(name, answer)
        return found

    @property
    def value_names(self) -> frozenset[str]:
        """The names of all values that it computes."""
        return frozenset(node.output[0] for node in self._nodes)

    def forward_changed(self, lightness: Tensor, known: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> Tensor:
        """What `forward_coarse` would answer if some values were others; only what depends on them is computed.

        Args:
            lightness: L (N, 1, H, W) of whole multiples.
            known: all values, as `forward_values` of this network answered them; nothing is rounded.
            changed: those that are others, by name.
        """
        values: dict[str, Any] = {**self.constants, "": None, self._source: lightness, **known, **changed}
        stale = set(changed)
        for node in self._nodes:
            name = node.output[0]
            if name not in changed and not stale.isdisjoint(node.input):
                inputs = [self._read(each, values) for each in node.input]
                values[name] = _OPERATORS[node.op_type](inputs, self._attributes[node.name])
                stale.add(name)
        answer: Tensor = values[self._target]
        return answer

    def write_weights_(self, model: onnx.ModelProto) -> None:
        """Put the weights and biases into `model`, the graph that this network was made of."""
        for tensor in model.graph.initializer:
            if _key(tensor.name) in self.weights:
                set_values_(tensor, self.weights[_key(tensor.name)].detach().cpu().numpy())

    def read_ranges(self) -> dict[str, tuple[float, float]]:
        """The (low, high) of every value that is rounded, zero included."""
        bounds = {key: (value.detach() * self._range_units[key]).tolist() for key, value in self.ranges.items()}
        return {key.replace("/", "."): (min(0.0, low), max(0.0, high)) for key, (low, high) in bounds.items()}

    def _read(self, name: str, values: Mapping[str, Any]) -> Any:
        return self.weights[_key(name)] if _key(name) in self.weights else values[name]

    def _round(self, name: str, value: Tensor) -> Tensor:
        key = _key(name)
        if key not in self.ranges:
            return value
        low, high = (self.ranges[key] * self._range_units[key]).unbind()
        rounded: Tensor = _RoundedValue.apply(value, low, high)  # type: ignore[no-untyped-call]
        return rounded


def _key(name: str) -> str:
    return name.replace(".", "/")  # torch keeps "." for modules inside modules


def _nodes_between(graph: onnx.GraphProto, source: str, target: str) -> list[onnx.NodeProto]:
    """The nodes that `target` needs and that come after `source`, in their order."""
    needed, nodes = {target}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output) and source not in node.output:
            needed |= {name for name in node.input if name != source}
            nodes.append(node)
    return nodes[::-1]


def _find_unknown(node: onnx.NodeProto, constants: Mapping[str, Any], attributes: Mapping[str, Any]) -> str:
    """What of a node cannot be computed here, in words; empty where all can."""
    if node.op_type not in _OPERATORS:
        return node.op_type
    if node.op_type == "Resize":
        if len(node.input) != 3 or node.input[2] not in constants:
            return "Resize to a size"
        # Whole factors give the same nearest pixels in every mode of coordinates; between pixels modes differ.
        mode = attributes.get("mode", b"nearest")
        where = attributes.get("coordinate_transformation_mode", b"half_pixel")
        if any(float(each) != int(each) for each in constants[node.input[2]]):
            return "Resize by a broken factor"
        if mode == b"cubic" or (mode == b"linear" and where not in (b"half_pixel", b"pytorch_half_pixel")):
            return f"Resize in mode {mode.decode()}, {where.decode()}"
    is_even = attributes["pads"][:2] == attributes["pads"][2:] and all(each == 1 for each in attributes["dilations"])
    return "MaxPool with uneven pads or dilations" if node.op_type == "MaxPool" and not is_even else ""


def round_value(value: Tensor, bounds: tuple[float, float]) -> Tensor:
    """`value` in 256 levels between two bounds, zero among them, as int8 files have it."""
    step, zero = _find_grid(*bounds)
    return torch.fake_quantize_per_tensor_affine(value, step, zero, 0, _LEVELS)


def _find_grid(low: float, high: float) -> tuple[float, int]:
    """The step between 256 levels, and which of them is zero."""
    low, high = min(0.0, low), max(0.0, high)
    step = max((high - low) / _LEVELS, 1e-12)
    return step, round(-low / step)


class _RoundedValue(torch.autograd.Function):
    """`round_value` with bounds that learn; gradients pass to the value as if it were only clipped.

    What is clipped moves the bound that clips it, and what is rounded moves both, as the step between levels follows
    them. A bound at zero stays there: a ReLU's range that reached below would no longer be a bound of its convolution.
    Source: learned step size (Esser et al. 2020), with both bounds learned as in LSQ+ (Bhalgat et al. 2020).
    """

    @staticmethod
    def forward(ctx: Any, value: Tensor, low: Tensor, high: Tensor) -> Tensor:
        bounds = (float(low), float(high))
        rounded = round_value(value, bounds)
        ctx.save_for_backward(value, rounded)
        ctx.bounds = bounds
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (value, rounded), gradient = ctx.saved_tensors, gradients[0]
        step, zero = _find_grid(*ctx.bounds)
        below, above = value < -zero * step, value > (_LEVELS - zero) * step
        inside = gradient.masked_fill(below | above, 0.0)
        by_step = (inside * (rounded - value)).sum() / (step * _LEVELS)
        low, high = (gradient * below).sum() - by_step, (gradient * above).sum() + by_step
        return inside, low * (ctx.bounds[0] < 0.0), high * (ctx.bounds[1] > 0.0)


def _round_weight(weight: Tensor, axis: int, levels: int) -> Tensor:
    """`weight` in symmetric levels per output channel; gradients pass straight through."""
    with torch.no_grad():
        others = [each for each in range(weight.ndim) if each != axis]
        step = (weight.abs().amax(dim=others, keepdim=True) / levels).clamp(min=1e-12)  # (O, 1, 1, 1) or (1, O, 1, 1)
        rounded = torch.round(weight / step) * step
    return weight + (rounded - weight).detach()


# What follows computes each operator of an exported graph: inputs and attributes to the answer.
_Operator = Callable[[list[Any], Mapping[str, Any]], Tensor]


def _convolve(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    value, weight, bias = (*inputs, None)[:3]  # (N, I, H, W), (O, I / groups, kH, kW), (O,)
    top, left, bottom, right = attributes["pads"]
    strides = attributes["strides"]
    if (top, left) != (bottom, right):
        value, top, left = F.pad(value, (left, right, top, bottom)), 0, 0
    elif weight.shape[2:] == (1, 1) and top == left == 0:  # the same, and no gradient that writes past its memory:
        # `training.device.choose_layout` sees modules alone
        value, strides = value[:, :, :: strides[0], :: strides[1]], (1, 1)
    return F.conv2d(value, weight, bias, strides, (top, left), attributes["dilations"], attributes["group"])


def _convolve_transposed(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    value, weight, bias = (*inputs, None)[:3]  # (N, I, H, W), (I, O / groups, kH, kW), (O,)
    pads, extra, dilations = attributes["pads"][:2], attributes["output_padding"], attributes["dilations"]
    return F.conv_transpose2d(value, weight, bias, attributes["strides"], pads, extra, attributes["group"], dilations)


def _pool(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    size, stride, pads = attributes["kernel_shape"], attributes["strides"], attributes["pads"][:2]
    return F.max_pool2d(inputs[0], size, stride, pads, ceil_mode=bool(attributes["ceil_mode"]))


def _shuffle(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    value, size = inputs[0], attributes["blocksize"]  # (N, C, H, W)
    if attributes.get("mode", b"DCR") == b"DCR":  # channels p C/r^2 + c, where torch wants c r^2 + p
        value = value.unflatten(1, (size * size, -1)).transpose(1, 2).flatten(1, 2)
    return F.pixel_shuffle(value, size)  # (N, C / size^2, H size, W size)


def _tensors(inputs: list[Any]) -> list[Tensor]:
    """Both sides of an operator, a constant among them, on the device of the other one."""
    device = next((each.device for each in inputs if isinstance(each, Tensor)), None)
    # A copy, since the graph's constants cannot be written to, which torch warns of where it shares them.
    return [each if isinstance(each, Tensor) else torch.tensor(each, device=device) for each in inputs]


def _resize(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    factors = tuple(float(each) for each in inputs[2][2:])  # of height and width
    if attributes.get("mode", b"nearest") == b"nearest":
        return F.interpolate(inputs[0], scale_factor=factors, mode="nearest")
    return F.interpolate(inputs[0], scale_factor=factors, mode="bilinear", align_corners=False)


def _slice(inputs: list[Any], attributes: Mapping[str, Any]) -> Tensor:
    value, starts, ends, axes, steps = (*inputs, [1] * len(inputs[1]))[:5]
    parts = [slice(None)] * value.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        parts[int(axis)] = slice(int(start), int(end), int(step))
    answer: Tensor = value[tuple(parts)]
    return answer


def _choose(inputs: list[Any], _: Mapping[str, Any]) -> Tensor:
    condition, where_true, where_false = _tensors(inputs)
    return torch.where(condition, where_true, where_false)


def _clip(inputs: list[Any], _: Mapping[str, Any]) -> Tensor:
    value, low, high = (*inputs, None, None)[:3]
    answer: Tensor = value.clamp(*(None if bound is None else float(bound) for bound in (low, high)))
    return answer


_OPERATORS: dict[str, _Operator] = {
    "Conv": _convolve,
    "ConvTranspose": _convolve_transposed,
    "MaxPool": _pool,
    "DepthToSpace": _shuffle,
    "Resize": _resize,
    "Slice": _slice,
    "Concat": lambda inputs, attributes: torch.cat(inputs, dim=attributes["axis"]),
    "Relu": lambda inputs, _: F.relu(inputs[0]),
    "LeakyRelu": lambda inputs, attributes: F.leaky_relu(inputs[0], attributes["alpha"]),
    "Tanh": lambda inputs, _: torch.tanh(inputs[0]),
    "Sigmoid": lambda inputs, _: torch.sigmoid(inputs[0]),
    "Add": lambda inputs, _: torch.add(*_tensors(inputs)),
    "Mul": lambda inputs, _: torch.mul(*_tensors(inputs)),
    # Of the way between sRGB and Lab, where a network of another author has pictures in or out.
    "Sub": lambda inputs, _: torch.sub(*_tensors(inputs)),
    "Div": lambda inputs, _: torch.div(*_tensors(inputs)),
    "Pow": lambda inputs, _: torch.pow(*_tensors(inputs)),
    "Greater": lambda inputs, _: torch.gt(*_tensors(inputs)),
    "Where": _choose,
    "Clip": _clip,
}
