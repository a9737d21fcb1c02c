"""Weights that another program saved: which part of its file fits the network that the user names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

from torch import Tensor

from colorpress.core.config import ArchConfig
from colorpress.core.console import warn
from colorpress.core.errors import ConfigError, InputError
from training.cie import AB_SCALE
from training.foreign import adapt_network
from training.network import Architecture
from training.unet import UNetPlan, empty_unet, plan_of_weights
from training.weights_file import as_float32, unusable_checkpoint

_NAME_ITS_NETWORK = "name its network: --arch FILE.py:CLASS [--arch-arg NAME=VALUE]"


def read_foreign(path: Path, content: Mapping[str, Any], arch: ArchConfig) -> tuple[Architecture, dict[str, Tensor]]:
    """Weights that another program saved, for the network that `arch` names, or for colorpress' own UNet.

    Raises:
        ConfigError: `arch` names what cannot be run, or --state-key no weights.
        InputError: no weights in the file fit.
    """
    state_dict = as_float32(path, _find_state_dict(path, content, arch.state_key))
    if arch.arch is None:
        named = rename_keys(state_dict, {"head.weight"})
        if plan := _own_plan(path, named):
            return plan, named
        raise unusable_checkpoint(path, f"holds no colorpress network (keys {_some(named)})", _NAME_ITS_NETWORK)
    network = adapt_network(arch)
    expected = network.net.state_dict()
    named = rename_keys(state_dict, set(expected))
    require_fit(path, expected, named, f"these are not the weights of {network.architecture.source}: check --arch-arg")
    if arch.ab_scale is None:
        warn(f"--ab-scale is not given: {network.architecture.source} is taken to answer a*b* / {AB_SCALE:g}")
    # In the network's own order, so that the same weights give the same file.
    return network.architecture, {f"net.{name}": named[name] for name in expected}


def _find_state_dict(path: Path, content: Mapping[str, Any], key: str | None) -> Mapping[str, Tensor]:
    """The weights in what another program saved: all of it, or its only dictionary of tensors, or the one at `key`."""
    found = {str(name): value for name, value in content.items() if _is_state_dict(value)}
    places = ", ".join(found)
    if key is not None:
        if key not in found:
            hint = f"weights are at: {places or 'none'}"
            raise ConfigError("option", "--state-key", f"got {key!r}, no weights there", hint)
        return found[key]
    if _is_state_dict(content):
        return content
    if len(found) > 1:
        raise ConfigError("checkpoint", path, f"holds weights at {places}", f"choose: --state-key {next(iter(found))}")
    if not found:
        why = f"holds no dictionary of weights (keys {_some(content)})"
        raise unusable_checkpoint(path, why, "save the weights: torch.save(network.state_dict(), 'weights.pt')")
    return next(iter(found.values()))


def _is_state_dict(value: Any) -> TypeGuard[Mapping[str, Tensor]]:
    named = isinstance(value, Mapping) and all(isinstance(key, str) for key in value)
    return named and len(value) > 0 and all(isinstance(item, Tensor) for item in value.values())


def rename_keys(found: Mapping[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    """`found` without the prefixes that wrappers put before every name, where that makes the names those expected."""
    named = {name.replace("_orig_mod.", ""): tensor for name, tensor in found.items()}  # of torch.compile
    while named and not expected & named.keys():
        heads = {name.partition(".")[0] for name in named}
        if len(heads) > 1 or any("." not in name for name in named):
            break
        # `module` of DistributedDataParallel, or whatever a LightningModule calls its network.
        named = {name.partition(".")[2]: tensor for name, tensor in named.items()}
    return named


def _own_plan(path: Path, state_dict: Mapping[str, Tensor]) -> UNetPlan | None:
    """The plan of colorpress' own UNet that these weights fit; None when they fit none."""
    if {"up.0.0.weight", "head.weight"} <= state_dict.keys():
        why = "holds a UNet that up-samples by bilinear or by nearest: its weights alone do not tell"
        raise unusable_checkpoint(path, why, "give the checkpoint that `colorpress train` wrote")
    try:
        plan = plan_of_weights(state_dict, "transpose")
    except InputError:
        return None
    return plan if _shapes(empty_unet(plan).state_dict()) == _shapes(state_dict) else None


def require_fit(path: Path | None, expected: Mapping[str, Tensor], found: Mapping[str, Tensor], hint: str) -> None:
    """Refuse weights of other names or shapes than `expected`; lists the first five that differ."""
    wanted, got = _shapes(expected), _shapes(found)
    wrong = [
        f"{name}: expected {wanted.get(name, 'nothing')} got {got.get(name, 'nothing')}"
        for name in wanted | got
        if wanted.get(name) != got.get(name)
    ]
    if wrong:
        missing, unexpected = len(wanted.keys() - got), len(got.keys() - wanted)
        counts = f"; {missing} missing, {unexpected} unexpected" if missing or unexpected else ""
        more = f" and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise unusable_checkpoint(path, "; ".join(wrong[:5]) + more + counts, hint)


def _shapes(state_dict: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state_dict.items()}


def _some(values: Mapping[Any, Any]) -> str:
    names = [str(name) for name in values]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
