"""The report's numbers come from the study's files and are right."""

import json
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from PIL import Image

from tests.helpers.written_study import write_leaderboard, write_study
from vqa.question import Question
from vqa.report import facts
from vqa.results.folder import StudyFolder
from vqa.results.predictions import Prediction
from vqa.results.trials import TrialRow, read_trials


def said(name: str, letter: str, gold: str, kind: str = "") -> Prediction:
    return Prediction(name, letter, (0.7, 0.1, 0.1, 0.1), 1.0, gold, kind)


def test_the_ranking_has_95_percent_intervals(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, 4)
    names, rows = facts.leaderboard(StudyFolder(tmp_path))
    assert names == ["optimizer.lr", "lora.r"]
    assert rows[0]["nll"] == (0.4, pytest.approx(0.0588, abs=1e-4))  # 1.96 x 0.03
    assert rows[0]["tied"] is True
    assert rows[3]["accuracy"] == (None, 0.0)  # pruned before its first fold ended


def test_accuracy_is_given_by_type_and_by_size(tmp_path: Path) -> None:
    predictions, questions = [], {}
    for i, side in enumerate((10, 10, 20, 20, 30, 30, 40, 40)):
        path = tmp_path / f"{i}.png"
        Image.new("RGB", (side, side)).save(path)
        questions[str(i)] = Question(str(i), path, "", "", ("", "", "", ""), "a")
        predictions.append(said(str(i), "a" if side < 40 else "b", "a", "colour" if i % 2 else "shape"))
    sizes = facts.by_size(predictions, questions)
    assert [(s.name, s.n, s.accuracy) for s in sizes] == [
        ("10 × 10 – 20 × 20", 4, 1.0),
        ("30 × 30", 2, 1.0),
        ("40 × 40", 2, 0.0),
    ]
    kinds = facts.by_kind(predictions)
    assert [(s.name, s.n, s.accuracy) for s in kinds] == [("colour", 4, 0.75), ("shape", 4, 0.75)]
    assert kinds[0].low < 0.75 < kinds[0].high
    assert facts.by_size(predictions, {}) == []


def test_the_confusion_table_counts_answers_by_right_letter() -> None:
    table = facts.confusion_table([said("1", "a", "a"), said("2", "b", "a"), said("3", "b", "b")])
    assert table["columns"] == ["a", "b", "c", "d"]
    assert table["rows"][0] == ("a", [(1, 0.5), (1, 0.5), (0, 0.0), (0, 0.0)])
    assert table["answered"][:2] == [pytest.approx(1 / 3), pytest.approx(2 / 3)]


def test_folds_that_order_the_trials_alike_agree_fully(tmp_path: Path) -> None:
    write_leaderboard(tmp_path, 6)
    trials = read_trials(tmp_path / "leaderboard.csv")
    assert facts.fold_agreement(StudyFolder(tmp_path), trials) == {
        "tau": pytest.approx(1.0),
        "folds": 3,
        "trials": 5,
    }
    assert facts.fold_agreement(StudyFolder(tmp_path), trials[:2]) is None


def test_a_final_run_is_matched_with_the_trial_it_came_from(tmp_path: Path) -> None:
    final = write_study(tmp_path)
    trials = read_trials(tmp_path / "leaderboard.csv")
    runs = facts.long_runs(StudyFolder(tmp_path), trials)
    assert [(run["name"], run["trial"].number) for run in runs] == [("final", 0)]
    assert facts.rank_correlation(runs) is None
    for number in (1, 2):  # two more finals, of other trials and with the order kept
        other = tmp_path / f"final_{number}"
        (other / ".hydra").mkdir(parents=True)
        config = OmegaConf.load(final / ".hydra/config.yaml")
        config.optimizer.lr, config.lora.r = (
            trials[number].parameters[k] for k in ("optimizer.lr", "lora.r")
        )
        OmegaConf.save(config, other / ".hydra/config.yaml")
        (other / "metrics.json").write_text(json.dumps({"nll": 0.6 + number, "accuracy": 0.7}))
        (other / "manifest.json").write_text("{}")
    assert facts.rank_correlation(facts.long_runs(StudyFolder(tmp_path), trials)) == pytest.approx(1.0)


def row(number: int, nll: float, tied: bool, **doubts: Any) -> TrialRow:
    return TrialRow(number, "COMPLETE", 3, nll, 0.02, 0.9, 0.01, 1.0, {}, tied, **doubts)


def test_the_first_screen_says_what_is_not_told_apart_and_what_to_expect() -> None:
    ranking = [row(3, 0.41, True, corrected=0.43), row(1, 0.42, True), row(0, 0.6, False)]
    english, korean = facts.doubts(ranking) or ("", "")
    assert english == (
        "2 of 3 complete trials are not told apart (3, 1): take any of them. Expected NLL of the best, "
        "corrected for its having been picked: 0.430 (as measured: 0.410). Noise of training the same "
        "configuration again: "
        "not measured (hydra.sweeper.confirm)."
    )
    assert "3개 중 2개(3, 1)" in korean
    assert facts.doubts([]) is None
    ranking = [row(0, 0.4, True, retraining_sd=0.06, trainings=3), row(1, 0.9, False)]
    alone, _ = facts.doubts(ranking) or ("", "")
    assert alone.startswith("Trial 0 is better than every other complete trial (1).")
    assert alone.endswith("moves its NLL by 0.060 (1 s.d.); it was trained 3 times.")
