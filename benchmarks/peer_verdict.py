"""What other tools' files are worth beside ours, a sentence each."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.rows import Row, base_rows, own_rows
from benchmarks.verdict import SAME_SPEED, merit
from colorpress.core.text import format_bytes, format_number
from compress.measures import Measure


def judge_peers(rows: Sequence[Row], recommended: str | None, measure: Measure) -> list[str]:
    """A sentence on each peer of the base condition: beside what of ours beats it, else beside our best one.

    Ours are tried in the order of the recommended one first, then by merit.

    Args:
        rows: best.pt first.
        recommended: the row that the verdict recommends.
        measure: of colour.
    """
    ours = [row for row in own_rows(rows) if _is_complete(row, measure)]
    ours.sort(key=lambda row: (row.model != recommended, -merit(row, rows[0])))
    return [_judge_peer(row, ours, measure) for row in base_rows(rows) if row.peer]


def _is_complete(row: Row, measure: Measure) -> bool:
    return bool(row.is_ok and row.speedup and row.kept(measure) is not None)


def _judge_peer(peer: Row, ours: Sequence[Row], measure: Measure) -> str:
    name = peer.model
    if not _is_complete(peer, measure):
        why = "its colours were not measured" if peer.is_ok else f"it did not finish ({peer.status})"
        return f"{name} cannot be compared: {why}."
    if not ours:
        return f"{name} has nothing of ours to be compared with."
    if winner := next((row for row in ours if dominates(row, peer, measure)), None):
        # All three axes are wins or a tie of ours, said from our side.
        wins, ties, _ = _compare(winner, peer, measure)
        return f"{winner.model} beats {name} in size, speed and colour: it {_join(wins + ties)}."
    wins, ties, losses = _compare(peer, ours[0], measure)
    if not wins:
        return f"{name} wins nothing beside {ours[0].model}: it {_join(ties + losses)}."
    sentence = f"{name} is not beaten in size, speed and colour at once; beside {ours[0].model} it {_join(wins)}"
    return f"{sentence}, but {_join(losses)}." if losses else f"{sentence}."


def _figures(row: Row, measure: Measure) -> tuple[int, float, float]:
    """Size, speed and colour of a complete row."""
    colour = row.kept(measure)
    assert row.speedup and colour is not None
    return row.fair_size_bytes, row.speedup, colour


def dominates(row: Row, other: Row, measure: Measure) -> bool:
    """Whether `row` is smaller and faster than `other` and keeps at least as much colour; both are complete."""
    (size, speed, colour), (other_size, other_speed, other_colour) = _figures(row, measure), _figures(other, measure)
    return size < other_size and speed > other_speed and colour >= other_colour


def _compare(row: Row, other: Row, measure: Measure) -> tuple[list[str], list[str], list[str]]:
    """What `row` wins, ties and loses against `other` in size, speed and colour, as the rest of sentences."""
    (size, speed, colour), (other_size, other_speed, other_colour) = _figures(row, measure), _figures(other, measure)
    times_smaller, times_faster = other_size / size, speed / other_speed
    in_bytes = f"({format_bytes(size)}, not {format_bytes(other_size)})"
    in_ms = f"({format_number(row.p50_ms)} ms, not {format_number(other.p50_ms)} ms)"
    overlap = "" if _are_apart(row, other, measure) else "; the intervals overlap"
    in_colour = f"({measure.show(colour)}, not {other_colour:.3f}{overlap})"
    # What is gained, and what is said of a win, a tie and a loss.
    axes = (
        (
            times_smaller - 1.0,
            f"is {format_number(times_smaller)} times smaller {in_bytes}",
            f"is as large ({format_bytes(size)})",
            f"is {format_number(1.0 / times_smaller)} times larger {in_bytes}",
        ),
        (
            0.0 if abs(math.log(times_faster)) <= SAME_SPEED else times_faster - 1.0,
            f"is {format_number(times_faster)} times as fast {in_ms}",
            f"is as fast {in_ms}",
            f"is {format_number(1.0 / times_faster)} times as slow {in_ms}",
        ),
        (
            colour - other_colour,
            f"keeps more colour {in_colour}",
            f"keeps as much colour ({measure.show(colour)})",
            f"keeps less colour {in_colour}",
        ),
    )
    said: tuple[list[str], list[str], list[str]] = ([], [], [])
    for gain, *words in axes:
        place = 0 if gain > 0 else 1 if gain == 0 else 2
        said[place].append(words[place])
    return said


def _are_apart(row: Row, other: Row, measure: Measure) -> bool:
    """Whether the intervals of what is kept do not overlap; one that is not there says nothing."""
    own, its = row.interval(measure), other.interval(measure)
    return own is None or its is None or own[0] > its[1] or own[1] < its[0]


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
