"""Each photograph is in one part, by content alone; source folders are whole in one part, or in every part."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from colorpress.core.config import DataConfig
from training.photo_split import PhotoSplit, group_by_folder, halve_photos, split_photos
from training.photos import Photo

PARTS = ("train", "choosing", "confirming", "test")


@settings(max_examples=15)
@given(st.integers(4, 10), st.integers(0, 99), st.sampled_from([0.1, 0.3]), st.sampled_from([0.1, 0.2]))
def test_split_properties(count: int, seed: int, val: float, test: float) -> None:
    photos = [Photo(Path(str(i)), f"{i:064x}", 8, 8) for i in range(count * 10)]
    config = DataConfig(seed=seed, val_share=val, test_share=test)
    split, smaller = split_photos([photos], (), config), split_photos([photos[:-3]], (), config)
    parts = (*split.test, *split.val, *split.train)
    assert sorted(parts, key=lambda photo: photo.sha256) == photos
    assert (len(split.val), len(split.test)) == (round(val * count * 10), round(test * count * 10))
    # Photographs keep their order when others are added, so only a few at the borders change sides.
    kept = [photo for photo in parts if photo in photos[:-3]]
    assert kept == [*smaller.test, *smaller.val, *smaller.train]


def folders_of(*sizes: int) -> list[list[Photo]]:
    """Folders with so many photographs each, all different."""
    numbers = iter(range(sum(sizes)))
    return [
        [
            Photo(Path(f"{name}/{i}.png"), f"{number:064x}", 8, 8)
            for i, number in zip(range(size), numbers, strict=False)
        ]
        for name, size in enumerate(sizes)
    ]


def counts(split: PhotoSplit) -> dict[str, dict[str, int]]:
    """Folder -> part -> photographs."""
    counted: dict[str, dict[str, int]] = {}
    for part in PARTS:
        for photo in getattr(split, part):
            counted.setdefault(photo.path.parent.name, dict.fromkeys(PARTS, 0))[part] += 1
    return counted


@pytest.mark.parametrize("folder", ["one folder", "one photograph in each"])
def test_photographs_of_one_folder_keep_the_split_they_always_had(folder: str) -> None:
    (photos,) = folders_of(20)
    sources = [photos] if folder == "one folder" else [[photo] for photo in photos]
    split = split_photos(sources, (), DataConfig(seed=3, val_share=0.2, test_share=0.1))
    assert [int(photo.sha256, 16) for photo in split.test] == [9, 14]
    assert [int(photo.sha256, 16) for photo in split.choosing] == [13, 11]
    assert [int(photo.sha256, 16) for photo in split.confirming] == [16, 17]
    assert [int(photo.sha256, 16) for photo in split.train] == [10, 2, 19, 3, 6, 18, 7, 8, 15, 5, 0, 1, 4, 12]


@settings(max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=60, max_size=90), st.integers(0, 99), st.sampled_from([0.1, 0.25]))
def test_small_folders_are_whole_in_one_part(sizes: list[int], seed: int, share: float) -> None:
    total = sum(sizes)
    split = split_photos(folders_of(*sizes), (), DataConfig(seed=seed, val_share=share, test_share=share))
    if max(sizes) > share * total / 2 - 1:  # some were too large for that
        return
    assert split.folders == f"whole folders kept together: {len(sizes)} folders"
    for of_folder in counts(split).values():
        assert sorted(of_folder.values())[:3] == [0, 0, 0]
    for part in (split.test, split.val):
        assert abs(len(part) - share * total) <= max(sizes) / 2 + 0.5
    assert abs(len(split.choosing) - len(split.confirming)) <= max(sizes) + 1
    assert sum(len(getattr(split, part)) for part in PARTS) == total


def test_the_first_photographs_of_a_part_are_of_many_folders() -> None:
    split = split_photos(folders_of(*[10] * 100), (), DataConfig())
    for part in (split.train, split.choosing, split.test):
        assert len({photo.path.parent for photo in part[:10]}) >= 4


@settings(max_examples=40)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=19), st.integers(0, 99))
def test_few_folders_give_every_part_their_share(sizes: list[int], seed: int) -> None:
    total = sum(sizes)
    if total < 10:
        return
    split = split_photos(folders_of(*sizes), (), DataConfig(seed=seed))
    assert split.folders == f"each of {len(sizes)} folders gives every part its share"
    assert len(split.test) == len(split.val) == int(total / 10 + 0.5)
    assert len(split.choosing) == (len(split.val) + 1) // 2
    for name, of_folder in counts(split).items():
        for part, found in of_folder.items():
            assert abs(found - sizes[int(name)] * len(getattr(split, part)) / total) < 2


def test_every_kind_of_picture_is_in_every_part() -> None:
    sizes = (2600, 2000, 1500, 1200, 700, 261)
    of_folders = counts(split_photos(folders_of(*sizes), (), DataConfig()))
    assert len(of_folders) == 6
    for name, of_folder in of_folders.items():
        expected = {"train": 0.8, "choosing": 0.05, "confirming": 0.05, "test": 0.1}
        for part, share in expected.items():
            assert abs(of_folder[part] - share * sizes[int(name)]) <= 1.5


def test_the_smallest_folders_do_not_all_go_to_the_same_part() -> None:
    held_out = [0] * 10
    for seed in range(100):
        for name, of_folder in counts(split_photos(folders_of(*[3] * 10), (), DataConfig(seed=seed))).items():
            held_out[int(name)] += of_folder["test"]
    assert sum(held_out) == 300
    assert min(held_out) >= 15  # of 30, give or take 5


def test_a_folder_with_one_photograph_may_be_held_out_too() -> None:
    splits = [split_photos(folders_of(19, 1), (), DataConfig(seed=seed, test_share=0.3)) for seed in range(60)]
    held_out = sum(counts(split)["1"]["test"] for split in splits)
    assert 8 <= held_out <= 30  # of 60, 18 expected


def test_one_huge_folder_among_small_ones_is_shared_and_they_stay_whole() -> None:
    split = split_photos(folders_of(1500, *[30] * 50), (), DataConfig())
    assert split.folders == "whole folders kept together: 50 folders, and a larger one gives every part its share"
    of_folders = counts(split)
    huge = of_folders.pop("0")
    assert abs(huge["test"] - 150) <= 15
    assert abs(huge["choosing"] + huge["confirming"] - 150) <= 15
    for of_folder in of_folders.values():
        assert sorted(of_folder.values()) == [0, 0, 0, 30]
    # Both kinds are in every part.
    for part in PARTS:
        assert sum(of_folder[part] for of_folder in of_folders.values()) >= 60


def test_several_huge_folders_among_small_ones_are_shared() -> None:
    split = split_photos(folders_of(400, 500, *[10] * 60), (), DataConfig())
    assert split.folders == (
        "whole folders kept together: 60 folders, and each of 2 larger ones gives every part its share"
    )


def test_three_photographs_in_three_folders() -> None:
    split = split_photos(folders_of(1, 1, 1), (), DataConfig())
    assert [len(getattr(split, part)) for part in PARTS] == [1, 1, 0, 1]


def test_a_tiny_share_is_one_photograph_and_keeps_no_folder_whole() -> None:
    split = split_photos(folders_of(*[5] * 200), (), DataConfig(test_share=0.001))
    assert (len(split.test), len(split.val)) == (1, 100)
    assert split.folders == "each of 200 folders gives every part its share"


def test_whole_folders_leave_something_to_train_on() -> None:
    for seed in range(30):
        split = split_photos(folders_of(*[4] * 50), (), DataConfig(seed=seed, val_share=0.5, test_share=0.45))
        assert split.folders == "whole folders kept together: 50 folders"
        assert len(split.train) >= 4
        assert len(split.confirming) >= 4
    # Ten are left to train on: a folder of six would be most of that.
    kept = split_photos(folders_of(*[5] * 40), (), DataConfig(val_share=0.5, test_share=0.45))
    assert kept.folders == "whole folders kept together: 40 folders"
    shared = split_photos(folders_of(*[6] * 40), (), DataConfig(val_share=0.5, test_share=0.46))
    assert shared.folders == "each of 40 folders gives every part its share"


def test_halves_of_fewer_photographs_stay_the_halves_that_they_were() -> None:
    split = split_photos(folders_of(*[7] * 90), (), DataConfig())
    assert (len(split.choosing), len(split.confirming)) == (35, 28)
    fewer = split.limit_halves(30)
    assert fewer.choosing == split.choosing[:30]
    assert fewer.confirming == split.confirming


def test_a_folder_and_its_copy_are_one() -> None:
    first, other = folders_of(4, 5)
    copy = [Photo(Path(f"copy/{i}.png"), photo.sha256, 8, 8) for i, photo in enumerate(first)]
    for found in ([*first, *other, *copy], [*copy, *other, *first]):
        sources = group_by_folder(list({photo.sha256: photo for photo in found}.values()), found)
        together = sorted(sorted(photo.sha256 for photo in source) for source in sources)
        assert together == [[photo.sha256 for photo in source] for source in (first, other)]


@pytest.mark.parametrize("photos", [1, 2, 7])
def test_halves_of_one_folder_are_by_photograph(photos: int) -> None:
    (source,) = folders_of(photos)
    first, second = halve_photos(source, seed=0)
    assert (len(first), len(second)) == ((photos + 1) // 2, photos // 2)
    assert {*first, *second} == set(source)


def test_halves_share_no_small_folder_and_every_large_one() -> None:
    small = [photo for folder in folders_of(*[3] * 24) for photo in folder]
    halves = [{photo.path.parent for photo in half} for half in halve_photos(small, seed=0)]
    assert not halves[0] & halves[1] and len(halves[0] | halves[1]) == 24
    large = [photo for folder in folders_of(20, 30, 10) for photo in folder]
    first, second = ([photo.path.parent.name for photo in half] for half in halve_photos(large, seed=0))
    assert {name: (first.count(name), second.count(name)) for name in "012"} == {
        "0": (10, 10),
        "1": (15, 15),
        "2": (5, 5),
    }
