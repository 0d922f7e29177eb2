"""Ranking by accuracy or by calibrated NLL, and what is said when the scores disagree."""

import json
import math
from pathlib import Path

import pytest
from optuna.trial import FrozenTrial

from tests.helpers.toy_app.harness import board_rows, run_toy
from tests.sweep.test_leaderboard import frozen, write_folds
from vqa.report.verdict import verdict
from vqa.results.folder import StudyFolder
from vqa.results.predictions import Prediction
from vqa.results.trials import Range, ranges_of, read_leaderboard
from vqa.sweep.leaderboard import describe_edges, describe_ties, leaderboard_text, ranking
from vqa.sweep.settings import OBJECTIVES, Objective, question_losses

SURE = [0.97] * 9 + [0.2] * 3  # NLL 0.43, 9 of 12 right
MODEST = [0.4] * 12  # NLL 0.92, all right: p of a wrong letter is 0.2
POOR = [0.26] * 12  # NLL 1.35, all right


@pytest.fixture
def trials(tmp_path: Path) -> tuple[list[FrozenTrial], Path]:
    study = StudyFolder(tmp_path)
    for number, values in enumerate((SURE, MODEST, POOR)):
        write_folds(study.trial(number).path, {0: values}, finished=1)
    told = [sum(-math.log(p) for p in values) / 12 for values in (SURE, MODEST, POOR)]
    return [frozen(number, "COMPLETE", value) for number, value in enumerate(told)], tmp_path


@pytest.mark.parametrize(("objective", "order"), [("nll", [0, 1, 2]), ("accuracy", [1, 2, 0])])
def test_the_objective_orders_the_complete_trials(
    trials: tuple[list[FrozenTrial], Path], objective: Objective, order: list[int]
) -> None:
    standings = ranking(trials[0], trials[1], "minimize", objective)
    assert [standing.trial for standing in standings] == order
    assert {s.trial: round(s.nll or 0, 3) for s in standings} == {
        0: 0.425,
        1: 0.916,
        2: 1.347,
    }  # the contract


def test_a_disagreement_of_nll_and_accuracy_is_told(trials: tuple[list[FrozenTrial], Path]) -> None:
    by_nll = ranking(trials[0], trials[1], "minimize")
    assert "By accuracy trial 1 leads, 1.0000 against 0.7500." in describe_ties(by_nll)
    by_accuracy = ranking(trials[0], trials[1], "minimize", "accuracy")
    assert "By NLL trial 0 leads, 0.4252 against 0.9163." in describe_ties(by_accuracy)
    assert "leads" not in describe_ties(by_nll[1:2])


def test_the_leaderboard_says_what_it_is_ranked_by(trials: tuple[list[FrozenTrial], Path]) -> None:
    board = StudyFolder(trials[1]).leaderboard
    board.write_text(leaderboard_text(ranking(trials[0], trials[1], "minimize"), []))
    assert "objective" not in board.read_text()
    assert "by accuracy trial 1 leads, 1.0000 against 0.7500" in verdict({}, read_leaderboard(board))[0]
    text = leaderboard_text(ranking(trials[0], trials[1], "minimize", "accuracy"), [])
    board.write_text(text)
    first = read_leaderboard(board)[0]
    assert (first.number, first.objective, first.parameters) == (1, "accuracy", {})
    assert text.splitlines()[1].endswith(",accuracy,1.000000")
    assert "by NLL trial 0 leads, 0.4252 against 0.9163" in verdict({}, read_leaderboard(board))[0]


def test_a_temperature_that_was_fitted_elsewhere_makes_a_question_surer() -> None:
    shy = [Prediction(f"q{i}", "b", (0.2, 0.4, 0.2, 0.2), 1.0, "b") for i in range(40)]
    losses = {name: sum(question_losses(shy, name).values()) / 40 for name in OBJECTIVES}
    assert losses["nll"] == pytest.approx(-math.log(0.4))
    assert losses["calibrated_nll"] < 0.2  # every other row is right, so T is small
    assert losses["accuracy"] == 0


@pytest.mark.parametrize(
    ("value", "edge"),
    [(1e-5, "lower"), (1.2e-5, "lower"), (1e-4, None), (9e-4, "upper"), ("fast", None), (True, None)],
)
def test_a_value_at_the_edge_of_its_range_is_found_on_the_ranges_own_scale(
    value: object, edge: str | None
) -> None:
    assert Range(1e-5, 1e-3, log=True).edge_of(value) == edge


def test_ranges_are_read_from_the_terms_of_a_study() -> None:
    space = {
        "lr": "FloatDistribution(high=0.001, log=True, low=1e-05, step=None)",
        "r": "IntDistribution(high=64, log=False, low=4, step=1)",
        "image": "CategoricalDistribution(choices=('native',))",
        "alpha / r": "FloatDistribution(high=4.0, log=False, low=0.5, step=None)",
    }
    assert ranges_of({"space": space}) == {"lr": Range(1e-5, 1e-3, True), "r": Range(4, 64, False)}
    assert ranges_of({}) == {}


def test_a_study_by_accuracy_says_so_and_is_ranked_anew_by_another_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("hydra.sweeper.n_trials=3", "hydra/sweeper/pruner=none", "hydra.sweeper.final=false")
    narrow = (
        "lr=tag(log,interval(1e-5,1.5e-4))",
        "lora.r=16",
        "image=native",
        "hydra.sweeper.enqueue=[{lr: 1.4e-4}]",
    )
    run_toy(tmp_path, *words, *narrow, "hydra.sweeper.objective=accuracy")
    assert {row["objective"] for row in board_rows(tmp_path)} == {"accuracy"}
    said = capsys.readouterr().out
    assert "lr=0.00014 lies at the upper edge of 1e-05..0.00015: search wider." in said
    assert json.loads((tmp_path / "multirun/toy/.sweep.json").read_text())["objective"] == "accuracy"
    run_toy(tmp_path, *words, *narrow)
    assert "objective" not in board_rows(tmp_path)[0]
    study = StudyFolder(tmp_path / "multirun/toy")
    in_report = verdict({}, study.trials(), ranges=study.ranges())[0]
    assert "lr=0.00014 lies at the upper edge of 1e-05..0.00015: search wider." in in_report


def test_nothing_is_said_of_a_value_inside_its_range(trials: tuple[list[FrozenTrial], Path]) -> None:
    best = ranking(trials[0], trials[1], "minimize")[0]
    assert describe_edges(best, {"lr": Range(1e-5, 1e-3, True)}) == ""
