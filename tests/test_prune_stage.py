"""Budgets and steps through the command line, on a tiny UNet: what is promised is what the exported file has."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from colorpress.cli import cli, run_command
from colorpress.core.config import BudgetConfig, DataConfig, Settings
from compress.measures import Score, Scores
from compress.prune_stage import prune_limits, split_crops
from compress.yardstick import make_yardstick
from export.graph import export_onnx
from training.checkpoint import load_checkpoint
from training.photo_scan import scan_photos
from training.run_folder import Run
from training.unet import count_parameters

TINY = ["--base", "8", "--depth", "2", "--imgsz", "16", "--val-size", "16", "--epochs", "1"]
TIMED = ["--workers", "0", "--threads", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of photographs and a run folder with a trained best.pt."""
    from tests.conftest import make_photo

    folder = tmp_path_factory.mktemp("prune")
    (folder / "photos").mkdir()
    for index in range(10):
        make_photo(index).save(folder / "photos" / f"{index}.png")
    data = ["--data", str(folder / "photos")]
    assert run_command(["train", *data, *TINY, *TIMED, "-o", str(folder / "out")]) == 0
    return folder / "photos", folder / "out" / "best.pt"


def prune(trained: tuple[Path, Path], output: Path, *options: str) -> tuple[int, dict[str, Any]]:
    photos, best = trained
    code = run_command([
        "prune", "-c", str(best), "--data", str(photos), "--distil-imgsz", "16", "--round-to", "1",
        "--largest-share", "1", "--finetune-crops", "0", *TIMED, "-o", str(output), *options,
    ])  # fmt: skip
    path = output / "pruned" / "plan.json"
    return code, json.loads(path.read_text()) if code == 0 else {}


def params(path: Path) -> int:
    return count_parameters(load_checkpoint(path).build_network())


def test_a_file_is_as_small_as_its_budget_says(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, plan = prune(trained, tmp_path, "--target-size", "60KB", "--keep-params", "0.9", "--round-to", "2")
    assert code == 0
    assert "meets the budgets" in capsys.readouterr().err
    assert run_command(["export", "-c", str(tmp_path / "pruned" / "model.pt"), "-o", str(tmp_path)]) == 0
    size = (tmp_path / "pruned" / "model.onnx").stat().st_size
    assert 55_000 < size <= 60_000
    assert plan["settings"]["budgets"]["--target-size"] == "60000 bytes"
    assert 0 < plan["settings"]["prune_ratio"] < 0.99


def test_a_ratio_that_removes_nothing_is_said(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, plan = prune(trained, tmp_path, "--prune-ratio", "0.5", "--round-to", "64")
    assert code == 0 and plan["result"] == plan["source"]
    assert "warning: nothing was pruned: --prune-ratio 0.5" in capsys.readouterr().err


def test_a_size_is_that_of_the_file_to_be_published(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run = Run(tmp_path, Settings(budget=BudgetConfig(target_size="1MB")))
    best = load_checkpoint(trained[1])
    (measure,) = prune_limits(run, best, tmp_path).values()
    published = export_onnx(best, tmp_path / "best" / "model.onnx", run.settings.export)
    assert 0 <= measure(best.build_network()) - published.size_bytes <= 8  # digits of its validation L1


def test_another_budget_is_another_plan(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for share in ("0.5", "0.25"):
        assert prune(trained, tmp_path, "--keep-params", share)[0] == 0
        assert params(tmp_path / "pruned" / "model.pt") <= float(share) * params(trained[1])
    capsys.readouterr()
    assert prune(trained, tmp_path, "--keep-params", "0.25")[0] == 0
    assert "prune: up to date, skipped" in capsys.readouterr().err


def test_a_budget_out_of_reach_is_an_option_mistake(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(trained, tmp_path, "--target-size", "1KB")[0] == 2
    assert "not even the smallest network meets it" in capsys.readouterr().err
    assert not (tmp_path / "pruned" / "model.pt").exists()


def test_a_latency_budget_is_measured(trained: tuple[Path, Path], tmp_path: Path) -> None:
    # Generous, and few counts of channels: what is tested is the way.
    code, plan = prune(trained, tmp_path, "--target-latency-ms", "1000", "--round-to", "8")
    assert code == 0
    assert plan["settings"]["prune_ratio"] == 0
    assert prune(trained, tmp_path, "--target-latency-ms", "0.001")[0] == 2


def test_time_goes_where_it_is_spent(trained: tuple[Path, Path], tmp_path: Path) -> None:
    code, plan = prune(trained, tmp_path, "--prune-strategy", "latency", "--prune-ratio", "0.5", "--round-to", "4")
    assert code == 0
    assert params(tmp_path / "pruned" / "model.pt") < params(trained[1])
    assert all(width % 4 == 0 for width in plan["result"].values())


@pytest.mark.parametrize("importance", ["taylor", "hessian", "activation"])
def test_importance_by_training_photographs(trained: tuple[Path, Path], tmp_path: Path, importance: str) -> None:
    code, plan = prune(trained, tmp_path, "--importance", importance, "--importance-photos", "2")
    assert code == 0
    assert f"channels of least {importance} go" in plan["groups"][0]["reason"]


def test_steps_fine_tune_in_between_and_leave_one_plan(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, plan = prune(trained, tmp_path, "--prune-steps", "2", "--finetune-crops", "24")
    assert code == 0
    assert capsys.readouterr().err.count("distilled for 1 epoch:") == 2
    assert (tmp_path / "pruned" / "step1" / "model.pt").is_file()
    again = tmp_path / "again"
    code, _ = prune(trained, again, "--prune-plan", str(tmp_path / "pruned" / "plan.json"))
    assert code == 0
    shapes = [
        {name: tensor.shape for name, tensor in load_checkpoint(folder / "pruned" / "model.pt").state_dict.items()}
        for folder in (tmp_path, again)
    ]
    assert shapes[0] == shapes[1]
    assert "; then the" in plan["groups"][0]["reason"]


def test_a_given_plan_is_applied_and_a_missed_budget_said(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prune(trained, tmp_path / "a", "--keep-params", "0.5")[0] == 0
    given = ["--prune-plan", str(tmp_path / "a" / "pruned" / "plan.json")]
    capsys.readouterr()
    assert prune(trained, tmp_path / "b", *given, "--keep-params", "0.5")[0] == 0
    assert "misses a budget" not in capsys.readouterr().err
    assert prune(trained, tmp_path / "c", *given, "--keep-params", "0.1")[0] == 0
    assert "warning: the plan of --prune-plan misses a budget: " in capsys.readouterr().err


def test_levels_of_the_decoder_go_whole_and_the_new_last_layer_learns(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coarse = ("--prune-output-stride", "2")
    code, plan = prune(trained, tmp_path, *coarse, "--finetune-crops", "16")
    assert code == 0 and plan["output_stride"] == 2
    network = load_checkpoint(tmp_path / "pruned" / "model.pt").build_network()
    assert network.output_stride == 2 and not any(name.startswith("decoder.1") for name in plan["source"])
    assert run_command(["export", "-c", str(tmp_path / "pruned" / "model.pt"), "-o", str(tmp_path)]) == 0
    given = ("--prune-plan", str(tmp_path / "pruned" / "plan.json"))
    assert prune(trained, tmp_path / "again", *given, "--finetune-crops", "16")[1]["result"] == plan["result"]
    capsys.readouterr()
    for asked in (coarse, given):
        assert prune(trained, tmp_path / "none", *asked, "--finetune-crops", "0")[0] == 2
        error = capsys.readouterr().err
        assert "error: option '--finetune-crops 0': does not go with answers at 1/2 of the size" in error
        assert "hint: give the crops that it learns from" in error
    assert not (tmp_path / "none" / "pruned" / "model.pt").exists()
    learning = ("--finetune-crops", "16")
    assert prune(trained, tmp_path / "none", "--prune-output-stride", "3", *learning)[0] == 3
    assert "cannot answer at 1/3 of the size" in capsys.readouterr().err
    for asking in (("--importance", "taylor"), ("--prune-strategy", "latency")):
        assert prune(trained, tmp_path / "none", *coarse, *learning, *asking)[0] == 2
        assert "does not go with --importance taylor, hessian or --prune-strategy latency" in capsys.readouterr().err
    assert prune(trained, tmp_path / "all", *coarse, *learning, "--prune-ratio", "0.01", "--round-to", "64")[0] == 0
    assert "nothing was pruned" not in capsys.readouterr().err


def test_a_foreign_network_is_pruned_to_its_budgets(trained: tuple[Path, Path], tmp_path: Path) -> None:
    import torch

    from colorpress.core.config import ArchConfig
    from tests.test_cli import NETWORK
    from training.foreign import adapt_network

    source = tmp_path / "nets.py"
    source.write_text(NETWORK)
    arch = ["--arch", f"{source}:Net", "--arch-arg", "base=8"]
    network = adapt_network(ArchConfig(arch=arch[1], arch_arg=("base=8",)))
    torch.save(network.net.state_dict(), tmp_path / "theirs.pt")
    output = tmp_path / "out"
    theirs = (trained[0], tmp_path / "theirs.pt")
    code, _ = prune(theirs, output, *arch, "--keep-macs", "0.5", "--target-size", "5KB", "--importance", "taylor")
    assert code == 0
    assert run_command(["export", "-c", str(output / "pruned" / "model.pt"), *arch[:2], "-o", str(output)]) == 0
    path = output / "pruned" / "model.onnx"
    assert path.stat().st_size <= 5000
    onnx.checker.check_model(str(path))


def test_epochs_are_shared_by_the_steps() -> None:
    assert split_crops(5, 2) == [2, 3]
    assert split_crops(6, 3) == [2, 2, 2]
    assert split_crops(1, 3) == [0, 0, 1]
    assert split_crops(5, 1) == [5]
    assert split_crops(0, 2) == [0, 0]


def test_the_options_are_offered() -> None:
    text = CliRunner().invoke(cli, ["prune", "--help"]).output
    for option in (
        "--keep-params",
        "--keep-macs",
        "--target-size",
        "--target-latency-ms",
        "--scope",
        "--prune-steps",
        "--prune-output-stride",
    ):
        assert option in text
    for option in ("--imgsz", "--val-size", "--epochs", "--learning-rate", "--base"):  # what it does not read
        assert f" {option} " not in text


def test_the_result_scores_what_is_kept_on_photographs_that_did_not_choose(
    trained: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("colorpress.core.config._DISTIL_EPOCH", 8)
    code, _ = prune(trained, tmp_path, "--finetune-crops", "16", "--val-share", "0.4", "--json")
    assert code == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)["prune"]
    with (tmp_path / "pruned" / "distillation.csv").open(newline="") as table:
        epochs = [float(row["val_l1"]) for row in csv.DictReader(table)]
    assert len(epochs) == 2
    assert result["val_l1_after"] == pytest.approx(min(*epochs, result["val_l1_before"]))
    photos = scan_photos(DataConfig(data=trained[0], val_share=0.4), workers=0)
    assert len(photos.choosing) == len(photos.confirming) == 2
    run, best = Run(tmp_path), load_checkpoint(trained[1])
    pruned = load_checkpoint(tmp_path / "pruned" / "model.pt").build_network()
    side = run.settings.score.eval_size
    for name, part in (("chosen_by", photos.choosing), ("confirmed", photos.confirming)):
        score = make_yardstick(run, best, photos, part, short_side=side).score(pruned)
        assert Score.of(result[name]).kept == pytest.approx(score.kept)
    assert result["chosen_by"]["fidelity"] != pytest.approx(result["confirmed"]["fidelity"], abs=1e-6)
    scores = Scores.of(result)
    assert scores.confirmed and f"pruned: {scores.describe(intervals=True)}" in printed.err
    # What decides here is fidelity, so that told which epoch is best.
    assert "prune: fidelity F decides, so best.pt's answers alone teach" in printed.err
    assert result["val_l1_after"] < result["val_l1_before"] and result["chosen_by"]["fidelity"] > 0
