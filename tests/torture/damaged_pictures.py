"""Damaged pictures of every type through the decoder, and pictures of every aspect through `colorize`.

    python -m tests.torture.damaged_pictures --count 2000

A child process with limits on time and memory takes them one after another; what ends it is counted, and the next
child goes on behind it. The same seed gives the same pictures. Exit code 1 where anything but reading or refusing
happened; the picture is then kept in the folder that is named.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from tests.torture.children import run_child, torture
from tests.torture.figures import Figures

Bytes = NDArray[np.uint8]
Dice = np.random.Generator

MAX_PIXELS = 10_000_000
LONGEST_SIDE = 65_500


def photo(dice: Dice, width: int, height: int) -> Image.Image:
    """Smooth colours with some grain."""
    small = dice.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return Image.fromarray(np.clip(smooth + dice.integers(-6, 7, smooth.shape), 0, 255).astype(np.uint8))


def pillow(kind: str, mode: str = "RGB", **options: Any) -> Callable[[Dice], bytes]:
    """A maker of pictures that Pillow writes."""

    def make(dice: Dice) -> bytes:
        buffer = io.BytesIO()
        photo(dice, 64, 48).convert(mode).save(buffer, kind, **options)
        return buffer.getvalue()

    return make


def tiff(bits: int, **options: Any) -> Callable[[Dice], bytes]:
    """A maker of TIFFs of two pages, of so many bits of 16, or of floating point where that is 0."""

    def make(dice: Dice) -> bytes:
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, bigtiff=options.get("bigtiff", False)) as writer:
            for _ in range(2):
                values: NDArray[Any] = np.asarray(photo(dice, 64, 48)) / 255.0
                values = np.rint(values * ((1 << bits) - 1)).astype(np.uint16) if bits else values.astype(np.float32)
                apart = options.get("planarconfig") == "separate"
                rest = {name: value for name, value in options.items() if name != "bigtiff"}
                writer.write(np.moveaxis(values, 2, 0) if apart else values, photometric="rgb", metadata=None, **rest)
        return buffer.getvalue()

    return make


def film(kind: str) -> Callable[[Dice], bytes]:
    """A maker of pictures with several frames."""

    def make(dice: Dice) -> bytes:
        buffer = io.BytesIO()
        frames = [photo(dice, 32, 24) for _ in range(4)]
        frames[0].save(buffer, kind, save_all=True, append_images=frames[1:])
        return buffer.getvalue()

    return make


@cache
def makers() -> dict[str, Callable[[Dice], bytes]]:
    """Every kind of file that the installed libraries write."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    found = {
        "jpeg": pillow("JPEG", exif=exif),
        "jpeg progressive": pillow("JPEG", progressive=True),
        "jpeg grey": pillow("JPEG", "L"),
        "jpeg cmyk": pillow("JPEG", "CMYK"),
        "mpo": film("MPO"),
        "png": pillow("PNG", exif=exif),
        "png palette": pillow("PNG", "P"),
        "png alpha": pillow("PNG", "RGBA"),
        "png 16": pillow("PNG", "I;16"),
        "apng": film("PNG"),
        "webp": pillow("WEBP"),
        "webp film": film("WEBP"),
        "gif": film("GIF"),
        "bmp": pillow("BMP"),
        "tiff lzw": pillow("TIFF", compression="tiff_lzw"),
        "tiff jpeg": pillow("TIFF", compression="jpeg"),
        "tiff fax": pillow("TIFF", "1", compression="group4"),
        "tiff lab": pillow("TIFF", "LAB"),
        "tiff 12": tiff(12),
        "tiff 16 tiles": tiff(16, compression="zlib", tile=(16, 16)),
        "tiff 16 apart": tiff(16, planarconfig="separate"),
        "tiff big": tiff(14, bigtiff=True),
        "tiff float": tiff(0),
        "jpeg 2000": pillow("JPEG2000"),
        "avif": pillow("AVIF"),
        "heic": pillow("HEIF"),
    }
    from training.picture_types import TYPES

    written = {each.name.lower() for each in TYPES if each.is_written}
    unsure = {"jpeg 2000", "avif", "heic"}
    return {name: make for name, make in found.items() if name not in unsure or name in written}


def damage(content: bytes, dice: Dice) -> bytes:
    """The file with one kind of damage, sometimes several times."""
    bytes_: Bytes = np.frombuffer(content, np.uint8).copy()
    for _ in range(int(dice.integers(1, 4))):
        bytes_ = DAMAGES[int(dice.integers(len(DAMAGES)))](bytes_, dice)
    return bytes_.tobytes()


def flip(content: Bytes, dice: Dice) -> Bytes:
    places = dice.integers(0, content.size, int(dice.integers(1, 12)))
    content[places] = dice.integers(0, 256, places.size)
    return content


def flip_header(content: Bytes, dice: Dice) -> Bytes:
    places = dice.integers(0, min(content.size, 256), int(dice.integers(1, 6)))
    content[places] = dice.choice([0, 1, 0x7F, 0x80, 0xFF], places.size)
    return content


def set_number(content: Bytes, dice: Dice) -> Bytes:
    """A large number of 2 or 4 bytes, as sizes, counts and offsets are."""
    size = int(dice.choice([2, 4]))
    place = int(dice.integers(0, max(1, content.size - size)))
    value = int(dice.choice([0, 1, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x10000, 40_000])) & ((1 << 8 * size) - 1)
    number = np.frombuffer(value.to_bytes(size, str(dice.choice(["big", "little"]))), np.uint8)  # type: ignore[arg-type]
    content[place : place + size] = number[: content[place : place + size].size]
    return content


def cut(content: Bytes, dice: Dice) -> Bytes:
    return content[: int(dice.integers(1, content.size + 1))]


def repeat(content: Bytes, dice: Dice) -> Bytes:
    """A piece many times over: scans, chunks, frames, directories."""
    start, end = np.sort(dice.integers(0, content.size + 1, 2))
    piece = content[start:end][:4096]
    return np.concatenate([content[:end], *[piece] * int(dice.integers(2, 200)), content[end:]])


def leave_out(content: Bytes, dice: Dice) -> Bytes:
    start = int(dice.integers(0, content.size))
    return np.delete(content, slice(start, start + int(dice.integers(1, 64)))) if content.size > 64 else content


def join(content: Bytes, dice: Dice) -> Bytes:
    """The start of one file and the end of another of any type."""
    names = list(makers())
    other = np.frombuffer(makers()[names[int(dice.integers(len(names)))]](dice), np.uint8)
    return np.concatenate([content[: int(dice.integers(8, content.size + 8))], other[int(dice.integers(other.size)) :]])


DAMAGES = (flip, flip_header, set_number, set_number, cut, repeat, leave_out, join)


def make_damaged(seed: int, number: int) -> tuple[str, bytes]:
    """The kind and the content of one damaged picture."""
    dice = np.random.default_rng((seed, number))
    name = list(makers())[number % len(makers())]
    return name, damage(makers()[name](dice), dice)


def read_damaged(seed: int, number: int, folder: Path) -> str:
    """What becomes of a damaged picture that is read as training and as `colorize` read it."""
    from colorpress.core.errors import InputError
    from training.decoding import count_frames, decode_pages, open_regular_file
    from training.photos import inspect_photo, load_rgb

    path = folder / f"{number}"
    path.write_bytes(make_damaged(seed, number)[1])
    inspect_photo(path, MAX_PIXELS)
    outcome = "read"
    try:
        load_rgb(path, max_pixels=MAX_PIXELS, short_side=32)
        with open_regular_file(path) as stream:
            count_frames(stream)
            stream.seek(0)
            for page in decode_pages(stream, path, max_pixels=MAX_PIXELS):
                assert page.rgb.mode == "RGB"
                assert page.width * page.height <= MAX_PIXELS
    except InputError as error:
        outcome = "memory" if "not enough memory" in error.why else "refused"
    path.unlink()
    return outcome


def color_aspect(seed: int, number: int, folder: Path) -> str:
    """What becomes of a picture of a random aspect up to 1 to 65,500 that the model that comes along colours."""
    from export.colorize_folder import DEMONSTRATION_MODEL, colorize_photos
    from export.runtimes import open_colorizer

    dice = np.random.default_rng((seed, number))
    longer = int(np.exp(dice.uniform(0.0, np.log(LONGEST_SIDE))))
    shorter = max(
        1, min(int(np.exp(dice.uniform(0.0, np.log(longer)))) if longer > 1 else 1, MAX_PIXELS // longer // 4)
    )
    size = (longer, shorter) if number % 2 else (shorter, longer)
    path = folder / f"{number}.png"
    photo(dice, *size).save(path)
    colorizer = open_colorizer(DEMONSTRATION_MODEL, threads=1)
    result = colorize_photos([path], folder / "out", colorizer, max_pixels=MAX_PIXELS, overwrite=True)
    with Image.open(result.colorized[0]) as picture:
        assert picture.size == size
    path.unlink()
    return "read"


TASKS = {"damaged": read_damaged, "aspect": color_aspect}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000, help="damaged pictures; a twentieth as many aspects")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("torture-pictures"), help="where failures are kept")
    parser.add_argument("--only", choices=sorted(TASKS), help="one kind alone")
    parser.add_argument("--child", choices=sorted(TASKS), help=argparse.SUPPRESS)
    parser.add_argument("--start", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        run_child(TASKS[given.child], given.seed, given.start, given.count, given.folder)
        return 0

    def keep(number: int) -> None:
        given.folder.mkdir(parents=True, exist_ok=True)
        (given.folder / f"{given.seed}-{number}").write_bytes(make_damaged(given.seed, number)[1])

    figures, module = Figures(), "tests.torture.damaged_pictures"
    counts = {"damaged": given.count, "aspect": max(1, given.count // 20)}
    with tempfile.TemporaryDirectory() as folder:
        for task in [given.only] if given.only else TASKS:
            kept = keep if task == "damaged" else lambda number: None
            torture(figures, module, task, given.seed, counts[task], Path(folder), keep=kept)
    return figures.finish()


if __name__ == "__main__":
    sys.exit(main())
