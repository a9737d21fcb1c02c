"""report.html: one file without links that says what to use, and shows why."""

from __future__ import annotations

import base64
import io
import math
import shlex
import tomllib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.budget_lines import BudgetLine, judge_budgets
from benchmarks.peer_verdict import judge_peers
from benchmarks.report.pictures import FOLDER, FORMAT_VERSION, encode_jpeg
from benchmarks.report.report_table import NOISY_MARK, format_ms, make_also_table, make_tables
from benchmarks.rows import NOISY_CV_PCT, Benchmark, Row, base_rows, one_per_file, read_benchmark_json, read_strength
from benchmarks.verdict import judge_benchmark, measure_of
from colorpress.core.errors import InputError, printable
from colorpress.core.files import read_json, write_text
from colorpress.core.stages import StageRecord
from colorpress.core.text import format_bytes, format_count, format_interval, format_number, format_percent
from compress.measures import CONTENT, MEASURES, RETAINED, Measure, Strength
from compress.prune_plan import read_plan
from compress.students.student_plan import is_student_plan
from training.run_folder import Run

_SHEETS = ("comparison.png", "sample_input_output.png", "sample_output.png")
# The pictures that a run folder may hold: pixels that they are reduced to, and whether each is a drawing.
_PICTURES = {
    "comparison.png": (2400, False),
    "sample_input_output.png": (1400, False),
    "sample_output.png": (1400, False),
    "pareto.png": (1800, True),
    "front.png": (1800, True),
    "training_loss.png": (1400, True),
    "top20_layers.png": (1400, True),
    "layer_ranking.png": (2200, True),
}
# What else the report shows beside benchmark.json.
_REPORTED = (
    *("*.png", "front.json", "*/plan.json", "*/int8.json", "*/distillation.png", "pictures/*"),
    *("training_inference.md", "config.resolved.toml"),
)
_AGAIN = "delete it, and make it again"
_BENCHMARK_AGAIN = "delete it, and run the benchmark again"
# JPEG bytes of all pictures and of all difference maps; a page writes them a third longer. The first quality that
# fits is taken.
_PICTURE_BYTES, _MAP_BYTES = 1_000_000, 250_000
_QUALITIES = (92, 88, 82, 75, 65, 50)


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
    measured = read_benchmark_json(output_dir / "benchmark.json")
    plan_path, options_path = output_dir / "pruned" / "plan.json", output_dir / "config.resolved.toml"
    explanation = output_dir / "training_inference.md"
    rows, strength = measured.rows, measured.strength
    base, files = base_rows(rows), {row.variant for row in rows}
    measure = strength.measure if strength else None
    verdict = judge_benchmark(measured)
    results, others = make_tables(rows, verdict.recommended, measure)
    options = options_path.read_text(encoding="utf-8") if options_path.is_file() else ""
    # A benchmark of time alone leaves the pictures of an earlier one where they are.
    scored = bool(rows and rows[0].photos)
    picture_set = read_picture_set(output_dir) if scored else None
    # The sliders show what the sheets do, larger.
    left_out = () if scored and picture_set is None else _SHEETS if scored else (*_SHEETS, "pareto.png")
    page = _open_template().render(
        verdict=verdict,
        rows=rows,
        best=rows[0] if rows else None,
        chosen=next((row for row in rows if row.model == verdict.recommended), None),
        headline=make_headline(rows, verdict.recommended, measure),
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
            make_bars(base, "p50_ms", "Time for a call, p50", lambda value: format_number(value, " ms")),
            *([make_bars(base, measure.name, _capitalize(measure), "{:.3f}".format)] if measure else []),
        ],
        pictures={
            name: None if name in left_out else embed_picture(output_dir / name, widest, is_drawing=is_drawing)
            for name, (widest, is_drawing) in _PICTURES.items()
        },
        picture_set=picture_set,
        # By what the worst photographs are the worst.
        by_truth=measure is CONTENT,
        explanation=render_markdown(explanation.read_text(encoding="utf-8")) if explanation.is_file() else "",
        plan=read_plan(plan_path).groups if plan_path.is_file() else (),
        front=_read_front(output_dir, files),
        students=_read_students(output_dir, files),
        quantized=[
            (path.parent.name, read_json(path, "int8 record", _AGAIN))
            for path in sorted(output_dir.glob("*/int8.json"))
            if path.parent.name in files
        ],
        record=measured,
        command=command,
        options=options,
        noisy_cv_pct=NOISY_CV_PCT,
        noisy_mark=NOISY_MARK,
    )
    return write_text(output_dir / "report.html", page)


def _open_template() -> Any:
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
    return environment.get_template("report.html.j2")


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


def say_kept(values: Mapping[str, Any]) -> str:
    """What an entry of a plan or an int8 record keeps, such as "C 0.912"; a dash where that is not known.

    An entry has the fields of `Score`, or measure and kept; before there were other measures, retained colour alone.
    """
    measure = MEASURES.get(values.get("measure") or RETAINED.name, RETAINED)
    kept = values.get("kept", values.get(measure.name))
    return "-" if kept is None else measure.show(kept)


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
    try:
        options = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InputError("options", path, f"is not TOML ({error})", _AGAIN) from error
    return judge_budgets(options, rows, recommended, measure)


def _read_front(output_dir: Path, measured: Collection[str]) -> dict[str, Any] | None:
    """What front.json says of the search whose files were measured; None without one."""
    path = output_dir / "front.json"
    if not path.is_file():
        return None
    record: dict[str, Any] = read_json(path, "front", _AGAIN)
    try:
        files = [row["file"] for row in record["rows"] if row["on_front"] and row["file"]]
        shown = {"sentence": str(record["sentence"]), "candidates": dict(record["candidates"]), "files": len(files)}
        shown["strength"] = read_strength(record)
        taken: Mapping[str, Any] = next(
            (row for row in record["rows"] if row["file"] and row["file"] == record.get("recommended")), {}
        )
        # Before there were other measures, nothing was confirmed.
        shown["taken"] = _read_taken(taken) if taken.get("confirmed_kept") is not None else None
    except (KeyError, TypeError, ValueError) as error:
        raise InputError("front", path, f"is damaged: {error!r}", _AGAIN) from error
    return shown if any(Path(file).parent.as_posix() in measured for file in files) else None


def _read_taken(row: Mapping[str, Any]) -> dict[str, Any]:
    """What the recommended file of a front keeps on the photographs that chose it, and on others."""
    measure, low, high = MEASURES[row["measure"]], row["confirmed_low"], row["confirmed_high"]
    interval = "" if low is None or high is None else f" (95 % interval {format_interval(low, high)})"
    confirmed = {"measure": row["measure"], "kept": row["confirmed_kept"]}
    texts = {"chosen_by": say_kept(row), "confirmed": f"{say_kept(confirmed)}{interval}"}
    return {"file": row["file"], "measure": measure, **texts}


def _read_students(output_dir: Path, measured: Collection[str]) -> list[dict[str, Any]]:
    """Name, plan and chart of the training of every student in a run folder that was measured."""
    return [
        {
            "name": path.parent.name,
            "plan": read_json(path, "student plan", _AGAIN),
            "chart": embed_picture(path.with_name("distillation.png"), 1400, is_drawing=True),
        }
        for path in sorted(output_dir.glob("*/plan.json"))
        if f"{path.parent.name}.pt" in measured and is_student_plan(path)
    ]


def make_headline(rows: Sequence[Row], recommended: str | None, measure: Measure | None) -> list[tuple[str, str]]:
    """Four figures of the recommended row, value and label; empty without one.

    What it keeps is said of the photographs that did not choose it, where there are such.
    """
    row = next((row for row in rows if row.model == recommended), None)
    if row is None or measure is None:
        return []
    kept, _ = row.reported(measure)
    label = f"{measure.title} ({measure.symbol})" + (", confirmed" if row.is_confirmed else "")
    return [
        (f"{format_number(row.times_smaller(rows[0]))}x", "smaller file"),
        (f"{format_number(row.speedup)}x", "speed of best.pt"),
        (format_percent(row.reported_l1_delta_pct), "L1 against best.pt"),
        ("-" if kept is None else f"{kept:.3f}", label),
    ]


def make_bars(rows: Sequence[Row], column: str, title: str, show: Any) -> dict[str, Any]:
    """A bar for each finished row: name, label, length in percent of the longest, and "peer", "control" or ""."""
    finished = [(row, value) for row in rows if row.is_ok and (value := getattr(row, column)) is not None]
    longest = max((value for _, value in finished), default=0) or 1
    bars = [
        (row.model, show(value), max(0.5, 100.0 * value / longest), "control" if row.control else "peer" * row.peer)
        for row, value in finished
    ]
    return {"title": title, "bars": bars}


class Picture(NamedTuple):
    """A picture as the page holds it: a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


def embed_picture(path: Path, widest: int, *, is_drawing: bool) -> Picture | None:
    """A picture file as a data URI; None where there is no such file.

    Args:
        widest: pixels it is reduced to.
        is_drawing: few colours, so a PNG with a palette; else a photograph, so a JPEG.
    Raises:
        InputError: it is damaged.
    """
    if not path.is_file():
        return None
    picture = _open(path, "PNG")
    scale = min(1.0, widest / max(picture.width, 1))
    if scale < 1.0:
        picture = picture.resize((widest, max(1, math.floor(picture.height * scale))), Image.Resampling.LANCZOS)
    if not is_drawing:
        return Picture(_as_uri(encode_jpeg(picture, 85), "jpeg"), *picture.size)
    buffer = io.BytesIO()
    # Drawings have few colours: a palette makes them a third of the size.
    picture.quantize(128).save(buffer, "PNG", optimize=True)
    return Picture(_as_uri(buffer.getvalue(), "png"), *picture.size)


def read_picture_set(output_dir: Path) -> dict[str, Any] | None:
    """The pictures of the benchmark in a run folder, encoded so that they fit the page; None where there are none.

    Difference maps have half the pixels of a side: where a colouring differs is seen on those too.

    Returns:
        "best" and "variants" (names), "judged" (who harms the worst photographs; None: ours, on average),
        "scale" (mean |Δab| at the end of the colour bar), "bar" (its colours), and "photos": each with "name",
        "is_worst", "width", "height", "sentence" (the L1 of each answer) and "tiles". A tile has "name" ("grey",
        "truth" or a variant's), "against" (of a difference map "truth" or "best", else empty), "title" and "uri".
    Raises:
        InputError: pictures.json or a picture is damaged or of another format.
    """
    path = output_dir / FOLDER / "pictures.json"
    if not path.is_file():
        return None
    record = read_json(path, "picture list", _BENCHMARK_AGAIN)
    try:
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {record['format_version']}")
        return {
            **{name: record[name] for name in ("variants", "judged", "bar")},
            "best": str(record["best"]),
            "scale": float(record["scale"]),
            "photos": _read_photos(record["photos"], str(record["best"]), path.parent),
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("picture list", path, f"is not one of this version ({error})", _BENCHMARK_AGAIN) from error


def _read_photos(photos: Sequence[Mapping[str, Any]], best: str, folder: Path) -> list[dict[str, Any]]:
    pictures, maps = [], []
    for photo in photos:
        pictures += [_open_inside(folder, file) for file in photo["pictures"].values()]
        for against in ("truth", "best"):
            maps += [_halve(_open_inside(folder, file)) for file in photo["differences"][against].values()]
    picture_uris, map_uris = iter(_encode_within(pictures, _PICTURE_BYTES)), iter(_encode_within(maps, _MAP_BYTES))
    titles = {"grey": "grey input"}
    shown = []
    for photo in photos:
        tiles = [
            {"name": name, "against": "", "title": titles.get(name, name), "uri": next(picture_uris)}
            for name in photo["pictures"]
        ]
        for against, other in (("truth", "the truth"), ("best", best)):
            tiles += [
                {"name": name, "against": against, "title": f"{name}, difference to {other}", "uri": next(map_uris)}
                for name in photo["differences"][against]
            ]
        figures = {name: photo[name] for name in ("name", "width", "height")}
        is_worst, sentence = photo["kind"] == "worst", _say_l1(photo["l1"], best)
        shown.append({**figures, "is_worst": is_worst, "sentence": sentence, "tiles": tiles})
    return shown


def _say_l1(l1: Mapping[str, float], best: str) -> str:
    def above(name: str, value: float) -> str:
        return f" ({100.0 * (value / l1[best] - 1.0):+.1f} %)" if name not in (best, "grey") and l1.get(best) else ""

    return ", ".join(f"{name} {value:.4f}{above(name, value)}" for name, value in l1.items())


def _open_inside(folder: Path, name: str) -> Image.Image:
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not in the folder")
    path = folder / name
    if not path.is_file():
        raise InputError("picture", path, "no such file", _BENCHMARK_AGAIN)
    return _open(path, "JPEG")


def _open(path: Path, kind: str) -> Image.Image:
    try:
        with Image.open(path, formats=[kind]) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("picture", path, "is damaged", _BENCHMARK_AGAIN) from error


def _halve(picture: Image.Image) -> Image.Image:
    return picture.reduce(2) if min(picture.size) > 1 else picture


def _encode_within(pictures: Sequence[Image.Image], most_bytes: int) -> list[str]:
    """JPEG data URIs of one quality, the highest of a few whose bytes together are few enough."""
    encoded: list[bytes] = []
    for quality in _QUALITIES:
        encoded = [encode_jpeg(picture, quality) for picture in pictures]
        if sum(map(len, encoded)) <= most_bytes:
            break
    return [_as_uri(content, "jpeg") for content in encoded]


def _as_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
