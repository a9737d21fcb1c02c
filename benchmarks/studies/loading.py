"""Does loading keep up with the network: images per second of the loader, of the training step, and of both.

Run as `python -m benchmarks.studies.loading --data DIR`; prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch

from colorpress.core.config import DataConfig, MachineConfig, Recipe, UNetConfig, option_name
from colorpress.core.errors import ColorpressError, InputError
from colorpress.core.machine import describe_machine
from training.batches import CropLoader, Crops
from training.device import choose_device, choose_precision, torch_threads
from training.losses import L1Loss, prepare_batch
from training.optimizer import make_optimizers, step_
from training.photo_scan import scan_photos
from training.photos import Photo
from training.unet import UNet, UNetPlan

_WARMUP_STEPS = 3


@dataclass(frozen=True)
class LoadingSetup:
    """What is measured.

    Attributes:
        base: channels of the first level of a UNet of depth 4.
        imgsz, batch_size, workers, device: as in training.
        threads: CPU threads of the step; 0: torch's own choice.
        steps: training steps per round and kind, at least 1. `rounds`: at least 1.
    """

    base: int = UNetConfig().base
    imgsz: int = Recipe().imgsz
    batch_size: int = Recipe().batch_size
    workers: int = MachineConfig().workers
    threads: int = 0
    device: str = "cpu"
    steps: int = 20
    rounds: int = 3


@dataclass(frozen=True)
class LoadingResult:
    """Medians over rounds, with the setup they hold for: its threads and device are those that were used.

    Attributes:
        loader_images_per_s: crops decoded per second while nothing else runs.
        step_images_per_s: crops per second of the training step alone, on one batch that is always there: colour
            conversion on the device, forward, backward, Muon and AdamW.
        both_images_per_s: crops per second of the training step fed by the loader.
        lost_share: share of the step's own speed that loading costs: 1 - both / step. Noise may make it negative.
        photos: how many there were to crop from.
    """

    loader_images_per_s: float
    step_images_per_s: float
    both_images_per_s: float
    lost_share: float
    photos: int
    setup: LoadingSetup

    def figures(self) -> dict[str, Any]:
        """All of it side by side, JSON-ready."""
        figures = {**vars(self), **vars(self.setup)}
        del figures["setup"]
        return figures


def measure_loading(photos: Sequence[Photo], setup: LoadingSetup) -> LoadingResult:
    """Measure the loader alone, the training step alone, and the two together; step and both take turns.

    Raises:
        InputError: no photograph can be read.
        MachineError: there is no such device.
    """
    device, steps = choose_device(setup.device), setup.steps
    seconds_loader, seconds_step, seconds_both = [], [], []
    recipe = Recipe(imgsz=setup.imgsz, batch_size=setup.batch_size)
    with torch_threads(setup.threads), CropLoader(photos, recipe, DataConfig(seed=0), workers=setup.workers) as loader:
        trainer = _Trainer(setup.base, device)
        # One endless stream, so that neither the start of the workers nor the start of an epoch counts.
        stream = _endless(loader)
        fixed = next(stream)
        trainer.run([fixed] * _WARMUP_STEPS)
        loaded_ahead = 2 * setup.workers + 1
        for _ in range(setup.rounds):
            # What was loaded ahead while the last steps ran would come for nothing.
            _seconds_per_image(islice(stream, loaded_ahead))
            seconds_loader.append(_seconds_per_image(islice(stream, steps)))
            seconds_step.append(trainer.run([fixed] * steps))
            # Batches that were loaded ahead while the step ran alone are used up first.
            trainer.run(islice(stream, loaded_ahead))
            seconds_both.append(trainer.run(islice(stream, steps)))
        used = replace(setup, threads=torch.get_num_threads(), device=str(device))
        stream.close()
    loader_s, step_s, both_s = (statistics.median(each) for each in (seconds_loader, seconds_step, seconds_both))
    return LoadingResult(1 / loader_s, 1 / step_s, 1 / both_s, 1 - step_s / both_s, len(photos), used)


class _Trainer:
    """The arithmetic of a training step."""

    def __init__(self, base: int, device: torch.device) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.criterion = L1Loss(UNet(UNetPlan.classic(base)))
        self.criterion.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.recipe = Recipe(learning_rate=1e-4)
        self.optimizers = make_optimizers(self.criterion, self.recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=False)
        self.device, self.dtype = device, choose_precision("auto", device)

    def run(self, batches: Iterable[Crops]) -> float:
        """Train on `batches`; seconds per image, waiting for them included."""
        images, loss = 0, torch.zeros(())
        started = time.perf_counter()
        for crops in batches:
            batch = prepare_batch(crops, self.device)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                answered = self.criterion(batch.lightness)
            loss, _ = self.criterion.loss(answered, batch)
            self.criterion.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            step_(self.optimizers, self.criterion, self.scaler, self.recipe.gradient_norm)
            images += len(crops)
        loss.item()  # waits for a GPU
        return (time.perf_counter() - started) / max(1, images)


def _seconds_per_image(batches: Iterable[Crops]) -> float:
    started = time.perf_counter()
    images = sum(len(crops) for crops in batches)
    return (time.perf_counter() - started) / max(1, images)


def _endless(loader: CropLoader) -> Generator[Crops]:
    for epoch in count(1):
        read = 0
        for batch in loader.epoch(epoch):
            if len(batch):
                read += 1
                yield batch
        if not read:
            raise InputError("data set", None, "no photograph can be read", "check the folder given with --data")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure by command-line arguments and print JSON; the exit code."""
    usual = LoadingSetup(device="auto")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.loading", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of photographs; default: those that come along")
    parser.add_argument("--base", type=int, nargs="+", default=[usual.base], help="one or several widths")
    parser.add_argument("--workers", type=int, nargs="+", default=[usual.workers])
    parser.add_argument("--device", default=usual.device)
    for name in ("imgsz", "batch_size", "threads", "steps", "rounds"):
        parser.add_argument(f"--{option_name(name)}", type=int, default=getattr(usual, name))
    given = vars(parser.parse_args(arguments))
    data, bases, workers = given.pop("data"), given.pop("base"), given.pop("workers")
    try:
        photos = scan_photos(DataConfig(data=data), workers=max(workers)).train
        setups = [LoadingSetup(base=base, workers=each, **given) for base in bases for each in workers]
        results = [measure_loading(photos, setup).figures() for setup in setups]
    except ColorpressError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({"machine": describe_machine(), "results": results}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
