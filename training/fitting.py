"""The one training loop: the original, and every compressed network distilled from it, are fitted here.

AdamW with a linear warm-up and a cosine decay to zero; gradients clipped; validation on whole photographs after each
epoch; the weights of the epoch with the lowest validation L1 are kept. An interrupted fit goes on from its last
finished epoch, to the same bit on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from colorpress.config import DataConfig, MachineConfig, TrainConfig
from colorpress.console import progress, say
from colorpress.errors import ConfigError, DivergedError, InputError
from colorpress.files import sha256_source
from training.batches import CropLoader
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.device import choose_device
from training.evaluation import prepare_batch, validate_l1
from training.network import ColorNetwork
from training.photos import Photo, hash_photos
from training.unet import hash_weights

WARMUP_SHARE = 0.05
GRADIENT_NORM = 1.0
_FINITE_CHECK_STEPS = 20
# What decides the weights: a fit by other code is another fit.
_CODE = tuple(
    f"training/{name}.py" for name in ("batches", "color", "decoding", "fitting", "network", "photos", "unet")
)

# (answer, L, ab) -> loss; all tensors of one batch on the training device.
Objective = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class FitConfig:
    """How one network is fitted; see the options of the same names in `colorpress.config`."""

    epochs: int
    batch_size: int
    imgsz: int
    val_size: int
    learning_rate: float
    weight_decay: float
    seed: int
    max_pixels: int
    workers: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @staticmethod
    def of(train: TrainConfig, data: DataConfig, machine: MachineConfig) -> FitConfig:
        """The fit that the options of training describe."""
        return FitConfig(
            epochs=train.epochs,
            batch_size=train.batch_size,
            imgsz=train.imgsz,
            val_size=train.val_size,
            learning_rate=train.learning_rate,
            weight_decay=train.weight_decay,
            seed=data.seed,
            max_pixels=data.max_pixels,
            workers=machine.workers,
            device=choose_device(machine.device),
        )

    def identity(self) -> dict[str, Any]:
        """The values that decide the weights: all but where the work runs."""
        values = {**vars(self)}
        del values["workers"], values["device"], values["max_pixels"]
        return values


@dataclass(frozen=True)
class FitResult:
    """A finished fit: `best` is the checkpoint with the lowest validation L1, `history` one row per epoch."""

    best: Checkpoint
    history: tuple[Mapping[str, float], ...]
    epochs_run: int


def l1_objective(answer: Tensor, lightness: Tensor, ab: Tensor) -> Tensor:
    """Plain L1 to the truth."""
    return (answer - ab).abs().mean()


def fit_network(
    network: ColorNetwork,
    train: Sequence[Photo],
    val: Sequence[Photo],
    objective: Objective,
    config: FitConfig,
    *,
    best_path: Path,
    last_path: Path,
    label: str,
    extra: Mapping[str, Any],
    restart: bool = False,
) -> FitResult:
    """Fit `network` in place; writes `best_path` and `last_path` after each epoch that earns it.

    Args:
        network: trained in place; its starting weights are part of what makes a fit the same fit.
        objective: the loss; the history's `train_l1` is the L1 to the truth whatever it is.
        label: what a person reads beside the progress bar.
        extra: primitives kept inside both checkpoints; other ones make another fit.
        restart: start over where the files are of another fit, instead of refusing.
    Raises:
        ConfigError: the files are of a fit with other settings, photographs or starting weights, or one is missing.
        DivergedError: the loss is NaN or Inf; both files are those of the last finite epoch.
        InputError: no photograph of the validation set can be read.
    """
    identity = {
        **config.identity(),
        "photographs": hash_photos(train, val),
        "starting weights": hash_weights(network),
        "code": sha256_source(_CODE),
        **extra,
    }
    network.to(config.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = _make_optimizer(network, config)
    history: list[Mapping[str, float]] = []
    obstacle = _why_not_resumed(best_path, last_path, identity)
    if obstacle and not restart:
        hint = "choose another --output-dir, keep that model with --checkpoint best.pt, or train again with --force"
        raise ConfigError("folder", last_path.parent, obstacle, hint)
    if last_path.exists() and not obstacle:
        history = _resume_(network, optimizer, last_path)
        say(f"{label}: {len(history)} of {config.epochs} epochs are done")
    started_at = len(history)
    with CropLoader(
        train,
        imgsz=config.imgsz,
        batch_size=config.batch_size,
        seed=config.seed,
        workers=config.workers,
        max_pixels=config.max_pixels,
    ) as loader:
        for epoch in range(started_at + 1, config.epochs + 1):
            row = _run_epoch(
                network, optimizer, loader, val, objective, config, epoch, f"{label} {epoch}/{config.epochs}"
            )
            history.append(row)
            checkpoint = Checkpoint(
                architecture=network.architecture,
                state_dict={name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()},
                epoch=epoch,
                val_l1=row["val_l1"],
                history=tuple(history),
                extra={**extra, "fit": identity},
            )
            if row["val_l1"] <= min(past["val_l1"] for past in history):
                save_checkpoint(best_path, checkpoint)
            # After best.pt: a kill in between repeats the epoch and writes the same best.pt again.
            save_checkpoint(last_path, replace(checkpoint, training_state={"optimizer": optimizer.state_dict()}))
    return FitResult(load_checkpoint(best_path), tuple(history), config.epochs - started_at)


def _run_epoch(
    network: ColorNetwork,
    optimizer: torch.optim.Optimizer,
    loader: CropLoader,
    val: Sequence[Photo],
    objective: Objective,
    config: FitConfig,
    epoch: int,
    label: str,
) -> dict[str, float]:
    started = time.monotonic()
    network.train()
    steps = len(loader)
    # Sums stay on the device: reading them each step would make the GPU wait for the host.
    l1_sum = torch.zeros((), device=config.device)
    crops = 0
    with progress(label, steps) as bar:
        for step, rgb in enumerate(loader.epoch(epoch)):
            _set_learning_rate(optimizer, config, ((epoch - 1) * steps + step) / (config.epochs * steps))
            lightness, ab = prepare_batch(rgb, config.device)
            answer = network(lightness.contiguous(memory_format=torch.channels_last))
            loss = objective(answer, lightness, ab)
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            norm = nn.utils.clip_grad_norm_(network.parameters(), GRADIENT_NORM)
            optimizer.step()
            # A gradient that is not finite must be noticed too: times zero it is NaN, else nothing.
            l1_sum += (answer.detach() - ab).abs().mean() * len(rgb) + 0.0 * norm
            crops += len(rgb)
            if step % _FINITE_CHECK_STEPS == 0 or step == steps - 1:
                _check_finite(l1_sum.item(), epoch)
                bar.advance(0, f"L1 {l1_sum.item() / crops:.4f}")
            bar.advance()
    if crops == 0:
        raise InputError("data set", None, "no training photograph could be read", "check the folder given with --data")
    seconds = time.monotonic() - started
    val_l1 = validate_l1(network, val, short_side=config.val_size, max_pixels=config.max_pixels, device=config.device)
    _check_finite(val_l1, epoch)
    row = {
        "epoch": epoch,
        "train_l1": l1_sum.item() / crops,
        "val_l1": val_l1,
        "learning_rate": float(optimizer.param_groups[0]["lr"]),
        "seconds": round(seconds, 3),
        "images_per_s": round(crops / seconds, 3),
    }
    say(f"{label}: train L1 {row['train_l1']:.4f}, validation L1 {val_l1:.4f}, {row['images_per_s']:.1f} images/s")
    return row


def _check_finite(value: float, epoch: int) -> None:
    if not math.isfinite(value):
        raise DivergedError(
            "training",
            None,
            f"the loss became {value} in epoch {epoch}",
            "use a lower --learning-rate; best.pt is the best epoch before",
        )


def _make_optimizer(network: nn.Module, config: FitConfig) -> torch.optim.AdamW:
    # Norms and biases have one dimension: pulling them to zero only shifts activations.
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _set_learning_rate(optimizer: torch.optim.Optimizer, config: FitConfig, done_share: float) -> None:
    if done_share < WARMUP_SHARE:
        factor = 0.1 + 0.9 * done_share / WARMUP_SHARE
    else:
        factor = 0.5 * (1.0 + math.cos(math.pi * (done_share - WARMUP_SHARE) / (1.0 - WARMUP_SHARE)))
    for group in optimizer.param_groups:
        group["lr"] = config.learning_rate * factor


def _why_not_resumed(best_path: Path, last_path: Path, identity: Mapping[str, Any]) -> str:
    """What speaks against going on from these files; empty when nothing does, or when there are none."""
    if not best_path.exists() and not last_path.exists():
        return ""
    if not last_path.exists():
        # A kill between the two files of the first epoch leaves best.pt alone; that epoch is simply trained again.
        first = load_checkpoint(best_path)
        return "" if first.extra.get("fit") == identity and first.epoch == 1 else "holds a best.pt without its last.pt"
    if not best_path.exists():
        return "holds a last.pt without its best.pt"
    try:
        found = load_checkpoint(last_path).extra.get("fit", {})
    except InputError as error:
        return f"holds a damaged training ({error})"
    different = [
        # Hashes say nothing to a person.
        f"other {name}" if isinstance(value, str) and len(value) == 64 else f"{name} {found.get(name)} -> {value}"
        for name, value in identity.items()
        if found.get(name) != value
    ]
    return f"holds a training with other settings: {', '.join(different)}" if different else ""


def _resume_(network: ColorNetwork, optimizer: torch.optim.Optimizer, last_path: Path) -> list[Mapping[str, float]]:
    """Load the state of an interrupted fit into network and optimizer; its history so far."""
    last = load_checkpoint(last_path)
    assert last.training_state is not None
    network.load_state_dict(dict(last.state_dict))
    optimizer.load_state_dict(dict(last.training_state["optimizer"]))
    return list(last.history)
