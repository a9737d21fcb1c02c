"""The study that a search's workers share: where it is kept, who may join it, and what becomes of a worker's trial.

Optuna does the searching: its samplers choose, its storages keep, its heartbeats notice a worker that died. This is the
one door to it.

A study holds what its answers depend on: the hashes of best.pt, of the photographs and of the code, the space and the
settings. A worker that has others is refused. A finished trial is in the storage and stays there; one whose worker
died is tried once more.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler, TPESampler
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat  # no public name; made for storages to inherit from
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._file import LOCK_FILE_SUFFIX
from optuna.storages.journal._storage import JournalOperation
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from colorpress.core.console import warn
from colorpress.core.errors import ConfigError, InputError, Interrupted, MachineError, as_machine_error
from colorpress.core.reading import as_damaged, is_plain

Objective = Callable[[optuna.Trial], Sequence[float]]
# Directions of every study here: bytes, milliseconds and lost colour all have to fall.
OBJECTIVES = ("size_bytes", "latency_ms", "loss")
_MOST_RETRIES = 1
# Candidates that an estimator knows before it chooses one: the ladder that a search starts from, then chance.
STARTUP_TRIALS = 8
# Refused candidates cost microseconds, but a space where nothing else is left must end.
_MOST_REFUSED = 200
_POLL_SECONDS = 0.5
_REPEATS = "repeats"
# Marks a trial whose point is the same network as that of an earlier one, whose number it says.
SAME_AS = "same_as"
# A study begins with its name and its directions: some 150 bytes.
_LONGEST_FIRST_LINE = 10_000
_BEGIN_ANOTHER = "begin another one: give another --study, or leave it out and say --force"
_BEGIN_IT = "begin it by `colorpress compress --study`"


class JournalWithHeartbeat(JournalStorage, BaseHeartbeat):
    """Optuna's journal file, with the heartbeats that Optuna gives to databases only.

    A trial's heartbeat is the modification time of a file beside the journal, and the time now is that of a file
    written just now, so that both come from the clock of the machine that keeps the folder.
    """

    def __init__(self, path: Path, timeout_s: int) -> None:
        super().__init__(JournalFileBackend(str(path)))
        self._beats, self._timeout_s = path.with_name(f"{path.name}.beats"), timeout_s
        self._beats.mkdir(exist_ok=True)

    def record_heartbeat(self, trial_id: int) -> None:
        """Say that the trial's worker is alive."""
        _beat(self._beats / str(trial_id))

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        if not running:
            return []
        now = _beat(self._beats / f"now-{os.getpid()}")
        return [trial._trial_id for trial in running if now - self._last_beat(trial._trial_id) > self._timeout_s]

    def _last_beat(self, trial_id: int) -> float:
        path = self._beats / str(trial_id)
        try:
            return path.stat().st_mtime
        except FileNotFoundError:
            # Its worker died before the first beat, or is about to make it: time runs from now on.
            return _beat(path)

    def get_heartbeat_interval(self) -> int:
        """Seconds between two heartbeats."""
        return _heartbeat_interval(self._timeout_s)

    def get_heartbeat_stale_trial_callback(self) -> Callable[[Study, FrozenTrial], None]:
        """What gives the trial of a dead worker to another."""
        return _make_retry()


def _beat(path: Path) -> float:
    path.write_bytes(b"")
    return path.stat().st_mtime


def _heartbeat_interval(timeout_s: int) -> int:
    return max(1, timeout_s // 4)


def _make_retry() -> RetryHeartbeatStaleTrialCallback:
    with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
        return RetryHeartbeatStaleTrialCallback(max_retry=_MOST_RETRIES)


def is_database(url: str) -> bool:
    """Whether a --study is a database, and not the path of a journal file."""
    return "://" in url


def open_storage(url: str, *, timeout_s: int, create: bool) -> BaseStorage:
    """The storage of a --study.

    Args:
        url: of a database that SQLAlchemy knows (postgresql+psycopg://..., sqlite:///...), or the path of a journal
            file, which several machines can share in a folder of a network file system.
        timeout_s: without a heartbeat, after which a trial is given to another worker.
        create: a journal file that is not there is begun; otherwise it is an error.
    Raises:
        ConfigError: the path of a study that is not there, or an unknown kind of database.
        InputError: the journal is damaged.
        MachineError: no such server, no driver for it, or the folder cannot be written.
    """
    # What matters of what it logs is said elsewhere, and errors are raised.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return _open_database(url, timeout_s) if is_database(url) else _open_journal(Path(url), timeout_s, create)


def _open_journal(path: Path, timeout_s: int, create: bool) -> BaseStorage:
    # Absolute, since the lock is a link to the journal, and a relative one would lead elsewhere.
    path = path.expanduser().absolute()
    if not create and not path.is_file():
        raise ConfigError("study", path, "no such file", _BEGIN_IT)
    _require_own_lock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Nor is a device or a pipe a journal, which has no size.
        if path.exists() and (path.stat().st_size or not path.is_file()):
            _check_journal(path)
        storage = JournalWithHeartbeat(path, timeout_s)
        for study in storage.get_all_studies():
            for trial in storage.get_all_trials(study._study_id, deepcopy=False):
                _check_trial(trial)
        return storage
    except OSError as error:
        raise as_machine_error(error, path) from error
    except (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        why = f"is damaged: {str(error)[:200] or type(error).__name__}"
        raise InputError("study", path, why, _BEGIN_ANOTHER) from error


def _require_own_lock(path: Path) -> None:
    """Refuse a journal whose lock would take the place of another file: Optuna removes one that stays for long.

    Raises:
        ConfigError: there is such a file.
    """
    lock = path.with_name(f"{path.name}{LOCK_FILE_SUFFIX}")
    # Another machine may see the folder under another path.
    if os.path.lexists(lock) and not (lock.is_symlink() and lock.readlink().name == path.name):
        why = f"would be locked by '{lock.name}' beside it, which is another file"
        raise ConfigError("study", path, why, "give another path")


def _check_journal(path: Path) -> None:
    """Refuse what is no journal of a study, and cut off the half line of a machine that lost power while it wrote.

    Nothing is changed before the first record says that the file is ours.

    Raises:
        InputError: it is something else, or damaged in front of its last line.
    """
    if not _is_ours(path):
        raise InputError("study", path, "is no journal of a study, and is left as it is", "give another path")
    lock = JournalFileSymlinkLock(str(path))
    lock.acquire()
    try:
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                json.loads(line)
            except (ValueError, RecursionError) as error:
                hint = f"remove it and what follows, or {_BEGIN_ANOTHER}"
                raise InputError("study", path, f"is damaged in line {number}", hint) from error
        if whole < len(content):
            os.truncate(path, whole)
    finally:
        lock.release()


def _is_ours(path: Path) -> bool:
    """Whether the first record of a file begins a study of our objectives."""
    if not path.is_file():
        return False
    with path.open("rb") as stream:
        line = stream.readline(_LONGEST_FIRST_LINE)
    try:
        record = json.loads(line) if line.endswith(b"\n") else None
    except (ValueError, RecursionError):
        return False
    begun = {"op_code": int(JournalOperation.CREATE_STUDY), "directions": [1] * len(OBJECTIVES)}
    return isinstance(record, dict) and begun.items() <= record.items() and {"worker_id", "study_name"} <= record.keys()


def _check_trial(trial: FrozenTrial) -> None:
    """Refuse a trial that no search wrote.

    Raises:
        ValueError: its values are not as many finite numbers as there are objectives, or its parameters do not fit.
    """
    trial._validate()
    values = trial.values if trial.state == TrialState.COMPLETE else [0.0] * len(OBJECTIVES)
    if len(values) != len(OBJECTIVES) or not all(type(value) in (int, float) for value in values):
        raise ValueError(f"trial {trial.number} has other values than a search has")
    attributes = (trial.user_attrs, trial.system_attrs, trial.system_attrs.get("fixed_params", {}))
    if not all(isinstance(each, dict) and is_plain(each) for each in attributes):
        raise ValueError(f"trial {trial.number} has other attributes than a search has")


def _open_database(url: str, timeout_s: int) -> BaseStorage:
    from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

    shown = hide_password(url)
    try:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            return RDBStorage(
                url,
                engine_kwargs={"pool_pre_ping": True},
                heartbeat_interval=_heartbeat_interval(timeout_s),
                grace_period=timeout_s,
                heartbeat_stale_trial_callback=_make_retry(),
            )
    except (ArgumentError, NoSuchModuleError, ValueError) as error:
        hint = "give the path of a journal file, or a URL such as postgresql+psycopg://user@host/name"
        raise ConfigError("study", shown, "is no database that is known", hint) from error
    except ImportError as error:
        why = f"its driver is not installed: {error}"
        raise MachineError("study", shown, why, "pip install 'psycopg[binary]' for PostgreSQL") from error
    except (SQLAlchemyError, StorageInternalError) as error:
        why = f"cannot be opened: {' '.join(str(error.__cause__ or error).split())[:200]}"
        raise MachineError("study", shown, why, "check the server, the name and the password") from error


def hide_password(url: str) -> str:
    """A --study that may be shown."""
    if not is_database(url):
        return url
    head, at, tail = url.rpartition("@")
    scheme, _, credentials = head.partition("://")
    return f"{scheme}://{credentials.partition(':')[0]}@{tail}" if at else url


class NumberedSampler(TPESampler):
    """Optuna's tree-structured Parzen estimator, begun anew for each trial with a seed of the trial's number.

    So a candidate depends on the seed, its number and the trials finished before it, and on nothing else: a search that
    was interrupted goes on with the candidates it would have had, and workers do not all start with the same ones.
    With `random` it draws by chance alone, for comparison.
    """

    def __init__(self, seed: int, *, startup_trials: int = STARTUP_TRIALS, random: bool = False) -> None:
        self.seed, self.startup_trials = seed, sys.maxsize if random else startup_trials
        self._begin(seed)

    def _begin(self, seed: int) -> None:
        # Multivariate: strides, width and convolutions are chosen together.
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            super().__init__(seed=seed, n_startup_trials=self.startup_trials, multivariate=True)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        """Begin anew with the trial's seed."""
        earlier = study.get_trials(deepcopy=False)[: trial.number]
        # A trial that was stopped, by a signal or by the death of its worker, and queued again has two numbers, and
        # must not shift those behind it.
        repeats = sum(_REPEATS in each.user_attrs or "failed_trial" in each.system_attrs for each in earlier)
        order = trial.number - repeats
        # A prime factor, so that the streams of neighbouring seeds do not meet.
        self._begin((self.seed * 1_000_003 + order) % 2**32)
        super().before_trial(study, trial)


def create_study(storage: BaseStorage, name: str, sampler: BaseSampler, identity: Mapping[str, Any]) -> Study:
    """A new study of this name, or the one that is there if it is about the same.

    Raises:
        ConfigError: the one that is there is about something else.
    """
    if name in optuna.get_all_study_names(storage):  # nothing is written to one that may be about something else
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler)
    else:
        study = optuna.create_study(
            storage=storage,
            study_name=name,
            sampler=sampler,
            directions=["minimize"] * len(OBJECTIVES),
            load_if_exists=True,  # another process may be faster
        )
    if "identity" not in study.user_attrs:
        study.set_user_attr("identity", dict(identity))
    require_same(study, identity)
    return study


def join_study(storage: BaseStorage, name: str, sampler: BaseSampler) -> Study:
    """The study of this name.

    Raises:
        ConfigError: there is none.
    """
    try:
        study = optuna.load_study(storage=storage, study_name=name, sampler=sampler)
    except KeyError:
        raise ConfigError("study", name, "is not in this storage", _BEGIN_IT) from None
    if "identity" not in study.user_attrs:
        raise ConfigError("study", name, "is not ready yet", "start the worker again when the search has begun")
    return study


def require_same(study: Study, identity: Mapping[str, Any]) -> None:
    """Refuse to go on with a study that is about something else.

    Raises:
        ConfigError: with everything that differs.
    """
    # As it comes back from JSON.
    own = json.loads(json.dumps(identity))
    with as_damaged("study", study.study_name, _BEGIN_ANOTHER):
        different = list(_differences(study.user_attrs["identity"], own))
    if different:
        why = f"was begun with something else: {'; '.join(different)}"
        hint = "give what it was begun with, or begin another one: give another --study"
        raise ConfigError("study", study.study_name, why, hint)


def _differences(first: Mapping[str, Any], second: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for name in sorted({*first, *second}):
        own, other = first.get(name), second.get(name)
        if isinstance(own, Mapping) and isinstance(other, Mapping):
            yield from _differences(own, other, f"{where}{name} ")
        elif own != other:
            yield f"{where}{name} {_short(own)}, here {_short(other)}"


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."


def check_trials(study: Study, read: Callable[[FrozenTrial], object]) -> None:
    """Refuse a study that somebody edited so that a finished trial cannot be read.

    Args:
        read: what makes sense of a finished trial.
    Raises:
        InputError: it cannot.
    """
    with as_damaged("study", study.study_name, _BEGIN_ANOTHER):
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            read(trial)


def retire_own_trials(study: Study, worker: str) -> int:
    """Give up the trials that an earlier process of this run folder left running, and queue each once more.

    It must hold the folder's lock, so that there is no such process any more. The number of them.
    """
    running = study.get_trials(states=(TrialState.RUNNING,))
    left = [trial for trial in running if trial.user_attrs.get("worker") == worker]
    for trial in left:
        study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
        _make_retry()(study, trial)
    return len(left)


def work_through(
    study: Study,
    objective: Objective,
    *,
    wanted: int = 0,
    catch: tuple[type[Exception], ...] = (),
    after: Callable[[Study, FrozenTrial], None] | None = None,
) -> None:
    """Run trials until `wanted` are complete and none waits or runs, here or at another worker.

    Those of networks that were tried already are not counted, but for more than `wanted` of them: then there are hardly
    any others.

    Args:
        objective: gives the values of `OBJECTIVES`; raises `optuna.TrialPruned` for a candidate over its limits.
        catch: errors that fail a trial and not the search.
        after: called with each trial that ended here.
    """

    def run(trial: optuna.Trial) -> Sequence[float]:
        try:
            return objective(trial)
        except Interrupted:
            # A signal is no failure of the trial's own.
            study.enqueue_trial(trial.params, user_attrs={**trial.user_attrs, _REPEATS: trial.number})
            raise

    while True:
        with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
            optuna.storages.fail_stale_trials(study)
        trials = study.get_trials(deepcopy=False)
        states = [trial.state for trial in trials]
        complete, running, waiting = map(states.count, (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING))
        room = len(states) - complete - running - waiting <= _MOST_REFUSED + 20 * wanted
        repeated = sum(SAME_AS in trial.user_attrs for trial in trials if trial.state is TrialState.COMPLETE)
        if waiting or (complete - min(repeated, wanted) + running < wanted and room):
            try:
                study.optimize(run, n_trials=1, catch=catch, callbacks=[after] if after else None)
            except UpdateFinishedTrialError:
                warn("this worker was taken for dead, its candidate went to another: a longer --worker-timeout helps")
        elif running:
            time.sleep(_POLL_SECONDS)
        else:
            return
