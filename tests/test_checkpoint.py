"""Checkpoints come back as they were; anything else is refused without running it."""

from __future__ import annotations

import argparse
import os
import pickle
import resource
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from torture.hostile_pickles import hostile_pickles

from colorpress.core.errors import ConfigError, InputError
from training.checkpoint import FORMAT_VERSION, Checkpoint, load_checkpoint, save_checkpoint
from training.unet import UNet, UNetPlan
from training.weights_file import read_weights_file


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


PLAN = UNetPlan.classic(4, 2).to_dict()


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
        ({"val_l1": [0.1]}, "its validation L1 is a list"),
        ({"val_l1": True}, "its validation L1 is a bool"),
        ({"epoch": float("inf")}, "its epoch is a float"),
        ({"epoch": 10**12}, "its epoch is no number of one"),
        ({"history": [1]}, "its history holds something else"),
        ({"history": [{"epoch": "one"}]}, "its history holds something else"),
        ({"extra": {"fit": [1]}}, "its notes are of another kind"),
        ({"extra": {"a": torch.zeros(2)}}, "its notes are of another kind"),
        ({"training_state": 3}, "its training_state is a int"),
        ({"architecture": {"plan": [1]}}, "its plan is a list"),
        ({"architecture": {"plan": {"encoder": [1], "decoder": [], "upsample": "nearest"}}}, "level that is no list"),
        ({"architecture": {"plan": {**PLAN, "encoder": [[60_000, 60_000]], "decoder": []}}}, "GB to be trained"),
        ({"architecture": {"plan": {**PLAN, "encoder": [[1] * 1001], "decoder": []}}}, "1,001 convolutions"),
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


HEAD = torch.arange(8.0).reshape(2, 4, 1, 1)


@pytest.mark.parametrize(
    ("odd", "why"),
    [
        (HEAD.to(torch.float8_e4m3fn), r"head\.weight is float8_e4m3fn"),
        (HEAD.to(torch.complex64), r"head\.weight is complex64"),
        (HEAD.to(torch.uint16), r"head\.weight is uint16"),
        (HEAD.to(torch.int8), r"head\.weight holds whole numbers \(int8\)"),
        (HEAD.to(torch.bool), r"head\.weight holds whole numbers \(bool\)"),
        (HEAD.to_sparse(), "holds a sparse tensor"),
        (HEAD.to("meta"), "holds a tensor without values"),
        (torch.zeros(1).expand(2, 4, 1, 1), "holds a tensor whose elements overlap"),
        (torch.zeros(1).expand(10**6, 10**6), "holds a tensor whose elements overlap"),
        (torch.tensor(1.0), r"expected \(2, 4, 1, 1\) got \(\)"),
        (HEAD.double() * 1e300, r"head\.weight holds NaN or Inf"),
    ],
)
def test_weights_of_another_kind_are_refused(tiny_checkpoint: Path, odd: torch.Tensor, why: str) -> None:
    state = torch.load(tiny_checkpoint, weights_only=True)["state_dict"]
    with pytest.raises(InputError, match=why):
        load_checkpoint(edited(tiny_checkpoint, state_dict={**state, "head.weight": odd}))


def test_weights_in_other_places_of_memory_are_read(tiny_checkpoint: Path) -> None:
    state = torch.load(tiny_checkpoint, weights_only=True)["state_dict"]
    state = {name: tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor
             for name, tensor in state.items()}  # fmt: skip
    state["head.weight"] = torch.stack([state["head.weight"]] * 3, dim=-1)[..., 1]
    assert not state["head.weight"].is_contiguous()
    found = load_checkpoint(edited(tiny_checkpoint, state_dict=state)).state_dict
    assert all(torch.equal(found[name], tensor) and found[name].is_contiguous() for name, tensor in state.items())


def test_variances_below_nothing_are_refused(tiny_checkpoint: Path) -> None:
    state = torch.load(tiny_checkpoint, weights_only=True)["state_dict"]
    state["encoder.0.1.running_var"][1] = -1.0
    with pytest.raises(InputError, match=r"running_var holds a negative variance"):
        load_checkpoint(edited(tiny_checkpoint, state_dict=state))


def test_values_of_numpy_beside_the_weights_are_read(tiny_checkpoint: Path) -> None:
    plain = torch.load(tiny_checkpoint, weights_only=True)
    numbers = {"f": np.float64(0.3), "h": np.float16(0.5), "i": np.int64(3), "b": np.bool_(True), "s": np.str_("ab")}
    arrays = {"a": np.arange(3.0), "t": np.array(["x", "yz"]), "d": defaultdict(list, {"k": [1]}), "z": torch.Size([1])}
    raw = dumped({**plain, **numbers, **arrays})
    with ZipFile(BytesIO(raw)) as archive:
        # The names of numpy 1.
        older = {each: archive.read(each).replace(b"numpy._core", b"numpy.core") for each in archive.namelist()}
    renamed = BytesIO()
    with ZipFile(renamed, "w") as archive:
        for name, content in older.items():
            archive.writestr(name, content)
    for kept in (raw, renamed.getvalue(), dumped({**plain, **numbers, **arrays}, zipped=False)):
        found = read_weights_file(tiny_checkpoint, kept)
        assert {name: found[name] for name in numbers} == {"f": 0.3, "h": 0.5, "i": 3, "b": True, "s": "ab"}
        assert all(type(found[name]) in (float, int, bool, str) for name in numbers)
        assert found["a"].tolist() == [0.0, 1.0, 2.0] and found["t"] == ["x", "yz"] and found["d"] == {"k": [1]}
        tiny_checkpoint.write_bytes(kept)
        assert load_checkpoint(tiny_checkpoint).epoch == plain["epoch"]


def dumped(content: Any, *, zipped: bool = True) -> bytes:
    buffer = BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def test_what_is_no_file_of_weights_is_named_with_what_to_save_instead(tmp_path: Path) -> None:
    network = torch.nn.Conv2d(1, 2, 3)
    torch.jit.script(network).save(tmp_path / "script.pt")
    with ZipFile(tmp_path / "program.pt2", "w") as program:
        program.writestr("program/archive_format", "pt2")
        program.writestr("program/models/model.json", "{}")
    (tmp_path / "whole.pt").write_bytes(dumped(network))
    (tmp_path / "older.pt").write_bytes(dumped(network, zipped=False))
    (tmp_path / "notes.pt").write_bytes(dumped({"args": argparse.Namespace(a=1)}))
    torch.save(network.state_dict(), tmp_path / "newer.pt", pickle_protocol=4)
    for name, why, hint in (
        ("script.pt", "is a TorchScript archive", "torch.jit.load"),
        ("program.pt2", "is an exported program", "torch.export.load"),
        ("whole.pt", "holds a whole network with its code", "network.state_dict()"),
        ("older.pt", "holds a whole network with its code", "network.state_dict()"),
        ("notes.pt", "names argparse.Namespace: it contains code, refused", "network.state_dict()"),
        ("newer.pt", "is pickled by a newer protocol", "pickle_protocol"),
    ):
        with pytest.raises(InputError) as caught:
            load_checkpoint(tmp_path / name)
        assert why in caught.value.why and hint in caught.value.hint


@pytest.mark.parametrize("name", hostile_pickles())
def test_a_hostile_pickle_is_refused_and_takes_nothing(tmp_path: Path, name: str) -> None:
    path = tmp_path / "hostile.pt"
    path.write_bytes(hostile_pickles()[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError):
        load_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize("decoy", ["archive/b/data.pkl", "archive/DATA.PKL"])
def test_the_pickle_that_is_checked_is_the_one_that_is_read(tiny_checkpoint: Path, decoy: str) -> None:
    buffer, harmless = BytesIO(), b"\x80\x02}."
    with ZipFile(buffer, "w") as written, ZipFile(BytesIO(dumped({"a": torch.ones(1).expand(9)}))) as archive:
        written.writestr(decoy, harmless)
        for each in archive.namelist():
            written.writestr(each, archive.read(each))
    with pytest.raises(InputError, match=r"whose elements overlap|names a record twice"):
        read_weights_file(tiny_checkpoint, buffer.getvalue())


def test_a_flipped_bit_among_the_weights_is_noticed(tiny_checkpoint: Path) -> None:
    raw = bytearray(tiny_checkpoint.read_bytes())
    weights = torch.load(tiny_checkpoint, weights_only=True)["state_dict"]["head.weight"].numpy().tobytes()
    raw[raw.index(weights)] ^= 1
    tiny_checkpoint.write_bytes(raw)
    with pytest.raises(InputError, match="corrupt"):
        load_checkpoint(tiny_checkpoint)


def test_a_file_with_holes_larger_than_memory_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "holes.pt"
    path.touch()
    os.truncate(path, 1 << 42)
    with pytest.raises(InputError, match="larger than the free memory"):
        load_checkpoint(path)
