"""One ONNX file from one checkpoint: any picture size, one file, the same bytes every time, published after parity."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from colorpress import __version__
from colorpress.core.config import ExportConfig
from colorpress.core.console import say, silence_libraries, warn
from colorpress.core.errors import GateError, InputError
from colorpress.core.files import sha256_bytes, write_bytes
from colorpress.core.locks import scratch_folder
from export.affine_field import BASE_NAME, SLOPE_NAME, field_nodes
from export.autocast import without_autocast
from export.onnx_probe import note_made_here
from export.parity import DEFAULT_SHAPES, ParityResult, check_parity, require_parity
from export.predictors import INPUT_NAME, OUTPUT_NAME, OnnxPredictor
from export.torch_runtimes import TorchPredictor
from training.checkpoint import Checkpoint
from training.cie import AB_SCALE
from training.foreign import AdaptedNetwork, ForeignArchitecture
from training.input_sizes import MULTIPLES, ONE_SIZES, InputSizes
from training.network import ColorNetwork
from training.user_code import describe_failure, find_place, first_cause

# Of ab/128; beyond it a rewrite was no rewrite. Rounding is a hundredth of it.
_SIMPLIFIED_ATOL = 1e-4
Parity = TypeVar("Parity")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Published(Generic[Parity]):
    """A published ONNX file and its measured distance to PyTorch."""

    path: Path
    size_bytes: int
    sha256: str
    parity: Parity


ExportResult = Published[ParityResult]


def export_onnx(
    checkpoint: Checkpoint, destination: Path, config: ExportConfig, *, metadata: Mapping[str, str] | None = None
) -> ExportResult:
    """Write a checkpoint's network as one ONNX file, after its answers were compared with PyTorch's.

    What Python decides inside the code of another author, such as an `if` on sizes, is not in the graph. So where the
    file and PyTorch differ at some size, both are asked for larger multiples instead, which pads the others, until
    they agree; where that helps nowhere, both are asked for one size, which pictures are resized to. What became of
    it is said, and is `size_multiple` and `fixed_size` of the file, see `as_exported`. The reference is always the
    network so asked, in float32: what the network itself would answer to pictures that were padded less differs from
    both by no more than padding does. `torch.autocast` inside the network is left out on both sides, and what that
    changes is said.

    The graph reads `L` (N, 1, H, W) float32 in [0, 1] and answers `ab` (N, 2, H, W) for any N, H, W >= 1: in [-1, 1],
    or perhaps a little beyond where the network is affine.
    Batch norm is folded and transposed convolutions are 1x1 convolutions and DepthToSpace, both exact rewrites; in a
    foreign network where that can be done and makes no difference.

    Args:
        metadata: further entries of the file's metadata_props; they win over the standard ones.
    Raises:
        GateError: an answer differs from PyTorch's by more than `config.atol`; nothing is published.
        InputError: the network cannot be traced or has no ONNX operators; names the line where it can.
        MachineError: the file cannot be written.
    """
    network = checkpoint.build_network()

    def export(sized: ColorNetwork) -> ExportResult:
        def check(trial: Path) -> ParityResult:
            # More than one of the multiples each way, and another shape than the one that is traced.
            shapes = (*DEFAULT_SHAPES, (1, 2 * sized.size_multiple + 1, sized.size_multiple + 1))
            parity = check_parity(TorchPredictor(sized), OnnxPredictor(trial), shapes=shapes, atol=config.atol)
            return require_parity(parity, destination.name)

        entries = {**_describe_file(checkpoint, sized, config), **(metadata or {})}
        return publish_model(build_graph(sized, opset=config.opset), entries, destination, check)

    with without_autocast() as half:
        exported = at_exportable_sizes(network, export)
        answer = _answer(network)
    if half:
        changed = float((_answer(network) - answer).abs().max())
        why = f"computes in {', '.join(sorted(half))} by torch.autocast, and its file in float32"
        say(f"{network.title} {why}, which moves its answers by up to {changed:.1g}")
    return exported


def at_exportable_sizes(network: ColorNetwork, export: Callable[[ColorNetwork], Answer]) -> Answer:
    """What `export` makes of the network, asked for the smallest multiple at which that can be made; of one size else.

    Only networks of other authors are asked again. Where one size does not help, no multiple does; and where the
    largest multiple does not, none between does, since its multiples are among theirs.

    Raises:
        GateError, InputError: what `export` raised of the network as it is; it can be made at no sizes.
    """
    try:
        return export(network)
    except (GateError, InputError) as error:
        if not isinstance(network, AdaptedNetwork) or network.architecture.fixed_size:
            raise
        first = error
    sizes = InputSizes(fixed=ONE_SIZES[0])
    if (exported := _try(export, network, sizes)) is None:
        raise first
    larger = [InputSizes(multiple) for multiple in MULTIPLES if multiple > network.size_multiple]
    if larger and _try(export, network, larger[-1]) is not None:
        every = ((each, _try(export, network, each)) for each in larger)
        sizes, exported = next((each, made) for each, made in every if made is not None)
    fitted = "others are resized to it" if sizes.fixed else "others are padded"
    why = first.why.removesuffix("; not published")
    warn(f"the file of {network.title} takes {sizes}, {fitted}; for {network.architecture.sizes} there is none: {why}")
    return exported


def _try(export: Callable[[ColorNetwork], Answer], network: AdaptedNetwork, sizes: InputSizes) -> Answer | None:
    with suppress(GateError, InputError):
        return export(network.with_sizes(sizes))
    return None


def as_exported(network: ColorNetwork, metadata: Mapping[str, str]) -> ColorNetwork:
    """The network asked for the sizes that a file of it was exported for, which is what the file's answers are.

    Args:
        metadata: of the file, see `read_metadata`.
    """
    if isinstance(network, AdaptedNetwork):
        # Files of earlier versions may say less; such a file is of the sizes that its checkpoint says.
        with suppress(KeyError, TypeError, ValueError):
            return network.with_sizes(ForeignArchitecture.from_dict(json.loads(metadata["architecture"])).sizes)
    return network


def publish_model(
    model: onnx.ModelProto, entries: Mapping[str, str], destination: Path, check: Callable[[Path], Parity]
) -> Published[Parity]:
    """Write a model with `entries` as its metadata_props, after ONNX's checker and `check` had nothing against it.

    Args:
        check: is given a trial file, raises where it must not be published, and answers what it measured.
    """
    helper.set_model_props(model, {key: entries[key] for key in sorted(entries)})
    content = model.SerializeToString(deterministic=True)
    with scratch_folder() as folder:
        trial = folder / destination.name
        trial.write_bytes(content)
        onnx.checker.check_model(str(trial), full_check=True)
        parity = check(trial)
    write_bytes(destination, content)
    note_made_here(content)
    return Published(destination, len(content), sha256_bytes(content), parity)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata_props of a model of one's own; its weights are read past."""
    return {entry.key: entry.value for entry in onnx.load(str(path), load_external_data=False).metadata_props}


@without_autocast()
def build_graph(network: ColorNetwork, *, opset: int) -> onnx.ModelProto:
    """The ONNX model of a network in eval mode, clean and without metadata; the network itself is unchanged."""
    inner = _CoarseNetwork(simplify_for_export(network)).eval()
    multiple = network.size_multiple
    # torch.export takes sizes of one for constants, and divides large multiples no better than small ones.
    scale = max(1, 8 // multiple)
    # torch.export cannot trace replication padding of a symbolic amount, so the part between padding and
    # cropping is exported for sizes that are multiples, and the two are added to the graph.
    rows, columns = torch.export.Dim("rows", min=1, max=1 << 20), torch.export.Dim("columns", min=1, max=1 << 20)
    sides = (multiple * rows, multiple * columns) if multiple > 1 else (rows, columns)
    shapes = ({0: torch.export.Dim("N", min=1, max=1 << 20), 2: sides[0], 3: sides[1]},)
    example = torch.zeros(2, 1, 2 * scale * multiple, 3 * scale * multiple)
    try:
        with silence_libraries():
            program = torch.onnx.export(
                inner,
                (example,),
                dynamo=True,
                external_data=False,
                verbose=False,
                opset_version=opset,
                input_names=[INPUT_NAME],
                output_names=[OUTPUT_NAME],
                dynamic_shapes=shapes,
            )
    except Exception as error:  # a network of any kind fails in any way
        raise _untraceable(network, error) from error
    assert program is not None
    model = program.model_proto
    _tidy_names_(model.graph)
    _leave_out_defaults_(model.graph, opset)
    if multiple > 1:
        _add_padding_(model.graph, multiple)
        if network.output_stride > 1:
            _add_upsampling_(model.graph, network.output_stride, affine=network.affine)
        else:
            _add_constants_(model.graph, {"crop.begin": [0, 0], "crop.axes": [2, 3]})
            cut = ["ab.padded", "crop.begin", "size", "crop.axes"]  # to the picture's size
            model.graph.node.append(helper.make_node("Slice", cut, [OUTPUT_NAME], "crop"))
    for value, channels in ((model.graph.input[0], 1), (model.graph.output[0], 2)):
        shape: list[str | int | None] = ["N", channels, "H", "W"]
        value.CopyFrom(helper.make_tensor_value_info(value.name, onnx.TensorProto.FLOAT, shape))
    clean = helper.make_model(
        model.graph,
        producer_name="colorpress",
        producer_version=__version__,
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=helper.find_min_ir_version_for([helper.make_opsetid("", opset)]),
    )
    try:
        return onnx.shape_inference.infer_shapes(clean, check_type=True, strict_mode=True)
    except onnx.shape_inference.InferenceError as error:
        raise _untraceable(network, error) from error


def _untraceable(network: ColorNetwork, error: Exception) -> InputError:
    """What the errors of torch.export and of its translation to ONNX come to, in terms of the network."""
    text, place = str(first_cause(error)), find_place(error)
    compiled = [name for name, module in network.named_modules() if isinstance(module, torch.jit.ScriptModule)]
    if compiled:
        why, hint = f"holds TorchScript, at {compiled[0]}", "make that part of it as Python code, without torch.jit"
    elif "data-dependent" in text:
        why = f"decides by the values of the picture{f', at {place}' if place else ''}: a graph has no `if`"
        hint = "write it with torch.where"
    elif missing := re.search(r"No ONNX function found for <OpOverload\(op='([^']+)'", text):
        why, hint = f"calls {missing[1]}, which ONNX has no operator for", "compute it by other operators"
    else:
        why = f"cannot be traced by torch.export: {describe_failure(error)}"
        hint = "its forward must be PyTorch alone, on the device of its input, and decide by sizes at most"
    return InputError("network", network.title, why, f"{hint}; students need no file of it: `colorpress student`")


def simplify_for_export(network: ColorNetwork) -> ColorNetwork:
    """A copy in eval mode with batch norm folded into the convolutions and no transposed convolution.

    A batch norm stays where no convolution feeds it, a transposed convolution where it is not 2x2 of stride 2, and both
    where their author has hooked them. Where the simplified network answers otherwise all stay: code of another author
    may read a layer in several ways.
    """
    simple = _copy(network)
    names = {module: name for name, module in simple.named_modules()}
    for convolution, norm in _find_foldable(simple):
        simple.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
        simple.set_submodule(names[norm], nn.Identity())
    for name, module in list(simple.named_modules()):
        if isinstance(module, nn.ConvTranspose2d) and _is_shuffle(module) and not _is_hooked(module):
            simple.set_submodule(name, shuffle_from_transpose(module))
    is_same = torch.allclose(_answer(simple), _answer(network), rtol=0.0, atol=_SIMPLIFIED_ATOL)
    return simple if is_same else _copy(network)


def _copy(network: ColorNetwork) -> ColorNetwork:
    """A copy in eval mode, made as the network was: in a deep copy hooks of its author would write into the network."""
    return network.with_weights(network.state_dict())


def _find_foldable(network: ColorNetwork) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Convolutions whose answer goes into a batch norm, both used once."""
    made: dict[int, nn.Conv2d] = {}
    kept: list[Tensor] = []  # alive, so that no other tensor takes the place, and the number, of one that is gone
    calls: Counter[nn.Module] = Counter()
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            kept.append(output)
            made[id(output)] = module
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and id(inputs[0]) in made:
            pairs.append((made[id(inputs[0])], module))

    handles = [m.register_forward_hook(record) for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    try:
        _answer(network)
    finally:
        for handle in handles:
            handle.remove()
    # What an author has hooked is read elsewhere, and the hook would be gone.
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1 and not _is_hooked(conv, norm)]


def _is_hooked(*modules: nn.Module) -> bool:
    return any(each._forward_hooks or each._forward_pre_hooks for each in modules)


def _answer(network: ColorNetwork) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sides = (2 * network.size_multiple, 3 * network.size_multiple)
    with torch.no_grad():
        answer: Tensor = network(torch.rand(1, 1, *sides, generator=generator))
    return answer


def _is_shuffle(transpose: nn.ConvTranspose2d) -> bool:
    """Whether `shuffle_from_transpose` can take it."""
    plain = transpose.groups == 1 and transpose.dilation == (1, 1)
    sizes = transpose.kernel_size == (2, 2) == transpose.stride
    return plain and sizes and transpose.padding == (0, 0) == transpose.output_padding


def shuffle_from_transpose(transpose: nn.ConvTranspose2d) -> nn.Sequential:
    """A 2x2 transposed convolution of stride 2 as 1x1 convolution and PixelShuffle: the same sums, reordered.

    ONNX Runtime has int8 kernels for these two, none for ConvTranspose.
    """
    assert _is_shuffle(transpose)
    channels = transpose.out_channels
    convolution = nn.Conv2d(transpose.in_channels, 4 * channels, 1, bias=transpose.bias is not None)
    with torch.no_grad():
        # Output pixel (2i + a, 2j + b) of channel c comes from channel 4c + 2a + b.
        weight = transpose.weight.permute(1, 2, 3, 0)  # (in, out, a, b) -> (out, a, b, in)
        convolution.weight.copy_(weight.reshape(4 * channels, transpose.in_channels, 1, 1))
        if transpose.bias is not None and convolution.bias is not None:
            convolution.bias.copy_(transpose.bias.repeat_interleave(4))
    return nn.Sequential(convolution, nn.PixelShuffle(2)).eval()


class _CoarseNetwork(nn.Module):
    """The part between padding and up-sampling or cropping."""

    def __init__(self, network: ColorNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, lightness: Tensor) -> Tensor:  # (N, 1, H, W) to (N, 2 or 4, H / s, W / s), s the output stride
        return self.network.forward_coarse(lightness)


def _tidy_names_(graph: onnx.GraphProto) -> None:
    """Name nodes and values after the modules they come from (conv, conv_2, ...), and drop traces: they hold paths."""
    renamed: dict[str, str] = {INPUT_NAME: INPUT_NAME, OUTPUT_NAME: OUTPUT_NAME, "": ""}
    for tensor in graph.initializer:
        name = tensor.name.removeprefix("network.").replace("val_", "constant.")
        renamed[tensor.name] = tensor.name = name
    taken: set[str] = set(renamed.values())
    for node in graph.node:
        wanted = _module_of(node) or node.op_type.lower()
        names = chain((wanted,), (f"{wanted}_{number}" for number in count(2)))
        name = next(each for each in names if each not in taken)
        taken.add(name)
        node.name = name
        node.doc_string = ""
        del node.metadata_props[:]
        node.input[:] = [renamed[each] for each in node.input]
        parts = [name, *(f"{name}.{number}" for number in range(1, len(node.output)))]
        outputs = [each if each == OUTPUT_NAME else part for each, part in zip(node.output, parts, strict=True)]
        renamed.update(zip(node.output, outputs, strict=True))
        node.output[:] = outputs
    for holder in (graph, *graph.input, *graph.output, *graph.initializer):
        holder.doc_string = ""
        del holder.metadata_props[:]
    del graph.value_info[:]
    graph.name = "colorpress"


def _leave_out_defaults_(graph: onnx.GraphProto, opset: int) -> None:
    """Drop attributes that say what the operator does anyway: of the smallest files they are a twentieth."""
    for node in graph.node:
        usual = onnx.defs.get_schema(node.op_type, opset, node.domain).attributes
        said = [each for each in node.attribute if each.name not in usual or usual[each.name].default_value != each]
        del node.attribute[:]
        node.attribute.extend(said)


def _module_of(node: onnx.NodeProto) -> str:
    """Dotted name of the innermost module a node was traced in, such as encoder.0.3; empty for functions."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = json.loads(entry.value.replace("'", '"'))
            module = str(scopes[-2]).removeprefix("network").removeprefix(".") if len(scopes) > 1 else ""
            # The name that torch has for none.
            return "" if module.startswith("_empty_nn_module_stack") else module
    return ""


def _node(name: str, operator: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node that is called as the one value it makes; "" among its inputs stands for none."""
    return helper.make_node(operator, inputs, [name], name, **attributes)


def _add_padding_(graph: onnx.GraphProto, multiple: int) -> None:
    """Replicate the last row and column up to a multiple in front of the network; its answer is then `ab.padded`.

    As many of them as may be missing, then cut: OpenVINO has no quick kernel for Pad, which took a third of the time of
    small networks, even where nothing is missing.
    """
    last = [-1] * (multiple - 1)  # which Gather counts from the end
    constants = {"size.multiple": [multiple], "pad.last": last, "pad.begin": [0, 0], "pad.axes": [2, 3]}
    _add_constants_(graph, constants)
    for node in graph.node:
        node.input[:] = ["pad" if each == INPUT_NAME else each for each in node.input]
        node.output[:] = ["ab.padded" if each == OUTPUT_NAME else each for each in node.output]
    nodes = [
        _node("size", "Shape", INPUT_NAME, start=2, end=4),  # (2): H, W
        _node("size.negative", "Neg", "size"),
        # Mod takes the divisor's sign, so this is the number of rows and columns missing.
        _node("pad.end", "Mod", "size.negative", "size.multiple"),
        _node("pad.size", "Add", "size", "pad.end"),  # (2): H + h, W + w
        _node("pad.rows", "Gather", INPUT_NAME, "pad.last", axis=2),
        _node("pad.tall", "Concat", INPUT_NAME, "pad.rows", axis=2),  # (N, 1, H + multiple - 1, W)
        _node("pad.columns", "Gather", "pad.tall", "pad.last", axis=3),
        _node("pad.wide", "Concat", "pad.tall", "pad.columns", axis=3),  # (N, 1, H + multiple - 1, W + multiple - 1)
        _node("pad", "Slice", "pad.wide", "pad.begin", "pad.size", "pad.axes"),  # (N, 1, H + h, W + w)
        *graph.node,
    ]
    del graph.node[:]
    graph.node.extend(nodes)


def _add_upsampling_(graph: onnx.GraphProto, stride: int, *, affine: bool) -> None:
    """Up-sample `ab.padded`, which is at 1 / `stride` of the padded size, bilinearly to the picture's size.

    Of an affine network it is B and A, (N, 4, h, w), which become ab there.

    As two products with matrices of hat functions, made anew for each size: seven times as fast as Resize in ONNX
    Runtime, and nothing is computed that a crop would throw away. The border is that of half-pixel interpolation.
    """
    constants = {
        "up.border": [0, 0, 1, 1, 0, 0, 1, 1],
        "up.step": 1 / stride,
        # Where the first pixel lies, in coarse pixels, counted from the border that is added.
        "up.start": 0.5 / stride + 0.5,
        "up.zero": 0,
        "up.next": 1,
        "up.one": 1.0,
        "up.axis": [1],
        "up.rows.index": 0,
        "up.columns.index": 1,
    }
    _add_constants_(graph, constants)
    nodes = [_node("up.coarse", "Pad", "ab.padded", "up.border", mode="edge")]  # (N, 2, h + 2, w + 2)
    for axis, up in enumerate(("up.rows", "up.columns")):
        tall, wide = (f"{up}.fine", f"{up}.coarse.number") if axis == 0 else (f"{up}.coarse.number", f"{up}.fine")
        nodes += [
            _node(f"{up}.end", "Gather", "size", f"{up}.index"),
            # Whole numbers, since OpenVINO counts fractions with an error that grows.
            _node(f"{up}.fine.range", "Range", "up.zero", f"{up}.end", "up.next"),
            _node(f"{up}.fine.number", "Cast", f"{up}.fine.range", to=onnx.TensorProto.FLOAT),
            _node(f"{up}.reach", "Mul", f"{up}.fine.number", "up.step"),
            _node(f"{up}.fine", "Add", f"{up}.reach", "up.start"),  # (H) or (W), in coarse pixels
            _node(f"{up}.shape", "Shape", "up.coarse", start=2 + axis, end=3 + axis),
            _node(f"{up}.n", "Squeeze", f"{up}.shape"),
            _node(f"{up}.coarse.range", "Range", "up.zero", f"{up}.n", "up.next"),
            _node(f"{up}.coarse.number", "Cast", f"{up}.coarse.range", to=onnx.TensorProto.FLOAT),  # (h + 2) or (w + 2)
            _node(f"{up}.tall", "Unsqueeze", tall, "up.axis"),
            _node(f"{up}.difference", "Sub", f"{up}.tall", wide),
            _node(f"{up}.distance", "Abs", f"{up}.difference"),
            _node(f"{up}.near", "Sub", "up.one", f"{up}.distance"),
            _node(up, "Relu", f"{up}.near"),  # rows: (H, h + 2), columns: (w + 2, W)
        ]
    nodes.append(_node("up.stretched", "MatMul", "up.rows", "up.coarse"))  # (N, 2, H, w + 2)
    if not affine:
        nodes.append(helper.make_node("MatMul", ["up.stretched", "up.columns"], [OUTPUT_NAME], "up"))  # (N, 2, H, W)
    else:
        _add_constants_(graph, {"field.half": 0.5, "field.parts": [2, 2]})
        parts = ["up.b", "up.a"]
        # Split while they are small.
        nodes.append(helper.make_node("Split", ["up.stretched", "field.parts"], parts, "field.split", axis=1))
        for name, part in zip((BASE_NAME, SLOPE_NAME), parts, strict=True):
            nodes.append(_node(name, "MatMul", part, "up.columns"))  # (N, 2, H, W)
        nodes += field_nodes(INPUT_NAME, "field.half", OUTPUT_NAME)
    graph.node.extend(nodes)


def _add_constants_(graph: onnx.GraphProto, constants: Mapping[str, Any]) -> None:
    """Python's floats become float32, integers int64."""
    for name, value in constants.items():
        array = np.asarray(value)
        kind = np.float32 if array.dtype.kind == "f" else np.int64
        graph.initializer.append(numpy_helper.from_array(array.astype(kind), name))


def _describe_file(checkpoint: Checkpoint, network: ColorNetwork, config: ExportConfig) -> dict[str, str]:
    described: dict[str, Any] = {
        "producer": "colorpress",
        "producer_version": __version__,
        "task": "colorize",
        "colour_space": "CIE Lab, D65, from sRGB",
        "input": f"{INPUT_NAME} float32 (N,1,H,W) = L*/100 in [0,1]; any N, H, W >= 1",
        # B + A (L - 1/2) may be a little beyond.
        "output": f"{OUTPUT_NAME} float32 (N,2,H,W) = a*b*/{AB_SCALE:g}{'' if network.affine else ' in [-1,1]'}",
        "ab_scale": f"{AB_SCALE:g}",
        "size_multiple": network.size_multiple,
        "opset": config.opset,
        "precision": "fp32",
        "conventions": _describe_conventions(network),
        "architecture": json.dumps(network.architecture.describe(), separators=(",", ":")),
        "checkpoint_sha256": checkpoint.sha256 or None,
        "val_l1": None if checkpoint.val_l1 is None or "to_best" in checkpoint.extra else f"{checkpoint.val_l1:.9g}",
    }
    return {key: str(value) for key, value in described.items() if value is not None}


def _describe_conventions(network: ColorNetwork) -> str | None:
    """How the original of another author is asked, inside the file; None of a network of our own."""
    if not isinstance(network, AdaptedNetwork):
        return None
    return f"{network.title} {network.architecture.conventions.describe()}; this file reads L and answers ab"
