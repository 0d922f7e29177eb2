"""Several models' answers to the same questions as one: the average, how much each counts, and what it gains.

The gain of an ensemble is told on questions that it was not weighed on.

An average is a product of the members' probabilities, each to the power of its weight, normalised again. Its
NLL is convex in the weights. Weights that are fitted on few rows are pulled towards shares that know the
families only: members of one family make the same mistakes, so a family counts once, however many members it
has. How hard they are pulled is chosen by what lowers the NLL of rows that were left out.

Shapes: M members, n questions, C letters of the question with most options.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqa.question import LETTERS, by_options, letters_of
from vqa.results.calibration import parts_of
from vqa.results.metrics import P_FLOOR, accuracy, calibration_error, codes_of, nll, per_question_nll, summary
from vqa.results.predictions import Prediction
from vqa.results.uncertainty import Z95, mean_error

Rows = Sequence[Prediction]
Weigh = Callable[[Sequence[Rows]], list[float]]  # the members' labelled rows -> their weights
ROUNDS_PER_MEMBER = 3
# Penalties on squared distances from the families' shares, nats; the strongest first. Infinite: these shares.
PULLS = (math.inf, 1.0, 0.1, 0.01, 0.001)
ABSENT = -1e4  # log probability of a letter that a question does not have


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
class Answers:
    """One model's answers to labelled questions, as they are and calibrated, in the same order."""

    own: Sequence[Prediction]
    calibrated: Sequence[Prediction]


def compared_with_one(one: Answers, several: Answers) -> dict[str, Any]:
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


def family_shares(families: Sequence[str]) -> list[float]:
    """Weights by family alone: each family has the same share, and its members have equal parts of it."""
    members = Counter(families)
    return [1 / (len(members) * members[family]) for family in families]


def greedy_weights(members: Sequence[Rows]) -> list[float]:
    """Shares of the members when the one that lowers the NLL most is added again and again.

    Stops when none lowers it, at the latest after three rounds per member.

    Source: Caruana et al. 2004, Ensemble selection from libraries of models (with replacement).
    """
    taken, best = [0] * len(members), math.inf
    for _ in range(ROUNDS_PER_MEMBER * len(members)):
        tried = []
        for i in range(len(members)):
            more = [times + (i == j) for j, times in enumerate(taken)]
            tried.append((float(summary(average(members, more))["nll"]), more))
        score, more = min(tried)
        if score >= best:
            break
        best, taken = score, more
    return [times / sum(taken) for times in taken]


def fitted_weights(members: Sequence[Rows], shares: Sequence[float]) -> list[float]:
    """Weights with the lowest NLL, pulled towards shares as far as the rows are too few to tell otherwise.

    Of the pulls whose NLL on rows left out is within one standard error of the best one, the strongest is
    taken. Rows on one picture are left out together.

    Args:
        members: Labelled rows of each member, the same questions in the same order.
        shares: What the weights are pulled towards, adding up to 1.

    Returns:
        Weights of at least 0 that add up to 1; the shares where all rows fall into one part.

    Source: stacking with weights of at least 0, Breiman 1996, Stacked regressions, and van der Laan et al.
    2007, Super learner; one standard error, Breiman et al. 1984, Classification and regression trees.
    """
    pool = _Pool.of(members)
    parts = np.array(parts_of(members[0]))
    if len(set(parts.tolist())) == 1:
        return list(shares)
    left_out = np.array([_left_out_nll(pool, np.array(shares), pull, parts) for pull in PULLS])
    codes = codes_of(members[0])
    best = left_out[int(left_out.mean(axis=1).argmin())]
    worse = left_out - best
    pull = next(p for p, by in zip(PULLS, worse, strict=True) if by.mean() <= mean_error(by, codes))
    return pool.weights(np.array(shares), pull)


def cross_fitted_average(members: Sequence[Rows], weigh: Weigh) -> list[Prediction] | None:
    """The average of labelled rows, each weighed by weights that were found without it.

    Args:
        members: Labelled rows of each member.
        weigh: Finds weights.

    Returns:
        None where all rows fall into one part, so that none can be left out.
    """
    parts = parts_of(members[0])
    if len(set(parts)) == 1:
        return None
    found = list(members[0])
    for part in sorted(set(parts)):
        inside = [place for place, number in enumerate(parts) if number == part]
        others = [[rows[i] for i, number in enumerate(parts) if number != part] for rows in members]
        together = average([[rows[i] for i in inside] for rows in members], weigh(others))
        for place, row in zip(inside, together, strict=True):
            found[place] = row
    return found


def best_member(members: Sequence[Rows]) -> list[float]:
    """All weight on the member with the lowest NLL."""
    best = min(range(len(members)), key=lambda i: nll(members[i])[0])
    return [float(i == best) for i in range(len(members))]


def gains(members: Sequence[Rows], weigh: Weigh) -> dict[str, Any]:
    """What the ensemble gains on held-out rows, none of which is scored by what was chosen on it.

    The weights, and which member is the best one, are found on the rows of the other parts.

    Args:
        members: Labelled rows of each member.
        weigh: Finds weights.

    Returns:
        The ensemble's `accuracy` and `nll`, and `over_best_member` and `over_equal_weights` as
        `vqa.results.predictions.paired_gain`; {} where no rows can be left out.
    """
    together = cross_fitted_average(members, weigh)
    best = cross_fitted_average(members, best_member)
    if together is None or best is None:
        return {}
    return {"accuracy": accuracy(together), "nll": nll(together)[0]} | gains_over(best, members, together)


def gains_over(best: Rows, members: Sequence[Rows], together: Rows) -> dict[str, Any]:
    """What the average gains over the best member and over equal weights, see `paired_gain`."""
    return {
        "over_best_member": paired_gain(best, together),
        "over_equal_weights": paired_gain(average(members, [1] * len(members)), together),
    }


def likeness(members: Sequence[Rows]) -> list[float]:
    """How alike each member's mistakes are to the others': mean correlation of NLL by question, shape (M,).

    A member whose NLL is the same on all rows is like none.
    """
    values = np.array([list(per_question_nll(rows).values()) for rows in members])
    spread = values.std(axis=1)
    centred = (values - values.mean(axis=1, keepdims=True)) / np.where(spread > 0, spread, 1)[:, None]
    correlation = centred @ centred.T / values.shape[1]
    others = correlation.sum(axis=1) - correlation.diagonal()
    return [float(value) for value in others / (len(members) - 1)]


@dataclass(frozen=True)
class _Pool:
    """Log probabilities of the members.

    Args:
        log_p: (M, n, C).
        gold: (M, n), those of the right letters.
    """

    log_p: NDArray[np.float64]
    gold: NDArray[np.float64]

    @classmethod
    def of(cls, members: Sequence[Rows]) -> "_Pool":
        most = max(len(row.p) for row in members[0])
        log_p = np.full((len(members), len(members[0]), most), ABSENT)
        for m, rows in enumerate(members):
            for i, row in enumerate(rows):
                log_p[m, i, : len(row.p)] = np.log(np.clip(row.p, P_FLOOR, 1))
        right = [LETTERS.index(str(row.gold)) for row in members[0]]
        return cls(log_p, log_p[:, np.arange(len(right)), right])

    def rows(self, chosen: NDArray[np.bool_]) -> "_Pool":
        return _Pool(self.log_p[:, chosen], self.gold[:, chosen])

    def nll(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """NLL of every row (n,), and the gradient of their mean by the weights (M,)."""
        mixed = np.tensordot(weights, self.log_p, axes=1)
        top = mixed.max(axis=1, keepdims=True)
        p = np.exp(mixed - top)
        total = p.sum(axis=1, keepdims=True)
        values = (top + np.log(total))[:, 0] - weights @ self.gold
        slope = np.einsum("mnc,nc->m", self.log_p, p / total) - self.gold.sum(axis=1)
        return values, slope / len(values)

    def weights(self, shares: NDArray[np.float64], pull: float) -> list[float]:
        """Weights with the lowest mean NLL and penalty."""
        from scipy.optimize import minimize

        if math.isinf(pull):
            return [float(share) for share in shares]

        def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            values, slope = self.nll(weights)
            away = weights - shares
            return float(values.mean() + pull * away @ away), slope + 2 * pull * away

        one = {"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like}
        bounds = [(0.0, 1.0)] * len(shares)
        found = minimize(loss, shares, jac=True, method="SLSQP", bounds=bounds, constraints=[one])
        kept = np.clip(found.x, 0, 1)
        return [float(weight) for weight in kept / kept.sum()]


def _left_out_nll(
    pool: _Pool, shares: NDArray[np.float64], pull: float, parts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """NLL of every row under weights that were found without its part, shape (n,)."""
    values = np.empty(len(parts))
    for part in np.unique(parts):
        weights = np.array(pool.rows(parts != part).weights(shares, pull))
        values[parts == part] = pool.rows(parts == part).nll(weights)[0]
    return values
