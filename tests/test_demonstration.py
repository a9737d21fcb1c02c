"""The model that comes along colours right after the installation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_photo
from PIL import Image

import training
from colorpress.cli import run_command
from export.colorize_folder import DEMONSTRATION_MODEL
from export.graph import read_metadata
from export.metadata_figures import MEASURED
from export.renewal import renew_colorizer
from training.checkpoint import load_checkpoint
from training.metrics import validate_l1
from training.photos import embedded_photos, inspect_photo
from training.unet import UNetPlan, count_parameters


def test_a_photograph_is_coloured_without_a_model_of_ones_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photo(0, 300, 200).convert("L").save(tmp_path / "old.jpg")
    command = ["colorize", str(tmp_path / "old.jpg"), "-o", str(tmp_path / "out")]
    assert run_command(command) == 0
    assert "for demonstration" in capsys.readouterr().err
    assert run_command([*command, "--overwrite", "-q"]) == 0
    assert capsys.readouterr() == (f"1 photograph in {tmp_path / 'out'}\n", "")
    # What is no photograph is named, and is no failure.
    (tmp_path / "README").write_text("of a folder of photographs")
    assert run_command(["colorize", str(tmp_path), "-o", str(tmp_path / "out"), "-q"]) == 0
    assert capsys.readouterr().err.startswith("warning: passed over as no photographs: README: no suffix")
    with Image.open(tmp_path / "out" / "old.jpg") as picture:
        pixels = np.asarray(picture).astype(int)
    assert pixels.shape == (200, 300, 3)
    assert (pixels.max(axis=2) - pixels.min(axis=2)).mean() > 5


def test_an_original_comes_along_that_a_training_can_go_on_from() -> None:
    path = Path(training.__file__).parent / "pretrained" / "best.pt"
    assert path.stat().st_size <= 2_000_000
    found = load_checkpoint(path)
    assert isinstance(found.architecture, UNetPlan)
    card = path.with_name("README.md").read_text()
    assert f"{count_parameters(found.build_network()):,} parameters" in card
    assert f"{found.val_l1:.4f}" in card
    # On the photographs that come along too it is truer than grey.
    photos = [inspect_photo(each, 10**9) for each in embedded_photos()]
    limits = {"short_side": 128, "max_pixels": 10**9, "device": torch.device("cpu")}
    own, grey = (validate_l1(network, photos, **limits) for network in (found.build_network(), Grey()))
    assert own < grey


class Grey(torch.nn.Module):
    def forward(self, lightness: torch.Tensor) -> torch.Tensor:
        return lightness.new_zeros(len(lightness), 2, *lightness.shape[-2:])


def test_inspect_reads_what_it_was_measured_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["inspect", str(DEMONSTRATION_MODEL)]) == 0
    said = capsys.readouterr().out
    metadata = read_metadata(DEMONSTRATION_MODEL)
    for name, title in MEASURED.items():
        assert f"  {title}: {metadata.get(name, 'not measured')}\n" in said
    assert "retained_colour" in metadata


def test_it_is_small_and_says_what_it_is() -> None:
    assert DEMONSTRATION_MODEL.stat().st_size < 500_000
    assert read_metadata(DEMONSTRATION_MODEL)["purpose"] == "demonstration"
    assert "for demonstration" in DEMONSTRATION_MODEL.with_name("MODEL_CARD.md").read_text()


def test_its_picture_work_is_todays(tmp_path: Path) -> None:
    made = renew_colorizer(DEMONSTRATION_MODEL, tmp_path / "renewed" / "colorizer.onnx")
    assert made.parity.max_levels == 0
    assert made.path.read_bytes() == DEMONSTRATION_MODEL.read_bytes()
