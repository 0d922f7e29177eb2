"""`stage=ensemble`: the answers of several runs averaged, from their prediction files alone."""

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.results.averages import average, disagreement
from vqa.results.calibration import UNCHANGED, calibrated_scores, chosen_temperature, tempered
from vqa.results.finish import Results, finish_run
from vqa.results.folder import RunFolder
from vqa.results.manifest import Provenance
from vqa.results.metrics import collapse_alarm, summary
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
    weights, temperature = [1] * len(paths), settings.inference.temperature
    scores: dict[str, Any] = {}
    valid = _held_out(paths, needed=settings.ensemble.selection == "greedy")
    if settings.ensemble.selection == "greedy":
        weights = greedy_weights(valid)
        scores = {"valid_selected_on": summary(average(valid, weights))}
    if valid:
        temperature = chosen_temperature(average(valid, weights), temperature)
    elif temperature == "auto":  # nothing to fit it on
        temperature = UNCHANGED
    scores["temperature"] = temperature
    found = average(members, weights)
    alarm = collapse_alarm(found)
    metrics: dict[str, Any] = {
        "n": len(found),
        "members": dict(zip(map(str, paths), weights, strict=True)),
        "disagreement": disagreement(members),
        "alarms": [alarm] if alarm else [],
    } | scores
    if all(p.gold for p in found):
        calibrated = calibrated_scores(tempered(found, temperature), temperature)
        metrics["test"] = summary(found) | {"calibrated": calibrated}
        metrics["member_accuracy"] = [summary(member)["accuracy"] for member in members]
    run = RunFolder(folder)
    results = Results(metrics, {run.test_predictions: found}, submitted=[p.id for p in found])
    finish_run(run, results, Provenance(settings.plain, settings.seed, started))
    return metrics


def _held_out(paths: Sequence[Path], needed: bool) -> list[list[Prediction]]:
    """The members' answers to the same held-out questions; [] where they have none in common.

    Raises:
        UserError: They are needed, and a file is missing, other than the first, or without gold answers.
    """
    valid_paths = [RunFolder(path.parent).valid_predictions for path in paths]
    if not needed and not all(path.exists() for path in valid_paths):
        return []
    valid = [read_predictions(path) for path in valid_paths]
    ids = [[(row.id, row.gold) for row in rows] for rows in valid]
    if not needed and (ids != ids[:1] * len(ids) or any(gold is None for _, gold in ids[0])):
        return []
    same_questions(valid_paths, valid)
    for path, rows in zip(valid_paths, valid, strict=True):
        if any(row.gold is None for row in rows):
            raise UserError(f"{path}: rows without gold; a greedy selection needs labelled ones")
    return valid


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
            if len(row.p) != len(first.p):
                raise UserError(
                    f"{path}, row {number}: question {row.id!r} has {len(row.p)} options, but {paths[0]} has "
                    f"{len(first.p)}; average files of the same questions"
                )


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
