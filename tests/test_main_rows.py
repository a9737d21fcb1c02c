"""The rows that matter: which ones, in which order, and what stands in for what is not there."""

from __future__ import annotations

from typing import Any

from test_report import CONTROLS, row, typed

from benchmarks.report.main_rows import choose_main_rows
from compress.measures import CONTENT, FIDELITY, Measure


def chosen(rows: list[dict[str, Any]], recommended: str | None, measure: Measure | None = CONTENT) -> dict[str, str]:
    """Models by their roles."""
    return {role: found.model for role, found in choose_main_rows(typed(rows), recommended, measure)}


ROWS = [
    row("best.pt"),
    row("best", speedup=1.5),
    row("best @ openvino", speedup=3.0, runtime="openvino"),
    row("best-int8", precision="int8", speedup=2.5),
    row("best-int8 @ openvino", precision="int8", speedup=2.0, runtime="openvino"),
    row("best-w8", precision="w8", speedup=9.0),
    row("pruned", speedup=5.0, content_colour=0.9, fidelity=0.7),
    row("auto", speedup=50.0, content_colour=0.8, fidelity=0.85),
    row("auto @ openvino", speedup=60.0, content_colour=0.8001, fidelity=0.85, runtime="openvino"),
    row("best-int8 by another", variant="best-int8", precision="int8", peer=True, speedup=99.0, content_colour=2.0),
    row("best, batch 8", batch=8, speedup=80.0),
    row("gone", status="error", speedup=None),
    *CONTROLS,
]
ALWAYS = {"the original": "best.pt", "the original, exported": "best @ openvino", "the original in int8": "best-int8"}
TABLE = {"sees no picture": "control: lightness table"}


def test_five_rows_each_in_its_fastest_runtime() -> None:
    assert chosen(ROWS, "auto") == {**ALWAYS, "recommended": "auto", **TABLE}
    assert list(chosen(ROWS, "auto")) == [*ALWAYS, "recommended", *TABLE]
    # Packed weights of the original are no row of their own, but where they are recommended.
    assert chosen(ROWS, "best-w8")["recommended"] == "best-w8"


def test_where_nothing_further_is_recommended_the_closest_takes_the_place() -> None:
    for recommended in (None, "best @ openvino", "best-int8"):
        assert chosen(ROWS, recommended) == {**ALWAYS, "the closest of the others": "pruned", **TABLE}
    # Of equals the faster one.
    assert chosen(ROWS, None, FIDELITY)["the closest of the others"] == "auto @ openvino"
    # Of time alone the fastest one.
    assert chosen(ROWS, None, None)["the closest of the others"] == "auto @ openvino"


def test_what_was_not_measured_is_left_out() -> None:
    assert chosen(ROWS[:1], None) == {"the original": "best.pt"}
    assert chosen(ROWS[:2] + ROWS[11:13], None) == {
        "the original": "best.pt", "the original, exported": "best", "sees no picture": "control: grey",
    }  # fmt: skip
    assert chosen([], None) == chosen([row("best.pt", status="error"), *ROWS[1:]], None) == {}
