"""Figures as people read them: bytes, counts, numbers, percents."""

from __future__ import annotations


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
