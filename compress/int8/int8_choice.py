"""Static int8 for an ONNX file, each choice made by how much colour it keeps: ranges, tuning, and what stays float."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import onnx

from colorpress.core.config import QuantizeConfig
from colorpress.core.console import progress, say
from colorpress.core.cores import cpu_flags
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import sha256_bytes, write_bytes
from compress.int8.calibration import METHODS, Calibration, Floats, observe_activations
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
from compress.int8.int8_tuning import correct_biases, equalize_channels
from compress.yardstick import Score, Scoring

_QUANTIZED_OPS = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "DynamicQuantizeLinear")
_GIVE_FP32 = "give the fp32 model written by `colorpress export`"
# Photographs that biases are corrected on: means need few.
_BIAS_PICTURES = 16

# Fine-tunes weights and ranges in place.
Tuning = Callable[[GraphNetwork], None]


@dataclass(frozen=True)
class Int8Way:
    """One way to quantize a graph.

    Attributes:
        method, percentile: how ranges are chosen from what was observed.
        equalized: channels were scaled to more even ranges first.
        corrected: biases take back the shift that rounding makes.
        tuned: weights and ranges were trained while rounded.
        float_layers: convolutions that went back to float, since they lost most.
    """

    method: str
    percentile: float
    equalized: bool = False
    corrected: bool = False
    tuned: bool = False
    float_layers: tuple[str, ...] = ()

    def describe(self) -> str:
        """In a few words."""
        words = [f"{self.method} {self.percentile:g} %" if self.method == "percentile" else self.method]
        words += [name for name in ("equalized", "corrected", "tuned") if getattr(self, name)]
        words += [f"{len(self.float_layers)} layers in float"] if self.float_layers else []
        return ", ".join(words)


@dataclass(frozen=True)
class Int8Try:
    """A way that was tried, and what its file scored."""

    way: Int8Way
    score: Score


@dataclass(frozen=True)
class QuantizeResult:
    """A published int8 file.

    Attributes:
        path, size_bytes, sha256: the file.
        quantized: names of the convolutions in int8, largest first.
        kept_float: names of the others.
        weight_share: part of all convolution weights that is int8, 0 to 1.
        way: how it was quantized.
        tries: every way that was scored, in order; empty where nothing was scored.
        reduce_range: weights use 7 bits, so that processors without VNNI do not saturate.
        calibration_pictures, calibration_sha256: what the ranges are from.
    """

    path: Path
    size_bytes: int
    sha256: str
    quantized: tuple[str, ...]
    kept_float: tuple[str, ...]
    weight_share: float
    way: Int8Way
    tries: tuple[Int8Try, ...]
    reduce_range: bool
    calibration_pictures: int
    calibration_sha256: str


def quantize_onnx(
    source: Path,
    destination: Path,
    calibration: Iterable[Floats],
    config: QuantizeConfig,
    *,
    scoring: Scoring | None = None,
    most_l1: float | None = None,
    tuning: Tuning | None = None,
    metadata: Mapping[str, str] | None = None,
    reduce_range: bool | None = None,
    threads: int = 0,
) -> QuantizeResult:
    """Write a static int8 version of an fp32 ONNX file: QDQ, weights per channel, activations per tensor.

    The first and the last convolution stay in float: they cost next to nothing, and 256 levels of lightness or of
    colour at either end cost more accuracy than all of the network between them. With `scoring`, what the options
    leave open is chosen by the lowest L1: the calibration method, then equalization, then bias correction. Where the
    best of these has more L1 than `most_l1`, `tuning` trains it; and where that is not enough either, the layers that
    lose most for their size go back to float, one by one, so that the largest stay in int8.

    Args:
        source: a file written by `export_onnx`.
        calibration: L (1, 1, H, W) float32 in [0, 1], of any sizes, one photograph each; read once.
        scoring: of a candidate file, on other photographs; None takes what is open as percentile and off.
        most_l1: the mean L1 (ab/128) that is good enough; None: whatever comes out.
        metadata: further entries of metadata_props; the source's are kept.
        reduce_range: 7-bit weights; None: where this processor has no VNNI.
        threads: CPU threads while calibrating; 0: ONNX Runtime's choice.
    Raises:
        ConfigError: no such source.
        InputError: the source is damaged or already quantized, or has no convolution between the first and the last;
            or there is no calibration picture.
        MachineError: the destination cannot be written.
    """
    model = load_float_model(source)
    reduce = not has_vnni() if reduce_range is None else reduce_range
    chosen, _ = choose_layers(model.graph, config.quantize_share)
    if not chosen:
        why = "has no convolution between its first and its last, which stay in float"
        raise InputError("model", source, why, "ship it as it is, or store its weights in 8 bits by `colorpress pack`")
    quantizer = _Quantizer(model, chosen, list(calibration), config, reduce, threads)
    way = _starting_way(config)
    tries: tuple[Int8Try, ...] = ()
    if scoring is not None:
        way, tries = _choose_way(quantizer, config, scoring, most_l1, tuning)
    quantized = quantizer.quantize(way)
    layers = tuple(name for name in chosen if name not in way.float_layers)
    sizes = weight_sizes(model.graph)
    share = sum(sizes[name] for name in layers) / sum(sizes.values())
    seen = quantizer.observe(way.equalized)
    # The validation L1 is the float model's; this file's own is not known here.
    entries = {entry.key: entry.value for entry in model.metadata_props if entry.key != "val_l1"}
    entries |= {
        "precision": "int8",
        "source_sha256": sha256_bytes(source.read_bytes()),
        "quantization": way.describe(),
        "calibration_pictures": str(seen.pictures),
        "calibration_sha256": seen.sha256,
        "int8_weight_share": f"{share:.6f}",
        "reduce_range": str(reduce).lower(),
        **(metadata or {}),
    }
    onnx.helper.set_model_props(quantized, {key: entries[key] for key in sorted(entries)})
    onnx.checker.check_model(quantized, full_check=True)
    content = quantized.SerializeToString(deterministic=True)
    write_bytes(destination, content)
    return QuantizeResult(
        path=destination,
        size_bytes=len(content),
        sha256=sha256_bytes(content),
        quantized=layers,
        kept_float=tuple(name for name in sorted(sizes, key=lambda name: -sizes[name]) if name not in layers),
        weight_share=share,
        way=way,
        tries=tries,
        reduce_range=reduce,
        calibration_pictures=seen.pictures,
        calibration_sha256=seen.sha256,
    )


def has_int8_layers(source: Path) -> bool:
    """Whether a float file has convolutions between its first and its last, which `quantize_onnx` needs.

    Raises: as `quantize_onnx`.
    """
    return bool(choose_layers(load_float_model(source).graph, 1.0)[0])


def _starting_way(config: QuantizeConfig) -> Int8Way:
    return Int8Way(
        method="percentile" if config.calibration_method == "auto" else config.calibration_method,
        percentile=config.calibration_percentile,
        equalized=config.equalize == "on",
        corrected=config.correct_bias == "on",
    )


class _Quantizer:
    """Makes int8 graphs of one float graph; what is observed and trained is kept."""

    def __init__(
        self,
        model: onnx.ModelProto,
        layers: Sequence[str],
        pictures: Sequence[Floats],
        config: QuantizeConfig,
        reduce_range: bool,
        threads: int,
    ) -> None:
        self.model, self.layers, self.pictures = model, tuple(layers), pictures
        self.reduce_range, self.threads = reduce_range, threads
        self.weight_levels = 63 if reduce_range else 127
        arm = platform.machine().lower() in ("aarch64", "arm64")
        self.signed = config.activation_type == "int8" or (config.activation_type == "auto" and arm)
        self._equalized: onnx.ModelProto | None = None
        self._seen: dict[bool, Calibration] = {}
        self._tuned: tuple[onnx.ModelProto, dict[str, Range]] | None = None

    @cached_property
    def can_tune(self) -> bool:
        """Whether values inside the graph can be computed in PyTorch, as tuning needs; said in a line where not."""
        try:
            GraphNetwork(self.model)
        except InputError as error:
            say(f"int8: channels are not equalized, biases not corrected, and nothing is trained: {error.why}")
            return False
        return True

    def float_model(self, equalized: bool) -> onnx.ModelProto:
        """The float graph, with equalized channels or as it came."""
        if not equalized:
            return self.model
        if self._equalized is None:
            self._equalized = equalize_channels(self.model, self.pictures)
        return self._equalized

    def observe(self, equalized: bool) -> Calibration:
        """Histograms of every value that may be in 8 bits."""
        if equalized not in self._seen:
            graph = self.model.graph
            names = tensors_to_observe(graph, nodes_to_quantize(graph, set(self.layers)))
            self._seen[equalized] = observe_activations(
                self.float_model(equalized), names, self.pictures, threads=self.threads
            )
        return self._seen[equalized]

    def ranges(self, way: Int8Way) -> dict[str, Range]:
        """The range of every value that is in 8 bits."""
        histograms = self.observe(way.equalized).histograms
        observed = {name: each.range_by(way.method, way.percentile) for name, each in histograms.items()}
        return spread_ranges(self.model.graph, observed)

    def quantize(self, way: Int8Way) -> onnx.ModelProto:
        """The int8 graph of a way."""
        layers = [name for name in self.layers if name not in way.float_layers]
        nodes = nodes_to_quantize(self.model.graph, set(layers))
        model, ranges = self.float_model(way.equalized), self.ranges(way)
        if way.tuned:
            assert self._tuned is not None
            model, ranges = self._tuned
        elif way.corrected:
            model = self._correct(model, ranges, layers)
        return insert_qdq(model, nodes, ranges, reduce_range=self.reduce_range, signed_activations=self.signed)

    def tune_(self, way: Int8Way, tuning: Tuning) -> None:
        """Train the graph of a way while its values are rounded; `quantize` of a tuned way then gives the result."""
        model, ranges = self.float_model(way.equalized), self.ranges(way)
        if way.corrected:
            model = self._correct(model, ranges, self.layers)
        network = self._rounded_network(model, ranges, self.layers)
        tuning(network)
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        network.write_weights_(copy)
        learned = {**ranges, **network.read_ranges()}
        observed = self.observe(way.equalized).histograms
        self._tuned = (copy, spread_ranges(copy.graph, {name: learned[name] for name in observed}))

    def _correct(self, model: onnx.ModelProto, ranges: Mapping[str, Range], layers: Sequence[str]) -> onnx.ModelProto:
        rounded = self._rounded_values(ranges, layers)
        return correct_biases(
            model, self.pictures[:_BIAS_PICTURES], ranges=rounded, layers=layers, weight_levels=self.weight_levels
        )

    def _rounded_network(
        self, model: onnx.ModelProto, ranges: Mapping[str, Range], layers: Sequence[str]
    ) -> GraphNetwork:
        return GraphNetwork(
            model,
            rounded=self._rounded_values(ranges, layers),
            rounded_layers=frozenset(layers),
            weight_levels=self.weight_levels,
        )

    def _rounded_values(self, ranges: Mapping[str, Range], layers: Sequence[str]) -> dict[str, Range]:
        """Ranges of the values that are really rounded: a convolution's answer is when its ReLU has been computed."""
        graph = self.model.graph
        nodes = nodes_to_quantize(graph, set(layers))
        unseen = values_inside_convolutions(graph) | values_moved(graph)
        touched = {name for node in graph.node if node.name in nodes for name in (*node.input, *node.output)}
        return {name: bounds for name, bounds in ranges.items() if name in touched - unseen}


def _choose_way(
    quantizer: _Quantizer, config: QuantizeConfig, scoring: Scoring, most_l1: float | None, tuning: Tuning | None
) -> tuple[Int8Way, tuple[Int8Try, ...]]:
    tries: list[Int8Try] = []
    start = _starting_way(config)
    percentiles = sorted({config.calibration_percentile, 99.9, 99.99})
    ways = [start]
    if config.calibration_method == "auto":
        ways = [replace(start, method=method) for method in METHODS if method != "percentile"]
        ways += [replace(start, percentile=each) for each in percentiles]

    def try_out(way: Int8Way) -> Int8Try:
        found = Int8Try(way, scoring(quantizer.quantize(way).SerializeToString()))
        tries.append(found)
        bar.advance(note=f"L1 {found.score.l1:.4f} with {way.describe()}")
        return found

    with progress("choosing how to quantize", len(ways) + 2) as bar:
        best = min((try_out(way) for way in ways), key=lambda each: each.score.l1)
        if quantizer.can_tune:
            if config.equalize == "auto":
                best = min(best, try_out(replace(best.way, equalized=True)), key=lambda each: each.score.l1)
            if config.correct_bias == "auto":
                best = min(best, try_out(replace(best.way, corrected=True)), key=lambda each: each.score.l1)
            if most_l1 is not None and best.score.l1 > most_l1 and tuning is not None:
                quantizer.tune_(best.way, tuning)
                best = min(best, try_out(replace(best.way, tuned=True)), key=lambda each: each.score.l1)
        if most_l1 is not None and best.score.l1 > most_l1:
            best = _fall_back(quantizer, best, most_l1, try_out)
    return best.way, tuple(tries)


def _fall_back(quantizer: _Quantizer, best: Int8Try, most_l1: float, try_out: Callable[[Int8Way], Int8Try]) -> Int8Try:
    """Convolutions back to float, the one that wins most L1 for its weights first, until the L1 is low enough."""
    sizes = weight_sizes(quantizer.model.graph)
    alone = {name: try_out(replace(best.way, float_layers=(name,))) for name in quantizer.layers}
    order = sorted(alone, key=lambda name: -(best.score.l1 - alone[name].score.l1) / sizes[name])
    reached = best
    for count in range(1, len(order)):  # at least one stays: a file without int8 is the float one
        found = alone[order[0]] if count == 1 else try_out(replace(best.way, float_layers=tuple(order[:count])))
        reached = min(reached, found, key=lambda each: each.score.l1)
        if reached.score.l1 <= most_l1:
            break
    return reached


def describe_tries(tries: Sequence[Int8Try]) -> list[dict[str, object]]:
    """Every try as JSON-ready primitives."""
    return [
        {
            "way": each.way.describe(),
            **asdict(each.way),
            "l1": each.score.l1,
            "l1_delta_pct": each.score.l1_delta_pct,
            "retained_colour": None if math.isnan(each.score.retained_colour) else each.score.retained_colour,
        }
        for each in tries
    ]


def has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Whether this processor sums products of bytes without saturating at 16 bits on the way.

    True for x86 with AVX512-VNNI or AVX-VNNI, and for anything that is not x86.
    """
    if platform.machine().lower() not in ("x86_64", "amd64", "i686"):
        return True
    return bool(cpu_flags(cpuinfo) & {"avx512_vnni", "avx_vnni"})


def load_float_model(source: Path) -> onnx.ModelProto:
    """Read an fp32 ONNX file with the shapes of all its values.

    Raises:
        ConfigError: no such file.
        InputError: it is damaged, quantized or packed already, or holds no convolution.
    """
    if not source.exists():
        raise ConfigError("model", source, "no such file", _GIVE_FP32)
    if not source.is_file():
        raise InputError("model", source, "not a regular file", _GIVE_FP32)
    try:
        model = onnx.load_model_from_string(source.read_bytes())
        onnx.checker.check_model(model, full_check=True)
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    except Exception as error:  # protobuf, the checker and shape inference share no base class
        raise InputError("model", source, "is no valid ONNX model", _GIVE_FP32) from error
    precision = {entry.key: entry.value for entry in model.metadata_props}.get("precision", "fp32")
    if precision != "fp32" or any(node.op_type in _QUANTIZED_OPS for node in model.graph.node):
        raise InputError("model", source, "already quantized", _GIVE_FP32)
    if not any(node.op_type == "Conv" for node in model.graph.node):
        raise InputError("model", source, "holds no convolution", _GIVE_FP32)
    return model
