"""Options are checked when a config is made, and travel through TOML unchanged."""

from __future__ import annotations

import tomllib
from dataclasses import fields
from pathlib import Path

import pytest

from colorpress.config import CONFIGS, OPTION_NAMES, Settings, TrainConfig, option_name
from colorpress.errors import ConfigError


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
    ],
)
def test_a_bad_value_is_refused_with_its_name_and_range(name: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        Settings.from_options({name: value})
    assert f"'--{option_name(name)}'" in str(caught.value)
    assert str(value) in str(caught.value)
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
    settings = Settings.from_options({"epochs": 3, "data": Path('odd "name"'), "learning_rate": 1e-5, "seed": 7})
    values = {name.replace("-", "_"): value for name, value in tomllib.loads(settings.to_toml()).items()}
    values["data"] = Path(values["data"])
    assert Settings.from_options(values) == settings


def test_configs_are_frozen() -> None:
    with pytest.raises(AttributeError):
        TrainConfig().epochs = 3  # type: ignore[misc]
