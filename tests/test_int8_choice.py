"""Which way to quantize: the one that scores best, trained where that is not enough, float again where that is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from colorpress.core.config import ExportConfig, QuantizeConfig
from compress.budgets import Limit
from compress.int8 import int8_choice
from compress.int8.graph_network import GraphNetwork
from compress.int8.int8_choice import Int8Try, Int8Way, Judge, QuantizeResult, _Quantizer, quantize_onnx
from compress.int8.int8_graph import choose_layers, weight_sizes
from compress.int8.int8_profile import Int8Profile, NodeTime, find_origin, profile_int8, why_float
from compress.int8.int8_stage import what_is_enough
from compress.int8.int8_tuning import PERCENTILES
from compress.measures import Reference, Score
from export.graph import export_onnx
from export.predictors import OnnxPredictor
from tests.conftest import make_network
from tests.test_measures import make_score
from tests.test_quantization import smooth_pictures
from training.checkpoint import Checkpoint
from training.unet import UNetPlan


@pytest.fixture(scope="module", autouse=True)
def with_vnni() -> Iterator[None]:
    """The same ways on every machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(int8_choice, "has_vnni", lambda: True)
        yield


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice")
    plan = UNetPlan.classic(8, 2)
    return export_onnx(Checkpoint(plan, make_network(plan).state_dict()), folder / "model.onnx", ExportConfig()).path


def score_against(
    source: Path, folder: Path, seen: list[bytes] | None = None
) -> Callable[[bytes], tuple[Score, float]]:
    """Fidelity to what the float model answers, which is the truth as well: its loss is the share of L1."""
    pictures = smooth_pictures(seed=9)
    expected = [OnnxPredictor(source, threads=1)(each) for each in pictures]
    grey, nothing = np.array([float(np.abs(each).mean()) for each in expected]), np.zeros(len(expected))
    reference = Reference(grey, np.full(len(expected), math.nan), nothing, grey, grey, grey)

    def scoring(content: bytes) -> tuple[Score, float]:
        if seen is not None:
            seen.append(content)
        path = folder / "candidate.onnx"
        path.write_bytes(content)
        predictor = OnnxPredictor(path, threads=1)
        differences = np.array(
            [float(np.abs(predictor(p) - e).mean()) for p, e in zip(pictures, expected, strict=True)]
        )
        return reference.score(differences, differences), float(differences.mean())

    return scoring


def quantize(source: Path, folder: Path, **arguments) -> QuantizeResult:
    config = arguments.pop("config", QuantizeConfig())
    scoring = arguments.pop("scoring", score_against(source, folder))
    most_loss, goals = arguments.pop("most_loss", math.inf), arguments.pop("goals", ())
    # The float model loses nothing.
    judge = Judge(scoring, what_is_enough(make_score(fidelity=1.0, l1_delta_pct=0.0), goals, most_loss), **arguments)
    return quantize_onnx(source, folder / "int8.onnx", smooth_pictures(), config, judge)


@pytest.fixture(scope="module")
def seen() -> list[bytes]:
    """What was scored for `first`, in order."""
    return []


@pytest.fixture(scope="module")
def first(source: Path, seen: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> QuantizeResult:
    """The best of all ways, where any loss is small enough."""
    folder = tmp_path_factory.mktemp("first")
    return quantize(source, folder, scoring=score_against(source, folder, seen))


def test_the_way_with_the_least_loss_is_taken(first: QuantizeResult, seen: list[bytes]) -> None:
    result = first
    assert [each.way.describe() for each in result.tries] == ["ranges one by one", "ranges one by one, equalized"]
    best = min(result.tries, key=lambda each: each.parent_l1)
    assert result.way == best.way
    assert len({each.parent_l1 for each in result.tries}) == 2  # the choice is one: ways differ
    published = onnx.load(result.path).graph
    assert published == onnx.load_from_string(seen[result.tries.index(best)]).graph
    assert [each.to_dict()["fidelity"] for each in result.tries] == [each.score.kept for each in result.tries]
    assert all(each.score.kept == pytest.approx(1 - each.score.loss) for each in result.tries)


def test_without_vnni_seven_bits_are_tried_too(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_choice, "has_vnni", lambda: False)
    way, plain = QuantizeConfig(equalize="off"), "ranges one by one"
    result = quantize(source, tmp_path, config=way)
    assert [each.way.describe() for each in result.tries] == [f"{plain}, 7-bit weights", plain]
    assert result.way == min(result.tries, key=lambda each: each.parent_l1).way
    # Nobody sees there whether 8 saturate.
    assert quantize_onnx(source, tmp_path / "unjudged.onnx", smooth_pictures(), way).way.weight_bits == 7
    asked = replace(way, int8_weight_bits="8")
    assert [each.way.describe() for each in quantize(source, tmp_path, config=asked).tries] == [plain]


def test_what_an_option_says_is_not_tried_otherwise(source: Path, tmp_path: Path) -> None:
    result = quantize(source, tmp_path, config=QuantizeConfig(calibration_percentile=100.0, equalize="on"))
    assert [each.way.describe() for each in result.tries] == ["percentile 100 %, equalized"]
    stored = {each.key: each.value for each in onnx.load(result.path).metadata_props}
    assert stored["quantization"] == "percentile 100 %, equalized"


def test_layers_go_back_to_float_until_the_loss_is_small_enough(
    source: Path, first: QuantizeResult, tmp_path: Path
) -> None:
    best = min(each.score.loss for each in first.tries)
    loose = quantize(source, tmp_path, most_loss=best)
    assert loose.way == first.way
    tight = quantize(source, tmp_path, most_loss=0.7 * best)
    assert tight.way.float_layers
    assert set(tight.way.float_layers) < set(first.quantized)
    assert set(tight.kept_float) == set(first.kept_float) | set(tight.way.float_layers)
    assert first.weight_share / 2 <= tight.weight_share < first.weight_share
    assert min(each.score.loss for each in tight.tries) <= 0.7 * best
    # Of several that are enough the one with the fewest weights in float.
    sizes = weight_sizes(onnx.load(source).graph)
    in_float = {sum(sizes[name] for name in each.way.float_layers) for each in tight.tries if each.is_enough}
    assert sum(sizes[name] for name in tight.way.float_layers) == min(in_float)
    # Not one after the other: each alone, then by bisection.
    layers = len(first.quantized)
    assert layers <= len(tight.tries) - len(first.tries) <= layers + layers.bit_length()


def test_no_layer_goes_back_where_that_cannot_be_enough(
    source: Path, first: QuantizeResult, tmp_path: Path, capfd
) -> None:
    never = quantize(source, tmp_path, most_loss=0.0)
    assert never.way == first.way and never.weight_share == first.weight_share
    asked = never.tries[len(first.tries) :]
    sizes = weight_sizes(onnx.load(source).graph)
    in_int8 = [sum(sizes[name] for name in first.quantized if name not in each.way.float_layers) for each in asked]
    assert min(in_int8) >= sum(sizes[name] for name in first.quantized) / 2
    assert max(len(each.way.float_layers) for each in asked) > 1
    assert "no layer goes back to float" in capfd.readouterr().err


def test_layers_go_back_to_float_until_every_goal_is_met(source: Path, first: QuantizeResult, tmp_path: Path) -> None:
    likely = max(each.score.likely_figures()["fidelity"] for each in first.tries)
    met = quantize(source, tmp_path, goals=(Limit("min_fidelity", likely - 1e-6),))
    assert met.way == first.way and len(met.tries) == len(first.tries)
    goal = Limit("min_fidelity", 1 - 0.7 * (1 - likely))
    missed = quantize(source, tmp_path, goals=(goal,))
    assert missed.way.float_layers
    kept = next(each.score for each in missed.tries if each.way == missed.way)
    assert goal.is_met(kept.likely_figures())


def test_what_meets_the_goals_comes_before_what_loses_less(source: Path, tmp_path: Path) -> None:
    parent, goals = make_score(fidelity=0.9, l1_delta_pct=3.0), (Limit("max_l1_increase", 5.0),)
    is_enough = what_is_enough(parent, (*goals, Limit("max_l1_increase", 1.0)), 0.1)  # it misses the second one itself
    scores = [make_score(fidelity=0.95, l1_delta_pct=6.0), make_score(fidelity=0.9, l1_delta_pct=4.0)]
    scores += [make_score(fidelity=0.79, l1_delta_pct=4.0), make_score(fidelity=0.85, l1_delta_pct=5.0)]
    tries = [Int8Try(Int8Way(), each, 1 - each.fidelity, is_enough(each)) for each in scores]
    assert [each.is_enough for each in tries] == [False, True, False, True]
    assert [each.score.fidelity for each in sorted(tries, key=lambda each: each.rank)] == [0.9, 0.85, 0.95, 0.79]
    unknown = make_score(fidelity=math.nan, l1_delta_pct=math.nan)
    assert math.isnan(unknown.loss) and what_is_enough(parent, (), 0.1)(unknown) and not is_enough(unknown)
    assert what_is_enough(unknown, goals, 0.1)(make_score(fidelity=-1.0, l1_delta_pct=99.0))


def test_training_is_tried_where_rounding_alone_is_not_enough(source: Path, tmp_path: Path) -> None:
    calls = []

    def tuning(network: GraphNetwork, parent: GraphNetwork) -> None:
        calls.append(network)
        pictures = [torch.from_numpy(each) for each in smooth_pictures(seed=9)]
        optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
        for _ in range(60):
            optimizer.zero_grad()
            sum((network(p) - parent(p).detach()).abs().mean() for p in pictures).backward()
            optimizer.step()

    # Ranges that cut much off are something to learn.
    config = QuantizeConfig(calibration_percentile=90.0, equalize="off")
    plain = quantize(source, tmp_path, config=config, tuning=tuning)
    assert not calls
    trained = quantize(source, tmp_path, config=config, most_loss=0.8 * plain.tries[0].score.loss, tuning=tuning)
    assert len(calls) == 1
    assert [each.way.tuned for each in trained.tries[:2]] == [False, True]
    assert trained.tries[1].score.loss < plain.tries[0].score.loss
    assert trained.way.tuned


def test_a_graph_that_cannot_be_tuned_is_quantized_all_the_same(source: Path, tmp_path: Path, capfd) -> None:
    model = onnx.load(source)
    node = next(each for each in model.graph.node if each.op_type == "Tanh")
    node.op_type = "Softsign"
    odd = tmp_path / "odd.onnx"
    onnx.save(model, odd)
    scoring = score_against(odd, tmp_path)
    result = quantize(odd, tmp_path, scoring=scoring, most_loss=0.0, tuning=lambda *_: pytest.fail("trained"))
    assert {each.way.percentile for each in result.tries} == set(PERCENTILES)
    assert not any(each.way.equalized or each.way.tuned for each in result.tries)
    unjudged = quantize_onnx(odd, tmp_path / "int8.onnx", smooth_pictures(), QuantizeConfig())
    assert unjudged.way == Int8Way(99.9)
    assert "tanh is Softsign" in capfd.readouterr().err


def test_every_float_node_has_its_reason(source: Path, tmp_path: Path) -> None:
    largest = max(weight_sizes(onnx.load(source).graph).items(), key=lambda item: item[1])[0]
    result = quantize(source, tmp_path, config=QuantizeConfig(quantize_share=0.5, calibration_percentile=100.0))
    profile = profile_int8(result.path, side=32, calls=2, threads=1)
    graph = onnx.load(source).graph
    reasons = why_float(graph, result, profile)
    assert set(reasons) == {node.name for node in profile.nodes if not node.int8}
    by_layer = {origin.name: why for name, why in reasons.items() if (origin := find_origin(graph, name))}
    assert largest not in by_layer
    assert set(weight_sizes(graph)) - set(result.quantized) <= set(by_layer)
    assert "reads the picture" in by_layer["encoder.0.0"] and "reads the picture" in by_layer["head"]
    assert by_layer["encoder.1.0"].startswith("outside of --quantize-share")
    assert by_layer["pad"] == "lies outside of the int8 part"
    conversions = [node.name for node in profile.nodes if node.operator in ("QuantizeLinear", "DequantizeLinear")]
    assert conversions and all(reasons[name].startswith("conversion") for name in conversions)


@pytest.mark.parametrize("name", ["encoder.2.3", "up.0.0", "decoder.0.3", "encoder.1.0"])
def test_a_layer_that_falls_back_is_computed_in_float(source: Path, tmp_path: Path, name: str) -> None:
    """ONNX Runtime would round its weights again, since all around it is in 8 bits."""
    model = onnx.load(source)
    quantizer = _Quantizer(model, choose_layers(model.graph, 1.0), smooth_pictures(), QuantizeConfig(), 1)
    path = tmp_path / "int8.onnx"
    path.write_bytes(quantizer.quantize(Int8Way(100.0, float_layers=(name,))).SerializeToString())
    onnx.checker.check_model(str(path), full_check=True)
    profile = profile_int8(path, side=32, calls=2, threads=1)
    in_float = {o.name for n in profile.nodes if n.operator == "Conv" and (o := find_origin(model.graph, n.name))}
    assert in_float == {"encoder.0.0", name, "head"}


def test_a_layer_that_fell_back_says_so(source: Path, first: QuantizeResult, tmp_path: Path) -> None:
    result = quantize(source, tmp_path, most_loss=0.7 * min(each.score.loss for each in first.tries))
    fallen = result.way.float_layers[0]
    profile = Int8Profile((NodeTime(fallen, "Conv", False, 1.0),))
    assert why_float(onnx.load(source).graph, result, profile)[fallen].startswith("back to float")
