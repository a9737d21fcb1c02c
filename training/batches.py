"""Photographs as batches of pixels: random crops to train on, with what a teacher answered, and whole pictures."""

from __future__ import annotations

import io
import math
import os
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from multiprocessing.util import get_temp_dir
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from colorpress.core.child import end_with_parent
from colorpress.core.config import DataConfig, Recipe
from colorpress.core.console import warn
from colorpress.core.errors import InputError, MachineError, as_machine_error
from colorpress.core.files import write_bytes
from colorpress.core.locks import require_still_locked
from training.crops import CropDraw, CropSides, KeptPhotos, cut_crop
from training.photos import Photo, load_rgb

# Averaged over 2x2 pixels an answer is four times smaller, and teaches nearly what the whole one does. Over 4x4 pixels
# it misses what makes a network like its teacher.
ANSWER_STRIDE = 2


@dataclass(frozen=True)
class _BatchKey:
    """Which batch it is, and what is to be loaded of it.

    Attributes:
        imgsz: side of its crops in pixels.
        crops: each by its photograph's position and its own number.
        mirrored: all of them, and what a teacher answered to them.
    """

    epoch: int
    number: int
    imgsz: int
    crops: Sequence[tuple[int, int]]
    mirrored: bool


_warned: set[Path] = set()


@dataclass(frozen=True)
class Crops:
    """A batch of crops as it is loaded.

    Attributes:
        rgb: uint8 (N, 3, S, S), sRGB; N may be 0.
        tones: float32 (N,), the power that each crop's L is raised to; None leaves all as they are.
        answers: float16 (N, 2, S / 2, S / 2), ab/128 that a teacher answered there; None without a teacher.
        places: where each is among those that were to be loaded, from 0: one that is lost leaves a gap.
    """

    rgb: Tensor
    tones: Tensor | None = None
    answers: Tensor | None = None
    places: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.rgb)

    def twice(self) -> Crops:
        """Each crop two times."""
        tones, answers = (None if each is None else torch.cat([each, each]) for each in (self.tones, self.answers))
        return Crops(torch.cat([self.rgb, self.rgb]), tones, answers)

    def blank(self) -> Crops:
        """One black crop of the same size, with a grey answer where there are answers."""
        answers = None if self.answers is None else self.answers.new_zeros((1, *self.answers.shape[1:]))
        return Crops(self.rgb.new_zeros((1, *self.rgb.shape[1:])), answers=answers)


@dataclass(frozen=True)
class AnswerFolder:
    """What a trained network answered to whole photographs: ab/128, float16 (2, H / 2, W / 2), in a file for each."""

    folder: Path

    def path_of(self, photo: Photo) -> Path:
        """Named after the content of the photograph."""
        return self.folder / f"{photo.sha256}.npy"

    def write(self, photo: Photo, answer: Tensor) -> None:
        """Keep the answer (1, 2, H, W) to `photo`, averaged over areas of 2x2 pixels."""
        size = [max(1, round(side / ANSWER_STRIDE)) for side in answer.shape[-2:]]
        buffer = io.BytesIO()
        small = F.interpolate(answer, size, mode="area")[0]  # (2, H/2, W/2)
        np.save(buffer, small.cpu().numpy().astype(np.float16))
        write_bytes(self.path_of(photo), buffer.getvalue())

    def read(self, photo: Photo) -> NDArray[np.float16]:
        """The answer to `photo` as it was written; raises as `_read_array`."""
        return _read_array(self.path_of(photo))

    def enlarge(self, photo: Photo, like: Tensor) -> Tensor:
        """The answer to `photo` at every pixel: (1, 2, H, W) in ab/128, of the size, type and device of `like`.

        Raises: as `read`.
        """
        small = torch.from_numpy(self.read(photo))[None].to(like)  # (1, 2, H/2, W/2)
        return F.interpolate(small, like.shape[-2:], mode="bilinear")


@dataclass(frozen=True)
class CropAnswers:
    """What a trained network answered to the crops of a training: ab/128, float16, in a file for each batch.

    To the crops themselves, as the network that learns is shown them: where it sees less of a photograph, or sees it
    smaller, it answers otherwise.
    """

    folder: Path

    def path_of(self, epoch: int, batch: int) -> Path:
        """Of batch number `batch`, from 0, of an epoch from 1."""
        return self.folder / f"{epoch}-{batch}.npy"

    def write(self, epoch: int, batch: int, crops: Crops, answer: Tensor) -> None:
        """Keep the answer (N, 2, S, S) to the crops of a batch, averaged over 2x2 pixels; NaN for one that is lost."""
        small = F.avg_pool2d(answer, ANSWER_STRIDE, ceil_mode=True).cpu().numpy()  # (N, 2, S / 2, S / 2)
        kept = np.full((max(crops.places, default=-1) + 1, *small.shape[1:]), np.nan, np.float16)
        kept[list(crops.places)] = small
        buffer = io.BytesIO()
        np.save(buffer, kept)
        write_bytes(self.path_of(epoch, batch), buffer.getvalue())

    def read(self, epoch: int, batch: int, size: int) -> dict[int, NDArray[np.float16]]:
        """The answers (2, size, size) to the crops of a batch, by their places; raises as `_read_array`."""
        path = self.path_of(epoch, batch)
        answers = _read_array(path)
        if answers.shape[1:] != (2, size, size):
            raise InputError("answers", path, "are to other crops", _ASK_AGAIN)
        return {place: answer for place, answer in enumerate(answers) if np.isfinite(answer).all()}


_ASK_AGAIN = "remove the file: answers that are missing are asked for again"


def _read_array(path: Path) -> NDArray[np.float16]:
    """An array of answers.

    Raises:
        InputError: there is none, or its file is damaged.
        MachineError: the locked folder that it is in was removed or replaced.
    """
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        require_still_locked(path)
        raise InputError("answers", path, "are missing or damaged", _ASK_AGAIN) from error


# What is lost: what it is, its file, and why.
_Loaded = tuple[Crops, list[tuple[str, Path, str]]]


class CropLoader:
    """Shuffled batches of random crops, epoch by epoch, decoded by worker processes that live as long as the loader.

    An epoch takes each photograph once; of fewer than `epoch_crops` photographs it takes several crops each, so that
    a tiny set still makes some steps. Batches are evenly filled: their sizes differ by at most one. Where a
    crop lies depends on (seed, epoch, photograph, crop number), its side on (seed, epoch, batch), and the order on
    (seed, epoch): none depends on `workers` nor on what was read before, so a run resumed repeats it exactly. After
    `fresh_epochs` epochs, where that is not 0, the batches of those come again, in another order, and every other time
    mirrored, with what a teacher answered: a network learns crops by heart that it is shown as they were. With
    `epoch_steps` an epoch is only so many of its first batches.

    A photograph that cannot be read any more is left out of its batch with one warning; a batch may thereby be empty.
    Decoded photographs are kept in memory, no larger than crops need them, as far as a quarter of it lasts; the others
    are decoded each time. As a context manager it ends its workers.

    Args:
        photos: what to crop from, at least one.
        recipe: its imgsz, size_jitter and start_imgsz (see `CropSides`), batch_size, crop_share, epoch_crops,
            tone_jitter, fresh_epochs and epoch_steps.
        data: seed of order, crops and flips; max_pixels, over which photographs are refused.
        workers: processes that decode; 0 decodes in this one.
        answers: what a teacher answered to these very crops; a file that is missing loses its batch.
        part: the number of this process and of how many that share the batches; each loads its own part of every one.
    """

    def __init__(
        self,
        photos: Sequence[Photo],
        recipe: Recipe,
        data: DataConfig,
        *,
        workers: int,
        answers: CropAnswers | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        sides = CropSides.of(photos, recipe)
        kept = KeptPhotos(sides, data.max_pixels, max(1, workers) * part[1])
        self._order = _CropOrder(len(photos), recipe, sides, data.seed, part)
        self._loader: DataLoader[_Loaded] = DataLoader(
            _CropDataset(photos, recipe, data, answers, kept),
            sampler=self._order,
            batch_size=None,  # the sampler hands out whole batches of keys
            num_workers=workers,
            collate_fn=_as_loaded,
            worker_init_fn=partial(_start_worker, os.getpid()),
            persistent_workers=workers > 0,
            generator=torch.Generator(),  # its own, so that the loader draws nothing from the global one
        )

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self._order.steps

    def epoch(self, epoch: int, *, start: int = 0) -> Iterator[Crops]:
        """Yield the batches of one epoch, from 1, from number `start` on.

        Raises:
            MachineError: a worker process died, noticed within about five seconds; or the folder for temporary files
                cannot be written.
        """
        self._order.epoch, self._order.start = epoch, start
        if self._loader.num_workers:
            _make_socket_folder()
        try:
            for crops, lost in _iterate(self._loader):
                for each in lost:
                    _warn_once(*each)
                yield crops
        except (RuntimeError, ConnectionError, EOFError) as error:
            if isinstance(error, RuntimeError) and not str(error).startswith("DataLoader worker"):
                raise
            self.close()
            why = f"a loading process died ({str(error).partition('.')[0]})"
            hint = "often too little memory: lower --workers (0 loads without processes) or the batch size"
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
    load = partial(load_rgb, max_pixels=max_pixels, short_side=short_side)
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(load, photo.path) for photo in photos[:1]]
        for photo, following in zip_longest(photos, photos[1:]):
            decoded = ahead.pop()
            if following is not None:
                ahead.append(pool.submit(load, following.path))
            try:
                pixels = decoded.result()  # (H, W, 3)
            except InputError as error:
                _warn_once("photo", photo.path, error.why)
                continue
            yield photo, torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


@dataclass(frozen=True)
class _CropDataset(Dataset[_Loaded]):
    photos: Sequence[Photo]
    recipe: Recipe
    data: DataConfig
    answers: CropAnswers | None
    kept: KeptPhotos

    def __getitem__(self, batch: _BatchKey) -> _Loaded:
        imgsz, size = batch.imgsz, -(-batch.imgsz // ANSWER_STRIDE)
        crops: list[NDArray[np.uint8]] = []
        places: list[int] = []
        tones: list[float] = []
        lost: list[tuple[str, Path, str]] = []
        answers = self._read_answers(batch, size, lost)
        for place, (position, number) in enumerate(batch.crops):
            if answers is not None and place not in answers:
                continue
            photo = self.photos[position]
            share = self.kept.sides.least_share(photo)
            draw = CropDraw.by((self.data.seed, batch.epoch, position, number), share)
            try:
                crops.append(cut_crop(self.kept.read(photo), draw, imgsz))
            except InputError as error:
                lost.append(("photo", photo.path, error.why))
                continue
            places.append(place)
            tones.append(math.exp(self.recipe.tone_jitter * draw.tone))
        # Shaped, since all of them may be lost.
        pixels = np.array(crops, np.uint8).reshape(-1, imgsz, imgsz, 3)  # (N, S, S, 3)
        taught = None  # (N, 2, S/2, S/2)
        if answers is not None:
            taught = np.array([answers[place] for place in places], np.float16).reshape(-1, 2, size, size)
        if batch.mirrored:
            pixels = pixels[:, :, ::-1].copy()
            taught = None if taught is None else taught[..., ::-1].copy()
        loaded = Crops(
            torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),  # (N, 3, S, S)
            torch.tensor(tones) if self.recipe.tone_jitter else None,
            None if taught is None else torch.from_numpy(taught),
            tuple(places),
        )
        return loaded, lost

    def _read_answers(
        self, batch: _BatchKey, size: int, lost: list[tuple[str, Path, str]]
    ) -> dict[int, NDArray[np.float16]] | None:
        """By place; where they are damaged none, which `lost` is told. A photograph lost in asking was named then."""
        if self.answers is None:
            return None
        try:
            return self.answers.read(batch.epoch, batch.number, size)
        except InputError as error:
            lost.append(("answers", self.answers.path_of(batch.epoch, batch.number), f"{error.why}; {error.hint}"))
            return {}


class _CropOrder(Sampler[_BatchKey]):
    """The shuffled crops of `epoch`, cut into even batches, from step `start` on; of each batch one process's part."""

    def __init__(self, photos: int, recipe: Recipe, sides: CropSides, seed: int, part: tuple[int, int]) -> None:
        self.photos, self.sides, self.seed, self.part = photos, sides, seed, part
        self.epoch, self.start, self.fresh = 1, 0, recipe.fresh_epochs
        self.crops = photos * -(-max(photos, recipe.epoch_crops) // photos)
        self.batches = -(-self.crops // recipe.batch_size)
        self.steps = min(recipe.epoch_steps or self.batches, self.batches)

    def __iter__(self) -> Iterator[_BatchKey]:
        rank, ranks = self.part
        shown_before = max(0, self.epoch - 1) // self.fresh if self.fresh else 0  # times
        epoch = self.epoch - shown_before * self.fresh
        batches = np.array_split(np.random.default_rng((self.seed, epoch)).permutation(self.crops), self.batches)
        numbers = np.arange(self.steps)
        if shown_before:
            numbers = np.random.default_rng((self.seed, self.epoch)).permutation(numbers)
        for number in numbers[self.start :].tolist():
            crops = [
                (int(each) % self.photos, int(each) // self.photos)
                for each in np.array_split(batches[number], ranks)[rank]
            ]
            side = self.sides.draw(self.seed, epoch, number)
            yield _BatchKey(epoch, number, side, crops, mirrored=shown_before % 2 == 1)


def _as_loaded(batch: Any) -> Any:
    return batch  # the data set makes whole batches; nothing is left to collate


def _start_worker(parent: int, _: int) -> None:
    # A process that loads for nobody would hold the lock of the output folder, which it inherited.
    end_with_parent(parent)
    # Ctrl-C reaches the whole process group; the main process decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _make_socket_folder() -> None:
    """The folder of the sockets by which processes hand over their tensors, before there are such processes.

    They would make it themselves: where that fails, nobody is told, and whoever waits for a tensor does so for ever.
    """
    try:
        get_temp_dir()
    except OSError as error:
        raise as_machine_error(error, Path(tempfile.gettempdir())) from error


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


def _warn_once(what: str, path: Path, reason: str) -> None:
    if path not in _warned:
        _warned.add(path)
        warn(f"{what} '{path}' is left out: {reason}")
