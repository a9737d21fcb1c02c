"""Who may write where: the lock of an output folder, folders for passing work, and timing without a neighbour.

All are locks of the kernel's, which die with their process. So what a killed process left is known by its lock being
free, and whoever comes next removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from colorpress.core.console import warn
from colorpress.core.errors import MachineError, as_machine_error, is_disk_full
from colorpress.core.text import is_utf8

# In the name of a file that is being written, between its own and the suffix.
TEMPORARY = ".colorpress-tmp"
_LOCK = ".lock"
_SCRATCH, _SCRATCH_PREFIX = ".scratch", "colorpress-work-"
# The folders whose locks this process holds, each with the device and inode of its lock file.
_held: dict[Path, tuple[int, int]] = {}


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the one-writer lock of an output folder; makes the folder, and sweeps what killed runs left in it.

    Raises:
        MachineError: another process holds the lock, the folder cannot be written, or it was removed or replaced
            inside the block.
    """
    from filelock import FileLock, Timeout

    lock_path, absolute = folder / _LOCK, folder.absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(lock_path)
        lock.acquire(timeout=0)
    except Timeout:
        holder = lock_path.read_text(errors="replace").strip() or "another process"
        raise MachineError(
            "folder", folder, f"locked by {holder}", "wait for that run to end, or choose another --output-dir"
        ) from None
    except OSError as error:
        raise as_machine_error(error, folder) from error
    try:
        try:
            lock_path.write_text(f"pid {os.getpid()}")
            _held[absolute] = _identity_of(lock_path.lstat())
        except OSError as error:
            raise as_machine_error(error, lock_path) from error
        _sweep_run(folder)
        yield
        require_still_locked(folder)
    finally:
        _held.pop(absolute, None)
        lock.release()


def _sweep_run(folder: Path) -> None:
    """Remove what killed runs left in a locked folder; others in it are left alone, whose own runs may be writing."""
    shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
    for stale in folder.rglob(f".*{TEMPORARY}*"):
        inner = stale.relative_to(folder).parents
        if not any((folder / parent / _LOCK).exists() for parent in inner if parent != Path()):
            remove_abandoned(stale)


def require_still_locked(path: Path) -> None:
    """Refuse to write where the locked folder is no longer the one that was locked: it would be made again, unlocked.

    Raises:
        MachineError: it, or its lock, was removed or replaced.
    """
    path = path.absolute()
    for folder, lock in _held.items():
        if path.is_relative_to(folder) and _identity(folder / _LOCK) != lock:
            why = "was removed or replaced while it was being written to"
            raise MachineError("folder", folder, why, "run the same command again, and leave the folder where it is")


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder for files that nobody keeps, removed at the end.

    It lies in the output folder that this process has locked, else where the system keeps temporary files. What a
    killed process left there is removed by the next one.

    Raises:
        MachineError: it cannot be made, or the disk became full inside the block.
    """
    with _scratch_base() as base:
        try:
            folder, claim = _make_scratch(base)
        except OSError as error:
            raise as_machine_error(error, base) from error
        try:
            yield folder
        except OSError as error:
            if is_disk_full(error) and error.filename is None:  # of a write, which does not say where
                raise as_machine_error(error, folder) from error
            raise
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(claim)


@contextmanager
def _scratch_base() -> Iterator[Path]:
    """What folders for passing work lie in: that of a locked output folder goes with the last of them."""
    # Libraries write there, so it has to have a name that they can be told.
    locked = next((folder for folder in reversed(_held) if is_utf8(folder)), None)
    if locked is None:
        yield Path(tempfile.gettempdir())
        return
    base = locked / _SCRATCH
    require_still_locked(base)
    try:
        base.mkdir(exist_ok=True)
    except OSError as error:
        raise as_machine_error(error, base) from error
    try:
        yield base
    finally:
        with suppress(OSError):  # another thread's may be there still
            base.rmdir()


def _make_scratch(base: Path) -> tuple[Path, int]:
    for stale in base.glob(f"{_SCRATCH_PREFIX}*"):
        remove_abandoned(stale)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SCRATCH_PREFIX, dir=base))
        claim = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
        if claim_path(claim, folder):
            return folder, claim


def claim_path(descriptor: int, path: Path) -> bool:
    """Lock what is open at `path` for as long as this process lives; False, and closed, where a sweeper was faster."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_claimed = _identity(path) == _identity_of(os.fstat(descriptor))
    except BlockingIOError:  # about to be removed
        is_claimed = False
    except OSError:  # a file system without such locks: nothing is swept there either
        is_claimed = True
    if not is_claimed:
        os.close(descriptor)
    return is_claimed


def remove_abandoned(path: Path) -> None:
    """Remove a temporary file or folder of this user's whose process has died; whatever else it is stays."""
    with suppress(OSError):
        if path.lstat().st_uid != os.geteuid():
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


@contextmanager
def measuring_alone(patience_s: float = 300.0) -> Iterator[None]:
    """Within the block no other process of this user measures on this machine, as far as that can be had.

    Args:
        patience_s: after so long another one is taken for stuck; the block is entered all the same, with a warning.
    """
    from filelock import FileLock, Timeout

    with ExitStack() as held:
        try:
            lock = FileLock(_runtime_folder() / "colorpress-latency.lock")
            held.enter_context(lock.acquire(timeout=patience_s))
        except Timeout:
            warn(f"what is timed here may be slowed by another process, which has held {lock.lock_file} for long")
        except OSError as error:
            warn(f"what is timed here may be slowed by other processes of colorpress: {error}")
        yield


def _runtime_folder() -> Path:
    """A folder of this user's that no other can enter: XDG_RUNTIME_DIR, or one among the temporary files.

    Raises:
        OSError: there is none; another user may have taken its name.
    """
    given = os.environ.get("XDG_RUNTIME_DIR")
    if given and _is_private(Path(given)):
        return Path(given)
    folder = Path(tempfile.gettempdir()) / f"colorpress-{os.geteuid()}"
    with suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    if not _is_private(folder):
        raise PermissionError(f"'{folder}' is no folder of this user's alone")
    return folder


def _is_private(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _identity(path: Path) -> tuple[int, int] | None:
    """Device and inode of what is at a path now; None where nothing is."""
    try:
        return _identity_of(path.lstat())
    except OSError:
        return None


def _identity_of(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
