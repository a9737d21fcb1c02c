"""What runs model files: the one table of runtimes, and opening a file in one of them.

A new one is an entry here and its opener. Another package adds one without touching this: its entry point in the group
`colorpress.runtimes` names a `Runtime`. Importing this imports no torch, ONNX Runtime or OpenVINO: openers do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from colorpress.core.config import ArchConfig
from colorpress.core.console import warn
from colorpress.core.errors import ConfigError, MachineError
from export.mobile_predictors import ExecuTorchPredictor, LiteRtPredictor, import_executorch, import_litert
from export.predictors import OnnxPredictor, OpenVinoPredictor, TimedPredictor, TorchWay, import_openvino
from export.sessions import CPU_PROVIDER, require_provider

if TYPE_CHECKING:  # it imports onnx, which no timed process should have in its memory
    from export.colorizers import Colorizer

Opened = TypeVar("Opened")
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_ENTRY_POINTS = "colorpress.runtimes"


@dataclass(frozen=True)
class Opening:
    """How a file is opened.

    Attributes:
        device: "auto", "cpu", "cuda" or "cuda:N"; auto means CUDA where the runtime has it.
        threads: CPU threads; 0: one per core.
        arch: names the network of a foreign checkpoint.
        alone: the process does nothing else than running this file, so the library may be set up for it.
        work_size: short side that the network sees of a picture, in pixels; smaller pictures are not enlarged.
        saturation: what the network's chroma is multiplied by. None for these two: what a picture graph says, 256 and
            1 else.
        field: whether an affine network answers B and A, (N, 4, H, W), for `color_pixels` to enlarge; where a runtime
            cannot, it answers ab all the same, whose colours then follow the lightness that the network sees.
    """

    device: str = "cpu"
    threads: int = 0
    arch: ArchConfig | None = None
    alone: bool = False
    work_size: int | None = None
    saturation: float | None = None
    field: bool = False


@dataclass(frozen=True)
class Runtime:
    """A way to run model files.

    Attributes:
        name: as the option --runtime and the column of a benchmark say it.
        title: for people.
        open_network: opens a checkpoint or a bare network: L to ab.
        open_pictures: opens a picture graph, given its content; None where it runs none.
        family: the library, such as "PyTorch", "ONNX Runtime" or "OpenVINO": rows of one family look alike in a chart.
        suffixes: of the files that it runs.
        modules: what is to be imported before a clock is started that measures the opening alone.
        require: raises MachineError where this machine has not what it takes, as far as can be told without a file.
        devices: "cpu" and "cuda", or one of them.
        twin: the name of the runtime that answers the same without a compiler.
        provider: what `open_session` calls the provider of ONNX Runtime that it is; empty where it is none.
        loads_at_call: its first call belongs to loading a file, since only that prepares the graph for the size.
    """

    name: str
    title: str
    open_network: Callable[[Path, Opening], TimedPredictor]
    _: KW_ONLY
    family: str
    suffixes: tuple[str, ...]
    modules: tuple[str, ...]
    require: Callable[[], object] = lambda: None
    open_pictures: Callable[[Path, bytes, Opening], Colorizer] | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    twin: str = ""
    provider: str = ""
    loads_at_call: bool = False

    @property
    def uncompiled(self) -> str:
        """What answers the same without a compiler, which photographs of many sizes would occupy for hours."""
        return self.twin or self.name

    @property
    def needs_gpu(self) -> bool:
        """Whether it runs on nothing else."""
        return "cpu" not in self.devices

    def open(self, path: Path, opening: Opening) -> TimedPredictor:
        """A checkpoint or a bare network; raises what `open_predictor` does."""
        return self.open_network(path, self.choose_device(opening))

    def choose_device(self, opening: Opening) -> Opening:
        """The opening on a device that this runs on; what runs on the CPU alone does so whatever the device.

        Raises:
            MachineError: it needs a GPU, and the device is the CPU.
        """
        if self.needs_gpu and opening.device == "cpu":
            raise MachineError("runtime", self.name, "needs a GPU, not cpu", "leave it out of --runtime")
        if len(self.devices) == 1 and (opening.device == "auto" or not self.needs_gpu):
            return replace(opening, device=self.devices[0])
        return opening


def open_predictor(
    path: Path, *, runtime: str = "", device: str = "cpu", threads: int = 0, arch: ArchConfig | None = None
) -> TimedPredictor:
    """Open a checkpoint (.pt), a bare network (.onnx) or OpenVINO's own (.xml) of one's own.

    Args:
        runtime: a key of RUNTIMES; empty: the file's own, which is eager PyTorch, ONNX Runtime or OpenVINO.
        device, threads, arch: as `Opening`.
    Raises:
        ConfigError: no such file, one that the runtime does not run, or a foreign network that `arch` does not name.
        InputError: the file is damaged or holds another network.
        MachineError: no such device, or a library is not installed.
    """
    return find_runtime(path, runtime).open(path, Opening(device, threads, arch))


def open_colorizer(
    path: Path,
    *,
    work_size: int | None = None,
    saturation: float | None = None,
    runtime: str = "",
    device: str = "cpu",
    threads: int = 0,
    arch: ArchConfig | None = None,
) -> Colorizer:
    """Open anything that colorpress wrote to colour pictures with: a picture graph, a bare network or a checkpoint.

    Args:
        runtime: as `open_predictor`.
        work_size, saturation, device, threads, arch: as `Opening`.
    Raises:
        ConfigError, InputError, MachineError: as `open_predictor`.
    """
    chosen = find_runtime(path, runtime)
    opening = Opening(device, threads, arch, work_size=work_size, saturation=saturation)
    if path.suffix == ".onnx" and chosen.open_pictures is not None:
        from export.colorizers import read_as_picture_graph

        content = read_as_picture_graph(path)
        if content is not None:
            return chosen.open_pictures(path, content, chosen.choose_device(opening))
    from export.colorizers import color_large_faster
    from export.picture_contract import DEFAULT_WORK_SIZE, AskedNetwork
    from export.picture_reference import color_pixels

    network = chosen.open(path, replace(opening, field=True))
    size, gain = work_size or DEFAULT_WORK_SIZE, 1.0 if saturation is None else saturation
    asked = AskedNetwork(network, size, gain)
    return color_large_faster(partial(color_pixels, **vars(asked)), lambda: asked, threads)


def find_runtime(path: Path, name: str = "") -> Runtime:
    """The runtime of that name, or, where it is empty, a file's own.

    Raises:
        ConfigError: nothing runs such a file, or the runtime does not.
    """
    fitting = runtimes_of(path)
    name = name or fitting[0]
    check_names([name])
    if name not in fitting:
        raise ConfigError("runtime", name, f"cannot run {path.name}", f"choose one of: {', '.join(fitting)}")
    return RUNTIMES[name]


def check_names(names: Sequence[str]) -> None:
    """Nothing where each is the name of a runtime.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if name not in RUNTIMES:
            raise ConfigError("runtime", name, "is unknown", f"choose one of: {', '.join(RUNTIMES)}")


def runtimes_of(path: Path) -> tuple[str, ...]:
    """What can run a file, its own runtime first.

    Raises:
        ConfigError: nothing can.
    """
    names = tuple(name for name, runtime in RUNTIMES.items() if path.suffix in runtime.suffixes)
    if not names:
        why = f"ends in {path.suffix or 'nothing'!r}"
        hint = "give a .pt checkpoint, an .onnx model, an OpenVINO .xml file, a .tflite or a .pte file"
        raise ConfigError("model", path, why, hint)
    return names


def _open_torch(path: Path, opening: Opening, way: TorchWay) -> TimedPredictor:
    from export.torch_runtimes import TorchPredictor
    from training.checkpoint import load_checkpoint
    from training.network import FieldNetwork

    network = load_checkpoint(path, opening.arch).build_network()
    answering = FieldNetwork(network) if opening.field else network
    return TorchPredictor(answering, device=opening.device, threads=opening.threads, way=way, alone=opening.alone)


def _open_onnx(path: Path, opening: Opening, provider: str = "") -> TimedPredictor:
    chosen = partial(OnnxPredictor, path, field=opening.field, threads=opening.threads)
    return _on_provider(lambda each: chosen(provider=each), opening, provider)


def _open_openvino(path: Path, opening: Opening) -> TimedPredictor:
    return OpenVinoPredictor(path, threads=opening.threads)


def _color_onnx(path: Path, content: bytes, opening: Opening, provider: str = "") -> Colorizer:
    from export.colorizers import OnnxColorizer, color_large_faster, open_inner_network

    asked: dict[str, Any] = {
        "work_size": opening.work_size,
        "saturation": opening.saturation,
        "threads": opening.threads,
    }
    graph = _on_provider(lambda each: OnnxColorizer(path, content, **asked, provider=each), opening, provider)
    if graph.session.provider != CPU_PROVIDER or not graph.has_choices:
        return graph
    return color_large_faster(graph, partial(open_inner_network, path, content, **asked), opening.threads)


def _color_openvino(path: Path, content: bytes, opening: Opening) -> Colorizer:
    from export.colorizers import OpenVinoColorizer

    size, gain = opening.work_size, opening.saturation
    return OpenVinoColorizer(path, content, work_size=size, saturation=gain, threads=opening.threads)


def _open_litert(path: Path, opening: Opening) -> TimedPredictor:
    return LiteRtPredictor(path, threads=opening.threads)


def _open_executorch(path: Path, opening: Opening) -> TimedPredictor:
    return ExecuTorchPredictor(path, threads=opening.threads)


def _on_provider(open_with: Callable[[str], Opened], opening: Opening, provider: str) -> Opened:
    """What `open_with` opens on a provider of ONNX Runtime: the one that is named, else that of the device."""
    if provider or opening.device != "auto":
        return open_with(provider_on(provider, opening.device))
    try:
        return open_with("cuda")
    except MachineError:
        return open_with("cpu")


def provider_on(provider: str, device: str) -> str:
    """What `open_session` calls a provider (empty: the device's own) on a device: "tensorrt:1" for cuda:1."""
    kind, colon, index = device.partition(":")
    return f"{provider or kind}{colon}{index}"


def _torch(name: str, title: str, way: TorchWay, **more: Any) -> Runtime:
    modules = ("torch", "training.checkpoint", "export.torch_runtimes")
    opener = partial(_open_torch, way=way)
    return Runtime(name, title, opener, family="PyTorch", suffixes=CHECKPOINT_SUFFIXES, modules=modules, **more)


def _onnx(name: str, title: str, provider: str = "", family: str = "ONNX Runtime", **more: Any) -> Runtime:
    opener, pictures = partial(_open_onnx, provider=provider), partial(_color_onnx, provider=provider)
    more |= {"suffixes": (".onnx",), "modules": ("onnxruntime",), "open_pictures": pictures}
    more |= {"require": partial(require_provider, provider or "cpu"), "provider": provider or "cpu"}
    return Runtime(name, title, opener, family=family, **more)


def _require_cuda() -> None:
    from training.device import choose_device

    choose_device("cuda")


def _installed() -> Iterator[Runtime]:
    """Those of other packages; one that cannot be loaded is left out and said."""
    for each in entry_points(group=_ENTRY_POINTS):
        try:
            found = each.load()
        except Exception as error:  # whatever somebody else's module does when it is imported
            warn(f"runtime {each.name} of another package is left out: {type(error).__name__}: {error}")
            continue
        if isinstance(found, Runtime):
            yield found
        else:
            warn(f"runtime {each.name} of another package is left out: {each.value} is no export.runtimes.Runtime")


_CPU, _GPU = ("cpu",), ("cuda",)
_OWN = (
    _torch("torch", "PyTorch", TorchWay(channels_last=False)),
    _torch("torch-channels-last", "PyTorch channels-last", TorchWay()),
    _torch("torch-bf16", "PyTorch bf16", TorchWay(compute="bf16")),
    _torch("torch-compile", "torch.compile", TorchWay(compiled=True), twin="torch-channels-last"),
    _torch("torch-compile-bf16", "torch.compile bf16", TorchWay(compute="bf16", compiled=True), twin="torch-bf16"),
    _torch("torch-fp16", "PyTorch fp16", TorchWay(compute="fp16"), devices=_GPU, require=_require_cuda),
    _torch(
        "torch-cuda-graph",
        "PyTorch CUDA graph",
        TorchWay(compute="fp16", cuda_graph=True),
        devices=_GPU,
        require=_require_cuda,
    ),
    _onnx("onnxruntime", "ONNX Runtime"),
    _onnx("onnxruntime-cuda", "ONNX Runtime + CUDA", "cuda", devices=_GPU),
    _onnx("onnxruntime-tensorrt", "ONNX Runtime + TensorRT", "tensorrt", devices=_GPU),
    _onnx("onnxruntime-openvino", "ONNX Runtime + OpenVINO", "openvino", family="OpenVINO", devices=_CPU),
    _onnx("onnxruntime-webgpu", "ONNX Runtime + WebGPU", "webgpu", devices=_CPU, loads_at_call=True),
    _onnx("onnxruntime-qnn", "ONNX Runtime + QNN", "qnn", devices=_CPU),
    _onnx("onnxruntime-directml", "ONNX Runtime + DirectML", "directml", devices=_CPU),
    _onnx("onnxruntime-coreml", "ONNX Runtime + CoreML", "coreml", devices=_CPU),
    Runtime(
        "openvino",
        "OpenVINO",
        _open_openvino,
        open_pictures=_color_openvino,
        family="OpenVINO",
        suffixes=(".onnx", ".xml"),
        modules=("openvino",),
        require=import_openvino,
        devices=_CPU,
        loads_at_call=True,
    ),
    Runtime(
        "litert",
        "LiteRT",
        _open_litert,
        family="LiteRT",
        suffixes=(".tflite",),
        modules=("ai_edge_litert.interpreter",),
        require=import_litert,
        devices=_CPU,
        loads_at_call=True,
    ),
    Runtime(
        "executorch",
        "ExecuTorch",
        _open_executorch,
        family="ExecuTorch",
        suffixes=(".pte",),
        modules=("torch", "executorch.runtime"),
        require=import_executorch,
        devices=_CPU,
    ),
)


def make_table() -> Mapping[str, Runtime]:
    """Ours and those of installed packages, by their names; of two with one name ours stays."""
    own = {each.name: each for each in _OWN}
    return MappingProxyType({**own, **{each.name: each for each in _installed()}, **own})


RUNTIMES = make_table()
