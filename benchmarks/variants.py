"""What is benchmarked: a model file, how it is run, and its sizes read from disk."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.graph_macs import count_graph_macs
from colorpress.core.config import ArchConfig
from colorpress.core.errors import ConfigError, InputError, MachineError
from compress.precisions import recognize_precision
from export.runtimes import CHECKPOINT_SUFFIXES, RUNTIMES, find_runtime, runtimes_of


@dataclass(frozen=True)
class Variant:
    """A model file and what runs it, under a name of its own.

    Attributes:
        name: unique within a benchmark, such as "best-int8" or "best-int8 @ openvino".
        path: the .pt checkpoint, .onnx file or OpenVINO .xml file.
        runtime: a key of `export.runtimes.RUNTIMES`.
        device: "cpu", "cuda" or "cuda:N".
        precision: of the weights, a name of `compress.precisions.PRECISIONS`.
        params: weights and biases of the network; quantization scales and zero points are not counted. 0: unknown.
        macs: multiply-accumulates of one picture of `macs_size` squared; 0: unknown.
        size_bytes: the file as it is on disk, with the external data files of an ONNX graph.
        weights_bytes: the weights alone, without history, training state or graph: the fair size of a checkpoint.
        macs_size: the side that `macs` was counted at, in pixels.
        arch: names the network of a foreign checkpoint.
        caution: what may make an int8 file slower than its float parent, as the rest of a sentence.
        peer: made by another tool than colorpress.
    """

    name: str
    path: Path
    runtime: str
    device: str
    precision: str
    params: int
    macs: int
    size_bytes: int
    weights_bytes: int
    macs_size: int = 256
    arch: ArchConfig = field(default_factory=ArchConfig)
    caution: str = ""
    peer: bool = False

    @property
    def file_name(self) -> str:
        """The name without what runs it."""
        return self.name.partition(" @ ")[0]


def describe_variant(
    name: str, path: Path, *, runtime: str | None = None, arch: ArchConfig | None = None, **known: Any
) -> Variant:
    """Read the sizes of a model file and say how it is run.

    Args:
        runtime: another one than the file's own.
        arch: names the network of a foreign checkpoint.
        known: further attributes of the variant, in the place of what the file tells; None: the file's. So `params`:
            an exported graph has its batch norms folded, so it holds fewer than the network it came from.
    Raises:
        ConfigError: no such file, another kind of file, or a runtime that cannot run it.
        InputError: the file cannot be read as what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError("model", path, "no such file", "give a .pt, .onnx or OpenVINO .xml file")
    chosen, arch = find_runtime(path, runtime or ""), arch or ArchConfig()
    if path.suffix in CHECKPOINT_SUFFIXES:
        found = _read_checkpoint(path, arch)
    else:
        found = _read_graph(path) if path.suffix == ".onnx" else _read_ir(path)
    found |= {"device": "cpu", "macs": 0} | {key: value for key, value in known.items() if value is not None}
    return Variant(
        name=name,
        path=path,
        runtime=chosen.name,
        arch=arch,
        caution=_read_caution(path.with_name("int8.json")),
        **found,
    )


def describe_models(paths: Sequence[Path], *, size: int, arch: ArchConfig) -> tuple[Variant, ...]:
    """Variants of model files that somebody named: model.pt and model.onnx are called as their folders are.

    Args:
        size: side in pixels that multiply-accumulates are counted at; those of an .xml file stay unknown.
        arch: names the network of foreign checkpoints.
    Raises:
        ConfigError: as `describe_variant`, or two files have the same name.
    """
    variants = []
    for path in paths:
        name = path.resolve().parent.name if path.stem == "model" else path.stem
        name = path.name if path.suffix == ".pt" and path.stem != "model" else name
        # Described first: that refuses what is no model file.
        variant = describe_variant(name, path, arch=arch)
        variants.append(replace(variant, macs=_count_macs(path, size, arch), macs_size=size))
    names = Counter(variant.name for variant in variants)
    for variant in variants:
        if names[variant.name] > 1:
            why = f"is the second one called {variant.name!r}"
            raise ConfigError("model", variant.path, why, "name the files or folders apart")
    return tuple(variants)


def _count_macs(path: Path, size: int, arch: ArchConfig) -> int:
    if path.suffix == ".onnx":
        return count_graph_macs(path, size=size)
    if path.suffix == ".xml":
        return 0
    from compress.ranking import count_macs
    from training.checkpoint import load_checkpoint

    return count_macs(load_checkpoint(path, arch).build_network(), height=size, width=size)


def in_runtimes(variants: Sequence[Variant], runtimes: Sequence[str], device: str) -> tuple[Variant, ...]:
    """Every variant in each of the runtimes that can run it, as rows of their own: "best @ openvino".

    A file that none of them can run keeps its own runtime, and so does the first variant beside them, since the
    others are compared with it. Rows on a GPU follow those on the CPU: "best @ cuda".

    Args:
        runtimes: keys of `export.runtimes.RUNTIMES`; none: each file's own.
        device: "cpu", or the GPU that is measured as well.
    Raises:
        MachineError: a runtime needs a GPU and `device` is the CPU.
    """
    if device == "cpu" and (missing := [runtime for runtime in runtimes if RUNTIMES[runtime].needs_gpu]):
        raise MachineError("runtime", missing[0], "needs a GPU, and there is none", "leave it out of --runtime")
    on_cpu, on_gpu = [], []
    for position, variant in enumerate(variants):
        wanted = [runtime for runtime in runtimes if runtime in runtimes_of(variant.path)] or [variant.runtime]
        if position == 0 and variant.runtime not in wanted:
            wanted.insert(0, variant.runtime)
        for runtime in sorted(wanted, key=lambda each: each != variant.runtime):
            suffix = [] if runtime == variant.runtime else [runtime]
            if not RUNTIMES[runtime].needs_gpu:
                on_cpu.append(replace(variant, name=_row_name(variant.name, suffix), runtime=runtime))
            if device != "cpu" and "cuda" in RUNTIMES[runtime].devices:
                name = _row_name(variant.name, [*suffix, device])
                on_gpu.append(replace(variant, name=name, runtime=runtime, device=device))
    return (*on_cpu, *on_gpu)


def _row_name(name: str, suffix: Sequence[str]) -> str:
    joined = ", ".join(suffix)
    return f"{name} @ {joined}" if joined and " @ " not in name else f"{name}, {joined}" if joined else name


def _read_caution(path: Path) -> str:
    """What `colorpress quantize` wrote beside an int8 file; empty where there is nothing."""
    try:
        return str(json.loads(path.read_bytes())["caution"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _read_checkpoint(path: Path, arch: ArchConfig) -> dict[str, Any]:
    from training.checkpoint import load_checkpoint
    from training.unet import count_parameters

    checkpoint = load_checkpoint(path, arch)
    return {
        "precision": "fp32",
        "params": count_parameters(checkpoint.build_network()),
        "size_bytes": path.stat().st_size,
        "weights_bytes": sum(tensor.nbytes for tensor in checkpoint.state_dict.values()),
    }


def _read_ir(path: Path) -> dict[str, Any]:
    """OpenVINO keeps the weights in a file beside the graph: their bytes are known, their number is not."""
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise InputError("OpenVINO model", path, f"there is no {weights.name} beside it", "keep the two files together")
    return {
        "precision": "int8" if b"FakeQuantize" in path.read_bytes() else "fp32",
        "params": 0,
        "size_bytes": path.stat().st_size + weights.stat().st_size,
        "weights_bytes": weights.stat().st_size,
    }


def _read_graph(path: Path) -> dict[str, Any]:
    import onnx

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf raises kinds of its own
        raise InputError("ONNX model", path, f"cannot be read ({type(error).__name__})", "export it again") from error
    outside = {entry.value for each in graph.initializer for entry in each.external_data if entry.key == "location"}
    # Scales and zero points describe numbers, they are no weights; shapes and axes are int64 and no weights either.
    ranges = {name for node in graph.node if "quantizelinear" in node.op_type.lower() for name in node.input[1:]}
    weights = [
        (prod(tensor.dims), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        for tensor in graph.initializer
        if tensor.name not in ranges and tensor.data_type != onnx.TensorProto.INT64 and tensor.dims
    ]
    return {
        "precision": recognize_precision(
            {each.op_type for each in graph.node}, {kind.name for _, kind in weights}
        ).name,
        "params": sum(count for count, _ in weights),
        "size_bytes": path.stat().st_size + sum((path.parent / name).stat().st_size for name in outside),
        "weights_bytes": sum(count * kind.itemsize for count, kind in weights),
    }
