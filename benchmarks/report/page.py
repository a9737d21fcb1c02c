"""report.html: one file without links that says what to use, and shows why."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.budget_lines import BudgetLine, judge_budgets
from benchmarks.peer_verdict import judge_peers
from benchmarks.report.embedding import embed_drawing, read_picture_set
from benchmarks.report.first_screen import make_first_screen
from benchmarks.report.layer_table import read_layer_table
from benchmarks.report.makings import read_front, read_int8, read_students, say_kept
from benchmarks.report.report_table import NOISY_MARK, format_ms, make_also_table, make_tables
from benchmarks.rows import NOISY_CV_PCT, Benchmark, Row, base_rows, one_per_file, read_benchmark_json
from benchmarks.verdict import judge_benchmark, measure_of
from colorpress.core.errors import InputError, printable
from colorpress.core.files import write_text
from colorpress.core.reading import as_damaged, parse_toml, read_text
from colorpress.core.stages import StageRecord
from colorpress.core.text import format_bytes, format_count, format_number, format_percent
from compress.measures import CONFIDENTLY, CONTENT, Measure, Strength
from compress.prune_plan import read_plan
from training.run_folder import Run

# The drawings that a run folder may hold.
_DRAWINGS = ("pareto.png", "front.png", "training_loss.png")
# What else the report shows beside benchmark.json.
_REPORTED = (
    *("*.png", "layer_ranking.csv", "front.json", "*/plan.json", "*/int8.json", "*/distillation.png", "pictures/*"),
    *("training_inference.md", "config.resolved.toml"),
)
_AGAIN = "delete it, and make it again"


def report(run: Run, argv: Sequence[str] = ()) -> StageRecord:
    """Write report.html from what the run folder holds.

    Raises:
        InputError: there is no benchmark.json to report on.
    """
    source = run.folder / "benchmark.json"
    if not source.is_file():
        raise InputError("folder", run.folder, "holds no benchmark.json", "run `colorpress benchmark` first")

    def action() -> tuple[Sequence[Path], Mapping[str, Any]]:
        return [write_report(run.folder, command=shlex.join(argv))], {}

    shown = [path for pattern in _REPORTED for path in sorted(run.folder.glob(pattern))]
    return run.do("report", action, inputs=[source, *shown])


def write_report(output_dir: Path, *, command: str | None = None) -> Path:
    """Write report.html from benchmark.json and what else the run folder holds; nothing is measured again.

    Args:
        command: the command line that led here, shown as the way to reproduce it; None or empty: not shown.
    Raises:
        InputError: there is no benchmark.json, or it, a plan, an int8 record, the options or a picture is damaged.
        ConfigError: a budget among the options is outside its range.
        MachineError: the file cannot be written.
    """
    with as_damaged("run folder", output_dir, "its records were edited: make them again, `colorpress benchmark` first"):
        page = _make_page(output_dir, command)
    return write_text(output_dir / "report.html", page)


def _make_page(output_dir: Path, command: str | None) -> str:
    measured = read_benchmark_json(output_dir / "benchmark.json")
    plan_path, options_path = output_dir / "pruned" / "plan.json", output_dir / "config.resolved.toml"
    explanation = output_dir / "training_inference.md"
    rows, strength = measured.rows, measured.strength
    base, files = base_rows(rows), {row.variant for row in rows}
    measure = strength.measure if strength else None
    verdict = judge_benchmark(measured)
    results, others = make_tables(rows, verdict.recommended, measure)
    options = read_text(options_path, "options", _AGAIN) if options_path.is_file() else ""
    # A benchmark of time alone leaves the pictures of an earlier one where they are.
    scored = bool(rows and rows[0].photos)
    picture_set = read_picture_set(output_dir) if scored else None
    script = f"\n{(Path(__file__).parent / 'report.js').read_text(encoding='utf-8')}"
    return _render(
        script=script,
        script_hash=hash_script(script),
        first=make_first_screen(rows, verdict, strength, output_dir, picture_set),
        verdict=verdict,
        rows=rows,
        best=rows[0] if rows else None,
        chosen=next((row for row in rows if row.model == verdict.recommended), None),
        strength=strength,
        mark=mark_strength(strength),
        measure=measure,
        budgets=_judge_options(options, options_path, rows, verdict.recommended, measure_of(strength)),
        results=results,
        others=others,
        also=_show_also(measured),
        peers=judge_peers(rows, verdict.recommended, measure_of(strength)),
        bars=[
            make_bars(one_per_file(base), "size_bytes", "File size", format_bytes),
            make_bars(base, "p50_ms", "Latency, p50 of a call", lambda value: format_number(value, " ms")),
            *([make_bars(base, measure.name, _capitalize(measure), "{:.3f}".format)] if measure else []),
        ],
        drawings={
            name: embed_drawing(output_dir / name) if scored or name != "pareto.png" else None for name in _DRAWINGS
        },
        layers=read_layer_table(output_dir / "layer_ranking.csv"),
        confidently=CONFIDENTLY,
        picture_set=picture_set,
        # By what the worst photographs are the worst.
        by_truth=measure is CONTENT,
        explanation=render_markdown(read_text(explanation, "explanation", _AGAIN)) if explanation.is_file() else "",
        plan=read_plan(plan_path).groups if plan_path.is_file() else (),
        front=read_front(output_dir, files),
        students=read_students(output_dir, files),
        quantized=read_int8(output_dir, files),
        record=measured,
        command=command,
        options=options,
        noisy_cv_pct=NOISY_CV_PCT,
        noisy_mark=NOISY_MARK,
    )


def _render(**values: Any) -> str:
    """The page with these values.

    Raises:
        ValueError and others: a value that a record holds is missing or of another kind.
    """
    import jinja2

    folder = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(
        loader=folder, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {
        "bytes": format_bytes,
        "count": format_count,
        "kept": say_kept,
        "ms": format_ms,
        "number": format_number,
        "percent": format_percent,
        "printable": printable,
    }
    try:
        return environment.get_template("report.html.j2").render(values)
    except jinja2.UndefinedError as error:
        raise ValueError(str(error)) from error


def hash_script(script: str) -> str:
    """What a Content-Security-Policy knows an inline script by: the text between its tags, UTF-8, as SHA-256."""
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode('ascii')}"


def render_markdown(text: str) -> str:
    """Markdown as HTML: paragraphs, lists, tables, headings two levels down; markup, links and pictures stay text."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "image", "autolink"])
    tokens = parser.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1:]) + 2)}"
    return str(parser.renderer.render(tokens, parser.options, {}))


def mark_strength(strength: Strength | None) -> str:
    """What stands at every section about colours where best.pt is not strong; else empty."""
    return strength.weakness.mark if strength and strength.weakness else ""


def _capitalize(measure: Measure) -> str:
    return f"{measure}"[:1].upper() + f"{measure}"[1:]


def _show_also(measured: Benchmark) -> list[dict[str, Any]]:
    """The folders of --also: name, what is known of each, the mark of its strength, and its table."""
    return [
        {
            **vars(folder),
            "name": name,
            "mark": mark_strength(folder.strength),
            "table": make_also_table(measured.rows, name, folder.strength),
        }
        for name, folder in measured.also.items()
    ]


def _judge_options(
    text: str, path: Path, rows: Sequence[Row], recommended: str | None, measure: Measure
) -> list[BudgetLine]:
    options = parse_toml(text, "options", path, _AGAIN)
    return judge_budgets(options, rows, recommended, measure)


def make_bars(rows: Sequence[Row], column: str, title: str, show: Any) -> dict[str, Any]:
    """A bar for each finished row: name, label, length in percent of the longest, and "peer", "control" or ""."""
    finished = [(row, value) for row in rows if row.is_ok and (value := getattr(row, column)) is not None]
    longest = max((value for _, value in finished), default=0) or 1
    bars = [
        (row.model, show(value), max(0.5, 100.0 * value / longest), "control" if row.control else "peer" * row.peer)
        for row, value in finished
    ]
    return {"title": title, "bars": bars}
