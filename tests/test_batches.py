"""Batches: the same pixels whatever the workers, none lost, and no process left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from colorpress.core.config import DataConfig, Recipe
from colorpress.core.errors import MachineError
from training import batches
from training.batches import ANSWER_STRIDE, CropAnswers, CropLoader, Crops, whole_photos
from training.photo_scan import scan_photos
from training.photos import Photo, load_rgb

LIMIT = 1_000_000


@pytest.fixture
def photos(photo_folder: Path) -> tuple[Photo, ...]:
    split = scan_photos(DataConfig(data=photo_folder), workers=0)
    return (*split.train, *split.val, *split.test)


@pytest.fixture(autouse=True)
def _forget_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "_warned", set())


def make_loader(photos: tuple[Photo, ...], **options: object) -> CropLoader:
    recipe = Recipe(imgsz=16, size_jitter=0.0, batch_size=4, crop_share=0.35, epoch_crops=1)
    changed = {name: options.pop(name) for name in vars(recipe) if name in options}
    data = DataConfig(seed=options.pop("seed", 3), max_pixels=LIMIT)  # type: ignore[arg-type]
    return CropLoader(photos, replace(recipe, **changed), data, **{"workers": 0, **options})  # type: ignore[arg-type]


def pixels_of(loader: CropLoader, epoch: int) -> list[torch.Tensor]:
    with loader:
        return [crops.rgb.clone() for crops in loader.epoch(epoch)]


def children_since(before: list[psutil.Process]) -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child not in before]


def test_batches_have_the_promised_shape_and_number(photos: tuple[Photo, ...]) -> None:
    loader = make_loader(photos)
    found = pixels_of(loader, 1)
    assert [tuple(batch.shape) for batch in found] == [(4, 3, 16, 16), (3, 3, 16, 16), (3, 3, 16, 16)]
    assert all(batch.dtype == torch.uint8 and batch.is_contiguous() for batch in found)
    assert len(loader) == 3


def test_processes_that_could_not_hand_over_a_batch_are_not_waited_for(
    photos: tuple[Photo, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise TimeoutError("no batch came")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)  # type: ignore[attr-defined]
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    try:
        with pytest.raises(MachineError, match="gone': cannot write"):
            pixels_of(make_loader(photos, workers=1), 1)
        assert len(pixels_of(make_loader(photos, workers=0), 1)) == 3
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_each_batch_has_a_size_of_its_own_whoever_loads_it(photos: tuple[Photo, ...]) -> None:
    options = {"imgsz": 24, "size_jitter": 0.5, "epoch_crops": 100}
    found = pixels_of(make_loader(photos, **options), 1)
    sides = [batch.shape[-1] for batch in found]
    assert all(batch.shape[-2] == batch.shape[-1] for batch in found)
    assert set(sides) == {12, 16, 20, 24, 28, 32}
    assert [batch.shape[-1] for batch in pixels_of(make_loader(photos, **options), 2)] != sides
    with_worker = pixels_of(make_loader(photos, workers=1, **options), 1)
    assert all(torch.equal(*pair) for pair in zip(found, with_worker, strict=True))
    # Processes that share a batch see crops of one size, one without any too.
    part = pixels_of(make_loader(photos, part=(1, 2), **options), 1)
    assert [batch.shape[-1] for batch in part] == sides


@pytest.mark.parametrize(
    ("count", "min_crops", "crops"), [(10, 64, 70), (10, 10, 10), (10, 11, 20), (1, 64, 64), (10, 1, 10)]
)
def test_a_small_set_gives_several_crops_of_each_photograph(
    photos: tuple[Photo, ...], count: int, min_crops: int, crops: int
) -> None:
    loader = make_loader(photos[:count], epoch_crops=min_crops, batch_size=16)
    keys = [key for batch in loader._order for key in batch.crops]
    assert len(keys) == len(set(keys)) == crops
    assert np.bincount([position for position, _ in keys]).tolist() == [crops // count] * count
    assert len(loader) == -(-crops // 16)


def test_a_shorter_epoch_is_the_beginning_of_a_whole_one(photos: tuple[Photo, ...]) -> None:
    whole = [pixels_of(make_loader(photos, fresh_epochs=2), epoch) for epoch in (1, 2)]
    with make_loader(photos, fresh_epochs=2, epoch_steps=2) as loader:
        assert len(loader) == 2
        short = [[crops.rgb for crops in loader.epoch(epoch)] for epoch in (1, 2, 3)]
    for beginning, all_of_it in zip(short[:2], whole, strict=True):
        assert all(torch.equal(*pair) for pair in zip(beginning, all_of_it[:2], strict=True))
    assert {batch.flip(-1).numpy().tobytes() for batch in short[2]} == {batch.numpy().tobytes() for batch in short[0]}


def test_several_crops_of_one_photograph_differ(photos: tuple[Photo, ...]) -> None:
    (batch,) = pixels_of(make_loader(photos[:1], epoch_crops=8, batch_size=8), 1)
    assert len({crop.numpy().tobytes() for crop in batch}) == 8


def test_pixels_do_not_depend_on_workers_or_history(photos: tuple[Photo, ...]) -> None:
    expected = pixels_of(make_loader(photos), 2)
    for workers in (1, 2):
        with make_loader(photos, workers=workers) as loader:
            list(loader.epoch(1))
            next(iter(loader.epoch(7)))  # left in the middle
            again = [crops.rgb.clone() for crops in loader.epoch(2)]
        assert len(again) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(again, expected, strict=True))
    assert not torch.equal(expected[0], pixels_of(make_loader(photos), 1)[0])
    assert not torch.equal(expected[0], pixels_of(make_loader(photos, seed=4), 2)[0])


def test_the_loader_leaves_the_global_random_state_alone(photos: tuple[Photo, ...]) -> None:
    before = torch.get_rng_state()
    pixels_of(make_loader(photos), 1)
    pixels_of(make_loader(photos, workers=1), 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_photograph_that_vanishes_is_left_out_with_one_warning(
    photos: tuple[Photo, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    photos[0].path.unlink()
    photos[1].path.write_bytes(b"no picture any more")
    for workers in (0, 1):
        with make_loader(photos, workers=workers) as loader:
            for epoch in (1, 2):
                assert sum(len(batch) for batch in loader.epoch(epoch)) == 8
    whole = [photo for photo, _ in whole_photos(photos, short_side=8, max_pixels=LIMIT)]
    assert whole == list(photos[2:])
    warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]
    assert len(warnings) == 2
    for photo, why in zip(photos, ("no such file", "not an image"), strict=False):
        assert any(str(photo.path) in line and why in line for line in warnings)


def test_a_killed_worker_is_a_machine_error_and_leaves_no_process(photos: tuple[Photo, ...]) -> None:
    before = psutil.Process().children()
    loader = make_loader(photos, workers=2, batch_size=1, epoch_crops=400)
    stream = loader.epoch(1)
    next(stream)
    children = children_since(before)
    assert len(children) == 2
    handler = signal.getsignal(signal.SIGCHLD)
    os.kill(children[0].pid, signal.SIGKILL)
    time.sleep(0.2)  # the training step goes on undisturbed
    assert signal.getsignal(signal.SIGCHLD) == handler
    with pytest.raises(MachineError, match="a loading process died") as caught:
        list(stream)
    assert str(children[0].pid) in str(caught.value)
    assert psutil.wait_procs(children, timeout=5)[1] == []


def test_a_worker_that_dies_while_it_hands_over_is_a_machine_error(
    photos: tuple[Photo, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    def hang_up(_: object) -> None:
        raise ConnectionResetError("Connection reset by peer")

    monkeypatch.setattr(batches, "_iterate", hang_up)
    with pytest.raises(MachineError, match=r"a loading process died \(Connection reset by peer\)"):
        pixels_of(make_loader(photos), 1)


def test_workers_end_with_the_loader(photos: tuple[Photo, ...]) -> None:
    before = psutil.Process().children()
    with make_loader(photos, workers=2) as loader:
        list(loader.epoch(1))
        first = children_since(before)
        list(loader.epoch(2))
        assert children_since(before) == first  # kept from epoch to epoch
    assert psutil.wait_procs(first, timeout=5)[1] == []
    loader = make_loader(photos, workers=1)
    next(loader.epoch(1))
    children = children_since(before)
    del loader
    assert psutil.wait_procs(children, timeout=10)[1] == []


def test_an_error_of_the_training_step_is_passed_on(photos: tuple[Photo, ...]) -> None:
    with pytest.raises(RuntimeError, match="of the step"):
        for _ in make_loader(photos).epoch(1):
            raise RuntimeError("of the step")


def test_whole_photographs_come_in_order_at_their_size(photos: tuple[Photo, ...]) -> None:
    found = list(whole_photos(photos, short_side=20, max_pixels=LIMIT))
    assert [photo for photo, _ in found] == list(photos)
    for photo, pixels in found:
        assert pixels.dtype == torch.uint8
        assert pixels.shape == (1, 3, 20, 24)
        assert np.array_equal(pixels[0].permute(1, 2, 0), load_rgb(photo.path, max_pixels=LIMIT, short_side=20))
    assert list(whole_photos((), short_side=20, max_pixels=LIMIT)) == []
    assert next(whole_photos(photos, short_side=4096, max_pixels=LIMIT))[1].shape == (1, 3, 40, 48)


def answer_by_pixels(crops: Crops) -> torch.Tensor:
    """(N, 2, S, S): what a teacher answers that sees a crop's red and green."""
    return crops.rgb[:, :2].float() / 256


def write_answers(photos: tuple[Photo, ...], answers: CropAnswers, epochs: int, **options: object) -> None:
    with make_loader(photos, **options) as loader:
        for epoch in range(1, epochs + 1):
            for batch, crops in enumerate(loader.epoch(epoch)):
                answers.write(epoch, batch, crops, answer_by_pixels(crops))


@pytest.mark.parametrize("part", [(0, 1), (1, 2)])
def test_a_batch_carries_the_answers_to_its_very_crops(
    photos: tuple[Photo, ...], tmp_path: Path, part: tuple[int, int]
) -> None:
    answers, options = CropAnswers(tmp_path / "answers"), {"part": part, "tone_jitter": 0.5}
    write_answers(photos, answers, 2, **options)
    for workers in (0, 1):
        with make_loader(photos, answers=answers, workers=workers, fresh_epochs=2, **options) as loader:
            for epoch in (1, 2, 3, 8):
                for crops in loader.epoch(epoch):
                    wanted = torch.nn.functional.avg_pool2d(answer_by_pixels(crops), ANSWER_STRIDE)
                    assert crops.answers.shape == (len(crops), 2, 16 // ANSWER_STRIDE, 16 // ANSWER_STRIDE)
                    # Equal also where they come again mirrored, which a column off its place would not be.
                    assert torch.equal(crops.answers, wanted.half())
                    assert 0.01 < crops.tones.log().abs().max() < 3.0


def test_after_the_fresh_epochs_their_batches_come_again_in_another_order_and_every_other_time_mirrored(
    photos: tuple[Photo, ...],
) -> None:
    def batches_of(epoch: int, *, mirrored: bool = False, **options: object) -> list[bytes]:
        # Of one size, so that a batch is known by its pixels.
        pixels = pixels_of(make_loader(photos, batch_size=1, **options), epoch)
        return [(batch.flip(-1) if mirrored else batch).numpy().tobytes() for batch in pixels]

    first, second, *again = (batches_of(epoch, mirrored=epoch in (3, 4), fresh_epochs=2) for epoch in range(1, 7))
    assert set(first).isdisjoint(second)
    assert [set(each) for each in again] == [set(first), set(second)] * 2
    orders = [first, *again[::2]]
    assert len({tuple(order) for order in orders}) == 3
    assert set(batches_of(3, fresh_epochs=2)).isdisjoint(first)
    # They are the crops of a training whose crops are all new.
    assert [first, second] == [batches_of(1), batches_of(2)]
    assert set(batches_of(3)).isdisjoint(first)


def test_a_resumed_epoch_of_crops_shown_before_goes_on_where_it_was(photos: tuple[Photo, ...]) -> None:
    whole = pixels_of(make_loader(photos, fresh_epochs=1), 4)
    with make_loader(photos, fresh_epochs=1) as loader:
        rest = [crops.rgb for crops in loader.epoch(4, start=1)]
    assert len(rest) == 2 and all(torch.equal(*pair) for pair in zip(rest, whole[1:], strict=True))


def test_of_a_batch_without_its_answers_nothing_is_shown(
    photos: tuple[Photo, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = CropAnswers(tmp_path)
    write_answers(photos, answers, 1)
    answers.path_of(1, 0).write_bytes(b"\x93NUMPY")
    answers.path_of(1, 1).unlink()
    np.save(answers.path_of(1, 2), np.zeros((3, 2, 3, 3), np.float16))
    with make_loader(photos, answers=answers) as loader:
        found = list(loader.epoch(1))
        assert [len(crops) for crops in found] == [0, 0, 0]
        list(loader.epoch(1))
    said = capsys.readouterr().err
    # Each is said once.
    assert said.count("missing or damaged; remove the file: answers that are missing are asked for again") == 2
    assert f"answers '{tmp_path}/1-0.npy' is left out" in said
    assert said.count("are to other crops; remove the file") == 1
    # Other processes of a training wait for this one's part: it goes on with a grey answer to a black crop.
    assert found[0].blank().answers.shape == (1, 2, 16 // ANSWER_STRIDE, 16 // ANSWER_STRIDE)


@pytest.mark.parametrize("batch_size", [4, 1])  # of one, none is left
def test_a_photograph_that_was_lost_when_best_pt_was_asked_leaves_the_others_their_answers(
    photos: tuple[Photo, ...], tmp_path: Path, batch_size: int
) -> None:
    answers = CropAnswers(tmp_path / "answers")
    lost = tuple(
        replace(photo, path=tmp_path / photo.path.name) if number == 4 else photo for number, photo in enumerate(photos)
    )
    write_answers(lost, answers, 1, batch_size=batch_size)
    with make_loader(lost, answers=answers, batch_size=batch_size) as loader:
        batches_of_epoch = list(loader.epoch(1))
    assert sum(len(crops) for crops in batches_of_epoch) == 9
    for crops in batches_of_epoch:
        assert torch.equal(crops.answers, torch.nn.functional.avg_pool2d(answer_by_pixels(crops), ANSWER_STRIDE).half())
    # It can be read again: what was not answered is not learned from.
    with make_loader(photos, answers=answers, batch_size=batch_size) as loader:
        assert sum(len(crops) for crops in loader.epoch(1)) == 9
