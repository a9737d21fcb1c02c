"""What this machine has, for a person who asks why something does not work or is slow."""

from __future__ import annotations

import platform
import shutil
from importlib import metadata
from pathlib import Path
from typing import Any

from colorpress import __version__

_REQUIRED = (
    "torch", "onnx", "onnxscript", "onnxruntime", "torch-pruning", "numpy", "pandas", "matplotlib", "pillow",
    "click", "rich", "jinja2", "psutil", "scikit-image", "filelock",
)  # fmt: skip
_OPTIONAL = {
    "onnxruntime-gpu": "times ONNX models on a CUDA device (pip install -e '.[gpu]')",
}


def describe_environment() -> dict[str, Any]:
    """Versions, processor, runtimes and what is missing, as JSON-ready values."""
    versions = {name: _version(name) for name in (*_REQUIRED, *_OPTIONAL)}
    missing = [f"{name}: required" for name in _REQUIRED if versions[name] is None]
    missing += [f"{name}: {why}" for name, why in _OPTIONAL.items() if versions[name] is None]
    found = {
        "colorpress": __version__,
        "python": platform.python_version(),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "versions": versions,
        "missing": missing,
    }
    # Only now what needs those packages: a missing one must not keep doctor from saying so.
    return {**found, **_describe_processors()} if all(versions[name] for name in _REQUIRED) else found


def _describe_processors() -> dict[str, Any]:
    import onnxruntime
    import torch

    from colorpress.core.machine import describe_machine
    from compress.int8.int8_choice import has_vnni

    # What is said of the machine beside its libraries, which stand below.
    machine = {key: value for key, value in describe_machine().items() if value and key not in ("python", "libraries")}
    advice = []
    if not has_vnni():
        advice.append("no VNNI: int8 runs without its fast instructions and may be slower than float here")
    if not torch.cuda.is_available():
        advice.append("no CUDA device: GPU rows are left out of benchmarks")
    return {
        "machine": machine,
        "onnxruntime_providers": onnxruntime.get_available_providers(),
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
        "advice": advice,
    }


def format_environment(found: dict[str, Any]) -> str:
    """`describe_environment`'s answer as lines for a terminal."""
    lines = [f"colorpress {found['colorpress']}, Python {found['python']}"]
    lines += [f"  {key}: {_flat(value)}" for key, value in found.get("machine", {}).items()]
    if "machine" in found:
        lines.append(f"  ONNX Runtime providers: {_flat(found['onnxruntime_providers'])}")
        lines.append(f"  CUDA devices: {_flat(found['cuda_devices']) or 'none'}")
    lines.append(f"  free disk: {found['free_disk_gb']} GB")
    lines.append(
        "packages: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    )
    lines += [f"missing  {each}" for each in found["missing"]]
    lines += [f"note     {each}" for each in found.get("advice", [])]
    return "\n".join(lines)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
