"""report.html: self-contained, escaped, complete, and honest without the optional files."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.report.makings import say_kept
from benchmarks.report.page import make_bars, render_markdown, write_report
from benchmarks.report.report_table import make_tables
from benchmarks.rows import COLUMNS, FORMAT_VERSION, Row, write_benchmark_json
from colorpress.core.config import PruneConfig
from colorpress.core.errors import InputError
from compress.measures import CONTENT, FIDELITY, Strength
from compress.prune_plan import write_plan
from compress.pruning import plan_pruning
from compress.students.student_plan import Candidate, StrideScore, StudentPlan, write_student_plan
from compress.students.student_stages import flat_ladder
from export.controls import CONTROL_TITLES
from training.unet import UNet

STRONG = Strength(8, 21.0, 19.2, 18.5, 19.9, 0.6)
WEAK = Strength(8, 13.9, 2.4, 1.1, 3.6, 0.31)
VIVID = Strength(8, -3.0, -5.0, -7.0, -3.0, 1.2)
COLOURLESS = Strength(8, math.nan, math.nan, math.nan, math.nan, math.nan)
EVIL = '<script>alert("x")</script>'


def row(model: str, **changes: Any) -> dict[str, Any]:
    figures = {
        "model": model, "variant": model.partition(" @ ")[0].partition(", ")[0], "peer": False,
        "runtime": "torch" if model.endswith(".pt") else "onnxruntime", "provider": "cpu", "device": "cpu",
        "compute": "fp32", "precision": "fp32", "params": 7_760_000, "macs": 12_040_000_000, "size_bytes": 31_100_000,
        "weights_bytes": 31_000_000, "batch": 1, "height": 256, "width": 256, "threads": 2, "p50_ms": 100.0,
        "p90_ms": 110.0, "images_per_s": 9.9, "speedup": 1.0, "speedup_low": 0.98, "speedup_high": 1.02,
        "peak_rss_mb": 300.0, "photos": 8, "l1": 0.1, "l1_delta_pct": 0.0, "retained_colour": 1.0,
        "retained_low": 0.97, "retained_high": 1.03, "content_colour": 1.0, "content_low": 0.96, "content_high": 1.04,
        "fidelity": 1.0, "fidelity_low": 0.98, "fidelity_high": 1.02, "psnr_db": 23.0, "ssim": 0.91, "status": "ok",
        "error": "",
    }  # fmt: skip
    return {**dict.fromkeys(COLUMNS), **figures, **changes}


def control(name: str, **changes: Any) -> dict[str, Any]:
    """A row of a control: scored, not timed."""
    times = dict.fromkeys(("p50_ms", "p90_ms", "images_per_s", "speedup", "speedup_low", "speedup_high"))
    return row(CONTROL_TITLES[name], control=name, size_bytes=400, **times, **changes)


CONTROLS = [
    control(name, content_colour=kept, content_low=kept, content_high=kept, fidelity=kept + 1)
    for name, kept in zip(CONTROL_TITLES, (-0.5, -0.25, 0.0), strict=True)
]


def typed(rows: list[dict[str, Any]]) -> list[Row]:
    return [Row.from_record(each) for each in rows]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    rows = [
        row("best.pt"),
        row("pruned", size_bytes=3_100_000, p50_ms=20.0, speedup=5.0),
        row(EVIL, status="crashed(SIGSEGV)", error=EVIL, p50_ms=None, l1=None, l1_delta_pct=None, speedup=None),
        row("best", content_colour=None, content_low=None, l1_delta_pct=None, psnr_db=None, ssim=None, macs=None),
    ]
    record = {
        "format_version": FORMAT_VERSION, "strength": STRONG.to_dict(), "also": {},
        "date": "2026-11-23T10:00:00+00:00", "seed": 0, "grey_l1": 0.115,
        "config": {"eval_size": 256, "rounds": 3, "bench_size": [256]}, "rows": rows, "roof": None,
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


def change_record(folder: Path, **changes: Any) -> dict[str, Any]:
    """Change what benchmark.json holds; `rows` are added."""
    record: dict[str, Any] = json.loads((folder / "benchmark.json").read_text())
    record.update({name: record["rows"] + value if name == "rows" else value for name, value in changes.items()})
    write_benchmark_json(folder / "benchmark.json", record)
    return record


def text_of(folder: Path) -> str:
    """The page's text, spaces made one."""
    html = write_report(folder).read_text(encoding="utf-8")
    body = re.sub(r"<(style|script)>.*?</\1>", "", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", Page(body).text)


def add_pictures(folder: Path) -> None:
    for name in ("pareto", "training_loss", "front", "comparison", "layer_ranking"):
        Image.new("RGB", (3000, 200), (200, 30, 30)).save(folder / f"{name}.png")


def test_the_page_is_one_file_that_loads_nothing(run_folder: Path) -> None:
    add_pictures(run_folder)
    path = write_report(run_folder, command="colorpress run --data photos")
    assert path == run_folder / "report.html"
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    names = [name for name, _ in page.tags]
    assert not {"link", "a", "iframe"} & set(names)
    assert [attributes for name, attributes in page.tags if name == "script"] == [{}]
    (script,) = re.findall("<script>(.*?)</script>", html, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in html and html.count("unsafe-inline") == 1  # of styles
    assert not re.search(r"https?://|url\(|@import|fetch\(|innerHTML", html)
    assert "default-src 'none'; img-src data:" in html
    images = [attributes for name, attributes in page.tags if name == "img"]
    # The sheets of pictures and the layers, of which there is a table, are beside the page.
    assert [str(each["alt"])[:7] for each in images] == ["Scatter", "Trainin"]
    assert all(str(each["src"]).startswith("data:image/") and each["alt"] and each["width"] for each in images)
    assert {str(each["src"])[:15] for each in images} == {"data:image/png;"}
    assert {int(str(each["width"])) for each in images} == {1400}  # reduced from 3000
    assert "prefers-color-scheme: dark" in html and 'name="viewport"' in html and 'lang="en"' in html


def test_names_cannot_become_markup(run_folder: Path) -> None:
    html = write_report(run_folder, command=f"colorpress {EVIL}\n--x").read_text(encoding="utf-8")
    assert EVIL not in html and html.count("<script") == 1
    page = Page(html)
    assert page.text.count('alert("x")') >= 3  # name, error and command are there, as text
    assert "CPU <&> 3000" in page.text
    assert f"colorpress {EVIL}\\n--x" in page.text


def test_the_verdict_comes_first(run_folder: Path) -> None:
    body = text_of(run_folder).partition("colorpress report ")[2]
    assert "Use pruned: it is 10.0 times smaller and 5.00 times as fast as best.pt, and keeps" in body[:120]
    assert "pruned is recommended: 10.0 times smaller than best.pt (3.10 MB instead of 31.0 MB)" in body
    assert "8 photographs show the machinery, not colour quality" in body
    assert "A/A control, cpu: best.pt timed against itself gives 1.002 (0.990 to 1.010)" in body
    assert "answering grey scores 0.1150" in body
    assert "Reproduce" not in body  # no command was given


def test_the_report_does_without_pictures_and_plan(run_folder: Path) -> None:
    html = write_report(run_folder).read_text(encoding="utf-8")
    assert "<img" not in html and "Pruning: channels" not in html and "Training of the original" not in html
    for absent in ("Goals and budgets", "How much is left", "Beside other tools", "Other conditions", "Worst cases"):
        assert absent not in html
    assert "There are no pictures here: the folder pictures/ beside this file is missing." in html
    assert "Where size and time are" not in html


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
    rows = [row("a", size_bytes=400), row("b", size_bytes=100, peer=True), row("c", size_bytes=1, status="error")]
    assert make_bars(typed(rows), "size_bytes", "Size", str)["bars"] == [
        ("a", "400", 100.0, ""), ("b", "100", 25.0, "peer"),
    ]  # fmt: skip
    # What is none, or worse than none, is said.
    rows = [row("a", fidelity=0.5), control("tint", fidelity=0.0), row("c", fidelity=-0.25), row("d", fidelity=None)]
    assert make_bars(typed(rows), "fidelity", "F", str)["bars"] == [
        ("a", "0.5", 100.0, ""), ("control: one tint", "0.0", 0.5, "control"), ("c", "-0.25", 0.5, ""),
    ]  # fmt: skip
    assert make_bars(typed(rows[1:3]), "fidelity", "F", str)["bars"][1][2] == 0.5


def add_student(folder: Path, name: str) -> None:
    network = flat_ladder(8)[0]
    kept = {"measure": "content_colour", "kept": 1.02, "low": 0.97, "high": 1.07}
    tried = Candidate(network, 5_000, 1_000, l1_delta_pct=-0.2, **kept, verdict=EVIL)
    plan = StudentPlan(
        network,
        reason=f"the smallest of 9 {EVIL}",
        strides=(StrideScore(1, 0.0, "content_colour", 1.0), StrideScore(8, -0.1, "content_colour", math.nan)),
        candidates=(tried, Candidate(network, 9_000, 2_000, verdict="not tried")),
        control={"l1": 0.1, "l1_delta_pct": 2.5, "measure": "content_colour", "content_colour": None},
    )
    write_student_plan(folder / name / "plan.json", plan)


def test_students_and_int8_are_explained_where_they_were_measured(run_folder: Path) -> None:
    students = [row("auto.pt"), row("auto-int8", precision="int8"), row("auto @ openvino", runtime="openvino")]
    change_record(run_folder, rows=students)
    add_student(run_folder, "auto")
    add_student(run_folder, "stale")
    int8 = {
        "way": "mse, equalized", "int8_time_share": 0.625, "conversion_time_share": 0.2, "caution": EVIL,
        "tries": [{"way": "minmax", "l1": 0.08, "parent_l1": 0.03, "measure": "fidelity", "fidelity": 0.875}],
        "chosen_by": {"photos": 9, "float": {}, "int8": {"measure": "fidelity", "fidelity": 0.95}},
        "confirmed": {
            "photos": 8, "float": {"measure": "fidelity", "fidelity": None},
            "int8": {"measure": "fidelity", "fidelity": 0.9},
        },
        "nodes": [
            {"name": EVIL, "operator": "Conv", "int8": False, "share": 0.375, "why_float": "reads the picture"},
            {"name": "fine", "operator": "QLinearConv", "int8": True, "share": 0.625, "why_float": ""},
        ],
    }  # fmt: skip
    for name in ("auto-int8", "stale-int8"):
        (run_folder / name).mkdir()
        (run_folder / name / "int8.json").write_text(json.dumps(int8))
    html = write_report(run_folder).read_text()
    text = text_of(run_folder)
    assert EVIL not in html
    assert "Distillation: how auto was chosen" in text and "stale" not in text
    assert "It answers at 1/8 of the size" in text
    assert re.search(r"C 1\.020 \(0\.97.1\.07\)", text) and "not tried" in text
    assert re.search(r"minmax ?0\.03000 ?F 0\.875", text) and "0.08000 " not in text
    assert "On 8 photographs that chose nothing: F 0.900, in float -; on those that chose F 0.950." in text
    assert "without best.pt, scores ΔL1 +2.50 %." in text
    assert "auto-int8: mse, equalized" in text and "62 % of the time in 8 bits, 20 % in conversions" in text
    assert "Conv: reads the picture" in text and "fine" not in text
    assert "OpenVINO fp32" in text
    (run_folder / "auto-int8" / "int8.json").write_text("{")
    with pytest.raises(InputError, match=r"int8 record .* is not JSON: "):
        write_report(run_folder)


def test_a_search_is_told_of_where_its_files_were_measured(run_folder: Path) -> None:
    counts = {"finished": 8, "over a budget": 1, "failed": 0}
    rows = [{"on_front": True, "file": "front/9kb-1/model.onnx"}, {"on_front": False, "file": "front/x/model.onnx"}]
    front = {"sentence": "front/9kb-1 <is> best.", "candidates": counts, "rows": rows}
    (run_folder / "front.json").write_text(json.dumps(front))
    assert "What a search found" not in text_of(run_folder)
    change_record(run_folder, rows=[row("front/9kb-1")])
    text = text_of(run_folder)
    assert "What a search found" in text and "front/9kb-1 <is> best." in text
    assert "truer than another: 1." in text and "8 candidates finished, 1 candidate over a budget" in text
    assert "on the photographs that chose it" not in text
    kept = {"measure": "fidelity", "fidelity": 0.95, "confirmed_kept": 0.9}
    rows[0] |= {**kept, "confirmed_low": 0.875, "confirmed_high": 0.925}
    found = {**front, "strength": WEAK.to_dict(), "recommended": rows[0]["file"], "rows": rows}
    (run_folder / "front.json").write_text(json.dumps(found))
    text = text_of(run_folder)
    both = "F 0.950 on the photographs that chose it, F 0.900 (95 % interval 0.875 to 0.925) on others."
    assert f"front/9kb-1/model.onnx by fidelity: {both}" in text
    assert "How strong best.pt was for the search. best.pt on 8 photographs: L1 13.9 % below grey" in text
    (run_folder / "front.json").write_text('{"rows": []}')
    with pytest.raises(InputError, match="is damaged"):
        write_report(run_folder)


def test_budgets_are_judged_where_they_were_given(run_folder: Path) -> None:
    path = run_folder / "config.resolved.toml"
    path.write_text('epochs = 3\ntarget-size = "4MB"\ntarget-latency-ms = 3.0\n')
    text = text_of(run_folder)
    assert "target-size 4MB met. pruned: 3.10 MB." in text
    assert "target-latency-ms 3.0 missed. pruned: 20.0 ms a picture; no variant meets it." in text
    path.write_text("epochs = 3\n")
    assert "Goals and budgets" not in text_of(run_folder)
    path.write_text("epochs = ")
    with pytest.raises(InputError, match=r"config\.resolved\.toml.*is not TOML"):
        write_report(run_folder)


def test_rows_of_other_conditions_have_a_table_of_their_own(run_folder: Path) -> None:
    others = [row("pruned, batch 8", batch=8), row("best.pt @ cuda", runtime="torch", device="cuda", compute_ms=1.25)]
    record = change_record(run_folder, rows=others)
    results, elsewhere = make_tables(typed(record["rows"]), "pruned", CONTENT)
    assert [line.name for line in results.lines] == ["best.pt", "pruned", EVIL, "best"]
    assert [(line.name, line.note) for line in elsewhere.lines] == [
        ("pruned, batch 8", "ONNX Runtime fp32; batch 8, 256x256, 2 threads"),
        ("best.pt @ cuda", "PyTorch fp32; batch 1, 256x256, cuda"),
    ]
    assert [line.kind for line in results.lines] == ["", "chosen", "", ""]
    keys = [column.key for column in elsewhere.columns]
    assert "compute_ms" in keys and "compute_ms" not in [column.key for column in results.columns]
    assert "1.25 ms" in text_of(run_folder).partition("Other conditions")[2]


def test_a_failed_row_says_how_and_keeps_its_size(run_folder: Path) -> None:
    results, _ = make_tables(typed(change_record(run_folder)["rows"]), "pruned", CONTENT)
    failed = results.lines[2]
    assert failed.failure == f"crashed(SIGSEGV): {EVIL}"
    assert [cell.text for cell in failed.cells] == ["31.1 MB"]
    tags = Page(write_report(run_folder).read_text()).tags
    spans = [int(str(attributes["colspan"])) for name, attributes in tags if name == "td" and "colspan" in attributes]
    assert sum(spans) == len(results.columns) - 1


def test_cells_are_sorted_by_figures_not_texts(run_folder: Path) -> None:
    columns = make_tables(typed(change_record(run_folder)["rows"]), None, CONTENT)[0].columns
    (time,) = (column for column in columns if column.key == "p50_ms")
    cell = time.show(*typed([row("x", p50_ms=2.5, cv_pct=2.6)]))
    assert (cell.text, cell.note, cell.value) == ("2.50 ms †", "110 ms", 2.5)
    assert time.show(*typed([row("x", cv_pct=2.5)])).text == "100 ms"  # no mark up to the limit
    html = write_report(run_folder).read_text()
    assert re.search(r'<td data-value="20\.0">20\.0 ms<br><small>110 ms</small></td>', html)
    assert '<th scope="col" data-first="descending">Speed-up' in html


def test_columns_without_a_figure_are_left_out_and_most_are_extra(run_folder: Path) -> None:
    results, _ = make_tables(typed(change_record(run_folder)["rows"]), None, CONTENT)
    keys = [column.key for column in results.columns]
    assert "delta_e" not in keys and "roof_share" not in keys
    shown = ["size_bytes", "p50_ms", "speedup", "content_colour", "fidelity", "retained_colour", "l1_delta_pct"]
    assert keys[: results.shown] == shown
    assert {"l1", "params", "provider", "threads", "batch", "height"} <= set(keys[results.shown :])
    figures = {"delta_e": 9.5, "p95_ms": 1.0, "p99_ms": 2.0, "cv_pct": 1.0, "load_ms": 3.0, "first_ms": 4.0}
    figures |= {"edge_l1": 0.125, "chroma_to_best": 0.9, "chroma_to_truth": 0.5, "confirming_kept": 0.94}
    figures |= {
        "choosing_kept": 0.97,
        "roof_share": 0.2,
        "roof_ms": 0.0123,
        "colourfulness": 20.0,
        "colourfulness_ratio": 0.4,
    }
    full, _ = make_tables(typed([row("best.pt", agreement_l1=0.0, **figures)]), None, CONTENT)
    by_key = {column.key: column.show(*typed([row("x", agreement_l1=0.0, **figures)])) for column in full.columns}
    assert {"delta_e", "p95_ms", "cv_pct", "load_ms", "first_ms", "colourfulness", "agreement_l1"} <= set(by_key)
    assert (by_key["chroma_to_best"].text, by_key["chroma_to_best"].note) == (
        "0.90 of best.pt's",
        "0.50 of the truth's",
    )
    assert (by_key["edge_l1"].text, by_key["confirming_kept"][:2]) == ("0.1250", ("0.940", "0.970"))
    assert full.columns[full.shown - 1].key == "chroma_to_best"
    assert (by_key["roof_share"].text, by_key["roof_share"].note) == ("20 %", "12.3 µs")
    assert (by_key["p95_ms"].text, by_key["p95_ms"].note) == ("1.00 ms", "2.00 ms")


ROOF = {
    "threads": 2, "macs_per_s": {"fp32": 1.2e11, "int8": 4.8e11}, "kernels": {"fp32": "convolution <3x3>"},
    "bytes_per_s": 2e10,
}  # fmt: skip


def test_the_roof_says_how_much_is_left(run_folder: Path) -> None:
    record = change_record(run_folder, roof=ROOF)
    for each in record["rows"]:
        each.update(roof_ms=5.0, roof_share=0.25 if each["model"] == "pruned" else 0.05)
    write_benchmark_json(run_folder / "benchmark.json", record)
    text = text_of(run_folder)
    assert "on 2 threads, reach 120 G multiply-accumulates per second in fp32 (convolution <3x3>), 480 G" in text
    assert "memory moves 20.0 GB per second" in text
    assert "pruned takes 20.0 ms where 5.00 ms are the bound, 25 %: better kernels" in text
    assert "at most 4.00 times as fast. best.pt reaches 5 %" in text


def test_peers_are_marked_and_judged(run_folder: Path) -> None:
    peer = row("nncf-int8", peer=True, size_bytes=8_000_000, speedup=3.0, p50_ms=33.0, content_colour=0.9)
    change_record(run_folder, rows=[peer])
    text = text_of(run_folder)
    assert "Beside other tools pruned beats nncf-int8 in size, speed and colour: it is 2.58 times smaller" in text
    assert "nncf-int8 peerONNX Runtime fp32" in text


def test_the_explanation_of_the_curve_is_rendered_and_nothing_of_it_is_markup(run_folder: Path) -> None:
    (run_folder / "training_inference.md").write_text(
        f"# What it says\n\n**Best:** epoch 3 of `best.pt`\n\n## More\n\n- a {EVIL}\n- [x](http://y) ![z](http://w)\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n"
    )
    html = write_report(run_folder).read_text()
    assert "<h3>What it says</h3>" in html and "<h4>More</h4>" in html
    assert "<strong>Best:</strong> epoch 3 of <code>best.pt</code>" in html
    assert "<td>1</td>" in html and EVIL not in html
    tags = {name for name, _ in Page(render_markdown("![z](http://w) <b>x</b> [a](http://b) <http://c>")).tags}
    assert tags == {"p"}


def test_the_plan_has_a_pair_of_bars_for_each_layer(run_folder: Path, tiny_unet: UNet) -> None:
    plan = plan_pruning(tiny_unet, PruneConfig(round_to=1))
    write_plan(run_folder / "pruned" / "plan.json", plan)
    html = write_report(run_folder).read_text()
    widest = max(group.channels_before for group in plan.groups)
    bars = re.findall(
        r'class="channels" aria-hidden="true"><span style="width: ([\d.]+)%"></span><span style="width: ([\d.]+)%">',
        html,
    )
    assert [(float(a), float(b)) for a, b in bars] == [
        (round(100 * g.channels_before / widest, 1), round(100 * g.channels_after / widest, 1)) for g in plan.groups
    ]


def add_picture_set(folder: Path, *, size: tuple[int, int] = (60, 40), noise: bool = False) -> Path:
    """pictures/ with one typical and one worst photograph, as pictures.write_picture_set writes them."""
    pictures = folder / "pictures"
    pictures.mkdir()
    photos = []
    for number, kind in enumerate(("typical", "worst")):
        files = {name: f"{number}-{index}.jpg" for index, name in enumerate(("grey", "truth", "best.pt", EVIL))}
        maps = {"truth": {"best.pt": f"{number}-t0.jpg", EVIL: f"{number}-t1.jpg"}, "best": {EVIL: f"{number}-b.jpg"}}
        for file in (*files.values(), *maps["truth"].values(), *maps["best"].values()):
            picture = Image.effect_noise(size, 90) if noise else Image.new("L", size, 90)
            picture.convert("RGB").save(pictures / file, quality=92)
        photos.append(
            {"name": f"{kind}.jpg", "kind": kind, "width": size[0], "height": size[1], "pictures": files,
             "l1": {"grey": 0.2, "best.pt": 0.1, EVIL: 0.125}, "differences": maps}
        )  # fmt: skip
    record = {"format_version": 1, "best": "best.pt", "variants": [EVIL], "judged": EVIL, "scale": 0.18,
              "bar": ["#000004", "#fcfdbf"], "photos": photos}  # fmt: skip
    (pictures / "pictures.json").write_text(json.dumps(record))
    return pictures


def test_pictures_and_maps_are_in_the_page_once_each_worst_cases_apart(run_folder: Path) -> None:
    add_pictures(run_folder)
    add_picture_set(run_folder)
    html = write_report(run_folder).read_text()
    page = Page(html)
    tiles = [attributes for name, attributes in page.tags if name == "figure" and "data-against" in attributes]
    assert len(tiles) == 2 * 7 + 4
    assert {tile["data-against"] for tile in tiles} == {"", "truth", "best"}
    images = [attributes for name, attributes in page.tags if name == "img"]
    # The first screen has four of them again; the sheets are beside the page.
    assert len(images) == 14 + 4 + 2
    assert all(each["alt"] for each in images)
    text = re.sub(r"\s+", " ", page.text)
    assert f"typical.jpg; L1: grey 0.2000, best.pt 0.1000, {EVIL} 0.1250 (+25.0 %)" in text
    assert text.index("Typical photographs") < text.index("typical.jpg;") < text.index("Worst cases")
    assert f"on which {EVIL} lost most L1 against best.pt" in text
    assert "0.18 and more" in text and "#000004, #fcfdbf" in html


def test_a_benchmark_of_time_alone_shows_no_pictures_of_an_earlier_one(run_folder: Path) -> None:
    add_pictures(run_folder)
    add_picture_set(run_folder)
    record = json.loads((run_folder / "benchmark.json").read_text())
    for each in record["rows"]:
        each["photos"] = 0
    write_benchmark_json(run_folder / "benchmark.json", record)
    page = Page(write_report(run_folder).read_text())
    sources = [attributes["alt"] for name, attributes in page.tags if name == "img"]
    assert sources and not any("colour" in alt or "Scatter" in alt for alt in sources), sources


def test_heavy_pictures_are_encoded_to_fit_a_page(run_folder: Path) -> None:
    pictures = add_picture_set(run_folder, size=(600, 500), noise=True)
    on_disk = sum(path.stat().st_size for path in pictures.glob("*.jpg"))
    page = write_report(run_folder).stat().st_size
    assert on_disk > 2_500_000 > page


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda record: {**record, "format_version": 9}, "is not one of this version"),
        (lambda record: {"format_version": 1}, "is damaged"),
        (lambda record: json.loads(json.dumps(record).replace("0-0.jpg", "../../x.jpg")), "is not in the folder"),
        (lambda record: json.loads(json.dumps(record).replace("0-0.jpg", "gone.jpg")), "gone.jpg"),
    ],
)
def test_a_damaged_picture_list_is_named(run_folder: Path, change: Any, error: str) -> None:
    path = add_picture_set(run_folder) / "pictures.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(InputError, match=error):
        write_report(run_folder)


def test_a_benchmark_of_time_alone_shows_no_colours(run_folder: Path) -> None:
    add_picture_set(run_folder)
    record = change_record(run_folder, grey_l1=None, strength=None)
    blind = dict.fromkeys(("l1", "l1_delta_pct", "retained_colour", "content_colour", "fidelity", "psnr_db", "ssim"))
    record["rows"] = [{**each, **blind, "photos": 0} for each in record["rows"][:2]]
    write_benchmark_json(run_folder / "benchmark.json", record)
    text = text_of(run_folder)
    assert "colours were not measured, only time" in text
    assert "held-out photographs" not in text and "typical.jpg" not in text
    assert "Measure them too: --eval-photos above 0." in text
    assert "No photographs were coloured: this benchmark measured time alone." in text
    assert "Latency: 256" in text


@pytest.mark.parametrize(
    ("strength", "mark", "said"),
    [
        (STRONG, "", "L1 21.0 % below grey, 19.2 % below a lightness table (95 % interval 18.5 to 19.9)"),
        (WEAK, "measures tint", "G and L1 measure tint here, so fidelity F decides."),
        (VIVID, "measures fidelity alone", "Its L1 is no better than grey's"),
        (COLOURLESS, "", "These photographs hold no colour"),
        (None, "", ""),
    ],
    ids=["strong", "weak", "vivid", "colourless", "unknown"],
)
def test_how_strong_best_pt_is_comes_first_and_marks_what_follows(
    run_folder: Path, strength: Strength | None, mark: str, said: str
) -> None:
    change_record(run_folder, strength=strength.to_dict() if strength else None, rows=CONTROLS)
    html = write_report(run_folder).read_text()
    text = text_of(run_folder)
    top = text[: text.index(" Results ")]
    assert ("How strong best.pt is." in top) == bool(strength)
    assert said in top and text.count(said or "How strong") == bool(strength)  # once, though the verdict notes it too
    marked = re.findall(r'<h2 id="(\w+)">[^<]*<span class="tag weak">([^<]*)</span></h2>', html)
    assert set(marked) == ({(each, mark) for each in ("results", "costs", "colours")} if mark else set())
    assert ("Beware:" in top) == ('<p class="strength weak"' in html) == bool(mark)


def test_controls_are_rows_at_the_end_that_are_marked_and_have_no_times(run_folder: Path) -> None:
    record = change_record(run_folder)
    record["rows"][1:1] = CONTROLS
    write_benchmark_json(run_folder / "benchmark.json", record)
    results, _ = make_tables(typed(record["rows"]), "pruned", CONTENT)
    assert [line.name for line in results.lines[-3:]] == list(CONTROL_TITLES.values())
    assert {(line.kind, line.note) for line in results.lines[-3:]} == {("control", "sees no picture")}
    cells = dict(zip((column.key for column in results.columns), results.lines[-1].cells, strict=True))
    assert [cells[key].text for key in ("size_bytes", "p50_ms", "speedup")] == ["400 B", "-", "-"]
    assert cells["content_colour"][:2] == ("0.000", "0.000 to 0.000") and cells["p50_ms"].note == ""
    html = write_report(run_folder).read_text()
    assert html.count('<tr class="control">') == 3 + 1  # one is among the rows that matter
    assert html.count('<span class="bar control"') == 6  # of sizes and of what is kept


def test_the_measure_that_decides_is_marked_in_the_table_and_has_bars(run_folder: Path) -> None:
    rows = typed([row("best.pt"), row("pruned", content_colour=0.97, speedup=5.0)])
    for measure in (CONTENT, FIDELITY):
        columns = make_tables(rows, None, measure)[0].columns
        assert {each.key: each.note for each in columns if "decides" in each.note} == {
            measure.name: "decides; 95 % interval"
        }
    change_record(run_folder, rows=[row("auto", content_colour=0.75, fidelity=0.5)])
    assert re.search("Content colour C best.pt1.000.*auto0.750", text_of(run_folder))
    change_record(run_folder, strength=WEAK.to_dict())
    text = text_of(run_folder)
    assert (
        re.search("Fidelity F best.pt1.000.*auto0.500", text)
        and "F decides here: a recommended variant keeps at least 0.8 of" in text
    )


def test_a_single_photograph_is_no_two_halves(run_folder: Path) -> None:
    assert "held-out photographs, whole" in (text := text_of(run_folder))
    assert "with 80 % confidence" in text and "One half of the photographs chooses it" in text
    record = change_record(run_folder)
    record["rows"] = [{**each, "photos": 1} for each in record["rows"]]
    write_benchmark_json(run_folder / "benchmark.json", record)
    text = text_of(run_folder)
    assert "1 held-out photograph, whole" in text and "a recommended variant keeps at least" in text
    assert "on further photographs with 80 % confidence" not in text and "One half of" not in text


def test_other_photographs_have_a_table_and_their_worst_for_each_folder(run_folder: Path) -> None:
    record = change_record(run_folder)
    record["rows"][1:1] = CONTROLS
    assert "Other photographs" not in text_of(run_folder)
    figures = {"photos": 469, "l1": 0.0888, "content_colour": 0.31, "fidelity": 0.63, "retained_colour": 0.894}
    for each in record["rows"]:
        each["also"] = {"BSDS500/test": {**figures, "l1_delta_pct": 2.5}, EVIL: dict.fromkeys(figures)}
    worst = [{"photo": "103029.jpg", "harm": 0.034}, {"photo": EVIL, "harm": 0.03}]
    folder = {"photos": ["x"] * 469, "skipped": 2, "known": 3, "judged": "pruned", "worst": worst}
    none = {"strength": None, "photos": ["x"], "skipped": 0, "known": 0, "judged": None, "worst": []}
    record["also"] = {"BSDS500/test": {"strength": WEAK.to_dict(), **folder}, EVIL: none}
    write_benchmark_json(run_folder / "benchmark.json", record)
    html, text = write_report(run_folder).read_text(), text_of(run_folder)
    assert EVIL not in html
    part = text.partition("Other photographs")[2].partition("Size and speed")[0]
    first, second = part.split(f"{EVIL}: 1 photograph ")
    assert "BSDS500/test: 469 photographs measures tint" in first and "2.4 % below a lightness table" in first
    assert f"Worst for pruned, by L1 above best.pt's: 103029.jpg (0.0340), {EVIL} (0.0300)." in first
    assert (
        "Left out: 2 that could not be used (unreadable, grey or copies), 3 that the run trained or chose on." in first
    )
    assert "prunedONNX Runtime fp32 0.310 0.630 0.894 0.0888 +2.50 %" in first and "sees no picture 0.310" in first
    assert first.index("best.pt") < first.index("pruned") < first.index("control: grey")
    assert "Worst" not in second and "Left out" not in second and "measures tint" not in second
    # Each file once, without those that did not finish.
    assert html.count('aria-labelledby="also-1"') == 1 and first.count("ONNX Runtime fp32") == 2


def test_what_an_older_plan_or_record_keeps_is_retained_colour() -> None:
    assert say_kept({"l1": 0.1, "retained_colour": 0.9}) == "G 0.900"
    assert say_kept({"l1": 0.1, "retained_colour": None}) == "-"
    assert say_kept({"measure": "", "kept": None}) == "-"
    assert say_kept({"measure": "fidelity", "fidelity": 0.5, "retained_colour": 0.9}) == "F 0.500"
