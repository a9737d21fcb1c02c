"""Which sizes a network of another author takes, and the export of what Python decides inside it by sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from colorpress.core.config import ArchConfig, ExportConfig
from colorpress.core.errors import GateError, InputError
from export.autocast import without_autocast
from export.graph import as_exported, at_exportable_sizes, build_graph, export_onnx, read_metadata
from export.parity import check_parity
from export.predictors import OnnxPredictor
from export.torch_runtimes import TorchPredictor
from training.checkpoint import Checkpoint
from training.foreign import AdaptedNetwork, ForeignArchitecture, adapt_network
from training.input_sizes import InputSizes, find_sizes, resize
from training.network import ColorNetwork

NETS = '''
import torch
import torch.nn.functional as F
from torch import nn


class Half(nn.Module):
    """Down by two and up again, by whatever the others take for it."""

    def __init__(self):
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2, 1)
        self.up, self.head = nn.ConvTranspose2d(4, 4, 2, 2), nn.Conv2d(8, 2, 1)

    def enlarge(self, coarse, fine):
        return self.up(coarse)

    def forward(self, x):
        fine = torch.relu(self.fine(x))
        up = self.enlarge(torch.relu(self.coarse(fine)), fine)
        return torch.tanh(self.head(torch.cat([fine, up], 1)))


class ByIf(Half):
    def enlarge(self, coarse, fine):
        up = self.up(coarse)
        return up if up.shape == fine.shape else F.interpolate(up, fine.shape[-2:])


class ByPad(Half):
    def enlarge(self, coarse, fine):
        up = self.up(coarse)
        rows, columns = (fine.shape[axis] - up.shape[axis] for axis in (2, 3))
        return F.pad(up, (0, columns, 0, rows))


class ByHook(ByIf):
    """What it joins is what a hook has kept, as the encoders of fastai have it; and it computes in half precision."""

    def __init__(self):
        super().__init__()
        self.kept = {}
        self.fine.register_forward_hook(lambda module, given, answer: self.kept.update(fine=answer))

    def enlarge(self, coarse, fine):
        return super().enlarge(coarse, self.kept["fine"]) + self.kept["fine"]

    def forward(self, x):
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x).float()


class OneSize(Half):
    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.randn(1, 4, 32, 32))

    def enlarge(self, coarse, fine):
        return self.up(coarse + self.place)


class Rectangle(Half):
    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(120 * 160, 1)

    def enlarge(self, coarse, fine):
        return self.up(coarse) * self.mix(coarse.flatten(2))[..., None]


class Decides(Half):
    def forward(self, x):
        answer = super().forward(x)
        if x.mean() > 0.5:
            answer = -answer
        return answer


class Compiled(Half):
    def __init__(self):
        super().__init__()
        self.up = torch.jit.script(self.up)


class Unknown(Half):
    def enlarge(self, coarse, fine):
        return torch.linalg.matrix_exp(self.up(coarse))
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("nets")
    (folder / "nets.py").write_text(NETS)
    return folder


def adapted(folder: Path, name: str) -> AdaptedNetwork:
    torch.manual_seed(0)
    return adapt_network(ArchConfig(arch=f"{folder / 'nets.py'}:{name}", ab_scale=128.0))


def as_checkpoint(folder: Path, network: AdaptedNetwork, **changes: int) -> Checkpoint:
    architecture = ForeignArchitecture.from_dict({**network.architecture.describe(), **changes})
    arch = ArchConfig(arch=str(folder / architecture.source))
    return Checkpoint(architecture, network.state_dict(), arch=arch)


# What is found


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("Half", InputSizes(2)),
        ("ByIf", InputSizes(2)),
        ("ByPad", InputSizes(2)),
        ("ByHook", InputSizes(2)),
        ("OneSize", InputSizes(fixed=(64, 64))),
        ("Rectangle", InputSizes(fixed=(240, 320))),
    ],
)
def test_sizes_are_those_at_which_python_decides_nothing(folder: Path, name: str, sizes: InputSizes) -> None:
    network = adapted(folder, name)
    assert network.architecture.sizes == sizes
    described = json.loads(json.dumps(network.architecture.describe()))
    assert ForeignArchitecture.from_dict(described).sizes == sizes
    with torch.no_grad():
        assert network(torch.rand(2, 1, 9, 14)).shape == (2, 2, 9, 14)


@pytest.mark.parametrize("fixed", [(3, 3), [64], "64", [64, 64, 64], [64.0, 64.0], True])
def test_a_size_that_is_none_is_refused(folder: Path, fixed: object) -> None:
    described = adapted(folder, "Half").architecture.describe()
    assert ForeignArchitecture.from_dict({key: described[key] for key in described if key != "fixed_size"})
    with pytest.raises(ValueError, match="fixed_size"):
        ForeignArchitecture.from_dict({**described, "fixed_size": fixed})


def test_a_failure_names_the_line_of_its_author(folder: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text(NETS.replace("return self.up(coarse)\n\n    def forward", "return self.up[0]\n\n    def forward"))
    with pytest.raises(InputError, match=r"not subscriptable \(broken\.py, line 16: return self\.up\[0\]\)"):
        adapt_network(ArchConfig(arch=f"{broken}:Half"))


def test_what_no_size_can_mend_is_asked_for_no_more() -> None:
    class Three(nn.Module):
        asked = 0

        def forward(self, lightness: Tensor) -> Tensor:
            self.asked += 1
            return lightness.expand(-1, 3, -1, -1)

    network = Three()
    with pytest.raises(InputError, match="answers 1x3x256x256"):
        find_sizes(network, "three")
    assert network.asked == 9  # once for each multiple


# Resizing


@pytest.mark.parametrize("size", [(64, 64), (7, 129), (1, 1), (40, 9)])
def test_resizing_is_that_of_pytorch(size: tuple[int, int]) -> None:
    values = torch.rand(2, 2, 40, 33)
    expected = F.interpolate(values, size, mode="bilinear", antialias=True)
    torch.testing.assert_close(resize(values, size), expected, atol=1e-5, rtol=0)


def test_a_network_of_one_size_answers_what_it_answers_there(folder: Path) -> None:
    network = adapted(folder, "OneSize")
    picture = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(network(picture), network.net(picture), atol=1e-6, rtol=0)
        large = network(F.interpolate(picture, scale_factor=2, mode="nearest"))
        assert float((F.avg_pool2d(large, 2) - network.net(picture)).abs().mean()) < 0.05


# Export


@pytest.mark.parametrize(
    ("possible", "tried", "taken"),
    [
        ({1, 2, 256, None}, [1], InputSizes(1)),
        ({8, 64, 256, None}, [1, None, 256, 2, 4, 8], InputSizes(8)),
        ({None}, [1, None, 256], InputSizes(fixed=(256, 256))),
        (set(), [1, None], None),
    ],
)
def test_larger_multiples_are_tried_and_one_size_is_left(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    possible: set[int | None],
    tried: list[int | None],
    taken: InputSizes | None,
) -> None:
    network, asked = adapted(folder, "ByIf").with_sizes(InputSizes(1)), []
    assert "ByIf decides by sizes: it is asked for multiples of 2 pixels alone" in capfd.readouterr().err

    def export(sized: ColorNetwork) -> InputSizes:
        assert isinstance(sized, AdaptedNetwork)
        sizes = sized.architecture.sizes
        asked.append(None if sizes.fixed else sizes.multiple)
        if asked[-1] not in possible:
            raise GateError("export", None, f"differs at {asked[-1]}; not published", "")
        return sizes

    if taken is None:
        with pytest.raises(GateError, match="differs at 1; not published"):  # of the network as it is
            at_exportable_sizes(network, export)
    else:
        assert at_exportable_sizes(network, export) == taken
    assert asked == tried
    said = [f"takes {taken}", "for any size there is none: differs at 1\n"] if taken and len(tried) > 1 else []
    printed = capfd.readouterr().err
    assert all(each in printed for each in said) and bool(printed) == bool(said)


_SHAPES = ((1, 1, 1), (2, 37, 1), (1, 64, 64), (1, 97, 300), (1, 513, 258))


@pytest.mark.parametrize(
    ("name", "recorded", "exported", "said"),
    [
        # As files of earlier versions have it: Python decides something at the multiple that is recorded.
        ("ByIf", {"size_multiple": 1}, InputSizes(2), "takes multiples of 2 pixels, others are padded; for any size"),
        ("ByHook", {}, InputSizes(2), "computes in bfloat16 by torch.autocast, and its file in float32"),
        ("OneSize", {}, InputSizes(fixed=(64, 64)), ""),
    ],
)
def test_the_file_answers_as_the_network_of_its_sizes(
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    name: str,
    recorded: dict[str, int],
    exported: InputSizes,
    said: str,
) -> None:
    checkpoint = as_checkpoint(folder, adapted(folder, name), **recorded)
    capfd.readouterr()
    path = export_onnx(checkpoint, tmp_path / "model.onnx", ExportConfig()).path
    printed = capfd.readouterr().err
    assert said in printed and bool(said) == bool(printed)
    assert b"_empty_nn_module_stack" not in path.read_bytes()
    network = as_exported(checkpoint.build_network(), read_metadata(path))
    assert isinstance(network, AdaptedNetwork) and network.architecture.sizes == exported
    reference, candidate = TorchPredictor(network), OnnxPredictor(path, threads=1)
    with without_autocast() as half:
        assert check_parity(reference, candidate, shapes=_SHAPES, atol=1e-5).passed
    assert half == ({"bfloat16"} if name == "ByHook" else set())
    # The network itself answers in half precision, as before.
    assert check_parity(reference, candidate, shapes=_SHAPES, atol=1e-5).passed == (name != "ByHook")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Decides", r"decides by the values of the picture, at nets\.py, line \d+: if x\.mean\(\) > 0\.5"),
        ("Compiled", r"holds TorchScript, at net\.up"),
        ("Unknown", r"calls aten\.linalg_matrix_exp, which ONNX has no operator for"),
    ],
)
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_what_has_no_file_says_why(folder: Path, capfd: pytest.CaptureFixture[str], name: str, why: str) -> None:
    with pytest.raises(InputError, match=why) as caught:
        build_graph(adapted(folder, name), opset=18)
    assert "colorpress student" in caught.value.hint
    assert capfd.readouterr().err == ""
