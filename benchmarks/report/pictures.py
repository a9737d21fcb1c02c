"""The pictures of a benchmark: the sheets, and the folder `pictures/` that the report's sliders are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.accuracy import AccuracyResult, choose_photos
from benchmarks.report.difference_maps import bar_colours, choose_scale, map_difference, paint_map
from benchmarks.report.sample_photos import ColoredPhoto, Pixels, color_photos
from benchmarks.report.sheets import draw_comparison, draw_input_output, draw_outputs
from benchmarks.rows import Row, base_rows, own_rows
from benchmarks.variants import Variant
from benchmarks.verdict import judge_rows, merit, parent_name
from colorpress.core.config import BenchmarkPlan
from colorpress.core.files import atomic_write, write_json
from compress.front import find_front
from training.photos import Photo

FORMAT_VERSION = 1
FOLDER = "pictures"
_SHEET_PHOTOS = 4
_TYPICAL, _WORST = 4, 4
_MOST_SHOWN = 4
_SHORT_SIDE = 256


@dataclass(frozen=True)
class PictureChoice:
    """What the folder `pictures/` shows.

    Attributes:
        variants: best.pt, then at most four others, the recommended one first and other tools' last.
        typical: the first photographs by content hash.
        worst: those with the largest L1 above best.pt's, worst first.
        judged: whose L1 that is; None: the mean over all of ours.
    """

    variants: tuple[Variant, ...]
    typical: tuple[Photo, ...]
    worst: tuple[Photo, ...]
    judged: str | None


def write_picture_set(
    variants: Sequence[Variant],
    accuracy: AccuracyResult,
    photos: Sequence[Photo],
    rows: Sequence[Row],
    config: BenchmarkPlan,
    output_dir: Path,
    max_pixels: int,
    threads: int,
) -> list[Path]:
    """Write comparison.png, the two samples, and pictures/: JPEG files with pictures.json, which says what each is.

    Of pictures/, files of an earlier benchmark are removed. A photograph is there as grey input, as it is, and as
    best.pt and at most four variants colour it, at most 256 pixels on the short side; with each answer go maps of
    its difference to the truth and to best.pt's.

    Args:
        variants: the first one is best.pt.
        rows: of the same benchmark; they say which variants are worth showing.
    Raises:
        MachineError: a file cannot be written.
    """
    finished = [
        variant
        for variant in _one_per_file(variants)
        if variant.name in accuracy.variants and accuracy.variants[variant.name].is_ok
    ]
    chosen = choose_sheet_photos(photos, accuracy, _SHEET_PHOTOS)
    colored = color_photos(finished, chosen, short_side=config.eval_size, max_pixels=max_pixels, threads=threads)
    best = variants[0].name
    sheets = {
        "comparison.png": draw_comparison(colored, [variant.name for variant in finished]),
        "sample_input_output.png": draw_input_output(colored[:2], best),
        "sample_output.png": draw_outputs(colored, best),
    }
    paths = [save_picture(sheet, output_dir / name) for name, sheet in sheets.items()]
    choice = choose_pictures(variants, accuracy, photos, rows)
    shown = color_photos(
        choice.variants,
        [*choice.typical, *choice.worst],
        short_side=min(config.eval_size, _SHORT_SIDE),
        max_pixels=max_pixels,
        threads=threads,
        keep_ab=True,
    )
    measured = _measured_l1(accuracy)
    shown = [replace(each, l1={**each.l1, **measured.get(each.sha256, {})}) for each in shown]
    return [*paths, *_write_folder(output_dir / FOLDER, shown, choice)]


def _one_per_file(variants: Sequence[Variant]) -> list[Variant]:
    """Another runtime's or device's colours are those of the same file."""
    first: dict[Path, Variant] = {}
    for variant in variants:
        first.setdefault(variant.path, variant)
    return list(first.values())


def choose_sheet_photos(photos: Sequence[Photo], accuracy: AccuracyResult, count: int) -> list[Photo]:
    """Photographs to show: the first ones by content hash, but the last two are those that compression hurts most."""
    ordered = list(choose_photos(photos, len(photos)))
    scored = [each.scores for each in accuracy.variants.values() if each.is_ok]
    if len(ordered) <= count or not scored:
        return ordered[:count]
    harm = [max(each[index].l1_ab for each in scored) - best.l1_ab for index, best in enumerate(scored[0])]
    worst = [accuracy.photos[index] for index in sorted(range(len(harm)), key=lambda index: -harm[index])[:2]]
    return [photo for photo in ordered if photo not in worst][: count - len(worst)] + worst


def choose_pictures(
    variants: Sequence[Variant], accuracy: AccuracyResult, photos: Sequence[Photo], rows: Sequence[Row]
) -> PictureChoice:
    """Which variants and photographs are worth a close look.

    Of ours those are shown that no other one beats in size, time and colour at once, by merit, one for each network,
    since its quantized and packed files look alike; of other tools' the ones that keep most colour, but not best.pt
    itself in another runtime.
    """
    by_name = {variant.name: variant for variant in variants}
    usable = [
        row
        for row in base_rows(rows)
        if row.model in by_name
        and row.model in accuracy.variants
        and accuracy.variants[row.model].is_ok
        and row.is_ok
        and row.speedup
    ]
    recommended = judge_rows(rows).recommended
    own = {row.model for row in own_rows(rows)}
    ours = [row for row in usable if row.model in own]
    best = {row.model for row in find_front(ours, _costs)}
    ours.sort(key=lambda row: (row.model != recommended, row.model not in best, -merit(row, rows[0])))
    front = [row for row in ours if row.model == recommended or row.model in best]
    whole = (rows[0].variant, str(rows[0].variant).removesuffix(".pt"))
    peers = [row for row in usable if row.peer and row.variant not in whole]
    peers.sort(key=lambda row: -(row.retained_colour or 0.0))
    places = _MOST_SHOWN - 1 if peers else _MOST_SHOWN
    first: dict[str, str] = {}
    for row in (*front, *peers):
        file = row.variant if row.peer else parent_name(row.variant) or row.variant
        first.setdefault(file, row.model)
    theirs = {row.model for row in peers}
    names = [name for name in first.values() if name not in theirs][:places]
    names += [name for name in first.values() if name in theirs][: _MOST_SHOWN - len(names)]
    typical, worst, judged = _choose_photos(accuracy, photos, recommended, [row.model for row in ours])
    return PictureChoice((variants[0], *(by_name[name] for name in names)), typical, worst, judged)


def _costs(row: Row) -> tuple[float, float, float]:
    """Size, time and lost colour."""
    assert row.p50_ms is not None
    return float(row.fair_size_bytes), row.p50_ms, -(row.retained_colour or 0.0)


def _choose_photos(
    accuracy: AccuracyResult, photos: Sequence[Photo], recommended: str | None, ours: Sequence[str]
) -> tuple[tuple[Photo, ...], tuple[Photo, ...], str | None]:
    """Typical and worst photographs, and whose L1 tells the worst."""
    judged = recommended if recommended in accuracy.variants else None
    names = [judged] if judged else [name for name in ours if accuracy.variants[name].status == "ok"]
    best = next(iter(accuracy.variants.values()), None)
    if best is None or not best.is_ok or not names:
        return choose_photos(photos, _TYPICAL), (), judged
    scores = [[score.l1_ab for score in accuracy.variants[name].scores] for name in names]
    harm = np.mean(scores, axis=0) - [score.l1_ab for score in best.scores]
    order = [int(index) for index in np.argsort(-harm, kind="stable")]
    # Few photographs: half of them are worst at most, and none is shown twice.
    worst = tuple(accuracy.photos[index] for index in order[: min(_WORST, len(order) // 2)] if harm[index] > 0)
    typical = [photo for photo in choose_photos(photos, len(photos)) if photo not in worst][:_TYPICAL]
    return tuple(typical), worst, judged


def _measured_l1(accuracy: AccuracyResult) -> dict[str, dict[str, float]]:
    """L1 by photograph and variant at the size that was benchmarked, which may be larger than what is shown."""
    finished = {name: each for name, each in accuracy.variants.items() if each.is_ok}
    return {
        photo.sha256: {
            "grey": accuracy.grey_l1[index],
            **{name: each.scores[index].l1_ab for name, each in finished.items()},
        }
        for index, photo in enumerate(accuracy.photos)
    }


def _write_folder(folder: Path, shown: Sequence[ColoredPhoto], choice: PictureChoice) -> list[Path]:
    best, *others = (variant.name for variant in choice.variants)
    maps = [
        {
            "truth": {name: map_difference(ab, photo.ab["truth"]) for name, ab in photo.ab.items() if name != "truth"},
            "best": {
                name: map_difference(ab, photo.ab[best])
                for name, ab in photo.ab.items()
                if name not in ("truth", best) and best in photo.ab
            },
        }
        for photo in shown
    ]
    scale = choose_scale([each for photo in maps for each in photo["truth"].values()])
    paths, entries = [], []
    worst = {photo.sha256 for photo in choice.worst}
    for number, (photo, differences) in enumerate(zip(shown, maps, strict=True)):
        pixels: dict[str, Pixels] = {"grey": photo.grey, "truth": photo.truth, **photo.answers}
        # Numbers instead of names: a variant may be called what no file can be.
        files = {name: f"{number}-{index}.jpg" for index, name in enumerate(pixels)}
        paths += [_save_jpeg(pixels[name], folder / file) for name, file in files.items()]
        map_files: dict[str, dict[str, str]] = {}
        for against, each in differences.items():
            map_files[against] = {}
            for index, (name, difference) in enumerate(each.items()):
                file = f"{number}-{against}-{index}.jpg"
                paths.append(_save_jpeg(paint_map(difference, scale), folder / file))
                map_files[against][name] = file
        height, width = photo.truth.shape[:2]
        entries.append(
            {
                "name": photo.name,
                "kind": "worst" if photo.sha256 in worst else "typical",
                "width": width,
                "height": height,
                "l1": {name: photo.l1[name] for name in ("grey", *photo.answers)},
                "pictures": files,
                "differences": map_files,
            }
        )
    record: Mapping[str, Any] = {
        "format_version": FORMAT_VERSION,
        "best": best,
        "variants": others,
        "judged": choice.judged,
        "scale": scale,
        "bar": bar_colours(),
        "photos": entries,
    }
    paths.append(write_json(folder / "pictures.json", record))
    for stale in set(folder.glob("*.jpg")) - set(paths):
        stale.unlink()
    return paths


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture atomically, in the format its suffix says."""
    with atomic_write(path) as temporary:
        picture.save(temporary, optimize=True)
    return path


def _save_jpeg(pixels: Pixels, path: Path) -> Path:
    """Without chroma subsampling: colour is what is judged."""
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, quality=92, subsampling=0, optimize=True)
    return path
