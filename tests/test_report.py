"""report.html: self-contained, escaped, complete, and honest without the optional files."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.report import make_bars, write_report
from benchmarks.tables import COLUMNS, write_benchmark_json
from colorpress.config import PruneConfig
from colorpress.errors import InputError
from compress.prune_plan import write_plan
from compress.pruning import plan_pruning
from compress.student import student_ladder
from compress.student_plan import Candidate, StrideScore, StudentPlan, write_student_plan
from training.unet import UNet

EVIL = '<script>alert("x")</script>'


def row(model: str, **changes: Any) -> dict[str, Any]:
    figures = {
        "model": model, "runtime": "torch" if model.endswith(".pt") else "onnxruntime", "provider": "cpu",
        "device": "cpu", "precision": "fp32", "params": 7_760_000, "macs": 12_040_000_000, "size_bytes": 31_100_000,
        "weights_bytes": 31_000_000, "batch": 1, "height": 256, "width": 256, "threads": 2, "p50_ms": 100.0,
        "p90_ms": 110.0, "images_per_s": 9.9, "speedup": 1.0, "speedup_low": 0.98, "speedup_high": 1.02,
        "peak_rss_mb": 300.0, "photos": 8, "l1": 0.1, "l1_delta_pct": 0.0, "retained_colour": 1.0,
        "retained_low": 0.97, "retained_high": 1.03, "psnr_db": 23.0, "ssim": 0.91, "status": "ok", "error": "",
    }  # fmt: skip
    return {**dict.fromkeys(COLUMNS), **figures, **changes}


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    rows = [
        row("best.pt"),
        row("pruned", size_bytes=3_100_000, p50_ms=20.0, speedup=5.0),
        row(EVIL, status="crashed(SIGSEGV)", error=EVIL, p50_ms=None, l1=None, l1_delta_pct=None, speedup=None),
        row("best", retained_colour=None, retained_low=None, l1_delta_pct=None, psnr_db=None, ssim=None, macs=None),
    ]
    record = {
        "format_version": 1, "date": "2026-11-23T10:00:00+00:00", "threads": 2, "seed": 0, "grey_l1": 0.115,
        "config": {"eval_size": 256, "rounds": 3, "bench_size": 256}, "rows": rows,
        "aa_ratios": {"cpu": {"median": 1.002, "low": 0.99, "high": 1.01}},
        "machine": {"cpu": "CPU <&> 3000", "cores_usable": 2, "cores_logical": 4, "instruction_sets": ["avx2"],
            "torch_cpu_capability": "AVX2", "memory_bytes": 8_000_000_000, "memory_limit_bytes": None, "gpus": [],
            "system": "Linux", "python": "3.11", "libraries": {"torch": "2.13.0"}},
    }  # fmt: skip
    write_benchmark_json(tmp_path / "benchmark.json", record)
    return tmp_path


class Page(HTMLParser):
    """Collects tags, checks that they are closed, and keeps the text."""

    void = frozenset({"meta", "img", "br"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def add_pictures(folder: Path) -> None:
    for name in ("comparison", "sample_input_output", "sample_output", "pareto", "training_loss", "top20_layers"):
        Image.new("RGB", (3000, 200), (200, 30, 30)).save(folder / f"{name}.png")


def test_the_page_is_one_file_without_scripts_or_links(run_folder: Path) -> None:
    add_pictures(run_folder)
    path = write_report(run_folder, command="colorpress run --data photos")
    assert path == run_folder / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    names = [name for name, _ in page.tags]
    assert not {"script", "link", "a", "iframe"} & set(names)
    assert not re.search(r"https?://|url\(|@import", html)
    images = [attributes for name, attributes in page.tags if name == "img"]
    assert len(images) == 6
    assert all(str(each["src"]).startswith("data:image/") and each["alt"] and each["width"] for each in images)
    assert {str(each["src"])[:15] for each in images} == {"data:image/jpeg", "data:image/png;"}
    assert max(int(str(each["width"])) for each in images) == 2400  # reduced from 3000
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html and 'lang="en"' in html


def test_names_cannot_become_markup(run_folder: Path) -> None:
    html = write_report(run_folder, command=f"colorpress {EVIL}\n--x").read_text(encoding="utf-8")
    assert "<script" not in html
    page = Page(html)
    assert page.text.count('alert("x")') >= 3  # name, error and command are there, as text
    assert "CPU <&> 3000" in page.text
    assert f"colorpress {EVIL}\\n--x" in page.text


def test_the_verdict_comes_first(run_folder: Path) -> None:
    text = Page(write_report(run_folder).read_text(encoding="utf-8")).text
    body = text[text.index("colorpress report", text.index("}")) :]
    assert "pruned is recommended: 10.0 times smaller" in body[:200]
    assert "8 photographs show the machinery, not colour quality" in body
    assert "1.002 (0.990 to 1.010)" in body  # the A/A control
    assert "answering grey scores 0.1150" in body
    assert "Reproduce" not in body  # no command was given


def test_the_report_does_without_pictures_and_plan(run_folder: Path) -> None:
    html = write_report(run_folder).read_text(encoding="utf-8")
    assert "<img" not in html and "Pruned channels" not in html and "The original" not in html


def test_the_prune_plan_is_shown_and_a_damaged_one_is_named(run_folder: Path, tiny_unet: UNet) -> None:
    plan = plan_pruning(tiny_unet, PruneConfig(round_to=1))
    path = write_plan(run_folder / "pruned" / "plan.json", plan)
    text = Page(write_report(run_folder).read_text(encoding="utf-8")).text
    assert plan.groups
    assert all(group.root in text and group.reason in text for group in plan.groups)
    path.write_text("[]")
    with pytest.raises(InputError, match=r"plan\.json"):
        write_report(run_folder)


def test_missing_or_damaged_files_are_named(run_folder: Path, tmp_path: Path) -> None:
    (run_folder / "pareto.png").write_bytes(b"\x89PNG\r\n\x1a\ncut")
    with pytest.raises(InputError, match=r"pareto\.png"):
        write_report(run_folder)
    with pytest.raises(InputError, match="no such file"):
        write_report(tmp_path / "elsewhere")


def test_bars_are_shares_of_the_longest() -> None:
    rows = [row("a", size_bytes=400), row("b", size_bytes=100), row("c", size_bytes=1, status="error")]
    assert make_bars(rows, "size_bytes", "Size", str)["bars"] == [("a", "400", 100.0), ("b", "100", 25.0)]


def add_student(folder: Path, name: str) -> None:
    network = student_ladder(8)[0]
    tried = Candidate(network, 5_000, 1_000, l1_delta_pct=-0.2, retained_colour=1.02, low=0.97, high=1.07, verdict=EVIL)
    plan = StudentPlan(
        network,
        reason=f"the smallest of 9 {EVIL}",
        strides=(StrideScore(1, 0.0, 1.0), StrideScore(8, -0.1, math.nan)),
        candidates=(tried, Candidate(network, 9_000, 2_000, verdict="not tried")),
        control={"l1": 0.1, "l1_delta_pct": 2.5, "retained_colour": None, "low": None, "high": None},
    )
    write_student_plan(folder / name / "plan.json", plan)


def test_students_and_int8_are_explained_where_they_were_measured(run_folder: Path) -> None:
    record = json.loads((run_folder / "benchmark.json").read_text())
    record["rows"] += [row("auto.pt"), row("auto-int8", precision="int8"), row("auto @ openvino", runtime="openvino")]
    write_benchmark_json(run_folder / "benchmark.json", record)
    add_student(run_folder, "auto")
    add_student(run_folder, "stale")
    int8 = {
        "way": "mse, equalized", "int8_time_share": 0.625, "conversion_time_share": 0.2, "caution": EVIL,
        "tries": [{"way": "minmax", "l1": 0.08, "retained_colour": None}],
        "nodes": [
            {"name": EVIL, "operator": "Conv", "int8": False, "share": 0.375, "why_float": "reads the picture"},
            {"name": "fine", "operator": "QLinearConv", "int8": True, "share": 0.625, "why_float": ""},
        ],
    }  # fmt: skip
    for name in ("auto-int8", "stale-int8"):
        (run_folder / name).mkdir()
        (run_folder / name / "int8.json").write_text(json.dumps(int8))
    html = write_report(run_folder).read_text()
    text = re.sub(r"\s+", " ", Page(html).text)
    assert EVIL not in html
    assert "How auto was chosen" in text and "stale" not in text
    assert "It answers at 1/8 of the size" in text
    assert re.search(r"1\.020 \(0\.97.1\.07\)", text) and "not tried" in text
    assert "without best.pt, scores ΔL1 +2.50 %." in text
    assert "auto-int8: mse, equalized" in text and "62 % of the time in 8 bits, 20 % in conversions" in text
    assert "Conv: reads the picture" in text and "fine" not in text
    assert "OpenVINO fp32" in text
    (run_folder / "auto-int8" / "int8.json").write_text("{")
    with pytest.raises(InputError, match=r"int8 record .* is not JSON: "):
        write_report(run_folder)
