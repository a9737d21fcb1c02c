"""Which variant to use, in one sentence that the figures bear out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.tables import Row, format_bytes, format_number
from benchmarks.variants import DERIVED_ENDINGS

MAX_L1_INCREASE_PCT = 1.0
MIN_RETAINED_COLOUR = 0.95
_FEW_PHOTOS = 50
_SAME_SPEED = 0.02


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

    The first row is best.pt and the yardstick; rows on another device than its are not compared with it. A variant
    qualifies when it is at most 1 % above best.pt in L1 and retains at least 0.95 of the colour; when it is not
    slower than best.pt nor than its own float32 parent; and when it is smaller or faster beyond the noise.

    Args:
        rows: as `tables.make_rows` gives them.
        aa_ratios: per device, the ratio of best.pt to itself: "median", "low", "high".
    """
    if not rows or rows[0]["status"] != "ok":
        status = f": {rows[0]['status']}" if rows else ""
        return Verdict(None, f"There is no verdict, since best.pt itself was not measured{status}.", ())
    best, others = rows[0], [row for row in rows[1:] if row["device"] == rows[0]["device"]]
    noise = _measure_noise((aa_ratios or {}).get(best["device"]))
    notes = _note_limits(rows, noise)
    reasons = {row["model"]: why_rejected(row, best, others, noise) for row in others}
    passed = [row for row in others if not reasons[row["model"]]]
    if passed:
        chosen = max(passed, key=lambda row: math.log(_smaller(row, best)) + math.log(row["speedup"]))
        return Verdict(chosen["model"], _recommend(chosen, best), notes)
    if not others:
        return Verdict(None, "There is nothing to recommend: only best.pt was measured.", notes)
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
    parent = next((other for other in others if other["model"] == parent_name(row["model"])), None)
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


def _measure_noise(ratio: Mapping[str, Any] | None) -> float:
    """How far the rounds of the A/A control are from 1 at most."""
    return max(float(ratio["high"]) - 1.0, 1.0 - float(ratio["low"])) if ratio else 0.0


def _note_limits(rows: Sequence[Row], noise: float) -> tuple[str, ...]:
    notes = []
    photos = rows[0]["photos"] or 0
    if photos < _FEW_PHOTOS:
        noun = "photograph shows" if photos == 1 else "photographs show"
        notes.append(f"{photos} {noun} the machinery, not colour quality: test on {_FEW_PHOTOS} or more to judge it.")
    uncertain = [
        row["model"]
        for row in rows[1:]
        if row["retained_low"] is not None
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
