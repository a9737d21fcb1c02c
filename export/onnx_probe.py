"""What is inside an ONNX file, found out in a child process: a crafted file can crash ONNX Runtime (SIGFPE,
SIGSEGV) or make it allocate without end, and then only the child dies.

Run as `python -m export.onnx_probe`, it is that child: JSON on standard input and output.
"""

from __future__ import annotations

import json
import resource
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorpress.core.errors import ColorpressError, InputError, printable
from colorpress.core.text import align_cells
from export.colorizers import OnnxColorizer, opset_of
from export.metadata_figures import list_measured
from export.picture_graph import IMAGE_NAME
from export.predictors import OnnxPredictor
from export.sessions import check_model_file
from export.timing import run_worker

if TYPE_CHECKING:
    import onnx

_HINT = "give a model written by `colorpress export` or `colorpress quantize`"
_MEMORY_BYTES = 4 << 30
_MEMORY_PER_FILE_BYTE = 8
_QUANTIZED_OPS = frozenset({"DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"})
_INTEGER_OPS = frozenset({"QLinearConv", "ConvInteger"})
# Operators of layers, and which of their inputs the weights are.
_WEIGHTED_OPS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "QLinearConv": 3, "ConvInteger": 1}
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "uint8": "int8"}


def refuse_hostile(path: Path) -> None:
    """Let a child process open a user's .onnx file first, by `inspect_onnx`; other kinds of files cannot do harm.

    Raises:
        ConfigError, InputError: as `inspect_onnx`.
    """
    if path.suffix == ".onnx":
        inspect_onnx(path)


def inspect_onnx(path: Path, *, timeout_seconds: float = 120.0) -> dict[str, Any]:
    """Check an ONNX file completely and describe it, in a child process with limits on time and memory.

    The child runs the full checker, opens the file in ONNX Runtime, and colorizes a picture of 8x8 pixels.

    Returns:
        inputs and outputs (name to shape), opset, producer, metadata, nodes (operator to count), layers (name,
        operator, shape, weights, size_bytes, and how they are stored and computed with), weights (of all layers),
        int8_share (part of them that is stored as int8), quantized (bool).
    Raises:
        ConfigError: no such file.
        InputError: damaged, hostile, of another task, in several files, or beyond the limits.
    """
    check_model_file(path)
    job = {"path": str(path.resolve())}
    answer = run_worker(job, threads=1, timeout_s=timeout_seconds, module=sys.modules[__name__])
    status = answer.pop("status")
    if status == "ok":
        return answer
    why = answer["error"]
    if status == "timeout":
        why = f"took more than {timeout_seconds:g} s to open; refused"
    elif status.startswith("crashed"):
        why = f"crashes ONNX Runtime {status.removeprefix('crashed')}; refused"
    raise InputError("model", path, why, _HINT)


def main() -> None:
    """Inspect the file that a job names in this process, which puts limits on itself first; prints the answer."""
    path = Path(json.load(sys.stdin)["path"])
    memory = _MEMORY_BYTES + _MEMORY_PER_FILE_BYTE * path.stat().st_size
    limits = {resource.RLIMIT_AS: memory, resource.RLIMIT_CPU: 60, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for limit, value in limits.items():
        resource.setrlimit(limit, (value, value))
    try:
        answer = {"status": "ok", **_inspect(path)}
    except Exception as error:
        answer = {"status": "error", "error": _describe_failure(error)}
    print(json.dumps(answer))


def _describe_failure(error: Exception) -> str:
    if isinstance(error, ColorpressError):
        return error.why
    if isinstance(error, MemoryError):
        return "needs too much memory; refused"
    lines = str(error).strip().splitlines()  # onnx and protobuf raise many kinds for damaged files
    return f"is no valid ONNX model ({lines[0][:200] if lines else type(error).__name__})"


def _inspect(path: Path) -> dict[str, Any]:
    import numpy as np
    import onnx

    content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    if not model.graph.node:
        raise InputError("model", path, "is no valid ONNX model (no nodes)", _HINT)
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model.graph)):
        raise InputError("model", path, "keeps weights in other files; refused", _HINT)
    onnx.checker.check_model(content, full_check=True)
    # One thread: a pool's stacks count against the memory limit.
    if any(value.name == IMAGE_NAME for value in model.graph.input):
        pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
        shape: tuple[int, ...] = OnnxColorizer(path, threads=1)(pixels).shape
        expected: tuple[int, ...] = (8, 8, 3)
    else:
        answer = OnnxPredictor(path, threads=1)(np.linspace(0.0, 1.0, 64, dtype=np.float32).reshape(1, 1, 8, 8))
        if not np.isfinite(answer).all():
            raise InputError("model", path, "answers NaN or infinity instead of colours", _HINT)
        shape, expected = answer.shape, (1, 2, 8, 8)
    if shape != expected:
        raise InputError("model", path, f"answers {shape} to a picture of 8x8 pixels", _HINT)
    return describe_graph(model)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and every one inside of it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _graphs(inner)


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every tensor of a graph, those in node attributes and subgraphs included."""
    for each in _graphs(graph):
        yield from each.initializer
        for sparse in each.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        for node in each.node:
            for attribute in node.attribute:
                yield from (attribute.t, *attribute.tensors)


def describe_graph(model: onnx.ModelProto) -> dict[str, Any]:
    """The answer of `inspect_onnx`, for a model in memory that is known to be sound."""
    counts = Counter(node.op_type for graph in _graphs(model.graph) for node in graph.node)
    layers = _layers(model.graph)
    weights = sum(layer["weights"] for layer in layers)
    int8 = sum(layer["weights"] for layer in layers if layer["stored"] == "int8")
    return {
        "inputs": {value.name: _shape(value) for value in model.graph.input},
        "outputs": {value.name: _shape(value) for value in model.graph.output},
        "opset": opset_of(model),
        "producer": model.producer_name,
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "nodes": dict(sorted(counts.items())),
        "layers": layers,
        "weights": weights,
        "int8_share": int8 / weights if weights else 0.0,
        "quantized": bool(_QUANTIZED_OPS & counts.keys()),
    }


def _layers(graph: onnx.GraphProto) -> list[dict[str, Any]]:
    """The nodes that hold weights, in the graph's order: name, operator, shape, weights, bytes, stored, computed."""
    import onnx

    made_by = {output: node for node in graph.node for output in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    layers = []
    for node in graph.node:
        if node.op_type not in _WEIGHTED_OPS or len(node.input) < 2:
            continue
        # Weights in fewer bits stand behind what turns them into float.
        name = node.input[_WEIGHTED_OPS[node.op_type]]
        computed = "int8" if name in made_by and made_by[name].op_type == "DequantizeLinear" else "fp32"
        while name not in tensors and name in made_by and made_by[name].input:
            name = made_by[name].input[0]
        if (tensor := tensors.get(name)) is None:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        layers.append({
            "name": node.name or node.output[0],
            "operator": node.op_type,
            "shape": list(tensor.dims),
            "weights": prod(tensor.dims),
            "size_bytes": prod(tensor.dims) * kind.itemsize,
            "stored": _PRECISIONS.get(kind.name, kind.name),
            "computed": "int8" if node.op_type in _INTEGER_OPS else computed,
        })  # fmt: skip
    return layers


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]


def format_inspection(path: Path, found: Mapping[str, Any]) -> str:
    """The answer of `inspect_onnx` as text: contract, worth, metadata, layers (the largest first), operators.

    What a colorizer.onnx is worth was written into it; a bare network knows nothing of the kind.
    """
    columns = ("layer", "operator", "shape", "weights", "bytes", "stored", "computed")
    layers = [
        (each["name"], each["operator"], "x".join(map(str, each["shape"])), f"{each['weights']:,}",
         f"{each['size_bytes']:,}", each["stored"], each["computed"])
        for each in sorted(found["layers"], key=lambda each: -int(each["size_bytes"]))
    ]  # fmt: skip
    worth = list_measured(found["metadata"]) if IMAGE_NAME in found["inputs"] else {}
    lines = [
        f"{path.name}: {path.stat().st_size:,} bytes, {found['weights']:,} weights in {len(found['layers'])} layers, "
        f"opset {found['opset']}",
        *(f"  reads   {name} {_sides(shape)}" for name, shape in found["inputs"].items()),
        *(f"  answers {name} {_sides(shape)}" for name, shape in found["outputs"].items()),
        *(["", "measured"] if worth else []),
        *(f"  {title}: {value}" for title, value in worth.items()),
        "",
        "metadata",
        *(f"  {key}: {value}" for key, value in sorted(found["metadata"].items())),
        "",
        *align_cells([columns, *layers]),
        "",
        "operators: " + ", ".join(f"{count} {name}" for name, count in found["nodes"].items()),
    ]
    return "\n".join(printable(line) for line in lines)


def _sides(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})" if shape else "(a number)"


if __name__ == "__main__":
    main()
