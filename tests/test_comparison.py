"""Two benchmarks beside each other: what got worse, which gates fail, and the exit codes of the command."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.comparison import METRICS, Gate, compare_benchmarks, format_comparison, format_figure, parse_gate
from benchmarks.rows import COLUMNS, write_benchmark_json
from colorpress.cli import run_command
from colorpress.core.console import set_quiet
from colorpress.core.errors import ConfigError, InputError
from compress.measures import Strength

MACHINE = {
    "cpu": "EPYC", "cores_physical": 2, "cores_logical": 4, "cores_usable": 2, "memory_bytes": 1,
    "libraries": {"torch": "2.13.0"},
}  # fmt: skip
FIGURES = {
    "status": "ok", "error": "", "runtime": "onnxruntime",
    "device": "cpu", "batch": 1, "height": 256, "width": 256, "threads": 2,
    "p50_ms": 10.0, "p90_ms": 11.0, "mean_ms": 10.2, "images_per_s": 98.0, "speedup": 4.0, "size_bytes": 310_000,
    "params": 70_000, "peak_rss_mb": 90.0, "l1": 0.1, "retained_colour": 0.97, "psnr_db": 22.0, "ssim": 0.9,
}  # fmt: skip
Write = Callable[..., Path]


@pytest.fixture(autouse=True)
def _restore_the_process() -> object:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    yield
    set_quiet(False)
    for number, handler in zip((signal.SIGINT, signal.SIGTERM), before, strict=True):
        signal.signal(number, handler)


def row(model: str = "auto-int8", **figures: Any) -> dict[str, Any]:
    return {**dict.fromkeys(COLUMNS), "model": model, "variant": model.partition(" @ ")[0], **FIGURES, **figures}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a benchmark of the rows under a name; further parts replace those of the record."""

    def _write(name: str, *rows: dict[str, Any], **parts: Any) -> Path:
        record = {
            "format_version": 3,
            "config": {"eval_size": 256},
            "machine": MACHINE,
            "aa_ratios": {"cpu": {"median": 1.0, "low": 0.99, "high": 1.02}},
            "rows": list(rows),
            "per_photo": {"photos": ["one.jpg", "two.jpg"], "grey_l1": [0.2, 0.3]},
        }
        return write_benchmark_json(tmp_path / name, {**record, **parts})

    return _write


def judge(write: Write, before: dict[str, Any], after: dict[str, Any], *gates: str) -> dict[str, Any]:
    a, b = write("a.json", row(**before)), write("b.json", row(**after))
    return compare_benchmarks(a, b, [parse_gate(gate) for gate in gates])


def test_every_metric_is_a_column_and_has_one_name() -> None:
    columns = [metric.column for metric in METRICS.values()]
    assert set(columns) <= set(COLUMNS)
    assert len(set(columns)) == len(columns)


def test_every_metric_says_how_it_changed(write: Write) -> None:
    found = judge(write, {}, {"p50_ms": 8.0, "retained_colour": 0.96, "size_bytes": 310_000, "delta_e": 3.0})
    (compared,) = found["rows"]
    assert (compared["model"], compared["state"], compared["status_after"]) == ("auto-int8", "both", "ok")
    metrics = compared["metrics"]
    assert list(metrics) == list(METRICS)
    assert metrics["p50"] == {"before": 10.0, "after": 8.0, "change": -2.0, "change_pct": -20.0, "worse": False}
    assert metrics["g"]["change"] == pytest.approx(-0.01)
    assert metrics["g"]["worse"] is True  # higher is better
    assert metrics["size"]["worse"] is False
    assert metrics["delta_e"] == {"before": None, "after": 3.0, "change": None, "change_pct": None, "worse": None}
    assert found["failures"] == []


def test_a_change_from_zero_has_no_percentage(write: Write) -> None:
    found = judge(write, {"l1": 0.0}, {"l1": 0.1}, "l1:50%")
    assert found["rows"][0]["metrics"]["l1"]["change_pct"] is None
    assert [each["allowed"] for each in found["failures"]] == [0.0]


@pytest.mark.parametrize(
    ("gate", "before", "after", "fails"),
    [
        ("p50:5%", 10.0, 10.5, False),  # equal to the limit
        ("p50:5%", 10.0, 10.6, True),
        ("p50:5%", 10.0, 2.0, False),  # better
        ("p50:0.2", 10.0, 10.2, False),
        ("p50:0.2 ms", 10.0, 10.3, True),
        ("p50:0", 10.0, 10.0, False),
        ("p50:0", 10.0, 10.001, True),
        ("g:0.01", 0.97, 0.96, False),  # their difference is a little more than 0.01 in binary
        ("g:0.01", 0.97, 0.9599, True),
        ("g:0.01", 0.97, 1.5, False),
        ("c:0.01", 0.97, 0.9599, True),
        ("f:0.01", 0.97, 0.9599, True),
        ("f:0.01", 0.97, 0.99, False),
        ("chroma:5%", 0.9, 0.8, True),  # it fades
        ("chroma:5%", 0.9, 1.3, False),
        ("edge:0.01", 0.1, 0.12, True),
        ("g:10%", -0.5, -0.54, False),  # of its size, also below zero
        ("g:10%", -0.5, -0.56, True),
        ("speedup:10%", 4.0, 3.6, False),
        ("speedup:10%", 4.0, 3.5, True),
        ("size:1KB", 310_000, 311_000, False),
        ("size:1KB", 310_000, 311_001, True),
        ("size:1KiB", 310_000, 311_024, False),
        ("size:500", 310_000, 310_501, True),
        ("memory:5MB", 90.0, 95.5, True),
        ("psnr:0.5dB", 22.0, 21.5, False),
        ("agreement:1%", 0.01, 0.02, True),
    ],
)
def test_a_gate_fails_beyond_its_limit(write: Write, gate: str, before: float, after: float, fails: bool) -> None:
    column = METRICS[gate.partition(":")[0]].column
    failures = judge(write, {column: before}, {column: after}, gate)["failures"]
    assert bool(failures) == fails
    if fails:
        assert (failures[0]["model"], failures[0]["gate"]) == ("auto-int8", gate)
        assert (failures[0]["before"], failures[0]["after"]) == (before, after)
        assert failures[0]["worse_by"] > failures[0]["allowed"]


def test_every_gate_is_judged_in_every_row(write: Write) -> None:
    a = write("a.json", row("best.pt"), row("auto"), row("auto @ openvino"))
    b = write("b.json", row("auto", p50_ms=20.0, l1=0.2), row("auto @ openvino"), row("best.pt", l1=0.2))
    gates = [parse_gate(text) for text in ("p50:5%", "l1:1%", "p50:5%")]
    found = compare_benchmarks(a, b, gates)
    assert [(each["model"], each["gate"]) for each in found["failures"]] == [
        ("best.pt", "l1:1%"), ("auto", "p50:5%"), ("auto", "l1:1%"),
    ]  # fmt: skip
    assert found["failures"][1]["why"] == ("p50 10 ms -> 20 ms (+100.0 %): worse by 10 ms, more than p50:5% allows")


def test_a_row_that_is_lost_or_fails_now_fails_any_gate(write: Write) -> None:
    a = write("a.json", row("gone"), row("broken"), row("fine"))
    b = write("b.json", row("fine"), row("broken", status="oom", error="out of memory", p50_ms=None), row("fresh"))
    assert compare_benchmarks(a, b)["failures"] == []
    found = compare_benchmarks(a, b, [parse_gate("size:1MB"), parse_gate("p50:5%")])
    assert [(each["model"], each["why"], each["gate"]) for each in found["failures"]] == [
        ("gone", "is missing now", None), ("broken", "failed now: oom: out of memory", None),
    ]  # fmt: skip
    assert [(each["model"], each["state"]) for each in found["rows"]] == [
        ("gone", "lost"), ("broken", "both"), ("fine", "both"), ("fresh", "new"),
    ]  # fmt: skip
    assert found["not_judged"] == []


def test_a_row_that_had_failed_before_is_not_judged(write: Write) -> None:
    found = judge(write, {"status": "error", "p50_ms": 1.0}, {"p50_ms": 9.0}, "p50:5%")
    assert found["failures"] == []
    assert found["not_judged"] == [{"model": "auto-int8", "gate": "p50:5%", "why": "had failed before"}]
    assert "p50:5% was judged in no row" in found["warnings"]


@pytest.mark.parametrize("missing", [None, float("nan"), float("inf"), "fast", True])
def test_a_figure_that_is_missing_now_fails_and_one_that_was_missing_is_not_judged(
    write: Write, tmp_path: Path, missing: Any
) -> None:
    whole, lacking = write("a.json", row()), tmp_path / "b.json"
    record = json.loads(whole.read_text())
    record["rows"][0]["p50_ms"] = missing
    lacking.write_text(json.dumps(record))  # with NaN, as other tools write it
    gate = [parse_gate("p50:5%")]
    (failure,) = compare_benchmarks(whole, lacking, gate)["failures"]
    assert (failure["why"], failure["before"], failure["after"]) == ("has no p50 now", 10.0, None)
    found = compare_benchmarks(lacking, whole, gate)
    assert found["failures"] == []
    assert [each["why"] for each in found["not_judged"]] == ["had no p50 before"]
    json.dumps(found, allow_nan=False)


def test_variants_choose_rows_by_file_or_row(write: Write) -> None:
    rows = [row("best.pt"), row("auto"), row("auto @ openvino"), row("pruned")]
    a, b = write("a.json", *rows), write("b.json", *rows[:3])
    gate = [parse_gate("p50:5%")]
    chosen = compare_benchmarks(a, b, gate, variants=["auto"])
    assert [each["model"] for each in chosen["rows"]] == ["auto", "auto @ openvino"]
    assert chosen["failures"] == []
    chosen = compare_benchmarks(a, b, gate, variants=["auto @ openvino", "pruned"])
    assert [each["model"] for each in chosen["rows"]] == ["auto @ openvino", "pruned"]
    assert [each["model"] for each in chosen["failures"]] == ["pruned"]
    with pytest.raises(ConfigError, match="neither benchmark has such a row") as caught:
        compare_benchmarks(a, b, gate, variants=["auto", "prund"])
    assert caught.value.hint == "did you mean 'pruned'?"


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("memry:5%", "did you mean 'memory'?"),
        ("p50_ms:5%", "did you mean 'p50'?"),
        ("retained_colour:1%", "did you mean 'g'?"),
        ("qqqqqq:5%", "choose one of: p50, p90"),
        (":5%", "choose one of: p50, p90"),
        ("", "choose one of: p50, p90"),
        ("p50", "write p50:5% or p50:0.2ms"),
        ("p50:", "write p50:5% or p50:0.2ms"),
        ("p50:%", "write p50:5% or p50:0.2ms"),
        ("p50:5%%", "write p50:5% or p50:0.2ms"),
        ("p50:5MB", "write p50:5% or p50:0.2ms"),
        ("auto:p50:5%", "choose one of: p50, p90"),
        ("l1:much", "write l1:5% or l1:0.2"),
        ("size:1XB", "write size:5% or size:1KB"),
        ("size:-1KB", "write size:5% or size:1KB"),
        ("p50:-5%", "write p50:5%"),
        ("p50:-0.1", "write p50:5%"),
        ("p50:nan", "write p50:5%"),
        ("p50:inf%", "write p50:5%"),
    ],
)
def test_a_gate_that_cannot_be_read_is_refused(text: str, hint: str) -> None:
    with pytest.raises(ConfigError, match="--fail-if") as caught:
        parse_gate(text)
    assert caught.value.hint.startswith(hint)


def test_gates_as_they_are_read() -> None:
    assert parse_gate("l1:1%") == Gate("l1:1%", "l1", 0.01, is_relative=True)
    assert parse_gate("size:1.5KB") == Gate("size:1.5KB", "size", 1500, is_relative=False)
    assert parse_gate(" p50 : 5 % ").limit == 0.05


def warnings_between(write: Write, first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    a, b = write("a.json", row(), **first), write("b.json", row(), **second)
    found = compare_benchmarks(a, b)
    assert found["same_machine"] == (not any("machines differ" in each for each in found["warnings"]))
    warnings: list[str] = found["warnings"]
    return warnings


def test_other_machines_are_named(write: Write) -> None:
    assert warnings_between(write, {}, {"machine": {**MACHINE, "memory_bytes": 2}}) == []
    (warning,) = warnings_between(write, {}, {"machine": {**MACHINE, "cpu": "Xeon", "libraries": {"torch": "2.12"}}})
    assert warning == (
        "the machines differ (cpu EPYC / Xeon; torch 2.13.0 / 2.12): absolute times cannot be compared, use speedup"
    )
    assert len(warnings_between(write, {}, {"machine": {**MACHINE, "cores_usable": 1}})) == 1
    assert len(warnings_between(write, {"machine": None}, {})) == 1


def test_other_conditions_are_named(write: Write) -> None:
    a = write("a.json", row("one"), row("two"))
    b = write("b.json", row("one", batch=8, threads=1), row("two", batch=8))
    assert compare_benchmarks(a, b)["warnings"] == [
        "batch differs (one 1 / 8 and 1 more): absolute times cannot be compared, use speedup",
        "threads differs (one 2 / 1): absolute times cannot be compared, use speedup",
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"per_photo": {"photos": ["one.jpg", "three.jpg"], "grey_l1": [0.2, 0.3]}},
        {"per_photo": {"photos": ["one.jpg", "two.jpg"], "grey_l1": [0.2, 0.31]}},  # another picture of that name
        {"per_photo": None},
        {"config": {"eval_size": 128}},
    ],
)
def test_accuracy_on_other_photographs_is_not_judged(write: Write, other: dict[str, Any]) -> None:
    assert warnings_between(write, {}, other) == ["the photographs differ: accuracies cannot be compared"]
    a, b = write("a.json", row()), write("b.json", row(), **other)
    assert compare_benchmarks(a, b, [parse_gate("p50:5%")])["failures"] == []
    with pytest.raises(InputError, match="other photographs, so l1:1% cannot be judged"):
        compare_benchmarks(a, b, [parse_gate("p50:5%"), parse_gate("l1:1%")])


def test_a_limit_below_the_noise_is_named(write: Write) -> None:
    noise = {"cpu": {"median": 1.0, "low": 0.93, "high": 1.01}, "cpu, batch 8": {"median": 1.0, "low": 1, "high": 1}}
    a, b = write("a.json", row()), write("b.json", row(), aa_ratios=noise)
    gates = [parse_gate(text) for text in ("p50:5%", "p50:8%", "p90:0.5", "size:1%", "speedup:6.9%")]
    found = compare_benchmarks(a, b, gates)
    assert [each.partition(" is less than the noise")[0] for each in found["warnings"]] == [
        "p50:5%", "p90:0.5", "speedup:6.9%",
    ]  # fmt: skip
    assert "up to 7.0 % (cpu of b)" in found["warnings"][0]
    assert found["noise"]["b"] == noise


def test_a_table_for_people(write: Write) -> None:
    a = write("a.json", row("auto"), row("gone\n"), row("broken"))
    b = write("b.json", row("auto", p50_ms=12.0), row("broken", status="oom"), row("fresh"))
    gates = [parse_gate("p50:5%"), parse_gate("delta_e:1%")]
    lines = format_comparison(compare_benchmarks(a, b, gates), gates).splitlines()
    assert lines == [
        "model        p50                       delta_e",
        "auto         10 ms -> 12 ms (+20.0 %)  -",
        r"gone\n       missing now",
        "broken       failed now: oom",
        "fresh (new)  10 ms                     -",
        "failed: auto: p50 10 ms -> 12 ms (+20.0 %): worse by 2 ms, more than p50:5% allows",
        r"failed: gone\n: is missing now",
        "failed: broken: failed now: oom",
        "not judged: auto: delta_e:1%: had no delta_e before",
    ]
    plain = format_comparison(compare_benchmarks(a, b))
    assert plain.splitlines()[0].split() == ["model", "p50", "speedup", "size", "l1", "f"]


def test_figures_have_their_units() -> None:
    figures = {"size": 310_000, "params": 70_000, "macs": 2e9, "memory": 90.25, "g": 0.97123, "psnr": 22.0, "l1": None}
    assert [format_figure(name, value) for name, value in figures.items()] == [
        "310 kB", "70 k", "2 G", "90.25 MB", "0.9712", "22 dB", "-",
    ]  # fmt: skip


def test_the_command_ends_with_0_or_5_and_prints_json(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write("a/benchmark.json", row()), write("b/benchmark.json", row(p50_ms=12.0))
    assert run_command(["compare", str(a), str(b)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["rows"][0]["metrics"]["p50"]["change"] == 2.0
    assert "10 ms -> 12 ms (+20.0 %)" in printed.err
    # Folders mean their benchmark.json.
    assert run_command(["compare", str(a.parent), str(b.parent), "--fail-if", "p50:25%", "--fail-if", "l1:1%"]) == 0
    capsys.readouterr()
    assert run_command(["compare", str(a.parent), str(b), "--fail-if", "l1:1%", "--fail-if", "p50:5%"]) == 5
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["a"], found["b"], found["same_machine"]) == (str(a), str(b), True)
    assert [each["gate"] for each in found["failures"]] == ["p50:5%"]
    assert "failed: auto-int8: p50" in printed.err
    assert printed.err.splitlines()[-2].startswith("error: comparison ")
    assert printed.err.splitlines()[-1].startswith("hint: ")


def test_quiet_leaves_warnings_and_errors(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write("a.json", row()), write("b.json", row(p50_ms=12.0, batch=8), row("new"))
    assert run_command(["compare", str(a), str(b), "-q", "--fail-if", "p50:5%"]) == 5
    printed = capsys.readouterr()
    assert json.loads(printed.out)["failures"]
    assert [line.split(" ")[0] for line in printed.err.splitlines()] == ["warning:", "error:", "hint:"]


def test_a_bad_gate_or_variant_ends_with_2(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a = write("a.json", row())
    for arguments in (["--fail-if", "p5:5%"], ["--fail-if", "p50"], ["--fail-if", "p50:-1%"], ["--variant", "none"]):
        assert run_command(["compare", str(a), str(a), *arguments]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert len(printed.err.splitlines()) == 2
    assert run_command(["compare", str(a)]) == 2


@pytest.mark.parametrize(
    "text",
    [
        None, "", "[]", "{", "\udcff", "[" * 100_000, '{"format_version": 1, "rows": []}', '{"format_version": 3}',
        '{"format_version": 3, "rows": 5}', '{"format_version": 3, "rows": [5]}', '{"format_version": 3, "rows": [{}]}',
        '{"format_version": 3, "rows": [{"model": "a"}, {"model": "a"}]}',
        '{"format_version": 3, "rows": [], "machine": 5}',
        '{"format_version": 3, "rows": [], "machine": {"libraries": [1]}}',
        '{"format_version": 3, "rows": [], "aa_ratios": {"cpu": {"low": 1}}}',
        '{"format_version": 3, "rows": [], "aa_ratios": {"cpu": {"median": NaN, "low": 1, "high": 1}}}',
        '{"format_version": 3, "rows": [], "per_photo": {"grey_l1": ["grey"]}}',
        '{"format_version": 3, "rows": [], "config": [1]}',
        '{"format_version": 3, "rows": [], "per_photo": "none"}',
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_read_ends_with_3(
    write: Write, tmp_path: Path, text: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = write("a.json", row()), tmp_path / "bad.json"
    if text is not None:
        bad.write_bytes(text.encode("utf-8", "surrogateescape"))
    for pair in ((good, bad), (bad, good)):
        assert run_command(["compare", *map(str, pair)]) == 3, text
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "bad.json" in printed.err
        assert len(printed.err.splitlines()) == 2


def test_a_folder_without_a_benchmark_ends_with_3(write: Write, tmp_path: Path) -> None:
    assert run_command(["compare", str(tmp_path), str(write("a.json", row()))]) == 3


def test_an_accuracy_gate_on_other_photographs_ends_with_3(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    a = write("a.json", row())
    b = write("b.json", row(), per_photo={"photos": ["three.jpg"], "grey_l1": [0.2]})
    assert run_command(["compare", str(a), str(b), "--fail-if", "g:0.01"]) == 3
    assert "other photographs" in capsys.readouterr().err
    assert run_command(["compare", str(a), str(b), "--fail-if", "p50:1%"]) == 0
    assert "warning: the photographs differ" in capsys.readouterr().err


def test_the_measure_that_decides_is_shown(write: Write) -> None:
    strong = Strength(100, 20.0, 18.0, 16.0, 20.0, 0.6).to_dict()
    weak = Strength(100, 14.0, 2.4, 1.0, 4.0, 0.5).to_dict()
    a, b = write("a.json", row(), strength=strong), write("b.json", row(content_colour=0.9), strength=strong)
    found = compare_benchmarks(a, b)
    assert found["measure"] == "c" and not any("decides" in each for each in found["warnings"])
    assert format_comparison(found).splitlines()[0].split()[-1] == "c"
    found = compare_benchmarks(a, write("b.json", row(), strength=weak))
    assert "content colour decides in the first benchmark, fidelity in the second: best.pt differs" in found["warnings"]
    assert compare_benchmarks(write("b.json", row(), strength=weak), a)["measure"] == "f"


def test_controls_are_shown_and_fail_no_gate(write: Write) -> None:
    """A better best.pt leaves less of G to the lightness table, and a benchmark without colours has no controls."""
    nothing = dict.fromkeys(("p50_ms", "p90_ms", "mean_ms", "images_per_s", "speedup", "peak_rss_mb"))
    control = row("control: lightness table", control="table", **nothing)
    a, b = write("a.json", row(), control), write("b.json", row(), {**control, "retained_colour": 0.5})
    gates = [parse_gate("g:0.01"), parse_gate("p50:5%")]
    found = compare_benchmarks(a, b, gates)
    assert (found["failures"], found["not_judged"]) == ([], [])
    assert found["rows"][1]["metrics"]["g"]["after"] == 0.5
    assert compare_benchmarks(a, write("b.json", row()), gates)["failures"] == []
    assert compare_benchmarks(a, write("b.json", {**row(), "retained_colour": 0.5}), gates)["failures"] != []
