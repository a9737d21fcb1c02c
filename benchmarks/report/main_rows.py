"""The rows that matter, of all that a benchmark measured: what the first screen and the sheet of pictures show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from benchmarks.rows import Row, base_rows, find_control, own_rows
from compress.measures import Measure
from compress.precisions import origin_of
from export.controls import GREY, TABLE, TINT
from export.runtimes import CHECKPOINT_SUFFIXES


class MainRow(NamedTuple):
    """A row, and in a few words why it matters."""

    role: str
    row: Row


def choose_main_rows(rows: Sequence[Row], recommended: str | None, measure: Measure | None) -> list[MainRow]:
    """At most five: the original, it exported, it in int8, what is recommended, and one control.

    Of several runtimes the fastest one is taken. Where nothing further is recommended, the variant that keeps most
    takes its place. The control is the one that knows most: the lightness table, else one tint, else grey. What was
    not measured to the end is left out; nothing matters where best.pt itself was not.

    Args:
        rows: best.pt first.
        recommended: the name of a row.
        measure: what is kept is told by it; None: no colours were measured.
    """
    if not rows or not rows[0].is_ok:
        return []
    name = _name_of(rows[0])
    of_original = [row for row in base_rows(rows) if row.is_ok and not row.peer and origin_of(row.variant) == name]
    exported = _best(_speed, (row for row in of_original if row.variant == name and row is not rows[0]))
    int8 = _best(_speed, (row for row in of_original if row.precision == "int8"))
    others = [row for row in own_rows(rows) if row.is_ok and row.speedup and row not in of_original]
    chosen = next((row for row in own_rows(rows) if row.model == recommended), None)
    closest = _best(lambda row: (round(row.reported(measure)[0] or 0.0, 3) if measure else 0.0, _speed(row)), others)
    controls = (find_control(rows, control) for control in (TABLE, TINT, GREY))
    found = {
        "the original": rows[0],
        "the original, exported": exported,
        "the original in int8": int8,
        "recommended": chosen,
        "the closest of the others": closest if chosen in (None, exported, int8) else None,
        "sees no picture": next((row for row in controls if row and row.is_ok), None),
    }
    main: dict[str, MainRow] = {}
    for role, row in found.items():
        if row:
            main.setdefault(row.model, MainRow(role, row))
    return list(main.values())


def _name_of(best: Row) -> str:
    """What files made of best.pt alone are called after: "best"."""
    suffix = next((each for each in CHECKPOINT_SUFFIXES if best.variant.endswith(each)), "")
    return best.variant.removesuffix(suffix)


def _speed(row: Row) -> float:
    return row.speedup or 0.0


def _best(merit: Callable[[Row], float | tuple[float, float]], rows: Iterable[Row]) -> Row | None:
    return max(rows, key=merit, default=None)
