"""An .onnx file on every runtime of the table: those that are here run it, of the others their limits are read.

Run as `python -m export.provider_matrix` it asks one of them about files: JSON on standard input and output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
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
from export.timing import run_worker

EXECUTED, CHECKED = "executed here", "checked only"
# Height and width of what the runtimes are asked, no multiple of anything.
_SIDES = (61, 97)
_Answer = npt.NDArray[Any]
# Libraries that run on any CPU. Drivers, and what other packages bring, may end the process.
_SAFE = ("onnxruntime", "openvino")
_SECONDS_A_FILE = 60.0


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


def list_matrix(paths: Sequence[Path]) -> list[list[dict[str, Any]]]:
    """The rows of `list_providers` of several files, JSON-ready; what may end the process is run in one of its own."""
    apart = [each.name for each in RUNTIMES.values() if each.name not in _SAFE and _runs_here(each)]
    rows = {name: _ask_apart(name, paths) for name in apart}
    usual = [name for name in RUNTIMES if name not in apart]
    order = [*RUNTIMES]
    return [
        sorted(
            [*(row.to_dict() for row in list_providers(path, usual)), *(rows[name][place] for name in apart)],
            key=lambda row: order.index(row["provider"]) if row["provider"] in order else len(order),
        )
        for place, path in enumerate(paths)
    ]


def _runs_here(runtime: Runtime) -> bool:
    try:
        runtime.require()
    except MachineError:
        return False
    return ".onnx" in runtime.suffixes


def _ask_apart(name: str, paths: Sequence[Path]) -> list[dict[str, Any]]:
    """A runtime's row of each file, by a process; where that died, so does every row say."""
    job = {"runtime": name, "paths": [str(path.resolve()) for path in paths]}
    timeout_s = _SECONDS_A_FILE * (1 + len(paths))
    answer = run_worker(job, threads=1, timeout_s=timeout_s, module=sys.modules[__name__])
    if answer["status"] == "ok":
        return list(answer["rows"])
    why = f"its process ended: {answer['status']}: {answer['error']}"
    return [ProviderRow(name, RUNTIMES[name].title, EXECUTED, False, (why,)).to_dict() for _ in paths]


def list_providers(path: Path, names: Collection[str] | None = None) -> list[ProviderRow]:
    """What becomes of an .onnx file of one's own, a bare network or a picture graph, on each runtime of the table.

    A runtime that is not installed here, and whose limits are not known either, has no row.

    Args:
        names: of those that are asked; what is no runtime but has limits, such as a CUDA graph, is there all the same.
    """
    model = onnx.load(str(path))
    limits = {each.provider: each for each in check_providers(model)}
    given = {value.name: value for value in model.graph.input}
    is_picture = IMAGE_NAME in given
    sides = _read_sides(given[IMAGE_NAME], (1, 2)) if is_picture else _read_sides(given[INPUT_NAME], (2, 3))
    ask = partial(_ask_pictures if is_picture else _ask_network, sides=sides)
    expected = ask(path, "onnxruntime")
    rows = [
        _make_row(path, runtime, limits.get(runtime.name), ask, expected)
        for runtime in RUNTIMES.values()
        if path.suffix in runtime.suffixes and (names is None or runtime.name in names)
    ]
    checked = [_as_checked(each) for name, each in limits.items() if name not in RUNTIMES]
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


def main() -> None:
    """Ask the runtime that standard input names about files; prints the answer. Errors are answers too."""
    job = json.load(sys.stdin)
    name = str(job["runtime"])
    try:
        found = [{row.provider: row for row in list_providers(Path(path), [name])}[name] for path in job["paths"]]
        answer = {"status": "ok", "rows": [row.to_dict() for row in found]}
    except Exception as error:  # whatever a library raises
        answer = {"status": "error", "error": f"{type(error).__name__}: {str(error).strip()[:300]}"}
    print(json.dumps(answer, allow_nan=False), flush=True)


if __name__ == "__main__":
    main()
