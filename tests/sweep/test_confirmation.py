"""After the trials the tied best are trained again with other seeds, and ranked by all their trainings."""

from pathlib import Path

import pytest

import tests.helpers.toy_app.app
from tests.helpers.toy_app.harness import board_rows, run_toy
from vqa.errors import UserError
from vqa.progress import report
from vqa.results.folder import StudyFolder
from vqa.sweep.leaderboard import read_scores

GIVEN = (
    *("hydra.sweeper.n_trials=4", "hydra/sweeper/pruner=hyperband", "hydra.sweeper.pruner.min_resource=9"),
    *("lr=tag(log, interval(1e-3, 1.2e-3))", "lora.r=32", "image=native", "hydra.sweeper.enqueue=[]"),
)
SHORT = (*GIVEN, "hydra.sweeper.final=false", "hydra.sweeper.confirm=4")


@pytest.fixture(scope="module")
def confirmed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("confirmed")
    run_toy(folder, *SHORT)
    return folder


def again(folder: Path) -> list[str]:
    """The further trainings that are done, as trial/seed."""
    place = folder / "multirun/toy/trials"
    return sorted(f"{done.parents[2].name}/{done.parent.name}" for done in place.glob("*/again/*/done"))


def test_the_best_are_trained_again_and_the_table_says_so(confirmed: Path) -> None:
    done = again(confirmed)
    assert 2 <= len(done) <= 4
    rows = board_rows(confirmed)
    repeated = {int(name[:3]) for name in done}
    assert {int(row["trial"]) for row in rows if int(row["trainings"] or 1) > 1} == repeated
    assert int(rows[0]["trial"]) in repeated
    assert float(rows[0]["retraining_sd"]) > 0
    assert 0 < float(rows[0]["retraining_share"]) < 1
    assert float(rows[0]["nll_corrected"]) > 0
    trial = StudyFolder(confirmed / "multirun/toy").trial(int(rows[0]["trial"]))
    means = [read_scores(f).nll for f in (trial.path, *trial.trained_again())]
    expected = sum(sum(nll.values()) / len(nll) for nll in means) / len(means)
    assert float(rows[0]["nll"]) == pytest.approx(expected, abs=1e-6)
    best = (confirmed / "multirun/toy/best.yaml").read_text()
    assert "Training it again moves its NLL by" in best


def test_a_race_that_is_cut_off_goes_on_to_the_same_end(
    confirmed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = {"left": 4 * 8 + 11}  # reports: all trials, one further training, a part of the next

    def reporting(value: float, step: int) -> None:
        calls["left"] -= 1
        if calls["left"] == 0:
            raise KeyboardInterrupt
        report(value, step)

    monkeypatch.setattr(tests.helpers.toy_app.app, "report", reporting)
    with pytest.raises(KeyboardInterrupt):
        run_toy(tmp_path, *SHORT)
    assert len(again(tmp_path)) == 1
    run_toy(tmp_path, *SHORT)
    assert again(tmp_path) == again(confirmed)
    assert (tmp_path / "multirun/toy/best.yaml").read_text() == (
        confirmed / "multirun/toy/best.yaml"
    ).read_text()


def test_a_configuration_without_a_train_seed_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="confirm=2 needs a key train_seed"):
        run_toy(tmp_path, *GIVEN, "hydra.sweeper.final=false", "hydra.sweeper.confirm=2", "train_seed=null")
