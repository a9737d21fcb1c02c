"""Two benchmarks beside each other: what changed in each row, and whether that is more than somebody allows.

A benchmark is a benchmark.json, or the run folder that holds it. The result is data; the command line prints it.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.rows import ENDLESS, Row, read_benchmark_json
from benchmarks.verdict import measure_of
from colorpress.core.config import parse_size
from colorpress.core.errors import ConfigError, InputError, printable
from colorpress.core.text import align_cells, format_bytes, format_count
from compress.measures import Measure
from export.timing import Ratio

if TYPE_CHECKING:
    from pandas import DataFrame


class Metric(NamedTuple):
    """A figure of a row.

    Attributes:
        column: its name in rows.COLUMNS.
        sign: of a change for the worse: -1 where higher is better.
        unit: of the figure, and of an absolute limit; empty for ratios and counts.
        kind: what decides whether two benchmarks can be compared by it: "time", "ratio" (of times of one
            machine), "accuracy" (of the photographs) or "model" (of the file alone).
    """

    column: str
    sign: int
    unit: str
    kind: str

    def read(self, row: Row | None) -> float | None:
        """The figure of a row; None where it has none."""
        figure: float | None = getattr(row, self.column, None)
        return figure


METRICS = {
    "p50": Metric("p50_ms", 1, "ms", "time"),
    "p90": Metric("p90_ms", 1, "ms", "time"),
    "p95": Metric("p95_ms", 1, "ms", "time"),
    "p99": Metric("p99_ms", 1, "ms", "time"),
    "mean": Metric("mean_ms", 1, "ms", "time"),
    "load": Metric("load_ms", 1, "ms", "time"),
    "first": Metric("first_ms", 1, "ms", "time"),
    "images_per_s": Metric("images_per_s", -1, "", "time"),
    "speedup": Metric("speedup", -1, "", "ratio"),
    "roof": Metric("roof_share", -1, "", "ratio"),
    "memory": Metric("peak_rss_mb", 1, "MB", "model"),
    "size": Metric("size_bytes", 1, "B", "model"),
    "params": Metric("params", 1, "", "model"),
    "macs": Metric("macs", 1, "", "model"),
    "l1": Metric("l1", 1, "", "accuracy"),
    "l1_rgb": Metric("l1_rgb", 1, "", "accuracy"),
    "g": Metric("retained_colour", -1, "", "accuracy"),
    "c": Metric("content_colour", -1, "", "accuracy"),
    "f": Metric("fidelity", -1, "", "accuracy"),
    "edge": Metric("edge_l1", 1, "", "accuracy"),
    # Less of best.pt's chroma is worse, since colours that fade are what compression costs; more of it is not judged.
    "chroma": Metric("chroma_to_best", -1, "", "accuracy"),
    "psnr": Metric("psnr_db", -1, "dB", "accuracy"),
    "ssim": Metric("ssim", -1, "", "accuracy"),
    "delta_e": Metric("delta_e", 1, "", "accuracy"),
    "agreement": Metric("agreement_l1", 1, "", "accuracy"),
}
_HARDWARE = ("cpu", "cores_physical", "cores_logical", "cores_usable", "gpus")
# Shown where no limit names others, and behind them the measure that decides.
_SHOWN = ("p50", "speedup", "size", "l1")
_ONLY_RATIOS = "absolute times cannot be compared, use speedup"
# Two figures that are equal but for the last digits of their difference are equal.
_ROUNDING = 1e-12
# The L1 of a grey answer tells one photograph from another; resizing differs a little between versions of a library.
_SAME_PHOTO = 0.01


@dataclass(frozen=True)
class Gate:
    """How much worse a metric may become.

    Attributes:
        text: as it was written, such as "p50:5%".
        metric: a name in METRICS.
        limit: as a share of the figure before if `is_relative`, else in the metric's unit; not negative.
    """

    text: str
    metric: str
    limit: float
    is_relative: bool

    def allowance(self, before: float) -> float:
        """The largest change for the worse that passes, in the metric's unit."""
        return self.limit * abs(before) if self.is_relative else self.limit


def parse_gate(text: str) -> Gate:
    """Read METRIC:LIMIT, where LIMIT is "5%" of the figure before, or a number in the metric's unit ("0.2", "0.2ms").

    Sizes may have the units of `--target-size`, as in "size:1KB".

    Raises:
        ConfigError: no such metric, or the limit is none, negative or not finite.
    """
    name, colon, limit = (part.strip() for part in text.partition(":"))
    if name not in METRICS:
        columns = {metric.column: short for short, metric in METRICS.items()}
        near = difflib.get_close_matches(name.lower(), [*METRICS, *columns], n=1)
        known = f"choose one of: {', '.join(METRICS)}"
        hint = f"did you mean {columns.get(near[0], near[0])!r}?" if near else known
        raise ConfigError("option", "--fail-if", f"got {text!r}, and there is no metric {name!r}", hint)
    unit = METRICS[name].unit
    is_relative = limit.endswith("%")
    try:
        value = float(limit.removesuffix("%")) / 100 if is_relative else _parse_amount(limit, unit)
        if not (colon and 0 <= value < ENDLESS):
            raise ValueError
    except (ValueError, ConfigError):
        example = "size:1KB" if unit == "B" else f"{name}:0.2{unit}"
        why = f"got {text!r}, where {limit!r} is no limit of how much worse it may become"
        raise ConfigError("option", "--fail-if", why, f"write {name}:5% or {example}") from None
    return Gate(text, name, value, is_relative)


def _parse_amount(text: str, unit: str) -> float:
    try:
        return float(text.removesuffix(unit))
    except ValueError:
        if unit != "B":
            raise
        return parse_size(text)


def compare_benchmarks(
    before: Path, after: Path, gates: Sequence[Gate] = (), *, variants: Sequence[str] = ()
) -> dict[str, Any]:
    """Match the rows of two benchmarks by their `model` and judge every metric, and every gate.

    Args:
        before, after: a benchmark.json each, or folders that hold one.
        gates: each is judged in every row that is fine in `before`, but for controls. A row that is missing or has
            failed in `after` fails as soon as there is any gate; so does a figure that is missing in `after` alone.
        variants: rows to look at, by `model` or `variant`; none: all.
    Returns:
        JSON-ready values: "a" and "b" (the files), "same_machine" (processor, cores, GPUs and library versions),
        "noise" ({"a": .., "b": ..}: the aa_ratios of both), "measure" (the metric "c" or "f", by which a's best.pt is
        strong enough to be judged), "warnings" (what keeps figures from being compared),
        "rows", "failures" and "not_judged". A row has "model", "state" ("both", "lost": only in a, "new": only in b),
        "status_before", "status_after" and "metrics": by short name "before", "after", "change" (after - before),
        "change_pct" (of before's size) and "worse" (bool), each None where there is no figure. A failure has "model",
        "gate", "metric", "before", "after", "worse_by", "allowed" (both in the metric's unit) and "why"; gate and
        figures are None for a row that is lost or has failed. "not_judged" has "model", "gate" and "why".
    Raises:
        ConfigError: `variants` names none of the rows.
        InputError: a file cannot be read, is no benchmark of this format, or an accuracy gate is to compare
            different photographs.
    """
    a, b = _read_benchmark(before), _read_benchmark(after)
    gates = tuple(dict.fromkeys(gates))
    differing, same_photos = _machine_differences(a, b), _have_same_photos(a, b)
    asked = [gate.text for gate in gates if METRICS[gate.metric].kind == "accuracy"]
    if asked and not same_photos:
        why = f"was measured on other photographs, so {asked[0]} cannot be judged"
        raise InputError("benchmark", b.path, why, "benchmark both on the same photographs, at the same --eval-size")
    pairs = {model: (a.rows.get(model), b.rows.get(model)) for model in _choose_models(a.rows, b.rows, variants)}
    # What answers without looking is shown, but is nobody's build.
    baselines = [old for old, _ in pairs.values() if old and not old.control]
    judged = [_judge_row(old, b.rows.get(old.model), gates) for old in baselines]
    failures, not_judged = ([each for lists in judged for each in lists[kind]] for kind in (0, 1))
    unseen = Counter(each["gate"] for each in not_judged)
    return {
        "a": str(a.path),
        "b": str(b.path),
        "same_machine": not differing,
        "noise": {
            side: {label: asdict(ratio) for label, ratio in each.aa_ratios.items()}
            for side, each in (("a", a), ("b", b))
        },
        "measure": next(name for name, each in METRICS.items() if each.column == a.measure.name),
        "warnings": [
            *([f"the machines differ ({'; '.join(differing)}): {_ONLY_RATIOS}"] if differing else []),
            *_warn_of_conditions([(old, new) for old, new in pairs.values() if old and new]),
            *([] if same_photos else ["the photographs differ: accuracies cannot be compared"]),
            *_warn_of_measures(a, b),
            *_warn_of_noise(a, b, baselines, gates),
            *(f"{gate.text} was judged in no row" for gate in gates if unseen[gate.text] == len(baselines)),
        ],
        "rows": _compare_rows(a, b, list(pairs)),
        "failures": failures,
        "not_judged": not_judged,
    }


@dataclass(frozen=True)
class _Benchmark:
    """What is compared: rows by `model`, noise, machine, and the photographs with the side that they were seen at."""

    path: Path
    rows: Mapping[str, Row]
    aa_ratios: Mapping[str, Ratio]
    machine: Mapping[str, Any]
    photos: Sequence[object]
    grey_l1: Sequence[float]
    measure: Measure


def _read_benchmark(path: Path) -> _Benchmark:
    path = path / "benchmark.json" if path.is_dir() else path
    read = read_benchmark_json(path)
    try:
        machine, per_photo = read.machine, read.per_photo
        return _Benchmark(
            path=path,
            rows={row.model: row for row in read.rows},
            aa_ratios=read.aa_ratios,
            machine={**{name: machine.get(name) for name in _HARDWARE}, **(machine.get("libraries") or {})},
            photos=[read.config.get("eval_size"), *map(str, per_photo.get("photos") or ())],
            grey_l1=[_finite(value) for value in per_photo.get("grey_l1") or ()],
            measure=measure_of(read.strength),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"is damaged ({type(error).__name__}: {error})"
        raise InputError("benchmark", path, why, "run `colorpress benchmark` again") from error


def _finite(value: Any) -> float:
    if not abs(value) < ENDLESS:
        raise ValueError(f"{value} is no figure")
    return float(value)


def _choose_models(old: Mapping[str, Row], new: Mapping[str, Row], variants: Sequence[str]) -> list[str]:
    """The names of the first one's rows in its order, then of what is new in the second."""
    # In the order of the first one, whose rows say the files.
    files = {model: old.get(model, row).variant for model, row in {**old, **new}.items()}
    for variant in variants:
        if variant not in files and variant not in files.values():
            known = list(dict.fromkeys(files.values()))
            near = difflib.get_close_matches(variant, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(known)}"
            raise ConfigError("option", "--variant", f"got {variant!r}, and neither benchmark has such a row", hint)
    return [model for model, file in files.items() if not variants or model in variants or file in variants]


def _compare_rows(a: _Benchmark, b: _Benchmark, models: Sequence[str]) -> list[dict[str, Any]]:
    import pandas

    def tabulate(rows: Mapping[str, Row]) -> DataFrame:
        figures = [[metric.read(rows.get(model)) for metric in METRICS.values()] for model in models]
        # As objects, so that a whole number stays one; NaN, as arithmetic goes on with it, where there is no figure.
        table = pandas.DataFrame(figures, index=list(models), columns=list(METRICS), dtype=object)
        return table.mask(table.isna(), math.nan)

    before, after = tabulate(a.rows), tabulate(b.rows)
    change = after - before
    worse = change * pandas.Series({name: metric.sign for name, metric in METRICS.items()}) > 0
    parts = {
        "before": before,
        "after": after,
        "change": change,
        "change_pct": 100 * change / before.abs().mask(before == 0),
        "worse": worse.astype(object).mask(change.isna()),
    }
    # JSON has no NaN.
    figures = {part: table.where(table.notna(), None).to_dict("index") for part, table in parts.items()}
    rows = []
    for model in models:
        old, new = a.rows.get(model), b.rows.get(model)
        rows.append({
            "model": model,
            "state": "new" if old is None else "lost" if new is None else "both",
            "status_before": old.status if old else None,
            "status_after": new.status if new else None,
            "metrics": {name: {part: figures[part][model][name] for part in parts} for name in METRICS},
        })  # fmt: skip
    return rows


def _judge_row(old: Row, new: Row | None, gates: Sequence[Gate]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The failures of one row, and the gates that it could not be judged by."""
    failures: list[dict[str, Any]] = []
    not_judged: list[dict[str, Any]] = []
    if old.is_ok and gates and not (new and new.is_ok):
        why = ": ".join(filter(None, ("failed now", new.status, new.error))) if new else "is missing now"
        nothing = dict.fromkeys(("gate", "metric", "before", "after", "worse_by", "allowed"))
        return [{"model": old.model, **nothing, "why": why}], []
    for gate in gates:
        name, metric = gate.metric, METRICS[gate.metric]
        before, after = metric.read(old), metric.read(new)
        if not old.is_ok or before is None:
            why = f"had no {name} before" if old.is_ok else "had failed before"
            not_judged.append({"model": old.model, "gate": gate.text, "why": why})
            continue
        allowed, worse, why = gate.allowance(before), None, f"has no {name} now"
        if after is not None:
            worse = metric.sign * (after - before)
            if worse - allowed <= _ROUNDING * max(abs(before), abs(after)):
                continue
            why = f"{name} {_format_step(name, before, after)}: worse by {format_figure(name, worse)}, "
            why += f"more than {gate.text} allows"
        failures.append({
            "model": old.model, "gate": gate.text, "metric": name, "before": before, "after": after,
            "worse_by": worse, "allowed": allowed, "why": why,
        })  # fmt: skip
    return failures, not_judged


def _have_same_photos(a: _Benchmark, b: _Benchmark) -> bool:
    """Whether accuracies can be compared: the same names, size, and colours to be found."""
    same_names = (a.photos, len(a.grey_l1)) == (b.photos, len(b.grey_l1))
    return same_names and all(map(partial(math.isclose, rel_tol=_SAME_PHOTO), a.grey_l1, b.grey_l1))


def _machine_differences(a: _Benchmark, b: _Benchmark) -> list[str]:
    old, new = a.machine, b.machine
    return [f"{name} {old.get(name)} / {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)]


def _warn_of_conditions(pairs: Sequence[tuple[Row, Row]]) -> list[str]:
    warnings = []
    for name in ("device", "batch", "height", "width", "threads"):
        values = [(old.model, getattr(old, name), getattr(new, name)) for old, new in pairs]
        if differing := [f"{model} {before} / {after}" for model, before, after in values if before != after]:
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            warnings.append(f"{name} differs ({differing[0]}{more}): {_ONLY_RATIOS}")
    return warnings


def _warn_of_measures(a: _Benchmark, b: _Benchmark) -> list[str]:
    if a.measure is b.measure:
        return []
    return [f"{a.measure.title} decides in the first benchmark, {b.measure.title} in the second: best.pt differs"]


def _warn_of_noise(a: _Benchmark, b: _Benchmark, rows: Sequence[Row], gates: Sequence[Gate]) -> list[str]:
    """Gates on times that are narrower than what the baseline differs from itself in one of the benchmarks."""
    spreads = [
        (ratio.noise, f"{label} of {side}")
        for side, each in (("a", a), ("b", b))
        for label, ratio in each.aa_ratios.items()
    ]
    spread, label = max(spreads, key=lambda each: each[0], default=(0.0, ""))
    warnings = []
    for gate in gates:
        metric = METRICS[gate.metric]
        figures = [figure for row in rows if (figure := metric.read(row))]
        if metric.kind in ("time", "ratio") and any(gate.allowance(each) < spread * abs(each) for each in figures):
            spread_text = f"best.pt timed against itself differs by up to {100 * spread:.1f} % ({label})"
            warnings.append(f"{gate.text} is less than the noise: {spread_text}")
    return warnings


def format_comparison(found: Mapping[str, Any], gates: Sequence[Gate] = ()) -> str:
    """Rows, failures and what was not judged, as text for a terminal: the metrics of the gates, or a few of all."""
    names = list(dict.fromkeys(gate.metric for gate in gates)) or [*_SHOWN, found["measure"]]
    lines = align_cells([["model", *names], *(_format_row(row, names) for row in found["rows"])], to_left=True)
    lines += [f"failed: {each['model']}: {each['why']}" for each in found["failures"]]
    lines += [f"not judged: {each['model']}: {each['gate']}: {each['why']}" for each in found["not_judged"]]
    return "\n".join(map(printable, lines))


def _format_row(row: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    model = printable(row["model"])
    if row["state"] == "lost":
        return [model, "missing now"]
    model += " (new)" if row["state"] == "new" else ""
    if row["status_after"] != "ok":
        return [model, f"failed now: {row['status_after']}"]
    cells = []
    for name in names:
        before, after = row["metrics"][name]["before"], row["metrics"][name]["after"]
        is_alone = before is None and (after is None or row["state"] == "new")
        cells.append(format_figure(name, after) if is_alone else _format_step(name, before, after))
    return [model, *cells]


def _format_step(name: str, before: float | None, after: float | None) -> str:
    change = f" ({100 * (after - before) / abs(before):+.1f} %)" if before and after is not None else ""
    return f"{format_figure(name, before)} -> {format_figure(name, after)}{change}"


def format_figure(name: str, value: float | None) -> str:
    """A metric's figure with its unit; a dash for None."""
    if value is None:
        return "-"
    if name == "size":
        return format_bytes(int(value))
    if name in ("params", "macs"):
        return format_count(int(value))
    return f"{value:.4g} {METRICS[name].unit}".rstrip()
