"""What lies behind an error: the machine, the file that was given, or a mistake of this program."""

from __future__ import annotations

import errno
import os

import pytest

from colorpress.core.errors import ColorpressError, GateError, InputError, MachineError, find_fault, is_out_of_memory


def raised_from(error: BaseException, cause: BaseException | None, *, hidden: bool = False) -> ColorpressError | None:
    """The fault that is found where `error` was raised while `cause` was dealt with."""
    try:
        try:
            if cause is not None:
                raise cause
            raise error
        except BaseException:
            if hidden:
                raise error from None
            raise error  # noqa: B904 - as code does that thinks of no cause
    except Exception as met:
        return find_fault(met)


def refused() -> InputError:
    return InputError("model", "best.onnx", "is damaged", "give another")


@pytest.mark.parametrize(
    "cause",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried 64 GB"),
        RuntimeError("Failed to allocate memory for requested buffer of size 68719476736"),
        RuntimeError("std::bad_alloc"),
        RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("can't start new thread"),
        RuntimeError("could not create a primitive"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
    ids=str,
)
def test_too_little_memory_is_the_machines_and_not_the_models(cause: Exception) -> None:
    assert is_out_of_memory(cause)
    fault = raised_from(refused(), cause)
    assert isinstance(fault, MachineError) and str(fault) == "model 'best.onnx': not enough memory for it"
    assert str(raised_from(cause, None)) == "machine: not enough memory for it"
    kept = raised_from(refused(), cause, hidden=True)
    assert isinstance(kept, InputError) and kept.hint == "give another"


@pytest.mark.parametrize(
    ("number", "why", "is_never_the_file"),
    [
        (errno.ENOSPC, "disk full", True),
        (errno.EDQUOT, "disk full", True),
        (errno.EROFS, "cannot be used: Read-only file system", True),
        (errno.EMFILE, "too many open files", True),
        (errno.EACCES, "cannot be used: Permission denied", False),
        (errno.EIO, "input/output error: the disk or its connection fails", False),
        (errno.ENAMETOOLONG, "its name is too long", False),
        (errno.ESTALE, "cannot be used: Stale file handle", False),
    ],
)
def test_what_the_system_says_of_a_file_is_an_error_of_the_machine(
    number: int, why: str, is_never_the_file: bool
) -> None:
    met = OSError(number, os.strerror(number), "out/best.pt")
    fault = raised_from(met, None)
    assert isinstance(fault, MachineError) and str(fault) == f"file 'out/best.pt': {why}"
    # That a file which was given cannot be read is said of that file.
    assert isinstance(raised_from(refused(), met), MachineError if is_never_the_file else InputError)


def test_other_errors_are_what_they_are() -> None:
    assert raised_from(ZeroDivisionError("oh"), None) is None
    assert raised_from(OSError("encoder error"), None) is None  # a library's, which the system did not say
    gate = GateError("parity", "best", "is off", "train again")
    assert raised_from(gate, ValueError("out of range")) is gate
    assert raised_from(InputError("photo", "out of memory.jpg", "no such file", ""), None).exit_code == 3  # type: ignore[union-attr]
