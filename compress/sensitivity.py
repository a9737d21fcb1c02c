"""What each layer means for the colour: what is lost of it when that layer alone is pruned, or is in int8.

Counted by the measure that decides (`compress.measures`), on the exported graph, so with batch norm folded in and in
the runtime that the network is made for: nothing of a network's own code need be known, and int8 is what the file would
have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from colorpress.core.console import progress, warn
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import write_json
from colorpress.core.reading import read_json
from compress.int8.calibration import Floats, observe_activations
from compress.int8.int8_choice import safe_weight_bits
from compress.int8.int8_graph import (
    Range,
    insert_qdq,
    nodes_to_quantize,
    output_convolutions,
    spread_ranges,
    tensors_to_observe,
)
from compress.int8.int8_tuning import USUAL_PERCENTILE
from compress.yardstick import Scoring
from export.layer_latency import find_convolutions


@dataclass(frozen=True)
class Sensitivity:
    """The share of colour lost by changing one layer alone; negative where it is gained, None where it cannot be told.

    Attributes:
        prune_loss: half of its output channels answer zero, those with the least L2 norm of the weights that make them
            (batch norm folded in). The others are not trained to make up for it. None for the layer that answers ab,
            and for one that has a single channel.
        int8_loss: it computes in int8 as `quantize_onnx` would have it: weights per channel, its input and its output
            (after the activation behind it, if that is a ReLU) per tensor, in ranges of 99.9 % of the values on the
            same photographs. None for a transposed convolution that the export does not rewrite: it has no int8 kernel.
    """

    prune_loss: float | None
    int8_loss: float | None


def measure_sensitivities(
    model: onnx.ModelProto,
    layers: Mapping[str, int],
    pictures: Sequence[Floats],
    scoring: Scoring,
    cache_path: Path,
    *,
    key: str,
    threads: int = 0,
) -> dict[str, Sensitivity]:
    """The sensitivity of each layer, of those in `layers` that are in the graph.

    Each layer that is done is in the cache, so that what was interrupted goes on with the next one.

    Args:
        model: a float graph as `build_graph` makes it.
        layers: output channels by layer name, as in the network.
        pictures: L (1, 1, H, W) float32 of the photographs that `scoring` judges by; they give the int8 ranges.
        cache_path: a JSON file; another key or damage, and everything is measured again.
        key: hash of all that the answer depends on.
        threads: CPU threads while observing ranges; 0: ONNX Runtime's choice.
    Raises:
        InputError: the float graph itself does not answer.
        MachineError: the cache cannot be written.
    """
    found = find_convolutions(model.graph, layers)
    known = _read_cache(cache_path, key)
    missing = [name for name in found if name not in known]
    if missing:
        ranges = _observe_ranges(model, found, pictures, threads)
        outputs = output_convolutions(model.graph)
        own = scoring(model.SerializeToString()).kept

        def loss(changed: onnx.ModelProto | None) -> float | None:
            try:
                return None if changed is None else own - scoring(changed.SerializeToString()).kept
            except InputError:  # the runtime refuses it, or it answers NaN: one cell stays empty
                return None

        with progress("measuring sensitivities", len(missing)) as bar:
            for name in missing:
                nodes = found[name]
                answers = not outputs.isdisjoint(node.name for node in nodes)
                known[name] = Sensitivity(
                    prune_loss=loss(None if answers else prune_layer(model, nodes, layers[name])),
                    int8_loss=loss(_quantize_layer(model, nodes, ranges)),
                )
                write_json(cache_path, {"key": key, "layers": {each: asdict(known[each]) for each in sorted(known)}})
                bar.advance(note=name)
    return {name: known[name] for name in found}


def prune_layer(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], channels: int) -> onnx.ModelProto | None:
    """A copy of `model` in which half of a layer's `channels` answer zero, rounded down; None where that is none.

    Args:
        nodes: the convolutions of the layer; they have the same weights.
    """
    dropped_count = channels // 2
    if not dropped_count:
        return None
    copy = deepcopy(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    own = {node.name for node in nodes}
    for node in copy.graph.node:
        if node.name not in own:
            continue
        weight = _output_first(constants[node.input[1]], node)  # (outputs, ...)
        # A rewritten transposed convolution makes the pixels of one channel in channels of their own, side by side.
        repeat = len(weight) // channels
        norms = np.linalg.norm(weight.reshape(channels, -1), axis=1)  # (channels,)
        dropped = np.zeros(channels, bool)
        dropped[np.argsort(norms, kind="stable")[:dropped_count]] = True
        kept = np.repeat(~dropped, repeat)  # (outputs,)
        # Under names of their own: equal constants of different layers may be one in the graph.
        _replace_input_(copy.graph, node, 1, _mask_output(constants[node.input[1]], node, kept))
        if len(node.input) > 2 and node.input[2] in constants:
            _replace_input_(copy.graph, node, 2, constants[node.input[2]] * kept)
    return copy


def _output_first(weight: Floats, node: onnx.NodeProto) -> Floats:
    """The weights with output channels in the first place; a transposed convolution keeps them in the second."""
    if node.op_type == "Conv":
        return weight
    # (inputs, outputs / groups, kH, kW) -> (groups, outputs / groups, inputs / groups, kH, kW) -> (outputs, ...)
    grouped = _by_group(weight, node).swapaxes(1, 2)
    return np.ascontiguousarray(grouped).reshape(len(grouped) * weight.shape[1], -1)


def _mask_output(weight: Floats, node: onnx.NodeProto, kept: NDArray[np.bool_]) -> Floats:
    if node.op_type == "Conv":
        return weight * kept[:, None, None, None]
    grouped = _by_group(weight, node)
    masked: Floats = grouped * kept.reshape(len(grouped), 1, -1, 1, 1)
    return masked.reshape(weight.shape)


def _by_group(weight: Floats, node: onnx.NodeProto) -> Floats:
    """(inputs, outputs / groups, kH, kW) as (groups, inputs / groups, outputs / groups, kH, kW)."""
    groups = next((int(each.i) for each in node.attribute if each.name == "group"), 1)
    return weight.reshape(groups, weight.shape[0] // groups, *weight.shape[1:])


def _replace_input_(graph: onnx.GraphProto, node: onnx.NodeProto, place: int, value: NDArray[Any]) -> None:
    name = f"{node.name}.pruned.{place}"
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
    node.input[place] = name


def _observe_ranges(
    model: onnx.ModelProto,
    found: Mapping[str, Sequence[onnx.NodeProto]],
    pictures: Sequence[Floats],
    threads: int,
) -> dict[str, Range]:
    names = {
        name
        for nodes in found.values()
        for name in tensors_to_observe(model.graph, nodes_to_quantize(model.graph, {node.name for node in nodes}))
    }
    seen = observe_activations(model, sorted(names), pictures, threads=threads)
    return {name: each.range_of(USUAL_PERCENTILE) for name, each in seen.items()}


def _quantize_layer(
    model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], observed: Mapping[str, Range]
) -> onnx.ModelProto | None:
    if any(node.op_type != "Conv" for node in nodes):
        return None
    chosen = nodes_to_quantize(model.graph, {node.name for node in nodes})
    own = {name: observed[name] for name in tensors_to_observe(model.graph, chosen)}
    return insert_qdq(model, chosen, spread_ranges(model.graph, own), weight_bits=safe_weight_bits())


def _read_cache(path: Path, key: str) -> dict[str, Sensitivity]:
    if not path.is_file():
        return {}
    try:
        content = read_json(path, "sensitivities", "remove it")
        if content["key"] != key:
            return {}
        found = {str(name): Sensitivity(**values) for name, values in content["layers"].items()}
        if any(type(loss) not in (float, type(None)) for each in found.values() for loss in vars(each).values()):
            raise ValueError("a sensitivity of another kind")
        return found
    except (ConfigError, InputError, ValueError, TypeError, KeyError, AttributeError):
        warn(f"sensitivities '{path}' cannot be used; every layer is measured again")
        return {}
