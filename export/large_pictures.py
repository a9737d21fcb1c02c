"""The network of a model alone, by which pictures are coloured in stripes that are too large to be several arrays."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from export.colorizers import open_inner_network
from export.picture_contract import DEFAULT_WORK_SIZE, AskedNetwork, is_picture_graph
from export.runtimes import Opening, find_runtime


def open_network_of(path: Path, opening: Opening, *, runtime: str = "") -> AskedNetwork:
    """The network in anything that `export.runtimes.open_colorizer` opens, with how it is asked.

    That of a picture graph runs in ONNX Runtime on the CPU, whatever runs the graph.

    Raises:
        ConfigError, InputError, MachineError: as `export.runtimes.open_predictor`.
    """
    if path.suffix == ".onnx" and is_picture_graph(content := path.read_bytes()):
        size, gain = opening.work_size, opening.saturation
        return open_inner_network(path, content, work_size=size, saturation=gain, threads=opening.threads)
    network = find_runtime(path, runtime).open(path, replace(opening, field=True))
    gain = 1.0 if opening.saturation is None else opening.saturation
    return AskedNetwork(network, opening.work_size or DEFAULT_WORK_SIZE, gain)
