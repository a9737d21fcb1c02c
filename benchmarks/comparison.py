"""Two benchmarks beside each other: what changed in each row, and whether that is more than somebody allows.

A benchmark is a benchmark.json, or the run folder that holds it. The result is data; the command line prints it.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.rows import Row, read_benchmark_json
from colorpress.core.config import parse_size
from colorpress.core.errors import ConfigError, InputError, printable
from colorpress.core.text import format_bytes, format_count


class Metric(NamedTuple):
    """A figure of a row.

    Attributes:
        column: its name in tables.COLUMNS.
        higher_is_better: the direction.
        unit: of the figure, and of an absolute limit; empty for ratios and counts.
        kind: what decides whether two benchmarks can be compared by it: "time", "ratio" (of times of one
            machine), "accuracy" (of the photographs) or "model" (of the file alone).
    """

    column: str
    higher_is_better: bool
    unit: str
    kind: str


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
# Shown where no limit names others.
_SHOWN = ("p50", "speedup", "size", "l1", "g")
# Two figures that are equal but for the last digits of their difference are equal.
_ROUNDING = 1e-12
# No figure or limit is as large: beyond it arithmetic would overflow.
_ENDLESS = 1e100
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
        if not colon:
            raise ValueError
        value = float(limit.removesuffix("%")) / 100 if is_relative else _parse_amount(limit, unit)
    except (ValueError, ConfigError):
        example = "size:1KB" if unit == "B" else f"{name}:0.2{unit}"
        why = f"got {text!r}, where {limit!r} is no limit"
        raise ConfigError("option", "--fail-if", why, f"write {name}:5% or {example}") from None
    if not 0 <= value < _ENDLESS:
        why = f"got {text!r}; a limit is how much worse it may become, 0 or more"
        raise ConfigError("option", "--fail-if", why, f"write {name}:5%")
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
    _require_same_photos(a, b, gates)
    row_pairs = _match_rows(a, b, variants)
    warnings = [*_warn_of_machines(a, b), *_warn_of_conditions(row_pairs)]
    warnings += [] if _have_same_photos(a, b) else ["the photographs differ: accuracies cannot be compared"]
    warnings += _warn_of_noise(a, b, row_pairs, gates)
    failures: list[dict[str, Any]] = []
    not_judged: list[dict[str, Any]] = []
    for model, (old, new) in row_pairs.items():
        if gates and old is not None:
            _judge_row(model, old, new, gates, failures, not_judged)
    for gate in gates:
        unseen = [each for each in not_judged if each["gate"] == gate.text]
        if len(unseen) == sum(old is not None for old, _ in row_pairs.values()):
            warnings.append(f"{gate.text} was judged in no row")
    return {
        "a": str(a.path),
        "b": str(b.path),
        "same_machine": not _machine_differences(a, b),
        "noise": {"a": a.aa_ratios, "b": b.aa_ratios},
        "warnings": warnings,
        "rows": [_compare_row(model, old, new) for model, (old, new) in row_pairs.items()],
        "failures": failures,
        "not_judged": not_judged,
    }


@dataclass(frozen=True)
class _Benchmark:
    path: Path
    rows: Mapping[str, Row]
    aa_ratios: Mapping[str, Mapping[str, float]]
    machine: Mapping[str, Any]
    libraries: Mapping[str, str]
    photos: Sequence[str]
    grey_l1: Sequence[float]
    eval_size: int | None


def _read_benchmark(path: Path) -> _Benchmark:
    path = path / "benchmark.json" if path.is_dir() else path
    record = read_benchmark_json(path)
    try:
        machine, per_photo = record.get("machine") or {}, record.get("per_photo") or {}
        found = _Benchmark(
            path=path,
            rows={row.model: row for row in record["rows"]},
            aa_ratios={
                str(label): {end: _finite(ratio[end]) for end in ("median", "low", "high")}
                for label, ratio in (record.get("aa_ratios") or {}).items()
            },
            machine=machine,
            libraries=dict(machine.get("libraries") or {}),
            photos=[str(name) for name in per_photo.get("photos") or ()],
            grey_l1=[_finite(value) for value in per_photo.get("grey_l1") or ()],
            eval_size=(record.get("config") or {}).get("eval_size"),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        why = f"is damaged ({type(error).__name__}: {error})"
        raise InputError("benchmark", path, why, "run `colorpress benchmark` again") from error
    return found


def _finite(value: Any) -> float:
    if not abs(value) < _ENDLESS:
        raise ValueError(f"{value} is no figure")
    return float(value)


Pairs = dict[str, tuple[Row | None, Row | None]]


def _match_rows(a: _Benchmark, b: _Benchmark, variants: Sequence[str]) -> Pairs:
    """The rows of both by their name: those of the first one in its order, then what is new in the second."""
    rows = [*a.rows.values(), *b.rows.values()]
    for variant in variants:
        if not any(_is_one_of(row, [variant]) for row in rows):
            known = list(dict.fromkeys(row.variant for row in rows))
            near = difflib.get_close_matches(variant, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose one of: {', '.join(known)}"
            raise ConfigError("option", "--variant", f"got {variant!r}, and neither benchmark has such a row", hint)
    chosen = dict.fromkeys(row.model for row in rows if not variants or _is_one_of(row, variants))
    return {model: (a.rows.get(model), b.rows.get(model)) for model in chosen}


def _is_one_of(row: Row, variants: Sequence[str]) -> bool:
    return row.model in variants or row.variant in variants


def _figure(row: Row | None, name: str) -> float | None:
    """The figure of a metric; None for what is missing, no number, or not finite."""
    value: float | None = getattr(row, METRICS[name].column, None)
    return value


def _compare_row(model: str, old: Row | None, new: Row | None) -> dict[str, Any]:
    return {
        "model": model,
        "state": "new" if old is None else "lost" if new is None else "both",
        "status_before": old and old.status,
        "status_after": new and new.status,
        "metrics": {name: _compare_figures(name, _figure(old, name), _figure(new, name)) for name in METRICS},
    }


def _compare_figures(name: str, before: float | None, after: float | None) -> dict[str, Any]:
    change = None if before is None or after is None else after - before
    return {
        "before": before,
        "after": after,
        "change": change,
        "change_pct": 100 * change / abs(before) if change is not None and before else None,
        "worse": None if before is None or after is None else worse_by(name, before, after) > 0,
    }


def worse_by(name: str, before: float, after: float) -> float:
    """How much worse a metric became, in its unit; negative where it became better."""
    return before - after if METRICS[name].higher_is_better else after - before


def _judge_row(
    model: str,
    old: Row,
    new: Row | None,
    gates: Sequence[Gate],
    failures: list[dict[str, Any]],
    not_judged: list[dict[str, Any]],
) -> None:
    """Judge one row by every gate; adds to `failures` and `not_judged`."""
    if not old.is_ok:
        not_judged += [{"model": model, "gate": gate.text, "why": "had failed before"} for gate in gates]
        return
    if new is None or not new.is_ok:
        said = () if new is None else ("failed now", new.status, new.error)
        gone = ": ".join(str(part) for part in said if part) or "is missing now"
        nothing = dict.fromkeys(("gate", "metric", "before", "after", "worse_by", "allowed"))
        failures.append({"model": model, **nothing, "why": gone})
        return
    for gate in gates:
        before, after = _figure(old, gate.metric), _figure(new, gate.metric)
        if before is None:
            not_judged.append({"model": model, "gate": gate.text, "why": f"had no {gate.metric} before"})
            continue
        allowed = gate.allowance(before)
        worse = None if after is None else worse_by(gate.metric, before, after)
        if worse is not None and after is not None and worse - allowed <= _ROUNDING * max(abs(before), abs(after)):
            continue
        figures = f"{format_figure(gate.metric, before)} -> {format_figure(gate.metric, after)}"
        worse_text = f"worse by {format_figure(gate.metric, worse)}, more than {gate.text} allows"
        why = f"{gate.metric} {figures}{_format_change(before, after)}: {worse_text}"
        failures.append({
            "model": model, "gate": gate.text, "metric": gate.metric, "before": before, "after": after,
            "worse_by": worse, "allowed": allowed, "why": why if after is not None else f"has no {gate.metric} now",
        })  # fmt: skip


def _require_same_photos(a: _Benchmark, b: _Benchmark, gates: Sequence[Gate]) -> None:
    asked = [gate.text for gate in gates if METRICS[gate.metric].kind == "accuracy"]
    if asked and not _have_same_photos(a, b):
        why = f"was measured on other photographs, so {asked[0]} cannot be judged"
        raise InputError("benchmark", b.path, why, "benchmark both on the same photographs, at the same --eval-size")


def _have_same_photos(a: _Benchmark, b: _Benchmark) -> bool:
    """Whether accuracies can be compared: the same names, size, and colours to be found."""
    return (
        (a.photos, a.eval_size, len(a.grey_l1)) == (b.photos, b.eval_size, len(b.grey_l1))
        and all(math.isclose(*each, rel_tol=_SAME_PHOTO) for each in zip(a.grey_l1, b.grey_l1, strict=True))
    )  # fmt: skip


def _machine_differences(a: _Benchmark, b: _Benchmark) -> list[str]:
    hardware = ("cpu", "cores_physical", "cores_logical", "cores_usable", "gpus")
    figures = [({name: each.machine.get(name) for name in hardware} | dict(each.libraries)) for each in (a, b)]
    old, new = figures
    return [f"{name} {old.get(name)} / {new.get(name)}" for name in old | new if old.get(name) != new.get(name)]


def _warn_of_machines(a: _Benchmark, b: _Benchmark) -> list[str]:
    differences = "; ".join(_machine_differences(a, b))
    why = f"the machines differ ({differences}): absolute times cannot be compared, use speedup"
    return [why] if differences else []


def _warn_of_conditions(pairs: Pairs) -> list[str]:
    warnings = []
    for name in ("device", "batch", "height", "width", "threads"):
        differing = [
            f"{model} {getattr(old, name)} / {getattr(new, name)}"
            for model, (old, new) in pairs.items()
            if old is not None and new is not None and getattr(old, name) != getattr(new, name)
        ]
        if differing:
            more = f" and {len(differing) - 1} more" if len(differing) > 1 else ""
            warnings.append(f"{name} differs ({differing[0]}{more}): absolute times cannot be compared, use speedup")
    return warnings


def _warn_of_noise(a: _Benchmark, b: _Benchmark, pairs: Pairs, gates: Sequence[Gate]) -> list[str]:
    """Gates on times that are narrower than what the baseline differs from itself in one of the benchmarks."""
    spreads = {
        f"{label} of {side}": max(ratio["high"] - 1, 1 - ratio["low"])
        for side, each in (("a", a), ("b", b))
        for label, ratio in each.aa_ratios.items()
    }
    if not spreads:
        return []
    label, spread = max(spreads.items(), key=lambda item: item[1])
    warnings = []
    for gate in gates:
        figures = [figure for old, _ in pairs.values() if (figure := _figure(old, gate.metric))]
        narrow = any(gate.allowance(figure) < spread * abs(figure) for figure in figures)
        if METRICS[gate.metric].kind in ("time", "ratio") and narrow:
            spread_text = f"best.pt timed against itself differs by up to {100 * spread:.1f} % ({label})"
            warnings.append(f"{gate.text} is less than the noise: {spread_text}")
    return warnings


def format_comparison(found: Mapping[str, Any], gates: Sequence[Gate] = ()) -> str:
    """Rows, failures and what was not judged, as text for a terminal: the metrics of the gates, or a few of all."""
    names = list(dict.fromkeys(gate.metric for gate in gates)) or list(_SHOWN)
    lines = [["model", *names], *(_format_row(row, names) for row in found["rows"])]
    full = [line for line in lines if len(line) == len(names) + 1]
    widths = [max(len(line[column]) for line in full) for column in range(len(names) + 1)]
    widths[0] = max(len(line[0]) for line in lines)
    text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)).rstrip() for line in lines]
    text += [f"failed: {each['model']}: {each['why']}" for each in found["failures"]]
    text += [f"not judged: {each['model']}: {each['gate']}: {each['why']}" for each in found["not_judged"]]
    return "\n".join(printable(line) for line in text)


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
        if before is None and after is None:
            cells.append("-")
        elif row["state"] == "new":
            cells.append(format_figure(name, after))
        else:
            figures = f"{format_figure(name, before)} -> {format_figure(name, after)}"
            cells.append(figures + _format_change(before, after))
    return [model, *cells]


def _format_change(before: float | None, after: float | None) -> str:
    return f" ({100 * (after - before) / abs(before):+.1f} %)" if before and after is not None else ""


def format_figure(name: str, value: float | None) -> str:
    """A metric's figure with its unit; a dash for None."""
    if value is None:
        return "-"
    if name == "size":
        return format_bytes(int(value))
    if name in ("params", "macs"):
        return format_count(int(value))
    unit = METRICS[name].unit
    return f"{value:.4g} {unit}".rstrip()
