"""The views of a ranking: a table that agrees with the ranking by parameters, a chart, a sentence, and their stage."""

from __future__ import annotations

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from colorpress.cli import run_command
from colorpress.core.config import Settings
from colorpress.core.errors import InputError
from compress import ranking_stages
from compress.measures import CONTENT, FIDELITY
from compress.ranking import convolution_channels, rank_layers
from compress.ranking_stages import rank_views
from compress.ranking_views import (
    VIEW_COLUMNS,
    LayerView,
    describe_views,
    join_views,
    write_views,
)
from compress.sensitivity import Sensitivity
from compress.yardstick import Yardstick
from tests.conftest import TINY_PLAN, make_network
from training.checkpoint import Checkpoint, save_checkpoint
from training.photo_split import PhotoSplit
from training.photos import inspect_photo
from training.run_folder import Run
from training.unet import UNet, UNetPlan

OPTIONS = {"rank_size": 16, "rank_photos": 2, "rank_runs": 2, "threads": 1, "device": "cpu"}
TIMES = {"encoder.0.0": 1.0, "encoder.0.3": 2.0, "up.0": 5.0, "head": 2.0}


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def views_of(network: UNet) -> tuple[LayerView, ...]:
    return join_views(
        rank_layers(network, height=32, width=32),
        convolution_channels(network),
        ort_ms=TIMES,
        torch_ms={},
        sensitivities={"up.0": Sensitivity(0.25, None), "head": Sensitivity(None, -0.0625)},
    )


def test_rows_agree_with_the_ranking_by_parameters(tiny_unet: UNet, tmp_path: Path) -> None:
    views = views_of(tiny_unet)
    table, chart = write_views(views, list(TIMES), tmp_path, title="A network", measure=FIDELITY)
    assert set(tmp_path.iterdir()) == {table, chart}
    rows = read_rows(table)
    assert tuple(rows[0]) == VIEW_COLUMNS
    layers = {layer.name: layer for layer in rank_layers(tiny_unet, height=32, width=32)}
    macs = sum(layer.macs for layer in layers.values())
    convolutions = [name for name, layer in layers.items() if layer.type in ("Conv2d", "ConvTranspose2d")]
    assert [row["name"] for row in rows] == convolutions
    assert [int(row["rank"]) for row in rows] == list(range(1, len(rows) + 1))
    for row in rows:
        layer = layers[row["name"]]
        assert (int(row["params"]), int(row["macs"])) == (layer.params, layer.macs)
        assert int(row["activation_bytes"]) == layer.output_bytes
        assert float(row["params_pct"]) == pytest.approx(layer.share_pct, abs=1e-4)
        assert float(row["macs_pct"]) == pytest.approx(100 * layer.macs / macs, abs=1e-4)
        assert row["torch_ms"] == row["torch_pct"] == ""
    by_name = {row["name"]: row for row in rows}
    assert {name: float(row["ort_pct"]) for name, row in by_name.items() if row["ort_pct"]} == {
        "encoder.0.0": 10.0, "encoder.0.3": 20.0, "up.0": 50.0, "head": 20.0,
    }  # fmt: skip
    assert (by_name["up.0"]["prune_loss"], by_name["up.0"]["int8_loss"]) == ("0.25", "")
    assert (by_name["head"]["prune_loss"], by_name["head"]["int8_loss"]) == ("", "-0.0625")


def view(name: str, side: int, params: int, ort_ms: float, prune_loss: float | None) -> LayerView:
    return LayerView(
        rank=1, name=name, type="Conv2d", shape=(1, 4, side, side), params=params, params_pct=0.0, macs=1,
        macs_pct=0.0, activation_bytes=4 * 4 * side**2, ort_ms=ort_ms, ort_pct=0.0, torch_ms=None, torch_pct=None,
        prune_loss=prune_loss, int8_loss=None,
    )  # fmt: skip


def test_the_finding_says_in_numbers_how_the_views_disagree() -> None:
    views = [view("deep", 8, 90, 1.0, 0.01), view("fine", 16, 10, 3.0, 0.5)]
    assert describe_views(views, FIDELITY) == (
        "Of all convolutions those at 8x8 hold 90 % of the parameters, 20 % of the activation bytes and 25 % of the "
        "time; those at 16x16 hold 10 % of the parameters, 80 % of the activation bytes and 75 % of the time; halving "
        "fine alone costs most, F 0.5."
    )
    many = [view(f"l{i}", 8, 100 - i, float(i), 0.1 - i / 100) for i in range(9)]
    assert describe_views(many, FIDELITY) == (
        "Among the 5 with most parameters are 1 of the 5 slowest in ONNX Runtime and 5 of the 5 that lose most colour "
        "when pruned; halving l0 alone costs most, F 0.1."
    )
    small = [dataclasses.replace(each, int8_loss=0.004, prune_loss=None) for each in many]
    assert describe_views(small, FIDELITY) == (
        "Among the 5 with most parameters are 1 of the 5 slowest in ONNX Runtime; int8 of any one layer costs next "
        "to nothing, F 0.004 at most."
    )
    assert "costs most, C 0.5." in describe_views(views, CONTENT)
    assert "next to nothing, C 0.004 at most" in describe_views(small, CONTENT)
    assert describe_views([view("l", 8, 1, 1.0, None)], FIDELITY) == "All convolutions answer at one size."
    assert describe_views([], FIDELITY) == "The network has no convolution."


def test_charts_of_odd_networks(tmp_path: Path) -> None:
    many = [view(f"$layer_{i}$.{'long' * 20}", 2 ** (i % 8), 100 - i, float(i), -0.001 * i) for i in range(60)]
    one = [dataclasses.replace(view("spare", 8, 10, 0.0, None), shape=(), ort_ms=None, ort_pct=None)]
    sizes = []
    for views in (many, one, []):
        with Image.open(write_views(views, [], tmp_path, title="$x$", measure=FIDELITY)[1]) as chart:
            sizes.append(chart.size)
            assert len(chart.convert("RGB").getcolors(1 << 20) or ()) > 1
    assert sizes[0][0] == 1200 and 2000 < sizes[0][1] < 3000  # twenty-four rows, not sixty


def make_run(tmp_path: Path, photo_folder: Path, **options: object) -> tuple[Run, Path, PhotoSplit]:
    """A run whose network answers the mean colour of the photographs, so that it is better than grey."""
    network = make_network()
    paths = sorted(path for path in photo_folder.iterdir() if path.is_file())[:7]
    for index, path in enumerate(paths):
        pixels = np.zeros((24, 24, 3), np.uint8) + np.array([150 + index, 90, 60], np.uint8)
        pixels[::2] += 20
        Image.fromarray(pixels).save(path)
    with torch.no_grad():
        network.head.weight.mul_(0.1)
        network.head.bias.copy_(torch.tensor([0.15, 0.2]))
    checkpoint = save_checkpoint(tmp_path / "best.pt", Checkpoint(TINY_PLAN, network.state_dict(), epoch=1, val_l1=0.1))
    parts = {"train": paths[:2], "choosing": paths[2:4], "confirming": paths[4:6], "test": paths[6:]}
    photos = {part: tuple(inspect_photo(path, 10**6) for path in some) for part, some in parts.items()}
    run = Run(tmp_path / "out", Settings.from_options({**OPTIONS, **options}))
    return run, checkpoint, PhotoSplit(**photos)  # type: ignore[arg-type]


def test_the_stage_measures_every_layer_on_the_photographs_that_choose_alone(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, checkpoint, photos = make_run(tmp_path, photo_folder)
    unread = (*photos.test, *photos.confirming)
    for photo in unread:
        photo.path.unlink()
    record = rank_views(run, checkpoint, photos)
    printed = capsys.readouterr().err
    assert "sensitivities, by fidelity F: best.pt on 2 photographs: L1 " in printed
    assert not any(photo.path.name in printed for photo in unread)  # they would be warned of, now that they are gone
    assert set(record.outputs) == {"layer_ranking.csv", "layer_ranking.png"}
    assert record.result["sensitivity_photos"] == 2 and record.result["measure"] == "fidelity"
    rows = read_rows(run.folder / "layer_ranking.csv")
    assert len(rows) == record.result["convolutions"] == len(convolution_channels(make_network()))
    for column in ("ort_pct", "torch_pct"):
        assert sum(float(row[column]) for row in rows) == pytest.approx(100, abs=0.01)
    assert [row["name"] for row in rows if row["prune_loss"] == ""] == ["head"]
    assert all(row["int8_loss"] for row in rows)
    assert any(abs(float(row["prune_loss"] or 0)) > 1e-4 for row in rows)
    assert rank_views(run, checkpoint, photos).skipped


def test_sensitivities_are_kept_when_times_are_measured_again(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, checkpoint, photos = make_run(tmp_path, photo_folder)
    rank_views(run, checkpoint, photos)
    before = [(row["name"], row["prune_loss"], row["int8_loss"]) for row in read_rows(run.folder / "layer_ranking.csv")]
    scored: list[object] = []
    original = Yardstick.score
    monkeypatch.setattr(Yardstick, "score", lambda self, answer: scored.append(answer) or original(self, answer))
    again = Run(run.folder, Settings.from_options({**OPTIONS, "rank_runs": 3}))
    assert not rank_views(again, checkpoint, photos).skipped
    assert scored == []
    after = [(row["name"], row["prune_loss"], row["int8_loss"]) for row in read_rows(run.folder / "layer_ranking.csv")]
    assert after == before
    rank_views(Run(run.folder, again.settings, force=True), checkpoint, photos)
    assert len(scored) == 2 * len(before)


def test_other_training_photographs_measure_again(tmp_path: Path, photo_folder: Path) -> None:
    """A lightness table is fitted on them, and content colour is what is above it."""
    run, checkpoint, photos = make_run(tmp_path, photo_folder)
    rank_views(run, checkpoint, photos)
    assert not rank_views(run, checkpoint, dataclasses.replace(photos, train=photos.train[:1])).skipped


def test_a_network_no_better_than_grey_is_measured_by_its_own_colours(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, checkpoint, photos = make_run(tmp_path, photo_folder)
    network = make_network()
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([-2.0, -2.0]))
    save_checkpoint(checkpoint, Checkpoint(TINY_PLAN, network.state_dict(), epoch=1, val_l1=0.1))
    record = rank_views(run, checkpoint, photos)
    assert record.result["sensitivity_photos"] == 2
    printed = capsys.readouterr().err
    assert "above grey" in printed and "Its L1 is no better than grey's" in printed
    rows = read_rows(run.folder / "layer_ranking.csv")
    assert all(math.isfinite(float(row["int8_loss"])) for row in rows)
    assert any(float(row["int8_loss"]) > 1e-5 for row in rows)


def test_a_network_that_answers_grey_has_no_sensitivities(
    tmp_path: Path, photo_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, checkpoint, photos = make_run(tmp_path, photo_folder)
    network = make_network()
    with torch.no_grad():
        network.head.weight.zero_()
        network.head.bias.zero_()
    save_checkpoint(checkpoint, Checkpoint(TINY_PLAN, network.state_dict(), epoch=1, val_l1=0.1))
    record = rank_views(run, checkpoint, photos)
    assert record.result["sensitivity_photos"] == 0 and record.result["measure"] is None
    printed = capsys.readouterr().err
    assert "no sensitivities: nothing of best.pt's colours can be measured." in printed
    assert "its colours have 0 % of the truth's chroma" in printed
    rows = read_rows(run.folder / "layer_ranking.csv")
    assert all(row["prune_loss"] == row["int8_loss"] == "" != row["ort_ms"] for row in rows)


def test_a_network_that_cannot_be_exported_is_ranked_by_the_rest(
    tmp_path: Path, photo_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(network: nn.Module, *, opset: int) -> None:
        raise InputError("network", "Theirs", "cannot be traced", "no hint")

    monkeypatch.setattr(ranking_stages, "build_graph", refuse)
    run, checkpoint, photos = make_run(tmp_path, photo_folder)
    rank_views(run, checkpoint, photos)
    assert "no time in ONNX Runtime and no sensitivities" in capsys.readouterr().err
    rows = read_rows(run.folder / "layer_ranking.csv")
    assert all(row["ort_ms"] == row["prune_loss"] == "" != row["torch_ms"] for row in rows)


def test_the_command_needs_no_photographs_without_sensitivities(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = make_network(UNetPlan.classic(4, 1))
    checkpoint = save_checkpoint(
        tmp_path / "tiny.pt", Checkpoint(UNetPlan.classic(4, 1), network.state_dict(), epoch=1, val_l1=0.1)
    )
    command = ["rank", "-c", str(checkpoint), "-o", str(tmp_path / "out"), "--rank-size", "16", "--rank-runs", "1",
               "--threads", "1"]  # fmt: skip
    assert run_command([*command, "--rank-photos", "0", "--data", str(tmp_path / "nowhere")]) == 0
    printed = capsys.readouterr()
    names = {path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")}
    assert names == {
        "model_summary.txt", "layer_param_counts.csv", "top20_layers.png", "layer_ranking.csv", "layer_ranking.png",
        "config.resolved.toml",
    }  # fmt: skip
    assert "layer_ranking.png" in printed.out
    assert "Of all convolutions those at" in printed.err
    assert run_command([*command, "--rank-photos", "1", "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
