"""One ONNX file from one checkpoint: any picture size, one file, the same bytes every time, published after parity."""

from __future__ import annotations

import copy
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
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
from colorpress.core.console import silence_libraries
from colorpress.core.errors import InputError
from colorpress.core.files import sha256_bytes, write_bytes
from export.affine_field import BASE_NAME, SLOPE_NAME, field_nodes
from export.parity import ParityResult, check_parity, require_parity
from export.predictors import INPUT_NAME, OUTPUT_NAME, OnnxPredictor
from export.torch_runtimes import TorchPredictor
from training.checkpoint import Checkpoint
from training.cie import AB_SCALE
from training.network import ColorNetwork

# Of ab/128; beyond it a rewrite was no rewrite. Rounding is a hundredth of it.
_SIMPLIFIED_ATOL = 1e-4
Parity = TypeVar("Parity")


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

    The graph reads `L` (N, 1, H, W) float32 in [0, 1] and answers `ab` (N, 2, H, W) for any N, H, W >= 1: in [-1, 1],
    or perhaps a little beyond where the network is affine.
    Batch norm is folded and transposed convolutions are 1x1 convolutions and DepthToSpace, both exact rewrites; in a
    foreign network where that can be done and makes no difference.

    Args:
        metadata: further entries of the file's metadata_props; they win over the standard ones.
    Raises:
        GateError: an answer differs from PyTorch's by more than `config.atol`; nothing is published.
        InputError: PyTorch cannot trace the network.
        MachineError: the file cannot be written.
    """
    network = checkpoint.build_network()

    def check(trial: Path) -> ParityResult:
        parity = check_parity(TorchPredictor(network), OnnxPredictor(trial), atol=config.atol)
        return require_parity(parity, destination.name)

    entries = {**_describe_file(checkpoint, network, config), **(metadata or {})}
    return publish_model(build_graph(network, opset=config.opset), entries, destination, check)


def publish_model(
    model: onnx.ModelProto, entries: Mapping[str, str], destination: Path, check: Callable[[Path], Parity]
) -> Published[Parity]:
    """Write a model with `entries` as its metadata_props, after ONNX's checker and `check` had nothing against it.

    Args:
        check: is given a trial file, raises where it must not be published, and answers what it measured.
    """
    helper.set_model_props(model, {key: entries[key] for key in sorted(entries)})
    content = model.SerializeToString(deterministic=True)
    with tempfile.TemporaryDirectory(prefix="colorpress-export-") as folder:
        trial = Path(folder) / destination.name
        trial.write_bytes(content)
        onnx.checker.check_model(str(trial), full_check=True)
        parity = check(trial)
    write_bytes(destination, content)
    return Published(destination, len(content), sha256_bytes(content), parity)


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata_props of a model of one's own; its weights are read past."""
    return {entry.key: entry.value for entry in onnx.load(str(path), load_external_data=False).metadata_props}


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
    except torch.onnx.OnnxExporterError as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = f"cannot be traced by torch.export: {' '.join(str(cause).split())[:200]}"
        hint = "its forward must not depend on values or on sizes other than by its layers"
        raise InputError("network", network.title, why, hint) from error
    assert program is not None
    model = program.model_proto
    _tidy_names_(model.graph)
    if multiple > 1:
        _add_padding_(model.graph, multiple)
        if network.output_stride > 1:
            _add_upsampling_(model.graph, network.output_stride, affine=network.affine)
        else:
            cut = ["ab.padded", "pad.begin", "size", "pad.axes"]  # to the picture's size
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
    return onnx.shape_inference.infer_shapes(clean, check_type=True, strict_mode=True)


def simplify_for_export(network: ColorNetwork) -> ColorNetwork:
    """A copy in eval mode with batch norm folded into the convolutions and no transposed convolution.

    A batch norm stays where no convolution feeds it, a transposed convolution where it is not 2x2 of stride 2. Where
    the simplified network answers otherwise all stay: code of another author may read a layer in several ways.
    """
    simple = copy.deepcopy(network).eval()
    names = {module: name for name, module in simple.named_modules()}
    for convolution, norm in _find_foldable(simple):
        simple.set_submodule(names[convolution], fuse_conv_bn_eval(convolution, norm))
        simple.set_submodule(names[norm], nn.Identity())
    for name, module in list(simple.named_modules()):
        if isinstance(module, nn.ConvTranspose2d) and _is_shuffle(module):
            simple.set_submodule(name, shuffle_from_transpose(module))
    is_same = torch.allclose(_answer(simple), _answer(network), rtol=0.0, atol=_SIMPLIFIED_ATOL)
    return simple if is_same else copy.deepcopy(network).eval()


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
    return [(conv, norm) for conv, norm in pairs if calls[conv] == calls[norm] == 1]


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
        outputs = [each if each == OUTPUT_NAME else name for each in node.output]
        renamed.update(zip(node.output, outputs, strict=True))
        node.output[:] = outputs
    for holder in (graph, *graph.input, *graph.output, *graph.initializer):
        holder.doc_string = ""
        del holder.metadata_props[:]
    del graph.value_info[:]
    graph.name = "colorpress"


def _module_of(node: onnx.NodeProto) -> str:
    """Dotted name of the innermost module a node was traced in, such as encoder.0.3; empty for functions."""
    for entry in node.metadata_props:
        if entry.key == "pkg.torch.onnx.name_scopes":
            scopes = json.loads(entry.value.replace("'", '"'))
            return str(scopes[-2]).removeprefix("network").removeprefix(".") if len(scopes) > 1 else ""
    return ""


def _node(name: str, operator: str, *inputs: str, **attributes: Any) -> onnx.NodeProto:
    """A node that is called as the one value it makes; "" among its inputs stands for none."""
    return helper.make_node(operator, inputs, [name], name, **attributes)


def _add_padding_(graph: onnx.GraphProto, multiple: int) -> None:
    """Replicate the last row and column up to a multiple in front of the network; its answer is then `ab.padded`."""
    _add_constants_(graph, {"size.multiple": [multiple], "pad.begin": [0, 0], "pad.axes": [2, 3]})
    for node in graph.node:
        node.input[:] = ["pad" if each == INPUT_NAME else each for each in node.input]
        node.output[:] = ["ab.padded" if each == OUTPUT_NAME else each for each in node.output]
    nodes = [
        _node("size", "Shape", INPUT_NAME, start=2, end=4),  # (2): H, W
        _node("size.negative", "Neg", "size"),
        # Mod takes the divisor's sign, so this is the number of rows and columns missing.
        _node("pad.end", "Mod", "size.negative", "size.multiple"),
        _node("pad.amounts", "Concat", "pad.begin", "pad.end", axis=0),  # (4)
        _node("pad", "Pad", INPUT_NAME, "pad.amounts", "", "pad.axes", mode="edge"),  # (N, 1, H + h, W + w)
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
        "up.border": [1, 1, 1, 1],
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
    nodes = [_node("up.coarse", "Pad", "ab.padded", "up.border", "", "pad.axes", mode="edge")]  # (N, 2, h + 2, w + 2)
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
        "architecture": json.dumps(network.architecture.describe(), separators=(",", ":")),
        "checkpoint_sha256": checkpoint.sha256 or None,
        "val_l1": None if checkpoint.val_l1 is None or "to_best" in checkpoint.extra else f"{checkpoint.val_l1:.9g}",
    }
    return {key: str(value) for key, value in described.items() if value is not None}
