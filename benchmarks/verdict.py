"""Which variant to use, in one sentence that the figures bear out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.rows import NOT_MADE, Benchmark, Row, base_rows, find_control, own_rows
from colorpress.core.text import format_bytes, format_interval, format_number
from compress.measures import CONFIDENTLY, CONTENT, FIDELITY, Measure, Strength
from compress.precisions import origin_of
from export.controls import TABLE
from export.timing import Ratio

_FEW_PHOTOS = 50
# Of G that a lightness table keeps.
_MUCH = 0.5
SAME_SIZE = SAME_SPEED = 0.02


@dataclass(frozen=True)
class Verdict:
    """The judgement of a benchmark.

    Attributes:
        recommended: a row's name; None when no variant is worth it.
        sentence: the judgement.
        notes: what else limits it than how strong best.pt is, a sentence each.
        closest: where none is recommended, the row that keeps most; None where nothing can be compared.
        advice: where none is recommended, what to do about it, a sentence.
    """

    recommended: str | None
    sentence: str
    notes: tuple[str, ...]
    closest: str | None = None
    advice: str = ""


def judge_rows(rows: Sequence[Row], aa_ratios: Mapping[str, Ratio], strength: Strength | None) -> Verdict:
    """Choose the variant with the largest product of size and speed ratio among those that keep the colours.

    The first row is best.pt and the yardstick; rows of another condition than its are not compared with it, and what
    another tool made is never chosen, nor a control, nor the checkpoint itself in another runtime, since nothing was
    made of it. A variant qualifies when it keeps enough by the measure that decides, `strength.measure` (see
    `Measure.enough`), when it is slower neither than best.pt nor than its own float32 parent, and when it is smaller or
    faster, all beyond the noise. One half of the photographs chooses, by what is kept elsewhere with 80 % confidence,
    and what is said of the chosen one is what it keeps on the other half.

    Args:
        aa_ratios: best.pt to itself, by device and condition; none where it was not timed twice.
        strength: of best.pt; None where no colours were measured.
    """
    if not rows or not rows[0].is_ok:
        status = f": {rows[0].status}" if rows else ""
        sentence = f"There is no verdict, since best.pt itself was not measured{status}."
        return Verdict(None, sentence, (), advice="See what went wrong in benchmark.csv, and measure again.")
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
    return _recommend_nothing(best, others, reasons, strength, notes)


def judge_benchmark(measured: Benchmark) -> Verdict:
    """`judge_rows` of what benchmark.json says."""
    return judge_rows(measured.rows, measured.aa_ratios, measured.strength)


def measure_of(strength: Strength | None) -> Measure:
    """What decides, also where nothing could be measured."""
    return strength.measure if strength else FIDELITY


def _recommend_nothing(
    best: Row,
    others: Sequence[Row],
    reasons: Mapping[str, str],
    strength: Strength | None,
    notes: tuple[str, ...],
) -> Verdict:
    def nothing(why: str, advice: str) -> Verdict:
        return Verdict(None, f"Nothing can be recommended: {why}.", notes, advice=advice)

    measure = measure_of(strength)
    if not others:
        return nothing("only best.pt was measured", "Make something smaller of it first: prune, quantize or distil it.")
    if not best.photos:
        return nothing("colours were not measured, only time", "Measure them too: --eval-photos above 0.")
    if best.kept(measure) is None:
        if strength is None or math.isnan(strength.below_grey_pct):
            return nothing("these photographs hold none, so there is no colour to keep", "Give colour photographs.")
        why = "best.pt answers grey, so there is no colour to keep"
        return nothing(why, "Train it on more photographs, or for longer, first.")
    finished = {row.model: row.kept(measure) for row in others if row.is_ok}
    kept = {name: figure for name, figure in finished.items() if figure is not None}
    if not kept:
        return nothing("no variant finished", "See what went wrong in benchmark.csv, and measure again.")
    closest = max(kept, key=kept.__getitem__)
    sentence = f"No variant is recommended: the closest to best.pt, {closest}, {reasons[closest]}."
    longer = "Students that learn for longer, or from more photographs, keep more; or take one that keeps less."
    weakness = strength.weakness if strength else None
    return Verdict(None, sentence, notes, closest, weakness.advice if weakness and weakness.advice else longer)


def merit(row: Row, best: Row) -> float:
    """How much a finished row gains over best.pt: the logarithm of its size ratio times its speed ratio."""
    assert row.speedup
    return math.log(row.times_smaller(best)) + math.log(row.speedup)


def why_rejected(row: Row, best: Row, others: Sequence[Row], measure: Measure, noise: float = 0.0) -> str:
    """Why a variant does not qualify, as the rest of a sentence about it; empty when nothing speaks against it."""
    if not row.is_ok:
        return f"did not finish ({row.status})" if row.is_failed else f"was not made ({row.error})"
    kept, confidently = row.kept(measure), ""
    if row.l1_delta_pct is None or kept is None or not row.speedup:
        return "could not be compared with best.pt"
    if row.is_confirmed:
        if row.choosing_likely is None:
            few = row.photos - row.confirming_photos
            return f"cannot be judged by {measure.title}, since the {few} photographs that choose say nothing for sure"
        kept, confidently = row.choosing_likely, f" {CONFIDENTLY}"
    if kept < measure.enough:
        return f"keeps {kept:.2f} of {_noun(measure)}{confidently} (at least {measure.enough:g} passes)"
    parent = _find_parent(row, others)
    # Speedups are paired by round, so their ratio is too.
    if parent and parent.speedup and parent.speedup / row.speedup > 1.0 + max(SAME_SPEED, noise):
        slower = format_number(parent.speedup / row.speedup)
        since = f", since {row.caution}" if row.caution else ""
        return f"is {slower} times as slow as its float32 parent {parent.model}{since}"
    if row.speedup < 1.0 - noise:
        return f"is slower than best.pt ({format_number(row.speedup)} of its speed)"
    if row.times_smaller(best) <= 1.0 + SAME_SIZE and row.speedup <= 1.0 + max(SAME_SPEED, 3.0 * noise):
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
    cost = f"{say_size(row, best)} and {say_speed(row, best)}"
    sentence = f"{row.model} is recommended: {cost}, with {say_colour(row, measure_of(strength))}."
    weakness = strength.weakness if strength else None
    return f"{sentence} {weakness.advice}" if weakness and weakness.advice else sentence


def say_size(row: Row, best: Row) -> str:
    """How large a row's file is, and how much smaller than best.pt."""
    own_size = format_bytes(row.fair_size_bytes)
    size, than = compare_size(row, best)
    instead = "" if size == "as large" else f" instead of {format_bytes(best.fair_size_bytes)}"
    return f"{size} {than} best.pt ({own_size}{instead})"


def compare_size(row: Row, best: Row) -> tuple[str, str]:
    """Such as "3.84 times smaller" and "than", "as large" and "as", or "1.27 times as large" and "as"."""
    times = row.times_smaller(best)
    if times > 1.0 + SAME_SIZE:
        return f"{format_number(times)} times smaller", "than"
    return "as large" if times >= 1.0 / (1.0 + SAME_SIZE) else f"{format_number(1.0 / times)} times as large", "as"


def say_speed(row: Row, best: Row) -> str:
    """How many times as fast as best.pt a finished row is, and both times."""
    in_ms = f"({format_number(row.p50_ms)} ms instead of {format_number(best.p50_ms)} ms)"
    return f"{format_number(row.speedup)} times as fast {in_ms}"


def say_colour(row: Row, measure: Measure) -> str:
    """What a row keeps by the measure that decides, with its interval, and on which photographs."""
    return _describe_change(row, measure) + _describe_kept(row, measure)


def _describe_change(row: Row, measure: Measure) -> str:
    """The change of L1, where that is a condition."""
    delta = row.reported_l1_delta_pct
    if measure is not CONTENT or delta is None:
        return ""
    change = f"{abs(delta):.2f} % {'more' if delta > 0 else 'less'} L1" if abs(delta) >= 0.005 else "the same L1"
    return f"{change} and "


def _describe_kept(row: Row, measure: Measure) -> str:
    """What is kept, with its interval, and on which photographs."""
    verb = "reproduced" if measure is FIDELITY else "kept"
    kept, ends = row.reported(measure)
    where = "; the same photographs chose and scored it"
    if row.is_confirmed:
        where = (
            f" on {_count_photos(row.confirming_photos)} that did not choose it ({row.choosing_kept:.2f} on the "
            f"{row.photos - row.confirming_photos} that did)"
        )
        if kept is not None and kept < measure.enough:
            where += f", which is less than the {measure.enough:g} that was likely"
    interval = f" (95 % interval {format_interval(*ends, digits=2)})" if ends and ends[1] - ends[0] >= 0.005 else ""
    return f"{'an unknown share' if kept is None else f'{kept:.2f}'} of {_noun(measure)} {verb}{interval}{where}"


def _count_photos(count: int) -> str:
    return f"{count} photograph" if count == 1 else f"{count} photographs"


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
    if failed := [f"{row.model} ({row.status})" for row in rows if row.is_failed]:
        notes.append(f"Not finished: {', '.join(failed)}.")
    notes += [f"Not made: {row.model}, since: {row.error}." for row in rows if row.status == NOT_MADE]
    return tuple(notes)
