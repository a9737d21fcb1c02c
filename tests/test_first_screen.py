"""The first screen of a report: the verdict, the file, what it keeps, a picture, and the rows that matter."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from test_report import (
    COLOURLESS,
    CONTROLS,
    EVIL,
    VIVID,
    Page,
    add_picture_set,
    change_record,
    row,
    run_folder,
    text_of,
    typed,
)

from benchmarks.report.first_screen import choose_photo, find_file, make_figures, say_headline
from benchmarks.report.page import write_report
from benchmarks.rows import write_benchmark_json
from benchmarks.verdict import say_size
from compress.measures import CONTENT, FIDELITY

__all__ = ["run_folder"]
CONFIRMED = {"confirming_photos": 5, "confirming_kept": 0.914, "confirming_l1_delta_pct": 2.5}


def first_screen_of(folder: Path) -> str:
    """Its text, spaces made one."""
    return text_of(folder).partition(" Why ")[0]


def test_the_headline_says_what_was_gained_and_what_is_kept() -> None:
    best, small, fast, other, large = typed([
        row("best.pt"), row("auto", size_bytes=310_000, speedup=50.0, fidelity=0.87, **CONFIRMED),
        row("best", size_bytes=31_000_000, speedup=3.0), row("x", size_bytes=310_000, content_colour=None),
        row("wide", size_bytes=46_500_000, speedup=3.0),
    ])  # fmt: skip
    assert say_headline(best, small, CONTENT) == (
        "Use auto: it is 100 times smaller and 50.0 times as fast as best.pt, and keeps 91 % of its content colour."
    )
    assert say_headline(best, small, FIDELITY).endswith(", and reproduces 91 % of best.pt's own colours.")
    assert say_headline(best, fast, CONTENT).startswith("Use best: it is as large as best.pt and 3.00 times as fast, ")
    assert say_headline(best, other, CONTENT) == "Use x: it is 100 times smaller and as fast as best.pt."
    assert make_figures(best, small, FIDELITY) == [
        ("100x", "smaller (310 kB)"), ("50.0x", "as fast (100 ms a call)"), ("91.4 %", "fidelity (F) kept, confirmed"),
        ("+2.50 %", "L1 against best.pt"),
    ]  # fmt: skip
    assert make_figures(best, fast, CONTENT)[0] == ("1.00x", "as large (31.0 MB)")
    assert make_figures(best, large, CONTENT)[0] == ("1.50x", "as large (46.5 MB)")
    assert say_headline(best, large, CONTENT).startswith(
        "Use wide: it is 1.50 times as large as best.pt and 3.00 times "
    )
    assert say_size(large, best) == "1.50 times as large as best.pt (46.5 MB instead of 31.0 MB)"
    assert make_figures(best, fast, CONTENT)[2] == ("100.0 %", "content colour (C) kept")


def test_the_file_is_named_where_it_lies_in_the_run_folder(run_folder: Path) -> None:
    names = {"pruned": "pruned/model.onnx", "pruned.pt": "pruned/model.pt", "best.pt": "best.pt", "own": "own.onnx"}
    for place in names.values():
        (run_folder / place).parent.mkdir(exist_ok=True)
        (run_folder / place).write_bytes(b"x")
    for name, place in {**names, "front/elsewhere": "", "../x": ""}.items():
        assert find_file(run_folder, *typed([row(name)])) == place
    text = first_screen_of(run_folder)
    assert "File pruned/model.onnx beside this page, 3.10 MB instead of 31.0 MB; measured in ONNX Runtime." in text
    (run_folder / "pruned" / "model.onnx").unlink()
    text = first_screen_of(run_folder)
    assert "File that was measured as pruned: 3.10 MB instead of 31.0 MB" in text and "colorpress bundle" not in text


def photo(name: str, gain: float, *, is_worst: bool = False) -> dict[str, Any]:
    tiles = [{"name": each, "against": "", "title": each, "uri": ""} for each in ("grey", "truth", "b", "x", "y")]
    tiles += [{"name": "x", "against": "truth", "title": "map", "uri": ""}]
    return {"name": name, "gain": gain, "is_worst": is_worst, "tiles": tiles}


def test_the_picture_is_a_typical_one_that_best_pt_colours() -> None:
    photos = [photo("grey", 0.0), photo("colourful", 0.04), photo("harmed", 0.5, is_worst=True)]
    pictures = {"best": "b", "variants": ["x", "y"], "photos": photos}
    found, shown = choose_photo(pictures, "y")
    assert found and (found["name"], shown) == ("colourful", "y")
    assert [tile["title"] for tile in found["tiles"]] == ["grey", "the photograph", "b, the original", "y, recommended"]
    # Where nothing is recommended, the first of the variants that are shown.
    found, shown = choose_photo(pictures, None)
    assert found and (shown, found["tiles"][-1]["title"]) == ("x", "x")
    found, shown = choose_photo({**pictures, "variants": [], "photos": photos[2:]}, None)
    assert found and (found["name"], shown, len(found["tiles"])) == ("harmed", "", 3)
    assert choose_photo(None, "y") == choose_photo({**pictures, "photos": []}, "y") == (None, "")


def test_four_pictures_and_the_rows_that_matter_come_before_all_results(run_folder: Path) -> None:
    change_record(run_folder, rows=CONTROLS)
    pictures = add_picture_set(run_folder) / "pictures.json"
    pictures.write_text(pictures.read_text().replace(json.dumps(EVIL), '"pruned"'))
    html = write_report(run_folder).read_text()
    top = Page(html.partition('<section aria-labelledby="why">')[0] + "</header></body></html>")
    tiles = [
        attributes["data-title"] for name, attributes in top.tags if name == "figure" and "data-title" in attributes
    ]
    assert tiles == ["grey input", "the photograph", "best.pt, the original", "pruned, recommended"]
    (compared,) = (attributes for _, attributes in top.tags if "data-left" in attributes)
    assert (compared["data-left"], compared["data-right"]) == ("best.pt", "pruned")
    names = re.findall('<th scope="row" data-value="([^"]*)"', html.partition('id="why"')[0])
    assert names == ["best.pt", "best", "pruned", "control: lightness table"]
    text = first_screen_of(run_folder)
    assert "pruned ✓recommended 3.10 MB10.0x smaller 5.00x20.0 ms 100 %" in text
    assert "control: lightness tablesees no picture 400 B - 0 %" in text


@pytest.mark.parametrize("strength", [VIVID, COLOURLESS], ids=["vivid", "colourless"])
def test_where_nothing_is_recommended_it_says_why_and_what_to_do(run_folder: Path, strength: Any) -> None:
    record = change_record(run_folder, strength=strength.to_dict())
    record["rows"] = [{**each, "fidelity": 0.5 if each["model"] == "pruned" else None} for each in record["rows"]]
    write_benchmark_json(run_folder / "benchmark.json", record)
    text = first_screen_of(run_folder)
    assert "Use " not in text and "File " not in text and "What to do:" in text
    assert "recommended" in text[:120]
