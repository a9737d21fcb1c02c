"""The one door to matplotlib: figures that are written atomically, and what charts of all stages share."""

from __future__ import annotations

import math
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
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox
    from numpy.typing import NDArray

# Where a label may stand from its point, in points of 1/72 inch: nearest places first.
_LABEL_PLACES = tuple(
    (far * 9.0 * math.cos(math.radians(angle)), far * 9.0 * math.sin(math.radians(angle)))
    for far in (1.0, 1.5, 2.2, 3.0, 4.0, 5.2, 6.6, 8.2, 10.0)
    for angle in (25, -25, 155, -155, 90, -90, 55, -55, 125, -125, 0, 180)
)
# Between two labels, so that two numbers are not read as one: in points.
_LABEL_GAP = 2.0
# Of the marker that no label may cover, in points.
_POINT_RADIUS = 3.0
# In inches and points. A telephone shows a chart at 358 pixels, on which text of so many points has 8.
CHART_WIDTH = 6.0
SMALLEST_TEXT = 10


@contextmanager
def drawn(path: Path, *, height: float, width: float = CHART_WIDTH, dpi: int = 200) -> Iterator[Figure]:
    """Yield an empty figure of `width` x `height` inches, which is written to `path` when the block ends.

    A chart of the report keeps its width, and no text in it is smaller than SMALLEST_TEXT. `dpi` is for screens with
    two pixels where others have one.

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

    # Less than two decades have too few powers of ten to read a value by, and more have no room for others.
    span = max(values) / min(values)
    digits = (1.0, 2.0, 5.0) if span < 20 else (1.0, 3.0) if span < 100 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=digits))
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
    figure.legend(handles=handles, loc="outside lower center", ncols=min(3, max(1, len(handles))), frameon=False)


def place_labels(axes: Axes, annotations: Sequence[Annotation]) -> None:
    """Move each label to the nearest place where it covers no other label and no point, inside the axes.

    One that finds no place is hidden: a point without a label misleads less than two labels over each other.
    """
    from matplotlib.text import Text

    pixels = axes.get_figure(root=True).dpi / 72  # type: ignore[union-attr]  # of a point
    taken: list[Bbox] = [_point_box(axes, annotation, _POINT_RADIUS * pixels) for annotation in annotations]
    taken += [text.get_window_extent() for text in axes.texts if text not in annotations]
    frame = axes.get_window_extent()
    for annotation in annotations:
        for place in _LABEL_PLACES:
            _move(annotation, place)
            box = Text.get_window_extent(annotation)  # of the text alone, without the line to its point
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box.padded(_LABEL_GAP * pixels))
                break
        else:
            annotation.set_visible(False)


def _move(annotation: Annotation, place: tuple[float, float]) -> None:
    annotation.set_position(place)
    annotation.set_horizontalalignment("left" if place[0] > 2 else "right" if place[0] < -2 else "center")
    # A line only to labels that do not touch their point.
    if annotation.arrow_patch is not None:
        annotation.arrow_patch.set_visible(math.hypot(*place) > 16)


def _point_box(axes: Axes, annotation: Annotation, radius: float) -> Bbox:
    from matplotlib.transforms import Bbox

    x, y = axes.transData.transform(annotation.xy)
    return Bbox.from_extents(x - radius, y - radius, x + radius, y + radius)
