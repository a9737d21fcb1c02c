"""What the pickle in a PyTorch file declares, looked at before PyTorch acts on it, and the numpy values it may hold.

`torch.load(weights_only=True)` runs no code of a file, but it allocates whatever the file declares: 600 bytes can ask
for 64 GiB. So the pickle is first gone through here, where a tensor is no more than its storage, size and strides: what
is neither weights nor a plain value is refused by its name, and a tensor has to lie in bytes that the file has.
"""

from __future__ import annotations

import math
import pickletools
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

# Of plain values: a million losses or words beside the weights are more than anybody keeps.
_MOST_OPERATIONS = 3_000_000
_MOST_DIMENSIONS = 64
# Tensors that are views of one storage may declare this many times the bytes of the file in all.
_MOST_SHARED = 4
COPY_AGAIN = "copy or download the file again"
SAVE_WEIGHTS = "save the weights alone, torch.save(network.state_dict(), 'weights.pt'), and give that file"
_SAVE_DENSE = "save dense float32 tensors: torch.save({k: v.float() for k, v in network.state_dict().items()}, 'w.pt')"
_SAVE_CONTIGUOUS = (
    "save each tensor by itself: torch.save({k: v.contiguous() for k, v in network.state_dict().items()}, 'w.pt')"
)
_OTHER_TENSORS = {
    "torch._utils._rebuild_sparse_tensor": "a sparse tensor",
    "torch._utils._rebuild_qtensor": "a quantized tensor",
    "torch._utils._rebuild_meta_tensor_no_storage": "a tensor without values (device meta)",
    "torch._utils._rebuild_nested_tensor": "a nested tensor",
    "torch._utils._rebuild_wrapper_subclass": "a tensor of another class",
    "torch._utils._rebuild_device_tensor_from_numpy": "a tensor of another device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "a tensor of another device",
    "torch._tensor._rebuild_from_type_v2": "a tensor of another class, or with attributes",
    "torch._utils._rebuild_parameter_with_state": "a parameter with attributes",
}
_FUNCTIONS = {
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    "collections.OrderedDict",
    "collections.Counter",
    "builtins.bytearray",
    "builtins.complex",
    "builtins.set",
    "_codecs.encode",
}
_STORAGE_DTYPES = {
    "BFloat16Storage": "bfloat16",
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ComplexDoubleStorage": "complex128",
    "ComplexFloatStorage": "complex64",
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "ShortStorage": "int16",
}
_NUMPY_NUMBERS = r"b1|[iu][1248]|f[248]"
_NUMPY_TEXTS = r"[US]\d{1,6}"


class PickleError(Exception):
    """Why a pickle is not taken, and what to do; for the reader of the file, who knows its path."""

    def __init__(self, why: str, hint: str) -> None:
        super().__init__(why)
        self.why, self.hint = why, hint


class NumpyType:
    """What a pickle says of a numpy dtype: a number, a truth value or a text.

    Raises:
        ValueError: it is of another kind.
    """

    def __init__(self, code: str, align: object = False, copy: object = True) -> None:
        if not re.fullmatch(f"{_NUMPY_NUMBERS}|{_NUMPY_TEXTS}", code):
            raise ValueError("numpy values of another kind")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Sequence[Any]) -> None:
        # Version, byte order, sub-array, names, fields: numbers and texts have none of the last three.
        if any(part is not None for part in state[2:5]):
            raise ValueError("numpy records")
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray:
    """An array in a pickle, first empty, then with the values that `__setstate__` is given."""

    def __init__(self, *_: object) -> None:
        self.values: NDArray[Any] = np.empty(0)

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, shape, kind, by_columns, raw = state
        if math.prod(shape) * kind.dtype.itemsize != len(raw):
            raise ValueError("an array of another size than its shape says")
        self.values = np.frombuffer(raw, kind.dtype).reshape(shape, order="F" if by_columns else "C")

    def as_plain(self) -> Any:
        """A tensor; of texts a list."""
        values = self.values.astype(self.values.dtype.newbyteorder("="))
        return values.tolist() if values.dtype.kind in "US" else torch.from_numpy(values)


def make_numpy_scalar(kind: NumpyType, raw: bytes) -> Any:
    """The Python value of a numpy scalar."""
    if len(raw) != kind.dtype.itemsize:
        raise ValueError("a number of another size than its kind says")
    return np.frombuffer(raw, kind.dtype)[0].item()


def make_dictionary(*_: object) -> dict[Any, Any]:
    """A dictionary, in the place of one with defaults."""
    return {}


def _no_instance(*_: object) -> None:
    raise ValueError("an instance of a class that only names a kind")


# All that is taken beside what PyTorch takes of itself: each name stands for a function of this module, and nothing of
# numpy is called. Those of numpy 1 and 2.
SAFE_GLOBALS: Mapping[str, Callable[..., Any]] = {
    "numpy.dtype": NumpyType,
    "numpy.ndarray": _no_instance,
    "numpy.core.multiarray.scalar": make_numpy_scalar,
    "numpy.core.multiarray._reconstruct": NumpyArray,
    "numpy._core.multiarray.scalar": make_numpy_scalar,
    "numpy._core.multiarray._reconstruct": NumpyArray,
    "collections.defaultdict": make_dictionary,
    # What a dictionary has where nothing was put.
    **{f"builtins.{name}": _no_instance for name in ("bool", "dict", "float", "int", "list", "str", "tuple")},
}


@dataclass(frozen=True)
class _Named:
    """A name in the pickle; what it stands for is not looked up."""

    name: str


@dataclass(frozen=True)
class _Storage:
    """Numbers in the file: which, of how many bytes each, and how many bytes in all."""

    key: object
    item_bytes: int
    size_bytes: int


@dataclass(frozen=True)
class _Made:
    """What a call in the pickle makes; `updated`: whether the pickle may give it attributes."""

    updated: bool = False


class PickleCheck:
    """Goes through a pickle that PyTorch is to read.

    Args:
        file_bytes: of the whole file.
        storage_bytes: of each storage by its key, as the archive says; None where they stand behind the pickle.
    Attributes:
        declared: bytes of each storage that the pickle names, by its key.
    """

    def __init__(self, file_bytes: int, storage_bytes: Mapping[str, int] | None = None) -> None:
        self.declared: dict[object, int] = {}
        self._file_bytes, self._storage_bytes = file_bytes, storage_bytes
        self._declared_bytes = self._viewed_bytes = 0
        self._views: set[tuple[object, ...]] = set()
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def read(self, pickled: bytes) -> Any:
        """What the pickle says: plain values, and marks in the place of tensors and dictionaries.

        Raises:
            PickleError: it holds code, tensors of a kind that is not taken, or declares more than the file has.
            Exception: it is damaged, in whatever way that shows.
        """
        _refuse_names(pickled)
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == "STOP":
                return self._stack.pop()
            if not (self._push(opcode.name, argument) or self._combine(opcode.name)):
                raise PickleError(f"is pickled in a way that is not read safely ({opcode.name})", SAVE_WEIGHTS)
        raise EOFError

    def _push(self, name: str, argument: Any) -> bool:
        """Do what puts one value on the stack; whether it is such an operation."""
        match name:
            case "PROTO":
                return True
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT" | "BINUNICODE" | "SHORT_BINSTRING":
                value = argument
            case "NONE" | "NEWFALSE" | "NEWTRUE":
                value = {"NONE": None, "NEWFALSE": False, "NEWTRUE": True}[name]
            case "EMPTY_TUPLE":
                value = ()
            case "EMPTY_LIST":
                value = []
            case "EMPTY_DICT" | "EMPTY_SET":
                value = _Made()
            case "BINGET" | "LONG_BINGET":
                value = self._memo[argument]
            case "GLOBAL":
                value = _Named(_full_name(argument))
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = self._stack[-1]
                return True
            case _:
                return False
        self._stack.append(value)
        return True

    def _combine(self, name: str) -> bool:
        """Do what makes one value of those on the stack; whether it is such an operation."""
        stack = self._stack
        match name:
            case "MARK":
                self._marks.append(stack)
                self._stack = []
            case "TUPLE":
                self._pop_mark().append(tuple(stack))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                stack[-2].append(stack[-1])
                stack.pop()
            case "APPENDS":
                self._pop_mark()[-1].extend(stack)
            case "SETITEM":
                _check_keys(stack[-2:-1])
                del stack[-2:]
            case "SETITEMS":
                _check_keys(stack[::2])
                self._pop_mark()
            case "BINPERSID":
                stack.append(self._find_storage(*stack.pop()))
            case "REDUCE":
                arguments, called = stack.pop(), stack.pop()
                stack.append(self._call(called.name, *arguments))
            case "BUILD":
                state = stack.pop()
                if isinstance(stack[-1], NumpyType | NumpyArray):
                    stack[-1].__setstate__(state)
                elif not stack[-1].updated:
                    raise ValueError("attributes of what has none")
            case _:
                return False
        return True

    def _pop_mark(self) -> list[Any]:
        """The stack as it was at the last mark, which is now the stack again."""
        self._stack = self._marks.pop()
        return self._stack

    def _call(self, name: str, *arguments: Any) -> Any:
        """What comes of a call that the pickle asks for."""
        match name:
            case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
                return self._check_tensor(*arguments)
            case "torch._utils._rebuild_tensor_v3":
                storage, kind = arguments[0], arguments[6]
                typed = _Storage(storage.key, _item_bytes(kind.name), storage.size_bytes)
                return self._check_tensor(typed, *arguments[1:6], *arguments[7:])
            case "torch._utils._rebuild_parameter":
                return arguments[0]
            case "_codecs.encode":
                text, encoding = arguments
                return _as_bytes(text, encoding)
            case "builtins.bytearray" if not any(type(each) is int for each in arguments):
                return _Made()
            case "builtins.set":
                _check_keys([key for some in arguments for key in some])
                return _Made()
            case "collections.OrderedDict":
                _check_keys([pair[0] for pairs in arguments for pair in pairs])
                return _Made(updated=True)
            case "collections.Counter" if all(isinstance(each, _Made) for each in arguments):  # of a dictionary
                return _Made()
            case "torch.Size" | "torch.device" | "builtins.complex":
                return _Made()
        return SAFE_GLOBALS[name](*arguments)

    def _find_storage(
        self, kind: object, named: _Named, key: object, _: object, count: int, view: Sequence[Any] | None = None
    ) -> _Storage:
        if kind not in ("storage", b"storage") or type(count) is not int or count < 0 or type(key) not in (str, int):
            raise ValueError("a storage of another kind")
        item_bytes = _item_bytes(named.name)
        size_bytes = count * item_bytes
        if self._storage_bytes is not None and self._storage_bytes.get(str(key)) != size_bytes:
            raise PickleError("declares other sizes than its records have: it is damaged", COPY_AGAIN)
        if key not in self.declared:
            self.declared[key] = size_bytes
            self._declared_bytes += size_bytes
        if self.declared[key] != size_bytes or self._declared_bytes > self._file_bytes:
            raise PickleError("declares more numbers than it holds: it is damaged", COPY_AGAIN)
        if view is not None:  # of files before PyTorch 1.6
            _, start, part = view
            if not 0 <= start <= start + part <= count:
                raise ValueError("a view beyond its storage")
            return _Storage((key, start, part), item_bytes, part * item_bytes)
        return _Storage(key, item_bytes, size_bytes)

    def _check_tensor(
        self, storage: _Storage, offset: int, size: Sequence[int], strides: Sequence[int], *more: Any
    ) -> _Made:
        """Refuse a tensor that reaches beyond its storage, or has two elements in one place."""
        numbers = (offset, *size, *strides)
        if len(size) != len(strides) or len(size) > _MOST_DIMENSIONS or not all(type(each) is int for each in numbers):
            raise ValueError("a tensor of another shape")
        if min(numbers) < 0 or max(numbers) >= 2**62:
            raise ValueError("a tensor of an impossible shape")
        reach = 1
        for stride, count in sorted(zip(strides, size, strict=True)) if all(size) else ():
            if count > 1 and stride < reach:
                raise PickleError("holds a tensor whose elements overlap, an expanded one or so", _SAVE_CONTIGUOUS)
            reach += stride * (count - 1)
        if all(size) and (offset + reach) * storage.item_bytes > storage.size_bytes:
            raise PickleError("holds a tensor that is larger than its numbers: it is damaged", COPY_AGAIN)
        place = (storage.key, offset, tuple(size), tuple(strides))
        if place not in self._views:
            self._views.add(place)
            self._viewed_bytes += math.prod(size) * storage.item_bytes
        if self._viewed_bytes > _MOST_SHARED * self._file_bytes:
            raise PickleError("holds tensors that share their numbers, larger together than the file", _SAVE_CONTIGUOUS)
        return _Made()


def _check_keys(keys: Sequence[Any]) -> None:
    """Refuse what has no business as a key: hashing a deep tuple would end the process."""
    for key in keys:
        parts = key if isinstance(key, tuple) else (key,)
        if not all(isinstance(part, str | bytes | int | float | None | _Named) for part in parts):
            raise ValueError("a key that is no name or number")


def _as_bytes(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise ValueError("bytes in another encoding")
    return text.encode("latin1")


def _item_bytes(name: str) -> int:
    """Bytes of a number in a storage or tensor of this kind."""
    kind = name.removeprefix("torch.").removeprefix("cuda.")
    if kind == "storage.UntypedStorage":
        return 1
    dtype = getattr(torch, _STORAGE_DTYPES.get(kind, kind), None)
    if not isinstance(dtype, torch.dtype):
        raise PickleError(f"holds numbers of the kind {kind}", _SAVE_DENSE)
    return dtype.itemsize


def _full_name(argument: str) -> str:
    """The name in a GLOBAL operation, "module name"; Python 3 calls some modules otherwise than Python 2."""
    module, _, name = argument.partition(" ")
    module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
    return f"{module}.{name}"


def _refuse_names(pickled: bytes) -> None:
    """Refuse a pickle that names anything but weights and plain values, or is of more operations than those need."""
    names = []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(pickled)):
        if count > _MOST_OPERATIONS:
            raise PickleError(f"holds more than {_MOST_OPERATIONS:,} values beside its weights", SAVE_WEIGHTS)
        if opcode.name in ("GLOBAL", "INST"):
            names.append(_full_name(str(argument)))
        elif opcode.name == "STACK_GLOBAL":
            why = "is pickled by a newer protocol than is read safely: perhaps it contains code, refused"
            raise PickleError(why, f"{SAVE_WEIGHTS}; leave pickle_protocol out")
    if any(name.startswith("torch.nn.modules.") for name in names):
        raise PickleError("holds a whole network with its code, not weights alone", SAVE_WEIGHTS)
    for name in names:
        if name in _OTHER_TENSORS:
            raise PickleError(f"holds {_OTHER_TENSORS[name]}", _SAVE_DENSE)
        if not _is_known(name):
            raise PickleError(f"names {name}: it contains code, refused", SAVE_WEIGHTS)


def _is_known(name: str) -> bool:
    if name in SAFE_GLOBALS or name in _FUNCTIONS:
        return True
    kind = name.removeprefix("torch.").removeprefix("cuda.")
    is_kind = kind in _STORAGE_DTYPES or kind == "storage.UntypedStorage"
    return name.startswith("torch.") and (is_kind or isinstance(getattr(torch, kind, None), torch.dtype))
