"""The study that workers share: candidates by seed alone, interruptions, killed workers, other data refused."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import optuna
import pytest
from optuna.study import Study
from optuna.trial import TrialState

from colorpress.core.errors import ConfigError, InputError, Interrupted, MachineError
from compress.students.search_study import (
    SAME_AS,
    NumberedSampler,
    check_trials,
    create_study,
    hide_password,
    join_study,
    open_storage,
    require_same,
    retire_own_trials,
    work_through,
)

ROOT = Path(__file__).resolve().parent.parent
IDENTITY = {"best.pt": "ab" * 32, "settings": {"crops": 100, "sizes": (1, 2)}}
# A worker whose trials take long enough to be killed in; it says when each begins.
WORKER = """
import sys, time
from compress.students.search_study import *
study = join_study(open_storage(sys.argv[1], timeout_s=2, create=False), "s", NumberedSampler(1))
def objective(trial):
    trial.set_user_attr("worker", sys.argv[2])
    x = trial.suggest_float("x", 0, 1)
    print("begun", trial.number, flush=True)
    time.sleep(float(sys.argv[3]))
    return x, 1 - x, 0.0
work_through(study, objective, wanted=int(sys.argv[4]))
"""


def make_study(url: str, seed: int = 1, name: str = "s", timeout_s: int = 2) -> Study:
    storage = open_storage(url, timeout_s=timeout_s, create=True)
    return create_study(storage, name, NumberedSampler(seed, startup_trials=5), IDENTITY)


def toy(trial: optuna.Trial) -> tuple[float, float, float]:
    x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
    trial.set_constraint("x", x - 0.9)
    if x > 0.9:
        raise optuna.TrialPruned
    return x, y, 2 - x - y


def drawn(study: Study) -> list[dict[str, float]]:
    return [trial.params for trial in study.get_trials() if trial.state != TrialState.FAIL]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    study = make_study(str(tmp_path_factory.mktemp("study") / "journal.log"))
    work_through(study, toy, wanted=14)
    return drawn(study)


def test_the_seed_alone_decides_the_candidates(tmp_path: Path, uninterrupted: list[dict[str, float]]) -> None:
    again = make_study(str(tmp_path / "again.log"))
    work_through(again, toy, wanted=14)
    assert drawn(again) == uninterrupted
    other = make_study(str(tmp_path / "other.log"), seed=2)
    work_through(other, toy, wanted=2)
    assert drawn(other)[0] != uninterrupted[0]


@pytest.mark.parametrize("stopped_at", [0, 3, 9])
def test_an_interrupted_search_goes_on_with_the_candidates_it_would_have_had(
    stopped_at: int, tmp_path: Path, uninterrupted: list[dict[str, float]]
) -> None:
    def stopping(trial: optuna.Trial) -> tuple[float, float, float]:
        values = toy(trial)
        if trial.number >= stopped_at:
            raise Interrupted(signal.SIGINT)
        return values

    url = str(tmp_path / "journal.log")
    with pytest.raises(Interrupted):
        work_through(make_study(url), stopping, wanted=14)
    study = make_study(url)
    work_through(study, toy, wanted=14)
    assert drawn(study) == uninterrupted
    assert [trial.state for trial in study.trials].count(TrialState.FAIL) == 1


def test_a_failed_candidate_does_not_end_the_search(tmp_path: Path) -> None:
    def failing(trial: optuna.Trial) -> tuple[float, float, float]:
        if trial.number == 1:
            raise MemoryError
        return toy(trial)

    study = make_study(str(tmp_path / "journal.log"))
    work_through(study, failing, wanted=4, catch=(MemoryError,))
    states = [trial.state for trial in study.trials]
    assert states[1] == TrialState.FAIL and states.count(TrialState.COMPLETE) == 4


def test_a_space_where_all_is_refused_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refusing(trial: optuna.Trial) -> tuple[float, float, float]:
        trial.suggest_float("x", 0, 1)
        raise optuna.TrialPruned

    monkeypatch.setattr("compress.students.search_study._MOST_REFUSED", 5)
    study = make_study(str(tmp_path / "journal.log"))
    work_through(study, refusing, wanted=1)
    assert {trial.state for trial in study.trials} == {TrialState.PRUNED}


@pytest.mark.parametrize(("distinct", "expected"), [(10, 9), (2, 8)])
def test_a_network_that_was_tried_already_is_no_candidate(distinct: int, expected: int, tmp_path: Path) -> None:
    def repeating(trial: optuna.Trial) -> tuple[float, float, float]:
        if trial.number >= distinct or trial.number % 2:
            trial.set_user_attr(SAME_AS, 0)
        x = trial.suggest_float("x", 0, 1)
        return x, 1 - x, 0.0

    study = make_study(str(tmp_path / "journal.log"))
    work_through(study, repeating, wanted=5 if distinct > 5 else 4)
    assert len(study.trials) == expected


def test_something_else_is_refused_with_all_that_differs(tmp_path: Path) -> None:
    study = make_study(str(tmp_path / "journal.log"))
    require_same(study, IDENTITY)
    with pytest.raises(ConfigError) as caught:
        require_same(study, {"best.pt": "cd" * 32, "settings": {"crops": 200, "sizes": [1, 2]}, "more": 1})
    for part in ("best.pt abababababab..., here cdcdcdcdcdcd...", "settings crops 100, here 200", "more none, here 1"):
        assert part in caught.value.why
    assert "sizes" not in caught.value.why


def test_where_another_search_is_refused_its_journal_stays_as_it_is(tmp_path: Path) -> None:
    journal = tmp_path / "journal.log"
    make_study(str(journal))
    before = journal.read_bytes()
    with pytest.raises(ConfigError, match="was begun with something else"):
        create_study(open_storage(str(journal), timeout_s=2, create=True), "s", NumberedSampler(1), {"best.pt": "cd"})
    assert journal.read_bytes() == before


def test_a_study_that_is_not_there_is_not_joined(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        open_storage(str(tmp_path / "none.log"), timeout_s=2, create=False)
    storage = open_storage(str(tmp_path / "journal.log"), timeout_s=2, create=True)
    with pytest.raises(ConfigError, match="is not in this storage"):
        join_study(storage, "s", NumberedSampler(0))


@pytest.mark.parametrize(
    ("url", "error", "why"),
    [
        ("nonsense://user:secret@host/name", ConfigError, "no database that is known"),
        ("sqlite:////nowhere/at/all.db", MachineError, "cannot be opened"),
        ("/proc/none/journal.log", MachineError, "cannot write"),
    ],
)
def test_a_storage_that_cannot_be_used_is_refused_without_its_password(
    url: str, error: type[Exception], why: str
) -> None:
    with pytest.raises(error) as caught:
        open_storage(url, timeout_s=2, create=True)
    assert why in str(caught.value) and "secret" not in str(caught.value)


def test_passwords_are_not_shown() -> None:
    assert hide_password("postgresql+psycopg://me:se@cret@host/name") == "postgresql+psycopg://me@host/name"
    assert hide_password("sqlite:///a.db") == "sqlite:///a.db"
    assert hide_password("shared/me@home.log") == "shared/me@home.log"


def test_a_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    work_through(make_study(str(path)), toy, wanted=3)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code":4,"wor')
    study = make_study(str(path))
    work_through(study, toy, wanted=4)
    assert [trial.state for trial in study.trials].count(TrialState.COMPLETE) == 4


OTHER_RECORD = b'{"op_code":0,"worker_id":"w","study_name":"another program\'s","directions":[1]}\n'


@pytest.mark.parametrize(
    "content",
    [
        b"a letter without a last newline",
        b"two lines\nand half",
        os.urandom(300),
        b"[" * 5000,
        b'{"op_code":0,"wor',
        b"null\n{}",
        OTHER_RECORD + b"half",
    ],
)
def test_a_file_that_is_no_journal_of_ours_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "letter.txt"
    path.write_bytes(content)
    with pytest.raises(InputError, match="is no journal of a study, and is left as it is"):
        open_storage(str(path), timeout_s=2, create=True)
    assert path.read_bytes() == content
    assert [each.name for each in tmp_path.iterdir()] == ["letter.txt"]


def test_a_pipe_is_no_journal_and_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no journal of a study"):
        open_storage(str(tmp_path / "pipe"), timeout_s=2, create=True)
    assert [each.name for each in tmp_path.iterdir()] == ["pipe"]


def test_a_file_in_the_place_of_the_lock_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "poetry.lock").write_text("somebody else's")
    with pytest.raises(ConfigError, match=r"would be locked by 'poetry\.lock'"):
        open_storage(str(tmp_path / "poetry"), timeout_s=2, create=True)
    assert (tmp_path / "poetry.lock").read_text() == "somebody else's"


@pytest.mark.parametrize(
    "line",
    [
        b"null",
        b"[" * 5000,
        b"\0" * 40,
        b'{"op_code":99,"worker_id":"w"}',
        b'{"op_code":4,"worker_id":"w","study_id":0,"datetime_start":7}',
        b'{"op_code":4,"worker_id":"w","study_id":0,"datetime_start":null,"state":1,"values":[1,"2",3],'
        b'"datetime_complete":"2026-01-01T00:00:00"}',
        b'{"op_code":4,"worker_id":"w","study_id":0,"datetime_start":null,"state":4,"system_attrs":7}',
    ],
)
def test_a_journal_that_was_edited_is_refused_as_damaged(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "journal.log"
    make_study(str(path))
    content = path.read_bytes() + line + b"\n" + path.read_bytes()
    path.write_bytes(content)
    with pytest.raises(InputError, match="is damaged"):
        open_storage(str(path), timeout_s=2, create=True)
    assert path.read_bytes() == content


def test_a_finished_trial_that_was_edited_is_refused(tmp_path: Path) -> None:
    study = make_study(str(tmp_path / "journal.log"))
    work_through(study, toy, wanted=1)
    with pytest.raises(InputError, match="is damaged: no 'point'"):
        check_trials(study, lambda trial: trial.user_attrs["point"])


def test_what_a_killed_process_of_this_folder_left_is_begun_again_at_once(tmp_path: Path) -> None:
    study = make_study(str(tmp_path / "journal.log"), timeout_s=600)
    for worker in ("mine", "another"):
        left = study.ask()
        left.set_user_attr("worker", worker)
        left.suggest_float("x", 0, 1)
    assert retire_own_trials(study, "mine") == 1
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL, TrialState.RUNNING, TrialState.WAITING]
    assert study.trials[2].params == study.trials[0].params


def start_worker(url: str, name: str, seconds: float, wanted: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORKER, url, name, str(seconds), str(wanted)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def kill_one_of_two_workers(url: str) -> Study:
    """Two workers on one study; the one whose trial takes for ever is killed in it, the other one ends the search."""
    study = make_study(url)
    doomed = start_worker(url, "doomed", 600, 6)
    assert doomed.stdout is not None
    number = int(doomed.stdout.readline().split()[1])
    other = start_worker(url, "other", 0.2, 6)
    try:
        time.sleep(1)
        doomed.send_signal(signal.SIGKILL)
        assert doomed.wait(60) == -signal.SIGKILL
        assert other.wait(120) == 0
    finally:
        for process in (doomed, other):
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    trials = study.get_trials()
    again = [trial for trial in trials if trial.system_attrs.get("failed_trial") == number]
    assert trials[number].state == TrialState.FAIL
    assert [trial.state for trial in again] == [TrialState.COMPLETE] and again[0].params == trials[number].params
    assert {trial.state for trial in trials} == {TrialState.FAIL, TrialState.COMPLETE}
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    assert len(done) == 6 and all(trial.user_attrs["worker"] == "other" for trial in done)
    return study


def test_a_killed_workers_candidate_is_tried_once_more(tmp_path: Path) -> None:
    kill_one_of_two_workers(str(tmp_path / "journal.log"))


def test_the_same_in_a_database_file(tmp_path: Path) -> None:
    kill_one_of_two_workers(f"sqlite:///{tmp_path}/study.db")


def test_a_candidate_that_kills_every_worker_is_tried_twice_in_all(tmp_path: Path) -> None:
    url = str(tmp_path / "journal.log")
    study = make_study(url, timeout_s=1)
    for _ in range(2):
        doomed = start_worker(url, "doomed", 600, 1)
        assert doomed.stdout is not None
        doomed.stdout.readline()
        doomed.kill()
        doomed.wait()
        doomed.stdout.close()
        time.sleep(1.5)
        optuna.storages.fail_stale_trials(study)
        time.sleep(1.5)
        optuna.storages.fail_stale_trials(study)
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.FAIL]


@pytest.fixture
def postgresql() -> Iterator[str]:
    """A PostgreSQL server of its own, on a socket in a temporary folder."""
    tools = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))  # where Debian keeps them
    found = shutil.which("initdb") or next(map(str, reversed(tools)), None)
    if found is None:
        pytest.skip("PostgreSQL is not installed: apt-get install postgresql")
    pytest.importorskip("psycopg", reason="its driver is not installed: pip install 'psycopg[binary]'")
    # The server does not run as root; Debian's package makes a user for it.
    as_user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    initdb = Path(found).resolve()
    # Not tmp_path: a socket's path is short, and pytest's folders are closed to other users.
    with tempfile.TemporaryDirectory(prefix="pg-") as folder:
        if as_user:
            shutil.chown(folder, "postgres")
        control = [*as_user, str(initdb.with_name("pg_ctl")), "-D", f"{folder}/data"]
        options = f"-c listen_addresses='' -c unix_socket_directories={folder}"
        made = subprocess.run(
            [*as_user, str(initdb), "-D", f"{folder}/data", "-A", "trust", "-U", "tester"],
            capture_output=True,
            text=True,
        )
        if made.returncode:
            pytest.skip(f"PostgreSQL cannot be started here: {made.stderr.strip()[-200:]}")
        _run_silently([*control, "-o", options, "-w", "start"])
        try:
            yield f"postgresql+psycopg://tester@/postgres?host={folder}"
        finally:
            _run_silently([*control, "-m", "immediate", "stop"])


def _run_silently(command: list[str]) -> None:
    subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


@pytest.mark.slow
def test_the_same_in_postgresql(postgresql: str) -> None:
    kill_one_of_two_workers(postgresql)


@pytest.mark.slow
def test_candidates_in_postgresql_are_those_of_a_journal(
    postgresql: str, uninterrupted: list[dict[str, float]]
) -> None:
    study = make_study(postgresql)
    work_through(study, toy, wanted=14)
    assert drawn(study) == uninterrupted
