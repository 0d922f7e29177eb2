"""Studies replayed on configurations that were trained several times, short and long."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search.picking import (
    Table,
    as_final,
    between_searches,
    completed,
    judged,
    raced,
    read_table,
    study,
)
from benchmarks.search.simulation import Point

PARAMS = [{"optimizer.lr": lr, "lora.r": 8, "lora.lora_alpha": 16} for lr in (1e-3, 2e-3, 4e-3)]


def point(lr: int, nll: float) -> Point:
    noise = np.random.default_rng(lr).normal(size=40)
    values = nll + 0.1 * (noise - noise.mean())
    return Point(PARAMS[lr], [2 * nll, nll], values.tolist(), [40])


def test_the_race_picks_what_is_best_in_the_mean_of_its_trainings() -> None:
    once = [point(0, 0.50), point(1, 0.49), point(2, 0.90)]
    again = [point(0, 0.60), point(1, 0.70), point(2, 0.90)]
    assert raced([once, again], [0, 1, 2], spare=0, most=2)[0].trial == 1
    ranked = raced([once, again], [0, 1, 2], spare=2, most=2)
    assert [(t.trial, len(t.nll)) for t in ranked] == [(0, 2), (1, 2), (2, 1)]
    assert raced([once], [0, 1, 2], spare=2, most=1)[0].trial == 1


def test_a_search_completes_one_at_least() -> None:
    course = [(3.0, [4]), (9.0, [4, 1]), (12.0, [4, 1, 7])]
    assert completed(course, 12.0) == [4, 1, 7]
    assert completed(course, 10.0) == [4, 1]
    assert completed(course, 1.0) == [4]


def test_trainings_and_final_runs_are_read_as_far_as_they_are_whole(tmp_path: Path) -> None:
    grid = [vars(point(lr, 0.5)) for lr in range(3)]
    scores = {"accuracy": 0.9, "test_nll": 0.2, "test_accuracy": 0.8}
    finals = [
        {"kind": "final", "train_seed": s, **p, "nll": 0.1 + s, **scores} for s in (0, 1) for p in PARAMS
    ]
    trials = [{"kind": "trial", "train_seed": 1, **p, "nll": point(i, 1.0).nll} for i, p in enumerate(PARAMS)]
    for name, rows in (("grid", grid), ("finals", [*finals[:-1], *trials])):
        (tmp_path / name).write_text(json.dumps({"rows": rows}))
    table = read_table(tmp_path / "grid", tmp_path / "finals")
    assert table.finals["nll"][:2].tolist() == [[0.1, 1.1]] * 2
    assert table.final(2)["nll"] == 0.1  # of the one run that was made
    assert table.final(0)["test_nll"] == 0.2
    assert len(table.trained) == 2
    assert table.trained[1][0].reports == pytest.approx([2.0, 1.0])


def tabled(finals: list[float], trials: list[float]) -> Table:
    scores = {name: np.array([[value] for value in finals]) for name in ("nll", "test_nll")}
    points = [point(lr, nll) for lr, nll in enumerate(trials)]
    return Table([points], scores, (0.0, 0.0), {(True, 3): 6.0})


def test_trials_can_be_made_to_rank_as_final_runs_do() -> None:
    rising = as_final(tabled([0.1, 0.2, 0.15], [0.5, 0.6, 0.7])).trained[0]
    assert float(np.mean(rising[2].nll)) == pytest.approx(0.55)


def test_of_two_final_runs_the_better_is_kept() -> None:
    table = tabled([0.2, 0.1, math.nan], [0.50, 0.51, 0.9])
    rows = [
        {"search": "random", "trials": 3, "reports": 6.0, "resampled": False, "study": seed}
        for seed in (0, 1)
    ]
    choice = {"picked": 0, "regret": 0.0, "spare": 0, "tried": [0, 1, 2]}
    shares = {"0.0": choice, "2 final runs": choice | {"candidates": [0, 1]}}
    told = {row["share"]: row for row in judged(table, [row | {"shares": shares} for row in rows])}
    assert told["0.0"]["nll"] == 0.2
    assert told["2 final runs"]["nll"] == 0.1
    assert told["2 final runs"]["nll_gain"]["mean"] == pytest.approx(0.1)
    assert told["best_of_tried"]["test_nll"] == 0.1


def test_searches_are_compared_in_the_studies_that_both_made() -> None:
    table = tabled([0.2, 0.1, math.nan], [0.50, 0.51, 0.9])
    picks = {"random": [0, 0, 0, 1], "other": [1, 0, 2]}
    rows = [
        {"search": search, "trials": 3, "reports": 6.0, "resampled": False, "study": seed}
        | {"shares": {"0.0": {"picked": picked, "regret": 0.0, "spare": 0, "tried": [picked]}}}
        for search, found in picks.items()
        for seed, picked in enumerate(found)
    ]
    (row,) = between_searches(table, rows)
    assert (row["search"], row["share"], row["studies"]) == ("other", "over random", 3)
    assert (row["judged"], row["nll"]) == (2, pytest.approx(0.15))  # of the third no final run was made
    assert row["nll_gain"]["mean"] == pytest.approx(0.05)


def test_a_study_spends_the_same_with_and_without_a_race() -> None:
    table = tabled([0.2, 0.1, 0.3], [0.50, 0.51, 0.9])
    found = study(table, "random", 3, (1 / 3,), resample=False, seed=0)
    assert (found["0.0"]["spare"], len(found["0.0"]["tried"])) == (0, 3)
    raced_one = found[str(1 / 3)]
    assert (raced_one["spare"], len(raced_one["tried"])) == (1, 2)
