"""torch-pruning as its README shows it, and the plain fine-tuning that it leaves to the user.

In this process, since both are dependencies of the project: its own loader and training loop, without anything that
colorpress adds to them (no distillation, no running average, no warm-up, no clipping).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import nn

from colorpress.core.config import Recipe
from colorpress.core.console import silence_libraries
from compress.dependency_graph import copy_network, is_depthwise, layer_widths
from training.checkpoint import save_checkpoint
from training.device import torch_threads
from training.fitting import FitFiles, FitJob, fit_network, forget_fit
from training.losses import L1Loss
from training.network import ColorNetwork
from training.photo_split import PhotoSplit
from training.run_folder import Run

_EXAMPLE_SIDE = 256
# AdamW at 1e-3 that falls to zero by a cosine, batches of 16 random-resized crops of 128 pixels; nothing else.
_PLAIN = Recipe(
    batch_size=16,
    imgsz=128,
    learning_rate=1e-3,
    warmup_share=0.0,
    class_weight=0.0,
    gradient_norm=1e9,  # clips nothing
    ema_decay=0.0,
)
# Its mutable defaults leak from one pruner to the next, so all of them are given.
_EMPTY = (
    *("pruning_ratio_dict", "in_channel_groups", "out_channel_groups", "num_heads", "head_pruning_ratio_dict"),
    *("customized_pruners", "unwrapped_parameters", "channel_groups"),
)


def prune_channels(network: ColorNetwork, ratio: float) -> ColorNetwork:
    """A copy without this share of every layer's channels but the output layer's, rounded to multiples of 8."""
    pruned, kept = copy_network(network), layer_widths(network)
    ignored = [
        module
        for name, module in pruned.named_modules()
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and name not in kept and not is_depthwise(module)
    ]
    example = torch.zeros(1, 1, _EXAMPLE_SIDE, _EXAMPLE_SIDE)
    with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad(), silence_libraries():
        warnings.simplefilter("ignore")
        pruner = tp.pruner.BasePruner(
            pruned,
            example,
            importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=ignored,
            round_to=8,
            forward_fn=lambda traced, lightness: traced.forward_coarse(lightness),
            **{name: {} for name in _EMPTY},
        )
        pruner.step()
    return network.with_weights(pruned.state_dict())


def make_pruned(run: Run, photos: PhotoSplit, folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Write model.pt, the epoch with the lowest validation L1; goes on where it was interrupted.

    Args:
        options: "ratio" of the channels that go, and "epochs".
    Returns:
        Epoch and validation L1 of what is kept, and the seconds of all epochs.
    """
    best = run.load(run.best_path)
    network = prune_channels(best.build_network(), options["ratio"])
    settings = run.settings
    recipe = replace(_PLAIN, epochs=options["epochs"], val_size=settings.score.eval_size)
    extra = {"stage": "peer", "architecture": network.architecture.describe()}
    with torch_threads(settings.machine.threads):
        fitted = fit_network(
            L1Loss(network),
            FitJob(photos.train, photos.val, recipe, settings.data, settings.machine),
            FitFiles(folder / "model.pt", extra, restart=True),
            label=folder.name,
        )
    save_checkpoint(folder / "model.pt", replace(fitted.best, arch=best.arch))
    forget_fit(folder)
    seconds = round(sum(row["seconds"] for row in fitted.history), 1)
    return {"epoch": fitted.best.epoch, "val_l1": fitted.best.val_l1, "seconds": seconds}
