"""What each variant makes of a photograph: pixels to look at, sheets of them, and maps of where two differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from benchmarks.accuracy import ask
from benchmarks.variants import Variant
from colorpress.core.charts import font_path, paint_values
from colorpress.core.errors import printable
from colorpress.core.files import atomic_write
from training.batches import whole_photos
from training.lab import l_ab_to_rgb, rgb_to_l_ab
from training.metrics import mean_l1
from training.photos import Photo

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
_Cell = tuple[Pixels | None, str, str]  # picture, title, fainter line below
# Perceptually uniform and monotonic in lightness, so that it is read right without colour vision and in print too.
_COLOUR_MAP = "magma"
_CLIPPED_PCT = 1.0
_BAR_STOPS = 9
_CELL, _COLUMNS = 240, 4
_GAP = 8
_LINE = 20
_FONT_SIZE = 14
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (100, 100, 100)


@dataclass(frozen=True)
class ColoredPhoto:
    """One photograph and the variants' answers, all uint8 RGB (H, W, 3) of one size.

    Attributes:
        name: the file's name.
        grey: the luminance, the network's input.
        truth: the photograph itself.
        answers: by variant name; a failed variant is missing.
        l1: of each answer (ab/128), and of the grey one under "grey".
        ab: (2, H, W), ab/128, of each answer, and of the photograph under "truth"; empty where it was not kept.
        sha256: of the photograph's file.
    """

    name: str
    grey: Pixels
    truth: Pixels
    answers: Mapping[str, Pixels]
    l1: Mapping[str, float]
    ab: Mapping[str, Floats] = field(default_factory=dict)
    sha256: str = ""


def color_photos(
    variants: Sequence[Variant],
    photos: Sequence[Photo],
    *,
    short_side: int,
    max_pixels: int,
    threads: int = 0,
    keep_ab: bool = False,
) -> list[ColoredPhoto]:
    """Let every variant colour every photograph; variants that fail are left out."""
    predictors = {}
    for variant in variants:
        try:
            # Unprobed: the benchmark has looked at the file in a child process before.
            predictors[variant.name] = variant.open(threads)
        except Exception:  # its row in the benchmark says how it failed
            continue
    colored = []
    with torch.inference_mode():
        for photo, rgb in whole_photos(photos, short_side=short_side, max_pixels=max_pixels):
            lightness, truth = rgb_to_l_ab(rgb)  # (1, 1, H, W), (1, 2, H, W)
            answered: dict[str, Tensor] = {}
            for name, predictor in predictors.items():
                try:
                    answered[name] = ask(predictor, lightness)
                except Exception:  # as above
                    continue
            grey = torch.zeros_like(truth)
            colored.append(
                ColoredPhoto(
                    name=photo.path.name,
                    grey=_to_pixels(l_ab_to_rgb(lightness, grey)),
                    truth=np.ascontiguousarray(rgb[0].permute(1, 2, 0).numpy()),
                    answers={name: _to_pixels(l_ab_to_rgb(lightness, ab)) for name, ab in answered.items()},
                    l1={name: mean_l1(ab, truth) for name, ab in {"grey": grey, **answered}.items()},
                    ab={name: ab[0].numpy() for name, ab in {"truth": truth, **answered}.items()} if keep_ab else {},
                    sha256=photo.sha256,
                )
            )
    return colored


def _to_pixels(rgb: Tensor) -> Pixels:
    pixels = (rgb[0].permute(1, 2, 0) * 255.0).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.cpu().numpy())


def map_difference(ab: Floats, other: Floats) -> Floats:
    """The mean over a and b of the absolute difference at each pixel, (H, W): its own mean is the L1 of the two.

    Args:
        ab, other: (2, H, W), ab/128.
    """
    difference: Floats = np.abs(ab - other).mean(axis=0, dtype=np.float32)
    return difference


def choose_scale(maps: Sequence[Floats]) -> float:
    """The difference at the top of the colour map: what 99 % of all pixels stay below, rounded up to two digits."""
    values: Floats = np.concatenate([each.ravel() for each in maps]) if maps else np.zeros(1, np.float32)
    top = float(np.percentile(values, 100.0 - _CLIPPED_PCT))
    if top <= 0.0 or not math.isfinite(top):
        return 0.01
    step = 10.0 ** (math.floor(math.log10(top)) - 1)
    return round(math.ceil(top / step) * step, 12)


def paint_map(difference: Floats, scale: float) -> Pixels:
    """A map as RGB (H, W, 3): the colour map from 0 to `scale`; what is above has the colour of its end."""
    return paint_values(difference / scale, _COLOUR_MAP)


def bar_colours() -> list[str]:
    """Colours at even steps from 0 to the scale's end, such as "#000004": what a colour bar is made of."""
    painted = paint_map(np.linspace(0.0, 1.0, _BAR_STOPS, dtype=np.float32)[None], scale=1.0)
    return ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in painted[0]]


def draw_comparison(colored: Sequence[ColoredPhoto], names: Sequence[str], *, cell: int = _CELL) -> Image.Image:
    """A sheet of every photograph: grey, truth, and each of `names` with its L1 below, four to a row."""
    rows: list[list[_Cell]] = []
    for photo in colored:
        cells: list[_Cell] = [(photo.grey, "grey input", _l1_label(photo, "grey")), (photo.truth, "truth", photo.name)]
        cells += [(photo.answers.get(name), name, _l1_label(photo, name)) for name in names]
        rows += [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    return _draw_sheet(rows, cell)


def draw_outputs(colored: Sequence[ColoredPhoto], name: str, *, columns: int = 3, cell: int = 320) -> Image.Image:
    """The answers of the variant `name` alone, `columns` to a row."""
    cells = [(photo.answers.get(name), photo.name, _l1_label(photo, name)) for photo in colored]
    return _draw_sheet([cells[start : start + columns] for start in range(0, len(cells), columns)], cell)


def save_sheet(sheet: Image.Image, path: Path) -> Path:
    """Write a sheet as PNG, atomically."""
    with atomic_write(path) as temporary:
        sheet.save(temporary)  # optimized it takes three times as long, and is 2 % smaller
    return path


def _l1_label(photo: ColoredPhoto, name: str) -> str:
    return f"L1 {photo.l1[name]:.4f}" if name in photo.l1 else "no answer"


def _draw_sheet(rows: Sequence[Sequence[_Cell]], cell: int) -> Image.Image:
    """Cells of a picture, its title and a fainter line below; each row is as high as its highest picture."""
    font = _load_font()
    fitted = [[(_fit(pixels, cell), title, note) for pixels, title, note in row] for row in rows]
    heights = [max((picture.height for picture, _, _ in row if picture), default=cell // 2) for row in fitted]
    columns = max((len(row) for row in fitted), default=1)
    width = _GAP + columns * (cell + _GAP)
    height = _GAP + sum(row_height + 2 * _LINE + _GAP for row_height in heights)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    top = _GAP
    for row, row_height in zip(fitted, heights, strict=True):
        for column, (picture, title, note) in enumerate(row):
            left = _GAP + column * (cell + _GAP)
            if picture:
                sheet.paste(picture, (left + (cell - picture.width) // 2, top + (row_height - picture.height) // 2))
            else:
                draw.rectangle((left, top, left + cell - 1, top + row_height - 1), outline=_FAINT)
            for line, (text, colour) in enumerate(((title, _INK), (note, _FAINT))):
                label = shorten_label(text, cell, font)
                place = (left + (cell - font.getlength(label)) / 2, top + row_height + line * _LINE + 2)
                draw.text(place, label, fill=colour, font=font)
        top += row_height + 2 * _LINE + _GAP
    return sheet


def _fit(pixels: Pixels | None, cell: int) -> Image.Image | None:
    """The picture scaled, up or down, to fill the cell's width, but no higher than wide."""
    if pixels is None:
        return None
    picture = Image.fromarray(pixels)
    scale = min(cell / picture.width, cell / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.LANCZOS)


def shorten_label(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """`text` on one line, its middle cut out until it is at most `width` pixels wide."""
    text = printable(text)
    kept = len(text)
    label = text
    while font.getlength(label) > width and kept > 2:
        kept -= 1
        label = text[: kept - kept // 2] + "…" + text[len(text) - kept // 2 :]
    return label


def _load_font() -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(font_path()), _FONT_SIZE)
