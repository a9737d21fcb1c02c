"""ONNX Runtime for browsers: one pinned package of the npm registry, fetched once, checked, and kept for the user."""

from __future__ import annotations

import base64
import gzip
import hashlib
import http.client
import io
import os
import tarfile
import urllib.error
import urllib.request
from pathlib import Path

from colorpress.core.console import say, warn
from colorpress.core.errors import MachineError
from colorpress.core.files import write_bytes

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"
# The registry's own dist.integrity of that version.
INTEGRITY = "sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
# The smallest build without WebGPU and the smallest with it; a browser loads the two files of one of them. The registry
# has none that was reduced to a model's operators.
RUNTIMES = {
    "wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.jspi.bundle.min.mjs", "ort-wasm-simd-threaded.jspi.wasm"),
}
_REGISTRY = "https://registry.npmjs.org"
_LARGEST_BYTES = 200_000_000
_TIMEOUT_SECONDS = 60.0


def read_web_runtimes() -> dict[str, dict[str, bytes]]:
    """The files of each of RUNTIMES by name, from the user's cache or else from the npm registry.

    Programs are packed as gzip files, a quarter of their size, which the page unpacks: many servers compress no .wasm.
    The registry is the one in the environment variable npm_config_registry, or npm's own; the cache is in
    XDG_CACHE_HOME, or else in ~/.cache. What does not have the pinned SHA-512 is never used, nor kept.

    Raises:
        MachineError: the registry cannot be reached, or what it sent is another file.
    """
    kept = cached_package()
    content = kept.read_bytes() if kept.is_file() else None
    if content is None or not _is_the_one(content):
        content = _download(kept)
        try:
            write_bytes(kept, content)
        except MachineError as error:
            warn(f"{error}; it will be downloaded again next time")
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as archive:
        return {runtime: dict(_take(archive, name) for name in names) for runtime, names in RUNTIMES.items()}


def _take(archive: tarfile.TarFile, name: str) -> tuple[str, bytes]:
    """A file of the package as the page loads it: its name and content."""
    stream = archive.extractfile(f"package/dist/{name}")
    content = stream.read() if stream else b""
    return (f"{name}.gz", gzip.compress(content, mtime=0)) if name.endswith(".wasm") else (name, content)


def cached_package() -> Path:
    """Where the package is kept, or would be."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "colorpress" / f"{PACKAGE}-{VERSION}.tgz"


def _is_the_one(content: bytes) -> bool:
    digest = base64.b64encode(hashlib.sha512(content).digest()).decode("ascii")
    return f"sha512-{digest}" == INTEGRITY


def _download(kept: Path) -> bytes:
    environment = os.environ
    registry = environment.get("npm_config_registry") or environment.get("NPM_CONFIG_REGISTRY") or _REGISTRY
    url = f"{registry.rstrip('/')}/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
    # urllib would also open file: and ftp:.
    if not url.startswith(("https://", "http://")):
        raise MachineError("registry", registry, "is no web address", "correct npm_config_registry, or use --no-web")
    say(f"downloading {PACKAGE} {VERSION}, once")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            content: bytes = answer.read(_LARGEST_BYTES)
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        hint = f"leave the page out with --no-web, or put the file at {kept}"
        raise MachineError("download", url, f"failed: {reason}", hint) from error
    if not _is_the_one(content):
        hint = "try again, set npm_config_registry to another registry, or leave the page out with --no-web"
        raise MachineError("download", url, "is not the file that was expected: its SHA-512 differs", hint)
    return content
