"""Loops that numba compiles: the pixels of the definition, and which pictures they colour."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import TINY_PLAN, make_network, make_photo
from numpy.typing import NDArray

from colorpress.core.errors import InputError
from export import colorizers
from export.colorize_folder import DEMONSTRATION_MODEL
from export.colorizers import OnnxColorizer, color_large_faster, open_inner_network
from export.picture_contract import AskedNetwork
from export.picture_graph import build_picture_graph
from export.picture_network import take_network
from export.picture_reference import color_pixels
from export.runtimes import open_colorizer
from training.checkpoint import Checkpoint, save_checkpoint

Pixels = NDArray[np.uint8]


def draw(height: int, width: int, channels: int) -> Pixels:
    noise = np.random.default_rng(0).integers(-40, 41, (height, width, 3))
    noisy = np.clip(np.asarray(make_photo(0, width, height)) + noise, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(noisy[..., :channels])


def ask(lightness: NDArray[np.float32], kinds: int) -> NDArray[np.float32]:
    """Every colour there is, beside every other."""
    generator = np.random.default_rng(1)
    return generator.uniform(-0.9, 0.9, (1, kinds, *lightness.shape[2:])).astype(np.float32)


@pytest.mark.slow  # seconds of compiling, and numba is no part of the default installation
def test_compiled_pixels_are_within_one_level_of_the_definition() -> None:
    pytest.importorskip("numba")
    from export.compiled_pixels import color_pixels_compiled

    for size in ((1, 1), (1, 40), (53, 1), (2, 3), (33, 61), (131, 97), (301, 40), (20, 700), (513, 511), (3, 2100)):
        for channels in (1, 3):
            for kinds, work_size, saturation in ((2, 16, 1.0), (2, 100, 0.3), (4, 32, 0.5)):
                pixels = draw(*size, channels)
                chosen = {"predictor": partial(ask, kinds=kinds), "work_size": work_size, "saturation": saturation}
                expected = color_pixels(pixels, **chosen).astype(int)  # type: ignore[arg-type]
                for threads in (1, 3):
                    got = color_pixels_compiled(pixels, **chosen, threads=threads)  # type: ignore[arg-type]
                    assert np.abs(got - expected).max() <= 1, (size, channels, kinds, work_size)
    with pytest.raises(InputError, match="not finite"):
        color_pixels_compiled(pixels, lambda lightness: np.full((1, 2, *lightness.shape[2:]), np.nan, np.float32))


def test_large_pictures_alone_are_coloured_by_loops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_checkpoint(tmp_path / "model.pt", Checkpoint(TINY_PLAN, make_network().state_dict()))
    sizes: list[tuple[int, ...]] = []

    def note(pixels: Pixels, predictor: Any, **asked: Any) -> Pixels:
        sizes.append(pixels.shape)
        assert asked == {"work_size": 24, "saturation": 0.5, "threads": 1}
        return color_pixels(pixels, predictor, work_size=24, saturation=0.5)

    loops = ModuleType("export.compiled_pixels")
    loops.color_pixels_compiled = note  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, loops.__name__, loops)
    monkeypatch.setattr(colorizers, "_LARGE_PIXELS", 2000)
    large, small = draw(50, 40, 3), draw(50, 39, 3)
    for installed, expected in ((True, [(50, 40, 3)]), (False, [])):
        monkeypatch.setattr(colorizers, "find_spec", lambda name, installed=installed: installed or None)
        color, sizes[:] = open_colorizer(path, work_size=24, saturation=0.5, threads=1), []
        for pixels in (large, small):
            assert color(pixels).shape == pixels.shape
        assert sizes == expected


@pytest.mark.parametrize("device", ["cpu", "auto"])
def test_a_picture_graph_on_the_cpu_has_loops_whether_that_was_named_or_found(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loops = ModuleType("export.compiled_pixels")
    loops.color_pixels_compiled = lambda pixels, predictor, **asked: pixels + 1  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, loops.__name__, loops)
    monkeypatch.setattr(colorizers, "_LARGE_PIXELS", 1)
    monkeypatch.setattr(colorizers, "find_spec", lambda name: True)
    colorizer = open_colorizer(DEMONSTRATION_MODEL, device=device, threads=1)
    assert colorizer(np.zeros((1, 1, 3), np.uint8)).tolist() == [[[1, 1, 1]]]


def test_the_network_of_a_picture_graph_is_asked_as_the_graph_says() -> None:
    content = DEMONSTRATION_MODEL.read_bytes()
    given = open_inner_network(DEMONSTRATION_MODEL, content, work_size=16, saturation=0.5, threads=1)
    assert (given.work_size, given.saturation) == (16, 0.5)
    asked = open_inner_network(DEMONSTRATION_MODEL, content, threads=1)
    pixels, graph = draw(50, 40, 3), OnnxColorizer(DEMONSTRATION_MODEL, threads=1)
    assert np.abs(color_pixels(pixels, **vars(asked)).astype(int) - graph(pixels)).max() <= 1


def test_what_has_no_loops_is_coloured_as_usual(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> AskedNetwork:
        raise InputError("model", None, "has no network in it", "none")

    def fail(name: str) -> None:
        raise RuntimeError("cannot cache function: no locator available")  # numba's, in a folder that is read-only

    monkeypatch.setattr(colorizers, "find_spec", lambda name: True)
    monkeypatch.setattr(colorizers, "_LARGE_PIXELS", 1)
    loops = ModuleType("export.compiled_pixels")
    monkeypatch.setitem(sys.modules, loops.__name__, loops)
    loops.__getattr__ = fail  # type: ignore[method-assign]
    given = AskedNetwork(partial(ask, kinds=2))
    assert color_large_faster(lambda pixels: pixels + 1, lambda: given)(np.zeros((1, 1, 3), np.uint8)).max() == 1
    loops.color_pixels_compiled = color_pixels  # type: ignore[attr-defined]
    assert color_large_faster(lambda pixels: pixels + 1, refuse)(np.zeros((1, 1, 3), np.uint8)).max() == 1


def test_a_graph_for_one_size_does_not_say_how_its_network_is_asked() -> None:
    network = take_network(onnx.load(DEMONSTRATION_MODEL))
    content = build_picture_graph(network, size=(24, 16)).SerializeToString()
    with pytest.raises(InputError, match="does not say how"):
        open_inner_network(DEMONSTRATION_MODEL, content, threads=1)
