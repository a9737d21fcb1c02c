"""What a variant's weights are stored in: one table, which everything that tells precisions apart reads.

A new one is an entry here and what makes its file: a packer in `compress.packing`, or a command of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

# Operators whose sums are integers; a QDQ file quantizes activations for them.
_INTEGER_PREFIXES = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinear")


def _never(_operators: Collection[str], _types: Collection[str]) -> bool:
    return False


@dataclass(frozen=True)
class Precision:
    """How a kind of file stores its weights, and computes with them.

    Attributes:
        name: as in a file's metadata.
        ending: of a variant's name, after that of the float32 one it is made from.
        made_by: the command of colorpress that makes such a file; `pack` takes the name.
        exact: whether it has to answer as PyTorch does, within `--atol`.
        calibrates: whether its file is made by looking at training photographs.
        stores: how many weights there are in each element of a uint8 tensor.
        computes: "int8" where convolutions compute in it; empty where in what the runtime chooses.
        describe: for the reader of `--help`.
        shows: whether a graph that does not say its precision is of this one, from its operators and the types of its
            weights; asked in the order of the table.
    """

    name: str
    ending: str = ""
    made_by: str = ""
    exact: bool = False
    calibrates: bool = False
    stores: int = 1
    computes: str = ""
    describe: str = ""
    shows: Callable[[Collection[str], Collection[str]], bool] = _never


PRECISIONS: Mapping[str, Precision] = {
    each.name: each
    for each in (
        Precision("fp32", "", "export", exact=True),
        Precision(
            "int8",
            "-int8",
            "quantize",
            calibrates=True,
            computes="int8",
            shows=lambda operators, _: any(each.startswith(_INTEGER_PREFIXES) for each in operators),
        ),
        Precision(
            "w4",
            "-w4",
            "pack",
            calibrates=True,
            stores=2,
            describe="4 bits, two to a byte, with a scale per channel, for the smallest files",
            # Two weights in a byte are parted by Floor.
            shows=lambda operators, types: (
                not {"int4", "uint4"}.isdisjoint(types) or ("Floor" in operators and "uint8" in types)
            ),
        ),
        Precision(
            "w8",
            "-w8",
            "pack",
            describe="8 bits with a scale per channel",
            shows=lambda operators, types: "DequantizeLinear" in operators or not {"int8", "uint8"}.isdisjoint(types),
        ),
        Precision("fp16", "-fp16", "pack", describe="half precision", shows=lambda _, types: "float16" in types),
    )
}
FLOAT = PRECISIONS["fp32"]


def find_precision(name: str) -> Precision:
    """The entry of a name; of one that only another tool knows, an entry without any claim."""
    return PRECISIONS.get(name, Precision(name))


def recognize_precision(operators: Collection[str], types: Collection[str]) -> Precision:
    """The precision of a graph that does not say it.

    Args:
        operators: the types of its nodes.
        types: of its weights, such as "float32".
    """
    return next((each for each in PRECISIONS.values() if each.shows(operators, types)), FLOAT)


def variant_name(origin: str, precision: str) -> str:
    """What the version of a float32 variant in another precision is called: "pruned-int8" of "pruned"."""
    return origin + PRECISIONS[precision].ending


def variant_names(origin: str) -> tuple[str, ...]:
    """What all versions of a float32 variant are called, itself first."""
    return tuple(variant_name(origin, precision) for precision in PRECISIONS)


def origin_of(name: str) -> str:
    """The float32 variant that one was made from: "pruned" of "pruned-int8", and of "pruned" itself."""
    endings = (each.ending for each in PRECISIONS.values() if each.ending)
    return next((name.removesuffix(ending) for ending in endings if name.endswith(ending)), name)
