import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest

from vqa.config.settings import TrackingSettings
from vqa.errors import UserError
from vqa.progress import Paused, Pruned
from vqa.tracking.mlflow_runs import CUT_MARK, no_telemetry, open_tracker
from vqa.tracking.record import Tracker
from vqa.tracking.store import open_store


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One migrated database for the file: making one takes three seconds."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_tracker(settings(path, "made")).run("first", "trial")
    return path


@pytest.fixture(autouse=True)
def _no_outer_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def settings(database: Path, experiment: str, parent_run_id: str | None = None) -> TrackingSettings:
    return TrackingSettings(True, "mlflow", f"sqlite:///{database}", experiment, "online", parent_run_id)


def stored(database: Path, run_id: str | None) -> Any:
    return mlflow.MlflowClient(f"sqlite:///{database}?timeout=60").get_run(run_id)


@pytest.fixture
def tracker(database: Path, request: pytest.FixtureRequest) -> Tracker:
    return open_tracker(settings(database, request.node.name))


def test_a_run_keeps_settings_numbers_labels_and_files(
    tracker: Tracker, database: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("w")
    (tmp_path / "note.txt").write_text("n")
    with tracker.run("trial 000", "trial") as run:
        run.params({"lora": {"r": 8, "names": ["q", "k"]}, "model": "tiny", "budget": {"subsample": None}})
        run.metrics({"nll": 0.5, "accuracy": 0.9}, step=3)
        run.metrics({"nll": 0.4}, step=4)
        run.tags({"vqa.trial": 0})
        run.artifact(tmp_path / "adapter")
        run.artifact(tmp_path / "note.txt", "notes")
    kept = stored(database, run.run_id)
    assert kept.data.params == {
        "lora.r": "8",
        "lora.names": '["q", "k"]',
        "model": "tiny",
        "budget.subsample": "null",
    }
    assert kept.data.metrics == {"nll": 0.4, "accuracy": 0.9}
    assert {"vqa.kind": "trial", "vqa.trial": "0", "state": "COMPLETE"}.items() <= kept.data.tags.items()
    assert (kept.info.run_name, kept.info.status) == ("trial 000", "FINISHED")
    where = Path(kept.info.artifact_uri)
    assert (where / "adapter" / "weights").read_text() == "w"
    assert (where / "notes" / "note.txt").read_text() == "n"
    assert where.is_relative_to(database.parent)


def stop_by(error: BaseException) -> Callable[[], None]:
    def stop() -> None:
        raise error

    return stop


@pytest.mark.parametrize(
    ("error", "status", "state"),
    [
        (Pruned("hopeless"), "FINISHED", "PRUNED"),
        (Paused("waits"), "FINISHED", "PAUSED"),
        (KeyboardInterrupt(), "KILLED", "KILLED"),
        (SystemExit(1), "KILLED", "KILLED"),
        (RuntimeError("postgresql://me:pw@db broke"), "FAILED", "FAILED"),
    ],
)
def test_the_end_of_a_run_says_how_it_ended_and_passes_the_exception_on(
    database: Path, error: BaseException, status: str, state: str
) -> None:
    tracker = open_tracker(settings(database, "ends"))
    stop = stop_by(error)
    with pytest.raises(type(error)), tracker.run("t", "trial") as run:
        stop()
    kept = stored(database, run.run_id)
    assert (kept.info.status, kept.data.tags["state"]) == (status, state)
    expected = "RuntimeError: postgresql://me:***@db broke" if state == "FAILED" else None
    assert kept.data.tags.get("error") == expected


def test_an_interrupted_run_goes_on_as_the_same_run(
    tracker: Tracker, database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = stop_by(RuntimeError("power cut"))
    with tracker.run("final", "final", tmp_path / "final") as run:
        run.params({"lora": {"r": 8}, "device": "cpu"})
    with pytest.raises(RuntimeError), tracker.run("final", "final", tmp_path / "final"):
        stop()
    with caplog.at_level(logging.WARNING), tracker.run("final", "final", tmp_path / "final") as again:
        assert stored(database, again.run_id).info.status == "RUNNING"
        again.params({"lora": {"r": 8}, "device": "cuda", "new": 1})
    assert again.run_id == run.run_id
    kept = stored(database, run.run_id)
    assert kept.data.params == {"lora.r": "8", "device": "cpu", "new": "1"}
    assert "first values of changed parameters: device" in caplog.text
    assert (kept.info.status, kept.data.tags["state"]) == ("FINISHED", "COMPLETE")
    assert "error" not in kept.data.tags


@pytest.mark.parametrize("remembered", ["", "0" * 32])
def test_a_forgotten_run_starts_anew(
    tracker: Tracker, database: Path, tmp_path: Path, remembered: str
) -> None:
    (tmp_path / ".mlflow_run_id").write_text(remembered)
    with tracker.run("trial", "trial", tmp_path) as run:
        pass
    assert (tmp_path / ".mlflow_run_id").read_text().strip() == run.run_id


def test_runs_nest_by_parent_id(database: Path) -> None:
    tracker = open_tracker(settings(database, "nest", parent_run_id="study-id"))
    with tracker.run("trial", "trial") as trial, tracker.run("fold", "fold", None, trial.run_id) as fold:
        pass
    assert stored(database, trial.run_id).data.tags["mlflow.parentRunId"] == "study-id"
    assert stored(database, fold.run_id).data.tags["mlflow.parentRunId"] == trial.run_id


def test_long_values_are_cut_and_secrets_masked(tracker: Tracker, database: Path) -> None:
    with tracker.run("trial", "trial") as run:
        run.params(
            {"prompt": "x" * 7000, "env": {"hf_token": "abc"}, "many": {str(i): i for i in range(250)}}
        )
    params = stored(database, run.run_id).data.params
    assert len(params["prompt"]) == 6000
    assert params["prompt"].endswith(CUT_MARK)
    assert params["env.hf_token"] == "***"
    assert len(params) == 252


def test_the_environments_store_wins(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    with open_tracker(settings(tmp_path / "other.db", "env")).run("t", "trial") as run:
        pass
    assert stored(database, run.run_id).info.run_name == "t"
    assert not (tmp_path / "other.db").exists()


def test_a_relative_store_lies_in_the_working_folder_of_the_moment(
    database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(database, tmp_path / name / "mlflow.db")
        monkeypatch.chdir(tmp_path / name)
        runs.append(
            open_tracker(TrackingSettings(True, "mlflow", "sqlite:///mlflow.db", "new", "online", None)).run(
                "t", "trial"
            )
        )
    for name, run in zip(("one", "two"), runs, strict=True):
        uri = Path(stored(tmp_path / name / "mlflow.db", run.__enter__().run_id).info.artifact_uri)
        assert uri.is_relative_to(tmp_path / name / "mlruns")


def test_importing_and_switching_off_never_loads_mlflow() -> None:
    heavy = "('mlflow', 'torch', 'optuna')"
    code = f"import sys, vqa.tracking.mlflow_runs; sys.exit(any(m in sys.modules for m in {heavy}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_deleted_experiment_is_refused(database: Path) -> None:
    client = mlflow.MlflowClient(f"sqlite:///{database}?timeout=60")
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(UserError, match=r"tracking\.experiment 'gone' was deleted"):
        open_tracker(settings(database, "gone")).run("t", "trial")


def test_telemetry_is_off_unless_the_user_switched_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DO_NOT_TRACK", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    monkeypatch.delenv("HF_HUB_DISABLE_TELEMETRY", raising=False)
    no_telemetry()
    names = ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY")
    assert [os.environ[name] for name in names] == ["true", "false", "1"]


@pytest.mark.slow
def test_parallel_workers_make_one_database_and_one_experiment(tmp_path: Path) -> None:
    code = (
        "import sys; from vqa.tracking.mlflow_runs import open_tracker\n"
        "from vqa.config.settings import TrackingSettings\n"
        "made = TrackingSettings(True, 'mlflow', sys.argv[1], 'race', 'online', None)\n"
        "with open_tracker(made).run('t', 'trial') as run:\n"
        "    [run.metrics({'nll': 1.0}, step) for step in range(20)]\n"
    )
    uri = f"sqlite:///{tmp_path / 'm.db'}"
    workers = [subprocess.Popen([sys.executable, "-c", code, uri]) for _ in range(3)]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    client = mlflow.MlflowClient(uri)
    found = client.get_experiment_by_name("race")
    assert found is not None
    assert len(client.search_runs([found.experiment_id])) == 3


class Away:
    """A client of a store that does not answer until `back` is set."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.back = False

    def __getattr__(self, name: str) -> Any:
        if not self.back:
            raise mlflow.exceptions.MlflowException("API request failed with exception: connection refused")
        return getattr(self.client, name)


@pytest.fixture
def away(database: Path) -> Iterator[Away]:
    """The store of `database`, which answered once and then went away."""
    store = open_store(f"sqlite:///{database}?timeout=60")
    client = Away(store.client())
    store._client = client
    yield client
    store._client = client.client
    store.outbox._next_try = 0.0
    store.outbox.settle(0)


def test_a_store_that_goes_away_gets_its_records_when_it_is_back(
    away: Away, tracker: Tracker, database: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "note.txt").write_text("n")
    with tracker.run("trial 001", "trial", tmp_path) as run:  # made, used and ended while nobody answers
        run.params({"lora": {"r": 8}})
        run.metrics({"nll": 0.5}, step=1)
        run.artifact(tmp_path / "note.txt")
    assert run.run_id is None
    assert caplog.text.count("does not answer") == 1
    away.back = True
    open_store(f"sqlite:///{database}?timeout=60").outbox.flush()
    kept = stored(database, run.run_id)
    assert (kept.data.params, kept.data.metrics) == ({"lora.r": "8"}, {"nll": 0.5})
    assert (kept.info.status, kept.data.tags["state"]) == ("FINISHED", "COMPLETE")
    assert (Path(kept.info.artifact_uri) / "note.txt").exists()
    assert (tmp_path / ".mlflow_run_id").read_text().strip() == run.run_id


def test_a_worker_that_starts_while_the_store_is_away_trains_all_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = "http://127.0.0.1:9"
    with open_tracker(TrackingSettings(True, "mlflow", uri, "x", "online", parent_run_id="study")).run(
        "t 001", "trial"
    ) as run:
        run.metrics({"nll": 0.5})
    open_store(uri).outbox.settle(0)
    assert "never got: 1 x end of t 001, 1 x labels of t 001, 1 x metrics of t 001, 1 x t 001" in caplog.text
