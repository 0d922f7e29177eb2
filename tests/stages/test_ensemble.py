"""Ensembles: averages of log probabilities, selection on validation rows, files that do not fit."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import Make
from vqa.errors import UserError
from vqa.results.predictions import Prediction, read_predictions, write_predictions
from vqa.stages.ensemble import run_ensemble

P = tuple[float, float, float, float]
SURE: P = (0.7, 0.1, 0.1, 0.1)
WRONG: P = (0.1, 0.7, 0.1, 0.1)


def row(name: str, p: P, gold: str | None = "a") -> Prediction:
    return Prediction(name, "abcd"[p.index(max(p))], p, 1.0, gold)


def write(folder: Path, test: list[Prediction], valid: list[Prediction] | None = None) -> str:
    write_predictions(folder / "test_predictions.csv", test)
    if valid:
        write_predictions(folder / "valid_predictions.csv", valid)
    return str(folder / "test_predictions.csv")


def test_an_ensemble_leaves_its_files(settings: Make, tmp_path: Path) -> None:
    good = write(tmp_path / "good", [row("1", SURE, None)], [row("v", SURE)])
    bad = write(tmp_path / "bad", [row("1", WRONG, None)], [row("v", WRONG)])
    made = settings("stage=ensemble", f"ensemble.members=[{bad},{good}]", "ensemble.selection=greedy")
    run_ensemble(made, tmp_path)
    assert [p.answer for p in read_predictions(tmp_path / "test_predictions.csv")] == ["a"]
    assert (tmp_path / "submission.csv").read_text() == "id,answer\n1,a\n"
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["disagreement"] == 1
    assert metrics["members"][bad] == 0
    assert (tmp_path / "manifest.json").exists()


def test_labelled_rows_are_scored(settings: Make, tmp_path: Path) -> None:
    files = [write(tmp_path / name, [row("1", SURE)]) for name in "ab"]
    made = settings("stage=ensemble", f"ensemble.members=[{','.join(files)}]")
    assert run_ensemble(made, tmp_path)["test"]["accuracy"] == 1


def test_files_of_other_questions_are_refused(settings: Make, tmp_path: Path) -> None:
    first = write(tmp_path / "a", [row("1", SURE)])
    for rows, message in (
        ([row("2", SURE)], r"row 2: question '2' \(gold a\), but .* has '1'"),
        ([row("1", SURE), row("2", SURE)], r"2 rows, but .* has 1; average like files"),
    ):
        other = write(tmp_path / "b", rows)
        made = settings("stage=ensemble", f"ensemble.members=[{first},{other}]")
        with pytest.raises(UserError, match=message):
            run_ensemble(made, tmp_path)


def test_a_selection_without_gold_is_refused(settings: Make, tmp_path: Path) -> None:
    files = [write(tmp_path / n, [row("1", SURE)], [row("v", SURE, None)]) for n in "ab"]
    made = settings("stage=ensemble", f"ensemble.members=[{','.join(files)}]", "ensemble.selection=greedy")
    with pytest.raises(UserError, match=r"rows without gold; a greedy selection needs labelled ones"):
        run_ensemble(made, tmp_path)


def test_one_file_is_no_ensemble(settings: Make) -> None:
    with pytest.raises(UserError, match=r"ensemble.members must be two or more test_predictions.csv files"):
        settings("stage=ensemble", "ensemble.members=[a.csv]")


def held_out(names: list[str], seed: int) -> list[Prediction]:
    """Rows about a picture each; members of another seed make other mistakes."""
    draws = np.random.default_rng(seed)
    found = []
    for name in names:
        p = np.exp(draws.normal(size=4) + np.array([1.0, 0, 0, 0]))
        a, b, c, d = (p / p.sum()).tolist()
        found.append(row(name, (a, b, c, d)))
    return found


def test_members_are_weighed_on_the_questions_that_all_held_out(settings: Make, tmp_path: Path) -> None:
    names = [f"v{i}" for i in range(120)]
    test, folders = [row("1", SURE)], [tmp_path / name for name in "abc"]
    for seed, (folder, family) in enumerate(zip(folders, ("qwen3_vl", "qwen3_vl", "gemma4"), strict=True)):
        everything = held_out(names, seed)
        write(folder, test, everything[10 * seed : 110])  # each was split a little otherwise
        (folder / "manifest.json").write_text(json.dumps({"family": family}))
    files = ",".join(str(folder / "test_predictions.csv") for folder in folders)
    made = settings("stage=ensemble", f"ensemble.members=[{files}]", "ensemble.selection=fitted")
    metrics = run_ensemble(made, tmp_path)
    assert metrics["valid"]["n"] == 90
    assert [member["family"] for member in metrics["weighing"]] == ["qwen3_vl", "qwen3_vl", "gemma4"]
    assert sum(member["weight"] for member in metrics["weighing"]) == pytest.approx(1)
    assert all({"accuracy", "nll", "likeness"} <= member.keys() for member in metrics["weighing"])
    for against in ("over_best_member", "over_equal_weights"):
        for name in ("nll", "accuracy"):
            middle, low, high = metrics["valid"][against][name]
            assert low <= middle <= high
    assert metrics["test"]["over_best_member"]["accuracy"][0] == 0


def test_members_without_a_common_held_out_question_are_refused(settings: Make, tmp_path: Path) -> None:
    files = [write(tmp_path / n, [row("1", SURE)], [row(n, SURE)]) for n in "ab"]
    made = settings("stage=ensemble", f"ensemble.members=[{','.join(files)}]", "ensemble.selection=fitted")
    with pytest.raises(UserError, match=r"share no question; train the members on the same data with the"):
        run_ensemble(made, tmp_path)


def test_one_id_for_two_questions_is_refused(settings: Make, tmp_path: Path) -> None:
    files = [write(tmp_path / n, [row("1", SURE)], [row("v", SURE, n)]) for n in "ab"]
    made = settings("stage=ensemble", f"ensemble.members=[{','.join(files)}]", "ensemble.selection=fitted")
    with pytest.raises(UserError, match=r"question 'v' \(gold b\), but .* has 'v' \(gold a\)"):
        run_ensemble(made, tmp_path)
