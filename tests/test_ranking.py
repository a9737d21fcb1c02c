"""Ranking: counts computed by hand, shared weights, totals, files, and that the network stays as it is."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from colorpress.core.errors import ColorpressError, InputError
from compress.ranking import count_macs, describe_ranking, largest_layers, rank_layers, write_ranking
from training.unet import UPSAMPLERS, UNet, UNetPlan, count_parameters


class Tied(nn.Module):
    """Two linear layers on one weight, the second with a bias of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6, bias=False)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, picture: Tensor) -> Tensor:
        return self.second(self.first(picture))


class Reused(nn.Module):
    """One convolution used twice in a forward pass, one never."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.used = nn.Conv2d(3, 3, 3, padding=1, groups=3)
        self.spare = nn.Conv2d(3, 1, 1)

    def forward(self, picture: Tensor) -> Tensor:
        return self.used(self.used(picture)) * self.scale.view(1, 3, 1, 1)


def test_exact_counts_of_a_small_stack() -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),  # 4*9 + 4 = 40 parameters, 4*8*8*9 MACs
        nn.BatchNorm2d(4),  # 8 parameters
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False),  # 4*2*9 = 72 parameters, 4*4*4*18 MACs
        nn.ConvTranspose2d(4, 2, 2, stride=2),  # 4*2*4 + 2 = 34 parameters, 4*4*4 * 8 MACs
        nn.Flatten(),
        nn.Linear(128, 5),  # 645 parameters, 640 MACs
    )
    layers = rank_layers(network, height=8, width=8)
    assert [(layer.rank, layer.name, layer.type, layer.params, layer.macs, layer.shape) for layer in layers] == [
        (1, "5", "Linear", 645, 640, (1, 5)),
        (2, "2", "Conv2d", 72, 1152, (1, 4, 4, 4)),
        (3, "0", "Conv2d", 40, 2304, (1, 4, 8, 8)),
        (4, "3", "ConvTranspose2d", 34, 512, (1, 2, 8, 8)),
        (5, "1", "BatchNorm2d", 8, 0, (1, 4, 8, 8)),
    ]
    assert [layer.bytes for layer in layers] == [2580, 288, 160, 136, 32]
    assert [layer.output_bytes for layer in layers] == [20, 256, 1024, 512, 1024]
    assert layers[0].share_pct == pytest.approx(100 * 645 / 799)
    assert layers[1].cumulative_pct == pytest.approx(100 * 717 / 799)
    assert layers[-1].cumulative_pct == 100
    assert count_macs(network, height=8, width=8) == 640 + 1152 + 2304 + 512


def test_shared_weights_count_once_for_the_first_owner_but_work_twice() -> None:
    first, second = rank_layers(Tied(), height=1, width=6)
    assert (first.name, first.params, first.macs) == ("first", 36, 36)
    assert (second.name, second.params, second.macs) == ("second", 6, 36)


def test_a_layer_used_twice_works_twice_and_an_unused_one_not_at_all() -> None:
    layers = {layer.name: layer for layer in rank_layers(Reused(), height=5, width=7)}
    assert (layers["used"].params, layers["used"].macs) == (30, 2 * 3 * 5 * 7 * 9)
    assert (layers["spare"].params, layers["spare"].macs, layers["spare"].shape) == (4, 0, ())
    assert layers["."].params == 3  # a parameter of the network itself


@pytest.mark.parametrize("upsample", UPSAMPLERS)
@pytest.mark.parametrize("depth", [1, 3])
def test_totals_equal_the_network(upsample: str, depth: int) -> None:
    network = UNet(UNetPlan.classic(4, depth, upsample))
    layers = rank_layers(network, height=33, width=31)
    assert sum(layer.params for layer in layers) == count_parameters(network)
    assert sum(layer.macs for layer in layers) == count_macs(network, height=33, width=31)
    assert [layer.params for layer in layers] == sorted((layer.params for layer in layers), reverse=True)
    assert layers[-1].cumulative_pct == 100


def test_counts_of_the_reference_size() -> None:
    """7.76 M parameters and 12.04 G multiply-accumulates: research/performance.md, computed apart from this code."""
    network = UNet(UNetPlan.classic(32, 4))
    assert count_parameters(network) == 7_762_498
    assert count_macs(network, height=256, width=256) == 12_035_555_328


def test_work_is_that_of_the_padded_picture() -> None:
    network = UNet(UNetPlan.classic(4, 2))
    assert count_macs(network, height=29, width=30) == count_macs(network, height=32, width=32)


def test_the_network_stays_as_it_is() -> None:
    network = UNet(UNetPlan.classic(4, 2)).train()
    network.encoder[0].eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    random_state = torch.get_rng_state()
    rank_layers(network, height=16, width=16)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert all(tensor.device.type == "cpu" for tensor in network.state_dict().values())
    assert [module.training for module in network.modules()] == modes
    assert torch.equal(random_state, torch.get_rng_state())
    assert torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("share", "names"), [(0.01, ["5"]), (0.8, ["5"]), (0.9, ["5", "2", "0"]), (1.0, ["5", "2", "0", "3", "1"])]
)
def test_largest_layers_hold_the_share(share: float, names: list[str]) -> None:
    network = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, groups=2, bias=False),
        nn.ConvTranspose2d(4, 2, 2, stride=2),
        nn.Flatten(),
        nn.Linear(128, 5),
    )
    layers = rank_layers(network, height=8, width=8)
    assert [layer.name for layer in largest_layers(layers, share)] == names


@pytest.mark.parametrize("share", [0.0, -1.0, 1.01, float("nan")])
def test_a_share_outside_0_to_1_is_refused(share: float) -> None:
    with pytest.raises(ColorpressError, match="share: got"):
        largest_layers((), share)


def test_files_agree_with_the_layers(tmp_path: Path) -> None:
    network = UNet(UNetPlan.classic(4, 2))
    layers = rank_layers(network, height=32, width=32)
    paths, totals = write_ranking(network, tmp_path, height=32, width=32)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model_summary.txt",
        "layer_param_counts.csv",
        "top20_layers.png",
    }
    assert set(paths) == set(tmp_path.iterdir())
    assert totals == {"params": count_parameters(network), "macs": count_macs(network, height=32, width=32)}
    with (tmp_path / "layer_param_counts.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0])[:10] == [
        "rank",
        "name",
        "type",
        "params",
        "pct",
        "cum_pct",
        "bytes",
        "shape",
        "macs",
        "macs_pct",
    ]
    assert sum(int(row["params"]) for row in rows) == totals["params"]
    assert sum(int(row["macs"]) for row in rows) == totals["macs"]
    assert sum(float(row["macs_pct"]) for row in rows) == pytest.approx(100, abs=0.01)
    assert rows[0]["name"] == "encoder.2.3"
    assert rows[0]["shape"] == "1x16x8x8"
    text = (tmp_path / "model_summary.txt").read_text()
    assert f"{totals['params']:,}" in text
    assert f"{totals['macs']:,}" in text
    assert "32 x 32 pixels" in text
    assert describe_ranking(layers) in text
    assert all(layer.name in text for layer in layers)
    table = text.splitlines()[3 : 3 + len(layers) + 2]
    assert len({line.index("%") for line in table[2:]}) == 1  # columns line up
    with Image.open(tmp_path / "top20_layers.png") as chart:
        assert chart.width > 1000
        assert len(chart.convert("RGB").getcolors(1 << 20) or ()) > 3


def test_the_finding_says_where_parameters_and_work_are() -> None:
    finding = describe_ranking(rank_layers(UNet(UNetPlan.classic(32, 4))))
    assert finding.startswith("8 of 41 layers hold 90 % of the parameters and do 41 % of the multiply-accumulates.")
    assert "16x16 and 32x32 pixels belong to layers with 87 % of the parameters and 31 % of the work" in finding
    assert "shrinks the file more than the time" in finding


def test_the_finding_of_a_network_without_pictures_inside() -> None:
    assert describe_ranking(rank_layers(Tied(), height=1, width=6)).startswith("2 of 2 layers hold 100 %")


def test_nothing_is_written_of_a_network_that_cannot_be_ranked(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not take a picture"):
        write_ranking(nn.Linear(3, 3), tmp_path, height=8, width=8)
    assert list(tmp_path.iterdir()) == []


def test_networks_that_cannot_be_ranked_are_refused() -> None:
    with pytest.raises(InputError, match="has no parameters"):
        rank_layers(nn.ReLU())
    with pytest.raises(InputError, match="does not take a picture of 1 x 8 x 8"):
        rank_layers(nn.Linear(3, 3), height=8, width=8)
