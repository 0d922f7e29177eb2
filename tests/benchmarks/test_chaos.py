"""Workers are killed and the database is restarted while a study runs: nothing is lost."""

from pathlib import Path

import pytest

from benchmarks.endurance.chaos import Attack, measure


@pytest.mark.service
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "restarts"), [("postgresql", 1), ("sqlite", 0), ("journal", 0)])
def test_a_study_outlives_kills_and_restarts(tmp_path: Path, kind: str, restarts: int) -> None:
    row = measure(kind, "toy", 8, 2, Attack(4, 1.5, restarts, seed=1), tmp_path / kind)
    assert row["damage"] == []
    assert row["final_same_as_direct"]
    assert row["kills"] >= 2  # on a fast machine the study may be over before the last one


@pytest.mark.slow
def test_a_study_outlives_workers_that_stand_still_and_lose_their_trials_lock(tmp_path: Path) -> None:
    plan = Attack(4, 1.5, 0, seed=1, zombies=2, stopped_s=4.0)
    row = measure("sqlite", "toy", 12, 3, plan, tmp_path / "sqlite")
    assert row["damage"] == []
    assert row["final_same_as_direct"]
    assert row["zombies"] >= 1
