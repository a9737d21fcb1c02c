"""Today's picture work around the network of a colorizer.onnx that an earlier version wrote.

    python -m export.renewal old/colorizer.onnx new/colorizer.onnx

The network and the metadata stay; nothing is written where a pixel would change by more than a grey level.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import onnx
from onnx import numpy_helper

from export.colorizers import OnnxColorizer
from export.graph import Published, publish_model
from export.onnx_probe import refuse_hostile
from export.parity import PictureParity, check_picture_parity, require_picture_parity
from export.picture_contract import DEFAULT_WORK_SIZE, SATURATION_NAME, WORK_SIZE_NAME
from export.picture_graph import build_picture_graph
from export.picture_network import take_network


def renew_colorizer(source: Path, destination: Path) -> Published[PictureParity]:
    """Write the picture graph of `source` as `build_picture_graph` makes it today.

    Raises:
        ConfigError: no such source.
        GateError: a pixel differs by more than a grey level; nothing is published.
        InputError: the source is damaged, or no picture graph with a network of one answer.
        MachineError: the file cannot be written.
    """
    refuse_hostile(source)
    whole = onnx.load_model_from_string(source.read_bytes())
    given = {each.name: numpy_helper.to_array(each).item() for each in whole.graph.initializer if not each.dims}
    model = build_picture_graph(
        take_network(whole, source),
        work_size=given.get(WORK_SIZE_NAME, DEFAULT_WORK_SIZE),
        saturation=given.get(SATURATION_NAME, 1.0),
    )
    before = OnnxColorizer(source, threads=1)

    def check(trial: Path) -> PictureParity:
        return require_picture_parity(check_picture_parity(before, OnnxColorizer(trial, threads=1)), destination.name)

    return publish_model(model, {each.key: each.value for each in whole.metadata_props}, destination, check)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="a colorizer.onnx")
    parser.add_argument("destination", type=Path)
    options = parser.parse_args()
    made = renew_colorizer(options.source, options.destination)
    print(f"{options.destination}: {made.size_bytes:,} bytes, within {made.parity.max_levels} level of the earlier one")


if __name__ == "__main__":
    main()
