"""Files of photographs coloured by a model: read, coloured and written several at a time, nothing of them lost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np
from PIL import Image

from colorpress.core.console import progress, say, warn
from colorpress.core.errors import ConfigError, InputError
from export.colorizers import Colorizer
from export.deep_lightness import keep_deep_lightness
from export.photo_files import ColoredPage, can_be_deep, choose_suffix, has_pages, save_pages
from export.predictors import Pixels
from training.decoding import DecodedPhoto, count_frames, decode_pages, open_regular_file
from training.photos import SkippedPhoto, say_white, walk_photos, warn_of_passed_over
from training.picture_types import names_of_read_types

# For demonstration; its card lies beside it.
DEMONSTRATION_MODEL = Path(__file__).with_name("pretrained") / "colorizer.onnx"


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


def colorize_photos(
    photos: Sequence[Path],
    output_dir: Path,
    colorizer: Colorizer,
    *,
    workers: int = 1,
    max_pixels: int = 89_478_485,
    overwrite: bool = False,
) -> ColorizeResult:
    """Colour photographs, and folders of them with all below, into `output_dir`.

    A photograph keeps its size, luminance, name, place below its folder, resolution, EXIF (without orientation: the
    pixels are upright) and, but as JPEG, its transparency. One with a colour profile becomes sRGB and says so. It
    stays of the type that its suffix says where that is one that is written, and becomes PNG else; as TIFF and PNG it
    keeps the precision of more than 8 bits a channel, and as TIFF all its pages. Names that would clash are told
    apart: a.bmp beside a.png becomes a.bmp.png.

    Args:
        photos: files and folders; hidden files of folders are passed over.
        colorizer: uint8 (H, W, 3), or (H, W, 1) where a photograph is grey, to uint8 (H, W, 3).
        workers: photographs at a time, each decoded, coloured and encoded in a thread of its own.
        max_pixels: larger photographs are refused unread.
        overwrite: colour again what is in `output_dir` already.
    Raises:
        ConfigError: a photograph would be overwritten by its own result.
        InputError: none of the photographs can be read, or the colorizer's answer is no picture.
        MachineError: a result cannot be written.
    """
    planned, passed_over = _plan_outputs(photos, output_dir)
    warn_of_passed_over(passed_over)
    kept = [output for _, output in planned if output.exists() and not overwrite]
    due = [(source, output) for source, output in planned if output not in set(kept)]
    colorized: list[Path] = []
    skipped: list[SkippedPhoto] = passed_over
    failures: list[Exception] = []  # ends the other threads too, however fast they are

    def color(source: Path, output: Path) -> SkippedPhoto | Path:
        if failures:
            raise failures[0]
        try:
            _color_photo(source, output, colorizer, max_pixels)
        except _Unreadable as unreadable:
            if len(planned) == 1:
                raise unreadable.error from unreadable
            return SkippedPhoto(source, unreadable.error.why)
        except Exception as error:
            failures.append(error)
            raise
        return output

    pool = ThreadPoolExecutor(max(1, workers))
    with progress("colouring photographs", len(due)) as shown:
        try:
            for done in pool.map(lambda pair: color(*pair), due):
                colorized.append(done) if isinstance(done, Path) else skipped.append(done)
                shown.advance()
        finally:  # after an error or a signal what is under way is finished and nothing more begun
            pool.shutdown(cancel_futures=True)
    if kept:
        say(f"there already, and kept: {len(kept)} of {len(planned)} photographs; --overwrite colours them again")
    if not colorized and not kept:
        examples = "; ".join(f"{each.path.name}: {each.reason}" for each in skipped[:3])
        why = f"none of {len(planned)} files can be read ({examples})" if planned else "no photographs in it"
        hint = f"give photographs: {names_of_read_types()}"
        raise InputError("photographs", photos[0] if photos else None, why, hint)
    return ColorizeResult(tuple(colorized), tuple(kept), tuple(skipped))


class _Unreadable(Exception):
    """A photograph cannot be read, which is no reason to leave the others."""

    def __init__(self, error: InputError) -> None:
        super().__init__(str(error))
        self.error = error


def _color_photo(source: Path, output: Path, colorizer: Colorizer, max_pixels: int) -> None:
    pages = _read_pages(source, max_pixels, alone=not has_pages(output))
    is_deep = can_be_deep(output)
    first, count = next(pages)
    say_white(source, first)
    if count > 1 and not has_pages(output):
        warn(f"'{source}' has {count} pages or frames, of which the first alone is coloured")

    def color(page: DecodedPhoto) -> ColoredPage:
        pixels = colorizer(_read_pixels(page.rgb))
        if page.deep is None or not is_deep:
            return ColoredPage(page, pixels)
        return ColoredPage(page, keep_deep_lightness(pixels, page.deep))

    save_pages(color(first), (color(page) for page, _ in pages), output, count=count)


def _read_pages(source: Path, max_pixels: int, *, alone: bool) -> Iterator[tuple[DecodedPhoto, int]]:
    """The pages of a photograph, or the first one alone, each with how many there are."""
    try:
        with open_regular_file(source) as stream:
            count = count_frames(stream)
            stream.seek(0)
            for page in decode_pages(stream, source, max_pixels=max_pixels):
                yield page, count
                if alone:
                    return
    except InputError as error:
        raise _Unreadable(error) from error


def _read_pixels(picture: Image.Image) -> Pixels:
    """uint8 (H, W, 3), or (H, W, 1) of a picture whose channels are equal."""
    pixels = np.asarray(picture)
    # A few rows say of nearly every colour photograph that it is one.
    for rows in (pixels[:: max(1, pixels.shape[0] // 16)], pixels):
        if (rows[..., :1] != rows[..., 1:]).any():
            return pixels
    return np.ascontiguousarray(pixels[..., :1])


def _plan_outputs(photos: Sequence[Path], output_dir: Path) -> tuple[list[tuple[Path, Path]], list[SkippedPhoto]]:
    """Each photograph with the file it becomes, and what is none; the same arguments give the same plan."""
    planned: list[tuple[Path, Path]] = []
    passed_over: list[SkippedPhoto] = []
    taken: set[str] = set()
    for source, place in _list_sources(photos, output_dir):
        if isinstance(source, SkippedPhoto):
            passed_over.append(source)
            continue
        suffix = choose_suffix(source, place)
        whole = place.name.removesuffix(suffix)
        # "a.png" for a.bmp, else "a.bmp.png", else "a.bmp-2.png"; compared as file systems without case would.
        stems = chain((place.stem, whole), (f"{whole}-{number}" for number in count(2)))
        outputs = (output_dir / place.with_name(stem + suffix) for stem in stems)
        output = next(each for each in outputs if each.as_posix().casefold() not in taken)
        taken.add(output.as_posix().casefold())
        planned.append((source, output))
    # Not Path.resolve: it raises for a loop of links, which is skipped with a reason later.
    inputs = {os.path.realpath(source) for source, _ in planned}
    for _, output in planned:
        if os.path.realpath(output) in inputs:
            why = f"would overwrite the photograph '{output.name}'"
            raise ConfigError("option --output-dir", output_dir, why, "choose another folder")
    return planned, passed_over


def _list_sources(photos: Sequence[Path], output_dir: Path) -> Iterator[tuple[Path | SkippedPhoto, Path]]:
    """Each photograph once, with its place relative to the output folder."""
    seen: set[Path] = set()
    for each in photos:
        # Results of an earlier call may lie below a folder of photographs; they are none of them.
        inside = walk_photos(each, leave_out=output_dir) if each.is_dir() else [each]
        for found in inside:
            path = found.path if isinstance(found, SkippedPhoto) else found
            if (absolute := path.absolute()) not in seen:
                seen.add(absolute)
                yield found, path.relative_to(each) if path != each else Path(path.name)
