"""Studies replayed on configurations that were trained several times, short and long."""

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.search.picking import completed, raced, read_table
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
