"""The one door to matplotlib: figures that are written atomically, and what charts of all stages share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from colorpress.core.files import atomic_write
from colorpress.core.text import format_bytes, format_number

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from numpy.typing import NDArray


@contextmanager
def drawn(path: Path, *, width: float, height: float, dpi: int = 110) -> Iterator[Figure]:
    """Yield an empty figure of `width` x `height` inches, which is written to `path` when the block ends.

    Raises:
        MachineError: the file cannot be written.
    """
    # Without pyplot: no window system is looked for, and nothing stays in memory.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=dpi, layout="constrained")
    FigureCanvasAgg(figure)
    yield figure
    with atomic_write(path) as temporary:
        figure.savefig(temporary)


def format_cost(column: str) -> Callable[[float], str]:
    """How "size_bytes" or "p50_ms" is written on an axis."""
    if column == "size_bytes":
        return lambda value: format_bytes(int(value))
    return lambda value: format_number(value, " ms")


def number_log_axis(axes: Axes, values: Sequence[float], show: Callable[[float], str]) -> None:
    """Number the logarithmic x axis of some values, each tick as `show` writes it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    # Less than two decades have too few powers of ten to read a value by.
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if max(values) / min(values) < 100 else (1.0,)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: show(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())


def paint_values(values: NDArray[np.float32], colour_map: str) -> NDArray[np.uint8]:
    """Values from 0 to 1 as RGB (..., 3) in a colour map of matplotlib's; what is outside has the colour of its end."""
    import matplotlib
    import numpy as np

    return np.asarray(matplotlib.colormaps[colour_map](np.clip(values, 0.0, 1.0), bytes=True)[..., :3])


def font_path() -> Path:
    """DejaVu Sans, which knows more of the world's letters than Pillow's own font."""
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"


def number_in_thousands(axes: Axes) -> None:
    """Number the x axis with prefixes: "2 M"."""
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=" "))


def shade_of(value: float) -> tuple[float, float, float, float]:
    """A colour for a value from 0, dark, to 1, bright, which tells them apart in grey too."""
    from matplotlib import colormaps

    return colormaps["viridis"](value)


def explain_colours(figure: Figure, colours: Mapping[str, tuple[float, float, float, float]]) -> None:
    """Say below the panels what each colour means."""
    from matplotlib.patches import Patch

    handles = [Patch(color=colour, label=label) for label, colour in colours.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(8, max(1, len(handles))), frameon=False)
