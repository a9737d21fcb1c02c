"""Where a network keeps its parameters and its work: layers ranked by size, as data, table and chart."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from colorpress.core.charts import drawn, number_in_thousands
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import write_csv, write_text
from training.network import ColorNetwork

CSV_COLUMNS = ("rank", "name", "type", "params", "pct", "cum_pct", "bytes", "shape", "macs", "macs_pct", "output_bytes")


@dataclass(frozen=True)
class LayerSize:
    """One layer: a module that directly owns parameters.

    Attributes:
        rank: 1 is the layer with most parameters.
        name: as in `named_modules`; "." for the network itself.
        type: the class name.
        shape: of its output, for one picture; empty where the forward pass never reached the layer.
        params: its parameters; a weight shared by several layers counts for the first owner only.
        share_pct: `params` in percent of all parameters; `cumulative_pct` adds the larger layers.
        macs: multiply-accumulates for one picture (one MAC is one multiplication and one addition, two FLOPs) of
            Conv2d, ConvTranspose2d and Linear without their bias. Everything else, batch norm included, is 0.
        bytes: of the parameters as stored in memory.
        output_bytes: of the output tensors for one picture, in the dtype of the parameters.
    """

    rank: int
    name: str
    type: str
    shape: tuple[int, ...]
    params: int
    share_pct: float
    cumulative_pct: float
    macs: int
    bytes: int
    output_bytes: int


@dataclass
class _Cost:
    macs: int = 0
    output_bytes: int = 0
    shape: tuple[int, ...] = ()


def rank_layers(network: nn.Module, *, height: int = 256, width: int = 256) -> tuple[LayerSize, ...]:
    """The layers of any network, largest parameter count first; equal ones in their order in the network.

    The parameters add up to those of the network exactly. Work and outputs are measured at the given size by a
    forward pass on tensors without data, so that nothing is computed and the network stays as it is.

    Args:
        network: takes (1, C, height, width); C is read from its first convolution, 1 where there is none.
        height, width: of the picture, in pixels.
    Raises:
        InputError: the network has no parameters, or does not take such a picture.
    """
    costs = _measure_costs(network, height, width)
    seen: set[int] = set()
    owned: list[tuple[int, int, str, nn.Module]] = []  # parameters, their bytes, name
    for name, module in network.named_modules():
        if parameters := list(module.parameters(recurse=False)):
            own = [each for each in parameters if id(each) not in seen]
            seen.update(map(id, parameters))
            owned.append((sum(each.numel() for each in own), sum(each.nbytes for each in own), name or ".", module))
    if not (total := sum(params for params, *_ in owned)):
        raise InputError("network", type(network).__name__, "has no parameters", "give a network that was trained")
    layers, cumulative = [], 0
    for rank, (params, size, name, module) in enumerate(sorted(owned, key=lambda each: -each[0]), start=1):
        cumulative += params
        cost = costs.get(module, _Cost())
        layers.append(
            LayerSize(
                rank=rank,
                name=name,
                type=type(module).__name__,
                shape=cost.shape,
                params=params,
                share_pct=100 * params / total,
                cumulative_pct=100 * cumulative / total,
                macs=cost.macs,
                bytes=size,
                output_bytes=cost.output_bytes,
            )
        )
    return tuple(layers)


def largest_layers(layers: Sequence[LayerSize], share: float) -> tuple[LayerSize, ...]:
    """The fewest of the largest layers that together hold at least `share` of the parameters.

    Args:
        layers: the answer of `rank_layers`.
        share: above 0, at most 1; 1 takes every layer that has parameters.
    """
    if not 0 < share <= 1:
        raise ConfigError("share", None, f"got {share}", "give a share above 0 and at most 1")
    total, held = _sum(layers, "params"), 0
    chosen: list[LayerSize] = []
    for layer in layers:
        if layer.params == 0 or held >= share * total:
            break
        chosen.append(layer)
        held += layer.params
    return tuple(chosen)


def convolution_channels(network: nn.Module) -> dict[str, int]:
    """Output channels of each convolution, plain or transposed, by its name in `named_modules`."""
    return {
        name: module.out_channels
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    }


def count_macs(network: nn.Module, *, height: int, width: int) -> int:
    """Multiply-accumulates of one forward pass for one picture; `LayerSize.macs` says what counts."""
    return sum(cost.macs for cost in _measure_costs(network, height, width).values())


def _measure_costs(network: nn.Module, height: int, width: int) -> dict[nn.Module, _Cost]:
    costs: dict[nn.Module, _Cost] = {}

    def record(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor):
            cost = costs.setdefault(module, _Cost())
            cost.macs += _module_macs(module, inputs[0], output) if inputs else 0
            cost.output_bytes += output.numel() * output.element_size()
            cost.shape = tuple(output.shape)

    # A foreign network may repeat its one channel for a first convolution that reads three.
    first = next((m.in_channels for m in network.modules() if isinstance(m, nn.Conv2d)), 1)
    channels = 1 if isinstance(network, ColorNetwork) else first
    dtype = next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
    # The meta device carries shapes and no data: exact, free at any size, and buffers cannot change.
    # Each module by one of its names: what has been replaced twice does not come back.
    state = {
        f"{layer}.{name}".removeprefix("."): torch.empty_like(tensor, device="meta")
        for layer, module in network.named_modules()
        for named in (module.named_parameters, module.named_buffers)
        for name, tensor in named(recurse=False, remove_duplicate=False)
    }
    owners = [m for m in network.modules() if next(m.parameters(recurse=False), None) is not None]
    with hooked(network, owners, record), torch.no_grad():
        try:
            with torch.device("meta"):
                picture = torch.empty(1, channels, height, width, dtype=dtype)
                functional_call(network, state, (picture,), tie_weights=False)
        except Exception:  # perhaps of tensors that are neither parameters nor buffers: only a real pass tells
            costs.clear()
            device = next((p.device for p in network.parameters()), torch.device("cpu"))
            try:
                network(torch.zeros(1, channels, height, width, dtype=dtype, device=device))
            except Exception as error:  # a network of any kind fails in any way
                raise InputError(
                    "network",
                    type(network).__name__,
                    f"does not take a picture of {channels} x {height} x {width}: {error}",
                    "give a network from pictures to pictures, and a size it takes",
                ) from error
    return costs


@contextmanager
def hooked(network: nn.Module, modules: Sequence[nn.Module], hook: Callable[..., None]) -> Iterator[None]:
    """`hook` on the forward pass of `modules`, all of the network in eval mode; both undone afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    handles = [module.register_forward_hook(hook) for module in modules]
    try:
        network.eval()
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training


def _module_macs(module: nn.Module, source: Tensor, output: Tensor) -> int:
    if isinstance(module, nn.Conv2d):
        return output.numel() * module.weight[0].numel()
    if isinstance(module, nn.ConvTranspose2d):
        return source.numel() * module.weight[0].numel()
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    return 0


def write_ranking(
    network: nn.Module, output_dir: Path, *, height: int = 256, width: int = 256
) -> tuple[list[Path], dict[str, int]]:
    """Write model_summary.txt, layer_param_counts.csv and top20_layers.png into `output_dir`.

    Returns:
        The files, and the totals in them: "params" and "macs".
    Raises:
        InputError: as `rank_layers`.
        MachineError: a file cannot be written.
    """
    layers = rank_layers(network, height=height, width=width)
    params, macs = _sum(layers, "params"), _sum(layers, "macs")
    name = network.title if isinstance(network, ColorNetwork) else type(network).__name__
    title = f"{name} at {height} x {width} pixels"
    rows = [
        {
            **vars(layer),
            "pct": round(layer.share_pct, 4),
            "cum_pct": round(layer.cumulative_pct, 4),
            "shape": shape_text(layer.shape),
            "macs_pct": round(_percent(layer.macs, macs), 4),
        }
        for layer in layers
    ]
    paths = [
        write_text(output_dir / "model_summary.txt", _format_ranking(layers, title)),
        write_csv(output_dir / "layer_param_counts.csv", CSV_COLUMNS, rows),
        _draw_top_layers(layers, f"Largest layers of {title}", output_dir / "top20_layers.png"),
    ]
    return paths, {"params": params, "macs": macs}


def describe_ranking(layers: Sequence[LayerSize]) -> str:
    """What a reader should see in the ranking, from its numbers: where the parameters are, and where the work is."""
    parameters, macs = _sum(layers, "params"), _sum(layers, "macs")
    most = largest_layers(layers, 0.9)
    text = (
        f"{len(most)} of {len(layers)} layers hold {_percent(_sum(most, 'params'), parameters):.0f} % of the "
        f"parameters and do {_percent(_sum(most, 'macs'), macs):.0f} % of the multiply-accumulates."
    )
    sizes = _by_output_size(layers)
    if len(sizes) < 2 or macs == 0:
        return text
    heavy: list[str] = []
    held = work = 0
    for size in sorted(sizes, key=lambda size: -_sum(sizes[size], "params")):
        if held < 0.8 * parameters:
            heavy.append(size)
            held += _sum(sizes[size], "params")
            work += _sum(sizes[size], "macs")
    text += (
        f" Outputs of {join_words(heavy)} pixels belong to layers with {_percent(held, parameters):.0f} % of the "
        f"parameters and {_percent(work, macs):.0f} % of the work"
    )
    others = [size for size in sizes if size not in heavy]
    if not others:
        return text + "."
    shrinks = work / macs < held / parameters
    return (
        f"{text}; those of {join_words(others)} hold {_percent(parameters - held, parameters):.0f} % and do "
        f"{_percent(macs - work, macs):.0f} %. Removing channels from the largest layers "
        f"{'shrinks the file more than the time' if shrinks else 'saves work at least as much as size'}."
    )


def _format_ranking(layers: Sequence[LayerSize], title: str) -> str:
    """The ranking as text: what it says, a table of layers with their totals, and one by output size."""
    parameters, macs = _sum(layers, "params"), _sum(layers, "macs")
    header = ("rank", "layer", "type", "output", "parameters", "share", "cumulative", "MACs", "share")
    body = [
        (
            str(layer.rank),
            layer.name,
            layer.type,
            shape_text(layer.shape),
            f"{layer.params:,}",
            f"{layer.share_pct:.2f} %",
            f"{layer.cumulative_pct:.2f} %",
            f"{layer.macs:,}",
            f"{_percent(layer.macs, macs):.2f} %",
        )
        for layer in layers
    ]
    total = ("", "total", "", "", f"{parameters:,}", "100.00 %", "", f"{macs:,}", "100.00 %" if macs else "")
    table = _table(header, [*body, total], left={1, 2, 3})
    table.insert(-1, table[1])  # a rule above the totals
    wholes = {"params": parameters, "macs": macs, "output_bytes": _sum(layers, "output_bytes")}
    levels = [
        (size, f"{len(group)}", *(f"{_percent(_sum(group, what), whole):.1f} %" for what, whole in wholes.items()))
        for size, group in _by_output_size(layers).items()
    ]
    return "\n".join(
        [
            title,
            describe_ranking(layers),
            "",
            *table,
            "",
            *_table(("output size", "layers", "parameters", "MACs", "output bytes"), levels, left={0}),
            "",
            "MACs: multiply-accumulates of convolutions and linear layers for one picture, without bias; batch norm 0.",
            "Shared weights count once, for the first layer that owns them.",
            "",
        ]
    )


def _by_output_size(layers: Sequence[LayerSize]) -> dict[str, list[LayerSize]]:
    """Layers by the height x width of their output, largest size first; layers without one are left out."""
    groups: dict[tuple[int, ...], list[LayerSize]] = {}
    for layer in layers:
        if len(layer.shape) == 4:
            groups.setdefault(layer.shape[2:], []).append(layer)
    return {shape_text(size): groups[size] for size in sorted(groups, key=lambda size: -size[0] * size[1])}


def _sum(layers: Iterable[LayerSize], what: str) -> int:
    return sum(getattr(layer, what) for layer in layers)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], *, left: set[int]) -> list[str]:
    """The lines of a table, a rule below its header; columns that are not in `left` are aligned to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]

    def line(row: Sequence[str]) -> str:
        cells = zip(row, widths, strict=True)
        return "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(cells)).rstrip()

    return [line(header), "-" * (sum(widths) + 2 * (len(widths) - 1)), *(line(row) for row in rows)]


def _draw_top_layers(layers: Sequence[LayerSize], title: str, path: Path) -> Path:
    """Bars of the parameters of the 20 largest layers, and beside them of their share of the work."""
    top = [layer for layer in layers if layer.params][:20]
    shares = [_percent(layer.macs, _sum(layers, "macs")) for layer in top]
    rows = range(len(top))
    with drawn(path, width=11, height=1.6 + 0.32 * len(top)) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        bars = left.barh(rows, [layer.params for layer in top], color="#3b6ea5")
        left.bar_label(bars, [f"{layer.params:,} ({layer.share_pct:.1f} %)" for layer in top], padding=4, fontsize=8)
        work = right.barh(rows, shares, color="#c77b30")
        right.bar_label(work, [f"{share:.1f} %" for share in shares], padding=4, fontsize=8)
        left.set_yticks(rows, [f"{layer.name}  {layer.type}  {shape_text(layer.shape)}" for layer in top], fontsize=8)
        left.invert_yaxis()
        left.set_xlabel(f"parameters (these {len(top)}: {top[-1].cumulative_pct:.1f} % of all)")
        right.set_xlabel(f"share of MACs (these {len(top)}: {sum(shares):.1f} %)")
        number_in_thousands(left)
        right.xaxis.set_major_formatter("{x:g} %")
        for axis in (left, right):
            axis.margins(x=0.3, y=0.01)  # room for the number at the end of the longest bar
            axis.set_xlim(left=0)
            axis.spines[["top", "right"]].set_visible(False)
        figure.suptitle(title)
    return path


def shape_text(shape: Sequence[int]) -> str:
    """Sides as 64x32x32."""
    return "x".join(str(side) for side in shape)


def join_words(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _percent(part: float, whole: float) -> float:
    return 100 * part / whole if whole else 0.0
