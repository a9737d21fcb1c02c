"""What is in a file of weights, .pt or .safetensors, read without running any code it may hold."""

from __future__ import annotations

import io
import pickletools
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch
from torch import Tensor

from colorpress.core.console import say
from colorpress.core.errors import InputError
from colorpress.core.files import find_impostor
from training.pickled_weights import COPY_AGAIN, SAFE_GLOBALS, SAVE_WEIGHTS, NumpyArray, PickleCheck, PickleError

NO_CHECKPOINT = "give a checkpoint written by `colorpress train` or `colorpress prune`, or a state_dict with --arch"
_TOO_NESTED = "holds values inside each other that cannot be gone through"
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_WHOLE = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}
_MOST_RECORDS = 200_000
_MOST_LEVELS, _MOST_VALUES = 60, 10_000_000
_SAFE_GLOBALS: list[Any] = [(function, name) for name, function in SAFE_GLOBALS.items()]


def read_weights_file(path: Path, raw: bytes) -> dict[str, Any]:
    """The dictionary that a file holds: tensors and primitives, of any program.

    Args:
        raw: the content of the file. `path`: for what is said.
    Raises:
        InputError: it is damaged, is no such file, or holds code.
    """
    if impostor := find_impostor(raw[:512]):
        raise unusable_checkpoint(path, impostor)
    # The safetensors format has no magic number: a length in 8 bytes, then JSON.
    is_safetensors = path.suffix == ".safetensors" or raw[8:9] == b"{"
    return _read_safetensors(path, raw) if is_safetensors else _read_dictionary(path, raw)


def unusable_checkpoint(path: Path | None, why: str, hint: str = NO_CHECKPOINT) -> InputError:
    return InputError("checkpoint", path, why, hint)


def as_float32(path: Path, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float32; other floats are converted and said, whole numbers stay, other kinds are refused.

    Tensors that share their values go on sharing them.
    """
    converted: dict[str, Tensor] = {}
    shared: dict[tuple[Any, ...], Tensor] = {}
    kinds = set()
    for name, tensor in state_dict.items():
        kind = str(tensor.dtype).removeprefix("torch.")
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.dtype not in _FLOATS | _WHOLE:
            layout = "" if tensor.layout == torch.strided else f"{str(tensor.layout).removeprefix('torch.')} "
            raise unusable_checkpoint(path, f"{name} is {layout}{kind}", "save the weights in float32")
        if tensor.dtype in _FLOATS and tensor.dtype != torch.float32:
            kinds.add(kind)
        place = (tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride(), tensor.is_neg())
        if place not in shared:
            dense = tensor.detach().resolve_neg()
            shared[place] = (dense.float() if tensor.dtype in _FLOATS else dense).contiguous()
        converted[name] = shared[place]
    if kinds:
        say(f"'{path.name}' holds {', '.join(sorted(kinds))} weights: converted to float32")
    return converted


def match_kinds(path: Path | None, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `found`, each of the dtype that the one of its name has in `expected`; others as they are.

    Raises:
        InputError: whole numbers stand where weights are expected.
    """
    matched = {}
    for name, tensor in found.items():
        wanted = expected[name].dtype if name in expected else tensor.dtype
        if wanted.is_floating_point and not tensor.is_floating_point():
            why = f"{name} holds whole numbers ({str(tensor.dtype).removeprefix('torch.')}), not weights"
            raise unusable_checkpoint(path, why, "save the weights in float32, before they are quantized")
        matched[name] = tensor.to(wanted)
    return matched


def _read_safetensors(path: Path, raw: bytes) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return dict(load(raw))
    except (SafetensorError, KeyError, ValueError, RuntimeError, TypeError) as error:
        raise unusable_checkpoint(path, "is corrupt or truncated, or no safetensors file") from error


def _read_dictionary(path: Path, raw: bytes) -> dict[str, Any]:
    if not raw.startswith((b"PK", b"\x80")):
        raise unusable_checkpoint(path, "is not a PyTorch file")
    try:
        checked = _check_archive(raw) if raw.startswith(b"PK") else _check_pickles(raw)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_SAFE_GLOBALS):
            # Files of other programs may use newer pickle protocols; what counts is whether they can be read.
            warnings.simplefilter("ignore", UserWarning)
            content = torch.load(checked, map_location="cpu", weights_only=True)
        content = _as_plain(content)
    except PickleError as error:
        raise unusable_checkpoint(path, error.why, error.hint) from error
    except Exception as error:  # torch raises many kinds, and its text advises to read unsafely: it is not shown
        raise unusable_checkpoint(path, "is corrupt or truncated") from error
    if not isinstance(content, dict):
        raise unusable_checkpoint(path, f"holds a {type(content).__name__}, not a dictionary")
    return content


def _check_archive(raw: bytes) -> BinaryIO:
    """A zip archive of PyTorch whose records are what they say they are, written anew.

    PyTorch reads archives by a reader of its own: what it is given is what was checked here, and nothing else. It looks
    for records in the folder of the first one, whatever the case of their letters.

    Raises:
        PickleError: it is of another kind, or declares more than it has.
        zipfile.BadZipFile and others: it is damaged.
    """
    if raw.count(b"PK\x01\x02") > _MOST_RECORDS:
        raise PickleError(f"has more than {_MOST_RECORDS:,} records", SAVE_WEIGHTS)
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        records = {record.filename: record for record in archive.infolist()}
        _refuse_other_archives(records)
        if any(record.compress_type != zipfile.ZIP_STORED for record in records.values()):
            why, hint = "is a zip archive whose records are compressed", "unpack it and pack it by `zip -0 -r`"
            raise PickleError(why, f"{hint}, or save it again by torch.save")
        is_ambiguous = len({name.casefold() for name in records}) < len(archive.infolist())
        if is_ambiguous or sum(each.file_size for each in records.values()) > len(raw):
            raise PickleError("names a record twice, or declares more bytes than it has: it is damaged", COPY_AGAIN)
        contents = {name: _read_record(archive, record) for name, record in records.items()}
    folder = next(iter(contents)).partition("/")[0]
    places = (name.partition(f"{folder}/data/") for name in contents)
    storages = {key: len(contents[f"{data}{key}"]) for before, data, key in places if data and not before}
    PickleCheck(len(raw), storages).read(contents[f"{folder}/data.pkl"])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as rewritten:
        for name, content in contents.items():
            rewritten.writestr(zipfile.ZipInfo(name), content)
    buffer.seek(0)
    return buffer


def _refuse_other_archives(names: Iterable[str]) -> None:
    """Name an archive that PyTorch wrote, and that is no file of weights."""
    inside = {name.partition("/")[2] for name in names}
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        load = "network = torch.jit.load('file.pt'); torch.save(network.state_dict(), 'weights.pt')"
        raise PickleError("is a TorchScript archive: a program with its weights", f"save its weights alone: {load}")
    if "archive_format" in inside or "serialized_exported_program.json" in inside:
        load = "program = torch.export.load('file.pt2'); torch.save(dict(program.state_dict), 'weights.pt')"
        raise PickleError("is an exported program of torch.export", f"save its weights alone: {load}")


def _read_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> bytes:
    if not record.CRC:  # saved by `torch.serialization.set_crc32_options(False)`: there is none to compare with
        del record.CRC
    return archive.read(record)


def _check_pickles(raw: bytes) -> BinaryIO:
    """A file as `torch.save` wrote it before PyTorch 1.6: five pickles, and behind them each storage with its length.

    Raises:
        PickleError: it is of another kind, or declares more than it has.
        Exception: it is damaged.
    """
    check, stream, values = PickleCheck(len(raw)), io.BytesIO(raw), list[Any]()
    for _ in range(5):
        start = stream.tell()
        end = next(place for opcode, _, place in pickletools.genops(stream) if opcode.name == "STOP")
        values.append(check.read(raw[start : cast(int, end) + 1]))
        if values[0] != torch.serialization.MAGIC_NUMBER:
            raise PickleError("is a pickle that torch.save did not write", SAVE_WEIGHTS)
    place, keys = stream.tell(), values[4]
    if len(keys) != len(check.declared) or set(keys) != check.declared.keys():
        raise ValueError("other storages than the pickle names")
    for key in keys:
        place += 8 + check.declared[key]  # a length, and the numbers
    if place > len(raw):
        raise PickleError("declares more numbers than it holds: it is damaged", COPY_AGAIN)
    return io.BytesIO(raw)


def _as_plain(value: Any, known: dict[int, tuple[int, int]] | None = None) -> Any:
    """A content with tensors in the place of numpy arrays.

    Raises:
        PickleError: it is nested too deeply, in itself, or so that going through it would not end.
    """
    known = {} if known is None else known
    _measure(value, known, 0)
    return value.as_plain() if isinstance(value, NumpyArray) else value


def _measure(value: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """Levels below a value, and how many values going through all of them would meet; replaces arrays in place."""
    if not isinstance(value, dict | list | tuple | set):
        return 0, 1
    if id(value) not in known:
        if depth > _MOST_LEVELS:
            raise PickleError(_TOO_NESTED, SAVE_WEIGHTS)
        known[id(value)] = (_MOST_LEVELS, 1)  # of a value inside itself
        if isinstance(value, dict | list):
            for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
                if isinstance(item, NumpyArray):
                    value[key] = item.as_plain()
        items = value.values() if isinstance(value, dict) else value
        below = [_measure(item, known, depth + 1) for item in items]
        known[id(value)] = (1 + max((levels for levels, _ in below), default=0), 1 + sum(count for _, count in below))
    levels, count = known[id(value)]
    if depth + levels > _MOST_LEVELS or count > _MOST_VALUES:
        raise PickleError(_TOO_NESTED, SAVE_WEIGHTS)
    return levels, count
