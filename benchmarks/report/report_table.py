"""The tables of report.html: which columns there are, what a cell says, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.rows import Row, base_rows
from colorpress.core.text import format_bytes, format_count, format_number, format_percent
from export.runtimes import RUNTIMES

# Calls that vary by more than this are on a machine that does something else as well.
MAX_CV_PCT = 2.5
NOISY_MARK = "†"


@dataclass(frozen=True)
class Cell:
    """What a cell shows, a fainter line below it, and the number or text that its column is sorted by."""

    text: str
    note: str = ""
    value: float | str | None = None


@dataclass(frozen=True)
class Column:
    """A column: its header, with a fainter line below.

    Attributes:
        key: what it is called in benchmark.csv.
        show: the cell of a finished row.
        is_extra: shown only with all columns.
        is_more_better: sorted from the largest down first.
    """

    key: str
    title: str
    show: Callable[[Row], Cell]
    note: str = ""
    is_extra: bool = False
    is_more_better: bool = False


@dataclass(frozen=True)
class Line:
    """A row of the table.

    Attributes:
        name, note: the model, and how it was run.
        kind: "chosen", "peer" or "".
        cells: one for each column; of a failed row only the first, its size.
        failure: how it failed; empty when it did not.
    """

    name: str
    note: str
    kind: str
    cells: tuple[Cell, ...]
    failure: str


@dataclass(frozen=True)
class Table:
    """Columns, the extra ones last, and lines."""

    columns: tuple[Column, ...]
    lines: tuple[Line, ...]

    @property
    def shown(self) -> int:
        """How many columns are not extra."""
        return sum(not column.is_extra for column in self.columns)


def make_tables(rows: Sequence[Row], recommended: str | None) -> tuple[Table, Table]:
    """The rows measured as the first one is, and the rows of all other conditions.

    Columns that no row has a figure for are left out.
    """
    base = base_rows(rows)
    others = [row for row in rows if row not in base]
    return _make_table(base, recommended, _COLUMNS), _make_table(others, recommended, _OTHER_COLUMNS, conditions=True)


def _make_table(
    rows: Sequence[Row], recommended: str | None, columns: Sequence[Column], *, conditions: bool = False
) -> Table:
    finished = [row for row in rows if row.is_ok]
    # The size stays, since failed rows have one too.
    used = [
        each
        for each in columns
        if each.key == "size_bytes" or any(getattr(row, each.key) is not None for row in finished)
    ]
    used.sort(key=lambda column: column.is_extra)
    return Table(tuple(used), tuple(_make_line(row, recommended, used, conditions) for row in rows))


def _make_line(row: Row, recommended: str | None, columns: Sequence[Column], conditions: bool) -> Line:
    note = f"{RUNTIMES[row.runtime].title} {row.precision}"
    if conditions:
        threads = "thread" if row.threads == 1 else "threads"
        note += f"; batch {row.batch}, {row.height}x{row.width}, "
        note += f"{row.threads} {threads}" if row.device == "cpu" else row.device
    elif row.device != "cpu":
        note += f", {row.device}"
    failure = "" if row.is_ok else f"{row.status}: {row.error or 'no reason given'}"
    return Line(
        name=row.model,
        note=note,
        kind="chosen" if row.model == recommended else "peer" if row.peer else "",
        cells=tuple(column.show(row) for column in (columns[:1] if failure else columns)),
        failure=failure,
    )


def _show_size(row: Row) -> Cell:
    note = f"weights {format_bytes(row.fair_size_bytes)}" if row.fair_size_bytes < 0.99 * row.size_bytes else ""
    return Cell(format_bytes(row.size_bytes), note, row.fair_size_bytes)


def _show_time(row: Row) -> Cell:
    mark = f" {NOISY_MARK}" if _is_noisy(row) else ""
    return Cell(format_number(row.p50_ms, " ms") + mark, format_number(row.p90_ms, " ms"), row.p50_ms)


def _show_speedup(row: Row) -> Cell:
    low, high = row.speedup_low, row.speedup_high
    note = "" if low is None else f"{format_number(low)}-{format_number(high)}"
    return Cell(format_number(row.speedup, "x"), note, row.speedup)


def _show_retained(row: Row) -> Cell:
    low, high = row.retained_low, row.retained_high
    note = "" if low is None else f"{low:.3f} to {high:.3f}"
    return Cell(_format(row.retained_colour, "{:.3f}"), note, row.retained_colour)


def _show_cv(row: Row) -> Cell:
    mark = f" {NOISY_MARK}" if _is_noisy(row) else ""
    return Cell(_format(row.cv_pct, "{:.1f} %") + mark, "", row.cv_pct)


def _is_noisy(row: Row) -> bool:
    return row.cv_pct is not None and row.cv_pct > MAX_CV_PCT


def _format(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)


def _format_share(share: float | None) -> str:
    """Two digits, but never an exponent."""
    if share is None:
        return "-"
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def format_ms(value: float | None) -> str:
    """Milliseconds, or microseconds where less than a tenth of one."""
    return format_number(value, " ms") if value is None or value >= 0.1 else format_number(1000 * value, " µs")


def _number(key: str, title: str, unit: str = "", **more: Any) -> Column:
    return Column(key, title, lambda row: Cell(format_number(getattr(row, key), unit), "", getattr(row, key)), **more)


def _pattern(key: str, title: str, pattern: str, **more: Any) -> Column:
    return Column(key, title, lambda row: Cell(_format(getattr(row, key), pattern), "", getattr(row, key)), **more)


def _pair(first: Column, second: Column) -> Column:
    """The second column's text as the fainter line of the first."""
    return Column(
        first.key,
        first.title,
        lambda row: Cell(first.show(row).text, second.show(row).text, first.show(row).value),
        note=second.title,
        is_extra=first.is_extra,
        is_more_better=first.is_more_better,
    )


def _extra(columns: Sequence[Column], *shown: str) -> tuple[Column, ...]:
    """All columns but those named are extra."""
    return tuple(
        Column(c.key, c.title, c.show, note=c.note, is_extra=c.key not in shown, is_more_better=c.is_more_better)
        for c in columns
    )


_ALL = (
    Column("size_bytes", "Size", _show_size),
    Column("p50_ms", "p50", _show_time, note="p90"),
    _number("compute_ms", "GPU alone", " ms", note="without transfer"),
    _number("images_per_s", "Pictures", note="per s", is_more_better=True),
    Column("speedup", "Speed-up", _show_speedup, note="95 % interval", is_more_better=True),
    Column("l1_delta_pct", "ΔL1", lambda row: Cell(format_percent(row.l1_delta_pct), "", row.l1_delta_pct)),
    Column("retained_colour", "Colour kept G", _show_retained, note="95 % interval", is_more_better=True),
    _pair(
        Column("params", "Parameters", lambda row: Cell(format_count(row.params), "", row.params)),
        Column("macs", "MACs", lambda row: Cell(format_count(row.macs), "", row.macs)),
    ),
    Column(
        "roof_share",
        "Share of roof",
        lambda row: Cell(
            _format_share(row.roof_share),
            format_ms(row.roof_ms),
            row.roof_share,
        ),
        note="lower bound",
        is_more_better=True,
    ),
    _pattern("l1", "L1", "{:.4f}"),
    _pair(
        _pattern("psnr_db", "PSNR", "{:.2f} dB", is_more_better=True),
        _pattern("ssim", "SSIM", "{:.4f}", is_more_better=True),
    ),
    _pattern("delta_e", "ΔE", "{:.2f}", note="CIEDE2000"),
    _pair(
        _pattern("colourfulness", "Colourfulness", "{:.1f}", is_more_better=True),
        _pattern("colourfulness_ratio", "of the truth's", "{:.2f}"),
    ),
    _pattern("agreement_l1", "L1 to best.pt", "{:.4f}"),
    _pair(_number("p95_ms", "p95", " ms"), _number("p99_ms", "p99", " ms")),
    Column("cv_pct", "CV", _show_cv),
    _number("load_ms", "Load", " ms"),
    _number("first_ms", "First call", " ms"),
    _pattern("peak_rss_mb", "Peak host memory", "{:.0f} MB"),
    _pattern("compute", "Computes in", "{}"),
    _pattern("provider", "Provider", "{}"),
    _pattern("threads", "Threads", "{}"),
    _pattern("batch", "Batch", "{}"),
    Column("height", "Pixels", lambda row: Cell(f"{row.height}x{row.width}", "", row.height)),
)
_COLUMNS = _extra(_ALL, "size_bytes", "p50_ms", "speedup", "l1_delta_pct", "retained_colour", "params", "roof_share")
_OTHER_COLUMNS = _extra(_ALL, "size_bytes", "p50_ms", "compute_ms", "images_per_s", "speedup", "roof_share")
