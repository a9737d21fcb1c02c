"""What is inside a model file, found out in a child process: a crafted file can crash ONNX Runtime or OpenVINO (SIGFPE,
SIGSEGV), make them allocate without end or never answer, and then only the child dies.

Every command has it look at a file before it reads that itself. What a sound file does at a size that nobody tried is
left to `run_limits`. Run as `python -m export.onnx_probe`, it is that child: JSON on standard input and output.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from colorpress.core.errors import ColorpressError, InputError, MachineError, is_out_of_memory, printable
from colorpress.core.files import sha256_bytes
from colorpress.core.text import align_cells
from export.colorizers import OnnxColorizer, OpenVinoColorizer, opset_of
from export.metadata_figures import list_measured
from export.mobile_predictors import MOBILE_SUFFIXES
from export.picture_contract import IMAGE_NAME
from export.predictors import OnnxPredictor, Predictor
from export.run_limits import BeyondLimitsError
from export.runtimes import find_runtime, open_predictor
from export.sessions import check_model_file
from export.timing import run_worker

if TYPE_CHECKING:
    import onnx

_TOO_MUCH = "needs too much memory; refused"
_HINT = "give a model written by `colorpress export` or `colorpress quantize`"
# Of address space, of which OpenVINO alone takes gigabytes that it does not use.
_MEMORY_BYTES = 4 << 30
_MEMORY_PER_FILE_BYTE = 8
_CPU_SECONDS, _CPU_SECONDS_PER_MEGABYTE = 20.0, 0.5
# Height and width of what is tried: the first has to be answered, the others to do no harm.
_SIDES = ((8, 8), (37, 53), (256, 320))
_QUANTIZED_OPS = frozenset({"DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear"})
_INTEGER_OPS = frozenset({"QLinearConv", "ConvInteger"})
# Operators of layers, and which of their inputs the weights are.
_WEIGHTED_OPS = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "QLinearConv": 3, "ConvInteger": 1}
_PRECISIONS = {"float32": "fp32", "float16": "fp16", "uint8": "int8"}


# By the SHA-256 of files, and the library that is to run them: what was found to be sound, or made here; and why not.
_sound: set[tuple[str, str]] = set()
_hostile: dict[tuple[str, str], BeyondLimitsError] = {}


def refuse_hostile(path: Path, *, runtime: str = "") -> None:
    """Let a child process open and run a model file first, unless it did so before, or this process made the file.

    Checkpoints are read as data, and are not looked at here.

    Args:
        runtime: the key of `export.runtimes.RUNTIMES` that is to run it; empty: the file's own.
    Raises:
        ConfigError, InputError: as `inspect_onnx`.
        MachineError: the library that runs it is not installed.
    """
    if path.suffix not in (".onnx", ".xml", *MOBILE_SUFFIXES):
        return
    check_model_file(path)
    if path.suffix in MOBILE_SUFFIXES:
        find_runtime(path).require()  # here, since the child could only say that the file does not open
    key = _key_of(path, runtime)
    if key in _hostile:
        raise _hostile[key]
    if key not in _sound:
        try:
            _ask_child(path, "run", key[1])
        except BeyondLimitsError as error:
            _hostile[key] = error
            raise
        _sound.add(key)


def refused_before(path: Path, *, runtime: str = "") -> str:
    """Why `refuse_hostile` refused a file for the harm it does, in this process; empty where it did not."""
    known = _hostile.get(_key_of(path, runtime)) if _hostile and path.is_file() else None
    return known.why if known else ""


def refuse_unreadable(path: Path) -> None:
    """Let a child process parse an .onnx file first, which need not be fit for anything.

    Raises:
        ConfigError, InputError: as `inspect_onnx`.
    """
    check_model_file(path)
    if _key_of(path) not in _sound:
        _ask_child(path, "parse")


def note_made_here(content: bytes) -> None:
    """Remember an .onnx file as one that this process made."""
    _sound.add((sha256_bytes(content), ""))


def inspect_onnx(path: Path, *, timeout_seconds: float = 120.0) -> dict[str, Any]:
    """Check an ONNX file completely and describe it, in a child process with limits on time and memory.

    The child runs the full checker, opens the file in ONNX Runtime, and has it answer a picture of 8x8 pixels, and
    larger ones for which it has but to end.

    Returns:
        inputs and outputs (name to shape), opset, producer, metadata, nodes (operator to count), layers (name,
        operator, shape, weights, size_bytes, and how they are stored and computed with), weights (of all layers),
        int8_share (part of them that is stored as int8), quantized (bool).
    Raises:
        ConfigError: no such file.
        InputError: damaged, hostile, of another task, in several files, or beyond the limits.
    """
    check_model_file(path)
    return _ask_child(path, "run", timeout_seconds=timeout_seconds)


def _key_of(path: Path, runtime: str = "") -> tuple[str, str]:
    """The SHA-256 of a file, and of OpenVINO's weights beside it, and the library that is to run it."""
    if path.suffix in MOBILE_SUFFIXES:
        library = path.suffix
    else:
        library = "openvino" if path.suffix == ".xml" or runtime == "openvino" else ""
    beside = path.with_suffix(".bin")
    parts = [path, beside] if path.suffix == ".xml" and beside.is_file() else [path]
    return "".join(sha256_bytes(part.read_bytes()) for part in parts), library


def _ask_child(path: Path, task: str, library: str = "", *, timeout_seconds: float = 120.0) -> dict[str, Any]:
    job = {"path": str(path.resolve()), "task": task, "library": library}
    answer = run_worker(job, threads=1, timeout_s=timeout_seconds, module=sys.modules[__name__])
    status = answer.pop("status")
    if status == "ok":
        return answer
    why, does_harm = answer["error"], status != "error" or answer.get("beyond_limits", False)
    if (status != "error" or why == _TOO_MUCH or "without an answer" in why) and _is_short_of_memory(path, library):
        hint = "raise the limit of memory that this process was started with (`ulimit -v`)"
        raise MachineError("model", path, "not enough memory to open it", hint)
    if status in ("timeout", "crashed(SIGXCPU)"):
        limit = timeout_seconds if status == "timeout" else _cpu_seconds(path)
        why = f"took more than {limit:g} s to open and run; refused"
    elif status.startswith("crashed"):
        name = find_runtime(path, library if library == "openvino" else "").title
        why = f"crashes {name} {status.removeprefix('crashed')}; refused"
    elif said := re.search(r"without an answer: error: model '.*?': (.*) hint:", why):
        why, does_harm = said[1], True  # `run_limits` had to end the child
    elif "bad_alloc" in why or "MemoryError" in why:
        why, does_harm = _TOO_MUCH, True
    raise (BeyondLimitsError if does_harm else InputError)("model", path, why, _HINT)


def _memory_bytes(path: Path, library: str) -> int:
    return (_MEMORY_BYTES + _MEMORY_PER_FILE_BYTE * path.stat().st_size) * (4 if library else 1)


def _is_short_of_memory(path: Path, library: str) -> bool:
    """Whether this process, and so its child, was allowed less memory than a sound model may need."""
    allowed, _ = resource.getrlimit(resource.RLIMIT_AS)
    return allowed != resource.RLIM_INFINITY and allowed < _memory_bytes(path, library)


def _cpu_seconds(path: Path) -> int:
    return round(_CPU_SECONDS + _CPU_SECONDS_PER_MEGABYTE * path.stat().st_size / 1e6)


def main() -> None:
    """Do the job that standard input names in this process, which puts limits on itself first; prints the answer."""
    job = json.load(sys.stdin)
    path = Path(job["path"])
    if path.suffix in MOBILE_SUFFIXES:
        find_runtime(path).require()  # such a library wants to write a file when it is imported
    memory, cpu = _memory_bytes(path, job["library"]), _cpu_seconds(path)
    limits = {resource.RLIMIT_AS: memory, resource.RLIMIT_CPU: cpu, resource.RLIMIT_CORE: 0, resource.RLIMIT_FSIZE: 0}
    for limit, value in limits.items():
        _, most = resource.getrlimit(limit)
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limit, (value, value))
    try:
        answer = {"status": "ok", **_do(job["task"], path, job["library"])}
    except Exception as error:
        answer = {
            "status": "error",
            "error": _describe_failure(error),
            "beyond_limits": _is_beyond_limits(error),
        }
    print(json.dumps(answer))


def _do(task: str, path: Path, library: str) -> dict[str, Any]:
    import onnx

    if task == "parse":
        onnx.load(str(path), load_external_data=False)
        return {}
    if path.suffix in MOBILE_SUFFIXES:
        _try_network(open_predictor(path, threads=1), path)
        return {}
    found = {} if path.suffix == ".xml" else _inspect(path)
    if library:
        from export.predictors import OpenVinoPredictor

        if IMAGE_NAME not in found.get("inputs", {}):
            _try_network(OpenVinoPredictor(path, threads=1), path)
        else:
            _try_pictures(OpenVinoColorizer(path, path.read_bytes(), threads=1), path)
    return found


def _is_beyond_limits(error: Exception) -> bool:
    return isinstance(error, BeyondLimitsError) or _is_short(error)


def _is_short(error: Exception) -> bool:
    """Whether memory was short; what a library says of that at length, an error for people does not repeat."""
    return is_out_of_memory(error) or (error.__cause__ is not None and is_out_of_memory(error.__cause__))


def _describe_failure(error: Exception) -> str:
    if _is_short(error):
        return _TOO_MUCH
    if isinstance(error, ColorpressError):
        return error.why
    lines = str(error).strip().splitlines()  # onnx and protobuf raise many kinds for damaged files
    return f"is no valid ONNX model ({lines[0][:200] if lines else type(error).__name__})"


def _inspect(path: Path) -> dict[str, Any]:
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
        _try_pictures(OnnxColorizer(path, threads=1), path)
    else:
        _try_network(OnnxPredictor(path, threads=1), path)
    return describe_graph(model)


def _try_network(predictor: Predictor, path: Path) -> None:
    """Have a network answer pictures of several sizes.

    Raises:
        InputError: it cannot at the first size, or took all memory at another.
    """

    def answer(height: int, width: int) -> tuple[int, ...]:
        lightness = np.linspace(0.0, 1.0, height * width, dtype=np.float32).reshape(1, 1, height, width)
        answer = predictor(lightness)
        if not np.isfinite(answer).all():
            raise InputError("model", path, "answers NaN or infinity instead of colours", _HINT)
        return answer.shape

    _try_sizes(answer, lambda height, width: (1, 2, height, width), path)


def _try_pictures(colorizer: OnnxColorizer | OpenVinoColorizer, path: Path) -> None:
    """As `_try_network`, of a picture graph; one for a single size is asked that."""

    def answer(height: int, width: int) -> tuple[int, ...]:
        pixels = np.arange(height * width * 3, dtype=np.uint32).astype(np.uint8).reshape(height, width, 3)
        return colorizer(pixels).shape

    sizes = (colorizer.size,) if colorizer.size else _SIDES
    _try_sizes(answer, lambda height, width: (height, width, 3), path, sizes)


def _try_sizes(
    answer: Callable[[int, int], tuple[int, ...]],
    expected: Callable[[int, int], tuple[int, ...]],
    path: Path,
    sizes: Sequence[tuple[int, int]] = _SIDES,
) -> None:
    first, *others = sizes
    if (shape := answer(*first)) != expected(*first):
        raise InputError("model", path, f"answers {shape} to a picture of {'x'.join(map(str, first))} pixels", _HINT)
    for sides in others:
        try:
            answer(*sides)
        except Exception as error:  # some networks take multiples of 8 alone: what they say of it comes in its time
            if _is_beyond_limits(error):
                raise


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
        between: dict[str, onnx.NodeProto] = {}
        while name not in tensors and name in made_by and made_by[name].input:
            between[made_by[name].op_type] = made_by[name]
            name = made_by[name].input[0]
        if (tensor := tensors.get(name)) is None:
            continue
        kind = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
        shape, stored = list(tensor.dims), _PRECISIONS.get(kind.name, kind.name)
        size_bytes = prod(shape) * kind.itemsize
        if kind.name == "uint8" and {"Split", "Reshape"} <= between.keys() and between["Reshape"].input[1] in tensors:
            # 4 bits of all layers are in one tensor, two weights to a byte.
            shape = onnx.numpy_helper.to_array(tensors[between["Reshape"].input[1]]).tolist()
            stored, size_bytes = "int4", -(-prod(shape) // 2)
        layers.append({
            "name": node.name or node.output[0],
            "operator": node.op_type,
            "shape": shape,
            "weights": prod(shape),
            "size_bytes": size_bytes,
            "stored": stored,
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
