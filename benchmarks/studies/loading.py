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
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path

import torch

from colorpress.core.config import DataConfig, FitConfig, MachineConfig, TrainConfig, UNetConfig
from colorpress.core.errors import ColorpressError, InputError
from colorpress.core.machine import describe_machine
from training.batches import CropLoader, Crops
from training.device import choose_device, choose_precision, torch_threads
from training.losses import L1Loss, prepare_batch
from training.photos import Photo, scan_photos
from training.unet import UNet, UNetPlan

_WARMUP_STEPS = 3


@dataclass(frozen=True)
class LoadingResult:
    """Medians over rounds; the conditions they hold for come with them.

    Attributes:
        loader_images_per_s: crops decoded per second while nothing else runs.
        step_images_per_s: crops per second of the training step alone, on one batch that is always there: colour
            conversion on the device, forward, backward, AdamW.
        both_images_per_s: crops per second of the training step fed by the loader.
        lost_share: share of the step's own speed that loading costs: 1 - both / step. Noise may make it negative.
        base, imgsz, batch_size, workers, threads, device, photos: what was measured.
        steps, rounds: training steps per round, and rounds; step and both take turns.
    """

    loader_images_per_s: float
    step_images_per_s: float
    both_images_per_s: float
    lost_share: float
    base: int
    imgsz: int
    batch_size: int
    workers: int
    threads: int
    device: str
    photos: int
    steps: int
    rounds: int


def measure_loading(
    photos: Sequence[Photo],
    *,
    base: int,
    imgsz: int,
    batch_size: int,
    workers: int,
    threads: int = 0,
    device: str = "cpu",
    steps: int = 20,
    rounds: int = 3,
    max_pixels: int = DataConfig().max_pixels,
) -> LoadingResult:
    """Measure the loader alone, the training step alone, and the two together.

    Args:
        photos: what to crop from.
        base: channels of the first level of a UNet of depth 4.
        imgsz, batch_size, workers, max_pixels: as in training.
        threads: CPU threads of the step; 0: torch's own choice.
        steps: per round and kind, at least 1. `rounds`: at least 1; medians are taken.
    Raises:
        InputError: no photograph can be read.
        MachineError: there is no such device.
    """
    chosen = choose_device(device)
    seconds_loader, seconds_step, seconds_both = [], [], []
    with (
        torch_threads(threads),
        CropLoader(
            photos,
            imgsz=imgsz,
            crop_share=FitConfig().crop_share,
            batch_size=batch_size,
            seed=0,
            workers=workers,
            max_pixels=max_pixels,
        ) as loader,
    ):
        trainer = _Trainer(base, chosen)
        # One endless stream, so that neither the start of the workers nor the start of an epoch counts.
        stream = _endless(loader)
        fixed = next(stream)
        trainer.run([fixed] * _WARMUP_STEPS)
        for _ in range(rounds):
            # What was loaded ahead while the last steps ran would come for nothing.
            _seconds_per_image(islice(stream, 2 * workers + 1))
            seconds_loader.append(_seconds_per_image(islice(stream, steps)))
            seconds_step.append(trainer.run([fixed] * steps))
            # Batches that were loaded ahead while the step ran alone are used up first.
            trainer.run(islice(stream, 2 * workers + 1))
            seconds_both.append(trainer.run(islice(stream, steps)))
        used_threads = torch.get_num_threads()
        stream.close()
    loader_s, step_s, both_s = (statistics.median(each) for each in (seconds_loader, seconds_step, seconds_both))
    return LoadingResult(
        loader_images_per_s=1 / loader_s,
        step_images_per_s=1 / step_s,
        both_images_per_s=1 / both_s,
        lost_share=1 - step_s / both_s,
        base=base,
        imgsz=imgsz,
        batch_size=batch_size,
        workers=workers,
        threads=used_threads,
        device=str(chosen),
        photos=len(photos),
        steps=steps,
        rounds=rounds,
    )


class _Trainer:
    """The arithmetic of a training step."""

    def __init__(self, base: int, device: torch.device) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.criterion = L1Loss(UNet(UNetPlan.classic(base)))
        self.criterion.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.AdamW(self.criterion.parameters(), lr=1e-4, fused=True)
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
            self.optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            self.optimizer.step()
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.studies.loading", description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of photographs; default: scikit-image's own")
    parser.add_argument("--base", type=int, nargs="+", default=[UNetConfig().base], help="one or several widths")
    parser.add_argument("--imgsz", type=int, default=TrainConfig().imgsz)
    parser.add_argument("--batch-size", type=int, default=FitConfig().batch_size)
    parser.add_argument("--workers", type=int, nargs="+", default=[MachineConfig().workers])
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    try:
        photos = scan_photos(DataConfig(data=given.data), workers=max(given.workers)).train
        results = [
            measure_loading(
                photos,
                base=base,
                imgsz=given.imgsz,
                batch_size=given.batch_size,
                workers=workers,
                threads=given.threads,
                device=given.device,
                steps=given.steps,
                rounds=given.rounds,
            )
            for base in given.base
            for workers in given.workers
        ]
    except ColorpressError as error:
        print(f"error: {error}\nhint: {error.hint}", file=sys.stderr)
        return error.exit_code
    print(json.dumps({"machine": describe_machine(), "results": [asdict(each) for each in results]}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
