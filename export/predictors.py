"""Networks as functions on numpy arrays, one class a library: lightness L in, chroma ab out.

L is float32 (N, 1, H, W) in [0, 1], ab float32 (N, 2, H, W) in [-1, 1]. Those of PyTorch are in `torch_runtimes`;
`runtimes` opens whatever file it is. All are for files of one's own: a crafted one can end the process, so whoever
opens a user's file has `onnx_probe` look at it first.
"""

from __future__ import annotations

import ctypes
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from math import prod
from pathlib import Path
from threading import Lock
from time import perf_counter_ns
from typing import Any

import numpy as np
import numpy.typing as npt

from colorpress.core.cores import usable_cores
from colorpress.core.errors import InputError, MachineError
from colorpress.core.text import is_utf8
from export.run_limits import call_limited
from export.sessions import (
    GIVE_A_MODEL,
    KEPT_SIZES,
    Signature,
    call_library,
    check_model_file,
    open_session,
    signature_of,
)

Floats = npt.NDArray[np.float32]
Pixels = npt.NDArray[np.uint8]
Predictor = Callable[[Floats], Floats]
INPUT_NAME, OUTPUT_NAME = "L", "ab"
_SS_DISABLE = 2  # of <signal.h> of Linux


class TimedPredictor(ABC):
    """A predictor that can also say what it runs on.

    Attributes:
        provider: what really runs: an execution provider, a GPU's name, or "cpu".
    """

    provider: str

    @abstractmethod
    def __call__(self, lightness: Floats) -> Floats:
        """L (N, 1, H, W) to ab (N, 2, H, W)."""

    def compute_precision(self, shape: tuple[int, ...]) -> str:
        """What float layers compute in at an input shape: "fp32", "bf16" or "fp16"."""
        return "fp32"

    def time_resident(self, lightness: Floats) -> Callable[[], float] | None:
        """A function that times one call whose input and output stay on the GPU, in ms; None on a CPU."""
        return None


@dataclass(frozen=True)
class TorchWay:
    """How PyTorch runs a network.

    Attributes:
        channels_last: channels are stored innermost.
        compute: "fp32", "bf16" (autocast, as PyTorch recommends for CPUs with it) or "fp16" (weights too).
        compiled: by the Inductor compiler with frozen weights, anew for each size, which takes seconds to minutes.
        cuda_graph: recorded once for each size and replayed.
    """

    channels_last: bool = True
    compute: str = "fp32"
    compiled: bool = False
    cuda_graph: bool = False


class OnnxPredictor(TimedPredictor):
    """An ONNX file in ONNX Runtime; imports no torch.

    Args:
        path: the .onnx file, input L (N, 1, H, W) and output ab (N, 2, H, W).
        field: whether an affine network answers B and A, (N, 4, H, W), instead of ab, as `color_pixels` enlarges them.
        provider, threads, profile_prefix: as `export.sessions.open_session`.
    Raises:
        ConfigError: no such file, or another provider name.
        InputError: the file is no ONNX model, or not one of this task.
        MachineError: the provider is not there.
    """

    def __init__(
        self,
        path: Path,
        *,
        field: bool = False,
        provider: str = "cpu",
        threads: int = 0,
        profile_prefix: Path | None = None,
    ) -> None:
        self.path, self._gpu = path, provider if provider.startswith(("cuda", "tensorrt")) else ""
        content = _read_field(path) if field else None
        self.session = open_session(path, content, provider=provider, threads=threads, profile_prefix=profile_prefix)
        self.provider = self.session.provider
        if content is None:
            check_signature(path, *signature_of(self.session))

    def __call__(self, lightness: Floats) -> Floats:
        answer: Floats = call_library(self.path, self.session.run, [OUTPUT_NAME], {INPUT_NAME: lightness})[0]
        return answer

    def time_resident(self, lightness: Floats) -> Callable[[], float] | None:
        """As `TimedPredictor`."""
        if not self._gpu:
            return None
        import onnxruntime as ort

        binding = self.session.io_binding()
        index = int(self._gpu.partition(":")[2] or 0)
        binding.bind_ortvalue_input(INPUT_NAME, ort.OrtValue.ortvalue_from_numpy(lightness, "cuda", index))
        binding.bind_output(OUTPUT_NAME, "cuda", index)

        def call_ms() -> float:
            binding.synchronize_inputs()
            begun = perf_counter_ns()
            self.session.run_with_iobinding(binding)
            binding.synchronize_outputs()
            return (perf_counter_ns() - begun) / 1e6

        return call_ms


def _read_field(path: Path) -> bytes | None:
    """The graph of an affine network without its last step; None of any other."""
    import onnx

    from export.affine_field import is_affine, take_field

    check_model_file(path)
    model = call_library(path, onnx.load_model_from_string, path.read_bytes())
    return take_field(model).SerializeToString() if is_affine(model.graph) else None


class OpenVinoPredictor(TimedPredictor):
    """An ONNX file, or OpenVINO's own .xml, in OpenVINO on the CPU; imports no torch.

    A graph is compiled anew for each size of picture, as OpenVINO is fast for fixed sizes only; the last few sizes are
    kept.

    Args:
        path: the .onnx or .xml file, input L (N, 1, H, W) and output ab (N, 2, H, W).
        threads: CPU threads; 0: one per usable core.
    Raises:
        ConfigError: no such file.
        InputError: OpenVINO cannot read the file, or it is not one of this task.
        MachineError: OpenVINO is not installed.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        check_model_file(path)
        openvino = import_openvino()
        self.path, self.provider = path, f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self._core = openvino.Core()
        self._settings = {"INFERENCE_NUM_THREADS": threads or usable_cores(), "PERFORMANCE_HINT": "LATENCY"}
        check_signature(path, *call_library(path, self._read_signature))
        self._request_for, self._lock = lru_cache(KEPT_SIZES)(self._make_request), Lock()

    def __call__(self, lightness: Floats) -> Floats:
        with self._lock:  # a request has place for one picture, and one answer
            answer: Floats = call_library(self.path, self._infer, lightness)
        return answer

    def _infer(self, lightness: Floats) -> Any:
        request = self._request_for(lightness.shape)
        infer = partial(request.infer, {0: lightness}, share_inputs=True)
        return call_limited(self.path, lightness.size, infer, stop=request.cancel)[0]

    def _read(self) -> Any:
        if is_utf8(self.path):
            return self._core.read_model(self.path)
        beside = self.path.with_suffix(".bin")  # of an .xml file
        weights = {"weights": beside.read_bytes()} if beside.is_file() else {}
        return self._core.read_model(self.path.read_bytes(), **weights)

    def _read_signature(self) -> list[Signature]:
        model = self._read()
        return [
            [(each.any_name, f"tensor({each.element_type.to_string().replace('f32', 'float')})",
              each.partial_shape.rank.get_length(), [each.partial_shape[1].get_length()])]
            for each in (model.input(0), model.output(0))
        ]  # fmt: skip

    def compute_precision(self, shape: tuple[int, ...]) -> str:
        """As `TimedPredictor`: "bf16" where the processor is faster in it."""
        hint = self._request_for(shape).get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
        name = str(hint.to_string())
        return {"f32": "fp32", "f16": "fp16"}.get(name, name)

    def _make_request(self, shape: tuple[int, ...]) -> Any:
        return call_limited(self.path, prod(shape), self._compile, shape)

    def _compile(self, shape: tuple[int, ...]) -> Any:
        model = self._read()
        model.reshape(list(shape))
        return compile_for_cpu(self._core, model, self._settings).create_infer_request()


class _SignalStack(ctypes.Structure):
    """`stack_t` of <signal.h>."""

    _fields_ = (("ss_sp", ctypes.c_void_p), ("ss_flags", ctypes.c_int), ("ss_size", ctypes.c_size_t))


def compile_for_cpu(core: Any, model: Any, settings: Mapping[str, Any]) -> Any:
    """What OpenVINO compiles, with the stack that the signals of this thread are handled on left as it was: its own.

    OpenVINO registers another one with each model, and takes it back as if models went in the reverse order. Where they
    do not, one that was freed stays registered, and the next SIGTERM is a SIGSEGV (seen in OpenVINO 2026.4 on Linux).
    """
    compiled = core.compile_model(model, "CPU", dict(settings))
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(ctypes.byref(_SignalStack(None, _SS_DISABLE, 0)), None)
    return compiled


def import_openvino() -> Any:
    """The module `openvino`; raises as `import_extra`."""
    return import_extra("openvino", "openvino", "openvino")[0]


def import_extra(runtime: str, package: str, *modules: str) -> list[Any]:
    """Modules of a package that an extra of colorpress brings; the extra is called as the runtime is.

    Raises:
        MachineError: it is not installed.
    """
    try:
        return [import_module(each) for each in modules]
    except ImportError as error:
        hint = f"install it: pip install {package}, or colorpress with its extra [{runtime}]"
        raise MachineError("runtime", runtime, "is not installed", hint) from error


def check_signature(path: Path, inputs: Signature, outputs: Signature) -> None:
    """The one input and the one output have to fit the task: (name, type, rank, [channels]) of each.

    Raises:
        InputError: other names, types, ranks or channel counts.
    """
    for role, name, channels, found in (("input", INPUT_NAME, 1, inputs), ("output", OUTPUT_NAME, 2, outputs)):
        if found != [(name, "tensor(float)", 4, [channels])]:
            got = ", ".join(f"{each[0]} {each[1]} of rank {each[2]}" for each in found) or "none"
            want = f"{name} float32 (N, {channels}, H, W)"
            raise InputError("model", path, f"its {role} is {got}; expected {want}", GIVE_A_MODEL)
