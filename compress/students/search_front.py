"""The Pareto front of a search: its rows, which of them go on, which one is recommended, and its files.

front.csv and front.json hold a row for each candidate or file, front.png shows them. They are written after every
candidate, so an interrupted search has the front of what is finished.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from colorpress.core.charts import format_cost, number_log_axis
from colorpress.core.config import BudgetConfig, GoalConfig, option_name
from colorpress.core.errors import InputError
from colorpress.core.files import atomic_write, read_json, without_nan, write_csv, write_json
from colorpress.core.text import format_bytes, format_count, format_number
from compress.students.search_space import StudentPoint
from compress.yardstick import Score

FRONT_FILES = ("front.csv", "front.json", "front.png")
STAGES = ("short distillation", "full distillation", "exported")
_MOST_LISTED = 8
_ODDS = "with odds of 4 to 1"
TABLE_HEADER = ("student", "file", "x smaller", "latency", "colour G", "stage")
COLUMNS = (
    "name", "stage", "on_front", "file", "precision", "params", "macs", "size_bytes", "times_smaller", "latency_ms",
    "l1_delta_pct", "retained_colour", "low", "high", "output_stride", "stem_stride", "deepest_stride", "widths",
    "decoder_share", "convolutions", "crops",
)  # fmt: skip


@dataclass(frozen=True)
class FrontRow:
    """A candidate, or a file made of one.

    Attributes:
        name: of its folder, or what it would be called.
        stage: how far it came, one of `STAGES`.
        point: of the space; its `crops` are those that it learned from.
        size_bytes: of the file; of the one with packed weights where there is none yet.
        latency_ms: p50 of one picture in ONNX Runtime on this machine.
        score: on the validation photographs.
        file: relative to the run folder; empty where there is none yet.
        precision: of the file's weights: "fp32", "w8" or "int8".
    """

    name: str
    stage: str
    point: StudentPoint
    params: int
    macs: int
    size_bytes: int
    latency_ms: float
    score: Score
    file: str = ""
    precision: str = "w8"

    @property
    def loss(self) -> float:
        """What should be small: 1 - G, or where there is no G the share that the L1 is above best.pt's."""
        return loss_of(self.score)

    @property
    def likely_loss(self) -> float:
        """The loss that other photographs stay below with odds of 4 to 1."""
        return self.loss + self.score.margin

    @property
    def costs(self) -> tuple[float, float, float]:
        """Bytes, milliseconds and lost colour: a row is on the front where no other is as good in all three."""
        return float(self.size_bytes), self.latency_ms, self.loss

    def describe(self) -> str:
        """In a few words."""
        kept = self.score.retained_colour
        worth = f"{self.score.l1_delta_pct:+.2f} % L1" if math.isnan(kept) else f"G {kept:.3f}"
        return f"{format_bytes(self.size_bytes)}, {format_number(self.latency_ms)} ms, {worth}"


def loss_of(score: Score) -> float:
    """1 - G; where best.pt is no better than grey, the share that the L1 is above best.pt's."""
    kept = score.retained_colour
    return score.l1_delta_pct / 100.0 if math.isnan(kept) else 1.0 - kept


def find_front(rows: Sequence[FrontRow]) -> list[FrontRow]:
    """The rows that no other row is better than in one respect and as good as in the others, smallest first."""

    def is_beaten(row: FrontRow) -> bool:
        return any(
            other.costs != row.costs and all(own >= its for own, its in zip(row.costs, other.costs, strict=True))
            for other in rows
        )

    return sorted((row for row in rows if not is_beaten(row)), key=lambda row: row.costs)


def choose_spread(rows: Sequence[FrontRow], count: int) -> list[FrontRow]:
    """At most `count` rows to go on with, smallest first: those of the front, evenly by logarithm of size.

    The smallest and the largest of the front are among them; each further one is farthest in size from those chosen.
    Where the front has too few, the front of the rest follows: a longer training may still bring it forward.
    """
    chosen: list[FrontRow] = []
    left = list(rows)
    while left and len(chosen) < count:
        front = find_front(left)
        # By identity: two candidates may round to equal figures.
        left = [row for row in left if all(row is not each for each in front)]
        while front and len(chosen) < count:
            chosen.append(front.pop(_farthest(front, chosen)))
    return sorted(chosen, key=lambda row: row.costs)


def _farthest(rows: Sequence[FrontRow], chosen: Sequence[FrontRow]) -> int:
    if not chosen:
        return 0

    def distance(place: int) -> float:
        return min(abs(math.log(rows[place].size_bytes / each.size_bytes)) for each in chosen)

    return max(range(len(rows)), key=distance)


@dataclass(frozen=True)
class Demand:
    """A goal or a budget.

    Attributes:
        option: as it was given, such as "--target-size 200KB".
        measure: of a row; None where it has no such figure.
        most: of the measure, or the least where `is_floor`.
        show: a figure for people.
    """

    option: str
    measure: Callable[[FrontRow], float | None]
    most: float
    show: Callable[[float], str]
    is_floor: bool = False

    def is_met(self, row: FrontRow) -> bool:
        """Whether the row has the figure and it is good enough."""
        return self.excess(row) <= 0

    def excess(self, row: FrontRow) -> float:
        """How far the row misses it, as a share of what is allowed; infinite without a figure."""
        value = self.measure(row)
        if value is None or math.isnan(value):
            return math.inf
        beyond = self.most - value if self.is_floor else value - self.most
        return beyond / abs(self.most) if self.most else beyond


def list_demands(
    goal: GoalConfig, budget: BudgetConfig, *, params: int, macs: int, grey_increase_pct: float
) -> list[Demand]:
    """What the options ask for; goals have to hold on other photographs with odds of 4 to 1.

    Args:
        params, macs: of best.pt.
        grey_increase_pct: L1 of the grey answer above best.pt's, in percent.
    """

    def likely_increase(row: FrontRow) -> float:
        return row.score.l1_delta_pct + (row.score.margin * grey_increase_pct if row.score.margin else 0.0)

    demands = []
    if (floor := goal.min_retained_colour) is not None:
        demands.append(Demand(
            f"--min-retained-colour {floor:g}", lambda row: row.score.retained_colour - row.score.margin, floor,
            f"G {{:.3f}} {_ODDS}".format, True,
        ))  # fmt: skip
    if (increase := goal.max_l1_increase) is not None:
        demands.append(
            Demand(f"--max-l1-increase {increase:g}%", likely_increase, increase, f"{{:+.2f}} % L1 {_ODDS}".format)
        )
    kinds: dict[str, tuple[Callable[[FrontRow], float], float, Callable[[float], str]]] = {
        "keep_params": (lambda row: row.params, params, lambda value: f"{format_count(int(value))} parameters"),
        "keep_macs": (lambda row: row.macs, macs, lambda value: f"{format_count(int(value))} multiply-accumulates"),
        "target_size": (lambda row: row.size_bytes, 1, lambda value: format_bytes(int(value))),
        "target_latency_ms": (lambda row: row.latency_ms, 1, lambda value: f"{format_number(value)} ms"),
    }
    for name, value in budget.given().items():
        measure, factor, show = kinds[name]
        shown = budget.target_size if name == "target_size" else f"{value:g}"
        demands.append(Demand(f"--{option_name(name)} {shown}", measure, value * factor, show))
    return demands


@dataclass(frozen=True)
class Recommendation:
    """The row to take, None where none meets every demand, and the choice in words."""

    row: FrontRow | None
    sentence: str


def recommend(rows: Sequence[FrontRow], demands: Sequence[Demand]) -> Recommendation:
    """The smallest row that meets every demand; or which demand to loosen, and how far.

    Without a goal for the colour it is the one that keeps most within the budgets, and without any demand the smallest
    that keeps all of best.pt's colour, else the one that keeps most.
    """
    ready = max(rows, key=lambda row: STAGES.index(row.stage), default=None)
    rows = [row for row in rows if ready is not None and row.stage == ready.stage]
    if not rows:
        return Recommendation(None, "No candidate is finished yet.")
    meeting = [row for row in rows if all(demand.is_met(row) for demand in demands)]
    if not meeting:
        return Recommendation(None, _what_to_loosen(rows, demands))
    goals = [demand for demand in demands if demand.option.startswith(("--min-retained", "--max-l1"))]
    full = [row for row in meeting if row.likely_loss <= 0]
    if goals or (not demands and full):
        best = min(meeting if goals else full, key=lambda row: row.costs)
        why = "the smallest that meets every goal and budget" if goals else "the smallest that keeps best.pt's colour"
    else:
        best = min(meeting, key=lambda row: (row.loss, row.size_bytes))
        why = f"keeps most colour{' within the budgets' if demands else ''}"
    return Recommendation(best, f"{best.file or best.name}: {best.describe()}; {why}.")


def _what_to_loosen(rows: Sequence[FrontRow], demands: Sequence[Demand]) -> str:
    nearest = min(rows, key=lambda row: max(demand.excess(row) for demand in demands))
    missed = [
        f"{demand.show(value)} ({100 * demand.excess(nearest):.3g} % off {demand.option})"
        if math.isfinite(value)
        else f"no G, since best.pt is no better than grey here ({demand.option})"
        for demand in demands
        if not demand.is_met(nearest) and (value := demand.measure(nearest)) is not None
    ]
    options = [demand.option for demand in demands]
    together = "no student meets " + " and ".join([*([", ".join(options[:-1])] if options[1:] else []), options[-1]])
    sentence = (
        f"{together[0].upper()}{together[1:]}. {nearest.file or nearest.name} comes nearest: {', '.join(missed)}."
    )
    ways = []
    for demand in demands:
        others = [row for row in rows if all(each.is_met(row) for each in demands if each is not demand)]
        others = [row for row in others if math.isfinite(demand.excess(row))]
        if others:
            row = min(others, key=demand.excess)
            value = demand.measure(row)
            assert value is not None
            ways.append(f"{demand.option} to {demand.show(value)} ({row.file or row.name})")
    if not ways:
        ways_out = "More than one has to be loosened" if len(demands) > 1 else f"Leave out {demands[0].option}"
        return f"{sentence} {ways_out}."
    return f"{sentence} Loosen {', or '.join(ways)}."


def write_front(
    folder: Path, rows: Sequence[FrontRow], *, best_bytes: int, record: Mapping[str, Any]
) -> tuple[Path, ...]:
    """Write front.csv, front.json and front.png, each atomically.

    Args:
        best_bytes: of best.pt's weights in 32 bits.
        record: further entries of front.json.
    """
    front = find_front(rows)
    cells = [_cells(row, any(row is each for each in front), best_bytes) for row in rows]
    paths = tuple(folder / name for name in FRONT_FILES)
    write_csv(paths[0], COLUMNS, cells)
    entries = [
        {**row, "point": each.point.to_dict(), "network": each.point.network().to_dict()}
        for row, each in zip(cells, rows, strict=True)
    ]
    write_json(paths[1], {"format_version": 1, **record, "best_bytes": best_bytes, "rows": entries})
    _draw(rows, front, paths[2], str(record.get("recommended") or ""))
    return paths


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
    try:
        rows = [row for row in record["rows"] if row["on_front"] and row["file"]]
        files = [str(row["file"]) for row in sorted(rows, key=lambda row: (row["size_bytes"], row["latency_ms"]))]
        shown = {str(record["recommended"])}
    except (KeyError, TypeError) as error:
        raise InputError("front", source, f"is damaged: {error!r}", hint) from error
    # The folder may be somebody else's, and what is named here is written beside.
    if odd := [file for file in files if not re.fullmatch(r"front/[\w-]+/model\.onnx", file)]:
        raise InputError("front", source, f"names {odd[0]!r}, which is no file of a front", hint)
    if files:
        shown |= {files[round(step * (len(files) - 1) / (_MOST_LISTED - 1))] for step in range(_MOST_LISTED)}
    return [Path(file).parent.as_posix() for file in files if file in shown]


def _cells(row: FrontRow, on_front: bool, best_bytes: int) -> dict[str, Any]:
    point = asdict(row.point)
    cells = {
        **point,
        **without_nan(asdict(row.score)),
        **{name: value for name, value in vars(row).items() if name not in ("point", "score")},
    }
    cells |= {"widths": "-".join(map(str, row.point.widths())), "on_front": on_front}
    cells |= {"times_smaller": round(best_bytes / row.size_bytes, 2)}
    return {name: cells[name] for name in COLUMNS}


def _draw(rows: Sequence[FrontRow], front: Sequence[FrontRow], path: Path, recommended: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.8), dpi=110, layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, place, label in zip(panels, (0, 1), ("file", "latency"), strict=True):
        for stage, marker in zip(STAGES, ".^o", strict=True):
            if shown := [row for row in rows if row.stage == stage]:
                axes.plot(
                    [row.costs[place] for row in shown], [row.loss for row in shown], marker, alpha=0.5, label=stage
                )
        axes.plot(
            [row.costs[place] for row in front], [row.loss for row in front], "o", mfc="none", mec="#b3261e",
            ms=10, label="on the front",
        )  # fmt: skip
        for row in front:
            if recommended and recommended in (row.file, row.name):
                axes.plot(row.costs[place], row.loss, "*", color="#b3261e", ms=13, label="recommended")
        axes.set(xscale="log", xlabel=label)
        axes.margins(x=0.12)
        axes.grid(alpha=0.3)
        if rows:
            cost = format_cost("size_bytes" if place == 0 else "p50_ms")
            number_log_axis(axes, [row.costs[place] for row in rows], cost)
    panels[0].set_ylabel("lost colour, 1 - G (0: best.pt, 1: grey)")
    panels[0].legend(loc="best")
    figure.suptitle("Students by size, latency and lost colour, on the validation photographs")
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def format_front(rows: Sequence[FrontRow], best_bytes: int) -> str:
    """The front as a table of plain text, smallest first."""
    lines = [TABLE_HEADER, *(table_cells(row, best_bytes) for row in find_front(rows))]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TABLE_HEADER))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def table_cells(row: FrontRow, best_bytes: int) -> tuple[str, ...]:
    """A row for people."""
    kept = row.score.retained_colour
    return (
        row.file or row.name,
        format_bytes(row.size_bytes),
        f"{best_bytes / row.size_bytes:.1f}",
        f"{format_number(row.latency_ms)} ms",
        f"({row.score.l1_delta_pct:+.1f} % L1)" if math.isnan(kept) else f"{kept:.3f}",
        row.stage,
    )
