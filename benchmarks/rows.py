"""A benchmark's rows, and the JSON file that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import write_text
from colorpress.core.reading import as_damaged, read_json
from compress.measures import Measure, Strength
from export.runtimes import RUNTIMES
from export.timing import Ratio

FORMAT_VERSION = 3
# Calls that vary by more than this are on a machine that does something else as well.
NOISY_CV_PCT = 2.5
# The status of a row whose file could not be made, so that there was nothing to measure.
NOT_MADE = "not made"
# No figure is as large: beyond it arithmetic would overflow.
ENDLESS = 1e100


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model file in one runtime under one condition: what it is, how fast it ran and how it coloured.

    A figure that was not measured is None. `variant` names the file, `model` the row: "best-int8" and "best-int8 @
    openvino, batch 8". `compute` is what float layers computed in, `error` and `caution` are texts, often empty. Of
    the rest see `variants.Variant`, `timing.Timing`, `timing.Statistics` and `accuracy.Accuracy`. `also` has
    ALSO_FIGURES on the photographs of each folder of --also, by its name.
    """

    model: str
    variant: str
    peer: bool = False
    control: str = ""
    runtime: str
    provider: str = ""
    device: str
    compute: str | None = None
    precision: str = ""
    params: int | None = None
    macs: int | None = None
    size_bytes: int
    weights_bytes: int | None = None
    batch: int
    height: int
    width: int
    threads: int
    warmup: int | None = None
    runs: int | None = None
    mean_ms: float | None = None
    std_ms: float | None = None
    cv_pct: float | None = None
    min_ms: float | None = None
    p50_ms: float | None = None
    p90_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    images_per_s: float | None = None
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    load_ms: float | None = None
    first_ms: float | None = None
    compute_ms: float | None = None
    peak_rss_mb: float | None = None
    roof_ms: float | None = None
    roof_share: float | None = None
    photos: int = 0
    l1: float | None = None
    l1_delta_pct: float | None = None
    retained_colour: float | None = None
    retained_low: float | None = None
    retained_high: float | None = None
    content_colour: float | None = None
    content_low: float | None = None
    content_high: float | None = None
    fidelity: float | None = None
    fidelity_low: float | None = None
    fidelity_high: float | None = None
    choosing_kept: float | None = None
    choosing_likely: float | None = None
    confirming_photos: int = 0
    confirming_l1_delta_pct: float | None = None
    confirming_kept: float | None = None
    confirming_low: float | None = None
    confirming_high: float | None = None
    l1_rgb: float | None = None
    psnr_db: float | None = None
    ssim: float | None = None
    delta_e: float | None = None
    edge_l1: float | None = None
    chroma: float | None = None
    chroma_to_best: float | None = None
    chroma_to_truth: float | None = None
    agreement_l1: float | None = None
    colourfulness: float | None = None
    colourfulness_ratio: float | None = None
    status: str
    error: str = ""
    caution: str = ""
    # A mapping has no hash.
    also: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict, hash=False)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Row:
        """A row of benchmark.json. Names that this version does not know are skipped; what is no figure is none.

        Raises:
            ValueError: it is no row, or lacks what every row has.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"{record!r} is no row")
        values: dict[str, Any] = {}
        for each in fields(cls):
            value = record.get(each.name)
            if each.name == "also":
                values[each.name] = _read_also(value)
            elif _fits(value, str(each.type)):
                values[each.name] = value
            elif each.default is MISSING:
                raise ValueError(f"a row has no {each.name}")
        return cls(**values)

    @property
    def is_ok(self) -> bool:
        """Whether it was measured to the end."""
        return self.status == "ok"

    @property
    def is_failed(self) -> bool:
        """Whether its file is there and could not be measured."""
        return self.status not in ("ok", NOT_MADE)

    @property
    def is_noisy(self) -> bool:
        """Whether something else ran on the machine as well."""
        return self.cv_pct is not None and self.cv_pct > NOISY_CV_PCT

    @property
    def condition(self) -> tuple[str, int, int, int, int]:
        """What times depend on beside the model and its runtime."""
        return self.device, self.batch, self.height, self.width, self.threads

    def kept(self, measure: Measure) -> float | None:
        """What it keeps of best.pt by a measure."""
        figure: float | None = getattr(self, measure.name)
        return figure

    def interval(self, measure: Measure) -> tuple[float, float] | None:
        """The 95 % interval of `kept`."""
        low, high = getattr(self, measure.low), getattr(self, measure.high)
        return None if low is None or high is None else (low, high)

    @property
    def is_confirmed(self) -> bool:
        """Whether there are photographs that did not choose it."""
        return self.confirming_photos > 0

    def reported(self, measure: Measure) -> tuple[float | None, tuple[float, float] | None]:
        """What it keeps by the measure that decides and its 95 % interval, where it is confirmed of that alone."""
        if not self.is_confirmed:
            return self.kept(measure), self.interval(measure)
        low, high = self.confirming_low, self.confirming_high
        return self.confirming_kept, None if low is None or high is None else (low, high)

    @property
    def reported_l1_delta_pct(self) -> float | None:
        """Its L1 above best.pt's in percent, on the photographs of `reported`."""
        return self.confirming_l1_delta_pct if self.is_confirmed else self.l1_delta_pct

    @property
    def fair_size_bytes(self) -> int:
        """A checkpoint's weights alone: the training state beside them is not what compression takes away."""
        # A benchmark of another version may name a runtime that is not known here.
        known = RUNTIMES.get(self.runtime)
        is_checkpoint = known is not None and known.family == "PyTorch"
        return min(self.size_bytes, self.weights_bytes or self.size_bytes) if is_checkpoint else self.size_bytes

    def times_smaller(self, other: Row) -> float:
        """How many times smaller its file is than another's."""
        return other.fair_size_bytes / self.fair_size_bytes


# Of a row on the photographs of another folder.
ALSO_FIGURES = (
    *("photos", "l1", "l1_delta_pct", "retained_colour", "content_colour", "fidelity", "edge_l1"),
    *("chroma_to_best", "chroma_to_truth"),
)
COLUMNS = tuple(each.name for each in fields(Row) if each.name != "also")


def _fits(value: object, kind: str) -> bool:
    if kind.startswith("str"):
        return isinstance(value, str)
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    return isinstance(value, int | float) and abs(value) < ENDLESS


def _read_also(value: object) -> dict[str, dict[str, float | None]]:
    if not isinstance(value, Mapping):
        return {}
    return {
        str(folder): {name: figures.get(name) if _fits(figures.get(name), "float") else None for name in ALSO_FIGURES}
        for folder, figures in value.items()
        if isinstance(figures, Mapping)
    }


def base_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows that are measured as the first one, best.pt, is: on its device, at its batch, size and threads."""
    return [row for row in rows if row.condition == rows[0].condition]


def own_rows(rows: Sequence[Row]) -> list[Row]:
    """The base rows of what was compressed here: neither best.pt's own file nor another tool's nor a control."""
    return [row for row in base_rows(rows) if not (row.peer or row.control) and row.variant != rows[0].variant]


def find_control(rows: Sequence[Row], control: str) -> Row | None:
    """The row of a control, one of `export.controls.CONTROL_TITLES`."""
    return next((row for row in rows if row.control == control), None)


def one_per_file(rows: Sequence[Row]) -> list[Row]:
    """The first row of each file: another runtime changes neither its size nor its colours."""
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row.variant, row)
    return list(first.values())


def write_benchmark_json(path: Path, record: Mapping[str, Any]) -> Path:
    """Write a benchmark's record (see suite.make_record): indented but for the long lists of raw figures."""
    parts = []
    for name, value in record.items():
        indent = None if name in ("raw_times", "per_photo") else 2
        parts.append(f"{json.dumps(name)}: {json.dumps(value, indent=indent, allow_nan=False)}")
    return write_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


@dataclass(frozen=True)
class FolderRecord:
    """What benchmark.json says of a folder of --also (see `benchmarks.also.describe_also`).

    Attributes:
        strength: of best.pt there; None where it failed.
        photos, skipped, known: how many were scored, could not be used, and are the run's own.
        judged: the row that harms the worst photographs; None: all of ours, on average.
        worst: names of photographs with the harm that is done to them, worst first.
    """

    strength: Strength | None
    photos: int
    skipped: int
    known: int
    judged: str | None
    worst: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Benchmark:
    """What benchmark.json says (see `benchmarks.suite.make_record`); conditions are as they were written.

    Attributes:
        rows: of different names, best.pt first.
        strength: of best.pt; None: no colours were measured.
        aa_ratios: best.pt to itself, by device and condition.
        also: by the name of a folder.
        roof: fields of `benchmarks.roof.Roof`.
        per_photo: "photos", "grey_l1", "l1" and "to_best".
    """

    rows: tuple[Row, ...]
    strength: Strength | None = None
    aa_ratios: Mapping[str, Ratio] = field(default_factory=dict)
    also: Mapping[str, FolderRecord] = field(default_factory=dict)
    roof: Mapping[str, Any] | None = None
    grey_l1: float | None = None
    date: str = ""
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    per_photo: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Benchmark:
        """Of the whole of benchmark.json.

        Raises:
            ValueError, TypeError, AttributeError, KeyError: it is damaged.
        """
        rows = tuple(Row.from_record(each) for each in record["rows"])
        if len({row.model for row in rows}) < len(rows):
            raise ValueError("two rows have one name")
        as_written = ("roof", "grey_l1", "date", "seed", "config", "machine", "per_photo")
        return cls(
            rows,
            read_strength(record),
            {str(label): _read_ratio(ratio) for label, ratio in (record.get("aa_ratios") or {}).items()},
            {str(name): _read_folder(folder) for name, folder in (record.get("also") or {}).items()},
            **{name: record[name] for name in as_written if record.get(name) is not None},
        )


def _read_ratio(values: Mapping[str, Any]) -> Ratio:
    ends = {each.name: values[each.name] for each in fields(Ratio)}
    if not all(_fits(end, "float") for end in ends.values()):
        raise ValueError(f"a ratio of {ends}")
    return Ratio(**ends)


def _read_folder(values: Mapping[str, Any]) -> FolderRecord:
    return FolderRecord(
        strength=read_strength(values),
        photos=len(values["photos"]),
        skipped=int(values["skipped"]),
        known=int(values["known"]),
        judged=values["judged"],
        worst=tuple((str(each["photo"]), float(each["harm"])) for each in values["worst"]),
    )


def read_benchmark_json(path: Path) -> Benchmark:
    """Read what `write_benchmark_json` wrote.

    Raises:
        InputError: no such file, or it is no benchmark of this format.
    """
    hint = "name a run folder or a benchmark.json: `colorpress benchmark` writes it"
    again = "run `colorpress benchmark` again"
    try:
        record = read_json(path, "benchmark", hint)
    except ConfigError as error:
        raise InputError("benchmark", path, error.why, hint) from error
    if not isinstance(record, dict) or record.get("format_version") != FORMAT_VERSION or "rows" not in record:
        version = record.get("format_version") if isinstance(record, dict) else None
        if version in range(1, FORMAT_VERSION):
            why = f"is of format {version}, from before content colour, fidelity and controls were measured"
            raise InputError("benchmark", path, why, again)
        raise InputError("benchmark", path, f"is no benchmark of format {FORMAT_VERSION}", hint)
    with as_damaged("benchmark", path, again):
        return Benchmark.from_record(record)


def read_strength(record: Mapping[str, Any]) -> Strength | None:
    """How strong best.pt is by a record of a benchmark, a folder of --also or a search; None: it is not known.

    Raises:
        ValueError, TypeError: what is there is something else.
    """
    values = record.get("strength")
    if values is None:
        return None
    if not isinstance(values, Mapping) or not all(each is None or _fits(each, "float") for each in values.values()):
        raise ValueError(f"a strength of {values}")
    return Strength.of(values)
