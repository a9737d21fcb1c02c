"""The one training loop: the original, and every compressed network distilled from it, are fitted here.

Muon and AdamW, clipped gradients, a running average of the weights; the epoch with the lowest L1 on whole validation
photographs is kept. A fit that was interrupted goes on after the last finished epoch, or inside one when a signal
stopped it; to the same bit on the same machine with the same number of threads. Several processes of torchrun share
each batch and compute what one process would.
"""

from __future__ import annotations

import copy
import itertools
import math
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from colorpress.core.config import DataConfig, MachineConfig, Recipe
from colorpress.core.console import progress, say, warn
from colorpress.core.errors import ConfigError, DivergedError, InputError, Interrupted, MachineError
from colorpress.core.files import sha256_bytes
from colorpress.core.processes import is_main_process, process_count, process_rank, share_answer, sum_over_processes_
from colorpress.core.reading import as_damaged
from colorpress.core.signals import STOPPING, obey_as_any_process
from colorpress.core.source_code import hash_code
from training.batches import AnswerFolder, CropAnswers, CropLoader, Crops
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.device import choose_device, choose_layout, choose_precision, float32_pictures
from training.losses import Loss, prepare_batch
from training.metrics import validate_l1
from training.network import copy_weights
from training.optimizer import make_optimizers, step_
from training.photos import Photo, hash_photos
from training.schedule import has_stalled, learning_rate_at
from training.shared_batch_norm import share_batch_norm_
from training.unet import hash_weights

_FINITE_CHECK_STEPS = 20
# What `_Fit` knows of the epoch under way.
_COUNTERS = ("step", "seconds", "crops", "l1_sum")


@dataclass(frozen=True)
class FitResult:
    """A finished fit: `best` is the checkpoint with the lowest validation L1, `history` one row per epoch."""

    best: Checkpoint
    history: tuple[Mapping[str, float], ...]
    epochs_run: int


@dataclass(frozen=True)
class FitJob:
    """What a network is fitted to, and how.

    Attributes:
        recipe, data, machine: all of the recipe; of `data` the seed and max_pixels; of `machine` device and workers.
        answers: what a teacher answered to the crops, for a loss that learns from it.
        target: what a teacher answered to the validation photographs, where the best epoch is the one that is nearest
            to it; None: the one nearest to the truth. The validation L1 is the distance to it.
    """

    train: Sequence[Photo]
    val: Sequence[Photo]
    recipe: Recipe
    data: DataConfig
    machine: MachineConfig
    answers: CropAnswers | None = None
    target: AnswerFolder | None = None


@dataclass(frozen=True)
class FitFiles:
    """Where a fit is kept.

    Attributes:
        best_path: of the epoch with the lowest validation L1. Beside it is what an interrupted fit goes on from,
            `last.pt`; the generation before, `last.prev.pt`, serves when that is damaged.
        extra: primitives kept inside both checkpoints; other ones make another fit.
        restart: start over where the files are of another fit, instead of refusing.
    """

    best_path: Path
    extra: Mapping[str, Any]
    restart: bool = False


def fit_network(criterion: Loss, job: FitJob, files: FitFiles, *, label: str) -> FitResult:
    """Fit the network of `criterion` in place; writes both files after each epoch that earns it.

    Args:
        criterion: the network, whose starting weights are part of what makes a fit the same fit, and its loss; the
            history's `train_l1` is the L1 to the truth whatever the loss is.
        label: what a person reads beside the progress bar.
    Raises:
        ConfigError: the files are of a fit with other settings, photographs or starting weights, or one is missing;
            or the batch is smaller than the number of processes.
        DivergedError: the loss is NaN or Inf; both files are those of the last finite epoch.
        InputError: no photograph can be read.
        Interrupted: SIGINT or SIGTERM came; last.pt holds the state after the last finished step.
    """
    recipe = job.recipe
    if recipe.batch_size < process_count():
        why = f"got {recipe.batch_size} for {process_count()} processes"
        raise ConfigError("option", "--batch-size", why, "give each process at least one crop")
    device = choose_device(job.machine.device)
    identity = _identify(criterion, job, files.extra)
    found = share_answer(lambda: _find_interrupted(files, identity))
    fit = _Fit(criterion, job, files, identity, device)
    if found is not None:
        fit.restore_(found)
        inside = f" and {fit.step} steps" if fit.step else ""
        say(f"{label}: {len(fit.history)} of {recipe.epochs} epochs{inside} are done")
    started_at = len(fit.history)
    with fit.loader, float32_pictures(criterion):
        while fit.epoch <= recipe.epochs and not has_stalled(fit.history, recipe.patience, recipe.min_delta):
            fit.fit_epoch_(f"{label} {fit.epoch}/{recipe.epochs}")
    if len(fit.history) < recipe.epochs:
        say(f"{label}: stopped early, since {recipe.patience} epochs brought no lower validation L1")
    best = share_answer(lambda: load_checkpoint(files.best_path))
    return FitResult(best, tuple(fit.history), len(fit.history) - started_at)


def _identify(criterion: Loss, job: FitJob, extra: Mapping[str, Any]) -> dict[str, Any]:
    """All that makes a fit the same fit."""
    module = type(criterion).__module__
    # The floor below computes nothing of a fit: what its options decide is named here.
    code = (hash_code(__name__, within="training"), hash_code(module, within=module.partition(".")[0]))
    return {
        # Compiled or not, the weights are the same.
        **{name: value for name, value in vars(job.recipe).items() if name != "compile"},
        "seed": job.data.seed,
        "photographs": hash_photos(job.train, job.val),
        "target": job.target.folder.name if job.target else "the truth",
        "starting weights": hash_weights(criterion.network),
        "code": sha256_bytes("".join(code).encode()),
        **extra,
    }


@contextmanager
def _held_signals() -> Iterator[Callable[[], int]]:
    """Obey SIGINT and SIGTERM at the end of a block instead of inside it; a second one ends the process at once.

    Yields:
        A function that answers the number of the signal that came, 0 for none.
    Raises:
        Interrupted: one came; at the end of the block.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0  # Python delivers signals to the main thread alone
        return
    received = 0

    def note(number: int, frame: object) -> None:
        nonlocal received
        received = number
        obey_as_any_process()

    before = {each: signal.signal(each, note) for each in STOPPING}
    try:
        yield lambda: received
    finally:
        if not received:
            for each, handler in before.items():
                signal.signal(each, handler)
    if received:
        raise Interrupted(received)


class _RunningAverage:
    """A network whose weights and buffers are running averages of those of another, which keeps its tensors.

    To the same bit what `torch.optim.swa_utils.AveragedModel` makes, which looks all tensors up anew in each step and
    takes five times as long for a small network.

    Attributes:
        network: with the averages; as the other was at first.
        has_begun: whether there is an average to go on from; else the next update takes the other's weights.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network, self.has_begun = copy.deepcopy(network), False
        self._pairs: defaultdict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for own, other in zip(_tensors_of(self.network), _tensors_of(network), strict=True):
            for each, tensor in zip(self._pairs[own.dtype], (own, other), strict=True):
                each.append(tensor.detach())

    def update_(self, decay: float) -> None:
        """Keep `decay` of what there is, and take the rest of the other network's weights."""
        average = get_ema_multi_avg_fn(decay) if self.has_begun else _copy_all_  # type: ignore[no-untyped-call]
        for own, other in self._pairs.values():
            average(own, other, None)
        self.has_begun = True


def _tensors_of(network: nn.Module) -> Iterator[Tensor]:
    return itertools.chain(network.parameters(), network.buffers())


def _copy_all_(own: list[Tensor], other: list[Tensor], _: None) -> None:
    torch._foreach_copy_(own, other)


class _Fit:
    """A fit under way: its state, which is all that an interrupted one needs to go on, and the arithmetic."""

    def __init__(
        self, criterion: Loss, job: FitJob, files: FitFiles, identity: Mapping[str, Any], device: torch.device
    ) -> None:
        self.criterion, self.job, self.files, self.device = criterion, job, files, device
        self.recipe = recipe = job.recipe
        self.extra = {**files.extra, "fit": identity}  # of both checkpoints
        criterion.to(device, memory_format=choose_layout(criterion, device))  # type: ignore[call-overload]
        if process_count() > 1:
            share_batch_norm_(criterion.network)
        self.scaler = torch.amp.GradScaler(device.type, enabled=recipe.precision == "fp16")
        self.optimizers = make_optimizers(criterion, recipe)
        self.average = _RunningAverage(criterion.network) if recipe.ema_decay else None
        self.history: list[Mapping[str, float]] = []
        # Of the epoch under way, in all processes: steps done, seconds spent, crops seen and the sum of their L1.
        self.step, self.seconds, self.crops, self.l1_sum = 0, 0.0, 0, 0.0
        self.dtype = choose_precision(recipe.precision, device)
        self.forward = _make_forward(criterion, device, compiled=recipe.compile)
        part = (process_rank(), process_count())
        workers = job.machine.workers
        self.loader = CropLoader(job.train, recipe, job.data, workers=workers, answers=job.answers, part=part)

    @property
    def epoch(self) -> int:
        """The epoch under way, from 1."""
        return len(self.history) + 1

    def kept(self) -> nn.Module:
        """What is validated and kept: the network or its running average."""
        return self.criterion.network if self.average is None else self.average.network

    def to_checkpoint(self) -> Checkpoint:
        """What is kept of the epoch that ended last, without the state that training needs."""
        return Checkpoint(
            architecture=self.criterion.network.architecture,
            state_dict=copy_weights(self.kept()),
            epoch=len(self.history),
            val_l1=self.history[-1]["val_l1"] if self.history else None,
            history=tuple(self.history),
            extra=self.extra,
        )

    def save(self) -> None:
        """Write all that changes to last.pt, in the main process; the generation before is kept."""
        if not is_main_process():
            return
        training_state = {
            "trained": copy_weights(self.criterion),
            "optimizers": [each.state_dict() for each in self.optimizers],
            "scaler": self.scaler.state_dict(),
            **{name: getattr(self, name) for name in _COUNTERS},
        }
        checkpoint = replace(self.to_checkpoint(), training_state=training_state)
        last_path, previous = _generations(self.files.best_path.parent)
        if last_path.exists():
            last_path.replace(previous)
        save_checkpoint(last_path, checkpoint)

    def restore_(self, last: Checkpoint) -> None:
        """Go back to the state that `last` holds; changes the network.

        Raises:
            InputError: it is no state of this fit.
        """
        saved = last.training_state
        assert saved is not None
        with as_damaged("checkpoint", str(last.path), "train again with --force"):
            if not all({"epoch", "train_l1", "val_l1"} <= row.keys() for row in last.history):
                raise ValueError("its history lacks figures of an epoch")
            self.history = list(last.history)
            for name in _COUNTERS:
                if type(saved[name]) not in (int, float) or not 0 <= saved[name] < math.inf:
                    raise ValueError(f"its {name} is no number of a training")
                setattr(self, name, saved[name])
            try:
                self.criterion.load_state_dict(saved["trained"])
                for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
                    optimizer.load_state_dict(state)
                self.scaler.load_state_dict(saved["scaler"])
                if self.average is not None:
                    self.average.network.load_state_dict(dict(last.state_dict))
                    self.average.has_begun = True
            except RuntimeError as error:  # PyTorch's word for weights that do not fit
                raise ValueError(f"its state does not fit ({error})") from error

    def fit_epoch_(self, title: str) -> None:
        """Train what is left of the epoch under way, validate, and keep what earns it; a signal saves and raises."""
        limits = {"short_side": self.recipe.val_size, "max_pixels": self.job.data.max_pixels}
        try:
            self.finish_epoch_(title)
            val_l1 = validate_l1(self.kept(), self.job.val, **limits, device=self.device, target=self.job.target)
        except Interrupted:
            self.save()
            raise
        with _held_signals():
            row = self.close_epoch_(val_l1)
            if is_main_process() and val_l1 <= min(past["val_l1"] for past in self.history):
                save_checkpoint(self.files.best_path, self.to_checkpoint())
            # After best.pt: a kill in between repeats the epoch and writes the same best.pt again.
            self.save()
            said = "validation L1" if self.job.target is None else "L1 to the teacher's answers"
            say(f"{title}: train L1 {row['train_l1']:.4f}, {said} {val_l1:.4f}, {row['images_per_s']} images/s")

    def finish_epoch_(self, title: str) -> None:
        """Do the steps that are left of the epoch under way; a signal ends them by Interrupted, after a whole step."""
        steps = len(self.loader)
        self.criterion.network.train()
        resumed, started = self.seconds, time.monotonic()
        # Sums stay on the device: reading them each step would make the GPU wait for the host.
        before = self.l1_sum if is_main_process() else 0.0
        l1_sum = torch.full((), before, device=self.device, dtype=torch.float64)
        stop = 0
        with _held_signals() as received, progress(title, steps) as bar:
            bar.advance(self.step)
            try:
                for crops in self.loader.epoch(self.epoch, start=self.step):
                    count, stop = _agree(len(crops), received())
                    if stop:
                        break
                    if count:
                        self._step_(crops, count, l1_sum)
                    self.step += 1
                    self.crops += count
                    self.seconds = resumed + time.monotonic() - started
                    if self.step % _FINITE_CHECK_STEPS == 0 or self.step == steps:
                        self._check_finite(l1_sum.item())
                        bar.advance(0, f"L1 {l1_sum.item() * process_count() / max(1, self.crops):.4f}")
                    bar.advance()
            except MachineError:
                # A signal to all processes of a group ends those that load before this one obeys.
                if not received():
                    raise
            self.l1_sum = sum_over_processes_(l1_sum).item()
            if stop:
                raise Interrupted(stop)
        if self.crops == 0:
            why = "no training photograph could be read"
            raise InputError("data set", None, why, "check the folder given with --data")

    def close_epoch_(self, val_l1: float) -> Mapping[str, float]:
        """The row of the epoch that ended, which is now part of the history."""
        self._check_finite(val_l1)
        row = {
            "epoch": self.epoch,
            "train_l1": self.l1_sum / self.crops,
            "val_l1": val_l1,
            "learning_rate": float(self.optimizers[0].param_groups[0]["lr"]),
            "seconds": round(self.seconds, 3),
            "images_per_s": round(self.crops / self.seconds, 1),
        }
        self.history.append(row)
        self.step, self.seconds, self.crops, self.l1_sum = 0, 0.0, 0, 0.0
        return row

    def _step_(self, crops: Crops, count: int, l1_sum: Tensor) -> None:
        """One step on this process's part of a batch of `count` crops."""
        recipe = self.recipe
        share = len(crops) * process_count() / count
        if not len(crops):
            crops = crops.blank()  # its part was lost, but the others wait for its sums
        if count == 1 and crops.rgb.shape[-1] <= self.criterion.network.size_multiple:
            crops = crops.twice()  # batch norm has no variance of the one value that is left at the deepest level
        done = len(self.history) * len(self.loader) + self.step
        if recipe.dropout:
            _seed_dropout(self.job.data.seed, done)
        rate = learning_rate_at(recipe, done / (recipe.epochs * len(self.loader)), self.history)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        batch = prepare_batch(crops, self.device)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            answered = self.forward(batch.lightness)
        loss, l1 = self.criterion.loss(answered, batch)
        # Gradients are averaged over processes: a larger part of the batch counts for more.
        loss = loss * share
        self.criterion.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(loss))
        norm = step_(self.optimizers, self.criterion, self.scaler, recipe.gradient_norm)
        if self.average is not None:
            # A young average forgets faster, or the first weights would stay in it for long.
            self.average.update_(min(recipe.ema_decay, (1 + done) / (10 + done)))
        # A gradient that is not finite must be noticed too: times zero it is NaN, else nothing. Scaled gradients may
        # be infinite; the scaler then leaves the step out and scales less.
        lost = 0.0 if self.scaler.is_enabled() else 0.0 * norm
        l1_sum += l1 * (share * count / process_count()) + lost

    def _check_finite(self, value: float) -> None:
        if not math.isfinite(value):
            why = f"the loss became {value} in epoch {self.epoch}"
            raise DivergedError("training", None, why, "use a lower --learning-rate; best.pt is the best epoch before")


def _make_forward(criterion: Loss, device: torch.device, *, compiled: bool) -> Callable[[Tensor], Any]:
    """What answers in training: the criterion itself, compiled or shared by several processes where that is asked."""
    forward: Callable[[Tensor], Any] = criterion
    if process_count() > 1:
        forward = nn.parallel.DistributedDataParallel(
            criterion,
            device_ids=[device] if device.type == "cuda" else None,
            broadcast_buffers=False,  # all processes have the same ones already
            gradient_as_bucket_view=True,
        )
    if not compiled:
        return forward
    if device.type == "cpu" and not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        raise MachineError("option", "--compile", "no C++ compiler found", "install g++, or leave it out")
    return torch.compile(forward)


def _agree(crops: int, signal_number: int) -> tuple[int, int]:
    """How many crops the processes hold together, and the signal that any of them was sent (0: none)."""
    both = torch.zeros(process_count(), 2, dtype=torch.int64)
    both[process_rank()] = torch.tensor([crops, signal_number])
    sum_over_processes_(both)
    return int(both[:, 0].sum()), int(both[:, 1].max())


def _seed_dropout(seed: int, step: int) -> None:
    """By step and process, so that it does not depend on where an interruption was."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, process_rank())).generate_state(1)[0]))


def _generations(folder: Path) -> tuple[Path, Path]:
    """The state that an interrupted fit goes on from, and the one before."""
    return folder / "last.pt", folder / "last.prev.pt"


def forget_fit(folder: Path) -> None:
    """Remove what an interrupted fit would go on from."""
    for path in _generations(folder):
        path.unlink(missing_ok=True)


def _find_interrupted(files: FitFiles, identity: Mapping[str, Any]) -> Checkpoint | None:
    """The state that this fit goes on from; None starts it.

    Raises:
        ConfigError: something speaks against going on, and `files.restart` is False.
    """
    last, folder = None, files.best_path.parent
    try:
        last = _load_newest(folder)
        obstacle = _why_not_resumed(files.best_path, last, identity)
    except InputError as error:
        obstacle = f"holds a damaged training ({error})"
    if not obstacle:
        return last
    if not files.restart:
        hint = "choose another --output-dir, keep that model with --checkpoint best.pt, or train again with --force"
        raise ConfigError("folder", folder, obstacle, hint)
    forget_fit(folder)
    return None


def _load_newest(folder: Path) -> Checkpoint | None:
    """`last.pt`, or the generation before it where that is missing or damaged."""
    last_path, previous = _generations(folder)
    try:
        if last_path.exists():
            return load_checkpoint(last_path)
    except InputError as error:
        if not previous.exists():
            raise
        warn(f"{error}; going on from {previous.name}, one epoch earlier")
    return load_checkpoint(previous) if previous.exists() else None


def _why_not_resumed(best_path: Path, last: Checkpoint | None, identity: Mapping[str, Any]) -> str:
    """What speaks against going on from `last`; empty when nothing does."""
    if last is None:
        # A kill between the two files of the first epoch leaves best.pt alone; that epoch is simply trained again.
        first = load_checkpoint(best_path) if best_path.exists() else None
        alone = first is None or (first.extra.get("fit") == identity and first.epoch == 1)
        return "" if alone else "holds a best.pt without its last.pt"
    found = last.extra.get("fit", {})
    different = [
        # Hashes say nothing to a person.
        f"other {name}" if isinstance(value, str) and len(value) == 64 else f"{name} {found.get(name)} -> {value}"
        for name, value in identity.items()
        if found.get(name) != value
    ]
    if different:
        return f"holds a training with other settings: {', '.join(different)}"
    if last.history and not best_path.exists():
        return "holds a last.pt without its best.pt"
    return "" if last.training_state else "holds a last.pt without the state of its training"
