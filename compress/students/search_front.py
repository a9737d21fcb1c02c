"""The Pareto front of a search: its rows, which of them go on, which one is recommended, and its files.

front.csv and front.json hold a row for each candidate or file, front.png shows them. They are written after every
candidate, so an interrupted search has the front of what is finished.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorpress.core.charts import drawn, format_cost, number_log_axis
from colorpress.core.config import GoalConfig
from colorpress.core.errors import InputError
from colorpress.core.files import without_nan, write_csv, write_json
from colorpress.core.reading import as_damaged, read_json
from colorpress.core.text import align_cells, format_bytes, format_number
from compress.budgets import Figures, Limit, goals_or_whole
from compress.front import find_front
from compress.measures import CONFIDENTLY, FIDELITY, MEASURES, Measure, Score, Scores
from compress.students.search_space import Point, PrunedPoint

FRONT_FILES = ("front.csv", "front.json", "front.png")
STAGES = ("short distillation", "full distillation", "exported")
_MOST_LISTED = 8
# Of lost colour: a control that is far worse than grey would press the rest of the chart together.
_WORST_SHOWN = 1.2
# What is kept on the photographs that chose nothing, by the measure that decides.
CONFIRMED = ("confirmed_kept", "confirmed_low", "confirmed_high", "confirmed_l1_delta_pct")
COLUMNS = (
    "name", "stage", "on_front", "file", "precision", "params", "macs", "size_bytes", "times_smaller", "latency_ms",
    "measure", "l1_delta_pct", *(name for each in MEASURES.values() for name in (each.name, each.low, each.high)),
    *CONFIRMED, "start", "kept_channels", "output_stride", "stem_stride", "deepest_stride", "widths", "decoder_share",
    "convolutions", "affine", "crops",
)  # fmt: skip


@dataclass(frozen=True)
class FrontRow:
    """A candidate, or a file made of one.

    Attributes:
        name: of its folder, or what it would be called.
        stage: how far it came, one of `STAGES`.
        point: what it is; its `crops` are those that it learned from.
        size_bytes: of the file; of the one with packed weights where there is none yet.
        latency_ms: p50 of one picture in ONNX Runtime on this machine.
        scores: on the photographs that choose and, of a file, on others.
        file: relative to the run folder; empty where there is none yet.
        precision: of the file's weights: "fp32", "w8" or "int8".
    """

    name: str
    stage: str
    point: Point
    params: int
    macs: int
    size_bytes: int
    latency_ms: float
    scores: Scores
    file: str = ""
    precision: str = "w8"

    @property
    def label(self) -> str:
        """The file where there is one, else the name."""
        return self.file or self.name

    @property
    def score(self) -> Score:
        """On the photographs that choose."""
        return self.scores.chosen_by

    @property
    def costs(self) -> tuple[float, float, float]:
        """Bytes, milliseconds and lost colour: a row is on the front where no other is as good in all three."""
        return float(self.size_bytes), self.latency_ms, self.score.loss

    def describe(self) -> str:
        """In a few words, with both numbers where there are two."""
        return f"{format_bytes(self.size_bytes)}, {format_number(self.latency_ms)} ms, {self.scores.describe()}"

    def figures(self) -> dict[str, Any]:
        """All that is known of it by name; None is not known."""
        others: dict[str, Any] = {}
        if confirmed := self.scores.confirmed:
            values = (confirmed.kept, *confirmed.interval, confirmed.l1_delta_pct)
            others = without_nan(dict(zip(CONFIRMED, values, strict=True)))
        return {**dict.fromkeys(COLUMNS), **self.point.figures(), **vars(self), **self.score.to_dict(), **others}


@dataclass(frozen=True)
class ControlRow:
    """What answers without looking at the picture, beside the files of a front."""

    name: str
    file: str
    size_bytes: int
    score: Score

    def figures(self) -> dict[str, Any]:
        """All that is known of it, by the names of `COLUMNS`; None is not known."""
        known = {**self.score.to_dict(), "name": self.name, "file": self.file, "size_bytes": self.size_bytes}
        return dict.fromkeys(COLUMNS) | {"stage": "control", "on_front": False} | known


def front_of(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """The rows of the front, smallest first."""
    return find_front(rows, lambda row: row.costs)


def choose_spread(rows: Sequence[FrontRow], count: int) -> list[FrontRow]:
    """At most `count` rows to go on with, smallest first: those of the front, evenly by logarithm of size.

    The smallest and the largest of the front are among them; each further one is farthest in size from those chosen.
    Where the front has too few, the front of the rest follows: a longer training may still bring it forward.
    """
    chosen: list[FrontRow] = []
    left = list(rows)

    def distance(row: FrontRow) -> float:
        return min((abs(math.log(row.size_bytes / each.size_bytes)) for each in chosen), default=0.0)

    while left and len(chosen) < count:
        front = front_of(left)
        left = [row for row in left if row not in front]
        while front and len(chosen) < count:
            chosen.append(max(front, key=distance))
            front.remove(chosen[-1])
    return sorted(chosen, key=lambda row: row.costs)


@dataclass(frozen=True)
class Recommendation:
    """The row to take, None where none meets every demand, and the choice in words."""

    row: FrontRow | None
    sentence: str

    @property
    def label(self) -> str | None:
        """The file of the row, or its name; None where nothing is recommended."""
        return self.row.label if self.row else None


def recommend(rows: Sequence[FrontRow], demands: Sequence[Limit]) -> Recommendation:
    """The smallest row that meets every demand; or which demand to loosen, and how far.

    Without a goal for the colour it is the smallest within the budgets that keeps as much as any, and without any
    demand the smallest that keeps the measure that decides whole, else as much as any: what the one that keeps most
    has with 80 % confidence. With such confidence goals have to hold on other photographs.
    """
    ready = max(rows, key=lambda row: STAGES.index(row.stage), default=None)
    rows = [row for row in rows if ready is not None and row.stage == ready.stage]
    if not rows:
        return Recommendation(None, "No candidate is finished yet.")
    figures = [(row, {**vars(row), **row.score.likely_figures()}) for row in rows]
    meeting = [row for row, known in figures if all(demand.is_met(known) for demand in demands)]
    if not meeting:
        return Recommendation(None, _what_to_loosen(figures, demands))
    has_goal = any(demand.is_goal for demand in demands)
    (whole,) = goals_or_whole(GoalConfig(), MEASURES[rows[0].score.measure])
    full = [row for row, known in figures if whole.is_met(known)]
    if has_goal or (not demands and full):
        best = min(meeting if has_goal else full, key=lambda row: row.costs)
        kept = f"the smallest that keeps {whole.show(whole.bound)} {CONFIDENTLY}"
        why = "the smallest that meets every goal and budget" if has_goal else kept
    else:
        most = min(meeting, key=lambda row: (row.score.loss, row.size_bytes))
        likely_loss = most.score.likely_loss
        best = min((row for row in meeting if row is most or row.score.loss <= likely_loss), key=lambda row: row.costs)
        why = f"the smallest that keeps as much colour as any{' within the budgets' if demands else ''}"
    return Recommendation(best, f"{best.label}: {best.describe()}; {why}.")


def _what_to_loosen(rows: Sequence[tuple[FrontRow, Figures]], demands: Sequence[Limit]) -> str:
    def show(demand: Limit, known: Figures) -> str:
        return f"{demand.show(known[demand.figure])}{f' {CONFIDENTLY}' if demand.is_goal else ''}"

    nearest, known = min(rows, key=lambda each: max(demand.excess(each[1]) for demand in demands))
    missed = [
        f"{show(demand, known)} ({100 * excess:.3g} % off {demand})"
        if math.isfinite(excess := demand.excess(known))
        else f"no {demand.unit}, since best.pt has nothing of it to keep here ({demand})"
        for demand in demands
        if not demand.is_met(known)
    ]
    *first, last = map(str, demands)
    asked = f"{', '.join(first)} and {last}" if first else last
    sentence = f"Nothing found meets {asked}. {nearest.label} comes nearest: {', '.join(missed)}."
    ways = []
    for demand in demands:
        rest = [each for each in demands if each is not demand]
        others = [(row, own) for row, own in rows if all(each.is_met(own) for each in rest)]
        others = [(row, own) for row, own in others if math.isfinite(demand.excess(own))]
        if others:
            row, own = min(others, key=lambda each: demand.excess(each[1]))
            ways.append(f"{demand} to {show(demand, own)} ({row.label})")
    if ways:
        return f"{sentence} Loosen {', or '.join(ways)}."
    return f"{sentence} {'More than one has to be loosened' if first else f'Leave out {last}'}."


def write_front(
    folder: Path,
    rows: Sequence[FrontRow],
    controls: Sequence[ControlRow] = (),
    *,
    best_bytes: int,
    record: Mapping[str, Any],
) -> tuple[Path, ...]:
    """Write front.csv, front.json and front.png, each atomically.

    Args:
        controls: shown beside the rows, and never on the front.
        best_bytes: of best.pt's weights in 32 bits.
        record: further entries of front.json.
    """
    front = front_of(rows)
    cells = [_cells(row, row in front, best_bytes) for row in rows]
    paths = tuple(folder / name for name in FRONT_FILES)
    blind = [{name: each.figures()[name] for name in COLUMNS} for each in controls]
    write_csv(paths[0], COLUMNS, [*cells, *blind])
    entries = [
        {**row, "point": each.point.to_dict(), "network": _network_of(each.point)}
        for row, each in zip(cells, rows, strict=True)
    ]
    told = {**record, "best_bytes": best_bytes, "rows": entries, "controls": blind}
    write_json(paths[1], {"format_version": 2, **told})
    _draw(rows, front, controls, paths[2], str(record.get("recommended") or ""))
    return paths


def _network_of(point: Point) -> dict[str, Any] | None:
    """The channel plan of a student; a pruned network's follows from best.pt, and its plan.json has it."""
    return None if isinstance(point, PrunedPoint) else point.network().to_dict()


def list_front(folder: Path) -> list[str]:
    """Folders, relative to a run folder, of the files of its front that a benchmark looks at, smallest first.

    Of a long front it is eight, evenly by order of size, and the recommended one. Empty without a front.

    Raises:
        InputError: front.json is damaged.
    """
    source = folder / "front.json"
    if not source.is_file():
        return []
    hint = "run `colorpress compress` again"
    record = read_json(source, "front", hint)
    with as_damaged("front", source, hint):
        rows = [row for row in record["rows"] if row["on_front"] and row["file"]]
        files = [str(row["file"]) for row in sorted(rows, key=lambda row: (row["size_bytes"], row["latency_ms"]))]
        shown = {str(record["recommended"])}
    # The folder may be somebody else's, and what is named here is written beside.
    if odd := [file for file in files if not re.fullmatch(r"front/[\w-]+/model\.onnx", file)]:
        raise InputError("front", source, f"names {odd[0]!r}, which is no file of a front", hint)
    if files:
        shown |= {files[round(step * (len(files) - 1) / (_MOST_LISTED - 1))] for step in range(_MOST_LISTED)}
    return [Path(file).parent.as_posix() for file in files if file in shown]


def _cells(row: FrontRow, on_front: bool, best_bytes: int) -> dict[str, Any]:
    times_smaller = round(best_bytes / row.size_bytes, 2)
    cells = {**row.figures(), "on_front": on_front, "times_smaller": times_smaller}
    return {name: cells[name] for name in COLUMNS}


def _draw(
    rows: Sequence[FrontRow],
    front: Sequence[FrontRow],
    controls: Sequence[ControlRow],
    path: Path,
    recommended: str,
) -> None:
    taken = [row for row in front if recommended and recommended in (row.file, row.name)]
    groups: list[tuple[Sequence[FrontRow], dict[str, Any]]] = [
        *(
            ([row for row in rows if row.stage == stage], {"marker": marker, "alpha": 0.5, "label": stage})
            for stage, marker in zip(STAGES, ".^o", strict=True)
        ),
        (
            [row for row in rows if isinstance(row.point, PrunedPoint)],
            {"marker": "s", "mfc": "none", "mec": "0.3", "ms": 6, "label": "best.pt, pruned"},
        ),
        (front, {"marker": "o", "mfc": "none", "mec": "#b3261e", "ms": 10, "label": "on the front"}),
        (taken, {"marker": "*", "color": "#b3261e", "ms": 13, "label": "recommended"}),
    ]
    confirmed = [(row, row.scores.confirmed.loss) for row in front if row.scores.confirmed]
    with drawn(path, height=9.2) as figure:
        panels = figure.subplots(2, 1, sharey=True)
        for place, (axes, column) in enumerate(zip(panels, ("size_bytes", "p50_ms"), strict=True)):
            for group, style in groups:
                if group:
                    axes.plot([row.costs[place] for row in group], [row.score.loss for row in group], ls="", **style)
            if confirmed:
                costs, losses = [row.costs[place] for row, _ in confirmed], [loss for _, loss in confirmed]
                axes.plot(costs, losses, "x", color="0.3", label="the front on other photographs")
            for control, dashes in zip(controls, ("-", "--", ":"), strict=False):
                if control.score.loss <= _WORST_SHOWN:
                    axes.axhline(control.score.loss, color="0.5", lw=1, ls=dashes, label=control.name)
            axes.set(xscale="log", xlabel="file size" if column == "size_bytes" else "latency, p50")
            axes.margins(x=0.12)
            axes.grid(alpha=0.3)
            if rows:
                number_log_axis(axes, [row.costs[place] for row in rows], format_cost(column))
        measure = measure_of(rows)
        for axes in panels:
            axes.set_ylabel(f"lost {measure.title}, 1 - {measure.symbol} (0: best.pt)")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
        figure.suptitle("The search on the photographs that choose: lost colour\nby size and by latency")


def format_front(rows: Sequence[FrontRow], best_bytes: int, controls: Sequence[ControlRow] = ()) -> list[str]:
    """The front as lines of a table, smallest first, and the controls below it."""
    header = table_header(measure_of(rows).name)
    blind = [
        (
            *(each.name, format_bytes(each.size_bytes), f"{best_bytes / each.size_bytes:.1f}", ""),
            *(_kept_cell(each.score), "", "sees no picture"),
        )
        for each in controls
    ]
    return align_cells([header, *(table_cells(row, best_bytes) for row in front_of(rows)), *blind], to_left=True)


def measure_of(rows: Sequence[FrontRow]) -> Measure:
    """The measure that decides, which all rows of a front have in common."""
    return MEASURES[rows[0].score.measure] if rows else FIDELITY


def table_header(measure: str) -> tuple[str, ...]:
    """The columns of a table for people, where the measure of this name decides."""
    return ("network", "file", "x smaller", "latency", f"colour {MEASURES[measure].symbol}", "on others", "stage")


def table_cells(row: FrontRow, best_bytes: int) -> tuple[str, ...]:
    """A row for people."""
    return (
        row.label,
        format_bytes(row.size_bytes),
        f"{best_bytes / row.size_bytes:.1f}",
        f"{format_number(row.latency_ms)} ms",
        _kept_cell(row.score),
        _kept_cell(row.scores.confirmed) if row.scores.confirmed else "",
        row.stage,
    )


def _kept_cell(score: Score) -> str:
    return f"({score.l1_delta_pct:+.1f} % L1)" if math.isnan(score.kept) else f"{score.kept:.3f}"
