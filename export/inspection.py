"""What is in an ONNX file, for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colorpress.core.errors import printable
from colorpress.core.text import align_cells

_COLUMNS = ("layer", "operator", "shape", "weights", "bytes", "stored", "computed")


def format_inspection(path: Path, found: Mapping[str, Any]) -> str:
    """The answer of `export.onnx_probe.inspect_onnx` as text: contract, metadata, layers, operators.

    Layers stand by their bytes, the largest first.
    """
    layers = [
        (each["name"], each["operator"], "x".join(map(str, each["shape"])), f"{each['weights']:,}",
         f"{each['size_bytes']:,}", each["stored"], each["computed"])
        for each in sorted(found["layers"], key=lambda each: -int(each["size_bytes"]))
    ]  # fmt: skip
    lines = [
        f"{path.name}: {path.stat().st_size:,} bytes, {found['weights']:,} weights in {len(found['layers'])} layers, "
        f"opset {found['opset']}",
        *(f"  reads   {name} {_sides(shape)}" for name, shape in found["inputs"].items()),
        *(f"  answers {name} {_sides(shape)}" for name, shape in found["outputs"].items()),
        "",
        "metadata",
        *(f"  {key}: {value}" for key, value in sorted(found["metadata"].items())),
        "",
        *align_cells([_COLUMNS, *layers]),
        "",
        "operators: " + ", ".join(f"{count} {name}" for name, count in found["nodes"].items()),
    ]
    return "\n".join(printable(line) for line in lines)


def _sides(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})" if shape else "(a number)"
