"""How the variants of a run were made, as its folder records it: a search, students, int8."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from benchmarks.report.embedding import embed_drawing
from benchmarks.rows import read_strength
from colorpress.core.reading import as_damaged, read_json
from colorpress.core.text import format_interval
from compress.measures import MEASURES, RETAINED
from compress.students.student_plan import is_student_plan

_AGAIN = "delete it, and make it again"


def read_front(output_dir: Path, measured: Collection[str]) -> dict[str, Any] | None:
    """What front.json says of the search whose files were measured; None without one."""
    path = output_dir / "front.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = read_json(path, "front", _AGAIN)
    with as_damaged("front", path, _AGAIN):
        files = [row["file"] for row in record["rows"] if row["on_front"] and row["file"]]
        shown = {"sentence": str(record["sentence"]), "candidates": dict(record["candidates"]), "files": len(files)}
        shown["strength"] = read_strength(record)
        taken: Mapping[str, Any] = next(
            (row for row in record["rows"] if row["file"] and row["file"] == record.get("recommended")), {}
        )
        # Before there were other measures, nothing was confirmed.
        shown["taken"] = _read_taken(taken) if taken.get("confirmed_kept") is not None else None
    return shown if any(Path(file).parent.as_posix() in measured for file in files) else None


def _read_taken(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the recommended file of a front keeps on the photographs that chose it, and on others."""
    measure, low, high = MEASURES[row["measure"]], row["confirmed_low"], row["confirmed_high"]
    interval = "" if low is None or high is None else f" (95 % interval {format_interval(low, high)})"
    confirmed = {"measure": row["measure"], "kept": row["confirmed_kept"]}
    texts = {"chosen_by": say_kept(row), "confirmed": f"{say_kept(confirmed)}{interval}"}
    return {"file": row["file"], "measure": measure, **texts}


def read_students(output_dir: Path, measured: Collection[str]) -> list[dict[str, Any]]:
    """Name, plan and chart of the training of every student in a run folder that was measured."""
    return [
        {
            "name": path.parent.name,
            "plan": read_json(path, "student plan", _AGAIN),
            "chart": embed_drawing(path.with_name("distillation.png")),
        }
        for path in sorted(output_dir.glob("*/plan.json"))
        if f"{path.parent.name}.pt" in measured and is_student_plan(path)
    ]


def read_int8(output_dir: Path, measured: Collection[str]) -> list[tuple[str, dict[str, Any]]]:
    """Name and record of every int8 variant in a run folder that was measured."""
    return [
        (path.parent.name, read_json(path, "int8 record", _AGAIN))
        for path in sorted(output_dir.glob("*/int8.json"))
        if path.parent.name in measured
    ]


def say_kept(values: Mapping[str, Any]) -> str:
    """What an entry of a plan or an int8 record keeps, such as "C 0.912"; a dash where that is not known.

    An entry has the fields of `Score`, or measure and kept; before there were other measures, retained colour alone.
    """
    measure = MEASURES.get(values.get("measure") or RETAINED.name, RETAINED)
    kept = values.get("kept", values.get(measure.name))
    return "-" if kept is None else measure.show(kept)
