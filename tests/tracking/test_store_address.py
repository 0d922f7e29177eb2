import socket
from pathlib import Path

import pytest

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
