"""What a run could not make of this network: a row that says why, in the place of a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from traceback import extract_tb

from benchmarks.rows import NOT_MADE, Row
from benchmarks.variants import Variant
from colorpress.core.console import warn
from colorpress.core.errors import ColorpressError, ConfigError, MachineError
from compress.precisions import origin_of

_CHECKPOINT = ".pt"


@dataclass(frozen=True)
class LeftOut:
    """A file that could not be made, so that nothing was made from it either.

    Attributes:
        name: as its row would be called: "pruned.pt" before its export, "pruned" and "pruned-int8".
        error: what stood in the way.
    """

    name: str
    error: Exception

    @property
    def is_of_the_network(self) -> bool:
        """Whether the network is the cause; else an option of the user's is, or a fault of this program."""
        return isinstance(self.error, ColorpressError) and not isinstance(self.error, ConfigError)

    @property
    def why(self) -> str:
        """In one line."""
        if isinstance(self.error, ColorpressError):
            return f"{self.error}; {self.error.hint}"
        where = extract_tb(self.error.__traceback__)[-1]
        text = " ".join(str(self.error).split())[:200]
        return f"internal: {type(self.error).__name__} at {Path(where.filename).name}:{where.lineno}: {text}"

    def covers(self, variant: str) -> bool:
        """Whether a variant is this one or made from it; such a file in a run folder is of an earlier run."""
        if origin_of(variant.removesuffix(_CHECKPOINT)) != origin_of(self.name.removesuffix(_CHECKPOINT)):
            return False
        return self.name == variant or self.name.endswith(_CHECKPOINT) or (
            origin_of(self.name) == self.name and not variant.endswith(_CHECKPOINT)
        )  # fmt: skip

    def as_row(self, best: Row) -> Row:
        """A row without figures, measured as best.pt is: not at all."""
        precision = "" if origin_of(self.name) == self.name else self.name.removeprefix(f"{origin_of(self.name)}-")
        return Row(
            model=self.name, variant=self.name, runtime="", device=best.device, precision=precision, size_bytes=0,
            batch=best.batch, height=best.height, width=best.width, threads=best.threads,
            status=NOT_MADE, error=self.why,
        )  # fmt: skip


@contextmanager
def going_on(left_out: list[LeftOut], name: str) -> Iterator[None]:
    """Within the block a file is made; where that cannot be done it is said, and the run goes on without it.

    A machine that fails (MachineError, no memory) fails everything, so it is raised.

    Args:
        left_out: is added to. name: see `LeftOut`.
    """
    try:
        yield
    except (MachineError, MemoryError):
        raise
    except Exception as error:  # a network of any kind fails in any way
        left_out.append(LeftOut(name, error))
        warn(f"{name} is left out: {left_out[-1].why}")


def without_left_out(variants: Sequence[Variant], left_out: Sequence[LeftOut]) -> list[Variant]:
    """The variants that are of this run."""
    return [each for each in variants if not any(one.covers(each.name) for one in left_out)]
