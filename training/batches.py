"""Photographs as batches of pixels: random crops to train on, whole pictures to judge by."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from colorpress.console import warn
from colorpress.errors import InputError, MachineError
from training.decoding import decode_photo, open_regular_file
from training.photos import Photo, load_rgb

# Random-resized crop (Szegedy et al. 2015): width over height.
_ASPECT = (3 / 4, 4 / 3)

# Which crop: epoch, position of the photograph in the sequence, and its how-manieth crop of that epoch.
_CropKey = tuple[int, int, int]
_Loaded = tuple[Tensor, list[tuple[Path, str]]]

_warned: set[Path] = set()


class CropLoader:
    """Shuffled batches of random crops, epoch by epoch, decoded by worker processes that live as long as the loader.

    An epoch takes each photograph once; of fewer than `min_crops` photographs it takes several crops each, so that
    a tiny set still makes some steps. Batches are evenly filled: their sizes differ by at most one. The pixels of a
    crop depend on (seed, epoch, photograph, crop number) alone, and the order on (seed, epoch): neither depends on
    `workers` nor on what was read before, so a run resumed at an epoch repeats it exactly.

    A photograph that cannot be read any more is left out of its batch with one warning, and counted in `lost`; a batch
    may thereby be empty. Of `ranks` processes that share the batches each loads its own part of every one.
    Nothing but paths is held in memory. Use as a context manager, or call `close`, to end the workers.

    Args:
        photos: what to crop from, at least one.
        imgsz: side of the square crops, in pixels; small photographs are enlarged to it.
        batch_size: crops per batch at most.
        seed: of order, crops and flips.
        workers: processes that decode; 0 decodes in this one.
        max_pixels: larger photographs are refused.
        crop_share: smallest share of a photograph's area that a crop shows; the largest is 1.
        min_crops: crops per epoch at least.
        rank: number of this process, from 0 to `ranks` - 1.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        *,
        imgsz: int,
        batch_size: int,
        seed: int,
        workers: int,
        max_pixels: int,
        crop_share: float,
        min_crops: int = 64,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.lost: set[Path] = set()
        self._order = _CropOrder(len(photos), batch_size, seed, min_crops, rank, ranks)
        self._loader: DataLoader[_Loaded] = DataLoader(
            _CropDataset(photos, imgsz, seed, max_pixels, crop_share),
            sampler=self._order,
            batch_size=None,  # the sampler hands out whole batches of keys
            num_workers=workers,
            collate_fn=_as_loaded,
            worker_init_fn=_start_worker,
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # its own, so that the loader draws nothing from the global one
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._order)

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Tensor]:
        """Yield the batches of one epoch from number `start` on: uint8 (N, 3, imgsz, imgsz), sRGB.

        Raises:
            MachineError: a worker process died; noticed within about five seconds.
        """
        self._order.epoch, self._order.start = epoch, start
        try:
            for pictures, lost in _iterate(self._loader):
                for path, reason in lost:
                    self.lost.add(path)
                    _warn_once(path, reason)
                yield pictures
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            self.close()
            why = f"a loading process died ({str(error).partition('.')[0]})"
            hint = "often too little memory: lower --workers (0 loads without processes) or --batch-size"
            raise MachineError("photographs", None, why, hint) from error

    def close(self) -> None:
        """End the worker processes."""
        iterator, self._loader._iterator = self._loader._iterator, None
        if iterator is not None and hasattr(iterator, "_shutdown_workers"):
            iterator._shutdown_workers()

    def __enter__(self) -> CropLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def whole_photos(photos: Sequence[Photo], *, short_side: int, max_pixels: int) -> Iterator[tuple[Photo, Tensor]]:
    """Yield each photograph whole, with the next one being decoded meanwhile in a thread.

    Args:
        photos: what to read, in this order; one that cannot be read any more is left out with one warning.
        short_side: of the pictures, at most, in pixels; nothing is enlarged.
        max_pixels: larger photographs are refused.
    Returns:
        Pairs of the photograph and its uint8 pixels (1, 3, H, W), sRGB.
    """

    def load(photo: Photo) -> NDArray[np.uint8] | InputError:
        try:
            return load_rgb(photo.path, max_pixels=max_pixels, short_side=short_side)
        except InputError as error:
            return error

    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(load, photos[0]) if photos else None
        for position, photo in enumerate(photos):
            assert ahead is not None
            pixels = ahead.result()
            if position + 1 < len(photos):
                ahead = pool.submit(load, photos[position + 1])
            if isinstance(pixels, InputError):
                _warn_once(photo.path, pixels.why)
            else:
                yield photo, torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def crop_photo(path: Path, *, imgsz: int, max_pixels: int, crop_share: float, seed: Sequence[int]) -> NDArray[np.uint8]:
    """A random-resized crop of a photograph, flipped half of the time: uint8 (imgsz, imgsz, 3).

    Decodes a JPEG no larger than the crop needs. The same `seed` gives the same pixels.

    Raises:
        InputError: the photograph cannot be read.
    """
    random = np.random.default_rng(seed)
    area, aspect = random.uniform(crop_share, 1.0), np.exp(random.uniform(*np.log(_ASPECT)))
    left, top, flip = random.random(), random.random(), random.random() < 0.5
    with open_regular_file(path) as stream:
        # In a square photograph this short side gives the crop `imgsz` pixels; in a longer one, more.
        at_least = int(np.ceil(imgsz / np.sqrt(area * min(aspect, 1 / aspect))))
        picture = decode_photo(stream, path, max_pixels=max_pixels, at_least=at_least).rgb
    width = min(np.sqrt(area * picture.width * picture.height * aspect), picture.width)
    height = min(np.sqrt(area * picture.width * picture.height / aspect), picture.height)
    left, top = left * (picture.width - width), top * (picture.height - height)
    box = (left, top, left + width, top + height)
    crop = np.array(picture.resize((imgsz, imgsz), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))
    return np.ascontiguousarray(crop[:, ::-1]) if flip else crop


class _CropDataset(Dataset[_Loaded]):
    def __init__(self, photos: Sequence[Photo], imgsz: int, seed: int, max_pixels: int, crop_share: float) -> None:
        self.paths = [photo.path for photo in photos]
        self.imgsz, self.seed, self.max_pixels, self.crop_share = imgsz, seed, max_pixels, crop_share

    def __getitem__(self, keys: Sequence[_CropKey]) -> _Loaded:
        crops: list[NDArray[np.uint8]] = []
        lost: list[tuple[Path, str]] = []
        for epoch, position, number in keys:
            path, seed = self.paths[position], (self.seed, epoch, position, number)
            try:
                crops.append(
                    crop_photo(
                        path, imgsz=self.imgsz, max_pixels=self.max_pixels, crop_share=self.crop_share, seed=seed
                    )
                )
            except InputError as error:
                lost.append((path, error.why))
        pixels = np.stack(crops) if crops else np.empty((0, self.imgsz, self.imgsz, 3), np.uint8)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), lost


class _CropOrder(Sampler[list[_CropKey]]):
    """The shuffled keys of `epoch`, cut into even batches, from batch `start` on; of each batch one process's part."""

    def __init__(self, photos: int, batch_size: int, seed: int, min_crops: int, rank: int, ranks: int) -> None:
        self.photos, self.seed, self.rank, self.ranks = photos, seed, rank, ranks
        self.epoch = self.start = 0
        self.crops = photos * -(-max(photos, min_crops) // photos)
        self.batches = -(-self.crops // batch_size)

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[_CropKey]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(self.crops)
        for batch in np.array_split(order, self.batches)[self.start :]:
            part = np.array_split(batch, self.ranks)[self.rank]
            yield [(self.epoch, int(each) % self.photos, int(each) // self.photos) for each in part]


def _as_loaded(batch: Any) -> Any:
    return batch  # the data set makes whole batches; nothing is left to collate


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _iterate(loader: DataLoader[_Loaded]) -> Iterator[_Loaded]:
    """`iter(loader)` without the signal handler that it installs.

    With it a dying worker raises RuntimeError wherever the main process happens to be, such as inside the training
    step or while a file is saved; without it the loader finds out when it next waits for that worker.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    before = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)


def _warn_once(path: Path, reason: str) -> None:
    if path not in _warned:
        _warned.add(path)
        warn(f"photo '{path}' is left out: {reason}")
