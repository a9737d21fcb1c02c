"""Muon beside PyTorch's own, and which weights it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from colorpress.core.config import Recipe
from training.optimizer import Muon, make_optimizers, orthogonalize, step_


@pytest.mark.parametrize("sides", [(16, 144), (24, 60), (40, 8)])
def test_all_directions_become_equally_long_and_stay_where_they_are(sides: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, *sides, generator=generator)
    left, values, right = torch.linalg.svd(matrices, full_matrices=False)
    between = left.mT @ orthogonalize(matrices) @ right.mT  # diagonal where directions are kept
    assert values.amax() > 1.5 * values.amin()
    lengths = torch.diagonal(between, dim1=1, dim2=2)
    assert lengths.amin() > 0.6 and lengths.amax() < 1.3
    assert (between - torch.diag_embed(lengths)).abs().amax() < 1e-3


def test_a_matrix_without_gradient_stays() -> None:
    assert not orthogonalize(torch.zeros(2, 8, 16)).any()


def test_it_moves_as_pytorchs_own() -> None:
    """Which computes in bf16, one matrix at a time, of matrices alone."""
    generator = torch.Generator().manual_seed(0)
    starts = [
        torch.randn(sides, generator=generator)
        for sides in ((16, 8, 3, 3), (16, 8, 3, 3), (8, 32, 1, 1), (32, 8, 1, 1))
    ]
    ours = [nn.Parameter(start.clone().to(memory_format=torch.channels_last)) for start in starts]
    theirs = [nn.Parameter(start.flatten(1).clone()) for start in starts]
    muon = Muon(ours, lr=0.005, weight_decay=0.2)  # twice as long a step for its rate
    pytorchs = torch.optim.Muon(theirs, lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        for own, other in zip(ours, theirs, strict=True):
            own.grad = torch.randn(own.shape, generator=generator)
            other.grad = own.grad.flatten(1)
        muon.step()
        pytorchs.step()
    for own, other, start in zip(ours, theirs, starts, strict=True):
        moved = (other - start.flatten(1)).norm()
        assert moved > 0.01
        assert (own.flatten(1) - other).norm() < 0.02 * moved


@pytest.mark.parametrize(("rows", "groups"), [(64, 1), (128, 2), (131, 1)])
def test_many_rows_are_taken_in_groups(rows: int, groups: int) -> None:
    weight = nn.Parameter(torch.zeros(rows, 300, 1, 1))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1.0, weight_decay=0.0).step()
    moves = weight.detach().reshape(groups, rows // groups, 300) / (0.4 * 300**0.5)
    lengths = torch.linalg.svdvals(moves)
    assert lengths.amin() > 0.6 and lengths.amax() < 1.3
    together = torch.linalg.svdvals(weight.detach().flatten(1) / (0.4 * 300**0.5))
    assert (together.amax() > 1.3) == (groups > 1)


class Layers(nn.Module):
    """One of each kind of weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.hidden, self.last = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 2, 1)
        self.each, self.up, self.norm = (
            nn.Conv2d(16, 16, 3, groups=16), nn.ConvTranspose2d(16, 8, 2), nn.BatchNorm2d(16)
        )  # fmt: skip
        self.frozen = nn.Conv2d(16, 16, 1, bias=False).requires_grad_(requires_grad=False)


def test_it_takes_the_weights_between_channels() -> None:
    layers = Layers()
    names = {id(parameter): name for name, parameter in layers.named_parameters()}

    def taken(optimizer: torch.optim.Optimizer) -> list[set[str]]:
        return [{names[id(each)] for each in group["params"]} for group in optimizer.param_groups]

    adamw, muon = make_optimizers(layers, Recipe(weight_decay=0.03))
    assert isinstance(muon, Muon) and taken(muon) == [{"hidden.weight", "up.weight"}]
    decaying, still = taken(adamw)
    assert decaying == {"first.weight", "last.weight", "each.weight"}
    assert still == {f"{name}.bias" for name in ("first", "hidden", "last", "each", "up", "norm")} | {"norm.weight"}
    assert [group["weight_decay"] for each in (adamw, muon) for group in each.param_groups] == [0.03, 0.0, 0.03]
    (alone,) = make_optimizers(layers, Recipe(optimizer="adamw"))
    assert taken(alone) == [decaying | {"hidden.weight", "up.weight"}, still]


@pytest.mark.parametrize("place", ["first", "hidden"])
def test_a_gradient_that_is_not_finite_leaves_the_step_out_for_all(place: str) -> None:
    layers, scaler = Layers(), torch.amp.GradScaler("cpu", init_scale=8.0)
    before = {name: each.clone() for name, each in layers.named_parameters()}
    optimizers = make_optimizers(layers, Recipe(learning_rate=0.1))
    for poisoned in (True, False):
        scaler.scale(sum(each.square().sum() for each in layers.parameters() if each.requires_grad)).backward()
        if poisoned:
            getattr(layers, place).weight.grad[0, 0] = torch.nan
        step_(optimizers, layers, scaler, 1.0)
        assert all(torch.equal(each, before[name]) for name, each in layers.named_parameters()) == poisoned
        layers.zero_grad()
    assert scaler.get_scale() == 4.0
    assert all(each.isfinite().all() for each in layers.parameters())
