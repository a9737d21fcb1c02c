"""How far an exported network's answers are from PyTorch's, over many picture sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from colorpress.errors import GateError

Floats = npt.NDArray[np.float32]
ArrayPredictor = Callable[[Floats], Floats]

# (N, H, W): one pixel, one row, one column, odd, prime, batches, less and more than any depth's multiple.
DEFAULT_SHAPES = (
    (1, 1, 1),
    (1, 1, 37),
    (2, 41, 1),
    (1, 3, 3),
    (1, 16, 16),
    (1, 33, 17),
    (2, 31, 64),
    (3, 97, 53),
    (1, 101, 127),
    (1, 256, 256),
)
_PEAK_TO_PEAK = 2.0  # ab/128 lies in [-1, 1]


@dataclass(frozen=True)
class ShapeParity:
    """Differences of ab/128 for one input shape; `psnr_db` is infinite where the answers are equal."""

    batch: int
    height: int
    width: int
    max_abs: float
    mean_abs: float
    psnr_db: float


@dataclass(frozen=True)
class ParityResult:
    """Every shape's differences, and whether the largest is within `atol` (None: reported, not judged)."""

    shapes: tuple[ShapeParity, ...]
    seed: int
    atol: float | None

    @property
    def max_abs(self) -> float:
        """The largest absolute difference over all shapes; NaN where an answer is not finite."""
        return float(np.max([each.max_abs for each in self.shapes]))

    @property
    def mean_abs(self) -> float:
        """The mean over shapes of the mean absolute difference."""
        return float(np.mean([each.mean_abs for each in self.shapes]))

    @property
    def passed(self) -> bool:
        """No difference exceeds `atol`; a NaN never passes."""
        return self.atol is None or self.max_abs <= self.atol

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-ready primitives; an infinite PSNR is None."""
        rows = [asdict(each) for each in self.shapes]
        for row in rows:
            row["psnr_db"] = row["psnr_db"] if math.isfinite(row["psnr_db"]) else None
        return {
            "passed": self.passed,
            "atol": self.atol,
            "max_abs": self.max_abs,
            "mean_abs": self.mean_abs,
            "seed": self.seed,
            "shapes": rows,
        }


def check_parity(
    reference: ArrayPredictor,
    candidate: ArrayPredictor,
    *,
    shapes: Sequence[tuple[int, int, int]] = DEFAULT_SHAPES,
    seed: int = 0,
    atol: float | None = 1e-4,
) -> ParityResult:
    """Compare two predictors on the same random and smooth pictures.

    Args:
        reference, candidate: float32 L (N, 1, H, W) in [0, 1] to ab (N, 2, H, W).
        shapes: the (N, H, W) to try.
        atol: largest absolute difference (ab/128) that passes; None reports without judging, as for int8.
    Raises:
        GateError: an answer has another shape than the reference's. Exceeding `atol` does not raise: see
            `require_parity`.
    """
    rng = np.random.default_rng(seed)
    return ParityResult(
        shapes=tuple(_compare(reference, candidate, _picture(rng, shape)) for shape in shapes), seed=seed, atol=atol
    )


def require_parity(result: ParityResult, subject: str) -> None:
    """Raise when a difference exceeds the tolerance.

    Raises:
        GateError: names the worst shape, its difference and the tolerance.
    """
    if result.passed:
        return
    worst = max(result.shapes, key=lambda each: math.inf if math.isnan(each.max_abs) else each.max_abs)
    raise GateError(
        "export",
        subject,
        f"answers differ from PyTorch by {worst.max_abs:.3g} at {worst.batch}x1x{worst.height}x{worst.width}, "
        f"allowed {result.atol:g}; not published",
        "raise --atol only if that difference is acceptable; otherwise report the network that shows it",
    )


def _picture(rng: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Half ramp, half noise: smooth enough to be like a photograph, rough enough to reach every weight."""
    batch, height, width = shape
    rows = np.linspace(0.0, 1.0, height)[:, None]
    columns = np.linspace(0.0, 1.0, width)[None, :]
    noise = rng.random((batch, 1, height, width))
    return (0.25 * (rows + columns) + 0.5 * noise).astype(np.float32)


def _compare(reference: ArrayPredictor, candidate: ArrayPredictor, lightness: Floats) -> ShapeParity:
    batch, _, height, width = lightness.shape
    expected, got = reference(lightness), candidate(lightness)
    if got.shape != expected.shape:
        raise GateError(
            "export",
            None,
            f"answer is {got.shape} where PyTorch's is {expected.shape}",
            "report the network that shows it",
        )
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    mean_square = float(np.mean(difference**2))
    psnr_db = math.inf if mean_square == 0.0 else 10.0 * math.log10(_PEAK_TO_PEAK**2 / mean_square)
    return ShapeParity(batch, height, width, float(difference.max()), float(difference.mean()), psnr_db)
