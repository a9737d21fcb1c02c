"""What this machine has, for a person who asks why something does not work or is slow."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from colorpress import __version__
from colorpress.core.errors import ColorpressError, MachineError
from colorpress.core.machine import describe_machine, installed_version
from colorpress.core.text import format_bytes

# What an extra is for; those for working on colorpress itself are nobody's loss.
_EXTRAS = {
    "gpu": "times ONNX models on a CUDA device",
    "openvino": "runs and times models in OpenVINO",
    "fast": "colours large photographs in less time",
    "heif": "reads photographs of type HEIC",
    "webgpu": "runs models on GPUs of any make through WebGPU",
    "qnn": "runs models on Qualcomm's processors",
    "litert": "writes and runs .tflite files for phones",
    "executorch": "writes and runs .pte files for phones",
    "peers": "makes other tools' int8 to compare with",
    "postgres": "shares a search through PostgreSQL",
}


def list_packages() -> dict[str, str]:
    """The packages that colorpress may need here, by its own metadata: "required", or what the first extra is for."""
    try:
        requirements = [Requirement(line) for line in metadata.requires("colorpress") or ()]
    except metadata.PackageNotFoundError:  # run from a folder that is not installed
        return {"colorpress": "its packages are not known (pip install -e .)"}
    purposes = {"": "required", **{extra: f"{what} (pip install -e '.[{extra}]')" for extra, what in _EXTRAS.items()}}
    found: dict[str, str] = {}
    for extra, purpose in purposes.items():
        for each in requirements:
            if each.marker is None or each.marker.evaluate({"extra": extra}):
                found.setdefault(each.name, purpose)
    return found


def describe_environment() -> dict[str, Any]:
    """Versions, processor, runtimes and what is missing, as JSON-ready values."""
    packages = list_packages()
    versions = {name: installed_version(name) for name in packages}
    found = {
        "colorpress": __version__,
        "python": platform.python_version(),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "versions": versions,
        "missing": [f"{name}: {purpose}" for name, purpose in packages.items() if versions[name] is None],
    }
    # Only now what needs those packages: a missing one must not keep doctor from saying so.
    complete = all(versions[name] for name, purpose in packages.items() if purpose == "required")
    return {**found, **_describe_processors()} if complete else found


def _describe_processors() -> dict[str, Any]:
    import onnxruntime
    import torch

    from compress.int8.int8_choice import has_vnni
    from export.runtimes import RUNTIMES

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
        "runtimes": {name: describe_runtime(name) for name in RUNTIMES},
        "advice": advice,
    }


def describe_runtime(name: str) -> dict[str, Any]:
    """Whether a runtime of the table is here, and, where it computes elsewhere than on the CPU, a convolution on it.

    Returns:
        title, status ("ok", "absent" or "fails"), why (empty where ok), hint, and `probe`, see
        `export.device_probe.probe_runtime`.
    """
    from export.device_probe import probe_runtime
    from export.runtimes import RUNTIMES

    runtime = RUNTIMES[name]
    found: dict[str, Any] = {"title": runtime.title, "status": "ok", "why": "", "hint": ""}
    try:
        runtime.require()
    except MachineError as error:
        return {**found, "status": "absent", "why": error.why, "hint": error.hint}
    if runtime.provider in ("", "cpu"):
        return found
    try:
        return {**found, "probe": probe_runtime(name)}
    except ColorpressError as error:
        return {**found, "status": "fails", "why": error.why, "hint": error.hint}


def format_environment(found: dict[str, Any]) -> str:
    """`describe_environment`'s answer as lines for a terminal."""
    absent = [each.endswith(": required") for each in found["missing"]]
    ready = "packages are missing: pip install -e ." if any(absent) else "all that it needs is installed"
    lines = [f"colorpress {found['colorpress']}, Python {found['python']}: {ready}"]
    lines += [_describe_entry(key, value) for key, value in found.get("machine", {}).items()]
    if "machine" in found:
        lines.append(f"  ONNX Runtime providers: {_flat(found['onnxruntime_providers'])}")
        lines.append(f"  CUDA devices: {_flat(found['cuda_devices']) or 'none'}")
    lines.append(f"  free disk: {found['free_disk_gb']} GB")
    lines.append(
        "packages: " + ", ".join(f"{name} {version}" for name, version in found["versions"].items() if version)
    )
    lines += [
        f"{'missing ' if is_required else 'optional'} {each}"
        for is_required, each in zip(absent, found["missing"], strict=True)
    ]
    lines += [_describe_runtime(name, each) for name, each in found.get("runtimes", {}).items()]
    lines += [f"note     {each}" for each in found.get("advice", [])]
    return "\n".join(lines)


def _describe_runtime(name: str, found: Mapping[str, Any]) -> str:
    from export.device_probe import describe_probe

    probed = f": {describe_probe(found['probe'])}" if "probe" in found else ""
    said = {"ok": f"here{probed}", "absent": f"not here: {found['why']}", "fails": f"fails: {found['why']}"}
    return f"runtime  {name}, {found['title']}: {said[found['status']]}"


def _describe_entry(key: str, value: object) -> str:
    if key.endswith("_bytes") and isinstance(value, int):
        key, value = key.removesuffix("_bytes"), format_bytes(value)
    return f"  {key.replace('_', ' ')}: {_flat(value)}"


def _flat(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
