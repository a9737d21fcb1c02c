"""Networks in the formats of phones, on the CPU of this machine: LiteRT's .tflite and ExecuTorch's .pte.

`mobile_files` writes them: one picture at a time, whose sides are multiples of some number and no longer than another.
Other pictures are padded here as the network pads them and the answer is cropped; larger ones are averaged down first.
All are for files of one's own, as in `predictors`.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from colorpress.core.cores import usable_cores
from colorpress.core.errors import InputError
from export.predictors import INPUT_NAME, OUTPUT_NAME, Floats, TimedPredictor, import_extra
from export.run_limits import call_limited
from export.sessions import call_library, check_model_file

MOBILE_SUFFIXES = (".tflite", ".pte")
# In front of the description, which both formats keep as it is: reading it takes neither library.
_MARK = b"colorpress-mobile:"
_HINT = "give a file written by `colorpress export --to`"


@dataclass(frozen=True)
class MobileDescription:
    """What a .tflite or .pte file says of itself.

    Attributes:
        precision: "fp32" or "int8", of its weights.
        size_multiple: height and width of what it reads are multiples of this, in pixels.
        longest_side: and no more than this; the same as `size_multiple` where it reads one size alone.
        checkpoint_sha256: of the checkpoint that it was made of.
    """

    precision: str
    size_multiple: int
    longest_side: int
    checkpoint_sha256: str

    def to_bytes(self) -> bytes:
        """As it stands in the file."""
        return _MARK + json.dumps({"input": INPUT_NAME, "output": OUTPUT_NAME, **asdict(self)}).encode() + b"\0"


def read_description(path: Path) -> MobileDescription:
    """What a file says of itself.

    Raises:
        ConfigError: no such file.
        InputError: it says nothing, so it is not of colorpress.
    """
    check_model_file(path)
    _, mark, rest = path.read_bytes().partition(_MARK)
    with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
        said = json.loads(rest.partition(b"\0")[0]) if mark else {}
        multiple, longest = int(said["size_multiple"]), int(said["longest_side"])
        if 1 <= multiple <= longest <= 1 << 16:
            return MobileDescription(str(said["precision"]), multiple, longest, str(said["checkpoint_sha256"]))
    raise InputError("model", path, "does not say what it reads", _HINT)


class MobilePredictor(TimedPredictor):
    """A file of a phone's format: pads and crops around `_infer`, and takes a batch picture by picture.

    Args:
        path: a file written by `mobile_files`.
        threads: CPU threads; 0: one per usable core.
    Raises:
        ConfigError: no such file.
        InputError: it is damaged, or not one of `mobile_files`.
        MachineError: the library is not installed.
    """

    def __init__(self, path: Path, *, threads: int = 0) -> None:
        self.path, self._description, self._lock = path, read_description(path), Lock()
        call_library(path, self._load, threads or usable_cores())

    def __call__(self, lightness: Floats) -> Floats:
        height, width = lightness.shape[-2:]
        multiple, longest = self._description.size_multiple, self._description.longest_side
        scale = min(1.0, longest // multiple * multiple / max(height, width))
        inner = max(1, int(height * scale)), max(1, int(width * scale))
        seen = lightness if scale == 1.0 else resize_area(lightness, inner)
        missing = ((0, 0), (0, 0), (0, -inner[0] % multiple), (0, -inner[1] % multiple))
        padded = np.ascontiguousarray(np.pad(seen, missing, mode="edge"))
        infer = partial(call_limited, self.path, padded.size, self._infer)
        with self._lock:  # neither library has place for more than one picture
            answer = np.concatenate([call_library(self.path, infer, padded[[index]]) for index in range(len(padded))])
        if answer.shape != (len(padded), 2, *padded.shape[2:]):
            raise InputError("model", self.path, f"answers {answer.shape} to {padded.shape}", _HINT)
        answer = answer[..., : inner[0], : inner[1]]
        return np.ascontiguousarray(answer if scale == 1.0 else resize_area(answer, (height, width)), np.float32)

    @abstractmethod
    def _load(self, threads: int) -> None:
        """Open `path`."""

    @abstractmethod
    def _infer(self, lightness: Floats) -> Floats:
        """L (1, 1, H, W) of whole multiples to ab (1, 2, H, W)."""


class LiteRtPredictor(MobilePredictor):
    """A .tflite file in LiteRT; imports no torch."""

    def _load(self, threads: int) -> None:
        litert = import_litert()
        self.provider = f"LiteRT {litert.__version__}"
        if self._description.size_multiple == (side := self._description.longest_side):
            self.provider += f", {side} x {side} at most"
        # From memory, since its own opening of a path wants UTF-8.
        self._interpreter = litert.interpreter.Interpreter(model_content=self.path.read_bytes(), num_threads=threads)
        self._input, self._output = (
            part[0]["index"] for part in (self._interpreter.get_input_details(), self._interpreter.get_output_details())
        )
        self._interpreter.allocate_tensors()

    def _infer(self, lightness: Floats) -> Floats:
        self._interpreter.set_tensor(self._input, lightness)
        self._interpreter.invoke()
        answer: Floats = self._interpreter.get_tensor(self._output)
        return answer


class ExecuTorchPredictor(MobilePredictor):
    """A .pte file in ExecuTorch, which needs torch for its arrays."""

    def _load(self, threads: int) -> None:
        executorch, pool = import_executorch()
        from torch import from_numpy

        self._tensor_of = from_numpy
        self.provider = "ExecuTorch XNNPACK"
        if pool._threadpool_get_thread_count() != threads:  # one pool for the process
            pool._unsafe_reset_threadpool(threads)
        # All are kept, since none keeps what it was made of.
        self._content = self.path.read_bytes()
        self._program = executorch.Runtime.get().load_program(self._content)
        self._method = self._program.load_method("forward")

    def _infer(self, lightness: Floats) -> Floats:
        # The answer lies in memory that the next call writes to.
        answer: Floats = self._method.execute([self._tensor_of(lightness)])[0].numpy().copy()
        return answer


def resize_area(values: Floats, size: tuple[int, int]) -> Floats:
    """(N, C, H, W) to (N, C, *size), as `training.input_sizes.resize`, which is of torch."""
    rows, columns = (_triangles(length, new) for length, new in zip(values.shape[-2:], size, strict=True))
    return (rows @ values @ columns.T).astype(np.float32)


def _triangles(length: int, new: int) -> Floats:
    step = length / new
    distance = ((np.arange(new) + 0.5) * step - 0.5)[:, None] - np.arange(length)
    near = np.maximum(1.0 - np.abs(distance) / max(step, 1.0), 0.0)
    weights: Floats = (near / near.sum(axis=1, keepdims=True)).astype(np.float32)
    return weights


def import_litert() -> Any:
    """The module `ai_edge_litert`, with its interpreter; raises as `import_extra`."""
    return import_extra("litert", "ai-edge-litert", "ai_edge_litert", "ai_edge_litert.interpreter")[0]


def import_executorch() -> tuple[Any, Any]:
    """The modules `executorch.runtime` and that of its threads; raises as `import_extra`."""
    pool, runtime = "executorch.extension.pybindings.portable_lib", "executorch.runtime"
    threads, executorch = import_extra("executorch", "executorch", pool, runtime)
    return executorch, threads
