"""Models as functions on pixels: uint8 (H, W, 3) sRGB or (H, W, 1) grey to uint8 (H, W, 3) sRGB.

Whatever the file is, the picture work is the same: inside the graph where it is a picture graph, put around it where
it is a bare network, and in torch for a checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from colorpress.core.config import ArchConfig
from colorpress.core.cores import usable_cores
from colorpress.core.errors import InputError, MachineError
from export.picture_graph import (
    COLORIZED_NAME,
    DEFAULT_WORK_SIZE,
    IMAGE_NAME,
    SATURATION_NAME,
    WORK_SIZE_NAME,
    build_picture_graph,
)
from export.predictors import (
    GIVE_A_MODEL,
    check_model_file,
    first_line,
    on_device,
    open_predictor,
    open_session,
    signature_of,
)

if TYPE_CHECKING:
    import onnx

Pixels = NDArray[np.uint8]
Colorizer = Callable[[Pixels], Pixels]
# For demonstration; its card lies beside it.
DEMONSTRATION_MODEL = Path(__file__).with_name("pretrained") / "colorizer.onnx"
# The operators around a bare network are of this set of operators.
_OPSET = 18


class OnnxColorizer:
    """A picture graph in ONNX Runtime; imports no torch.

    For files of one's own: a crafted file can end the process. `open_colorizer` looks at a file in a child first.

    Args:
        path: the .onnx file, or what errors call it where `content` is given.
        content: the graph, where it is no file.
        work_size: short side that the network sees, in pixels; None: what the file says.
        saturation: what its chroma is multiplied by; None: what the file says.
        provider, threads: as `export.predictors.OnnxPredictor`.
    Raises:
        ConfigError: no such file, or another provider name.
        InputError: the file is no ONNX model, or no picture graph.
        MachineError: CUDA is not there.
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
        if content is None:
            check_model_file(path)
        self.path = path
        self.session = open_session(path, content, provider=provider, threads=threads)
        inputs, outputs = signature_of(self.session)
        expected = ([(IMAGE_NAME, "tensor(uint8)", 4)], [(COLORIZED_NAME, "tensor(uint8)", 4)])
        if ([each[:3] for each in inputs], [each[:3] for each in outputs]) != expected:
            why = f"has inputs {inputs} and outputs {outputs}; expected {IMAGE_NAME} and {COLORIZED_NAME}, uint8 NHWC"
            raise InputError("model", path, why, GIVE_A_MODEL)
        self._chosen = _choose(work_size, saturation)

    def __call__(self, pixels: Pixels, work_size: int | None = None) -> Pixels:
        """Colour one picture; `work_size` takes the place of what was chosen at first."""
        feeds = {IMAGE_NAME: pixels[None], **self._chosen, **_choose(work_size, None)}
        try:
            answer: Pixels = self.session.run([COLORIZED_NAME], feeds)[0]
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise InputError("model", self.path, first_line(error), GIVE_A_MODEL) from error
        first: Pixels = answer[0]
        return first


class OpenVinoColorizer:
    """A picture graph in OpenVINO on the CPU; imports no torch. Arguments and errors as `OnnxColorizer`."""

    def __init__(
        self,
        path: Path,
        content: bytes | None = None,
        *,
        work_size: int | None = None,
        saturation: float | None = None,
        threads: int = 0,
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            hint = "install it: pip install openvino, or colorpress with its extra [openvino]"
            raise MachineError("runtime", "openvino", "is not installed", hint) from error
        import onnx

        if content is None:
            check_model_file(path)
        # OpenVINO takes no value for an input that has a default, so the default is what is asked for.
        model = onnx.load(str(path)) if content is None else onnx.load_model_from_string(content)
        _set_defaults_(model, _choose(work_size, saturation))
        self.path = path
        core = openvino.Core()
        # bf16, its default where the processor has it, would round what is at full size to 8 bits and less.
        settings = {"INFERENCE_NUM_THREADS": threads or usable_cores(), "INFERENCE_PRECISION_HINT": "f32"}
        try:
            compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
        except Exception as error:  # OpenVINO's errors share no base class
            raise InputError("model", path, first_line(error), GIVE_A_MODEL) from error
        self._request: Any = compiled.create_infer_request()

    def __call__(self, pixels: Pixels) -> Pixels:
        try:
            answer = np.array(self._request.infer({IMAGE_NAME: pixels[None]}, share_inputs=True)[COLORIZED_NAME])
        except Exception as error:
            raise InputError("model", self.path, first_line(error), GIVE_A_MODEL) from error
        first: Pixels = answer[0]
        return first


def open_colorizer(
    path: Path,
    *,
    work_size: int | None = None,
    saturation: float | None = None,
    arch: ArchConfig | None = None,
    device: str = "cpu",
    threads: int = 0,
    runtime: str = "onnxruntime",
    trusted: bool = False,
) -> Colorizer:
    """Open anything that colorpress wrote to colour pictures with: a picture graph, a bare network or a checkpoint.

    Args:
        work_size: short side that the network sees, in pixels, smaller pictures are not enlarged; None: what a picture
            graph says, 256 else.
        saturation: what the network's chroma is multiplied by; None: what a picture graph says, 1 else.
        arch, device, threads, runtime, trusted: as `export.predictors.open_predictor`.
    Raises:
        ConfigError, InputError, MachineError: as `open_predictor`.
    """
    if path.suffix == ".onnx":
        check_model_file(path)
        if not trusted:
            from export.onnx_probe import inspect_onnx

            inspect_onnx(path)
        content = _as_picture_graph(path)
        if content is not None and runtime == "openvino":
            return OpenVinoColorizer(path, content, work_size=work_size, saturation=saturation, threads=threads)
        if content is not None:
            chosen = partial(OnnxColorizer, path, content, work_size=work_size, saturation=saturation, threads=threads)
            return on_device(lambda provider: chosen(provider=provider), device)
    predictor = open_predictor(path, arch=arch, device=device, threads=threads, runtime=runtime, trusted=True)
    from export.picture_reference import color_pixels

    size, gain = work_size or DEFAULT_WORK_SIZE, 1.0 if saturation is None else saturation
    return lambda pixels: color_pixels(pixels, predictor, work_size=size, saturation=gain)


def _as_picture_graph(path: Path) -> bytes | None:
    """The picture graph that a file is or that a bare network becomes; None for one of too old operators."""
    import onnx

    content = path.read_bytes()
    model = onnx.load_model_from_string(content)
    if any(value.name == IMAGE_NAME for value in model.graph.input):
        return content
    opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    return build_picture_graph(model).SerializeToString() if opset >= _OPSET else None


def _choose(work_size: int | None, saturation: float | None) -> dict[str, NDArray[Any]]:
    """Values of the inputs that have defaults; those that are None keep them."""
    given = {
        WORK_SIZE_NAME: None if work_size is None else np.array(work_size, np.int64),
        SATURATION_NAME: None if saturation is None else np.array(saturation, np.float32),
    }
    return {name: value for name, value in given.items() if value is not None}


def _set_defaults_(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> None:
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
