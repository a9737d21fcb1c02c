"""Which tools are compared: what each one's documentation recommends, and the recipe that does it.

Every peer starts from the float32 graph that colorpress exports: batch norm folded, transposed convolutions rewritten,
any picture size. That is help which these tools do not need to give themselves.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from colorpress.core.errors import ConfigError

BEST = "best"


@dataclass(frozen=True)
class Peer:
    """What one tool makes of best.pt, or of another peer.

    Attributes:
        name: of its folder and of its rows.
        tool: what a reader knows it by.
        recommended: what its documentation advises and the recipe does, with the page `url`.
        distributions: the packages whose versions are recorded.
        runtimes: what runs its file, the file's own first; one row each.
        parent: the peer, or "best", whose float32 graph it starts from.
        recipe: the module that makes it, see `making`; empty where nothing is made and best.pt itself is run.
        requirements: for pip, where the project has not what the recipe needs.
        options: for the recipe.
        files: what the recipe writes, the model first.
    """

    name: str
    tool: str
    recommended: str
    url: str
    distributions: tuple[str, ...]
    runtimes: tuple[str, ...]
    parent: str = BEST
    recipe: str = ""
    requirements: tuple[str, ...] = ()
    options: Mapping[str, str | int | float] = field(default_factory=dict)
    files: tuple[str, ...] = ("model.onnx",)


@dataclass(frozen=True)
class UnmeasuredTool:
    """A tool that was tried and has no recipe: with which version, and what happened."""

    tool: str
    version: str
    happened: str


def _runtime_of_best(runtime: str, recommended: str, page: str) -> Peer:
    url = f"https://docs.pytorch.org/{page}.html"
    return Peer(f"best.pt @ {runtime}", "PyTorch", recommended, url, ("torch",), (runtime,), files=("best.pt",))


_ORT_STATIC = Peer(
    "ort-static",
    "ONNX Runtime quantization",
    "static int8 for CNNs: quant_pre_process, then quantize_static with its defaults (QDQ, min-max)",
    "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html",
    ("onnxruntime",),
    ("onnxruntime",),
    recipe="ort_static_recipe",
    options={"per_channel": False},
)
_NNCF = Peer(
    "nncf",
    "NNCF",
    "nncf.quantize on 300 samples with its defaults, which are for CNNs with ReLU",
    "https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/"
    "basic-quantization-flow.html",
    ("nncf", "openvino"),
    ("openvino",),
    recipe="nncf_recipe",
    requirements=("nncf>=2.18", "openvino>=2025.1"),
    options={"model": "openvino"},
    files=("model.xml", "model.bin"),
)
# What quantizes best.pt and every pruned network alike.
_QUANTIZERS = (
    _ORT_STATIC,
    # Its documentation advises this where accuracy suffers.
    replace(
        _ORT_STATIC,
        name="ort-static-per-channel",
        recommended=f"{_ORT_STATIC.recommended}, per_channel=True",
        options={"per_channel": True},
    ),
    # The OpenVINO model is what its documentation prefers.
    _NNCF,
    replace(
        _NNCF,
        name="nncf-onnx",
        recommended=f"{_NNCF.recommended}; on the ONNX model",
        distributions=("nncf", "onnx"),
        runtimes=("onnxruntime", "openvino"),
        options={"model": "onnx"},
        files=("model.onnx",),
    ),
)


def _torch_pruning(percent: int) -> tuple[Peer, ...]:
    name = f"tp{percent}"
    pruned = Peer(
        name,
        "torch-pruning",
        f"BasePruner with GroupMagnitudeImportance, {percent} % of the channels, round_to=8, the output layer ignored; "
        "then 12 epochs of plain fine-tuning (L1 to the truth, AdamW 1e-3, cosine)",
        "https://github.com/VainF/Torch-Pruning#high-level-pruners",
        ("torch-pruning", "torch"),
        ("onnxruntime", "openvino"),
        recipe="torch_pruning_recipe",
        options={"ratio": percent / 100, "epochs": 12},
        files=("model.onnx", "model.pt"),
    )
    return pruned, *(replace(each, name=f"{name}-{each.name}", parent=name) for each in _QUANTIZERS)


# Parents stand before what is made from them.
PEERS: tuple[Peer, ...] = (
    Peer(
        BEST, "PyTorch exporter and runtimes", "export to ONNX and run that, with the runtimes' defaults",
        "https://docs.pytorch.org/docs/stable/onnx.html", ("torch", "onnxruntime", "openvino"),
        ("onnxruntime", "openvino"),
    ),
    _runtime_of_best(
        "torch-channels-last", "channels-last memory format for convolutions on CPUs",
        "tutorials/recipes/recipes/tuning_guide",
    ),
    _runtime_of_best("torch-bf16", "autocast to bfloat16 on CPUs that have it", "docs/stable/amp"),
    _runtime_of_best("torch-compile", "torch.compile, weights frozen", "docs/stable/generated/torch.compile"),
    _runtime_of_best(
        "torch-compile-bf16", "torch.compile under autocast to bfloat16", "docs/stable/generated/torch.compile"
    ),
    *_QUANTIZERS,
    *_torch_pruning(25),
    *_torch_pruning(50),
    *_torch_pruning(75),
    Peer(
        "olive", "Olive", "a JSON workflow with the pass OnnxStaticQuantization and its defaults",
        "https://microsoft.github.io/Olive/reference/pass.html#onnxstaticquantization",
        ("olive-ai", "onnxruntime"), ("onnxruntime",), recipe="olive_recipe",
        # Version 0.13 imports requests without asking for it.
        requirements=("olive-ai>=0.9", "requests"),
    ),
    Peer(
        "modelopt", "NVIDIA Model Optimizer",
        "modelopt.onnx.quantization.quantize to int8 with its default, entropy; weights stored in int8, float layers "
        "in fp32, since it is for TensorRT and this file runs on a CPU",
        "https://nvidia.github.io/Model-Optimizer/guides/_onnx_quantization.html",
        ("nvidia-modelopt", "onnx"), ("onnxruntime",), recipe="modelopt_recipe",
        requirements=("nvidia-modelopt[onnx]>=0.33",),
    ),
    Peer(
        "aimet", "AIMET",
        "QuantizationSimModel with its defaults (int8, min-max), calibrated, then to_onnx_qdq; weights stored in int8",
        "https://github.com/qualcomm/aimet#readme",
        ("aimet-onnx", "onnx"), ("onnxruntime", "openvino"), recipe="aimet_recipe", requirements=("aimet-onnx>=2.42",),
    ),
)  # fmt: skip

UNMEASURED = (
    UnmeasuredTool(
        "Intel Neural Compressor",
        "neural-compressor-pt 3.10",
        "version 3 has no ONNX back end; what its PT2E static quantization saves is a torch.export program with float "
        "weights, as large as best.pt, and int8 only once torch.compile has frozen it: not a file to ship",
    ),
)


def choose_peers(names: Sequence[str]) -> tuple[Peer, ...]:
    """The peers of these names in their usual order; all of them where none is named.

    Raises:
        ConfigError: there is no such peer; the hint has the nearest name.
    """
    known = {peer.name: peer for peer in PEERS}
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"choose among: {', '.join(known)}"
            raise ConfigError("peer", name, "is unknown", hint)
    return tuple(peer for name, peer in known.items() if not names or name in names)


def with_parents(peers: Sequence[Peer]) -> tuple[Peer, ...]:
    """The peers and every other one that they are made from, parents first."""
    given = {peer.name: peer for peer in peers}
    needed = {*given, *(peer.parent for peer in peers if peer.parent != BEST)}
    return tuple(given.get(peer.name, peer) for peer in PEERS if peer.name in needed)
