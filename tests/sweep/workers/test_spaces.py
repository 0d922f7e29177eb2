"""Several workers on spaces with conditions, and on several objectives."""

import json
from pathlib import Path

import pytest

from tests.helpers.forked_command import Forked
from tests.helpers.toy_app.harness import board_rows, starts, trials_of
from vqa.results.comparison import pareto_front

APP = Path(__file__).parents[2] / "helpers" / "toy_app" / "app.py"
TRIALS = 9


def run(folder: Path, *overrides: str) -> str:
    """Run a study with three workers to its end; returns what the command said."""
    size = ("hydra.sweeper.n_workers=3", f"hydra.sweeper.n_trials={TRIALS}")
    command = Forked(folder, "-m", "+sweep=toy", *size, *overrides, program=str(APP))
    out, _ = command.communicate(timeout=240)
    assert command.returncode == 0, out
    return out


@pytest.mark.parametrize("search", [("tpe", "none"), ("thompson", "promote")])
def test_workers_draw_a_key_only_where_it_applies_and_run_each_trial_once(
    tmp_path: Path, search: tuple[str, str]
) -> None:
    sampler, pruner = search
    conditions = "++hydra.sweeper.conditions={lora.r: {image: [native]}}"
    given = (f"hydra/sweeper/sampler={sampler}", f"hydra/sweeper/pruner={pruner}", "pause_s=0.02")
    run(tmp_path, conditions, "hydra.sweeper.enqueue=[]", *given)
    trials, rows = trials_of(tmp_path), board_rows(tmp_path)
    assert len(trials) == len(rows) == TRIALS
    assert {("lora.r" in trial.params) == (trial.params["image"] == "native") for trial in trials} == {True}
    assert {(row["lora.r"] == "") == (row["image"] != "native") for row in rows} == {True}
    assert {trial.params["image"] for trial in trials} == {"native", "pad_512"}
    if pruner == "none":
        assert sorted(starts(tmp_path)) == [f"{number:03d}" for number in range(TRIALS)]
    best = rows[0]
    metrics = json.loads((tmp_path / "multirun/toy/final/metrics.json").read_text())
    assert metrics["lr"] == pytest.approx(float(best["lr"]))
    assert metrics["r"] == int(best["lora.r"] or 8)  # where it does not apply, the configuration's own


def test_workers_share_a_search_of_score_seconds_and_size(tmp_path: Path) -> None:
    objective = "hydra.sweeper.objective=[nll,seconds,parameters]"
    out = run(tmp_path, objective, "hydra/sweeper/pruner=none", "hydra/sweeper/sampler=random")
    rows = board_rows(tmp_path)
    assert len(rows) == TRIALS
    assert {int(row["trainable_parameters"]) // 1000 for row in rows} <= {8, 16, 32}
    front = pareto_front(
        [
            (float(row["nll"]), float(row["seconds_per_question"]), float(row["trainable_parameters"]))
            for row in rows
        ]
    )
    assert [row["on_front"] == "true" for row in rows] == front
    assert front[0] is True  # the lowest NLL is never dominated
    on_front = ", ".join(row["trial"] for row in rows if row["on_front"] == "true")
    assert "Pareto front of NLL and" in out
    assert f": {on_front}. The final run takes trial {rows[0]['trial']}" in out
