"""Two benchmarks beside each other: what changed in each row, and whether that is more than somebody allows.

A benchmark is a benchmark.json, or the run folder that holds it. The result is data; the command line prints it.
"""

from __future__ import annotations

import difflib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.rows import COLUMNS, ENDLESS, Row, read_benchmark_json
from colorpress.core.config import parse_size
from colorpress.core.errors import ConfigError, InputError, printable
from colorpress.core.text import align_cells, format_bytes, format_count

if TYPE_CHECKING:
    from pandas import DataFrame


class Metric(NamedTuple):
    """A figure of a row.

    Attributes:
        column: its name in rows.COLUMNS.
        higher_is_better: the direction.
        unit: of the figure, and of an absolute limit; empty for ratios and counts.
        kind: what decides whether two benchmarks can be compared by it: "time", "ratio" (of times of one
            machine), "accuracy" (of the photographs) or "model" (of the file alone).
    """

    column: str
    higher_is_better: bool
    unit: str
    kind: str

    @property
    def sign(self) -> int:
        """What a change is multiplied by to say how much worse it is."""
        return -1 if self.higher_is_better else 1


METRICS = {
    "p50": Metric("p50_ms", False, "ms", "time"),
    "p90": Metric("p90_ms", False, "ms", "time"),
    "p95": Metric("p95_ms", False, "ms", "time"),
    "p99": Metric("p99_ms", False, "ms", "time"),
    "mean": Metric("mean_ms", False, "ms", "time"),
    "load": Metric("load_ms", False, "ms", "time"),
    "first": Metric("first_ms", False, "ms", "time"),
    "images_per_s": Metric("images_per_s", True, "", "time"),
    "speedup": Metric("speedup", True, "", "ratio"),
    "roof": Metric("roof_share", True, "", "ratio"),
    "memory": Metric("peak_rss_mb", False, "MB", "model"),
    "size": Metric("size_bytes", False, "B", "model"),
    "params": Metric("params", False, "", "model"),
    "macs": Metric("macs", False, "", "model"),
    "l1": Metric("l1", False, "", "accuracy"),
    "l1_rgb": Metric("l1_rgb", False, "", "accuracy"),
    "g": Metric("retained_colour", True, "", "accuracy"),
    "psnr": Metric("psnr_db", True, "dB", "accuracy"),
    "ssim": Metric("ssim", True, "", "accuracy"),
    "delta_e": Metric("delta_e", False, "", "accuracy"),
    "agreement": Metric("agreement_l1", False, "", "accuracy"),
}
_HARDWARE = ("cpu", "cores_physical", "cores_logical", "cores_usable", "gpus")
# Shown where no limit names others.
_SHOWN = ("p50", "speedup", "size", "l1", "g")
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
        gates: each is judged in every row that is fine in `before`. A row that is missing or has failed in `after`
            fails as soon as there is any gate; so does a figure that is missing in `after` alone.
        variants: rows to look at, by `model` or `variant`; none: all.
    Returns:
        JSON-ready values: "a" and "b" (the files), "same_machine" (processor, cores, GPUs and library versions),
        "noise" ({"a": .., "b": ..}: the aa_ratios of both), "warnings" (what keeps figures from being compared),
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
    models = _choose_models(a.rows, b.rows, variants)
    old, new = a.rows.reindex(models), b.rows.reindex(models)
    was_there = old.index[old["status"].notna()] if gates else ()
    judged = [_judge_row(model, old.loc[model], new.loc[model], gates) for model in was_there]
    failures, not_judged = ([each for lists in judged for each in lists[kind]] for kind in (0, 1))
    unseen = Counter(each["gate"] for each in not_judged)
    return {
        "a": str(a.path),
        "b": str(b.path),
        "same_machine": not differing,
        "noise": {"a": a.aa_ratios, "b": b.aa_ratios},
        "warnings": [
            *([f"the machines differ ({'; '.join(differing)}): {_ONLY_RATIOS}"] if differing else []),
            *_warn_of_conditions(old, new),
            *([] if same_photos else ["the photographs differ: accuracies cannot be compared"]),
            *_warn_of_noise(a, b, old, gates),
            *(f"{gate.text} was judged in no row" for gate in gates if unseen[gate.text] == len(was_there)),
        ],
        "rows": _compare_rows(old, new),
        "failures": failures,
        "not_judged": not_judged,
    }


@dataclass(frozen=True)
class _Benchmark:
    """What is compared: rows by `model` with the short names of metrics as columns, the machine and the photographs."""

    path: Path
    rows: DataFrame
    aa_ratios: Mapping[str, Mapping[str, float]]
    machine: Mapping[str, Any]
    photos: Sequence[str]
    grey_l1: Sequence[float]
    eval_size: int | None


def _read_benchmark(path: Path) -> _Benchmark:
    path = path / "benchmark.json" if path.is_dir() else path
    record = read_benchmark_json(path)
    try:
        machine, per_photo = record.get("machine") or {}, record.get("per_photo") or {}
        return _Benchmark(
            path=path,
            rows=_tabulate(record["rows"]),
            aa_ratios={
                str(label): {end: _finite(ratio[end]) for end in ("median", "low", "high")}
                for label, ratio in (record.get("aa_ratios") or {}).items()
            },
            machine={**{name: machine.get(name) for name in _HARDWARE}, **(machine.get("libraries") or {})},
            photos=[str(name) for name in per_photo.get("photos") or ()],
            grey_l1=[_finite(value) for value in per_photo.get("grey_l1") or ()],
            eval_size=(record.get("config") or {}).get("eval_size"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"is damaged ({type(error).__name__}: {error})"
        raise InputError("benchmark", path, why, "run `colorpress benchmark` again") from error


def _finite(value: Any) -> float:
    if not abs(value) < ENDLESS:
        raise ValueError(f"{value} is no figure")
    return float(value)


def _tabulate(rows: Sequence[Row]) -> DataFrame:
    import pandas

    # As objects, so that a whole number stays one; NaN, as arithmetic goes on with it, where there is no figure.
    cells = [[math.nan if value is None else value for value in vars(row).values()] for row in rows]
    short = {metric.column: name for name, metric in METRICS.items()}
    return pandas.DataFrame(cells, columns=list(COLUMNS), dtype=object).set_index("model").rename(columns=short)


def _plain(value: Any) -> Any:
    """JSON has no NaN."""
    return None if value != value else value


def _choose_models(old: DataFrame, new: DataFrame, variants: Sequence[str]) -> list[str]:
    """The names of the first one's rows in its order, then of what is new in the second."""
    files = new["variant"].to_dict() | old["variant"].to_dict()
    models = list(old.index.union(new.index, sort=False))
    for variant in variants:
        if variant not in files and variant not in files.values():
            known = list(dict.fromkeys(files[model] for model in models))
            near = difflib.get_close_matches(variant, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(known)}"
            raise ConfigError("option", "--variant", f"got {variant!r}, and neither benchmark has such a row", hint)
    return [model for model in models if not variants or model in variants or files[model] in variants]


def _compare_rows(old: DataFrame, new: DataFrame) -> list[dict[str, Any]]:
    import pandas

    before, after = old[list(METRICS)], new[list(METRICS)]
    change = after - before
    parts = {
        "before": before,
        "after": after,
        "change": change,
        "change_pct": 100 * change / before.abs().mask(before == 0),
        "worse": (change * pandas.Series({name: metric.sign for name, metric in METRICS.items()}) > 0)
        .astype(object)
        .mask(change.isna()),
    }
    figures = {part: table.to_dict("index") for part, table in parts.items()}
    return [
        {
            "model": model,
            "state": "new" if old_status is None else "lost" if new_status is None else "both",
            "status_before": old_status,
            "status_after": new_status,
            "metrics": {name: {part: _plain(figures[part][model][name]) for part in parts} for name in METRICS},
        }
        for model, old_status, new_status in zip(
            old.index, map(_plain, old["status"]), map(_plain, new["status"]), strict=True
        )
    ]


def _judge_row(
    model: str, old: Any, new: Any, gates: Sequence[Gate]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The failures of one row, and the gates that it could not be judged by; `old` and `new` by column."""
    if old["status"] != "ok":
        return [], [{"model": model, "gate": gate.text, "why": "had failed before"} for gate in gates]
    if new["status"] != "ok":
        said = [part for part in ("failed now", _plain(new["status"]), _plain(new["error"])) if part]
        why = ": ".join(said) if len(said) > 1 else "is missing now"
        nothing = dict.fromkeys(("gate", "metric", "before", "after", "worse_by", "allowed"))
        return [{"model": model, **nothing, "why": why}], []
    failures, not_judged = [], []
    for gate in gates:
        name, before, after = gate.metric, _plain(old[gate.metric]), _plain(new[gate.metric])
        if before is None:
            not_judged.append({"model": model, "gate": gate.text, "why": f"had no {name} before"})
            continue
        allowed, worse, why = gate.allowance(before), None, f"has no {name} now"
        if after is not None:
            worse = METRICS[name].sign * (after - before)
            if worse - allowed <= _ROUNDING * max(abs(before), abs(after)):
                continue
            why = f"{name} {_format_step(name, before, after)}: worse by {format_figure(name, worse)}, "
            why += f"more than {gate.text} allows"
        failures.append({
            "model": model, "gate": gate.text, "metric": name, "before": before, "after": after,
            "worse_by": worse, "allowed": allowed, "why": why,
        })  # fmt: skip
    return failures, not_judged


def _have_same_photos(a: _Benchmark, b: _Benchmark) -> bool:
    """Whether accuracies can be compared: the same names, size, and colours to be found."""
    same_names = (a.photos, a.eval_size, len(a.grey_l1)) == (b.photos, b.eval_size, len(b.grey_l1))
    return same_names and all(map(partial(math.isclose, rel_tol=_SAME_PHOTO), a.grey_l1, b.grey_l1))


def _machine_differences(a: _Benchmark, b: _Benchmark) -> list[str]:
    old, new = a.machine, b.machine
    return [f"{name} {old.get(name)} / {new.get(name)}" for name in {**old, **new} if old.get(name) != new.get(name)]


def _warn_of_conditions(old: DataFrame, new: DataFrame) -> list[str]:
    warnings = []
    for name in ("device", "batch", "height", "width", "threads"):
        differing = old.index[(old[name] != new[name]) & old[name].notna() & new[name].notna()]
        if len(differing):
            model = differing[0]
            first = f"{model} {old[name].to_dict()[model]} / {new[name].to_dict()[model]}"
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            warnings.append(f"{name} differs ({first}{more}): {_ONLY_RATIOS}")
    return warnings


def _warn_of_noise(a: _Benchmark, b: _Benchmark, old: DataFrame, gates: Sequence[Gate]) -> list[str]:
    """Gates on times that are narrower than what the baseline differs from itself in one of the benchmarks."""
    spreads = {
        f"{label} of {side}": max(ratio["high"] - 1, 1 - ratio["low"])
        for side, each in (("a", a), ("b", b))
        for label, ratio in each.aa_ratios.items()
    }
    label = max(spreads, key=spreads.__getitem__, default="")
    warnings = []
    for gate in gates if spreads else ():
        figures = [figure for figure in old[gate.metric].dropna() if figure]
        narrow = any(gate.allowance(figure) < spreads[label] * abs(figure) for figure in figures)
        if METRICS[gate.metric].kind in ("time", "ratio") and narrow:
            spread_text = f"best.pt timed against itself differs by up to {100 * spreads[label]:.1f} % ({label})"
            warnings.append(f"{gate.text} is less than the noise: {spread_text}")
    return warnings


def format_comparison(found: Mapping[str, Any], gates: Sequence[Gate] = ()) -> str:
    """Rows, failures and what was not judged, as text for a terminal: the metrics of the gates, or a few of all."""
    names = list(dict.fromkeys(gate.metric for gate in gates)) or list(_SHOWN)
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
