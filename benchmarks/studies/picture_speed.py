"""How long a photograph takes from decoded pixels to coloured ones, step by step, beside the same in other libraries.

    python -m benchmarks.studies.picture_speed out/auto-w8/colorizer.onnx --megapixels 12

Every way runs in a process of its own, in interleaved rounds; OpenCV and numba are measured where they are
installed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import subprocess
import sys
import timeit
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from PIL import Image

from export.picture_contract import DEFAULT_WORK_SIZE, IMAGE_NAME
from export.picture_graph import NETWORK_PREFIX
from export.predictors import OUTPUT_NAME
from export.sessions import open_session

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Steps = dict[str, Callable[[], object]]
_RUNS = 9
_WAYS = (
    "graph",
    "graph of grey",
    "compiled",
    "compiled of grey",
    "openvino",
    "torch",
    "opencv",
    "scikit-image",
    "jpeg",
)


def draw_photograph(megapixels: float) -> Pixels:
    """A photograph of scikit-image at 4:3 and the given size, uint8 (H, W, 3)."""
    from skimage.data import coffee

    height = round((megapixels * 1e6 * 3 / 4) ** 0.5)
    size = (round(height * 4 / 3), height)
    return np.asarray(Image.fromarray(coffee()).resize(size, Image.Resampling.BICUBIC))


def make_steps(way: str, model: Path, pixels: Pixels, threads: int) -> Steps:
    """What is timed of one way: the whole, and its steps where they can be taken apart.

    Raises:
        ImportError: a library is not installed.
    """
    if way.startswith("graph"):
        image = np.ascontiguousarray(pixels[None, ..., : 1 if way.endswith("grey") else 3])
        graphs = cut_graph(model)
        sessions = {step: open_session(model, content, threads=threads) for step, content in graphs.items()}
        return {step: partial(session.run, None, {IMAGE_NAME: image}) for step, session in sessions.items()}
    if way.startswith("compiled"):
        from export.colorizers import open_inner_network
        from export.compiled_pixels import color_pixels_compiled

        asked = vars(open_inner_network(model, model.read_bytes(), threads=threads))
        seen = np.ascontiguousarray(pixels[..., : 1 if way.endswith("grey") else 3])
        return {"whole, network included": lambda: color_pixels_compiled(seen, **asked, threads=threads)}
    if way == "openvino":
        from export.colorizers import OpenVinoColorizer

        colorizer = OpenVinoColorizer(model, model.read_bytes(), threads=threads)
        return {"whole, network included": lambda: colorizer(pixels)}
    if way == "torch":
        import torch

        from export.picture_reference import color_pixels

        torch.set_num_threads(threads)

        def answer_grey(lightness: Floats) -> Floats:
            return np.zeros((1, 2, *lightness.shape[2:]), np.float32)

        return {"whole, without a network": lambda: color_pixels(pixels, answer_grey)}
    if way == "opencv":
        import cv2

        cv2.setNumThreads(threads)
        lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
        small = np.zeros((DEFAULT_WORK_SIZE, DEFAULT_WORK_SIZE * 4 // 3, 2), np.uint8)
        return {
            "sRGB to Lab, 8 bits": lambda: cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB),
            "Lab to sRGB, 8 bits": lambda: cv2.cvtColor(lab, cv2.COLOR_LAB2RGB),
            "shrink, by area": lambda: cv2.resize(pixels, small.shape[1::-1], interpolation=cv2.INTER_AREA),
            "enlarge a, b": lambda: cv2.resize(small, pixels.shape[1::-1]),
        }
    if way == "scikit-image":
        from skimage import color

        lab = color.rgb2lab(pixels)
        return {"sRGB to Lab": lambda: color.rgb2lab(pixels), "Lab to sRGB": lambda: color.lab2rgb(lab)}

    def encode() -> io.BytesIO:
        Image.fromarray(pixels).save(encoded := io.BytesIO(), "JPEG", quality=95, subsampling="4:4:4")
        return encoded

    content = encode().getvalue()
    return {"decode": lambda: np.asarray(Image.open(io.BytesIO(content))), "encode, quality 95, 4:4:4": encode}


def time_steps(steps: Steps) -> dict[str, float]:
    """The median of each step's milliseconds, after one call that is not counted."""
    return {name: 1e3 * median(timeit.repeat(step, number=1, repeat=1 + _RUNS)[1:]) for name, step in steps.items()}


def cut_graph(model: Path) -> dict[str, bytes]:
    """The graph up to what the network sees, up to what it answers, and whole: their differences are its steps."""
    whole = onnx.load(str(model))
    inside = [node for node in whole.graph.node if node.output[0].startswith(NETWORK_PREFIX)]
    seen = next(name for node in inside for name in node.input if name.startswith("picture."))
    return {
        "whole, network included": whole.SerializeToString(),
        "average, lightness": _cut_at(whole, seen),
        "and the network": _cut_at(whole, f"{NETWORK_PREFIX}{OUTPUT_NAME}"),
    }


def _cut_at(whole: onnx.ModelProto, output: str) -> bytes:
    """The part of a graph that gives one of its values; of the other nodes none is left, ONNX Runtime would run them.

    `onnx.utils.extract_model` would lose what the bodies of an If or a Loop read.
    """
    part = onnx.ModelProto()
    part.CopyFrom(whole)
    needed, kept = {output}, []
    for node in reversed(whole.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(_reads(node))
    del part.graph.node[:], part.graph.output[:]
    part.graph.node.extend(reversed(kept))
    part.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, None))
    content: bytes = part.SerializeToString()
    return content


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
            print(json.dumps(time_steps(make_steps(options.way, options.model, pixels, options.threads))))
        except ImportError as error:
            print(json.dumps({"error": str(error)}))
        return
    found: dict[tuple[str, str], list[float]] = {}
    for _ in range(options.rounds):
        for way in random.sample(_WAYS, len(_WAYS)):
            for step, milliseconds in _measure(way).items():
                found.setdefault((way, step), []).append(milliseconds)
    for (way, step), times in sorted(found.items(), key=lambda each: _WAYS.index(each[0][0])):
        print(f"{way:16}  {step:28} {median(times):8.1f} ms  ({min(times):.1f}-{max(times):.1f})")


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
