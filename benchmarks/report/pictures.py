"""The pictures of a benchmark: the sheets, and the folder `pictures/` that the report's sliders are made of."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.accuracy import AccuracyResult, choose_photos, rank_by_harm
from benchmarks.report.main_rows import choose_main_rows
from benchmarks.report.sample_photos import (
    ColoredPhoto,
    Floats,
    Pixels,
    bar_colours,
    choose_scale,
    color_photos,
    draw_comparison,
    draw_outputs,
    map_difference,
    paint_map,
    save_sheet,
)
from benchmarks.rows import Row, base_rows, own_rows
from benchmarks.variants import Variant
from benchmarks.verdict import measure_of, merit, parent_name
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import write_bytes, write_json
from colorpress.core.reading import read_json
from compress.front import find_front
from export.controls import TABLE
from training.photos import Photo
from training.run_folder import Run

FORMAT_VERSION = 1
FOLDER = "pictures"
_SHEET_PHOTOS = 4
_TYPICAL, _WORST = 4, 4
_MOST_SHOWN = 4
_SHORT_SIDE = 256
_QUALITY = 92
_LARGE_CELL = 384


@dataclass(frozen=True)
class PictureChoice:
    """What the folder `pictures/` shows.

    Attributes:
        variants: best.pt, then at most four others, the recommended one first and other tools' last; at the end the
            lightness table, which shows what costs nothing.
        typical: the first photographs by content hash.
        worst: those that are harmed most (see `benchmarks.accuracy.rank_by_harm`), worst first.
        judged: the variant that does it; None: all of ours, on average.
    """

    variants: tuple[Variant, ...]
    typical: tuple[Photo, ...]
    worst: tuple[Photo, ...]
    judged: str | None


def write_picture_set(
    run: Run,
    variants: Sequence[Variant],
    accuracy: AccuracyResult,
    photos: Sequence[Photo],
    rows: Sequence[Row],
    recommended: str | None,
) -> list[Path]:
    """Write comparison.png, the two samples, and pictures/: JPEG files with pictures.json, which says what each is.

    comparison.png has the variants that matter, see `choose_main_rows`.
    Of pictures/, files of an earlier benchmark are removed. A photograph is there as grey input, as it is, and as
    best.pt, at most four variants and a table of colours by lightness colour it, at most 256 pixels on the short side;
    with each answer go maps of its difference to the truth and to best.pt's.

    Args:
        variants: the first one is best.pt.
        rows: of the same benchmark; they say which variants are worth showing.
        recommended: the row that the benchmark's verdict recommends.
    Raises:
        MachineError: a file cannot be written.
    """
    by_name = {each.name: each for each in variants if accuracy.is_ok(each.name)}
    main = choose_main_rows(rows, recommended, measure_of(accuracy.strength))
    # Where best.pt was not timed nothing matters, and what answered is shown alone.
    matter = [by_name[row.model] for _, row in main if row.model in by_name] or [*by_name.values()][:1]
    eval_size = run.settings.score.eval_size
    color = partial(color_photos, max_pixels=run.settings.data.max_pixels, threads=rows[0].threads)
    compressed = [each.name for each in matter if not each.control]
    colored = color(matter, choose_sheet_photos(photos, accuracy, compressed, _SHEET_PHOTOS), short_side=eval_size)
    best = variants[0].name
    sheets = {
        "comparison.png": draw_comparison(colored, [variant.name for variant in matter]),
        "sample_input_output.png": draw_comparison(colored[:2], [best], cell=_LARGE_CELL),
        "sample_output.png": draw_outputs(colored, best),
    }
    paths = [save_sheet(sheet, run.folder / name) for name, sheet in sheets.items()]
    choice = choose_pictures(variants, accuracy, photos, rows, recommended)
    short_side = min(eval_size, _SHORT_SIDE)
    shown = color(choice.variants, [*choice.typical, *choice.worst], short_side=short_side, keep_ab=True)
    measured = _measured_l1(accuracy)
    shown = [replace(each, l1={**each.l1, **measured.get(each.sha256, {})}) for each in shown]
    return [*paths, *_write_folder(run.folder / FOLDER, shown, choice)]


def choose_sheet_photos(
    photos: Sequence[Photo], accuracy: AccuracyResult, names: Sequence[str], count: int
) -> list[Photo]:
    """Photographs to show: the first ones by content hash, but the last two are those that a variant hurts most."""
    ordered = list(choose_photos(photos, len(photos)))
    if len(ordered) <= count:
        return ordered
    worst = [photo for photo, _ in rank_by_harm(accuracy, names, measure_of(accuracy.strength), np.max)[:2]]
    return [photo for photo in ordered if photo not in worst][: count - len(worst)] + worst


def choose_pictures(
    variants: Sequence[Variant],
    accuracy: AccuracyResult,
    photos: Sequence[Photo],
    rows: Sequence[Row],
    recommended: str | None,
) -> PictureChoice:
    """Which variants and photographs are worth a close look.

    Of ours those are shown that no other one beats in size, time and colour at once, by merit, one for each network,
    since its quantized and packed files look alike; of other tools' the ones that keep most colour, but not best.pt
    itself in another runtime. Beside them stands what a table of colours by lightness answers.
    """
    measure = measure_of(accuracy.strength)
    by_name = {variant.name: variant for variant in variants if accuracy.is_ok(variant.name)}
    usable = [row for row in base_rows(rows) if row.model in by_name and row.is_ok and row.speedup]
    own = own_rows(rows)
    ours = [row for row in usable if row in own]
    unbeaten = find_front(ours, lambda row: (row.fair_size_bytes, row.p50_ms or 0.0, -(row.kept(measure) or 0.0)))
    ours.sort(key=lambda row: (row.model != recommended, row not in unbeaten, -merit(row, rows[0])))
    whole = (rows[0].variant, rows[0].variant.removesuffix(".pt"))
    peers = [row for row in usable if row.peer and row.variant not in whole]
    peers.sort(key=lambda row: -(row.kept(measure) or 0.0))
    names = _one_per_network(row for row in ours if row.model == recommended or row in unbeaten)
    names = names[: _MOST_SHOWN - 1 if peers else _MOST_SHOWN]
    names += _one_per_network(peers)[: _MOST_SHOWN - len(names)]
    names += [name for name, variant in by_name.items() if variant.control == TABLE]
    typical, worst, judged = _choose_photos(accuracy, photos, recommended, [row.model for row in ours])
    return PictureChoice((variants[0], *(by_name[name] for name in names)), typical, worst, judged)


def _one_per_network(rows: Iterable[Row]) -> list[str]:
    """The first row's name of each network of ours, and of each file of another tool."""
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row.variant if row.peer else parent_name(row.variant) or row.variant, row.model)
    return list(first.values())


def _choose_photos(
    accuracy: AccuracyResult, photos: Sequence[Photo], recommended: str | None, ours: Sequence[str]
) -> tuple[tuple[Photo, ...], tuple[Photo, ...], str | None]:
    """Typical and worst photographs, and who harms the worst ones; None: all of ours, on average."""
    judged = recommended if recommended in accuracy.variants else None
    names = [judged] if judged else ours
    order = rank_by_harm(accuracy, names, measure_of(accuracy.strength))
    # Few photographs: half of them are worst at most, and none is shown twice.
    worst = tuple(photo for photo, harm in order[: min(_WORST, len(order) // 2)] if harm > 0)
    typical = [photo for photo in choose_photos(photos, len(photos)) if photo not in worst][:_TYPICAL]
    return tuple(typical), worst, judged


def _measured_l1(accuracy: AccuracyResult) -> dict[str, dict[str, float]]:
    """L1 by photograph and variant at the size that was benchmarked, which may be larger than what is shown."""
    finished = {name: each.scores for name, each in accuracy.variants.items() if each.is_ok}
    return {
        photo.sha256: {"grey": accuracy.grey_l1[index], **{name: l1[index].l1_ab for name, l1 in finished.items()}}
        for index, photo in enumerate(accuracy.photos)
    }


def _write_folder(folder: Path, shown: Sequence[ColoredPhoto], choice: PictureChoice) -> list[Path]:
    best, *others = (variant.name for variant in choice.variants)
    maps = [_map_differences(photo, best) for photo in shown]
    scale = choose_scale([each for photo in maps for each in photo["truth"].values()])
    worst = {photo.sha256 for photo in choice.worst}
    paths: list[Path] = []

    def save(prefix: str, pictures: Mapping[str, Pixels]) -> dict[str, str]:
        # Numbers instead of names: a variant may be called what no file can be.
        files = {name: f"{prefix}-{index}.jpg" for index, name in enumerate(pictures)}
        paths.extend(
            write_bytes(folder / file, encode_jpeg(Image.fromarray(pictures[name]), _QUALITY))
            for name, file in files.items()
        )
        return files

    entries = [
        {
            "name": photo.name,
            "kind": "worst" if photo.sha256 in worst else "typical",
            "width": photo.truth.shape[1],
            "height": photo.truth.shape[0],
            "l1": {name: photo.l1[name] for name in ("grey", *photo.answers)},
            "pictures": save(f"{number}", {"grey": photo.grey, "truth": photo.truth, **photo.answers}),
            "differences": {
                against: save(
                    f"{number}-{against}", {name: paint_map(each, scale) for name, each in differences.items()}
                )
                for against, differences in maps[number].items()
            },
        }
        for number, photo in enumerate(shown)
    ]
    record = {
        "format_version": FORMAT_VERSION,
        "best": best,
        "variants": others,
        "judged": choice.judged,
        "scale": scale,
        "bar": bar_colours(),
        "photos": entries,
    }
    earlier = _listed_files(folder)
    paths.append(write_json(folder / "pictures.json", record))
    for stale in earlier - set(paths):
        stale.unlink(missing_ok=True)
    return paths


def _listed_files(folder: Path) -> set[Path]:
    """The pictures that an earlier benchmark wrote here; others in the folder are somebody's own."""
    try:
        photos = read_json(folder / "pictures.json", "picture list", "")["photos"]
        names = [
            name
            for photo in photos
            for files in (photo["pictures"], *photo["differences"].values())
            for name in files.values()
        ]
        return {folder / name for name in names if Path(name).name == name and name.endswith(".jpg")}
    except (ConfigError, InputError, AttributeError, LookupError, TypeError):
        return set()


def _map_differences(photo: ColoredPhoto, best: str) -> dict[str, dict[str, Floats]]:
    """By variant, its answer's difference to the "truth", and to that of the "best" one but its own."""
    answers = {name: ab for name, ab in photo.ab.items() if name != "truth"}
    others = {name: ab for name, ab in answers.items() if name != best and best in answers}
    return {
        "truth": {name: map_difference(ab, photo.ab["truth"]) for name, ab in answers.items()},
        "best": {name: map_difference(ab, answers[best]) for name, ab in others.items()},
    }


def encode_jpeg(picture: Image.Image, quality: int) -> bytes:
    """Without chroma subsampling: colour is what is judged."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
    return buffer.getvalue()
