"""The front of a search: what is on it, what goes on, what is recommended, and what to loosen where nothing fits."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from colorpress.core.config import BudgetConfig, GoalConfig
from colorpress.core.errors import InputError
from compress.budgets import Limit, read_limits
from compress.measures import CONTENT, FIDELITY, Measure, Scores
from compress.students.search_front import (
    COLUMNS,
    FRONT_FILES,
    STAGES,
    ControlRow,
    FrontRow,
    Recommendation,
    choose_spread,
    format_front,
    front_of,
    list_front,
    recommend,
    write_front,
)
from compress.students.search_space import PrunedPoint, StudentPoint, read_point
from tests.conftest import make_score

POINT = StudentPoint(4, 4, 8, 8, (1.0,), 1.0, 1, 100)


def row(
    name: str, size_bytes: int, latency_ms: float, kept: float, stage: str = STAGES[0], measure: Measure = CONTENT
) -> FrontRow:
    score = make_score(kept, 0.01, measure=measure)
    file = f"front/{name}/model.onnx" if stage == STAGES[2] else ""
    return FrontRow(name, stage, POINT, size_bytes, 10 * size_bytes, size_bytes, latency_ms, Scores(score), file)


ROWS = [
    row("a", 10_000, 0.5, 0.80),
    row("b", 20_000, 0.6, 0.90),
    row("c", 21_000, 0.7, 0.89),  # worse than b in all
    row("d", 40_000, 0.4, 0.95),
    row("e", 41_000, 0.4, 0.95),  # no better than d in anything
    row("f", 80_000, 2.0, 1.01),
    row("g", 82_000, 1.9, 1.00),
]


def names(rows: list[FrontRow]) -> str:
    return "".join(each.name for each in rows)


def test_the_table_says_which_answers_are_affine(tmp_path: Path) -> None:
    affine = replace(ROWS[1], point=replace(POINT, affine=True))
    write_front(tmp_path, [ROWS[0], affine], best_bytes=10**6, record={})
    assert list(pd.read_csv(tmp_path / "front.csv")["affine"]) == [False, True]
    rows = json.loads((tmp_path / "front.json").read_text())["rows"]
    assert [each["network"].get("affine", False) for each in rows] == [False, True]


def test_the_front_is_what_nothing_beats() -> None:
    assert names(front_of(ROWS)) == "abdfg"
    twin = row("t", 10_000, 0.5, 0.80)
    assert names(front_of([*ROWS, twin])) == "atbdfg"


def test_those_that_go_on_are_spread_over_the_sizes() -> None:
    assert names(choose_spread(ROWS, 2)) == "ag"
    assert names(choose_spread(ROWS, 3)) == "adg"
    assert names(choose_spread(ROWS, 5)) == "abdfg"
    assert names(choose_spread(ROWS, 6)) == "abcdfg"
    assert names(choose_spread(ROWS, 99)) == "abcdefg"
    assert choose_spread([], 3) == []


def demands(params: int = 100_000, **options: object) -> tuple[Limit, ...]:
    names = ("min_content_colour", "min_retained_colour", "max_l1_increase")
    goal = {name: options.pop(name) for name in names if name in options}
    whole = {"params": params, "macs": 10 * params}
    return read_limits(BudgetConfig(**options), GoalConfig(**goal), whole=whole)  # type: ignore[arg-type]


def recommended(rows: list[FrontRow], **options: object) -> Recommendation:
    return recommend(rows, demands(**options))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, "f"),
        ({"min_content_colour": 0.89}, "b"),
        ({"min_content_colour": 0.9}, "d"),  # b has it, but on other photographs it may not
        ({"max_l1_increase": 1.1}, "b"),
        ({"max_l1_increase": 1.0}, "d"),
        ({"min_content_colour": 0.85, "max_l1_increase": 0.6}, "d"),
        ({"min_retained_colour": 0.4, "target_size": "30KB"}, "a"),  # of G all have 0.5
        ({"target_size": "30KB"}, "b"),
        ({"target_size": "50KB", "min_content_colour": 0.92}, "d"),
        ({"target_latency_ms": 0.45}, "d"),
        ({"keep_params": 0.15}, "a"),
        ({"keep_macs": 0.81, "min_content_colour": 1.0}, "f"),
    ],
)
def test_the_recommended_one_meets_all_that_is_asked_for(asked: dict[str, object], expected: str) -> None:
    found = recommended(ROWS, **asked)
    assert found.row is not None and found.row.name == expected
    assert found.sentence.startswith(f"{expected}: ")


@pytest.mark.parametrize(
    ("measure", "expected", "why"),
    [
        (CONTENT, "f", "the smallest that keeps C 1.000 with 80 % confidence"),
        (FIDELITY, "b", "the smallest that keeps F 0.800 with 80 % confidence"),  # a has 0.8 on these photographs alone
    ],
)
def test_without_goals_the_measure_that_decides_is_kept_whole(measure: Measure, expected: str, why: str) -> None:
    rows = [replace(each, scores=Scores(make_score(each.score.kept, 0.01, measure=measure))) for each in ROWS]
    found = recommend(rows, ())
    assert found.row is not None and found.row.name == expected
    assert found.sentence.endswith(f"; {why}.")
    lost = [replace(each, scores=Scores(make_score(each.score.kept - 0.5, 0.01, measure=measure))) for each in ROWS]
    assert recommend(lost, ()).sentence.startswith("f: ")
    assert recommend(lost, ()).sentence.endswith("keeps as much colour as any.")


def test_of_what_keeps_as_much_within_the_noise_the_smallest_is_recommended() -> None:
    first, second = replace(ROWS[5], scores=Scores(make_score(0.6, 0.02))), ROWS[3]
    assert first.size_bytes > second.size_bytes

    def take(kept: float) -> str:
        rows = [first, replace(second, scores=Scores(make_score(kept, 0.02)))]
        return recommend(rows, ()).label or ""

    # 0.6 +- 0.02 here is 0.587 or more on as many others, in 80 % of cases.
    assert take(0.59) == second.label and take(0.586) == first.label
    nothing = dict.fromkeys(("l1_delta_low", "l1_delta_high", "content_low", "content_high"), math.nan)
    scores = [make_score(0.6, 0.02), make_score(0.59, 0.02)]
    by_l1 = [replace(each, content_colour=math.nan) for each in scores]
    # Several photographs without an interval: nothing can be said for sure, so what keeps most is taken.
    unsure = [replace(each, **nothing, l1_delta_pct=math.nan) for each in scores]
    for found, expected in ((by_l1, second.label), (unsure, first.label)):
        rows = [replace(row, scores=Scores(score)) for row, score in zip((first, second), found, strict=True)]
        assert recommend(rows, ()).label == expected


def test_what_did_not_choose_is_said_beside_and_decides_nothing(tmp_path: Path) -> None:
    told = [replace(each, scores=Scores(each.score, make_score(each.score.kept - 0.3, 0.02))) for each in ROWS]
    found = recommend(told, demands(min_content_colour=0.89))
    assert found.row is not None and found.row.name == "b"
    assert "C 0.900 on the photographs that chose, C 0.600 on others; the smallest" in found.sentence
    alone = recommend(ROWS, demands(min_content_colour=0.89))
    assert "C 0.900; the smallest" in alone.sentence
    write_front(tmp_path, [told[1], ROWS[0]], best_bytes=1, record={})
    first, second = json.loads((tmp_path / "front.json").read_text())["rows"]
    assert first["confirmed_kept"] == pytest.approx(0.6) and first["confirmed_low"] == pytest.approx(0.58)
    assert first["confirmed_high"] == pytest.approx(0.62) and first["confirmed_l1_delta_pct"] == pytest.approx(4.0)
    assert [second[name] for name in COLUMNS if name.startswith("confirmed")] == [None] * 4
    lines = format_front([told[1], ROWS[0]], 1)
    assert "colour C" in lines[0] and "on others" in lines[0]
    assert "0.900" in lines[2] and "0.600" in lines[2] and "0.600" not in lines[1]


def test_where_nothing_fits_it_says_what_to_loosen_and_how_far() -> None:
    found = recommended(ROWS, target_size="15KB", min_content_colour=0.92)
    assert found.row is None
    assert found.sentence.startswith(
        "Nothing found meets --min-content-colour 0.92 and --target-size 15KB. a comes nearest"
    )
    assert "C 0.793 with 80 % confidence (13.8 % off --min-content-colour 0.92)" in found.sentence
    assert (
        "Loosen --min-content-colour 0.92 to C 0.793 with 80 % confidence (a), or --target-size 15KB to 40.0 kB (d)"
        in found.sentence
    )
    alone = recommended(ROWS, target_size="5KB", keep_params=0.05, min_content_colour=2.0)
    assert alone.row is None and "More than one has to be loosened" in alone.sentence


def test_candidates_do_not_stand_in_for_files() -> None:
    exported = [row("x", 30_000, 0.5, 0.93, STAGES[2])]
    found = recommended([*ROWS, *exported], target_size="50KB")
    assert found.row is not None and found.row.file == "front/x/model.onnx"
    assert recommended([]).row is None


def test_where_there_is_no_colour_the_l1_counts(tmp_path: Path) -> None:
    unknown = {"content_colour": math.nan, "content_low": math.nan, "content_high": math.nan}
    blind = [replace(each, scores=Scores(replace(each.score, **unknown))) for each in ROWS]
    assert names(front_of(blind)) == "abdfg"
    assert "+2.00 % L1" in blind[0].describe()
    refused = recommended(blind, min_content_colour=0.5)
    assert refused.row is None and "no C, since best.pt has nothing of it to keep here" in refused.sentence
    most = recommended(blind).row
    assert most is not None and most.name == "f"
    write_front(
        tmp_path, [replace(each, scores=Scores(each.score, each.score)) for each in blind], best_bytes=1, record={}
    )
    assert "NaN" not in (tmp_path / "front.json").read_text()
    assert "(+2.0 % L1)" in format_front(blind, 1)[1]


def test_a_benchmark_looks_at_few_files_of_a_long_front(tmp_path: Path) -> None:
    assert list_front(tmp_path) == []
    rows = [row(f"{index:02}", 1000 * (index + 1), 20.0 - index, 0.5, STAGES[2]) for index in range(15)]
    beaten = row("beaten", 99_000, 99.0, 0.1, STAGES[2])
    write_front(tmp_path, [*rows, beaten], best_bytes=1, record={"recommended": rows[1].file})
    assert list_front(tmp_path) == [f"front/{name}" for name in ("00", "01", "02", "04", "06", "08", "10", "12", "14")]
    write_front(tmp_path, rows[:3], best_bytes=1, record={"recommended": None})
    assert list_front(tmp_path) == ["front/00", "front/01", "front/02"]
    (tmp_path / "front.json").write_text('{"rows": [{}]}')
    with pytest.raises(InputError, match="is damaged"):
        list_front(tmp_path)


def test_the_files_say_what_is_on_the_front(tmp_path: Path) -> None:
    paths = write_front(tmp_path, ROWS, best_bytes=400_000, record={"recommended": "g", "sentence": "so"})
    assert tuple(path.name for path in paths) == FRONT_FILES and all(path.stat().st_size for path in paths)
    table = pd.read_csv(paths[0])
    assert "".join(table.loc[table["on_front"], "name"]) == "abdfg"
    assert list(table["times_smaller"])[:2] == [40.0, 20.0]
    written = json.loads(paths[1].read_text())
    assert written["sentence"] == "so" and [each["name"] for each in written["rows"]] == list("abcdefg")
    assert read_point(written["rows"][0]["point"]) == POINT
    first = written["rows"][0]
    assert (first["measure"], first["content_colour"], first["fidelity"]) == ("content_colour", 0.8, 0.5)
    assert (first["content_low"], first["content_high"]) == pytest.approx((0.79, 0.81))
    lines = format_front(ROWS, 400_000)
    assert len(lines) == 6 and "40.0 kB" in lines[3] and "0.950" in lines[3]


def test_what_sees_no_picture_stands_beside_the_front(tmp_path: Path) -> None:
    scores = {"control: grey": make_score(-5.0, 0.1), "control: lightness table": make_score(0.0, 0.0)}
    controls = [ControlRow(name, "controls/x.onnx", 500, score) for name, score in scores.items()]
    table, record, chart = write_front(tmp_path, ROWS, controls, best_bytes=400_000, record={})
    cells = pd.read_csv(table).set_index("name")
    assert list(cells.index[-2:]) == list(scores) and not cells.loc[list(scores), "on_front"].any()
    assert cells.loc["control: lightness table", "content_colour"] == 0.0
    assert cells.loc["control: lightness table", ["latency_ms", "params"]].isna().all()
    written = json.loads(record.read_text())
    assert [each["name"] for each in written["controls"]] == list(scores) and len(written["rows"]) == len(ROWS)
    lines = format_front(ROWS, 400_000, controls)
    assert len(lines) == 8 and lines[-1].split() == [
        *("control:", "lightness", "table", "500", "B", "800.0", "0.000", "sees", "no", "picture"),
    ]
    # A line that changes nothing else of the chart; one far below everything is left out.
    shown = chart.read_bytes()
    write_front(tmp_path, ROWS, controls[:1], best_bytes=400_000, record={})
    without = chart.read_bytes()
    write_front(tmp_path, ROWS, best_bytes=400_000, record={})
    assert without == chart.read_bytes() != shown


def test_pruned_networks_stand_among_the_students(tmp_path: Path) -> None:
    pruned = replace(ROWS[3], name="p", point=PrunedPoint(0.25, 100, output_stride=2))
    table, record, chart = write_front(tmp_path, [ROWS[0], pruned], best_bytes=400_000, record={})
    cells = pd.read_csv(table).set_index("name")
    assert list(cells["start"]) == ["scratch", "pruned"] and cells.loc["p", "kept_channels"] == 0.25
    assert cells.loc["p", "output_stride"] == 2 and cells.loc["p", ["widths", "affine"]].isna().all()
    assert cells.loc["a", "widths"] == "8-8" and pd.isna(cells.loc["a", "kept_channels"])
    rows = json.loads(record.read_text())["rows"]
    assert read_point(rows[1]["point"]) == pruned.point and rows[1]["network"] is None
    shown = chart.read_bytes()
    write_front(tmp_path, [ROWS[0], replace(pruned, point=POINT)], best_bytes=400_000, record={})
    assert chart.read_bytes() != shown  # they have a mark of their own
