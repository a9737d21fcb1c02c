"""What a reader sees before anything else: what to use, its file, what it gains and keeps, and a picture of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.report.main_rows import choose_main_rows
from benchmarks.report.report_table import Table, make_main_table
from benchmarks.rows import Row
from benchmarks.verdict import SAME_SIZE, SAME_SPEED, Verdict, compare_size
from colorpress.core.text import format_bytes, format_number, format_percent
from compress.measures import FIDELITY, Measure, Strength
from export.runtimes import CHECKPOINT_SUFFIXES, RUNTIMES


@dataclass(frozen=True)
class FirstScreen:
    """The top of a report.

    Attributes:
        headline: the verdict in a sentence.
        file: of the recommended variant, from the run folder; empty where it is elsewhere, or nothing recommended.
        runs_in: the runtime that the figures of that file were measured in.
        figures: four of the recommended row, value and label; none without one.
        main: the rows that matter.
        photo: as `read_picture_set` gives it, with tiles of grey, truth, best.pt and `shown` alone; None: no pictures.
        shown: the variant that is held beside best.pt; empty: there is none.
    """

    headline: str
    file: str
    runs_in: str
    figures: Sequence[tuple[str, str]]
    main: Table
    photo: Mapping[str, Any] | None
    shown: str


def make_first_screen(
    rows: Sequence[Row],
    verdict: Verdict,
    strength: Strength | None,
    output_dir: Path,
    picture_set: Mapping[str, Any] | None,
) -> FirstScreen:
    """The first screen of a report on `rows`, best.pt first, in the run folder `output_dir`."""
    measure = strength.measure if strength else None
    chosen = next((row for row in rows if row.model == verdict.recommended), None)
    photo, shown = choose_photo(picture_set, verdict.recommended)
    return FirstScreen(
        headline=say_headline(rows[0], chosen, measure) if chosen and measure else verdict.sentence,
        file=find_file(output_dir, chosen) if chosen else "",
        runs_in=RUNTIMES[chosen.runtime].title if chosen and chosen.runtime in RUNTIMES else "",
        figures=make_figures(rows[0], chosen, measure) if chosen and measure else [],
        main=make_main_table(choose_main_rows(rows, verdict.recommended, measure), verdict.recommended, measure),
        photo=photo,
        shown=shown,
    )


def say_headline(best: Row, chosen: Row, measure: Measure) -> str:
    """Which variant to use, how much smaller and faster it is, and what colour it keeps.

    The colour is that of photographs that did not choose it, where there are such.
    """
    speed = chosen.speedup or 1.0
    compared, word = compare_size(chosen, best)
    is_smaller = word == "than"
    size = compared if is_smaller else f"{compared} as best.pt"
    fast = f"{format_number(speed)} times as fast" if speed > 1.0 + SAME_SPEED else "as fast"
    than = " as best.pt" if is_smaller else ""
    kept = chosen.reported(measure)[0]
    verb = "reproduces" if measure is FIDELITY else "keeps"
    noun = "best.pt's own colours" if measure is FIDELITY else f"its {measure.title}"
    colour = "" if kept is None else f", and {verb} {100 * kept:.0f} % of {noun}"
    return f"Use {chosen.model}: it is {size} and {fast}{than}{colour}."


def make_figures(best: Row, chosen: Row, measure: Measure) -> list[tuple[str, str]]:
    """Four figures of the recommended row, value and label; the colour is that of `say_headline`."""
    kept, _ = chosen.reported(measure)
    times, size = chosen.times_smaller(best), format_bytes(chosen.fair_size_bytes)
    times, word = (times, "smaller") if times > 1.0 + SAME_SIZE else (1.0 / times, "as large")
    confirmed = ", confirmed" if chosen.is_confirmed else ""
    return [
        (f"{format_number(times)}x", f"{word} ({size})"),
        (f"{format_number(chosen.speedup)}x", f"as fast ({format_number(chosen.p50_ms)} ms a call)"),
        ("-" if kept is None else f"{100 * kept:.1f} %", f"{measure.title} ({measure.symbol}) kept{confirmed}"),
        (format_percent(chosen.reported_l1_delta_pct), "L1 against best.pt"),
    ]


def find_file(output_dir: Path, row: Row) -> str:
    """Where a row's file lies in a run folder, such as "pruned/model.onnx"; empty where it is elsewhere."""
    name = row.variant
    suffix = next((each for each in CHECKPOINT_SUFFIXES if name.endswith(each)), "")
    places = (f"{name.removesuffix(suffix)}/model{suffix}", name) if suffix else (f"{name}/model.onnx", f"{name}.onnx")
    return next((place for place in places if (output_dir / place).is_file()), "")


def choose_photo(picture_set: Mapping[str, Any] | None, recommended: str | None) -> tuple[dict[str, Any] | None, str]:
    """The photograph of the first screen with the tiles that matter there, and the variant beside best.pt.

    It is that of the typical ones on which best.pt gains most over grey: where it paints, there is something to lose.
    What was made of it has no say.
    """
    if not picture_set or not picture_set["photos"]:
        return None, ""
    variants: list[str] = picture_set["variants"]
    shown = recommended if recommended and recommended in variants else next(iter(variants), "")
    typical = [photo for photo in picture_set["photos"] if not photo["is_worst"]] or picture_set["photos"]
    photo = max(typical, key=lambda each: each["gain"])
    titles = {
        "truth": "the photograph",
        picture_set["best"]: f"{picture_set['best']}, the original",
        shown: f"{shown}, recommended" if shown == recommended else shown,
    }
    tiles = [
        {**tile, "title": titles.get(tile["name"], tile["title"])}
        for name in ("grey", "truth", picture_set["best"], shown)
        for tile in photo["tiles"]
        if tile["name"] == name and not tile["against"]
    ]
    return {**photo, "tiles": tiles}, shown
