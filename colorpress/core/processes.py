"""Processes that work on one training together, as torchrun starts them: who writes, and what all of them agree on.

Alone (no torchrun, or one process of it) every function here does what its name says of one process, so callers do
not ask how many there are. torch is imported only where there are several.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from colorpress.core.errors import ColorpressError, ConfigError, DivergedError

if TYPE_CHECKING:
    from torch import Tensor

Answer = TypeVar("Answer")

_joined = False
_cut_off = False
# A process that waits for the others of its group gives up after this long; torchrun notices a dead one at once.
_PATIENCE = timedelta(days=7)


@contextmanager
def joined_processes() -> Iterator[None]:
    """Join the group that torchrun started this process in, and leave it when the block ends.

    Tensors on the CPU travel by gloo, those on a GPU by NCCL.
    """
    global _joined
    if started_processes() == 1:
        yield
        return
    import torch
    from torch import distributed

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    distributed.init_process_group(backend, timeout=_PATIENCE)
    _joined = True
    try:
        yield
    finally:
        _joined = False
        distributed.destroy_process_group()


@contextmanager
def working_alone() -> Iterator[None]:
    """Within the block this process is alone, as without torchrun, whatever the others of its group do."""
    global _joined
    before, _joined = _joined, False
    try:
        yield
    finally:
        _joined = before


@contextmanager
def working_together() -> Iterator[None]:
    """Within the block, inside one of `working_alone`, this process works with the others of its group again.

    Where it leaves by an error that the others may not have, they wait for it in the middle of that work: see
    `is_cut_off`.
    """
    global _joined, _cut_off
    from torch import distributed

    before, _joined = _joined, distributed.is_available() and distributed.is_initialized()
    try:
        yield
    except DivergedError:
        raise  # in all of them, at the same step
    except BaseException:
        _cut_off = _joined
        raise
    finally:
        _joined = before


def is_cut_off() -> bool:
    """Whether this process left the others in the middle of common work: it can only end, and torchrun ends them."""
    return _cut_off


def started_processes() -> int:
    """How many processes torchrun started, on all machines together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def require_one_process(command: str) -> None:
    """Refuse a command that several processes would only do several times.

    Raises:
        ConfigError: torchrun started more than one process.
    """
    if started_processes() > 1:
        why = f"was started in {started_processes()} processes, which only help to train"
        raise ConfigError("command", command, why, "use torchrun for train, prune, compress and worker")


def process_count() -> int:
    """How many processes work together in this block; 1 outside of `joined_processes`."""
    if not _joined:
        return 1
    from torch import distributed

    return distributed.get_world_size()


def process_rank() -> int:
    """The number of this process, from 0."""
    if not _joined:
        return 0
    from torch import distributed

    return distributed.get_rank()


def local_rank() -> int:
    """The number of this process on its machine, from 0: which GPU is its own."""
    return int(os.environ.get("LOCAL_RANK", "0")) if _joined else 0


def is_main_process() -> bool:
    """Whether this is the process that writes and speaks."""
    return process_rank() == 0


def share_answer(make: Callable[[], Answer]) -> Answer:
    """The answer of `make`, called in the main process alone; where it raises ColorpressError, all raise it.

    The answer goes by pickle from the main process to the others of the same training, and nowhere else.
    """
    if process_count() == 1:
        return make()
    from torch import distributed

    parcel: list[Any] = [None]
    if is_main_process():
        try:
            parcel = [(make(), None)]
        except ColorpressError as error:
            parcel = [(None, error)]
    distributed.broadcast_object_list(parcel)
    answer, refusal = parcel[0]
    if refusal is not None:
        raise refusal
    result: Answer = answer
    return result


def sum_over_processes_(tensor: Tensor) -> Tensor:
    """Replace `tensor` by its sum over all processes, and return it."""
    if process_count() > 1:
        from torch import distributed

        distributed.all_reduce(tensor)
    return tensor
