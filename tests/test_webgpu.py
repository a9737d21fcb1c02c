"""ONNX Runtime's WebGPU provider answers what its CPU provider does, at every size, and leaves next to nothing to it.

On a GPU, or in software by the SwiftShader of Debian's chromium, which proves the kernels and says nothing of speed.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from colorpress.core.config import ExportConfig, QuantizeConfig
from colorpress.core.errors import MachineError
from compress.int8.int8_choice import quantize_onnx
from compress.packing import pack_onnx
from export.colorize_folder import DEMONSTRATION_MODEL
from export.colorizers import OnnxColorizer
from export.graph import export_onnx
from export.parity import check_parity, matrix_shapes
from export.picture_graph import build_picture_graph
from export.placement import count_kernel_calls
from export.predictors import OnnxPredictor
from export.sessions import SOFTWARE_ADAPTER, require_provider
from tests.conftest import make_network
from training.checkpoint import Checkpoint
from training.unet import UNetPlan

pytestmark = [pytest.mark.webgpu, pytest.mark.timeout(3600)]
CHROMIUM = Path("/usr/lib/chromium")
LEAST_DB = 50.0
PLANS = {
    "affine": UNetPlan(((8,), (12, 12), (12, 12)), ((8, 8),), "nearest", stem_stride=4, affine=True),
    "transpose": UNetPlan.classic(4, 2),
    "bilinear": UNetPlan(((8, 8), (12, 12)), ((8, 8, 8),), "bilinear", stem_stride=2, residual=True),
}


@pytest.fixture(scope="module", autouse=True)
def device() -> Iterator[None]:
    """A device of WebGPU: a GPU where there is one, else SwiftShader; without either the tests are skipped."""
    pytest.importorskip("onnxruntime_ep_webgpu", reason="onnxruntime-ep-webgpu is not installed: make webgpu")
    with pytest.MonkeyPatch.context() as patch:
        if not any(Path("/dev").glob("dri/render*")) and (CHROMIUM / "vk_swiftshader_icd.json").is_file():
            patch.setenv(SOFTWARE_ADAPTER, "1")
            patch.setenv("VK_ICD_FILENAMES", str(CHROMIUM / "vk_swiftshader_icd.json"))
            ctypes.CDLL(str(CHROMIUM / "libvulkan.so.1"))  # which ONNX Runtime asks the system for by name
        try:
            require_provider("webgpu")
        except MachineError as error:
            pytest.skip(f"{error.why}; Debian's chromium has a device of software")
        yield


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bare networks, in float and in fewer bits."""
    folder = tmp_path_factory.mktemp("networks")
    made = {}
    for name, plan in PLANS.items():
        made[name] = folder / f"{name}.onnx"
        export_onnx(Checkpoint(plan, make_network(plan).state_dict()), made[name], ExportConfig())
    waves = [np.linspace(0, 1, 40 * 56, dtype=np.float32).reshape(1, 1, 40, 56) ** power for power in (0.5, 1, 2)]
    made["int8"] = quantize_onnx(made["transpose"], folder / "int8.onnx", waves, QuantizeConfig()).path
    made["w8"] = pack_onnx(made["affine"], folder / "w8.onnx").path
    return made


@pytest.mark.parametrize("name", ["affine", "transpose", "bilinear", "int8", "w8"])
def test_a_network_answers_what_it_does_on_the_cpu_at_every_size(networks: dict[str, Path], name: str) -> None:
    path = networks[name]
    shapes = matrix_shapes() if name == "affine" else matrix_shapes()[::13]
    found = check_parity(
        OnnxPredictor(path, threads=1), OnnxPredictor(path, provider="webgpu", threads=1), shapes=shapes, atol=None
    )
    assert len(found.shapes) == len(shapes)
    lowest = min(each.psnr_db for each in found.shapes if each.psnr_db is not None)
    print(f"{name}: {len(shapes)} sizes, largest difference {found.max_abs:.1e}, lowest PSNR {lowest:.1f} dB")
    assert lowest >= LEAST_DB and np.isfinite(found.max_abs)


@pytest.mark.parametrize(("form", "step"), [("colorizer.onnx", 1), ("plain", 4)])
def test_pictures_are_those_of_the_cpu_to_one_level_at_every_size(
    networks: dict[str, Path], form: str, step: int, tmp_path: Path
) -> None:
    path = tmp_path / "colorizer.onnx"
    network = onnx.load(networks["affine"])
    path.write_bytes(build_picture_graph(network, work_size=64, plain=form == "plain").SerializeToString())
    open_on = partial(OnnxColorizer, path, threads=1)
    expected, found = open_on(), open_on(provider="webgpu")
    rng, worst, count = np.random.default_rng(0), 0, 0
    for height, width in sorted({shape[1:] for shape in matrix_shapes()})[::step]:
        for channels in (1, 3):
            pixels = rng.integers(0, 256, (height, width, channels), dtype=np.uint8)
            difference = np.abs(found(pixels).astype(np.int16) - expected(pixels))
            worst, count = max(worst, int(difference.max())), count + 1
            assert worst <= 1, (height, width, channels)
    print(f"{form}: {count} pictures, largest difference {worst} level")


def test_the_model_that_comes_along_runs(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (97, 130, 3), dtype=np.uint8)
    expected, found = (
        OnnxColorizer(DEMONSTRATION_MODEL, provider=each, threads=1)(pixels) for each in ("cpu", "webgpu")
    )
    assert np.abs(found.astype(np.int16) - expected).max() <= 1


def test_nothing_of_a_network_and_of_a_plain_picture_graph_is_left_to_the_cpu(
    networks: dict[str, Path], tmp_path: Path
) -> None:
    plain = tmp_path / "plain.onnx"
    plain.write_bytes(build_picture_graph(onnx.load(networks["affine"]), work_size=64, plain=True).SerializeToString())
    for path in (networks["affine"], networks["transpose"], networks["w8"], plain):
        counted = count_kernel_calls(path, "onnxruntime-webgpu", side=100)
        print(f"{path.name}: {counted.describe()}")
        assert counted.on_cpu <= 0.05 * counted.total
