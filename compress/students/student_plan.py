"""The plan of a student: a network of another shape than best.pt, as data one can read, edit and apply again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import without_nan, write_json
from colorpress.core.reading import read_json
from training.unet import UNetPlan

# The finest output stride of students whose answer is an affine field of lightness: at 4 it gained C 0.01, which may be
# chance, at 8 0.04.
FINEST_AFFINE_STRIDE = 8
# A student's output stride is at most so many times the side of the patches that it reads: finer patches bring more
# than wider levels.
FINER_PATCHES = 4
FORMAT = "colorpress student plan"
FORMAT_VERSION = 1
_HINT = "make a plan with `colorpress student`, or edit the channel counts in one"
_NOTE = (
    "To train another student, edit 'network': channels of each level, encoder fine to deep, decoder deep to fine, "
    "each decoder level starting with its up-sampling convolution; 'affine' true: colours follow lightness between the "
    "pixels of a coarse answer. The rest says how it was chosen and is not read."
)


@dataclass(frozen=True)
class StrideScore:
    """What best.pt's own answer is worth when it is averaged to 1 / `stride` of the size and up-sampled again.

    Attributes:
        measure: the name of the measure that decides. `kept`: by it; NaN where it cannot be told.
    """

    stride: int
    l1_delta_pct: float
    measure: str
    kept: float


@dataclass(frozen=True)
class Candidate:
    """A network that was looked at: what it costs and, where it was tried, what it kept after a short distillation.

    Attributes:
        network: its channel plan.
        params, macs: of one picture of the size that MACs are counted at.
        size_bytes, latency_ms: of its ONNX file with packed weights, and of one picture of the timed size in ONNX
            Runtime; None where no budget asked for it.
        l1_delta_pct: L1 above best.pt's on the photographs that choose, in percent; None where it was not tried.
        measure: the name of the measure that decided; empty where it was not tried.
        kept, low, high: by it, with its 95 % interval; None where it was not tried, or cannot be told.
        verdict: why it was taken or not, in words.
    """

    network: UNetPlan
    params: int
    macs: int
    size_bytes: int | None = None
    latency_ms: float | None = None
    l1_delta_pct: float | None = None
    measure: str = ""
    kept: float | None = None
    low: float | None = None
    high: float | None = None
    verdict: str = ""


@dataclass(frozen=True)
class StudentPlan:
    """The student's network, and what led to it.

    Attributes:
        network: the channel plan that is trained.
        reason: why this one, in a sentence.
        strides: the oracle that chose the output stride.
        candidates: what was looked at, smallest first.
        control: the score of the same network trained as briefly without a teacher, the fields of `Score`; empty where
            none was, as where best.pt's answers alone teach.
        settings: the options that led to the plan.
    """

    network: UNetPlan
    reason: str
    strides: tuple[StrideScore, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    control: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-ready primitives."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "note": _NOTE,
            "reason": self.reason,
            "network": self.network.to_dict(),
            "output_stride": self.network.output_stride,
            "strides": [without_nan(asdict(each)) for each in self.strides],
            "candidates": [{**vars(each), "network": each.network.to_dict()} for each in self.candidates],
            "control_without_teacher": dict(self.control),
            "settings": dict(self.settings),
        }


def write_student_plan(path: Path, plan: StudentPlan) -> Path:
    """Write a plan as JSON, atomically."""
    return write_json(path, plan.to_dict())


def is_student_plan(path: Path) -> bool:
    """Whether a file says that it is a student plan."""
    try:
        return bool(read_json(path, "plan", _HINT).get("format") == FORMAT)
    except (ConfigError, InputError, AttributeError):
        return False


def list_students(folder: Path) -> tuple[str, ...]:
    """Names of the students in a run folder, in alphabetical order."""
    return tuple(plan.parent.name for plan in sorted(folder.glob("*/plan.json")) if is_student_plan(plan))


def read_student_network(path: Path) -> UNetPlan:
    """The network of a plan that `write_student_plan` wrote and perhaps somebody edited.

    Raises:
        ConfigError: there is no such file.
        InputError: it is not JSON, no student plan, newer than this program, or its channel counts cannot be.
    """
    values = read_json(path, "student plan", _HINT)
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise InputError("student plan", path, "is something else than a student plan", _HINT)
    version, network = values.get("format_version"), values.get("network")
    if type(version) is not int or version > FORMAT_VERSION:
        raise InputError(
            "student plan", path, f"format {version!r} is newer than {FORMAT_VERSION}", "update colorpress"
        )
    if not isinstance(network, dict):
        raise InputError("student plan", path, "holds no 'network'", _HINT)
    try:
        return UNetPlan.from_dict(network)
    except InputError as error:
        raise InputError("student plan", path, error.why, error.hint) from error
