"""Sentences on other tools' files, on synthetic rows of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from test_verdict import BEST, SMALL, judge_rows, row

from benchmarks import peer_verdict
from benchmarks.peer_verdict import dominates
from benchmarks.rows import Row
from compress.measures import CONTENT, FIDELITY


def judge_peers(rows: Sequence[Row]) -> list[str]:
    return peer_verdict.judge_peers(rows, judge_rows(rows).recommended, CONTENT)


PEER = {"peer": True, "runtime": "openvino", "size_bytes": 8_000_000, "weights_bytes": 8_000_000, "p50_ms": 25.0}


def test_a_peer_is_dominated_by_what_beats_it_in_all_three() -> None:
    ours, better = row("pruned", **SMALL), row("auto", **{**SMALL, "size_bytes": 300_000})
    peer = row("nncf-int8", **PEER, speedup=4.0, content_colour=0.9, content_low=0.89, content_high=0.91)
    assert judge_peers([BEST, ours, better, peer]) == [  # auto is the recommended one
        "auto beats nncf-int8 in size, speed and colour: it is 26.7 times smaller (300 kB, not 8.00 MB), "
        "is 1.25 times as fast (20.0 ms, not 25.0 ms) and keeps more colour (C 1.000, not 0.900)."
    ]
    assert dominates(ours, peer, CONTENT) and not dominates(peer, ours, CONTENT)


@pytest.mark.parametrize(
    ("changes", "wins"),
    [
        ({"size_bytes": 1_000_000, "weights_bytes": 1_000_000}, "is 3.10 times smaller (1.00 MB, not 3.10 MB)"),
        ({"speedup": 10.0, "p50_ms": 10.0}, "is 2.00 times as fast (10.0 ms, not 20.0 ms)"),
        ({"content_colour": 1.005}, "keeps more colour (C 1.005, not 1.000; the intervals overlap)"),
    ],
)
def test_what_a_peer_wins_is_said(changes: dict[str, Any], wins: str) -> None:
    peer = row("nncf-int8", **{**PEER, "speedup": 4.0, "content_colour": 0.9, **changes})
    (sentence,) = judge_peers([BEST, row("pruned", **SMALL), peer])
    assert sentence.startswith(
        f"nncf-int8 is not beaten in size, speed and colour at once; beside pruned it {wins}, but "
    )


def test_a_peer_with_nothing_to_win_or_to_compare_is_said_so() -> None:
    tie = row("tie", **{**SMALL, "peer": True})
    failed = row("failed", peer=True, status="oom", speedup=None, content_colour=None)
    elsewhere = row("elsewhere", **PEER, batch=8)
    tied, broken = judge_peers([BEST, row("pruned", **SMALL), tie, failed, elsewhere])
    assert tied.startswith("tie wins nothing beside pruned: it is as large (3.10 MB), is as fast")
    assert broken == "failed cannot be compared: it did not finish (oom)."
    assert "has nothing of ours" in judge_peers([BEST, tie])[0]
    assert judge_peers([]) == []


def test_peers_are_judged_by_the_measure_that_decides() -> None:
    ours = row("pruned", **SMALL, fidelity=0.97, content_colour=0.1)
    peer = row("nncf-int8", **PEER, speedup=4.0, fidelity=0.8, fidelity_low=0.79, fidelity_high=0.81)
    (by_fidelity,) = peer_verdict.judge_peers([BEST, ours, peer], None, FIDELITY)
    assert "keeps more colour (F 0.970, not 0.800)" in by_fidelity
    assert dominates(ours, peer, FIDELITY) and not dominates(ours, peer, CONTENT)
