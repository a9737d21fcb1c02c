"""Crafted models through every command that opens one: none may crash, hang, fill the memory or get past a signal.

    python -m tests.torture.hostile_models [--only loop-elsewhere] [--command colorize]

Each ends with a message and an exit code of `colorpress.core.errors` (0 where a command never runs the model, or makes
a row of its failure), within the time and memory of `_MOST_SECONDS` and `_MOST_BYTES`.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from tests.torture.figures import SEVERE, Ended, Figures, load_all, patience, start

# Beyond what the same command takes with an innocent model.
_MOST_SECONDS = 30.0
_MOST_BYTES = 6 << 30
_MOST_SECONDS_AFTER_SIGNAL = 5.0
_LONGEST_SECONDS = 240.0
_ENDLESS = 1 << 62
_PHOTOS = 12
_VARIANT = "best"


def _constant(name: str, value: Any) -> onnx.TensorProto:
    return numpy_helper.from_array(np.array(value), name)


def _model(nodes: Sequence[onnx.NodeProto], *constants: onnx.TensorProto) -> onnx.ModelProto:
    """A bare network, L to ab: a convolution of which `nodes` make `factor`, a number that its answer is scaled by."""
    before = [
        helper.make_node("Conv", ["L", "weight"], ["colours"]),
        helper.make_node("Shape", ["L"], ["side"], start=3, end=4),
        helper.make_node("Squeeze", ["side"], ["width"]),
        helper.make_node("Equal", ["width", "usual"], ["is_usual"]),
    ]
    after = [helper.make_node("Mul", ["colours", "factor"], ["ab"])]
    inputs = [helper.make_tensor_value_info("L", TensorProto.FLOAT, ["N", 1, "H", "W"])]
    outputs = [helper.make_tensor_value_info("ab", TensorProto.FLOAT, ["N", 2, "H", "W"])]
    usual = [_constant("weight", np.full((2, 1, 1, 1), 0.3, np.float32)), _constant("usual", np.int64(8))]
    graph = helper.make_graph([*before, *nodes, *after], "network", inputs, outputs, [*usual, *constants])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    helper.set_model_props(model, {"precision": "fp32", "task": "colorize"})
    return model


def _body(*nodes: onnx.NodeProto) -> onnx.GraphProto:
    """What a Loop repeats: x to y, for ever."""
    given = [("i", TensorProto.INT64), ("on", TensorProto.BOOL), ("x", TensorProto.FLOAT)]
    left = [("go_on", TensorProto.BOOL), ("y", TensorProto.FLOAT)]
    inputs, outputs = ([helper.make_tensor_value_info(*each, []) for each in values] for values in (given, left))
    return helper.make_graph([helper.make_node("Identity", ["on"], ["go_on"]), *nodes], "body", inputs, outputs)


def _loop(trips: str) -> list[onnx.NodeProto]:
    body = _body(helper.make_node("Mul", ["x", "x"], ["y"]))
    return [helper.make_node("Loop", [trips, "true", "one"], ["factor"], body=body)]


def _elsewhere(name: str, usual: str, other: str) -> onnx.NodeProto:
    """`usual` where the picture is 8 pixels wide, else `other`."""
    return helper.make_node("Where", ["is_usual", usual, other], [name])


_ONE, _TRUE = _constant("one", np.float32(1.0)), _constant("true", True)
_LOWEST = _constant("lowest", np.int64(-(1 << 63)))
_COUNTS = (_constant("once", np.int64(1)), _constant("endless", np.int64(_ENDLESS)))


def _fill(shape: str) -> list[onnx.NodeProto]:
    """The largest of as many values as `shape` says, which all have to be there at once."""
    return [
        helper.make_node("Expand", ["one", shape], ["many"]),
        helper.make_node("Sqrt", ["many"], ["roots"]),
        helper.make_node("ReduceMax", ["roots"], ["factor"], keepdims=0),
    ]


def loop_always() -> onnx.ModelProto:
    return _model(_loop("endless"), _ONE, _TRUE, *_COUNTS)


def loop_elsewhere() -> onnx.ModelProto:
    """It never ends but at the size that a check may try."""
    return _model([_elsewhere("trips", "once", "endless"), *_loop("trips")], _ONE, _TRUE, *_COUNTS)


def loop_on_photographs() -> onnx.ModelProto:
    """It never ends at one size alone, that of the photographs here."""
    photo = _constant("photo", np.int64(_WIDTH))
    nodes = [
        helper.make_node("Equal", ["width", "photo"], ["is_photo"]),
        helper.make_node("Where", ["is_photo", "endless", "once"], ["trips"]),
    ]
    return _model([*nodes, *_loop("trips")], _ONE, _TRUE, photo, *_COUNTS)


def loop_in_loops() -> onnx.ModelProto:
    """Each of three loops ends after a while, together they do not."""
    body = _body(helper.make_node("Mul", ["x", "x"], ["y"]))
    for depth in range(2):
        inner = helper.make_node("Loop", ["long", "true", "x"], ["y"], body=body)
        body = _body(inner)
        for value in (*body.input, *body.output):
            value.name += f".{depth}"
        for node in body.node:
            node.input[:] = [f"{each}.{depth}" if each in ("x", "on") else each for each in node.input]
            node.output[:] = [f"{each}.{depth}" for each in node.output]
    nodes = [helper.make_node("Loop", ["long", "true", "one"], ["factor"], body=body)]
    return _model(nodes, _ONE, _TRUE, _constant("long", np.int64(100_000)))


def memory_always() -> onnx.ModelProto:
    return _model(_fill("shape"), _ONE, _constant("shape", np.array([1 << 17, 1 << 17], np.int64)))


def memory_elsewhere() -> onnx.ModelProto:
    shapes = [
        _constant("small", np.array([1, 1], np.int64)),
        _constant("large", np.array([1 << 16, 1 << 17], np.int64)),
    ]
    return _model([_elsewhere("shape", "small", "large"), *_fill("shape")], _ONE, *shapes)


def memory_on_photographs() -> onnx.ModelProto:
    shapes = [
        _constant("small", np.array([1, 1], np.int64)),
        _constant("large", np.array([1 << 16, 1 << 17], np.int64)),
    ]
    photo = _constant("photo", np.int64(_WIDTH))
    nodes = [
        helper.make_node("Equal", ["width", "photo"], ["is_photo"]),
        helper.make_node("Where", ["is_photo", "large", "small"], ["shape"]),
    ]
    return _model([*nodes, *_fill("shape")], _ONE, photo, *shapes)


def constant_of_gigabytes() -> onnx.ModelProto:
    """What can be computed while the file is opened, before anything is run."""
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["many"], value=_constant("value", np.ones(1, np.float32))),
        helper.make_node("ReduceMax", ["many"], ["factor"], keepdims=0),
    ]
    return _model(nodes, _constant("shape", np.array([1 << 20, 1 << 17], np.int64)))


def long_product() -> onnx.ModelProto:
    """One operator that takes minutes, and looks at nothing meanwhile."""
    nodes = [
        _elsewhere("shape", "small", "large"),
        helper.make_node("Expand", ["one", "shape"], ["many"]),
        helper.make_node("MatMul", ["many", "many"], ["product"]),
        helper.make_node("ReduceMin", ["product"], ["least"], keepdims=0),
        helper.make_node("Min", ["least", "one"], ["factor"]),
    ]
    shapes = [_constant("small", np.array([1, 1], np.int64)), _constant("large", np.array([14_000, 14_000], np.int64))]
    return _model(nodes, _ONE, *shapes)


def crash_always() -> onnx.ModelProto:
    """The lowest of all whole numbers divided by -1, which processors answer by SIGFPE."""
    minus = helper.make_node("Sub", ["width", "more"], ["minus"])
    return _model([minus, *_divide("minus")], _constant("more", np.int64(9)), _LOWEST)


def crash_elsewhere() -> onnx.ModelProto:
    numbers = [_constant("minus", np.int64(-1)), _constant("once", np.int64(1)), _LOWEST]
    return _model([_elsewhere("by", "once", "minus"), *_divide("by")], *numbers)


def _divide(by: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("Div", ["lowest", by], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["number"], to=TensorProto.FLOAT),
        helper.make_node("Tanh", ["number"], ["factor"]),
    ]


def deep_branches() -> bytes:
    """Graphs in attributes of nodes of graphs, deeper than a parser's stack: bytes, as no library would write it."""

    def field(number: int, content: bytes) -> bytes:
        length, size = [], len(content)
        while size > 127:
            length.append(size % 128 + 128)
            size //= 128
        return bytes([number * 8 + 2, *length, size]) + content

    graph = b""
    for _ in range(5000):
        graph = field(1, field(5, field(6, graph)))  # node.attribute.g
    sound: bytes = innocent().SerializeToString()
    return sound + field(7, graph)


def names_of_markup() -> onnx.ModelProto:
    """It does no harm when it runs: its names, which reach a card, a page and a terminal, are made to."""
    text = "x` | <script>alert(1)</script>\n\n# [a](javascript:alert(1))\x1b[31m\u202e"
    model = _model([helper.make_node("Identity", ["one"], ["factor"], name=text)], _ONE)
    model.producer_name = text
    helper.set_model_props(model, {"precision": "fp32", text: text})
    return model


HOSTILE: Mapping[str, Callable[[], onnx.ModelProto | bytes]] = {
    each.__name__.replace("_", "-"): each
    for each in (
        loop_always, loop_elsewhere, loop_on_photographs, loop_in_loops, memory_always, memory_elsewhere,
        memory_on_photographs, constant_of_gigabytes, long_product, crash_always, crash_elsewhere, deep_branches,
        names_of_markup,
    )
}  # fmt: skip
_SIGNALLED = "loop-on-photographs"
_WIDTH, _HEIGHT = 96, 64


def innocent() -> onnx.ModelProto:
    return _model([helper.make_node("Identity", ["one"], ["factor"])], _ONE)


@dataclass(frozen=True)
class Outcome:
    """How a command ended.

    Attributes:
        ended: its code, what it said, and seconds until it ended or was killed; after a signal, since then.
        peak_bytes: of it and all its children together.
        kind: of `Figures`.
        wrong: what is wrong about it; empty where nothing is.
    """

    ended: Ended
    peak_bytes: int
    kind: str
    wrong: str = ""


def run(arguments: Sequence[str], usual_s: float = math.inf, *, signal_after: float | None = None) -> Outcome:
    """Run a command of colorpress, and judge how it ended.

    Args:
        usual_s: what it takes with a sound model.
        signal_after: seconds after which it is sent SIGTERM.
    """
    child, peak, signalled = start(*arguments), 0, None
    while child.is_running():
        peak = max(peak, _resident_bytes(child.pid))
        passed = time.monotonic() - child.started
        if signal_after is not None and signalled is None and passed > signal_after:
            os.kill(child.pid, signal.SIGTERM)
            signalled = passed
        if passed > _LONGEST_SECONDS * patience() or peak > 2 * _MOST_BYTES:
            os.killpg(child.pid, signal.SIGKILL)
        time.sleep(0.05)
    ended = child.wait()
    ended = replace(ended, seconds=ended.seconds - (signalled or 0.0))
    return Outcome(ended, peak, *_judge(ended, peak, usual_s, is_signalled=signalled is not None))


def _judge(ended: Ended, peak: int, usual_s: float, *, is_signalled: bool) -> tuple[str, str]:
    told = ended.said + ended.printed
    if is_signalled and ended.seconds > _MOST_SECONDS_AFTER_SIGNAL * patience():
        return "hangs", f"{ended.seconds:.0f} s after the signal"
    if not is_signalled and ended.seconds > usual_s + _MOST_SECONDS * patience():
        return "hangs", f"{ended.seconds - usual_s:.0f} s beyond the sound model"
    if peak > _MOST_BYTES:
        return "internal", f"{peak / 1e9:.1f} GB"
    if "\x1b[31m" in told or "\u202e" in told:
        return "internal", "control characters reach the terminal"
    kind = ended.kind((143,) if is_signalled else (0, 2, 3, 4, 5))
    return kind, ended.describe() if kind in SEVERE else ""


def _resident_bytes(number: int) -> int:
    total = 0
    try:
        process = psutil.Process(number)
        for each in (process, *process.children(recursive=True)):
            try:
                total += each.memory_info().rss
            except psutil.Error:
                continue
    except psutil.Error:
        pass
    return total


@contextmanager
def _folder() -> Iterator[Path]:
    """A folder with photographs and a run folder whose best.pt is real."""
    with tempfile.TemporaryDirectory(prefix="hostile-models-") as name:
        folder = Path(name)
        (folder / "photos").mkdir()
        generator = np.random.default_rng(0)
        for number in range(_PHOTOS):
            small = generator.integers(0, 256, (4, 6, 3), dtype=np.uint8)
            picture = Image.fromarray(small).resize((_WIDTH, _HEIGHT), Image.Resampling.BICUBIC)
            picture.save(folder / "photos" / f"{number}.png")
        _make_run(folder / "run")
        yield folder


def _make_run(run_folder: Path) -> None:
    import torch

    from colorpress.core.config import ExportConfig
    from export.graph import export_onnx
    from training.checkpoint import Checkpoint, save_checkpoint
    from training.unet import UNet, UNetPlan

    torch.manual_seed(0)
    plan = UNetPlan(((4, 4), (8, 8)), ((4, 4),))
    checkpoint = Checkpoint(plan, UNet(plan).state_dict())
    save_checkpoint(run_folder / "best.pt", checkpoint)
    export_onnx(checkpoint, run_folder / _VARIANT / "model.onnx", ExportConfig())


def list_commands(folder: Path, model: Path, work: Path) -> dict[str, list[str]]:
    """The commands that open a model file, as one of them is given `model`; all write into `work`."""
    data, output = ["--data", str(folder / "photos")], ["-o", str(work / "out")]
    copy = work / "run"
    shutil.copytree(folder / "run", copy)
    shutil.copy(model, copy / _VARIANT / "model.onnx")
    inside = ["-o", str(copy), "-q"]
    quick = ["--rounds", "1", "--runs", "3", "--warmup", "1", "--min-seconds", "0.01", "--no-roof"]
    return {
        "inspect": ["inspect", str(model)],
        "colorize": ["colorize", str(folder / "photos" / "0.png"), "-m", str(model), "-o", str(work / "coloured")],
        "colorize folder": ["colorize", str(folder / "photos"), "-m", str(model), "-o", str(work / "all")],
        "colorize openvino": [
            "colorize", str(folder / "photos" / "1.png"), "-m", str(model), "-o", str(work / "ov"),
            "--runtime", "openvino",
        ],
        "benchmark": ["benchmark", str(folder / "run" / "best.pt"), str(model), *data, *output, *quick],
        "quantize": ["quantize", "-c", str(model), *data, *output],
        "pack": ["pack", "-c", str(model), *output],
        "deploy": ["deploy", *data, *inside],
        "verify": ["verify", *data, *inside],
        "bundle": ["bundle", "--variant", _VARIANT, "--no-web", "--to", str(work / "bundle"), *data, *inside],
    }  # fmt: skip


def torture(figures: Figures, chosen: Sequence[str], commands: Sequence[str], *, is_verbose: bool = False) -> None:
    """Give every command each of the chosen models, after a sound one by which it is timed."""
    usual: dict[str, float] = {}
    with _folder() as folder:
        for name, make in {"innocent": innocent, **{each: HOSTILE[each] for each in chosen}}.items():
            model = folder / f"{name}.onnx"
            made = make()
            model.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
            with tempfile.TemporaryDirectory(prefix="hostile-work-", dir=folder) as work:
                for title, arguments in list_commands(folder, model, Path(work)).items():
                    if title not in (commands or [title]):
                        continue
                    found = run(arguments, usual.get(title, math.inf))
                    usual.setdefault(title, found.ended.seconds)
                    figures.add(f"{name}, {title}", found.kind, found.wrong)
                    last = " ".join(found.ended.said.splitlines()[-2:-1]) if is_verbose else ""
                    told = f"exit {found.ended.code!s:4} {found.ended.seconds:6.1f} s {found.peak_bytes / 1e6:6.0f} MB"
                    print(f"{name:22} {title:18} {told}  {last!r}", flush=True)
        if "signal" in (commands or ["signal"]) and _SIGNALLED in chosen:
            _send_signals(figures, folder)


def _send_signals(figures: Figures, folder: Path) -> None:
    """SIGTERM while a model that never ends is running on a photograph."""
    model = folder / "signal.onnx"
    onnx.save(HOSTILE[_SIGNALLED](), model)
    for photos in (folder / "photos" / "0.png", folder / "photos"):
        with tempfile.TemporaryDirectory(dir=folder) as work:
            found = run(["colorize", str(photos), "-m", str(model), "-o", f"{work}/out"], signal_after=8.0)
        figures.add(f"SIGTERM, colorize {photos.name}", found.kind, found.wrong)
        print(f"SIGTERM, colorize {photos.name}: exit {found.ended.code} after {found.ended.seconds:.1f} s", flush=True)


def main() -> int:
    """Torture by the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=sorted(HOSTILE), help="one model; repeat it for more")
    parser.add_argument("--command", action="append", default=[], help="one command, such as benchmark")
    parser.add_argument("--verbose", action="store_true", help="show what every command said last")
    given = parser.parse_args()
    load_all()
    figures = Figures()
    torture(figures, given.only or list(HOSTILE), given.command, is_verbose=given.verbose)
    return figures.finish()


if __name__ == "__main__":
    sys.exit(main())
