"""Which processor work runs on, and with how many threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.core.console import warn
from colorpress.core.cores import cpu_flags
from colorpress.core.errors import ConfigError, MachineError
from colorpress.core.processes import local_rank

# Channels that the longest vectors of a processor hold.
_VECTOR_CHANNELS = 16
# Channels of a picture, at most.
_PICTURE = 3


def choose_device(name: str) -> torch.device:
    """The torch device for `auto`, `cpu`, `cuda` or `cuda:N`; auto is CUDA where there is one.

    Under torchrun `auto` and `cuda` are the GPU of this process.

    Raises:
        ConfigError: another name.
        MachineError: CUDA was asked for and is not there; nothing falls back to the CPU silently.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local_rank():
        name = f"cuda:{local_rank()}"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()) or (kind == "cpu" and index):
        raise ConfigError("option", "--device", f"got {name!r}", "choose one of: auto, cpu, cuda, cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        raise MachineError("device", name, "not present on this machine", "use --device auto or cpu")
    return torch.device(name)


def choose_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype that training computes in for `auto`, `fp32`, `bf16` or `fp16`; weights stay float32.

    auto is bf16 where the processor multiplies it faster than float32: CUDA from Ampere on, CPUs with AVX512-BF16 or
    AMX. Elsewhere it is fp32.

    Raises:
        ConfigError: fp16 on a CPU, which has no fast kernels for it.
    """
    if name == "fp16" and device.type != "cuda":
        raise ConfigError("option", "--precision", "got 'fp16' without a GPU", "use bf16 or fp32 on a CPU")
    if device.type == "cuda":
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_bf16 = bool(cpu_flags() & {"avx512_bf16", "amx_bf16"})
    if name == "bf16" and not has_bf16:
        warn("this processor has no bf16 arithmetic: --precision bf16 is emulated and slow")
    wide = "bf16" if has_bf16 else "fp32"
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[wide if name == "auto" else name]


@contextmanager
def float32_pictures(network: nn.Module) -> Iterator[None]:
    """Autocast leaves the convolutions of `network` that read a picture, or its colours, in float32.

    bf16 has 128 steps between L 0.5 and 1, so what is rounded to it is another picture: an original that was shown such
    ones had F 0.96 of its own answers, and 0.99 with its first convolution in float32. Networks that learned from them
    were the less like best.pt when they were shown pictures as they are.
    """
    reading = [each for each in network.modules() if isinstance(each, nn.Conv2d) and each.in_channels <= _PICTURE]
    before = [vars(each).get("forward") for each in reading]
    for convolution in reading:
        convolution.forward = partial(_unrounded, convolution, convolution.forward)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for convolution, own in zip(reading, before, strict=True):
            if own is None:
                del convolution.forward
            else:  # somebody else's
                convolution.forward = own  # type: ignore[method-assign]


@contextmanager
def computing_in(dtype: torch.dtype, network: nn.Module, device: torch.device) -> Iterator[None]:
    """`network` computes in `dtype` on `device`, but for what reads a picture (see `float32_pictures`)."""
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32), float32_pictures(network):
        yield


def _unrounded(convolution: nn.Conv2d, forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    def widen(value: Any) -> Any:
        is_rounded = isinstance(value, Tensor) and value.is_floating_point()
        return value.to(convolution.weight.dtype) if is_rounded else value

    with torch.autocast(convolution.weight.device.type, enabled=False):
        return forward(*map(widen, inputs), **{name: widen(value) for name, value in named.items()})


def choose_layout(network: nn.Module, device: torch.device) -> torch.memory_format:
    """How what a network is trained with lies in memory: channels innermost, but where that is not safe.

    On a CPU the gradient of a 1x1 convolution's weights, with a stride and of fewer channels than a vector of the
    processor has (8 of AVX2, 16 of AVX-512), is written past its memory then, which ends the process or spoils what is
    behind.
    Source: https://github.com/uxlfoundation/oneDNN/issues/6035, in the oneDNN 3.12 of PyTorch 2.13.
    """
    unsafe = device.type == "cpu" and any(
        isinstance(each, nn.Conv2d)
        and each.kernel_size == (1, 1)
        and max(each.stride) > 1
        and each.in_channels < _VECTOR_CHANNELS
        for each in network.modules()
    )
    return torch.contiguous_format if unsafe else torch.channels_last


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run a block with `count` torch CPU threads (0: leave them), and restore the number afterwards."""
    before = torch.get_num_threads()
    try:
        if count:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
