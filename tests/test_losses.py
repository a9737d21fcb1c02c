"""The second loss of training: colour classes at quarter size."""

from __future__ import annotations

import math

import pytest
import torch

from tests.conftest import make_network
from training.losses import CLASSES_PER_AXIS, ChromaClassLoss, class_cross_entropy
from training.unet import UNetPlan


@pytest.mark.parametrize(("depth", "stride"), [(1, 1), (2, 2), (3, 4), (4, 4)])
@pytest.mark.parametrize("size", [(16, 16), (17, 23), (1, 5)])
def test_logits_cover_the_picture_at_quarter_size(depth: int, stride: int, size: tuple[int, int]) -> None:
    criterion = ChromaClassLoss(make_network(UNetPlan.classic(4, depth)), 0.1)
    picture = torch.rand(2, 1, *size)
    answer, logits = criterion(picture)
    assert torch.equal(answer, criterion.network(picture))
    assert criterion.stride == stride
    loss = class_cross_entropy(logits, answer, criterion.stride)
    # Nothing is known yet: every class is equally likely.
    assert loss.item() == pytest.approx(math.log(CLASSES_PER_AXIS**2), rel=1e-5)


def test_an_affine_answer_is_the_networks_beside_classes() -> None:
    plan = UNetPlan(((6,), (6,), (6,)), ((4, 4),), "nearest", stem_stride=4, affine=True)
    criterion, picture = ChromaClassLoss(make_network(plan), 0.1), torch.rand(2, 1, 20, 13)
    answer, logits = criterion(picture)
    assert torch.equal(answer, criterion.network(picture)) and answer.shape == (2, 2, 20, 13)
    assert criterion.stride == 8 and logits.shape[1] == 256


def test_the_loss_is_the_cross_entropy_of_the_right_cells() -> None:
    criterion = ChromaClassLoss(make_network(UNetPlan.classic(4, 3)), 0.1)
    ab = torch.zeros(1, 2, 4, 8)
    ab[:, 0, :, :4], ab[:, 1, :, :4] = -0.25, 0.05  # cells 5 and 8 of 16
    ab[:, 0, :, 4:], ab[:, 1, :, 4:] = 0.99, -0.99  # beyond the grid: its outermost cells
    logits = torch.zeros(1, 256, 1, 2)
    logits[0, 5 * 16 + 8, 0, 0] = logits[0, 15 * 16 + 0, 0, 1] = 50.0
    assert class_cross_entropy(logits, ab, criterion.stride).item() == pytest.approx(0.0, abs=1e-5)
    assert class_cross_entropy(logits, -ab, criterion.stride).item() > 10


def test_both_heads_teach_the_network() -> None:
    network = make_network().train()
    criterion = ChromaClassLoss(network, 0.1)
    torch.nn.init.normal_(criterion.head.weight)
    answer, logits = criterion(torch.rand(2, 1, 16, 16))
    class_cross_entropy(logits, answer.detach(), criterion.stride).backward()
    assert network.encoder[0][0].weight.grad.abs().sum() > 0
    assert network.head.weight.grad is None
