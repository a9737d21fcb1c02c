"""The tables of report.html: which columns there are, what a cell says, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

from benchmarks.rows import Row, base_rows
from colorpress.core.text import format_bytes, format_count, format_number, format_percent
from export.runtimes import RUNTIMES

NOISY_MARK = "†"
_FOUR = "{:.4f}"


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
        key: what it is called in benchmark.csv, and what it is sorted by.
        text: of the cell of a finished row, and `small` of the fainter line in it.
        is_extra: shown only with all columns.
        is_more_better: sorted from the largest down first.
    """

    key: str
    title: str
    text: Callable[[Row], str]
    note: str = ""
    small: Callable[[Row], str] = lambda row: ""
    is_extra: bool = False
    is_more_better: bool = False

    def show(self, row: Row) -> Cell:
        """The cell of a finished row."""
        value = row.fair_size_bytes if self.key == "size_bytes" else getattr(row, self.key)
        return Cell(self.text(row), self.small(row), value)


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
    return _make_table(base, recommended, _SHOWN), _make_table(others, recommended, _SHOWN_OF_OTHERS, conditions=True)


def _make_table(
    rows: Sequence[Row], recommended: str | None, shown: Collection[str], *, conditions: bool = False
) -> Table:
    # The size stays, since failed rows have one too.
    used = [
        replace(column, is_extra=column.key not in shown)
        for column in _COLUMNS
        if column.key == "size_bytes" or any(row.is_ok and getattr(row, column.key) is not None for row in rows)
    ]
    used.sort(key=lambda column: column.is_extra)
    return Table(tuple(used), tuple(_make_line(row, recommended, used, conditions) for row in rows))


def _make_line(row: Row, recommended: str | None, columns: Sequence[Column], conditions: bool) -> Line:
    title = RUNTIMES[row.runtime].title if row.runtime in RUNTIMES else row.runtime
    note = f"{title} {row.precision}"
    if conditions:
        threads = f"{row.threads} {'thread' if row.threads == 1 else 'threads'}"
        note += f"; batch {row.batch}, {row.height}x{row.width}, {threads if row.device == 'cpu' else row.device}"
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


def format_ms(value: float | None) -> str:
    """Milliseconds, or microseconds where less than a tenth of one."""
    return format_number(value, " ms") if value is None or value >= 0.1 else format_number(1000 * value, " µs")


def _format_share(row: Row) -> str:
    """Two digits, but never an exponent."""
    share = row.roof_share
    if share is None:
        return "-"
    return f"{100 * share:.0f} %" if share >= 0.0995 else f"{100 * share:.1f} %"


def _mark(row: Row) -> str:
    return f" {NOISY_MARK}" if row.is_noisy else ""


def _speedup_range(row: Row) -> str:
    low, high = row.speedup_low, row.speedup_high
    return "" if low is None else f"{format_number(low)}-{format_number(high)}"


def _retained_range(row: Row) -> str:
    return "{:.3f} to {:.3f}".format(*row.retained_interval) if row.retained_interval else ""


def _fair_size(row: Row) -> str:
    return f"weights {format_bytes(row.fair_size_bytes)}" if row.fair_size_bytes < 0.99 * row.size_bytes else ""


def _roof_bound(row: Row) -> str:
    return format_ms(row.roof_ms)


def _number(key: str, unit: str = "") -> Callable[[Row], str]:
    return lambda row: format_number(getattr(row, key), unit)


def _pattern(key: str, pattern: str = "{}") -> Callable[[Row], str]:
    return lambda row: "-" if getattr(row, key) is None else pattern.format(getattr(row, key))


_SHOWN = ("size_bytes", "p50_ms", "speedup", "l1_delta_pct", "retained_colour", "params", "roof_share")
_SHOWN_OF_OTHERS = ("size_bytes", "p50_ms", "compute_ms", "images_per_s", "speedup", "roof_share")
_COLUMNS = (
    Column("size_bytes", "Size", lambda row: format_bytes(row.size_bytes), "", _fair_size),
    Column("p50_ms", "p50", lambda row: format_number(row.p50_ms, " ms") + _mark(row), "p90", _number("p90_ms", " ms")),
    Column("compute_ms", "GPU alone", _number("compute_ms", " ms"), "without transfer"),
    Column("images_per_s", "Pictures", _number("images_per_s"), "per s", is_more_better=True),
    Column("speedup", "Speed-up", _number("speedup", "x"), "95 % interval", _speedup_range, is_more_better=True),
    Column("l1_delta_pct", "ΔL1", lambda row: format_percent(row.l1_delta_pct)),
    Column(
        "retained_colour",
        "Colour kept G",
        _pattern("retained_colour", "{:.3f}"),
        "95 % interval",
        _retained_range,
        is_more_better=True,
    ),
    Column("params", "Parameters", lambda row: format_count(row.params), "MACs", lambda row: format_count(row.macs)),
    Column("roof_share", "Share of roof", _format_share, "lower bound", _roof_bound, is_more_better=True),
    Column("l1", "L1", _pattern("l1", _FOUR)),
    Column(
        "psnr_db", "PSNR", _pattern("psnr_db", "{:.2f} dB"), "SSIM", _pattern("ssim", "{:.4f}"), is_more_better=True
    ),
    Column("delta_e", "ΔE", _pattern("delta_e", "{:.2f}"), "CIEDE2000"),
    Column(
        "colourfulness",
        "Colourfulness",
        _pattern("colourfulness", "{:.1f}"),
        "of the truth's",
        _pattern("colourfulness_ratio", "{:.2f}"),
        is_more_better=True,
    ),
    Column("agreement_l1", "L1 to best.pt", _pattern("agreement_l1", _FOUR)),
    Column("p95_ms", "p95", _number("p95_ms", " ms"), "p99", _number("p99_ms", " ms")),
    Column("cv_pct", "CV", lambda row: _pattern("cv_pct", "{:.1f} %")(row) + _mark(row)),
    Column("load_ms", "Load", _number("load_ms", " ms")),
    Column("first_ms", "First call", _number("first_ms", " ms")),
    Column("peak_rss_mb", "Peak host memory", _pattern("peak_rss_mb", "{:.0f} MB")),
    Column("compute", "Computes in", _pattern("compute")),
    Column("provider", "Provider", _pattern("provider")),
    Column("threads", "Threads", _pattern("threads")),
    Column("batch", "Batch", _pattern("batch")),
    Column("height", "Pixels", lambda row: f"{row.height}x{row.width}"),
)
