"""Picture graphs as functions on pixels, one class a library: uint8 (H, W, 3) sRGB or (H, W, 1) grey to (H, W, 3).

`runtimes` opens whatever file it is: a bare network has the picture work put around it in the graph, a checkpoint in
torch. All are for files of one's own, as in `predictors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from colorpress.core.cores import usable_cores
from colorpress.core.errors import InputError
from export.picture_graph import (
    COLORIZED_NAME,
    IMAGE_NAME,
    SATURATION_NAME,
    WORK_SIZE_NAME,
    build_picture_graph,
)
from export.predictors import import_openvino
from export.sessions import GIVE_A_MODEL, check_model_file, first_line, open_session, signature_of

Pixels = NDArray[np.uint8]
Colorizer = Callable[[Pixels], Pixels]
# For demonstration; its card lies beside it.
DEMONSTRATION_MODEL = Path(__file__).with_name("pretrained") / "colorizer.onnx"
# The operators around a bare network are of this set of operators.
_OPSET = 18


class OnnxColorizer:
    """A picture graph in ONNX Runtime; imports no torch.

    Args:
        path: the .onnx file, or what errors call it where `content` is given.
        content: the graph, where it is no file.
        work_size: short side that the network sees, in pixels; None: what the file says.
        saturation: what its chroma is multiplied by; None: what the file says.
        provider, threads: as `export.sessions.open_session`.
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
        if content is None:
            check_model_file(path)
        # OpenVINO takes no value for an input that has a default, so the default is what is asked for.
        model = onnx.load(str(path)) if content is None else onnx.load_model_from_string(content)
        _set_defaults_(model, _choose(work_size, saturation))
        self.path = path
        core = import_openvino().Core()
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


def read_as_picture_graph(path: Path) -> bytes | None:
    """The picture graph that a file is or that a bare network becomes; None for one of too old operators.

    Raises:
        ConfigError, InputError: as `check_model_file`.
    """
    check_model_file(path)
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
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
