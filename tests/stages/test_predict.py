"""An adapter answers questions; without questions, labels or an adapter the message says what to give."""

import json
from pathlib import Path

import pytest

from tests.conftest import Compose, Make
from vqa.config.check import read_settings
from vqa.config.settings import Settings
from vqa.data.source import test_questions as questions_to_answer
from vqa.errors import UserError
from vqa.model.adapter import attached, save_adapter
from vqa.model.base import load_base
from vqa.results.predictions import Prediction, read_predictions
from vqa.stages import predict
from vqa.stages.predict import run_evaluate, run_predict
from vqa.terminal import TOLD_AGAIN


def save(settings: Settings, folder: Path) -> None:
    """An adapter that changes answers."""
    base = load_base(settings)
    with attached(base, settings.lora | {"init_lora_weights": False}, seed=5) as model:
        save_adapter(model, folder, base)


def test_the_studys_own_final_adapter_is_the_default(settings: Make, tmp_path: Path) -> None:
    made = settings("stage=predict", f"env.output_root={tmp_path}", "study=mine", "budget.test_limit=6")
    save(made, tmp_path / "mine/final/adapter")
    metrics = run_predict(made, tmp_path)
    asked = questions_to_answer(made) or []
    lines = (tmp_path / "submission.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["id", *(q.id for q in asked)]
    assert metrics["n"] == len(asked) == 6
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["adapter"] == str(tmp_path / "mine/final/adapter")
    assert not (tmp_path / "base_predictions.csv").exists()


def test_a_named_adapter_is_measured_beside_the_base(settings: Make, tmp_path: Path) -> None:
    made = settings("stage=evaluate", f"adapter={tmp_path}/elsewhere", f"env.output_root={tmp_path}")
    save(made, tmp_path / "elsewhere")
    metrics = run_evaluate(made, tmp_path)
    assert {"accuracy", "nll", "base_accuracy", "base_nll", "p_value_vs_base", "rows_per_s"} < metrics.keys()
    tuned, base = (read_predictions(tmp_path / f"{name}_predictions.csv") for name in ("test", "base"))
    assert [p.id for p in tuned] == [p.id for p in base]
    assert [p.p for p in tuned] != [p.p for p in base]
    assert not (tmp_path / "submission.csv").exists()


def test_adaptation_gets_its_training_questions_and_is_reported(settings: Make, tmp_path: Path) -> None:
    more = ["adapt=lora_align", "adapt.batch_size=8", "adapt.source_size=8", "budget.test_limit=12"]
    made = settings("stage=evaluate", f"adapter={tmp_path}/adapter", f"env.output_root={tmp_path}", *more)
    save(made, tmp_path / "adapter")
    facts = run_evaluate(made, tmp_path)["adapt"]
    assert (facts["method"], facts["steps"]) == ("lora_align", 2)
    assert {"frozen_accuracy", "frozen_nll", "p_value_vs_frozen", "seconds_per_row"} < facts.keys()
    assert json.loads((tmp_path / "metrics.json").read_text())["adapt"] == facts


def test_a_missing_adapter_is_named_with_the_place_it_was_looked_for(settings: Make, tmp_path: Path) -> None:
    made = settings("stage=predict", f"env.output_root={tmp_path}", "study=mine")
    with pytest.raises(
        UserError, match=r"adapter=.*/mine/final/adapter: no adapter_config.json there; train"
    ):
        run_predict(made, tmp_path / "out")


def test_without_test_questions_there_is_nothing_to_do(composed: Compose, tmp_path: Path) -> None:
    csv = ["data=csv", "data.train_csv=train.csv", "data.image_root=."]
    made = read_settings(composed("stage=predict", "tracking=none", *csv))
    with pytest.raises(UserError, match=r"stage=predict needs questions: give data=csv data.test_csv=FILE"):
        run_predict(made, tmp_path)


def test_evaluation_without_labels_is_refused(
    settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    made = settings("stage=evaluate", "budget.test_limit=4")
    first, *others = questions_to_answer(made) or []
    monkeypatch.setattr(predict, "test_questions", lambda settings: [replace(first, answer=None), *others])
    with pytest.raises(UserError, match=r"stage=evaluate needs labels, but 1 of 4 questions have none; give"):
        run_evaluate(made, tmp_path)


def test_an_alarm_is_left_to_the_end_of_the_run(caplog: pytest.LogCaptureFixture) -> None:
    rows = [Prediction(f"q{i}", "b", (0.1, 0.7, 0.1, 0.1), 1.0) for i in range(60)]
    (alarm,) = predict._metrics(rows, [])["alarms"]
    assert caplog.messages == [alarm]
    assert all(vars(record).get(TOLD_AGAIN) for record in caplog.records)
