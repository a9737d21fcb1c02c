"""What is found in files of weights that other programs saved, by fit; and that wrapped weights become plain ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

from colorpress.core.config import ArchConfig, PruneConfig
from colorpress.core.errors import ColorpressError, ConfigError, InputError
from compress.pruning import prune_network
from training.adoption import adopt_weights
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.file_tensors import FileTensors
from training.network import copy_weights
from training.plain_weights import make_plain_
from training.unet import count_parameters

PATH = Path("theirs.pt")
State = dict[str, Tensor]


class Net(nn.Module):
    """A convolution, a batch norm and a transposed convolution, each wrapped."""

    def __init__(self, wrap: Callable[[nn.Module], nn.Module] = lambda layer: layer, width: int = 4) -> None:
        super().__init__()
        self.down = nn.Sequential(wrap(nn.Conv2d(1, width, 3, padding=1)), nn.BatchNorm2d(width), nn.ReLU())
        self.up = wrap(nn.ConvTranspose2d(width, 2, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.up(F.max_pool2d(self.down(x), 2))
        return answer


class Adapter(nn.Module):
    """What a user writes around a network: a buffer, and a convolution of fixed weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"net": Net()})
        self.register_buffer("mean", torch.tensor([0.5]))
        self.mix = nn.Conv2d(2, 2, 1, bias=False)
        self.mix.weight.data = torch.eye(2)[:, :, None, None]

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.mix(self.inner["net"](x - self.get_buffer("mean")))
        return answer


class Tied(nn.Module):
    """One weight of a convolution and of the transposed one, and one batch norm under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.inp, self.down = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 2, 2)
        self.up, self.head = nn.ConvTranspose2d(8, 4, 2, 2), nn.Conv2d(4, 2, 1)
        self.up.weight = self.down.weight
        self.norm = nn.BatchNorm2d(4)
        self.alias = nn.ModuleList([self.norm])

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.inp(x)))
        answer: Tensor = self.head(x + self.up(F.relu(self.down(x))))
        return answer


def lively(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network after some steps, with statistics that are those of no fresh one."""
    torch.manual_seed(seed)
    for tensor in network.parameters():
        tensor.data.copy_(torch.rand_like(tensor) - 0.4)
    network.train()
    for _ in range(3):
        network(torch.rand(2, 1, 8, 8))
    return network.eval()


def answer(network: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = network.eval()(torch.linspace(0, 1, 64).reshape(1, 1, 8, 8))
    return found


def adopt(content: Mapping[str, Any], make: Callable[[], nn.Module] = Net, key: str | None = None) -> nn.Module:
    """The network with plain weights, and what the file says of them."""
    weights = adopt_weights(FileTensors.of(PATH, content, key), lambda: make().eval(), "nets.py:Net")
    network = make_plain_(make())
    network.load_state_dict(weights)
    return network


def refused(kind: type[ColorpressError], content: Mapping[str, Any], **options: Any) -> str:
    with pytest.raises(kind) as caught:
        adopt(content, **options)
    return f"{caught.value} | {caught.value.hint}"


def under(prefix: str, state: Mapping[str, Tensor]) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


STATE = lively(Net()).state_dict()
OTHER = lively(Net(), 1).state_dict()
WANTED = answer(lively(Net()))
ADAM = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.zeros(4, 1, 3, 3)}}, "param_groups": [{"lr": 0.1}]}
CRITIC = {"0.weight": torch.ones(4, 3, 4, 4)}


@pytest.mark.parametrize(
    ("content", "ignored"),
    [
        ({**STATE, "mask_values": [0, 1]}, ""),
        ({**under("net_G.", STATE), **under("net_D.", CRITIC)}, "from net_G; ignored: net_D"),
        ({**STATE, **under("loss_net.", CRITIC), "best": torch.ones(())}, "its top level; ignored: best, loss_net"),
        ({"model": {"g": STATE, "d": CRITIC}, "optimizer": ADAM}, "from model.g; ignored: model.d, optimizer"),
        ({"epoch": 3, "loops": [1, {"x": None}], "state_dict": under("model.module.", STATE)}, ""),
        ({"ema": [{"decay": 0.9, "shadow": STATE}], "optimizer_states": [ADAM]}, "from ema.0.shadow"),
        ({"n_averaged": torch.tensor(3), **under("module.", STATE)}, "ignored: n_averaged"),
        (under("_orig_mod.module.", STATE), ""),
        ({name.replace("down.", "down.module."): each for name, each in STATE.items()}, ""),
        ({name: each for name, each in STATE.items() if "num_batches" not in name}, ""),
        ({**STATE, "down.0.total_ops": torch.zeros(1)}, ""),
        ({"model": STATE, "ema": {name: each.clone() for name, each in STATE.items()}}, ""),
        ({"d": under("up.", CRITIC), "down": {k[5:]: v for k, v in STATE.items() if k[0] == "d"},
          "up": {k[3:]: v for k, v in STATE.items() if k[0] == "u"}}, "ignored: d"),
        ({"enc": {k[5:]: v for k, v in STATE.items() if k[0] == "d"},
          "dec": {k[3:]: v for k, v in STATE.items() if k[0] == "u"}}, ""),
    ],
)  # fmt: skip
def test_the_part_that_fits_is_taken_and_the_rest_is_named(
    content: Any, ignored: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torch.equal(answer(adopt(content)), WANTED)
    said = capsys.readouterr().err
    assert (ignored in said) if ignored else not said


@pytest.mark.parametrize(
    "content", [STATE, {"g": under("net_G.", STATE), "d": CRITIC}, under("inner.net.", STATE), under("net.", STATE)]
)
def test_an_adapter_takes_the_weights_of_what_it_wraps(content: Any, capsys: pytest.CaptureFixture[str]) -> None:
    network = adopt(content, Adapter)
    assert torch.equal(network.inner["net"].up.weight, STATE["up.weight"])  # type: ignore[index, union-attr]
    assert "lacks mean, mix.weight: what the network's code sets is taken" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["state_dict.net_G_EMA", "net_G_EMA", "net_G_EMA.", "state_dict.net_G_EMA."])
def test_of_two_that_fit_the_key_chooses(key: str) -> None:
    content = {"state_dict": {**under("net_G.", OTHER), **under("net_G_EMA.", STATE)}, "x": {"y": torch.ones(1)}}
    assert torch.equal(answer(adopt(content, key=key)), WANTED)
    message = refused(ConfigError, content)
    assert "holds weights at state_dict.net_G, state_dict.net_G_EMA, and both fit" in message
    assert "| choose: --state-key state_dict.net_G" in message
    assert refused(ConfigError, content, key="state_dict") == message
    assert "no weights there | weights are at: state_dict, x" in refused(ConfigError, content, key="nothing")
    message = refused(InputError, content, key="x")
    assert "nearest is x: down.0.weight: expected (4, 1, 3, 3) got nothing" in message
    assert "check --arch-arg and --state-key" in message


def test_the_top_level_has_a_key_too() -> None:
    content = {**STATE, **under("module.", OTHER)}
    assert "holds weights at ., module, and both fit | choose: --state-key ." in refused(ConfigError, content)
    assert torch.equal(answer(adopt(content, key=".")), WANTED)


def test_what_does_not_fit_says_what_the_nearest_part_differs_in() -> None:
    wide = lively(Net(width=8)).state_dict()
    message = refused(InputError, {"optimizer": ADAM, "d": CRITIC, "model": wide})
    assert "nearest is model: down.0.weight: expected (4, 1, 3, 3) got (8, 1, 3, 3)" in message
    assert message.endswith("| these are not the weights of nets.py:Net: check --arch-arg")
    # A layer more in a module of this network is of another one.
    message = refused(InputError, {**STATE, "up.extra.weight": torch.ones(1)})
    assert "up.extra.weight: expected nothing got (1,); 0 missing, 1 unexpected" in message
    message = refused(InputError, STATE, make=lambda: nn.Sequential(Net(), nn.Conv2d(2, 2, 1)))
    assert "1.weight: expected (2, 2, 1, 1) got nothing; 1.bias: expected (2,) got nothing; 2 missing" in message
    message = refused(InputError, {f"x{i}": each for i, each in enumerate(STATE.values())})
    assert "| shapes agree, names do not: load it by your own code" in message
    assert "running_mean: expected (4,) got nothing" in refused(
        InputError, {name: each for name, each in STATE.items() if "running_mean" not in name}
    )


def test_weights_of_one_module_are_not_taken_for_two() -> None:
    """Of two modules of the same shapes the file holds one: under its own name, under another, beside a third."""
    for content in ({"a": STATE}, {"ema": STATE}, {"b": STATE, "extra": OTHER}):
        assert "got nothing" in refused(InputError, content, make=lambda: nn.ModuleDict({"a": Net(), "b": Net()}))


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.bool])
def test_whole_numbers_are_no_weights(kind: torch.dtype) -> None:
    """Of a quantized file, whose scales are elsewhere."""
    message = refused(InputError, {**STATE, "up.weight": (50 * STATE["up.weight"]).to(kind)})
    assert "up.weight holds whole numbers" in message and message.endswith("before they are quantized")


def orthogonal(layer: Any) -> Any:
    return parametrizations.orthogonal(layer, orthogonal_map="cayley", use_trivialization=True)


def both(layer: Any) -> Any:
    return parametrizations.spectral_norm(parametrizations.weight_norm(layer))


def masked(layer: Any) -> Any:
    torch.manual_seed(0)
    return prune.random_unstructured(layer, "weight", 0.3)  # type: ignore[no-untyped-call]


def of_the_whole(layer: Any) -> Any:
    return old_weight_norm(layer, dim=None)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("wrap", "other"),
    [
        (old_weight_norm, parametrizations.weight_norm),
        (parametrizations.weight_norm, old_weight_norm),
        (lambda layer: parametrizations.weight_norm(layer, dim=1), None),
        (of_the_whole, None),
        (old_spectral_norm, parametrizations.spectral_norm),
        (parametrizations.spectral_norm, old_spectral_norm),
        (masked, None),
        (both, both),
        (orthogonal, orthogonal),
    ],
)
def test_wrapped_weights_are_made_plain(wrap: Any, other: Any) -> None:
    network = lively(Net(wrap))
    content = {"g": under("net_G.", network.state_dict())}
    # For the network as it was, as it is written today, and without any of it.
    for make in (lambda: Net(wrap), *([lambda: Net(other)] if other else []), *([Net] if other != wrap else [])):
        plain = adopt(content, make)
        assert plain.state_dict().keys() == STATE.keys()
        assert dict(plain.named_parameters()).keys() >= {"down.0.weight", "up.weight"}
        torch.testing.assert_close(answer(plain), answer(network), rtol=1e-5, atol=1e-6)
    # And plain weights for a network that is written with it.
    assert torch.equal(answer(adopt(STATE, lambda: Net(wrap))), WANTED)


def test_weight_norm_is_found_along_the_side_that_has_lengths() -> None:
    """Of one input channel, or one output channel, which the length for all of the other side has too."""
    for make in (lambda: nn.ConvTranspose2d(1, 3, 2), lambda: nn.ConvTranspose2d(3, 1, 2)):
        normed = parametrizations.weight_norm(make(), dim=1)  # type: ignore[no-untyped-call]
        found = adopt(normed.state_dict(), make)
        torch.testing.assert_close(found.weight, normed.weight)


def test_one_tensor_under_two_names_is_one() -> None:
    network = lively(Tied())
    state = network.state_dict()
    for missing in ((), ("up.weight",), ("down.weight", *(name for name in state if name.startswith("norm.")))):
        found = adopt({name: each for name, each in state.items() if name not in missing}, Tied)
        assert torch.equal(answer(found), answer(network))
    message = refused(InputError, {**state, "up.weight": torch.zeros(8, 4, 2, 2)}, make=Tied)
    assert "down.weight and up.weight differ, which are one tensor in the network" in message


SOURCE = Path(__file__).read_text().partition("def lively")[0].rpartition("PATH = ")
NETWORKS = f"""
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

{SOURCE[2].partition("State = dict[str, Tensor]")[2]}

class Tuned(Net):
    def __init__(self):
        super().__init__(parametrizations.weight_norm)
"""


@pytest.mark.parametrize("name", ["Tied", "Tuned"])
def test_what_was_adopted_is_pruned_and_comes_back(tmp_path: Path, name: str) -> None:
    source = tmp_path / "nets.py"
    source.write_text("from __future__ import annotations\nfrom collections.abc import Callable\n" + NETWORKS)
    arch = ArchConfig(arch=f"{source}:{name}", ab_scale=128.0)
    network = lively(Tied() if name == "Tied" else Net(parametrizations.weight_norm))
    torch.save(network.state_dict(), tmp_path / "theirs.pt")
    found = load_checkpoint(tmp_path / "theirs.pt", arch).build_network()
    torch.testing.assert_close(answer(found), answer(network), rtol=1e-5, atol=1e-6)
    pruned = prune_network(found, PruneConfig(largest_share=1.0, prune_ratio=0.5, round_to=1)).network
    path = save_checkpoint(tmp_path / "best.pt", Checkpoint(pruned.architecture, copy_weights(pruned)))
    again = load_checkpoint(path, arch).build_network()
    assert torch.equal(answer(again), answer(pruned))
    assert count_parameters(again) == count_parameters(pruned) < 0.6 * count_parameters(network)
