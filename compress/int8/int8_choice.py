"""Static int8 for an ONNX file, each choice made by how near its answers are to the float file's.

Ranges, equalized channels, training while rounded, and what stays in float.
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import accumulate, product
from operator import attrgetter
from pathlib import Path
from typing import Any

import onnx

from colorpress.core.config import QuantizeConfig
from colorpress.core.console import Progress, progress, say
from colorpress.core.cores import cpu_flags
from colorpress.core.errors import InputError
from compress.derived_onnx import load_float_model, write_derived
from compress.int8.calibration import ActivationHistogram, Floats, hash_pictures, observe_activations
from compress.int8.graph_network import GraphNetwork
from compress.int8.int8_graph import (
    Range,
    choose_layers,
    insert_qdq,
    nodes_to_quantize,
    spread_ranges,
    tensors_to_observe,
    values_inside_convolutions,
    values_moved,
    weight_sizes,
)
from compress.int8.int8_tuning import PERCENTILES, USUAL_PERCENTILE, choose_ranges, equalize_channels
from compress.measures import Score
from training.device import torch_threads

# Photographs that ranges are chosen on one by one, and the side that is seen of them, in pixels: a few minutes of even
# a large network.
_RANGE_PICTURES, _RANGE_SIDE = 8, 128


@dataclass(frozen=True)
class Judge:
    """What decides between ways to quantize.

    Attributes:
        scoring: the score of a candidate file, given as its bytes, and the L1 (ab/128) of its answers to those of its
            float parent, on other photographs than ranges are from.
        is_enough: whether a file of such a score need not be made better.
        tuning: trains weights and ranges of the first network in place, while they are rounded, to answer what the
            second one does, its float parent; None: nothing is trained.
    """

    scoring: Callable[[bytes], tuple[Score, float]]
    is_enough: Callable[[Score], bool]
    tuning: Callable[[GraphNetwork, GraphNetwork], None] | None = None


@dataclass(frozen=True)
class Int8Way:
    """One way to quantize a graph.

    Attributes:
        percentile: percent of the values that every range covers; None: each range is the one of several that changes
            the answers least.
        weight_bits: 8, or 7, whose products never saturate (see `has_vnni`).
        equalized: channels were scaled to more even ranges first.
        tuned: weights and ranges were trained while rounded.
        float_layers: convolutions that went back to float, since they lost most.
    """

    percentile: float | None = None
    weight_bits: int = 8
    equalized: bool = False
    tuned: bool = False
    float_layers: tuple[str, ...] = ()

    def describe(self) -> str:
        """In a few words."""
        words = ["ranges one by one" if self.percentile is None else f"percentile {self.percentile:g} %"]
        words += ["7-bit weights"] if self.weight_bits == 7 else []
        words += [name for name in ("equalized", "tuned") if getattr(self, name)]
        words += [f"{len(self.float_layers)} layers in float"] if self.float_layers else []
        return ", ".join(words)


@dataclass(frozen=True)
class Int8Try:
    """A way that was tried.

    Attributes:
        score: of its file.
        parent_l1: L1 (ab/128) of its file's answers to those of the float parent.
        is_enough: whether the score is.
    """

    way: Int8Way
    score: Score
    parent_l1: float
    is_enough: bool

    @property
    def rank(self) -> tuple[bool, float]:
        """The least is the best: what is good enough comes first, then what is nearest to the float parent.

        A few photographs tell that distance far more surely than what is lost of the truth: rounding may be lucky.
        """
        return not self.is_enough, self.parent_l1

    def to_dict(self) -> dict[str, Any]:
        """The try as JSON-ready primitives."""
        return {
            "way": self.way.describe(),
            **asdict(self.way),
            **self.score.to_dict(),
            "parent_l1": self.parent_l1,
            "is_enough": self.is_enough,
        }


@dataclass(frozen=True)
class QuantizeResult:
    """A published int8 file.

    Attributes:
        quantized: names of the convolutions in int8, largest first; `kept_float` of the others.
        weight_share: part of all convolution weights that is int8, 0 to 1.
        tries: every way that was scored, in order; empty where nothing was scored.
    """

    path: Path
    size_bytes: int
    sha256: str
    quantized: tuple[str, ...]
    kept_float: tuple[str, ...]
    weight_share: float
    way: Int8Way
    tries: tuple[Int8Try, ...]


def quantize_onnx(
    source: Path,
    destination: Path,
    pictures: Sequence[Floats],
    config: QuantizeConfig,
    judge: Judge | None = None,
    *,
    threads: int = 0,
) -> QuantizeResult:
    """Write a static int8 version of an fp32 ONNX file: QDQ, weights per channel, activations per tensor.

    The first and the last convolution stay in float: they cost next to nothing, and 256 levels of lightness or of
    colour at either end cost more accuracy than all of the network between them. Each range is the one that changes the
    answers least. With a judge, channels are equalized where that brings int8 nearer to float. Where this is not good
    enough, it is trained to answer what the float file answers; and where that is not enough either, the layers that
    change the answers most for their size go back to float, as few as bisection finds and half of the weights at most,
    or none where that is not enough.

    Args:
        source: a file written by `export_onnx`.
        pictures: L (1, 1, H, W) float32 in [0, 1], of any sizes, one photograph each, that ranges are taken from.
        judge: None leaves channels as they are, and trains nothing.
        threads: CPU threads while calibrating; 0: ONNX Runtime's choice.
    Raises:
        ConfigError: no such source.
        InputError: the source is damaged or already quantized, or has no convolution between the first and the last;
            or there is no calibration picture.
        MachineError: the destination cannot be written.
    """
    model = load_float_model(source)
    chosen = choose_layers(model.graph, config.quantize_share)
    if not chosen:
        why = "has no convolution between its first and its last, which stay in float"
        raise InputError("model", source, why, "ship it as it is, or store its weights in 8 bits by `colorpress pack`")
    quantizer = _Quantizer(model, chosen, pictures, config, threads)
    with torch_threads(threads):
        way, tries = _choose_way(quantizer, judge) if judge else (quantizer.starting_ways()[0], ())
        quantized = quantizer.quantize(way)
    layers = tuple(name for name in chosen if name not in way.float_layers)
    sizes = weight_sizes(model.graph)
    share = sum(sizes[name] for name in layers) / sum(sizes.values())
    entries = {
        "precision": "int8",
        "quantization": way.describe(),
        "calibration_pictures": str(len(pictures)),
        "calibration_sha256": hash_pictures(pictures),
        "int8_weight_share": f"{share:.6f}",
        "weight_bits": str(way.weight_bits),
    }
    size_bytes, sha256 = write_derived(quantized, source, destination, entries)
    kept_float = tuple(name for name in sorted(sizes, key=lambda name: -sizes[name]) if name not in layers)
    return QuantizeResult(destination, size_bytes, sha256, layers, kept_float, share, way, tries)


def has_int8_layers(source: Path) -> bool:
    """Whether a float file has convolutions between its first and its last, which `quantize_onnx` needs.

    Raises: as `quantize_onnx`.
    """
    return bool(choose_layers(load_float_model(source).graph, 1.0))


@dataclass
class _Quantizer:
    """Makes int8 graphs of one float graph; what is observed and trained is kept."""

    model: onnx.ModelProto
    layers: Sequence[str]
    pictures: Sequence[Floats]
    config: QuantizeConfig
    threads: int
    _seen: dict[bool, tuple[onnx.ModelProto, Mapping[str, ActivationHistogram]]] = field(default_factory=dict)
    _chosen: dict[bool, Mapping[str, Range]] = field(default_factory=dict)
    _tuned: tuple[onnx.ModelProto, dict[str, Range]] | None = None

    @cached_property
    def is_known(self) -> bool:
        """Whether values inside the graph can be computed in PyTorch, as tuning needs; said in a line where not."""
        try:
            GraphNetwork(self.model)
        except InputError as error:
            say(f"int8: ranges are not chosen one by one, channels not equalized, nothing is trained: {error.why}")
            return False
        return True

    def starting_ways(self) -> list[Int8Way]:
        """What the options leave open of the ways without training, the plainest first."""
        percentile, equalize = self.config.calibration_percentile, self.config.equalize
        percentiles: Sequence[float | None] = [percentile]
        if percentile is None and not self.is_known and equalize != "on":
            percentiles = sorted(PERCENTILES, key=lambda each: each != USUAL_PERCENTILE)
        equalized = [equalize == "on"] if equalize != "auto" or not self.is_known else [False, True]
        return [
            Int8Way(percentile=percentile, weight_bits=bits, equalized=even)
            for percentile, bits, even in product(percentiles, self._weight_bits(), equalized)
        ]

    def _weight_bits(self) -> Sequence[int]:
        """What is left open of them; the first is safe without a judge."""
        if self.config.int8_weight_bits != "auto":
            return [int(self.config.int8_weight_bits)]
        return sorted({safe_weight_bits(), 8})

    def _observe(self, equalized: bool) -> tuple[onnx.ModelProto, Mapping[str, ActivationHistogram]]:
        """The float graph with equalized channels or as it came, and histograms of all that may be in 8 bits."""
        if equalized not in self._seen:
            graph = self.model.graph
            names = tensors_to_observe(graph, nodes_to_quantize(graph, set(self.layers)))
            model = equalize_channels(self.model, self.pictures) if equalized else self.model
            self._seen[equalized] = model, observe_activations(model, names, self.pictures, threads=self.threads)
        return self._seen[equalized]

    def ranges(self, way: Int8Way) -> dict[str, Range]:
        """The range of every value that is in 8 bits, before training."""
        model, histograms = self._observe(way.equalized)
        if way.percentile is not None:
            percentile = way.percentile
            return spread_ranges(model.graph, {name: each.range_of(percentile) for name, each in histograms.items()})
        if way.equalized not in self._chosen:
            seen = [each[..., :_RANGE_SIDE, :_RANGE_SIDE] for each in self.pictures[:_RANGE_PICTURES]]
            self._chosen[way.equalized] = choose_ranges(model, histograms, seen)
        return spread_ranges(model.graph, self._chosen[way.equalized])

    def quantize(self, way: Int8Way) -> onnx.ModelProto:
        """The int8 graph of a way."""
        layers = [name for name in self.layers if name not in way.float_layers]
        if way.tuned:
            assert self._tuned is not None
            model, ranges = self._tuned
        else:
            model, ranges = self._observe(way.equalized)[0], self.ranges(way)
        arm = platform.machine().lower() in ("aarch64", "arm64")
        signed = self.config.activation_type == "int8" or (self.config.activation_type == "auto" and arm)
        nodes = nodes_to_quantize(self.model.graph, set(layers))
        return insert_qdq(model, nodes, ranges, weight_bits=way.weight_bits, signed_activations=signed)

    def tune_(self, way: Int8Way, tuning: Callable[[GraphNetwork, GraphNetwork], None]) -> None:
        """Train the graph of a way while its values are rounded; `quantize` of a tuned way then gives the result."""
        (model, histograms), ranges = self._observe(way.equalized), self.ranges(way)
        network = self.rounded_network(way, ranges)
        tuning(network, GraphNetwork(model))
        copy = deepcopy(model)
        network.write_weights_(copy)
        learned = {**ranges, **network.read_ranges()}
        self._tuned = (copy, spread_ranges(copy.graph, {name: learned[name] for name in histograms}))

    def rounded_network(self, way: Int8Way, ranges: Mapping[str, Range]) -> GraphNetwork:
        """A graph that rounds what is really rounded: a convolution's answer is when its ReLU has been computed."""
        graph = self.model.graph
        nodes = nodes_to_quantize(graph, set(self.layers))
        unseen = values_inside_convolutions(graph) | values_moved(graph)
        touched = {name for node in graph.node if node.name in nodes for name in (*node.input, *node.output)}
        return GraphNetwork(
            self._observe(way.equalized)[0],
            rounded={name: bounds for name, bounds in ranges.items() if name in touched - unseen},
            rounded_layers=frozenset(self.layers),
            weight_levels=64 if way.weight_bits == 7 else 127,
        )


def _choose_way(quantizer: _Quantizer, judge: Judge) -> tuple[Int8Way, tuple[Int8Try, ...]]:
    tries: list[Int8Try] = []
    ways = quantizer.starting_ways()

    def try_out(way: Int8Way, bar: Progress) -> Int8Try:
        score, parent_l1 = judge.scoring(quantizer.quantize(way).SerializeToString())
        found = Int8Try(way, score, parent_l1, judge.is_enough(score))
        tries.append(found)
        bar.advance(note=f"{found.score.describe()} with {way.describe()}")
        return found

    with progress("choosing how to quantize", len(ways)) as bar:
        best = min((try_out(way, bar) for way in ways), key=attrgetter("rank"))
        if judge.tuning is not None and quantizer.is_known and not best.is_enough:
            quantizer.tune_(best.way, judge.tuning)
            best = min(best, try_out(replace(best.way, tuned=True), bar), key=attrgetter("rank"))
    if not best.is_enough and len(quantizer.layers) > 1:
        best = _fall_back(quantizer, best, try_out)
    return best.way, tuple(tries)


def _fall_back(quantizer: _Quantizer, best: Int8Try, try_out: Callable[[Int8Way, Progress], Int8Try]) -> Int8Try:
    """Convolutions back to float, those that win most for their weights, as few as bisection finds to be enough,
    or one alone that is, where it has fewer.

    Half of the weights stay in int8 at least, as a file that is mostly float is neither small nor fast; where that is
    not enough, the best try is left as it is.
    """
    sizes = weight_sizes(quantizer.model.graph)
    half = sum(sizes[name] for name in quantizer.layers) / 2
    layers = [name for name in quantizer.layers if sizes[name] <= half]
    with progress("choosing layers for float", len(layers) + len(layers).bit_length()) as bar:

        def try_in_float(names: Sequence[str]) -> Int8Try:
            return try_out(replace(best.way, float_layers=tuple(names)), bar)

        alone = {name: try_in_float([name]) for name in layers}
        order = sorted(layers, key=lambda name: -(best.parent_l1 - alone[name].parent_l1) / sizes[name])
        weights = accumulate(sizes[name] for name in order)
        most = sum(so_far <= half for so_far in weights)
        tried = {1: alone[order[0]]}

        def is_enough(count: int) -> bool:
            if count not in tried:
                tried[count] = try_in_float(order[:count])
            return tried[count].is_enough

        bisect_left(range(1, most + 1), True, key=is_enough)
    enough = [each for each in (*alone.values(), *tried.values()) if each.is_enough]
    if not enough:
        say(
            "int8: it loses more than asked with half of its weights in float, too, so no layer goes back to float "
            "(`colorpress pack` loses less; a larger --int8-loss allows more)"
        )
    return min(enough, key=lambda each: sum(sizes[name] for name in each.way.float_layers), default=best)


def safe_weight_bits() -> int:
    """Bits of int8 weights of which this processor saturates no sum: 8, or 7 without VNNI."""
    return 8 if has_vnni() else 7


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor sums products of bytes without saturating at 16 bits on the way.

    True for x86 with AVX512-VNNI or AVX-VNNI, and for anything that is not x86.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return True
    return bool(cpu_flags(cpuinfo) & {"avx512_vnni", "avx_vnni"})
