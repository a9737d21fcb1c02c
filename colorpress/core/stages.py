"""Stages that are done stay done: a stage runs only when its inputs, configuration or code have changed.

Each finished stage leaves a record in `<folder>/.stages/<name>.json`: the key it ran under, the hashes of the files
it wrote, and its result. Records are caches: a damaged or edited one only means that the stage runs again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from colorpress.core.console import say
from colorpress.core.errors import ConfigError, InputError
from colorpress.core.files import sha256_bytes, sha256_file, write_json
from colorpress.core.processes import is_main_process, share_answer
from colorpress.core.reading import as_damaged, read_json
from colorpress.core.source_code import hash_code

RUN_RECORD = "run.json"

# Does the work of a stage; gives the files it wrote and its JSON-ready result.
Action = Callable[[], tuple[Sequence[Path], Mapping[str, Any]]]


@dataclass(frozen=True)
class StageRecord:
    """A finished stage: what it found (`result`, JSON-ready) and the files it wrote with their hashes."""

    name: str
    key: str
    outputs: Mapping[str, str]
    result: Mapping[str, Any]
    seconds: float
    skipped: bool = False


def make_key(action: Callable[..., Any], *, inputs: Sequence[Path], settings: Mapping[str, Any]) -> str:
    """The hash of all that an action's answer depends on: input files, settings, and the code that it can reach.

    Raises:
        ConfigError: an input is no file.
    """
    hint = "name the run folder with -o or the file with --checkpoint, or make it first: `colorpress run` does all"
    for path in inputs:
        if not path.is_file():
            raise ConfigError("model", path, "no such file", hint)
    content = {
        "inputs": [sha256_file(path) for path in inputs],
        "settings": settings,
        "code": hash_code(action.__module__),
    }
    return sha256_bytes(json.dumps(content, sort_keys=True, default=str).encode())


def run_stage(folder: Path, name: str, key: str, action: Action, *, force: bool = False) -> StageRecord:
    """Run `action` unless a record says that it ran under this `key` and its files are still as it wrote them.

    Of several processes all run it, and the main one alone keeps the record.

    Args:
        folder: the run folder; files are recorded relative to it.
        force: run even when the record is current.
    """
    done = None if force else share_answer(lambda: _current_record(folder, name, key))
    if done is not None:
        say(f"{name}: up to date, skipped")
        return done
    # Until the whole run is complete again there is no run.json: its presence means complete.
    if is_main_process():
        (folder / RUN_RECORD).unlink(missing_ok=True)
    started = time.monotonic()
    files, result = action()
    main = is_main_process()
    record = StageRecord(
        name=name,
        key=key,
        outputs={str(path.relative_to(folder)): sha256_file(path) for path in files} if main else {},
        result=result,
        seconds=round(time.monotonic() - started, 2),
    )
    if main:
        values = {name: value for name, value in vars(record).items() if name != "skipped"}
        write_json(_record_path(folder, name), {**values, "sha256": _hash_record(values)})
    say(f"{name}: done in {record.seconds:.1f} s")
    return record


def forget_stage(folder: Path, name: str) -> None:
    """Remove a stage's record, so that it runs again."""
    _record_path(folder, name).unlink(missing_ok=True)


def _record_path(folder: Path, name: str) -> Path:
    return folder / ".stages" / f"{name}.json"


def _current_record(folder: Path, name: str, key: str) -> StageRecord | None:
    try:
        values = read_json(_record_path(folder, name), "record", "remove it")
        with as_damaged("record", _record_path(folder, name), "remove it"):
            # What somebody edited is no answer of the stage any more.
            if values.pop("sha256") != _hash_record(values):
                return None
            record = StageRecord(**values, skipped=True)
        current = record.key == key and all(
            sha256_file(folder / path) == digest for path, digest in record.outputs.items()
        )
    except (ConfigError, InputError, OSError):
        return None
    return record if current else None


def _hash_record(values: Mapping[str, Any]) -> str:
    # As they come back from JSON, where all keys are texts.
    as_read = json.loads(json.dumps(values, allow_nan=False))
    return sha256_bytes(json.dumps(as_read, sort_keys=True).encode())
