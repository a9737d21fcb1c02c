"""Figures as people read them: bytes, counts, numbers, percents; and names as libraries read them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def format_bytes(count: int) -> str:
    """Bytes for people, in decimal units: "31.1 MB"."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{format_number(count / size)} {unit}"
    return f"{count} B"


def format_count(count: int | None) -> str:
    """A large number for people: "7.76 M"; a dash where it is unknown."""
    if not count:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return str(count)


def format_number(value: float | None, unit: str = "") -> str:
    """Three significant digits without an exponent; a dash for None."""
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:.{digits}f}{unit}"


def format_percent(value: float | None) -> str:
    """A signed change with two decimals, never "-0.00 %"; a dash for None."""
    return "-" if value is None else f"{round(value, 2) + 0.0:+.2f} %"


def format_interval(low: float, high: float, *, digits: int = 3) -> str:
    """Both ends with as many decimals: "0.912 to 0.934"."""
    return f"{low:.{digits}f} to {high:.{digits}f}"


def align_cells(lines: Sequence[Sequence[str]], *, to_left: bool = False) -> list[str]:
    """Lines of a table for a terminal, the header first; a line with fewer cells is a name and a remark across all.

    Args:
        to_left: whether all columns are aligned to the left, and not the names in the first one alone.
    """
    import pandas

    remarks = {number: line[-1] for number, line in enumerate(lines) if len(line) < len(lines[0])}
    table = pandas.DataFrame(
        [(line[0], *[""] * (len(lines[0]) - 1)) if number in remarks else line for number, line in enumerate(lines)]
    )
    for column in table:
        texts, width = table[column].str, table[column].str.len().max()
        table[column] = texts.ljust(width) if to_left or column == 0 else texts.rjust(width)
    whole = table.agg("  ".join, axis=1)
    return [(f"{name}  {remarks[n]}" if n in remarks else whole[n]).rstrip() for n, name in enumerate(table[0])]


def is_utf8(path: Path) -> bool:
    """Whether libraries in C++ can be told a path: they take UTF-8, and a file system takes any bytes.

    Nor can they where the locale is of another encoding than the names are, as C's is.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True
