"""How many processors this process may use, and what they can do."""

from __future__ import annotations

import math
import os
from pathlib import Path

_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_WAITING = {"OMP_WAIT_POLICY": "PASSIVE"}
_set_here: set[str] = set()


def let_waiting_threads_sleep() -> None:
    """Threads of PyTorch that wait for each other give their processor away; to be called before PyTorch is imported.

    They would spin, which saves microseconds on a machine that does nothing else, and takes the time from whatever else
    runs there, loading processes too. What the environment says already stays.
    """
    for name, value in _WAITING.items():
        if name not in os.environ:
            os.environ[name] = value
            _set_here.add(name)


def given_environment() -> dict[str, str]:
    """The environment without what `let_waiting_threads_sleep` added: what is timed runs as it would elsewhere."""
    return {name: value for name, value in os.environ.items() if name not in _set_here}


def usable_cores() -> int:
    """Physical cores this process may use, by its affinity and the quota of its container; at least 1."""
    import psutil

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read_quota().partition(" ")
    if quota != "max" and period:
        cores = min(cores, math.ceil(int(quota) / int(period)))
    return max(1, min(cores, psutil.cpu_count(logical=False) or cores))


def _read_quota() -> str:
    """The container's quota: microseconds and period, or max."""
    try:
        return _CGROUP_QUOTA.read_text().strip()
    except OSError:
        return "max"


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The instruction sets of the processor as the kernel names them, such as avx512_bf16; empty where it is silent."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return frozenset()
    found = (line.partition(":") for line in lines)
    return next(
        (frozenset(text.split()) for key, _, text in found if key.strip() in ("flags", "Features")), frozenset()
    )
