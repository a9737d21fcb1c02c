"""The study of promises: what holds is counted on photographs that are left over, and each rule chooses by its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.studies.choice_coverage import (
    _NAME,
    CROSSED,
    HALF,
    RULES,
    Pool,
    Rule,
    choose_again,
    format_coverage,
    measure_coverage,
)
from colorpress.cli import run_command
from compress.measures import CONTENT, MARGIN, Reference


def make_pool(*kept: float, photos: int = 240, noise: float = 0.3, seed: int = 3) -> Pool:
    """Files that keep such shares of content, each with an error of its own on each photograph."""
    generator = np.random.default_rng(seed)
    grey = generator.uniform(0.05, 0.15, photos)
    table, best = 0.95 * grey, 0.7 * grey
    shares = np.array(kept)[:, None] + noise * generator.normal(size=(len(kept), photos))
    l1 = table - shares * (table - best)
    reference = Reference(grey, table, best, 0.8 * grey, 20 * grey, 30 * grey)
    return Pool(np.arange(1.0, len(kept) + 1), l1, 0.3 * l1, reference)


def by_rule(rows: list[dict[str, float]], margin: float) -> dict[str, float]:
    return next(row for row in rows if row["margin"] == margin and row["rule"] == HALF)


def test_luck_is_told_from_promise() -> None:
    pool = make_pool(*np.linspace(0.5, 0.9, 12))
    rows = choose_again(pool, choosing=60, draws=60)
    assert [(row["rule"], row["margin"]) for row in rows] == [(rule.name, rule.margin) for rule in RULES]
    careless, careful = by_rule(rows, 0.0), by_rule(rows, MARGIN)
    assert careless["promised"] > careful["promised"] > 0
    assert careless["held"] < 0.75 < careful["held"]
    # The half that did not choose is as often too high as too low; the one that chose is not asked.
    assert abs(careful["reported_excess"]) < 0.02
    assert pool.reference.strength.measure is CONTENT
    # Two that have to agree promise less often than one as sure of itself, and hold more often.
    crossed = next(row for row in rows if row["rule"] == CROSSED and row["margin"] == 0.842)
    assert crossed["promised"] < by_rule(rows, 0.842)["promised"] and crossed["held"] > by_rule(rows, 0.842)["held"]


def test_a_choice_is_the_smallest_that_meets_the_goal() -> None:
    """Without noise every rule finds the smallest that there is, and all of it holds."""
    rows = choose_again(make_pool(0.2, 0.5, 0.8, 0.9, noise=0.0), choosing=20, draws=20)
    for row in rows:
        assert row["promised"] == row["held"] == 1.0 and row["size_ratio"] == 1.0
        assert row["reported_excess"] == pytest.approx(0.0, abs=1e-9)


def test_nothing_is_promised_where_nothing_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    hopeless = (Rule("hopeless", None, 1e6),)
    monkeypatch.setattr("benchmarks.studies.choice_coverage.RULES", hopeless)
    (row,) = choose_again(make_pool(0.4, 0.5, 0.6), choosing=20, draws=5)
    assert row["promised"] == 0.0 and np.isnan(row["held"])
    assert "| 20 | hopeless |" in format_coverage([row])


def test_it_runs_on_real_files(tmp_path: Path, photo_folder: Path, tiny_checkpoint: Path) -> None:
    arguments = [str(tiny_checkpoint), str(tiny_checkpoint), "--data", str(photo_folder), "-o", str(tmp_path / "out")]
    arguments += ["--test-share", "0.4", "--val-share", "0.4", "--draws", "2", "--device", "cpu", "--quiet"]
    assert run_command([*arguments, "--choosing", "500"], measure_coverage, _NAME) == 2
    assert run_command([*arguments, "--choosing", "4"], measure_coverage, _NAME) == 0
    table = pd.read_csv(tmp_path / "out" / "coverage.csv")
    assert list(table["choices"]) == [2] * len(RULES) and list(table["choosing"]) == [4] * len(RULES)
