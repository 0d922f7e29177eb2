"""`stage=ensemble`: the answers of several runs averaged, from their prediction files alone."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.question import LETTERS
from vqa.results.finish import Results, finish_run
from vqa.results.folder import RunFolder
from vqa.results.manifest import Provenance
from vqa.results.metrics import P_FLOOR, collapse_alarm, summary
from vqa.results.predictions import Prediction, read_predictions

ROUNDS_PER_MEMBER = 3


def run_ensemble(settings: Settings, folder: Path) -> dict[str, Any]:
    """Average the members' log probabilities, all alike or as a greedy selection weighs them.

    Args:
        settings: The run; `ensemble` names the files.
        folder: Gets test_predictions.csv, submission.csv, metrics.json and, last, manifest.json.

    Returns:
        What stands in metrics.json.

    Raises:
        UserError: A file is missing, files answer other questions, or a selection finds no gold answers.
    """
    started = time.time()
    paths = [Path(member).expanduser() for member in settings.ensemble.members]
    members = [read_predictions(path) for path in paths]
    same_questions(paths, members)
    weights, scores = [1] * len(paths), {}
    if settings.ensemble.selection == "greedy":
        valid_paths = [RunFolder(path.parent).valid_predictions for path in paths]
        valid = [read_predictions(path) for path in valid_paths]
        same_questions(valid_paths, valid)
        for path, rows in zip(valid_paths, valid, strict=True):
            if any(row.gold is None for row in rows):
                raise UserError(f"{path}: rows without gold; a greedy selection needs labelled ones")
        weights = greedy_weights(valid)
        scores = {"valid_selected_on": summary(average(valid, weights))}
    found = average(members, weights)
    alarm = collapse_alarm([p.answer for p in found], [p.gold for p in found])
    metrics: dict[str, Any] = {
        "n": len(found),
        "members": dict(zip(map(str, paths), weights, strict=True)),
        "disagreement": disagreement(members),
        "alarms": [alarm] if alarm else [],
    } | scores
    if all(p.gold for p in found):
        metrics["test"] = summary(found)
        metrics["member_accuracy"] = [summary(member)["accuracy"] for member in members]
    run = RunFolder(folder)
    results = Results(metrics, {run.test_predictions: found}, submitted=[p.id for p in found])
    finish_run(run, results, Provenance(settings.plain, settings.seed, started))
    return metrics


def same_questions(paths: Sequence[Path], members: Sequence[Sequence[Prediction]]) -> None:
    """Refuse files that do not answer the same questions in the same order.

    Raises:
        UserError: Says which file and row differs from the first file.
    """
    for path, rows in zip(paths[1:], members[1:], strict=True):
        if len(rows) != len(members[0]):
            raise UserError(
                f"{path}: {len(rows)} rows, but {paths[0]} has {len(members[0])}; average like files"
            )
        for number, (row, first) in enumerate(zip(rows, members[0], strict=True), start=2):
            if (row.id, row.gold) != (first.id, first.gold):
                raise UserError(
                    f"{path}, row {number}: question {row.id!r} (gold {row.gold}), but {paths[0]} has "
                    f"{first.id!r} (gold {first.gold}); average files of the same questions in the same order"
                )


def average(members: Sequence[Sequence[Prediction]], weights: Sequence[int]) -> list[Prediction]:
    """Weighted mean of log probabilities, normalised again; the option mass is averaged as it is."""
    share = np.array(weights) / sum(weights)
    log_p = np.log(np.clip([[p.p for p in rows] for rows in members], P_FLOOR, 1))  # (members, rows, 4)
    mean = np.exp(np.tensordot(share, log_p, axes=1))
    mean /= mean.sum(axis=1, keepdims=True)
    masses = share @ np.array([[p.option_mass for p in rows] for rows in members])
    found = []
    for first, p, mass in zip(members[0], mean.tolist(), masses.tolist(), strict=True):
        letter = LETTERS[int(np.argmax(p))]
        found.append(replace(first, answer=letter, p=tuple(p), option_mass=min(mass, 1.0)))
    return found


def disagreement(members: Sequence[Sequence[Prediction]]) -> float:
    """Share of rows on which not all members give the same answer."""
    rows = list(zip(*([p.answer for p in member] for member in members), strict=True))
    return sum(len(set(row)) > 1 for row in rows) / len(rows)


def greedy_weights(valid: Sequence[Sequence[Prediction]]) -> list[int]:
    """How often each member is taken when the one that lowers the NLL most is added again and again.

    Stops when none lowers it, at the latest after three rounds per member.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models (with replacement).
    """
    weights, best = [0] * len(valid), math.inf
    for _ in range(ROUNDS_PER_MEMBER * len(valid)):
        tried = []
        for i in range(len(valid)):
            more = [w + (i == j) for j, w in enumerate(weights)]
            tried.append((float(summary(average(valid, more))["nll"]), more))
        score, more = min(tried)
        if score >= best:
            break
        best, weights = score, more
    return weights
