"""Small real things that many tests share: a UNet of a few thousand parameters and a folder of photographs."""

from __future__ import annotations

import functools
import io
import pickle
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import settings
from PIL import Image

from benchmarks import latency
from colorpress.core.console import set_quiet
from compress.measures import CONTENT, MEASURES, Measure, Score
from export import timing
from export.latency_worker import run_job
from training.checkpoint import Checkpoint, save_checkpoint
from training.unet import UNet, UNetPlan

# How long a test takes says how busy the machine is.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

TINY_PLAN = UNetPlan.classic(4, 2)


@pytest.fixture(autouse=True)
def _one_torch_thread() -> None:
    """Tiny tensors are slower on more threads, and two test processes may share two cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _speaking() -> None:
    """A command that was told to be quiet in this process must not silence the next test."""
    set_quiet(False)


@pytest.fixture(autouse=True)
def _own_signals() -> Iterator[None]:
    """A command that ran in this process must not leave its handlers of Ctrl-C and SIGTERM."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class _ByValues(pickle.Pickler):
    """Writes equal tensors alike, where PyTorch's own pickles name the place in memory."""

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return None
        return type(value).__name__, str(value.dtype), tuple(value.shape), value.detach().numpy().tobytes()


@pytest.fixture(scope="session", autouse=True)
def _translated_once() -> Iterator[None]:
    """PyTorch takes a second to translate a network to ONNX, a quarter of it to read its list of operators.

    Here equal networks are translated once in a process, and the list is read once.
    """
    from torch.onnx._internal._lazy_import import onnxscript_apis  # which pytest would load in looking for fixtures

    translate, translated = torch.onnx.export, dict[tuple[bytes, frozenset[type]], bytes]()

    def remember(network: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        if not translated:  # no sooner: it imports much
            patch.setattr(onnxscript_apis, "get_torchlib_ops", functools.cache(onnxscript_apis.get_torchlib_ops))
        content = io.BytesIO()
        try:
            _ByValues(content).dump((network, arguments, options["opset_version"]))
        except (pickle.PicklingError, AttributeError, TypeError):  # such as a class that another file has by now
            return translate(network, *arguments, **options)
        # Two files may each have a class of one name.
        key = content.getvalue(), frozenset(type(module) for module in network.modules())
        if key not in translated:  # as bytes: a program holds the network's own weights, which may be trained on
            translated[key] = translate(network, *arguments, **options).model_proto.SerializeToString()
        return SimpleNamespace(model_proto=onnx.load_from_string(translated[key]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.onnx, "export", remember)
        yield


@pytest.fixture
def timed_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models are timed in this process: one of its own for each would take most of the test's time."""
    time_here(monkeypatch)


def time_here(patch: pytest.MonkeyPatch) -> None:
    """`timed_here` for what lasts longer than a test."""
    for module in (latency, timing):
        patch.setattr(module, "run_worker", lambda job, **_: run_job(job))


def make_network(plan: UNetPlan = TINY_PLAN, seed: int = 0) -> UNet:
    """A network whose batch norms have statistics of their own, so that folding them wrongly shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(plan).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
            ):
                tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return network


def make_score(kept: float, spread: float = 0.05, *, measure: Measure = CONTENT, others: float = 0.5) -> Score:
    """A score by a measure with its interval; the others say `others`, and 10 % more L1 is all that can be lost."""
    values = {each: kept if each is measure else others for each in MEASURES.values()}
    figures = {each.name: value for each, value in values.items()}
    figures |= {each.low: value - spread for each, value in values.items()}
    figures |= {each.high: value + spread for each, value in values.items()}
    delta_pct = 10.0 * (1.0 - kept)
    figures |= {
        "l1_delta_pct": delta_pct,
        "l1_delta_low": delta_pct - 10 * spread,
        "l1_delta_high": delta_pct + 10 * spread,
    }
    return Score(l1=0.1 * (2.0 - kept), measure=measure.name, **figures)


@pytest.fixture
def tiny_unet() -> UNet:
    """UNetPlan.classic(4, 2) with random weights and batch norm statistics, in eval mode."""
    return make_network()


@pytest.fixture
def tiny_checkpoint(tmp_path: Path, tiny_unet: UNet) -> Path:
    """A checkpoint file of `tiny_unet`."""
    return save_checkpoint(tmp_path / "tiny.pt", Checkpoint(TINY_PLAN, tiny_unet.state_dict(), epoch=1, val_l1=0.1))


def make_vivid(path: Path) -> Path:
    """A checkpoint whose colours have nothing to do with the truth: the same strong violet everywhere."""
    network = make_network()
    torch.nn.init.zeros_(network.head.weight)
    network.head.bias.data = torch.tensor([0.8, -0.8])
    return save_checkpoint(path, Checkpoint(TINY_PLAN, network.state_dict()))


def make_photo(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    """A smooth colourful picture, different for each seed: what a network can learn a little from."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture
def photo_folder(tmp_path: Path) -> Path:
    """A folder of ten small photographs, PNG and JPEG, one in a sub-folder."""
    folder = tmp_path / "photos"
    (folder / "more").mkdir(parents=True)
    for index in range(10):
        place = folder / "more" if index == 9 else folder
        make_photo(index).save(place / f"photo{index}.{'jpg' if index % 2 else 'png'}")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Headless Chromium with its own driver; selenium is told both, so it fetches nothing."""
    selenium = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium and chromedriver are not installed")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    # As root, in a container, there is neither its sandbox nor a large /dev/shm; WebGPU runs in software.
    webgpu = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")
    for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1200,900", *webgpu):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path_factory.mktemp("saved"))})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    started = selenium.Chrome(options=options, service=selenium.ChromeService(driver))
    yield started
    started.quit()
