"""Weights that a wrapper of PyTorch's computes, such as weight norm or spectral norm, made plain ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Set
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrizations, parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, SpectralNormLoadStateDictPreHook, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm


def in_one_form(names: Iterable[str]) -> dict[str, str]:
    """The names of tensors, and what those of older wrappers are called by newer ones.

    `weight_g` and `weight_v` of weight norm, and `weight_orig`, `weight_u` and `weight_v` of spectral norm, are
    parametrizations since PyTorch 1.9 and 2.0.
    """
    known = set(names)
    return {name: _newer_name(name, known) for name in known}


def _newer_name(name: str, known: Set[str]) -> str:
    stem, _, kind = name.rpartition("_")
    normed, spectral = {f"{stem}_g", f"{stem}_v"} <= known, {f"{stem}_orig", f"{stem}_u"} <= known
    part = {"g": "original0", "v": "original1"}.get(kind) if normed else None
    if spectral and not normed:
        part = {"orig": "original", "u": "0._u", "v": "0._v"}.get(kind)
    if part is None:
        return name
    layer, dot, own_name = stem.rpartition(".")
    return f"{layer}{dot}parametrizations.{own_name}.{part}"


def make_plain_(network: nn.Module) -> nn.Module:
    """Put plain weights in place of all that are computed by PyTorch's wrappers, as they are in eval mode."""
    with torch.inference_mode(False), torch.no_grad():
        for module in list(network.eval().modules()):
            for _, unwrap in list(_wrappers(module)):
                unwrap()
    return network


def _wrappers(module: nn.Module) -> Iterator[tuple[str, Callable[[], object]]]:
    """The wrapped tensors of a module, each with what makes it plain."""
    if parametrize.is_parametrized(module):
        for name in list(module.parametrizations):  # type: ignore[arg-type]
            yield name, partial(_remove_parametrizations, module, name)
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm):
            yield hook.name, partial(remove_weight_norm, module, hook.name)
        elif isinstance(hook, SpectralNorm):
            yield hook.name, partial(_remove_spectral_norm, module, hook.name)
        elif isinstance(hook, prune.BasePruningMethod):
            yield hook._tensor_name, partial(prune.remove, module, hook._tensor_name)


def _remove_parametrizations(module: nn.Module, name: str) -> None:
    is_learned = any(True for _ in module.get_submodule(f"parametrizations.{name}").parameters(recurse=False))
    parametrize.remove_parametrizations(module, name)
    # PyTorch leaves a buffer where no gradient is wanted.
    if is_learned and isinstance(tensor := module._buffers.get(name), Tensor):
        del module._buffers[name]
        module.register_parameter(name, nn.Parameter(tensor))


def _remove_spectral_norm(module: nn.Module, name: str) -> None:
    remove_spectral_norm(module, name)
    # PyTorch leaves what asks for the old names in a file; it does not know it behind a wrapper of its own.
    for key, hook in list(module._load_state_dict_pre_hooks.items()):
        if isinstance(getattr(hook, "hook", hook), SpectralNormLoadStateDictPreHook):
            del module._load_state_dict_pre_hooks[key]


def wrap_as_(network: nn.Module, look: Callable[[str], Tensor | None]) -> nn.Module:
    """Wrap the weights of a network as those of a file are, plain ones where they are plain there.

    Args:
        look: the file's tensor of a name in the form of `in_one_form`, or None.
    """
    done: set[tuple[nn.Module, str]] = set()
    for path, module in list(network.named_modules(remove_duplicate=False)):
        layer = f"{path}." if path else ""
        for name, unwrap in list(_wrappers(module)):
            if look(layer + name) is not None:
                unwrap()
                done.add((module, name))
        for name in list(dict(module.named_parameters(recurse=False))):
            if (module, name) not in done and (wrap := _find_wrapper(layer, name, look)):
                wrap(module, name)
                done.add((module, name))
    return network.eval()


def _find_wrapper(
    layer: str, name: str, look: Callable[[str], Tensor | None]
) -> Callable[[nn.Module, str], object] | None:
    """What wraps a weight so as the file's is; None where that is plain, or not there."""
    form = f"{layer}parametrizations.{name}."
    size, direction = look(f"{form}original0"), look(f"{form}original1")
    if size is not None and direction is not None:
        # A length for each channel of one side, which has as many as the weight; else one for the whole weight.
        sides = zip(size.shape, direction.shape, strict=False)
        axes = [axis for axis, (one, other) in enumerate(sides) if one == other]
        dim = max(axes, key=lambda axis: size.shape[axis], default=0) if size.ndim else None
        return partial(parametrizations.weight_norm, dim=dim)  # type: ignore[arg-type]
    if look(f"{form}original") is not None and look(f"{form}0._u") is not None:
        return parametrizations.spectral_norm
    if look(f"{layer}{name}_orig") is not None and look(f"{layer}{name}_mask") is not None:
        return prune.identity
    return None


def find_unsized(network: nn.Module) -> list[str]:
    """The layers whose tensors have no shape before they have run once, such as a LazyConv2d: names and classes."""
    return [
        f"{name} ({type(module).__name__})"
        for name, module in network.named_modules()
        if any(is_lazy(each) for each in (*module._parameters.values(), *module._buffers.values()))
    ]
