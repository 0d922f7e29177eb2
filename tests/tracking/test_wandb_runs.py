"""Weights & Biases: what a run is told, parts within it, refusals; with a stand-in, and for real offline."""

import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vqa.config.settings import TrackingSettings
from vqa.errors import UserError
from vqa.progress import Pruned
from vqa.tracking import wandb_runs
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import Tracker


class Kept(dict[str, Any]):
    def update(self, values: Any, allow_val_change: bool = False) -> None:  # type: ignore[override]
        super().update(values)


class FakeRun:
    """Stands in for W&B's run: remembers what it was told."""

    def __init__(self, **given: Any) -> None:
        self.given, self.id = given, given["id"]
        self.config, self.summary = Kept(), Kept()
        self.logged: list[dict[str, float]] = []
        self.axes: dict[str, str] = {}
        self.files: list[tuple[str, str]] = []
        self.exit_code: int | None = None

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def define_metric(self, name: str, step_metric: str) -> None:
        self.axes[name] = step_metric

    def log_artifact(self, artifact: Any) -> None:
        self.files += artifact.files

    def finish(self, exit_code: int) -> None:
        self.exit_code = exit_code


class FakeArtifact:
    def __init__(self, name: str, type: str) -> None:
        self.files: list[tuple[str, str]] = []

    def add_file(self, path: str, name: str) -> None:
        self.files.append((path, name))

    add_dir = add_file


class FakeError(Exception):
    pass


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module `wandb`; `runs` are those that were begun, `trouble` is what its server says."""
    fake = SimpleNamespace(
        runs=[], trouble=None, Artifact=FakeArtifact, errors=SimpleNamespace(Error=FakeError)
    )
    fake.Settings = lambda **given: given

    def login(**given: Any) -> None:
        if fake.trouble:
            raise FakeError(fake.trouble)

    def init(**given: Any) -> FakeRun:
        login()
        fake.runs.append(FakeRun(**given))
        return fake.runs[-1]  # type: ignore[no-any-return]

    fake.login, fake.init = login, init
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(wandb_runs, "_open_runs", {})
    return fake


def tracker(folder: Path, mode: Any = "offline", parent: str | None = None) -> Tracker:
    return open_tracker(TrackingSettings(True, "wandb", str(folder), "mine", mode, parent))


def test_a_run_keeps_settings_numbers_labels_and_files(wandb: Any, tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("n")
    (tmp_path / "adapter").mkdir()
    with tracker(tmp_path, parent="study1").run("trial 000", "trial", tmp_path / "t") as run:
        run.params({"lora": {"r": 8}, "storage": "postgresql://u:secret@h/d"})
        run.metrics({"nll": 0.5}, step=3)
        run.metrics({"nll": 0.4})
        run.tags({"vqa.trial": 0})
        run.artifact(tmp_path / "note.txt", "notes")
        run.artifact(tmp_path / "adapter")
    [kept] = wandb.runs
    assert kept.config["lora.r"] == "8"
    assert "secret" not in str(kept.config)
    assert kept.logged == [{"nll": 0.5, "step": 3.0}, {"nll": 0.4}]
    assert kept.axes == {"nll": "step"}
    assert kept.summary == {"vqa.trial": "0", "state": "COMPLETE"}
    assert [name for _, name in kept.files] == ["notes/note.txt", "adapter"]
    assert kept.exit_code == 0
    asked = {key: kept.given[key] for key in ("project", "name", "group", "job_type", "mode", "dir")}
    assert asked == {
        "project": "mine",
        "name": "trial 000",
        "group": "study1",
        "job_type": "trial",
        "mode": "offline",
        "dir": str(tmp_path),
    }
    assert kept.given["settings"]["x_disable_meta"]  # W&B would send the command line


def test_a_fold_is_kept_within_the_run_of_its_trial(wandb: Any, tmp_path: Path) -> None:
    made = tracker(tmp_path)
    with made.run("trial 000", "trial") as trial:
        with made.run("000 fold 1", "fold", None, trial.run_id) as fold:
            fold.metrics({"nll": 0.5}, step=2)
        assert wandb.runs[0].exit_code is None
    [kept] = wandb.runs
    assert kept.logged == [{"fold 1/nll": 0.5, "fold 1/step": 2.0}]
    assert kept.summary == {"fold 1/state": "COMPLETE", "state": "COMPLETE"}


def test_a_run_goes_on_under_its_id(wandb: Any, tmp_path: Path) -> None:
    for _ in range(2):
        with tracker(tmp_path).run("final", "final", tmp_path / "final"):
            pass
    first, second = wandb.runs
    assert first.id == second.id
    assert second.given["resume"] == "allow"


@pytest.mark.parametrize(
    ("error", "state", "code"), [(Pruned("x"), "PRUNED", 0), (ValueError("x"), "FAILED", 1)]
)
def test_the_end_says_how_the_run_ended(
    wandb: Any, tmp_path: Path, error: Exception, state: str, code: int
) -> None:
    with pytest.raises(type(error)), tracker(tmp_path).run("trial 000", "trial"):
        raise error
    assert (wandb.runs[0].summary["state"], wandb.runs[0].exit_code) == (state, code)


def test_a_missing_key_says_what_to_do(wandb: Any, tmp_path: Path) -> None:
    wandb.trouble = "No API key configured."
    match = r"tracking=wandb: No API key configured\. Run `wandb login`, or .* tracking.mode=offline"
    with pytest.raises(UserError, match=match):
        tracker(tmp_path, "online").prepare()
    with pytest.raises(UserError, match=match):
        tracker(tmp_path, "online").run("final", "final")
    tracker(tmp_path).prepare()


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"tracking=wandb needs W&B .*pip install 'vqa\[wandb\]'"):
        tracker(tmp_path).prepare()
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())  # the folder wandb/ of earlier runs
    with pytest.raises(UserError, match=r"pip install 'vqa\[wandb\]'"):
        tracker(tmp_path).prepare()


@pytest.mark.extras
def test_wandb_itself_keeps_an_offline_run_on_this_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(wandb_runs, "_open_runs", {})
    (tmp_path / "note.txt").write_text("n")
    made = tracker(tmp_path)
    with made.run("trial 000", "trial", tmp_path / "t") as run:
        run.params({"lora": {"r": 8}})
        run.metrics({"nll": 0.5}, step=3)
        with made.run("000 fold 0", "fold", None, run.run_id) as fold:
            fold.metrics({"nll": 0.4})
        run.artifact(tmp_path / "note.txt")
    [written] = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert str(run.run_id) in written.name
    deadline = time.monotonic() + 10
    while b"note.txt" not in written.read_bytes() and time.monotonic() < deadline:
        time.sleep(0.05)  # W&B's own process writes it to the end
    content = written.read_bytes()
    for word in (b"lora.r", b"nll", b"fold 0/nll", b"trial 000"):
        assert word in content
