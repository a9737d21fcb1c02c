"""What a search trains, as plain data: points of its space, their networks and what they cost; and best.pt, pruned.

A point is a handful of numbers that decide every channel count of a student of another shape, which learns from
scratch. Its cost follows from them in microseconds, so that one over a budget is never built.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar

from colorpress.core.errors import InputError
from compress.budgets import Limit, fits
from compress.students.student_plan import FINER_PATCHES, FINEST_AFFINE_STRIDE
from training.unet import UNetPlan

if TYPE_CHECKING:
    from optuna.trial import BaseTrial

# Vector units work on blocks of channels, and fewer than four leave nothing to learn with.
CHANNEL_BLOCK = 4
LARGEST_BASE = 128
_LARGEST_WIDTH = 512
_DEEPEST_STRIDES = (8, 16, 32, 64)
_LARGEST_STEM = 16
_MOST_STEM_STEPS = int(math.log2(FINER_PATCHES))
_LEAST_GROWTH, _MOST_GROWTH, _GROWTH_STEP = 0.5, 2.0, 0.25
_LEAST_SHARE, _SHARE_STEP = 0.5, 0.25
_MOST_CONVOLUTIONS = 2
# Channels that a pruned network keeps of each layer, in 16ths, those to be tried first ahead: each next one fills the
# widest gap. Those that keep more are larger than what a search looks for.
_KEPT_PARTS, _KEPT = 16, (4, 2, 8, 1, 6, 3, 5, 7)


@dataclass(frozen=True)
class PrunedPoint:
    """Beside the space: best.pt without a share of the channels of every layer, which learns on.

    Attributes:
        kept_channels: the share that stays; 1/16 to 1/2 in steps of 1/16.
        crops: that the network learns from.
        output_stride: the answer is at 1 / this of the size at least, a power of two.
    """

    start: ClassVar[str] = "pruned"
    kept_channels: float
    crops: int
    output_stride: int = 1

    def __post_init__(self) -> None:
        parts = self.kept_channels * _KEPT_PARTS
        if parts not in _KEPT:
            raise ValueError(f"kept_channels {self.kept_channels!r} is no 16th from 1/16 to 1/2")
        for name in ("crops", "output_stride"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"{name} {getattr(self, name)!r} is no whole number")

    def describe(self) -> str:
        """In a few words."""
        coarse = f", answering at 1/{self.output_stride}," if self.output_stride > 1 else ""
        return f"best.pt with {100 * self.kept_channels:g} % of its channels{coarse}"

    def figures(self) -> dict[str, Any]:
        """What a table says of it."""
        return {**vars(self), "start": self.start}

    def to_dict(self) -> dict[str, Any]:
        """The point as JSON-ready primitives."""
        return asdict(self)


@dataclass(frozen=True)
class StudentPoint:
    """A point of the space: a network of another shape, which learns from scratch.

    Attributes:
        output_stride: the answer is at 1 / this of the size; a power of two up to 32.
        stem_stride: side of the patches that the first convolution reads, in pixels; a power of two, at most the
            output stride and at least a quarter of it or a quarter of 16.
        deepest_stride: of the deepest level; 8, 16, 32 or 64, and at least the output stride.
        base: channels of the first level, a multiple of 4.
        growth: for each further level, its channels in those of the level above; 0.5 to 2.
        decoder_share: channels of a decoder level in those of the encoder level of the same size; 0.5 to 1.
        convolutions: 3x3 convolutions of each level, 1 or 2.
        crops: that the network learns from.
        affine: whether the answer is an affine field of lightness; false at output stride 1.
    """

    start: ClassVar[str] = "scratch"
    output_stride: int
    stem_stride: int
    deepest_stride: int
    base: int
    growth: tuple[float, ...]
    decoder_share: float
    convolutions: int
    crops: int
    affine: bool = False

    def widths(self) -> tuple[int, ...]:
        """Channels of each encoder level, finest first: multiples of 4 from 4 to 512."""
        exact = itertools.accumulate(self.growth, lambda width, growth: width * growth, initial=float(self.base))
        return tuple(_whole_blocks(width) for width in exact)

    def network(self) -> UNetPlan:
        """The channel plan of the point."""
        widths = self.widths()
        ups = _halvings(self.output_stride, self.deepest_stride)
        # The skip connections of the decoder come from the levels above the deepest one.
        mirrored = [_whole_blocks(width * self.decoder_share) for width in widths[-2 : -2 - ups : -1]]
        return UNetPlan(
            encoder=tuple((width,) * self.convolutions for width in widths),
            decoder=tuple((width,) * (1 + self.convolutions) for width in mirrored),
            upsample="nearest",
            stem_stride=self.stem_stride,
            affine=self.affine,
            residual=True,
        )

    def parameters(self) -> dict[str, Any]:
        """What `suggest` has to be told to give this point."""
        return {
            "output_stride": self.output_stride,
            "stem_steps": _halvings(self.stem_stride, _stem_at(self.output_stride, 0)),
            "deepest_stride": self.deepest_stride,
            "base_blocks": self.base // CHANNEL_BLOCK,
            "decoder_share": self.decoder_share,
            "convolutions": self.convolutions,
            **({"affine": self.affine} if self.output_stride > 1 else {}),
            **{f"growth_{level}": growth for level, growth in enumerate(self.growth, 1)},
        }

    def figures(self) -> dict[str, Any]:
        """What a table says of it."""
        return {**vars(self), "start": self.start, "widths": "-".join(map(str, self.widths()))}

    def to_dict(self) -> dict[str, Any]:
        """The point as JSON-ready primitives."""
        return {**asdict(self), "growth": list(self.growth)}


Point = StudentPoint | PrunedPoint


def read_point(values: Mapping[str, Any]) -> Point:
    """Rebuild a point from its `to_dict`'s answer.

    Raises:
        InputError: a name is missing or unknown, or a value is of another kind.
    """
    try:
        if "kept_channels" in values:
            return PrunedPoint(**values)
        point = StudentPoint(**{**values, "growth": tuple(values["growth"])})
        point.network()
    except (KeyError, TypeError, ValueError) as error:
        ways = (", ".join(each.name for each in fields(kind)) for kind in (PrunedPoint, StudentPoint))
        raise InputError("point", None, f"cannot be used: {error}", f"give {'; or '.join(ways)}") from error
    return point


def _halvings(stride: int, deeper: int) -> int:
    """How many levels lie between two strides."""
    return int(math.log2(deeper // stride))


def _stem_at(output_stride: int, steps: int) -> int:
    """The stem stride that is `steps` halvings finer than the coarsest that goes with an output stride."""
    return max(1, min(output_stride, _LARGEST_STEM) >> steps)


def _whole_blocks(width: float) -> int:
    blocks = max(1, round(width / CHANNEL_BLOCK))
    return min(CHANNEL_BLOCK * blocks, _LARGEST_WIDTH)


# Bytes of names, nodes and metadata in a packed file, by least squares over 26 exported files (opset 18), then less the
# attributes that files leave out since, and with the padding that they have since; tests/test_search_space.py says how
# near that is. Of the file, of the up-sampling of a coarse answer, of a convolution, of packing its weights, of an
# up-sampling inside, and of a level.
_FILE_BYTES, _COARSE_BYTES, _CONVOLUTION_BYTES, _PACKING_BYTES, _UP_BYTES, _LEVEL_BYTES = 1336, 2327, 302, 153, 110, 109
# Of each row and column that may be missing.
_MISSING_BYTES = 8
# And of an affine answer and of each addition in a residual block: all within 0.1 % of 14 files.
_AFFINE_BYTES, _ADDITION_BYTES = 658, 60
# Weights of fewer elements stay in float, as `compress.packing` has it.
_SMALLEST_PACKED = 64


def predict_cost(plan: UNetPlan, *, side: int) -> dict[str, int]:
    """What a network will cost, without building it.

    Args:
        plan: any channel plan whose up-sampling is not transposed.
        side: of the square picture whose multiply-accumulates are counted, in pixels.
    Returns:
        "params"; "macs" of one picture; and "size_bytes" of its ONNX file with weights in 8 bits, within a percent.
    """
    params = macs = 0
    size_bytes = _FILE_BYTES + _MISSING_BYTES * plan.size_multiple + (_COARSE_BYTES if plan.output_stride > 1 else 0)
    padded = -(-side // plan.size_multiple) * plan.size_multiple

    def add(inner: int, outer: int, kernel: int, stride: int, *, bias: bool) -> None:
        nonlocal params, macs, size_bytes
        weights = inner * outer * kernel * kernel
        # A batch norm has as many parameters as two biases.
        params += weights + (outer if bias else 2 * outer)
        macs += weights * (padded // stride) ** 2
        packed = weights >= _SMALLEST_PACKED
        size_bytes += _CONVOLUTION_BYTES + 4 * outer
        size_bytes += _PACKING_BYTES + weights + 4 * outer if packed else 4 * weights

    below, stride = 1, plan.stem_stride
    skips: list[int] = []
    for level, widths in enumerate(plan.encoder):
        stride = plan.stem_stride << level
        for place, width in enumerate(widths):
            patch = plan.stem_stride if level == place == 0 and plan.stem_stride > 1 else 3
            add(below, width, patch, stride, bias=False)
            below = width
        skips.append(below)
    skips.pop()
    for up, *behind in plan.decoder:
        # In front of the up-sampling, since the two commute.
        add(below, up, 1, stride, bias=True)
        stride //= 2
        below = skips.pop() + up
        for width in behind:
            add(below, width, 3, stride, bias=False)
            below = width
    add(below, 4 if plan.affine else 2, 1, stride, bias=True)
    size_bytes += _AFFINE_BYTES if plan.affine else 0
    if plan.residual:
        blocks = (*plan.encoder, *(behind for _, *behind in plan.decoder))
        size_bytes += _ADDITION_BYTES * sum(len(widths) - 1 for widths in blocks)
    size_bytes += _UP_BYTES * len(plan.decoder) + _LEVEL_BYTES * (len(plan.encoder) - 1)
    return {"params": params, "macs": macs, "size_bytes": size_bytes}


@dataclass(frozen=True)
class SearchSpace:
    """Which points there are of networks that learn from scratch.

    Attributes:
        output_strides: that an answer may have, finest first.
        largest_base: channels of the first level at most, a multiple of 4.
        crops: that a candidate learns from.
        side: of the square picture whose multiply-accumulates are counted, in pixels.
    """

    output_strides: tuple[int, ...]
    largest_base: int
    crops: int
    side: int

    def describe(self) -> dict[str, str]:
        """Each dimension and its values, for people."""
        return {
            "output stride": ", ".join(map(str, self.output_strides)),
            "stem stride": f"the output stride or finer, down to 1/{FINER_PATCHES} of it; at most {_LARGEST_STEM}",
            "deepest stride": ", ".join(map(str, _DEEPEST_STRIDES)),
            "channels of the first level": f"{CHANNEL_BLOCK} to {self.largest_base} in steps of {CHANNEL_BLOCK}",
            "growth from level to level": f"{_LEAST_GROWTH:g} to {_MOST_GROWTH:g} in steps of {_GROWTH_STEP:g}, each",
            "channels of the decoder": f"{_LEAST_SHARE:g} to 1 of the encoder's in steps of {_SHARE_STEP:g}",
            "convolutions of a level": f"1 to {_MOST_CONVOLUTIONS}",
            "affine field of lightness": "no or yes; no at output stride 1",
        }

    def structures(self) -> Iterator[tuple[int, int, int]]:
        """Every output, stem and deepest stride that go together."""
        for output_stride, deepest in itertools.product(self.output_strides, _DEEPEST_STRIDES):
            if deepest >= output_stride:
                for stem in dict.fromkeys(_stem_at(output_stride, steps) for steps in range(_MOST_STEM_STEPS + 1)):
                    yield output_stride, stem, deepest

    def count_points(self) -> int:
        """How many points there are; a few of them round to the same network."""
        growths = round((_MOST_GROWTH - _LEAST_GROWTH) / _GROWTH_STEP) + 1
        shares = round((1 - _LEAST_SHARE) / _SHARE_STEP) + 1
        of_a_structure = self.largest_base // CHANNEL_BLOCK * shares * _MOST_CONVOLUTIONS
        return sum(
            of_a_structure * (2 if output_stride > 1 else 1) * growths ** _halvings(stem, deepest)
            for output_stride, stem, deepest in self.structures()
        )

    def narrow_points(self) -> Iterator[StudentPoint]:
        """The narrowest point of every structure: nothing with its strides costs less."""
        for output_stride, stem, deepest in self.structures():
            growth = (_LEAST_GROWTH,) * _halvings(stem, deepest)
            yield StudentPoint(output_stride, stem, deepest, CHANNEL_BLOCK, growth, _LEAST_SHARE, 1, self.crops)

    def cost(self, point: StudentPoint) -> dict[str, int]:
        """What a point's network will cost."""
        return predict_cost(point.network(), side=self.side)

    def fitting(self, points: Iterable[StudentPoint], limits: Sequence[Limit]) -> list[StudentPoint]:
        """The points whose predicted cost is within the limits."""
        return [point for point in points if fits(limits, self.cost(point))]

    def smallest(self, measure: str) -> StudentPoint:
        """The point of least "params", "macs" or "size_bytes"."""
        return min(self.narrow_points(), key=lambda point: self.cost(point)[measure])


def make_space(output_strides: Sequence[int], limits: Sequence[Limit], *, crops: int, side: int) -> SearchSpace:
    """The space whose widest first level still fits the limits with some strides, without growth.

    Wider ones could only be refused, and would make most of a small space.
    """
    space = SearchSpace(tuple(sorted(output_strides)), CHANNEL_BLOCK, crops, side)
    for base in range(LARGEST_BASE, CHANNEL_BLOCK, -CHANNEL_BLOCK):
        flat = (replace(point, base=base, growth=(1.0,) * len(point.growth)) for point in space.narrow_points())
        if space.fitting(flat, limits):
            return replace(space, largest_base=base)
    return space


def suggest(trial: BaseTrial, space: SearchSpace) -> StudentPoint:
    """The point that a trial of an Optuna study is about."""
    output_stride = int(trial.suggest_categorical("output_stride", space.output_strides))
    # Relative to the answer's, so that what is learned at one output stride is true at another.
    stem_stride = _stem_at(output_stride, trial.suggest_int("stem_steps", 0, _MOST_STEM_STEPS))
    deepest_stride = max(output_stride, int(trial.suggest_categorical("deepest_stride", _DEEPEST_STRIDES)))
    return StudentPoint(
        output_stride=output_stride,
        stem_stride=stem_stride,
        deepest_stride=deepest_stride,
        base=CHANNEL_BLOCK * trial.suggest_int("base_blocks", 1, space.largest_base // CHANNEL_BLOCK, log=True),
        growth=tuple(
            trial.suggest_float(f"growth_{level}", _LEAST_GROWTH, _MOST_GROWTH, step=_GROWTH_STEP)
            for level in range(1, _halvings(stem_stride, deepest_stride) + 1)
        ),
        decoder_share=trial.suggest_float("decoder_share", _LEAST_SHARE, 1.0, step=_SHARE_STEP),
        convolutions=trial.suggest_int("convolutions", 1, _MOST_CONVOLUTIONS),
        crops=space.crops,
        # Between the pixels of an answer, of which the finest one has none.
        affine=output_stride > 1 and bool(trial.suggest_categorical("affine", (False, True))),
    )


def pruned_points(crops: int, output_stride: int) -> tuple[PrunedPoint, ...]:
    """Every pruned network of a stride, those to be tried first ahead: a quarter of the channels, an eighth, a half."""
    return tuple(PrunedPoint(parts / _KEPT_PARTS, crops, output_stride) for parts in _KEPT)


def ladder_points(space: SearchSpace, limits: Sequence[Limit], count: int) -> tuple[StudentPoint, ...]:
    """Points to start from: the smallest, and flat networks as evenly spaced by logarithm of size as their strides let.

    A sampler that knows nothing yet would start at random; these cover the range of sizes from the first trial on. They
    take the output strides in turn, coarsest first, and have what earlier searches found best at every size: the finest
    patches that go with their stride, one convolution a level, no decoder where the answer is at 1/8 or coarser, and
    there an affine field of lightness.
    """
    narrow = space.fitting(space.narrow_points(), limits)
    if not narrow:
        return ()
    smallest = min(narrow, key=lambda point: space.cost(point)["size_bytes"])
    bases = range(CHANNEL_BLOCK, space.largest_base + 1, CHANNEL_BLOCK)
    flat = []  # for each output stride the networks whose levels have the same width, narrowest first
    for stride in reversed(space.output_strides):
        stem, deepest = _stem_at(stride, _MOST_STEM_STEPS), max(stride, _DEEPEST_STRIDES[0])
        growth = (1.0,) * _halvings(stem, deepest)
        affine = stride >= FINEST_AFFINE_STRIDE
        points = (StudentPoint(stride, stem, deepest, base, growth, 1.0, 1, space.crops, affine) for base in bases)
        flat.append(space.fitting(points, limits))
    sizes = {point: math.log(space.cost(point)["size_bytes"]) for point in (smallest, *itertools.chain(*flat))}
    step = (max(sizes.values()) - sizes[smallest]) / max(1, count - 1)
    chosen = [smallest]
    for rung, rungs in zip(range(1, count), itertools.cycle(filter(None, flat)), strict=False):
        wanted = sizes[smallest] + step * rung
        chosen.append(min(rungs, key=lambda point: abs(sizes[point] - wanted)))
    return tuple(dict.fromkeys(chosen))
