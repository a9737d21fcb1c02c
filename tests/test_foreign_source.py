"""Code that --arch names: files, packages, folders and modules, each found, run and hashed with its parts."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import training
from colorpress.core.errors import ConfigError
from training.foreign_source import absolute_spec, construct_network, load_source

NETWORK = """
from torch import nn
{}

class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(1, 2, SIDE, padding="same")

    def forward(self, x):
        return self.head(x)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that commands are given in, with a package `unet` of relative imports."""
    write(tmp_path / "unet" / "__init__.py", "from .model import UNet\n")
    write(tmp_path / "unet" / "model.py", NETWORK.format("from .parts import SIDE"))
    write(tmp_path / "unet" / "parts.py", "SIDE = 3\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def make(spec: str) -> nn.Module:
    return construct_network(load_source(spec), {})


def side(spec: str) -> int:
    """What tells the networks here apart: the kernel of the one that `spec` names."""
    return int(make(spec).head.kernel_size[0])  # type: ignore[index, union-attr]


def refused(spec: str) -> str:
    with pytest.raises(ConfigError) as caught:
        make(spec)
    return f"{caught.value} | {caught.value.hint}"


@pytest.mark.parametrize(
    ("folder", "spec", "name"),
    [
        (".", "unet/model.py:UNet", "unet/model.py:UNet"),
        (".", "unet:UNet", "unet:UNet"),
        (".", "unet.model:UNet", "unet.model:UNet"),
        ("unet", "model.py:UNet", "unet/model.py:UNet"),
        ("unet", "../unet/:UNet", "unet:UNet"),
        ("unet", "../unet.model:UNet", "unet.model:UNet"),
    ],
)
def test_a_package_is_named_in_every_way(
    project: Path, monkeypatch: pytest.MonkeyPatch, folder: str, spec: str, name: str
) -> None:
    monkeypatch.chdir(project / folder)
    found, absolute = load_source(spec), absolute_spec(spec)
    assert (found.name, side(spec)) == (name, 3)
    # A worker of another folder finds the same, and so does every way to say it.
    monkeypatch.chdir("/")
    assert load_source(absolute).sha256 == found.sha256 == load_source(f"{project}/unet/model.py:UNet").sha256
    assert not list(project.rglob("__pycache__"))


def test_an_edit_of_any_file_that_it_imports_is_another_network(project: Path) -> None:
    write(project / "unet" / "late.py", "DEPTH = 1\n")
    write(project / "unet" / "unused.py", "")
    model = NETWORK.format("from .parts import SIDE") + "\n    def deepen(self):\n        from . import late\n"
    write(project / "unet" / "model.py", model)
    seen = [load_source("unet:UNet").sha256]
    for name, text in (("parts", "SIDE = 5\n"), ("late", "DEPTH = 2\n"), ("__init__", "from .model import UNet\n#\n")):
        write(project / "unet" / f"{name}.py", text)
        seen.append(load_source("unet:UNet").sha256)
    assert len(set(seen)) == 4
    assert side("unet:UNet") == 5
    write(project / "unet" / "unused.py", "# edited\n")
    assert load_source("unet:UNet").sha256 == seen[-1]


@pytest.mark.parametrize("first", ["from .parts import SIDE", "from unet.parts import SIDE", "from parts import SIDE"])
def test_two_folders_with_the_same_names_are_two_networks(project: Path, first: str) -> None:
    for number in (5, 7):
        write(project / str(number) / "unet" / "model.py", NETWORK.format(first))
        write(project / str(number) / "unet" / "parts.py", f"SIDE = {number}\n")
    specs = {3: "unet:UNet", 5: "5/unet/model.py:UNet", 7: "7/unet/model.py:UNet"}
    for number in (3, 5, 7, 5, 3):
        assert side(specs[number]) == number
    assert not [folder for folder in sys.path if str(project) in folder]


def test_a_project_may_have_packages_that_are_called_as_ours(project: Path) -> None:
    write(project / "training" / "__init__.py", "")
    write(project / "training" / "sides.py", "SIDE = 9\n")
    for name in ("model.py", "nets/model.py"):
        write(project / name, NETWORK.format("from training.sides import SIDE"))
        assert side(f"{name}:UNet") == 9
    assert sys.modules["training"] is training and "training.sides" not in sys.modules


def test_what_is_imported_as_it_answers_is_found(project: Path) -> None:
    late = "from .parts import SIDE\n\n\ndef late(x):\n    from .late import TWO\n    return TWO * x\n"
    model = NETWORK.format(late).replace("self.head(x)", "late(self.head(x))")
    write(project / "unet" / "model.py", model)
    write(project / "unet" / "late.py", "TWO = 2\n")
    network = make("unet/model.py:UNet")
    picture = torch.rand(1, 1, 4, 4)
    assert torch.equal(network(picture), 2 * network.head(picture))  # type: ignore[operator]


def test_what_cannot_be_run_says_where_and_how_to_try(project: Path) -> None:
    write(project / "unet" / "parts.py", "import nothing_like_it\n")
    message = refused("unet/model.py:UNet")
    assert "ModuleNotFoundError in parts.py, line 1: No module named 'nothing_like_it'" in message
    assert message.endswith(
        f"| it must import by itself: try `python -c 'import unet.model'` in the folder '{project}'"
    )
    write(project / "alone.py", "import nothing_like_it\n")
    assert refused("alone.py:UNet").endswith("| it must run by itself: try `python alone.py` in its folder")


def test_where_a_class_is_is_said(project: Path) -> None:
    write(project / "unet" / "__init__.py", "")
    model = Path("unet", "model.py")
    assert f"holds no class or function 'UNet' | name the file: --arch {project / model}:UNet" in refused("unet:UNet")
    (project / "unet" / "__init__.py").unlink()
    message = refused("unet:UNet")
    assert f"is a folder without an __init__.py | name the file: --arch {model}:UNet" in message
    assert "no such file | give FILE.py:NAME with --arch, FOLDER:NAME" in refused("unet.modle:UNet")


def test_an_installed_module_is_named_by_its_name() -> None:
    found = load_source("torchgen.utils:NamespaceHelper")
    assert (found.name, absolute_spec("torch.nn:Identity")) == ("torchgen.utils:NamespaceHelper", "torch.nn:Identity")
    assert len(found.sha256) == 64


def test_layers_without_a_shape_are_refused_by_name(project: Path) -> None:
    lazy = (
        "from torch import nn\n\n\ndef lazy():\n    return nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d())\n"
    )
    write(project / "lazy.py", lazy)
    assert "before they have run: 0 (LazyConv2d), 1 (LazyBatchNorm2d) |" in refused("lazy.py:lazy")
    run = lazy.replace("return ", "net = ") + "    net(__import__('torch').zeros(1, 1, 8, 8))\n    return net\n"
    write(project / "lazy.py", run)
    assert make("lazy.py:lazy")[0].in_channels == 1  # type: ignore[index]
