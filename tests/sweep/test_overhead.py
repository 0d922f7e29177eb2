"""What the sweeper does beside each trial: as much for the twenty-fourth as for the tenth."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.toy_app import app
from tests.helpers.toy_app.harness import run_toy
from vqa.results import uncertainty
from vqa.results.uncertainty import Resampling
from vqa.sweep import leaderboard, worker
from vqa.sweep.storage import RetryingStorage

TRIALS = 24


def test_a_late_trial_costs_no_more_operations_than_an_early_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: Counter[str] = Counter()
    at_start: list[Counter[str]] = []

    def count(owner: Any, name: str, size: Callable[..., int] = lambda *given: 1) -> None:
        call = getattr(owner, name)

        def counted(*given: Any, **named: Any) -> Any:
            done[name] += size(*given)
            return call(*given, **named)

        monkeypatch.setattr(owner, name, counted)

    count(RetryingStorage, "repeated")  # a session of the database each
    count(os, "fsync")
    count(leaderboard, "read_fold_predictions")
    count(leaderboard, "mean_error")
    count(Resampling, "_draw", lambda self, rows: len(rows))  # trials that are drawn from
    count(uncertainty, "_widest_to")  # trials that are held against the others
    count(leaderboard, "compare")
    count(worker, "write_leaderboard")
    run_trial = app.run_trial

    def clocked(cfg: Any, folder: Path) -> float:
        at_start.append(Counter(done))
        return run_trial(cfg, folder)

    monkeypatch.setattr(app, "run_trial", clocked)
    leaderboard._read_scores.cache_clear()
    uncertainty._resampling.cache_clear()
    run_toy(
        tmp_path,
        *(f"hydra.sweeper.n_trials={TRIALS}", "hydra/sweeper/pruner=none", "hydra/sweeper/sampler=random"),
        *("hydra.sweeper.final=false",),
    )
    assert len(at_start) == TRIALS
    early, late = at_start[12] - at_start[8], at_start[23] - at_start[19]
    assert set(early) >= {"repeated", "fsync", "mean_error", "_draw", "_widest_to", "compare"}
    assert not late - early  # a new best trial among the early ones writes one file more
