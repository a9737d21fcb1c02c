"""What is inside an ONNX file, found out in a child process: a crafted file can crash ONNX Runtime (SIGFPE,
SIGSEGV) or make it allocate without end, and then only the child dies.

Run as `python -m export.onnx_probe FILE`, it is that child: JSON on standard output.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorpress.errors import ColorpressError, InputError
from export.predictors import OnnxPredictor, check_model_file

if TYPE_CHECKING:
    import onnx

_HINT = "give a model written by `colorpress export` or `colorpress quantize`"
_MEMORY_BYTES = 4 << 30
_MEMORY_PER_FILE_BYTE = 8
_QUANTIZED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"}
)


def inspect_onnx(path: Path, *, timeout_seconds: float = 120.0) -> dict[str, Any]:
    """Check an ONNX file completely and describe it, in a child process with limits on time and memory.

    The child runs the full checker, opens the file in ONNX Runtime, and colorizes a picture of 8x8 pixels.

    Returns:
        inputs and outputs (name to shape), opset, producer, metadata, nodes (operator to count), weights (elements
        of its floating-point and int8 parameters), int8_share (part of them that is int8), quantized (bool).
    Raises:
        ConfigError: no such file.
        InputError: damaged, hostile, of another task, in several files, or beyond the limits.
    """
    check_model_file(path)
    root = str(Path(__file__).resolve().parent.parent)
    search_path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-m", "export.onnx_probe", str(path.resolve())]
    try:
        child = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_seconds,
            env={**os.environ, "PYTHONPATH": search_path},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InputError("model", path, f"took more than {timeout_seconds:g} s to open; refused", _HINT) from error
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        raise InputError("model", path, f"crashes ONNX Runtime ({name}); refused", _HINT)
    try:
        answer: dict[str, Any] = json.loads(child.stdout)
    except ValueError:
        raise InputError("model", path, f"cannot be opened (child ended with {child.returncode})", _HINT) from None
    if "error" in answer:
        raise InputError("model", path, answer["error"], _HINT)
    return answer


def main(path: Path) -> int:
    """Inspect `path` in this process, which puts limits on itself first; prints the answer as JSON."""
    memory = _MEMORY_BYTES + _MEMORY_PER_FILE_BYTE * path.stat().st_size
    for limit, value in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, 60),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
    ):
        resource.setrlimit(limit, (value, value))
    try:
        answer = _inspect(path)
    except ColorpressError as error:
        answer = {"error": error.why}
    except MemoryError:
        answer = {"error": "needs too much memory; refused"}
    except Exception as error:  # onnx and protobuf raise many kinds for damaged files
        lines = str(error).strip().splitlines()
        answer = {"error": f"is no valid ONNX model ({lines[0][:200] if lines else type(error).__name__})"}
    json.dump(answer, sys.stdout)
    return 0


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
    predictor = OnnxPredictor(path, threads=1)
    picture = np.linspace(0.0, 1.0, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    answer = predictor(picture)
    if answer.shape != (1, 2, 8, 8):
        raise InputError("model", path, f"answers {answer.shape} to a picture of 8x8 pixels", _HINT)
    return describe_graph(model)


def _tensors(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    """Every tensor of a graph, those in node attributes and subgraphs included."""
    found = list(graph.initializer)
    for sparse in graph.sparse_initializer:
        found += [sparse.values, sparse.indices]
    for node in graph.node:
        for attribute in node.attribute:
            found += [attribute.t, *attribute.tensors]
            for inner in (attribute.g, *attribute.graphs):
                found += _tensors(inner)
    return found


def describe_graph(model: onnx.ModelProto) -> dict[str, Any]:
    """The answer of `inspect_onnx`, for a model in memory that is known to be sound."""
    import onnx

    counts = Counter(node.op_type for node in model.graph.node)
    sizes = Counter[int]()
    for tensor in model.graph.initializer:
        if len(tensor.dims) >= 2:  # biases, scales and shapes are no weights
            size = 1
            for dimension in tensor.dims:
                size *= dimension
            sizes[tensor.data_type] += size
    int8 = sizes[onnx.TensorProto.INT8] + sizes[onnx.TensorProto.UINT8]
    weights = int8 + sizes[onnx.TensorProto.FLOAT] + sizes[onnx.TensorProto.FLOAT16]
    return {
        "inputs": {value.name: _shape(value) for value in model.graph.input},
        "outputs": {value.name: _shape(value) for value in model.graph.output},
        "opset": max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0),
        "producer": model.producer_name,
        "metadata": {entry.key: entry.value for entry in model.metadata_props},
        "nodes": dict(sorted(counts.items())),
        "weights": weights,
        "int8_share": int8 / weights if weights else 0.0,
        "quantized": bool(_QUANTIZED_OPS & counts.keys()),
    }


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [each.dim_param or each.dim_value for each in value.type.tensor_type.shape.dim]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
