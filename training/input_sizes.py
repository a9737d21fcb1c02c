"""Which sizes of pictures a network takes, found by asking it, and the resizing around one that takes a single size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, resolve_name

from colorpress.core.console import say
from colorpress.core.errors import InputError
from training.foreign_source import ADAPTER_HINT
from training.user_code import describe_failure

MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Height and width, in the order they are tried: first what most networks were trained at, then smallest first.
ONE_SIZES = (
    *((side, side) for side in (256, 224, 64, 96, 128, 160, 192, 288, 320, 384, 448, 512)),
    *((240, 320), (320, 240), (256, 512), (512, 256), (480, 640), (640, 480), (1024, 1024)),
)
# One by one may be too small for what works otherwise; 3 and 5 times are odd at every level but the deepest.
_ROWS_AND_COLUMNS = ((1, 1), (1, 2), (2, 2), (3, 5), (5, 3))
# Beyond it a network that calls otherwise for each size, such as one that works in tiles, is asked no further.
_LARGEST_OF_SAME_CALLS = 64


@dataclass(frozen=True)
class InputSizes:
    """The sizes that a network takes.

    Attributes:
        multiple: height and width are multiples of this power of two.
        fixed: the only height and width that it takes; None where it takes all multiples.
    """

    multiple: int = 1
    fixed: tuple[int, int] | None = None

    def __str__(self) -> str:
        if self.fixed:
            return f"{self.fixed[0]} x {self.fixed[1]} pixels alone"
        return f"multiples of {self.multiple} pixels" if self.multiple > 1 else "any size"


def find_sizes(net: nn.Module, name: str) -> InputSizes:
    """The smallest power of two whose multiples the network takes as height and width, answering ab of that size.

    Where Python decides inside the network by sizes (an `if` where a skip connection does not fit, a padding by what
    is missing), one traced graph is not the network. So a larger multiple is taken where the calls of PyTorch are the
    same at all sizes from there on: then original, students and files see the same padding. A network that takes the
    multiples of nothing is asked for `ONE_SIZES`.

    Raises:
        InputError: it takes none of all these sizes.
    """
    fault, least = None, 0
    for multiple in MULTIPLES:
        if least and multiple > _LARGEST_OF_SAME_CALLS:
            break
        fault, calls = _ask(net, InputSizes(multiple))
        if not fault:
            least = least or multiple
            if all(each == calls[0] for each in calls):
                if multiple > least:
                    say(f"{name} decides by sizes: it is asked for {InputSizes(multiple)} alone, others are padded")
                return InputSizes(multiple)
    if least:
        return InputSizes(least)
    assert fault is not None
    for size in ONE_SIZES if fault.is_of_size else ():
        if not find_fault(net, InputSizes(fixed=size)):
            return InputSizes(fixed=size)
    raise InputError("network", name, fault.why, ADAPTER_HINT)


def find_fault(net: nn.Module, sizes: InputSizes) -> str:
    """What is wrong with the network's answers to these sizes; empty when nothing is."""
    fault, _ = _ask(net, sizes)
    return fault.why if fault else ""


@dataclass(frozen=True)
class _Fault:
    """What is wrong with an answer, and whether another size of picture may help."""

    why: str
    is_of_size: bool = True


def _ask(net: nn.Module, sizes: InputSizes) -> tuple[_Fault | None, list[list[str]]]:
    """What is wrong with the answers to pictures of some of these sizes; and what is called for each."""
    weight = next(net.parameters(), torch.empty(0))
    several = [(sizes.multiple * rows, sizes.multiple * columns) for rows, columns in _ROWS_AND_COLUMNS]
    calls: list[list[str]] = []
    for height, width in [sizes.fixed] if sizes.fixed else several:
        size = f"an input of 1x1x{height}x{width}"
        try:
            with torch.no_grad(), _Calls() as recorded:
                answer = net(weight.new_zeros(1, 1, height, width))
        except Exception as error:  # a network of any kind fails in any way
            return _Fault(f"fails on {size}: {describe_failure(error)}"), []
        if not isinstance(answer, Tensor):
            return _Fault(f"answers a {type(answer).__name__} to {size}, not a tensor", is_of_size=False), []
        if answer.shape != (1, 2, height, width):
            why = f"answers {'x'.join(map(str, answer.shape))} to {size}, not 1x2x{height}x{width}"
            return _Fault(why, is_of_size=answer.shape[1:2] == (2,)), []
        calls.append(recorded.names)
    return None, calls


class _Calls(TorchFunctionMode):
    """The functions of PyTorch that are called, in their order; what these call is not seen.

    By how much is padded is a decision too; other arguments follow the sizes in what can be traced.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        amounts = (kwargs["pad"] if "pad" in kwargs else args[1]) if func is nn.functional.pad else ""
        self.names.append(f"{resolve_name(func) or func}{amounts}")
        return func(*args, **kwargs)


def resize(values: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, C, H, W) to (N, C, *size): bilinear where it grows, a triangle of two new pixels' width where it shrinks.

    As F.interpolate in mode "bilinear" with antialias, but as two products with matrices, which ONNX has for all sizes
    and computes faster than Resize.
    """
    rows, columns = (_triangles(values.shape[axis], size[axis], values) for axis in (-2, -1))
    return rows @ values @ columns.T


def _triangles(length: int, new: int, like: Tensor) -> Tensor:
    """(new, length): row i is a triangle around (i + 1/2) length / new - 1/2, its weights adding to 1.

    Sizes become tensors first: in a traced graph they are numbers that are not known yet, which Python cannot compare.
    """
    total, count = (torch.scalar_tensor(each, dtype=torch.float32, device=like.device) for each in (length, new))
    step = total / count
    # Whole numbers, since OpenVINO counts fractions with an error that grows.
    places, centers = (torch.arange(each, device=like.device) for each in (length, new))
    distance = ((centers + 0.5) * step - 0.5)[:, None] - places
    near = (1.0 - distance.abs() / step.clamp(min=1.0)).clamp(min=0.0)
    return (near / near.sum(dim=1, keepdim=True)).to(like.dtype)
