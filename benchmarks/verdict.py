"""Which variant to use, in one sentence that the figures bear out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import Row
from colorpress.core.text import format_bytes, format_number
from compress.precisions import DERIVED_ENDINGS

MAX_L1_INCREASE_PCT = 1.0
MIN_RETAINED_COLOUR = 0.95
_FEW_PHOTOS = 50
_SAME_SPEED = 0.02
_CONDITION = ("device", "batch", "height", "width", "threads")


@dataclass(frozen=True)
class Verdict:
    """The judgement of a benchmark.

    Attributes:
        recommended: a row's name; None when no variant is worth it.
        sentence: the judgement.
        notes: what limits it, a sentence each.
    """

    recommended: str | None
    sentence: str
    notes: tuple[str, ...]


def judge_rows(rows: Sequence[Row], aa_ratios: Mapping[str, Mapping[str, float]] | None = None) -> Verdict:
    """Choose the variant with the largest product of size and speed ratio among those that keep the colours.

    The first row is best.pt and the yardstick; rows of another condition than its are not compared with it, and what
    another tool made is never chosen, nor is best.pt itself in another runtime, since nothing was compressed. A
    variant qualifies when it is at most 1 % above best.pt in L1 and retains at least 0.95 of the colour; when it is
    not slower than best.pt nor than its own float32 parent; and when it is smaller or faster beyond the noise.

    Args:
        rows: as `tables.make_rows` gives them.
        aa_ratios: per device, the ratio of best.pt to itself: "median", "low", "high".
    """
    if not rows or rows[0]["status"] != "ok":
        status = f": {rows[0]['status']}" if rows else ""
        return Verdict(None, f"There is no verdict, since best.pt itself was not measured{status}.", ())
    best, others = rows[0], own_rows(rows)
    noise = _measure_noise((aa_ratios or {}).get(best["device"]))
    notes = _note_limits(rows, noise)
    reasons = {row["model"]: why_rejected(row, best, others, noise) for row in others}
    passed = [row for row in others if not reasons[row["model"]]]
    if passed:
        chosen = max(passed, key=lambda row: merit(row, best))
        return Verdict(chosen["model"], _recommend(chosen, best), (*notes, *_note_runtime(rows, chosen)))
    if not others:
        return Verdict(None, "There is nothing to recommend: only best.pt was measured.", notes)
    if not best["photos"]:
        return Verdict(None, "Nothing can be recommended: colours were not measured, only time.", notes)
    if best["retained_colour"] is None:
        sentence = (
            "Nothing can be recommended: on these photographs best.pt is no better than a grey answer, "
            "so there is no colour to keep."
        )
        return Verdict(None, sentence, notes)
    finished = [row for row in others if row["status"] == "ok" and row["l1"] is not None]
    if not finished:
        return Verdict(None, "Nothing can be recommended: no variant finished.", notes)
    closest = min(finished, key=lambda row: row["l1"])
    sentence = f"No variant is recommended: the closest to best.pt, {closest['model']}, {reasons[closest['model']]}."
    return Verdict(None, sentence, notes)


def base_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that are measured as the first one, best.pt, is: on its device, at its batch, size and threads."""
    return [row for row in rows if all(row[name] == rows[0][name] for name in _CONDITION)]


def own_rows(rows: Sequence[Row]) -> list[Row]:
    """The base rows of what was compressed here: neither best.pt's own file nor another tool's."""
    return [row for row in base_rows(rows) if not row["peer"] and row["variant"] != rows[0]["variant"]]


def merit(row: Row, best: Row) -> float:
    """How much a finished row gains over best.pt: the logarithm of its size ratio times its speed ratio."""
    return math.log(_smaller(row, best)) + math.log(row["speedup"])


def why_rejected(row: Row, best: Row, others: Sequence[Row], noise: float = 0.0) -> str:
    """Why a variant is not recommended, as the rest of a sentence about it; empty when nothing speaks against it."""
    if row["status"] != "ok":
        return f"did not finish ({row['status']})"
    if row["l1_delta_pct"] is None or row["retained_colour"] is None or not row["speedup"]:
        return "could not be compared with best.pt"
    if row["l1_delta_pct"] > MAX_L1_INCREASE_PCT:
        return f"raises L1 by {row['l1_delta_pct']:.1f} % (at most {MAX_L1_INCREASE_PCT:g} % passes)"
    if row["retained_colour"] < MIN_RETAINED_COLOUR:
        return f"keeps {row['retained_colour']:.2f} of the colour (at least {MIN_RETAINED_COLOUR:g} passes)"
    parent = _find_parent(row, others)
    # Speedups are paired by round, so their ratio is too.
    if parent and parent["speedup"] and parent["speedup"] / row["speedup"] > 1.0 + _SAME_SPEED:
        slower = format_number(parent["speedup"] / row["speedup"])
        since = f", since {row['caution']}" if row.get("caution") else ""
        return f"is {slower} times as slow as its float32 parent {parent['model']}{since}"
    if row["speedup"] < 1.0 - noise:
        return f"is slower than best.pt ({format_number(row['speedup'])} of its speed)"
    if _smaller(row, best) <= 1.02 and row["speedup"] <= 1.0 + max(0.02, 3.0 * noise):
        return "is neither smaller nor faster beyond what noise explains"
    return ""


def parent_name(name: str) -> str | None:
    """The float32 variant that another was made from: "pruned-int8" is "pruned", on the same device."""
    stem, separator, device = name.partition(" @ ")
    ending = next((each for each in DERIVED_ENDINGS if stem.endswith(each)), None)
    return f"{stem.removesuffix(ending)}{separator}{device}" if ending else None


def _find_parent(row: Row, others: Sequence[Row]) -> Row | None:
    """The parent in the same runtime; where it was not measured in that one, in the runtime it is fastest in."""
    same = next((other for other in others if other["model"] == parent_name(row["model"])), None)
    if same is not None:
        return same
    anywhere = [other for other in others if other["variant"] == parent_name(row["variant"]) and other["speedup"]]
    return max(anywhere, key=lambda other: float(other["speedup"]), default=None)


def fair_size(row: Row) -> int:
    """A checkpoint's weights alone: the training state beside them is not what compression takes away."""
    size, weights = int(row["size_bytes"]), int(row["weights_bytes"] or 0)
    return weights if row["runtime"] == "torch" and 0 < weights < size else size


def _smaller(row: Row, best: Row) -> float:
    return fair_size(best) / fair_size(row)


def _recommend(row: Row, best: Row) -> str:
    size = (
        f"{format_number(_smaller(row, best))} times smaller than best.pt "
        f"({format_bytes(fair_size(row))} instead of {format_bytes(fair_size(best))})"
    )
    if _smaller(row, best) <= 1.02:
        size = f"as large as best.pt ({format_bytes(fair_size(row))})"
    speed = (
        f"{format_number(row['speedup'])} times as fast "
        f"({format_number(row['p50_ms'])} ms instead of {format_number(best['p50_ms'])} ms)"
    )
    delta = row["l1_delta_pct"]
    change = f"{abs(delta):.2f} % {'more' if delta > 0 else 'less'} L1" if abs(delta) >= 0.005 else "the same L1"
    interval = ""
    if row["retained_low"] is not None and abs(row["retained_high"] - row["retained_low"]) >= 0.005:
        interval = f" (95 % interval {row['retained_low']:.2f} to {row['retained_high']:.2f})"
    retained = f"{row['retained_colour']:.2f} of the colour retained{interval}"
    return f"{row['model']} is recommended: {size} and {speed}, at {change} and {retained}."


def _note_runtime(rows: Sequence[Row], chosen: Row) -> tuple[str, ...]:
    """How much of the speed-up another runtime gives best.pt's own network, compressed in no way."""
    whole = {str(rows[0]["variant"]), str(rows[0]["variant"]).removesuffix(".pt")}
    same = [
        row
        for row in base_rows(rows)
        if row["variant"] in whole and not row["peer"] and row["status"] == "ok" and row["speedup"]
    ]
    fastest = max(same, key=lambda row: float(row["speedup"]), default=rows[0])
    if chosen["variant"] in whole or (fastest["speedup"] or 1.0) < 1.5:
        return ()
    return (
        f"Of the {format_number(chosen['speedup'])} times, {format_number(fastest['speedup'])} come from the runtime: "
        f"best.pt's own network takes {format_number(fastest['p50_ms'])} ms as {fastest['model']}.",
    )


def _measure_noise(ratio: Mapping[str, Any] | None) -> float:
    """How far the rounds of the A/A control are from 1 at most."""
    return max(float(ratio["high"]) - 1.0, 1.0 - float(ratio["low"])) if ratio else 0.0


def _note_limits(rows: Sequence[Row], noise: float) -> tuple[str, ...]:
    notes = []
    photos = rows[0]["photos"] or 0
    if 0 < photos < _FEW_PHOTOS:
        noun = "photograph shows" if photos == 1 else "photographs show"
        notes.append(f"{photos} {noun} the machinery, not colour quality: test on {_FEW_PHOTOS} or more to judge it.")
    uncertain = [
        row["model"]
        for row in base_rows(rows)[1:]
        if not row["peer"]
        and row["retained_low"] is not None
        and row["retained_low"] < MIN_RETAINED_COLOUR <= (row["retained_colour"] or 0)
    ]
    if uncertain:
        notes.append(
            f"The interval of retained colour reaches below {MIN_RETAINED_COLOUR:g} for {', '.join(uncertain)}."
        )
    if noise > 0.03:
        notes.append(
            f"The machine is noisy: best.pt timed twice differs by {100 * noise:.0f} %, so differences below "
            f"{300 * noise:.0f} % mean nothing."
        )
    failed = [f"{row['model']} ({row['status']})" for row in rows if row["status"] != "ok"]
    if failed:
        notes.append(f"Not finished: {', '.join(failed)}.")
    return tuple(notes)


@dataclass(frozen=True)
class PeerVerdict:
    """What another tool's model is worth beside ours.

    Attributes:
        model: the peer's row name.
        dominated_by: a row of ours that is smaller, faster, and keeps at least as much colour; None without one.
        sentence: the comparison with that row, else with the recommended one.
    """

    model: str
    dominated_by: str | None
    sentence: str


def judge_peers(rows: Sequence[Row]) -> list[PeerVerdict]:
    """Compare each peer of the base condition with our variants, the recommended one first, then by merit.

    Args:
        rows: as `tables.make_rows` gives them, best.pt first.
    """
    recommended = judge_rows(rows).recommended
    ours = [row for row in own_rows(rows) if _is_complete(row)] if rows else []
    ours.sort(key=lambda row: (row["model"] != recommended, -merit(row, rows[0])))
    return [_judge_peer(row, ours) for row in base_rows(rows) if row["peer"]]


def dominates(row: Row, other: Row) -> bool:
    """Whether `row` is smaller and faster than `other` and keeps at least as much colour; both are complete."""
    return bool(
        fair_size(row) < fair_size(other)
        and row["speedup"] > other["speedup"]
        and row["retained_colour"] >= other["retained_colour"]
    )


def _is_complete(row: Row) -> bool:
    return bool(row["status"] == "ok" and row["speedup"] and row["retained_colour"] is not None)


def _judge_peer(peer: Row, ours: Sequence[Row]) -> PeerVerdict:
    name = peer["model"]
    if not _is_complete(peer):
        why = f"it did not finish ({peer['status']})" if peer["status"] != "ok" else "its colours were not measured"
        return PeerVerdict(name, None, f"{name} cannot be compared: {why}.")
    if not ours:
        return PeerVerdict(name, None, f"{name} has nothing of ours to be compared with.")
    winner = next((row for row in ours if dominates(row, peer)), None)
    if winner is not None:
        # All three axes are wins or a tie of ours, said from our side.
        wins, ties, _ = _compare(winner, peer)
        return PeerVerdict(
            name, winner["model"], f"{winner['model']} beats {name} in size, speed and colour: it {_join(wins + ties)}."
        )
    wins, ties, losses = _compare(peer, ours[0])
    if not wins:
        return PeerVerdict(name, None, f"{name} wins nothing beside {ours[0]['model']}: it {_join(ties + losses)}.")
    sentence = f"{name} is not beaten in size, speed and colour at once; beside {ours[0]['model']} it {_join(wins)}"
    return PeerVerdict(name, None, f"{sentence}, but {_join(losses)}." if losses else f"{sentence}.")


def _compare(row: Row, other: Row) -> tuple[list[str], list[str], list[str]]:
    """What `row` wins, ties and loses against `other` in size, speed and colour, as the rest of sentences."""
    wins: list[str] = []
    ties: list[str] = []
    losses: list[str] = []
    sizes, speed = (fair_size(row), fair_size(other)), row["speedup"] / other["speedup"]
    in_bytes = f"({format_bytes(sizes[0])}, not {format_bytes(sizes[1])})"
    if sizes[0] == sizes[1]:
        ties.append(f"is as large ({format_bytes(sizes[0])})")
    elif sizes[0] < sizes[1]:
        wins.append(f"is {format_number(sizes[1] / sizes[0])} times smaller {in_bytes}")
    else:
        losses.append(f"is {format_number(sizes[0] / sizes[1])} times larger {in_bytes}")
    in_ms = f"({format_number(row['p50_ms'])} ms, not {format_number(other['p50_ms'])} ms)"
    if abs(math.log(speed)) <= _SAME_SPEED:
        ties.append(f"is as fast {in_ms}")
    elif speed > 1.0:
        wins.append(f"is {format_number(speed)} times as fast {in_ms}")
    else:
        losses.append(f"is {format_number(1.0 / speed)} times as slow {in_ms}")
    colours = row["retained_colour"], other["retained_colour"]
    apart = "" if _are_apart(row, other) else "; the intervals overlap"
    kept = f"({colours[0]:.3f}, not {colours[1]:.3f}{apart})"
    if colours[0] == colours[1]:
        ties.append(f"keeps as much colour ({colours[0]:.3f})")
    elif colours[0] > colours[1]:
        wins.append(f"keeps more colour {kept}")
    else:
        losses.append(f"keeps less colour {kept}")
    return wins, ties, losses


def _are_apart(row: Row, other: Row) -> bool:
    """Whether the intervals of retained colour do not overlap; one that is not there says nothing."""
    if row["retained_low"] is None or other["retained_low"] is None:
        return True
    return bool(row["retained_low"] > other["retained_high"] or row["retained_high"] < other["retained_low"])


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
