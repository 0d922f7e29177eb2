"""The trials of a study compared: ties with the best, its corrected score, and which to train again.

A trial that was trained again with other `train_seed`s has several trainings on the same folds. Two trials
are compared on the seeds that both have: a seed that is unlucky for one is mostly unlucky for all, and that
part of the noise drops out of the difference.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vqa.results.uncertainty import Floats, mean_error, picked_value, picture_codes, tie_widths

LEAST = 2  # questions, or pictures, that two trials must share to be compared


@dataclass(frozen=True)
class Trained:
    """One trial, as often as it was trained.

    Args:
        trial: Its number.
        nll: NLL by question id of each training, nats; the study's own first, then by rising seed.
        pictures: Digest of each question's picture by id.
    """

    trial: int
    nll: tuple[Mapping[str, float], ...]
    pictures: Mapping[str, str]

    @property
    def mean(self) -> float:
        """Mean NLL over questions and trainings; NaN without questions."""
        values = [value for training in self.nll for value in training.values()]
        return float(np.mean(values)) if values else math.nan


@dataclass(frozen=True)
class Verdict:
    """What a comparison found.

    Args:
        tied: Whether each trial is not told apart from the best, by number; None: nothing was compared.
        corrected: The best trial's NLL, corrected for selection bias (the best of many looks better than
            it is); None where nothing was compared.
        retraining_sd: Standard deviation of a trial's NLL from one training to the next; None: not measured.
        retraining_share: Its share in the variance of the best trial's NLL, were it trained once.
    """

    tied: Mapping[int, bool | None]
    corrected: float | None
    retraining_sd: float | None
    retraining_share: float | None


def standing_order(trial: Trained) -> tuple[int, float]:
    """Sort key of complete trials of a study in which some were trained again: the best first.

    Trials with the most trainings come first, among them the lowest mean NLL. A trial that was trained once
    may owe its score to luck, so it does not beat one that was trained again.
    """
    return -len(trial.nll), trial.mean


def compare(trials: Sequence[Trained]) -> Verdict:
    """Compare all complete trials of a study, given the best first, with the best."""
    best = trials[0]
    sd, apart = retraining_noise(trials)
    alike = [t for t in trials if all(training.keys() == best.nll[0].keys() for training in t.nll)]
    tied: dict[int, bool | None] = {best.trial: True}
    corrected = None
    if alike and len(best.nll[0]) >= LEAST:
        names = sorted(best.nll[0])
        tied |= _tied(alike, names, apart)
        values, codes, noise = _matrix(alike, names, apart)
        corrected = picked_value(values, codes, 0, noise)
    for other in trials:
        if other.trial not in tied:  # of other questions: compared by itself, on what the two share
            names = sorted(set(best.nll[0]).intersection(*(training.keys() for training in other.nll)))
            few = len(names) < LEAST
            tied[other.trial] = None if few else _tied([best, other], names, apart)[other.trial]
    share = None
    if sd is not None and len(best.nll[0]) >= LEAST:
        codes = picture_codes([best.pictures.get(name, "") for name in best.nll[0]])
        error = mean_error(np.array(list(best.nll[0].values())), codes)
        share = sd**2 / (sd**2 + error**2)
    return Verdict(tied, corrected, sd, share)


def retraining_noise(trials: Sequence[Trained]) -> tuple[float | None, float]:
    """How much another training moves a trial's NLL, and how much it moves it relative to other trials.

    Returns:
        The standard deviation of one trial's NLL over trainings, pooled over trials, None where nothing was
        trained again; and that of what it does not share with the best trial's under the same seed (the
        interaction of trial and seed), 0 where it is not known.
    """
    repeated = [[float(np.mean(list(nll.values()))) for nll in t.nll] for t in trials if len(t.nll) > 1]
    freedom = sum(len(values) - 1 for values in repeated)
    if not freedom:
        return None, 0.0
    own = sum(float(np.var(values)) * len(values) for values in repeated)
    sd = math.sqrt(own / freedom)
    first, others = repeated[0], repeated[1:]
    moved = [np.array(values) - first[: len(values)] for values in others if len(values) <= len(first)]
    pairs = sum(len(differences) - 1 for differences in moved)
    if not pairs:
        return sd, sd
    return sd, math.sqrt(sum(float(np.var(d)) * len(d) for d in moved) / pairs / 2)


def next_trainings(trials: Sequence[Trained], left: int) -> list[int]:
    """The trials to train again with the next seed: one round of successive elimination.

    Runs as long as trainings are left and more than one trial is tied with the best. The first round takes as
    many as can be trained twice, later ones those that are still tied. Two are needed for a race, so a last
    training alone is not spent.

    Args:
        trials: Complete trials, the best first (`standing_order` where some were trained again).
        left: Trainings that may still be spent.

    Returns:
        Numbers of trials; [] when the race is over.

    Source: successive elimination, Even-Dar, Mannor & Mansour 2006, on pictures x seeds.
    """
    if len(trials) < 2 or left < 2:
        return []
    most = len(trials[0].nll)
    front = [t for t in trials if len(t.nll) == most]
    tied = compare(trials).tied
    still = [t.trial for t in front if tied[t.trial]]
    if most == 1:
        still = still[: max(2, left // 2)]
    elif len(still) < 2:
        return []
    return still[:left] if len(still) > 1 else []


def pareto_front(points: Sequence[Sequence[float | None]]) -> list[bool | None]:
    """Say which points no other one dominates: is at most as large in every objective, and smaller in one.

    Args:
        points: Each with its objectives, lower is better; None or NaN where one is not known.

    Returns:
        One answer a point; None for a point of which an objective is not known.
    """
    known = [None if any(x is None or math.isnan(x) for x in point) else np.array(point) for point in points]
    others = [point for point in known if point is not None]

    def dominated(point: np.ndarray) -> bool:
        return any(bool((other <= point).all() and (other < point).any()) for other in others)

    return [None if point is None else not dominated(point) for point in known]


def _tied(trials: Sequence[Trained], names: Sequence[str], apart: float) -> dict[int, bool | None]:
    values, codes, noise = _matrix(trials, names, apart)
    if int(codes.max()) + 1 < LEAST:
        return {t.trial: None for t in trials[1:]}
    away = np.abs(values.mean(axis=1) - values[0].mean())
    widths = tie_widths(values, codes, 0, noise)
    pairs = zip(trials[1:], away[1:].tolist(), widths[1:].tolist(), strict=True)
    return {t.trial: far <= width for t, far, width in pairs}


def _matrix(
    trials: Sequence[Trained], names: Sequence[str], apart: float
) -> tuple[Floats, np.ndarray[tuple[int], np.dtype[np.int64]], Floats | None]:
    """NLL (T, n) with each trial on the best one's level by the seeds both have; picture codes; noise
    (T,)."""
    best = np.array([[training[name] for name in names] for training in trials[0].nll])
    rows = []
    for t in trials:
        own = np.array([[training[name] for name in names] for training in t.nll])
        seeds = min(len(own), len(best))
        # trained once, its own values to the last digit: what was drawn of it then holds with another best
        once = len(best) == 1
        rows.append(own[0] if once else best.mean(axis=0) + (own[:seeds] - best[:seeds]).mean(axis=0))
    codes = picture_codes([trials[0].pictures.get(name, "") for name in names])
    noise = apart / np.sqrt([len(t.nll) for t in trials]) if apart else None
    return np.array(rows), codes, noise
