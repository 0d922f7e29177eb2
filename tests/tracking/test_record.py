from pathlib import Path

from vqa.config.settings import TrackingSettings
from vqa.results.folder import flatten
from vqa.tracking.mlflow_runs import open_tracker
from vqa.tracking.record import NullTracker


def test_without_tracking_nothing_is_kept(tmp_path: Path) -> None:
    tracker = open_tracker(
        TrackingSettings(False, "mlflow", f"sqlite:///{tmp_path}/m.db", "x", "online", None)
    )
    assert isinstance(tracker, NullTracker)
    tracker.prepare()
    with tracker.run("t", "trial", tmp_path) as run:
        run.params({"a": 1})
        run.metrics({"nll": 1.0})
        run.tags({"a": 1})
        run.artifact(tmp_path / "missing")
    assert run.run_id is None
    assert list(tmp_path.iterdir()) == []


def test_config_path_is_the_parameters_name() -> None:
    nested = {"lora": {"r": 8, "dropout": 0.05}, "words": ["가"], "empty": {}, "text": "as is", "off": False}
    assert flatten(nested) == {
        "lora.r": "8",
        "lora.dropout": "0.05",
        "words": '["가"]',
        "empty": "{}",
        "text": "as is",
        "off": "false",
    }
