"""The benchmark's rows made of what was measured, and written as CSV and as text for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.accuracy import Accuracy, AccuracyResult
from benchmarks.latency import Arm, LatencyResult
from benchmarks.roof import Roof, format_roof, lower_bound_ms
from benchmarks.rows import COLUMNS, Row
from colorpress.core.errors import printable
from colorpress.core.files import write_csv
from colorpress.core.text import align_cells, format_bytes, format_count, format_number, format_percent
from compress.precisions import find_precision
from export.timing import Timing

_HEADER = (
    *("model", "size", "params", "MACs", "p50", "p90", "img/s", "speedup"),
    *("roof", "L1", "dL1", "G", "dE", "memory"),
)


def make_rows(latency: LatencyResult, accuracy: AccuracyResult, roof: Roof | None = None) -> list[Row]:
    """One row per arm.

    Args:
        accuracy: by variant: the colours of a file do not depend on batch, size and threads.
        roof: of the machine; None: not measured.
    """
    return [
        _make_row(arm, latency.timings[arm.name], accuracy.variants[arm.variant.name], len(accuracy.photos), roof)
        for arm in latency.arms
    ]


def _make_row(arm: Arm, timing: Timing, measured: Accuracy, photos: int, roof: Roof | None) -> Row:
    ratio, variant, condition = timing.speedup, arm.variant, arm.condition
    figures: dict[str, Any] = {
        **{name: value for each in (variant, timing, measured) for name, value in vars(each).items()},
        **(asdict(timing.statistics) if timing.statistics else {}),
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
        "photos": photos,
        "status": timing.status if timing.status != "ok" else measured.status,
        "error": "; ".join(dict.fromkeys(filter(None, (timing.error, measured.error)))),
    }
    row = Row(**{name: figures[name] for name in COLUMNS if name in figures})
    # What one core can do at most is a part of what was measured of all, so other counts have no roof.
    if roof and row.p50_ms and row.device == "cpu" and row.threads == roof.threads:
        bound_ms = lower_bound_ms(row, roof)
        row = replace(row, roof_ms=bound_ms, roof_share=bound_ms / row.p50_ms if bound_ms else None)
    return row


def write_benchmark_csv(path: Path, rows: Sequence[Row]) -> Path:
    """Write the rows with six significant digits; benchmark.json has them all."""
    return write_csv(path, COLUMNS, [{name: _csv_value(value) for name, value in vars(row).items()} for row in rows])


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
        "-" if row.l1 is None else f"{row.l1:.4f}",
        format_percent(row.l1_delta_pct),
        "-" if row.retained_colour is None else f"{row.retained_colour:.3f}",
        format_number(row.delta_e),
        "-" if row.peak_rss_mb is None else f"{row.peak_rss_mb:.0f} MB",
    )


def format_conditions(record: Mapping[str, Any]) -> list[str]:
    """What stands below the table: what noise alone does to a ratio, and what the machine can do at most."""
    lines = [
        f"A/A control, {label}: best.pt timed against itself is {ratio['median']:.3f} "
        f"({ratio['low']:.3f} to {ratio['high']:.3f})"
        for label, ratio in record["aa_ratios"].items()
    ]
    return [*lines, format_roof(Roof(**record["roof"]))] if record.get("roof") else lines
