"""What providers of ONNX Runtime say that they take, and what of a file they do not: read in the file, not run.

A file that fits may still fail, and one that does not still runs: what a provider has no kernel for goes to the CPU,
with copies before and after. Types of tensors and attributes of operators are looked at only where a rule below says
so. What a provider really does with a file is `colorpress inspect --runtime`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import numpy_helper

from export.colorizers import opset_of

_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
# What ONNX Runtime's GPU providers read on the CPU, by operator: sizes, places and amounts. Not given: none.
_HOST_INPUTS: Mapping[str, frozenset[int]] = {
    "ConstantOfShape": frozenset({0}),
    "Expand": frozenset({1}),
    "Pad": frozenset({1, 3}),
    "Range": frozenset({0, 1, 2}),
    "Reshape": frozenset({1}),
    "Resize": frozenset({2, 3}),
    "Slice": frozenset({1, 2, 3, 4}),
    "Split": frozenset({1}),
    "Squeeze": frozenset({1}),
    "Tile": frozenset({1}),
    "Unsqueeze": frozenset({1}),
}
# The operators that networks on pictures are of; one of another kind counts as not taken.
_USUAL_NAMES = """
Abs Add And AveragePool BatchNormalization Cast Ceil Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos
DepthToSpace DequantizeLinear Div Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gemm
GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid Identity InstanceNormalization LeakyRelu Less
LessOrEqual Log LogSoftmax MatMul Max MaxPool Min Mod Mul Neg Not Or Pad Pow PRelu QuantizeLinear Range Reciprocal
ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin Slice Softmax
Softplus SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh Tile TopK Transpose Unsqueeze Upsample Where
"""
_COREML_NAMES = """
Add AveragePool BatchNormalization Cast Clip Concat Constant Conv DepthToSpace Div Flatten Gather Gemm GlobalAveragePool
GlobalMaxPool LeakyRelu MatMul MaxPool Mul Pad Pow PRelu Reciprocal ReduceSum Relu Reshape Resize Shape Sigmoid Slice
Sqrt Squeeze Sub Tanh Transpose
"""
# Of the usual ones. WebGPU's wheel 0.4.0 has more than its page says, as it placed our files: those are left out here.
_NOT_QNN_NAMES = "ConstantOfShape Erf Range Selu Shape"
_NOT_WEBGPU_NAMES = """
ConstantOfShape GatherND Identity LogSoftmax Mod Or PRelu QuantizeLinear Round Selu Sign Softplus SpaceToDepth Sum TopK
Upsample
"""
# Of constants alone they are worked out while a file is loaded: what weights in fewer bits are unpacked by.
_FOLDED = frozenset({"Cast", "Concat", "Div", "Floor", "Mul", "Reshape", "Split", "Sub"})
_USUAL, _COREML = frozenset(_USUAL_NAMES.split()), frozenset(_COREML_NAMES.split())
_QNN, _WEBGPU = _USUAL - set(_NOT_QNN_NAMES.split()), _USUAL - set(_NOT_WEBGPU_NAMES.split())


@dataclass(frozen=True)
class ProviderLimits:
    """What a provider takes, as its documentation says.

    Attributes:
        name, title: of the entry, and for people.
        source: where it is said.
        operators: of ONNX, in any place of the graph.
        fixed_shapes: it takes inputs of one size alone.
        control_flow: of If, Loop and Scan what it takes.
        opsets: the least and the highest version of ONNX's operators.
        rule: further words on what it does not take in a graph.
        no_copies: it takes nothing that leaves an operator to the CPU.
    """

    name: str
    title: str
    source: str
    operators: frozenset[str]
    fixed_shapes: bool = False
    control_flow: frozenset[str] = frozenset()
    opsets: tuple[int, int] = (7, 23)
    rule: Callable[[onnx.GraphProto], Sequence[str]] = lambda graph: ()
    no_copies: bool = False


def _refuse_zero_points(graph: onnx.GraphProto) -> Sequence[str]:
    """TensorRT's 8 bits are symmetric."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    shifted = [
        node
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
        and len(node.input) > 2
        and (tensor := constants.get(node.input[2])) is not None
        and tensor.data_type  # else it is worked out of constants
        and np.any(numpy_helper.to_array(tensor))
    ]
    return [f"{len(shifted)} zero points are not 0"] if shifted else []


def _refuse_what_is_no_constant(graph: onnx.GraphProto) -> Sequence[str]:
    """CoreML reads weights, amounts of padding, what to cut, and the second factor of MatMul from the file alone."""
    constants = {tensor.name for tensor in graph.initializer}
    needed = {"Conv": slice(1, 2), "MatMul": slice(1, 2), "Pad": slice(1, 2), "Slice": slice(1, 5)}
    counts = Counter(
        node.op_type
        for node in graph.node
        # Where there are none they are attributes, of early versions of the operators.
        if node.op_type in needed and not {*node.input[needed[node.op_type]]} <= {*constants, ""}
    )
    edges = sum(node.op_type == "Pad" and _text(node, "mode") not in ("", "constant") for node in graph.node)
    said = [f"{count} {name} of what is worked out" for name, count in sorted(counts.items())]
    return [*said, *([f"{edges} Pad by what is at the edge"] if edges else [])]


_ORT = "https://github.com/microsoft/onnxruntime/blob"
LIMITS: Mapping[str, ProviderLimits] = {
    each.name: each
    for each in (
        ProviderLimits(
            "onnxruntime-cuda", "CUDA", f"{_ORT}/main/docs/OperatorKernels.md, CUDAExecutionProvider",
            _USUAL, control_flow=_CONTROL_FLOW,
        ),
        # "it cannot support dynamic control flow": pull request 9978; all nodes on the device, sizes that stay.
        ProviderLimits(
            "cuda-graph", "CUDA graph", f"{_ORT}/gh-pages/docs/execution-providers/CUDA-ExecutionProvider.md",
            _USUAL, fixed_shapes=True, no_copies=True,
        ),
        ProviderLimits(
            "onnxruntime-tensorrt", "TensorRT", "https://github.com/onnx/onnx-tensorrt/blob/main/docs/operators.md",
            _USUAL, control_flow=_CONTROL_FLOW, opsets=(9, 20), rule=_refuse_zero_points,
        ),
        ProviderLimits(
            "onnxruntime-directml", "DirectML", f"{_ORT}/main/docs/OperatorKernels.md, DmlExecutionProvider",
            _USUAL, control_flow=frozenset({"If"}),
        ),
        ProviderLimits(
            "onnxruntime-webgpu", "WebGPU", f"{_ORT}/main/js/web/docs/webgpu-operators.md",
            _WEBGPU, control_flow=frozenset({"If"}),
        ),
        ProviderLimits(
            "onnxruntime-coreml", "CoreML",
            f"{_ORT}/gh-pages/docs/execution-providers/CoreML-ExecutionProvider.md, Supported ops",
            _COREML, rule=_refuse_what_is_no_constant,
        ),
        ProviderLimits(
            "onnxruntime-qnn", "QNN",
            "https://github.com/onnxruntime/onnxruntime-qnn/blob/main/docs/execution_providers/QNN-ExecutionProvider.md",
            _QNN, fixed_shapes=True,
        ),
    )
}  # fmt: skip


@dataclass(frozen=True)
class LimitsCheck:
    """What a provider takes of one file.

    Attributes:
        provider, title: of the entry.
        takes: all of it, as far as can be read.
        why: what not, in a few words each.
        opset: the version of the file's operators.
        is_fixed: its inputs have one size.
        control_flow: how many If, Loop and Scan it has, the inner ones too.
        left: operators that go to the CPU, and how many; not those that work out sizes, which run there anyway.
        copies: tensors that go from the provider to the CPU or back at each call; of the outermost graph.
    """

    provider: str
    title: str
    takes: bool
    why: tuple[str, ...]
    opset: int
    is_fixed: bool
    control_flow: int
    left: Mapping[str, int]
    copies: int


def check_providers(model: onnx.ModelProto) -> list[LimitsCheck]:
    """What each provider of LIMITS takes of a sound model of one's own."""
    return [check_limits(model, each) for each in LIMITS.values()]


def check_limits(model: onnx.ModelProto, limits: ProviderLimits) -> LimitsCheck:
    """What one provider takes of a model, once ONNX Runtime has unpacked its weights, before it asks any provider."""
    takes, graph = limits.operators | limits.control_flow, _unpack_weights(model.graph)
    copies, sizing = _follow(graph, takes)
    nodes = [node for node in _all_nodes(graph) if not sizing.intersection(node.output)]
    flow = Counter(node.op_type for node in nodes if node.op_type in _CONTROL_FLOW)
    left = Counter(node.op_type for node in nodes if node.op_type not in takes)
    fixed, opset = _is_fixed(graph), opset_of(model)
    refused = {name: count for name, count in flow.items() if name not in limits.control_flow}
    low, high = limits.opsets
    why = [
        *([f"opset {opset}, it takes {low} to {high}"] if not low <= opset <= high else []),
        *(["sizes are not fixed"] if limits.fixed_shapes and not fixed else []),
        *([f"control flow: {_counted(refused)}"] if refused else []),
        *([f"no kernel: {_counted(each)}"] if (each := {n: c for n, c in left.items() if n not in refused}) else []),
        *([f"{copies} copies"] if limits.no_copies and copies else []),
        *limits.rule(graph),
    ]
    return LimitsCheck(
        limits.name, limits.title, not why, tuple(why), opset, fixed, flow.total(), dict(sorted(left.items())), copies
    )


def _unpack_weights(graph: onnx.GraphProto) -> onnx.GraphProto:
    """A graph in which what is worked out of constants alone is a constant, without its value.

    Not DequantizeLinear, which ONNX Runtime leaves where it is.
    """
    copy = onnx.GraphProto()
    copy.CopyFrom(graph)
    constants = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
    del copy.node[:]
    for node in graph.node:
        if node.input and constants.issuperset(node.input) and node.op_type in _FOLDED:
            constants.update(node.output)
            copy.initializer.extend(onnx.TensorProto(name=name) for name in node.output)
        else:
            copy.node.append(node)
    return copy


def _all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _all_nodes(inner)


def _is_fixed(graph: onnx.GraphProto) -> bool:
    return all(side.HasField("dim_value") for value in graph.input for side in value.type.tensor_type.shape.dim)


def _follow(graph: onnx.GraphProto, takes: frozenset[str]) -> tuple[int, set[str]]:
    """How often a tensor changes sides, once for each tensor and side; and what is worked out of sizes alone.

    That stays on the CPU, where providers read sizes and amounts.
    """
    constants = {tensor.name for tensor in graph.initializer} - {value.name for value in graph.input}
    on_device = {value.name: True for value in graph.input}
    sizes: set[str] = set()
    copied: set[tuple[str, bool]] = set()
    for node in graph.node:
        read = [name for name in node.input if name and name not in constants]
        is_size = node.op_type == "Shape" or (bool(read) and sizes.issuperset(read))
        here = node.op_type in takes and not is_size
        for place, name in enumerate(node.input):
            wanted = here and place not in _HOST_INPUTS.get(node.op_type, frozenset())
            if node.op_type != "Shape" and on_device.get(name, wanted) != wanted:
                copied.add((name, wanted))
        sizes.update(node.output if is_size else ())
        on_device.update(dict.fromkeys(node.output, here))
    copied |= {(value.name, True) for value in graph.output if not on_device.get(value.name, True)}
    return len(copied), sizes


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))


def _text(node: onnx.NodeProto, name: str) -> str:
    return next((each.s.decode() for each in node.attribute if each.name == name), "")
