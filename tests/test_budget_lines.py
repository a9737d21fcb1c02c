"""Goals and budgets: who meets them, with the figure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from test_verdict import BEST, SMALL, row

from benchmarks.budget_lines import BudgetLine, judge_budgets
from colorpress.core.errors import ConfigError
from compress.measures import CONTENT

WORK = {"params": 8_000_000, "macs": 12_000_000_000}
ROWS = [
    replace(BEST, **WORK),
    row("pruned", **SMALL, params=2_000_000, macs=6_000_000_000, retained_colour=0.97, l1_delta_pct=0.3,
        content_colour=0.9, fidelity=0.8),
    row("auto", **{**SMALL, "size_bytes": 300_000, "p50_ms": 2.0, "speedup": 50.0}, params=60_000, macs=2_000_000_000,
        retained_colour=0.95, l1_delta_pct=0.8, content_colour=0.7, fidelity=0.85),
    row("nncf", peer=True, **{**SMALL, "p50_ms": 0.1}, **WORK),
    row("late", status="timeout", speedup=None, **WORK),
]  # fmt: skip


def test_without_a_budget_there_is_no_line() -> None:
    assert judge_budgets({"epochs": 3, "student-effort": "fast"}, ROWS, "auto", CONTENT) == []
    assert judge_budgets({"target-size": "1MB"}, [], None, CONTENT) == []


@pytest.mark.parametrize(
    ("options", "met", "sentence"),
    [
        ({"min-retained-colour": 0.95}, True, "auto: G 0.950."),
        ({"min-retained-colour": 0.96}, False, "auto: G 0.950; pruned meets it: G 0.970."),
        ({"min-content-colour": 0.8}, False, "auto: C 0.700; pruned meets it: C 0.900."),
        ({"min-fidelity": 0.85}, True, "auto: F 0.850."),
        ({"max-l1-increase": 0.1}, False, "auto: ΔL1 +0.80 %; no variant meets it."),
        ({"keep-params": 0.01}, True, "auto: 60 k parameters, 0.75 % of best.pt's."),
        ({"keep-macs": 0.1}, False,
         "auto: 2 G multiply-accumulates, 16.7 % of best.pt's; no variant meets it."),
        ({"target-size": "310KB"}, True, "auto: 300 kB."),
        ({"target-size": "200KB"}, False, "auto: 300 kB; no variant meets it."),
        ({"target-latency-ms": 1.0}, False, "auto: 2.00 ms a picture; no variant meets it."),
    ],
)  # fmt: skip
def test_each_budget_is_judged_by_its_figure(options: dict[str, Any], met: bool, sentence: str) -> None:
    (line,) = judge_budgets(options, ROWS, "auto", CONTENT)
    ((name, value),) = options.items()
    assert line == BudgetLine(f"{name} {value}", met, sentence)


def test_without_a_recommendation_the_variant_that_meets_it_is_named() -> None:
    (line,) = judge_budgets({"target-latency-ms": 5}, ROWS, None, CONTENT)
    assert line == BudgetLine("target-latency-ms 5", None, "Nothing is recommended; auto meets it: 2.00 ms a picture.")


def test_a_batch_is_divided() -> None:
    rows = [replace(each, batch=8) for each in ROWS]
    (line,) = judge_budgets({"target-latency-ms": 0.3}, rows, "auto", CONTENT)
    assert (line.met, line.sentence) == (True, "auto: 0.25 ms a picture.")


def test_an_unknown_figure_is_no_answer() -> None:
    unknown = [ROWS[0], replace(ROWS[2], params=0)]
    (line,) = judge_budgets({"keep-params": 0.5}, unknown, "auto", CONTENT)
    assert (line.met, line.sentence) == (None, "auto has no such figure; no variant meets it.")
    (line,) = judge_budgets({"keep-macs": 0.5}, [replace(ROWS[0], macs=None), ROWS[2]], "auto", CONTENT)
    assert (line.met, line.sentence) == (None, "best.pt has no figure.")


def test_a_value_out_of_range_is_refused() -> None:
    with pytest.raises(ConfigError, match="target-size"):
        judge_budgets({"target-size": "much"}, ROWS, "auto", CONTENT)
