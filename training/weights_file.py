"""What is in a file of weights, .pt or .safetensors, read without running any code it may hold."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from colorpress.core.console import say
from colorpress.core.errors import InputError
from colorpress.core.files import find_impostor

NO_CHECKPOINT = "give a checkpoint written by `colorpress train` or `colorpress prune`, or a state_dict with --arch"


def read_weights_file(path: Path, raw: bytes) -> dict[str, Any]:
    """The dictionary that a file holds: tensors and primitives, of any program.

    Args:
        raw: the content of the file. `path`: for what is said.
    Raises:
        InputError: it is damaged, is no such file, or holds code.
    """
    if impostor := find_impostor(raw[:512]):
        raise unusable_checkpoint(path, impostor)
    # The safetensors format has no magic number: a length in 8 bytes, then JSON.
    is_safetensors = path.suffix == ".safetensors" or raw[8:9] == b"{"
    return _read_safetensors(path, raw) if is_safetensors else _read_dictionary(path, raw)


def unusable_checkpoint(path: Path | None, why: str, hint: str = NO_CHECKPOINT) -> InputError:
    return InputError("checkpoint", path, why, hint)


def as_float32(path: Path, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float32; other floats are converted and said, other kinds of numbers refused."""
    converted, kinds = {}, set()
    for name, tensor in state_dict.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_complex():
            why = f"{name} is {'quantized' if tensor.is_quantized else f'{tensor.layout} {tensor.dtype}'}"
            raise unusable_checkpoint(path, why, "save the weights in float32")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            kinds.add(str(tensor.dtype).removeprefix("torch."))
            tensor = tensor.float()
        converted[name] = tensor.detach().contiguous()
    if kinds:
        say(f"'{path.name}' holds {', '.join(sorted(kinds))} weights: converted to float32")
    return converted


def _read_safetensors(path: Path, raw: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(raw))
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise unusable_checkpoint(path, "is corrupt or truncated, or no safetensors file") from error


def _read_dictionary(path: Path, raw: bytes) -> dict[str, Any]:
    if raw.startswith(b"PK") and not zipfile.is_zipfile(io.BytesIO(raw)):
        raise unusable_checkpoint(path, "is corrupt or truncated")
    if not raw.startswith((b"PK", b"\x80")):
        raise unusable_checkpoint(path, "is not a PyTorch file")
    try:
        with warnings.catch_warnings():
            # Files of other programs may use newer pickle protocols; what counts is whether they can be read.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds, and its text advises to read unsafely: it is not shown
        if "Weights only load failed" in str(error) or "Unsupported" in str(error):
            hint = "save the weights alone, torch.save(network.state_dict(), 'weights.pt'), and give that file"
            raise unusable_checkpoint(path, "contains code, refused", hint) from error
        raise unusable_checkpoint(path, "is corrupt or truncated") from error
    if not isinstance(content, dict):
        raise unusable_checkpoint(path, f"holds a {type(content).__name__}, not a dictionary")
    return content
