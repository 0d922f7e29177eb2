"""Several objectives: NLL beside seconds or trained weights, their Pareto front, and which trial is taken."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from tests.helpers.toy_app.harness import board_rows, run_toy, trials_of
from tests.sweep.test_leaderboard import frozen, write_folds
from tests.sweep.test_settings import GOOD
from vqa.errors import UserError
from vqa.report.report import study_charts
from vqa.results.comparison import pareto_front
from vqa.results.folder import StudyFolder
from vqa.results.trials import read_leaderboard, study_scores
from vqa.sweep.board import show_status
from vqa.sweep.final_run import winner_text
from vqa.sweep.leaderboard import describe_front, leaderboard_text, ranking, winner_of
from vqa.sweep.settings import read_settings
from vqa.sweep.study_record import record_study
from vqa.tracking.record import NullRun

PROBABILITIES = (0.8, 0.7, 0.6)
WEIGHTS = (900, 300, 500)  # trial 2 is worse than trial 1 in both


@pytest.fixture
def trials(tmp_path: Path) -> tuple[list[FrozenTrial], Path]:
    study = StudyFolder(tmp_path)
    for number, (p, weights) in enumerate(zip(PROBABILITIES, WEIGHTS, strict=True)):
        write_folds(study.trial(number).path, {0: [p] * 4}, finished=1)
        study.trial(number).adapter_size.write_text(json.dumps({"parameters": weights}))
    told = [-math.log(p) for p in PROBABILITIES]
    return [frozen(number, "COMPLETE", value) for number, value in enumerate(told)], tmp_path


@pytest.mark.parametrize(
    ("points", "front"),
    [
        ([(1, 9), (2, 3), (3, 5)], [True, True, False]),
        ([(1, 2), (1, 2)], [True, True]),  # equal ones do not beat each other
        ([(1, 2), (1, 3)], [True, False]),
        ([(1, None), (2, 2), (3, math.nan)], [None, True, None]),
        ([(1, 2, 3), (2, 1, 3), (2, 2, 2), (2, 2, 3)], [True, True, True, False]),
        ([], []),
    ],
)
def test_the_front_is_what_nothing_else_beats(points: list[Any], front: list[Any]) -> None:
    assert pareto_front(points) == front


def test_the_leaderboard_holds_the_costs_and_the_front(trials: tuple[list[FrozenTrial], Path]) -> None:
    plain = leaderboard_text(ranking(*trials, "minimize"), [])
    standings = ranking(*trials, "minimize", "nll", ["parameters", "seconds"])
    text = leaderboard_text(standings, [])
    assert "on_front" not in plain
    assert [
        line.rsplit(",", 3)[0] for line in text.splitlines()
    ] == plain.splitlines()  # nothing else changes
    StudyFolder(trials[1]).leaderboard.write_text(text)
    rows = read_leaderboard(StudyFolder(trials[1]).leaderboard)
    assert [row.costs["trainable_parameters"] for row in rows] == [900, 300, 500]
    assert [row.front for row in rows] == [True, True, False]
    assert [row.parameters for row in rows] == [{}, {}, {}]
    assert study_scores(rows)["trials_on_front"] == 2


def test_a_cost_that_no_trial_has_leaves_the_front_unknown(trials: tuple[list[FrozenTrial], Path]) -> None:
    for number in range(3):
        StudyFolder(trials[1]).trial(number).adapter_size.unlink()
    standings = ranking(*trials, "minimize", "nll", ["parameters"])
    assert [standing.front for standing in standings] == [None, None, None]
    assert leaderboard_text(standings, []).splitlines()[1].endswith(",,")


def test_the_front_and_what_is_taken_are_told(trials: tuple[list[FrozenTrial], Path]) -> None:
    standings = ranking(*trials, "minimize", "nll", ["parameters"])
    assert describe_front(standings, None).startswith(
        "Pareto front of NLL and trained weights: 0, 1. The final run takes trial 0, the best NLL on it;"
    )
    assert "takes trial 1, as hydra.sweeper.final_trial says" in describe_front(standings, 1)
    assert describe_front(ranking(*trials, "minimize"), None) == ""
    assert (winner_of(standings, 1) or standings[0]).trial == 1
    assert "# Trial 1: NLL" in winner_text(standings, {}, (), 1)
    assert "final_trial says so; trial 0 ranks first." in winner_text(standings, {}, (), 1)
    assert winner_text(standings, {}, ()) == winner_text(standings, {}, (), 0)


def test_the_studys_run_is_tagged_with_the_front(trials: tuple[list[FrozenTrial], Path]) -> None:
    class Tagged(NullRun):
        def tags(self, values: Any) -> None:
            found.update(values)

    found: dict[str, object] = {}
    board = StudyFolder(trials[1]).leaderboard
    board.write_text(leaderboard_text(ranking(*trials, "minimize", "nll", ["parameters"]), []))
    record_study(Tagged(), trials[1])
    assert found == {"vqa.pareto_front": "0, 1"}


def test_the_page_draws_the_front_in_words_too(trials: tuple[list[FrozenTrial], Path]) -> None:
    board = StudyFolder(trials[1]).leaderboard
    board.write_text(leaderboard_text(ranking(*trials, "minimize", "nll", ["parameters"]), []))
    charts = study_charts(read_leaderboard(board))
    english, in_korean = charts["front_trainable_parameters"].text
    assert "On the Pareto front, by trained weights: 1 (300, 0.357), 0 (900, 0.223)." in english
    assert "파레토 프런트" in in_korean


@pytest.mark.parametrize(
    ("value", "ranked", "costs"),
    [
        ("nll", "nll", ()),
        (["nll"], "nll", ()),
        (["accuracy", "parameters", "seconds"], "accuracy", ("parameters", "seconds")),
    ],
)
def test_an_objective_may_be_a_list(value: object, ranked: str, costs: tuple[str, ...]) -> None:
    settings = read_settings({**GOOD, "objective": value})
    assert (settings.objective, settings.costs) == (ranked, costs)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"objective": ["seconds", "nll"]}, r"or a list of it and costs \(seconds, parameters\), as"),
        ({"objective": ["nll", "memory"]}, "got .*memory"),
        ({"objective": ["nll", "seconds", "seconds"]}, "or a list of it and costs"),
        ({"objective": []}, "or a list of it and costs"),
        ({"objective": ["nll", "seconds"], "confirm": 2}, r"objective=\[nll,seconds\] it must be 0"),
        ({"objective": ["nll", "seconds"], "direction": "maximize"}, "direction=maximize"),
        ({"final_trial": -1}, "final_trial must be a whole number >= 0 or null"),
    ],
)
def test_an_objective_that_cannot_be_meant_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_settings({**GOOD, **changed})


def test_a_study_of_two_objectives_can_be_asked_about_another_and_takes_the_trial_that_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = (
        *(
            "hydra/sweeper/sampler=grid",
            "lr=1e-3",
            "image=native",
            "lora.r=8,16,32",
            "hydra.sweeper.final=false",
        ),
        "hydra/sweeper/pruner=none",
    )
    front = (*given, "hydra.sweeper.objective=[nll,parameters]")
    run_toy(tmp_path, *given)
    assert "on_front" not in board_rows(tmp_path)[0]
    before = trials_of(tmp_path)
    run_toy(tmp_path, *front)  # the same study: nothing is run again
    assert trials_of(tmp_path) == before
    rows = board_rows(tmp_path)
    assert [(row["lora.r"], row["on_front"]) for row in rows] == [
        ("32", "true"),
        ("16", "true"),
        ("8", "true"),
    ]
    small = int(rows[2]["trial"])
    with pytest.raises(UserError, match=r"final_trial must be a complete trial of study toy, got 7\."):
        run_toy(tmp_path, *front, "hydra.sweeper.final_trial=7")
    run_toy(tmp_path, *front, f"hydra.sweeper.final_trial={small}", "hydra.sweeper.final=true")
    assert json.loads((tmp_path / "multirun/toy/final/metrics.json").read_text())["r"] == 8
    capsys.readouterr()
    show_status(tmp_path / "multirun/toy")
    said = " ".join(capsys.readouterr().out.split())
    assert f"The final run takes trial {small}, as hydra.sweeper.final_trial says." in said


def test_a_pruner_beside_costs_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = ("hydra.sweeper.n_trials=3", "lora.r=8", "hydra.sweeper.final=false")
    run_toy(tmp_path, *one, "hydra.sweeper.objective=[nll,seconds]")
    assert "the pruner goes by NLL alone" in capsys.readouterr().out
