"""ONNX files made from a float32 one: how that is read, and how they are written with where they come from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import sha256_bytes, write_bytes
from export.onnx_probe import note_made_here, refuse_hostile

_QUANTIZED_OPS = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear")
_GIVE_FP32 = "give the fp32 model written by `colorpress export`"


def set_values_(tensor: onnx.TensorProto, values: NDArray[np.floating[Any]]) -> None:
    """Give a float32 tensor other values, under its name."""
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), tensor.name))


def load_float_model(source: Path) -> onnx.ModelProto:
    """Read an fp32 ONNX file with the shapes of all its values.

    Raises:
        ConfigError: no such file.
        InputError: it is damaged or hostile, quantized or packed already, or holds no convolution.
    """
    if not source.exists():
        raise ConfigError("model", source, "no such file", _GIVE_FP32)
    if not source.is_file():
        raise InputError("model", source, "not a regular file", _GIVE_FP32)
    refuse_hostile(source)
    try:
        model = onnx.load_model_from_string(source.read_bytes())
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:  # protobuf, the checker and shape inference share no base class
        raise InputError("model", source, "is no valid ONNX model", _GIVE_FP32) from error
    operators = {node.op_type for node in model.graph.node}
    if _metadata(model).get("precision", "fp32") != "fp32" or not operators.isdisjoint(_QUANTIZED_OPS):
        raise InputError("model", source, "already quantized", _GIVE_FP32)
    if "Conv" not in operators:
        raise InputError("model", source, "holds no convolution", _GIVE_FP32)
    return model


def write_derived(
    model: onnx.ModelProto, source: Path, destination: Path, entries: Mapping[str, str]
) -> tuple[int, str]:
    """Write what was made from `source`, atomically; its size in bytes and its SHA-256.

    Args:
        model: its metadata_props become those of the source, and `entries`.
    Raises:
        MachineError: the destination cannot be written.
    """
    # The validation L1 is the float model's; this file's own is not known here.
    kept = {key: value for key, value in _metadata(model).items() if key != "val_l1"}
    described = {**kept, "source_sha256": sha256_bytes(source.read_bytes()), **entries}
    onnx.helper.set_model_props(model, {key: described[key] for key in sorted(described)})
    onnx.checker.check_model(model, full_check=True)
    content = model.SerializeToString(deterministic=True)
    write_bytes(destination, content)
    note_made_here(content)
    return len(content), sha256_bytes(content)


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}
