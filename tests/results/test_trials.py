from pathlib import Path

import pytest

from vqa.errors import UserError
from vqa.results.trials import TrialRow, read_leaderboard, read_trials, study_scores, varied_parameters

HEAD = "trial,state,folds,nll,nll_se,accuracy,accuracy_se,seconds,lora.r,lora.names,tied_with_best"


def test_leaderboard_is_read_with_its_gaps(tmp_path: Path) -> None:
    path = tmp_path / "leaderboard.csv"
    path.write_text(f"{HEAD}\n1,COMPLETE,3,0.3,0.01,0.9,0.02,12.5,8,qkv,true\n0,FAIL,0,,,,,1.0,16,qv,\n")
    failed, best = read_trials(path)
    assert (failed.number, failed.state, failed.tied) == (0, "FAIL", False)
    assert failed.nll != failed.nll  # NaN: no score
    assert best == TrialRow(
        1, "COMPLETE", 3, 0.3, 0.01, 0.9, 0.02, 12.5, {"lora.r": 8.0, "lora.names": "qkv"}, True
    )
    assert [trial.number for trial in read_leaderboard(path)] == [1, 0]  # as they rank
    assert study_scores([failed, best]) == {
        "trials": 2,
        "trials_complete": 1,
        "trials_paused": 0,
        "trials_pruned": 0,
        "trials_failed": 1,
        "trials_tied": 1,
        "seconds": 13.5,
        "nll": 0.3,
        "nll_se": 0.01,
        "accuracy": 0.9,
        "best_trial": 1,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read"),
        ("trial,state\n0,FAIL\n", "lacks the column.s. folds, nll"),
        (
            f"{HEAD}\n0,COMPLETE,3,low,0.01,0.9,0.01,1,8,q,true\n",
            "row 2: could not convert .*'low'",
        ),
    ],
)
def test_a_broken_leaderboard_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "leaderboard.csv"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=rf"leaderboard\.csv.*{message}"):
        read_trials(path)


def test_only_parameters_that_vary_are_drawn() -> None:
    trials = [
        TrialRow(number, "COMPLETE", 3, 0.3, 0.02, 0.9, 0.01, 10.0, {"lora.r": rank, "model": "tiny"}, False)
        for number, rank in enumerate((8.0, 16.0))
    ]
    assert varied_parameters(trials) == ["lora.r"]
