"""What is benchmarked: a model file, how it is run, and its sizes; those that a run folder holds, and others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from colorpress.core.config import ArchConfig
from colorpress.core.console import warn
from colorpress.core.errors import ConfigError, InputError, MachineError
from colorpress.core.reading import read_json
from compress.precisions import origin_of, recognize_precision, variant_names
from compress.ranking import count_macs
from compress.students.search_front import list_front
from compress.students.student_plan import list_students
from export.controls import CONTROL_TITLES, control_path, make_controls
from export.graph import read_metadata
from export.mobile_predictors import MOBILE_SUFFIXES, read_description
from export.onnx_probe import refuse_hostile, refuse_unreadable
from export.predictors import TimedPredictor
from export.runtimes import CHECKPOINT_SUFFIXES, RUNTIMES, find_runtime, open_predictor, runtimes_of
from export.sessions import open_session
from training.checkpoint import Checkpoint, load_checkpoint
from training.photo_split import PhotoSplit
from training.run_folder import Run
from training.unet import count_parameters

_CONVOLUTIONS = ("Conv", "QLinearConv", "ConvTranspose")


@dataclass(frozen=True)
class Variant:
    """A model file and what runs it, under a name of its own.

    Attributes:
        name: unique within a benchmark, such as "best-int8" or "best-int8 @ openvino".
        path: the .pt checkpoint, .onnx file, OpenVINO .xml file, .tflite or .pte.
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
        control: which of `export.controls.CONTROL_TITLES` it is, that see no picture; empty: none.
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
    control: str = ""

    @property
    def file_name(self) -> str:
        """The name without what runs it."""
        return self.name.partition(" @ ")[0]

    def open(self, threads: int) -> TimedPredictor:
        """What colours photographs as it does: where PyTorch compiles, the same precision without the compiler."""
        runtime = RUNTIMES[self.runtime].uncompiled
        return open_predictor(self.path, runtime=runtime, device=self.device, threads=threads, arch=self.arch)


def describe_variant(
    name: str,
    path: Path,
    *,
    runtime: str = "",
    arch: ArchConfig | None = None,
    count_at: int | None = None,
    **known: Any,
) -> Variant:
    """Read the sizes of a model file and say how it is run.

    Args:
        runtime: another one than the file's own.
        arch: names the network of a foreign checkpoint.
        count_at: side in pixels that multiply-accumulates of a checkpoint or an .onnx file are counted at; None: not.
        known: further attributes of the variant, in the place of what the file tells; None: the file's. So `params`:
            an exported graph has its batch norms folded, so it holds fewer than the network it came from.
    Raises:
        ConfigError: no such file, another kind of file, or a runtime that cannot run it.
        InputError: the file cannot be read as what its name says.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError("model", path, "no such file", "give a .pt, .onnx, OpenVINO .xml, .tflite or .pte file")
    chosen, arch = find_runtime(path, runtime), arch or ArchConfig()
    found: dict[str, Any] = {"device": "cpu", "macs": 0, "macs_size": count_at or Variant.macs_size}
    if path.suffix in CHECKPOINT_SUFFIXES:
        found |= _read_checkpoint(path, arch, count_at)
    elif path.suffix == ".onnx":
        found |= _read_graph(path, count_at)
    elif path.suffix == ".xml":
        found |= _read_ir(path)
    else:
        found |= _read_other(path)
    found |= {key: value for key, value in known.items() if value is not None}
    caution = _read_caution(path.with_name("int8.json")) if path.suffix == ".onnx" else ""
    return Variant(name=name, path=path, runtime=chosen.name, arch=arch, caution=caution, **found)


def describe_models(paths: Sequence[Path], *, size: int, arch: ArchConfig) -> tuple[Variant, ...]:
    """Variants of model files that somebody named: model.pt and model.onnx are called as their folders are.

    What `benchmarks.peers` made is another tool's.

    Args:
        size, arch: `count_at` and `arch` of `describe_variant`.
    Raises:
        ConfigError, InputError: as `describe_variant`; or two files have the same name.
    """
    variants = []
    for path in paths:
        name = path.resolve().parent.name if path.stem == "model" else path.stem
        name = path.name if path.suffix in CHECKPOINT_SUFFIXES and path.stem != "model" else name
        name += path.suffix if path.suffix in MOBILE_SUFFIXES else ""
        variants.append(describe_variant(name, path, arch=arch, count_at=size, peer=_is_peer(path)))
    names = Counter([*(variant.name for variant in variants), *CONTROL_TITLES.values()])
    for variant in variants:
        if names[variant.name] > 1:
            why = f"is the second one called {variant.name!r}"
            raise ConfigError("model", variant.path, why, "name the files or folders apart")
    return tuple(variants)


def _is_peer(path: Path) -> bool:
    """Whether a file lies in a folder of `benchmarks.peers`, and is not best.pt's own export there."""
    folder = path.resolve().parent
    return (folder.parent / "peers.json").is_file() and folder.name != "best"


def list_variants(run: Run) -> tuple[Variant, ...]:
    """best.pt and every variant of it that the run folder holds, in the order of the pipeline.

    Files that were made from another best.pt than the folder's are left out with a warning.

    Raises:
        ConfigError: there is no best.pt.
    """
    if not run.best_path.exists():
        hint = "name the run folder with -o, give --checkpoint, or make one first: `colorpress run`"
        raise ConfigError("folder", run.folder, "holds no best.pt to compare with", hint)
    best = run.load(run.best_path)
    variants = _variants_of(run, "best", run.best_path, best)
    for name in ("pruned", *list_students(run.folder)):
        path = run.folder / name / "model.pt"
        if not path.exists():
            continue
        made = run.load(path)
        if made.extra.get("teacher_sha256") == best.sha256:
            variants += _variants_of(run, name, path, made)
        else:
            again = "prune" if name == "pruned" else f"student --name {name}"
            warn(f"{name}/model.pt is of another best.pt and is left out: run `colorpress {again}` again")
    for name in list_front(run.folder):
        exported, origin = run.folder / name / "model.onnx", run.folder / origin_of(name) / "model.pt"
        why = "is not there any more"
        if exported.is_file() and origin.is_file():
            made, why = run.load(origin), "is not of this best.pt"
            if made.extra.get("teacher_sha256") == best.sha256 and _is_of(exported, made):
                variants.append(_describe_exported(run, name, exported, made))
                continue
        warn(f"{name} of the front {why} and is left out: run `colorpress compress` again")
    return tuple(variants)


def list_controls(run: Run, photos: PhotoSplit) -> tuple[Variant, ...]:
    """The controls that see no picture, fitted on the training photographs where they are not there yet.

    Raises:
        InputError: none of those photographs can be read.
    """
    make_controls(run, photos)
    return tuple(
        describe_variant(title, control_path(run, name), control=name) for name, title in CONTROL_TITLES.items()
    )


def _variants_of(run: Run, name: str, path: Path, checkpoint: Checkpoint) -> list[Variant]:
    """A checkpoint and every file that it was exported to."""
    size = run.settings.time.bench_size[0]
    variants = [describe_variant(f"{name}.pt", path, arch=checkpoint.arch, count_at=size)]
    for variant in variant_names(name):
        exported = run.folder / variant / "model.onnx"
        if exported.exists() and _is_of(exported, checkpoint):
            variants.append(_describe_exported(run, variant, exported, checkpoint))
        elif exported.exists():
            warn(f"{variant}/model.onnx is not of {path.name} and is left out: make it again")
        for exported in (run.folder / variant / f"model{suffix}" for suffix in MOBILE_SUFFIXES):
            if exported.exists() and _can_be_measured(exported, checkpoint):
                variants.append(_describe_exported(run, f"{variant}{exported.suffix}", exported, checkpoint))
    return variants


def _can_be_measured(exported: Path, checkpoint: Checkpoint) -> bool:
    """Whether a file for phones is of this checkpoint, and can be run here; where not it is said."""
    shown = f"{exported.parent.name}/{exported.name}"
    try:
        if read_description(exported).checkpoint_sha256 != checkpoint.sha256:
            warn(f"{shown} is of another checkpoint and is left out: run `colorpress export` again")
            return False
        find_runtime(exported).require()
    except (InputError, MachineError) as error:
        warn(f"{shown} is left out: {error}")
        return False
    return True


def _is_of(exported: Path, checkpoint: Checkpoint) -> bool:
    return read_metadata(exported).get("checkpoint_sha256") == checkpoint.sha256


def _describe_exported(run: Run, name: str, path: Path, checkpoint: Checkpoint) -> Variant:
    """An exported file with the parameters and multiply-accumulates of its checkpoint's network."""
    size, network = run.settings.time.bench_size[0], checkpoint.build_network()
    macs, precision = count_macs(network, height=size, width=size), None
    if path.suffix == ".onnx":
        precision = read_metadata(path).get("precision", "fp32")
    return describe_variant(
        name, path, precision=precision, params=count_parameters(network), macs=macs, macs_size=size
    )


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
        return str(read_json(path, "int8 record", "")["caution"])
    except (ConfigError, InputError, KeyError, TypeError):
        return ""


def _read_checkpoint(path: Path, arch: ArchConfig, count_at: int | None) -> dict[str, Any]:
    checkpoint = load_checkpoint(path, arch)
    network = checkpoint.build_network()
    return {
        "precision": "fp32",
        "params": count_parameters(network),
        "macs": count_macs(network, height=count_at, width=count_at) if count_at else 0,
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


def _read_other(path: Path) -> dict[str, Any]:
    """A file whose library alone knows what is in it: nearly all of it are weights."""
    size = path.stat().st_size
    precision = read_description(path).precision if path.suffix in MOBILE_SUFFIXES else "fp32"
    return {"precision": precision, "params": 0, "size_bytes": size, "weights_bytes": size}


def _read_graph(path: Path, count_at: int | None) -> dict[str, Any]:
    import onnx

    try:
        refuse_hostile(path)
    except InputError:  # which is told where it is timed; it can be described, but nothing runs it here
        refuse_unreadable(path)
        count_at = None
    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except Exception as error:  # protobuf raises kinds of its own
        raise InputError("ONNX model", path, f"cannot be read ({type(error).__name__})", "export it again") from error
    outside = {entry.value for each in graph.initializer for entry in each.external_data if entry.key == "location"}
    # Scales and zero points describe numbers, they are no weights; shapes and axes are int64 and no weights either.
    ranges = {name for node in graph.node if "quantizelinear" in node.op_type.lower() for name in node.input[1:]}
    ranges |= _find_scales(graph)
    weights = [
        (prod(tensor.dims), onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
        for tensor in graph.initializer
        if tensor.name not in ranges and tensor.data_type != onnx.TensorProto.INT64 and tensor.dims
    ]
    operators, kinds = {each.op_type for each in graph.node}, {kind.name for _, kind in weights}
    precision = recognize_precision(operators, kinds)
    return {
        "precision": precision.name,
        "macs": count_graph_macs(path, size=count_at) if count_at else 0,
        "params": sum(count * (precision.stores if kind.name == "uint8" else 1) for count, kind in weights),
        "size_bytes": path.stat().st_size + sum((path.parent / name).stat().st_size for name in outside),
        "weights_bytes": sum(count * kind.itemsize for count, kind in weights),
    }


def _find_scales(graph: Any) -> set[str]:
    """The names of what packed weights are multiplied by before anything else is computed."""
    constants, scales = {tensor.name for tensor in graph.initializer}, set[str]()
    unpacked: set[str] = set()
    for node in graph.node:
        if node.input and constants.union(unpacked).issuperset(node.input):
            unpacked.update(node.output)
            if node.op_type == "Mul" and node.input[0] in unpacked:
                scales.update(node.input[1:])
    return scales


def count_graph_macs(path: Path, *, size: int) -> int:
    """Multiply-accumulates of all convolutions for one picture of `size` squared; 0 where the graph does not run.

    As `compress.ranking.count_macs` counts those of a network. Shapes are found by running the graph once, since those
    of a graph for any size are not written in it.

    Args:
        path: the .onnx file, with input L (N, 1, H, W).
        size: in pixels.
    """
    import onnx

    model = onnx.load(str(path))
    nodes = [node for node in model.graph.node if node.op_type in _CONVOLUTIONS]
    # A transposed convolution multiplies at every pixel that it reads, the others at every one that they write.
    pictures = [node.input[0] if node.op_type == "ConvTranspose" else node.output[0] for node in nodes]
    weights = [node.input[3 if node.op_type == "QLinearConv" else 1] for node in nodes]
    constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    known = {each.name for each in (*model.graph.input, *model.graph.output)} | constants.keys()
    wanted = [name for name in dict.fromkeys((*pictures, *weights)) if name not in known]
    model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in wanted)
    try:
        session = open_session(path, model.SerializeToString())
        picture = np.zeros((1, 1, size, size), np.float32)
        names = [each.name for each in session.get_outputs()]
        answers = session.run(names, {session.get_inputs()[0].name: picture})
    except Exception:  # its timing will say what is wrong with it
        return 0
    shapes = constants | {name: answer.shape for name, answer in zip(names, answers, strict=True)}
    if model.graph.input[0].name in pictures:
        shapes[model.graph.input[0].name] = picture.shape
    return sum(prod(shapes[image][2:]) * prod(shapes[weight]) for image, weight in zip(pictures, weights, strict=True))
