"""Static int8 for an ONNX file: which convolutions, which ranges, and ONNX Runtime's QDQ form of both."""

from __future__ import annotations

import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from colorpress.config import QuantizeConfig
from colorpress.console import silence_libraries
from colorpress.cores import cpu_flags
from colorpress.errors import ConfigError, InputError
from colorpress.files import sha256_bytes, write_bytes
from compress.calibration import ActivationHistogram, Floats, observe_activations

# Operators between convolutions that ONNX Runtime computes in 8 bits when what comes in is in 8 bits.
_GLUE_OPS = ("Relu", "MaxPool", "DepthToSpace", "Concat", "Resize")
# Those that only move or select values: what comes out has the scale of what went in.
_SAME_SCALE_OPS = ("Relu", "MaxPool", "DepthToSpace", "Resize")
_QUANTIZED_OPS = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear")
_GIVE_FP32 = "give the fp32 model written by `colorpress export`"


@dataclass(frozen=True)
class QuantizeResult:
    """A published int8 file.

    Attributes:
        path, size_bytes, sha256: the file.
        quantized: names of the convolutions in int8, largest first.
        kept_float: names of the others.
        weight_share: part of all convolution weights that is int8, 0 to 1.
        method: how activation ranges were chosen.
        reduce_range: weights use 7 bits, so that processors without VNNI do not saturate.
        calibration_pictures, calibration_sha256: what the ranges are from.
    """

    path: Path
    size_bytes: int
    sha256: str
    quantized: tuple[str, ...]
    kept_float: tuple[str, ...]
    weight_share: float
    method: str
    reduce_range: bool
    calibration_pictures: int
    calibration_sha256: str


def quantize_onnx(
    source: Path,
    destination: Path,
    calibration: Iterable[Floats],
    config: QuantizeConfig,
    *,
    metadata: Mapping[str, str] | None = None,
    reduce_range: bool | None = None,
    threads: int = 0,
) -> QuantizeResult:
    """Write a static int8 version of an fp32 ONNX file: QDQ, weights per channel, activations unsigned.

    The first and the last convolution stay in float: they cost next to nothing, and 256 levels of lightness or of
    colour at either end cost more accuracy than all of the network between them.

    Args:
        source: a file written by `export_onnx`.
        calibration: L (1, 1, H, W) float32 in [0, 1], of any sizes, one photograph each; read once.
        metadata: further entries of metadata_props; the source's are kept.
        reduce_range: 7-bit weights; None: where this processor has no VNNI.
        threads: CPU threads while calibrating; 0: ONNX Runtime's choice.
    Raises:
        ConfigError: no such source.
        InputError: the source is damaged or already quantized, or there is no calibration picture.
        MachineError: the destination cannot be written.
    """
    model = _load_float_model(source)
    reduce = not has_vnni() if reduce_range is None else reduce_range
    chosen, kept = choose_layers(model.graph, config.quantize_share)
    nodes = _nodes_to_quantize(model.graph, set(chosen))
    observed = _tensors_to_observe(model.graph, nodes)
    seen = observe_activations(model, observed, calibration, threads=threads)
    ranges = _spread_ranges(model.graph, seen.histograms, config)
    quantized = _insert_qdq(model, nodes, ranges, reduce_range=reduce)
    sizes = _weight_sizes(model.graph)
    share = sum(sizes[name] for name in chosen) / sum(sizes.values())
    # The validation L1 is the float model's; this file's own is not known here.
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key != "val_l1"}
    entries |= {
        "precision": "int8",
        "source_sha256": sha256_bytes(source.read_bytes()),
        "calibration_method": config.calibration_method,
        "calibration_pictures": str(seen.pictures),
        "calibration_sha256": seen.sha256,
        "int8_weight_share": f"{share:.6f}",
        "reduce_range": str(reduce).lower(),
        **(metadata or {}),
    }
    onnx.helper.set_model_props(quantized, {key: entries[key] for key in sorted(entries)})
    onnx.checker.check_model(quantized, full_check=True)
    content = quantized.SerializeToString(deterministic=True)
    write_bytes(destination, content)
    return QuantizeResult(
        path=destination,
        size_bytes=len(content),
        sha256=sha256_bytes(content),
        quantized=chosen,
        kept_float=kept,
        weight_share=share,
        method=config.calibration_method,
        reduce_range=reduce,
        calibration_pictures=seen.pictures,
        calibration_sha256=seen.sha256,
    )


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor sums products of bytes without saturating at 16 bits on the way.

    True for x86 with AVX512-VNNI or AVX-VNNI, and for anything that is not x86.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return True
    return bool(cpu_flags(cpuinfo) & {"avx512_vnni", "avx_vnni"})


def _load_float_model(source: Path) -> onnx.ModelProto:
    if not source.exists():
        raise ConfigError("model", source, "no such file", _GIVE_FP32)
    if not source.is_file():
        raise InputError("model", source, "not a regular file", _GIVE_FP32)
    try:
        model = onnx.load_model_from_string(source.read_bytes())
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:  # protobuf, the checker and shape inference share no base class
        raise InputError("model", source, "is no valid ONNX model", _GIVE_FP32) from error
    if any(node.op_type in _QUANTIZED_OPS for node in model.graph.node):
        raise InputError("model", source, "already quantized", _GIVE_FP32)
    if not any(node.op_type == "Conv" for node in model.graph.node):
        raise InputError("model", source, "holds no convolution", _GIVE_FP32)
    return model


def _weight_sizes(graph: onnx.GraphProto) -> dict[str, int]:
    """Weight elements of each convolution with constant weights, by node name."""
    elements = {tensor.name: int(np.prod(tensor.dims)) for tensor in graph.initializer}
    return {node.name: elements[node.input[1]] for node in graph.node if _is_conv(node) and node.input[1] in elements}


def _is_conv(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Conv", "ConvTranspose")


def choose_layers(graph: onnx.GraphProto, share: float) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The largest convolutions that together hold `share` of the weights, and the rest; each largest first.

    Never the first and the last convolution, nor a ConvTranspose, which has no int8 kernel.
    """
    sizes = _weight_sizes(graph)
    by_size = sorted(sizes, key=lambda name: -sizes[name])
    outer = _outer_convolutions(graph)
    possible = {node.name for node in graph.node if node.op_type == "Conv" and node.name not in outer}
    chosen: list[str] = []
    for name in by_size:
        if name in possible and sum(sizes[each] for each in chosen) < share * sum(sizes.values()):
            chosen.append(name)
    return tuple(chosen), tuple(name for name in by_size if name not in chosen)


def _outer_convolutions(graph: onnx.GraphProto) -> set[str]:
    """The convolutions that read the picture, and those whose answer leaves the network."""
    before, after = _convolutions_around(graph)
    return {node.name for node in graph.node if _is_conv(node) and not (before[node.name] and after[node.name])}


def _convolutions_around(graph: onnx.GraphProto) -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """For each node the nearest convolutions before it and, for each node, those after it."""
    producer = {output: node for node in graph.node for output in node.output}
    consumers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            consumers[name].append(node)
    before: dict[str, set[str]] = {}
    after: dict[str, set[str]] = {}
    for node in graph.node:  # topological order
        sources = [producer[name] for name in node.input if name in producer]
        before[node.name] = set().union(*({s.name} if _is_conv(s) else before[s.name] for s in sources))
    for node in reversed(graph.node):
        users = [user for name in node.output for user in consumers[name]]
        after[node.name] = set().union(*({u.name} if _is_conv(u) else after[u.name] for u in users))
    return before, after


def _nodes_to_quantize(graph: onnx.GraphProto, convolutions: set[str]) -> set[str]:
    """The chosen convolutions, and what lies between them: glue with int8 on all of one side."""
    before, after = _convolutions_around(graph)
    is_float = {value.name: value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in graph.value_info}
    glue = {
        node.name
        for node in graph.node
        if node.op_type in _GLUE_OPS
        and is_float.get(node.output[0], False)  # sizes are concatenated too
        and any(around[node.name] and around[node.name] <= convolutions for around in (before, after))
    }
    return convolutions | glue


def _tensors_to_observe(graph: onnx.GraphProto, nodes: set[str]) -> list[str]:
    """Values to watch: what enters or leaves a quantized node, each scale once."""
    taking = {name for node in graph.node if node.name in nodes for name in (*node.input, *node.output)}
    constants = {tensor.name for tensor in graph.initializer} | {""}
    copies = {node.output[0] for node in graph.node if node.op_type in (*_SAME_SCALE_OPS, "Concat")}
    relu_inputs = {node.input[0] for node in graph.node if node.op_type == "Relu"}
    relu_outputs = {node.output[0] for node in graph.node if node.op_type == "Relu"}
    return sorted(
        name for name in taking - constants if name not in relu_inputs and (name not in copies or name in relu_outputs)
    )


def _spread_ranges(
    graph: onnx.GraphProto, histograms: Mapping[str, ActivationHistogram], config: QuantizeConfig
) -> dict[str, tuple[float, float]]:
    """A range for every value: what only moves values keeps the range, a Concat spans those of its parts."""
    ranges = {
        name: histogram.range_by(config.calibration_method, config.calibration_percentile)
        for name, histogram in histograms.items()
    }
    for node in graph.node:
        if node.op_type == "Relu" and node.output[0] in ranges:
            ranges[node.input[0]] = ranges[node.output[0]]
        elif node.op_type in _SAME_SCALE_OPS and node.input[0] in ranges:
            ranges.setdefault(node.output[0], ranges[node.input[0]])
        elif node.op_type == "Concat" and all(name in ranges for name in node.input):
            parts = [ranges[name] for name in node.input]
            ranges[node.output[0]] = (min(low for low, _ in parts), max(high for _, high in parts))
    return ranges


def _insert_qdq(
    model: onnx.ModelProto, nodes: set[str], ranges: Mapping[str, tuple[float, float]], *, reduce_range: bool
) -> onnx.ModelProto:
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    data: dict[str, Any] = {
        name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in ranges.items()
    }
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with silence_libraries():
        quantizer = QDQQuantizer(
            copy,
            per_channel=True,
            reduce_range=reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=QuantType.QUInt8,
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=sorted(nodes),
            nodes_to_exclude=[],
            op_types_to_quantize=["Conv", *_GLUE_OPS],
            extra_options={"WeightSymmetric": True},
        )
        quantizer.quantize_model()
        quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    return quantized
