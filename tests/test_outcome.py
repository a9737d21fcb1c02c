"""The last lines of a run: what is recommended or why nothing is, the rows that matter, and what to type next."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks.rows import write_benchmark_json
from colorpress.cli import cli
from colorpress.core.config import ArchConfig, Settings
from colorpress.outcome import describe_benchmark, describe_outcome
from compress.measures import Strength
from training.run_folder import Run

STRONG = Strength(60, 20.0, 18.0, 16.0, 20.0, 0.6)
TINT = Strength(60, 14.0, 2.4, 1.0, 4.0, 0.5)
ARGV = ["run", "--data", "my photos", "--force", "-o", "out"]


def entry(model: str, kept: float, **changes: Any) -> dict[str, Any]:
    """A finished row of benchmark.json."""
    variant = model.partition(" @ ")[0]
    row = {
        "model": model, "variant": variant, "runtime": "torch" if variant.endswith(".pt") else "onnxruntime",
        "device": "cpu", "size_bytes": 8, "batch": 1, "height": 256, "width": 256, "threads": 2, "p50_ms": 4.0,
        "speedup": 10.0, "photos": 60, "l1": 0.1, "l1_delta_pct": 0.5, "retained_colour": kept, "content_colour": kept,
        "content_low": kept - 0.01, "content_high": kept + 0.01, "fidelity": kept, "status": "ok",
        "precision": "int8" if variant.endswith("int8") else "fp32",
    }  # fmt: skip
    return {**row, **changes}


BEST = entry("best.pt", 1.0, size_bytes=8_000, p50_ms=40.0, speedup=1.0, l1_delta_pct=0.0)
TABLE = entry("control: lightness table", 0.0, control="table", p50_ms=None, speedup=None, l1_delta_pct=30.0)


def make_run(folder: Path, *rows: dict[str, Any], strength: Strength = STRONG, **options: Any) -> Run:
    """A run folder with a benchmark, and the files of the variants in it."""
    record = {"format_version": 3, "rows": [BEST, *rows, TABLE], "strength": strength.to_dict()}
    write_benchmark_json(folder / "benchmark.json", record)
    for row in rows:
        model = folder / row["variant"] / "model.onnx"
        model.parent.mkdir(parents=True, exist_ok=True)
        model.write_bytes(bytes(row["size_bytes"]))
        model.with_name("colorizer.onnx").write_bytes(bytes(2_500))
    return Run(folder, Settings.from_options({"data": Path("my photos"), **options}))


def outcome(run: Run, argv: list[str] = ARGV, *, has_trained: bool = True) -> list[str]:
    return describe_outcome(run, argv=argv, has_trained=has_trained)


def next_commands(lines: list[str]) -> list[list[str]]:
    """The words of the commands after "next:", each of which exists with such options."""
    shown = lines[lines.index("next:") + 1 :]
    commands = [shlex.split(line.partition("  colorpress ")[2]) for line in shown]
    for name, *words in commands:
        with cli.commands[name].make_context(name, list(words)):
            pass
    return commands


def test_what_is_recommended_its_figures_and_three_commands(tmp_path: Path) -> None:
    names = ["best", "best-int8", "pruned", "pruned-int8", "auto", "front/7kb-1", "front/9kb-2"]
    rows = [entry(name, 0.9) for name in names]
    rows.append(entry("auto-w8", 0.97, size_bytes=80, speedup=20.0, p50_ms=2.0))
    lines = outcome(make_run(tmp_path, *rows))
    assert lines[0] == f"Recommended: {tmp_path / 'auto-w8' / 'model.onnx'} in ONNX Runtime"
    text = "\n".join(lines)
    assert "100 times smaller than best.pt (80 B instead of 8.00 kB)" in lines[1]
    assert "20.0 times as fast (2.00 ms instead of 40.0 ms)" in lines[2]
    assert "0.97 of the content colour kept (95 % interval 0.96 to 0.98)" in lines[3]
    assert "colorizer.onnx beside it, pixels in, pixels out (2.50 kB)" in lines[4]
    assert text.count("0.97 (0.96 to 0.98)") == 1 and "content colour C: the share of best.pt's gain" in text
    table = lines[lines.index("") + 2 : lines.index("", lines.index("") + 1)]
    assert len(table) == 7 and [line[:1] for line in table].count("*") == 1  # five rows, and what they mean
    assert max(map(len, table[:5])) <= 80
    assert f"report    {tmp_path / 'report.html'}" in text and len(lines) < 25
    assert next_commands(lines) == [
        ["open", str(tmp_path)],
        ["colorize", "my photos", "-m", str(tmp_path / "auto-w8" / "colorizer.onnx")],
        ["bundle", "-o", str(tmp_path), "--variant", "auto-w8"],
    ]


def test_another_runtime_is_named_and_a_demo_ends_with_one_s_own_photographs(tmp_path: Path) -> None:
    row = entry("best-int8 @ openvino", 0.97, size_bytes=80, runtime="openvino")
    lines = outcome(make_run(tmp_path, row, data=None))
    assert lines[0].endswith("best-int8/model.onnx in OpenVINO")
    assert next_commands(lines)[1:] == [
        ["colorize", "PHOTOS", "-m", str(tmp_path / "best-int8" / "colorizer.onnx"), "--runtime", "openvino"],
        ["run", "--data", "PHOTOS", "-o", "out"],
    ]


def test_files_of_elsewhere_are_not_pointed_at(tmp_path: Path) -> None:
    run = make_run(tmp_path, entry("auto-w8", 0.97, size_bytes=80))
    (tmp_path / "auto-w8" / "model.onnx").write_bytes(b"another")
    lines = outcome(run)
    assert lines[0] == "Recommended: auto-w8 in ONNX Runtime"
    assert [words[0] for words in next_commands(lines)] == ["open"]


def test_nothing_recommended_says_why_and_how_to_get_further(tmp_path: Path) -> None:
    run = make_run(tmp_path, entry("auto-w8", 0.6), entry("best-int8", 0.5))
    lines = outcome(run)
    assert lines[0].startswith("No variant is recommended: the closest to best.pt, auto-w8, keeps 0.60 of")
    assert "learn for longer" in lines[1]
    assert next_commands(lines)[1:] == [
        ["run", "--data", "my photos", "-o", "out", "--student-crops", "384000"],
        ["bundle", "-o", str(tmp_path), "--variant", "auto-w8"],
    ]


@pytest.mark.parametrize("has_trained", [True, False])
def test_a_weak_original_is_trained_for_longer_where_it_is_trained_here(tmp_path: Path, has_trained: bool) -> None:
    lines = outcome(make_run(tmp_path, entry("auto-w8", 0.6), strength=TINT), has_trained=has_trained)
    assert lines[1].startswith("best.pt itself paints little more than tint: train it")
    assert "\n".join(lines).count("paints little more than tint") == 1
    longer = ["run", "--data", "my photos", "-o", "out", "--epochs", "60", "-o", f"{tmp_path}-longer"]
    assert (longer in next_commands(lines)) == has_trained


def test_a_checkpoint_of_a_foreign_network_is_run_with_what_names_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, entry("pruned.pt", 0.97, size_bytes=80))
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "model.pt").write_bytes(bytes(80))
    foreign = Settings(data=run.settings.data, arch=ArchConfig(arch="net.py:Net"))
    model = str(tmp_path / "pruned" / "model.pt")
    assert next_commands(outcome(Run(tmp_path, foreign)))[1] == [
        "colorize", "my photos", "-m", model, "--arch", "net.py:Net",
    ]  # fmt: skip
    assert [words[0] for words in next_commands(outcome(run))] == ["open", "colorize"]  # nothing that ships


def test_a_benchmark_shows_every_row_and_ends_with_the_verdict(tmp_path: Path) -> None:
    names = ["best", "best-int8", "pruned", "pruned-int8", "auto", "auto-w8"]
    run = make_run(tmp_path, *(entry(name, 0.97, size_bytes=80) for name in names))
    lines = "\n".join(describe_benchmark(run, has_report=False)).splitlines()
    assert {line.split()[0] for line in lines[1:8]} == {"best.pt", *names}
    assert next_commands(lines) == [["report", "-o", str(tmp_path)], ["open", str(tmp_path)]]
    assert next_commands(describe_benchmark(run, has_report=True)) == [["open", str(tmp_path)]]
    assert any(line.startswith("Recommended: ") for line in lines[-10:])
