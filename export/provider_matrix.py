"""An .onnx file on every runtime of the table: those that are here run it, of the others their limits are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from colorpress.core.errors import ColorpressError, MachineError
from colorpress.core.text import align_cells
from export.picture_contract import IMAGE_NAME
from export.predictors import INPUT_NAME
from export.provider_limits import LimitsCheck, check_providers
from export.runtimes import RUNTIMES, Runtime, open_colorizer, open_predictor

EXECUTED, CHECKED = "executed here", "checked only"
# Height and width of what the runtimes are asked, no multiple of anything.
_SIDES = (61, 97)
_Answer = npt.NDArray[Any]


@dataclass(frozen=True)
class ProviderRow:
    """A file and one provider.

    Attributes:
        provider, title: the key of RUNTIMES, or of LIMITS, and its name for people.
        how: EXECUTED or CHECKED.
        takes: it ran, or, where it was only checked, nothing speaks against it.
        why: what speaks against it; where it was run and failed, the error first.
        max_difference: from ONNX Runtime's CPU where it was run: of ab/128, or in grey levels of a picture graph.
        limits: what was read in the file; None where no limits of this runtime are known.
    """

    provider: str
    title: str
    how: str
    takes: bool
    why: tuple[str, ...] = ()
    max_difference: float | None = None
    limits: LimitsCheck | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


def list_providers(path: Path) -> list[ProviderRow]:
    """What becomes of an .onnx file of one's own, a bare network or a picture graph, on each runtime of the table.

    A runtime that is not installed here, and whose limits are not known either, has no row.
    """
    model = onnx.load(str(path))
    limits = {each.provider: each for each in check_providers(model)}
    given = {value.name: value for value in model.graph.input}
    is_picture = IMAGE_NAME in given
    sides = _read_sides(given[IMAGE_NAME], (1, 2)) if is_picture else _read_sides(given[INPUT_NAME], (2, 3))
    ask = partial(_ask_pictures if is_picture else _ask_network, sides=sides)
    expected = ask(path, "onnxruntime")
    rows = [
        _make_row(path, runtime, limits.pop(runtime.name, None), ask, expected)
        for runtime in RUNTIMES.values()
        if path.suffix in runtime.suffixes
    ]
    checked = [_as_checked(each) for each in limits.values()]  # those that are no runtime, such as a CUDA graph
    return [row for row in (*rows, *checked) if row is not None]


def format_matrix(matrix: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """The rows of several files, as `to_dict` has them, by the files' names, as lines."""
    header = ("file", "provider", "how", "takes it", "difference", "copies", "what speaks against it")
    rows = [
        (name, row["title"], row["how"], "yes" if row["takes"] else "no",
         "" if row["max_difference"] is None else f"{row['max_difference']:.2g}",
         str(row["limits"]["copies"]) if row["limits"] else "", "; ".join(row["why"]))
        for name, rows in matrix.items()
        for row in rows
    ]  # fmt: skip
    return [line.rstrip() for line in align_cells([header, *rows], to_left=True)]


def _make_row(
    path: Path, runtime: Runtime, limits: LimitsCheck | None, ask: Callable[[Path, str], _Answer], expected: _Answer
) -> ProviderRow | None:
    why = limits.why if limits else ()
    try:
        runtime.require()
    except MachineError:
        return _as_checked(limits) if limits else None
    try:
        answer = ask(path, runtime.name)
    except ColorpressError as error:
        return ProviderRow(runtime.name, runtime.title, EXECUTED, False, (error.why, *why), None, limits)
    difference = float(np.abs(answer.astype(np.float64) - expected).max())
    finite = difference if np.isfinite(difference) else None
    return ProviderRow(runtime.name, runtime.title, EXECUTED, finite is not None, why, finite, limits)


def _as_checked(limits: LimitsCheck) -> ProviderRow:
    return ProviderRow(limits.provider, limits.title, CHECKED, limits.takes, limits.why, None, limits)


def _read_sides(value: onnx.ValueInfoProto, axes: tuple[int, int]) -> tuple[int, ...]:
    """Height and width of what a file is asked: its own, where it takes one size alone."""
    shape = value.type.tensor_type.shape.dim
    return tuple(shape[axis].dim_value or side for axis, side in zip(axes, _SIDES, strict=True))


def _ask_network(path: Path, runtime: str, *, sides: tuple[int, ...]) -> _Answer:
    lightness = np.random.default_rng(0).random((1, 1, *sides), dtype=np.float32)
    return open_predictor(path, runtime=runtime, device=_device_of(runtime), threads=1)(lightness)


def _ask_pictures(path: Path, runtime: str, *, sides: tuple[int, ...]) -> _Answer:
    pixels = np.random.default_rng(0).integers(0, 256, (*sides, 3), dtype=np.uint8)
    return open_colorizer(path, runtime=runtime, device=_device_of(runtime), threads=1)(pixels)


def _device_of(runtime: str) -> str:
    """The CPU also where there is a GPU, but for what runs on a GPU alone."""
    return "auto" if RUNTIMES[runtime].needs_gpu else "cpu"
