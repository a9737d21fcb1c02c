"""Layers ranked by what they hold, what they cost and what they mean for the colour: the views do not agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import ceil, floor, log10, prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colorpress.core.charts import SMALLEST_TEXT, drawn, explain_colours, shade_of
from colorpress.core.errors import printable
from colorpress.core.files import write_csv
from compress.measures import Measure
from compress.ranking import LayerSize, join_words, shape_text
from compress.sensitivity import Sensitivity

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# More rows than this are not legible in one picture.
_MOST_ROWS = 24
_LONGEST_NAME = 16
# How many of the largest layers are looked for among the slowest.
_TOP = 5
# A share of colour that is less is nothing, and an order of such losses is one by chance.
_LEAST_LOSS = 0.005


@dataclass(frozen=True)
class LayerView:
    """A convolution in all views; None where it cannot be told.

    Attributes:
        rank: 1 is the convolution with most parameters.
        name, type, shape: as `LayerSize` has them; `shape` is that of the output.
        params, macs: parameters and multiply-accumulates; `_pct` of all the network's.
        activation_bytes: of the output for one picture.
        ort_ms, torch_ms: time in ONNX Runtime (with the fused activation) and in PyTorch (without); `_pct` of the time
            of all convolutions that were timed there. Profiling adds overhead: read the shares.
        prune_loss, int8_loss: the share of colour lost, see `Sensitivity`.
    """

    rank: int
    name: str
    type: str
    shape: tuple[int, ...]
    params: int
    params_pct: float
    macs: int
    macs_pct: float
    activation_bytes: int
    ort_ms: float | None
    ort_pct: float | None
    torch_ms: float | None
    torch_pct: float | None
    prune_loss: float | None
    int8_loss: float | None


VIEW_COLUMNS = tuple(each.name for each in fields(LayerView) if each.name != "shape")


def join_views(
    layers: Sequence[LayerSize],
    convolutions: Mapping[str, int],
    *,
    ort_ms: Mapping[str, float],
    torch_ms: Mapping[str, float],
    sensitivities: Mapping[str, Sensitivity],
) -> tuple[LayerView, ...]:
    """One row for each convolution, largest parameter count first.

    Args:
        layers: the answer of `rank_layers`, of the whole network.
        convolutions: the answer of `convolution_channels`.
        ort_ms, torch_ms, sensitivities: by layer name; a layer may be missing in each.
    """
    chosen = [layer for layer in layers if layer.name in convolutions]
    macs = sum(layer.macs for layer in layers)
    untold = Sensitivity(None, None)
    return tuple(
        LayerView(
            rank=rank,
            name=layer.name,
            type=layer.type,
            shape=layer.shape,
            params=layer.params,
            params_pct=layer.share_pct,
            macs=layer.macs,
            macs_pct=100 * layer.macs / macs if macs else 0.0,
            activation_bytes=layer.output_bytes,
            ort_ms=ort_ms.get(layer.name),
            ort_pct=_share(layer.name, ort_ms),
            torch_ms=torch_ms.get(layer.name),
            torch_pct=_share(layer.name, torch_ms),
            prune_loss=sensitivities.get(layer.name, untold).prune_loss,
            int8_loss=sensitivities.get(layer.name, untold).int8_loss,
        )
        for rank, layer in enumerate(chosen, start=1)
    )


def _share(name: str, times: Mapping[str, float]) -> float | None:
    total = sum(times.values())
    return 100 * times[name] / total if name in times and total else None


def write_views(
    views: Sequence[LayerView], order: Sequence[str], output_dir: Path, *, title: str, measure: Measure
) -> list[Path]:
    """Write layer_ranking.csv and layer_ranking.png into `output_dir`; their paths.

    Args:
        views: the answer of `join_views`.
        order: layer names as they are computed, for the chart; others come last.
        title: of the chart.
        measure: what the losses are counted by.
    Raises:
        MachineError: a file cannot be written.
    """

    def rounded(column: str, value: Any) -> Any:
        return round(value, 6 if column.endswith("loss") else 4) if isinstance(value, float) else value

    rows = [{column: rounded(column, value) for column, value in vars(view).items()} for view in views]
    table = write_csv(output_dir / "layer_ranking.csv", VIEW_COLUMNS, rows)
    return [table, _draw_views(views, order, title, measure, output_dir / "layer_ranking.png")]


def describe_views(views: Sequence[LayerView], measure: Measure) -> str:
    """How the views disagree, in one sentence with the numbers; losses are by `measure`."""
    if not views:
        return "The network has no convolution."
    parts = []
    sizes: dict[tuple[int, ...], list[LayerView]] = {}
    for view in views:
        if len(view.shape) == 4:
            sizes.setdefault(view.shape[2:], []).append(view)
    if len(sizes) > 1:
        heavy = max(sizes, key=lambda size: sum(view.params for view in sizes[size]))
        finest = max(sizes, key=prod)
        parts.append(f"of all convolutions those at {shape_text(heavy)} hold {_describe_group(views, sizes[heavy])}")
        if finest != heavy:
            parts.append(f"those at {shape_text(finest)} hold {_describe_group(views, sizes[finest])}")
    if len(views) > _TOP:
        largest = {view.name for view in _largest(views, "params")}
        compared = [
            f"{len(largest & {view.name for view in found})} of the {len(found)} {words}"
            for column, words in (
                ("ort_ms", "slowest in ONNX Runtime"),
                ("prune_loss", "that lose most colour when pruned"),
                ("int8_loss", "that lose most in int8"),
            )
            if (found := _largest(views, column)) and (column == "ort_ms" or getattr(found[0], column) >= _LEAST_LOSS)
        ]
        if compared:
            parts.append(f"among the {len(largest)} with most parameters are {join_words(compared)}")
    for column, words in (("prune_loss", "halving"), ("int8_loss", "int8 of")):
        for most in _largest(views, column)[:1]:
            loss = getattr(most, column)
            if loss >= _LEAST_LOSS:
                parts.append(f"{words} {printable(most.name)} alone costs most, {measure.symbol} {loss:.2g}")
            else:
                most_lost = f"{measure.symbol} {max(loss, 0.0):.2g}"
                parts.append(f"{words} any one layer costs next to nothing, {most_lost} at most")
    text = "; ".join(parts) or "all convolutions answer at one size"
    return text[0].upper() + text[1:] + "."


def _describe_group(views: Sequence[LayerView], group: Sequence[LayerView]) -> str:
    words = {"params": "the parameters", "activation_bytes": "the activation bytes"}
    if any(view.ort_ms is not None for view in views):
        words["ort_ms"] = "the time"
    return join_words([f"{_share_of(group, views, column):.0f} % of {what}" for column, what in words.items()])


def _share_of(group: Sequence[LayerView], views: Sequence[LayerView], column: str) -> float:
    """In percent; what is unknown counts for nothing."""
    part, whole = (sum(getattr(view, column) or 0 for view in some) for some in (group, views))
    return 100 * part / whole if whole else 0.0


def _largest(views: Sequence[LayerView], column: str) -> list[LayerView]:
    """The few layers with the largest values in a column, of those that have one."""
    known = [view for view in views if getattr(view, column) is not None]
    return sorted(known, key=lambda view: -getattr(view, column))[:_TOP]


def _draw_views(views: Sequence[LayerView], order: Sequence[str], title: str, measure: Measure, path: Path) -> Path:
    """A row for each layer in the order of the call, a panel for each of a few views; colours tell the output size.

    The CSV has what is left out: MACs, activation bytes, and the time in the other runtime.
    """
    place = {name: position for position, name in enumerate(order)}
    rows = sorted(_most_telling(views), key=lambda view: place.get(view.name, len(place)))
    sizes = sorted({view.shape[2:] for view in rows}, key=lambda size: -prod(size))
    colours = {size: shade_of(0.92 * (1 - index / max(1, len(sizes) - 1))) for index, size in enumerate(sizes)}
    shares: dict[str, list[float | None]] = {
        "parameters": [view.params_pct for view in rows],
        "time, ONNX Runtime": [view.ort_pct for view in rows],
        "time, PyTorch": [view.torch_pct for view in rows],
        "MACs": [view.macs_pct for view in rows],
    }
    known = {name: values for name, values in shares.items() if any(each is not None for each in values)}
    # What it costs: its time in a runtime, else its work.
    shown = {name: known[name] for name in list(known)[:2]}
    columns = {"half pruned": [view.prune_loss for view in rows], "in int8": [view.int8_loss for view in rows]}
    losses = {name: values for name, values in columns.items() if any(each is not None for each in values)}
    names = [printable(view.name) for view in rows]
    # Of a long name its end, which tells it from others.
    names = [name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}" for name in names]
    bar_colours, count = [colours[view.shape[2:]] for view in rows], len(shown) + len(losses)
    rows_of_panels = max(1, ceil(count / 2))
    with drawn(path, height=1.4 + rows_of_panels * (0.9 + 0.21 * max(len(rows), 3))) as figure:
        axes = figure.subplots(rows_of_panels, 2, sharey=True, squeeze=False).ravel()
        for panel, (name, values) in zip(axes, shown.items(), strict=False):
            _draw_panel(panel, f"{name}, %", values, "{:.1f}", bar_colours)
        for panel, (name, values) in zip(axes[len(shown) :], losses.items(), strict=False):
            # A loss may be small: two digits of the largest one.
            size = max(abs(value or 0.0) for value in values)
            decimals = min(6, max(3, 1 - floor(log10(size)))) if size else 3
            _draw_panel(panel, f"{measure.symbol} lost, {name}", values, f"{{:.{decimals}f}}", bar_colours)
        for panel in axes[count:]:
            panel.axis("off")
        axes[0].set_yticks(range(len(rows)), names, fontsize=SMALLEST_TEXT, parse_math=False)
        axes[0].invert_yaxis()
        explain_colours(figure, {f"output {shape_text(size) or 'none'}": colours[size] for size in sizes})
        left_out = len(views) - len(rows)
        note = f"\n({left_out} smaller ones left out)" if left_out else ""
        figure.suptitle(f"{title}{note}", parse_math=False, fontsize=SMALLEST_TEXT + 1, wrap=True)
    return path


def _draw_panel(panel: Axes, name: str, values: Sequence[float | None], form: str, colours: Sequence[Any]) -> None:
    lengths = [0.0 if value is None else value for value in values]
    texts = ["-" if value is None else form.format(value) for value in values]
    # Nothing is neither gained nor lost.
    texts = [text.lstrip("-") if text.strip("-0.") == "" and text != "-" else text for text in texts]
    bars = panel.barh(range(len(values)), lengths, color=colours)
    panel.bar_label(bars, texts, padding=3, fontsize=SMALLEST_TEXT)
    low, high = min([0.0, *lengths]), max([0.0, *lengths])
    span = (high - low) or 1.0
    panel.set_xlim(low - (0.5 * span if low < 0 else 0), high + 0.5 * span)  # room for the numbers at the ends
    panel.set_title(name, fontsize=SMALLEST_TEXT + 1)
    panel.set_ylim(-0.6, len(values) - 0.4)
    panel.axvline(0, color="#777777", linewidth=0.8)
    # Every bar has its number.
    panel.xaxis.set_visible(False)
    panel.spines[["top", "right", "bottom"]].set_visible(False)


def _most_telling(views: Sequence[LayerView]) -> list[LayerView]:
    """All layers, or where there are too many those that are large in any view."""
    if len(views) <= _MOST_ROWS:
        return list(views)
    columns = ("params", "macs", "activation_bytes", "ort_ms", "torch_ms", "prune_loss", "int8_loss")
    tops = {name: max(getattr(view, name) or 0 for view in views) or 1 for name in columns}
    shares = {view.name: max((getattr(view, name) or 0) / tops[name] for name in columns) for view in views}
    return sorted(views, key=lambda view: -shares[view.name])[:_MOST_ROWS]
