"""Rows, files and the terminal's table."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.accuracy import Accuracy, AccuracyResult
from benchmarks.also import AlsoFolder, describe_also
from benchmarks.latency import Arm, LatencyResult
from benchmarks.roof import Roof
from benchmarks.rows import (
    COLUMNS,
    FORMAT_VERSION,
    Benchmark,
    Row,
    own_rows,
    read_benchmark_json,
    read_strength,
    write_benchmark_json,
)
from benchmarks.suite import make_record
from benchmarks.tables import format_also, format_conditions, format_table, make_rows, write_benchmark_csv
from benchmarks.variants import Variant
from colorpress.core.config import BenchmarkPlan
from colorpress.core.errors import InputError
from colorpress.core.text import format_bytes, format_count, format_interval, format_number, format_percent
from compress.measures import CONTENT, Reference
from export.timing import Condition, Ratio, Timing, compute_statistics
from training.metrics import PhotoScores
from training.photos import Photo

CONFIG = BenchmarkPlan(bench_size=(64,), bench_batch=(2,))
NAMES = ("best.pt", "=evil()\n", "gone")


# Half of grey's L1, and a quarter under the table's.
REFERENCE = Reference(
    *(np.array(values) for values in ([0.2, 0.3], [0.13, 0.2], [0.1, 0.15], [0.1, 0.15], [9, 9], [12, 12]))
)
CONTROL = Variant("control: one tint", Path("tint.onnx"), "onnxruntime", "cpu", "fp32", 2, 0, 900, 8, control="tint")


def results() -> tuple[LatencyResult, AccuracyResult]:
    variants = [
        Variant(name, Path(name), "torch", "cpu", "fp32", 7_760_000, 0, 31_100_000, 31_000_000, peer=name == "gone")
        for name in NAMES
    ]
    rounds = ({"status": "ok", "times_ns": [10_000_000] * 3, "warmup": 12, "load_ms": 1.0, "first_ms": 2.0},)
    timed = Timing(
        "ok", statistics=compute_statistics([10_000_000] * 3, 2), speedup=Ratio(1.0, 0.9, 1.1), rounds=rounds,
        load_ms=1.0, first_ms=2.0, peak_rss_mb=99.5, provider="cpu", compute="bf16",
    )  # fmt: skip
    scored = Accuracy(
        "ok", l1=0.1234567891, l1_rgb=0.05, psnr_db=22.0, ssim=0.9, delta_e=7.5, l1_delta_pct=-0.0001,
        retained_colour=0.97, retained_low=0.95, retained_high=0.99, agreement_l1=0.0, colourfulness_ratio=0.7,
        content_colour=0.91, fidelity=0.8, chroma_to_truth=0.6, to_best=(0.0, 0.0),
    )  # fmt: skip
    failed = Timing("crashed(SIGSEGV)", error="died", rounds=({"status": "crashed(SIGSEGV)", "error": "died"},))
    timings = dict(zip(NAMES, (timed, timed, failed), strict=True))
    scores = dict(zip(NAMES, (scored, scored, Accuracy("error", error="died")), strict=True))
    arms = tuple(Arm(variant.name, variant, Condition(batch=2, size=64, threads=2)) for variant in variants)
    latency = LatencyResult(arms, timings, {"cpu": Ratio(1.01, 0.99, 1.02)})
    return latency, AccuracyResult(scores, photos=(), grey_l1=(0.2, 0.3), reference=REFERENCE)


def test_rows_hold_every_column() -> None:
    latency, accuracy = results()
    rows = make_rows(latency, accuracy)
    assert all(tuple(asdict(row)) == (*COLUMNS, "also") for row in rows) and len(COLUMNS) == 71
    first, _, gone = rows
    assert (first.p50_ms, first.images_per_s, first.batch, first.height) == (10.0, 200.0, 2, 64)
    assert (first.threads, first.warmup, first.runs, first.macs) == (2, 12, 3, None)
    assert (first.speedup, first.speedup_low, first.retained_colour, first.status) == (1.0, 0.9, 0.97, "ok")
    assert (gone.status, gone.error, gone.p50_ms, gone.l1) == ("crashed(SIGSEGV)", "died", None, None)
    assert gone.size_bytes == 31_100_000
    assert (first.variant, first.peer, gone.peer, first.compute) == ("best.pt", False, True, "bf16")
    assert (first.delta_e, first.roof_ms, first.roof_share) == (7.5, None, None)


def test_macs_go_with_the_size_and_the_roof_with_both() -> None:
    latency, accuracy = results()
    variant = replace(latency.arms[0].variant, macs=1_000_000_000, macs_size=128, precision="int8")
    small, other = Condition(batch=2, size=64, threads=2), Condition(batch=2, size=64, threads=1)
    arms = (Arm("best.pt", variant, small), Arm("best.pt, 1 thread", variant, other))
    timings = dict.fromkeys((arm.name for arm in arms), latency.timings["best.pt"])
    roof = Roof(threads=2, macs_per_s={"int8": 1e11, "fp32": 1e10}, kernels={}, bytes_per_s=1e12)
    first, second = make_rows(LatencyResult(arms, timings, {}), accuracy, roof)
    assert (first.macs, first.compute) == (250_000_000, "int8")
    assert first.roof_ms == pytest.approx(5.0)  # 2 x 0.25 G at 100 G a second
    assert first.roof_share == pytest.approx(0.5)
    assert second.roof_ms is None  # measured for two threads, not for one


def test_a_failed_measurement_of_colours_fails_the_row() -> None:
    latency, accuracy = results()
    broken = AccuracyResult({**accuracy.variants, NAMES[0]: Accuracy("error", error="NaN")}, (), ())
    row = make_rows(latency, broken)[0]
    assert (row.status, row.error, row.p50_ms) == ("error", "NaN", 10.0)


def test_controls_are_scored_rows_of_the_first_condition_without_times() -> None:
    latency, accuracy = results()
    other = Condition(batch=8, size=64, threads=2)
    arms = (*latency.arms, *(Arm(f"{arm.name}, batch 8", arm.variant, other) for arm in latency.arms))
    timings = {**latency.timings, **{f"{name}, batch 8": each for name, each in latency.timings.items()}}
    scored = replace(accuracy, variants={**accuracy.variants, CONTROL.name: Accuracy("ok", l1=0.3, fidelity=0.4)})
    rows = make_rows(LatencyResult(arms, timings, {}), scored, controls=[CONTROL])
    assert [row.model for row in rows if row.control] == [CONTROL.name] and len(rows) == 7
    row = rows[-1]
    assert (row.status, row.batch, row.params, row.macs, row.size_bytes) == ("ok", 2, 2, None, 900)
    assert (row.p50_ms, row.speedup, row.load_ms, row.runs, row.l1, row.fidelity) == (None, None, None, None, 0.3, 0.4)
    assert own_rows([replace(row, status="ok") for row in rows]) == [replace(rows[1], status="ok")]
    failed = replace(scored, variants={**accuracy.variants, CONTROL.name: Accuracy("error", error="NaN")})
    assert make_rows(latency, failed, controls=[CONTROL])[-1].status == "error"


def test_further_folders_are_groups_of_columns_and_tables_of_their_own(tmp_path: Path) -> None:
    latency, accuracy = results()
    scores = tuple(PhotoScores(l1, 0, 0, 0, 0, 0, 0) for l1 in (0.1, 0.2))
    variants = {name: replace(each, scores=scores if each.is_ok else ()) for name, each in accuracy.variants.items()}
    photos = tuple(Photo(Path(name), "0" * 64, 9, 9) for name in ("a.png", "b\n.png"))
    elsewhere = replace(accuracy, variants=variants, photos=photos)
    rows = make_rows(latency, accuracy, also={"sea": elsewhere, "=hills": elsewhere})
    assert rows[0].also["sea"] == {
        "photos": 2, "l1": 0.1234567891, "l1_delta_pct": -0.0001, "retained_colour": 0.97, "content_colour": 0.91,
        "fidelity": 0.8, "edge_l1": None, "chroma_to_best": None, "chroma_to_truth": 0.6,
    }  # fmt: skip
    with write_benchmark_csv(tmp_path / "b.csv", rows).open(newline="") as stream:
        first, _, gone = csv.DictReader(stream)
    assert (first["also_sea_l1"], first["also_=hills_content_colour"], first["also_sea_edge_l1"]) == (
        "0.123457",
        "0.91",
        "",
    )
    assert (gone["also_sea_fidelity"], gone["also_sea_photos"]) == ("", "2")
    folders = [AlsoFolder(name, elsewhere.photos, (), 2) for name in ("sea", "=hills")]
    also = describe_also(folders, dict.fromkeys(("sea", "=hills"), elsewhere), rows, None, CONTENT)
    record = make_record(rows, latency, accuracy, CONFIG, seed=0, also=also)
    path = write_benchmark_json(tmp_path / "benchmark.json", record)
    read = read_benchmark_json(path)
    assert list(read.rows) == rows and read.also["sea"].strength == REFERENCE.strength
    sea, hills = format_also(read).split("\n\n")
    assert sea.splitlines()[0] == "also on sea:" and hills.startswith("also on =hills:")
    assert sea.splitlines()[1].split() == ["model", "L1", "dL1", "G", "C", "F", "chroma/best", "chroma/truth"]
    assert sea.splitlines()[2].split()[1:] == ["0.1235", "+0.00", "%", "0.970", "0.910", "0.800", "-", "0.60"]
    assert sea.splitlines()[-2:] == [REFERENCE.strength.describe(), "worst of ours on the whole: b\\n.png"]
    assert format_also(Benchmark(tuple(rows))) == ""


def test_csv_is_rounded_and_safe_in_a_spreadsheet(tmp_path: Path) -> None:
    path = write_benchmark_csv(tmp_path / "b.csv", make_rows(*results()))
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert (rows[0]["l1"], rows[0]["p99_ms"]) == ("0.123457", "")
    assert rows[1]["model"] == "'=evil()\\n"


def test_json_has_all_figures_and_is_read_back(tmp_path: Path) -> None:
    latency, accuracy = results()
    rows = make_rows(latency, accuracy)
    record = make_record(rows, latency, accuracy, CONFIG, seed=4)
    path = write_benchmark_json(tmp_path / "benchmark.json", record)
    measured = read_benchmark_json(path)
    assert (list(measured.rows), measured.aa_ratios) == (rows, latency.aa_ratios)
    read = json.loads(path.read_text())
    assert read["raw_times"]["best.pt"][0]["times_ns"] == [10_000_000] * 3
    assert read["aa_ratios"]["cpu"]["median"] == 1.01
    assert (read["grey_l1"], read["seed"], read["roof"]) == (0.25, 4, None)
    assert read["config"]["bench_size"] == [64]
    assert len(path.read_text().splitlines()) < 500  # raw figures stay on one line
    assert (read["also"], read["config"]["also"]) == ({}, [])
    assert read["per_photo"]["to_best"]["best.pt"] == [0.0, 0.0]
    assert measured.strength == REFERENCE.strength
    assert format_conditions(measured)[0].startswith(
        "best.pt on 2 photographs: L1 50.0 % below grey, 24.2 % below a lightness"
    )
    assert read_strength(make_record(rows, latency, replace(accuracy, reference=None), CONFIG, seed=4)) is None


def test_a_weak_original_is_said_with_the_conditions() -> None:
    latency, accuracy = results()
    weak = replace(accuracy, reference=replace(REFERENCE, table_l1=REFERENCE.best_l1))
    record = make_record(make_rows(latency, weak), latency, weak, CONFIG, seed=4)
    assert "measure tint" in format_conditions(Benchmark.from_record(record))[1]


def test_an_older_benchmark_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text('{"format_version": 2, "rows": []}')
    with pytest.raises(InputError, match="is of format 2, from before content colour") as refused:
        read_benchmark_json(path)
    assert refused.value.hint == "run `colorpress benchmark` again"


@pytest.mark.parametrize("strength", [[1], {"photos": "many"}, {"photos": 3}, "strong", {"photos": 1, "x": 2}])
def test_a_damaged_strength_is_refused(tmp_path: Path, strength: object) -> None:
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({"format_version": FORMAT_VERSION, "rows": [], "strength": strength}))
    with pytest.raises(InputError, match="is damaged"):
        read_benchmark_json(path)


def test_what_is_no_figure_of_a_further_folder_is_none() -> None:
    row = make_rows(*results())[0]
    for also in ({"sea": {"l1": "x", "fidelity": 0.5}}, {"sea": [1]}, [1], None):
        read = Row.from_record({**asdict(row), "also": also}).also
        assert read == ({} if not isinstance(also, dict) or isinstance(also["sea"], list) else read)
    assert Row.from_record({**asdict(row), "also": {"sea": {"l1": "x", "fidelity": 0.5}}}).also["sea"]["l1"] is None


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"format_version": 99, "rows": []}', None])
def test_a_damaged_json_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "benchmark.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=r"benchmark\.json"):
        read_benchmark_json(path)


def test_the_terminal_table_is_aligned_and_short() -> None:
    lines = format_table(make_rows(*results())).splitlines()
    assert len(lines) == 4
    assert len(lines[0]) == len(lines[1]) <= 144
    assert lines[0].split()[-5:] == ["G", "C", "F", "dE", "memory"]
    assert lines[1].split()[-6:] == ["0.970", "0.910", "0.800", "7.50", "100", "MB"]
    assert "31.1 MB" in lines[1] and "10.0 ms" in lines[1] and "0.1235" in lines[1] and "+0.00 %" in lines[1]
    assert lines[2].startswith("=evil()\\n")
    assert lines[3] == "gone       crashed(SIGSEGV): died"
    assert format_table([]).splitlines()[0].startswith("model")


def test_figures_for_people() -> None:
    assert [format_bytes(n) for n in (0, 999, 1000, 31_100_000, 2_500_000_000)] == [
        "0 B", "999 B", "1.00 kB", "31.1 MB", "2.50 GB",
    ]  # fmt: skip
    assert [format_count(n) for n in (None, 0, 999, 7_763_000, 12_040_000_000)] == ["-", "-", "999", "7.76 M", "12 G"]
    assert [format_number(x) for x in (None, 0.123, 12.34, 1234.5)] == ["-", "0.12", "12.3", "1234"]
    assert (format_interval(0.9, 1.0), format_interval(-2.0, 3.0, digits=1)) == ("0.900 to 1.000", "-2.0 to 3.0")
    assert [format_percent(x) for x in (None, -0.0001, 1.005, -2.0)] == ["-", "+0.00 %", "+1.00 %", "-2.00 %"]
