"""ONNX Runtime sessions: the only module that makes them; it imports ONNX Runtime when the first one is opened."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from colorpress.core.cores import usable_cores
from colorpress.core.errors import ColorpressError, ConfigError, InputError, MachineError
from colorpress.core.files import find_impostor
from colorpress.core.text import is_utf8
from export.run_limits import BYTES_OF_ONE_VALUE, call_limited

GIVE_A_MODEL = "give a model written by `colorpress export`, `colorpress quantize` or `colorpress train`"
# For each input or output: its name, type, rank and channels.
Signature = list[tuple[str, str, int, list[Any]]]
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class _Provider:
    """What ONNX Runtime computes with.

    Attributes:
        name, title: its own name for it, and that for people.
        hint: what to do where it is missing.
        on_gpu: it takes the number of a CUDA device.
        plugin: the Python module of a wheel of its own that brings it, with `get_library_path`.
        options: its own options.
        sized: a session of it is for one size of picture, see `SizedSession`.
    """

    name: str
    title: str
    hint: str = ""
    on_gpu: bool = False
    plugin: str = ""
    options: Mapping[str, str] = field(default_factory=dict)
    sized: bool = False


CPU_PROVIDER = "CPUExecutionProvider"
# What lets ONNX Runtime's WebGPU provider compute on a processor, by a driver such as SwiftShader.
SOFTWARE_ADAPTER = "ORT_WEBGPU_EP_ALLOW_SOFTWARE_ADAPTER"
# ONNX Runtime refuses to register the library of a provider again.
_registered: set[str] = set()
# Sizes of pictures that a runtime which compiles for each keeps what it compiled for.
KEPT_SIZES = 8
# The first run of a size compiles what the device computes, which takes SwiftShader a minute on a busy machine.
_COMPILING_SECONDS = 300.0
_PROVIDERS = {
    "cpu": _Provider(CPU_PROVIDER, "CPU"),
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
    "qnn": _Provider(
        "QNNExecutionProvider",
        "QNN",
        "install onnxruntime-qnn; a processor that is no Qualcomm's prepares graphs at most",
        plugin="onnxruntime_qnn",
        options={"backend_type": "htp"},
    ),
    "webgpu": _Provider(
        "WebGpuExecutionProvider",
        "WebGPU",
        "install colorpress[webgpu] on a machine with a GPU and its driver (Vulkan, Metal or Direct3D 12); "
        f"one of software is taken where {SOFTWARE_ADAPTER} is 1",
        plugin="onnxruntime_ep_webgpu",
        sized=True,
    ),
    "directml": _Provider("DmlExecutionProvider", "DirectML", "install onnxruntime-directml on Windows"),
    "coreml": _Provider("CoreMLExecutionProvider", "CoreML", "install onnxruntime on macOS, whose wheel has it"),
}


def open_session(
    path: Path,
    content: bytes | None = None,
    *,
    provider: str = "cpu",
    threads: int | None = 0,
    profile_prefix: Path | None = None,
    ort_path: Path | None = None,
) -> ModelSession:
    """A `ModelSession` with explicit threads and one device.

    Args:
        path: the .onnx file; it names the model in errors where its `content` is given.
        provider: a key of the table above; cuda and tensorrt with ":N" for the GPU's number. Never silently another
            one.
        threads: CPU threads; 0: one per usable core, None: ONNX Runtime's choice.
        profile_prefix: path prefix of ONNX Runtime's profile; None: no profile.
        ort_path: where the graph is written in ONNX Runtime's own format, optimized by no more than what holds on
            every machine; None: nowhere.
    Raises:
        ConfigError: no such file, or another provider name.
        InputError: the file is no ONNX model.
        MachineError: the provider is not there.
    """
    if content is None:
        check_model_file(path)
    import onnxruntime as ort

    kind, _, index = provider.partition(":")
    wanted = _PROVIDERS.get(kind)
    if wanted is None or (index and not (wanted.on_gpu and index.isdigit())):
        raise ConfigError("option", "--device", f"got {provider!r}", "choose one of: cpu, cuda, cuda:N")
    if content is None and not is_utf8(path):
        content = path.read_bytes()
    model = str(path) if content is None else content
    size = path.stat().st_size if content is None else len(content)
    require_provider(provider)

    def open_at(sizes: Sequence[tuple[str, int]] = ()) -> Any:
        options = ort.SessionOptions()
        options.inter_op_num_threads = 1
        if threads is not None:
            options.intra_op_num_threads = threads or usable_cores()
        # Idle threads that spin slow down whatever else runs in the process; they may spin during a call only.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        options.log_severity_level = 4
        for axis, length in sizes:
            options.add_free_dimension_override_by_name(axis, length)
        if profile_prefix is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_prefix)
        if ort_path is not None:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.add_session_config_entry("session.save_model_format", "ORT")
            options.optimized_model_filepath = str(ort_path)
        providers = _choose_provider(ort, options, wanted, int(index or 0))
        make = partial(ort.InferenceSession, model, options, **providers)
        cancel = partial(options.set_load_cancellation_flag, True)
        try:
            return call_library(path, partial(call_limited, path, size // BYTES_OF_ONE_VALUE, make, stop=cancel))
        except InputError as error:
            if kind == "cpu" or not isinstance(error.__cause__, ort.capi.onnxruntime_pybind11_state.EPFail):
                raise
            # Behind what it says of its own code.
            why = str(error.__cause__).strip().splitlines()[0].rpartition(" was false. ")[2][:200]
            raise MachineError("device", provider, f"{wanted.title} failed: {why}", wanted.hint) from error

    opened = SizedSession(path, open_at(), open_at) if wanted.sized else ModelSession(path, open_at())
    opened.provider = describe_provider(provider)
    if kind != "cpu":
        _require_provider_used(opened, wanted, provider)
    return opened


def require_provider(provider: str) -> None:
    """Nothing where ONNX Runtime has a provider, which may still fail on its first run.

    Raises:
        MachineError: it has not, or the wheel that brings it does not load or finds no device.
    """
    import onnxruntime as ort

    wanted = _PROVIDERS[provider.partition(":")[0]]
    if wanted.plugin:
        if not _plugin_devices(ort, wanted):
            raise MachineError("device", provider, f"{wanted.title} found no device here", wanted.hint)
    elif wanted.name not in ort.get_available_providers():
        raise MachineError("device", provider, f"this ONNX Runtime has no {wanted.title}", wanted.hint)


def describe_provider(provider: str) -> str:
    """ONNX Runtime's own name of a provider that is there, and of WebGPU whether its device is of software.

    Times on such a device say nothing of any GPU.
    """
    import onnxruntime as ort

    wanted = _PROVIDERS[provider.partition(":")[0]]
    kinds = [each.device.type for each in _plugin_devices(ort, wanted)] if wanted.sized else []
    return wanted.name + (", in software" if kinds[:1] == [ort.OrtHardwareDeviceType.CPU] else "")


def _choose_provider(ort: Any, options: Any, wanted: _Provider, index: int) -> dict[str, Any]:
    """What makes a session of `options` run on a provider that is there: arguments, or an entry of the options."""
    if wanted.name == CPU_PROVIDER:
        return {"providers": [CPU_PROVIDER]}
    if wanted.plugin:
        options.add_provider_for_devices(_plugin_devices(ort, wanted)[:1], dict(wanted.options))
        return {}
    if wanted.on_gpu:
        ort.preload_dlls()  # finds the CUDA libraries that came with torch's wheels
    own = {**wanted.options, **({"device_id": index} if wanted.on_gpu else {})}
    return {"providers": [(wanted.name, own), CPU_PROVIDER]}


def _require_provider_used(session: ModelSession, wanted: _Provider, asked: str) -> None:
    """A session is of the provider that was asked for, which ONNX Runtime replaces by its own CPU without a word.

    Raises:
        MachineError: it is not, or convolutions are left to the CPU: all of them, or some where the row would be of a
            GPU.
    """
    if session.get_providers()[0] != wanted.name:
        raise MachineError("device", asked, "ONNX Runtime fell back to the CPU", wanted.hint)
    convolutions = [name for name, operator in session.placement if "Conv" in operator]
    elsewhere = sum(name != wanted.name for name in convolutions)
    if convolutions and elsewhere >= (1 if wanted.on_gpu else len(convolutions)):
        why = f"leaves {elsewhere} of {len(convolutions)} convolutions to the CPU"
        raise MachineError("device", asked, f"{wanted.title} {why}", "run this file on the CPU, or its float version")


def _plugin_devices(ort: Any, wanted: _Provider) -> list[Any]:
    """What a provider that comes as a wheel of its own can compute on.

    Raises:
        MachineError: the wheel is not installed, or does not load.
    """

    def found() -> list[Any]:
        return [each for each in ort.get_ep_devices() if each.ep_name == wanted.name]

    if not (devices := found()) and wanted.name not in _registered:
        try:
            ort.set_default_logger_severity(3)  # it warns of what was asked for
            ort.register_execution_provider_library(wanted.name, import_module(wanted.plugin).get_library_path())
        except ImportError as error:
            raise MachineError("device", wanted.title, "is not installed", wanted.hint) from error
        except Exception as error:  # the errors of ONNX Runtime share no base class
            why = f"its library does not load ({str(error).strip().splitlines()[0][:200]})"
            raise MachineError("device", wanted.title, why, wanted.hint) from error
        _registered.add(wanted.name)
        devices = found()
    return devices


class ModelSession:
    """An `onnxruntime.InferenceSession` each of whose runs has limits, and ends by a signal; else it is the same.

    Args:
        path: what errors call the model.
        more_seconds: that a run may take for what is compiled in it.
    Attributes:
        provider: what computes, see `describe_provider`.
    """

    provider = CPU_PROVIDER

    def __init__(self, path: Path, session: Any, *, more_seconds: float = 0.0) -> None:
        self._path, self._session, self._more_seconds = path, session, more_seconds

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """The values of outputs (None: of all), from arrays by the names of inputs.

        Raises:
            InputError: it took more time or memory than a sound model.
            Interrupted: a signal arrived meanwhile.
        """
        from onnxruntime import RunOptions

        options = RunOptions()
        values = sum(each.size for each in feeds.values())
        stop = partial(setattr, options, "terminate", True)
        run = partial(self._session.run, names, feeds, options)
        answers: list[Any] = call_limited(self._path, values, run, stop=stop, more_seconds=self._more_seconds)
        return answers

    @property
    def placement(self) -> list[tuple[str, str]]:
        """The provider and the operator of every node, before they are fused."""
        return [
            (part.ep_name, node.op_type)
            for part in self._session.get_provider_graph_assignment_info()
            for node in part.get_nodes()
        ]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class SizedSession(ModelSession):
    """A session that is opened anew for each size of its inputs; the last few are kept.

    What a graph works out from sizes is constant in it, where a session for all sizes has the CPU work it out at each
    call, a third of a small network's kernels.

    Args:
        session: for all sizes.
        open_at: opens one for the names of axes and their lengths.
    """

    def __init__(self, path: Path, session: Any, open_at: Callable[[Sequence[tuple[str, int]]], Any]) -> None:
        super().__init__(path, session, more_seconds=_COMPILING_SECONDS)
        self._axes = {each.name: each.shape for each in session.get_inputs()}
        opened = partial(ModelSession, path, more_seconds=_COMPILING_SECONDS)
        self._session_for = lru_cache(KEPT_SIZES)(lambda sizes: opened(open_at(sizes)))
        self._last: ModelSession = self

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, Any]) -> list[Any]:
        """As `ModelSession.run`."""
        sizes = {
            (axis, length)
            for name, axes in self._axes.items()
            for axis, length in zip(axes, feeds[name].shape, strict=False)
            if isinstance(axis, str)
        }
        if not sizes:
            return super().run(names, feeds)
        self._last = self._session_for(tuple(sorted(sizes)))
        return self._last.run(names, feeds)

    def end_profiling(self) -> str:
        """The path of the profile of the size that ran last."""
        return str(self._last._session.end_profiling())


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


def call_library(path: Path, call: Callable[..., Answer], *arguments: Any) -> Answer:
    """What `call` answers of the model at `path`; whatever it raises becomes an InputError of one line."""
    try:
        return call(*arguments)
    except ColorpressError:
        raise  # known already
    except Exception as error:  # the errors of ONNX Runtime share no base class, nor do OpenVINO's
        # Without its codes, and the path, which the error names already.
        reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?", "", str(error).strip())
        why = reason.splitlines()[0][:200] if reason else type(error).__name__
        raise InputError("model", path, why, GIVE_A_MODEL) from error
