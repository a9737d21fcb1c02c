"""The picture graph: the pixels that the definition in torch gives, for any picture, in any runtime."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from conftest import TINY_PLAN, make_network, make_photo
from numpy.polynomial.polynomial import polyval
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from colorpress.core.config import ExportConfig
from colorpress.core.errors import ConfigError, InputError
from compress.packing import pack_onnx
from export import picture_graph
from export.colorize_folder import DEMONSTRATION_MODEL
from export.colorizers import OnnxColorizer, OpenVinoColorizer
from export.graph import export_onnx
from export.onnx_probe import refuse_hostile
from export.picture_graph import (
    F_FROM_Y,
    LINEAR_FROM_SRGB,
    SRGB_FROM_LINEAR,
    Curve,
    build_picture_graph,
)
from export.picture_network import take_network
from export.picture_reference import color_pixels
from export.predictors import OnnxPredictor
from export.runtimes import open_colorizer
from training.checkpoint import Checkpoint, save_checkpoint
from training.cie import LAB_EPSILON, LAB_OFFSET, LAB_SLOPE
from training.unet import UNetPlan

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare network with strong colours of its own."""
    path = tmp_path_factory.mktemp("network") / "model.onnx"
    unet = make_network()
    with torch.no_grad():
        unet.head.weight.mul_(4.0)
    export_onnx(Checkpoint(TINY_PLAN, unet.state_dict()), path, ExportConfig())
    return path


@pytest.fixture(scope="module")
def graph(network: Path) -> bytes:
    return build_picture_graph(onnx.load(network)).SerializeToString()


def draw(height: int, width: int, channels: int = 3, seed: int = 0) -> Pixels:
    generator = np.random.default_rng(seed)
    smooth = np.asarray(make_photo(seed, width, height)).astype(int)
    noisy = np.clip(smooth + generator.integers(-40, 41, smooth.shape), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(noisy[..., :channels])


@pytest.mark.parametrize(
    "size",
    [
        (1, 1),
        (1, 40),
        (53, 1),
        (2, 3),
        (32, 32),
        (33, 61),
        (64, 257),
        (131, 97),
        (301, 40),
        (20, 700),
        (513, 511),
        (3, 2100),
        (2100, 1),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_within_one_level_of_the_definition(
    network: Path, graph: bytes, size: tuple[int, int], channels: int
) -> None:
    predictor = OnnxPredictor(network, threads=1)
    pixels = draw(*size, channels)
    for work_size in (16, 32, 100):
        expected = color_pixels(pixels, predictor, work_size=work_size)
        got = OnnxColorizer(network, graph, work_size=work_size, threads=1)(pixels)
        assert got.shape == (*size, 3)
        assert np.abs(got.astype(int) - expected).max() <= 1
    if min(size) > 30:
        spread = expected.astype(int).max(axis=2) - expected.min(axis=2)
        assert spread.mean() > 8  # there are colours to compare


@pytest.fixture(scope="module")
def affine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bare network whose coarse answer is an affine field of lightness, a steep one."""
    path, plan = (
        tmp_path_factory.mktemp("affine") / "model.onnx",
        UNetPlan(((6, 6), (8,)), (), stem_stride=4, affine=True),
    )
    unet = make_network(plan)
    with torch.no_grad():
        unet.head.weight.mul_(2.0)
        unet.head.bias[2:].copy_(torch.tensor([1.0, -1.0]))
    export_onnx(Checkpoint(plan, unet.state_dict()), path, ExportConfig())
    return path


@pytest.mark.parametrize("size", [(1, 1), (53, 1), (33, 61), (64, 257), (301, 40)])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_affine_answer_follows_the_lightness_of_every_pixel(
    affine: Path, tmp_path: Path, size: tuple[int, int], channels: int
) -> None:
    pixels, packed = draw(*size, channels), pack_onnx(affine, tmp_path / "w8.onnx").path
    for path, saturation in ((affine, 1.0), (packed, 0.7)):
        content = build_picture_graph(onnx.load(path)).SerializeToString()
        for work_size in (16, 100):
            expected = color_pixels(
                pixels, OnnxPredictor(path, field=True, threads=1), work_size=work_size, saturation=saturation
            )
            got = OnnxColorizer(path, content, work_size=work_size, saturation=saturation, threads=1)(pixels)
            assert np.abs(got.astype(int) - expected).max() <= 1
    if min(size) > 30:
        # The lightness that the network sees would give other colours.
        blurred = color_pixels(pixels, OnnxPredictor(affine, threads=1), work_size=16)
        sharp = color_pixels(pixels, OnnxPredictor(affine, field=True, threads=1), work_size=16)
        assert np.abs(sharp.astype(int) - blurred).mean() > 3
        other = OpenVinoColorizer(affine, content, work_size=100, saturation=0.7, threads=1)(pixels)
        assert np.abs(other.astype(int) - got).max() <= 2


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (53, 1), (33, 61), (131, 97), (301, 40), (130, 514)])
def test_a_plain_graph_gives_the_same_pixels_without_control_flow(
    network: Path, affine: Path, size: tuple[int, int]
) -> None:
    for path in (network, affine):
        bare = onnx.load(path)
        usual, plain, fixed = (
            OnnxColorizer(path, build_picture_graph(bare, work_size=32, **form).SerializeToString(), threads=1)
            for form in ({}, {"plain": True}, {"size": size})
        )
        assert fixed.size == size and plain.size is None
        for channels in (1, 3):
            pictures = np.stack([draw(*size, channels, seed) for seed in range(2)])
            answers = plain.session.run(None, {"image": pictures})[0]
            for picture, answer in zip(pictures, answers, strict=True):
                expected = usual(picture).astype(int)
                assert np.abs(answer - expected).max() <= 1
                assert np.abs(fixed(picture) - expected).max() <= 1


def test_a_plain_graph_has_no_bodies_and_for_one_size_no_shapes(network: Path) -> None:
    bare = onnx.load(network)
    with pytest.raises(ConfigError, match="is a plain graph"):
        OnnxColorizer(network, build_picture_graph(bare, plain=True).SerializeToString(), saturation=0.5)
    for form in ({"plain": True}, {"size": (90, 120)}):
        model = build_picture_graph(bare, work_size=32, **form)
        onnx.checker.check_model(model, full_check=True)
        assert not [node for node in model.graph.node if any(each.HasField("g") for each in node.attribute)]
    assert [each.name for each in model.graph.input] == ["image"]
    whole = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    values = {each.name: each.type.tensor_type for each in whole.graph.value_info}
    for node in whole.graph.node:
        assert node.op_type not in ("Shape", "Range", "Size", "ConstantOfShape")
        kind = values.get(node.output[0], whole.graph.output[0].type.tensor_type)
        # Whole numbers are of sizes and places, which are constants all.
        assert kind.elem_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8, onnx.TensorProto.BOOL)
        assert all(side.dim_value for side in kind.shape.dim)
    smaller = model.ByteSize() - build_picture_graph(bare, work_size=32).ByteSize()
    assert smaller < 100_000


def test_a_checkpoint_and_its_file_colour_a_picture_alike(tmp_path: Path) -> None:
    plan = UNetPlan(((6, 6), (8,)), (), stem_stride=4, affine=True)
    checkpoint = Checkpoint(plan, make_network(plan).state_dict())
    source, saved = tmp_path / "model.onnx", save_checkpoint(tmp_path / "model.pt", checkpoint)
    export_onnx(checkpoint, source, ExportConfig())
    pixels = draw(90, 120)
    by_file, by_torch = (open_colorizer(path, work_size=24, threads=1)(pixels) for path in (source, saved))
    assert np.abs(by_file.astype(int) - by_torch).max() <= 1


def test_a_batch_is_its_pictures_and_grey_is_three_equal_channels(network: Path, graph: bytes) -> None:
    colorizer = OnnxColorizer(network, graph, work_size=24, threads=1)
    pictures = np.stack([draw(67, 45, 3, seed) for seed in range(8)])
    feeds = {"image": pictures, "work_size": np.array(24)}
    together = colorizer.session.run(None, feeds)[0]
    for picture, answer in zip(pictures, together, strict=True):
        np.testing.assert_array_equal(answer, colorizer(picture))
    grey = draw(40, 50, 1)
    same = colorizer(np.repeat(grey, 3, axis=2)).astype(int)
    assert np.abs(colorizer(grey) - same).max() <= 1


def test_a_network_is_taken_out_of_a_picture_graph_as_it_went_in(network: Path, affine: Path) -> None:
    for path in (network, affine):
        whole = build_picture_graph(onnx.load(path), work_size=40)
        again = build_picture_graph(take_network(whole), work_size=40)
        assert again.graph == whole.graph
    with pytest.raises(InputError, match="has no network in it"):
        take_network(onnx.load(network))


def test_a_network_is_taken_out_with_the_padding_of_its_own() -> None:
    whole = onnx.load(DEMONSTRATION_MODEL)
    convolution = next(
        node for node in whole.graph.node if node.output[0].startswith("network.") and node.op_type == "Conv"
    )
    padding = helper.make_node("Pad", [convolution.input[0], "network.edges", "network.white"], ["network.bordered"])
    convolution.input[0] = "network.bordered"
    whole.graph.node.insert(list(whole.graph.node).index(convolution), padding)
    whole.graph.initializer.append(numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1]), "network.edges"))
    whole.graph.initializer.append(numpy_helper.from_array(np.array(1.0, np.float32), "network.white"))
    taken = take_network(whole).graph
    (own,) = (node for node in taken.node if node.output[0] == "bordered")
    assert list(own.input)[1:] == ["edges", "white"] and "white" in {each.name for each in taken.initializer}


def test_stripes_make_no_difference(network: Path, graph: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = draw(95, 61)
    whole = OnnxColorizer(network, graph, work_size=32, threads=1)(pixels)
    limits = {"_STRIPE_PIXELS": 61 * 7, "_STRIPE_ROWS": 5, "_GATHERED_VALUES": 3000}
    for name, limit in limits.items():
        monkeypatch.setattr(picture_graph, name, limit)
        striped = build_picture_graph(onnx.load(network)).SerializeToString()
        np.testing.assert_array_equal(OnnxColorizer(network, striped, work_size=32, threads=1)(pixels), whole)
    feeds = {"image": np.stack([pixels, pixels[::-1]]), "work_size": np.array(32)}
    both = OnnxColorizer(network, striped, threads=1).session.run(None, feeds)[0]
    np.testing.assert_array_equal(both[0], whole)


_MEASURE = """
import re, sys
import numpy as np
from pathlib import Path
from export.colorizers import OnnxColorizer
from export.picture_reference import color_pixels

def peak(name):
    return int(re.search(rf"^{name}:\\s*(\\d+)", Path("/proc/self/status").read_text(), re.M)[1]) * 1024

graph = OnnxColorizer(Path(sys.argv[1]), threads=1)
ways = [graph, lambda pixels: color_pixels(pixels, lambda l: np.zeros((1, 2, *l.shape[2:]), np.float32))]
for way in ways:
    way(np.zeros((300, 300, 3), np.uint8))
for sides in ((1, 65_500), (65_500, 1), (30_000, 10), (700, 1_500)):
    for way in ways:
        pixels = np.full((*sides, 3), 99, np.uint8)
        Path("/proc/self/clear_refs").write_text("5")
        before = peak("VmRSS")
        way(pixels)
        print(*sides, peak("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux says what a call took")
def test_memory_is_bounded_for_any_aspect() -> None:
    command = [sys.executable, "-c", _MEASURE, str(DEMONSTRATION_MODEL)]
    lines = subprocess.run(command, capture_output=True, check=True, text=True).stdout.splitlines()
    assert len(lines) == 8
    for line in lines:
        height, width, grown = map(int, line.split())
        # What the network takes of the longest strip is the constant.
        assert grown < 4 * (3 * height * width) + 200_000_000, line


def test_what_is_not_given_has_defaults_in_the_file(network: Path) -> None:
    pixels = draw(90, 120)
    vivid = build_picture_graph(onnx.load(network), work_size=40, saturation=2.0).SerializeToString()
    plain = OnnxColorizer(network, vivid, threads=1)(pixels)
    np.testing.assert_array_equal(plain, OnnxColorizer(network, vivid, work_size=40, saturation=2.0, threads=1)(pixels))
    expected = color_pixels(pixels, OnnxPredictor(network, threads=1), work_size=40, saturation=2.0)
    assert np.abs(plain.astype(int) - expected).max() <= 1
    without_colour = OnnxColorizer(network, vivid, saturation=0.0, threads=1)(pixels).astype(int)
    assert (without_colour.max(axis=2) - without_colour.min(axis=2)).max() <= 1


def test_only_plain_operators_and_the_checker_agrees(graph: bytes) -> None:
    model = onnx.load_model_from_string(graph)
    onnx.checker.check_model(model, full_check=True)
    assert [each.domain for each in model.opset_import] == [""]


def test_another_runtime_gives_the_same_pixels(network: Path, graph: bytes) -> None:
    for channels in (1, 3):
        pixels = draw(67, 91, channels)
        expected = OnnxColorizer(network, graph, work_size=48, threads=1)(pixels).astype(int)
        got = OpenVinoColorizer(network, graph, work_size=48, threads=1)(pixels)
        assert np.abs(got - expected).max() <= 2


def test_another_runtime_takes_a_graph_for_one_size_as_it_is(network: Path, tmp_path: Path) -> None:
    path, pixels = tmp_path / "colorizer.onnx", draw(24, 16, 1)
    onnx.save(build_picture_graph(onnx.load(network), size=(24, 16)), path)
    refuse_hostile(path, runtime="openvino")
    got = OpenVinoColorizer(path, path.read_bytes(), threads=1)(pixels)
    assert np.abs(got.astype(int) - OnnxColorizer(path, threads=1)(pixels)).max() <= 1
    with pytest.raises(ConfigError, match="is a plain graph"):
        OpenVinoColorizer(path, path.read_bytes(), saturation=0.5)


def test_other_flavours_of_the_network_fit_too(network: Path, tmp_path: Path) -> None:
    pixels = draw(67, 91)
    for precision in ("w8", "w4", "fp16"):
        packed = pack_onnx(network, tmp_path / f"{precision}.onnx", precision=precision).path
        content = build_picture_graph(onnx.load(packed)).SerializeToString()
        expected = color_pixels(pixels, OnnxPredictor(packed, threads=1), work_size=32)
        got = OnnxColorizer(packed, content, work_size=32, threads=1)(pixels)
        assert np.abs(got.astype(int) - expected).max() <= 1


def test_a_graph_of_another_task_is_refused(graph: bytes) -> None:
    with pytest.raises(InputError, match="has inputs and outputs"):
        build_picture_graph(onnx.load_model_from_string(graph))


def bend(curve: Curve, x: NDArray[np.float64]) -> NDArray[np.float64]:
    """The curve in numpy."""
    z, toe = np.maximum(x, curve.low) ** (1.0 / curve.root), curve.toe * np.clip(x, 0.0, curve.low)
    return np.asarray(polyval(z, curve.upper) + toe)


def test_the_curves_are_as_close_as_they_say() -> None:
    light = np.linspace(0.0, 1.0, 4001) ** 3
    srgb = np.where(light > 0.0031308, 1.055 * light ** (1 / 2.4) - 0.055, 12.92 * light)
    assert np.abs(bend(SRGB_FROM_LINEAR, light) - srgb).max() < 0.06 / 255
    f = np.where(light > LAB_EPSILON, np.cbrt(light), LAB_SLOPE * light + LAB_OFFSET)
    assert np.abs(bend(F_FROM_Y, light) - f).max() < 0.007 / 296
    grey = np.arange(256) / 255
    linear = np.where(grey > 0.04045, ((grey + 0.055) / 1.055) ** 2.4, grey / 12.92)
    slope = np.where(linear > LAB_EPSILON, np.cbrt(np.maximum(linear, LAB_EPSILON)) ** -2 / 3, LAB_SLOPE)
    assert np.abs((bend(LINEAR_FROM_SRGB, grey) - linear) * slope).max() < 0.013 / 296
    np.testing.assert_allclose(bend(LINEAR_FROM_SRGB.of(255.0), grey * 255), bend(LINEAR_FROM_SRGB, grey), atol=1e-12)
