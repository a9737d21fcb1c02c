"""What an int8 file really computes in 8 bits, from ONNX Runtime's own profile of a few calls."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from compress.int8.int8_choice import QuantizeResult
from compress.int8.int8_graph import nodes_to_quantize, outer_convolutions
from export.layer_latency import FUSED_OPS, find_kernels, original_name, profile_calls

_BYTES = frozenset({"int8", "uint8"})
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class NodeTime:
    """Time spent in one node: `int8` when its kernel read bytes; `share` of all kernels' time, 0 to 1."""

    name: str
    operator: str
    int8: bool
    share: float


@dataclass(frozen=True)
class OperatorTime:
    """The same for all nodes of one operator type that compute alike."""

    operator: str
    int8: bool
    kernels: int
    share: float


@dataclass(frozen=True)
class Int8Profile:
    """Every node that ran, in the order of execution; ONNX Runtime has fused some of the file's."""

    nodes: tuple[NodeTime, ...]

    @property
    def operators(self) -> tuple[OperatorTime, ...]:
        """Nodes by operator and kind, largest share of time first."""
        kinds: dict[tuple[str, bool], list[NodeTime]] = defaultdict(list)
        for node in self.nodes:
            kinds[node.operator, node.int8].append(node)
        summed = [OperatorTime(*kind, len(nodes), sum(each.share for each in nodes)) for kind, nodes in kinds.items()]
        return tuple(sorted(summed, key=lambda each: -each.share))

    @property
    def int8_share(self) -> float:
        """Part of the time spent in kernels that read bytes, 0 to 1; conversions from and to float count as float."""
        return sum(each.share for each in self.nodes if each.int8)

    @property
    def conversion_share(self) -> float:
        """Part of the time spent in conversions between int8 and float, 0 to 1."""
        return sum(each.share for each in self.nodes if each.operator in CONVERSIONS)


def profile_int8(path: Path, *, side: int = 256, calls: int = 3, threads: int = 0) -> Int8Profile:
    """Run a model of one's own a few times under ONNX Runtime's profiler.

    Args:
        side: of the square input, in pixels.
        calls: profiled runs after one that is left out.
    Raises:
        ConfigError, InputError: as `OnnxPredictor`.
    """
    return summarize_profile(profile_calls(path, side=side, calls=1 + calls, threads=threads), calls=1 + calls)


def summarize_profile(events: list[Mapping[str, Any]], *, calls: int) -> Int8Profile:
    """Sum ONNX Runtime's profile events; of `calls` equal runs the first is left out."""
    kernels = find_kernels(events)
    kernels = kernels[len(kernels) // calls :]
    micros: dict[tuple[str, str, bool], float] = defaultdict(float)
    for event in kernels:
        name, operator = event["name"].removesuffix("_kernel_time"), event["args"]["op_name"]
        # Any input: QLinearConcat's first one is a scale.
        reads_bytes = any(not _BYTES.isdisjoint(each) for each in event["args"].get("input_type_shape", []))
        micros[name, operator, reads_bytes and operator not in CONVERSIONS] += event["dur"]
    total = sum(micros.values()) or 1.0
    return Int8Profile(tuple(NodeTime(*node, spent / total) for node, spent in micros.items()))


def why_float(graph: onnx.GraphProto, result: QuantizeResult, profile: Int8Profile) -> dict[str, str]:
    """Why each node of an int8 file's profile that computes in float does so, by the name it has there.

    Args:
        graph: the float graph that the file was made from.
    """
    between, outer = nodes_to_quantize(graph, set(result.quantized)), outer_convolutions(graph)
    reasons = {}
    for node in profile.nodes:
        if node.int8:
            continue
        origin = find_origin(graph, node.name)
        name, operator = (origin.name, origin.op_type) if origin else ("", node.operator)
        if node.operator in CONVERSIONS:
            why = "conversion between int8 and float"
        elif name in result.way.float_layers:
            why = "back to float: of all layers it lost most colour for its weights"
        elif operator == "ConvTranspose":
            why = "ONNX Runtime has no int8 kernel for ConvTranspose"
        elif name in outer:
            why = "reads the picture or gives its colours, where 8 bits cost most"
        elif name in result.kept_float:
            why = "outside of --quantize-share"
        elif name in between:
            why = f"ONNX Runtime has no int8 kernel for {operator} here"
        else:
            why = "lies outside of the int8 part"
        reasons[node.name] = why
    return reasons


def find_origin(graph: onnx.GraphProto, name: str) -> onnx.NodeProto | None:
    """The node of a file that a node of its profile came from; a convolution where an activation was made part of it.

    ONNX Runtime numbers what it replaces, and names a fused node after what it answers.
    """
    producer: dict[str, onnx.NodeProto] = {output: node for node in graph.node for output in node.output}
    name = original_name(name)
    node = {each.name: each for each in graph.node}.get(name, producer.get(name))
    if node is not None and node.op_type in FUSED_OPS:
        before = producer.get(node.input[0])
        return before if before is not None and before.op_type in ("Conv", "ConvTranspose") else node
    return node
