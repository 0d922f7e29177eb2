"""What a span of time buys, and when a pruner has too few trials."""

import logging
from pathlib import Path

import pytest

from tests.helpers.studies import settings
from vqa.errors import UserError
from vqa.sweep.time_budget import (
    Speed,
    StudyPlan,
    StudySize,
    more_time,
    plan_study,
    read_plan,
    trials_needed,
    warn_of_few_trials,
    write_plan,
)

WANTED = StudySize(n_trials=12, folds=3, subsample=450)
# one fold of 450 questions in 3 folds: 300 trained on and 150 scored three times, (2 + 1) / 3 x 450 units
SPEED = Speed(seconds=45.0, folds=3, subsample=450, epochs=1, evaluations=3)
WHOLE_MINUTES = 12 * 3 * 45.0 / 60  # the configured study on one worker


def planned(minutes: float, workers: int = 1) -> StudySize:
    return plan_study(minutes, workers, SPEED, WANTED, least_trials=8).size


def test_time_that_is_just_enough_leaves_everything_as_configured() -> None:
    assert SPEED.seconds_of(WANTED) == pytest.approx(135)
    assert planned(WHOLE_MINUTES) == WANTED
    assert planned(WHOLE_MINUTES / 2, workers=2) == WANTED


@pytest.mark.parametrize(
    ("share", "size"),
    [
        (2.0, StudySize(12, 3, 900)),  # more questions first
        (6.0, StudySize(18, 3, 1800)),  # four times as many are enough: more trials
        (99.0, StudySize(36, 3, 1800)),  # and of these three times as many
        (0.5, StudySize(12, 3, 225)),  # fewer questions
        (0.2, StudySize(12, 2, 120)),  # not fewer than 120: two folds
        (0.12, StudySize(8, 2, 120)),  # then fewer trials
    ],
)
def test_questions_give_way_first_then_folds_then_trials(share: float, size: StudySize) -> None:
    assert planned(WHOLE_MINUTES * share) == size


def test_a_plan_keeps_within_its_time() -> None:
    for minutes in (4.0, 7.3, 20.0, 55.5, 200.0):
        plan = plan_study(minutes, 2, SPEED, WANTED, 8)
        assert plan.size.n_trials * plan.trial_s / 2 / 60 <= minutes * 1.0001


def test_too_little_time_is_refused_with_what_is_needed() -> None:
    with pytest.raises(
        UserError, match=r"budget_minutes must be >= 3\.\d for 8 trials x 2 folds x 120 q.* 1\."
    ):
        planned(1.0)


def test_the_same_command_finds_its_plan_again(tmp_path: Path) -> None:
    assert read_plan(tmp_path) is None
    plan = plan_study(20, 1, SPEED, WANTED, 8)
    write_plan(tmp_path, plan)
    assert read_plan(tmp_path) == plan
    assert "12 trials x 3 folds x 333 questions" in plan.describe(1)
    assert plan.overrides() == ["budget.subsample=333", "budget.folds=3"]


def test_more_time_for_a_study_that_has_begun_means_more_trials_only() -> None:
    plan = StudyPlan(10, WANTED, 60.0)
    assert more_time(plan, 20, 2) == StudyPlan(20, StudySize(40, 3, 450), 60.0)


HYPERBAND = {"_target_": "optuna.pruners.HyperbandPruner", "min_resource": 2, "max_resource": 9}
HALVING = {"_target_": "optuna.pruners.SuccessiveHalvingPruner", "min_resource": 1, "reduction_factor": 4}
MEDIAN = {"_target_": "optuna.pruners.MedianPruner", "n_startup_trials": 4}
NONE = {"_target_": "optuna.pruners.NopPruner"}


@pytest.mark.parametrize(
    ("pruner", "needed"),
    # Hyperband: two brackets that share trials 3 to 2; the smaller one needs 3 of them, 3 x 5 / 2
    [(HYPERBAND, 8), (HALVING, 4), (MEDIAN, 6), (NONE, 1)],
)
def test_a_pruner_needs_trials_to_compare(pruner: dict[str, object], needed: int) -> None:
    assert trials_needed(pruner)[0] == needed


def test_too_few_trials_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    warn_of_few_trials(settings(n_trials=8, pruner=HYPERBAND))
    assert caplog.text == ""
    with caplog.at_level(logging.WARNING):
        warn_of_few_trials(settings(n_trials=7, pruner=HYPERBAND))
    assert "n_trials=7 is too few for the pruner: Hyperband shares them out to 2 brackets" in caplog.text
    assert "Take 8 or more, or hydra/sweeper/pruner=none" in caplog.text
