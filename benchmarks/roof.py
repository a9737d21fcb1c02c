"""What this machine can do at most: multiply-accumulates in each precision, bytes to and from memory.

A model's time beside the time that its work takes at these rates says how much is still to be gained on the machine.

Each kernel runs in a process of its own, `python -m benchmarks.roof`. Its job comes as JSON on standard input: `kernel`
(a name in KERNELS), `threads` and `seconds`; the answer is one line of JSON. Every kernel has work enough to keep the
processor busy, and what stands around it (copies in and out, other memory layouts) is small beside it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.rows import Row
from colorpress.core.console import progress
from export.timing import run_worker

if TYPE_CHECKING:  # each kernel's process imports its own runtime alone
    import onnx

# A call, and its work: multiply-accumulates, or bytes read and written.
Work = tuple[Callable[[], object], float]
# A short call has better odds of going undisturbed, a long one keeps more threads busy: each kernel runs at two scales.
_FEW_THREADS, _SCALES_OF_FEW, _SCALES_OF_MANY = 8, (1, 2), (2, 4)
_MATRIX_SIDE, _PICTURE_SIDE = 512, 32
# Wide enough for any vector unit.
_CHANNELS = 128
# Convolutions in a row: the first and the last one also pay for the change of layout.
_CHAIN = 4
_OPSET, _IR_VERSION = 18, 8
_TORCH_TYPES = {"fp32": "float32", "bf16": "bfloat16"}
_WARMUP_CALLS, _LEAST_CALLS = 1, 3
_COPY_BYTES = 256_000_000
_TIMEOUT_S = 60.0
# A picture has one channel on its way in and two on its way out, in float32.
_BYTES_PER_PIXEL = (1 + 2) * 4


@dataclass(frozen=True)
class Roof:
    """The rates that no kernel tried here exceeded.

    Attributes:
        threads: of the CPU, for all rates.
        macs_per_s: multiply-accumulates per second by what is computed in: "fp32", "bf16" and "int8". One that no
            kernel could run in is missing.
        kernels: the name of the fastest kernel of each.
        bytes_per_s: memory bandwidth, bytes read and bytes written of a copy together; None: it could not be measured.
    """

    threads: int
    macs_per_s: Mapping[str, float]
    kernels: Mapping[str, str]
    bytes_per_s: float | None


def measure_roof(*, threads: int, seconds: float = 0.4) -> Roof:
    """Run every kernel in a fresh process, one at a time, and keep the fastest of each kind.

    Kernels of the libraries that run the models, not of a vendor's specification: matrix products and convolutions
    of PyTorch, ONNX Runtime and OpenVINO. One that cannot run here is left out. Takes ten to twenty seconds.

    Args:
        threads: of the CPU, at least 1.
        seconds: that each kernel is timed for, after a quarter of it as warm-up.
    """
    rates: dict[str, dict[str, float]] = {}
    with progress("measuring the roofline", len(KERNELS)) as bar:
        for name, (kind, _) in KERNELS.items():
            job = {"kernel": name, "threads": threads, "seconds": seconds}
            answer = run_worker(job, threads=threads, timeout_s=_TIMEOUT_S, module=sys.modules[__name__])
            if answer["status"] == "ok":
                rates.setdefault(kind, {})[name] = float(answer["rate"])
            bar.advance(note=name)
    copies = rates.pop("copy", {})
    kernels = {kind: max(of_kind, key=of_kind.__getitem__) for kind, of_kind in rates.items()}
    return Roof(
        threads=threads,
        macs_per_s={kind: rates[kind][name] for kind, name in kernels.items()},
        kernels=kernels,
        bytes_per_s=max(copies.values(), default=None),
    )


def lower_bound_ms(row: Row, roof: Roof) -> float | None:
    """The least time of one call on this machine, in milliseconds, if nothing but arithmetic and memory cost any.

    The roofline model: the larger of the time that the multiply-accumulates take at the highest rate of their
    precision and the time that the bytes take at the memory's bandwidth. Only bytes that every call must move are
    counted, which are the weights, the picture and the answer. Activations between layers are not, as they may stay in
    a cache, nor is anything that is no multiply-accumulate: a real call takes longer. Weights that stay in a cache
    from call to call cost less than is counted; they are small beside the arithmetic.

    Args:
        row: of a call of the CPU on `roof.threads` threads.
    Returns:
        None where the multiply-accumulates, or the rate of what it computes in, are unknown.
    Source: Williams, Waterman, Patterson, "Roofline: an insightful visual performance model for multicore
        architectures", CACM 52(4), 2009.
    """
    rate = roof.macs_per_s.get(row.compute or "")
    if not row.macs or not rate:
        return None
    arithmetic_s = row.macs * row.batch / rate
    moved_bytes = (row.weights_bytes or 0) + row.batch * row.height * row.width * _BYTES_PER_PIXEL
    memory_s = moved_bytes / roof.bytes_per_s if roof.bytes_per_s else 0.0
    return float(1000.0 * max(arithmetic_s, memory_s))


def format_roof(roof: Roof) -> str:
    """The roof as one line for a terminal."""
    rates = [f"{kind} {rate / 1e9:.0f} GMAC/s ({roof.kernels[kind]})" for kind, rate in roof.macs_per_s.items()]
    rates += [f"memory {roof.bytes_per_s / 1e9:.1f} GB/s"] if roof.bytes_per_s else []
    return f"roof on {roof.threads} {'thread' if roof.threads == 1 else 'threads'}: {', '.join(rates) or 'unknown'}"


def run_job(job: Mapping[str, Any]) -> dict[str, Any]:
    """Build the kernel, warm it up and time it.

    Returns:
        rate: the best of all calls, in work per second, since noise only ever takes away from it. calls: how many.
    """
    threads, build = int(job["threads"]), KERNELS[job["kernel"]][1]
    scales = _SCALES_OF_FEW if threads <= _FEW_THREADS else _SCALES_OF_MANY
    seconds = float(job["seconds"]) / len(scales)
    rates: list[float] = []
    for scale in scales:
        call, work = build(threads, scale)
        _time_calls(call, _WARMUP_CALLS, seconds / 4)
        rates += [work / time_ns * 1e9 for time_ns in _time_calls(call, _LEAST_CALLS, seconds)]
    return {"status": "ok", "rate": max(rates), "calls": len(rates)}


def _time_calls(call: Callable[[], object], least: int, seconds: float) -> list[int]:
    times_ns: list[int] = []
    end = time.perf_counter_ns() + int(seconds * 1e9)
    while len(times_ns) < least or time.perf_counter_ns() < end:
        started = time.perf_counter_ns()
        call()
        times_ns.append(time.perf_counter_ns() - started)
    return times_ns


def _copy(threads: int, scale: int) -> Work:
    """A copy much larger than the caches at every scale, each thread its own part; numpy holds no lock meanwhile."""
    from concurrent.futures import ThreadPoolExecutor

    import psutil

    length = min(_COPY_BYTES, psutil.virtual_memory().available // 8) // 4
    source, target = np.ones(length, np.float32), np.zeros(length, np.float32)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    pool = ThreadPoolExecutor(threads)

    def call() -> object:
        return list(pool.map(lambda part: np.copyto(*part), parts))

    return call, 2.0 * source.nbytes


def _torch_matmul(threads: int, scale: int, precision: str) -> Work:
    import torch

    torch.set_num_threads(threads)
    side = scale * _MATRIX_SIDE
    if precision == "int8":
        left, right = torch.randint(-128, 128, (2, side, side), dtype=torch.int8)
        return partial(torch._int_mm, left, right), float(side**3)
    left, right = torch.rand(2, side, side).to(getattr(torch, _TORCH_TYPES[precision]))
    return partial(torch.mm, left, right), float(side**3)


def _torch_conv(threads: int, scale: int, precision: str) -> Work:
    import torch

    torch.set_num_threads(threads)
    side = scale * _PICTURE_SIDE
    weight, picture = (
        torch.rand(shape).to(getattr(torch, _TORCH_TYPES[precision]), memory_format=torch.channels_last)
        for shape in ((_CHANNELS, _CHANNELS, 3, 3), (1, _CHANNELS, side, side))
    )
    return partial(torch.conv2d, picture, weight, padding=1), _conv_macs(side)


def _conv_macs(side: int) -> float:
    return 9.0 * _CHANNELS**2 * side**2


def _onnx_conv(threads: int, scale: int, precision: str) -> Work:
    side = scale * _PICTURE_SIDE
    return _onnx_call(_build_convolutions(side, in_int8=precision == "int8"), threads), _CHAIN * _conv_macs(side)


def _onnx_matmul(threads: int, scale: int, precision: str) -> Work:
    side = scale * _MATRIX_SIDE
    return _onnx_call(_build_matmul(side, in_int8=precision == "int8"), threads), float(side**3)


def _onnx_call(model: onnx.ModelProto, threads: int) -> Callable[[], object]:
    from export.sessions import open_session

    session = open_session(Path("roof"), model.SerializeToString(), provider="cpu", threads=threads)
    return partial(session.run, None, {"x": _input_of(model)})


def _openvino_conv(threads: int, scale: int, precision: str) -> Work:
    import openvino

    side = scale * _PICTURE_SIDE
    model = _build_convolutions(side, in_int8=precision == "int8")
    # int8 is in the graph itself.
    hint = "bf16" if precision == "bf16" else "f32"
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": hint}
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", settings)
    computed = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
    if computed != hint:
        raise RuntimeError(f"OpenVINO computes in {computed} where {hint} was asked for")
    call = partial(compiled.create_infer_request().infer, {0: _input_of(model)}, share_inputs=True)
    return call, _CHAIN * _conv_macs(side)


def _build_convolutions(side: int, *, in_int8: bool) -> onnx.ModelProto:
    """A chain of 3x3 convolutions, in float32 or between QuantizeLinear and DequantizeLinear as in an exported file.

    In int8, activations are uint8, weights int8 with a scale for each channel, and `x` comes in 8 bits already.
    """
    generator = np.random.default_rng(0)
    spread = (9 * _CHANNELS) ** -0.5  # keeps the values of the chain in range
    values = ["x", *(f"x{index}" for index in range(1, _CHAIN)), "y"]
    constants: dict[str, Any] = {}
    nodes = []
    for index, (before, after) in enumerate(pairwise(values)):
        weights = generator.standard_normal((_CHANNELS, _CHANNELS, 3, 3)) * spread
        if not in_int8:
            constants[f"w{index}"] = weights.astype(np.float32)
            nodes.append(f"{after} = Conv <pads = [1, 1, 1, 1]> ({before}, w{index})")
            continue
        constants |= {
            f"w{index}": (weights / spread * 40).clip(-127, 127).astype(np.int8),
            f"w{index}_scale": np.full(_CHANNELS, spread / 40, np.float32),
            f"w{index}_zero": np.zeros(_CHANNELS, np.int8),
            "scale": np.float32(1 / 255),
            "zero": np.uint8(0),
        }
        nodes += [
            f"{before}_f = DequantizeLinear ({before}, scale, zero)",
            f"w{index}_f = DequantizeLinear <axis = 0> (w{index}, w{index}_scale, w{index}_zero)",
            f"{after}_sum = Conv <pads = [1, 1, 1, 1]> ({before}_f, w{index}_f)",
            f"{after} = QuantizeLinear ({after}_sum, scale, zero)",
        ]
    kind = "uint8" if in_int8 else "float"
    return _build_model(nodes, constants, f"[1, {_CHANNELS}, {side}, {side}]", kind, kind)


def _build_matmul(side: int, *, in_int8: bool) -> onnx.ModelProto:
    weights = (np.random.default_rng(0).standard_normal((side, side)) * 40).clip(-127, 127)
    node = f"y = {'MatMulInteger' if in_int8 else 'MatMul'} (x, w)"
    constants = {"w": weights.astype(np.int8 if in_int8 else np.float32)}
    kinds = ("uint8", "int32") if in_int8 else ("float", "float")
    return _build_model([node], constants, f"[{side}, {side}]", *kinds)


def _build_model(
    nodes: Sequence[str], constants: Mapping[str, Any], shape: str, input_kind: str, output_kind: str
) -> onnx.ModelProto:
    """A model `x` -> `y`, both of `shape`, in ONNX's textual syntax."""
    from onnx import numpy_helper, parser

    head = f'<ir_version: {_IR_VERSION}, opset_import: ["": {_OPSET}]>'
    body = "\n".join(nodes)
    model = parser.parse_model(f"{head} roof ({input_kind}{shape} x) => ({output_kind}{shape} y) {{ {body} }}")
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    model.graph.initializer.extend(tensors)
    return model


def _input_of(model: onnx.ModelProto) -> Any:
    from onnx import helper

    tensor = model.graph.input[0].type.tensor_type
    random = np.random.default_rng(1).random([each.dim_value for each in tensor.shape.dim])
    element = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    return (random * 255 if element == np.uint8 else random).astype(element)


# By name: what it computes in ("copy": nothing), and what builds it for a number of threads at a scale.
KERNELS: dict[str, tuple[str, Callable[[int, int], Work]]] = {
    "numpy copy": ("copy", _copy),
    "torch.mm": ("fp32", partial(_torch_matmul, precision="fp32")),
    "ONNX Runtime MatMul": ("fp32", partial(_onnx_matmul, precision="fp32")),
    "ONNX Runtime Conv 3x3": ("fp32", partial(_onnx_conv, precision="fp32")),
    "OpenVINO Conv 3x3": ("fp32", partial(_openvino_conv, precision="fp32")),
    "torch.mm bf16": ("bf16", partial(_torch_matmul, precision="bf16")),
    "torch Conv 3x3 bf16": ("bf16", partial(_torch_conv, precision="bf16")),
    "OpenVINO Conv 3x3 bf16": ("bf16", partial(_openvino_conv, precision="bf16")),
    "torch._int_mm": ("int8", partial(_torch_matmul, precision="int8")),
    "ONNX Runtime MatMulInteger": ("int8", partial(_onnx_matmul, precision="int8")),
    "ONNX Runtime QLinearConv 3x3": ("int8", partial(_onnx_conv, precision="int8")),
    "OpenVINO Conv 3x3 int8": ("int8", partial(_openvino_conv, precision="int8")),
}


def main() -> None:
    """Read a job, print its answer as the last line of standard output. Errors are answers too."""
    job = json.load(sys.stdin)
    try:
        answer = run_job(job)
    except Exception as error:  # a kernel that this machine does not have is left out
        answer = {"status": "error", "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
