"""Temperature scaling: one temperature for over- or underconfident probabilities, fitted on labelled rows.

Tempering raises probabilities to the power 1 / T and normalises them again. The order of the letters
stays, so no answer changes. Prediction files keep the model's own probabilities, and metrics.json has the
temperature.

Source: Guo et al. 2017, On Calibration of Modern Neural Networks (arXiv 1706.04599), section 4.2.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vqa.machine.files import replace_text
from vqa.question import LETTERS, by_options, picture_groups
from vqa.results.folder import CALIBRATION
from vqa.results.metrics import P_FLOOR, calibration_error, calibration_error_by_chance, nll
from vqa.results.predictions import Prediction

log = logging.getLogger(__name__)
UNCHANGED = 1.0  # the temperature that leaves probabilities as they are
LOWEST, HIGHEST = 0.05, 20.0  # bounds of the fitted temperature
PARTS = 5  # of the rows, when a temperature is judged on the rows it is fitted on
HALVINGS = 50  # bisection steps: the interval is then below the precision of a float64


def tempered(predictions: Sequence[Prediction], temperature: float) -> list[Prediction]:
    """The predictions with p ** (1 / T), normalised; at T = 1 the very same ones.

    Args:
        predictions: In any order.
        temperature: T > 0; above 1 makes them less sure.
    """
    if temperature == UNCHANGED or not predictions:
        return list(predictions)
    found = list(predictions)
    for places, log_p in _log_p(predictions):
        scaled = log_p / temperature
        p = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        for place, row in zip(places, p.tolist(), strict=True):
            found[place] = replace(predictions[place], p=tuple(row))
    return found


def fitted_temperature(predictions: Sequence[Prediction]) -> float:
    """The temperature with the lowest mean NLL on these rows and an extra one whose answer is every letter.

    Without the extra row, a model that answers all rows right would get infinite confidence. The mean NLL is
    convex in 1 / T, so bisection finds the zero of its slope; the same rows give the same number everywhere.

    Args:
        predictions: Labelled.

    Returns:
        T, kept within `LOWEST` and `HIGHEST`.

    Raises:
        ValueError: There are no predictions, or one has no gold letter.

    Source of the extra row: Platt 1999, Probabilistic Outputs for Support Vector Machines, section 2.2, whose
    targets are those of one more answer of each kind.
    """
    alike = _log_p(predictions)
    nll(predictions)  # refuses unlabelled rows in the words of the other scores
    golds = np.array([LETTERS.index(str(prediction.gold)) for prediction in predictions])
    # the extra row has the rows' mean log probabilities
    of_gold = np.empty(len(golds))
    for places, log_p in alike:
        of_gold[places] = log_p[np.arange(len(places)), golds[places]]
    more = 1 / (len(golds) + 1)
    of_any = sum(len(places) / len(golds) * float(log_p.mean()) for places, log_p in alike)
    wanted = (1 - more) * float(of_gold.mean()) + more * of_any
    low, high = 1 / HIGHEST, 1 / LOWEST
    expected = np.empty(len(golds))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        for places, log_p in alike:
            weights = np.exp(middle * (log_p - log_p.max(axis=1, keepdims=True)))
            expected[places] = (weights * log_p).sum(axis=1) / weights.sum(axis=1)
        low, high = (low, middle) if float(expected.mean()) > wanted else (middle, high)
    return 2 / (low + high)


def cross_fitted(predictions: Sequence[Prediction]) -> list[Prediction]:
    """The predictions, each tempered by a temperature that was fitted without it.

    The rows fall into `PARTS` parts by a digest of their picture, so that rows on one picture stay together
    and the parts do not depend on the order.

    Args:
        predictions: Labelled. Where all fall into one part they are returned as they are.

    Raises:
        ValueError: As `fitted_temperature`.
    """
    parts = np.array(parts_of(predictions))
    found = list(predictions)
    for part in sorted(set(parts.tolist())):
        outside = [p for p, number in zip(predictions, parts, strict=True) if number != part]
        if not outside:
            continue
        temperature = fitted_temperature(outside)
        places = np.flatnonzero(parts == part).tolist()
        inside = tempered([predictions[place] for place in places], temperature)
        for place, prediction in zip(places, inside, strict=True):
            found[place] = prediction
    return found


def chosen_temperature(predictions: Sequence[Prediction], wanted: float | Literal["auto"]) -> float:
    """The temperature for further questions.

    Args:
        predictions: Labelled rows that were not trained on.
        wanted: `inference.temperature`. A number is taken as it is; "auto" is the fitted temperature where it
            lowers the NLL of rows that it was not fitted on, and 1 where it does not: on few rows a
            temperature is as often worse as better.

    Raises:
        ValueError: As `fitted_temperature`.
    """
    if wanted != "auto":
        return wanted
    if nll(cross_fitted(predictions))[0] >= nll(predictions)[0]:
        return UNCHANGED
    return fitted_temperature(predictions)


def held_out_calibrated(
    predictions: Sequence[Prediction], wanted: float | Literal["auto"]
) -> list[Prediction]:
    """Labelled rows, each tempered with a temperature that was fitted on the others.

    Args:
        predictions: Labelled.
        wanted: As in `chosen_temperature`.

    Raises:
        ValueError: As `fitted_temperature`.
    """
    if wanted == "auto" and chosen_temperature(predictions, wanted) != UNCHANGED:
        return cross_fitted(predictions)
    return tempered(predictions, UNCHANGED if wanted == "auto" else wanted)


def calibrated_scores(predictions: Sequence[Prediction], temperature: float) -> dict[str, float]:
    """What metrics.json says of calibrated probabilities.

    Args:
        predictions: Labelled, tempered already.
        temperature: The one that is used for further questions.

    Returns:
        `temperature`, `nll` and `nll_se` in nats, `ece`, and `ece_by_chance`.
    """
    mean, error = nll(predictions)
    return {
        "temperature": temperature,
        "nll": mean,
        "nll_se": error,
        "ece": calibration_error(predictions),
        "ece_by_chance": calibration_error_by_chance(predictions),
    }


def write_calibration(adapter: Path, content: Mapping[str, Any]) -> None:
    """Keep the temperature beside an adapter, for whoever answers with it later.

    Args:
        adapter: The adapter's folder.
        content: `temperature`, `base_temperature`, `n` (rows it was fitted on), and `inference`: how they
            were answered.
    """
    replace_text(adapter / CALIBRATION, json.dumps(content, indent=2) + "\n")


def parts_of(predictions: Sequence[Prediction]) -> list[int]:
    """The part of the rows that each prediction falls into, 0 to `PARTS` - 1, whatever the order of the rows.

    Questions that share a picture, or are linked through others that do, are in one part.
    """
    groups = picture_groups([prediction.image_sha256 for prediction in predictions])
    names = [g if p.image_sha256 else p.id for p, g in zip(predictions, groups, strict=True)]
    return [hashlib.sha256(name.encode()).digest()[0] * PARTS // 256 for name in names]


def _log_p(predictions: Sequence[Prediction]) -> list[tuple[list[int], NDArray[np.float64]]]:
    """By number of options n: places, and (places, n) log probabilities, clipped at the floor of the NLL."""
    return [
        (places, np.log(np.clip(np.array([predictions[i].p for i in places], np.float64), P_FLOOR, 1.0)))
        for places in by_options(len(p.p) for p in predictions).values()
    ]
