"""The table of layers in the report."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_report import EVIL, run_folder, text_of

from benchmarks.report.layer_table import read_layer_table
from benchmarks.report.page import write_report
from colorpress.core.errors import InputError
from colorpress.core.files import write_csv
from compress.ranking_views import VIEW_COLUMNS

__all__ = ["run_folder"]
LARGE = {
    "rank": 1, "name": "encoder.3", "type": "Conv2d", "params": 147_456, "params_pct": 80.0, "macs": 2e6,
    "macs_pct": 25.0, "activation_bytes": 65_536, "ort_ms": 1.0, "ort_pct": 20.0, "prune_loss": 0.25,
}  # fmt: skip
SMALL = {**LARGE, "rank": 2, "name": EVIL, "params": 1_000, "params_pct": 20.0, "ort_pct": 80.0, "prune_loss": -0.125}


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    complete = [dict.fromkeys(VIEW_COLUMNS) | each for each in rows]
    return write_csv(folder / "layer_ranking.csv", VIEW_COLUMNS, complete)


def test_layers_have_bars_of_their_columns(tmp_path: Path) -> None:
    assert read_layer_table(tmp_path / "layer_ranking.csv") is None
    found = read_layer_table(write(tmp_path, [LARGE, SMALL, {**SMALL, "name": "head", "prune_loss": None}]))
    assert found and found.left_out == 0
    # What was not measured of any layer has no column.
    assert [column.key for column in found.table.columns] == [
        "params_pct", "ort_pct", "prune_loss", "macs_pct", "activation_bytes",
    ]  # fmt: skip
    assert found.table.shown == 3
    large, small, head = (line.cells for line in found.table.lines)
    assert [(cell.text, cell.note, cell.bar_pct) for cell in large[:3]] == [
        ("80.0 %", "147 k", 100.0), ("20.0 %", "", 25.0), ("25.00 %", "", 100.0),
    ]  # fmt: skip
    assert [(cell.text, cell.bar_pct) for cell in small[:3]] == [("20.0 %", 25.0), ("80.0 %", 100.0), ("-12.50 %", 0.0)]
    assert (head[2].text, head[2].value, head[2].bar_pct) == ("-", None, None)


def test_a_large_network_has_its_largest_layers_in_the_page(run_folder: Path) -> None:
    write(run_folder, [{**SMALL, "name": f"layer.{number}"} for number in range(45)])
    text = text_of(run_folder)
    assert "5 smaller ones are in layer_ranking.csv" in text and "layer.39" in text and "layer.40" not in text


def test_names_of_layers_are_text(run_folder: Path) -> None:
    write(run_folder, [LARGE, SMALL])
    html = write_report(run_folder).read_text()
    assert EVIL not in html and "smaller ones are in" not in html
    assert '<span style="width: 25.0%">' in html


@pytest.mark.parametrize(
    "damage", ["a,b\n1,2\n", "name,type,params_pct\nx,Conv2d,nan\n", "name,type,macs\nx,y,z\n", "\0"]
)
def test_a_damaged_file_is_named(run_folder: Path, damage: str) -> None:
    (run_folder / "layer_ranking.csv").write_text(damage)
    with pytest.raises(InputError, match=r"layer_ranking\.csv.*is damaged"):
        write_report(run_folder)
