"""Scores of predictions, each with its uncertainty, and the tests that compare two sets of them.

Errors are taken over pictures, see `vqa.results.uncertainty`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqa.question import LETTERS, Guessing, by_options, guessing
from vqa.results.predictions import NO_ANSWER, Prediction
from vqa.results.uncertainty import mean_error, mean_p_value, picture_codes, share_interval, sign_flip_p_value

P_FLOOR = 1e-12  # p_gold is clipped here: one hopeless row costs at most 27.6 nats, not infinity
CONFIDENCE_BINS = 10  # of the calibration error
# One contest team's submission was 85 % "b", scored 0.24 and went unnoticed. A letter's share is suspicious
# from chance + this part of the rest: 0.4 with four options.
COLLAPSE_PART = 0.2


def accuracy_interval(correct: int, n: int) -> tuple[float, float]:
    """The 95 % Wilson interval of a share of right answers to questions on as many pictures.

    Wilson and not the normal approximation: it stays inside 0..1 and holds at 0 and n right answers.

    Args:
        correct: Number of right answers, 0..n.
        n: Number of questions, at least 1.

    Raises:
        ValueError: `n` is below 1 or `correct` outside 0..n.

    Source: E. B. Wilson (1927), Probable inference, the law of succession, and statistical inference.
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= correct <= n:
        raise ValueError(f"correct must be in 0..n with n >= 1, got correct={correct}, n={n}")
    interval = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_ci95(predictions: Sequence[Prediction]) -> tuple[float, float]:
    """The 95 % Wilson interval of the share of right answers, over pictures.

    Raises:
        ValueError: There are no predictions or one has no gold letter.
    """
    pairs = _labelled(predictions)
    codes = codes_of(predictions)
    if int(codes.max()) + 1 == len(codes):  # every question has a picture of its own
        return accuracy_interval(sum(p.answer == gold for p, gold in pairs), len(pairs))
    return share_interval(np.array([p.answer == gold for p, gold in pairs]), codes)


def per_question_nll(predictions: Sequence[Prediction]) -> dict[str, float]:
    """Every question's -log p_gold in nats, by id, with p_gold clipped at `P_FLOOR`.

    Raises:
        ValueError: There are no predictions, one has no gold letter, or an id repeats.
    """
    values = {p.id: -math.log(max(p.p[LETTERS.index(gold)], P_FLOOR)) for p, gold in _labelled(predictions)}
    if len(values) != len(predictions):
        raise ValueError(f"ids must be unique, got {len(predictions)} predictions of {len(values)} questions")
    return values


def nll(predictions: Sequence[Prediction]) -> tuple[float, float]:
    """The mean option NLL in nats and its standard error over pictures.

    A model that knows nothing scores ln n with n options, 1.386 with four. Of a single picture the
    standard error is infinite.

    Raises:
        ValueError: As `per_question_nll`.
    """
    values = np.array(list(per_question_nll(predictions).values()))
    return float(values.mean()), mean_error(values, codes_of(predictions))


def accuracy(predictions: Sequence[Prediction]) -> float:
    """The share of right answers; no answer counts as wrong.

    Raises:
        ValueError: There are no predictions or one has no gold letter.
    """
    return sum(p.answer == gold for p, gold in _labelled(predictions)) / len(predictions)


def calibration_error(predictions: Sequence[Prediction]) -> float:
    """The expected calibration error, 0..1: how far accuracy is from confidence in ten bins.

    Confidence is the top probability. 0 is perfect; on few rows chance alone makes it larger, see
    `calibration_error_by_chance`.

    Raises:
        ValueError: There are no predictions or one has no gold letter.

    Source: Naeini et al. 2015, Obtaining Well Calibrated Probabilities Using Bayesian Binning, with equal
    widths as Guo et al. 2017 (arXiv 1706.04599, equation 3).
    """
    right = np.array([p.answer == gold for p, gold in _labelled(predictions)])
    bins, confidence = confidence_bins(predictions)
    error = 0.0
    for index in np.unique(bins):
        inside = bins == index
        gap = abs(float(right[inside].mean()) - float(confidence[inside].mean()))
        error += gap * int(inside.sum()) / len(predictions)
    return error


def calibration_error_by_chance(predictions: Sequence[Prediction]) -> float:
    """What `calibration_error` would be on average if these probabilities were right, 0..1.

    Taken as if the answers of one bin had its mean confidence. The number of right ones is then binomial, and
    its mean absolute deviation known (De Moivre 1730; Diaconis and Zabell 1991, Closed Form Summation for
    Classical Distributions).

    Args:
        predictions: Labelled or not; at least one.
    """
    bins, confidence = confidence_bins(predictions)
    groups = [confidence[bins == index] for index in np.unique(bins)]
    return sum(_mean_deviation(len(group), float(group.mean())) for group in groups) / len(predictions)


def _mean_deviation(n: int, p: float) -> float:
    """Mean absolute deviation of a binomial number of n with probability p, 0..n/2."""
    if not 0 < p < 1:
        return 0.0
    k = min(math.floor(n * p) + 1, n)
    ways = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return 2 * k * (1 - p) * math.exp(ways + k * math.log(p) + (n - k) * math.log1p(-p))


def confidence_bins(predictions: Sequence[Prediction]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The number of each prediction's bin, from 0, and its confidence, the top probability."""
    confidence = np.array([max(p.p) for p in predictions])
    edges = np.linspace(0, 1, CONFIDENCE_BINS + 1)
    bins = np.clip(np.digitize(confidence, edges) - 1, 0, CONFIDENCE_BINS - 1)
    return bins.astype(np.int64), confidence


def paired_p_value(
    a: Mapping[str, float], b: Mapping[str, float], pictures: Mapping[str, str] | None = None
) -> float:
    """The two-sided p value of a paired t-test on per-question NLL, over the questions both answer.

    Pairing removes what all models find hard or easy: far sharper than comparing two means.
    Identical scores give 1.0.

    Args:
        a: NLL by question id of one model, see `per_question_nll`.
        b: The same of another; order does not matter.
        pictures: Digest of each question's picture by id, see `pictures_of`; None: a picture each.

    Raises:
        ValueError: Fewer than two questions, or pictures, are shared.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) < 2:
        raise ValueError(f"a paired test needs at least 2 shared questions, got {len(shared)}")
    difference = np.array([a[question_id] - b[question_id] for question_id in shared])
    return mean_p_value(difference, picture_codes([(pictures or {}).get(name, "") for name in shared]))


def codes_of(predictions: Sequence[Prediction]) -> NDArray[np.int64]:
    """The number of each question's picture, see `vqa.results.uncertainty.picture_codes`."""
    return picture_codes([p.image_sha256 for p in predictions])


def pictures_of(predictions: Sequence[Prediction]) -> dict[str, str]:
    """The digest of each question's picture, by id."""
    return {p.id: p.image_sha256 for p in predictions}


def mcnemar_p_value(a: Sequence[Prediction], b: Sequence[Prediction]) -> float:
    """The exact McNemar p value of two models' right and wrong answers, for base against tuned.

    Only questions that exactly one of the two gets right count; none of those gives 1.0. Those on one picture
    go together: what is flipped is a picture.

    Args:
        a: Labelled predictions of one model.
        b: Labelled predictions of another, of the same questions in any order.

    Raises:
        ValueError: There are no predictions, one has no gold letter, or the questions differ.

    Source: Q. McNemar (1947), exact binomial form.
    """
    first = {p.id: p.answer == gold for p, gold in _labelled(a)}
    second = {p.id: p.answer == gold for p, gold in _labelled(b)}
    if first.keys() != second.keys():
        raise ValueError(
            f"both models must answer the same questions, {len(first.keys() ^ second.keys())} are in one only"
        )
    differences = [int(right) - int(second[question_id]) for question_id, right in first.items()]
    return sign_flip_p_value(np.array(differences), codes_of(a))


def confusion(predictions: Sequence[Prediction]) -> NDArray[np.int64]:
    """The confusion matrix, shape (n, n + 1): rows gold a, b, ..., columns the answer, the last: none.

    n is the largest number of options that a question has.

    Raises:
        ValueError: There are no predictions or one has no gold letter.
    """
    pairs, most = _labelled(predictions), most_options(predictions)
    counts = np.zeros((most, most + 1), dtype=np.int64)
    for p, gold in pairs:
        column = most if p.answer is None else LETTERS.index(p.answer)
        counts[LETTERS.index(gold), column] += 1
    return counts


def letter_shares(letters: Sequence[str | None]) -> dict[str, float]:
    """Each letter's share among the letters given, up to the last of them; None is left out.

    Raises:
        ValueError: Not a single letter is given.
    """
    given = [letter for letter in letters if letter is not None]
    if not given:
        raise ValueError(f"letter shares need at least one letter, got {len(letters)} rows without any")
    return {letter: given.count(letter) / len(given) for letter in LETTERS if letter <= max(given)}


def collapse_alarm(
    predictions: Sequence[Prediction], label_shares: Mapping[str, float] | None = None
) -> str | None:
    """A warning where one letter has too large a share of the answers, but not of the labels; else None.

    Too many are over 40 % with four options (`COLLAPSE_PART`).

    Args:
        predictions: At least one with an answer. Their labels are compared with, where one is known.
        label_shares: Shares of the letters among the training labels, for unlabelled rows; without any
            labels every share that large is suspicious.

    Raises:
        ValueError: There are no answers.
    """
    answers = [p.answer for p in predictions]
    if all(answer is None for answer in answers):
        raise ValueError(f"a collapse check needs at least one answer, got {len(answers)} rows without any")
    letter, share = max(letter_shares(answers).items(), key=lambda item: item[1])
    golds = [p.gold for p in predictions]
    source, expected = "the training labels", label_shares
    if any(gold is not None for gold in golds):
        source, expected = "the labels", letter_shares(golds)
    by_chance = guessing_of(predictions).accuracy
    most = by_chance + COLLAPSE_PART * (1 - by_chance)
    if share <= most or (expected is not None and expected.get(letter, 0.0) > most):
        return None
    compared = "" if expected is None else f", but {expected.get(letter, 0.0):.0%} of {source}"
    return (
        f"{share:.0%} of the answers are {letter!r}{compared}: the model may have collapsed to one letter; "
        "look at the predictions before you submit them"
    )


def summary(predictions: Sequence[Prediction]) -> dict[str, Any]:
    """The scores of labelled predictions under the names that files and MLflow use.

    Returns:
        `accuracy`, `accuracy_ci95` [low, high], `nll` and `nll_se` in nats, `ece`, `ece_by_chance`, `n`,
        `n_pictures`, `option_mass` (mean), `no_answer_rate`, `accuracy_by_kind` (empty where kinds are
        unknown), `chance`, and, where not all questions have as many options, `chance_nll` in nats and
        `options` (how many questions have each number).

    Raises:
        ValueError: As `per_question_nll`.
    """
    mean_nll, nll_se = nll(predictions)
    n = len(predictions)
    kinds = sorted({p.kind for p in predictions if p.kind})
    numbers = {str(n): len(rows) for n, rows in by_options(len(p.p) for p in predictions).items()}
    known_nothing = guessing_of(predictions)
    return {
        "accuracy": accuracy(predictions),
        "accuracy_ci95": list(accuracy_ci95(predictions)),
        "nll": mean_nll,
        "nll_se": nll_se,
        "ece": calibration_error(predictions),
        "ece_by_chance": calibration_error_by_chance(predictions),
        "n": n,
        "n_pictures": int(codes_of(predictions).max()) + 1,
        "option_mass": sum(p.option_mass for p in predictions) / n,
        "no_answer_rate": no_answer_rate(predictions),
        "accuracy_by_kind": {kind: accuracy([p for p in predictions if p.kind == kind]) for kind in kinds},
        "chance": known_nothing.accuracy,
    } | ({"chance_nll": known_nothing.nll, "options": numbers} if len(numbers) > 1 else {})


def guessing_of(predictions: Sequence[Prediction]) -> Guessing:
    """What guessing scores on these questions."""
    return guessing(len(p.p) for p in predictions)


def chance_of(metrics: Mapping[str, Any]) -> float:
    """The accuracy of guessing that a metrics.json names; early versions knew four options only."""
    return float(metrics.get("chance", 0.25))


def most_options(predictions: Sequence[Prediction]) -> int:
    """The largest number of options that a question has; 0 without questions."""
    return max((len(p.p) for p in predictions), default=0)


def no_answer_rate(predictions: Sequence[Prediction]) -> float:
    """The share of rows whose text held no letter, also of those answered by probabilities instead."""
    silent = sum(p.answer is None or NO_ANSWER in p.flag.split() for p in predictions)
    return silent / len(predictions)


def _labelled(predictions: Sequence[Prediction]) -> list[tuple[Prediction, str]]:
    if not predictions:
        raise ValueError("scores need at least one prediction, got none")
    pairs = [(p, p.gold) for p in predictions if p.gold is not None]
    if len(pairs) != len(predictions):
        first = next(p.id for p in predictions if p.gold is None)
        raise ValueError(
            f"scores need a gold letter for every question, {len(predictions) - len(pairs)} of "
            f"{len(predictions)} have none (first: {first!r})"
        )
    return pairs
