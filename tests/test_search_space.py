"""Points of the space: their networks, their costs against measured ones, and as trials of a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import RandomSampler

from colorpress.core.config import Settings
from colorpress.core.errors import InputError
from compress.budgets import Limit
from compress.ranking import count_macs
from compress.students.search_space import (
    PrunedPoint,
    SearchSpace,
    StudentPoint,
    ladder_points,
    make_space,
    predict_cost,
    pruned_points,
    read_point,
    suggest,
)
from compress.students.student_job import measure_stand_in
from compress.students.student_plan import StudentPlan, read_student_network, write_student_plan
from training.unet import UNet, count_parameters

SPACE = SearchSpace((1, 2, 4, 8, 16, 32), largest_base=64, crops=100, side=96)
POINT = StudentPoint(4, 2, 16, base=8, growth=(1.5, 2.0, 1.0), decoder_share=0.5, convolutions=2, crops=100)


def at_most(params: int) -> tuple[Limit, ...]:
    return (Limit("keep_params", params),)


def draw(count: int, seed: int = 0, space: SearchSpace = SPACE) -> list[StudentPoint]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(sampler=RandomSampler(seed=seed))
    return [suggest(study.ask(), space) for _ in range(count)]


def test_a_point_says_every_channel_count() -> None:
    network = POINT.network()
    assert network.encoder == ((8, 8), (12, 12), (24, 24), (24, 24))
    assert network.decoder == ((12, 12, 12), (8, 8, 8))
    assert (network.stem_stride, network.output_stride, network.size_multiple) == (2, 4, 16)


def test_every_point_is_a_network_of_its_strides() -> None:
    for point in [*draw(60), *SPACE.narrow_points()]:
        network = point.network()
        strides = (network.output_stride, network.stem_stride, network.size_multiple)
        assert strides == (point.output_stride, point.stem_stride, point.deepest_stride)
        assert all(width % 4 == 0 for level in network.encoder for width in level)


@pytest.mark.parametrize("side", [96, 100])
def test_parameters_and_macs_are_told_exactly(side: int) -> None:
    for point in draw(25):
        network = UNet(point.network())
        cost = predict_cost(point.network(), side=side)
        assert cost["params"] == count_parameters(network)
        assert cost["macs"] == count_macs(network, height=side, width=side)


def test_file_sizes_are_told_within_a_percent() -> None:
    narrow = next(SPACE.narrow_points())
    residual = replace(narrow, base=8, convolutions=2)
    for point in (narrow, residual, replace(POINT, base=48), replace(POINT, affine=True)):
        measured, latency = measure_stand_in(point.network(), Settings(), None)
        assert SPACE.cost(point)["size_bytes"] == pytest.approx(measured, rel=0.01)
        assert latency is None


def test_points_go_through_trials_and_json_unchanged() -> None:
    for point in draw(40):
        assert suggest(optuna.trial.FixedTrial(point.parameters()), SPACE) == point
        assert read_point(point.to_dict()) == point


def test_an_affine_answer_is_a_dimension_of_coarse_points_alone() -> None:
    kinds = {(point.output_stride > 1, point.affine) for point in draw(60)}
    assert kinds == {(False, False), (True, False), (True, True)}
    assert all(point.network().affine == point.affine for point in draw(60))
    plain = POINT.to_dict()
    del plain["affine"]  # of a front that was written before there was one
    assert read_point(plain) == POINT
    only, coarse = (SearchSpace((stride,), 8, crops=10, side=64).count_points() for stride in (1, 2))
    # Widths 2, shares 3, convolutions 2, growths of 7; stems 1 and 2 at stride 2, each to 8, 16, 32 and 64.
    assert only == 12 * sum(7**levels for levels in (3, 4, 5, 6))
    assert coarse == 2 * 12 * sum(7**levels for levels in (2, 3, 4, 5, 3, 4, 5, 6))


def test_what_an_affine_answer_adds_to_the_cost() -> None:
    plain, affine = (SPACE.cost(replace(POINT, affine=each)) for each in (False, True))
    last = POINT.network().decoder[-1][-1]
    assert affine["params"] - plain["params"] == 2 * (last + 1)
    assert affine["macs"] - plain["macs"] == 2 * last * (96 // 4) ** 2
    assert 600 < affine["size_bytes"] - plain["size_bytes"] < 900


def test_a_point_can_be_applied_again_as_a_student_plan(tmp_path: Path) -> None:
    plan = StudentPlan(POINT.network(), "mine", settings={"point": POINT.to_dict()})
    assert read_student_network(write_student_plan(tmp_path / "plan.json", plan)) == POINT.network()


@pytest.mark.parametrize(
    "change", [{"base": None}, {"other": 1}, {"growth": None}, {"stem_stride": 3}, {"affine": "no"}]
)
def test_a_damaged_point_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        read_point({**POINT.to_dict(), **change})


def test_nothing_of_a_structure_is_smaller_than_its_narrow_point() -> None:
    least = {measure: SPACE.cost(SPACE.smallest(measure))[measure] for measure in ("params", "macs", "size_bytes")}
    for point in draw(200):
        cost = SPACE.cost(point)
        assert all(cost[measure] >= value for measure, value in least.items())


def test_the_space_is_no_wider_than_its_limits() -> None:
    narrow = make_space((2, 4), at_most(20_000), crops=10, side=64)
    wide = make_space((2, 4), (), crops=10, side=64)
    assert 4 <= narrow.largest_base < wide.largest_base == 128
    assert narrow.count_points() < wide.count_points()


def test_the_ladder_goes_from_the_smallest_to_the_largest_that_fits() -> None:
    limits = at_most(100_000)
    rungs = ladder_points(SPACE, limits, 6)
    sizes = [SPACE.cost(point)["size_bytes"] for point in rungs]
    assert sizes == sorted(set(sizes)) and len(sizes) == 6
    assert sizes[0] == SPACE.cost(SPACE.smallest("size_bytes"))["size_bytes"]
    assert 50_000 < SPACE.cost(rungs[-1])["params"] <= 100_000
    assert [point.output_stride for point in rungs[1:]] == [32, 16, 8, 4, 2]
    assert all(point.stem_stride * 4 == min(16, point.output_stride) for point in rungs[1:5])
    assert [point.affine for point in rungs[1:]] == [True, True, True, False, False]
    assert ladder_points(SPACE, limits, 1) == rungs[:1]
    assert ladder_points(SPACE, at_most(10), 6) == ()


def test_pruned_networks_are_of_all_sixteenths_up_to_a_half_and_the_first_are_far_apart() -> None:
    points = pruned_points(100, 2)
    assert sorted(point.kept_channels for point in points) == [parts / 16 for parts in range(1, 9)]
    assert [point.kept_channels for point in points[:4]] == [1 / 4, 1 / 8, 1 / 2, 1 / 16]
    assert all(
        read_point(point.to_dict()) == point and (point.crops, point.output_stride) == (100, 2) for point in points
    )


@pytest.mark.parametrize(
    "change",
    [
        {"kept_channels": 0.3},
        {"kept_channels": 1.0},
        {"kept_channels": "a"},
        {"x": 1},
        {"crops": []},
        {"output_stride": 1.5},
    ],
)
def test_a_damaged_pruned_point_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="point: cannot be used"):
        read_point({**PrunedPoint(0.25, 100).to_dict(), **change})


@pytest.mark.parametrize("values", [None, 3, "kept_channels", []])
def test_what_is_no_point_at_all_is_refused(values: Any) -> None:
    with pytest.raises(InputError, match="point: cannot be used"):
        read_point(values)
