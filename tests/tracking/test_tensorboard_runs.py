"""TensorBoard: what its own reader finds in the event files, and refusals."""

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from vqa.config.settings import TrackingSettings
from vqa.errors import UserError
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import Tracker


def tracker(folder: Path) -> Tracker:
    return open_tracker(TrackingSettings(True, "tensorboard", str(folder), "mine", "online", "study"))


def events(folder: Path) -> Any:
    reader = importlib.import_module("tensorboard.backend.event_processing.event_accumulator")
    found = reader.EventAccumulator(str(folder))
    found.Reload()
    return found


def text(found: Any, name: str) -> str:
    [kept] = found.Tensors(f"{name}/text_summary")
    return str(kept.tensor_proto.string_val[0].decode())


def test_runs_are_folders_with_curves_and_texts(tmp_path: Path) -> None:
    made = tracker(tmp_path)
    made.prepare()
    with made.run("trial 000", "trial", tmp_path / "t") as run:
        run.params({"lora": {"r": 8}, "storage": "postgresql://u:secret@h/d"})
        run.metrics({"nll": 0.5}, step=3)
        run.metrics({"nll": 0.25}, step=4)
        run.artifact(tmp_path / "note.txt")
        with made.run("000 fold 1", "fold", None, run.run_id) as fold:
            fold.metrics({"accuracy": 0.75})
    found = events(tmp_path / "mine/trial 000")
    assert [(event.step, event.value) for event in found.Scalars("nll")] == [(3, 0.5), (4, 0.25)]
    assert "lora.r: 8" in text(found, "settings")
    assert "secret" not in text(found, "settings")
    assert text(found, "state") == "COMPLETE"
    assert str(tmp_path / "note.txt") in text(found, "files")
    below = events(tmp_path / "mine/trial 000/000 fold 1")
    assert below.Scalars("accuracy")[0].value == 0.75


def test_a_run_that_fails_says_why_and_one_that_goes_on_adds_to_its_folder(tmp_path: Path) -> None:
    with tracker(tmp_path).run("final", "final") as run:
        run.metrics({"nll": 0.5}, step=1)
    with pytest.raises(ValueError, match="boom"), tracker(tmp_path).run("broken", "final"):
        raise ValueError("boom")
    found = events(tmp_path / "mine/broken")
    assert text(found, "state") == "FAILED"
    assert "boom" in text(found, "error")
    with tracker(tmp_path).run("final", "final") as run:
        run.metrics({"nll": 0.25}, step=2)
    assert [event.step for event in events(tmp_path / "mine/final").Scalars("nll")] == [1, 2]


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match=r"tracking=tensorboard needs .*pip install 'vqa\[tensorboard\]'"):
        tracker(tmp_path).prepare()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(UserError, match=r"tracking\.uri must be a folder that can be written, got .*runs"):
        tracker(tmp_path / "runs").prepare()
