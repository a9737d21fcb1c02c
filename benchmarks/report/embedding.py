"""Pictures as a page holds them: data URIs of drawings, and of the photographs that its sliders compare."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from benchmarks.report.pictures import FOLDER, FORMAT_VERSION, encode_jpeg
from colorpress.core.errors import InputError
from colorpress.core.reading import as_damaged, read_json

_BENCHMARK_AGAIN = "delete it, and run the benchmark again"
# JPEG bytes of all pictures and of all difference maps; a page writes them a third longer. The first quality that
# fits is taken.
_PICTURE_BYTES, _MAP_BYTES = 1_000_000, 250_000
_QUALITIES = (92, 88, 82, 75, 65, 50)
# Pixels that a drawing is reduced to: twice what it is shown at.
_WIDEST = 1400


class Picture(NamedTuple):
    """A picture as the page holds it: a data URI, and its size in pixels."""

    uri: str
    width: int
    height: int


def embed_drawing(path: Path) -> Picture | None:
    """A chart as a data URI; None where there is no such file.

    Raises:
        InputError: it is damaged.
    """
    if not path.is_file():
        return None
    picture = _open(path, "PNG")
    scale = min(1.0, _WIDEST / max(picture.width, 1))
    if scale < 1.0:
        picture = picture.resize((_WIDEST, max(1, math.floor(picture.height * scale))), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # Drawings have few colours: a palette makes them a third of the size.
    picture.quantize(128).save(buffer, "PNG", optimize=True)
    return Picture(_as_uri(buffer.getvalue(), "png"), *picture.size)


def read_picture_set(output_dir: Path) -> dict[str, Any] | None:
    """The pictures of the benchmark in a run folder, encoded so that they fit the page; None where there are none.

    Difference maps have half the pixels of a side: where a colouring differs is seen on those too.

    Returns:
        "best" and "variants" (names), "judged" (who harms the worst photographs; None: ours, on average),
        "scale" (mean |Δab| at the end of the colour bar), "bar" (its colours), and "photos": each with "name",
        "is_worst", "width", "height", "gain" (in L1, of best.pt over grey), "sentence" (the L1 of each answer) and
        "tiles". A tile has "name" ("grey", "truth" or a variant's), "against" (of a difference map "truth" or "best",
        else empty), "title" and "uri".
    Raises:
        InputError: pictures.json or a picture is damaged or of another format.
    """
    path = output_dir / FOLDER / "pictures.json"
    if not path.is_file():
        return None
    record = read_json(path, "picture list", _BENCHMARK_AGAIN)
    with as_damaged("picture list", path, _BENCHMARK_AGAIN):
        if record["format_version"] != FORMAT_VERSION:
            raise ValueError("it is not one of this version")
        return {
            **{name: record[name] for name in ("variants", "judged", "bar")},
            "best": str(record["best"]),
            "scale": float(record["scale"]),
            "photos": _read_photos(record["photos"], str(record["best"]), path.parent),
        }


def _read_photos(photos: Sequence[Mapping[str, Any]], best: str, folder: Path) -> list[dict[str, Any]]:
    pictures, maps = [], []
    for photo in photos:
        pictures += [_open_inside(folder, file) for file in photo["pictures"].values()]
        for against in ("truth", "best"):
            maps += [_halve(_open_inside(folder, file)) for file in photo["differences"][against].values()]
    picture_uris, map_uris = iter(_encode_within(pictures, _PICTURE_BYTES)), iter(_encode_within(maps, _MAP_BYTES))
    titles = {"grey": "grey input"}
    shown = []
    for photo in photos:
        tiles = [
            {"name": name, "against": "", "title": titles.get(name, name), "uri": next(picture_uris)}
            for name in photo["pictures"]
        ]
        for against, other in (("truth", "the truth"), ("best", best)):
            tiles += [
                {"name": name, "against": against, "title": f"{name}, difference to {other}", "uri": next(map_uris)}
                for name in photo["differences"][against]
            ]
        figures = {name: photo[name] for name in ("name", "width", "height")}
        l1: Mapping[str, float] = photo["l1"]
        figures |= {"is_worst": photo["kind"] == "worst", "gain": float(l1["grey"] - l1.get(best, l1["grey"]))}
        shown.append({**figures, "sentence": _say_l1(l1, best), "tiles": tiles})
    return shown


def _say_l1(l1: Mapping[str, float], best: str) -> str:
    def above(name: str, value: float) -> str:
        return f" ({100.0 * (value / l1[best] - 1.0):+.1f} %)" if name not in (best, "grey") and l1.get(best) else ""

    return ", ".join(f"{name} {value:.4f}{above(name, value)}" for name, value in l1.items())


def _open_inside(folder: Path, name: str) -> Image.Image:
    if Path(name).name != name:
        raise ValueError(f"{name!r} is not in the folder")
    path = folder / name
    if not path.is_file():
        raise InputError("picture", path, "no such file", _BENCHMARK_AGAIN)
    return _open(path, "JPEG")


def _open(path: Path, kind: str) -> Image.Image:
    try:
        with Image.open(path, formats=[kind]) as opened:
            return opened.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError("picture", path, "is damaged", _BENCHMARK_AGAIN) from error


def _halve(picture: Image.Image) -> Image.Image:
    return picture.reduce(2) if min(picture.size) > 1 else picture


def _encode_within(pictures: Sequence[Image.Image], most_bytes: int) -> list[str]:
    """JPEG data URIs of one quality, the highest of a few whose bytes together are few enough."""
    encoded: list[bytes] = []
    for quality in _QUALITIES:
        encoded = [encode_jpeg(picture, quality) for picture in pictures]
        if sum(map(len, encoded)) <= most_bytes:
            break
    return [_as_uri(content, "jpeg") for content in encoded]


def _as_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"
