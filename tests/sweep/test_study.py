"""The shared study: claims, locks, storages."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from tests.helpers.studies import settings
from vqa.results.work import at_work
from vqa.sweep.search.promotion import PAUSED, UNTIL, is_paused
from vqa.sweep.search.space import SearchSpace
from vqa.sweep.study import SharedStudy, Tally

SPACE = SearchSpace({"lr": FloatDistribution(0.0, 1.0)}, ())
SERVER = "postgresql+psycopg://postgres@127.0.0.1:5432/"


def open_study(folder: Path, enqueued: list[dict[str, Any]] | None = None, **changed: Any) -> SharedStudy:
    storage = {"storage": f"sqlite:///{folder}/study.db"}
    return SharedStudy(settings(**{**storage, **changed}), SPACE, folder, enqueued or [])


def test_two_workers_never_hold_the_same_trial_and_never_exceed_n_trials(tmp_path: Path) -> None:
    one, two = open_study(tmp_path), open_study(tmp_path)
    claims = [worker.claim() for worker in (one, two, one, two)]
    assert [claim.trial.number for claim in claims if claim] == [0, 1, 2]
    assert claims[3] is None
    assert one.tally() == Tally(done=0, failed=0, running=3, paused=0)


def test_a_dropped_trial_is_adopted_with_its_parameters_before_a_new_one_starts(tmp_path: Path) -> None:
    first = open_study(tmp_path).claim()
    assert first is not None
    first.lock.close()  # as the kernel does when its holder dies
    again = open_study(tmp_path).claim()
    assert again is not None
    assert again.adopted
    assert (again.trial.number, again.trial.params) == (0, first.trial.params)
    assert again.trial.user_attrs == {"deaths": 1}


def test_a_trial_whose_folder_is_in_use_is_left_to_the_worker_that_lost_its_lock(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shared = open_study(tmp_path)
    first = shared.claim()
    assert first is not None
    with at_work(tmp_path / "trials/000"):  # by a worker that stands still
        (shared.locks / "0").unlink()  # a server forgets it
        claims = [shared.claim() for _ in range(3)]
        assert [claim and claim.trial.number for claim in claims] == [1, 2, None]
        said = [record.message for record in caplog.records]
        assert len(said) == 1
        assert "trial 0 has lost its lock" in said[0]
        assert "it is left to that process" in said[0]
    again = shared.claim()
    assert again is not None
    assert (again.trial.number, again.trial.user_attrs) == (0, {"deaths": 1})


def test_a_worker_that_stood_still_before_its_last_word_changes_no_result(tmp_path: Path) -> None:
    slept, other = open_study(tmp_path), open_study(tmp_path)
    claim = slept.claim()
    assert claim is not None
    claim.lock.close()  # its lock was taken away while it stood still, its job over
    again = other.claim()
    assert again is not None
    other.tell(again.trial, TrialState.COMPLETE, 0.25)
    slept.tell(claim.trial, TrialState.COMPLETE, 0.75)
    slept.tell(claim.trial, TrialState.FAIL, error="it broke")
    [trial] = other.trials()
    assert (trial.state, trial.value, trial.user_attrs) == (TrialState.COMPLETE, 0.25, {"deaths": 1})


def test_a_trial_that_dies_too_often_fails(tmp_path: Path) -> None:
    shared = open_study(tmp_path, max_retries=0)
    first = shared.claim()
    assert first is not None
    first.lock.close()
    second = shared.claim()
    assert second is not None
    assert second.trial.number == 1
    assert shared.trials()[0].state == TrialState.FAIL
    assert shared.trials()[0].user_attrs["error"] == "it was cut off 1 times, more than max_retries=0"


def test_no_trial_is_given_out_after_too_many_failures(tmp_path: Path) -> None:
    shared = open_study(tmp_path, max_failures=0)
    claim = shared.claim()
    assert claim is not None
    shared.tell(claim.trial, TrialState.FAIL, error="broken")
    claim.lock.close()
    assert shared.too_many_failures()
    assert shared.claim() is None


def test_enqueued_trials_are_queued_once(tmp_path: Path) -> None:
    for _ in range(2):
        shared = open_study(tmp_path, [{"lr": 0.5}, {"lr": 0.25}])
    assert len(shared.trials()) == 2
    claim = shared.claim()
    assert claim is not None
    assert claim.trial.params == {"lr": 0.5}


def test_a_stop_that_was_decided_but_lost_is_decided_again(tmp_path: Path) -> None:
    shared = open_study(tmp_path)
    good, bad = shared.claim(), shared.claim()
    assert good is not None
    assert bad is not None
    for claim, value in ((good, 0.1), (bad, 0.9)):
        claim.trial.report(value, 1)
        asked = claim.trial.should_prune()
    assert asked
    assert not bad.trial.should_prune()  # Optuna's own answer has changed: the rung is marked as passed
    assert shared.would_stop(bad.trial.number)
    assert not shared.would_stop(good.trial.number)


PROMOTE = {
    "_target_": "vqa.sweep.search.promotion.PromotionPruner",
    "first_rung": 1,
    "reduction_factor": 2,
    "last_rung": 4,
    "resume_every": 2,
    "least_complete": 1,
    "random_share": 0.0,
}


def test_a_trial_goes_on_at_once_where_it_deserves_it_and_else_pauses(tmp_path: Path) -> None:
    shared = open_study(tmp_path, pruner=PROMOTE)
    first, second = shared.claim(), shared.claim()
    assert first is not None
    assert second is not None
    first.trial.report(0.5, 1)
    assert not shared.goes_on(first.trial)  # nothing to compare it with
    second.trial.report(0.4, 1)
    assert shared.goes_on(second.trial)  # one of two
    attributes = [trial.user_attrs for trial in shared.trials()]
    assert attributes == [{UNTIL: 1, PAUSED: [1]}, {UNTIL: 2}]
    assert shared.tally() == Tally(done=0, failed=0, running=1, paused=1)


def test_a_trial_that_died_before_it_was_said_whether_it_goes_on_is_asked_again(tmp_path: Path) -> None:
    shared = open_study(tmp_path, pruner=PROMOTE)
    claim = shared.claim()
    assert claim is not None
    claim.trial.report(0.5, 1)
    claim.lock.close()  # as the kernel does when its holder dies
    again = open_study(tmp_path, pruner=PROMOTE).claim()
    assert again is not None
    assert (again.trial.number, again.adopted) == (0, True)
    assert shared.would_stop(0)
    assert not shared.goes_on(again.trial)
    assert is_paused(shared.trials()[0])


def test_a_trial_that_has_ended_elsewhere_does_not_go_on(tmp_path: Path) -> None:
    shared = open_study(tmp_path, pruner=PROMOTE)
    claim = shared.claim()
    assert claim is not None
    claim.trial.report(0.5, 1)
    shared.tell(claim.trial, TrialState.COMPLETE, 0.5)
    assert not shared.goes_on(claim.trial)
    assert PAUSED not in shared.trials()[0].user_attrs


def test_a_trial_without_reports_is_not_stopped(tmp_path: Path) -> None:
    shared = open_study(tmp_path)
    claim = shared.claim()
    assert claim is not None
    assert not shared.would_stop(claim.trial.number)


@pytest.fixture
def database() -> Iterator[str]:
    import psycopg

    name = f"vqa_test_{os.getpid()}"
    with psycopg.connect("host=127.0.0.1 user=postgres", autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        yield SERVER + name
        server.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.service
def test_postgresql_serves_as_storage(tmp_path: Path, database: str) -> None:
    for _ in range(3):
        shared = open_study(tmp_path, storage=database)
        claim = shared.claim()
        assert claim is not None
        shared.tell(claim.trial, TrialState.COMPLETE, 0.5)
        claim.lock.close()
    assert open_study(tmp_path, storage=database).claim() is None
    assert open_study(tmp_path, storage=database).tally() == Tally(done=3, failed=0, running=0, paused=0)
