"""The machine a benchmark ran on, read from the operating system in milliseconds."""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Any

from colorpress.core.cores import cpu_flags, usable_cores

# The instruction sets that decide how fast float32, bfloat16 and int8 are on a CPU.
_FLAGS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimd", "i8mm")
_LIBRARIES = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxruntime-qnn",
    "openvino",
    "ai-edge-litert",
    "executorch",
    "torch-pruning",
    "numpy",
    "pillow",
)


def describe_machine() -> dict[str, Any]:
    """CPU, cores, instruction sets, memory and its limit, system, library versions and GPU, as JSON-ready values."""
    import psutil

    flags = cpu_flags()
    return {
        "cpu": _cpu_name() or platform.processor() or platform.machine(),
        "cores_physical": psutil.cpu_count(logical=False),
        "cores_logical": psutil.cpu_count(),
        "cores_usable": usable_cores(),
        "instruction_sets": [flag for flag in _FLAGS if flag in flags],
        "governor": _read_text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "memory_bytes": psutil.virtual_memory().total,
        "memory_limit_bytes": memory_limit_bytes(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": _library_versions(),
        **_describe_torch(),
    }


def memory_limit_bytes() -> int | None:
    """What the container of this process may use; None where nothing limits it."""
    limit = _read_text("/sys/fs/cgroup/memory.max") or _read_text("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    # Version 1 of cgroups says "no limit" with a number near 2^63.
    return int(limit) if limit and limit.isdigit() and int(limit) < 2**60 else None


@cache
def total_memory_bytes() -> int:
    """What a process may use on this machine, were it alone: all that there is, or the limit of its container."""
    import psutil

    total: int = psutil.virtual_memory().total
    return min(total, memory_limit_bytes() or total)


def free_memory_bytes() -> int:
    """What this process may still take: what is free on the machine, or the limit of its container if less."""
    import psutil

    available: int = psutil.virtual_memory().available
    return min(available, memory_limit_bytes() or available)


def _cpu_name() -> str:
    pairs = (line.partition(":") for line in (_read_text("/proc/cpuinfo") or "").splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == "model name"), "")


def _read_text(path: str) -> str | None:
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def installed_version(distribution: str) -> str | None:
    """The version of a package; None where it is not installed."""
    from importlib import metadata  # it imports the parser of mails, which no start of a command should wait for

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _library_versions() -> dict[str, str]:
    return {name: version for name in _LIBRARIES if (version := installed_version(name))}


def _describe_torch() -> dict[str, Any]:
    import torch

    gpus = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"torch_cpu_capability": torch.backends.cpu.get_cpu_capability(), "gpus": gpus, "cuda": torch.version.cuda}


def machine_key() -> dict[str, Any]:
    """What a measured time depends on of this machine: all that `describe_machine` says but memory, which varies."""
    return {name: value for name, value in describe_machine().items() if not name.startswith("memory")}
