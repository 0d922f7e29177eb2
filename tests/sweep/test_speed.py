"""A study that is planned to fit a span of time, from one small trial."""

import json
from pathlib import Path

import pytest

from tests.helpers.toy_app.harness import board_rows, run_toy, stamps, starts, trials_of
from vqa.errors import UserError

# the toy says that each fold took 1.5 s: 3 s for a trial of two folds
MINUTE = ("hydra.sweeper.budget_minutes=0.5", "hydra/sweeper/pruner=none")


def test_a_study_is_planned_from_a_small_trial_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_toy(tmp_path, *MINUTE)
    said = capsys.readouterr().out
    assert said.index("8 trials x 2 folds x 18 questions, 3 s per trial as measured") < said.index(
        "trial 0 s"
    )
    assert (tmp_path / "multirun/toy/speed/folds.csv").exists()
    assert starts(tmp_path) == [f"{number:03d}" for number in range(8)]
    assert {row["folds"] for row in board_rows(tmp_path)} == {"2"}
    metrics = json.loads((tmp_path / "multirun/toy/final/metrics.json").read_text())
    assert metrics["tuned_at"] == 2  # what follows from the plan's numbers is computed from them


def test_the_same_command_keeps_the_plan_and_more_time_adds_trials(tmp_path: Path) -> None:
    run_toy(tmp_path, *MINUTE, "hydra.sweeper.final=false")
    before = stamps(tmp_path / "multirun/toy/trials")
    plan = (tmp_path / "multirun/toy/plan.json").read_text()
    run_toy(tmp_path, *MINUTE, "hydra.sweeper.final=false")
    assert (tmp_path / "multirun/toy/plan.json").read_text() == plan
    assert stamps(tmp_path / "multirun/toy/trials") == before
    run_toy(tmp_path, *MINUTE, "hydra.sweeper.final=false", "hydra.sweeper.budget_minutes=0.6")
    assert len(trials_of(tmp_path)) == 12
    assert {row["folds"] for row in board_rows(tmp_path)} == {"2"}


def test_too_little_time_is_refused_before_any_trial(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"budget_minutes must be >= 0\.3 for 6 trials x 2 folds"):
        run_toy(tmp_path, *MINUTE, "hydra.sweeper.budget_minutes=0.1")
    assert not (tmp_path / "multirun/toy/trials").exists()


def test_a_plan_needs_a_number_of_questions_to_begin_with(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"budget.subsample must be a number .* got None; .* Take budget=trial"
    ):
        run_toy(tmp_path, *MINUTE, "budget.subsample=null")


def test_a_broken_trial_is_no_measure(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the job broke"):
        run_toy(tmp_path, *MINUTE, "fails=always")
