"""ONNX Runtime sessions: the only module that makes them; it imports ONNX Runtime when the first one is opened."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from colorpress.core.cores import usable_cores
from colorpress.core.errors import ConfigError, InputError, MachineError
from colorpress.core.files import find_impostor

GIVE_A_MODEL = "give a model written by `colorpress export`, `colorpress quantize` or `colorpress train`"
# For each input or output: its name, type, rank and channels.
Signature = list[tuple[str, str, int, list[Any]]]


@dataclass(frozen=True)
class _Provider:
    """What ONNX Runtime computes with: its own name for it, that for people, and what to do where it is missing."""

    name: str
    title: str
    hint: str = ""
    on_gpu: bool = False


_PROVIDERS = {
    "cpu": _Provider("CPUExecutionProvider", "CPU"),
    "cuda": _Provider(
        "CUDAExecutionProvider", "CUDA", "install colorpress[gpu] on a machine with CUDA, or use --device cpu", True
    ),
    "tensorrt": _Provider(
        "TensorrtExecutionProvider", "TensorRT", "install onnxruntime-gpu and TensorRT on a machine with CUDA", True
    ),
    "openvino": _Provider(
        "OpenVINOExecutionProvider",
        "OpenVINO",
        "install onnxruntime-openvino instead of onnxruntime, or let OpenVINO itself run the file",
    ),
}


def open_session(
    path: Path,
    content: bytes | None = None,
    *,
    provider: str = "cpu",
    threads: int | None = 0,
    optimization: str = "all",
    profile_prefix: Path | None = None,
    optimized_path: Path | None = None,
    entries: Mapping[str, str] = MappingProxyType({}),
) -> Any:
    """An `onnxruntime.InferenceSession` with explicit threads and one device.

    Args:
        path: the .onnx file; it names the model in errors where its `content` is given.
        provider: "cpu", "cuda", "tensorrt" (both with ":N" for the GPU's number) or "openvino"; never silently
            another one.
        threads: CPU threads; 0: one per usable core, None: ONNX Runtime's choice.
        optimization: "all", or "basic" for what holds on every machine.
        profile_prefix: path prefix of ONNX Runtime's profile; None: no profile.
        optimized_path: where the optimized graph is written; None: nowhere.
        entries: further settings of the session.
    Raises:
        ConfigError: another provider name.
        InputError: the file is no ONNX model.
        MachineError: the provider is not there.
    """
    import onnxruntime as ort

    kind, _, index = provider.partition(":")
    wanted = _PROVIDERS.get(kind)
    if wanted is None or (index and not (wanted.on_gpu and index.isdigit())):
        raise ConfigError("option", "--device", f"got {provider!r}", "choose one of: cpu, cuda, cuda:N")
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind != "cpu":
        _require_provider(ort, wanted, provider)
        providers.insert(0, (wanted.name, {"device_id": int(index or 0)}) if wanted.on_gpu else wanted.name)
    options = ort.SessionOptions()
    options.inter_op_num_threads = 1
    if threads is not None:
        options.intra_op_num_threads = threads or usable_cores()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = {"all": levels.ORT_ENABLE_ALL, "basic": levels.ORT_ENABLE_BASIC}[optimization]
    # Idle threads that spin slow down whatever else runs in the process; they may spin during a call only.
    for key, value in {"session.force_spinning_stop": "1", **entries}.items():
        options.add_session_config_entry(key, value)
    options.log_severity_level = 4
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    if optimized_path is not None:
        options.optimized_model_filepath = str(optimized_path)
    try:
        session = ort.InferenceSession(str(path) if content is None else content, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise InputError("model", path, first_line(error), GIVE_A_MODEL) from error
    if session.get_providers()[0] != wanted.name:
        raise MachineError("device", provider, "ONNX Runtime fell back to the CPU", wanted.hint)
    return session


def _require_provider(ort: Any, wanted: _Provider, given: str) -> None:
    if wanted.name not in ort.get_available_providers():
        raise MachineError("device", given, f"this ONNX Runtime has no {wanted.title}", wanted.hint)
    if wanted.on_gpu:
        ort.preload_dlls()  # finds the CUDA libraries that came with torch's wheels


def signature_of(session: Any) -> tuple[Signature, Signature]:
    """What a session says of its inputs and of its outputs; inputs with a default are not among them."""
    inputs, outputs = (
        [(each.name, each.type, len(each.shape), each.shape[1:2]) for each in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs


def check_model_file(path: Path) -> None:
    """Refuse what is plainly no ONNX file before any parser sees it.

    Raises:
        ConfigError: there is no such file.
        InputError: it is a folder, empty, a Git LFS pointer, an HTML page or a PyTorch file.
    """
    if not path.exists():
        raise ConfigError("model", path, "no such file", GIVE_A_MODEL)
    if not path.is_file():
        raise InputError("model", path, "not a regular file", GIVE_A_MODEL)
    with path.open("rb") as stream:
        start = stream.read(64)
    is_zip = start.startswith(b"PK\x03\x04")
    why = "is a zip archive, perhaps a PyTorch checkpoint, not ONNX" if is_zip else find_impostor(start)
    if why:
        raise InputError("model", path, why, GIVE_A_MODEL)


def first_line(error: Exception) -> str:
    """ONNX Runtime's reason without its codes and the path, which the error names already."""
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?", "", str(error).strip())
    return reason.splitlines()[0][:200] if reason else type(error).__name__
