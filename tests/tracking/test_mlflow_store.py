"""The connection to an MLflow store, and how one that cannot be used is refused."""

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
    ],
)
def test_an_unusable_store_is_refused_with_a_way_out(uri: str, reason: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)cannot be used: .*({reason}).*tracking=none") as caught:
        open_tracker(TrackingSettings(True, "mlflow", uri, "x", "online", None)).run("t", "trial")
    assert "pw" not in str(caught.value)


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
