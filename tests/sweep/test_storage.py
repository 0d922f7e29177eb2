"""The storage: what it refuses, and what restarts of the database and deaths of writers do to it."""

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy.exc import OperationalError

from benchmarks.endurance.own_postgresql import OwnPostgresql
from vqa.errors import UserError
from vqa.machine.retry import GoneError
from vqa.sweep.storage import RetryingStorage, open_storage, open_storage_to_read, shown_address


@pytest.mark.parametrize(
    "url",
    ["sqlite:////nowhere/at/all.db", "journal:/nowhere/at/all.log", "postgresql+psycopg://x@127.0.0.1:1/x",
     "postgresql+nodriver://x", "postgresql+pg8000://x@127.0.0.1:1/x"],
)  # fmt: skip
def test_a_storage_that_cannot_be_opened_is_refused_at_once(url: str) -> None:
    with pytest.raises(UserError, match=r"hydra.sweeper.storage '.*' cannot be opened: .+ Check the address"):
        open_storage(url, 600)


@pytest.mark.parametrize("begun", [False, True])
def test_tables_that_are_not_optunas_are_refused_and_not_waited_for(tmp_path: Path, begun: bool) -> None:
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute("create table studies (a int)")
        database.commit()
    url = f"sqlite:///{tmp_path}/study.db"
    with pytest.raises(UserError, match=r"study.db holds no study of Optuna: .* Move it away, or name"):
        optuna.create_study(study_name="s", storage=open_storage(url, 600, begun=begun))


def test_tables_of_another_optuna_are_refused_with_the_way_out(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    open_storage(url, 0)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute("update alembic_version set version_num = 'v9.9'")
        database.execute("update version_info set schema_version = 99")
        database.commit()
    with pytest.raises(UserError, match=r"was made by another version of Optuna: .* begin it anew"):
        open_storage(url, 600)


def test_a_storage_that_was_open_before_is_waited_for() -> None:
    with pytest.raises(GoneError, match=r"did not come back within 1 s: .+ Start it; the same command"):
        open_storage("postgresql+psycopg://x@127.0.0.1:1/x", 1, begun=True)


def test_a_password_is_not_shown() -> None:
    assert shown_address("postgresql+psycopg://me:secret@host/db") == "postgresql+psycopg://me:***@host/db"
    assert shown_address("journal:/a/study.log") == "journal:/a/study.log"


class DropsAnswers:
    """Stands in for a method: the database does what it is asked, and the answer gets lost the first time."""

    def __init__(self, method: Any) -> None:
        self.method = method
        self.calls = 0

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        self.calls += 1
        answer = self.method(*arguments, **named)
        if self.calls == 1:
            raise OperationalError("", None, Exception("server closed the connection unexpectedly"))
        return answer


def test_a_trial_whose_end_was_stored_before_the_answer_got_lost_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(storage=open_storage(f"sqlite:///{tmp_path}/s.db", 20))
    trial = study.ask()
    stored = RDBStorage.set_trial_state_values
    dropping = DropsAnswers(stored)
    monkeypatch.setattr(RDBStorage, "set_trial_state_values", lambda *a, **n: dropping(*a, **n))
    study.tell(trial, 0.5)
    assert dropping.calls == 2
    assert [(t.state, t.value) for t in study.trials] == [(TrialState.COMPLETE, 0.5)]


def test_a_trial_that_somebody_else_ended_is_refused_as_ever(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", 20)
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    study.tell(trial, 0.5)
    assert isinstance(storage, RetryingStorage)
    with pytest.raises(optuna.exceptions.UpdateFinishedTrialError):
        storage.set_trial_state_values(trial._trial_id, TrialState.COMPLETE, [0.1])


def test_a_full_disk_is_said_to_be_full_and_not_waited_for(tmp_path: Path) -> None:
    storage = open_storage(f"sqlite:///{tmp_path}/s.db", 600)
    assert isinstance(storage, RetryingStorage)
    study = optuna.create_study(storage=storage)

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def stop_growing(connection: Any, _: object) -> None:  # SQLite says the same when the disk is full
        [pages] = connection.execute("PRAGMA page_count").fetchone()
        connection.execute(f"PRAGMA max_page_count = {pages}")

    def fill() -> None:
        for number in range(1000):
            study.set_user_attr(f"name {number}", "x" * 1000)

    storage.engine.dispose()
    began = time.monotonic()
    with pytest.raises(GoneError, match=r"s.db cannot be written: .*disk is full. Free some space"):
        fill()
    assert time.monotonic() - began < 60


def test_reading_makes_no_file_and_writes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/s.db"
    with pytest.raises(UserError, match=r"does not exist; has the study been started\?"):
        open_storage_to_read(url)
    with pytest.raises(UserError, match="does not exist"):
        open_storage_to_read(f"journal:{tmp_path}/s.log")
    assert not list(tmp_path.iterdir())
    optuna.create_study(study_name="s", storage=open_storage(url, 1)).ask()
    read = optuna.load_study(study_name="s", storage=open_storage_to_read(url))
    assert len(read.trials) == 1
    with pytest.raises(UserError, match="cannot be written: attempt to write a readonly database"):
        read.ask()
    assert len(optuna.load_study(study_name="s", storage=open_storage_to_read(url)).trials) == 1


def test_a_writer_of_the_journal_that_dies_leaves_no_lock_and_no_half_line(tmp_path: Path) -> None:
    path = tmp_path / "study.log"
    study = optuna.create_study(study_name="s", storage=open_storage(f"journal:{path}", 1))
    study.ask()
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"work')  # and then it was killed
    began = time.monotonic()
    other = optuna.load_study(study_name="s", storage=open_storage(f"journal:{path}", 1))
    other.ask()
    assert time.monotonic() - began < 5
    assert len(other.trials) == len(study.trials) == 2


@pytest.fixture
def server() -> Iterator[OwnPostgresql]:
    with OwnPostgresql() as running:
        yield running


@pytest.mark.service
@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_postgresql_is_sat_out_in_the_middle_of_a_trial(
    server: OwnPostgresql, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    study = optuna.create_study(study_name="s", storage=open_storage(server.url, 60))
    trial = study.ask()
    server.stop(mode)
    back = threading.Timer(1.5, server.start)
    back.start()
    trial.report(0.5, 1)
    study.tell(trial, 0.4)
    back.join()
    assert [(t.state, t.value, t.intermediate_values) for t in study.trials] == [
        (TrialState.COMPLETE, 0.4, {1: 0.5})
    ]
    assert "does not answer" in caplog.text
    assert "***" not in caplog.text
