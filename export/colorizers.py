"""Picture graphs as functions on pixels, one class a library: uint8 (H, W, 3) sRGB or (H, W, 1) grey to (H, W, 3).

`runtimes` opens whatever file it is: a bare network has the picture work put around it in the graph, a checkpoint in
torch. All are for files of one's own, as in `predictors`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from colorpress.core.cores import usable_cores
from colorpress.core.errors import ConfigError, InputError
from export.picture_contract import (
    COLORIZED_NAME,
    IMAGE_NAME,
    SATURATION_NAME,
    WORK_SIZE_NAME,
    AskedNetwork,
    is_picture_graph,
)
from export.predictors import INPUT_NAME, OUTPUT_NAME, Floats, Pixels, compile_for_cpu, import_openvino
from export.run_limits import BYTES_OF_ONE_VALUE, call_limited
from export.sessions import GIVE_A_MODEL, call_library, check_model_file, open_session, signature_of

if TYPE_CHECKING:
    import onnx

Colorizer = Callable[[Pixels], Pixels]
# The operators around a bare network are of this set of operators.
_OPSET = 18
# From so many on, loops compiled by numba gain in one picture a good part of the half second that its import takes.
_LARGE_PIXELS = 4_000_000


class OnnxColorizer:
    """A picture graph in ONNX Runtime; imports no torch.

    Args:
        path: the .onnx file, or what errors call it where `content` is given.
        content: the graph, where it is no file.
        work_size: short side that the network sees, in pixels; None: what the file says.
        saturation: what its chroma is multiplied by; None: what the file says.
        provider, threads: as `export.sessions.open_session`.
    Raises:
        ConfigError: no such file, another provider name, or a choice where the graph has none.
        InputError: the file is no ONNX model, or no picture graph.
        MachineError: the provider is not there.
    Attributes:
        size: rows and columns of the only pictures that it takes; None: it takes any.
        has_choices: whether another working size and saturation can be given than what the file says.
    """

    def __init__(
        self,
        path: Path,
        content: bytes | None = None,
        *,
        work_size: int | None = None,
        saturation: float | None = None,
        provider: str = "cpu",
        threads: int = 0,
    ) -> None:
        self.path = path
        self.session = open_session(path, content, provider=provider, threads=threads)
        inputs, outputs = signature_of(self.session)
        expected = ([(IMAGE_NAME, "tensor(uint8)", 4)], [(COLORIZED_NAME, "tensor(uint8)", 4)])
        if ([each[:3] for each in inputs], [each[:3] for each in outputs]) != expected:
            why = f"has inputs {inputs} and outputs {outputs}; expected {IMAGE_NAME} and {COLORIZED_NAME}, uint8 NHWC"
            raise InputError("model", path, why, GIVE_A_MODEL)
        height, width = self.session.get_inputs()[0].shape[1:3]
        self.size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        # What is in constants of a plain graph cannot be chosen.
        self.has_choices = bool(self.session.get_overridable_initializers())
        self._chosen = _choose(work_size, saturation)
        if self._chosen and not self.has_choices:
            raise _without_choices(path)

    def __call__(self, pixels: Pixels, work_size: int | None = None) -> Pixels:
        """Colour one picture; `work_size` takes the place of what was chosen at first, where one can be."""
        feeds = {IMAGE_NAME: _as_taken(pixels, self.size), **self._chosen}
        if self.has_choices:
            feeds |= _choose(work_size, None)
        answer: Pixels = call_library(self.path, self.session.run, [COLORIZED_NAME], feeds)[0][0]
        return answer


class OpenVinoColorizer:
    """A picture graph in OpenVINO on the CPU; imports no torch. Arguments, errors and `size` as `OnnxColorizer`."""

    def __init__(
        self,
        path: Path,
        content: bytes,
        *,
        work_size: int | None = None,
        saturation: float | None = None,
        threads: int = 0,
    ) -> None:
        import onnx

        # OpenVINO takes no value for an input that has a default, so the default is what is asked for.
        model, chosen = onnx.load_model_from_string(content), _choose(work_size, saturation)
        defaults = {each.name: each for each in model.graph.initializer}
        if not chosen.keys() <= defaults.keys():
            raise _without_choices(path)
        for name, value in chosen.items():
            defaults[name].CopyFrom(onnx.numpy_helper.from_array(value, name))
        height, width = (each.dim_value for each in model.graph.input[0].type.tensor_type.shape.dim[1:3])
        self.path, self.size = path, (height, width) if height and width else None
        core = import_openvino().Core()
        # bf16, its default where the processor has it, would round what is at full size to 8 bits and less.
        settings = {"INFERENCE_NUM_THREADS": threads or usable_cores(), "INFERENCE_PRECISION_HINT": "f32"}

        def compile_model() -> Any:
            return compile_for_cpu(core, core.read_model(model.SerializeToString()), settings)

        values, self._lock = len(content) // BYTES_OF_ONE_VALUE, Lock()
        self._request: Any = call_library(path, call_limited, path, values, compile_model).create_infer_request()

    def __call__(self, pixels: Pixels) -> Pixels:
        infer = partial(self._request.infer, {IMAGE_NAME: _as_taken(pixels, self.size)}, share_inputs=True)
        limited = partial(call_limited, self.path, pixels.size, infer, stop=self._request.cancel)
        with self._lock:  # until the answer is copied from where the next one comes to lie
            answer: Pixels = np.array(call_library(self.path, limited)[COLORIZED_NAME])[0]
        return answer


def color_large_faster(usual: Colorizer, open_network: Callable[[], AskedNetwork], threads: int = 0) -> Colorizer:
    """Large pictures coloured by loops that numba compiles, where it is installed, and all others as usual.

    A picture is always coloured in the same way, and in both within a grey level of the definition.

    Args:
        open_network: is called when the first large picture comes. Where it raises InputError, since there is no
            network of ours, large ones too are coloured as usual.
        threads: for one picture; 0: one per usable core.
    """
    if find_spec("numba") is None:
        return usual

    @cache
    def open_loops() -> Colorizer:
        try:
            from export.compiled_pixels import color_pixels_compiled
        except (ImportError, RuntimeError):  # another version of numpy, or nowhere to keep what it compiles
            return usual
        try:
            network = open_network()
        except InputError:
            return usual
        return partial(color_pixels_compiled, **vars(network), threads=threads)

    def color(pixels: Pixels) -> Pixels:
        height, width, _ = pixels.shape
        return open_loops()(pixels) if height * width >= _LARGE_PIXELS else usual(pixels)

    return color


def open_inner_network(
    path: Path, content: bytes, *, work_size: int | None = None, saturation: float | None = None, threads: int = 0
) -> AskedNetwork:
    """The network of a picture graph.

    Args:
        path: what errors call it.
        work_size, saturation: None: what the graph says.
    Raises:
        InputError: it has no network that could be taken out, or does not say how that is asked.
    """
    import onnx

    from export.affine_field import take_field
    from export.picture_network import take_network

    whole = onnx.load_model_from_string(content)
    said = {each.name: onnx.numpy_helper.to_array(each).item() for each in whole.graph.initializer if not each.dims}
    if not {WORK_SIZE_NAME, SATURATION_NAME} <= said.keys():  # a graph for one size, where they are worked in
        raise InputError("model", path, "does not say how its network is asked", GIVE_A_MODEL)
    size = int(said[WORK_SIZE_NAME]) if work_size is None else work_size
    gain = float(said[SATURATION_NAME]) if saturation is None else saturation
    session = open_session(path, take_field(take_network(whole, path)).SerializeToString(), threads=threads)

    def ask(lightness: Floats) -> Floats:
        answer: Floats = call_library(path, session.run, [OUTPUT_NAME], {INPUT_NAME: lightness})[0]
        return answer

    return AskedNetwork(ask, size, gain)


def read_as_picture_graph(path: Path) -> bytes | None:
    """The picture graph that a file is or that a bare network becomes; None for one of too old operators.

    Raises:
        ConfigError, InputError: as `check_model_file`.
    """
    check_model_file(path)
    content = path.read_bytes()
    if is_picture_graph(content):
        return content
    import onnx

    from export.picture_graph import build_picture_graph

    model = onnx.load_model_from_string(content)
    return build_picture_graph(model).SerializeToString() if opset_of(model) >= _OPSET else None


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operators; 0 where a model names none."""
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)


def _as_taken(pixels: Pixels, size: tuple[int, int] | None) -> Pixels:
    """One picture as a graph takes it, (1, H, W, C); one for a single size takes no grey."""
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if size else pixels)[None]


def _without_choices(path: Path) -> ConfigError:
    why = "is a plain graph, whose working size and saturation are constants"
    return ConfigError("model", path, why, "give neither, or a colorizer.onnx that is not plain")


def _choose(work_size: int | None, saturation: float | None) -> dict[str, NDArray[Any]]:
    """Values of the inputs that have defaults; those that are None keep them."""
    given = ((WORK_SIZE_NAME, work_size, np.int64), (SATURATION_NAME, saturation, np.float32))
    return {name: np.array(value, kind) for name, value, kind in given if value is not None}
