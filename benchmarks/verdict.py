"""Which variant to use, in one sentence that the figures bear out, and who meets the goals and budgets of a run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from benchmarks.rows import Benchmark, Row, base_rows, find_control, own_rows
from colorpress.core.config import BudgetConfig, Config, GoalConfig, option_name
from colorpress.core.text import format_bytes, format_number
from compress.budgets import Figures, Limit, read_limits
from compress.measures import CONTENT, FIDELITY, MEASURES, Measure, Strength
from compress.precisions import origin_of
from export.controls import TABLE
from export.timing import Ratio

_FEW_PHOTOS = 50
# Of G that a lightness table keeps.
_MUCH = 0.5
_SAME_SIZE = _SAME_SPEED = 0.02


@dataclass(frozen=True)
class Verdict:
    """The judgement of a benchmark.

    Attributes:
        recommended: a row's name; None when no variant is worth it.
        sentence: the judgement.
        notes: what else limits it than how strong best.pt is, a sentence each.
    """

    recommended: str | None
    sentence: str
    notes: tuple[str, ...]


def judge_rows(rows: Sequence[Row], aa_ratios: Mapping[str, Ratio], strength: Strength | None) -> Verdict:
    """Choose the variant with the largest product of size and speed ratio among those that keep the colours.

    The first row is best.pt and the yardstick; rows of another condition than its are not compared with it, and what
    another tool made is never chosen, nor a control, nor best.pt itself in another runtime, since nothing was
    compressed. A variant qualifies when it keeps enough by the measure that decides, `strength.measure` (see
    `Measure.enough`), when it is slower neither than best.pt nor than its own float32 parent, and when it is smaller or
    faster beyond the noise. One half of the photographs chooses, by what is kept elsewhere with odds of 4 to 1, and
    what is said of the chosen one is what it keeps on the other half.

    Args:
        aa_ratios: best.pt to itself, by device and condition; none where it was not timed twice.
        strength: of best.pt; None where no colours were measured.
    """
    if not rows or not rows[0].is_ok:
        status = f": {rows[0].status}" if rows else ""
        return Verdict(None, f"There is no verdict, since best.pt itself was not measured{status}.", ())
    best, others = rows[0], own_rows(rows)
    ratio = aa_ratios.get(best.device)
    noise = ratio.noise if ratio else 0.0
    measure = measure_of(strength)
    notes = _note_limits(rows, noise, strength)
    reasons = {row.model: why_rejected(row, best, others, measure, noise) for row in others}
    passed = [row for row in others if not reasons[row.model]]
    if passed:
        chosen = max(passed, key=lambda row: merit(row, best))
        sentence = _recommend(chosen, best, strength)
        return Verdict(chosen.model, sentence, (*notes, *_note_runtime(rows, chosen)))
    return Verdict(None, _recommend_nothing(best, others, reasons, strength), notes)


def judge_benchmark(measured: Benchmark) -> Verdict:
    """`judge_rows` of what benchmark.json says."""
    return judge_rows(measured.rows, measured.aa_ratios, measured.strength)


def measure_of(strength: Strength | None) -> Measure:
    """What decides, also where nothing could be measured."""
    return strength.measure if strength else FIDELITY


def _recommend_nothing(best: Row, others: Sequence[Row], reasons: Mapping[str, str], strength: Strength | None) -> str:
    measure = measure_of(strength)
    if not others:
        return "There is nothing to recommend: only best.pt was measured."
    if not best.photos:
        return "Nothing can be recommended: colours were not measured, only time."
    if best.kept(measure) is None:
        no_colour = strength is None or math.isnan(strength.below_grey_pct)
        why = "these photographs hold none" if no_colour else "best.pt answers grey"
        return f"Nothing can be recommended: {why}, so there is no colour to keep."
    finished = {row.model: row.kept(measure) for row in others if row.is_ok}
    kept = {name: figure for name, figure in finished.items() if figure is not None}
    if not kept:
        return "Nothing can be recommended: no variant finished."
    closest = max(kept, key=kept.__getitem__)
    return f"No variant is recommended: the closest to best.pt, {closest}, {reasons[closest]}."


def merit(row: Row, best: Row) -> float:
    """How much a finished row gains over best.pt: the logarithm of its size ratio times its speed ratio."""
    assert row.speedup
    return math.log(row.times_smaller(best)) + math.log(row.speedup)


def why_rejected(row: Row, best: Row, others: Sequence[Row], measure: Measure, noise: float = 0.0) -> str:
    """Why a variant does not qualify, as the rest of a sentence about it; empty when nothing speaks against it."""
    if not row.is_ok:
        return f"did not finish ({row.status})"
    kept, odds = row.kept(measure), ""
    if row.choosing_kept is not None:
        kept, odds = row.choosing_likely, " with odds of 4 to 1"
    if row.l1_delta_pct is None or kept is None or not row.speedup:
        return "could not be compared with best.pt"
    if kept < measure.enough:
        return f"keeps {kept:.2f} of {_noun(measure)}{odds} (at least {measure.enough:g} passes)"
    parent = _find_parent(row, others)
    # Speedups are paired by round, so their ratio is too.
    if parent and parent.speedup and parent.speedup / row.speedup > 1.0 + _SAME_SPEED:
        slower = format_number(parent.speedup / row.speedup)
        since = f", since {row.caution}" if row.caution else ""
        return f"is {slower} times as slow as its float32 parent {parent.model}{since}"
    if row.speedup < 1.0 - noise:
        return f"is slower than best.pt ({format_number(row.speedup)} of its speed)"
    if row.times_smaller(best) <= 1.0 + _SAME_SIZE and row.speedup <= 1.0 + max(_SAME_SPEED, 3.0 * noise):
        return "is neither smaller nor faster beyond what noise explains"
    return ""


def _noun(measure: Measure) -> str:
    return f"best.pt's own colours ({measure.symbol})" if measure is FIDELITY else f"the {measure.title}"


def parent_name(name: str) -> str | None:
    """The float32 variant that another was made from: "pruned-int8" is "pruned", on the same device."""
    stem, separator, device = name.partition(" @ ")
    origin = origin_of(stem)
    return None if origin == stem else f"{origin}{separator}{device}"


def _find_parent(row: Row, others: Sequence[Row]) -> Row | None:
    """The parent in the same runtime; where it was not measured in that one, in the runtime it is fastest in."""
    same = next((other for other in others if other.model == parent_name(row.model)), None)
    return same or _fastest(other for other in others if other.variant == parent_name(row.variant))


def _fastest(rows: Iterable[Row]) -> Row | None:
    return max((row for row in rows if row.speedup), key=lambda row: row.speedup or 0.0, default=None)


def _recommend(row: Row, best: Row, strength: Strength | None) -> str:
    measure = measure_of(strength)
    own_size = format_bytes(row.fair_size_bytes)
    size = f"as large as best.pt ({own_size})"
    if row.times_smaller(best) > 1.0 + _SAME_SIZE:
        times = format_number(row.times_smaller(best))
        size = f"{times} times smaller than best.pt ({own_size} instead of {format_bytes(best.fair_size_bytes)})"
    in_ms = f"({format_number(row.p50_ms)} ms instead of {format_number(best.p50_ms)} ms)"
    cost = f"{size} and {format_number(row.speedup)} times as fast {in_ms}"
    sentence = (
        f"{row.model} is recommended: {cost}, with {_describe_change(row, measure)}{_describe_kept(row, measure)}."
    )
    weakness = strength.weakness if strength else None
    return f"{sentence} {weakness.advice}" if weakness and weakness.advice else sentence


def _describe_change(row: Row, measure: Measure) -> str:
    """The change of L1, where that is a condition."""
    if measure is not CONTENT or row.l1_delta_pct is None:
        return ""
    delta = row.l1_delta_pct
    change = f"{abs(delta):.2f} % {'more' if delta > 0 else 'less'} L1" if abs(delta) >= 0.005 else "the same L1"
    return f"{change} and "


def _describe_kept(row: Row, measure: Measure) -> str:
    """What is kept, with its interval, and on which photographs."""
    verb = "reproduced" if measure is FIDELITY else "kept"
    if row.confirming_kept is None:
        kept, ends = row.kept(measure), row.interval(measure)
        where = "; the same photographs chose and scored it"
    else:
        low, high = row.confirming_low, row.confirming_high
        kept, ends = row.confirming_kept, None if low is None or high is None else (low, high)
        confirming = row.photos // 2
        where = (
            f" on {confirming} photographs that did not choose it ({row.choosing_kept:.2f} on the "
            f"{row.photos - confirming} that did)"
        )
    interval = f" (95 % interval {ends[0]:.2f} to {ends[1]:.2f})" if ends and ends[1] - ends[0] >= 0.005 else ""
    return f"{kept:.2f} of {_noun(measure)} {verb}{interval}{where}"


def _note_runtime(rows: Sequence[Row], chosen: Row) -> tuple[str, ...]:
    """How much of the speed-up another runtime gives best.pt's own network, compressed in no way."""
    whole = {rows[0].variant, rows[0].variant.removesuffix(".pt")}
    fastest = _fastest(row for row in base_rows(rows) if row.variant in whole and not row.peer and row.is_ok)
    if chosen.variant in whole or fastest is None or (fastest.speedup or 1.0) < 1.5:
        return ()
    return (
        f"Of the {format_number(chosen.speedup)} times, {format_number(fastest.speedup)} come from the runtime: "
        f"best.pt's own network takes {format_number(fastest.p50_ms)} ms as {fastest.model}.",
    )


def _note_limits(rows: Sequence[Row], noise: float, strength: Strength | None) -> tuple[str, ...]:
    notes = []
    measure, photos = measure_of(strength), rows[0].photos
    if 0 < photos < _FEW_PHOTOS:
        noun = "photograph shows" if photos == 1 else "photographs show"
        notes.append(f"{photos} {noun} the machinery, not colour quality: test on {_FEW_PHOTOS} or more to judge it.")
    table = find_control(rows, TABLE)
    if table and (table.retained_colour or 0.0) >= _MUCH:
        notes.append(
            f"A lightness table, which sees no picture, keeps {table.retained_colour:.2f} of G here: G says little."
        )
    kept = [row for row in own_rows(rows) if (row.kept(measure) or 0.0) >= measure.enough]
    intervals = {row.model: row.interval(measure) for row in kept}
    if below := [model for model, ends in intervals.items() if ends and ends[0] < measure.enough]:
        notes.append(f"The interval of {measure.title} reaches below {measure.enough:g} for {', '.join(below)}.")
    if noise > 0.03:
        twice = f"best.pt timed twice differs by {100 * noise:.0f} %"
        notes.append(f"The machine is noisy: {twice}, so differences below {300 * noise:.0f} % mean nothing.")
    if failed := [f"{row.model} ({row.status})" for row in rows if not row.is_ok]:
        notes.append(f"Not finished: {', '.join(failed)}.")
    return tuple(notes)


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
    in_colour = f"({measure.symbol} {colour:.3f}, not {other_colour:.3f}{overlap})"
    # What is gained, and what is said of a win, a tie and a loss.
    axes = (
        (
            times_smaller - 1.0,
            f"is {format_number(times_smaller)} times smaller {in_bytes}",
            f"is as large ({format_bytes(size)})",
            f"is {format_number(1.0 / times_smaller)} times larger {in_bytes}",
        ),
        (
            0.0 if abs(math.log(times_faster)) <= _SAME_SPEED else times_faster - 1.0,
            f"is {format_number(times_faster)} times as fast {in_ms}",
            f"is as fast {in_ms}",
            f"is {format_number(1.0 / times_faster)} times as slow {in_ms}",
        ),
        (
            colour - other_colour,
            f"keeps more colour {in_colour}",
            f"keeps as much colour ({measure.symbol} {colour:.3f})",
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


@dataclass(frozen=True)
class BudgetLine:
    """One goal or budget.

    Attributes:
        option: as it was given, such as "target-size 310KB".
        met: by the recommended variant; None where nothing is recommended, or where it has no such figure.
        sentence: the figure, and who meets the budget where the recommended variant does not.
    """

    option: str
    met: bool | None
    sentence: str


def judge_budgets(options: Mapping[str, Any], rows: Sequence[Row], recommended: str | None) -> list[BudgetLine]:
    """A line for each goal and budget among the options of a run; none where none was given.

    Args:
        options: by name as in TOML, such as {"target-size": "310KB"}; other options may be among them.
        rows: best.pt first; what the budgets are shares of.
        recommended: the name of a row.
    Raises:
        ConfigError: a value is outside its range.
    """
    goal, budget = GoalConfig(**_pick(GoalConfig, options)), BudgetConfig(**_pick(BudgetConfig, options))
    if not rows:
        return []
    ours = [row for row in own_rows(rows) if row.is_ok and row.speedup]
    figures = {row.model: _figures_of(row) for row in sorted(ours, key=lambda row: -merit(row, rows[0]))}
    limits = {limit.name: limit for limit in read_limits(budget, goal, whole=_figures_of(rows[0]))}
    lines = []
    for name, value in {**vars(goal), **vars(budget)}.items():
        if value is not None:
            # A share of a figure that best.pt does not have is no limit.
            known = name in limits
            met, sentence = _judge(limits[name], recommended, figures) if known else (None, "best.pt has no figure.")
            lines.append(BudgetLine(f"{option_name(name)} {options[option_name(name)]}", met, sentence))
    return lines


def _pick(config: type[Config], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of one config by field name."""
    names = {each.name: option_name(each.name) for each in fields(config)}
    return {name: options[written] for name, written in names.items() if written in options}


def _figures_of(row: Row) -> Figures:
    return {
        "params": row.params or None,
        "macs": row.macs or None,
        "size_bytes": row.size_bytes,
        "latency_ms": None if row.p50_ms is None else row.p50_ms / row.batch,
        **{name: row.kept(measure) for name, measure in MEASURES.items()},
        "l1_delta_pct": row.l1_delta_pct,
    }


def _judge(limit: Limit, recommended: str | None, figures: Mapping[str, Figures]) -> tuple[bool | None, str]:
    """Whether a limit is met, and the sentence about it; `figures` by the name of a row, best first."""

    def describe(model: str) -> str:
        value = figures[model][limit.figure]
        share = f", {100 * value / limit.whole:.3g} % of best.pt's" if limit.whole else ""
        return f"{limit.show(value)}{share}"

    met = None
    sentence = "Nothing is recommended"
    if recommended is not None and recommended in figures:
        met = limit.is_met(figures[recommended])
        sentence = f"{recommended} has no such figure" if met is None else f"{recommended}: {describe(recommended)}"
    if not met:
        other = next((model for model, known in figures.items() if limit.is_met(known)), None)
        sentence += f"; {other} meets it: {describe(other)}" if other else "; no variant meets it"
    return met, f"{sentence}."
