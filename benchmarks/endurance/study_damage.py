"""What is wrong with a study after a rough time: trials lost, counted twice, or files that do not fit."""

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from optuna.trial import FrozenTrial


def damage(place: Path, trials: Sequence[FrozenTrial], wanted: int) -> list[str]:
    """Everything that is not as it should be after a sweep; empty = nothing.

    Args:
        place: The study's folder.
        trials: As its storage has them.
        wanted: Trials that it should have.
    """
    found = []
    states = Counter(trial.state.name for trial in trials)
    if states["COMPLETE"] + states["PRUNED"] != wanted or len(trials) != wanted:
        found.append(f"trials: {dict(states)}, {wanted} wanted")
    board = _rows(place / "leaderboard.csv")
    if sorted(int(row["trial"]) for row in board) != list(range(wanted)):
        found.append(f"leaderboard.csv has the trials {sorted(int(row['trial']) for row in board)}")
    for trial in trials:
        folder = place / "trials" / f"{trial.number:03d}"
        if not (folder / ".hydra" / "config.yaml").exists():
            found.append(f"{folder.name}: no configuration")
        folds = [int(row["fold"]) for row in _rows(folder / "folds.csv")]
        if folds != list(range(len(folds))) or (trial.state.name == "COMPLETE" and len(folds) != 3):
            found.append(f"{folder.name}: folds {folds}")
        answers = [row["id"] for row in _rows(folder / "oof_predictions.csv") if int(row["fold"]) in folds]
        if len(set(answers)) != len(answers):
            found.append(f"{folder.name}: a question was answered twice")
        [row] = [row for row in board if int(row["trial"]) == trial.number] or [{}]
        if trial.state.name == "COMPLETE" and abs(float(row.get("nll", "nan")) - (trial.value or 0)) > 1e-5:
            found.append(f"{folder.name}: told {trial.value}, on file {row.get('nll')}")
    return found


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
