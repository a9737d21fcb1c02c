"""What a model is worth: exact where it is known, clear where nothing can be known, and the same every time."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from compress.budgets import Limit
from compress.measures import (
    CONTENT,
    FIDELITY,
    HARDLY_PAINTS,
    MARGIN,
    MEASURES,
    NOT_TOLD,
    RETAINED,
    TINT,
    VIVID,
    Measure,
    Reference,
    Score,
    Strength,
    Weakness,
)
from training.metrics import Floats

GREY = 0.1


def make_reference(
    photos: int = 60, *, table: float, best: float, to_grey: float = 0.08, spread: float = 0.2
) -> Reference:
    """Photographs of different colourfulness: L1 of the table and of best.pt as shares of the grey answer's, 0.1."""
    strengths = np.random.default_rng(5).uniform(1 - spread, 1 + spread, photos)
    grey = GREY * strengths / strengths.mean()
    return Reference(grey, table * grey, best * grey, to_grey * grey / GREY, 12 * grey / GREY, 20 * grey / GREY)


def make_score(**figures: float) -> Score:
    """A score by fidelity; what is not given is unknown."""
    names = ("l1", "l1_delta_pct", "retained_colour", "content_colour", "fidelity")
    ends = [f"{prefix}_{end}" for prefix in ("l1_delta", "retained", "content", "fidelity") for end in ("low", "high")]
    return Score(**{**dict.fromkeys((*names, *ends), math.nan), "measure": "fidelity", **figures})


@pytest.mark.parametrize(
    ("below_pct", "measure"), [(0, FIDELITY), (2, FIDELITY), (4.99, FIDELITY), (5.01, CONTENT), (20, CONTENT)]
)
def test_content_decides_where_best_is_clearly_better_than_the_table(below_pct: float, measure: Measure) -> None:
    strength = make_reference(table=0.75 / (1 - below_pct / 100), best=0.75).strength
    assert strength.measure is measure
    assert strength.below_table_pct == pytest.approx(below_pct, abs=1e-9)
    assert strength.beats_table == (measure is CONTENT) and strength.beats_grey
    assert bool(strength.caution) == (measure is FIDELITY)


def test_an_interval_that_holds_zero_is_no_clear_gain() -> None:
    few = make_reference(5, table=1.0, best=0.9)
    noisy = replace(few, table_l1=few.best_l1 * np.array([1.9, 0.6, 1.5, 0.6, 1.3]))
    strength = noisy.strength
    assert strength.below_table_pct > 5 and strength.below_table_low < 0 < strength.below_table_high
    assert strength.measure is FIDELITY and "not clearly better than a table" in strength.caution


@pytest.mark.parametrize(
    ("strength", "weakness"),
    [
        (Strength(60, 20.0, 18.0, 16.0, 20.0, 0.6), None),
        (Strength(60, 20.0, 2.0, 1.0, 3.0, 0.6), TINT),
        (Strength(1, 20.0, 18.0, math.nan, math.nan, 0.6), NOT_TOLD),  # one photograph
        (Strength(60, 20.0, math.nan, math.nan, math.nan, 0.6), NOT_TOLD),  # no table
        (Strength(60, -3.0, math.nan, math.nan, math.nan, 1.2), VIVID),
        (Strength(60, 0.1, -9.0, -10.0, -8.0, 0.01), HARDLY_PAINTS),
        (Strength(60, math.nan, math.nan, math.nan, math.nan, math.nan), None),
    ],
)
def test_what_is_said_of_a_weak_original_is_what_was_found(strength: Strength, weakness: Weakness | None) -> None:
    assert strength.weakness is weakness
    cautions = [weakness.caution] if weakness else []
    assert strength.sentences() == [strength.describe(), *cautions]
    assert ("not clearly better" in strength.caution) == (weakness is TINT)


def test_best_itself_keeps_all_and_a_table_has_no_content() -> None:
    reference = make_reference(table=0.97, best=0.8)
    best = reference.best
    assert [getattr(best, name) for name in MEASURES] == [1, 1, 1]
    assert best.l1_delta_pct == 0 and best.loss == 0 and best.interval == (1, 1)
    to_best = 0.07 * reference.best_to_grey / 0.08
    table = reference.score(reference.table_l1, to_best)
    assert table.content_colour == 0 and (table.content_low, table.content_high) == (0, 0)
    assert table.fidelity == pytest.approx(1 - 0.07 / 0.08)
    assert table.retained_colour == pytest.approx(0.03 / 0.2)
    grey = reference.score(reference.grey_l1, reference.best_to_grey)
    assert (grey.retained_colour, grey.fidelity) == (0, 0) and grey.content_colour == pytest.approx(-0.03 / 0.17)


def test_the_measure_that_decides_is_what_is_kept_lost_and_said() -> None:
    strong, weak = make_reference(table=0.97, best=0.8), make_reference(table=0.82, best=0.8)
    for reference, measure in ((strong, CONTENT), (weak, FIDELITY)):
        score = reference.score(1.01 * reference.best_l1, 0.1 * reference.best_to_grey)
        assert score.measure == measure.name
        assert score.kept == getattr(score, measure.name) and score.loss == pytest.approx(1 - score.kept)
        assert score.interval == (getattr(score, measure.low), getattr(score, measure.high))
        assert score.describe() == f"{measure.symbol} {score.kept:.3f}"
        assert score.describe_interval() == f" (95 % interval {score.interval[0]:.3f} to {score.interval[1]:.3f})"


def test_best_worse_than_grey_is_measured_by_its_own_colours() -> None:
    reference = make_reference(table=0.95, best=1.2, to_grey=0.1)
    strength = reference.strength
    assert not strength.beats_grey and strength.measure is FIDELITY
    assert "no better than grey's" in strength.caution and "fidelity F" in strength.caution
    assert "20.0 % above grey" in strength.describe() and "above a lightness table" in strength.describe()
    assert "26.3 % above a lightness table (95 % interval 26.3 to 26.3)" in strength.describe()
    score = reference.score(reference.best_l1, 0.25 * reference.best_to_grey)
    assert math.isnan(score.retained_colour) and math.isnan(score.content_colour)
    assert score.kept == score.fidelity == pytest.approx(0.75)
    worse = reference.score(reference.best_l1, 1.5 * reference.best_to_grey)
    assert worse.fidelity == pytest.approx(-0.5)


def test_photographs_without_colour_give_no_measure_and_a_clear_sentence() -> None:
    nothing = np.full(8, 1e-5)
    reference = Reference(nothing, nothing, nothing * 9, nothing * 9, nothing, nothing)
    strength = reference.strength
    assert strength.describe() == "These photographs hold no colour, so nothing can be measured on them."
    assert strength.caution == "" and not strength.beats_grey and not strength.beats_table
    score = reference.score(nothing * 10, nothing)
    assert all(math.isnan(getattr(score, name)) for name in MEASURES)
    assert score.loss == pytest.approx(10 / 9 - 1) and score.describe() == "+11.11 % L1"
    assert score.describe_interval() == "" and math.isnan(reference.best.kept)


def test_best_that_answers_grey_has_no_fidelity_to_keep() -> None:
    grey = np.array([0.1, 0.2])
    reference = Reference(grey, grey * 0.9, grey, grey * 0, grey * 0, grey)
    assert math.isnan(reference.best.kept) and reference.best.loss == 0
    assert "its colours have 0 % of the truth's chroma" in reference.strength.describe()
    assert "hardly paints at all" in reference.strength.caution


def test_one_photograph_has_figures_and_no_intervals() -> None:
    reference = make_reference(1, table=0.97, best=0.5)
    strength = reference.strength
    assert strength.measure is FIDELITY and math.isnan(strength.below_table_low)
    assert "best.pt on 1 photograph: L1 50.0 % below grey" in strength.describe()
    assert "interval" not in strength.describe()
    # Brown where the truth is blue is no vivid colour: of one picture neither can be told.
    assert make_reference(1, table=0.97, best=1.5).strength.weakness is NOT_TOLD is strength.weakness
    score = reference.score(0.6 * reference.grey_l1, 0.3 * reference.best_to_grey)
    assert score.kept == pytest.approx(0.7) and all(map(math.isnan, score.interval))
    assert score.likely_figures() == {
        "retained_colour": pytest.approx(0.8), "content_colour": pytest.approx(0.37 / 0.47),
        "fidelity": pytest.approx(0.7), "l1_delta_pct": pytest.approx(20.0),
    }  # fmt: skip


def test_intervals_hold_the_value_and_repeat() -> None:
    noise = np.random.default_rng(2).normal(1, 0.1, 60)
    one, again = (make_reference(table=0.97, best=0.8) for _ in range(2))
    score = one.score(one.best_l1 * (1 + 0.02 * noise), 0.2 * one.best_to_grey * noise)
    assert score == again.score(again.best_l1 * (1 + 0.02 * noise), 0.2 * again.best_to_grey * noise)
    for measure in MEASURES.values():
        assert getattr(score, measure.low) < getattr(score, measure.name) < getattr(score, measure.high)
    assert score.l1_delta_low < score.l1_delta_pct < score.l1_delta_high
    strength = replace(one, best_l1=one.best_l1 * noise).strength
    assert strength.below_table_low < strength.below_table_pct < strength.below_table_high


def test_likely_figures_are_worse_by_a_part_of_the_interval() -> None:
    noise = np.random.default_rng(2).normal(1, 0.3, 60)
    reference = make_reference(table=0.97, best=0.8)
    score = reference.score(reference.best_l1 * (1 + 0.02 * noise), 0.2 * reference.best_to_grey * noise)
    likely = score.likely_figures()
    for measure in MEASURES.values():
        assert getattr(score, measure.low) < likely[measure.name] < getattr(score, measure.name)
    assert score.l1_delta_pct < likely["l1_delta_pct"] < score.l1_delta_high
    # 95 % of a normal distribution are within 3.92 of its deviations, and one in ten is further down than 1.282.
    ends = {"fidelity_low": 0.9 - 0.0196, "fidelity_high": 0.9 + 0.0196, "l1_delta_low": 0.0, "l1_delta_high": 1.0}
    by_hand = make_score(fidelity=0.9, **ends)
    assert pytest.approx(1.282) == MARGIN and by_hand.likely_figures()["fidelity"] == pytest.approx(0.9 - 0.01282)
    assert by_hand.likely_figures(margin=0.0)["fidelity"] == 0.9
    assert Limit("min_fidelity", 0.8871).is_met(by_hand.likely_figures())
    assert not Limit("min_fidelity", 0.8872).is_met(by_hand.likely_figures())
    # Several photographs, some draws of which have nothing to keep: nothing is promised; one photograph: as it is.
    assert math.isnan(replace(by_hand, fidelity_low=math.nan, fidelity_high=math.nan).likely_figures()["fidelity"])
    assert make_score(fidelity=0.9).likely_figures()["fidelity"] == 0.9


def test_everything_goes_through_json_and_back_without_nan() -> None:
    for reference in (make_reference(1, table=0.97, best=1.5), make_reference(table=0.97, best=0.8)):
        for value in (reference.strength, reference.best):
            text = json.dumps(value.to_dict(), allow_nan=False)
            assert repr(type(value).of(json.loads(text))) == repr(value)


def test_names_of_measures_are_those_of_the_figures() -> None:
    assert list(MEASURES) == ["retained_colour", "content_colour", "fidelity"]
    score = make_reference(table=0.97, best=0.8).best
    for measure in (RETAINED, CONTENT, FIDELITY):
        assert {measure.name, measure.low, measure.high} <= score.to_dict().keys()
        assert Limit(f"min_{measure.name}", measure.whole).is_floor
    assert isinstance(Strength.of(make_reference(table=0.97, best=0.8).strength.to_dict()), Strength)


def test_a_weak_interval_does_not_warn(recwarn: pytest.WarningsRecorder) -> None:
    """Draws in which best.pt has nothing to keep are no arithmetic error."""
    grey: Floats = np.array([0.1, 0.2])
    reference = Reference(grey, grey, grey * np.array([0.9, 1.1]), grey, grey, grey)
    assert math.isnan(reference.score(grey, grey).retained_low)
    assert not recwarn.list
