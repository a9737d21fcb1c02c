"""The tables of report.html: which columns there are, what a cell says, and what it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from benchmarks.report.main_rows import MainRow
from benchmarks.rows import Row, base_rows, one_per_file
from benchmarks.verdict import SAME_SIZE
from colorpress.core.text import format_bytes, format_count, format_interval, format_number, format_percent
from compress.measures import CONTENT, FIDELITY, RETAINED, Measure, Strength
from export.runtimes import RUNTIMES

NOISY_MARK = "†"
_Text = Callable[[Row], str]


class Cell(NamedTuple):
    """What a cell shows, a fainter line below it, and the number or text that its column is sorted by.

    Attributes:
        bar_pct: the length of a bar in it, in percent of the longest one of its column; None: no bar.
    """

    text: str
    note: str = ""
    value: float | str | None = None
    bar_pct: float | None = None


def _figure(key: str, show: Callable[[Any], str] = str) -> _Text:
    """A figure of a row as `show` writes it; a dash where there is none."""
    return lambda row: "-" if getattr(row, key) is None else show(getattr(row, key))


def _ms(value: float) -> str:
    return format_number(value, " ms")


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
    text: _Text
    note: str = ""
    small: _Text = lambda row: ""
    is_extra: bool = False
    is_more_better: bool = False

    def show(self, row: Row) -> Cell:
        """The cell of a finished row."""
        value = row.fair_size_bytes if self.key == "size_bytes" else getattr(row, self.key)
        is_marked = row.is_noisy and self.key in ("p50_ms", "cv_pct")
        note = "" if value is None else self.small(row)
        return Cell(f"{self.text(row)} {NOISY_MARK}" if is_marked else self.text(row), note, value)


class Line(NamedTuple):
    """A row of the table.

    Attributes:
        name, note: the model, and how it was run.
        kind: "chosen", "peer", "control" or "".
        cells: one for each column; of a failed row only the first, its size.
        failure: how it failed; empty when it did not.
    """

    name: str
    note: str
    kind: str
    cells: Sequence[Cell]
    failure: str


class Heading(Protocol):
    """What a table says of a column, see `Column`."""

    @property
    def key(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def is_extra(self) -> bool: ...
    @property
    def is_more_better(self) -> bool: ...


class Table(NamedTuple):
    """Columns, the extra ones last, how many are not extra, and lines."""

    columns: Sequence[Heading]
    shown: int
    lines: Sequence[Line]


def make_tables(rows: Sequence[Row], recommended: str | None, measure: Measure | None) -> tuple[Table, Table]:
    """The rows measured as the first one is, controls that see no picture last, and the rows of all other conditions.

    Columns that no row has a figure for are left out.

    Args:
        measure: the one that decides is marked; None: no colours were measured.
    """
    base = sorted(base_rows(rows), key=lambda row: bool(row.control))
    others = [row for row in rows if row not in base]
    return (
        _make_table(base, recommended, _SHOWN, measure),
        _make_table(others, recommended, _SHOWN_OF_OTHERS, measure, conditions=True),
    )


def _make_table(
    rows: Sequence[Row],
    recommended: str | None,
    shown: Collection[str],
    measure: Measure | None,
    *,
    columns: Sequence[Column] | None = None,
    conditions: bool = False,
) -> Table:
    # The size stays, since failed rows have one too.
    used = [
        replace(
            column,
            is_extra=column.key not in shown,
            note=_mark_deciding(column.note) if measure and column.key == measure.name else column.note,
        )
        for column in columns or _COLUMNS
        if column.key == "size_bytes" or any(row.is_ok and getattr(row, column.key) is not None for row in rows)
    ]
    used.sort(key=lambda column: column.is_extra)
    lines = [_make_line(row, recommended, used, conditions) for row in rows]
    return Table(used, sum(not column.is_extra for column in used), lines)


def _mark_deciding(note: str) -> str:
    return f"decides; {note}" if note else "decides"


def _make_line(row: Row, recommended: str | None, columns: Sequence[Column], conditions: bool) -> Line:
    note = _name_runtime(row)
    if conditions:
        threads = f"{row.threads} {'thread' if row.threads == 1 else 'threads'}"
        note += f"; batch {row.batch}, {row.height}x{row.width}, {threads if row.device == 'cpu' else row.device}"
    elif row.device != "cpu":
        note += f", {row.device}"
    note = "sees no picture" if row.control else note
    failure = "" if row.is_ok else f"{row.status}: {row.error or 'no reason given'}"
    cells = [column.show(row) for column in columns[: 1 if failure else None]]
    return Line(row.model, note, _kind_of(row, recommended), cells, failure)


def _name_runtime(row: Row) -> str:
    title = RUNTIMES[row.runtime].title if row.runtime in RUNTIMES else row.runtime
    return f"{title} {row.precision}".strip()


def _kind_of(row: Row, recommended: str | None) -> str:
    return "chosen" if row.model == recommended else "control" if row.control else "peer" if row.peer else ""


def make_main_table(main: Sequence[MainRow], recommended: str | None, measure: Measure | None) -> Table:
    """The rows that matter, in few columns: against best.pt, and with why they matter below their names.

    What is kept is said of the photographs that did not choose, where there are such.
    """
    columns = [
        Column("size_bytes", "Size", _figure("fair_size_bytes", format_bytes), "", _times_smaller(main)),
        Column("speedup", "Speed", _figure("speedup", lambda value: format_number(value, "x")), "latency p50",
               _figure("p50_ms", _ms), is_more_better=True),
    ]  # fmt: skip
    if measure:
        title = f"{measure.title[:1].upper()}{measure.title[1:]}"
        columns.append(Column(measure.name, title, lambda row: _kept_pct(row, measure), "kept", is_more_better=True))
    lines = [
        Line(row.model, role, _kind_of(row, recommended), [column.show(row) for column in columns], "")
        for role, row in main
    ]
    return Table(columns, len(columns), lines)


def _times_smaller(main: Sequence[MainRow]) -> _Text:
    """Of what is smaller; a control is next to nothing, which tells nobody anything."""

    def show(row: Row) -> str:
        times = row.times_smaller(main[0].row)
        return "" if row.control or times <= 1.0 + SAME_SIZE else f"{format_number(times)}x smaller"

    return show


def _kept_pct(row: Row, measure: Measure) -> str:
    kept, _ = row.reported(measure)
    return "-" if kept is None else f"{100 * kept:.0f} %"


def make_also_table(rows: Sequence[Row], folder: str, strength: Strength | None) -> Table:
    """What each file keeps on the photographs of a folder of --also, controls last.

    Args:
        strength: of best.pt there; the measure that decides by it is marked.
    """
    measured_there: list[Row] = []
    for row in one_per_file(base_rows(rows)):
        if row.is_ok and folder in row.also:
            # As if the benchmark had been on the photographs of that folder.
            figures: dict[str, Any] = {name: value for name, value in row.also[folder].items() if name != "photos"}
            measured_there.append(replace(row, **figures))
    measured_there.sort(key=lambda row: bool(row.control))
    keys = {column.key for column in _COLUMNS_OF_FOLDERS}
    measure = strength.measure if strength else None
    return _make_table(measured_there, None, keys, measure, columns=_COLUMNS_OF_FOLDERS)


def format_ms(value: float) -> str:
    """Milliseconds, or microseconds where less than a tenth of one."""
    return _ms(value) if value >= 0.1 else format_number(1000 * value, " µs")


def _share(value: float) -> str:
    """Two digits, but never an exponent."""
    return f"{100 * value:.0f} %" if value >= 0.0995 else f"{100 * value:.1f} %"


def _speedup_range(row: Row) -> str:
    low, high = row.speedup_low, row.speedup_high
    return "" if low is None else f"{format_number(low)}-{format_number(high)}"


def _share_column(measure: Measure, title: str, *, alone: bool = False) -> Column:
    """What is kept by a measure; not alone, with its interval."""

    def show_interval(row: Row) -> str:
        interval = row.interval(measure)
        return format_interval(*interval) if interval else ""

    text = _figure(measure.name, "{:.3f}".format)
    column = Column(measure.name, f"{title} {measure.symbol}", text, is_more_better=True)
    return column if alone else replace(column, note="95 % interval", small=show_interval)


def _fair_size(row: Row) -> str:
    return f"weights {format_bytes(row.fair_size_bytes)}" if row.fair_size_bytes < 0.99 * row.size_bytes else ""


_SHOWN = (
    *("size_bytes", "p50_ms", "speedup", "content_colour", "fidelity", "retained_colour", "l1_delta_pct"),
    "chroma_to_best",
)
_SHOWN_OF_OTHERS = ("size_bytes", "p50_ms", "compute_ms", "images_per_s", "speedup", "roof_share")
_CHROMA = Column("chroma_to_best", "Chroma", _figure("chroma_to_best", "{:.2f} of best.pt's".format),
                 "", _figure("chroma_to_truth", "{:.2f} of the truth's".format), is_more_better=True)  # fmt: skip
_L1 = Column("l1", "L1", _figure("l1", "{:.4f}".format))
_L1_DELTA = Column("l1_delta_pct", "ΔL1", _figure("l1_delta_pct", format_percent))
_EDGE_L1 = Column("edge_l1", "L1 near edges", _figure("edge_l1", "{:.4f}".format), "of colour")
# Key, title, text; then what stands below the title and below the text.
_COLUMNS = (
    Column("size_bytes", "Size", lambda row: format_bytes(row.size_bytes) if row.size_bytes else "-", "", _fair_size),
    Column("p50_ms", "Latency p50", _figure("p50_ms", _ms), "p90", _figure("p90_ms", _ms)),
    Column("compute_ms", "GPU alone", _figure("compute_ms", _ms), "without transfer"),
    Column("images_per_s", "Throughput", _figure("images_per_s", format_number), "pictures per s", is_more_better=True),
    Column("speedup", "Speed-up", _figure("speedup", lambda value: format_number(value, "x")),
           "95 % interval", _speedup_range, is_more_better=True),
    _share_column(CONTENT, "Content"),
    _share_column(FIDELITY, "Fidelity"),
    _share_column(RETAINED, "Retained"),
    _L1_DELTA,
    _CHROMA,
    Column("params", "Parameters", _figure("params", format_count), "MACs", _figure("macs", format_count)),
    Column("roof_share", "Share of roof", _figure("roof_share", _share),
           "lower bound", _figure("roof_ms", format_ms), is_more_better=True),
    Column("confirming_kept", "Kept, confirmed", _figure("confirming_kept", "{:.3f}".format),
           "when chosen", _figure("choosing_kept", "{:.3f}".format), is_more_better=True),
    _L1,
    _EDGE_L1,
    Column("psnr_db", "PSNR", _figure("psnr_db", "{:.2f} dB".format),
           "SSIM", _figure("ssim", "{:.4f}".format), is_more_better=True),
    Column("delta_e", "ΔE", _figure("delta_e", "{:.2f}".format), "CIEDE2000"),
    Column("colourfulness", "Colourfulness", _figure("colourfulness", "{:.1f}".format),
           "of the truth's", _figure("colourfulness_ratio", "{:.2f}".format), is_more_better=True),
    Column("agreement_l1", "L1 to best.pt", _figure("agreement_l1", "{:.4f}".format)),
    Column("p95_ms", "p95", _figure("p95_ms", _ms), "p99", _figure("p99_ms", _ms)),
    Column("cv_pct", "CV", _figure("cv_pct", "{:.1f} %".format)),
    Column("load_ms", "Load", _figure("load_ms", _ms)),
    Column("first_ms", "First call", _figure("first_ms", _ms)),
    Column("peak_rss_mb", "Peak host memory", _figure("peak_rss_mb", "{:.0f} MB".format)),
    Column("compute", "Computes in", _figure("compute")),
    Column("provider", "Provider", _figure("provider")),
    Column("threads", "Threads", _figure("threads")),
    Column("batch", "Batch", _figure("batch")),
    Column("height", "Pixels", lambda row: f"{row.height}x{row.width}"),
)  # fmt: skip
_COLUMNS_OF_FOLDERS = (
    *(_share_column(CONTENT, "Content", alone=True), _share_column(FIDELITY, "Fidelity", alone=True)),
    *(_share_column(RETAINED, "Retained", alone=True), _L1, _L1_DELTA, _EDGE_L1, _CHROMA),
)
