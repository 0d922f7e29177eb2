"""Several models' answers to the same questions as one: the average, and what it gains over one of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqa.question import by_options, letters_of
from vqa.results.metrics import P_FLOOR, accuracy, calibration_error, codes_of, nll, per_question_nll
from vqa.results.predictions import Prediction
from vqa.results.uncertainty import Z95, mean_error


def average(members: Sequence[Sequence[Prediction]], weights: Sequence[float]) -> list[Prediction]:
    """Weighted mean of log probabilities, normalised again; the option mass is averaged as it is.

    Args:
        members: Each member's predictions of the same questions in the same order.
        weights: How much each member counts; they need not add up to 1.
    """
    found: dict[int, Prediction] = {}
    for n, places in by_options(len(p.p) for p in members[0]).items():
        alike = [[rows[place] for place in places] for rows in members]
        found |= zip(places, _average_alike(alike, weights, letters_of(n)), strict=True)
    return [found[place] for place in range(len(members[0]))]


def _average_alike(
    members: Sequence[Sequence[Prediction]], weights: Sequence[float], letters: Sequence[str]
) -> list[Prediction]:
    """`average` of questions that all have these letters."""
    share = np.array(weights) / sum(weights)
    log_p = np.log(np.clip([[p.p for p in rows] for rows in members], P_FLOOR, 1))  # (members, rows, letters)
    mean = np.exp(np.tensordot(share, log_p, axes=1))
    mean /= mean.sum(axis=1, keepdims=True)
    masses = share @ np.array([[p.option_mass for p in rows] for rows in members])
    found = []
    for first, p, mass in zip(members[0], mean.tolist(), masses.tolist(), strict=True):
        letter = letters[int(np.argmax(p))]
        found.append(replace(first, answer=letter, p=tuple(p), option_mass=min(mass, 1.0)))
    return found


def disagreement(members: Sequence[Sequence[Prediction]]) -> float:
    """Share of rows on which not all members give the same answer."""
    rows = list(zip(*([p.answer for p in member] for member in members), strict=True))
    return sum(len(set(row)) > 1 for row in rows) / len(rows)


def paired_gain(one: Sequence[Prediction], other: Sequence[Prediction]) -> dict[str, list[float]]:
    """The other's scores minus the first's on the same questions, each with its 95 % interval.

    Errors are taken over pictures (`vqa.results.uncertainty`): questions on one are not independent.

    Args:
        one: Labelled predictions.
        other: Those of another model, in the same order.

    Returns:
        `nll` in nats (below 0: the other is better) and `accuracy` (above 0: the other is better), each as
        [difference, low, high].

    Raises:
        ValueError: Not the same questions, or one has no gold letter.
    """
    if [p.id for p in one] != [p.id for p in other]:
        raise ValueError("a paired difference needs the same questions in the same order")
    first, second = per_question_nll(one), per_question_nll(other)
    by_nll = np.array([second[p.id] - first[p.id] for p in one])
    by_right = np.array(
        [(b.answer == b.gold) - (a.answer == a.gold) for a, b in zip(one, other, strict=True)]
    )
    pictures = codes_of(one)
    return {"nll": _with_interval(by_nll, pictures), "accuracy": _with_interval(by_right, pictures)}


@dataclass(frozen=True)
class Rows:
    """One model's answers to labelled questions, as they are and calibrated, in the same order."""

    own: Sequence[Prediction]
    calibrated: Sequence[Prediction]


def compared_with_one(one: Rows, several: Rows) -> dict[str, Any]:
    """What metrics.json says of a single member beside the average of all.

    Args:
        one: The member's answers.
        several: The average's.

    Returns:
        The member's `accuracy`, `nll`, `ece`, `calibrated_nll` and `calibrated_ece`; the average's gain over
        it as `gain` and `calibrated_gain`, see `paired_gain`.
    """
    return {
        "accuracy": accuracy(one.own),
        "nll": nll(one.own)[0],
        "ece": calibration_error(one.own),
        "calibrated_nll": nll(one.calibrated)[0],
        "calibrated_ece": calibration_error(one.calibrated),
        "gain": paired_gain(one.own, several.own),
        "calibrated_gain": paired_gain(one.calibrated, several.calibrated),
    }


def _with_interval(differences: NDArray[np.float64], pictures: NDArray[np.int64]) -> list[float]:
    mean, error = float(differences.mean()), mean_error(differences, pictures)
    return [mean, mean - Z95 * error, mean + Z95 * error]
