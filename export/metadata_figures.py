"""What a colorizer.onnx says of its own worth: the names in its metadata, how they are written, how people read them.

They were measured on photographs that nobody trained on, with the network alone and without saturation. The original is
what was compressed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

NOT_MEASURED = "not measured"


class _Figure(NamedTuple):
    title: str
    pattern: str = ""


# By name. A file of an earlier version has some of them.
_FIGURES: Mapping[str, _Figure] = {
    "measured_photos": _Figure("photographs"),
    "measure": _Figure("the measure that decides"),
    "content_colour": _Figure("content colour C", ".4f"),
    "fidelity": _Figure("fidelity F", ".4f"),
    "retained_colour": _Figure("retained colour G", ".4f"),
    "l1": _Figure("L1", ".6f"),
    "l1_change_pct": _Figure("L1 above the original's, in percent", ".3f"),
    "chroma_to_truth": _Figure("chroma, as a part of the photographs' own", ".4f"),
    "original_below_grey_pct": _Figure("L1 of the original below grey's, in percent", ".2f"),
    "original_below_table_pct": _Figure("L1 of the original below a lightness table's, in percent", ".2f"),
}
# What people call each.
MEASURED: Mapping[str, str] = {name: figure.title for name, figure in _FIGURES.items()}


def write_measured(values: Mapping[str, float | str | None]) -> dict[str, str]:
    """Figures by their names in the metadata, as they are written there; without what is unknown."""
    known = {name: value for name, value in values.items() if value is not None}
    return {
        name: format(value, _FIGURES[name].pattern)
        for name, value in known.items()
        if isinstance(value, str) or math.isfinite(value)
    }


def list_measured(metadata: Mapping[str, str]) -> dict[str, str]:
    """By what people call it, each figure as the metadata has it, or that it was not measured."""
    return {title: metadata.get(name, NOT_MEASURED) for name, title in MEASURED.items()}
