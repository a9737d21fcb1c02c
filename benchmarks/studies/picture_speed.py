"""How long a photograph takes from decoded pixels to coloured ones, step by step, beside the same in other libraries.

    python -m benchmarks.studies.picture_speed out/auto-w8/colorizer.onnx --megapixels 12

Every way runs in a process of its own, in interleaved rounds; OpenCV is measured where it is installed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from export.picture_graph import DEFAULT_WORK_SIZE, IMAGE_NAME
from export.predictors import OUTPUT_NAME, open_session

Pixels = NDArray[np.uint8]
Steps = dict[str, Callable[[], object]]
_RUNS = 9
_WAYS = ("graph", "graph of grey", "openvino", "torch", "opencv", "scikit-image", "jpeg")


def draw_photograph(megapixels: float) -> Pixels:
    """A photograph of scikit-image at 4:3 and the given size, uint8 (H, W, 3)."""
    from training.photos import embedded_photos

    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    with Image.open(embedded_photos()[2]) as picture:
        large = picture.convert("RGB").resize((round(height * 4 / 3), height), Image.Resampling.BICUBIC)
    return np.asarray(large)


def make_steps(way: str, model: Path, pixels: Pixels, threads: int) -> Steps:
    """What is timed of one way: the whole, and its steps where they can be taken apart.

    Raises:
        ImportError: a library is not installed.
    """
    small = np.zeros((DEFAULT_WORK_SIZE, DEFAULT_WORK_SIZE * 4 // 3, 2), np.uint8)
    height, width = pixels.shape[:2]
    if way.startswith("graph"):
        image = np.ascontiguousarray(pixels[None, ..., : 1 if way.endswith("grey") else 3])
        sessions = {
            step: open_session(model, content, provider="cpu", threads=threads)
            for step, content in cut_graph(model).items()
        }
        return {step: partial(session.run, None, {IMAGE_NAME: image}) for step, session in sessions.items()}
    if way == "openvino":
        from export.colorizers import OpenVinoColorizer

        colorizer = OpenVinoColorizer(model, threads=threads)
        return {"whole, network included": lambda: colorizer(pixels)}
    if way == "torch":
        import torch

        from export.picture_reference import color_pixels

        torch.set_num_threads(threads)
        return {"whole, without a network": lambda: color_pixels(
            pixels, lambda lightness: np.zeros((1, 2, *lightness.shape[2:]), np.float32))}  # fmt: skip
    if way == "opencv":
        import cv2

        cv2.setNumThreads(threads)
        lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
        return {
            "sRGB to Lab, 8 bits": lambda: cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB),
            "Lab to sRGB, 8 bits": lambda: cv2.cvtColor(lab, cv2.COLOR_LAB2RGB),
            "shrink, by area": lambda: cv2.resize(pixels, small.shape[1::-1], interpolation=cv2.INTER_AREA),
            "enlarge a, b": lambda: cv2.resize(small, (width, height)),
        }
    if way == "scikit-image":
        from skimage import color

        lab = color.rgb2lab(pixels)
        return {"sRGB to Lab": lambda: color.rgb2lab(pixels), "Lab to sRGB": lambda: color.lab2rgb(lab)}
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG", quality=95, subsampling="4:4:4")
    return {
        "decode": lambda: np.asarray(Image.open(io.BytesIO(encoded.getvalue()))),
        "encode, quality 95, 4:4:4": lambda: Image.fromarray(pixels).save(
            io.BytesIO(), "JPEG", quality=95, subsampling="4:4:4"
        ),
    }


def time_steps(steps: Steps) -> dict[str, float]:
    """The median of each step's milliseconds, after one call that is not counted."""
    found = {}
    for name, step in steps.items():
        step()
        times = []
        for _ in range(_RUNS):
            started = time.perf_counter()
            step()
            times.append(1e3 * (time.perf_counter() - started))
        found[name] = statistics.median(times)
    return found


def cut_graph(model: Path) -> dict[str, bytes]:
    """The graph up to what the network sees, up to what it answers, and whole: their differences are its steps."""
    whole = onnx.load(str(model))
    seen = next(
        name
        for node in whole.graph.node
        if node.output[0].startswith("network.")
        for name in node.input
        if name.startswith("picture.")
    )
    cuts = {"whole, network included": whole.SerializeToString()}
    for step, name in (("average, lightness", seen), ("and the network", f"network.{OUTPUT_NAME}")):
        part = onnx.ModelProto()
        part.CopyFrom(whole)
        del part.graph.output[:]
        part.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
        _drop_the_rest_(part.graph)
        cuts[step] = part.SerializeToString()
    return cuts


def _drop_the_rest_(graph: onnx.GraphProto) -> None:
    """Remove the nodes that no output needs; ONNX Runtime would run them."""
    needed = {value.name for value in graph.output}
    kept = []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(_reads(node))
    del graph.node[:]
    graph.node.extend(reversed(kept))


def _reads(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        for inner in attribute.g.node:
            yield from _reads(inner)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a colorizer.onnx")
    parser.add_argument("--megapixels", type=float, default=12.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--way", choices=_WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        pixels = draw_photograph(options.megapixels)
        try:
            json.dump(time_steps(make_steps(options.way, options.model, pixels, options.threads)), sys.stdout)
        except ImportError as error:
            json.dump({"error": str(error)}, sys.stdout)
        return
    found: dict[str, dict[str, list[float]]] = {way: defaultdict(list) for way in _WAYS}
    for _ in range(options.rounds):
        for way in random.sample(_WAYS, len(_WAYS)):
            for step, milliseconds in _measure(way).items():
                found[way][step].append(milliseconds)
    for way, steps in found.items():
        for step, rounds in steps.items():
            print(f"{way:14}  {step:28} {statistics.median(rounds):8.1f} ms  ({min(rounds):.1f}-{max(rounds):.1f})")


def _measure(way: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.studies.picture_speed", *sys.argv[1:], "--way", way]
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
    answer = json.loads(subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout)
    if "error" in answer:
        print(f"{way}: {answer['error']}", file=sys.stderr)
        return {}
    return dict(answer)


if __name__ == "__main__":
    main()
