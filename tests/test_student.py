"""The choice of a student: the oracle of strides, the ladder, and the smallest that meets the goal."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from colorpress.core.errors import ConfigError, InputError
from compress.students.student_job import build_student, choose_output_stride, list_output_strides, score_strides
from compress.students.student_plan import Candidate, StrideScore, StudentPlan, read_student_network, write_student_plan
from compress.students.student_stages import LADDER_WIDTHS, choose_candidate, student_ladder
from compress.yardstick import Score, Yardstick
from training.unet import UNetPlan, count_parameters


class Painted(nn.Module):
    """Answers a fixed picture of colours."""

    def __init__(self, ab: Tensor) -> None:
        super().__init__()
        self.ab = ab

    def forward(self, lightness: Tensor) -> Tensor:
        return self.ab


def coarse_picture(stride: int) -> Tensor:
    """Colours that change every `stride` pixels and not between."""
    blocks = torch.rand(1, 2, 64 // stride, 64 // stride, generator=torch.Generator().manual_seed(1)) - 0.5
    return nn.functional.interpolate(blocks, scale_factor=stride, mode="nearest")


def test_the_oracle_tells_fine_answers_from_coarse_ones() -> None:
    kept = {}
    for stride in (1, 16):
        ab = coarse_picture(stride)
        yardstick = Yardstick(((torch.zeros(1, 1, 64, 64), ab),), np.array([ab.abs().mean().item()]), np.array([0.0]))
        scores = score_strides(Painted(ab), yardstick, device=torch.device("cpu"), strides=(1, 2, 8))
        assert [each.stride for each in scores] == [1, 2, 8]
        assert scores[0].retained_colour == pytest.approx(1.0)
        kept[stride] = scores[2].retained_colour
    assert kept[1] < 0.5 < 0.6 < kept[16]


def test_sizes_that_are_no_multiple_go_through_the_oracle() -> None:
    ab = coarse_picture(8)[..., :37, :50]
    yardstick = Yardstick(((torch.zeros(1, 1, 37, 50), ab),), np.array([0.25]), np.array([0.0]))
    assert len(score_strides(Painted(ab), yardstick, device=torch.device("cpu"))) == 6


@pytest.mark.parametrize(
    ("kept", "expected"),
    [((1.0, 1.01, 0.995, 0.98), 4), ((1.0, 0.9, 0.9, 0.9), 1), ((math.nan,) * 4, 1), ((1.0, 0.9, 1.0, 0.9), 4)],
)
def test_the_coarsest_stride_that_keeps_the_colour(kept: tuple[float, ...], expected: int) -> None:
    scores = [StrideScore(stride, 0.0, value) for stride, value in zip((1, 2, 4, 8), kept, strict=True)]
    assert choose_output_stride(scores) == expected


@pytest.mark.parametrize(
    ("kept", "expected"),
    [
        ((1.0, 1.006, 1.011, 1.009, 0.995, 0.963), (4, 8, 16)),  # finer than 4 costs more and keeps less
        ((1.0, 0.9, 0.8, 0.7, 0.6, 0.5), (1,)),
        ((1.0, 1.0, 1.0, 1.0, 1.0, 1.0), (1, 2, 4, 8, 16, 32)),
        ((1.0, 1.01, 1.02, 1.03, 1.04, 1.05), (32,)),
        ((math.nan,) * 6, (1, 2, 4, 8, 16, 32)),  # best.pt is no better than grey
    ],
)
def test_a_search_takes_finer_strides_only_where_they_keep_more(
    kept: tuple[float, ...], expected: tuple[int, ...]
) -> None:
    scores = [StrideScore(stride, 0.0, value) for stride, value in zip((1, 2, 4, 8, 16, 32), kept, strict=True)]
    assert list_output_strides(scores) == expected


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32])
def test_the_ladder_answers_at_its_stride_and_grows(stride: int) -> None:
    ladder = student_ladder(stride)
    assert len(ladder) == len(LADDER_WIDTHS)
    assert {plan.output_stride for plan in ladder} == {stride}
    assert {plan.size_multiple for plan in ladder} == {32}
    sizes = [count_parameters(build_student(plan, 0)) for plan in ladder[:4]]
    assert sizes == sorted(sizes)


def test_a_student_starts_from_grey_and_draws_nothing_from_the_global_generator() -> None:
    plan = student_ladder(8)[0]
    before = torch.get_rng_state()
    network = build_student(plan, 3).eval()
    assert torch.equal(torch.get_rng_state(), before)
    assert not network(torch.rand(1, 1, 32, 32)).any()
    assert torch.equal(network.encoder[0][0].weight, build_student(plan, 3).encoder[0][0].weight)
    assert not torch.equal(network.encoder[0][0].weight, build_student(plan, 4).encoder[0][0].weight)


def candidates(count: int) -> list[Candidate]:
    return [Candidate(plan, params=10 * place, macs=1) for place, plan in enumerate(student_ladder(8)[:count])]


def score_of(kept: float, spread: float = 0.05) -> Score:
    return Score(l1=1 - kept, l1_delta_pct=1 - kept, retained_colour=kept, low=kept - spread, high=kept + spread)


@pytest.mark.parametrize("first_good", [0, 1, 4, 7, 8])
def test_the_smallest_that_meets_the_goal_is_found_with_few_trials(first_good: int) -> None:
    tried = []

    def try_out(candidate: Candidate) -> Score:
        tried.append(candidate.params // 10)
        return score_of(1.1 if tried[-1] >= first_good else 0.9)

    chosen, seen, reason = choose_candidate(candidates(9), floor=1.0, try_out=try_out)
    assert chosen.params // 10 == first_good
    assert len(tried) == len(set(tried)) <= 5
    assert "smallest" in reason
    assert chosen.verdict.endswith("enough for 1") and "not enough" not in chosen.verdict
    assert [each.retained_colour is not None for each in seen] == [place in tried for place in range(9)]


def test_a_goal_is_a_g_or_no_more_l1_where_there_is_no_colour() -> None:
    assert not score_of(1.02, spread=0.05).keeps(1.0)
    assert score_of(1.022, spread=0.05).keeps(1.0)  # 0.84 of 1.96 standard deviations
    assert score_of(1.0, spread=math.nan).keeps(1.0)  # of one photograph there is no interval
    for delta_pct, met in ((-1.0, True), (1.0, False), (math.nan, True)):
        no_colour = Score(l1=0.1, l1_delta_pct=delta_pct, retained_colour=math.nan, low=math.nan, high=math.nan)
        assert no_colour.keeps(1.0) is met


def test_where_none_meets_the_goal_the_best_of_those_tried_is_taken() -> None:
    chosen, _, reason = choose_candidate(
        candidates(5), floor=1.0, try_out=lambda candidate: score_of(0.5 + candidate.params / 1000)
    )
    assert chosen.params == 40
    assert "no candidate" in reason


def test_budgets_leave_candidates_untried() -> None:
    given = [replace(each, verdict="not tried: too many" if each.params > 20 else "") for each in candidates(5)]
    tried = []

    def try_out(candidate: Candidate) -> Score:
        tried.append(candidate.params)
        return score_of(0.9)

    chosen, seen, _ = choose_candidate(given, floor=1.0, try_out=try_out)
    assert chosen.params <= 20 and max(tried) <= 20
    assert [each.verdict for each in seen[3:]] == ["not tried: too many"] * 2
    with pytest.raises(ConfigError, match="the smallest student misses it: too many"):
        choose_candidate(given[3:], floor=1.0, try_out=try_out)


def test_a_plan_round_trips_and_can_be_edited(tmp_path: Path) -> None:
    network = student_ladder(16)[1]
    plan = StudentPlan(network, "since", (StrideScore(1, 0.0, 1.0),), tuple(candidates(2)), {"l1": 0.1}, {"a": 1})
    path = write_student_plan(tmp_path / "plan.json", plan)
    assert read_student_network(path) == network
    path.write_text(path.read_text().replace('"upsample": "nearest"', '"upsample": "bilinear"'))
    assert read_student_network(path) == UNetPlan(network.encoder, network.decoder, "bilinear", network.stem_stride)


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
