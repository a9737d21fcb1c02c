"""The pictures of a benchmark: sheets, their labels, and the folder that the report's sliders are made of."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_verdict import SMALL
from test_verdict import row as verdict_row

from benchmarks.accuracy import Accuracy, AccuracyResult, choose_photos
from benchmarks.report import sample_photos
from benchmarks.report.pictures import PictureChoice, choose_pictures, choose_sheet_photos, write_picture_set
from benchmarks.report.sample_photos import (
    ColoredPhoto,
    bar_colours,
    choose_scale,
    color_photos,
    draw_comparison,
    draw_outputs,
    map_difference,
    paint_map,
    save_sheet,
    shorten_label,
)
from benchmarks.rows import Row
from benchmarks.variants import Variant, describe_variant
from benchmarks.verdict import judge_rows
from colorpress.core.config import Settings
from colorpress.core.files import sha256_file
from compress.measures import Reference
from export.controls import CONTROL_TITLES, GREY, TABLE, write_control
from training.metrics import PhotoScores
from training.photos import Photo, load_rgb
from training.run_folder import Run

CELL, GAP, LINES = 100, 8, 40
BLIND = CONTROL_TITLES[TABLE]


def row(model: str, **changes: Any) -> Row:
    """A finished row that keeps all of best.pt's colours but for `changes`."""
    return verdict_row(model, **{"content_colour": 1.0, "fidelity": 1.0, **changes})


BEST = row("best.pt")


def solid(colour: tuple[int, int, int], width: int = 50, height: int = 40) -> np.ndarray:
    return np.broadcast_to(np.array(colour, np.uint8), (height, width, 3)).copy()


def colored(name: str = "cat.jpg", width: int = 50, height: int = 40) -> ColoredPhoto:
    return ColoredPhoto(
        name=name,
        grey=solid((128, 128, 128), width, height),
        truth=solid((200, 30, 30), width, height),
        answers={"best.pt": solid((30, 200, 30), width, height)},
        l1={"grey": 0.2, "best.pt": 0.1},
    )


def test_real_photographs_are_coloured(tiny_checkpoint: Path, photo_folder: Path) -> None:
    path = photo_folder / "photo0.png"
    photo = Photo(path, sha256_file(path), 48, 40)
    broken = Variant("broken", photo_folder / "none.onnx", "onnxruntime", "cpu", "fp32", 1, 1, 1, 1)
    variants = [describe_variant("best.pt", tiny_checkpoint), broken]
    (result,) = color_photos(variants, [photo], short_side=32, max_pixels=10_000_000)
    truth = load_rgb(path, max_pixels=10_000_000, short_side=32)
    assert result.name == "photo0.png"
    assert np.array_equal(result.truth, truth)
    assert list(result.answers) == ["best.pt"]  # the broken one is left out
    assert set(result.l1) == {"grey", "best.pt"}
    assert np.ptp(result.grey.astype(int), axis=2).max() <= 1
    # Grey and answer share the photograph's luminance (Rec. 709 weights on linear light, roughly).
    assert result.answers["best.pt"].shape == truth.shape
    assert abs(float(result.grey.mean()) - float(truth.mean())) < 25


def test_a_sheet_has_four_pictures_in_a_row() -> None:
    sheet = draw_comparison([colored()], ["best.pt", "gone", "best.pt"], cell=CELL)
    assert sheet.size == (GAP + 4 * (CELL + GAP), GAP + 2 * (80 + LINES + GAP))
    assert sheet.getpixel((GAP + 50, GAP + (80 + LINES + GAP) + 40)) == (30, 200, 30)


def test_the_sheet_has_a_row_for_each_photograph_and_a_column_for_each_variant() -> None:
    sheet = draw_comparison([colored(), colored(width=40, height=40)], ["best.pt", "gone"], cell=CELL)
    assert sheet.size == (GAP + 4 * (CELL + GAP), GAP + (80 + LINES + GAP) + (100 + LINES + GAP))
    middle = [sheet.getpixel((GAP + column * (CELL + GAP) + 50, GAP + 40)) for column in range(4)]
    assert middle[:3] == [(128, 128, 128), (200, 30, 30), (30, 200, 30)]
    assert middle[3] == (255, 255, 255)  # an empty frame where a variant has no answer


def test_a_tall_photograph_keeps_its_shape() -> None:
    sheet = draw_comparison([colored(width=20, height=80)], ["best.pt"], cell=CELL)
    assert sheet.height == GAP + 100 + LINES + GAP  # a cell high, so 25 wide
    assert sheet.getpixel((GAP + 50, GAP + 50)) == (128, 128, 128)
    assert sheet.getpixel((GAP + 10, GAP + 50)) == (255, 255, 255)


def test_samples(tmp_path: Path) -> None:
    photos = [colored(f"{index}.jpg") for index in range(4)]
    pair = draw_comparison(photos[:2], ["best.pt"], cell=CELL)
    assert pair.width == GAP + 3 * (CELL + GAP)
    grid = draw_outputs(photos, "best.pt", columns=3, cell=CELL)
    assert grid.size == (GAP + 3 * (CELL + GAP), GAP + 2 * (80 + LINES + GAP))
    assert grid.getpixel((GAP + 50, GAP + 40)) == (30, 200, 30)
    with Image.open(save_sheet(grid, tmp_path / "x.png")) as saved:
        assert (saved.format, saved.size) == ("PNG", grid.size)


@pytest.mark.parametrize(
    "name", ["x", "a" * 200, "тест 画像 é.png", "new\nline.png", "pruned-int8-with-a-long-name", ""]
)
def test_labels_fit_their_cell(name: str) -> None:
    font = sample_photos._load_font()
    label = shorten_label(name, CELL, font)
    assert font.getlength(label) <= CELL
    assert "\n" not in label
    assert draw_comparison([colored(name)], ["best.pt"], cell=CELL).width == GAP + 3 * (CELL + GAP)


def test_labels_keep_both_ends() -> None:
    label = shorten_label("holiday-in-the-mountains-0042.jpg", 120, sample_photos._load_font())
    assert label.startswith("holi") and label.endswith(".jpg") and "…" in label


@pytest.fixture
def photos(photo_folder: Path) -> list[Photo]:
    return [Photo(path, sha256_file(path), 48, 40) for path in sorted(photo_folder.rglob("photo*"))]


def scores(l1: list[float]) -> Accuracy:
    """Further from best.pt, at 0.1, than from the truth: twice as far as that is from best.pt."""
    to_best = tuple(2 * abs(value - 0.1) for value in l1)
    return Accuracy("ok", scores=tuple(PhotoScores(value, *(0.0,) * 6) for value in l1), to_best=to_best)


def test_sheet_photographs_end_with_those_hurt_most(photos: list[Photo]) -> None:
    ordered = choose_photos(photos, 10)

    hurt = [0.1] * 10
    hurt[1], hurt[9] = 0.3, 0.5
    accuracy = measured(["best.pt", "x"], photos, {"x": hurt})
    chosen = choose_sheet_photos(photos, accuracy, ["best.pt", "x"], 4)
    assert chosen == [ordered[0], ordered[2], ordered[9], ordered[1]]
    assert choose_sheet_photos(photos[:3], accuracy, ["x"], 4) == list(choose_photos(photos[:3], 3))
    # Harm is against best.pt: where that failed, there is none.
    assert choose_sheet_photos(photos, replace(accuracy, reference=None), ["x"], 4) == list(ordered[:4])


def variant(name: str, *, peer: bool = False, control: str = "") -> Variant:
    return Variant(name, Path(f"{name}.onnx"), "onnxruntime", "cpu", "fp32", 1, 1, 1, 1, peer=peer, control=control)


def measured(
    names: list[str], photos: list[Photo], l1: dict[str, list[float]] | None = None, *, table_l1: float = 0.18
) -> AccuracyResult:
    """best.pt is at L1 0.1 and grey at 0.2, so content decides where the table is well above 0.1."""
    same = [0.1] * len(photos)
    constant = (np.full(len(photos), value) for value in (0.2, table_l1, 0.1, 0.15, 9.0, 12.0))
    return AccuracyResult(
        {name: scores((l1 or {}).get(name, same)) for name in names},
        choose_photos(photos, len(photos)),
        (0.2,) * len(photos),
        Reference(*constant),
    )


def choose(variants: list[Variant], accuracy: AccuracyResult, photos: list[Photo], rows: list[Row]) -> PictureChoice:
    """As beside a verdict without an A/A control."""
    return choose_pictures(variants, accuracy, photos, rows, judge_rows(rows, {}, accuracy.strength).recommended)


def test_shown_are_the_recommended_one_then_our_front_by_network_then_a_peer(photos: list[Photo]) -> None:
    small = {**SMALL, "size_bytes": 300_000, "p50_ms": 2.0, "speedup": 50.0}
    rows = [
        BEST,
        row("pruned", **SMALL, content_colour=1.02),
        row("pruned-int8", **{**SMALL, "size_bytes": 900_000}, content_colour=1.01),
        row("beaten", **{**SMALL, "size_bytes": 4_000_000}),
        row("auto", **small),
        row("tiny", **{**small, "size_bytes": 9_000, "speedup": 99.0, "p50_ms": 1.0}, content_colour=0.9),
        row("grey peer", **SMALL, peer=True, content_colour=0.1),
        row("good peer", **SMALL, peer=True, content_colour=0.9),
        row("auto, batch 8", **{**small, "speedup": 9e9}, batch=8),
        row("failed", status="error", speedup=None),
    ]
    names = [each.model for each in rows if each.is_ok and each.batch == 1]
    variants = [variant(name, peer="peer" in name) for name in names]
    choice = choose(variants, measured(names, photos), photos, rows)
    assert [each.name for each in choice.variants] == ["best.pt", "auto", "tiny", "pruned-int8", "good peer"]
    without = [each for each in rows if not each.peer]
    ours = choose(variants, measured(names, photos), photos, without)
    assert [each.name for each in ours.variants] == ["best.pt", "auto", "tiny", "pruned-int8"]
    alone = choose(variants[:1], measured(["best.pt"], photos), photos, rows[:1])
    assert (alone.variants, alone.worst, len(alone.typical)) == ((variants[0],), (), 4)


def test_the_lightness_table_is_shown_last_and_hurts_nothing(photos: list[Photo]) -> None:
    blind = [row(title, **SMALL, content_colour=0.0, control=name) for name, title in CONTROL_TITLES.items()]
    rows = [BEST, row("auto", **SMALL), *blind]
    names = [each.model for each in rows]
    tinted = {name: [0.1] * 9 + [0.9] for name in CONTROL_TITLES.values()}
    accuracy = measured(names, photos, {**tinted, "auto": [0.4] + [0.1] * 9})
    choice = choose([variant(each.model, control=each.control) for each in rows], accuracy, photos, rows)
    assert [each.name for each in choice.variants] == ["best.pt", "auto", BLIND]
    assert choice.worst == (accuracy.photos[0],)
    # The sheet too ends with what compression hurts, not with what no control can do.
    assert choose_sheet_photos(photos, accuracy, ["auto"], 4)[-2:] == [accuracy.photos[0], accuracy.photos[1]]


def test_shown_is_the_front_of_the_measure_that_decides(photos: list[Photo]) -> None:
    faithful = row("faithful", **SMALL, content_colour=0.96, fidelity=0.95)
    unlike = row("unlike", **{**SMALL, "size_bytes": 4_000_000}, content_colour=0.99, fidelity=0.91)
    rows, names = [BEST, faithful, unlike], ["best.pt", "faithful", "unlike"]
    variants = [variant(name) for name in names]
    for table_l1, shown in ((0.18, ["faithful", "unlike"]), (0.1, ["faithful"])):
        accuracy = measured(names, photos, table_l1=table_l1)
        choice = choose(variants, accuracy, photos, rows)
        assert [each.name for each in choice.variants[1:]] == shown


def test_the_worst_photographs_are_those_of_the_recommended_variant(photos: list[Photo]) -> None:
    rows = [BEST, row("auto", **SMALL), row("other", **SMALL, l1_delta_pct=3.0)]
    hurt, elsewhere = [0.1] * 10, [0.1] * 10
    hurt[3], hurt[7], elsewhere[0] = 0.2, 0.3, 0.9
    variants = [variant(each.model) for each in rows]
    accuracy = measured(["best.pt", "auto", "other"], photos, {"auto": hurt, "other": elsewhere})
    choice = choose(variants, accuracy, photos, rows)
    assert choice.judged == "auto"
    assert choice.worst == (accuracy.photos[7], accuracy.photos[3])  # no worse ones than there are
    assert choice.typical == tuple(accuracy.photos[index] for index in (0, 1, 2, 4))
    # Whoever recommends another row has its photographs shown.
    assert choose_pictures(variants, accuracy, photos, rows, "other").worst == (accuracy.photos[0],)
    # Where nothing is recommended, the mean of ours tells.
    lost = [replace(each, content_colour=0.5) for each in rows]
    choice = choose(variants, accuracy, photos, [BEST, *lost[1:]])
    assert choice.judged is None
    assert choice.worst == tuple(accuracy.photos[index] for index in (0, 7, 3))


def test_the_worst_photographs_of_a_vivid_original_are_those_least_like_it(photos: list[Photo]) -> None:
    rows = [BEST, row("auto", **SMALL)]
    l1 = [0.1] * 10
    l1[2], l1[5] = 0.02, 0.12  # the first one is nearer to the truth, and further from best.pt
    variants = [variant(each.model) for each in rows]
    accuracy = measured(["best.pt", "auto"], photos, {"auto": l1}, table_l1=0.05)
    choice = choose(variants, accuracy, photos, rows)
    assert choice.worst == (accuracy.photos[2], accuracy.photos[5])
    assert choose_sheet_photos(photos, accuracy, ["best.pt", "auto"], 4)[-2:] == list(choice.worst)


def test_a_difference_map_has_the_l1_as_its_mean() -> None:
    ab = np.zeros((2, 3, 4), np.float32)
    ab[0, 0, 0] = 0.6
    difference = map_difference(ab, np.zeros_like(ab))
    assert difference.shape == (3, 4)
    assert difference[0, 0] == pytest.approx(0.3) and difference.mean() == pytest.approx(np.abs(ab).mean())


def test_a_map_is_painted_from_the_bars_first_colour_to_its_last() -> None:
    painted = paint_map(np.array([[0.0, 0.1, 0.5]], np.float32), scale=0.1)
    colours = ["#{:02x}{:02x}{:02x}".format(*pixel) for pixel in painted[0]]
    assert colours == [bar_colours()[0], bar_colours()[-1], bar_colours()[-1]]
    lightness = [sum(int(colour[at : at + 2], 16) for at in (1, 3, 5)) for colour in bar_colours()]
    assert lightness == sorted(lightness)


def test_the_scale_reaches_what_99_percent_of_the_pixels_stay_below() -> None:
    pixels = np.linspace(0.0, 0.1, 1001, dtype=np.float32).reshape(7, 143)
    assert choose_scale([pixels]) == 0.099
    assert choose_scale([pixels * 1.01]) == 0.1
    assert choose_scale([np.zeros((2, 2), np.float32)]) == choose_scale([]) == 0.01


def test_the_folder_holds_every_picture_and_map_and_nothing_old(
    tiny_checkpoint: Path, photos: list[Photo], tmp_path: Path
) -> None:
    best = describe_variant("best.pt", tiny_checkpoint)
    copy = tmp_path / "copy.pt"
    copy.write_bytes(tiny_checkpoint.read_bytes())
    variants = [best, replace(best, name="auto", path=copy), replace(best, name="gone", path=tmp_path / "gone.pt")]
    rows = [BEST, row("auto", **SMALL), row("gone", status="error", speedup=None)]
    control = replace(
        best, name=BLIND, control=TABLE, path=write_control(np.full((32, 2), 0.25, np.float32), tmp_path / "table.onnx")
    )
    variants.append(replace(control, runtime="onnxruntime"))
    rows.append(row(BLIND, speedup=None, p50_ms=None, control=TABLE))
    grey = replace(
        variants[-1],
        name=CONTROL_TITLES[GREY],
        control=GREY,
        path=write_control(np.zeros((1, 2), np.float32), tmp_path / "g.onnx"),
    )
    accuracy = measured(
        ["best.pt", "auto", BLIND, grey.name],
        photos,
        {"auto": [0.1 + 0.01 * index for index in range(10)], BLIND: [0.5] * 10},
    )
    stale = tmp_path / "pictures" / "99-0.jpg"
    stale.parent.mkdir()
    stale.write_bytes(b"old")
    earlier = {"photos": [{"pictures": {"grey": stale.name, "best.pt": "../outside.jpg"}, "differences": {}}]}
    stale.with_name("pictures.json").write_text(json.dumps(earlier))
    own, outside = stale.with_name("holiday.jpg"), tmp_path / "outside.jpg"
    for each in (own, outside):
        each.write_bytes(b"somebody's own")
    run = Run(tmp_path, Settings.from_options({"eval_size": 32}))
    paths = write_picture_set(run, [*variants, grey], accuracy, photos, rows, "auto")
    with Image.open(tmp_path / "comparison.png") as sheet:
        # Four to a row: grey and truth, best.pt and auto; below them the table, and nothing beside it.
        assert sheet.width == GAP + 4 * (240 + GAP)
    folder = tmp_path / "pictures"
    assert {path.name for path in paths if path.parent == tmp_path} == {
        "comparison.png", "sample_input_output.png", "sample_output.png",
    }  # fmt: skip
    assert outside.exists()
    assert set(folder.iterdir()) == {path for path in paths if path.parent == folder} | {own}
    record: dict[str, Any] = json.loads((folder / "pictures.json").read_text())
    assert (record["best"], record["variants"], record["judged"]) == ("best.pt", ["auto", BLIND], "auto")
    assert [photo["kind"] for photo in record["photos"]] == ["typical"] * 4 + ["worst"] * 4
    for photo in record["photos"]:
        assert list(photo["pictures"]) == ["grey", "truth", "best.pt", "auto", BLIND]
        assert {key: list(each) for key, each in photo["differences"].items()} == {
            "truth": ["best.pt", "auto", BLIND], "best": ["auto", BLIND],
        }  # fmt: skip
        for file in (*photo["pictures"].values(), *photo["differences"]["truth"].values()):
            with Image.open(folder / file) as picture:
                assert (picture.format, picture.size) == ("JPEG", (photo["width"], photo["height"]))
                assert picture.layer[0][1:3] == (1, 1)  # type: ignore[attr-defined]  # chroma is not subsampled
        assert max(photo["width"], photo["height"]) <= 39
    worst = record["photos"][4]
    assert worst["name"] == accuracy.photos[9].path.name
    assert worst["l1"] == {"grey": 0.2, "best.pt": 0.1, "auto": pytest.approx(0.19), BLIND: 0.5}
    # The same network twice: no difference between them is painted as none.
    with Image.open(folder / worst["differences"]["best"]["auto"]) as picture:
        assert np.asarray(picture).max() <= 6
