"""Networks as plain functions on numpy arrays: L (N, 1, H, W) float32 in [0, 1] to ab (N, 2, H, W) in [-1, 1]."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import numpy.typing as npt

from colorpress.core.config import ArchConfig
from colorpress.core.cores import usable_cores
from colorpress.core.errors import ConfigError, InputError, MachineError

if TYPE_CHECKING:  # torch takes a second to import, and ONNX needs none of it
    from torch import nn

Floats = npt.NDArray[np.float32]
Predictor = Callable[[Floats], Floats]
Opened = TypeVar("Opened")
# For each input or output: its name, type, rank and channels.
Signature = list[tuple[str, str, int, list[Any]]]
INPUT_NAME, OUTPUT_NAME = "L", "ab"
# Sizes of pictures that OpenVINO keeps a compiled graph for.
_KEPT_SIZES = 8
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
GIVE_A_MODEL = "give a model written by `colorpress export`, `colorpress quantize` or `colorpress train`"


class OnnxPredictor:
    """An ONNX file in ONNX Runtime; imports no torch.

    For files of one's own: a crafted file can end the process. `open_predictor` looks at a file in a child first.

    Args:
        path: the .onnx file, input L (N, 1, H, W) and output ab (N, 2, H, W).
        provider: "cpu", "cuda", "tensorrt" (both with ":N" for the GPU's number) or "openvino"; never silently
            another one.
        threads: CPU threads; 0: one per usable core.
        profile_prefix: path prefix of ONNX Runtime's profile; None: no profile.
    Raises:
        ConfigError: no such file, or another provider name.
        InputError: the file is no ONNX model, or not one of this task.
        MachineError: the provider is not there.
    """

    def __init__(
        self,
        path: Path,
        *,
        provider: str = "cpu",
        threads: int = 0,
        profile_prefix: Path | None = None,
    ) -> None:
        check_model_file(path)
        self.path, self.provider = path, provider
        self.session = open_session(path, provider=provider, threads=threads, profile_prefix=profile_prefix)
        self.input_name, self.output_name = check_signature(path, *signature_of(self.session))

    def __call__(self, lightness: Floats) -> Floats:
        try:
            answer: Floats = self.session.run([self.output_name], {self.input_name: lightness})[0]
        except Exception as error:
            raise InputError("model", self.path, first_line(error), GIVE_A_MODEL) from error
        return answer


def open_session(
    path: Path, content: bytes | None = None, *, provider: str, threads: int, profile_prefix: Path | None = None
) -> Any:
    """An ONNX Runtime session with all optimizations, explicit threads and one device.

    Args:
        path: the .onnx file; it names the model in errors where its `content` is given.
        provider, threads, profile_prefix: as `OnnxPredictor`.
    Raises:
        ConfigError: another provider name.
        InputError: the file is no ONNX model.
        MachineError: the provider is not there.
    """
    import onnxruntime as ort

    kind, _, index = provider.partition(":")
    on_gpu = kind in ("cuda", "tensorrt")
    if kind not in _PROVIDERS or (index and not (on_gpu and index.isdigit())):
        raise ConfigError("option", "--device", f"got {provider!r}", "choose one of: cpu, cuda, cuda:N")
    wanted = _PROVIDERS[kind]
    providers: list[Any] = ["CPUExecutionProvider"]
    if kind != "cpu":
        _require_provider(ort, kind, provider)
        providers.insert(0, (wanted, {"device_id": int(index or 0)}) if on_gpu else wanted)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Idle threads that spin slow down whatever else runs in the process; they may spin during a call only.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    try:
        session = ort.InferenceSession(str(path) if content is None else content, options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise InputError("model", path, first_line(error), GIVE_A_MODEL) from error
    if session.get_providers()[0] != wanted:
        raise MachineError("device", provider, "ONNX Runtime fell back to the CPU", _PROVIDER_HINTS[kind])
    return session


def signature_of(session: Any) -> tuple[Signature, Signature]:
    """What a session says of its inputs and of its outputs; inputs with a default are not among them."""
    inputs, outputs = (
        [(each.name, each.type, len(each.shape), each.shape[1:2]) for each in values]
        for values in (session.get_inputs(), session.get_outputs())
    )
    return inputs, outputs


class OpenVinoPredictor:
    """An ONNX file, or OpenVINO's own .xml, in OpenVINO on the CPU; imports no torch.

    A graph is compiled anew for each size of picture, as OpenVINO is fast for fixed sizes only; the last few sizes are
    kept. For files of one's own, as `OnnxPredictor`.

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
        try:
            import openvino
        except ImportError as error:
            hint = "install it: pip install openvino, or colorpress with its extra [openvino]"
            raise MachineError("runtime", "openvino", "is not installed", hint) from error
        self.path = path
        self._core = openvino.Core()
        self._settings = {"INFERENCE_NUM_THREADS": threads or usable_cores(), "PERFORMANCE_HINT": "LATENCY"}
        try:
            model = self._core.read_model(path)
            sides = [
                [(each.any_name, f"tensor({each.element_type.to_string().replace('f32', 'float')})",
                  each.partial_shape.rank.get_length(), [each.partial_shape[1].get_length()])]
                for each in (model.input(0), model.output(0))
            ]  # fmt: skip
        except Exception as error:  # OpenVINO's errors share no base class
            raise InputError("model", path, first_line(error), GIVE_A_MODEL) from error
        check_signature(path, *sides)
        self._requests: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def __call__(self, lightness: Floats) -> Floats:
        try:
            answer: Floats = self._request_for(lightness.shape).infer({0: lightness}, share_inputs=True)[0]
        except Exception as error:
            raise InputError("model", self.path, first_line(error), GIVE_A_MODEL) from error
        return answer

    def compute_precision(self, shape: tuple[int, ...]) -> str:
        """What float layers compute in at an input shape: "fp32", or "bf16" where the processor is faster in it."""
        hint = self._request_for(shape).get_compiled_model().get_property("INFERENCE_PRECISION_HINT")
        name = str(hint.to_string())
        return {"f32": "fp32", "f16": "fp16"}.get(name, name)

    def _request_for(self, shape: tuple[int, ...]) -> Any:
        if shape not in self._requests:
            model = self._core.read_model(self.path)
            model.reshape(list(shape))
            self._requests[shape] = self._core.compile_model(model, "CPU", self._settings).create_infer_request()
            if len(self._requests) > _KEPT_SIZES:
                self._requests.popitem(last=False)
        self._requests.move_to_end(shape)
        return self._requests[shape]


class TorchPredictor:
    """A torch network in eval mode, on one device.

    Args:
        network: L (N, 1, H, W) to ab (N, 2, H, W); moved to `device` and put into eval mode.
        device: "auto", "cpu", "cuda" or "cuda:N".
        threads: CPU threads during a call; 0: torch's own number.
        runtime: how PyTorch runs it, one of config.TORCH_RUNTIMES.
    Raises:
        MachineError: no such device, or the runtime needs a GPU.
    """

    def __init__(self, network: nn.Module, *, device: str = "cpu", threads: int = 0, runtime: str = "torch") -> None:
        from export.torch_runtimes import prepare_network
        from training.device import choose_device

        self.device, self.threads = choose_device(device), threads
        self.network = network.to(self.device).eval()
        self._call = prepare_network(self.network, runtime, self.device)

    def __call__(self, lightness: Floats) -> Floats:
        import torch

        from training.device import torch_threads

        with torch_threads(self.threads), torch.inference_mode():
            answer: Floats = self._call(torch.from_numpy(lightness).to(self.device)).cpu().numpy()
        return answer


def open_predictor(
    path: Path,
    *,
    arch: ArchConfig | None = None,
    device: str = "cpu",
    threads: int = 0,
    runtime: str = "",
    trusted: bool = False,
) -> Predictor:
    """Open a checkpoint (.pt) with torch, a model (.onnx) with ONNX Runtime or OpenVINO, or OpenVINO's own (.xml).

    Args:
        arch: names the network of a foreign checkpoint.
        device: "auto", "cpu", "cuda" or "cuda:N"; auto means CUDA where the runtime has it.
        threads: CPU threads; 0: one per core.
        runtime: one of config.TORCH_RUNTIMES or config.ONNX_RUNTIMES; OpenVINO runs on the CPU whatever the device.
            Empty: eager PyTorch, ONNX Runtime, or OpenVINO, as the file is.
        trusted: this very process wrote the ONNX file, so it is not looked at in a child process first (a second).
    Raises:
        ConfigError: no such file, neither a checkpoint nor .onnx, or a foreign network that `arch` does not name.
        InputError: the file is damaged, hostile or holds another network.
        MachineError: no such device, or OpenVINO is not installed.
    """
    if path.suffix == ".onnx":
        check_model_file(path)
        if not trusted:
            from export.onnx_probe import inspect_onnx

            inspect_onnx(path)
        if runtime == "openvino":
            return OpenVinoPredictor(path, threads=threads)
        if runtime.startswith("onnxruntime-"):
            return OnnxPredictor(path, provider=provider_of(runtime, device), threads=threads)
        return on_device(lambda provider: OnnxPredictor(path, provider=provider, threads=threads), device)
    if path.suffix == ".xml":
        return OpenVinoPredictor(path, threads=threads)
    if path.suffix in CHECKPOINT_SUFFIXES:
        from training.checkpoint import load_checkpoint

        network = load_checkpoint(path, arch).build_network()
        return TorchPredictor(network, device=device, threads=threads, runtime=runtime or "torch")
    raise ConfigError("model", path, f"ends in {path.suffix or 'nothing'!r}", "give a .pt checkpoint or an .onnx model")


def provider_of(runtime: str, device: str) -> str:
    """What `OnnxPredictor` calls an ONNX Runtime of config.ONNX_RUNTIMES on a device: "tensorrt:1"."""
    _, _, provider = runtime.partition("-")
    if provider == "tensorrt":
        return device.replace("cuda", provider)
    return provider or device


def on_device(open_with: Callable[[str], Opened], device: str) -> Opened:
    """What `open_with` opens on a provider; "auto" means CUDA where ONNX Runtime has it, and the CPU where not.

    Raises:
        MachineError: the device that was named is not there.
    """
    if device != "auto":
        return open_with(device)
    try:
        return open_with("cuda")
    except MachineError:
        return open_with("cpu")


_PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
_CUDA_HINT = "install colorpress[gpu] on a machine with CUDA, or use --device cpu"
_PROVIDER_HINTS = {
    "cuda": _CUDA_HINT,
    "tensorrt": "install onnxruntime-gpu and TensorRT on a machine with CUDA",
    "openvino": "install onnxruntime-openvino instead of onnxruntime, or let OpenVINO itself run the file",
}


def _require_provider(ort: Any, kind: str, name: str) -> None:
    if _PROVIDERS[kind] not in ort.get_available_providers():
        title = {"cuda": "CUDA", "tensorrt": "TensorRT", "openvino": "OpenVINO"}[kind]
        raise MachineError("device", name, f"this ONNX Runtime has no {title}", _PROVIDER_HINTS[kind])
    if kind != "openvino":
        ort.preload_dlls()  # finds the CUDA libraries that came with torch's wheels


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
    for prefix, why in (
        (b"version https://git-lfs", "is a Git LFS pointer; the model was not fetched"),
        (b"<!doctype", "is an HTML page"),
        (b"<html", "is an HTML page"),
        (b"pk\x03\x04", "is a zip archive, perhaps a PyTorch checkpoint, not ONNX"),
    ):
        if start.lstrip().lower().startswith(prefix):
            raise InputError("model", path, why, GIVE_A_MODEL)
    if not start:
        raise InputError("model", path, "is empty", GIVE_A_MODEL)


def check_signature(path: Path, inputs: Signature, outputs: Signature) -> tuple[str, str]:
    """The names of the one input and the one output: (name, type, rank, [channels]) of each must fit the task.

    Raises:
        InputError: other names, types, ranks or channel counts.
    """
    for role, name, channels, found in (("input", INPUT_NAME, 1, inputs), ("output", OUTPUT_NAME, 2, outputs)):
        if len(found) != 1 or found[0][:3] != (name, "tensor(float)", 4) or found[0][3] != [channels]:
            got = ", ".join(f"{each[0]} {each[1]} of rank {each[2]}" for each in found) or "none"
            want = f"{name} float32 (N, {channels}, H, W)"
            raise InputError("model", path, f"its {role} is {got}; expected {want}", GIVE_A_MODEL)
    return inputs[0][0], outputs[0][0]


def first_line(error: Exception) -> str:
    """ONNX Runtime's reason without its codes and the path, which the error names already."""
    reason = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : (Load model from .* failed:)?", "", str(error).strip())
    return reason.splitlines()[0][:200] if reason else type(error).__name__
