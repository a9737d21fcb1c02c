"""Checkpoints come back as they were; anything else is refused without running it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from colorpress.core.errors import ConfigError, InputError
from training.checkpoint import FORMAT_VERSION, Checkpoint, load_checkpoint, save_checkpoint
from training.unet import UNet, UNetPlan


def test_a_checkpoint_comes_back_as_the_same_network(tmp_path: Path, tiny_unet: UNet) -> None:
    saved = Checkpoint(UNetPlan.classic(4, 2), tiny_unet.state_dict(), 3, 0.07, ({"epoch": 1.0},), {"stage": "train"})
    found = load_checkpoint(save_checkpoint(tmp_path / "a.pt", saved))
    lightness = torch.rand(1, 1, 9, 10)
    assert torch.equal(found.build_network()(lightness), tiny_unet(lightness))
    assert (found.architecture, found.epoch, found.val_l1, found.history, found.extra) == (
        saved.architecture, 3, 0.07, ({"epoch": 1.0},), {"stage": "train"},
    )  # fmt: skip
    assert len(found.sha256) == 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_kept_in_another_precision_are_read_in_float32(
    tmp_path: Path, tiny_unet: UNet, dtype: torch.dtype
) -> None:
    kept = {name: t.to(dtype) if t.is_floating_point() else t for name, t in tiny_unet.state_dict().items()}
    found = load_checkpoint(save_checkpoint(tmp_path / "a.pt", Checkpoint(UNetPlan.classic(4, 2), kept)))
    assert all(t.dtype == torch.float32 for t in found.state_dict.values() if t.is_floating_point())
    lightness = torch.rand(1, 1, 9, 10)
    assert torch.allclose(found.build_network()(lightness), tiny_unet(lightness), atol=0.02)


@pytest.mark.parametrize("extra", [None, 7])
def test_a_checkpoint_whose_notes_are_none_is_refused(tmp_path: Path, tiny_unet: UNet, extra: object) -> None:
    path = save_checkpoint(tmp_path / "a.pt", Checkpoint(UNetPlan.classic(4, 2), tiny_unet.state_dict()))
    torch.save({**torch.load(path, weights_only=True), "extra": extra}, path)
    with pytest.raises(InputError, match="is incomplete"):
        load_checkpoint(path)


class RunsCode:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_inside_a_checkpoint_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "evil.pt"
    if zipped:
        torch.save({"state_dict": RunsCode(canary)}, path)
    else:
        path.write_bytes(pickle.dumps(RunsCode(canary)))
    with pytest.raises(InputError, match="contains code, refused") as caught:
        load_checkpoint(path)
    assert not canary.exists()
    assert "weights_only" not in f"{caught.value}{caught.value.hint}"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"  <!DOCTYPE html><html></html>", "HTML page"),
        (b"just text", "not a PyTorch file"),
        (b"PK\x03\x04" + b"\0" * 100, "corrupt or truncated"),
        (os.urandom(4000).replace(b"PK", b"xx"), "PyTorch file|corrupt|code"),
    ],
)
def test_files_that_are_no_checkpoint_are_named(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "a.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=why):
        load_checkpoint(path)


def test_a_truncated_checkpoint_is_refused_at_every_length(tmp_path: Path, tiny_checkpoint: Path) -> None:
    content = tiny_checkpoint.read_bytes()
    for share in (0.01, 0.3, 0.6, 0.9, 0.99, 0.9999):
        path = tmp_path / "cut.pt"
        path.write_bytes(content[: int(len(content) * share)])
        with pytest.raises(InputError):
            load_checkpoint(path)


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_checkpoint(tmp_path / "none.pt")
    with pytest.raises(InputError, match="not a regular file"):
        load_checkpoint(tmp_path)


def edited(path: Path, **changes: Any) -> Path:
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)
    return path


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"format_version": None}, "holds no colorpress network"),
        ({"format_version": FORMAT_VERSION + 1}, "newer"),
        ({"architecture": {"plan": UNetPlan.classic(8, 2).to_dict()}}, r"expected \(8, 1, 3, 3\) got \(4, 1, 3, 3\)"),
        ({"architecture": {}}, "incomplete"),
        ({"state_dict": {}}, "got nothing"),
        ({"epoch": None}, "incomplete"),
        ({"val_l1": float("nan")}, "not finite"),
    ],
)
def test_contents_that_do_not_fit_are_refused(tiny_checkpoint: Path, changes: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        load_checkpoint(edited(tiny_checkpoint, **changes))


def test_weights_that_are_not_finite_are_refused(tiny_checkpoint: Path) -> None:
    state = torch.load(tiny_checkpoint, weights_only=True)["state_dict"]
    state["head.weight"][0, 0] = float("nan")
    with pytest.raises(InputError, match=r"head\.weight holds NaN"):
        load_checkpoint(edited(tiny_checkpoint, state_dict=state))
