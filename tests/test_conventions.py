"""What networks of other authors read and answer: each way is undone exactly, found on photographs, and kept."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from colorpress.cli import cli, run_command
from colorpress.core.config import CONVENTION_OPTIONS, ArchConfig, DataConfig, ExportConfig, PruneConfig, Settings
from colorpress.core.errors import ConfigError
from compress.importance import Evidence
from compress.int8.graph_network import GraphNetwork
from compress.pruning import prune_network
from export.graph import export_onnx, read_metadata
from export.predictors import OnnxPredictor
from export.torch_runtimes import TorchPredictor
from training.checkpoint import load_checkpoint
from training.convention_search import Squares, find_conventions
from training.conventions import Conventions
from training.foreign import AdaptedNetwork, ForeignArchitecture, adapt_network
from training.lab import l_ab_to_rgb, rgb_to_l_ab
from training.original import adopt_checkpoint, settle_conventions
from training.run_folder import Run, find_photos

MEAN, SPREAD = (torch.tensor(each)[:, None, None] for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
SAME = 1e-5  # float32 sums in another order
SOURCE = """
import torch
from torch import nn


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.strength = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        light = (x + 1) / 2
        return self.strength * torch.cat((torch.sin(9 * light), torch.cos(7 * light)), 1)


class UNet(nn.Module):
    def __init__(self, base=8):
        super().__init__()
        self.down, self.mid = nn.Conv2d(3, base, 3, 2, 1), nn.Conv2d(base, base, 3, padding=1)
        self.up, self.out = nn.ConvTranspose2d(base, base, 2, 2), nn.Conv2d(base, 3, 3, padding=1)

    def forward(self, x):
        return torch.tanh(self.out(torch.relu(self.up(torch.relu(self.mid(torch.relu(self.down(x))))))))
"""


def colours_of(lightness: Tensor) -> Tensor:
    """ab/128 (N, 2, H, W) of L (N, 1, H, W): greens in the dark, then reds, then blues."""
    return torch.cat((0.25 * torch.sin(9.0 * lightness), 0.25 * torch.cos(7.0 * lightness)), 1)


def make_lightness(count: int, side: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, 4, 4, generator=generator)
    return nn.functional.interpolate(coarse, (side, side), mode="bilinear") * 0.7 + 0.15


def make_squares(count: int = 40) -> Squares:
    lightness = make_lightness(count)
    noise = torch.randn(count, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    return Squares(lightness, colours_of(lightness) + 0.05 * noise)


class Theirs(nn.Module):
    """Paints `colours_of`, read and answered as somebody else does."""

    def __init__(self, read: str, answer: str, strength: float = 1.0) -> None:
        super().__init__()
        self.read, self.answer, self.strength = read, answer, nn.Parameter(torch.tensor(strength))

    def forward(self, x: Tensor) -> Tensor:
        kind, _, channels = self.read.partition(" x")
        assert x.shape[1] == int(channels or 1)
        if kind == "imagenet":
            x = (x * SPREAD + MEAN)[:, :1]
        low, high = {"-1,1": (-1.0, 1.0), "-50,50": (-50.0, 50.0), "0,100": (0.0, 100.0)}.get(kind, (0.0, 1.0))
        lightness = (x[:, :1] - low) / (high - low)
        ab = self.strength * colours_of(lightness)
        rgb = l_ab_to_rgb(lightness, ab)
        return {
            "ab/128": ab,
            "ab/110": ab * 128 / 110,
            "raw": ab * 128,
            "unit": (ab * 128 + 128) / 255,
            "lab": torch.cat((lightness, ab), 1),
            "rgb": rgb,
            "tanh": 2 * rgb - 1,
            "normalized": (rgb - MEAN) / SPREAD,
        }[self.answer]


def adapted(net: nn.Module, **assumed: Any) -> AdaptedNetwork:
    architecture = ForeignArchitecture("net.py:Theirs", {}, Conventions(**assumed), 1, "0" * 64)
    return AdaptedNetwork(net, architecture, lambda: net).eval()


# Asking


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, lambda plane, grey: plane),
        ({"l_range": "-1,1"}, lambda plane, grey: 2 * plane - 1),
        ({"l_range": "-50,50"}, lambda plane, grey: 100 * plane - 50),
        ({"l_range": "0,100", "input_channels": 3}, lambda plane, grey: (100 * plane).expand(-1, 3, -1, -1)),
        ({"input": "grey", "l_range": "-1,1"}, lambda plane, grey: 2 * grey[:, :1] - 1),
        ({"input": "grey", "input_channels": 3}, lambda plane, grey: grey),
        ({"input_channels": 3, "input_norm": "imagenet"}, lambda plane, grey: (plane - MEAN) / SPREAD),
        ({"input": "grey", "input_channels": 3, "input_norm": "imagenet"}, lambda plane, grey: (grey - MEAN) / SPREAD),
    ],
)
def test_lightness_is_presented_as_they_read_it(known: dict[str, Any], expected: Any) -> None:
    plane = torch.linspace(0, 1, 50).reshape(1, 1, 5, 10)
    grey = l_ab_to_rgb(plane, torch.zeros(1, 2, 5, 10))
    torch.testing.assert_close(Conventions(**known).present(plane), expected(plane, grey), atol=3e-4, rtol=1e-5)


@pytest.mark.parametrize(
    ("known", "answered"),
    [
        ({}, "ab/128"),
        ({"ab_scale": 110.0}, "ab/110"),
        ({"ab_scale": 1.0}, "raw"),
        ({"ab_scale": 255.0, "ab_offset": -128.0}, "unit"),
        ({"output": "lab"}, "lab"),
        ({"output": "rgb"}, "rgb"),
        ({"output": "rgb", "rgb_range": "-1,1"}, "tanh"),
        ({"output": "rgb", "rgb_range": "imagenet"}, "normalized"),
    ],
)
def test_what_they_answer_is_read_as_ab(known: dict[str, Any], answered: str) -> None:
    lightness = make_lightness(2)
    answer = Theirs("0,1", answered)(lightness)
    shown = rgb_to_l_ab(l_ab_to_rgb(lightness, colours_of(lightness)))[1]  # what sRGB has of these colours
    expected = shown if known.get("output") == "rgb" else colours_of(lightness)
    torch.testing.assert_close(Conventions(**known).interpret(answer), expected, atol=2e-5, rtol=0)
    assert Conventions(**known).output_channels == answer.shape[1]


def test_gradients_are_finite_for_any_srgb() -> None:
    values = torch.tensor([-3.0, 0.0, 1e-7, 0.0405, 0.5, 1.0, 7.0])
    rgb = torch.cartesian_prod(values, values, values).T.reshape(1, 3, 7, 49).requires_grad_()
    ab = Conventions(output="rgb").interpret(rgb)
    ab.abs().sum().backward()
    assert rgb.grad is not None and bool(torch.isfinite(rgb.grad).all()) and bool(torch.isfinite(ab).all())
    assert ab.abs().max() < 1


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"input_channels": 2}, "--input-channels': got 2"),
        ({"input_norm": "imagenet", "input_channels": 1}, "--input-norm': got imagenet"),
        ({"input_norm": "imagenet", "l_range": "-1,1"}, "--input-norm': got imagenet"),
        ({"input": "grey", "l_range": "-50,50"}, "--l-range': got -50,50"),
        ({"output": "rgb", "ab_scale": 110.0}, "--ab-scale': got 110"),
        ({"output": "ab", "rgb_range": "-1,1"}, "--rgb-range': got -1,1"),
        ({"l_range": "0,2"}, "--l-range': got '0,2'"),
    ],
)
def test_options_that_contradict_each_other_are_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        ArchConfig(arch="a.py:B", **given)
    with pytest.raises(ConfigError, match="says nothing without --arch"):
        ArchConfig(**given if "l_range" not in given else {"l_range": "0,1"})


def test_options_and_conventions_have_the_same_names() -> None:
    assert set(CONVENTION_OPTIONS) == set(vars(Conventions()))
    rgb = Conventions(output="rgb", rgb_range="-1,1", input_channels=3)
    assert ArchConfig(arch="a.py:B", **rgb.options()).left_open == ()
    assert set(ArchConfig(arch="a.py:B").left_open) == set(CONVENTION_OPTIONS) - {"rgb_range"}
    told = ArchConfig(arch="a.py:B", **rgb.telling_options()).as_arguments()
    assert told == "--arch a.py:B --input-channels 3 --output rgb --rgb-range -1,1"
    typed = cli.commands["adopt"].make_context("adopt", [*told.split(), "x.pt"]).params
    assert {name: typed[name] for name in CONVENTION_OPTIONS if typed[name] is not None} == rgb.telling_options()


# Finding


@pytest.mark.parametrize(
    ("read", "answer", "expected"),
    [
        ("0,1", "ab/128", {}),
        ("-1,1", "ab/110", {"l_range": "-1,1"}),
        ("-50,50", "raw", {"l_range": "-50,50", "ab_scale": 1.0}),
        ("0,100", "unit", {"l_range": "0,100", "ab_scale": 255.0, "ab_offset": -128.0}),
        ("0,1 x3", "tanh", {"output": "rgb", "rgb_range": "-1,1"}),
        ("-1,1 x3", "lab", {"output": "lab", "l_range": "-1,1"}),
        ("imagenet x3", "normalized", {"output": "rgb", "rgb_range": "imagenet", "input_norm": "imagenet"}),
    ],
)
def test_what_fits_photographs_is_found(read: str, answer: str, expected: dict[str, Any]) -> None:
    net, squares = Theirs(read, answer), make_squares()
    channels = 3 if "x3" in read else 1
    three = {} if expected.get("output") is None else {"output": "rgb"}
    finding = find_conventions(adapted(net, input_channels=channels, **three), {}, squares)
    assert finding.doubt == ""
    assert finding.taken == Conventions(input_channels=channels, **expected)
    assert "% below grey on " in finding.describe()
    assert [row[0] for row in finding.to_rows() if "(taken)" in row[0]] == [finding.taken.describe() + " (taken)"]


@pytest.mark.parametrize("l_range", ["0,1", "-1,1"])
def test_another_input_that_is_a_little_better_is_not_taken(l_range: str) -> None:
    squares = make_squares()
    bright = Conventions(input="grey").present(squares.lightness)
    finding = find_conventions(adapted(Theirs(l_range, "ab/128")), {}, Squares(squares.lightness, colours_of(bright)))
    best = max(finding.trials, key=lambda each: each.gain)
    assert best.conventions.input == "grey" and best.beats(finding.trials[0])
    assert finding.taken == Conventions(l_range=l_range) and not finding.doubt


def test_vivid_colours_do_not_hide_what_fits() -> None:
    finding = find_conventions(adapted(Theirs("-1,1", "ab/128", 3.0)), {}, make_squares())
    assert finding.taken == Conventions(l_range="-1,1") and not finding.doubt
    best = finding.trials[0]
    assert best.l1.mean() > best.grey_l1.mean() > best.tuned_l1.mean()


def test_what_is_given_is_not_tried() -> None:
    given = {"l_range": "0,1", "ab_scale": 110.0}
    assumed = {"ab_scale": 110.0}
    finding = find_conventions(adapted(Theirs("-1,1", "ab/110"), **assumed), given, make_squares())
    assert {each.conventions.l_range for each in finding.trials} == {"0,1"}
    assert {each.conventions.ab_scale for each in finding.trials} == {110.0}
    assert finding.taken == Conventions(**assumed)
    assert finding.doubt.startswith("it is not clearly better than grey, or than a tint, by any of 2 conventions: ")


class EitherWay(nn.Module):
    """Paints the left half of pictures where L is never negative, and the right one where it is."""

    def forward(self, x: Tensor) -> Tensor:
        is_signed = bool(x.min() < 0)
        left, right = colours_of((x + 1) / 2 if is_signed else x).chunk(2, -1)
        return torch.cat((0 * left, right) if is_signed else (left, 0 * right), -1)


def test_what_photographs_do_not_tell_apart_is_not_taken() -> None:
    squares = make_squares()
    both = [torch.stack((each, each.flip(-1)), 1).flatten(0, 1) for each in (squares.lightness, squares.ab)]
    finding = find_conventions(adapted(EitherWay()), {"input": "l", "ab_scale": 128.0}, Squares(*both))
    assert finding.doubt.startswith("nothing tells one that reads L*"), finding.describe()
    assert finding.taken == Conventions()


@pytest.mark.parametrize("value", [0.0, float("nan"), 0.3])
def test_a_network_that_sees_nothing_fits_nothing(value: float) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.full_like(x.expand(-1, 2, -1, -1), value)

    finding = find_conventions(adapted(Constant()), {}, make_squares())
    assert finding.doubt and finding.taken == Conventions()


# Keeping


@dataclass(frozen=True)
class Brought:
    """What a user brings: code, weights that want L in [-1, 1] and give raw a*b*, and photographs."""

    source: Path
    table: Path
    unet: Path
    photos: Path


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Brought:
    folder = tmp_path_factory.mktemp("brought")
    (folder / "nets.py").write_text(SOURCE)
    torch.save({"strength": torch.tensor([32.0])}, folder / "table.pt")
    torch.manual_seed(0)
    torch.save(adapt_network(ArchConfig(arch=f"{folder / 'nets.py'}:UNet")).net.state_dict(), folder / "unet.pt")
    lightness = make_lightness(36, 24)
    pixels = (255 * l_ab_to_rgb(lightness, colours_of(lightness))).round().byte().permute(0, 2, 3, 1).numpy()
    (folder / "photos").mkdir()
    for number, picture in enumerate(pixels):
        Image.fromarray(np.ascontiguousarray(picture)).save(folder / "photos" / f"{number}.png")
    return Brought(folder / "nets.py", folder / "table.pt", folder / "unet.pt", folder / "photos")


FOUND = Conventions(l_range="-1,1", ab_scale=1.0)


def test_adopt_finds_them_and_best_pt_keeps_them(
    brought: Brought, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["adopt", str(brought.table), "--arch", f"{brought.source}:Table", "--data", str(brought.photos)]
    words += ["-o", str(tmp_path / "out"), "--workers", "0"]
    assert run_command(words) == 0
    shown = capsys.readouterr()
    assert "reads L* in -1,1; answers a*b* (taken)" in shown.out and "reads L* in 0,100" in shown.out
    assert "nets.py:Table reads L* in -1,1; answers a*b*; takes any size" in shown.out
    assert "table.pt: it reads L* in -1,1; answers a*b*: L1 8" in shown.err and "warning" not in shown.err
    best = tmp_path / "out" / "best.pt"
    recorded = load_checkpoint(best, arch := ArchConfig(arch=f"{brought.source}:Table"))
    assert recorded.architecture.describe()["conventions"] == vars(FOUND)
    lightness = make_lightness(1)
    torch.testing.assert_close(recorded.build_network()(lightness), colours_of(lightness), atol=SAME, rtol=0)
    assert run_command([*words, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["conventions"] == FOUND.options() and answer["doubt"] == ""
    assert answer["sizes"] == {"multiple": 1, "fixed": None}
    assert answer["tried"][0]["l1"] < 0.2 * answer["tried"][0]["grey_l1"]
    assert run_command([*words, "--l-range", "0,1"]) == 2  # another best.pt, which would be lost
    with pytest.raises(ConfigError, match="--l-range': got 0,1, but the checkpoint says -1,1"):
        load_checkpoint(best, replace(arch, l_range="0,1")).build_network()


def test_stages_with_photographs_take_what_fits_and_others_say_what_they_assume(
    brought: Brought, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(data=DataConfig(data=brought.photos), arch=ArchConfig(arch=f"{brought.source}:Table"))
    run = Run(tmp_path, settings)
    photos = find_photos(run)
    settled = settle_conventions(run, brought.table, photos)
    assert settled.settings.arch == replace(settings.arch, **FOUND.options())
    adopt_checkpoint(run, brought.table, photos)
    content = run.best_path.read_bytes()
    capsys.readouterr()
    # The same file again: what was found is known, and a search would say something.
    adopt_checkpoint(run, brought.table, photos)
    assert settle_conventions(run, brought.table, photos) == settled
    assert settle_conventions(run, run.best_path, photos) == run
    assert (capsys.readouterr().err, run.best_path.read_bytes()) == ("", content)
    run.load(brought.table).build_network()
    assumed = "warning: nets.py:Table is taken for one that reads L* in 0,1; answers a*b* / 128"
    assert assumed in capsys.readouterr().err
    settled.load(brought.table).build_network()
    assert capsys.readouterr().err == ""


def test_without_colours_that_fit_it_is_said_what_to_give(
    brought: Brought, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = ArchConfig(arch=f"{brought.source}:Table", l_range="0,100", input="l")
    run = Run(tmp_path, Settings(data=DataConfig(data=brought.photos), arch=arch))
    adopted = adopt_checkpoint(run, brought.table, find_photos(run))
    assert adopted is not None and adopted.finding is not None and adopted.finding.doubt
    said = capsys.readouterr().err
    assert "warning: table.pt: it is not clearly better than grey, or than a tint, by any of 3 conventions" in said
    assert "else give --input-channels, --input-norm, --output, --ab-scale, --ab-offset" in said
    assert "or leave out --input, --l-range (nearest: --l-range 0,100" in said
    assert adopted.checkpoint.architecture.describe()["conventions"] == vars(Conventions(l_range="0,100"))


def test_pictures_in_and_out_are_exported_and_pruned(brought: Brought, tmp_path: Path) -> None:
    known = {"input": "grey", "input_norm": "imagenet", "rgb_range": "-1,1"}
    found = load_checkpoint(brought.unet, ArchConfig(arch=f"{brought.source}:UNet", **known))
    network = found.build_network()
    assert isinstance(network, AdaptedNetwork)
    taken = network.architecture.conventions
    assert taken == Conventions(input_channels=3, output="rgb", **known)  # the channels were found by asking
    path = export_onnx(found, tmp_path / "model.onnx", ExportConfig()).path
    predictor = OnnxPredictor(path, threads=1)
    for shape in ((1, 1, 1, 1), (2, 1, 7, 13), (1, 1, 32, 20)):
        picture = np.random.default_rng(0).random(shape, dtype=np.float32)
        np.testing.assert_allclose(predictor(picture), TorchPredictor(network)(picture), atol=SAME, rtol=0)
        # As it is when int8 is prepared: trained and equalized.
        values = GraphNetwork(onnx.load(path)).eval()(torch.from_numpy(picture)).detach().numpy()
        np.testing.assert_allclose(values, TorchPredictor(network)(picture), atol=SAME, rtol=0)
    metadata = read_metadata(path)
    assert metadata["conventions"] == f"nets.py:UNet {taken.describe()}; this file reads L and answers ab"
    assert json.loads(metadata["architecture"])["conventions"] == vars(taken)
    config = PruneConfig(largest_share=1.0, prune_ratio=0.5, round_to=1)
    pruned = prune_network(network, config, Evidence(height=16, width=16)).network
    assert isinstance(pruned, AdaptedNetwork)
    widths = {name: module.out_channels for name, module in pruned.net.named_children()}  # type: ignore[union-attr]
    assert widths == {"down": 4, "mid": 4, "up": 4, "out": 3}
    assert pruned(torch.rand(1, 1, 9, 14)).shape == (1, 2, 9, 14)
