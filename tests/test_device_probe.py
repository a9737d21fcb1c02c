"""One convolution on a provider: what it ran on is named, what answers otherwise or dies is an error."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from colorpress.core.errors import GateError, MachineError
from colorpress.doctor import describe_runtime, format_environment
from export import device_probe, sessions
from export.device_probe import describe_probe, probe_runtime, run_convolution
from export.predictors import Floats, OnnxPredictor
from export.runtimes import RUNTIMES

CPU, CUDA, WEBGPU = "CPUExecutionProvider", "CUDAExecutionProvider", "WebGpuExecutionProvider"


class Placed:
    """A session of a machine with a GPU, which none of ours needs to be: what ONNX Runtime says of it, and no more."""

    def __init__(self, providers: list[str], placement: list[tuple[str, str]]) -> None:
        self.placement, self._providers = placement, providers

    def get_providers(self) -> list[str]:
        return self._providers


@pytest.mark.parametrize(
    ("provider", "providers", "placement", "why"),
    [
        ("cuda", [CPU], [], "fell back to the CPU"),
        ("cuda", [CUDA, CPU], [(CUDA, "Conv"), (CPU, "Conv"), (CUDA, "Relu")], "leaves 1 of 2 convolutions"),
        ("cuda", [CUDA, CPU], [(CUDA, "Conv"), (CPU, "QLinearConv")], "leaves 1 of 2 convolutions"),
        ("cuda", [CUDA, CPU], [(CUDA, "Conv"), (CPU, "Shape"), (CPU, "Mod")], ""),
        ("webgpu", [WEBGPU, CPU], [(WEBGPU, "Conv"), (CPU, "Conv")], ""),
        ("webgpu", [WEBGPU, CPU], [(CPU, "Conv"), (WEBGPU, "Relu")], "leaves 1 of 1 convolutions"),
    ],
)
def test_a_session_that_computes_elsewhere_than_asked_is_an_error(
    provider: str, providers: list[str], placement: list[tuple[str, str]], why: str
) -> None:
    session: Any = Placed(providers, placement)
    ask = (session, sessions._PROVIDERS[provider], provider)
    if not why:
        sessions._require_provider_used(*ask)
        return
    with pytest.raises(MachineError, match=why) as caught:
        sessions._require_provider_used(*ask)
    assert caught.value.hint and caught.value.exit_code == 4


def test_a_session_names_the_provider_of_every_node_and_a_process_of_its_own_tells_it() -> None:
    found = probe_runtime("onnxruntime")
    calls = found["kernel_calls"]
    assert found == {
        **{"provider": CPU, "nodes": {CPU: {"Conv": 1}}, "max_difference": 0.0},
        **{"kernel_calls": calls, "left_to_cpu": calls},
    }
    along = f"{calls} of {calls} kernel calls of the network that comes along on the CPU"
    assert describe_probe(found) == f"{CPU}: 1 Conv on {CPU}, within 0.0e+00 of the CPU; {along}" and calls > 20
    if CUDA not in onnxruntime.get_available_providers():
        with pytest.raises(MachineError, match="this ONNX Runtime has no CUDA") as caught:
            probe_runtime("onnxruntime-cuda")
        assert "colorpress[gpu]" in caught.value.hint


def test_another_answer_than_the_cpus_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(OnnxPredictor):
        def __call__(self, lightness: Floats) -> Floats:
            return super().__call__(lightness) + np.float32(self.threads_given * 0.02)

        def __init__(self, path: Path, *, threads: int = 0, **more: Any) -> None:
            super().__init__(path, threads=threads, **more)
            self.threads_given = len(more)  # those of the table are opened with more than the one to compare with

    monkeypatch.setattr("export.runtimes.OnnxPredictor", Wrong)
    with pytest.raises(GateError, match=r"answers a convolution 0\.\d+ away from the CPU"):
        run_convolution(RUNTIMES["onnxruntime"])


def test_a_process_that_dies_is_said_and_doctor_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    died = {"status": "crashed(SIGSEGV)", "error": "libcudnn.so.9: no version"}
    monkeypatch.setattr(device_probe, "run_worker", lambda job, **_: dict(died))
    present = replace(RUNTIMES["onnxruntime-cuda"], require=lambda: None)
    absent = replace(RUNTIMES["onnxruntime-coreml"], require=partial(sessions.require_provider, "coreml"))
    monkeypatch.setattr("export.runtimes.RUNTIMES", {"cuda": present, "coreml": absent})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    found = {name: describe_runtime(name) for name in ("cuda", "coreml")}
    assert found["cuda"]["status"] == "fails" and found["coreml"]["status"] == "absent" and found["coreml"]["hint"]
    probe = {"provider": CUDA, "nodes": {CUDA: {"Conv": 1}}, "max_difference": 0.001}
    probe |= {"kernel_calls": 40, "left_to_cpu": 2}
    found["here"] = {"title": "H", "status": "ok", "why": "", "probe": probe}
    common = {"colorpress": "1", "python": "3", "missing": [], "free_disk_gb": 1.0, "versions": {}}
    lines = [each for each in format_environment({**common, "runtimes": found}).splitlines() if "runtime" in each]
    assert lines == [
        "runtime  cuda, ONNX Runtime + CUDA: fails: its process ended: crashed(SIGSEGV): libcudnn.so.9: no version",
        "runtime  coreml, ONNX Runtime + CoreML: not here: this ONNX Runtime has no CoreML",
        f"runtime  here, H: here: {CUDA}: 1 Conv on {CUDA}, within 1.0e-03 of the CPU; "
        "2 of 40 kernel calls of the network that comes along on the CPU",
    ]
