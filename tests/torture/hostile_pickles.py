"""Pickles that want to run code, or to take more memory or time than they have bytes, as files of PyTorch."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping

# A dictionary whose only key, "a", is given the value that comes next; then the end.
_HEAD, _TAIL = b"\x80\x02}X\x01\x00\x00\x00a", b"s."
_HUGE = b"\x8a\x06\x00\x00\x00\x00\x00\x01"  # 2^40
_HOOKS = b"\x89ccollections\nOrderedDict\n)R"


def as_archive(pickled: bytes, storages: Mapping[str, bytes] | None = None, *, compressed: bool = False) -> bytes:
    """A zip archive as `torch.save` writes it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as archive:
        archive.writestr("a/data.pkl", pickled)
        archive.writestr("a/version", "3\n")
        archive.writestr("a/byteorder", "little")
        for name, content in (storages or {}).items():
            archive.writestr(f"a/data/{name}", content)
    return buffer.getvalue()


def as_legacy(pickled: bytes) -> bytes:
    """A file as PyTorch wrote it before 1.6, without storages."""
    parts = [pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {})]
    return b"".join([*parts, pickled, pickle.dumps([], 2)])


def _call(module: str, name: str, arguments: bytes) -> bytes:
    return _HEAD + f"c{module}\n{name}\n".encode() + arguments + b"R" + _TAIL


def _tensor(count: bytes, size: bytes, stride: bytes, offset: bytes = b"K\x00", legacy: bool = False) -> bytes:
    view = b"N" if legacy else b""
    storage = (
        b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + count + view + b"tQ"
    )
    return _call(
        "torch._utils",
        "_rebuild_tensor_v2",
        b"(" + storage + offset + size + b"\x85" + stride + b"\x85" + _HOOKS + b"t",
    )


def _laughs(levels: int) -> bytes:
    """Lists each of which holds the one before twice."""
    parts = [b"]q\x00"]
    for level in range(levels):
        parts.append(b"]q" + bytes([level + 1]) + b"(h" + bytes([level]) + b"h" + bytes([level]) + b"e")
    pairs = b"(" + b"".join(parts) + b"t"
    return _HEAD + pairs + _TAIL


def hostile_pickles() -> dict[str, bytes]:
    """Contents of files by what they want."""
    number = b"1234"
    return {
        "os.system": as_archive(_call("posix", "system", b"X\x04\x00\x00\x00true\x85")),
        "os.system, legacy": as_legacy(_call("posix", "system", b"X\x04\x00\x00\x00true\x85")),
        "eval": as_archive(_call("builtins", "eval", b"X\x01\x00\x00\x001\x85")),
        "getattr": as_archive(_call("builtins", "getattr", b"X\x01\x00\x00\x001X\x01\x00\x00\x002\x86")),
        "import of a module": as_archive(_call("antigravity", "fly", b")")),
        "a class built": as_archive(_HEAD + b"cargparse\nNamespace\n)\x81}b" + _TAIL),
        "protocol 4": as_archive(b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R."),
        "instance by INST": as_archive(_HEAD + b"(X\x04\x00\x00\x00trueiposix\nsystem\n" + _TAIL),
        "bytes that are not there": as_archive(_call("builtins", "bytearray", _HUGE + b"\x85")),
        "a tensor by its class": as_archive(_call("torch", "Tensor", _HUGE + b"\x85")),
        "a storage by its class": as_archive(_call("torch", "FloatStorage", _HUGE + b"\x85")),
        "stride 0": as_archive(_tensor(b"K\x01", _HUGE, b"K\x00"), {"0": number}),
        "a storage of 4 TB": as_archive(_tensor(_HUGE, _HUGE, b"K\x01"), {"0": number}),
        "a storage of 4 TB, legacy": as_legacy(_tensor(_HUGE, _HUGE, b"K\x01", legacy=True)),
        "behind its storage": as_archive(_tensor(b"K\x01", b"K\x01", b"K\x01", offset=_HUGE), {"0": number}),
        "a zip bomb": as_archive(
            _tensor(b"J\x00\x00\x00\x02", b"J\x00\x00\x00\x02", b"K\x01"), {"0": bytes(1 << 27)}, compressed=True
        ),
        "lists in lists": as_archive(_HEAD + b"]" * 20_000 + b"a" * 19_999 + _TAIL),
        "tuples as a key": as_archive(b"\x80\x02}N" + b"\x85" * 100_000 + b"Ns."),
        "a billion laughs": as_archive(_laughs(60)),
        "itself": as_archive(b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s."),
        "a far place of the memo": as_archive(b"\x80\x02}r\xff\xff\xff\xff."),
        "an array of numpy": as_archive(_call("numpy", "ndarray", _HUGE + b"\x85")),
        "hooks": as_archive(_tensor(b"K\x01", b"K\x01", b"K\x01").replace(_HOOKS, b"\x89cposix\nsystem\n")),
    }
