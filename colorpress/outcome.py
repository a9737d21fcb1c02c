"""What a person reads at the end of a run: what to take, what it costs, where the report is, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report.first_screen import find_file
from benchmarks.report.main_rows import choose_main_rows
from benchmarks.rows import Benchmark, Row, read_benchmark_json
from benchmarks.tables import format_also, format_conditions, format_table
from benchmarks.verdict import Verdict, judge_benchmark, measure_of, say_colour, say_size, say_speed
from colorpress.browser import REPORT
from colorpress.core.errors import printable
from colorpress.core.text import align_cells, format_bytes, format_interval, format_number
from colorpress.next_steps import Step, align_pairs, format_steps
from compress.measures import Measure
from export.runtimes import RUNTIMES, find_runtime
from training.run_folder import Run

# How much longer something learns that has not learned enough.
_LONGER = 4


@dataclass(frozen=True)
class _Model:
    """The row that is recommended, or nearest to it, and its files in the run folder where they are there.

    Attributes:
        measured: the file that was measured. graph: the same with pixels in and pixels out, of an ONNX file.
    """

    row: Row
    measured: Path | None
    graph: Path | None

    @property
    def variant(self) -> str | None:
        """What `bundle` is to ship; None where it was not exported."""
        if self.measured is None or not self.measured.with_name("model.onnx").is_file():
            return None
        return self.row.variant.removesuffix(self.measured.suffix)

    @property
    def to_run(self) -> Path | None:
        """What `colorize` is given."""
        return self.graph or self.measured


def describe_outcome(run: Run, *, argv: Sequence[str], has_trained: bool) -> list[str]:
    """The last lines of a whole run, from its benchmark: what is recommended, or why nothing is; and what to do next.

    Args:
        argv: the arguments of the run, which goes on from what is finished where they are given again.
        has_trained: best.pt is its own.
    """
    measured = read_benchmark_json(run.folder / "benchmark.json")
    verdict = judge_benchmark(measured)
    measure, report = measure_of(measured.strength), run.folder / REPORT
    return [
        *describe_verdict(run, measured, verdict),
        *([f"note: {measured.strength.describe()}"] if measured.strength else []),
        "",
        *_format_main_rows(measured.rows, verdict.recommended, measure),
        "",
        *align_pairs(
            (("report", printable(str(report))), ("all rows", printable(str(report.with_name("benchmark.csv")))))
        ),
        "",
        *format_steps(_list_steps(run, measured, verdict, argv, has_trained)),
    ]


def describe_verdict(run: Run, measured: Benchmark, verdict: Verdict) -> list[str]:
    """What is recommended and what it costs, or why nothing is and what to do; then what limits that."""
    model = _find_model(run.folder, measured.rows, verdict.recommended)
    if model is None:
        lines = [verdict.sentence, verdict.advice]
    else:
        name = str(model.measured or model.row.model)
        figures = [
            ("size", say_size(model.row, measured.rows[0])),
            ("speed", say_speed(model.row, measured.rows[0])),
            ("colour", say_colour(model.row, measure_of(measured.strength))),
        ]
        if model.graph:
            size = format_bytes(model.graph.stat().st_size)
            figures.append(("other programs", f"{model.graph.name} beside it, pixels in, pixels out ({size})"))
        runtime = RUNTIMES[model.row.runtime].title if model.row.runtime in RUNTIMES else model.row.runtime
        lines = [f"Recommended: {printable(name)} in {runtime}", *align_pairs(figures)]
    weakness = measured.strength.weakness if measured.strength else None
    notes = [weakness.advice] if weakness and weakness.advice and weakness.advice not in lines else []
    return [*lines, *(f"note: {note}" for note in (*notes, *verdict.notes))]


def describe_benchmark(run: Run, *, has_report: bool) -> list[str]:
    """What the command `benchmark` prints: every row, what they mean, the verdict, and how to get the report.

    Args:
        has_report: it is written already.
    """
    measured = read_benchmark_json(run.folder / "benchmark.json")
    also = format_also(measured)
    write: Step = ("write the report", ["report", *_on(run)])
    return [
        format_table(measured.rows),
        *format_conditions(measured),
        *(["", also] if also else []),
        "",
        *describe_verdict(run, measured, judge_benchmark(measured)),
        "",
        *format_steps([*([] if has_report else [write]), ("look at the report", ["open", str(run.folder)])]),
    ]


def _find_model(folder: Path, rows: Sequence[Row], name: str | None) -> _Model | None:
    row = next((row for row in rows if row.model == name), None)
    if row is None:
        return None
    found = folder / name if (name := find_file(folder, row)) else None
    # A benchmark of files from elsewhere has rows of the same names.
    measured = found if found and found.stat().st_size == row.size_bytes else None
    graph = measured.with_name("colorizer.onnx") if measured and measured.suffix == ".onnx" else None
    return _Model(row, measured, graph if graph and graph.is_file() else None)


def _list_steps(run: Run, measured: Benchmark, verdict: Verdict, argv: Sequence[str], has_trained: bool) -> list[Step]:
    model = _find_model(run.folder, measured.rows, verdict.recommended or verdict.closest)
    photos = run.settings.data.data
    steps: list[Step] = [("look at the report", ["open", str(run.folder)])]
    if verdict.recommended is None:
        steps += _ways_to_more_colour(run, measured, argv, has_trained)
    elif model and model.to_run:
        runtime = [] if model.row.runtime == find_runtime(model.to_run).name else ["--runtime", model.row.runtime]
        arch = shlex.split(run.settings.arch.as_arguments()) if model.to_run.suffix == ".pt" else []
        words = ["colorize", str(photos or "PHOTOS"), "-m", str(model.to_run), *arch, *runtime]
        steps.append(("colour photographs with it", words))
    if photos is None:
        steps.append(("do the same with your own", ["run", "--data", "PHOTOS", "-o", "out"]))
    elif model and model.variant:
        ship = "pack it to ship" if verdict.recommended else "ship the closest all the same"
        steps.append((ship, ["bundle", *_on(run), "--variant", model.variant]))
    return steps


def _ways_to_more_colour(run: Run, measured: Benchmark, argv: Sequence[str], has_trained: bool) -> list[Step]:
    """The same run again, with more training of what has learned too little: the original, else the students."""
    if not measured.rows[0].photos:
        return []
    again = [word for word in argv if word != "--force"]
    weakness = measured.strength.weakness if measured.strength else None
    if weakness is None or not weakness.advice:
        crops = _LONGER * run.settings.student.student_crops
        return [("let students learn for longer", [*again, "--student-crops", str(crops)])]
    # One run folder holds one best.pt.
    longer = ["--epochs", str(_LONGER * run.settings.train.epochs), "-o", f"{run.folder}-longer"]
    return [("train best.pt for longer", [*again, *longer])] if has_trained else []


def _on(run: Run) -> list[str]:
    return ["-o", str(run.folder)]


def _format_main_rows(rows: Sequence[Row], recommended: str | None, measure: Measure) -> list[str]:
    """The rows that matter as a table for a terminal of 80 columns; empty where best.pt was not measured."""
    main = choose_main_rows(rows, recommended, measure)
    if not main:
        return []
    header = ("* recommended" if recommended else "", "file", "smaller", "speed-up", str(measure))
    cells = []
    for _, row in main:
        kept, ends = row.reported(measure)
        interval = f" ({format_interval(*ends, digits=2)})" if ends and row is not rows[0] else ""
        mark = "*" if row.model == recommended else ""
        cells.append((
            f"{mark:1} {printable(row.model)}",
            format_bytes(row.fair_size_bytes),
            format_number(None if row.control else row.times_smaller(rows[0]), "x"),
            format_number(row.speedup, "x"),
            "-" if kept is None else f"{kept:.2f}{interval}",
        ))  # fmt: skip
    best = rows[0]
    threads = f"{best.threads} {'thread' if best.threads == 1 else 'threads'}" if best.device == "cpu" else best.device
    size = f"{best.height} x {best.width} pixels"
    return [
        *align_cells([header, *cells]),
        f"speed-up: of the median time for {size} on {threads}",
        f"{measure}: {measure.meaning} (95 % interval)",
    ]
