"""Networks of other authors: read, adapted, pruned, distilled and exported as they are, and refused with a reason."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.variants import describe_models, describe_variant
from colorpress.core.config import (
    ArchConfig,
    DataConfig,
    ExportConfig,
    MachineConfig,
    PruneConfig,
    Recipe,
    Settings,
)
from colorpress.core.errors import ConfigError, InputError
from compress.dependency_graph import layer_widths
from compress.distillation import Lesson, distil_network
from compress.importance import Evidence
from compress.measures import Scale
from compress.prune_plan import read_plan, write_plan
from compress.pruning import apply_pruning, plan_pruning, prune_network
from compress.ranking import rank_layers
from export.graph import export_onnx, simplify_for_export
from export.predictors import OnnxPredictor
from export.runtimes import open_predictor
from export.timing import run_worker
from export.torch_runtimes import TorchPredictor
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.conventions import Conventions
from training.foreign import AdaptedNetwork, adapt_network
from training.foreign_source import parse_arguments
from training.network import ColorNetwork
from training.photo_scan import scan_photos
from training.run_folder import Run
from training.unet import UNet, UNetPlan, count_parameters

SAME_ANSWER = 1e-5  # float32 sums in another order
EVERYTHING = PruneConfig(largest_share=1.0, prune_ratio=0.5, round_to=1)

# As different authors write them; none knows of colorpress.
SOURCE = '''
import sys

import torch
from torch import nn
from torch.nn import functional as F

print("a line that is no result")


def block(cin, cout):
    return nn.Sequential(nn.Conv2d(cin, cout, 3, padding=1, bias=False), nn.BatchNorm2d(cout), nn.ReLU(True))


class UNet(nn.Module):
    """Depth 2, transposed convolutions: sizes are multiples of 4."""

    def __init__(self, base=4, cout=2):
        super().__init__()
        self.inc, self.down, self.mid = block(1, base), block(base, 2 * base), block(2 * base, 4 * base)
        self.up1 = nn.ConvTranspose2d(4 * base, 2 * base, 2, stride=2)
        self.dec1 = block(4 * base, 2 * base)
        self.up2 = nn.ConvTranspose2d(2 * base, base, 2, stride=2)
        self.dec2 = block(2 * base, base)
        self.out = nn.Conv2d(base, cout, 1)

    def forward(self, x):
        a = self.inc(x)
        b = self.down(F.max_pool2d(a, 2))
        y = self.dec1(torch.cat([b, self.up1(self.mid(F.max_pool2d(b, 2)))], 1))
        return torch.tanh(self.out(self.dec2(torch.cat([a, self.up2(y)], 1))))


class Residual(nn.Module):
    """Additions, a depthwise convolution, a group norm, a 4x4 transposed convolution, three input channels."""

    def __init__(self, base=8):
        super().__init__()
        self.stem = nn.Conv2d(3, base, 3, padding=1)
        self.first, self.bn1 = nn.Conv2d(base, base, 3, padding=1), nn.BatchNorm2d(base)
        self.depthwise = nn.Conv2d(base, base, 3, padding=1, groups=base)
        self.point, self.norm = nn.Conv2d(base, base, 1), nn.GroupNorm(2, base)
        self.down = nn.Conv2d(base, 2 * base, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(2 * base, base, 4, stride=2, padding=1)
        self.out = nn.Conv2d(base, 2, 1)

    def forward(self, x):
        x = self.stem(x.expand(-1, 3, -1, -1))
        x = x + F.relu(self.bn1(self.first(x)))
        x = x + F.relu(self.norm(self.point(self.depthwise(x))))
        return self.out(x + self.up(F.relu(self.down(x))))


class Plain(nn.Module):
    """No down-sampling: any size goes in."""

    def __init__(self, base=4):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, base, 3, padding=1), nn.Conv2d(base, 2, 3, padding=1)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


class Chunked(nn.Module):
    """Counts on its channel numbers where no graph sees it."""

    def __init__(self, base=4):
        super().__init__()
        self.base = base
        self.a, self.b = nn.Conv2d(1, base, 3, padding=1), nn.Conv2d(base, 2 * base, 3, padding=1)
        self.c, self.out = nn.Conv2d(base, base, 3, padding=1), nn.Conv2d(base, 2, 1)

    def forward(self, x):
        y = self.b(F.relu(self.a(x)))
        n, _, h, w = y.shape
        return self.out(F.relu(self.c(y.view(n, self.base, 2, h, w).sum(2))))


class Tall(nn.Module):
    """Counts on its channel numbers in pictures that are higher than wide, where the example of a graph is square."""

    def __init__(self, base=4):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, base, 3, padding=1), nn.Conv2d(base, base, 3, padding=1)
        self.out = nn.Conv2d(base, 2, 1)
        self.base = base

    def forward(self, x):
        y = F.relu(self.b(F.relu(self.a(x))))
        return self.out(y + y.new_ones(1, self.base, 1, 1) if y.shape[-2] > y.shape[-1] else y)


class ReadTwice(nn.Module):
    """A convolution that feeds a batch norm, and something else too."""

    def __init__(self):
        super().__init__()
        self.a, self.bn, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        y = self.a(x)
        return self.out(F.relu(self.bn(y)) + y)


class OfAnySize(nn.Module):
    """Halves with a remainder, and enlarges to the size of what it skipped; a tensor that is no buffer."""

    def __init__(self, base=4):
        super().__init__()
        self.inc, self.mid, self.out = block(1, base), block(base, base), nn.Conv2d(2 * base, 2, 1)
        self.shift = torch.full((1, base, 1, 1), 0.1)

    def forward(self, x):
        a = self.inc(x)
        y = self.mid(F.avg_pool2d(a, 2, ceil_mode=True)) + self.shift
        return self.out(torch.cat([a, F.interpolate(y, size=a.shape[-2:], mode="bilinear")], 1))


class Decides(nn.Module):
    """Its way depends on values."""

    def __init__(self):
        super().__init__()
        self.out = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        return self.out(x) if x.mean() > 0.5 else -self.out(x)


def adapter(base=4):
    return UNet(base)


class Fails(nn.Module):
    def forward(self, x):
        raise ValueError("no such thing")


class Tuple(nn.Module):
    def forward(self, x):
        return x, x


def number():
    return 3


made = Plain()


def precise(kind):
    return Plain().to(getattr(torch, kind))


def quits():
    sys.exit(1)
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "theirs" / "nets.py"
    path.parent.mkdir()
    path.write_text(SOURCE)
    return path


def lively(network: ColorNetwork, seed: int = 0) -> ColorNetwork:
    """Weights and batch norm statistics that are those of no fresh network."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            positive = name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight"))
            tensor.copy_(noise + 0.5 if positive else (noise - 0.5) * (0.3 if tensor.ndim == 1 else 0.6))
    return network


def named(source: Path, name: str = "UNet", *args: str, **options: Any) -> ArchConfig:
    return ArchConfig(arch=f"{source}:{name}", arch_arg=args, **{"ab_scale": 110.0, **options})


def theirs(source: Path, name: str = "UNet", *args: str) -> AdaptedNetwork:
    network = lively(adapt_network(named(source, name, *args)))
    assert isinstance(network, AdaptedNetwork)
    return network


def answer(network: nn.Module, height: int = 9, width: int = 14) -> Tensor:
    picture = torch.linspace(0, 1, height * width).reshape(1, 1, height, width)
    with torch.no_grad():
        return network.eval()(picture)


def saved(source: Path, content: Any, name: str = "theirs.pt") -> Path:
    path = source.with_name(name)
    torch.save(content, path)
    return path


# Adapting


def test_the_answer_is_theirs_scaled_for_any_size(source: Path) -> None:
    network = theirs(source)
    assert network.size_multiple == 4
    picture = torch.rand(2, 1, 8, 12)
    with torch.no_grad():
        assert torch.equal(network(picture), network.net(picture) * (110 / 128))
        padded = torch.nn.functional.pad(picture[..., :7, :9], (0, 3, 0, 1), mode="replicate")
        assert torch.equal(network(picture[..., :7, :9]), network(padded)[..., :7, :9])
    assert answer(network, 1, 1).shape == (1, 2, 1, 1)


@pytest.mark.parametrize(
    ("name", "multiple"), [("UNet", 4), ("Residual", 2), ("Plain", 1), ("OfAnySize", 1), ("adapter", 4)]
)
def test_the_multiple_of_their_sizes_is_found(source: Path, name: str, multiple: int) -> None:
    assert adapt_network(named(source, name)).size_multiple == multiple


def test_arguments_are_toml_or_json_or_text() -> None:
    given = ["base=32", "rate=1e-3", "flag=true", "off=False", "none=null", "word=resnet18", "list=[1, 2]", 'text="7"']
    assert parse_arguments(given) == {
        "base": 32, "rate": 1e-3, "flag": True, "off": False, "none": None, "word": "resnet18", "list": [1, 2],
        "text": "7",
    }  # fmt: skip
    for wrong in (["base"], ["=3"], ["a b=3"], ["base=1", "base=2"]):
        with pytest.raises(ConfigError, match="--arch-arg"):
            parse_arguments(wrong)


@pytest.mark.parametrize(
    ("name", "error", "why"),
    [
        ("Fails", InputError, "network 'nets.py:Fails': fails on an input of 1x1x256x256: no such thing"),
        ("Tuple", InputError, "answers a tuple"),
        ("number", ConfigError, "number gave a int, not an nn.Module"),
        ("made", ConfigError, "made is a network already, not what makes one name its class, Plain"),
        ("quits", ConfigError, "quits() failed: SystemExit in line"),
        ("Unet", ConfigError, "holds no class or function 'Unet'"),
        ("F.relu", ConfigError, "give FILE.py:NAME"),
    ],
)
def test_what_gives_no_colorizer_is_refused(source: Path, name: str, error: type[Exception], why: str) -> None:
    with pytest.raises(error) as caught:
        adapt_network(named(source, name))
    assert why in f"{caught.value} {caught.value.hint}"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("args", "error", "why"),
    [
        (("cout=5",), InputError, "answers 1x5x256x256"),
        (("bass=4",), ConfigError, "unexpected keyword argument 'bass'.*NAME=VALUE: base, cout$"),
    ],
)
def test_arguments_that_do_not_fit_are_named(source: Path, args: tuple[str, ...], error: Any, why: str) -> None:
    with pytest.raises(error) as caught:
        adapt_network(named(source, "UNet", *args))
    assert re.search(why, f"{caught.value} {caught.value.hint}")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"input_channels": 3}, "--input-channels': got 3, and the network takes 1 channel"),
        ({"input_norm": "imagenet"}, "--input-norm': got imagenet, and the network takes 1 channel"),
        ({"output": "lab"}, "--output': got lab, and the network answers 2 channels"),
    ],
)
def test_channels_that_the_network_has_not_are_refused(source: Path, options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        adapt_network(ArchConfig(arch=f"{source}:UNet", **options))


def test_a_file_that_does_not_run_is_refused(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        adapt_network(ArchConfig(arch=f"{source}x:UNet"))
    for text, why in (("import nothing_like_it\n", "line 1: No module named"), ("def (:\n", "SyntaxError")):
        source.write_text(text)
        with pytest.raises(ConfigError, match=why):
            adapt_network(named(source))
    source.write_text(SOURCE)
    adapt_network(named(source))
    assert capsys.readouterr().out == ""  # what their code prints is no result of a command
    assert not list(source.parent.glob("__pycache__"))


def test_modules_beside_their_file_are_found(source: Path) -> None:
    (source.parent / "their_blocks.py").write_text("WIDTH = 6\n")
    source.write_text(SOURCE + "\nfrom their_blocks import WIDTH\n\n\ndef wide():\n    return UNet(WIDTH)\n")
    assert theirs(source, "wide").net.inc[0].out_channels == 6
    assert str(source.parent) not in sys.path


# Reading


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("key", [None, "model", "state_dict"])
def test_weights_are_found_wherever_they_are(source: Path, prefix: str, key: str | None) -> None:
    network = theirs(source)
    state = {prefix + name: tensor for name, tensor in network.net.state_dict().items()}
    content = state if key is None else {"epoch": 3, "base": 4, "optimizer": {"lr": 0.1}, key: state}
    found = load_checkpoint(saved(source, content), named(source))
    assert torch.equal(answer(found.build_network()), answer(network))


def test_a_part_that_was_compiled_keeps_its_name(source: Path) -> None:
    network = theirs(source)
    state = {name.replace("mid.", "mid._orig_mod."): tensor for name, tensor in network.net.state_dict().items()}
    found = load_checkpoint(saved(source, state), named(source))
    assert torch.equal(answer(found.build_network()), answer(network))


def test_a_converted_checkpoint_answers_the_same_and_keeps_its_architecture(source: Path, tmp_path: Path) -> None:
    network = theirs(source, "UNet", "base=6")
    found = load_checkpoint(saved(source, network.net.state_dict()), named(source, "UNet", "base=6"))
    path = save_checkpoint(tmp_path / "best.pt", found)
    again = load_checkpoint(path, ArchConfig(arch=f"{source}:UNet"))  # arguments and scale are the checkpoint's
    assert torch.equal(answer(again.build_network()), answer(network))
    described = torch.load(path, weights_only=True)["architecture"]
    assert (described["name"], described["source"], described["args"]) == ("foreign", "nets.py:UNet", {"base": 6})
    assert described["conventions"] == {**vars(Conventions()), "ab_scale": 110.0}
    assert (described["size_multiple"], len(described["source_sha256"])) == (4, 64)
    assert str(source.parent).encode() not in path.read_bytes()
    with pytest.raises(ConfigError, match="got 128, but the checkpoint says 110"):
        load_checkpoint(path, named(source, ab_scale=128.0)).build_network()


def test_a_checkpoint_runs_no_file_by_itself(source: Path, tmp_path: Path) -> None:
    path = save_checkpoint(
        tmp_path / "best.pt", load_checkpoint(saved(source, theirs(source).net.state_dict()), named(source))
    )
    canary = tmp_path / "canary"
    # Where a careless program would find it: beside the checkpoint, under the name in it.
    (tmp_path / "nets.py").write_text(f"open({str(canary)!r}, 'w')\n" + SOURCE)
    with pytest.raises(ConfigError, match=r"holds the network nets\.py:UNet") as caught:
        load_checkpoint(path).build_network()
    assert "--arch nets.py:UNet --ab-scale 110" in caught.value.hint
    assert not canary.exists()


def test_a_changed_file_is_warned_about(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_checkpoint(
        tmp_path / "best.pt", load_checkpoint(saved(source, theirs(source).net.state_dict()), named(source))
    )
    load_checkpoint(path, named(source)).build_network()
    assert "is not the file" not in capsys.readouterr().err
    source.write_text(SOURCE + "# edited\n")
    load_checkpoint(path, named(source)).build_network()
    assert "warning: nets.py:UNet is not the file that the checkpoint was made with" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["float16", "float64"])
def test_a_network_of_another_precision_is_asked_in_float32(source: Path, kind: str) -> None:
    plain = theirs(source, "Plain").net
    network = load_checkpoint(
        saved(source, plain.state_dict()), named(source, "precise", f"kind={kind}")
    ).build_network()
    lightness = torch.rand(1, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(network(lightness), plain(lightness) * (110 / 128))


def test_other_arguments_are_warned_about(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that change no shape, such as the number of groups of a norm, change the answers."""
    checkpoint = load_checkpoint(saved(source, theirs(source).net.state_dict()), named(source, "UNet", "base=4"))
    path = save_checkpoint(tmp_path / "best.pt", checkpoint)
    for same in ((), ("base=4",)):
        load_checkpoint(path, named(source, "UNet", *same)).build_network()
    assert "is called with" not in capsys.readouterr().err
    load_checkpoint(path, named(source, "UNet", "base=8")).build_network()
    told = "warning: nets.py:UNet is called with base=8 and the checkpoint was made with base=4"
    assert told in capsys.readouterr().err


def test_a_checkpoint_of_before_conventions_is_as_it_was(source: Path, tmp_path: Path) -> None:
    found = load_checkpoint(saved(source, theirs(source).net.state_dict()), named(source))
    path = save_checkpoint(tmp_path / "best.pt", found)
    content = torch.load(path, weights_only=True)
    described = content["architecture"]
    del described["conventions"], described["fixed_size"]
    torch.save({**content, "architecture": {**described, "ab_scale": 110.0}}, path)
    again = load_checkpoint(path, ArchConfig(arch=f"{source}:UNet"))
    assert again.architecture == found.architecture
    assert torch.equal(answer(again.build_network()), answer(found.build_network()))


def test_safetensors_and_half_precision(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = theirs(source)
    state = {name: t.half() if t.is_floating_point() else t for name, t in network.net.state_dict().items()}
    path = source.with_name("theirs.safetensors")
    save_file(state, path)
    found = load_checkpoint(path, named(source))
    assert "'theirs.safetensors' holds float16 weights: converted to float32" in capsys.readouterr().err
    assert {t.dtype for t in found.state_dict.values()} == {torch.float32, torch.int64}
    torch.testing.assert_close(answer(found.build_network()), answer(network), rtol=0, atol=1e-2)
    whole = path.read_bytes()
    for content in (whole[:7], whole[:100], whole[:-1], b"\xff" * 8 + whole[8:], b"", os.urandom(500)):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"corrupt or truncated|is empty"):
            load_checkpoint(path, named(source))


def test_a_plain_state_dict_of_our_own_unet_needs_no_name(source: Path, tiny_unet: UNet) -> None:
    found = load_checkpoint(saved(source, {f"module.{name}": t for name, t in tiny_unet.state_dict().items()}))
    assert found.architecture == UNetPlan.classic(4, 2)
    assert torch.equal(answer(found.build_network()), answer(tiny_unet))
    bilinear = UNet(UNetPlan.classic(4, 2, "bilinear"))
    with pytest.raises(InputError, match="by bilinear or by nearest"):
        load_checkpoint(saved(source, bilinear.state_dict()))


def refused(path: Path, arch: ArchConfig | None, kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        load_checkpoint(path, arch)
    return f"{caught.value} | {caught.value.hint}"  # type: ignore[attr-defined]


def test_weights_that_cannot_be_used_are_refused_with_what_is_there(source: Path) -> None:
    state = theirs(source).net.state_dict()
    message = refused(saved(source, {"model": state}), None)
    assert "holds no colorpress network (keys inc.0.weight, inc.1.weight," in message
    assert "| name its network: --arch FILE.py:CLASS [--arch-arg NAME=VALUE]" in message

    both = saved(source, {"model": state, "ema": {**state, "out.bias": state["out.bias"] + 1}})
    message = refused(both, named(source), ConfigError)
    assert "holds weights at model, ema, and both fit | choose: --state-key model" in message
    assert load_checkpoint(both, named(source, state_key="ema")).state_dict
    message = refused(both, named(source, state_key="net"), ConfigError)
    assert "got 'net', no weights there | weights are at: model, ema" in message
    assert "no dictionary of weights (keys epoch, best)" in refused(saved(source, {"epoch": 1, "best": 0.1}), None)

    message = refused(saved(source, state), named(source, "UNet", "base=8"))
    assert "inc.0.weight: expected (8, 1, 3, 3) got (4, 1, 3, 3); " in message
    assert message.count("expected") == 5
    message = refused(saved(source, state), named(source, "Plain"))
    assert "a.weight: expected (4, 1, 3, 3) got nothing" in message
    assert "; 4 missing, " in message and "check --arch-arg" in message

    broken = {**state, "out.bias": torch.tensor([0.0, float("nan")])}
    assert "out.bias holds NaN or Inf" in refused(saved(source, broken), named(source))
    odd = {**state, "out.bias": torch.zeros(2, dtype=torch.complex64)}
    assert "complex64" in refused(saved(source, odd), named(source))


def test_a_whole_pickled_network_is_refused_unread(source: Path) -> None:
    class RunsCode:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {source.with_name('canary')}",)

    message = refused(saved(source, {"model": theirs(source).net.state_dict(), "x": RunsCode()}), named(source))
    assert "contains code, refused | save the weights alone" in message
    assert not source.with_name("canary").exists()


def test_our_own_unet_is_opened_as_one_beside_a_foreign_network(
    source: Path, tiny_checkpoint: Path, tiny_unet: UNet
) -> None:
    weights = saved(source, theirs(source).net.state_dict())
    models = describe_models([weights, tiny_checkpoint], size=16, arch=named(source))
    assert [model.params for model in models] == [count_parameters(theirs(source)), count_parameters(tiny_unet)]
    # Where it is the only one, --arch is a mistake.
    with pytest.raises(ConfigError, match="colorpress' own UNet"):
        Run(source.parent, Settings(arch=named(source))).load(tiny_checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        *({"conventions": {"ab_scale": each}} for each in ("x", -1, True, float("nan"))),
        *({"conventions": each} for each in (5, {"l_range": "0,2"}, {"no_such": 1}, {"input_channels": 2})),
        *({"size_multiple": 3}, {"size_multiple": 1024}, {"args": [1]}, {"source": 5}),
    ],
)
def test_an_edited_architecture_is_refused(source: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    found = load_checkpoint(saved(source, theirs(source).net.state_dict()), named(source))
    path = save_checkpoint(tmp_path / "best.pt", found)
    content = torch.load(path, weights_only=True)
    torch.save({**content, "architecture": {**content["architecture"], **change}}, path)
    assert "is incomplete" in refused(path, named(source))


# Pruning


def test_a_foreign_network_is_ranked_and_pruned_like_our_own(source: Path, tmp_path: Path) -> None:
    network = theirs(source)
    assert sum(layer.params for layer in rank_layers(network)) == count_parameters(network.net)
    widths = layer_widths(network)
    assert "net.out" not in widths and len(widths) == 7
    result = prune_network(network, EVERYTHING, Evidence(height=16, width=16))
    assert result.plan.source == widths
    assert layer_widths(result.network) == result.plan.result == {name: width // 2 for name, width in widths.items()}
    for size in ((1, 1), (9, 14), (33, 17)):
        assert answer(result.network, *size).shape == (1, 2, *size)
    again = apply_pruning(network, read_plan(write_plan(tmp_path / "plan.json", result.plan)))
    assert torch.equal(answer(again), answer(result.network))


def test_a_pruned_foreign_network_comes_back_from_its_checkpoint(source: Path, tmp_path: Path) -> None:
    for name in ("UNet", "Residual"):
        pruned = prune_network(theirs(source, name), EVERYTHING, Evidence(height=16, width=16)).network
        path = save_checkpoint(tmp_path / f"{name}.pt", Checkpoint(pruned.architecture, pruned.state_dict()))
        found = load_checkpoint(path, ArchConfig(arch=f"{source}:{name}")).build_network()
        assert torch.equal(answer(found), answer(pruned))
        assert count_parameters(found) < 0.6 * count_parameters(theirs(source, name))


def test_layers_that_are_added_lose_the_same_channels(source: Path) -> None:
    network = theirs(source, "Residual")
    plan = plan_pruning(network, EVERYTHING)
    shared = next(group for group in plan.groups if group.coupled)
    assert {shared.root, *shared.coupled} >= {"net.stem", "net.first", "net.point", "net.up"}
    # As many from each half, so that the two groups of the group norm stay what they are.
    for seed in range(6):
        by_luck = plan_pruning(network, replace(EVERYTHING, importance="random"), Evidence(seed=seed))
        removed = next(group.removed for group in by_luck.groups if group.coupled)
        assert [sum(c < 4 for c in removed), sum(c >= 4 for c in removed)] == [2, 2]
    pruned = apply_pruning(network, plan)
    assert layer_widths(pruned) == plan.result
    assert pruned.net.depthwise.groups == 4  # type: ignore[union-attr]
    assert not any(group.root in shared.coupled for group in plan.groups)


def test_channels_that_nobody_reads_change_nothing_when_they_go(source: Path) -> None:
    network = theirs(source)
    with torch.no_grad():
        network.net.dec2[0].weight[1] = 0  # type: ignore[index, union-attr]
        network.net.dec2[1].weight[1] = network.net.dec2[1].bias[1] = 0  # type: ignore[index, union-attr]
    plan = plan_pruning(network, EVERYTHING)
    only = [replace(group, removed=(1,)) for group in plan.groups if group.root == "net.dec2.0"]
    pruned = apply_pruning(network, replace(plan, groups=tuple(only)))
    torch.testing.assert_close(answer(pruned), answer(network), rtol=0, atol=SAME_ANSWER)


def test_what_breaks_the_network_is_left_whole_with_its_reason(source: Path) -> None:
    network = theirs(source, "Chunked")
    plan = plan_pruning(network, EVERYTHING)
    reasons = {group.root: group.reason for group in plan.groups}
    assert "left whole" in reasons["net.b"]
    assert plan.result["net.b"] == 8
    assert plan.result["net.a"] == plan.result["net.c"] == 2
    assert answer(apply_pruning(network, plan)).shape == (1, 2, 9, 14)


def test_a_plan_is_tried_on_pictures_of_several_sizes(source: Path) -> None:
    network = theirs(source, "Tall")
    plan = plan_pruning(network, replace(EVERYTHING, scope="global"))
    assert "left whole: without channels it" in next(each.reason for each in plan.groups if each.root == "net.b")
    assert plan.result["net.b"] == 4 > plan.result["net.a"]
    assert answer(apply_pruning(network, plan), 14, 9).shape == (1, 2, 14, 9)


def test_layers_that_are_added_and_a_group_norm_are_traded_for_time(source: Path) -> None:
    network = theirs(source, "Residual")
    config = replace(EVERYTHING, prune_strategy="latency")
    work = lambda shape: shape.inputs * shape.outputs / shape.groups * shape.height * shape.width  # noqa: E731
    plan = plan_pruning(network, config, Evidence(height=16, width=16, time_convolution=work))
    shared = next(group for group in plan.groups if group.coupled)
    assert shared.removed and not len(shared.removed) % 2
    assert layer_widths(apply_pruning(network, plan)) == plan.result


def test_a_pruned_foreign_network_is_distilled(source: Path, photo_folder: Path, tmp_path: Path) -> None:
    arch = named(source)
    teacher = load_checkpoint(saved(source, theirs(source).net.state_dict()), arch)
    pruned = prune_network(teacher.build_network(), EVERYTHING, Evidence(height=16, width=16)).network
    split = scan_photos(DataConfig(data=photo_folder, val_share=0.2), workers=0)
    recipe = Recipe(epochs=1, batch_size=4, imgsz=16, val_size=24)
    machine = MachineConfig(workers=0, threads=1)
    lesson = Lesson(teacher, split, recipe, 0.5, Scale(0.2, 0.1), tmp_path / "answers", DataConfig(), machine)
    for tune in (True, False):
        distilled = distil_network(pruned, lesson, tmp_path / "pruned" / "model.pt", tune=tune)
        built = distilled.checkpoint.build_network()
        found = load_checkpoint(distilled.path, arch).build_network()
        assert torch.equal(answer(found), answer(built))
        assert layer_widths(found) == layer_widths(pruned)


# Leaving


@pytest.mark.parametrize("name", ["UNet", "Residual", "Plain", "ReadTwice", "OfAnySize"])
def test_the_exported_file_answers_as_theirs(source: Path, tmp_path: Path, name: str) -> None:
    network = theirs(source, name)
    found = load_checkpoint(saved(source, network.net.state_dict()), named(source, name))
    result = export_onnx(found, tmp_path / "model.onnx", ExportConfig())
    onnx = OnnxPredictor(result.path, threads=1)
    rng = np.random.default_rng(0)
    for shape in ((1, 1, 1, 1), (2, 1, 7, 13), (1, 1, 32, 20)):
        picture = rng.random(shape, dtype=np.float32)
        np.testing.assert_allclose(onnx(picture), TorchPredictor(network)(picture), atol=SAME_ANSWER, rtol=0)
    content = result.path.read_bytes()
    assert str(source.parent).encode() not in content and b".py(" not in content
    operators = result_operators(result.path)
    assert ("Mod" in operators) == (network.size_multiple > 1)
    assert ("BatchNormalization" in operators) == (name == "ReadTwice")
    assert ("ConvTranspose" in operators) == (name == "Residual")


def test_what_cannot_be_traced_is_refused_with_the_reason(source: Path, tmp_path: Path) -> None:
    found = load_checkpoint(saved(source, theirs(source, "Decides").net.state_dict()), named(source, "Decides"))
    why = r"network 'nets\.py:Decides': decides by the values of the picture, at nets\.py"
    with pytest.raises(InputError, match=why):
        export_onnx(found, tmp_path / "model.onnx", ExportConfig())
    assert not (tmp_path / "model.onnx").exists()


def test_tensors_that_are_no_buffers_are_ranked_and_stop_pruning_where_they_must(source: Path) -> None:
    network = theirs(source, "OfAnySize")
    assert rank_layers(network, height=16, width=16)[0].macs == 16 * 16 // 4 * 4 * 4 * 9
    plan = plan_pruning(network, EVERYTHING)
    assert plan.result == {"net.inc.0": 2, "net.mid.0": 4}
    reason = next(group.reason for group in plan.groups if group.root == "net.mid.0")
    assert "left whole: it meets a constant with as many channels" in reason


def result_operators(path: Path) -> set[str]:
    import onnx

    return {node.op_type for node in onnx.load(path).graph.node}


def test_a_batch_norm_is_folded_only_where_nothing_else_reads(source: Path) -> None:
    assert any(isinstance(m, nn.BatchNorm2d) for m in simplify_for_export(theirs(source, "ReadTwice")).modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in simplify_for_export(theirs(source, "UNet")).modules())


def test_a_foreign_network_is_timed_in_a_process_of_its_own(source: Path, tmp_path: Path) -> None:
    from benchmarks.latency import Arm, Condition, _make_job
    from colorpress.core.config import BenchmarkConfig

    arch = named(source)
    path = save_checkpoint(tmp_path / "best.pt", load_checkpoint(saved(source, theirs(source).net.state_dict()), arch))
    config = BenchmarkConfig(rounds=1, runs=3, warmup=1, min_seconds=0)
    job = _make_job(Arm("best.pt", describe_variant("best.pt", path, arch=arch), Condition(1, 16, 1)), config, 0)
    done = run_worker(json.loads(json.dumps(job)), threads=1, timeout_s=120)
    assert done["status"] == "ok", done
    assert open_predictor(path, arch=arch)(np.zeros((1, 1, 5, 6), np.float32)).shape == (1, 2, 5, 6)
