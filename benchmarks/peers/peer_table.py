"""peers.json and peers.md: what became of every peer, and its figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.making import CALIBRATION_PHOTOS, MadePeer
from benchmarks.peers.peer_list import UNMEASURED
from benchmarks.tables import Row
from benchmarks.verdict import base_rows
from colorpress.core.errors import printable
from colorpress.core.files import write_json, write_text
from colorpress.core.machine import describe_machine
from colorpress.core.text import format_bytes, format_number, format_percent

_HEADER = (
    "name", "made by", "as its documentation recommends", "making", "file", "p50", "runtime", "speed-up", "dL1",
    "G (95 % interval)",
)  # fmt: skip


def write_peers_json(path: Path, made: Sequence[MadePeer], folder: Path) -> Path:
    """Write what became of every peer, measured or not; `folder` is what model paths are relative to."""
    return write_json(path, {
        "format_version": 1,
        "machine": describe_machine(),
        "calibration_photos_at_most": CALIBRATION_PHOTOS,
        "peers": [_describe(each, folder) for each in made],
        "unmeasured": [asdict(each) for each in UNMEASURED],
    })  # fmt: skip


def _describe(made: MadePeer, folder: Path) -> dict[str, Any]:
    peer = made.peer
    return {
        "name": peer.name,
        "tool": peer.tool,
        "versions": dict(made.versions),
        "recommended": peer.recommended,
        "url": peer.url,
        "made_from": peer.parent,
        "options": dict(peer.options),
        "runtimes": list(peer.runtimes),
        "status": made.status,
        "error": made.error,
        "seconds": made.seconds,
        "model": None if made.path is None else str(made.path.relative_to(folder)),
        "params": made.params or None,
        "macs": made.macs or None,
    }


def format_peers(made: Sequence[MadePeer], rows: Sequence[Row]) -> str:
    """A Markdown table: best.pt, ours, then every peer in each of its runtimes, or what happened to it.

    Args:
        rows: of the benchmark, best.pt first; empty where nothing was measured.
    """
    by_file = {each.peer.name.partition(" @ ")[0]: each for each in made if each.peer.recipe}
    by_name = {each.peer.name: each for each in made if not each.peer.recipe}
    measured = base_rows(rows) if rows else []
    lines = [_HEADER, tuple("---" if number < 3 else "--:" for number in range(len(_HEADER)))]
    lines += [_measured_cells(row, by_name.get(row["model"]) or by_file.get(row["variant"])) for row in measured]
    shown = {row["model"] for row in measured}
    lines += [_unmeasured_cells(each) for each in made if each.peer.name not in shown]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    notes = [f"- {each.tool} ({each.version}) was tried and is not measured: {each.happened}." for each in UNMEASURED]
    return "\n".join([table, "", *notes, ""])


def _measured_cells(row: Row, made: MadePeer | None) -> tuple[str, ...]:
    name = _cell(row["model"])
    if row["status"] != "ok":
        figures = (f"{row['status']}: {row['error']}", "", _runtime(row), "", "", "")
    else:
        figures = (
            format_bytes(row["size_bytes"]),
            format_number(row["p50_ms"], " ms"),
            _runtime(row),
            format_number(row["speedup"], "x"),
            format_percent(row["l1_delta_pct"]),
            _interval(row),
        )
    return (name, *_origin(made), *map(_cell, figures))


def _unmeasured_cells(made: MadePeer) -> tuple[str, ...]:
    what = "made, not measured" if made.status == "ok" else f"{made.status}: {made.error}"
    files = () if made.path is None else (made.path, made.path.with_suffix(".bin"))
    size = format_bytes(sum(each.stat().st_size for each in files if each.is_file())) if files else ""
    return (_cell(made.peer.name), *_origin(made), _cell(size), "", _cell(what), "", "", "")


def _origin(made: MadePeer | None) -> tuple[str, str, str]:
    if made is None:
        return "", "", ""
    versions = ", ".join(f"{name} {number}" for name, number in made.versions.items())
    tool = f"{made.peer.tool} ({versions})" if versions else made.peer.tool
    seconds = "" if made.seconds is None else f"{format_number(made.seconds)} s"
    return _cell(tool), f"[{_cell(made.peer.recommended)}]({made.peer.url})", seconds


def _runtime(row: Mapping[str, Any]) -> str:
    return " ".join(filter(None, (str(row["runtime"]), row.get("compute"))))


def _interval(row: Row) -> str:
    if row["retained_colour"] is None:
        return "-"
    if row["retained_low"] is None:
        return f"{row['retained_colour']:.3f}"
    return f"{row['retained_colour']:.3f} ({row['retained_low']:.3f} to {row['retained_high']:.3f})"


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")


def write_peers_table(path: Path, made: Sequence[MadePeer], rows: Sequence[Row]) -> Path:
    """Write `format_peers` to `path`."""
    return write_text(path, format_peers(made, rows))
