"""stage=status: everything is shown, nothing is touched."""

import io
import shutil
import stat
from pathlib import Path

import pytest
from rich.console import Console

from tests.helpers.toy_app.harness import run_toy, stamps
from vqa.errors import UserError
from vqa.sweep.board import show_status


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_toy(folder, "hydra.sweeper.n_trials=3", "fails=once", "hydra/sweeper/pruner=none")
    return folder


def status(folder: Path) -> str:
    out = io.StringIO()
    show_status(folder / "multirun/toy", Console(file=out, width=160))
    return out.getvalue()


def test_trials_winner_failures_and_final_run_are_shown(whole: Path) -> None:
    text = status(whole)
    assert "study toy: 3 of 3 trials" in text
    assert "best: trial 0, NLL 0.4263" in text
    assert "trial 1 failed: RuntimeError: the job broke" in text
    assert "no worker is up" in text
    assert "final run: done" in text
    assert f"storage: sqlite:///{whole}/multirun/toy/study.db" in text


def test_the_study_is_not_touched(whole: Path) -> None:
    before = stamps(whole)
    status(whole)
    assert stamps(whole) == before


def test_a_study_that_was_moved_is_found(whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole / "multirun", tmp_path / "multirun")
    assert f"storage: sqlite:///{tmp_path}/multirun/toy/study.db" in status(tmp_path)


def test_the_address_is_for_the_owners_eyes_only(whole: Path) -> None:
    assert stat.S_IMODE((whole / "multirun/toy/.sweep.json").stat().st_mode) == 0o600


def test_a_study_that_is_not_there_is_refused_with_those_that_are(whole: Path) -> None:
    with pytest.raises(UserError, match=r"study=other: there is no sweep in .*Sweeps beside it: toy\."):
        show_status(whole / "multirun/other")


def test_status_is_told_in_korean(whole: Path) -> None:
    out = io.StringIO()
    show_status(whole / "multirun/toy", Console(file=out, width=160), "ko")
    *_, text = out.getvalue().partition("작업")
    for english in ("no worker", "best:", "failed", "final run", "storage", "told apart", "trials"):
        assert english not in out.getvalue()
    assert "최종" in text
