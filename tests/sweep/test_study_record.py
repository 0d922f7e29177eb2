from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlflow
import pytest
from omegaconf import DictConfig, OmegaConf

from vqa.config.settings import TrackingSettings
from vqa.errors import UserError
from vqa.sweep.study_record import close_study, open_study, record_study
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import NullRun

LEADERBOARD = """trial,state,folds,nll,nll_se,accuracy,accuracy_se,seconds,lora.r,tied_with_best
1,COMPLETE,3,0.30,0.02,0.90,0.01,10.0,8,true
0,COMPLETE,3,0.35,0.02,0.88,0.01,10.0,16,true
"""

COLUMNS = "trial,state,folds,nll,nll_se,accuracy,accuracy_se,seconds,optimizer.lr,lora.r,tied_with_best"
FULL_LEADERBOARD = f"""{COLUMNS}
2,COMPLETE,3,0.30,0.02,0.90,0.01,10.0,0.001,8,true
0,COMPLETE,3,0.35,0.02,0.88,0.01,10.0,0.004,16,true
3,COMPLETE,3,0.50,0.02,0.80,0.01,10.0,0.0005,8,false
1,COMPLETE,3,0.60,0.02,0.78,0.01,10.0,0.01,16,false
4,PRUNED,1,0.70,,0.70,,5.0,0.009,8,
5,FAIL,0,,,,,1.0,0.02,16,
"""


class KeptRun(NullRun):
    """Remembers what a run was given."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}
        self.files: list[str] = []

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.numbers.update(values)

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()
        self.files.append(f"{folder}/{path.name}" if folder else path.name)


def test_a_study_is_recorded_with_its_tables_pictures_and_winner(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text(LEADERBOARD)
    (tmp_path / "best.yaml").write_text("lora: {r: 8}")
    (tmp_path / "report.html").write_text("<p>")
    run = KeptRun()
    record_study(run, tmp_path)
    assert run.files == [
        "leaderboard.csv",
        "best.yaml",
        "report.html",
        "plots/optimisation_history.png",
        "plots/parallel_coordinates.png",
    ]
    expected: dict[str, Any] = {"trials": 2, "nll": 0.30, "accuracy": 0.90, "best_trial": 1}
    assert expected.items() <= run.numbers.items()


def test_a_study_without_results_is_recorded_empty(tmp_path: Path) -> None:
    run = KeptRun()
    record_study(run, tmp_path)
    assert (run.files, run.numbers) == ([], {})


def test_a_broken_leaderboard_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text("trial\n1\n")
    with pytest.raises(UserError, match="lacks the column"):
        record_study(KeptRun(), tmp_path)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated database for the file: making one takes three seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_study(study_config(path), path.parent / "first")
    return path


def stored(database: Path, run_id: str | None) -> Any:
    return mlflow.MlflowClient(f"sqlite:///{database}?timeout=60").get_run(run_id)


def study_config(database: Path, enabled: bool = True) -> DictConfig:
    tracking = {"enabled": enabled, "uri": f"sqlite:///{database}", "experiment": "${study}"}
    tracking |= {"store": "mlflow", "mode": "online"}
    return OmegaConf.create({"study": "demo", "tracking": tracking | {"parent_run_id": None}})


def test_a_study_is_one_run_with_its_tables_plots_and_best_scores(database: Path, tmp_path: Path) -> None:
    folder, config = tmp_path / "demo", study_config(database)
    run_id = open_study(config, folder)
    assert open_study(config, folder) == run_id
    (folder / "leaderboard.csv").write_text(FULL_LEADERBOARD)
    (folder / "best.yaml").write_text("lora: {r: 8}\n")
    close_study(config, folder)
    run = stored(database, run_id)
    assert (run.info.run_name, run.info.status, run.data.tags["vqa.kind"]) == ("demo", "FINISHED", "study")
    assert run.data.metrics["nll"] == pytest.approx(0.30)
    assert run.data.metrics["best_trial"] == 2
    assert (run.data.metrics["trials"], run.data.metrics["trials_pruned"]) == (6, 1)
    artifacts = Path(run.info.artifact_uri)
    assert {path.name for path in artifacts.iterdir()} == {"leaderboard.csv", "best.yaml", "plots"}
    assert len(list((artifacts / "plots").iterdir())) == 4


def test_a_finished_study_recorded_again_changes_no_study_file(database: Path, tmp_path: Path) -> None:
    folder, config = tmp_path / "demo", study_config(database)
    open_study(config, folder)
    (folder / "leaderboard.csv").write_text(FULL_LEADERBOARD)
    close_study(config, folder)
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")}
    open_study(config, folder)
    close_study(config, folder)
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*")} == before


@pytest.mark.parametrize(("state", "status"), [("COMPLETE", "KILLED"), ("KILLED", "RUNNING")])
def test_killed_trials_do_not_say_running_for_ever(
    database: Path, tmp_path: Path, state: str, status: str
) -> None:
    config, folder = study_config(database), tmp_path / "demo"
    tracker = open_tracker(
        TrackingSettings(
            True, "mlflow", f"sqlite:///{database}", "demo", "online", open_study(config, folder)
        )
    )
    trial = tracker.run("trial", "trial").__enter__()  # and then kill -9
    fold = tracker.run("fold", "fold", parent_run_id=trial.run_id).__enter__()
    final = tracker.run("final", "final").__enter__()
    close_study(config, folder, state)
    assert [stored(database, run.run_id).info.status for run in (trial, fold)] == [status, status]
    assert stored(database, final.run_id).info.status == "RUNNING"


def test_an_untracked_study_leaves_no_trace(database: Path, tmp_path: Path) -> None:
    config = study_config(database, enabled=False)
    assert open_study(config, tmp_path) is None
    close_study(config, tmp_path)
    assert list(tmp_path.iterdir()) == []
