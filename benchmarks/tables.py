"""The benchmark's rows made of what was measured, and written as CSV and as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy import Accuracy, AccuracyResult
from benchmarks.also import pick_figures
from benchmarks.latency import Arm, LatencyResult
from benchmarks.roof import Roof, format_roof, lower_bound_ms
from benchmarks.rows import COLUMNS, Benchmark, FolderRecord, Row, base_rows
from benchmarks.variants import Variant
from colorpress.core.errors import printable
from colorpress.core.files import write_csv
from colorpress.core.text import align_cells, format_bytes, format_count, format_interval, format_number, format_percent
from compress.measures import MEASURES
from compress.precisions import find_precision
from export.timing import Timing

_HEADER = (
    *("model", "size", "params", "MACs", "p50", "p90", "img/s", "speedup"),
    *("roof", "L1", "dL1", *(each.symbol for each in MEASURES.values()), "dE", "memory"),
)
_ALSO_HEADER = ("model", "L1", "dL1", *(each.symbol for each in MEASURES.values()), "chroma/best", "chroma/truth")


def make_rows(
    latency: LatencyResult,
    accuracy: AccuracyResult,
    roof: Roof | None = None,
    *,
    controls: Sequence[Variant] = (),
    also: Mapping[str, AccuracyResult] | None = None,
) -> list[Row]:
    """One row per arm, then one per control.

    Args:
        accuracy: by variant: the colours of a file do not depend on batch, size and threads.
        roof: of the machine; None: not measured.
        controls: that were scored, and not timed; their rows are of the first condition.
        also: the accuracies on the photographs of further folders, by the name of the folder.
    """
    untimed = Timing("ok")
    arms = [(arm, latency.timings[arm.name]) for arm in latency.arms]
    arms += [(Arm(control.name, control, latency.arms[0].condition), untimed) for control in controls]
    return [
        _make_row(
            arm,
            timing,
            accuracy.variants[arm.variant.name],
            roof,
            photos=len(accuracy.photos),
            also={folder: pick_figures(result, arm.variant.name) for folder, result in (also or {}).items()},
        )
        for arm, timing in arms
    ]


def _make_row(arm: Arm, timing: Timing, measured: Accuracy, roof: Roof | None, **further: Any) -> Row:
    ratio, variant, condition = timing.speedup, arm.variant, arm.condition
    figures: dict[str, Any] = {
        **{name: value for each in (variant, timing, measured) for name, value in vars(each).items()},
        **(asdict(timing.statistics) if timing.statistics else {}),
        **further,
        "model": arm.name,
        "variant": variant.file_name,
        # Where weights and activations are in 8 bits the float layers around them do not count.
        "compute": find_precision(variant.precision).computes or timing.compute or None,
        "macs": round(variant.macs * (condition.size / variant.macs_size) ** 2) or None,
        "batch": condition.batch,
        "height": condition.size,
        "width": condition.size,
        "threads": condition.threads,
        "warmup": max((answer["warmup"] for answer in timing.rounds if "warmup" in answer), default=None),
        "speedup": ratio.median if ratio else None,
        "speedup_low": ratio.low if ratio else None,
        "speedup_high": ratio.high if ratio else None,
        "status": timing.status if timing.status != "ok" else measured.status,
        "error": "; ".join(dict.fromkeys(filter(None, (timing.error, measured.error)))),
    }
    row = Row(**{name: figures[name] for name in (*COLUMNS, "also") if name in figures})
    # What one core can do at most is a part of what was measured of all, so other counts have no roof.
    if roof and row.p50_ms and row.device == "cpu" and row.threads == roof.threads:
        bound_ms = lower_bound_ms(row, roof)
        row = replace(row, roof_ms=bound_ms, roof_share=bound_ms / row.p50_ms if bound_ms else None)
    return row


def write_benchmark_csv(path: Path, rows: Sequence[Row]) -> Path:
    """Write the rows with six significant digits; benchmark.json has them all.

    Each further folder is a group of columns, such as also_<folder>_l1.
    """
    further = [{f"also_{name}_{key}": f for name, each in row.also.items() for key, f in each.items()} for row in rows]
    columns = (*COLUMNS, *(further[0] if further else ()))
    values = [
        {**{name: getattr(row, name) for name in COLUMNS}, **more} for row, more in zip(rows, further, strict=True)
    ]
    return write_csv(path, columns, [{name: _csv_value(each.get(name)) for name in columns} for each in values])


def _csv_value(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    return printable(value) if isinstance(value, str) else value


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a compact plain-text table for a terminal; failed variants say how they failed."""
    return "\n".join(align_cells([_HEADER, *map(_format_cells, rows)]))


def _format_cells(row: Row) -> tuple[str, ...]:
    name = printable(row.model)
    if not row.is_ok:
        return name, printable(f"{row.status}: {row.error}")[:160]
    return (
        name,
        format_bytes(row.size_bytes),
        format_count(row.params),
        format_count(row.macs),
        format_number(row.p50_ms, " ms"),
        format_number(row.p90_ms, " ms"),
        format_number(row.images_per_s),
        format_number(row.speedup, "x"),
        "-" if row.roof_share is None else f"{100 * row.roof_share:.0f} %",
        _digits(row.l1, 4),
        format_percent(row.l1_delta_pct),
        *(_digits(row.kept(measure)) for measure in MEASURES.values()),
        format_number(row.delta_e),
        "-" if row.peak_rss_mb is None else f"{row.peak_rss_mb:.0f} MB",
    )


def _digits(value: float | None, digits: int = 3) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def format_also(measured: Benchmark) -> str:
    """The colours on the photographs of each further folder, as plain-text tables for a terminal; empty without any."""
    return "\n\n".join(
        "\n".join([f"also on {printable(name)}:", *_format_folder(name, found, measured.rows)])
        for name, found in measured.also.items()
    )


def _format_folder(name: str, found: FolderRecord, rows: Sequence[Row]) -> list[str]:
    cells = []
    for row in base_rows(rows):
        figures = row.also.get(name, {})
        cells.append((
            printable(row.model),
            _digits(figures.get("l1"), 4),
            format_percent(figures.get("l1_delta_pct")),
            *(_digits(figures.get(measure)) for measure in MEASURES),
            *(_digits(figures.get(share), 2) for share in ("chroma_to_best", "chroma_to_truth")),
        ))  # fmt: skip
    strength = found.strength
    lines = [*align_cells([_ALSO_HEADER, *cells]), strength.describe() if strength else "best.pt failed on them."]
    if worst := [printable(photo) for photo, _ in found.worst]:
        whose = printable(found.judged) if found.judged else "ours on the whole"
        lines.append(f"worst of {whose}: {', '.join(worst)}")
    return lines


def format_conditions(measured: Benchmark) -> list[str]:
    """What stands below the table: how strong best.pt is, what noise alone does to a ratio, what the machine can do."""
    lines = measured.strength.sentences() if measured.strength else []
    lines += [
        f"A/A control, {label}: best.pt timed against itself is {ratio.median:.3f} "
        f"({format_interval(ratio.low, ratio.high)})"
        for label, ratio in measured.aa_ratios.items()
    ]
    return [*lines, format_roof(Roof(**measured.roof))] if measured.roof else lines
