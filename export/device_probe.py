"""One convolution on a provider of ONNX Runtime, compared with the CPU, in a process of its own.

Libraries of GPUs that are missing, or do not fit each other, show on the first run, and some end the process. Run as
`python -m export.device_probe` it is that process: JSON on standard input and output.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from colorpress.core.errors import ColorpressError, GateError, MachineError
from colorpress.core.locks import scratch_folder
from export.colorize_folder import DEMONSTRATION_MODEL
from export.picture_network import take_network
from export.placement import count_kernel_calls
from export.predictors import INPUT_NAME, OUTPUT_NAME, OnnxPredictor
from export.runtimes import RUNTIMES, Opening, Runtime
from export.timing import run_worker

_SIDE = 64
# Of answers near 1; GPUs multiply in TF32, which has 10 bits.
_SAME = 0.01
_SECONDS = 180.0


def probe_runtime(name: str) -> dict[str, Any]:
    """Run one convolution in a provider of ONNX Runtime.

    Args:
        name: a key of RUNTIMES, of one that is such a provider.
    Returns:
        provider, nodes (how many of each operator each provider took), max_difference (from the CPU), and of the
        network that comes along kernel_calls and how many of them were left to the CPU, left_to_cpu.
    Raises:
        MachineError: it is not here, fails, or its process died.
        GateError: its answer is another than the CPU's.
    """
    answer = run_worker({"runtime": name}, threads=1, timeout_s=_SECONDS, module=sys.modules[__name__])
    if (status := answer.pop("status")) == "ok":
        return answer
    why = answer["error"] if status == "error" else f"its process ended: {status}: {answer['error']}"
    kind = GateError if answer.get("differs") else MachineError
    raise kind("runtime", name, why, answer.get("hint") or "look at the versions of its libraries and of its driver")


def run_convolution(runtime: Runtime) -> dict[str, Any]:
    """As `probe_runtime`, in this process."""
    for module in runtime.modules:
        import_module(module)
    lightness = np.random.default_rng(0).random((1, 1, _SIDE, _SIDE), dtype=np.float32)
    with scratch_folder() as folder:
        path = _write_convolution(folder / "convolution.onnx")
        predictor = runtime.open(path, Opening("auto", 1))
        assert isinstance(predictor, OnnxPredictor)
        answer, expected = predictor(lightness), OnnxPredictor(path, threads=1)(lightness)
        counted = count_kernel_calls(_write_network(folder / "network.onnx"), runtime.name, side=_SIDE)
    difference = float(np.abs(answer - expected).max())
    if not difference <= _SAME:
        why = f"answers a convolution {difference:.2g} away from the CPU"
        raise GateError("runtime", runtime.name, why, "look at the versions of its libraries and of its driver")
    nodes: dict[str, Counter[str]] = {}
    for provider, operator in predictor.session.placement:
        nodes.setdefault(provider, Counter())[operator] += 1
    return {
        "provider": predictor.provider,
        "nodes": {provider: dict(count) for provider, count in nodes.items()},
        "max_difference": difference,
        "kernel_calls": counted.total,
        "left_to_cpu": counted.on_cpu,
    }


def describe_probe(found: Mapping[str, Any]) -> str:
    """In a line, such as "1 Conv on CUDAExecutionProvider, within 1.2e-04 of the CPU; ..."."""
    nodes = ", ".join(
        f"{count} {operator} on {provider}"
        for provider, counts in found["nodes"].items()
        for operator, count in counts.items()
    )
    left = f"{found['left_to_cpu']} of {found['kernel_calls']} kernel calls of the network that comes along"
    return f"{found['provider']}: {nodes}, within {found['max_difference']:.1e} of the CPU; {left} on the CPU"


def _write_network(path: Path) -> Path:
    import onnx

    onnx.save(take_network(onnx.load(str(DEMONSTRATION_MODEL))), str(path))
    return path


def _write_convolution(path: Path) -> Path:
    import onnx
    from onnx import helper, numpy_helper

    weight = np.random.default_rng(1).standard_normal((2, 1, 3, 3)).astype(np.float32) / 3.0
    sides: list[str | int] = ["N", 1, "H", "W"]
    graph = helper.make_graph(
        [helper.make_node("Conv", [INPUT_NAME, "weight"], [OUTPUT_NAME], "convolution", pads=[1, 1, 1, 1])],
        "convolution",
        [helper.make_tensor_value_info(INPUT_NAME, onnx.TensorProto.FLOAT, sides)],
        [helper.make_tensor_value_info(OUTPUT_NAME, onnx.TensorProto.FLOAT, [sides[0], 2, *sides[2:]])],
        [numpy_helper.from_array(weight, "weight")],
    )
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=10), str(path))
    return path


def main() -> None:
    """Probe the runtime that standard input names; prints the answer. Errors are answers too."""
    job = json.load(sys.stdin)
    try:
        answer = {"status": "ok", **run_convolution(RUNTIMES[job["runtime"]])}
    except ColorpressError as error:
        differs = isinstance(error, GateError)
        answer = {"status": "error", "error": error.why, "hint": error.hint, "differs": differs}
    except Exception as error:  # whatever a library raises is what doctor has to say
        answer = {"status": "error", "error": f"{type(error).__name__}: {str(error).strip()[:300]}"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
