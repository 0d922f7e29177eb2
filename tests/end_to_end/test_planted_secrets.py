"""Secrets that a user has around are in no file of a finished study, and it goes on without them."""

from pathlib import Path

import pytest

from tests.helpers.command_line import vqa

pytestmark = pytest.mark.hostile
PLANTED = {
    "HF_TOKEN": "hf_PLANTEDtokenPLANTED",
    "AWS_SECRET_ACCESS_KEY": "aws/PLANTED/secret+key",
    "MY_DB_PASSWORD": "PLANTED-db-password",
    "MLFLOW_TRACKING_TOKEN": "PLANTED.mlflow.token",
}
TYPED = ["tracking.uri=http://someone:PLANTEDuripw@127.0.0.1:9/", "model.license=${oc.env:HF_TOKEN}"]
SMALL = ["tracking=none", "env.threads=1", "data.train_size=60", "data.test_size=12", "budget=smoke"]


def test_no_file_of_a_finished_study_holds_a_planted_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in PLANTED.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    study = ["-m", "+sweep=lora", "hydra.sweeper.n_trials=1", "env.output_root=out", *SMALL, *TYPED]
    outcome = vqa(monkeypatch, capsys, *study)
    assert outcome.code == 0, outcome.err
    assert vqa(monkeypatch, capsys, *study).code == 0  # masked files are no other configuration
    status = vqa(monkeypatch, capsys, "stage=status", "env.output_root=out", "study=lora", "tracking=none")
    said = outcome.out + outcome.err + status.out + status.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"manifest.json", "report.html", "study.yaml", "study.db", "run.log"} <= {
        path.name for path in files
    }
    for secret in [*PLANTED.values(), "PLANTEDuripw"]:
        holding = [path for path in files if secret.encode() in path.read_bytes()]
        assert not holding, secret
        assert secret not in said


def test_the_file_that_names_the_storage_has_no_password() -> None:
    from vqa.sweep.storage import shown_address, without_password

    url = "postgresql+psycopg://me:PLANTED@host:5432/db?sslmode=require"
    assert without_password(url) == "postgresql+psycopg://me@host:5432/db?sslmode=require"
    assert "PLANTED" not in shown_address(url)
    assert without_password("sqlite:///a/study.db") == "sqlite:///a/study.db"
