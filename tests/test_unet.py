"""The UNet is what its plan says, at any size."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from colorpress.core.errors import InputError
from tests.conftest import make_network
from training.network import pad_to_multiple, upsample_bilinear
from training.unet import UPSAMPLERS, UNet, UNetPlan, count_parameters, plan_of_weights

UNEVEN = UNetPlan(encoder=((3, 5), (7, 6), (9, 8)), decoder=((4, 6, 5), (2, 3, 4)))
# Patches of 4 pixels, levels at 1/4 to 1/32, one level up again: the answer is at 1/16.
COARSE = UNetPlan(((5,), (6, 7, 8), (9,), (10,)), ((4, 3),), "nearest", stem_stride=4)
FLAT = UNetPlan(((6, 7),), (), stem_stride=8)
AFFINE = replace(COARSE, affine=True)
RESIDUAL = UNetPlan(((6, 6, 6), (8, 8)), ((4, 5, 5),), "nearest", stem_stride=2, residual=True)


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
    assert torch.equal(tiny_unet(lightness), tiny_unet.forward_coarse(padded)[..., :6, :7])


@pytest.mark.parametrize(
    "plan",
    [UNEVEN, COARSE, FLAT, AFFINE, RESIDUAL, UNetPlan.classic(4, 1, "bilinear"), UNetPlan.classic(4, 3, "nearest")],
)
def test_plan_round_trips_through_the_network_its_weights_and_json(plan: UNetPlan) -> None:
    network = UNet(plan)
    assert network.architecture == plan
    assert network.with_weights(network.state_dict()).architecture == plan
    assert plan_of_weights(network.state_dict(), plan.upsample) == replace(plan, residual=False)
    assert UNetPlan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_convolutions_of_a_residual_block_add_to_what_they_read() -> None:
    network = make_network(RESIDUAL)
    for module in network.encoder[0].modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # which then answers nothing but what was there before
            torch.nn.init.zeros_(module.weight)
            torch.nn.init.zeros_(module.bias)
    block = network.encoder[0]
    torch.nn.init.ones_(block[1].bias)  # of the first, which reads patches and adds to nothing
    assert torch.equal(block(torch.rand(1, 1, 8, 8)), torch.ones(1, 6, 4, 4))


def test_a_residual_block_has_one_width() -> None:
    with pytest.raises(InputError, match="residual"):
        UNetPlan(((6, 5),), (), residual=True)
    with pytest.raises(InputError, match="residual"):
        UNetPlan.from_dict({**FLAT.to_dict(), "residual": 1})


def test_an_older_plan_is_read() -> None:
    values = UNEVEN.to_dict()
    del values["stem_stride"]
    assert UNetPlan.from_dict(values) == UNEVEN


def test_a_plan_without_an_affine_answer_is_written_as_before_there_were_any() -> None:
    assert list(COARSE.to_dict()) == ["encoder", "decoder", "upsample", "stem_stride"]
    assert AFFINE.to_dict() == {**COARSE.to_dict(), "affine": True}
    assert RESIDUAL.to_dict()["residual"] is True


@pytest.mark.parametrize("size", [(1, 1), (37, 100), (64, 32)])
def test_colours_of_an_affine_answer_follow_the_lightness(size: tuple[int, int]) -> None:
    network = make_network(AFFINE)
    picture = torch.rand(2, 1, *size)
    coarse = network.forward_coarse(pad_to_multiple(picture, 32))
    assert coarse.shape[1] == 4
    base, slope = (upsample_bilinear(part, 16)[..., : size[0], : size[1]] for part in (coarse[:, :2], coarse[:, 2:]))
    torch.testing.assert_close(network(picture), base + slope * (picture - 0.5))
    assert torch.equal(network.forward_field(picture), torch.cat([base, slope], dim=1))
    # Its head decides both, the first two channels within [-1, 1].
    with torch.no_grad():
        network.head.bias.copy_(torch.tensor([9.0, -9.0, 3.0, 0.0]))
        network.head.weight.zero_()
    expected = torch.cat([1 + 3 * (picture - 0.5), torch.full_like(picture, -1.0)], dim=1)
    torch.testing.assert_close(network(picture), expected, atol=1e-6, rtol=0)


def test_an_affine_answer_is_compared_where_its_lightness_is_averaged() -> None:
    network, picture = make_network(AFFINE), torch.rand(2, 1, 37, 50)
    coarse = network.forward_coarse(pad_to_multiple(picture, 32))
    answer = network.complete(coarse, picture, stride=4)
    assert answer.shape == (2, 2, 10, 13)
    field = upsample_bilinear(coarse, 4)
    # Of the last column of areas only two pixels are in the picture.
    mean = picture[..., 8:12, 48:50].mean(dim=(2, 3))
    torch.testing.assert_close(answer[..., 2, 12], field[:, :2, 2, 12] + field[:, 2:, 2, 12] * (mean - 0.5))


@pytest.mark.parametrize(
    ("plan", "multiple", "stride"), [(UNEVEN, 4, 1), (COARSE, 32, 16), (FLAT, 8, 8), (UNetPlan.classic(4, 3), 8, 1)]
)
@pytest.mark.parametrize("size", [(1, 1), (37, 100), (64, 32)])
def test_a_coarse_answer_is_upsampled_to_the_picture(
    plan: UNetPlan, multiple: int, stride: int, size: tuple[int, int]
) -> None:
    network = make_network(plan)
    assert (
        (plan.size_multiple, plan.output_stride) == (multiple, stride) == (network.size_multiple, network.output_stride)
    )
    picture = torch.rand(2, 1, *size)
    padded = pad_to_multiple(picture, multiple)
    coarse = network.forward_coarse(padded)
    assert coarse.shape == (2, 2, padded.shape[-2] // stride, padded.shape[-1] // stride)
    answer = network(picture)
    assert answer.shape == (2, 2, *size)
    # Half-pixel interpolation has nothing but the first coarse pixel at the corner.
    torch.testing.assert_close(answer[..., 0, 0], coarse[..., 0, 0])


def test_a_patch_is_a_convolution_of_the_unshuffled_picture() -> None:
    first = UNet(FLAT).encoder[0][0]
    picture = torch.rand(1, 1, 16, 24)
    unshuffled = torch.nn.functional.pixel_unshuffle(picture, 8)
    torch.testing.assert_close(
        first(picture), torch.nn.functional.conv2d(unshuffled, first.weight.reshape(6, 64, 1, 1)), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    "change",
    [
        {"encoder": []},
        {"encoder": [[4, 4], [8, 8], [16, 0]]},
        {"encoder": [[4, 4], [8, 8], [16, 2.5]]},
        {"encoder": [[4, 4], [8, 8], []]},
        {"decoder": [[8, 8, 8], [4]]},
        {"decoder": [[8, 8, 8], [4, 4, 4], [2, 2, 2]]},
        {"stem_stride": 3},
        {"stem_stride": 32},
        {"stem_stride": True},
        {"decoder": 5},
        {"decoder": None},
        {"encoder": [[4, 4], [8, 8], [16, 10**9]]},
        {"upsample": "magic"},
        {"affine": "yes"},
        {"affine": True},  # at output stride 1 there is nothing between the pixels of the answer
    ],
)
def test_a_plan_that_is_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match="channel plan"):
        UNetPlan.from_dict({**UNetPlan.classic(4, 2).to_dict(), **change})
