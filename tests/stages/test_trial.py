"""A trial is K short fits with one out-of-fold score; cut off, it goes on after its last fold."""

import csv
import json
import logging
import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Make
from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.model.adapter import attached
from vqa.model.base import load_base
from vqa.progress import By, Pruned, reporting_to
from vqa.results.folder import FOLDS, OUT_OF_FOLD, RunFolder
from vqa.results.metrics import nll
from vqa.results.predictions import read_predictions
from vqa.stages.trial import _name, run_trial, sample_questions


class CutError(Exception):
    """Stands for a kill."""


@dataclass
class Listener:
    """Remembers the reports of a trial; `cut_at` and `prune_at` are steps."""

    by: By = "part"
    pauses = False
    cut_at: int = 0
    prune_at: int = 0
    parts: dict[int, float] = field(default_factory=dict)
    questions: list[dict[int, float]] = field(default_factory=list)

    def report(self, value: float, step: int) -> bool:
        if step == self.cut_at:
            raise CutError
        self.parts[step] = value
        return step == self.prune_at

    def report_questions(self, values: Mapping[int, float]) -> bool:
        self.questions.append(dict(values))
        return False


@pytest.fixture
def small(settings: Make) -> Settings:
    """Two folds over 32 questions, scored twice each."""
    return settings("stage=trial", "budget.subsample=32", "budget.batch_size=8")


def rows(folder: Path) -> list[dict[str, str]]:
    """folds.csv without its wall-clock column."""
    with (folder / FOLDS).open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def test_a_trial_leaves_its_folds_and_out_of_fold_predictions(
    small: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        score = run_trial(small, tmp_path)
    told = [message for message in caplog.messages if "fold" in message]
    for number, message in enumerate(told, start=1):
        assert re.match(rf"{_name(tmp_path)}\W.*fold {number} of 2", message)
    assert len(told) == 2
    header, *lines = (tmp_path / FOLDS).read_text().splitlines()
    assert header == "fold,n_train,n_valid,nll,accuracy,seconds"
    assert [line.split(",")[0] for line in lines] == ["0", "1"]
    predictions = read_predictions(tmp_path / OUT_OF_FOLD)
    sample, folds = sample_questions(small)
    assert sorted(p.id for p in predictions) == sorted(q.id for q in sample)
    assert score == nll(predictions)[0]
    with attached(load_base(small), small.lora, 0) as model:
        trained = sum(weights.numel() for weights in model.parameters() if weights.requires_grad)
    assert json.loads(RunFolder(tmp_path).adapter_size.read_text()) == {"parameters": trained}
    for row, fold in zip(rows(tmp_path), folds, strict=True):
        held = {q.id for q in fold.valid}
        assert (int(row["n_train"]), int(row["n_valid"])) == (len(fold.train), len(held))
        assert float(row["nll"]) == nll([p for p in predictions if p.id in held])[0]


def test_a_trial_cut_off_in_its_second_fold_ends_as_an_uninterrupted_one(
    small: Settings, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        folder.mkdir()
    score = run_trial(small, whole)
    with reporting_to(Listener(cut_at=3)), pytest.raises(CutError):
        run_trial(small, cut)
    first = (cut / FOLDS).read_text()
    assert len(rows(cut)) == 1
    assert run_trial(small, cut) == score
    assert (cut / FOLDS).read_text().startswith(first)  # the first fold was not run again
    assert rows(cut) == rows(whole)
    assert (cut / OUT_OF_FOLD).read_bytes() == (whole / OUT_OF_FOLD).read_bytes()
    assert run_trial(small, cut) == score  # nothing left to train


def test_every_part_but_the_last_is_reported_over_all_questions_so_far(
    small: Settings, tmp_path: Path
) -> None:
    listener = Listener()
    with reporting_to(listener):
        run_trial(small, tmp_path)
    assert list(listener.parts) == [1, 2, 3]  # 2 folds x 2 evaluations
    assert listener.parts[2] == float(rows(tmp_path)[0]["nll"])


def test_a_pruned_trial_stops_at_once_and_leaves_the_base_clean(small: Settings, tmp_path: Path) -> None:
    with reporting_to(Listener(prune_at=1)), pytest.raises(Pruned, match=r"pruned at step 1 with \d"):
        run_trial(small, tmp_path)
    assert not (tmp_path / FOLDS).exists()
    assert run_trial(small, tmp_path) > 0


@dataclass
class Kept:
    """A run of a tracker that remembers the names of its numbers."""

    names: set[str] = field(default_factory=set)
    run_id: str | None = None

    def params(self, values: Mapping[str, Any]) -> None: ...

    def tags(self, values: Mapping[str, object]) -> None: ...

    def artifact(self, path: Path, folder: str = "") -> None: ...

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        self.names |= values.keys()

    def run(self, *_: object) -> AbstractContextManager["Kept"]:
        return nullcontext(self)


def test_only_a_whole_trial_has_a_score_where_it_is_tracked(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = Kept()
    monkeypatch.setattr("vqa.stages.trial.open_tracker", lambda _: kept)
    with reporting_to(Listener(prune_at=1)), pytest.raises(Pruned):
        run_trial(small, tmp_path)
    assert "nll_so_far" in kept.names
    assert not kept.names & {"nll", "nll_se", "accuracy"}
    run_trial(small, tmp_path)
    assert {"nll", "nll_se", "accuracy"} <= kept.names


def test_questions_are_reported_fold_by_fold_and_again_when_continued(
    small: Settings, tmp_path: Path
) -> None:
    first, again = Listener(by="question"), Listener(by="question")
    for listener in (first, again):
        with reporting_to(listener):
            run_trial(small, tmp_path)
    (values,) = first.questions  # the last fold is not reported
    sample, folds = sample_questions(small)
    assert {sample[i].id for i in values} == {q.id for q in folds[0].valid}
    assert again.questions == first.questions


def test_the_last_part_is_not_reported_even_where_a_fold_has_fewer_steps_than_evaluations(
    settings: Make, tmp_path: Path
) -> None:
    listener = Listener()
    with reporting_to(listener):
        run_trial(settings("stage=trial", "budget.subsample=32", "budget.batch_size=16"), tmp_path)
    assert list(listener.parts) == [2]  # one step and so one evaluation to a fold, which ends at step 2


def test_too_few_questions_for_the_folds_are_refused(settings: Make, tmp_path: Path) -> None:
    made = settings("stage=trial", "budget.subsample=8", "budget.folds=7")
    with pytest.raises(UserError, match=r"budget.folds"):
        run_trial(made, tmp_path)


def test_another_train_seed_trains_anew_on_the_same_folds(settings: Make, tmp_path: Path) -> None:
    first, again = (
        settings("stage=trial", "budget.subsample=32", "budget.batch_size=8", f"train_seed={seed}")
        for seed in (0, 1)
    )
    assert first.seed == again.seed == 0
    assert sample_questions(first) == sample_questions(again)
    for seed, made in enumerate((first, again)):
        (tmp_path / str(seed)).mkdir()
        run_trial(made, tmp_path / str(seed))
    one, other = (read_predictions(tmp_path / str(seed) / OUT_OF_FOLD) for seed in (0, 1))
    assert [p.id for p in one] == [p.id for p in other]
    assert [p.p for p in one] != [p.p for p in other]


@pytest.mark.parametrize(
    ("folder", "name"),
    [
        ("trials/007", "trial 7"),
        ("trials/007/again/001", "trial 7, training 2"),
        ("elsewhere", "trial elsewhere"),
    ],
)
def test_a_line_of_the_log_names_its_trial(folder: str, name: str) -> None:
    assert _name(Path("study") / folder) == name
