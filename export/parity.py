"""How far an exported network's answers, and a picture graph's pixels, are from PyTorch's over many sizes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from colorpress.core.errors import GateError
from export.predictors import Floats, Pixels, Predictor

# Pixels uint8 (H, W, C) and the working size to pixels uint8 (H, W, 3).
SizedColorizer = Callable[[Pixels, int], Pixels]

# (N, H, W): one pixel, one row, one column, odd, prime, batches, less and more than any depth's multiple.
DEFAULT_SHAPES = (
    *((1, 1, 1), (1, 1, 37), (2, 41, 1), (1, 3, 3), (1, 16, 16)),
    *((1, 33, 17), (2, 31, 64), (3, 97, 53), (1, 101, 127), (1, 256, 256)),
)
_SIDES = (1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 32, 33, 61, 64, 97, 127, 128, 131, 193, 255, 256, 257, 307, 401, 509, 513)
_MATRIX_SHAPES = 208
_PEAK_TO_PEAK = 2.0  # ab/128 lies in [-1, 1]
# Of L in [0, 1]: sums in another order change it by as much.
_ROUNDING = 2.0**-22
# (height, width, channels, working size): as above, with pictures that are averaged down by 1, 2 and more.
DRAWN_PICTURES = (
    *((1, 1, 3, 16), (1, 1, 1, 16), (1, 37, 3, 16), (41, 1, 1, 16), (3, 3, 3, 16)),
    *((97, 53, 3, 64), (101, 127, 1, 32), (131, 517, 3, 32), (257, 300, 1, 24)),
)
_MOST_LEVELS = 1
REPORT = "report the network that shows it"


@dataclass(frozen=True)
class ShapeParity:
    """Differences of ab/128 for one input shape; `psnr_db` is None where the answers are equal."""

    batch: int
    height: int
    width: int
    max_abs: float
    mean_abs: float
    p999_abs: float
    psnr_db: float | None


@dataclass(frozen=True)
class ParityResult:
    """Every shape's differences, and whether the largest is within `atol` (None: reported, not judged).

    Attributes:
        undecided: shapes that say nothing, see `check_parity`; they are not among the others.
    """

    shapes: tuple[ShapeParity, ...]
    atol: float | None
    undecided: tuple[ShapeParity, ...] = ()

    def describe(self) -> str:
        """In a few words, such as "within 1.2e-07 of PyTorch at 11 sizes"."""
        told = f"within {self.max_abs:.1e} of PyTorch at {len(self.shapes)} sizes"
        sizes = ", ".join(f"{each.height} x {each.width}" for each in self.undecided)
        return f"{told}; not compared at {sizes}, where PyTorch's own answer is of rounding alone" if sizes else told

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


def check_parity(
    reference: Predictor,
    candidate: Predictor,
    *,
    shapes: Sequence[tuple[int, int, int]] = DEFAULT_SHAPES,
    seed: int = 0,
    atol: float | None = 1e-4,
) -> ParityResult:
    """Compare two predictors on the same random and smooth pictures.

    Where the answers differ by more than `atol`, and those of the reference itself to a picture that differs by
    rounding alone do too, there is nothing to compare: a norm over the places of a picture that is one value all over
    makes an answer of the rounding of that value.

    Args:
        reference, candidate: float32 L (N, 1, H, W) in [0, 1] to ab (N, 2, H, W).
        shapes: the (N, H, W) to try.
        atol: largest absolute difference (ab/128) that passes; None reports without judging, as for int8.
    Raises:
        GateError: an answer has another shape than the reference's. Exceeding `atol` does not raise: see
            `require_parity`.
    """
    rng = np.random.default_rng(seed)
    decided: list[ShapeParity] = []
    undecided: list[ShapeParity] = []
    for shape in shapes:
        found = _compare(reference, candidate, lightness := _picture(rng, shape))
        differs = atol is not None and atol < found.max_abs < math.inf
        is_rounding = differs and _move_by_rounding(reference, lightness) > (atol or 0.0)
        (undecided if is_rounding else decided).append(found)
    # What holds for all shapes is no exception.
    return ParityResult(tuple(decided), atol, tuple(undecided)) if decided else ParityResult(tuple(undecided), atol)


def _move_by_rounding(predictor: Predictor, lightness: Floats) -> float:
    """How far the answers move at most where lightness moves by rounding alone."""
    answer = predictor(lightness).astype(np.float64)
    moved = (np.clip(lightness + shift, 0.0, 1.0).astype(np.float32) for shift in (-_ROUNDING, _ROUNDING))
    return max(float(np.abs(predictor(each) - answer).max()) for each in moved)


def matrix_shapes() -> tuple[tuple[int, int, int], ...]:
    """(N, H, W) of a thorough check: sides of 1 to 513 pixels, primes and extreme aspects among them, batches 1 to 8.

    Every side occurs as height and as width; pictures of more than a quarter of a megapixel come alone.
    """
    rng = np.random.default_rng(0)
    shapes: dict[tuple[int, int, int], None] = {}
    turn = 0
    while len(shapes) < _MATRIX_SHAPES:
        side, other, batch = _SIDES[turn % len(_SIDES)], int(rng.choice(_SIDES)), 1 + turn % 8
        height, width = (side, other) if turn // len(_SIDES) % 2 else (other, side)
        shapes[batch if batch * height * width <= 1 << 18 else 1, height, width] = None
        turn += 1
    return tuple(shapes)


def require_parity(result: ParityResult, subject: str) -> ParityResult:
    """The result itself.

    Raises:
        GateError: a difference exceeds the tolerance; names the worst shape.
    """
    if not result.passed:
        worst = max(result.shapes, key=lambda each: math.inf if math.isnan(each.max_abs) else each.max_abs)
        where = f"{worst.batch}x1x{worst.height}x{worst.width}"
        why = f"answers differ from PyTorch by {worst.max_abs:.3g} at {where}, allowed {result.atol:g}; not published"
        hint = f"raise --atol only if that difference is acceptable; otherwise {REPORT}"
        raise GateError("export", subject, why, hint)
    return result


def _picture(rng: np.random.Generator, shape: tuple[int, int, int]) -> Floats:
    """Half ramp, half noise: smooth enough to be like a photograph, rough enough to reach every weight."""
    batch, height, width = shape
    rows = np.linspace(0.0, 1.0, height)[:, None]
    columns = np.linspace(0.0, 1.0, width)[None, :]
    noise = rng.random((batch, 1, height, width))
    return (0.25 * (rows + columns) + 0.5 * noise).astype(np.float32)


def _compare(reference: Predictor, candidate: Predictor, lightness: Floats) -> ShapeParity:
    batch, _, height, width = lightness.shape
    expected, got = reference(lightness), candidate(lightness)  # (N, 2, H, W)
    _require_same_shape(expected, got)
    difference = np.abs(got.astype(np.float64) - expected.astype(np.float64))
    psnr_db = _psnr_db(float(np.mean(difference**2)), _PEAK_TO_PEAK)
    p999 = float(np.quantile(difference, 0.999))
    return ShapeParity(batch, height, width, float(difference.max()), float(difference.mean()), p999, psnr_db)


def _require_same_shape(expected: npt.NDArray[Any], got: npt.NDArray[Any]) -> None:
    if got.shape != expected.shape:
        raise GateError("export", None, f"answer is {got.shape} where the reference's is {expected.shape}", REPORT)


def _psnr_db(mean_square: float, peak: float) -> float | None:
    """None where nothing differs, or an answer is not finite."""
    return 10.0 * math.log10(peak**2 / mean_square) if 0.0 < mean_square < math.inf else None


@dataclass(frozen=True)
class PictureParity:
    """Differences of pixels in grey levels, 0 ... 255, over all pictures; `psnr_db` is None for equal ones."""

    pictures: int
    max_levels: int
    mean_levels: float
    p999_levels: float
    psnr_db: float | None


def check_picture_parity(
    reference: SizedColorizer,
    candidate: SizedColorizer,
    *,
    photographs: Sequence[Pixels] = (),
    work_size: int = 256,
    drawn: Sequence[tuple[int, int, int, int]] = DRAWN_PICTURES,
) -> PictureParity:
    """Compare two ways to colour pictures on drawn ones and on photographs.

    Args:
        drawn: height, width, channels and working size of each picture that is drawn.
        photographs: uint8 (H, W, 3) or (H, W, 1), coloured at `work_size`.
    Raises:
        GateError: an answer has another shape than the reference's.
    """
    rng = np.random.default_rng(0)
    cases = [(_draw(rng, *size[:3]), size[3]) for size in drawn] + [(each, work_size) for each in photographs]
    counts = np.zeros(256, np.int64)
    for pixels, size in cases:
        expected, got = reference(pixels, size), candidate(pixels, size)
        _require_same_shape(expected, got)
        counts += np.bincount(np.abs(got.astype(np.int16) - expected).ravel(), minlength=256)
    levels, total = np.arange(256), counts.sum()
    return PictureParity(
        pictures=len(cases),
        max_levels=int(levels[counts > 0].max()),
        mean_levels=float((counts * levels).sum() / total),
        p999_levels=float(np.searchsorted(np.cumsum(counts), 0.999 * total)),
        psnr_db=_psnr_db(float((counts * levels**2).sum() / total), 255.0),
    )


def require_picture_parity(result: PictureParity, subject: str) -> PictureParity:
    """The result itself.

    Raises:
        GateError: a pixel differs by more than a grey level.
    """
    if result.max_levels > _MOST_LEVELS:
        why = f"a pixel differs by {result.max_levels} grey levels from the reference, allowed {_MOST_LEVELS}"
        raise GateError("export", subject, f"{why}; not published", REPORT)
    return result


def _draw(rng: np.random.Generator, height: int, width: int, channels: int) -> Pixels:
    """From black to white along the diagonal, in three tones, with noise; every level occurs in a large picture."""
    ramp = np.linspace(0.0, 255.0, height)[:, None] / 2 + np.linspace(0.0, 255.0, width)[None, :] / 2
    tones = np.array([1.0, 0.9, 0.75])[:channels]
    noise = rng.uniform(-24.0, 24.0, (height, width, channels))
    drawn: Pixels = np.clip(np.rint(ramp[..., None] * tones + noise), 0, 255).astype(np.uint8)
    return drawn
