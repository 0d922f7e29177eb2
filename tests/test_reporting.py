"""Reports and progress reach whoever is listening, and nobody is needed."""

from collections.abc import Mapping

import pytest

from vqa.progress import (
    By,
    Paused,
    Pruned,
    progress,
    progress_to,
    report,
    report_questions,
    reporting_to,
    reports_by,
)


class Listener:
    """Takes everything down and prunes at a given step."""

    def __init__(self, prune_at: int | None = None, by: By = "part") -> None:
        self.by: By = by
        self.pauses = False
        self.prune_at = prune_at
        self.heard: list[tuple[int, float]] = []

    def report(self, value: float, step: int) -> bool:
        self.heard.append((step, value))
        return step == self.prune_at

    def report_questions(self, values: Mapping[int, float]) -> bool:
        self.heard += values.items()
        return self.prune_at in values


def test_outside_a_sweep_nothing_happens() -> None:
    report(0.5, 0)
    report_questions({0: 0.5})
    progress("fold 1", 1, 3)
    assert reports_by() == "part"


def test_a_report_reaches_the_reporter_and_only_inside() -> None:
    listener = Listener(by="question")
    with reporting_to(listener):
        report(0.5, 0)
        report_questions({4: 0.1, 5: 0.2})
        assert reports_by() == "question"
    report(0.5, 1)
    assert listener.heard == [(0, 0.5), (4, 0.1), (5, 0.2)]


def test_a_hopeless_trial_is_pruned() -> None:
    with reporting_to(Listener(prune_at=2)):
        report(0.7, 1)
        with pytest.raises(Pruned, match=r"pruned at step 2 with 0\.7123"):
            report(0.7123, 2)
        with pytest.raises(Pruned, match="pruned after 2 more questions"):
            report_questions({1: 0.1, 2: 0.4})


def test_the_outer_reporter_is_back_after_an_inner_one_fails() -> None:
    outer = Listener()
    with reporting_to(outer):
        with pytest.raises(ValueError, match="broken"), reporting_to(Listener()):
            raise ValueError("broken")
        report(0.5, 0)
    assert outer.heard == [(0, 0.5)]


def test_progress_goes_to_the_installed_sink() -> None:
    seen: list[tuple[str, int, int]] = []
    with progress_to(lambda *what: seen.append(what)):
        progress("fold 2 of 3", 5, 20)
    progress("fold 3 of 3", 6, 20)
    assert seen == [("fold 2 of 3", 5, 20)]


def test_a_trial_that_may_go_on_is_paused_and_not_pruned() -> None:
    listener = Listener(prune_at=1)
    listener.pauses = True
    with reporting_to(listener), pytest.raises(Paused, match=r"paused at step 1 with 0\.7123"):
        report(0.7123, 1)
