"""peers.json and peers.md: what became of every peer, and its figures beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.peers.making import CALIBRATION_PHOTOS, MadePeer
from benchmarks.peers.peer_list import UNMEASURED
from benchmarks.rows import Row, base_rows
from colorpress.core.errors import printable
from colorpress.core.files import write_json
from colorpress.core.machine import describe_machine
from colorpress.core.text import format_bytes, format_interval, format_number, format_percent
from compress.measures import MEASURES, Measure

_HEADER = (
    "name", "made by", "as its documentation recommends", "making", "file", "p50", "runtime", "speed-up", "dL1",
    *(f"{each.symbol} (95 % interval)" for each in MEASURES.values()),
)  # fmt: skip


# In the place of what is kept by each measure.
_NOTHING = ("",) * len(MEASURES)


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
    measured = {row.model: row for row in (base_rows(rows) if rows else ())}
    lines = [_HEADER, tuple("---" if number < 3 else "--:" for number in range(len(_HEADER)))]
    lines += [
        (name, *_origin(by_name.get(name) or by_file.get(row.variant)), *_figures(row))
        for name, row in measured.items()
    ]
    lines += [(each.peer.name, *_origin(each), *_unmeasured(each)) for each in made if each.peer.name not in measured]
    safe = [[printable(cell).replace("|", "\\|") for cell in cells] for cells in lines]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in safe)
    notes = [f"- {each.tool} ({each.version}) was tried and is not measured: {each.happened}." for each in UNMEASURED]
    return "\n".join([table, "", *notes, ""])


def _origin(made: MadePeer | None) -> tuple[str, str, str]:
    if made is None:
        return "", "", ""
    versions = ", ".join(f"{name} {number}" for name, number in made.versions.items())
    tool = f"{made.peer.tool} ({versions})" if versions else made.peer.tool
    seconds = "" if made.seconds is None else f"{format_number(made.seconds)} s"
    return tool, f"[{made.peer.recommended}]({made.peer.url})", seconds


def _figures(row: Row) -> tuple[str, ...]:
    runtime = " ".join(filter(None, (row.runtime, row.compute)))
    if not row.is_ok:
        return f"{row.status}: {row.error}", "", runtime, "", "", *_NOTHING
    return (
        format_bytes(row.size_bytes),
        format_number(row.p50_ms, " ms"),
        runtime,
        format_number(row.speedup, "x"),
        format_percent(row.l1_delta_pct),
        *(_kept(row, each) for each in MEASURES.values()),
    )


def _kept(row: Row, measure: Measure) -> str:
    figure, interval = row.kept(measure), row.interval(measure)
    text = "-" if figure is None else f"{figure:.3f}"
    return text + (f" ({format_interval(*interval)})" if interval else "")


def _unmeasured(made: MadePeer) -> tuple[str, ...]:
    what = "made, not measured" if made.status == "ok" else f"{made.status}: {made.error}"
    files = () if made.path is None else (made.path, made.path.with_suffix(".bin"))
    size = format_bytes(sum(each.stat().st_size for each in files if each.is_file())) if files else ""
    return size, "", what, "", "", *_NOTHING
