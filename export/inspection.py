"""What is in an ONNX file, for people to read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from colorpress.core.errors import printable


def format_inspection(path: Path, found: Mapping[str, Any]) -> str:
    """The answer of `export.onnx_probe.inspect_onnx` as text: contract, metadata, layers, operators.

    Layers stand by their bytes, the largest first.
    """
    lines = [
        f"{path.name}: {path.stat().st_size:,} bytes, {found['weights']:,} weights in {len(found['layers'])} layers, "
        f"opset {found['opset']}",
        *(f"  reads   {name} {_sides(shape)}" for name, shape in found["inputs"].items()),
        *(f"  answers {name} {_sides(shape)}" for name, shape in found["outputs"].items()),
        "",
        "metadata",
        *(f"  {key}: {value}" for key, value in sorted(found["metadata"].items())),
        "",
        *_table(
            ("layer", "operator", "shape", "weights", "bytes", "stored", "computed"),
            [
                (
                    layer["name"],
                    layer["operator"],
                    "x".join(map(str, layer["shape"])),
                    f"{layer['weights']:,}",
                    f"{layer['size_bytes']:,}",
                    layer["stored"],
                    layer["computed"],
                )
                for layer in sorted(found["layers"], key=lambda layer: -int(layer["size_bytes"]))
            ],
        ),
        "",
        "operators: " + ", ".join(f"{count} {name}" for name, count in found["nodes"].items()),
    ]
    return "\n".join(printable(line) for line in lines)


def _sides(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})" if shape else "(a number)"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    right = {3, 4}
    return [
        "  ".join(
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in (head, *rows)
    ]
