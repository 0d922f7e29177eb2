"""The final run keeps its best epoch, survives interruption, and says when something looks wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Make
from vqa.answer.score import score
from vqa.config.settings import Settings
from vqa.data.source import split_questions
from vqa.model.adapter import loaded
from vqa.model.base import load_base
from vqa.model.encode import Encoder
from vqa.question import Question
from vqa.report import plots
from vqa.results.folder import CHECKPOINT, MANIFEST
from vqa.results.metrics import nll
from vqa.results.predictions import Prediction, read_predictions
from vqa.stages import final
from vqa.stages.final import alarms, compare_with_base, run_final
from vqa.terminal import TOLD_AGAIN
from vqa.train.fit import Evaluation, FitRecord, fit


class CutError(Exception):
    """Stands for a kill."""


@pytest.fixture
def small(settings: Make) -> Settings:
    """Two epochs of four steps over 32 questions, each scored."""
    more = ["budget.subsample=32", "budget.batch_size=8", "budget.checkpoint_steps=3"]
    return settings(*more, "budget.epochs=2", "budget.evaluations_per_fit=2")


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than the small training and have tests of their own."""
    for name in ("confusion_matrix", "reliability", "learning_curve"):
        monkeypatch.setattr(plots, name, lambda *arguments: None)


def fit_and_spoil_the_end(*arguments: Any, **named: Any) -> FitRecord:
    """`fit`, but the last epoch ends with an adapter that is no good any more."""
    encoder, model, train, plan, on_evaluation, *more = arguments

    def evaluate(at: Evaluation) -> None:
        for parameter in model.parameters():
            if at.last and parameter.requires_grad:
                parameter.data.mul_(-20)
        on_evaluation(at)

    return fit(encoder, model, train, plan, evaluate, *more, **named)


def answers(letters: str, golds: str) -> list[Prediction]:
    """One prediction per letter, sure of itself."""
    sure = {"a": (0.7, 0.1, 0.1, 0.1), "b": (0.1, 0.7, 0.1, 0.1), "c": (0.1, 0.1, 0.7, 0.1)}
    pairs = enumerate(zip(letters, golds, strict=True))
    return [Prediction(str(i), a, sure.get(a, (0.1, 0.1, 0.1, 0.7)), 1.0, gold) for i, (a, gold) in pairs]


def test_the_best_epoch_is_kept_and_answers(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final, "fit", fit_and_spoil_the_end)
    metrics = run_final(small, tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    best, spoiled = (row["nll"] for row in metrics["epochs"])
    assert best < spoiled
    assert metrics["best_epoch"] == 1
    # both halves choose the first epoch, so that nothing was gained by choosing
    assert metrics["nll_unpicked"] == pytest.approx(metrics["nll"])
    assert metrics["accuracy_unpicked"] == pytest.approx(metrics["accuracy"])
    found = nll(read_predictions(tmp_path / "valid_predictions.csv"))[0]
    assert found == metrics["nll"] == pytest.approx(best, rel=1e-6)
    with loaded(load_base(small), tmp_path / "adapter"):
        encoder = Encoder(load_base(small), small.prompt, small.image)
        kept = score(encoder, split_questions(small)[0].valid, 64)
    assert nll(kept)[0] == pytest.approx(best, rel=1e-6)
    assert [(tmp_path / name).exists() for name in (MANIFEST, CHECKPOINT)] == [True, False]


@pytest.mark.usefixtures("undrawn")
def test_an_interrupted_final_run_ends_as_an_uninterrupted_one(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    expected = run_final(small, whole)
    calls: list[str] = []

    def dies_at_the_last_evaluation(*arguments: Any) -> list[Prediction]:
        calls.append(arguments[-1])
        if calls.count("held-out part") == 2:
            raise CutError
        return score(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(final, "score", dies_at_the_last_evaluation)
        with pytest.raises(CutError):
            run_final(small, cut)
    assert [(cut / name).exists() for name in (MANIFEST, CHECKPOINT)] == [False, True]
    metrics = run_final(small, cut)
    for name in ("adapter/adapter_model.safetensors", "valid_predictions.csv", "test_predictions.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    same = ("epochs", "best_epoch", "nll", "accuracy", "base_nll", "p_value_vs_base")
    assert {name: metrics[name] for name in same} == {name: expected[name] for name in same}


@pytest.mark.usefixtures("undrawn")
def test_without_test_questions_there_is_no_submission(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(final, "test_questions", lambda settings: None)
    small.budget.epochs = small.budget.evaluations_per_fit = 1
    metrics = run_final(small, tmp_path)
    assert "test" not in metrics
    assert not (tmp_path / "submission.csv").exists()
    assert (tmp_path / MANIFEST).exists()


def test_the_base_is_compared_on_the_same_rows() -> None:
    base, tuned = answers("aaaaaaaa", "abcdabcd"), answers("abcdabcd", "abcdabcd")
    found = compare_with_base(base, tuned)
    assert found["base_accuracy"] == 0.25
    assert found["base_nll"] == nll(base)[0]
    assert found["p_value_vs_base"] == pytest.approx(2 / 2**6)  # six differ, all in one direction
    assert {"base_accuracy_ci95", "base_nll_se", "base_accuracy_by_kind"} < found.keys()
    assert compare_with_base(base, base)["p_value_vs_base"] == 1.0


@pytest.mark.parametrize(
    ("valid", "test", "train", "count"),
    [
        ("abcdabcd", "abcdabcd", "abcdabcd", 0),
        ("bbbbbbab", "abcdabcd", "abcdabcd", 1),
        ("abcdabcd", "bbbbbbab", "abcdabcd", 1),
        ("abcdabcd", "bbbbbbab", "bbbbbabb", 0),  # the training labels collapse just so
        ("abcdabcd", "", "abcdabcd", 0),
    ],
)
def test_a_collapse_to_one_letter_is_an_alarm(
    valid: str, test: str, train: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    asked = [Question("", None, "", "?", ("1", "2", "3", "4"), letter) for letter in train]
    unlabelled = [Prediction(p.id, p.answer, p.p, 1.0) for p in answers(test, "a" * len(test))]
    found = alarms(answers(valid, "abcdabcd"), unlabelled, asked)
    assert len(found) == count
    assert all("of the answers are 'b'" in message for message in found)
    assert [record.getMessage() for record in caplog.records] == found
    assert all(vars(record).get(TOLD_AGAIN) for record in caplog.records)  # the end says it too
