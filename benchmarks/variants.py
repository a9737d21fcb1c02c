"""What is benchmarked: a model file, how it is run, and its sizes read from disk."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Literal, cast

from colorpress.config import ArchConfig
from colorpress.errors import ConfigError, InputError

# What the name of a variant ends in, after that of the float32 one it was made from: "pruned-int8" is "pruned" in int8.
DERIVED_ENDINGS = ("-int8", "-w8", "-fp16")
Runtime = Literal["torch", "onnxruntime", "openvino"]


@dataclass(frozen=True)
class Variant:
    """One row of the benchmark.

    Attributes:
        name: unique within a benchmark, such as "best-int8".
        path: the .pt checkpoint or .onnx file.
        runtime: "torch" (eager, float32), "onnxruntime" or "openvino".
        device: "cpu" or "cuda".
        precision: of the weights, such as "fp32" or "int8"; shown, not checked.
        params: weights and biases of the network; quantization scales and zero points are not counted.
        macs: multiply-accumulates of one picture at the timed size; 0: unknown.
        size_bytes: the file as it is on disk, with the external data files of an ONNX graph.
        weights_bytes: the weights alone, without history, training state or graph: the fair size of a checkpoint.
        arch: names the network of a foreign checkpoint.
        caution: what may make an int8 file slower than its float parent, as the rest of a sentence.
    """

    name: str
    path: Path
    runtime: Runtime
    device: str
    precision: str
    params: int
    macs: int
    size_bytes: int
    weights_bytes: int
    arch: ArchConfig = field(default_factory=ArchConfig)
    caution: str = ""


def describe_variant(
    name: str,
    path: Path,
    *,
    device: str = "cpu",
    precision: str = "fp32",
    macs: int = 0,
    params: int | None = None,
    arch: ArchConfig | None = None,
) -> Variant:
    """Read the sizes of a model file and say how it is run: `.pt` by PyTorch, `.onnx` by ONNX Runtime.

    Args:
        params: overrides what is counted in the file. An exported graph has its batch norms folded, so it holds
            fewer than the network it came from.
        arch: names the network of a foreign checkpoint.
    Raises:
        ConfigError: no such file, or neither .pt nor .onnx.
        InputError: the file cannot be read as what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError("model", path, "no such file", "give a .pt or .onnx file that this project wrote")
    if path.suffix == ".pt":
        runtime, external_bytes, (counted, weights_bytes) = "torch", 0, _read_checkpoint_sizes(path, arch)
    elif path.suffix == ".onnx":
        runtime = "onnxruntime"
        external_bytes, counted, weights_bytes = _read_graph_sizes(path)
    else:
        raise ConfigError("model", path, f"ends in {path.suffix!r}", "give a .pt or .onnx file")
    return Variant(
        name=name,
        path=path,
        runtime=cast("Runtime", runtime),
        device=device,
        precision=precision,
        params=counted if params is None else params,
        macs=macs,
        size_bytes=path.stat().st_size + external_bytes,
        weights_bytes=weights_bytes,
        arch=arch or ArchConfig(),
        caution=_read_caution(path.with_name("int8.json")),
    )


def on_device(variant: Variant, device: str) -> Variant:
    """The same file on another device, as a row of its own: "best" on the GPU is "best @ cuda"."""
    return replace(variant, name=f"{variant.name} @ {device}", device=device)


def in_openvino(variant: Variant) -> Variant:
    """The same .onnx file in OpenVINO, as a row of its own: "best @ openvino"."""
    return replace(variant, name=f"{variant.name} @ openvino", runtime="openvino")


def _read_caution(path: Path) -> str:
    """What `colorpress quantize` wrote beside an int8 file; empty where there is nothing."""
    try:
        return str(json.loads(path.read_bytes())["caution"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _read_checkpoint_sizes(path: Path, arch: ArchConfig | None) -> tuple[int, int]:
    from training.checkpoint import load_checkpoint
    from training.unet import count_parameters

    checkpoint = load_checkpoint(path, arch)
    weights_bytes = sum(tensor.numel() * tensor.element_size() for tensor in checkpoint.state_dict.values())
    return count_parameters(checkpoint.build_network()), weights_bytes


def _read_graph_sizes(path: Path) -> tuple[int, int, int]:
    """Bytes in external files, number of weights, bytes of the weights."""
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf raises kinds of its own
        raise InputError("ONNX model", path, f"cannot be read ({type(error).__name__})", "export it again") from error
    external = {
        entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"
    }
    external_bytes = sum((path.parent / location).stat().st_size for location in external)
    # Scales and zero points describe numbers, they are no weights; shapes and axes are int64 and no weights either.
    ranges = {name for node in graph.node if "QuantizeLinear" in node.op_type for name in node.input[1:]}
    ranges |= {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.input[1:]}
    weights = [
        tensor
        for tensor in graph.initializer
        if tensor.name not in ranges and tensor.data_type != onnx.TensorProto.INT64 and tensor.dims
    ]
    counts = [prod(tensor.dims) for tensor in weights]
    widths = [onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize for tensor in weights]
    return external_bytes, sum(counts), sum(n * width for n, width in zip(counts, widths, strict=True))
