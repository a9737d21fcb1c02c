"""The UNet is what its plan says, at any size."""

from __future__ import annotations

import json

import pytest
import torch

from colorpress.errors import InputError
from training.unet import UPSAMPLERS, UNet, UNetPlan, count_parameters, plan_of

UNEVEN = UNetPlan(encoder=((3, 5), (7, 6), (9, 8)), decoder=((4, 6, 5), (2, 3, 4)))


def test_parameters_of_the_classic_unet_are_the_textbook_number() -> None:
    # 7.76 M: the number of the reference colorizer, layer for layer the same network.
    assert count_parameters(UNet(UNetPlan.classic(32, 4))) == 7_762_498


@pytest.mark.parametrize("upsample", UPSAMPLERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (33, 17), (64, 64), (5, 128)])
def test_any_size_goes_in_and_comes_out(upsample: str, size: tuple[int, int]) -> None:
    network = UNet(UNetPlan.classic(4, 3, upsample)).eval()
    answer = network(torch.rand(2, 1, *size))
    assert answer.shape == (2, 2, *size)
    assert answer.abs().max() <= 1


def test_padding_is_by_edge_replication_at_the_bottom_and_right(tiny_unet: UNet) -> None:
    lightness = torch.rand(1, 1, 6, 7)
    padded = torch.cat([lightness, lightness[..., -1:]], dim=3)
    padded = torch.cat([padded, padded[:, :, -1:], padded[:, :, -1:]], dim=2)
    assert torch.equal(tiny_unet(lightness), tiny_unet.forward_padded(padded)[..., :6, :7])


@pytest.mark.parametrize("plan", [UNEVEN, UNetPlan.classic(4, 1, "bilinear"), UNetPlan.classic(4, 3, "nearest")])
def test_plan_round_trips_through_the_network_and_json(plan: UNetPlan) -> None:
    assert plan_of(UNet(plan)) == plan
    assert UNetPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": []},
        {"encoder": [[4, 4], [8, 8], [16, 0]]},
        {"encoder": [[4, 4], [8, 8], [16, 2.5]]},
        {"encoder": [[4, 4], [8, 8], [16]]},
        {"decoder": [[8, 8, 8]]},
        {"decoder": 5},
        {"decoder": None},
        {"encoder": [[4, 4], [8, 8], [16, 10**9]]},
        {"upsample": "magic"},
    ],
)
def test_a_plan_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="channel plan"):
        UNetPlan.from_dict({**UNetPlan.classic(4, 2).to_dict(), **change})
