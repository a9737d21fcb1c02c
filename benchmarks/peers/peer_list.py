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
_ORT_DOCS = "https://onnxruntime.ai/docs/performance/model-optimizations/quantization.html"
_NNCF_DOCS = (
    "https://docs.openvino.ai/2025/openvino-workflow/model-optimization-guide/quantizing-models-post-training/"
    "basic-quantization-flow.html"
)


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


def _runtime_of_best(runtime: str, recommended: str, url: str) -> Peer:
    return Peer(f"best.pt @ {runtime}", "PyTorch", recommended, url, ("torch",), (runtime,), files=("best.pt",))


def _ort_static(prefix: str = "", parent: str = BEST) -> tuple[Peer, Peer]:
    """With its defaults, and with a scale per channel, which its documentation advises where accuracy suffers."""
    defaults = Peer(
        f"{prefix}ort-static",
        "ONNX Runtime quantization",
        "static int8 for CNNs: quant_pre_process, then quantize_static with its defaults (QDQ, min-max)",
        _ORT_DOCS,
        ("onnxruntime",),
        ("onnxruntime",),
        parent=parent,
        recipe="ort_static_recipe",
        options={"per_channel": False},
    )
    per_channel = replace(
        defaults,
        name=f"{defaults.name}-per-channel",
        recommended=f"{defaults.recommended}, per_channel=True",
        options={"per_channel": True},
    )
    return defaults, per_channel


def _nncf(prefix: str = "", parent: str = BEST) -> tuple[Peer, Peer]:
    """On the OpenVINO model, as its documentation prefers, and on the ONNX model."""
    recommended = "nncf.quantize on 300 samples with its defaults, which are for CNNs with ReLU"
    on_openvino = Peer(
        f"{prefix}nncf",
        "NNCF",
        recommended,
        _NNCF_DOCS,
        ("nncf", "openvino"),
        ("openvino",),
        parent=parent,
        recipe="nncf_recipe",
        requirements=("nncf>=2.18", "openvino>=2025.1"),
        options={"model": "openvino"},
        files=("model.xml", "model.bin"),
    )
    on_onnx = Peer(
        f"{prefix}nncf-onnx",
        "NNCF",
        f"{recommended}; on the ONNX model",
        _NNCF_DOCS,
        ("nncf", "onnx"),
        ("onnxruntime", "openvino"),
        parent=parent,
        recipe="nncf_recipe",
        requirements=on_openvino.requirements,
        options={"model": "onnx"},
    )
    return on_openvino, on_onnx


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
    return pruned, *_ort_static(f"{name}-", name), *_nncf(f"{name}-", name)


PEERS: tuple[Peer, ...] = (
    Peer(
        BEST, "PyTorch exporter and runtimes", "export to ONNX and run that, with the runtimes' defaults",
        "https://docs.pytorch.org/docs/stable/onnx.html", ("torch", "onnxruntime", "openvino"),
        ("onnxruntime", "openvino"),
    ),
    _runtime_of_best(
        "torch-channels-last", "channels-last memory format for convolutions on CPUs",
        "https://docs.pytorch.org/tutorials/recipes/recipes/tuning_guide.html",
    ),
    _runtime_of_best(
        "torch-bf16", "autocast to bfloat16 on CPUs that have it", "https://docs.pytorch.org/docs/stable/amp.html"
    ),
    _runtime_of_best(
        "torch-compile", "torch.compile, weights frozen",
        "https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
    ),
    _runtime_of_best(
        "torch-compile-bf16", "torch.compile under autocast to bfloat16",
        "https://docs.pytorch.org/docs/stable/generated/torch.compile.html",
    ),
    *_ort_static(),
    *_nncf(),
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
)  # fmt: skip

UNMEASURED = (
    UnmeasuredTool(
        "Intel Neural Compressor",
        "neural-compressor-pt 3.10",
        "version 3 has no ONNX back end; what its PT2E static quantization saves is a torch.export program with float "
        "weights, as large as best.pt, and int8 only once torch.compile has frozen it: not a file to ship",
    ),
    UnmeasuredTool(
        "AIMET",
        "aimet-onnx 2.42.0",
        "calibrates, then QuantizationSimModel.to_onnx_qdq ends with KeyError: '' at an operator with an optional "
        "input left out (the Pad of the exported graph); its environment takes 5.9 GB",
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
    known = {peer.name: peer for peer in PEERS}
    needed = {peer.name: peer for peer in peers}
    for peer in peers:
        while peer.parent != BEST and peer.parent not in needed:
            peer = known[peer.parent]
            needed[peer.name] = peer
    order = list(known)
    return tuple(sorted(needed.values(), key=lambda each: order.index(each.name) if each.name in known else len(order)))
