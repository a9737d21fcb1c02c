"""Networks as people bring them go through the whole run: exported, pruned, int8, taught from, measured, reported.

What each is stands in `tests.foreign_networks`; here is what becomes of it, and which of its files cannot be made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from colorpress.core.config import Settings
from colorpress.pipeline import run_pipeline
from compress.students.student_plan import StudentPlan, write_student_plan
from tests import foreign_networks
from tests.conftest import make_photo
from tests.test_pipeline import OPTIONS, VARIANTS
from training.conventions import Conventions
from training.foreign import ForeignArchitecture
from training.run_folder import Run
from training.unet import UNetPlan

AB = Conventions(ab_scale=110.0)
RGB = Conventions(input="grey", l_range="-1,1", input_channels=3, output="rgb", rgb_range="-1,1")


@dataclass(frozen=True)
class Case:
    """A class of `tests.foreign_networks`, the multiple of pixels that it takes, and what it cannot be made into."""

    name: str
    size_multiple: int
    conventions: Conventions = AB
    not_made: dict[str, str] = field(default_factory=dict)


CASES = [
    Case("HookedUnet", 8),
    Case("PictureGenerator", 4, RGB),
    Case("LibraryUnet", 1),
    Case("MobileEncoderUnet", 1),
    Case("ResidualEncoderUnet", 8),
    Case("AttentionUnet", 4),
    Case("EightLevelGenerator", 256),
    Case("BinClassifier", 8),
]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for index in range(8):
        make_photo(index).save(folder / f"{index}.png")
    return folder


def write_weights(case: Case, path: Path) -> Path:
    """Weights of a network whose batch norms have seen pictures."""
    torch.manual_seed(0)
    network, side = getattr(foreign_networks, case.name)().train(), max(64, case.size_multiple)
    with torch.no_grad():
        for _ in range(10):
            network(torch.rand(2, case.conventions.input_channels, side, side))
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("case", [pytest.param(each, id=each.name) for each in CASES])
def test_a_network_as_people_bring_them_goes_through_the_whole_run(
    case: Case, photos: Path, timed_here: None, tmp_path: Path
) -> None:
    plan = write_student_plan(tmp_path / "plan.json", StudentPlan(UNetPlan.classic(4, 1, "nearest"), "small"))
    settings: dict[str, Any] = {
        **OPTIONS, **case.conventions.options(), "arch": f"{foreign_networks.__file__}:{case.name}", "data": photos,
        "student_plan": plan, "search_effort": "none", "qat_crops": 0, "prune_ratio": 0.5, "test_share": 0.25,
        "rank_photos": 0,
    }  # fmt: skip
    run = Run(tmp_path / "out", Settings.from_options(settings))
    result = run_pipeline(run, checkpoint=write_weights(case, tmp_path / "weights.pt"))
    result.raise_faults()
    assert {each.name: each.why for each in result.left_out}.keys() == case.not_made.keys()

    architecture = run.load(run.best_path).build_network().architecture
    assert isinstance(architecture, ForeignArchitecture) and architecture.conventions == case.conventions
    assert (architecture.size_multiple, architecture.fixed_size) == (case.size_multiple, None)

    table = pd.read_csv(run.folder / "benchmark.csv", keep_default_na=False).set_index("model")
    assert set(VARIANTS) <= set(table.index)
    for name in VARIANTS:
        reason = case.not_made.get(name)
        assert table.loc[name, "status"] == ("not made" if reason else "ok")
        assert (reason or "") in table.loc[name, "error"] and bool(reason) == bool(table.loc[name, "error"])
    number = table[["params", "l1"]].apply(pd.to_numeric)
    assert number.loc["pruned", "params"] < number.loc["best", "params"]
    # As large as a difference of 1/10 000 of the chroma's range can make it.
    assert number.loc["best", "l1"] == pytest.approx(number.loc["best.pt", "l1"], abs=1e-4)

    stages = json.loads((run.folder / "run.json").read_text())["stages"]
    assert 0 < stages["export-best"]["result"]["max_abs_diff"] <= 1e-4
    assert stages["prune"]["result"]["params_removed_pct"] > 0
    for name in ("best", "pruned"):
        assert stages[f"quantize-{name}-int8"]["result"]["int8_layers"] > 0
        assert stages[f"colorizer-{name}"]["result"]["max_levels"] <= 1
        assert (run.folder / f"{name}-int8" / "colorizer.onnx").is_file()
    html = result.report_path.read_text()
    assert all(name in html for name in VARIANTS) and "internal" not in html
