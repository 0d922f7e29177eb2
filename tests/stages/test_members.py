"""Several adapters, one answer: each is trained once, a killed run goes on with the one it was at."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Make
from vqa.answer.weighing import average, paired_gain
from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.report import plots
from vqa.results.calibration import tempered
from vqa.results.folder import CALIBRATION, RunFolder, member_folder, member_folders, read_json
from vqa.results.metrics import nll
from vqa.results.predictions import read_predictions
from vqa.stages import final
from vqa.stages.ensemble import run_ensemble
from vqa.stages.final import run_final
from vqa.stages.merge import run_merge
from vqa.stages.predict import run_evaluate
from vqa.train.fit import FitRecord, fit

SIZE = [
    *("budget.subsample=32", "budget.batch_size=8", "budget.checkpoint_steps=3"),
    *("budget.epochs=1", "budget.evaluations_per_fit=1"),
]
WEIGHTS = "adapter_model.safetensors"


class CutError(Exception):
    """Stands for a kill."""


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take longer than the small training and have tests of their own."""
    for name in ("confusion_matrix", "reliability", "learning_curve"):
        monkeypatch.setattr(plots, name, lambda *arguments: None)


_whole: list[tuple[Path, dict[str, Any]]] = []


@pytest.fixture
def whole(settings: Make, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A finished run of two members and its metrics; made once."""
    if not _whole:
        folder = tmp_path_factory.mktemp("whole")
        _whole.append((folder, run_final(settings(*SIZE, "final.members=2"), folder)))
    return _whole[0]


def test_the_members_are_averaged_and_one_stands_beside(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, metrics = whole
    run = RunFolder(folder)
    members = [run.member(number) for number in range(2)]
    assert all(member.complete and not member.checkpoint.exists() for member in members)
    valid = [read_predictions(member.valid_predictions) for member in members]
    assert read_predictions(run.valid_predictions) == average(valid, [1, 1])
    test = average([read_predictions(member.test_predictions) for member in members], [1, 1])
    assert read_predictions(run.test_predictions) == test
    assert run.submission.read_text().splitlines()[1:] == [f"{p.id},{p.answer}" for p in test]
    assert [member["train_seed"] for member in metrics["members"]] == [0, 1]
    assert [member["nll"] for member in metrics["members"]] == [nll(rows)[0] for rows in valid]
    assert metrics["single"]["nll"] == nll(valid[0])[0] != nll(valid[1])[0]
    assert metrics["single"]["gain"] == paired_gain(valid[0], average(valid, [1, 1]))
    assert metrics["test"]["calibrated"]["nll"] == nll(tempered(test, metrics["temperature"]))[0]
    kept = read_json(run.adapter / CALIBRATION)
    assert (kept["members"], kept["temperature"]) == (2, metrics["temperature"])
    assert json.loads((folder / "metrics.json").read_text()) == metrics


def test_the_first_member_is_the_run_without_members(
    whole: tuple[Path, dict[str, Any]], settings: Make, tmp_path: Path
) -> None:
    folder, _ = whole
    run_final(settings(*SIZE), tmp_path)
    first = member_folder(folder / "adapter", 0)
    assert (first / WEIGHTS).read_bytes() == (tmp_path / "adapter" / WEIGHTS).read_bytes()
    for name in ("valid_predictions.csv", "test_predictions.csv"):
        assert (folder / "members/0" / name).read_bytes() == (tmp_path / name).read_bytes()
    assert not (tmp_path / "members").exists()


def test_a_killed_run_goes_on_with_the_member_it_was_at(
    whole: tuple[Path, dict[str, Any]], settings: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, fits = settings(*SIZE, "final.members=2"), list[int]()

    def dies_in_the_second(*arguments: Any) -> FitRecord:
        encoder, model, train, plan, _, checkpoints = arguments
        fits.append(plan.seed)
        if plan.seed == 0 or len(fits) > 2:
            return fit(*arguments)

        def cut(at: Any) -> None:
            raise CutError

        return fit(encoder, model, train, plan, cut, checkpoints)

    monkeypatch.setattr(final, "fit", dies_in_the_second)
    with pytest.raises(CutError):
        run_final(made, tmp_path)
    assert [RunFolder(tmp_path).member(k).complete for k in range(2)] == [True, False]
    assert RunFolder(tmp_path).member(1).checkpoint.exists()
    run_final(made, tmp_path)
    assert fits == [0, 1, 1]  # the finished one is not trained again
    names = ["valid_predictions.csv", "test_predictions.csv", "submission.csv", f"adapter/member_1/{WEIGHTS}"]
    for name in names:
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes(), name


def evaluating(settings: Make, adapter: Path, *more: str) -> Settings:
    return settings("stage=evaluate", f"adapter={adapter}", *more)


def test_evaluate_takes_the_folder_of_all_and_its_temperature(
    whole: tuple[Path, dict[str, Any]], settings: Make, tmp_path: Path
) -> None:
    folder, metrics = whole
    found = run_evaluate(evaluating(settings, folder / "adapter"), tmp_path)
    assert found["nll"] == pytest.approx(metrics["test"]["nll"], rel=1e-6)
    assert found["temperature"] == metrics["temperature"]
    rows = read_predictions(tmp_path / "test_predictions.csv")
    expected = read_predictions(folder / "test_predictions.csv")
    assert [p.p for p in rows] == [pytest.approx(p.p, abs=1e-6) for p in expected]
    alone = run_evaluate(
        evaluating(settings, folder / "adapter/member_1", "inference.temperature=2"), tmp_path
    )
    assert alone["nll"] != found["nll"]
    assert alone["calibrated"]["temperature"] == 2


def test_the_prediction_files_of_members_can_be_averaged_apart(
    whole: tuple[Path, dict[str, Any]], settings: Make, tmp_path: Path
) -> None:
    folder, metrics = whole
    files = ",".join(str(folder / f"members/{k}/test_predictions.csv") for k in range(2))
    found = run_ensemble(settings("stage=ensemble", f"ensemble.members=[{files}]"), tmp_path)
    assert (tmp_path / "submission.csv").read_bytes() == (folder / "submission.csv").read_bytes()
    assert found["temperature"] == metrics["temperature"]
    gains = {"over_best_member", "over_equal_weights"}  # of an ensemble; the final run has its own
    assert {name: value for name, value in found["test"].items() if name not in gains} == metrics["test"]


def test_a_member_that_was_not_copied_is_noticed(whole: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / CALIBRATION).write_bytes((whole[0] / "adapter" / CALIBRATION).read_bytes())
    member_folder(tmp_path, 0).mkdir()
    with pytest.raises(UserError, match=r"tells of 2 members, but 1 folders member_\* are there; copy the"):
        member_folders(tmp_path)


def test_members_are_not_merged(whole: tuple[Path, dict[str, Any]], settings: Make, tmp_path: Path) -> None:
    made = settings("stage=merge", f"adapter={whole[0]}/adapter")
    with pytest.raises(
        UserError, match=r"holds 2 adapters whose answers are averaged.*give adapter=.*member_0"
    ):
        run_merge(made, tmp_path)


def test_the_folds_are_trained_at_full_length(settings: Make, tmp_path: Path) -> None:
    metrics = run_final(settings(*SIZE, "final.members=folds", "budget.folds=2"), tmp_path)
    assert [member["n_train"] for member in metrics["members"]] == [16, 16]
    first, second = (read_predictions(tmp_path / f"members/{k}/valid_predictions.csv") for k in range(2))
    assert [p.id for p in first] == [p.id for p in second]
    assert [p.p for p in first] != [p.p for p in second]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["final.members=folds", "budget.folds=1"],
            r"final.members=folds needs the number of folds: give bu",
        ),
        (
            ["final.members=2", "inference=generate"],
            r"inference.readout must be letters with final.members=2",
        ),
        (["final.members=2", "prompt=auto"], r"prompt.entropy_threshold must be null with final.members=2"),
    ],
)
def test_what_cannot_be_averaged_is_refused(
    settings: Make, tmp_path: Path, more: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        run_final(settings(*SIZE, *more), tmp_path)
