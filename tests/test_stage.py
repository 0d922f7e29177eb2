"""After a final run: report and adapter card, on disk and where the run is tracked; then what comes next."""

import re
from pathlib import Path

import mlflow
import pytest

from tests.helpers.command_line import Outcome, vqa

SMALL = ["budget=smoke", "data.train_size=60", "data.test_size=12", "env.threads=1"]


@pytest.fixture
def finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[Path, Outcome]:
    """The study's folder after a tracked final run, and what the command said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    outcome = vqa(monkeypatch, capsys, "study=s", "lang=ko", *SMALL)
    assert outcome.code == 0, outcome.err
    return tmp_path / "multirun/s", outcome


def test_a_final_run_leaves_a_report_and_a_card_and_says_what_is_next(
    finished: tuple[Path, Outcome], tmp_path: Path
) -> None:
    study, outcome = finished
    assert (study / "report.html").exists()
    assert "pipeline_tag: image-text-to-text" in (study / "final/adapter/README.md").read_text(
        encoding="utf-8"
    )
    assert "검증 정확도" in outcome.out
    assert re.search(r"^학습 후 \d+ %, 기본 모델 \d+ %, 무작위 25 %", outcome.out, re.MULTILINE)
    assert "multirun/s/report.html 열기" in outcome.out
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    run_id = (study / "final/.mlflow_run_id").read_text().strip()
    assert "report.html" in [file.path for file in client.list_artifacts(run_id)]
    assert "adapter/README.md" in [file.path for file in client.list_artifacts(run_id, "adapter")]
    assert client.get_run(run_id).info.status == "FINISHED"


def test_the_report_is_rebuilt_without_the_data_named_again(
    finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, _ = finished
    before = (study / "report.html").read_text(encoding="utf-8")
    (study / "report.html").unlink()
    outcome = vqa(monkeypatch, capsys, "study=s", "stage=report", "tracking=none", "lang=ko")
    assert outcome.code == 0, outcome.err
    assert (study / "report.html").read_text(encoding="utf-8") == before
    (study / "final/adapter").rename(study / "moved")  # adapters are large
    outcome = vqa(monkeypatch, capsys, "study=s", "stage=report", "tracking=none", "lang=ko")
    assert outcome.code == 0, outcome.err
    assert not (study / "final/adapter").exists()
    nothing = vqa(monkeypatch, capsys, "study=other", "stage=report", "tracking=none")
    assert (nothing.code, "nothing to report" in nothing.err) == (2, True)


def test_a_report_that_is_missing_is_written_by_the_same_command(
    finished: tuple[Path, Outcome], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study, _ = finished
    (study / "report.html").unlink()
    assert vqa(monkeypatch, capsys, "study=s", "lang=ko", *SMALL).code == 0
    written = (study / "report.html").stat().st_mtime_ns
    assert vqa(monkeypatch, capsys, "study=s", "lang=ko", *SMALL).code == 0
    assert (study / "report.html").stat().st_mtime_ns == written
