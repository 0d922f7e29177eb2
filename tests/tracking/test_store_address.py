import socket
from pathlib import Path

import pytest

from tests.conftest import Make
from vqa.errors import UserError
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.store import artifact_location, client_uri, probe, store_lock


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:///mlflow.db", "sqlite:///{here}/mlflow.db?timeout=60"),
        ("sqlite:////data/m.db", "sqlite:////data/m.db?timeout=60"),
        ("sqlite:///m.db?mode=ro", "sqlite:///m.db?mode=ro"),  # the user knows better
        ("sqlite://", "sqlite://"),
        ("postgresql://db/x", "postgresql://db/x"),
    ],
)
def test_sqlite_becomes_absolute_and_patient(
    uri: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert client_uri(uri) == expected.format(here=tmp_path)


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("sqlite:////data/m.db", "/data/mlruns/lora"),
        ("sqlite:////data/m.db?timeout=60", "/data/mlruns/lora"),
        ("http://host:5000", None),
    ],
)
def test_artifacts_lie_beside_the_database(uri: str, expected: str | None) -> None:
    assert artifact_location(uri, "lora") == expected


def test_an_experiments_name_stays_one_folder() -> None:
    assert artifact_location("sqlite:////data/m.db", "../a/b") == "/data/mlruns/..%2Fa%2Fb"


@pytest.mark.parametrize("uri", ["http://127.0.0.1:{port}", "postgresql+psycopg://u:p@127.0.0.1:{port}/x"])
def test_a_dead_host_is_noticed_at_once(uri: str) -> None:
    with socket.socket() as taken:  # bound but not listening: connections are refused
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(OSError, match="refused"):
            probe(uri.format(port=taken.getsockname()[1]))


def test_a_live_host_passes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        probe(f"postgresql://127.0.0.1:{server.getsockname()[1]}/x")
    probe("sqlite:///anything.db")  # nothing to reach


def test_one_store_has_one_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative, absolute = store_lock("sqlite:///m.db"), store_lock(f"sqlite:///{tmp_path}/m.db")
    assert getattr(relative, "lock_file", 1) == getattr(absolute, "lock_file", 2)


@pytest.mark.hostile
@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("MLFLOW_TRACKING_TOKEN", "http://stranger:5000"),
        ("MLFLOW_TRACKING_PASSWORD", "https://stranger/mlflow"),
        ("MLFLOW_TRACKING_USERNAME", "https://stranger"),
        ("PGPASSWORD", "postgresql://me@stranger/mlflow"),
        ("PGPASSWORD", "postgresql+psycopg://stranger/mlflow"),
        ("MYSQL_PWD", "mysql+pymysql://stranger/mlflow"),
    ],
)
def test_a_server_that_a_setting_names_is_sent_no_password(
    name: str, uri: str, settings: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings("tracking=mlflow", f"tracking.uri={uri}").tracking
    open_tracker(made)  # nothing is sent before a run begins
    monkeypatch.setenv(name, "a password")
    with pytest.raises(
        UserError, match=rf"would be sent what {name} holds; .* MLFLOW_TRACKING_URI="
    ) as caught:
        open_tracker(made)
    assert "a password" not in str(caught.value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    open_tracker(made)


@pytest.mark.hostile
def test_the_credentials_file_counts_too(
    settings: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow/credentials").write_text("[mlflow]")
    open_tracker(settings("tracking=mlflow", "tracking.uri=sqlite:///own.db").tracking)
    with pytest.raises(UserError, match=r"would be sent what .*credentials holds"):
        open_tracker(settings("tracking=mlflow", "tracking.uri=http://stranger").tracking)
