"""The comparison of speeds: what is timed is what it says."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import onnxruntime as ort

from benchmarks.studies.picture_speed import cut_graph, draw_photograph, make_steps, time_steps
from export.colorize_folder import DEMONSTRATION_MODEL


def test_the_cuts_of_the_graph_answer_what_their_names_say() -> None:
    image = np.random.default_rng(0).integers(0, 256, (1, 300, 400, 3), dtype=np.uint8)
    sessions = {step: ort.InferenceSession(content) for step, content in cut_graph(DEMONSTRATION_MODEL).items()}
    shapes = {step: session.run(None, {"image": image})[0].shape for step, session in sessions.items()}
    assert shapes == {
        "whole, network included": (1, 300, 400, 3),
        "average, lightness": (1, 1, 256, 341),
        "and the network": (1, 2, 256, 341),
    }


def test_every_way_is_timed() -> None:
    pixels = draw_photograph(0.05)
    assert pixels.shape[2] == 3 and abs(pixels.shape[0] * pixels.shape[1] - 50_000) < 1000
    for way in ("graph", "graph of grey", "openvino", "torch", "scikit-image", "jpeg"):
        times = time_steps(make_steps(way, DEMONSTRATION_MODEL, pixels, 1))
        assert times and all(milliseconds > 0 for milliseconds in times.values())


def test_one_way_answers_json() -> None:
    command = [sys.executable, "-m", "benchmarks.studies.picture_speed", str(DEMONSTRATION_MODEL)]
    answer = subprocess.run([*command, "--megapixels", "0.05", "--way", "jpeg"], capture_output=True, check=True).stdout
    assert set(json.loads(answer)) == {"decode", "encode, quality 95, 4:4:4"}
