"""Options are checked when a config is made, and travel through TOML unchanged."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from colorpress.core.config import CONFIGS, OPTION_NAMES, DistilConfig, FitConfig, Settings, TrainConfig, option_name
from colorpress.core.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("epochs", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("learning_rate", True),
        ("base", "many"),
        ("upsample", "magic"),
        ("prune_ratio", 0),
        ("prune_ratio", 1.5),
        ("prune_ratio", -0.1),
        ("bench_size", 4),
        ("bench_batch", (1, 0)),
        ("mobile_format", ("pte", "coreml")),
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_range(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_options({name: value})
    assert f"'--{option_name(name)}'" in str(caught.value)
    assert str(value[-1] if isinstance(value, tuple) else value) in str(caught.value)
    assert "from" in caught.value.hint or "choose one of" in caught.value.hint or "at least" in caught.value.hint


def test_an_unknown_name_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_options({"epoch": 3})
    assert "did you mean 'epochs'?" in caught.value.hint


def test_option_names_are_unique_and_every_field_has_help() -> None:
    assert len(OPTION_NAMES) == len(set(OPTION_NAMES))
    for config in CONFIGS.values():
        assert all(len(each.metadata["help"]) > 10 for each in fields(config))


def test_resolved_toml_reads_back_as_the_same_settings() -> None:
    settings = Settings.from_options(
        {"epochs": 3, "data": Path('odd "name"'), "learning_rate": 1e-5, "bench_size": [64, 96]}
    )
    values = {name.replace("-", "_"): value for name, value in tomllib.loads(settings.to_toml()).items()}
    values["data"] = Path(values["data"])
    assert Settings.from_options(values) == settings


def test_lists_are_not_empty_have_no_value_twice_and_one_value_will_do() -> None:
    assert Settings.from_options({"bench_size": [512, 256]}).time.bench_size == (512, 256)
    assert Settings.from_options({"bench_size": 64, "bench_runtime": "openvino"}).time.bench_size == (64,)
    assert Settings.from_options({"bench_threads": []}).benchmark.bench_threads == ()
    for value, why in (
        ([], "empty"),
        ([8, 8], "each value once"),
        ("many", "a list"),
        (["many"], "a whole number"),
        (8.5, "a list"),
    ):
        with pytest.raises(ConfigError) as caught:
            Settings.from_options({"bench_size": value})
        assert why in f"{caught.value} {caught.value.hint}"


def test_a_network_file_is_never_named_by_resolved_toml() -> None:
    named = {"arch": "my nets.py:UNet\nepochs = 9", "arch_arg": ["base=32", "name=x"], "ab_scale": 110}
    settings = Settings.from_options(named)
    assert settings.arch.arch_arg == ("base=32", "name=x")
    text = settings.to_toml()
    assert "# arch, to be given again each time: --arch 'my nets.py:UNet" in text
    values = tomllib.loads(text)
    assert not {"arch", "arch-arg", "ab-scale"} & set(values)
    assert values["epochs"] == TrainConfig().epochs


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"arch_arg": ["base=3"]}, "--arch-arg': says nothing without --arch"),
        ({"ab_scale": 110.0}, "--ab-scale': says nothing without --arch"),
        ({"arch": "a.py:B", "ab_scale": 0}, "got 0"),
        ({"arch": "a.py:B", "ab_scale": True}, "got True"),
        ({"arch": "a.py:B", "arch_arg": "base=3"}, "got 'base=3'"),
        ({"arch": "a.py:B", "arch_arg": [3]}, "got 3"),
        ({"arch": 5}, "got 5"),
    ],
)
def test_options_of_a_foreign_network_are_checked(options: dict[str, object], why: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_options(options)
    assert why in str(caught.value)


def test_configs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        TrainConfig().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("crops", "photos"), [(48_000, 6_604), (4_000, 6_604), (96_000, 780), (64_000, 20_000), (400, 32), (1, 10)]
)
def test_who_learns_from_best_pt_sees_as_many_crops_as_were_asked_for(crops: int, photos: int) -> None:
    recipe = DistilConfig().recipe(FitConfig(), crops=crops, photos=photos, val_size=64)
    steps = recipe.epoch_steps or recipe.epoch_crops / recipe.batch_size
    assert recipe.epochs * steps * recipe.batch_size == pytest.approx(crops, rel=0.1, abs=recipe.batch_size)
    # The loader shows each photograph equally often: another number of crops it would round up. Whatever the length,
    # an epoch is the same, or the beginning of it.
    assert recipe.epoch_crops % photos == 0
    assert recipe.epochs == 1 or not recipe.epoch_steps
    longer = DistilConfig().recipe(FitConfig(), crops=10 * crops, photos=photos, val_size=64)
    assert longer.epoch_crops == recipe.epoch_crops
    # best.pt is asked about a number of crops, in whole epochs; less where there are no more.
    asked = [each.fresh_epochs * each.epoch_crops for each in (recipe, longer)]
    assert asked[0] <= asked[1] <= max(1.5 * 24_000, recipe.epoch_crops)
    if recipe.fresh_epochs < recipe.epochs:
        assert asked[0] == pytest.approx(24_000, rel=0.5) or recipe.fresh_epochs == 1
