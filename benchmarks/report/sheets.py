"""Sheets of pictures beside each other, with a label below each: comparison.png and the samples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.report.sample_photos import ColoredPhoto, Pixels
from colorpress.core.charts import font_path
from colorpress.core.errors import printable
from colorpress.core.files import atomic_write

_Cell = tuple[Pixels | None, str, str]  # picture, title, fainter line below

_CELL = 240
_GAP = 8
_LINE = 20
_FONT_SIZE = 14
_PAPER, _INK, _FAINT = (255, 255, 255), (20, 20, 20), (100, 100, 100)


def draw_comparison(colored: Sequence[ColoredPhoto], names: Sequence[str], *, cell: int = _CELL) -> Image.Image:
    """A sheet with a row per photograph: grey, truth, and each of `names` with its L1 below."""
    rows: list[list[_Cell]] = []
    for photo in colored:
        cells: list[_Cell] = [(photo.grey, "grey input", _l1_label(photo, "grey")), (photo.truth, "truth", photo.name)]
        cells += [(photo.answers.get(name), name, _l1_label(photo, name)) for name in names]
        rows.append(cells)
    return _draw_sheet(rows, cell)


def draw_outputs(colored: Sequence[ColoredPhoto], name: str, *, columns: int = 3, cell: int = 320) -> Image.Image:
    """The answers of the variant `name` alone, `columns` to a row."""
    cells = [(photo.answers.get(name), photo.name, _l1_label(photo, name)) for photo in colored]
    return _draw_sheet([cells[start : start + columns] for start in range(0, len(cells), columns)], cell)


def save_sheet(sheet: Image.Image, path: Path) -> Path:
    """Write a sheet as PNG, atomically."""
    with atomic_write(path) as temporary:
        sheet.save(temporary, optimize=True)
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
