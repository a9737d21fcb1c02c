"""Other tools' ways on a tiny UNet: what is planned, made, kept and shown, and what becomes of one that fails."""

from __future__ import annotations

import json
import shutil
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import make_network, make_photo

from benchmarks.peers.__main__ import compare_peers
from benchmarks.peers.environments import Environment, find_environment, name_of
from benchmarks.peers.making import MadePeer, make_peers, run_recipe, write_calibration
from benchmarks.peers.peer_list import PEERS, UNMEASURED, Peer, choose_peers, with_parents
from benchmarks.peers.peer_table import format_peers, write_peers_json
from benchmarks.peers.torch_pruning_recipe import prune_channels
from benchmarks.rows import Row, read_benchmark_json
from benchmarks.variants import describe_models
from colorpress.cli import run_command
from colorpress.core.config import ArchConfig, Settings
from colorpress.core.errors import ConfigError, MachineError
from compress.dependency_graph import layer_widths
from export.controls import CONTROL_TITLES
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.photo_split import PhotoSplit
from training.run_folder import Run, find_photos
from training.unet import UNetPlan

PLAN = UNetPlan.classic(16, 1)
QUICK = {
    "bench_size": (16,), "roof": False, "rounds": 1, "runs": 3, "min_seconds": 0.0, "warmup": 1, "eval_size": 32,
    "device": "cpu", "threads": 1, "workers": 0, "test_share": 0.2,
}  # fmt: skip
HERE = Environment(Path(sys.executable), {"onnxruntime": "1.2.3"})


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with best.pt and ten photographs, and a run folder that holds what all peers start from."""
    folder = tmp_path_factory.mktemp("peers")
    (folder / "photos").mkdir()
    for index in range(10):
        make_photo(index).save(folder / "photos" / f"{index}.png")
    save_checkpoint(folder / "best.pt", Checkpoint(PLAN, make_network(PLAN).state_dict()))
    run = Run(folder / "out", Settings.from_options({**QUICK, "data": folder / "photos"}))
    run.folder.mkdir()
    shutil.copy(folder / "best.pt", run.best_path)
    make_peers(run, find_photos(run), [find_peer("best")])
    return folder


@pytest.fixture
def run(source: Path, tmp_path: Path) -> Run:
    shutil.copytree(source / "out", tmp_path / "out")
    return Run(tmp_path / "out", Settings.from_options({**QUICK, "data": source / "photos"}))


@pytest.fixture
def photos(run: Run) -> PhotoSplit:
    return find_photos(run)


def find_peer(name: str, **changes: Any) -> Peer:
    return replace(choose_peers([name])[0], **changes)


def make_row(model: str, **figures: Any) -> Row:
    usual = {"batch": 1, "height": 16, "width": 16, "threads": 1, "device": "cpu", "runtime": "onnxruntime"}
    usual |= {"variant": model, "compute": "int8", "status": "ok", "size_bytes": 7_800_000, "p50_ms": 27.0}
    usual |= {"speedup": 3.6, "l1_delta_pct": 7.7, "retained_colour": 0.53, "retained_low": 0.5, "retained_high": 0.56}
    usual |= {"content_colour": -0.2, "content_low": -0.3, "content_high": -0.1, "fidelity": 0.4}
    return Row(**{"model": model, **usual, **figures})


def test_peers_have_names_of_their_own_and_a_recipe_that_is_there() -> None:
    assert len({peer.name for peer in PEERS}) == len(PEERS)
    folder = Path(sys.modules["benchmarks.peers.making"].__file__ or "").parent
    for peer in PEERS:
        assert peer.url.startswith("https://") and peer.recommended
        assert not peer.recipe or (folder / f"{peer.recipe}.py").is_file(), peer.name


def test_an_unknown_peer_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="'ort-statik': is unknown") as caught:
        choose_peers(["nncf", "ort-statik"])
    assert caught.value.hint == "did you mean 'ort-static'?"
    with pytest.raises(ConfigError) as caught:
        choose_peers(["§"])
    assert "modelopt" in caught.value.hint


def test_a_pruned_network_is_made_before_what_is_quantized_from_it() -> None:
    chosen = choose_peers(["tp75-nncf", "ort-static"])
    assert [peer.name for peer in chosen] == ["ort-static", "tp75-nncf"]
    assert [peer.name for peer in with_parents(chosen)] == ["ort-static", "tp75", "tp75-nncf"]
    assert choose_peers([]) == PEERS


def test_calibration_photographs_are_whole_and_only_of_the_training_part(run: Run, photos: PhotoSplit) -> None:
    folder = write_calibration(run, photos.train[:3])
    paths = sorted(folder.glob("*.npy"))
    assert [path.name for path in paths] == ["0000.npy", "0001.npy", "0002.npy"]
    lightness = np.load(paths[0])
    assert (lightness.dtype, lightness.shape) == (np.float32, (1, 1, 32, 38))
    assert 0.0 <= lightness.min() < lightness.max() <= 1.0
    assert len(list(write_calibration(run, photos.train[:2]).glob("*.npy"))) == 2


def test_ort_static_is_made_once(run: Run, photos: PhotoSplit, capsys: pytest.CaptureFixture[str]) -> None:
    peer = find_peer("ort-static")
    made = make_peers(run, photos, [peer])[0]
    assert (made.status, made.error) == ("ok", "")
    assert made.path == run.folder / "ort-static" / "model.onnx" and made.seconds is not None
    operators = {node.op_type for node in onnx.load(str(made.path)).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= operators
    (variant,) = made.describe(run)
    assert (variant.name, variant.runtime, variant.precision, variant.peer) == (
        "ort-static", "onnxruntime", "int8", True
    )  # fmt: skip
    assert variant.params == made.params > 0 and variant.macs == made.macs > 0
    capsys.readouterr()
    assert make_peers(run, photos, [peer])[0] == made
    assert "peer-ort-static: up to date, skipped" in capsys.readouterr().err
    make_peers(run, photos, [replace(peer, options={"per_channel": True})])
    assert "peer-ort-static: done" in capsys.readouterr().err


def test_torch_pruning_takes_half_of_the_channels_but_the_answer_s() -> None:
    network = make_network(PLAN)
    before, pruned = layer_widths(network), prune_channels(network, 0.5)
    after = layer_widths(pruned)
    assert {name: width // 2 for name, width in before.items()} == after
    assert pruned.head.out_channels == 2
    assert layer_widths(network) == before


def test_a_pruned_network_is_trained_and_goes_to_the_quantizers(run: Run, photos: PhotoSplit) -> None:
    pruned = find_peer("tp50", options={"ratio": 0.5, "epochs": 1})
    whole, made, quantized = make_peers(run, photos, [find_peer("best"), pruned, find_peer("tp50-ort-static")])
    assert [each.status for each in (whole, made, quantized)] == ["ok", "ok", "ok"]
    assert 0 < made.params < 0.3 * whole.params
    assert quantized.params == made.params and quantized.macs == made.macs
    assert quantized.seconds is not None and made.seconds is not None and quantized.seconds > made.seconds
    assert [(each.name, each.runtime) for each in made.describe(run)] == [
        ("tp50", "onnxruntime"), ("tp50 @ openvino", "openvino"),
    ]  # fmt: skip
    kept = load_checkpoint(run.folder / "tp50" / "model.pt")
    assert kept.epoch == 1 and not (run.folder / "tp50" / "last.pt").exists()


def test_best_pt_in_other_runtimes_needs_no_making(run: Run, photos: PhotoSplit) -> None:
    made = make_peers(run, photos, choose_peers(["best", "best.pt @ torch-bf16"]))
    rows = [(each.name, each.path.name, each.runtime, each.peer) for one in made for each in one.describe(run)]
    assert rows == [
        ("best", "model.onnx", "onnxruntime", False),
        ("best @ openvino", "model.onnx", "openvino", False),
        ("best.pt @ torch-bf16", "best.pt", "torch-bf16", True),
    ]


def test_nncf_makes_an_openvino_and_an_onnx_file(run: Run, photos: PhotoSplit) -> None:
    pytest.importorskip("nncf")
    made = make_peers(run, photos, choose_peers(["nncf", "nncf-onnx"]))
    assert [each.status for each in made] == ["ok", "ok"], [each.error for each in made]
    variants = [variant for each in made for variant in each.describe(run)]
    assert [(each.name, each.path.suffix, each.precision) for each in variants] == [
        ("nncf", ".xml", "int8"), ("nncf-onnx", ".onnx", "int8"), ("nncf-onnx @ openvino", ".onnx", "int8"),
    ]  # fmt: skip


def test_a_failing_recipe_ends_nothing_else(run: Run, photos: PhotoSplit, capsys: pytest.CaptureFixture[str]) -> None:
    broken = find_peer("tp50", recipe="no_such_recipe")
    made = make_peers(run, photos, [broken, find_peer("tp50-ort-static"), find_peer("best.pt @ torch-bf16")])
    assert [each.status for each in made] == ["error", "error", "ok"]
    assert made[0].error.startswith("FileNotFoundError") and "no_such_recipe.py" in made[0].error
    assert made[1].error == "there is no tp50 to make it from"
    assert made[0].describe(run) == []
    assert "warning: tp50: error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ("def make_files(*_): raise ValueError('no such\\noperator')", "ValueError: no such operator"),
        ("def make_files(*_): pass", "it wrote no model.onnx"),
        ("import os\ndef make_files(*_): print('out of it', flush=True); os._exit(7)", "exit 7 without an answer: out"),
        ("from colorpress import errors", "ModuleNotFoundError: No module named 'colorpress'"),
    ],
)
def test_a_recipe_s_process_answers_how_it_failed(
    recipe: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Relative, as --output-dir often is: the recipe's process works in another folder.
    peer, folder = find_peer("ort-static", recipe="broken_recipe"), Path("made")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_recipe.py").write_text(recipe)
    source = Path(sys.modules["benchmarks.peers.making"].__file__ or "").parent
    (tmp_path / "peer_worker.py").write_text((source / "peer_worker.py").read_text())
    monkeypatch.setattr("benchmarks.peers.making._HERE", tmp_path)
    # Without site-packages: a tool's environment does not know colorpress.
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(MachineError) as caught:
        run_recipe(peer, tmp_path / "graph.onnx", tmp_path, folder, Environment(bare, {}))
    assert expected in caught.value.why
    assert [path.name for path in folder.iterdir()] == ["recipe.log"]


def test_a_tool_that_pip_cannot_install_is_said_to_be_not_installed(
    run: Run, photos: PhotoSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    peer = find_peer("olive", requirements=("colorpress-knows-no-such-package>=1.0",))
    made = make_peers(run, photos, [peer])[0]
    assert made.status == "not installed"
    assert "colorpress-knows-no-such-package>=1.0" in made.error
    assert (run.folder / ".peers" / "colorpress-knows-no-such-package.log").is_file()


def test_a_tool_is_installed_above_the_packages_that_are_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    wheel = tmp_path / "tinytool-1.5-py3-none-any.whl"
    about = "Metadata-Version: 2.1\nName: tinytool\nVersion: 1.5\n"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tinytool.py", "import numpy\n")
        archive.writestr("tinytool-1.5.dist-info/METADATA", about)
        archive.writestr("tinytool-1.5.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("tinytool-1.5.dist-info/RECORD", "")
    requirements = (f"tinytool @ {wheel.as_uri()}",)
    environment = find_environment(tmp_path / "env", requirements, ("tinytool", "numpy"))
    assert environment.versions == {"tinytool": "1.5", "numpy": np.__version__}
    assert environment.python.is_relative_to(tmp_path / "env")
    wheel.unlink()
    assert find_environment(tmp_path / "env", requirements, ("tinytool", "numpy")) == environment


def test_what_is_here_needs_no_environment(tmp_path: Path) -> None:
    environment = find_environment(tmp_path / "env", ("numpy>=1.0",), ("numpy",))
    assert environment == Environment(Path(sys.executable), {"numpy": np.__version__})
    assert not (tmp_path / "env").exists()
    assert [name_of(each) for each in ("a-b[c]>=1", "a", "a~=2", "a @ file:x")] == ["a-b", "a", "a", "a"]


def test_the_table_shows_figures_and_failures() -> None:
    ours = make_row("auto-int8", variant="auto-int8", retained_low=None, retained_high=None)
    broken = make_row("nncf", status="error", error="no | such file", runtime="openvino")
    other = make_row("ort-static, batch 8", variant="ort-static", batch=8)
    made = [
        MadePeer(find_peer("ort-static"), "ok", seconds=31.26, versions={"onnxruntime": "1.32.0"}),
        MadePeer(find_peer("nncf"), "ok", seconds=5.0),
        MadePeer(find_peer("olive"), "not installed", "no network"),
    ]
    text = format_peers(made, [make_row("best.pt"), ours, make_row("ort-static"), broken, other])
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines()]
    named = {cells[0]: cells for cells in lines}
    assert named["ort-static"][1] == "ONNX Runtime quantization (onnxruntime 1.32.0)"
    assert named["ort-static"][2].endswith(
        "](https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html)"
    )
    assert named["ort-static"][3:] == [
        "31.3 s", "7.80 MB", "27.0 ms", "onnxruntime int8", "3.60x", "+7.70 %", "0.530 (0.500 to 0.560)",
        "-0.200 (-0.300 to -0.100)", "0.400",
    ]  # fmt: skip
    assert named["auto-int8"][-3:] == ["0.530", "-0.200 (-0.300 to -0.100)", "0.400"]
    assert lines[0][-3:] == ["G (95 % interval)", "C (95 % interval)", "F (95 % interval)"]
    assert "error: no \\" in text and "not installed: no network" in text
    assert "ort-static, batch 8" not in named
    assert all(each.tool in text for each in UNMEASURED)


def test_peers_json_says_what_became_of_each(tmp_path: Path) -> None:
    made = [
        MadePeer(find_peer("tp50-nncf"), "ok", path=tmp_path / "tp50-nncf" / "model.xml", seconds=3.0, params=7),
        MadePeer(find_peer("olive"), "error", "KeyError: ''"),
    ]
    record = json.loads(write_peers_json(tmp_path / "peers.json", made, tmp_path).read_text())
    first, second = record["peers"]
    assert (first["name"], first["made_from"], first["model"]) == ("tp50-nncf", "tp50", "tp50-nncf/model.xml")
    figures = [second[name] for name in ("status", "error", "model", "seconds")]
    assert figures == ["error", "KeyError: ''", None, None]
    assert {each["tool"] for each in record["unmeasured"]} == {each.tool for each in UNMEASURED}


@pytest.mark.usefixtures("timed_here")
def test_one_command_makes_and_measures_peers_beside_ours(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tmp_path / "small" / "model.pt"
    save_checkpoint(ours, Checkpoint(PLAN, make_network(PLAN, seed=1).state_dict()))
    output = tmp_path / "out"
    arguments = [str(source / "best.pt"), str(ours), "--data", str(source / "photos"), "-o", str(output), "-q"]
    arguments += ["--peer", "ort-static", "--peer", "best.pt @ torch-channels-last", "--imgsz", "16", "--no-roof"]
    arguments += ["--rounds", "1", "--runs", "3", "--min-seconds", "0", "--warmup", "1", "--eval-size", "32"]
    arguments += ["--device", "cpu", "--workers", "0"]
    assert run_command(arguments, compare_peers, "peers") == 0
    table = capsys.readouterr().out
    rows = read_benchmark_json(output / "benchmark.json").rows
    assert [(row.model, row.peer, row.status) for row in rows] == [
        ("best.pt", False, "ok"), ("small", False, "ok"),
        ("best.pt @ torch-channels-last", True, "ok"), ("ort-static", True, "ok"),
        *((title, False, "ok") for title in CONTROL_TITLES.values()),
    ]  # fmt: skip
    assert (output / "peers.md").read_text().strip() == table.strip()
    assert [each["name"] for each in json.loads((output / "peers.json").read_text())["peers"]] == [
        "best.pt @ torch-channels-last", "ort-static",
    ]  # fmt: skip
    assert (output / "report.html").is_file() and (output / "config.resolved.toml").is_file()
    # Whoever names these files later has them as other tools' too.
    named = [output / "best.pt", output / "best" / "model.onnx", output / "ort-static" / "model.onnx", ours]
    assert [each.peer for each in describe_models(named, size=32, arch=ArchConfig())] == [False, False, True, False]


@pytest.mark.parametrize(
    ("arguments", "code", "message", "hint"),
    [
        (["none.pt"], 2, "error: checkpoint 'none.pt': no such file", "hint: give a checkpoint"),
        (["none.pt", "none.onnx"], 2, "error: model 'none.onnx': no such file", "hint: give a .pt"),
        (["best.pt", "--peer", "ncf"], 2, "error: peer 'ncf': is unknown", "hint: did you mean 'nncf'?"),
        (["best.pt", "--bench-runtime", "openvino"], 2, "'--bench-runtime': does not go with peers", "--openvino"),
        ([], 2, "Missing argument 'CHECKPOINT'", "hint: see `python -m benchmarks.peers --help`"),
    ],
)
def test_errors_are_two_lines(
    arguments: list[str], code: int, message: str, hint: str,
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments, compare_peers, "python -m benchmarks.peers") == code
    *before, error, advice = capsys.readouterr().err.strip().splitlines()
    assert all(line.startswith("photographs: ") for line in before)
    assert message in error and hint in advice
