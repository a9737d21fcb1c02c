"""report.html: one file without scripts or links that says what to use, and shows why."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.tables import Row, format_bytes, format_count, format_number, format_percent, read_benchmark_json
from benchmarks.verdict import MAX_L1_INCREASE_PCT, MIN_RETAINED_COLOUR, fair_size, judge_rows
from colorpress.errors import InputError, printable
from colorpress.files import read_json, write_text
from compress.prune_plan import read_plan
from compress.student_plan import is_student_plan


@dataclass(frozen=True)
class Slot:
    """A picture that a run folder may hold, and how the page shows it.

    Attributes:
        alt, caption: its texts.
        widest: pixels it is reduced to.
        is_drawing: few colours, so a PNG with a palette; else a photograph, so a JPEG.
    """

    alt: str
    caption: str
    widest: int
    is_drawing: bool = False


_SLOTS = {
    "comparison.png": Slot(
        "Photographs as grey input, truth and each variant's colours",
        "Grey input, the photograph itself, and each variant with its L1. "
        "Of many photographs, the last two rows are those that compression hurts most.",
        widest=2400,
    ),
    "sample_input_output.png": Slot("Grey input, truth and best.pt's colours", "best.pt: input, truth, answer.", 1400),
    "sample_output.png": Slot("Photographs coloured by best.pt", "best.pt's colours for held-out photographs.", 1400),
    "pareto.png": Slot(
        "Scatter charts of file size and of latency against L1",
        "What each variant costs against its error: red is PyTorch, blue ONNX Runtime; no variant beats those joined "
        "by the line in both.",
        widest=1600,
        is_drawing=True,
    ),
    "training_loss.png": Slot("Training and validation loss by epoch", "Training of best.pt.", 1400, is_drawing=True),
    "top20_layers.png": Slot(
        "Bar chart of the layers with most parameters", "Where the parameters are.", 1400, is_drawing=True
    ),
    "layer_ranking.png": Slot(
        "Bar charts of each layer's share of parameters, work, memory and time, and of the colour it is worth",
        "Where parameters, work, memory and time are, and what each layer alone costs in colour when half of it is "
        "pruned, and when it is in int8.",
        widest=2200,
        is_drawing=True,
    ),
}


_AGAIN = "delete it, and make it again"
_DISTILLATION = Slot(
    "Line chart of retained colour by minutes of training",
    "Colour kept on the validation photographs, by minutes of training.",
    widest=1400,
    is_drawing=True,
)


@dataclass(frozen=True)
class Picture:
    """A picture as the page holds it: a data URI, its size in pixels, and its slot's texts."""

    uri: str
    width: int
    height: int
    alt: str
    caption: str


def write_report(output_dir: Path, *, command: str | None = None) -> Path:
    """Write report.html from benchmark.json and what else the run folder holds; nothing is measured again.

    Args:
        command: the command line that led here, shown as the way to reproduce it; None or empty: not shown.
    Raises:
        InputError: there is no benchmark.json, or it, a plan, an int8 record or a picture is damaged.
        MachineError: the file cannot be written.
    """
    import jinja2

    record = read_benchmark_json(output_dir / "benchmark.json")
    plan_path, options_path = output_dir / "pruned" / "plan.json", output_dir / "config.resolved.toml"
    rows: list[Row] = record["rows"]
    measured = {row["model"] for row in rows}
    verdict = judge_rows(rows, record.get("aa_ratios"))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        bytes=format_bytes, count=format_count, number=format_number, percent=format_percent, printable=printable
    )
    page = environment.get_template("report.html.j2").render(
        verdict=verdict,
        rows=rows,
        best=rows[0] if rows else None,
        headline=make_headline(rows, verdict.recommended),
        bars=[
            make_bars(rows, "size_bytes", "File size", format_bytes),
            make_bars(rows, "p50_ms", "Time for a call, p50", lambda value: format_number(value, " ms")),
            make_bars(rows, "retained_colour", "Retained colour G", "{:.3f}".format),
        ],
        pictures={name: _embed(output_dir / name, slot) for name, slot in _SLOTS.items()},
        plan=read_plan(plan_path).groups if plan_path.is_file() else (),
        students=_read_students(output_dir, measured),
        quantized=[
            (path.parent.name, read_json(path, "int8 record", _AGAIN))
            for path in sorted(output_dir.glob("*/int8.json"))
            if path.parent.name in measured
        ],
        runtimes={"torch": "PyTorch", "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"},
        record=record,
        command=command,
        options=options_path.read_text(encoding="utf-8") if options_path.is_file() else "",
        limits={"l1": MAX_L1_INCREASE_PCT, "retained": MIN_RETAINED_COLOUR},
        fair_size=fair_size,
    )
    return write_text(output_dir / "report.html", page)


def _read_students(output_dir: Path, measured: Collection[str]) -> list[dict[str, Any]]:
    """Name, plan and chart of the training of every student in a run folder that was measured."""
    return [
        {
            "name": path.parent.name,
            "plan": read_json(path, "student plan", _AGAIN),
            "chart": _embed(path.with_name("distillation.png"), _DISTILLATION),
        }
        for path in sorted(output_dir.glob("*/plan.json"))
        if f"{path.parent.name}.pt" in measured and is_student_plan(path)
    ]


def make_headline(rows: Sequence[Row], recommended: str | None) -> list[tuple[str, str]]:
    """Four figures of the recommended row, value and label; empty without one."""
    row = next((row for row in rows if row["model"] == recommended), None)
    if row is None:
        return []
    return [
        (f"{format_number(fair_size(rows[0]) / fair_size(row))}x", "smaller file"),
        (f"{format_number(row['speedup'])}x", "speed of best.pt"),
        (format_percent(row["l1_delta_pct"]), "L1 against best.pt"),
        (f"{row['retained_colour']:.3f}", "colour retained (G)"),
    ]


def make_bars(rows: Sequence[Row], column: str, title: str, show: Any) -> dict[str, Any]:
    """A bar for each finished row: name, label, and length in percent of the longest."""
    finished = [row for row in rows if row["status"] == "ok" and row[column]]
    longest = max((row[column] for row in finished), default=1)
    bars = [(row["model"], show(row[column]), max(0.5, 100.0 * row[column] / longest)) for row in finished]
    return {"title": title, "bars": bars}


def _embed(path: Path, slot: Slot) -> Picture | None:
    """A picture file as a data URI; None where there is no such file."""
    from PIL import Image

    if not path.is_file():
        return None
    try:
        with Image.open(path, formats=["PNG"]) as opened:
            picture = opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("picture", path, "is damaged", "delete it, and run the benchmark again") from error
    scale = min(1.0, slot.widest / max(picture.width, 1))
    if scale < 1.0:
        size = (slot.widest, max(1, math.floor(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if slot.is_drawing:
        # Drawings have few colours: a palette makes them a third of the size.
        picture.quantize(128).save(buffer, "PNG", optimize=True)
    else:
        # Without chroma subsampling: colour is what is judged.
        picture.save(buffer, "JPEG", quality=88, subsampling=0, optimize=True)
    kind = "png" if slot.is_drawing else "jpeg"
    uri = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
    return Picture(uri=uri, width=picture.width, height=picture.height, alt=slot.alt, caption=slot.caption)
