"""The rows of a comparison of trainings, `levers.json`: one or more for each lever and seed, learned once."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from colorpress.core.errors import ConfigError
from colorpress.core.files import write_json
from colorpress.core.reading import read_json

Row = dict[str, Any]


def learn_rows(
    path: Path,
    asked: Mapping[str, Any],
    levers: Sequence[str],
    seeds: int,
    learn: Callable[[str, int], Sequence[Mapping[str, Any]]],
) -> list[Row]:
    """All rows of the file, with those of each lever and seed: what it has already is not learned again.

    Args:
        asked: what all rows have in common, JSON-ready.
        learn: the rows of a lever and a seed, without the names of either.
    Raises:
        ConfigError: the file answers another question.
    """
    rows = read_rows(path, asked)
    # Before the first training, so that what is left of an interrupted one is not gone on with by another question.
    write_json(path, {"asked": asked, "rows": rows})
    known = {(row["lever"], row["seed"]) for row in rows}
    for seed, name in itertools.product(range(seeds), levers):
        if (name, seed) not in known:
            rows += [{"lever": name, "seed": seed, **row} for row in learn(name, seed)]
            write_json(path, {"asked": asked, "rows": rows})
    return rows


def read_rows(path: Path, asked: Mapping[str, Any]) -> list[Row]:
    """The rows that are in a file already; none where there is no file.

    Raises:
        ConfigError: they answer another question.
    """
    if not path.exists():
        return []
    hint = "choose another --output-dir"
    found = read_json(path, "comparison", hint)
    if not isinstance(found, dict) or found.get("asked") != json.loads(json.dumps(asked)):
        raise ConfigError("folder", path.parent, "compares other trainings", hint)
    rows: list[Row] = found["rows"]
    return rows


def choose_levers(names: Sequence[str], levers: Collection[str]) -> list[str]:
    """Those of --lever, or all.

    Raises:
        ConfigError: there is no such lever.
    """
    if unknown := sorted(set(names) - set(levers)):
        raise ConfigError("option", "--lever", f"got {unknown[0]!r}", f"give one of: {', '.join(levers)}")
    return list(names or levers)
