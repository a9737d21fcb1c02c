"""Scores of whole photographs: real networks, and predictors whose L1 is known beforehand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_network

from benchmarks import accuracy
from benchmarks.accuracy import Accuracy, AccuracyResult, choose_photos, measure_accuracy, rank_by_harm
from benchmarks.variants import Variant, describe_variant
from colorpress.core.config import BenchmarkPlan, ExportConfig
from colorpress.core.files import sha256_file
from compress.measures import CONTENT, FIDELITY, Reference
from export.controls import CONTROL_TITLES, TABLE
from export.graph import export_onnx
from export.runtimes import open_predictor
from training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from training.lab import rgb_to_l_ab
from training.metrics import PhotoScores, mean_l1
from training.photo_split import halve_photos
from training.photos import Photo, load_rgb
from training.unet import UNetPlan

CONFIG = BenchmarkPlan(eval_size=32)
LIMIT = 10_000_000


@pytest.fixture
def photos(photo_folder: Path) -> list[Photo]:
    return [Photo(path, sha256_file(path), 48, 40) for path in sorted(photo_folder.rglob("photo*"))]


def fake_variant(name: str) -> Variant:
    control = next((control for control, title in CONTROL_TITLES.items() if title == name), "")
    return Variant(name, Path(f"{name}.onnx"), "onnxruntime", "cpu", "fp32", 1, 1, 1, 1, control=control)


def test_a_checkpoint_and_its_export_agree(tiny_checkpoint: Path, photos: list[Photo], tmp_path: Path) -> None:
    exported = export_onnx(load_checkpoint(tiny_checkpoint), tmp_path / "m.onnx", ExportConfig()).path
    other = make_network(seed=5)
    other_path = save_checkpoint(tmp_path / "other.pt", Checkpoint(UNetPlan.classic(4, 2), other.state_dict()))
    variants = [
        describe_variant("best.pt", tiny_checkpoint),
        describe_variant("best", exported),
        describe_variant("other.pt", other_path),
    ]
    result = measure_accuracy(variants, photos, CONFIG, max_pixels=LIMIT, threads=1)
    best, same, different = result.variants.values()
    assert {each.status for each in result.variants.values()} == {"ok"}
    assert len(result.photos) == len(result.grey_l1) == len(best.scores) == 10
    assert best.l1 == pytest.approx(np.mean([score.l1_ab for score in best.scores]))
    assert same.l1 == pytest.approx(best.l1, abs=1e-5)
    assert (best.agreement_l1, best.l1_delta_pct) == (0.0, 0.0)
    assert same.agreement_l1 is not None and same.agreement_l1 < 1e-5
    assert different.agreement_l1 is not None and different.agreement_l1 > 1e-3
    # The values belong to the photographs they stand beside.
    rgb = torch.from_numpy(load_rgb(result.photos[3].path, max_pixels=LIMIT, short_side=32)).permute(2, 0, 1)[None]
    lightness, ab = rgb_to_l_ab(rgb)
    with torch.inference_mode():
        expected = mean_l1(load_checkpoint(tiny_checkpoint).build_network()(lightness), ab)
    assert best.scores[3].l1_ab == pytest.approx(expected, rel=1e-4)


def test_best_pt_is_held_against_itself_by_mirrored_photographs(tiny_checkpoint: Path, photos: list[Photo]) -> None:
    network = load_checkpoint(tiny_checkpoint).build_network()
    result = measure_accuracy([describe_variant("best.pt", tiny_checkpoint)], photos, CONFIG, max_pixels=LIMIT)
    kept = []
    for photo in result.photos:
        rgb = torch.from_numpy(load_rgb(photo.path, max_pixels=LIMIT, short_side=32)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            answer, mirrored = (network(rgb_to_l_ab(each)[0]) for each in (rgb, rgb.flip(-1)))
        kept.append((float((mirrored.flip(-1) - answer).abs().mean()), float(answer.abs().mean())))
    apart, from_grey = np.mean(kept, axis=0)
    assert apart > 0 and result.strength is not None
    assert result.strength.self_fidelity == pytest.approx(1 - apart / from_grey, rel=1e-3)
    own = f"The same photographs mirrored get F {result.strength.self_fidelity:.3f} of those colours from it."
    assert result.strength.describe().endswith(own)


def fake_answers(photos: list[Photo], shares: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of `fake_variant` answers its share of the truth: a number, or what gives one for a photograph's content."""
    truths = {}
    for photo in photos:
        rgb = torch.from_numpy(load_rgb(photo.path, max_pixels=LIMIT, short_side=32)).permute(2, 0, 1)[None]
        lightness, ab = rgb_to_l_ab(rgb)
        truths[lightness.numpy().tobytes()] = photo.sha256, ab.numpy()

    def open_fake(path: Path, **_: Any) -> Any:
        share = shares[path.name.removesuffix(".onnx")]

        def answer(lightness: np.ndarray) -> np.ndarray:
            content, ab = truths[lightness.tobytes()]
            return np.asarray((share(content) if callable(share) else share) * ab)

        return answer

    monkeypatch.setattr("benchmarks.variants.open_predictor", open_fake)
    monkeypatch.setattr(accuracy, "refuse_hostile", lambda path, **_: None)  # there are no such files


TABLE_TITLE = CONTROL_TITLES[TABLE]


def test_known_answers_have_known_figures(photos: list[Photo], monkeypatch: pytest.MonkeyPatch) -> None:
    """best answers half of the truth, half of its colour is a quarter: G = 0.5, L1 + 50 %; grey has G = 0."""
    shares = {"best.pt": 0.5, "half": 0.25, "grey": 0.0, "perfect": 1.0, "wrong": -1.0, TABLE_TITLE: 0.2}
    fake_answers(photos, shares, monkeypatch)
    result = measure_accuracy([fake_variant(name) for name in shares], photos, CONFIG, max_pixels=LIMIT)
    best, half, grey, perfect, wrong, table = result.variants.values()
    assert result.mean_grey_l1 is not None and best.l1 == pytest.approx(result.mean_grey_l1 / 2, rel=1e-5)
    for each, retained, delta in ((best, 1.0, 0.0), (half, 0.5, 50.0), (grey, 0.0, 100.0), (perfect, 2.0, -100.0)):
        assert each.retained_colour == pytest.approx(retained, abs=1e-5)
        assert each.l1_delta_pct == pytest.approx(delta, abs=1e-3)
        # Every photograph has the same ratio, so every resampling has.
        assert (each.retained_low, each.retained_high) == (pytest.approx(retained, abs=1e-5),) * 2
    assert perfect.psnr_db is not None and perfect.psnr_db > 80
    assert perfect.ssim == pytest.approx(1.0)
    assert perfect.colourfulness_ratio == pytest.approx(1.0, abs=1e-4)
    assert perfect.delta_e is not None and grey.delta_e is not None and perfect.delta_e < 0.01 < 1.0 < grey.delta_e
    assert grey.colourfulness_ratio == pytest.approx(0.0, abs=1e-3)
    # Of the gain over the table's 0.8 of grey's L1; and 1 - L1 to best.pt over what best.pt has of colour.
    for each, content, fidelity in (
        (best, 1.0, 1.0), (half, 1 / 6, 0.5), (grey, -2 / 3, 0.0), (perfect, 8 / 3, 0.0), (wrong, -4.0, -2.0),
        (table, 0.0, 0.4),
    ):  # fmt: skip
        assert each.content_colour == pytest.approx(content, abs=1e-5)
        assert (each.content_low, each.content_high) == (pytest.approx(content, abs=1e-5),) * 2
        assert each.fidelity == pytest.approx(fidelity, abs=1e-5)
        assert (each.fidelity_low, each.fidelity_high) == (pytest.approx(fidelity, abs=1e-5),) * 2
    # What takes longest is not asked of controls.
    assert (table.ssim, table.delta_e) == (None, None) and table.psnr_db is not None
    assert half.chroma_to_best == pytest.approx(0.5) and wrong.chroma_to_best == pytest.approx(2.0)
    assert half.chroma_to_truth == pytest.approx(0.25) and half.chroma is not None and half.chroma > 1.0
    assert grey.edge_l1 is not None and half.edge_l1 == pytest.approx(0.75 * grey.edge_l1) and grey.l1 is not None
    assert grey.edge_l1 != pytest.approx(grey.l1, rel=1e-3)  # near edges alone
    assert half.to_best == pytest.approx([each.l1_ab / 3 for each in half.scores], rel=1e-5)
    assert result.strength is not None and result.strength.measure is CONTENT
    assert result.strength.below_grey_pct == pytest.approx(50.0) and result.strength.chroma_share == pytest.approx(0.5)
    assert result.strength.below_table_pct == pytest.approx(37.5)


def test_the_first_half_chooses_and_the_second_confirms(photos: list[Photo], monkeypatch: pytest.MonkeyPatch) -> None:
    first = {photo.sha256 for photo in halve_photos(photos, seed=0)[0]}
    shares = {"best.pt": 0.5, "lucky": lambda content: 0.5 if content in first else 0.25, TABLE_TITLE: 0.2}
    fake_answers(photos, shares, monkeypatch)
    variants = [fake_variant(name) for name in shares]
    lucky = measure_accuracy(variants, photos, CONFIG, max_pixels=LIMIT).variants["lucky"]
    assert lucky.choosing_kept == pytest.approx(1.0, abs=1e-5)
    assert lucky.confirming_photos == len(photos) - len(first) > 1
    # Three quarters of grey's L1 where best.pt has half.
    assert lucky.confirming_l1_delta_pct == pytest.approx(50.0, abs=1e-3) != lucky.l1_delta_pct
    for figure in (lucky.confirming_kept, lucky.confirming_low, lucky.confirming_high):
        assert figure == pytest.approx(1 / 6, abs=1e-5)  # content, as above
    assert lucky.content_colour is not None and 0.2 < lucky.content_colour < 0.9
    # Of three photographs two choose; a single one is no two parts.
    three = measure_accuracy(variants, photos[:3], CONFIG, max_pixels=LIMIT).variants["lucky"]
    assert (three.confirming_photos, three.confirming_low) == (1, None) and three.confirming_kept is not None
    one = measure_accuracy(variants, photos[:1], CONFIG, max_pixels=LIMIT).variants["lucky"]
    assert (one.choosing_kept, one.confirming_kept, one.choosing_likely, one.content_low) == (None,) * 4
    assert one.content_colour is not None and one.confirming_photos == 0


def test_what_other_photographs_keep_is_less_where_photographs_differ(
    photos: list[Photo], monkeypatch: pytest.MonkeyPatch
) -> None:
    shares = {"best.pt": 0.5, "odd": lambda content: 0.4 + 0.1 * (int(content[:8], 16) % 2), TABLE_TITLE: 0.2}
    fake_answers(photos, shares, monkeypatch)
    odd = measure_accuracy([fake_variant(n) for n in shares], photos, CONFIG, max_pixels=LIMIT).variants["odd"]
    assert odd.choosing_kept is not None and odd.choosing_likely is not None
    assert odd.choosing_likely < odd.choosing_kept < 1.0


def test_without_a_table_fidelity_decides(photos: list[Photo], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(content: str) -> float:
        raise RuntimeError("broken")

    for shares in ({"best.pt": 0.5, "half": 0.25}, {"best.pt": 0.5, "half": 0.25, TABLE_TITLE: fail}):
        fake_answers(photos, shares, monkeypatch)
        result = measure_accuracy([fake_variant(name) for name in shares], photos, CONFIG, max_pixels=LIMIT)
        assert result.strength is not None and result.strength.measure is FIDELITY
        assert (result.variants["half"].content_colour, result.variants["half"].content_low) == (None, None)
        assert result.variants["half"].confirming_kept == pytest.approx(0.5, abs=1e-5)
    assert result.variants[TABLE_TITLE].error == "RuntimeError: broken"


def test_a_failing_variant_is_a_row_and_the_others_finish(
    tiny_checkpoint: Path, photos: list[Photo], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_late(lightness: np.ndarray) -> np.ndarray:
        fail_late.calls += 1  # type: ignore[attr-defined]
        if fail_late.calls > 2:  # type: ignore[attr-defined]
            raise RuntimeError("kernel\nfailed")
        return np.zeros((1, 2, *lightness.shape[2:]), np.float32)

    fail_late.calls = 0  # type: ignore[attr-defined]
    odd = {
        "late": fail_late,
        "nan": lambda lightness: np.full((1, 2, *lightness.shape[2:]), np.nan, np.float32),
        "shape": lambda lightness: np.zeros((1, 2, 1, 1), np.float32),
    }
    monkeypatch.setattr(accuracy, "refuse_hostile", lambda path, **_: None)  # not all of them are files
    real = open_predictor
    monkeypatch.setattr(
        "benchmarks.variants.open_predictor", lambda path, **options: odd.get(path.stem) or real(path, **options)
    )
    best = describe_variant("best.pt", tiny_checkpoint)
    variants = [best, *(fake_variant(name) for name in odd), replace(best, name="gone", path=tmp_path / "gone.pt")]
    result = measure_accuracy(variants, photos, CONFIG, max_pixels=LIMIT)
    assert {name: each.status for name, each in result.variants.items()} == {
        "best.pt": "ok", "late": "error", "nan": "error", "shape": "error", "gone": "error",
    }  # fmt: skip
    assert result.variants["late"].error == "RuntimeError: kernel failed"
    assert "NaN" in result.variants["nan"].error
    assert "no such file" in result.variants["gone"].error
    assert result.variants["late"].l1 is None
    assert len(result.variants["best.pt"].scores) == 10


def test_without_the_reference_there_are_no_comparisons(tiny_checkpoint: Path, photos: list[Photo]) -> None:
    broken = replace(describe_variant("best.pt", tiny_checkpoint), path=Path("gone.pt"))
    result = measure_accuracy([broken, describe_variant("copy", tiny_checkpoint)], photos[:1], CONFIG, max_pixels=LIMIT)
    copy = result.variants["copy"]
    assert (copy.status, copy.l1_delta_pct, copy.retained_colour, copy.agreement_l1) == ("ok", None, None, None)
    assert (copy.content_colour, copy.fidelity, copy.chroma_to_best, copy.to_best) == (None, None, None, ())
    assert copy.l1 is not None and copy.chroma_to_truth is not None
    assert (result.reference, result.strength) == (None, None)


def test_one_photograph_has_no_interval(tiny_checkpoint: Path, photos: list[Photo]) -> None:
    result = measure_accuracy([describe_variant("best.pt", tiny_checkpoint)], photos[:1], CONFIG, max_pixels=LIMIT)
    assert (result.variants["best.pt"].retained_low, result.variants["best.pt"].retained_high) == (None, None)


def test_the_sample_goes_by_content_and_never_beyond_the_limit(tiny_checkpoint: Path, photos: list[Photo]) -> None:
    chosen = choose_photos(photos, 4)
    assert [photo.sha256 for photo in chosen] == sorted(photo.sha256 for photo in photos)[:4]
    assert choose_photos(list(reversed(photos)), 4) == chosen
    config = replace(CONFIG, eval_photos=4)
    result = measure_accuracy([describe_variant("best.pt", tiny_checkpoint)], photos, config, max_pixels=LIMIT)
    assert set(result.photos) == set(chosen)


def test_without_photographs_no_model_is_opened(photos: list[Photo], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.variants.open_predictor", None)
    result = measure_accuracy([fake_variant("best")], photos, replace(CONFIG, eval_photos=0), max_pixels=LIMIT)
    assert (result.variants["best"].status, result.variants["best"].l1, result.photos) == ("ok", None, ())


def test_the_worst_photographs_go_by_the_measure() -> None:
    photos = tuple(Photo(Path(name), name, 9, 9) for name in "abcde")
    best_l1 = np.full(5, 0.1)

    def scored(l1: list[float], to_best: list[float]) -> Accuracy:
        return Accuracy("ok", scores=tuple(PhotoScores(e, 0, 0, 0, 0, 0, 0) for e in l1), to_best=tuple(to_best))

    x = scored([0.1, 0.15, 0.2, 0.05, 0.3], [0.5, 0.4, 0.3, 0.2, 0.1])
    y = scored([0.5, 0.15, 0.2, 0.05, 0.3], [0.0, 0.4, 0.3, 0.2, 0.1])
    reference = Reference(best_l1 * 2, best_l1 * 2, best_l1, best_l1, best_l1, best_l1)
    result = AccuracyResult({"x": x, "y": y, "gone": Accuracy("error")}, photos, tuple(best_l1 * 2), reference)
    harms = rank_by_harm(result, ["x"], CONTENT)
    assert "".join(photo.sha256 for photo, _ in harms) == "ecbad"
    assert [harm for _, harm in harms] == pytest.approx([0.2, 0.1, 0.05, 0, -0.05])
    assert "".join(photo.sha256 for photo, _ in rank_by_harm(result, ["x"], FIDELITY)) == "abcde"
    assert rank_by_harm(result, ["x", "y", "gone"], CONTENT)[0] == (photos[0], pytest.approx(0.2))  # the mean of both
    assert rank_by_harm(result, ["x", "y"], CONTENT, np.max)[0] == (photos[0], pytest.approx(0.4))
    assert rank_by_harm(result, ["gone"], CONTENT) == []
    assert rank_by_harm(AccuracyResult({"x": x}, photos, ()), ["x"], CONTENT) == []
