"""Photographs coloured by a model: chroma from the network at its working size, luminance kept at full size."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from colorpress.console import progress, say, warn
from colorpress.errors import ConfigError, InputError
from colorpress.files import atomic_write
from training.color import l_ab_to_rgb, rgb_to_l_ab
from training.decoding import DecodedPhoto, decode_photo, open_regular_file
from training.photos import SkippedPhoto, find_photos, shrink_to

Predictor = Callable[[NDArray[np.float32]], NDArray[np.float32]]

# Formats that are written; any other photograph becomes a PNG. JPEG chroma is not subsampled: it is the product.
_FORMATS = {".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".webp": "WEBP"}
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 95, "subsampling": "4:4:4"},
    "PNG": {},
    "WEBP": {"quality": 95},
}
_STRIPE_PIXELS = 1 << 20
_LONGEST_EXIF = 65_000


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
    predictor: Predictor,
    *,
    work_size: int = 256,
    max_pixels: int = 89_478_485,
    overwrite: bool = False,
) -> ColorizeResult:
    """Colour photographs, and folders of them with all below, into `output_dir`.

    A photograph keeps its size, luminance, name, place below its folder, EXIF (without orientation: the pixels are
    upright) and, as PNG or WebP, its transparency. JPEG, PNG and WebP stay what they are by their suffix; the others
    become PNG. Names that would clash are told apart: a.tif beside a.png becomes a.tif.png.

    Args:
        photos: files and folders; hidden files of folders are passed over.
        predictor: L float32 (1, 1, h, w) in [0, 1] to ab float32 (1, 2, h, w) in [-1, 1].
        work_size: short side of what the predictor sees, in pixels; smaller photographs are not enlarged.
        max_pixels: larger photographs are refused unread.
        overwrite: colour again what is in `output_dir` already.
    Raises:
        ConfigError: a photograph would be overwritten by its own result.
        InputError: none of the photographs can be read, or the predictor's answer is no colour.
        MachineError: a result cannot be written.
    """
    planned = _plan_outputs(photos, output_dir)
    colorized: list[Path] = []
    kept: list[Path] = []
    skipped: list[SkippedPhoto] = []
    with progress("colouring photographs", len(planned)) as shown:
        for source, output in planned:
            if output.exists() and not overwrite:
                kept.append(output)
            else:
                try:
                    with open_regular_file(source) as stream:
                        decoded = decode_photo(stream, source, max_pixels=max_pixels)
                except InputError as error:
                    if len(planned) == 1:
                        raise
                    skipped.append(SkippedPhoto(source, error.why))
                else:
                    _save(decoded, colorize_picture(decoded.rgb, predictor, work_size=work_size), output)
                    colorized.append(output)
            shown.advance()
    if kept:
        say(f"{len(kept)} photographs were there already and were kept; --overwrite colours them again")
    if not colorized and not kept:
        examples = "; ".join(f"{each.path.name}: {each.reason}" for each in skipped[:3])
        why = f"none of {len(planned)} files can be read ({examples})" if planned else "no photographs in it"
        raise InputError("photographs", photos[0] if photos else None, why, "give JPEG, PNG, WebP, TIFF or BMP files")
    return ColorizeResult(tuple(colorized), tuple(kept), tuple(skipped))


def colorize_picture(picture: Image.Image, predictor: Predictor, *, work_size: int) -> NDArray[np.uint8]:
    """Colour one picture (mode RGB); uint8 (H, W, 3), sRGB. Memory grows with the picture by its own bytes alone.

    Raises:
        InputError: the predictor answers NaN, infinity or another shape.
    """
    small = _to_tensor(np.array(shrink_to(picture, picture.size, work_size)))
    lightness = rgb_to_l_ab(small)[0]
    answer = predictor(np.ascontiguousarray(lightness.numpy()))
    if answer.shape != (1, 2, *lightness.shape[-2:]) or not np.isfinite(answer).all():
        why = f"answered {'x'.join(map(str, answer.shape))} values, some perhaps not finite, instead of colours"
        raise InputError("model", None, why, "give a model that colorpress exported")
    ab = torch.from_numpy(np.asarray(answer, np.float32))
    pixels = np.array(picture)
    for rows in _stripes(*pixels.shape[:2]):
        full_lightness = rgb_to_l_ab(_to_tensor(pixels[rows]))[0]
        rgb = l_ab_to_rgb(full_lightness, _enlarge_rows(ab, rows, *pixels.shape[:2]))
        pixels[rows] = (rgb[0] * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return pixels


def _to_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1)[None]


def _stripes(height: int, width: int) -> Iterator[slice]:
    step = max(1, _STRIPE_PIXELS // width)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def _enlarge_rows(ab: Tensor, rows: slice, height: int, width: int) -> Tensor:
    """Rows of F.interpolate(ab, (height, width), mode="bilinear") without making the rest of it."""
    source = (torch.arange(rows.start, rows.stop, dtype=torch.float32) + 0.5) * (ab.shape[2] / height) - 0.5
    source = source.clamp(0, ab.shape[2] - 1)
    above = source.long()
    below = (above + 1).clamp(max=ab.shape[2] - 1)
    weight = (source - above)[:, None]
    mixed = ab[:, :, above] * (1.0 - weight) + ab[:, :, below] * weight
    return F.interpolate(mixed, (rows.stop - rows.start, width), mode="bilinear", align_corners=False)


def _plan_outputs(photos: Sequence[Path], output_dir: Path) -> list[tuple[Path, Path]]:
    """Each photograph with the file it becomes; the same arguments give the same plan."""
    planned: list[tuple[Path, Path]] = []
    taken: set[str] = set()
    for source, place in _list_sources(photos, output_dir):
        suffix = place.suffix if place.suffix.lower() in _FORMATS else ".png"
        # "a.png" for a.tif, else "a.tif.png", else "a.tif-2.png"; compared as file systems without case would.
        names = [place.stem + suffix, place.name.removesuffix(suffix) + suffix]
        number = 2
        while (output := output_dir / place.with_name(names[0])).as_posix().casefold() in taken:
            names.pop(0)
            if not names:
                names.append(f"{place.name.removesuffix(suffix)}-{number}{suffix}")
                number += 1
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
        inside = find_photos(each, leave_out=output_dir) if each.is_dir() else [each]
        for path in inside:
            if (absolute := path.absolute()) not in seen:
                seen.add(absolute)
                yield path, path.relative_to(each) if each.is_dir() else Path(path.name)


def _save(source: DecodedPhoto, pixels: NDArray[np.uint8], output: Path) -> None:
    kind = _FORMATS[output.suffix.lower()]
    picture = Image.fromarray(pixels)
    if source.alpha is not None:
        if kind == "JPEG":
            warn(f"'{output}' loses its transparency: JPEG has none")
        else:
            picture.putalpha(source.alpha)
    options = dict(_SAVE_OPTIONS[kind])
    if source.exif and len(source.exif) <= _LONGEST_EXIF:
        options["exif"] = source.exif
    with atomic_write(output) as temporary:
        picture.save(temporary, format=kind, **options)
