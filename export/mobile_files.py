"""Networks as files for phones: .tflite, which LiteRT runs, and .pte, which ExecuTorch runs; published after parity.

Both libraries translate PyTorch's own graph, so no graph of ours is written twice, and hand all of it to XNNPACK, the
kernels that phones have. Neither is installed with colorpress: they are the extras `litert` and `executorch`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import MappingProxyType

import torch
from torch import Tensor, nn

from colorpress.core.console import silence_libraries
from colorpress.core.errors import GateError, InputError, MachineError
from colorpress.core.files import sha256_bytes, write_bytes
from colorpress.core.locks import scratch_folder
from export.autocast import without_autocast
from export.graph import Published
from export.mobile_predictors import ExecuTorchPredictor, LiteRtPredictor, MobileDescription, MobilePredictor
from export.parity import REPORT, ParityResult, check_parity
from export.predictors import Floats
from export.torch_runtimes import TorchPredictor
from training.checkpoint import Checkpoint
from training.network import ColorNetwork, apply_field, pad_to_multiple, upsample_bilinear
from training.user_code import describe_failure

# Of ab/128, its whole range of 2 against the error; float32 files have 150 dB and more. What int8 costs is reported.
_LEAST_DB = 50.0
_METADATA_NAME = "colorpress"
# Sides are multiples up to this; ExecuTorch plans its memory for the largest.
_LONGEST_SIDE = 2048
# (N, H, W): sizes that are no multiple of anything, and the usual one.
_SHAPES = ((1, 256, 256), (2, 33, 17), (1, 97, 131), (1, 1, 1))


@dataclass(frozen=True)
class MobileFormat:
    """A kind of file for phones.

    Attributes:
        name: as the option --to says it.
        suffix: of its files.
        precision: of its weights, a name of `compress.precisions.PRECISIONS`.
        write: the file's content, from a network of whole multiples, an example of L, what the file says of itself,
            and lightness to calibrate ranges with.
        predictor: what runs it.
        tool: the module that writes it. `package`, `extra`: what is installed to have it.
        has_one_size: it reads pictures of one size alone.
        calibrates: it takes photographs to set the ranges of activations.
    """

    name: str
    suffix: str
    precision: str
    write: Callable[[nn.Module, Tensor, MobileDescription, Sequence[Tensor]], bytes]
    predictor: type[MobilePredictor]
    tool: str
    package: str
    extra: str
    has_one_size: bool = False
    calibrates: bool = False


class _WholeNetwork(nn.Module):
    """L (1, 1, H, W) of whole multiples to ab (1, 2, H, W): nothing is padded or cropped, which all graphs can have."""

    def __init__(self, network: ColorNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, lightness: Tensor) -> Tensor:
        coarse = self.network.forward_coarse(lightness)
        return apply_field(upsample_bilinear(coarse, self.network.output_stride), lightness)


@without_autocast()
def export_mobile(
    checkpoint: Checkpoint,
    destination: Path,
    kind: MobileFormat,
    *,
    side: int = 256,
    pictures: Sequence[Floats] = (),
) -> Published[ParityResult]:
    """Write a checkpoint's network as a file for phones, after it was run here and compared with PyTorch.

    The file reads L (1, 1, H, W) float32 in [0, 1] and answers ab (1, 2, H, W): a .pte at all multiples of what the
    network asks for up to 2048 pixels, a .tflite at `side` x `side` alone, since its kernels do not resize to sizes
    that are known only when it runs.

    Args:
        side: height and width of a .tflite file, in pixels; the next multiple of what the network asks for is taken.
        pictures: L (1, 1, H, W), what an int8 format that `calibrates` sets its ranges by.
    Raises:
        GateError: its answers are too far from PyTorch's; nothing is published.
        InputError: the network cannot be traced, or the library cannot translate it.
        MachineError: the library is not installed, or the file cannot be written.
    """
    _require_tool(kind)
    network = checkpoint.build_network().eval()
    multiple = network.size_multiple
    side = -(-side // multiple) * multiple
    reads = (side, side) if kind.has_one_size else (multiple, _LONGEST_SIDE // multiple * multiple)
    described = MobileDescription(kind.precision, *reads, checkpoint.sha256)
    example = torch.zeros(1, 1, *((side, side) if kind.has_one_size else (8 * multiple, 16 * multiple)))
    try:
        with silence_libraries(), torch.no_grad():
            content = kind.write(_WholeNetwork(network).eval(), example, described, _as_multiples(pictures, multiple))
    except Exception as error:  # the translators fail in any way
        why = f"cannot be written as {kind.suffix}: {describe_failure(error)}"
        hint = "give the .onnx file instead, or a student: `colorpress student`"
        raise InputError("network", network.title, why, hint) from error
    with scratch_folder() as folder:
        trial = folder / destination.name
        trial.write_bytes(content)
        reference, candidate = TorchPredictor(network, threads=1), kind.predictor(trial, threads=1)
        shapes = ((1, side, side),) if kind.has_one_size else _SHAPES
        parity = check_parity(reference, candidate, shapes=shapes, atol=None)
    _require_near(parity, destination.name, judged=kind.precision == "fp32")
    write_bytes(destination, content)
    return Published(destination, len(content), sha256_bytes(content), parity)


def worst_db(parity: ParityResult) -> float | None:
    """The least PSNR of all sizes; None where nothing differs."""
    return min((each.psnr_db for each in parity.shapes if each.psnr_db is not None), default=None)


def _require_near(parity: ParityResult, subject: str, *, judged: bool) -> None:
    worst = worst_db(parity)
    if not math.isfinite(parity.max_abs):
        raise GateError("export", subject, "answers are not finite; not published", REPORT)
    if judged and worst is not None and worst < _LEAST_DB:
        why = f"answers are {worst:.1f} dB from PyTorch's, {_LEAST_DB:g} are asked for; not published"
        raise GateError("export", subject, why, REPORT)


def _as_multiples(pictures: Sequence[Floats], multiple: int) -> list[Tensor]:
    return [pad_to_multiple(torch.from_numpy(each), multiple) for each in pictures]


def _write_tflite(whole: nn.Module, example: Tensor, described: MobileDescription, _: object) -> bytes:
    model = import_module("litert_torch").convert(whole, (example,))
    with scratch_folder() as folder:
        made = folder / "model.tflite"
        model.export(str(made))
        return _with_description(made.read_bytes(), described)


def _write_tflite_int8(whole: nn.Module, example: Tensor, described: MobileDescription, _: object) -> bytes:
    """Weights in 8 bits, and activations too, by ranges found anew in each call, which takes no photographs."""
    quantizer = import_module("ai_edge_quantizer.quantizer")
    recipe = import_module("ai_edge_quantizer.recipe")
    with scratch_folder() as folder:
        made = folder / "model.tflite"
        made.write_bytes(_write_tflite(whole, example, described, _))
        quantize = quantizer.Quantizer(str(made))
        quantize.load_quantization_recipe(recipe.dynamic_wi8_afp32())
        return bytes(quantize.quantize().quantized_model)  # which keeps the metadata


def _with_description(content: bytes, described: MobileDescription) -> bytes:
    """A .tflite file with what it says of itself among its metadata."""
    flatbuffers = import_module("flatbuffers")
    schema = import_module("ai_edge_litert.schema_py_generated")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    kept = [each for each in model.metadata or () if each.name != _METADATA_NAME]
    buffer, entry = schema.BufferT(), schema.MetadataT()
    buffer.data = list(described.to_bytes())
    entry.name, entry.buffer = _METADATA_NAME, len(model.buffers)
    model.buffers.append(buffer)
    model.metadata = [*kept, entry]
    builder = flatbuffers.Builder(len(content))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def _write_pte(whole: nn.Module, example: Tensor, described: MobileDescription, _: object) -> bytes:
    return _lower(_trace(whole, example, described), described)


def _write_pte_int8(
    whole: nn.Module, example: Tensor, described: MobileDescription, pictures: Sequence[Tensor]
) -> bytes:
    """Weights in 8 bits with a scale per channel, and activations by the ranges that they have on `pictures`."""
    library = "executorch.backends.xnnpack.quantizer.xnnpack_quantizer"
    xnnpack = import_module(library)
    pt2e = import_module("torchao.quantization.pt2e.quantize_pt2e")
    chosen = xnnpack.XNNPACKQuantizer().set_global(xnnpack.get_symmetric_quantization_config(is_per_channel=True))
    observed = pt2e.prepare_pt2e(_trace(whole, example, described).module(), chosen)
    for each in pictures:
        observed(each)
    return _lower(_trace(pt2e.convert_pt2e(observed), example, described), described)


def _trace(network: nn.Module, example: Tensor, described: MobileDescription) -> torch.export.ExportedProgram:
    multiple, most = described.size_multiple, described.longest_side // described.size_multiple
    rows, columns = (multiple * torch.export.Dim(name, min=1, max=most) for name in ("rows", "columns"))
    return torch.export.export(network, (example,), dynamic_shapes=({2: rows, 3: columns},))


def _lower(program: torch.export.ExportedProgram, described: MobileDescription) -> bytes:
    exir = import_module("executorch.exir")
    library = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
    partitioner = import_module(library).XnnpackPartitioner()
    said = {"description": described.to_bytes().decode()}
    lowered = exir.to_edge_transform_and_lower(program, partitioner=[partitioner], constant_methods=said)
    return bytes(lowered.to_executorch().buffer)


def _require_tool(kind: MobileFormat) -> None:
    try:
        import_module(kind.tool)
    except ImportError as error:
        hint = f"install it: pip install {kind.package}, or colorpress with its extra [{kind.extra}]"
        raise MachineError("library", kind.package, "is not installed", hint) from error


_LITERT = ("litert_torch", "litert-torch", "litert")
_EXECUTORCH = ("executorch.exir", "executorch", "executorch")
MOBILE_FORMATS: Mapping[str, MobileFormat] = MappingProxyType(
    {
        each.name: each
        for each in (
            MobileFormat("tflite", ".tflite", "fp32", _write_tflite, LiteRtPredictor, *_LITERT, has_one_size=True),
            MobileFormat(
                "tflite-int8", ".tflite", "int8", _write_tflite_int8, LiteRtPredictor, *_LITERT, has_one_size=True
            ),
            MobileFormat("pte", ".pte", "fp32", _write_pte, ExecuTorchPredictor, *_EXECUTORCH),
            MobileFormat(
                "pte-int8", ".pte", "int8", _write_pte_int8, ExecuTorchPredictor, *_EXECUTORCH, calibrates=True
            ),
        )
    }
)
