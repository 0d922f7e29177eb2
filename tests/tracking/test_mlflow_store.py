"""The connection to an MLflow store, and how one that cannot be used is refused."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from vqa.config.settings import TrackingSettings
from vqa.errors import UserError
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.store import Store, _is_away


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("sqlite:////dev/null/m.db", "File exists"),
        ("http://me:pw@127.0.0.1:9", "Connection refused"),
        ("postgresql://me:pw@127.0.0.1:9/x", "Connection refused"),
        ("nonsense://x", "Model registry|tracking|unsupported|Could not"),
        ("sqlite+nodriver:///m.db", "Can't load plugin"),
        ("sqlite+aiosqlite:///m.db", "No module named 'aiosqlite'"),  # a driver that is not installed
    ],
)
def test_an_unusable_store_is_refused_with_a_way_out(uri: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)cannot be used: .*({reason}).*tracking=none") as caught:
        open_tracker(TrackingSettings(True, "mlflow", uri, "x", "online", None)).run("t", "trial")
    assert "pw" not in str(caught.value)


def test_a_store_of_another_mlflow_is_refused_with_a_way_out(tmp_path: Path) -> None:
    made, other = tmp_path / "made.db", tmp_path / "other.db"
    Store(f"sqlite:///{made}").client()
    with closing(sqlite3.connect(made)) as database:
        database.execute("update alembic_version set version_num = 'other'")
        database.commit()
    made.rename(other)  # MLflow keeps what it has opened, by its address
    tracker = open_tracker(TrackingSettings(True, "mlflow", f"sqlite:///{other}", "x", "online", None))
    with pytest.raises(UserError, match=r"cannot be used: .*version other.*mlflow db upgrade.*tracking=none"):
        tracker.prepare()


def test_a_read_only_store_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = tmp_path / "mlflow.db"
    Store(f"sqlite:///{database}").client().get_experiment_by_name("made")
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder named after this unusual address
    uri = f"sqlite:///file:{database}?mode=ro&uri=true"
    with pytest.raises(UserError, match=r"cannot be used: .*readonly database.*tracking=none"):
        open_tracker(TrackingSettings(True, "mlflow", uri, "made", "online", None)).run("t", "trial")


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (MlflowException("API request to /api failed with exception ..."), True),
        (MlflowException("503", error_code=14), True),  # TEMPORARILY_UNAVAILABLE
        (ConnectionRefusedError(), True),
        (MlflowException("no such run", error_code=1001), False),  # RESOURCE_DOES_NOT_EXIST
        (MlflowException.invalid_parameter_value("bad"), False),
    ],
)
def test_only_trouble_on_the_way_to_the_store_counts_as_away(error: Exception, away: bool) -> None:
    assert _is_away(error) is away
