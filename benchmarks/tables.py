"""The benchmark's rows, and the files and the text they are written as."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.accuracy import Accuracy, AccuracyResult
from benchmarks.latency import Arm, LatencyResult
from benchmarks.roof import Roof, format_roof, lower_bound_ms
from colorpress.core.errors import InputError, printable
from colorpress.core.files import write_csv, write_text
from colorpress.core.text import format_bytes, format_count, format_number, format_percent
from export.timing import Timing

FORMAT_VERSION = 2
Row = dict[str, Any]

COLUMNS = (
    *("model", "variant", "peer", "runtime", "provider", "device", "compute", "precision"),
    *("params", "macs", "size_bytes", "weights_bytes", "batch", "height", "width", "threads", "warmup", "runs"),
    *("mean_ms", "std_ms", "cv_pct", "min_ms", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "max_ms"),
    *("images_per_s", "speedup", "speedup_low", "speedup_high", "load_ms", "first_ms", "compute_ms", "peak_rss_mb"),
    *("roof_ms", "roof_share"),
    *("photos", "l1", "l1_delta_pct", "retained_colour", "retained_low", "retained_high", "l1_rgb"),
    *("psnr_db", "ssim", "delta_e", "agreement_l1", "colourfulness", "colourfulness_ratio"),
    *("status", "error", "caution"),
)


def make_rows(latency: LatencyResult, accuracy: AccuracyResult, roof: Roof | None = None) -> list[Row]:
    """One dictionary with every name of COLUMNS per arm; None where there is no figure.

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
    row: Row = dict.fromkeys(COLUMNS) | {
        "model": arm.name,
        "variant": variant.file_name,
        **{name: value for name, value in vars(variant).items() if name in COLUMNS},
        # Where weights and activations are in 8 bits the float layers around them do not count.
        "compute": "int8" if variant.precision == "int8" else timing.compute or None,
        "macs": round(variant.macs * (condition.size / variant.macs_size) ** 2) or None,
        "provider": timing.provider,
        "batch": condition.batch,
        "height": condition.size,
        "width": condition.size,
        "threads": condition.threads,
        "warmup": max((answer["warmup"] for answer in timing.rounds if "warmup" in answer), default=None),
        **(asdict(timing.statistics) if timing.statistics else {}),
        **({"speedup": ratio.median, "speedup_low": ratio.low, "speedup_high": ratio.high} if ratio else {}),
        **{name: getattr(timing, name) for name in ("load_ms", "first_ms", "compute_ms", "peak_rss_mb")},
        "photos": photos,
        **{name: value for name, value in vars(measured).items() if name in COLUMNS},
        "status": timing.status if timing.status != "ok" else measured.status,
        "error": "; ".join(dict.fromkeys(filter(None, (timing.error, measured.error)))),
    }
    # What one core can do at most is a part of what was measured of all, so other counts have no roof.
    if roof and row["p50_ms"] and variant.device == "cpu" and condition.threads == roof.threads:
        row["roof_ms"] = lower_bound_ms(row, roof)
        row["roof_share"] = row["roof_ms"] / row["p50_ms"] if row["roof_ms"] else None
    return row


def write_benchmark_csv(path: Path, rows: Sequence[Row]) -> Path:
    """Write the rows with six significant digits; benchmark.json has them all."""
    rounded = [
        {name: float(f"{value:.6g}") if isinstance(value, float) else value for name, value in row.items()}
        for row in rows
    ]
    return write_csv(path, COLUMNS, [_printable_cells(row) for row in rounded])


def _printable_cells(row: Row) -> Row:
    return {name: printable(value) if isinstance(value, str) else value for name, value in row.items()}


def write_benchmark_json(path: Path, record: Mapping[str, Any]) -> Path:
    """Write a benchmark's record (see suite.make_record): indented but for the long lists of raw figures."""
    parts = []
    for name, value in record.items():
        indent = None if name in ("raw_times", "per_photo") else 2
        parts.append(f"{json.dumps(name)}: {json.dumps(value, indent=indent, allow_nan=False)}")
    return write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


def read_benchmark_json(path: Path) -> dict[str, Any]:
    """Read what `write_benchmark_json` wrote.

    Raises:
        InputError: no such file, or it is no benchmark of this format.
    """
    hint = "run `colorpress benchmark` first"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else f"cannot be read ({error})"
        raise InputError("benchmark", path, why, hint) from error
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION or "rows" not in record:
        raise InputError("benchmark", path, f"is no benchmark of format {FORMAT_VERSION}", hint)
    return record


def format_table(rows: Sequence[Row]) -> str:
    """The rows as a compact plain-text table for a terminal; failed variants say how they failed."""
    header = (
        "model",
        "size",
        "params",
        "MACs",
        "p50",
        "p90",
        "img/s",
        "speedup",
        "roof",
        "L1",
        "dL1",
        "G",
        "dE",
        "memory",
    )
    lines = [header, *(_format_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in lines if len(line) > 2 or column == 0) for column in range(len(header))]
    text = []
    for line in lines:
        first = line[0].ljust(widths[0])
        rest = (
            [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)] if len(line) > 2 else line[1:]
        )
        text.append("  ".join((first, *rest)).rstrip())
    return "\n".join(text)


def _format_cells(row: Row) -> tuple[str, ...]:
    name = printable(row["model"])
    if row["status"] != "ok":
        return name, printable(f"{row['status']}: {row['error']}")[:160]
    return (
        name,
        format_bytes(row["size_bytes"]),
        format_count(row["params"]),
        format_count(row["macs"]),
        format_number(row["p50_ms"], " ms"),
        format_number(row["p90_ms"], " ms"),
        format_number(row["images_per_s"]),
        format_number(row["speedup"], "x"),
        "-" if row["roof_share"] is None else f"{100 * row['roof_share']:.0f} %",
        "-" if row["l1"] is None else f"{row['l1']:.4f}",
        format_percent(row["l1_delta_pct"]),
        "-" if row["retained_colour"] is None else f"{row['retained_colour']:.3f}",
        format_number(row["delta_e"]),
        "-" if row["peak_rss_mb"] is None else f"{row['peak_rss_mb']:.0f} MB",
    )


def format_conditions(record: Mapping[str, Any]) -> list[str]:
    """What stands below the table: what noise alone does to a ratio, and what the machine can do at most."""
    lines = [
        f"A/A control, {label}: best.pt timed against itself is {ratio['median']:.3f} "
        f"({ratio['low']:.3f} to {ratio['high']:.3f})"
        for label, ratio in record["aa_ratios"].items()
    ]
    return [*lines, format_roof(Roof(**record["roof"]))] if record.get("roof") else lines
