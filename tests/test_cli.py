"""The command line's contract: help, exit codes, two-line errors, configuration files, signals."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from PIL import Image

from colorpress.cli import cli, main, run_command
from colorpress.core.config import CONFIGS, OPTION_NAMES, option_name

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = [
    "adopt",
    "benchmark",
    "bundle",
    "colorize",
    "compare",
    "compress",
    "deploy",
    "doctor",
    "explain",
    "export",
    "inspect",
    "open",
    "pack",
    "prune",
    "quantize",
    "rank",
    "report",
    "run",
    "student",
    "train",
    "verify",
    "worker",
]


@pytest.fixture(autouse=True)
def _restore_signals() -> object:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def fails_with(code: int, capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    """Run a command that must fail; its standard error, which must be exactly the two lines."""
    assert run_command([str(each) for each in arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = [line for line in captured.err.splitlines() if not re.match(r"checking photographs|photographs:", line)]
    assert len(lines) == 2, captured.err
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("hint: ")
    return captured.err


def test_help_lists_every_command_and_loads_nothing_heavy() -> None:
    code = (
        "import sys; from colorpress.cli import run_command; run_command(['--help'])\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'matplotlib', 'numpy', 'pandas', 'scipy', 'PIL', 'rich'}\n"
        "print(heavy & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == COMMANDS
    assert done.stderr.strip() == "set()"


def test_the_help_says_each_command_whole(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["--help"]) == 0
    assert "..." not in capsys.readouterr().out.partition("Commands:")[2]


def test_without_a_command_it_says_what_to_type_first(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([]) == 0
    printed = capsys.readouterr()
    typed = re.findall(r"  colorpress (.*)", printed.out)
    assert typed[0].startswith("colorize") and {line.split()[0] for line in typed[:-2]} <= set(cli.commands)
    assert len(printed.out.splitlines()) < 20 and printed.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command([command, "--help"]) == 0
    assert f"colorpress {command}" in capsys.readouterr().out


def help_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command(["run", *arguments]) == 0
    return capsys.readouterr().out


def offered_in(text: str) -> set[str]:
    return set(re.findall(r"^ {2}(?:-\w, )?(--[\w-]+)", text, re.MULTILINE))


def test_the_help_of_run_shows_what_people_set_first_on_two_screens(capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, "--help")
    common = {f"--{option_name(each.name)}" for config in CONFIGS.values() for each in fields(config)
              if each.metadata["common"]}  # fmt: skip
    assert len(common) == 20
    assert common <= offered_in(text) and "--opset" not in offered_in(text)
    assert len(text.splitlines()) <= 70


def test_run_offers_every_option_of_every_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert {f"--{option_name(name)}" for name in OPTION_NAMES} <= offered_in(help_of(capsys, "--help-all"))


def test_whoever_scores_offers_what_it_scores_at() -> None:
    for name in ("prune", "student", "compress", "quantize", "benchmark"):
        assert "--eval-size" in {option for parameter in cli.commands[name].params for option in parameter.opts}, name


def test_only_options_that_are_used_are_offered(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["quantize", "--help"]) == 0
    offered = offered_in(capsys.readouterr().out)
    assert "--distil-learning-rate" not in offered and {"--qat-learning-rate", "--distil-imgsz"} <= offered


def complete(*words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What bash is told where the last word is begun: kinds and values."""
    monkeypatch.setenv("_COLORPRESS_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", " ".join(("colorpress", *words)))
    monkeypatch.setenv("COMP_CWORD", str(len(words)))
    with pytest.raises(SystemExit) as ended:
        main([])
    printed = capsys.readouterr()
    assert ended.value.code == 0 and printed.err == ""
    return printed.out.split()


def test_commands_options_and_values_are_completed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()
    (tmp_path / "reports" / "config.resolved.toml").write_text("of-another-version = 3\nepochs = 0\n")
    asked = functools.partial(complete, monkeypatch=monkeypatch, capsys=capsys)
    assert asked("com") == ["plain,compare", "plain,compress"]
    assert asked("run", "--upsample", "bi") == ["plain,bilinear"]
    assert asked("train", "--batch") == ["plain,--batch-size"]
    assert asked("quantize", "-c", "rep") == ["file,rep"]
    assert asked("run", "--help-all", "--quie") == ["plain,--quiet"]


@pytest.mark.parametrize(
    ("shell", "text"), [("bash", "complete -o nosort"), ("zsh", "#compdef colorpress"), ("fish", "complete --no-files")]
)
def test_each_shell_gets_its_completion_and_nothing_heavy_is_loaded(shell: str, text: str) -> None:
    code = (
        "import sys; from colorpress.cli import main\n"
        "try: main()\n"
        "finally: print({'torch', 'onnx', 'numpy', 'pandas', 'PIL'} & set(sys.modules), file=sys.stderr)"
    )
    environment = {**os.environ, "_COLORPRESS_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0 and text in done.stdout, done.stderr
    assert done.stderr.strip() == "set()"


def test_a_name_belongs_to_the_first_option_that_claims_it() -> None:
    named = {option: parameter.name for parameter in cli.commands["benchmark"].params for option in parameter.opts}
    assert named["--threads"] == "bench_threads" and named["--imgsz"] == "bench_size"
    assert "threads" not in named.values()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["train", "--epochs", "0"], "'--epochs': got 0"),
        (["train", "--epochs", "many"], "--epochs"),
        (["train", "--learning-rate", "nan"], "'--learning-rate': got nan"),
        (["train", "--upsample", "magic"], "--upsample"),
        (["train", "--no-such"], "--no-such"),
        (["nonsense"], "nonsense"),
        (["train", "--device", "tpu"], "'--device': got 'tpu'"),
        (["run", "--prune-ratio", "1.5"], "'--prune-ratio': got 1.5"),
        (["rank", "--checkpoint", "none.pt"], "checkpoint 'none.pt': no such file"),
        (["train", "--config", "none.toml"], "configuration 'none.toml': no such file"),
        (["colorize"], "PHOTOS"),
    ],
)
def test_usage_errors_end_with_2(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in fails_with(2, capsys, *arguments)


def test_unusable_input_ends_with_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pt").write_text("text")
    (tmp_path / "empty").mkdir()
    output = ["-o", str(tmp_path / "out")]
    assert "not a PyTorch file" in fails_with(3, capsys, "rank", "-c", tmp_path / "bad.pt", *output)
    assert "photographs are needed" in fails_with(3, capsys, "train", "--data", tmp_path / "empty", *output)
    assert "holds no model.onnx" in fails_with(3, capsys, "quantize", *output)
    assert "holds no benchmark.json" in fails_with(3, capsys, "report", *output)


def test_a_named_checkpoint_is_read_before_the_photographs(
    photo_folder: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of many photographs that takes minutes."""
    place = ["--data", photo_folder, "-o", tmp_path / "out"]
    for command in ("adopt", "prune", "rank", "student", "compress"):
        name = [] if command == "adopt" else ["-c"]
        for checkpoint, options, why in (
            ("none.pt", [], "checkpoint 'none.pt': no such file"),
            (tiny_checkpoint, ["--state-key", "net"], "option '--state-key': says where a file of another program has"),
        ):
            said = [str(each) for each in (command, *name, checkpoint, *options, *place)]
            assert run_command(said) == 2
            error = capsys.readouterr().err
            assert why in error and "photographs:" not in error, said


def test_what_the_machine_cannot_do_ends_with_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert "cannot write" in fails_with(4, capsys, "train", "-o", tmp_path / "file" / "out")
    if not torch.cuda.is_available():
        assert "not present" in fails_with(4, capsys, "train", "--device", "cuda", "-o", tmp_path / "out")


def test_too_many_bad_photographs_end_with_5_and_are_named(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photo_folder / "[red]<script>\n.jpg").write_text("no picture")
    message = fails_with(5, capsys, "train", "--data", photo_folder, "-o", tmp_path / "out")
    assert "1 of 11 files cannot be used" in message
    assert "<script>" in (tmp_path / "out" / "skipped_images.csv").read_text()


def test_names_in_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = fails_with(2, capsys, "rank", "-c", tmp_path / "new\nline\x1b[31m.pt")
    assert r"new\nline\x1b[31m.pt" in message


def test_configuration_file_is_below_environment_is_below_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.toml"
    config.write_text('epochs = 0\ndata = "nowhere"\n')
    assert "'--epochs': got 0" in fails_with(2, capsys, "train", "--config", config)
    config.write_text('epochs = 7\ndata = "nowhere"\n')
    assert "nowhere" in fails_with(2, capsys, "train", "--config", config, "-o", tmp_path / "out")
    monkeypatch.setenv("COLORPRESS_TRAIN_EPOCHS", "-2")
    assert "'--epochs': got -2" in fails_with(2, capsys, "train", "--config", config)
    assert "'--epochs': got -1" in fails_with(2, capsys, "train", "--config", config, "--epochs", "-1")
    config.write_text("epoch = 3\n")
    assert "did you mean 'epochs'?" in fails_with(2, capsys, "train", "--config", config)
    for wrong in ("epochs = 5.5", "epochs = true", "epochs = [1]", "data = 5", "learning-rate = 'fast'"):
        config.write_text(wrong)
        fails_with(2, capsys, "train", "--config", config)
    config.write_text("epochs = [")
    assert "is not TOML" in fails_with(2, capsys, "train", "--config", config)


def test_options_of_a_folder_of_another_version_are_left_out_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resolved = tmp_path / "config.resolved.toml"
    resolved.write_text('epoch-count = 3\ndata = "nowhere"\n')
    assert run_command(["train", "-o", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert printed.count("warning: ") == 1 and f"{resolved} is of another version: epoch-count is no option" in printed
    assert "option --data 'nowhere': no such folder" in printed
    # What a range no longer allows is for the user to change, who has to find it.
    resolved.write_text("epochs = 0\n")
    assert f"it stands in {resolved}" in fails_with(2, capsys, "rank", "-o", tmp_path)


def test_the_options_of_a_run_that_found_no_photographs_are_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    message = fails_with(3, capsys, "run", "--data", tmp_path / "empty", "-o", tmp_path / "out")
    assert "holds no photographs" in message and "(JPEG, PNG, WebP, TIFF, BMP, GIF" in message
    assert not (tmp_path / "out" / "config.resolved.toml").exists()


def test_open_prints_the_report_and_opens_it_where_there_is_a_display(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    for name in ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.chdir(tmp_path)
    assert "hint: name a run folder: `colorpress open FOLDER`" in fails_with(3, capsys, "open")
    report = tmp_path / "reports" / "report.html"
    report.parent.mkdir()
    report.with_name(".stages").mkdir()
    assert "hint: its run has not ended" in fails_with(3, capsys, "open")
    report.with_name("benchmark.json").write_text("{}")
    assert "hint: write it: `colorpress report -o reports`" in fails_with(3, capsys, "open")
    report.write_text("<p>")
    assert run_command(["open"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "reports/report.html\n" and "no display here" in printed.err and opened == []
    monkeypatch.setenv("DISPLAY", ":0")
    assert run_command(["open", str(report.parent)]) == 0
    assert opened == [report.as_uri()] and capsys.readouterr().err == ""


def test_a_stage_goes_on_with_the_options_of_its_folder(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--base", "4", "--depth", "2", "--imgsz", "16", "--val-size", "16", "--epochs", "1", "--workers", "0"]
    output = ["-o", str(tmp_path / "out")]
    assert run_command(["train", "--data", str(photo_folder), *tiny, *output]) == 0
    assert run_command(["train", *output]) == 0
    assert "train: up to date, skipped" in capsys.readouterr().err
    assert run_command(["prune", "--finetune-crops", "0", "--round-to", "1", *output]) == 0
    assert "8 to train on" in capsys.readouterr().err
    options = (tmp_path / "out" / "config.resolved.toml").read_text()
    assert all(line in options for line in ("base = 4", "round-to = 1", "finetune-crops = 0"))


def test_an_edited_prune_plan_is_applied(
    photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = ["--base", "4", "--depth", "2", "--imgsz", "16", "--val-size", "16", "--epochs", "1", "--workers", "0"]
    output = ["-o", str(tmp_path / "out")]
    assert run_command(["train", "--data", str(photo_folder), *tiny, *output]) == 0
    assert run_command(["prune", "--finetune-crops", "0", "--round-to", "1", *output]) == 0
    plan = json.loads((tmp_path / "out" / "pruned" / "plan.json").read_text())
    del plan["groups"][1:]
    (tmp_path / "mine.json").write_text(json.dumps(plan))
    capsys.readouterr()
    assert run_command(["prune", "--prune-plan", str(tmp_path / "mine.json"), *output]) == 0
    assert "pruned 1 of 12 layers" in capsys.readouterr().err


NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, base=2):
        super().__init__()
        self.down, self.norm = nn.Conv2d(1, base, 3, stride=2, padding=1), nn.BatchNorm2d(base)
        self.up, self.out = nn.ConvTranspose2d(base, 2 * base, 2, stride=2), nn.Conv2d(2 * base, 2, 1)

    def forward(self, x):
        return torch.tanh(self.out(self.up(torch.relu(self.norm(self.down(x))))))
"""


@pytest.mark.usefixtures("timed_here")
def test_a_foreign_network_goes_through_every_command(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "net.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path / "nets")
    scope: dict[str, object] = {}
    exec(NETWORK, scope)
    torch.save({"net": scope["Net"](base=4).state_dict(), "epoch": 3}, "theirs.pt")  # type: ignore[operator]
    (tmp_path / "mine.toml").write_text('arch = "net.py:Net"\narch-arg = ["base=4"]\nab-scale = 110\n')
    tiny = [
        "--val-size", "16", "--finetune-crops", "16", "--round-to", "1", "--workers", "0",
        "--rank-size", "16", "--rank-photos", "1", "--rank-runs", "2",
        "--bench-size", "16", "--rounds", "1", "--runs", "3", "--warmup", "1",
        "--min-seconds", "0", "--eval-size", "24", "--calibration-size", "24", "--threads", "1",
        "--student-crops", "16", "--student-trial-crops", "16", "--distil-imgsz", "32",
        "--search-trials", "1", "--search-crops", "16", "--search-full-crops", "16", "--search-front", "1",
        "--no-search-int8", "--no-roof",
    ]  # fmt: skip
    output, data = ["-o", str(tmp_path / "out")], ["--data", str(photo_folder)]
    message = fails_with(2, capsys, "run", "--arch", "net.py:Net", *data, *tiny, *output)
    assert "without --checkpoint" in message
    message = fails_with(3, capsys, "run", "-c", "theirs.pt", *data, *tiny, *output)
    assert "holds no colorpress network (keys down.weight, down.bias" in message

    config = ["--config", str(tmp_path / "mine.toml")]
    assert run_command(["run", "-c", "theirs.pt", *config, *data, *tiny, *output]) == 0
    best = torch.load(tmp_path / "out" / "best.pt", weights_only=True)
    assert (best["architecture"]["source"], best["architecture"]["args"]) == ("net.py:Net", {"base": 4})
    printed = capsys.readouterr()
    assert printed.out.startswith(("Recommended: ", "No variant is recommended: "))
    assert len(printed.out.splitlines()) < 30 and f"report    {tmp_path / 'out' / 'report.html'}" in printed.out

    # The arguments and the scale are in best.pt; that the same code runs again is for the user to say.
    arch = ["--arch", "net.py:Net", "--arch-arg", "base=4", "--ab-scale", "110"]
    for command in ("rank", "prune", "compress", "export", "quantize", "benchmark"):
        assert run_command([command, *output, *arch]) == 0, capsys.readouterr().err
        assert "up to date, skipped" in capsys.readouterr().err
    for command in ("pack", "report"):
        assert run_command([command, *output]) == 0
    colour = ["colorize", str(photo_folder / "photo0.png"), "-o", str(tmp_path / "coloured")]
    assert run_command([*colour, "-m", "theirs.pt", *arch]) == 0
    assert run_command([*colour, "-m", str(tmp_path / "out" / "pruned" / "model.pt"), *arch, "--overwrite"]) == 0
    capsys.readouterr()
    message = fails_with(2, capsys, *colour, "-m", tmp_path / "out" / "best.pt", "--overwrite")
    assert "holds the network net.py:Net" in message

    # A run folder that somebody sends names no code to run, whatever its files say.
    with (tmp_path / "out" / "config.resolved.toml").open("a") as resolved:
        resolved.write('arch = "net.py:Net"\n')
    for options in ([], ["--config", tmp_path / "out" / "config.resolved.toml"]):
        message = fails_with(2, capsys, "rank", *output, *options, "--force")
        assert "holds the network net.py:Net, and no code is run that you do not name" in message
        assert "hint: name the file: --arch net.py:Net --arch-arg base=4 --ab-scale 110" in message


def test_a_benchmark_prints_its_table_and_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.rows import write_benchmark_json
    from colorpress.cli import _print_records
    from colorpress.core.stages import StageRecord
    from compress.measures import Strength
    from training.run_folder import Run

    best = {"model": "best.pt", "variant": "best.pt", "runtime": "torch", "status": "ok", "device": "cpu",
            "size_bytes": 9, "photos": 2, "batch": 1, "height": 8, "width": 8, "threads": 2}  # fmt: skip
    roof = {"threads": 2, "macs_per_s": {"int8": 4e11}, "kernels": {"int8": "QLinearConv"}, "bytes_per_s": 2e10}
    aa_ratios = {"cpu, batch 8": {"median": 1.01, "low": 0.9, "high": 1.1}}
    record = {"format_version": 3, "rows": [best], "aa_ratios": aa_ratios, "roof": roof}
    strength = Strength(2, 14.0, 2.4, 1.0, 4.0, 0.5)
    record |= {
        "strength": strength.to_dict(),
        "also": {"sea": {"strength": None, "photos": [], "skipped": 0, "known": 0, "worst": [], "judged": None}},
    }
    write_benchmark_json(tmp_path / "benchmark.json", record)
    _print_records(Run(tmp_path), False, [StageRecord("benchmark", "", {}, {}, 0.0)])
    printed = capsys.readouterr().out
    assert "only best.pt was measured" in printed
    assert "2 photographs show the machinery, not colour quality" in printed
    assert "A/A control, cpu, batch 8: best.pt timed against itself is 1.010 (0.900 to 1.100)" in printed
    assert "int8 400 GMAC/s (QLinearConv)" in printed
    assert printed.count(strength.describe()) == printed.count(strength.caution) == 1  # not among the notes again
    assert "also on sea:" in printed


@pytest.mark.usefixtures("timed_here")
def test_further_folders_of_a_benchmark_are_kept_and_bad_ones_refused(
    tiny_checkpoint: Path, photo_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.rows import read_benchmark_json

    sea = tmp_path / "sea"
    sea.mkdir()
    for index, color in enumerate(("red", "blue")):
        Image.new("RGB", (24, 20 + index), color).save(sea / f"{color}.png")
    out = ["-o", str(tmp_path / "out")]
    quick = ["--rounds", "1", "--runs", "3", "--min-seconds", "0", "--warmup", "1", "--no-roof", "--eval-size", "32"]
    command = ["benchmark", str(tiny_checkpoint), *out, *quick, "--imgsz", "8", "--workers", "0", "--device", "cpu"]
    data = ["--data", str(photo_folder), "--max-bad-share", "0.9"]
    assert run_command([*command, *data, "--also", str(sea)]) == 0, capsys.readouterr().err
    printed = capsys.readouterr().out
    assert "also on sea:" in printed and "control: lightness table" in printed
    record = read_benchmark_json(tmp_path / "out" / "benchmark.json")
    assert record.rows[0].also["sea"]["photos"] == 2
    # The folder keeps it; what is given again wins.
    assert run_command(command) == 0
    assert list(read_benchmark_json(tmp_path / "out" / "benchmark.json").also) == ["sea"]
    for also, code, why in (("nowhere", 2, "no such folder"), (str(tmp_path / "out"), 2, "lies inside the run folder")):
        capsys.readouterr()
        assert run_command([*command, "--also", also]) == code
        assert why in capsys.readouterr().err
    (tmp_path / "none").mkdir()
    assert run_command([*command, "--also", str(tmp_path / "none")]) == 3
    # In TOML one will do for a list of one.
    for written in ('also = "missing"', 'also = ["missing"]'):
        (tmp_path / "c.toml").write_text(written)
        assert run_command([*command, "--config", str(tmp_path / "c.toml")]) == 2
        assert "option --also 'missing': no such folder" in capsys.readouterr().err


@pytest.mark.usefixtures("timed_here")
def test_any_files_are_timed_in_lists_of_conditions(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.rows import read_benchmark_json
    from colorpress.core.config import ExportConfig
    from export.graph import export_onnx
    from training.checkpoint import load_checkpoint

    exported = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "small.onnx", ExportConfig()).path
    out = ["-o", str(tmp_path / "out")]
    quick = ["--rounds", "1", "--runs", "3", "--min-seconds", "0", "--warmup", "1", "--no-roof", "--eval-photos", "0"]
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: bool(opened.append(address)) or True)
    monkeypatch.setenv("BROWSER", "firefox")
    lists = ["--batch-size", "1,2", "--imgsz", "8", "--threads", "2,1", "--runtime", "torch-channels-last,onnxruntime"]
    command = ["benchmark", str(tiny_checkpoint), str(exported), *out, *quick, *lists]
    assert run_command(command) == 0, capsys.readouterr().err
    record = read_benchmark_json(tmp_path / "out" / "benchmark.json")
    models = [row.model for row in record.rows]
    assert models[:4] == ["tiny.pt", "tiny.pt @ torch-channels-last", "small", "tiny.pt, batch 2"]
    assert len(models) == 12 and models[-1] == "small, batch 2, 1 thread"
    assert {(row.status, row.l1, row.height) for row in record.rows} == {("ok", None, 8)}
    assert set(record.aa_ratios) == {"cpu", "cpu, batch 2", "cpu, 1 thread", "cpu, batch 2, 1 thread"}
    assert not (tmp_path / "out" / "pareto.png").exists()
    printed = capsys.readouterr().out
    assert "small, batch 2, 1 thread" in printed and "A/A control, cpu, 1 thread" in printed
    assert "colours were not measured, only time.\nMeasure them too: --eval-photos above 0.\n" in printed
    assert not (tmp_path / "out" / "report.html").exists()
    # The folder keeps the lists; what is given again wins.
    assert run_command(["benchmark", str(tiny_checkpoint), *out, "--batch-size", "2", "--force", "--open"]) == 0
    assert opened == [(tmp_path / "out" / "report.html").as_uri()]
    rows = read_benchmark_json(tmp_path / "out" / "benchmark.json").rows
    assert [(row.batch, row.threads) for row in rows] == [(2, 2), (2, 2), (2, 1), (2, 1)]


def test_bad_lists_and_files_of_a_benchmark_are_refused(
    tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["benchmark", tiny_checkpoint, "-o", tmp_path / "out", "--eval-photos", "0"]
    for option, value, why in (
        ("--batch-size", "1,x", "is no list of whole numbers"),
        ("--batch-size", "1,0", "got 0"),
        ("--imgsz", "64,64", "got [64, 64]"),
        ("--threads", "0", "got 0"),
        ("--runtime", "torch,tensorflow", "runtime 'tensorflow': is unknown"),
        ("-c", tiny_checkpoint, "does not go with MODELS"),
    ):
        assert why in fails_with(2, capsys, *command, option, value)
    assert "no such file" in fails_with(2, capsys, *command, tmp_path / "gone.onnx")
    assert "needs a GPU" in fails_with(4, capsys, *command, "--runtime", "torch-fp16")


def test_doctor_prints_json_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert "CPUExecutionProvider" in found["onnxruntime_providers"]
    assert run_command(["doctor"]) == 0
    assert "torch" in capsys.readouterr().out


def test_an_internal_error_is_two_lines_and_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise ZeroDivisionError("oh")

    monkeypatch.setattr("training.run_folder.scan_photos", fail)
    assert "internal: ZeroDivisionError" in fails_with(1, capsys, "train", "-o", tmp_path / "out")
