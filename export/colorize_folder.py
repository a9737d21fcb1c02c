"""Files of photographs coloured by a model: read, coloured and written several at a time, nothing of them lost.

An archive may have any number of files: what is held of it while it is coloured are the photographs under way, and a
number for each name that is taken. So its folders are walked twice, first to see that no photograph is overwritten.
"""

from __future__ import annotations

import math
import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from colorpress.core.console import progress, say, warn
from colorpress.core.errors import ConfigError, InputError
from export.colorizers import Colorizer
from export.deep_lightness import keep_deep_lightness
from export.photo_files import ColoredPage, can_be_deep, choose_packet, choose_suffix, has_pages, save_pages
from export.picture_contract import AskedNetwork
from export.predictors import Pixels
from export.striped_pixels import ArrayRows, PictureRows, color_rows
from training.decoding import DecodedPhoto, decode_pages, measure_frames, open_regular_file
from training.photos import SkippedPhoto, say_white, walk_photos, warn_of_passed_over
from training.picture_types import names_of_read_types

# For demonstration; its card lies beside it.
DEMONSTRATION_MODEL = Path(__file__).with_name("pretrained") / "colorizer.onnx"
# Workers share this much, each. What is larger is coloured in stripes, and what is larger than all of it alone.
_PIXELS_A_WORKER = 1 << 25
# Photographs begun ahead of the first that is not done, for each worker.
_AHEAD = 4
_STRIPE_BYTES = 1 << 18
# Of a file's name, on all file systems in use.
_LONGEST_NAME_BYTES = 255


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a photograph.

    Attributes:
        source: where it is.
        output: what was written, or was there already and was left alone; None where neither is.
        is_kept: whether it was there already.
        reason: why it cannot be read, or is none. `is_photo`: as `SkippedPhoto`.
    """

    source: Path
    output: Path | None = None
    is_kept: bool = False
    reason: str = ""
    is_photo: bool = True


@dataclass(frozen=True)
class ColorizeResult:
    """What became of the photographs.

    Attributes:
        colorized: files written.
        kept: files that were there already and were left alone.
        skipped: what could not be read, or is no photograph, and why.
    """

    colorized: tuple[Path, ...]
    kept: tuple[Path, ...]
    skipped: tuple[SkippedPhoto, ...]


@dataclass(frozen=True)
class Coloring:
    """How photographs are coloured.

    Attributes:
        colorizer: uint8 (H, W, 3), or (H, W, 1) where a photograph is grey, to uint8 (H, W, 3).
        workers: photographs at a time, each decoded, coloured and encoded in a thread of its own.
        max_pixels: larger photographs are refused unread.
        overwrite: colour again what is in the output folder already.
        is_tagged: whether the results say that software coloured them.
        open_network: gives the network of the colorizer, which is called when the first photograph comes that is too
            large to be several arrays; None, or an InputError: such ones are coloured by the colorizer too.
        threads: for those, together.
    """

    colorizer: Colorizer
    workers: int = 1
    max_pixels: int = 89_478_485
    overwrite: bool = False
    is_tagged: bool = True
    open_network: Callable[[], AskedNetwork] | None = None
    threads: int = 1

    @cached_property
    def network(self) -> AskedNetwork | None:
        """What `open_network` gives; None where there is none."""
        try:
            return self.open_network() if self.open_network else None
        except InputError:
            return None

    def threads_of(self, pixels: int) -> int:
        """For a photograph of so many pixels: as large a share of all as it takes of the room that workers have."""
        return min(self.threads, math.ceil(self.threads * pixels / (max(1, self.workers) * _PIXELS_A_WORKER)))


def colorize_photos(
    photos: Sequence[Path],
    output_dir: Path,
    colorizer: Colorizer,
    *,
    workers: int = 1,
    max_pixels: int = Coloring.max_pixels,
    overwrite: bool = False,
    is_tagged: bool = True,
) -> ColorizeResult:
    """Colour photographs as `colorize_each`, all of them before it returns; its arguments are those of `Coloring`."""
    coloring = Coloring(colorizer, workers, max_pixels, overwrite, is_tagged)
    colorized: list[Path] = []
    kept: list[Path] = []
    skipped: list[SkippedPhoto] = []
    for each in colorize_each(photos, output_dir, coloring):
        if each.output is None:
            skipped.append(SkippedPhoto(each.source, each.reason, each.is_photo))
        else:
            (kept if each.is_kept else colorized).append(each.output)
    return ColorizeResult(tuple(colorized), tuple(kept), tuple(skipped))


def colorize_each(photos: Sequence[Path], output_dir: Path, coloring: Coloring) -> Generator[Outcome, None, None]:
    """Colour photographs, and folders of them with all below, into `output_dir`, and say of each what became of it.

    A photograph keeps its size, luminance, name, place below its folder, resolution, EXIF (without orientation: the
    pixels are upright), XMP, IPTC and, but as JPEG, its transparency. One with a colour profile becomes sRGB and says
    so. It stays of the type that its suffix says where that is one that is written, and becomes PNG else; as TIFF and
    PNG it keeps the precision of more than 8 bits a channel, and as TIFF all its pages. Names that would clash are
    told apart in their order: of a.bmp and a.png the first becomes a.png, the other a-2.png.

    Every file appears whole or not at all, and one that is there already is done: a call that was killed goes on where
    it was.

    Args:
        photos: files and folders; hidden files of folders are passed over.
    Raises:
        ConfigError: a photograph would be overwritten by its own result.
        InputError: none of the photographs can be read, or the colorizer's answer is no picture.
        MachineError: a result cannot be written.
    """
    plan = _check_plan(photos, output_dir, coloring.overwrite)
    kept = done = 0
    examples: list[str] = []
    outcomes = _color_all(photos, output_dir, coloring, plan)
    with progress("colouring photographs", plan.due) as shown, closing(outcomes):
        for outcome in outcomes:
            kept += outcome.is_kept
            if not outcome.is_kept and outcome.is_photo:
                shown.advance()
                done += outcome.output is not None
            if outcome.reason and len(examples) < 3:
                examples.append(f"{outcome.source.name}: {outcome.reason}")
            yield outcome
    if kept:
        say(f"there already, and kept: {kept} of {plan.photos} photographs; --overwrite colours them again")
    if not done and not kept:
        found = f"none of {plan.photos} files can be read ({'; '.join(examples)})"
        why = found if plan.photos else "no photographs in it"
        hint = f"give photographs: {names_of_read_types()}"
        raise InputError("photographs", photos[0] if photos else None, why, hint)


def _color_all(
    photos: Sequence[Path], output_dir: Path, coloring: Coloring, plan: _Plan
) -> Generator[Outcome, None, None]:
    """The outcomes in the order of the plan, of photographs that are coloured a few at a time."""
    failures: list[Exception] = []  # ends the other threads too, however fast they are
    workers = max(1, coloring.workers)
    room = _Room(workers * _PIXELS_A_WORKER)

    def color(source: Path, output: Path) -> Outcome:
        if failures:
            raise failures[0]
        try:
            _color_photo(source, output, coloring, room)
        except _Unreadable as unreadable:
            if plan.photos == 1:
                raise unreadable.error from unreadable
            return Outcome(source, reason=unreadable.error.why)
        except Exception as error:
            failures.append(error)
            raise
        return Outcome(source, output)

    begun: deque[Outcome | Future[Outcome]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for source, output in _plan_outputs(photos, output_dir):
            if isinstance(source, SkippedPhoto):
                begun.append(Outcome(source.path, reason=source.reason, is_photo=source.is_photo))
            elif output.exists() and not coloring.overwrite:
                begun.append(Outcome(source, output, is_kept=True))
            else:
                begun.append(pool.submit(color, source, output))
            if len(begun) > _AHEAD * workers:
                yield _outcome_of(begun.popleft())
        while begun:
            yield _outcome_of(begun.popleft())
    finally:  # after an error or a signal what is under way is finished and nothing more begun
        pool.shutdown(cancel_futures=True)


def _outcome_of(begun: Outcome | Future[Outcome]) -> Outcome:
    return begun if isinstance(begun, Outcome) else begun.result()


class _Room:
    """How many pixels are in memory at a time: so many together, or one photograph of any size."""

    def __init__(self, pixels: int) -> None:
        self._most, self._held = pixels, 0
        self._changed = threading.Condition()

    @contextmanager
    def held(self, pixels: int) -> Iterator[None]:
        """Wait until so many pixels have room, and take it within the block."""
        with self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self._most)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify_all()


class _Unreadable(Exception):
    """A photograph cannot be read, which is no reason to leave the others."""

    def __init__(self, error: InputError) -> None:
        super().__init__(str(error))
        self.error = error


def _color_photo(source: Path, output: Path, coloring: Coloring, room: _Room) -> None:
    is_deep = can_be_deep(output)

    def color(page: DecodedPhoto) -> ColoredPage:
        colored: Any = _color_picture(page.picture, coloring, as_array=has_pages(output) or page.deep is not None)
        if page.deep is not None and is_deep:
            colored = keep_deep_lightness(colored, page.deep)
        return ColoredPage(page, colored, choose_packet(page, output, is_tagged=coloring.is_tagged))

    with closing(_read_pages(source, coloring.max_pixels, room, alone=not has_pages(output))) as pages:
        first, count = next(pages)
        say_white(source, first)
        if count > 1 and not has_pages(output):
            warn(f"'{source}' has {count} pages or frames, of which the first alone is coloured")
        save_pages(color(first), (color(page) for page, _ in pages), output, count=count)


def _color_picture(picture: Image.Image, coloring: Coloring, *, as_array: bool) -> Pixels | Image.Image:
    """A picture of mode L or RGB coloured, perhaps in its place; a large one as a picture again unless `as_array`."""
    pixel_count = picture.width * picture.height
    if pixel_count <= _PIXELS_A_WORKER or (network := coloring.network) is None:
        return coloring.colorizer(_take_pixels(picture))
    threads = coloring.threads_of(pixel_count)
    if as_array:
        pixels = _take_pixels(picture)
        colored = pixels if pixels.shape[2] == 3 else np.empty((*pixels.shape[:2], 3), np.uint8)
        color_rows(ArrayRows(pixels), ArrayRows(colored), network, threads=threads)
        return colored
    target = picture if picture.mode == "RGB" else Image.new("RGB", picture.size)
    color_rows(PictureRows(picture), PictureRows(target), network, threads=threads)
    return target


def _read_pages(
    source: Path, max_pixels: int, room: _Room, *, alone: bool
) -> Generator[tuple[DecodedPhoto, int], None, None]:
    """The pages of a photograph, or the first one alone, each with how many there are; `room` is held until it ends."""
    try:
        with open_regular_file(source) as stream:
            count, pixels = measure_frames(stream)
            stream.seek(0)
            with room.held(pixels):
                for page in decode_pages(stream, source, max_pixels=max_pixels):
                    yield page, count
                    if alone:
                        return
    except InputError as error:
        raise _Unreadable(error) from error


def _take_pixels(picture: Image.Image) -> Pixels:
    """uint8 (H, W, 3), or (H, W, 1) of a picture whose channels are equal. The picture is closed where it can be."""
    width, height = picture.size
    pixels = np.empty((height, width, len(picture.getbands())), np.uint8)
    is_grey = True
    # In stripes, since Pillow would make the bytes of all of it, twice.
    step = max(1, _STRIPE_BYTES // width)
    for top in range(0, height, step):
        rows = pixels[top : top + step]
        rows.reshape(-1)[:] = np.asarray(picture.crop((0, top, width, top + len(rows)))).reshape(-1)
        is_grey = is_grey and all(np.array_equal(rows[..., 0], rows[..., each]) for each in range(1, rows.shape[2]))
    if picture.format != "TIFF":  # whose next page takes its place
        Image.Image.close(picture)  # not its own, which would close the file as well
    return np.ascontiguousarray(pixels[..., :1]) if is_grey else pixels


@dataclass(frozen=True)
class _Plan:
    """How many photographs there are, and how many of them are to be coloured."""

    photos: int
    due: int


def _check_plan(photos: Sequence[Path], output_dir: Path, overwrite: bool) -> _Plan:
    """Count photographs, warn of what is none, and refuse to overwrite one.

    Raises:
        ConfigError: a photograph would be overwritten.
    """
    passed_over: list[SkippedPhoto] = []
    sources: set[int] = set()
    standing: set[int] = set()
    photographs = due = 0
    has_results = output_dir.exists()
    for source, output in _plan_outputs(photos, output_dir):
        if isinstance(source, SkippedPhoto):
            passed_over.append(source)
            continue
        photographs += 1
        there = _number_of(output) if has_results else 0
        due += overwrite or not there
        if has_results:
            sources.add(_number_of(source))
            standing.add(there)
    warn_of_passed_over(passed_over)
    if taken := (sources & standing) - {0}:
        found = (output for _, output in _plan_outputs(photos, output_dir) if _number_of(output) in taken)
        why = f"would overwrite the photograph '{next(found).name}'"
        raise ConfigError("option --output-dir", output_dir, why, "choose another folder")
    return _Plan(photographs, due)


def _number_of(path: Path) -> int:
    """The number of a file, whatever leads to it: of its device and inode; 0 where there is none."""
    try:
        status = path.stat()
    except OSError:
        return 0
    return status.st_dev << 64 | status.st_ino


def _plan_outputs(photos: Sequence[Path], output_dir: Path) -> Iterator[tuple[Path | SkippedPhoto, Path]]:
    """Each photograph, or what is none, with the file it becomes; the same arguments give the same plan."""
    taken: set[int] = set()
    for source, place in _list_sources(photos, output_dir):
        if isinstance(source, SkippedPhoto):
            yield source, output_dir / place
            continue
        suffix = choose_suffix(source, place)
        whole = place.name.removesuffix(suffix)
        # "a.png" for a.bmp, else "a.bmp.png", else "a.bmp-2.png"; compared as file systems without case would.
        stems = chain(((place.stem, ""), (whole, "")), ((whole, f"-{number}") for number in count(2)))
        outputs = (output_dir / place.with_name(_join_name(stem, end + suffix)) for stem, end in stems)
        output = next(each for each in outputs if hash(each.as_posix().casefold()) not in taken)
        # Hashes, since the names of a large archive would take more than its photographs.
        taken.add(hash(output.as_posix().casefold()))
        yield source, output


def _join_name(stem: str, end: str) -> str:
    """A file name, of whose stem so much is left out that file systems take it."""
    room = _LONGEST_NAME_BYTES - len(os.fsencode(end))
    if len(os.fsencode(stem)) > room:
        stem = os.fsencode(stem)[:room].decode("utf-8", "ignore")
    return stem + end


def _list_sources(photos: Sequence[Path], output_dir: Path) -> Iterator[tuple[Path | SkippedPhoto, Path]]:
    """Each photograph once, with its place relative to the output folder."""
    seen: set[int] = set()
    for each in photos:
        # Results of an earlier call may lie below a folder of photographs; they are none of them.
        inside = walk_photos(each, leave_out=output_dir) if each.is_dir() else [each]
        for found in inside:
            path = found.path if isinstance(found, SkippedPhoto) else found
            if len(photos) > 1:
                if (name := hash(path.absolute())) in seen:
                    continue
                seen.add(name)
            yield found, path.relative_to(each) if path != each else Path(path.name)
