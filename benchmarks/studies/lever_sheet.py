"""A sheet of what trainings made of the same photographs: one line each, its name and figures at the left."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from colorpress.core.charts import font_path
from colorpress.core.files import atomic_write
from training.lab import l_ab_to_rgb

_TILE, _GAP, _LABEL_WIDTH, _FONT_SIZE = 112, 4, 400, 15
_PAPER, _INK = (255, 255, 255), (20, 20, 20)


def draw_strip(pictures: Sequence[tuple[Tensor, Tensor]]) -> Image.Image:
    """Pictures side by side, each cut to a square in its middle.

    Args:
        pictures: L (1, 1, H, W) in [0, 1] and ab (1, 2, H, W) in ab/128.
    """
    strip = Image.new("RGB", (len(pictures) * (_TILE + _GAP), _TILE), _PAPER)
    for place, (lightness, ab) in enumerate(pictures):
        rgb = l_ab_to_rgb(lightness, ab)[0].permute(1, 2, 0)  # (H, W, 3)
        picture = Image.fromarray((255.0 * rgb).round().numpy().astype(np.uint8))
        strip.paste(ImageOps.fit(picture, (_TILE, _TILE), Image.Resampling.LANCZOS), (place * (_TILE + _GAP), 0))
    return strip


def draw_sheet(lines: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Strips below each other, each with its label, whose lines are short ones."""
    font = ImageFont.truetype(str(font_path()), _FONT_SIZE)
    width = _LABEL_WIDTH + max(strip.width for _, strip in lines)
    sheet = Image.new("RGB", (width, len(lines) * (_TILE + _GAP)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (label, strip) in enumerate(lines):
        top = place * (_TILE + _GAP)
        draw.multiline_text((_GAP, top + _TILE / 2), label, fill=_INK, font=font, anchor="lm", spacing=6)
        sheet.paste(strip, (_LABEL_WIDTH, top))
    return sheet


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write it as PNG, atomically; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        picture.save(temporary, "PNG")
    return path
