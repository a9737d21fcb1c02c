"""Files of photographs coloured by a model: read, coloured and written several at a time, nothing of them lost."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from colorpress.core.console import progress, say, warn
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import atomic_write
from export.colorizers import Colorizer
from export.predictors import Pixels
from training.decoding import DecodedPhoto, decode_photo, open_regular_file
from training.photos import SkippedPhoto, walk_photos

# Formats that are written; any other photograph becomes a PNG. JPEG chroma is not subsampled: it is the product.
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP"}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": "4:4:4"}, "WEBP": {"quality": 95}}
_LONGEST_EXIF = 65_000

# For demonstration; its card lies beside it.
DEMONSTRATION_MODEL = Path(__file__).with_name("pretrained") / "colorizer.onnx"


@dataclass(frozen=True)
class ColorizeResult:
    """What became of the photographs.

    Attributes:
        colorized: files written.
        kept: files that were there already and were left alone.
        skipped: photographs that could not be read, and why.
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

    A photograph keeps its size, luminance, name, place below its folder, EXIF (without orientation: the pixels are
    upright) and, as PNG or WebP, its transparency. One with a colour profile becomes sRGB and says so. JPEG, PNG and
    WebP stay what they are by their suffix; the others become PNG. Names that would clash are told apart: a.tif beside
    a.png becomes a.tif.png.

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
    planned = _plan_outputs(photos, output_dir)
    kept = [output for _, output in planned if output.exists() and not overwrite]
    due = [(source, output) for source, output in planned if output not in set(kept)]
    colorized: list[Path] = []
    skipped: list[SkippedPhoto] = []
    failures: list[Exception] = []  # ends the other threads too, however fast they are

    def color(source: Path, output: Path) -> SkippedPhoto | Path:
        if failures:
            raise failures[0]
        try:
            with open_regular_file(source) as stream:
                decoded = decode_photo(stream, source, max_pixels=max_pixels)
        except InputError as error:
            if len(planned) == 1:
                raise
            return SkippedPhoto(source, error.why)
        try:
            _save(decoded, colorizer(_read_pixels(decoded.rgb)), output)
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
        say(f"{len(kept)} photographs were there already and were kept; --overwrite colours them again")
    if not colorized and not kept:
        examples = "; ".join(f"{each.path.name}: {each.reason}" for each in skipped[:3])
        why = f"none of {len(planned)} files can be read ({examples})" if planned else "no photographs in it"
        raise InputError("photographs", photos[0] if photos else None, why, "give JPEG, PNG, WebP, TIFF or BMP files")
    return ColorizeResult(tuple(colorized), tuple(kept), tuple(skipped))


def _read_pixels(picture: Image.Image) -> Pixels:
    """uint8 (H, W, 3), or (H, W, 1) of a picture whose channels are equal."""
    pixels = np.asarray(picture)
    # A few rows say of nearly every colour photograph that it is one.
    for rows in (pixels[:: max(1, pixels.shape[0] // 16)], pixels):
        if (rows[..., :1] != rows[..., 1:]).any():
            return pixels
    return np.ascontiguousarray(pixels[..., :1])


def _plan_outputs(photos: Sequence[Path], output_dir: Path) -> list[tuple[Path, Path]]:
    """Each photograph with the file it becomes; the same arguments give the same plan."""
    planned: list[tuple[Path, Path]] = []
    taken: set[str] = set()
    for source, place in _list_sources(photos, output_dir):
        suffix = place.suffix if place.suffix.lower() in _FORMATS else ".png"
        whole = place.name.removesuffix(suffix)
        # "a.png" for a.tif, else "a.tif.png", else "a.tif-2.png"; compared as file systems without case would.
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
    return planned


def _list_sources(photos: Sequence[Path], output_dir: Path) -> Iterator[tuple[Path, Path]]:
    """Each photograph once, with its place relative to the output folder."""
    seen: set[Path] = set()
    for each in photos:
        # Results of an earlier call may lie below a folder of photographs; they are none of them.
        inside = walk_photos(each, leave_out=output_dir) if each.is_dir() else [each]
        for path in inside:
            if (absolute := path.absolute()) not in seen:
                seen.add(absolute)
                yield path, path.relative_to(each) if each.is_dir() else Path(path.name)


def _save(source: DecodedPhoto, pixels: Pixels, output: Path) -> None:
    kind = _FORMATS[output.suffix.lower()]
    picture = Image.fromarray(pixels)
    if source.alpha is not None:
        if kind == "JPEG":
            warn(f"'{output}' loses its transparency: JPEG has none")
        else:
            picture.putalpha(source.alpha)
    options = dict(_SAVE_OPTIONS.get(kind, {}))
    if source.exif and len(source.exif) <= _LONGEST_EXIF:
        options["exif"] = source.exif
    if source.profile:
        options["icc_profile"] = source.profile
    with atomic_write(output) as temporary:
        picture.save(temporary, format=kind, **options)
