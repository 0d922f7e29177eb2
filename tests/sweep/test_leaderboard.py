"""The ranking: order, scores from the trials' folders, ties."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial, TrialState, create_trial

from vqa.results.folder import StudyFolder
from vqa.sweep.leaderboard import (
    describe_scores,
    describe_ties,
    leaderboard_text,
    ranking,
    read_scores,
)


def frozen(number: int, state: str, value: float | None = None, last_step: int | None = None) -> FrozenTrial:
    reports = {} if last_step is None else {last_step: value or 0.0}
    trial = create_trial(state=TrialState[state], value=value, intermediate_values=reports)
    trial.number = number
    return trial


def write_folds(folder: Path, folds: dict[int, list[float]], finished: int) -> None:
    """Write the files of a trial: p of the right letter of each question, by fold."""
    folder.mkdir(parents=True)
    with (folder / "oof_predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "answer", "p_a", "p_b", "p_c", "p_d", "margin", "option_mass", "gold", "fold"])
        for fold, values in folds.items():
            for index, p in enumerate(values):
                rest = (1 - p) / 3
                table.writerow(
                    [f"q{fold}{index}", "b" if p > rest else "a", rest, p, rest, rest, 0, 1, "b", fold]
                )
    with (folder / "folds.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["fold", "n_train", "n_valid", "nll", "accuracy", "seconds"])
        for fold in range(finished):
            table.writerow([fold, 2, 2, 0, 0, 1.5])


def test_scores_come_from_the_finished_folds(tmp_path: Path) -> None:
    write_folds(tmp_path / "t", {0: [0.5, 0.2], 1: [0.9, 0.1]}, finished=1)
    scores = read_scores(tmp_path / "t")
    assert scores.folds == 1
    assert scores.seconds == 1.5
    assert scores.nll == pytest.approx({"q00": math.log(2), "q01": math.log(5)})
    assert scores.correct == {"q00": True, "q01": False}


def test_scores_are_read_again_when_a_fold_is_added(tmp_path: Path) -> None:
    assert read_scores(tmp_path / "t").folds == 0
    write_folds(tmp_path / "t", {0: [0.5, 0.2]}, finished=1)
    assert read_scores(tmp_path / "t").folds == 1


def test_complete_then_pruned_by_reach_then_failed_then_running(tmp_path: Path) -> None:
    trials = [
        frozen(0, "RUNNING"),
        frozen(1, "FAIL"),
        frozen(2, "PRUNED", 0.9, last_step=1),
        frozen(3, "PRUNED", 0.8, last_step=4),
        frozen(4, "PRUNED", 0.7, last_step=1),
        frozen(5, "COMPLETE", 0.6),
        frozen(6, "COMPLETE", 0.5),
        frozen(7, "COMPLETE", 0.5),
    ]
    assert [standing.trial for standing in ranking(trials, tmp_path, "minimize")] == [6, 7, 5, 3, 4, 2, 1, 0]
    assert [standing.trial for standing in ranking(trials, tmp_path, "maximize")][:3] == [5, 6, 7]


def test_a_trial_without_files_shows_optunas_values(tmp_path: Path) -> None:
    trials = [frozen(0, "COMPLETE", 0.6), frozen(1, "COMPLETE", 0.7), frozen(2, "PRUNED", 0.8, 1)]
    text = leaderboard_text(ranking(trials, tmp_path, "minimize"), ["lr"])
    rows = [line.split(",") for line in text.splitlines()]
    assert rows[0] == [
        "trial",
        "state",
        "folds",
        "nll",
        "nll_se",
        "accuracy",
        "accuracy_se",
        "seconds",
        "lr",
        "tied_with_best",
        "nll_corrected",
        "trainings",
        "retraining_sd",
        "retraining_share",
    ]
    assert rows[1][:7] == ["0", "COMPLETE", "0", "0.600000", "", "", ""]
    assert [row[9] for row in rows[1:]] == ["true", "", "false"]  # no questions, no test
    assert [row[10:] for row in rows[1:]] == [["", "1", "", ""], ["", "1", "", ""], ["", "", "", ""]]


def test_standard_errors_of_questions_without_a_picture_are_over_questions(tmp_path: Path) -> None:
    write_folds(StudyFolder(tmp_path).trial(0).path, {0: [0.5, 0.2, 0.5]}, finished=1)
    [standing] = ranking([frozen(0, "COMPLETE", 0.9)], tmp_path, "minimize")
    a, b = math.log(2), math.log(5)
    assert standing.nll == pytest.approx((2 * a + b) / 3)
    assert standing.nll_se == pytest.approx((b - a) / 3)  # sd = (b - a) / sqrt(3), over sqrt(3)
    assert standing.accuracy == pytest.approx(2 / 3)
    assert describe_scores(standing) == "NLL 0.9986 ± 0.3054, accuracy 0.6667 ± 0.3333"


def test_an_impossible_answer_has_a_finite_nll(tmp_path: Path) -> None:
    write_folds(tmp_path / "t", {0: [0.0]}, finished=1)
    assert read_scores(tmp_path / "t").nll["q00"] == pytest.approx(27.631, abs=1e-3)  # -ln 1e-12


def test_ties_are_named(tmp_path: Path) -> None:
    for number, p in enumerate([0.6, 0.6, 0.2]):
        values = [p, p + 0.02, p - 0.01 * number]
        write_folds(StudyFolder(tmp_path).trial(number).path, {0: values}, finished=1)
    trials: list[Any] = [frozen(n, "COMPLETE", v) for n, v in enumerate([0.5, 0.51, 1.6])]
    standings = ranking(trials, tmp_path, "minimize")
    assert [standing.tied for standing in standings] == [True, True, False]
    said = describe_ties(standings)
    assert said.startswith(
        "Not told apart from it (5 %, all trials together): 1. Any of them may do. Expected NLL "
    )
    assert said.endswith("Noise of training it again: not measured (hydra.sweeper.confirm).")
    assert "No other complete trial" in describe_ties(standings[:1])


def test_no_tie_is_ruled_out_where_nothing_was_compared(tmp_path: Path) -> None:
    for number in (1, 2):
        write_folds(tmp_path / StudyFolder.trial_name(number), {0: [0.5, 0.4 / number, 0.3]}, finished=1)
    trials = [frozen(number, "COMPLETE", 0.5 + number) for number in range(3)]
    trials.append(frozen(3, "PRUNED", 0.4, 1))
    said = describe_ties(ranking(trials, tmp_path, "minimize"))  # the folder of trial 0 was deleted
    assert said == "Not compared with it, for want of common questions: trials 1, 2."
