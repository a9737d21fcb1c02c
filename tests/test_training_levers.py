"""Levers of training the original: each loss asks for what its source says, and a comparison says who is better."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import make_network
from PIL import Image

from benchmarks.studies.colour_losses import (
    ClassAnswerLoss,
    ClassNetwork,
    Critic,
    RebalancedLoss,
    TermLoss,
    anneal_mean,
    class_centres,
    compare_edges,
    compare_scales,
    find_median,
    rebalance_classes,
)
from benchmarks.studies.plain_loop import PlainLoop
from benchmarks.studies.training_levers import compare_levers, format_levers
from colorpress.cli import run_command
from colorpress.core.config import DataConfig, UNetConfig
from training.losses import Batch, find_classes
from training.photo_scan import scan_photos
from training.unet import UNetPlan

PLAN = UNetPlan.classic(4, 3)


def batch(size: int = 20) -> Batch:
    generator = torch.Generator().manual_seed(0)
    lightness = torch.rand(2, 1, size, size, generator=generator)
    return Batch(lightness, torch.rand(2, 2, size, size, generator=generator) - 0.5)


def logits_of(shares: dict[int, float]) -> torch.Tensor:
    logits = torch.full((1, 256, 1, 1), -30.0)
    for number, share in shares.items():
        logits[0, number] = torch.tensor(share).log()
    return logits


def test_the_annealed_mean_lies_between_the_expectation_and_the_likeliest_class() -> None:
    blue, grey = 7 * 16 + 3, 7 * 16 + 7
    logits = logits_of({blue: 0.6, grey: 0.4})
    b = {name: anneal_mean(logits, name)[0, 1].item() for name in (1.0, 0.38, 0.01)}
    assert b[1.0] == pytest.approx(0.6 * -0.45 + 0.4 * -0.05, abs=1e-4)
    assert b[0.01] == pytest.approx(-0.45, abs=1e-4) and b[0.01] < b[0.38] < b[1.0]


def test_the_median_is_what_halves_each_axis() -> None:
    # a: all in cell 7; b: a quarter in cell 2, half in cell 8, a quarter in cell 12.
    logits = logits_of({7 * 16 + 2: 0.25, 7 * 16 + 8: 0.5, 7 * 16 + 12: 0.25})
    assert find_median(logits).flatten().tolist() == pytest.approx([-0.05, 0.05], abs=1e-4)


def test_a_class_lies_where_its_colours_do() -> None:
    centres = class_centres()
    assert find_classes(centres.t()[None, :, :, None], 1).flatten().tolist() == list(range(256))


def test_a_network_of_classes_learns_the_colour_that_it_is_shown() -> None:
    network = ClassNetwork(PLAN, find_median)
    criterion = ClassAnswerLoss(network)
    shown = Batch(batch(18).lightness, torch.full((2, 2, 18, 18), 0.25))
    optimizer = torch.optim.Adam(criterion.parameters(), lr=0.1)
    for _ in range(12):
        loss, l1 = criterion.loss(criterion(shown.lightness), shown)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    answer = network.eval()(shown.lightness)
    # Of a class no more is known than that the colour is one of its own.
    assert answer.shape == (2, 2, 18, 18) and (answer - 0.25).abs().max() < 0.05 and l1 < 0.05
    other = ClassNetwork(PLAN, anneal_mean).with_weights(network.state_dict())
    assert torch.allclose(other.forward_logits(batch(16).lightness), network.forward_logits(batch(16).lightness))


def test_rare_colours_weigh_more(photo_folder: Path) -> None:
    photos = scan_photos(DataConfig(data=photo_folder), workers=0).train
    weights = rebalance_classes(photos, max_pixels=10**6)
    grey, unseen = 8 * 16 + 8, 0
    assert weights.shape == (256,) and weights.min() > 0
    assert weights[unseen] == weights.max() > 1.0 > weights.min()
    assert weights[grey] < weights[unseen]


@pytest.mark.parametrize("term", [compare_edges, compare_scales])
def test_a_term_is_least_for_the_truth(term: Callable[[torch.Tensor, Batch], torch.Tensor]) -> None:
    shown = batch()
    assert term(shown.ab, shown) == 0.0 < term(0.9 * shown.ab, shown) < term(0 * shown.ab, shown)


def test_edges_do_not_mind_a_tint() -> None:
    tinted = batch().ab + 0.1
    assert compare_edges(tinted, batch()).item() == pytest.approx(0.0, abs=1e-6)
    assert compare_scales(tinted, batch()).item() == pytest.approx(0.1, abs=1e-6)


def test_the_critic_and_the_network_want_opposite_things() -> None:
    torch.manual_seed(0)
    critic, shown = Critic(), batch()
    answer = torch.zeros_like(shown.ab).requires_grad_()

    def believed(ab: torch.Tensor) -> torch.Tensor:
        return critic.judge(torch.cat([shown.lightness, ab], 1)).mean()

    critic(answer, shown).backward()
    # Down the loss the answer looks truer to a critic that stands still.
    assert (answer.grad * torch.autograd.grad(believed(answer), answer)[0]).sum() < 0
    before = believed(shown.ab) - believed(answer)
    optimizer = torch.optim.SGD(critic.parameters(), lr=0.5)
    for _ in range(5):
        optimizer.zero_grad()
        critic(answer.detach(), shown).backward()
        optimizer.step()
    assert believed(shown.ab) - believed(answer) > before + 0.01


def test_terms_and_weights_reach_the_network() -> None:
    losses = {
        "term": lambda net: TermLoss(net, 0.1, compare_edges, 2.0),
        "weighted": lambda net: RebalancedLoss(net, 0.1, torch.linspace(0.1, 2.0, 256)),
        "even": lambda net: RebalancedLoss(net, 0.1, torch.ones(256)),
    }
    found = {}
    for name, make in losses.items():
        criterion = make(make_network(PLAN).train())
        torch.nn.init.normal_(criterion.head.weight, generator=torch.Generator().manual_seed(0))
        loss, l1 = criterion.loss(criterion(batch().lightness), batch())
        found[name] = loss.item() - l1.item()
    assert found["weighted"] != pytest.approx(found["even"], rel=1e-3)
    assert found["term"] > found["even"] + 0.1


def test_a_plain_loop_trains_for_as_many_crops_as_it_is_told(photo_folder: Path) -> None:
    photos = scan_photos(DataConfig(data=photo_folder), workers=0).train
    loop = PlainLoop(UNetConfig(base=2, depth=1), 16, 4, 0.5, 1e-2, falls=True)

    def learn(crops: int, seed: int = 0) -> torch.Tensor:
        torch.manual_seed(9)
        network = loop.train(photos, crops, seed=seed, device=torch.device("cpu"), workers=0)
        assert torch.rand(1) == torch.rand(1, generator=torch.Generator().manual_seed(9))
        assert int(network.encoder[0][1].num_batches_tracked) == crops // 4
        return network.head.weight

    assert torch.equal(learn(12), learn(12)) and not torch.equal(learn(12), learn(12, seed=1))
    learn(24)


def test_the_table_tells_differences_in_pairs() -> None:
    def row(lever: str, seed: int, l1: list[float], answer: str = "") -> dict[str, object]:
        usual = {"photos": 4, "below_grey_pct": 20.0, "below_table_pct": 18.0, "chroma_share": 0.5}
        interval = {"below_table_low": 16.0, "below_table_high": 20.0}
        return {
            **{"lever": lever, "seed": seed, "answer": answer, "l1": l1, "crops": 100, "seconds": 4.0},
            **usual,
            **interval,
        }

    recipe = [0.02, 0.04, 0.06, 0.08]
    worse = [1.1 * l1 for l1 in recipe]
    rows = [row("recipe", 0, recipe), row("recipe", 1, worse), row("other", 0, worse, "median"), row("third", 2, worse)]
    lines = format_levers(rows).splitlines()
    assert lines[2] == "| recipe | 2 | 20.0 % | 18.0 % (16.0 to 20.0) | 50 % |  | 100 | 4 | 25 |"
    # In pairs there is nothing to be unsure of.
    other = "| other, median | 1 | 20.0 % | 18.0 % (16.0 to 20.0) | 50 % | +10.00 % (10.00 to 10.00) | 100 | 4 | 25 |"
    assert lines[3] == other
    assert "| 50 % |  | 100 |" in lines[4] and len(lines) == 5


def test_a_comparison_goes_on_where_it_was(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.studies.training_levers._SPEED_ROUNDS", 1)
    out = tmp_path / "out"
    line = ["--data", str(photo_folder), "-o", str(out), "--quiet", "--workers", "0", "--threads", "1"]
    line += ["--base", "2", "--depth", "3", "--imgsz", "16", "--val-share", "0.4", "--epoch-crops", "8"]

    def compare(*names: str, crops: str = "20") -> int:
        chosen = [word for name in names for word in ("--lever", name)]
        return run_command([*line, "--crops", crops, *chosen], compare_levers, "levers")

    assert compare("recipe", "plain loop, as many seconds", "classes answer") == 0
    rows = json.loads((out / "levers.json").read_text())["rows"]
    answers = ["", "chroma x 1.3", "chroma x 1.7", "", "annealed mean, T 0.38", "expectation", "median"]
    assert [row["answer"] for row in rows] == answers
    assert rows[0]["crops"] == 20 and rows[3]["crops"] >= 8 and rows[3]["speed_share"] > 0
    assert all(row["photos"] == len(row["l1"]) > 0 for row in rows)
    with Image.open(out / "levers.png") as sheet:
        assert sheet.height == 9 * 116 and sheet.width > 330
    assert "| classes answer, median | 1 |" in capsys.readouterr().out
    assert compare("recipe", "no second task") == 0
    again = json.loads((out / "levers.json").read_text())["rows"]
    assert again[:7] == rows and [row["lever"] for row in again[7:]] == ["no second task"]
    assert compare("recipe", crops="24") == 2
    assert compare("magic") == 2
    assert "error: option '--lever': got 'magic'" in capsys.readouterr().err
