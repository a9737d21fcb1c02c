"""What this machine can do at most: multiply-accumulates in each precision, bytes to and from memory.

A model's time beside the time that its work takes at these rates says how much is still to be gained on the machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks import roof_worker
from benchmarks.roof_worker import KERNELS
from benchmarks.rows import Row
from colorpress.core.console import progress
from export.timing import run_worker

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
    """Run every kernel of `roof_worker` in a fresh process, one at a time, and keep the fastest of each kind.

    Kernels of the libraries that run the models, not of a vendor's specification: matrix products and convolutions
    of PyTorch, ONNX Runtime and OpenVINO. One that cannot run here is left out. Takes ten to twenty seconds.

    Args:
        threads: of the CPU, at least 1.
        seconds: that each kernel is timed for, after a quarter of it as warm-up.
    """
    rates: dict[str, dict[str, float]] = {}
    with progress("the machine's roof", len(KERNELS)) as bar:
        for name, (kind, _) in KERNELS.items():
            job = {"kernel": name, "threads": threads, "seconds": seconds}
            answer = run_worker(job, threads=threads, timeout_s=_TIMEOUT_S, module=roof_worker)
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
