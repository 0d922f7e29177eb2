"""`stage=ensemble`: the answers of several runs averaged, from their prediction files alone.

The runs may be of any models. Where their held-out questions are known, the members are weighed on those that
all of them held out: the split depends on data and seed, whatever the model.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vqa.answer.weighing import (
    Rows,
    Weigh,
    average,
    best_member,
    disagreement,
    family_shares,
    fitted_weights,
    gains,
    gains_over,
    greedy_weights,
    likeness,
)
from vqa.config.messages import plain_message
from vqa.config.settings import Settings
from vqa.errors import UserError
from vqa.results.calibration import UNCHANGED, calibrated_scores, chosen_temperature, tempered
from vqa.results.folder import RunFolder
from vqa.results.metrics import accuracy, collapse_alarm, nll, summary
from vqa.results.predictions import Prediction, read_predictions
from vqa.results.work import Provenance, Results, finish_run

log = logging.getLogger(__name__)


def run_ensemble(settings: Settings, folder: Path) -> dict[str, Any]:
    """Average the members' log probabilities, all alike, or as a selection weighs them on held-out rows.

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
    families, kind = [_family(path) for path in paths], settings.ensemble.selection
    weigh = _way_to_weigh(kind, families)
    valid, temperature = _held_out(paths, kind), settings.inference.temperature
    weights = weigh(valid) if valid else [1 / len(paths)] * len(paths)
    scores: dict[str, Any] = {}
    if valid:
        temperature = chosen_temperature(average(valid, weights), temperature)
        scores["valid"] = {"n": len(valid[0])} | gains(valid, weigh)
        if kind != "all":
            scores["valid_selected_on"] = summary(average(valid, weights))
    elif temperature == "auto":  # nothing to fit it on
        temperature = UNCHANGED
    scores["temperature"] = temperature
    found = average(members, weights)
    alarm = collapse_alarm(found)
    metrics: dict[str, Any] = {
        "n": len(found),
        "members": dict(zip(map(str, paths), weights, strict=True)),
        "weighing": _weighing(paths, families, weights, valid),
        "disagreement": disagreement(members),
        "alarms": [alarm] if alarm else [],
    } | scores
    if all(p.gold for p in found):
        calibrated = calibrated_scores(tempered(found, temperature), temperature)
        metrics["test"] = summary(found) | {"calibrated": calibrated}
        if valid:  # which member is best was found on other rows
            metrics["test"] |= gains_over(average(members, best_member(valid)), members, found)
        metrics["member_accuracy"] = [accuracy(member) for member in members]
    _tell(settings.lang, metrics)
    run = RunFolder(folder)
    results = Results(metrics, {run.test_predictions: found}, submitted=[p.id for p in found])
    finish_run(run, results, Provenance(settings.plain, settings.seed, started))
    return metrics


def _way_to_weigh(selection: str, families: Sequence[str]) -> Weigh:
    """What finds the weights, given the members' labelled rows."""
    if selection == "greedy":
        return greedy_weights
    if selection == "fitted":
        shares = family_shares(families)
        return lambda members: fitted_weights(members, shares)
    return lambda members: [1 / len(members)] * len(members)


def _family(path: Path) -> str:
    """The family of the model that made a file; the file itself, a family of one, where no run says it."""
    return str(RunFolder(path.parent).manifest().get("family", path))


def _weighing(
    paths: Sequence[Path], families: Sequence[str], weights: Sequence[float], valid: Sequence[Rows]
) -> list[dict[str, Any]]:
    """What metrics.json says of each member: its weight and, on the held-out rows, its scores alone."""
    found: list[dict[str, Any]] = [
        {"file": str(path), "family": family, "weight": weight}
        for path, family, weight in zip(paths, families, weights, strict=True)
    ]
    if valid:
        for row, rows, alike in zip(found, valid, likeness(valid), strict=True):
            row |= {"accuracy": accuracy(rows), "nll": nll(rows)[0], "likeness": alike}
    return found


def _tell(lang: str, metrics: dict[str, Any]) -> None:
    """Log each member's weight and scores, and what the ensemble gains."""
    for row in metrics["weighing"]:
        name = "ensemble member" if "nll" in row else "ensemble unscored"
        log.info(plain_message(lang, name, **row))
    for name in ("over_best_member", "over_equal_weights"):
        if gain := metrics.get("valid", {}).get(name):
            (by_nll, *nll_interval), (by_right, *interval) = gain["nll"], gain["accuracy"]
            ends = dict(zip(("nll_low", "nll_high", "low", "high"), [*nll_interval, *interval], strict=True))
            values = {"accuracy": by_right, "nll": by_nll, "n": metrics["valid"]["n"], **ends}
            log.info(plain_message(lang, f"ensemble {name}", **values))


def _held_out(paths: Sequence[Path], selection: str) -> list[list[Prediction]]:
    """The members' answers to the questions that all of them held out, in the first one's order.

    Returns:
        [] where that is not known and no selection needs it.

    Raises:
        UserError: A selection needs them, and a file is missing, has rows without gold answers, or shares no
            question with the first; or one id has other answers or pictures in two files.
    """
    needed = selection != "all"
    valid_paths = [RunFolder(path.parent).valid_predictions for path in paths]
    if not needed and not all(path.exists() for path in valid_paths):
        return []
    valid = [read_predictions(path) for path in valid_paths]
    unlabelled = [
        path for path, rows in zip(valid_paths, valid, strict=True) if any(p.gold is None for p in rows)
    ]
    if needed and unlabelled:
        raise UserError(f"{unlabelled[0]}: rows without gold; a {selection} selection needs labelled ones")
    by_id = [{row.id: row for row in rows} for rows in valid]
    ids = [row.id for row in valid[0] if all(row.id in rows for rows in by_id)]
    shared = [[rows[name] for name in ids] for rows in by_id]
    if not needed and (unlabelled or not ids or not _alike(shared)):
        return []
    if not ids:
        raise UserError(
            f"ensemble.selection={selection}: {', '.join(map(str, valid_paths))} share no question; train "
            "the members on the same data with the same seed and budget.holdout_share, or take "
            "ensemble.selection=all"
        )
    same_questions(valid_paths, shared)
    if len(ids) < max(map(len, valid)):
        log.info("weighed on the %d questions that all %d members held out", len(ids), len(paths))
    return shared


def _alike(shared: Sequence[Rows]) -> bool:
    """Whether rows of the same id are of the same question."""
    golds = [[(row.gold, len(row.p)) for row in rows] for rows in shared]
    return golds == golds[:1] * len(golds)


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
