"""What a colorizer.onnx says of its own worth: the names in its metadata, and how people read them.

They were measured on photographs that nobody trained on, with the network alone and without saturation. The original is
what was compressed.
"""

from __future__ import annotations

from collections.abc import Mapping

NOT_MEASURED = "not measured"
# A file of an earlier version has some of them.
MEASURED: Mapping[str, str] = {
    "measured_photos": "photographs",
    "measure": "the measure that decides",
    "content_colour": "content colour C",
    "fidelity": "fidelity F",
    "retained_colour": "retained colour G",
    "l1": "L1",
    "l1_change_pct": "L1 above the original's, in percent",
    "chroma_to_truth": "chroma, as a part of the photographs' own",
    "original_below_grey_pct": "L1 of the original below grey's, in percent",
    "original_below_table_pct": "L1 of the original below a lightness table's, in percent",
}


def list_measured(metadata: Mapping[str, str]) -> dict[str, str]:
    """By what people call it, each figure as the metadata has it, or that it was not measured."""
    return {title: metadata.get(name, NOT_MEASURED) for name, title in MEASURED.items()}
