"""The pictures of report.html as data URIs: drawings, sheets, and `pictures/` within what a page may weigh."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.report.pictures import FOLDER, FORMAT_VERSION
from colorpress.core.errors import InputError
from colorpress.core.files import read_json

_AGAIN = "delete it, and run the benchmark again"
# JPEG bytes of all pictures and of all difference maps; a page writes them a third longer. The first quality that
# fits is taken.
_PICTURE_BYTES, _MAP_BYTES = 1_000_000, 250_000
_QUALITIES = (92, 88, 82, 75, 65, 50)


@dataclass(frozen=True)
class Slot:
    """A picture that a run folder may hold, and how the page shows it.

    Attributes:
        alt, caption: its texts.
        widest: pixels it is reduced to.
        is_drawing: few colours, so a PNG with a palette; else a photograph, so a JPEG.
    """

    alt: str
    caption: str
    widest: int
    is_drawing: bool = False


@dataclass(frozen=True)
class Picture:
    """A picture as the page holds it: a data URI, its size in pixels, and its slot's texts."""

    uri: str
    width: int
    height: int
    alt: str
    caption: str


@dataclass(frozen=True)
class Tile:
    """One picture of a photograph.

    Attributes:
        name: "grey", "truth" or a variant's.
        against: of a difference map, "truth" or "best"; else empty.
        title: in words.
        uri: the JPEG.
    """

    name: str
    against: str
    title: str
    uri: str


@dataclass(frozen=True)
class ShownPhoto:
    """A photograph of `pictures/`: its size in pixels, its tiles, and the L1 of each answer in a sentence."""

    name: str
    is_worst: bool
    width: int
    height: int
    tiles: tuple[Tile, ...]
    sentence: str


@dataclass(frozen=True)
class PictureSet:
    """What `pictures/` holds (see pictures.write_picture_set).

    Attributes:
        best: the name of the first variant; `variants`: the others' names.
        judged: whose L1 the worst photographs are worst by; None: the mean's over ours.
        scale: mean |Δab| (ab/128) at the end of the colour bar.
        bar: its colours.
    """

    best: str
    variants: tuple[str, ...]
    judged: str | None
    scale: float
    bar: tuple[str, ...]
    photos: tuple[ShownPhoto, ...]


def embed_picture(path: Path, slot: Slot) -> Picture | None:
    """A picture file as a data URI; None where there is no such file.

    Raises:
        InputError: it is damaged.
    """
    if not path.is_file():
        return None
    picture = _open(path, "PNG")
    scale = min(1.0, slot.widest / max(picture.width, 1))
    if scale < 1.0:
        size = (slot.widest, max(1, math.floor(picture.height * scale)))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    if slot.is_drawing:
        buffer = io.BytesIO()
        # Drawings have few colours: a palette makes them a third of the size.
        picture.quantize(128).save(buffer, "PNG", optimize=True)
        uri = _as_uri(buffer.getvalue(), "png")
    else:
        uri = _as_uri(_encode_jpeg(picture, 85), "jpeg")
    return Picture(uri=uri, width=picture.width, height=picture.height, alt=slot.alt, caption=slot.caption)


def read_picture_set(output_dir: Path) -> PictureSet | None:
    """The pictures of the benchmark in a run folder, encoded so that they fit the page; None where there are none.

    Difference maps have half the pixels of a side: where a colouring differs is seen on those too.

    Raises:
        InputError: pictures.json or a picture is damaged or of another format.
    """
    path = output_dir / FOLDER / "pictures.json"
    if not path.is_file():
        return None
    record = read_json(path, "picture list", _AGAIN)
    try:
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format {record['format_version']}")
        return _read_record(record, path.parent)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError("picture list", path, f"is not one of this version ({error})", _AGAIN) from error


def _read_record(record: dict[str, Any], folder: Path) -> PictureSet:
    best = str(record["best"])
    pictures, maps = [], []
    for photo in record["photos"]:
        pictures += [_open_inside(folder, file) for file in photo["pictures"].values()]
        for against in ("truth", "best"):
            maps += [_halve(_open_inside(folder, file)) for file in photo["differences"][against].values()]
    picture_uris, map_uris = iter(_encode_within(pictures, _PICTURE_BYTES)), iter(_encode_within(maps, _MAP_BYTES))
    photos = []
    for photo in record["photos"]:
        tiles = [Tile(name, "", _title(name), next(picture_uris)) for name in photo["pictures"]]
        for against, other in (("truth", "the truth"), ("best", best)):
            names = photo["differences"][against]
            tiles += [Tile(name, against, f"{name}, difference to {other}", next(map_uris)) for name in names]
        photos.append(
            ShownPhoto(
                name=photo["name"],
                is_worst=photo["kind"] == "worst",
                width=int(photo["width"]),
                height=int(photo["height"]),
                tiles=tuple(tiles),
                sentence=_say_l1(photo["l1"], best),
            )
        )
    return PictureSet(
        best=best,
        variants=tuple(record["variants"]),
        judged=record["judged"],
        scale=float(record["scale"]),
        bar=tuple(record["bar"]),
        photos=tuple(photos),
    )


def _title(name: str) -> str:
    return {"grey": "grey input", "truth": "truth"}.get(name, name)


def _say_l1(l1: dict[str, float], best: str) -> str:
    parts = []
    for name, value in l1.items():
        above = ""
        if name not in (best, "grey") and l1.get(best):
            above = f" ({100.0 * (value / l1[best] - 1.0):+.1f} %)"
        parts.append(f"{name} {value:.4f}{above}")
    return ", ".join(parts)


def _open_inside(folder: Path, name: str) -> Image.Image:
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not in the folder")
    path = folder / name
    if not path.is_file():
        raise InputError("picture", path, "no such file", _AGAIN)
    return _open(path, "JPEG")


def _open(path: Path, kind: str) -> Image.Image:
    try:
        with Image.open(path, formats=[kind]) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("picture", path, "is damaged", _AGAIN) from error


def _halve(picture: Image.Image) -> Image.Image:
    return picture.reduce(2) if min(picture.size) > 1 else picture


def _encode_within(pictures: Sequence[Image.Image], most_bytes: int) -> list[str]:
    """JPEG data URIs of one quality, the highest of a few whose bytes together are few enough."""
    encoded: list[bytes] = []
    for quality in _QUALITIES:
        encoded = [_encode_jpeg(picture, quality) for picture in pictures]
        if sum(map(len, encoded)) <= most_bytes:
            break
    return [_as_uri(content, "jpeg") for content in encoded]


def _encode_jpeg(picture: Image.Image, quality: int) -> bytes:
    """Without chroma subsampling: colour is what is judged."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()


def _as_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
