"""The choice of a student: the oracle of strides, the ladder, and the smallest that meets the goal."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from colorpress.core.errors import ConfigError, InputError
from compress.budgets import Limit
from compress.measures import CONTENT, FIDELITY, Measure, Reference, Score, Scores
from compress.students.student_job import (
    build_student,
    find_coarsest_stride,
    list_output_strides,
    score_strides,
)
from compress.students.student_plan import (
    FINEST_AFFINE_STRIDE,
    Candidate,
    StrideScore,
    StudentPlan,
    read_student_network,
    write_student_plan,
)
from compress.students.student_stages import (
    choose_candidate,
    describe_missed,
    flat_ladder,
    growing_ladder,
)
from compress.yardstick import Picture, Yardstick
from tests.conftest import make_score
from training.unet import UNetPlan, count_parameters


def coarse_picture(stride: int) -> Tensor:
    """Colours that change every `stride` pixels and not between."""
    blocks = torch.rand(1, 2, 64 // stride, 64 // stride, generator=torch.Generator().manual_seed(1)) - 0.5
    return nn.functional.interpolate(blocks, scale_factor=stride, mode="nearest")


def painted(ab: Tensor, measure: Measure = CONTENT) -> Yardstick:
    """Three times a picture whose colours best.pt knows, and where another measure than C decides no table does."""
    grey = np.full(3, ab.abs().mean().item())
    table = grey if measure is CONTENT else grey * math.nan
    reference = Reference(grey, table, 0 * grey, grey, 9 * grey, 9 * grey)
    assert reference.strength.measure is measure
    return Yardstick((Picture(torch.zeros(1, 1, *ab.shape[-2:]), ab, ab),) * 3, reference)


@pytest.mark.parametrize("measure", [CONTENT, FIDELITY])
def test_the_oracle_tells_fine_answers_from_coarse_ones(measure: Measure) -> None:
    kept = {}
    for stride in (1, 16):
        scores = score_strides(painted(coarse_picture(stride), measure), strides=(1, 2, 8))
        assert [(each.stride, each.measure) for each in scores] == [(stride, measure.name) for stride in (1, 2, 8)]
        assert scores[0].kept == pytest.approx(1.0)
        kept[stride] = scores[2].kept
    assert kept[1] < 0.5 < 0.6 < kept[16]


def test_the_oracle_looks_at_each_photograph_for_itself() -> None:
    ab = coarse_picture(8)
    yardstick = painted(ab)
    pictures = tuple(Picture(torch.zeros(1, 1, 64, 64), ab * sign, ab * sign) for sign in (1, -1, 1))
    # Answers to another photograph would be worse than grey.
    assert score_strides(replace(yardstick, pictures=pictures), strides=(1, 8))[0].kept == pytest.approx(1.0)


def test_sizes_that_are_no_multiple_go_through_the_oracle() -> None:
    assert len(score_strides(painted(coarse_picture(8)[..., :37, :50]))) == 6


@pytest.mark.parametrize(
    ("kept", "expected"),
    [((1.0, 1.01, 0.995, 0.98), 4), ((1.0, 0.9, 0.9, 0.9), 1), ((math.nan,) * 4, 1), ((1.0, 0.9, 1.0, 0.9), 4)],
)
def test_the_coarsest_stride_that_keeps_the_colour(kept: tuple[float, ...], expected: int) -> None:
    assert find_coarsest_stride(strides(kept)) == expected


def test_under_fidelity_a_stride_has_to_keep_what_a_student_is_asked_for() -> None:
    kept = (1.0, 0.95, 0.795, 0.73)
    assert find_coarsest_stride(strides(kept, FIDELITY)) == 4 and find_coarsest_stride(strides(kept)) == 1
    assert list_output_strides(strides(kept, FIDELITY)) == (1, 2, 4)


def strides(kept: tuple[float, ...], measure: Measure = CONTENT) -> list[StrideScore]:
    """Of the strides from 1 on."""
    return [StrideScore(2**power, 0.0, measure.name, value) for power, value in enumerate(kept)]


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ((1.0, 1.006, 1.011, 1.009, 0.995, 0.963), (4, 8, 16)),  # finer than 4 costs more and keeps less
        ((1.0, 0.9, 0.8, 0.7, 0.6, 0.5), (1,)),
        ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), (1, 2, 4, 8, 16, 32)),
        ((1.0, 1.01, 1.02, 1.03, 1.04, 1.05), (32,)),
        ((math.nan,) * 6, (1, 2, 4, 8, 16, 32)),  # there is no colour
    ],
)
def test_a_search_takes_finer_strides_only_where_they_keep_more(
    kept: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    assert list_output_strides(strides(kept)) == expected


@pytest.mark.parametrize("make_ladder", [flat_ladder, growing_ladder])
@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
def test_a_ladder_answers_at_its_stride_and_grows(
    stride: int, make_ladder: Callable[[int], tuple[UNetPlan, ...]]
) -> None:
    ladder = make_ladder(stride)
    assert {plan.output_stride for plan in ladder} == {stride}
    assert {plan.size_multiple for plan in ladder} == {32}
    assert {plan.stem_stride for plan in ladder} == {max(1, stride // 4)}
    assert {plan.affine for plan in ladder} == {stride >= FINEST_AFFINE_STRIDE}
    sizes = [count_parameters(build_student(plan, 0)) for plan in ladder[:4]]
    assert sizes == sorted(set(sizes))


def test_flat_students_have_as_many_channels_everywhere_and_growing_ones_more_the_deeper() -> None:
    assert all(len(set(plan.encoder)) == 1 for plan in flat_ladder(4))
    growing = growing_ladder(4)[3]
    assert growing.encoder == ((10,), (20,), (30,), (40,), (50,), (60,))
    assert growing.decoder == ((50, 50), (40, 40), (30, 30))


def test_a_student_starts_from_grey_and_draws_nothing_from_the_global_generator() -> None:
    plan = flat_ladder(8)[0]
    before = torch.get_rng_state()
    network = build_student(plan, 3).eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert not network(torch.rand(1, 1, 32, 32)).any()
    assert torch.equal(network.encoder[0][0].weight, build_student(plan, 3).encoder[0][0].weight)
    assert not torch.equal(network.encoder[0][0].weight, build_student(plan, 4).encoder[0][0].weight)


def candidates(count: int) -> list[Candidate]:
    return [Candidate(plan, params=10 * place, macs=1) for place, plan in enumerate(flat_ladder(8)[:count])]


def whole(measure: Measure = CONTENT) -> tuple[Limit, ...]:
    return (Limit(f"min_{measure.name}", measure.whole),)


@pytest.mark.parametrize("measure", [CONTENT, FIDELITY])
@pytest.mark.parametrize("first_good", [0, 1, 4, 7, 8])
def test_the_smallest_that_meets_the_goal_is_found_with_few_trials(first_good: int, measure: Measure) -> None:
    tried = []

    def try_out(candidate: Candidate) -> Score:
        tried.append(candidate.params // 10)
        # C is above 1 where a student is better than best.pt, F never is. The other measures say the opposite.
        is_good = tried[-1] >= first_good
        return make_score(measure.whole + (0.05 if is_good else -0.05), measure=measure, others=0.0 if is_good else 2.0)

    chosen, seen, reason = choose_candidate(candidates(9), goals=whole(measure), try_out=try_out)
    assert chosen.params // 10 == first_good
    assert len(tried) == len(set(tried)) <= 5
    assert "smallest" in reason
    shown = f"{measure.symbol} {measure.whole + 0.05:.3f} (95 % interval {measure.whole:.3f} to"
    assert chosen.verdict.startswith(f"after a short training {shown}")
    assert chosen.verdict.endswith(f": enough for {measure.symbol} {measure.whole:.3f}")
    assert (chosen.measure, chosen.kept) == (measure.name, measure.whole + 0.05)
    assert (chosen.low, chosen.high) == pytest.approx((measure.whole, measure.whole + 0.1))
    assert [each.kept is not None for each in seen] == [place in tried for place in range(9)]


@pytest.mark.parametrize(
    ("kept", "spread", "met"),
    [(1.03, 0.05, False), (1.033, 0.05, True), (1.0, math.nan, True)],  # 1.28 of 1.96 standard deviations
)
def test_a_goal_has_to_hold_on_other_photographs(kept: float, spread: float, met: bool) -> None:
    (only,) = candidates(1)
    chosen, _, _ = choose_candidate([only], goals=whole(), try_out=lambda candidate: make_score(kept, spread))
    assert ("not enough" not in chosen.verdict) is met


def test_of_several_goals_all_have_to_be_met() -> None:
    goals = (*whole(FIDELITY), Limit("max_l1_increase", 1.0, "1%"))
    tried = {0: 0.99, 10: 0.75, 20: 0.95}  # the first has fidelity enough, but too much L1

    def try_out(candidate: Candidate) -> Score:
        score = make_score(tried[candidate.params], measure=FIDELITY)
        return replace(score, l1_delta_pct=5.0 if candidate.params == 0 else 0.0)

    chosen, _, _ = choose_candidate(candidates(3), goals=goals, try_out=try_out)
    assert chosen.params == 20 and chosen.verdict.endswith("enough for F 0.800 and ΔL1 +1.00 %")


def test_a_score_that_cannot_be_told_is_written_as_none(tmp_path: Path) -> None:
    (only,) = candidates(1)
    unknown = replace(make_score(math.nan), l1_delta_pct=0.5)
    chosen, seen, _ = choose_candidate([only], goals=whole(), try_out=lambda candidate: unknown)
    assert chosen.verdict == "after a short training +0.50 % L1: not enough for C 1.000"
    path = write_student_plan(tmp_path / "plan.json", StudentPlan(chosen.network, "since", candidates=seen))
    assert "NaN" not in path.read_text()
    written = json.loads(path.read_text())["candidates"][0]
    assert (written["kept"], written["low"], written["measure"], written["l1_delta_pct"]) == (
        None, None, "content_colour", 0.5,
    )  # fmt: skip


def test_where_none_meets_the_goal_the_best_of_those_tried_is_taken() -> None:
    chosen, _, reason = choose_candidate(
        candidates(5), goals=whole(), try_out=lambda candidate: make_score(0.5 + candidate.params / 1000, others=1.0)
    )
    assert chosen.params == 40
    assert "no candidate" in reason


def test_budgets_leave_candidates_untried() -> None:
    given = [replace(each, verdict="not tried: too many" if each.params > 20 else "") for each in candidates(5)]
    tried = []

    def try_out(candidate: Candidate) -> Score:
        tried.append(candidate.params)
        return make_score(0.9)

    chosen, seen, _ = choose_candidate(given, goals=whole(), try_out=try_out)
    assert chosen.params <= 20 and max(tried) <= 20
    assert [each.verdict for each in seen[3:]] == ["not tried: too many"] * 2
    with pytest.raises(ConfigError, match="the smallest student misses it: too many"):
        choose_candidate(given[3:], goals=whole(), try_out=try_out)


def test_what_is_missed_is_told_by_the_figure_on_photographs_that_chose_nothing() -> None:
    (goal,) = whole(FIDELITY)  # 0.8
    best = make_score(1.2, measure=FIDELITY)
    # The margin is not taken off: 0.81 may well be less on still others, and is more here.
    assert describe_missed([goal], Scores(best, make_score(0.81, measure=FIDELITY))) == ""
    told = describe_missed([goal], Scores(best, make_score(0.79, measure=FIDELITY)))
    assert told == "misses what is asked of it on other photographs: F 0.790 instead of F 0.800"
    told = describe_missed([goal], Scores(make_score(math.nan, measure=FIDELITY)))
    assert told == "misses what is asked of it on the photographs that chose: nothing instead of F 0.800"


def test_a_plan_round_trips_and_can_be_edited(tmp_path: Path) -> None:
    network = growing_ladder(16)[1]
    plan = StudentPlan(network, "since", tuple(strides((1.0, math.nan))), tuple(candidates(2)), {"l1": 0.1}, {"a": 1})
    path = write_student_plan(tmp_path / "plan.json", plan)
    assert read_student_network(path) == network and "NaN" not in path.read_text()
    path.write_text(path.read_text().replace('"upsample": "nearest"', '"upsample": "bilinear"'))
    assert read_student_network(path) == replace(network, upsample="bilinear")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not JSON"),
        ("[]", "something else"),
        ('{"format": "colorpress prune plan"}', "something else"),
        ('{"format": "colorpress student plan", "format_version": 9, "network": {}}', "newer"),
        ('{"format": "colorpress student plan", "format_version": 1}', "no 'network'"),
        ('{"format": "colorpress student plan", "format_version": 1, "network": {"encoder": [[0]]}}', "got"),
        ("\udcff", "is not JSON"),
    ],
)
def test_what_is_no_student_plan_is_refused(tmp_path: Path, content: str, why: str) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=why):
        read_student_network(path)
    with pytest.raises(ConfigError, match="no such file"):
        read_student_network(tmp_path / "none.json")
    with pytest.raises(InputError, match="not a regular file"):
        read_student_network(tmp_path)
