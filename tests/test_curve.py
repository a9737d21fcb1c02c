"""The training curve explained: files of every kind, facts of every kind of run, and what the text says of them."""

from __future__ import annotations

import contextlib
import json
import math
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from colorpress.cli import run_command
from colorpress.core.errors import ConfigError, InputError
from training.curve import read_curve
from training.curve_prose import explain_curve, read_ranked_layers, write_explanation
from training.history import read_history, write_history

EXAMPLE = Path(__file__).resolve().parent.parent / "reports" / "example"
NAN = math.nan
# The run that most histories look like: fast, slow, best in epoch 10, a slight rise.
TRAIN = [
    *(0.1159, 0.0921, 0.0840, 0.0790, 0.0758, 0.0734, 0.0711, 0.0688),
    *(0.0668, 0.0650, 0.0645, 0.0641, 0.0638, 0.0635, 0.0633),
]
VAL = [
    *(0.0998, 0.0866, 0.0812, 0.0778, 0.0752, 0.0733, 0.0717, 0.0703),
    *(0.0692, 0.0688, 0.0691, 0.0696, 0.0702, 0.0707, 0.0712),
]


def rows(val: Sequence[float], train: Sequence[float] | None = None, **constant: float) -> list[dict[str, float]]:
    return [
        {"epoch": i + 1, "val_l1": v, **({} if train is None else {"train_l1": train[i]}), **constant}
        for i, v in enumerate(val)
    ]


def noisy(values: Sequence[float], sigma: float, seed: int = 1) -> list[float]:
    generator = random.Random(seed)
    return [value + generator.gauss(0, sigma) for value in values]


def text_of(history: Sequence[dict[str, float]]) -> str:
    return explain_curve(read_curve(history))


def saved(tmp_path: Path, text: str | bytes) -> Path:
    path = tmp_path / "log.csv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# --- what each kind of run is called ------------------------------------------------------------------------------


def test_best_at_10_of_15_is_three_phases_and_overfitting() -> None:
    reading = read_curve(rows(VAL, TRAIN, seconds=60))
    assert [(p.kind, p.first_epoch, p.last_epoch) for p in reading.phases] == [
        ("rapid", 1, 4), ("slow", 4, 10), ("after_best", 10, 15),
    ]  # fmt: skip
    assert (reading.phases[0].train_first, reading.phases[0].train_last) == (0.1159, 0.0790)
    shares = [phase.share_pct for phase in reading.phases]
    assert shares[0] == pytest.approx(100 * (0.0998 - 0.0778) / (0.0998 - 0.0688))
    assert shares[0] + shares[1] == pytest.approx(100)
    assert shares[2] is None
    assert (reading.best_epoch, reading.best_val) == (10, 0.0688)
    assert reading.overfitting is True
    assert not reading.diverged
    assert not reading.still_falling
    assert reading.rise == pytest.approx(0.0024)
    assert reading.rise_pct == pytest.approx(3.488, abs=1e-3)
    assert reading.rise_epoch == 12
    assert reading.gap_at_best == pytest.approx(0.0038)
    assert reading.gap_at_end == pytest.approx(0.0079)
    assert (reading.timing, reading.late_by) == ("late", 5)
    two, three = reading.early_stopping
    assert (two.stop_epoch, two.kept_epoch, two.saved_epochs, two.saved_seconds, two.cost) == (12, 10, 3, 180, 0)
    assert (three.stop_epoch, three.kept_epoch, three.saved_epochs, three.saved_seconds) == (13, 10, 2, 120)
    text = explain_curve(reading)
    assert "**Rapid learning, epochs 1 to 4:** training 0.1159 → 0.0790, validation 0.0998 → 0.0778" in text
    assert "**Overfitting:** after epoch 10 training keeps falling (0.0650 → 0.0633)" in text
    assert "validation ends 0.0024 (3.5 %) higher" in text
    assert "no overfitting" not in text.lower()
    assert "would have stopped after epoch 12 and kept epoch 10 (0.0688); it saves 3 epochs (3 min) and costs" in text
    assert "Raise weight decay" in text
    assert "lower it after epoch 4, where rapid learning ends" in text
    assert "Train for more epochs" not in text


def test_the_same_run_with_noise_is_the_same_story() -> None:
    reading = read_curve(rows(noisy(VAL, 0.0002), TRAIN))
    assert reading.overfitting is True
    assert reading.noise < 0.0005


def test_still_falling_asks_for_more_epochs() -> None:
    history = rows([0.06 + 0.05 * 0.85**i for i in range(15)], [0.06 + 0.06 * 0.85**i for i in range(15)])
    reading = read_curve(history)
    assert reading.still_falling
    assert reading.timing == "early"
    assert reading.overfitting is False
    assert reading.plateau_epoch is None
    assert reading.final_pace == pytest.approx(0.0012, abs=2e-4)
    text = explain_curve(reading)
    assert "**Stopped too early:**" in text
    assert "**No overfitting:**" in text
    assert "Train for more epochs: validation was still falling." in text
    assert "Raise weight decay" not in text
    assert "would not have stopped this run" in text


def test_a_run_that_ended_at_a_learning_rate_of_nothing_needs_a_longer_schedule() -> None:
    history = rows([0.12 - 0.003 * i for i in range(10)])
    for index, row in enumerate(history):
        row["learning_rate"] = 1e-3 * (1 - index / 9)
    assert "start a longer run with its schedule stretched" in text_of(history)


def test_early_overfit() -> None:
    val = [0.09, 0.078, 0.072] + [0.0725 + 0.0012 * i for i in range(12)]
    reading = read_curve(rows(val, [0.1 * 0.88**i for i in range(15)], learning_rate=1e-3))
    assert reading.best_epoch == 3
    assert reading.overfitting is True
    assert (reading.timing, reading.late_by) == ("late", 12)
    text = explain_curve(reading)
    assert "Stop early with patience 2: the same weights, 10 epochs less." in text
    assert "it was constant at 0.001" in text
    assert "no overfitting" not in text.lower()


def test_divergence_is_not_called_overfitting() -> None:
    val = [0.09, 0.08, 0.075, 0.074, 0.079, 0.088, 0.1, 0.13, 0.2, 0.3]
    train = [0.1, 0.085, 0.08, 0.079, 0.083, 0.09, 0.11, 0.14, 0.22, 0.3]
    reading = read_curve(rows(val, train, learning_rate=0.1))
    assert reading.diverged
    assert reading.overfitting is False
    assert reading.train_after_best == "rising"
    text = explain_curve(reading)
    assert "**No overfitting, but divergence:**" in text
    assert "lower learning rate than 0.1" in text
    assert "Raise weight decay" not in text


def test_nan_at_the_end_is_divergence() -> None:
    reading = read_curve(rows([0.1, 0.09, 0.085, 0.08, NAN, math.inf], [0.11, 0.1, 0.09, 0.08, NAN, NAN]))
    assert reading.diverged
    assert reading.broke_epoch == 5
    assert reading.missing_epochs == ()
    assert reading.best_epoch == 4
    text = explain_curve(reading)
    assert "not finite from epoch 5 to the end" in text
    assert "Do not use weights from epoch 5 on." in text
    assert "the run broke in epoch 5" in text


def test_nan_in_the_middle_is_left_out_and_named() -> None:
    reading = read_curve(rows([0.1, 0.09, NAN, 0.08, 0.077, 0.075, 0.074, 0.0735]))
    assert reading.missing_epochs == (3,)
    assert not reading.diverged
    assert reading.still_falling
    assert "epoch 3 has no finite validation loss" in explain_curve(reading)
    many = read_curve(rows([0.1, NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0.09, 0.08]))
    assert "epochs 2, 3, 4, 5, 6 and 2 more have no" in explain_curve(many)


def test_validating_every_second_epoch_is_no_divergence() -> None:
    val = [0.1, NAN, 0.09, NAN, 0.085, NAN, 0.083, NAN]
    assert not read_curve(rows(val, [0.1 - 0.003 * i for i in range(8)])).diverged


def test_plateau_from_epoch_5() -> None:
    val = [0.12, 0.1, 0.085, 0.078, *(0.0742 + d for d in noisy([0] * 11, 1e-4))]
    reading = read_curve(rows(val, [0.125, 0.1, 0.087, 0.08, 0.0765] + [0.076] * 10, learning_rate=1e-3))
    assert reading.plateau_epoch == 5
    assert reading.train_flat is True
    assert reading.overfitting is False
    assert (reading.timing, reading.late_by) == ("late", 10)
    text = explain_curve(reading)
    assert "**Plateau:** from epoch 5 on" in text
    assert "**No overfitting:**" in text
    assert "Lower the learning rate at epoch 5, where the plateau begins" in text


@pytest.mark.parametrize("seed", range(8))
def test_noise_around_a_constant_teaches_nothing(seed: int) -> None:
    reading = read_curve(rows(noisy([0.08] * 20, 0.002, seed), noisy([0.085] * 20, 0.0005, seed + 99)))
    assert reading.learned is False
    assert reading.overfitting is False
    assert not reading.diverged
    assert not reading.still_falling
    assert [phase.kind for phase in reading.phases] in (["flat"], ["after_best"])
    text = explain_curve(reading)
    assert "**No overfitting:**" in text
    assert "nothing was learned that stands out from the noise" in text
    assert "Look for the reason before training longer" in text
    assert "Stop early" not in text


def test_noisy_but_falling() -> None:
    falling = [0.14 - 0.003 * i for i in range(20)]
    readings = [read_curve(rows(noisy(falling, 0.003, seed), falling)) for seed in range(12)]
    for reading in readings:
        assert reading.overfitting is False
        assert reading.learned is True
        assert 0.001 < reading.noise < 0.006
        assert reading.noisy
        assert ("**Stopped too early:**" in explain_curve(reading)) == reading.still_falling
        assert "That is a noisy curve" in explain_curve(reading)
    # Noise as large as the fall of an epoch hides some ends.
    assert sum(reading.still_falling for reading in readings) >= 6


def test_one_epoch_and_two_say_that_they_are_too_few() -> None:
    one = read_curve(rows([0.09], [0.1]))
    assert one.noise is one.overfitting is None
    assert one.timing == "unclear"
    assert "over 1 epoch." in explain_curve(one)
    two = read_curve(rows([0.09, 0.08], [0.1, 0.09]))
    assert (two.best_epoch, two.overfitting, two.still_falling) == (2, None, False)
    for reading in (one, two, read_curve(rows([0.08, 0.09]))):
        text = explain_curve(reading)
        assert "Train for more epochs: three or more are needed" in text
        assert "overfitted" not in text
        assert "**No overfitting" not in text


SETTLED = """\
epoch,train_l1,val_l1,learning_rate,seconds
1,0.1326774,0.1242569,0.001999,445.845
2,0.0856440,0.0877670,0.001963,220.041
3,0.0825375,0.0802609,0.001882,210.098
4,0.0811800,0.0759782,0.001757,139.487
5,0.0791747,0.0783173,0.001596,108.831
6,0.0792119,0.0782554,0.001406,111.61
7,0.0789724,0.0766388,0.001196,102.143
8,0.0789348,0.0764349,0.0009769,103.601
9,0.0785996,0.0769706,0.0007589,101.837
10,0.0786019,0.0761091,0.0005525,103.864
11,0.0784438,0.0762419,0.0003678,100.83
12,0.0780860,0.0762570,0.0002136,97.553
13,0.0777679,0.0758407,9.757e-05,105.78
14,0.0777348,0.0759643,2.52e-05,103.233
15,0.0777631,0.0758505,1.012e-08,105.532
"""


def test_a_real_run_settled_without_overfitting(tmp_path: Path) -> None:
    (tmp_path / "history.csv").write_text(SETTLED)
    reading = read_curve(read_history(tmp_path / "history.csv"))
    assert reading.best_epoch == 13
    assert reading.overfitting is False
    assert not reading.still_falling
    assert reading.timing == "right"
    assert reading.learning_rate.shape == "decaying"
    assert [(p.kind, p.first_epoch, p.last_epoch) for p in reading.phases] == [
        ("rapid", 1, 4), ("slow", 4, 13), ("after_best", 13, 15),
    ]  # fmt: skip
    two, three = reading.early_stopping
    assert (two.stop_epoch, two.kept_epoch, two.saved_epochs) == (6, 4, 9)
    assert two.saved_seconds == pytest.approx(924.373)
    assert two.cost == pytest.approx(0.0759782 - 0.0758407, abs=1e-6)
    assert three.stop_epoch == 7
    text = explain_curve(reading)
    assert "**No overfitting:**" in text
    assert "Validation below training is normal here" in text
    assert "those of the last epoch are as good within the noise" in text


def test_without_a_training_column_nothing_is_said_about_the_gap_or_overfitting() -> None:
    reading = read_curve(rows(VAL))
    assert reading.overfitting is None
    assert reading.gap_at_best is None
    text = explain_curve(reading)
    assert "**Gap:**" not in text
    assert "**Overfitting or divergence?**" in text
    assert "Raise weight decay" not in text


def test_a_rise_with_level_training_is_not_overfitting() -> None:
    reading = read_curve(rows(VAL, [*TRAIN[:10], *[0.0650] * 5]))
    assert reading.rise_is_real
    assert reading.train_after_best == "level"
    assert reading.overfitting is False
    assert "**No overfitting in the strict sense:**" in explain_curve(reading)


def test_a_missing_training_loss_at_the_end_is_not_printed() -> None:
    text = text_of(rows(VAL, [*TRAIN[:14], NAN]))
    assert "**Overfitting:** after epoch 10 training keeps falling while validation rises" in text


def test_one_lucky_epoch_makes_no_rise_of_the_rest() -> None:
    assert not read_curve(rows([0.1, 0.1, 0.05, 0.1, 0.1, 0.1, 0.1, 0.1])).rise_is_real


def test_enormous_losses_count_as_diverged_and_do_not_overflow() -> None:
    reading = read_curve(rows([0.1, 0.09, 1.7e308, -1.7e308]))
    assert (reading.best_epoch, reading.broke_epoch) == (2, 3)


def test_the_later_of_equal_epochs_is_best_and_resets_patience() -> None:
    reading = read_curve(rows([0.1, 0.08, 0.09, 0.08, 0.09, 0.09]))
    assert reading.best_epoch == 4
    assert reading.early_stopping[0].stop_epoch == 6
    assert reading.early_stopping[0].saved_epochs == 0
    assert reading.early_stopping[1].stop_epoch is None


def test_patience_that_stops_before_the_best_says_its_cost() -> None:
    history = rows([0.12, 0.1, 0.101, 0.102, 0.09, 0.08, 0.07, 0.06])
    stop = read_curve(history).early_stopping[0]
    assert (stop.stop_epoch, stop.kept_epoch, stop.saved_epochs) == (4, 2, 4)
    assert stop.cost == pytest.approx(0.04)
    assert "costs 0.0400 (66.7 %) of validation loss." in text_of(history)


@pytest.mark.parametrize(
    ("rates", "shape"),
    [
        ([1e-3] * 6, "constant"),
        ([6, 5, 4, 3, 2, 1], "decaying"),
        ([4, 4, 4, 1, 1, 1], "step decay"),
        ([1, 4, 6, 5, 3, 1], "warm-up, then decay"),
        ([1, 2, 3, 4, 5, 6], "rising"),
        ([1, 5, 1, 5, 1, 5], "varying"),
    ],
)
def test_learning_rate_shapes(rates: list[float], shape: str) -> None:
    history = [
        {**row, "learning_rate": rate}
        for row, rate in zip(rows([0.1, 0.09, 0.08, 0.07, 0.08, 0.09]), rates, strict=True)
    ]
    found = read_curve(history).learning_rate
    assert (found.shape, found.first, found.peak, found.last, found.at_best) == (
        shape, rates[0], max(rates), rates[-1], rates[3],
    )  # fmt: skip


def test_no_rows_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no rows"):
        read_curve([])


_loss = st.floats(allow_nan=True, allow_infinity=True) | st.floats(0, 1) | st.sampled_from([0.0, 0.07, 0.08, NAN])


@given(st.lists(st.tuples(_loss, _loss, _loss), min_size=1, max_size=200), st.booleans())
def test_any_floats_give_a_text_without_nan(values: list[tuple[float, float, float]], with_train: bool) -> None:
    history = rows([v for v, _, _ in values], [t for _, t, _ in values] if with_train else None)
    for row, (_, _, other) in zip(history, values, strict=True):
        row |= {"learning_rate": other, "seconds": other}
    reading = read_curve(history)
    text = explain_curve(reading)
    assert not re.search(r"\bnan\b|\binf\b|None", text)
    assert max(map(len, text.splitlines())) < 700
    assert not (reading.overfitting and "no overfitting" in text.lower())


# --- files --------------------------------------------------------------------------------------------------------


def test_the_projects_own_history_is_read_back(tmp_path: Path) -> None:
    history = rows(VAL, TRAIN, learning_rate=1e-3, seconds=2.5, images_per_s=9)
    assert list(read_history(write_history(tmp_path / "history.csv", history))) == history


@pytest.mark.parametrize(
    "text",
    [
        "epoch,train_l1,val_l1\n1,0.2,0.3\n2,0.1,0.25\n",
        " Epoch , Training Loss , Validation_Loss \n1,0.2,0.3\n\n2,0.1,0.25\n",
        "\ufeffepoch;loss;val_loss\n1;0,2;0,3\n2;0,1;0,25\n",
        "epoch\ttrain_mae\tval_mae\n1\t0.2\t0.3\n2\t0.1\t0.25\n",
        "epoch,val_loss,loss,val_mae,mae\r\n1,0.3,0.2,9,9\r\n2,0.25,0.1,9,9\r\n",
        "epoch,loss,valid_loss\n2,0.1,0.25\n1,0.2,0.3\n",
        "loss,val_loss\n0.2,0.3\n0.1,0.25\n",
        "epoch,train_loss,val_loss\n1,,0.3\n1,0.2,\n2,,0.25\n2,0.1,\n",
        "epoch,train/loss,val/loss,note\n1,0.2,0.3,good\n2,0.1,0.25,\n",
    ],
)
def test_histories_from_elsewhere(tmp_path: Path, text: str) -> None:
    assert read_history(saved(tmp_path, text)) == (
        {"epoch": 1, "train_l1": 0.2, "val_l1": 0.3}, {"epoch": 2, "train_l1": 0.1, "val_l1": 0.25},
    )  # fmt: skip


def test_training_is_read_from_the_same_measure_as_validation(tmp_path: Path) -> None:
    assert read_history(saved(tmp_path, "epoch,train,mae,val_mae\n1,9,0.2,0.3\n"))[0]["train_l1"] == 0.2


def test_a_spreadsheets_unicode_text_is_read(tmp_path: Path) -> None:
    assert read_history(saved(tmp_path, "epoch\tval_loss\tlr\n1\t0.3\t0.1\n".encode("utf-16")))[0] == {
        "epoch": 1, "val_l1": 0.3, "learning_rate": 0.1,
    }  # fmt: skip


def test_empty_nan_and_infinite_cells_stay_as_rows(tmp_path: Path) -> None:
    history = read_history(saved(tmp_path, "epoch,val_loss\n1,0.3\n2,\n3,NaN\n4,inf\n5,-Infinity\n6\n7,1e999\n"))
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6, 7]
    assert [math.isnan(row["val_l1"]) for row in history] == [False] + [True] * 6


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "is empty"),
        (b"epoch,train_l1,val_l1\n", "has no rows"),
        (b"epoch,accuracy\n1,0.5\n", "no column with the validation loss"),
        (b"epoch,loss\n1,0.5\n", "no column with the validation loss"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "is not text"),
        (b"epoch,val_l1\n1,0.\0\n", "is not text"),
        (b"epoch,val_l1\n1,good\n", "line 2: val_l1 is 'good', which is no number"),
        (b"epoch,val_l1\nx,0.1\n", "line 2: epoch is 'x', which is no number"),
        (b"epoch,val_l1\n1.5,0.1\n", "its epoch is 1.5"),
        (b"epoch,val_l1\n-1,0.1\n", "its epoch is -1"),
        (b"epoch,val_l1\n1e99,0.1\n", "its epoch is 1e+99"),
        (b"epoch,val_l1\n,0.1\n", "its epoch is missing"),
        (b"epoch,val_l1\n1,0.1\n2,0.2\n1,0.3\n", "line 4: epoch 1 is there twice"),
        (b"epoch,val_l1,val_l1\n1,0.1,0.2\n", "has two columns 'val_l1'"),
        (b"epoch,val_l1\n1,0,11\n", "line 2 has 3 values for 2 columns"),
        (b'epoch,val_l1\n1,"0.1\n2,0.2\n', "is not a CSV"),
        (b"epoch,val_l1\n1," + b"9" * 200_000, "is not a CSV"),
        (b"val_l1\n" + b"0.1\n" * 100_001, "more than 100,000 rows"),
        (b"val_l1\n" + b"\n" * 2**24, "larger than 16 MiB"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(InputError) as caught:
        read_history(saved(tmp_path, content))
    assert why in str(caught.value)
    assert caught.value.hint


def test_missing_files_folders_and_pipes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_history(tmp_path / "history.csv")
    with pytest.raises(InputError, match="is a folder"):
        read_history(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="not a regular file"):
        read_history(tmp_path / "pipe")


def test_a_missing_column_is_named_in_the_hint(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_history(saved(tmp_path, "epoch,accuracy\n1,0.5\n"))
    assert "epoch, train_l1 and val_l1" in caught.value.hint


@given(st.binary(max_size=300) | st.text(alphabet='epoch,val_l1;\n0123."\t-e', max_size=300).map(str.encode))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        assert explain_curve(read_curve(read_history(path)))


# --- the document and the command ---------------------------------------------------------------------------------


def test_layers_say_where_compression_begins() -> None:
    layers = read_ranked_layers(EXAMPLE / "layer_param_counts.csv")
    assert tuple(layers.iloc[0]) == ("encoder.4.3", 147456, 30.3147, 30.3147)
    text = explain_curve(read_curve(rows(VAL, TRAIN)), layers=layers)
    assert "Begin compression with the 3 largest layers, which hold 61 % of the parameters: `encoder.4.3` (147," in text
    assert "compression" not in text_of(rows(VAL, TRAIN)).split("## Recommendations")[1]


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"a,b\n1,2\n", b"rank,name,type,params,pct,cum_pct\n1,x,y,many,1,1\n"]
)
def test_a_broken_ranking_is_done_without(tmp_path: Path, content: bytes) -> None:
    assert read_ranked_layers(saved(tmp_path, content)) is None
    assert read_ranked_layers(tmp_path / "none.csv") is None


def test_the_document_has_its_sections_and_lists_only_what_is_there(tmp_path: Path) -> None:
    source = write_history(tmp_path / "history.csv", rows(VAL, TRAIN))
    (tmp_path / "pruned").mkdir()
    (tmp_path / "pruned" / "model.pt").write_bytes(b"x")
    path = write_explanation(tmp_path / "training_inference.md", read_curve(rows(VAL, TRAIN)), source)
    text = path.read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Key observations", "Practical inferences", "Recommendations", "Figure caption", "Files",
    ]  # fmt: skip
    assert re.findall(r"^- `(.+)`:", text, re.MULTILINE) == ["history.csv", "pruned/model.pt"]
    elsewhere = write_explanation(tmp_path / "out" / "x.md", read_curve(rows(VAL, TRAIN)), source)
    assert "- `../history.csv`:" in elsewhere.read_text(encoding="utf-8")


def test_explain_command_on_a_run_folder_and_on_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_history(tmp_path / "history.csv", rows(VAL, TRAIN))
    assert run_command(["explain", "-o", str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "training_inference.md")
    other = saved(tmp_path, "epoch,val_loss\n1,0.2\n2,nan\n3,0.1\n")
    assert run_command(["explain", str(other), "-o", str(tmp_path / "out"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(name))
    assert answer["path"] == str(tmp_path / "out" / "training_inference.md")
    assert answer["best_epoch"] == 3
    assert answer["gap_at_best"] is None
    assert "- `../log.csv`:" in (tmp_path / "out" / "training_inference.md").read_text(encoding="utf-8")


def test_explain_command_fails_in_two_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["explain", "-o", str(tmp_path)]) == 2
    assert "no such file\nhint: " in capsys.readouterr().err
    assert run_command(["explain", str(saved(tmp_path, "a,b\n1,2\n"))]) == 3
    assert not (tmp_path / "training_inference.md").exists()
