from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vqa.errors import UserError
from vqa.record import NullRun
from vqa.study_record import record_study

LEADERBOARD = """trial,state,folds,nll,nll_se,accuracy,accuracy_se,seconds,lora.r,tied_with_best
1,COMPLETE,3,0.30,0.02,0.90,0.01,10.0,8,true
0,COMPLETE,3,0.35,0.02,0.88,0.01,10.0,16,true
"""


class KeptRun(NullRun):
    """Remembers what a run was given."""

    def __init__(self) -> None:
        self.numbers: dict[str, float] = {}
        self.files: list[str] = []

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.numbers.update(values)

    def artifact(self, path: Path, folder: str = "") -> None:
        assert path.exists()
        self.files.append(f"{folder}/{path.name}" if folder else path.name)


def test_a_study_is_recorded_with_its_tables_pictures_and_winner(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text(LEADERBOARD)
    (tmp_path / "best.yaml").write_text("lora: {r: 8}")
    run = KeptRun()
    record_study(run, tmp_path)
    assert run.files == [
        "leaderboard.csv",
        "best.yaml",
        "plots/optimisation_history.png",
        "plots/parallel_coordinates.png",
    ]
    expected: dict[str, Any] = {"trials": 2, "nll": 0.30, "accuracy": 0.90, "best_trial": 1}
    assert expected.items() <= run.numbers.items()


def test_a_study_without_results_is_recorded_empty(tmp_path: Path) -> None:
    run = KeptRun()
    record_study(run, tmp_path)
    assert (run.files, run.numbers) == ([], {})


def test_a_broken_leaderboard_is_not_passed_over(tmp_path: Path) -> None:
    (tmp_path / "leaderboard.csv").write_text("trial\n1\n")
    with pytest.raises(UserError, match="lacks the column"):
        record_study(KeptRun(), tmp_path)
