"""Standard errors and tests over pictures, ties among many trials, and the selection bias of the best.

Questions about one picture are not independent: an adapter that misreads the picture misses all of them.
Every error here is taken over pictures (clusters), and every test and bootstrap moves whole pictures. With
one question a picture all of it is the textbook's formula.

Plain arrays only; `vqa.results.metrics` applies them to predictions, `vqa.sweep.leaderboard` to trials.

Shapes: T trials, n questions, G pictures, B bootstrap draws.
"""

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vqa.question import picture_groups

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]

Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution
TIE_LEVEL = 0.05  # how often equal trials may be told apart, all trials of a study together
DRAWS = 2000  # a 95 % quantile is then known to about 2 % of itself
SEED = 0  # the same files give the same ties
CHUNK = 2**22  # counts drawn at once, to bound memory


def picture_codes(pictures: Sequence[str]) -> Codes:
    """Number the pictures of questions, shape (n,), from 0 in the order in which they first occur.

    Of questions on several pictures those that share any have one number, and those linked through others.

    Args:
        pictures: A digest for each question, or several with a blank between; "" = no picture is known, so
            that the question is on its own.
    """
    numbers: dict[str, int] = {}
    names = picture_groups(pictures)
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=np.int64)


def picture_sums(values: Floats, codes: Codes) -> Floats:
    """Add up values (..., n) over each picture's questions: shape (..., G)."""
    sums = np.zeros((*values.shape[:-1], int(codes.max()) + 1))
    for row, out in zip(values.reshape(-1, len(codes)), sums.reshape(-1, sums.shape[-1]), strict=True):
        out += np.bincount(codes, weights=row, minlength=len(out))
    return sums


def mean_error(values: Floats, codes: Codes) -> float:
    """The standard error of a mean over questions that share pictures; infinite for one picture.

    Var = G / (G - 1) * sum over pictures of (sum of its deviations)^2 / n^2. With one question a picture this
    is the variance over n.

    Args:
        values: Shape (n,).
        codes: As `picture_codes`.

    Source: CR1 of Liang & Zeger 1986 for a mean; Cameron & Miller 2015, A practitioner's guide, eq. 13.
    """
    n, clusters = len(values), int(codes.max()) + 1
    if clusters < 2:
        return math.inf
    sums = picture_sums(values - values.mean(), codes)
    return math.sqrt(clusters / (clusters - 1) * float(sums @ sums)) / n


def mean_p_value(differences: Floats, codes: Codes) -> float:
    """The two-sided p value that a mean over questions is zero: t with G - 1 degrees of freedom.

    Raises:
        ValueError: Fewer than two pictures.
    """
    from scipy.special import stdtr  # scipy.stats takes 1.4 s to import

    clusters = int(codes.max()) + 1 if len(codes) else 0
    if clusters < 2:
        raise ValueError(f"a paired test needs questions on at least 2 pictures, got {clusters}")
    error = mean_error(differences, codes)
    if np.ptp(differences) == 0 or error == 0:  # no variance: the t statistic is 0/0 or infinite
        return 1.0 if differences[0] == 0 else 0.0
    return float(2 * stdtr(clusters - 1, -abs(float(differences.mean()) / error)))


def mean_interval(differences: Floats, codes: Codes) -> tuple[float, float]:
    """The 95 % interval of a mean over questions: t with G - 1 degrees of freedom; infinite for one picture.

    It contains 0 exactly where `mean_p_value` is above 0.05.

    Args:
        differences: Shape (n,).
        codes: As `picture_codes`.
    """
    from scipy.special import stdtrit

    clusters, middle = int(codes.max()) + 1, float(differences.mean())
    if clusters < 2:
        return -math.inf, math.inf
    half = float(stdtrit(clusters - 1, 0.975)) * mean_error(differences, codes)
    return middle - half, middle + half


def share_interval(right: NDArray[np.bool_], codes: Codes) -> tuple[float, float]:
    """The 95 % Wilson interval of a share, with the effective number of questions.

    n is divided by the design effect, the clustered variance over that of independent questions, which is
    never taken below 1. Where all are right or all wrong it cannot be seen, and G questions count. Of one
    picture alone, where some are right, nothing can be said: 0 to 1.

    Args:
        right: Shape (n,).
        codes: As `picture_codes`.

    Source: Wilson 1927; effective sample size after Kish 1965, as in Franco et al. 2019.
    """
    n, p = len(right), float(right.mean())
    if 0 < p < 1 and codes.max() == 0:
        return 0.0, 1.0
    if 0 < p < 1:
        alone = p * (1 - p) / max(n - 1, 1)
        size = n / max(1.0, mean_error(right.astype(float), codes) ** 2 / alone)
    else:
        size = float(int(codes.max()) + 1)
    middle = (p + Z95**2 / (2 * size)) / (1 + Z95**2 / size)
    half = Z95 / (1 + Z95**2 / size) * math.sqrt(p * (1 - p) / size + Z95**2 / (4 * size**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def sign_flip_p_value(differences: NDArray[np.int64], codes: Codes) -> float:
    """The exact two-sided p value of whole-number differences, flipping the sign of whole pictures.

    With one question a picture and differences -1, 0 and 1 this is McNemar's exact test.

    Args:
        differences: Shape (n,), for instance right answers of one model minus those of another.
        codes: As `picture_codes`.
    """
    sums = np.bincount(codes, weights=differences.astype(float)).round().astype(np.int64)
    steps = np.abs(sums[sums != 0])
    reach = int(steps.sum())
    chances = np.zeros(2 * reach + 1)  # of each total from -reach to reach
    chances[reach] = 1.0
    for step in steps.tolist():
        moved = np.zeros_like(chances)
        moved[step:] += chances[: len(chances) - step] / 2
        moved[: len(chances) - step] += chances[step:] / 2
        chances = moved
    totals = np.abs(np.arange(-reach, reach + 1))
    return min(1.0, float(chances[totals >= abs(int(sums.sum()))].sum()))


def tie_widths(values: Floats, codes: Codes, best: int, noise: Floats | None = None) -> Floats:
    """How far from the best each trial may be and still be tied, for all trials at once, shape (T,).

    Each trial's questions are centred, so that all are equally good; then pictures are drawn with
    replacement, the same ones for all trials. The widest difference of any two, in units of that pair's own
    standard error, has a 95 % quantile: so many standard errors is a trial's difference to the best allowed.
    Testing each against the best by itself would find a false winner in 87 of 100 studies of 16 equal trials.
    With one width for all, a few wild trials would hide the differences between steady ones. The spread of a
    bootstrap over G pictures is too small by (G - 1) / G, which is put right.

    Args:
        values: NLL of every trial and question, shape (T, n).
        codes: As `picture_codes`.
        best: The trial with which the others are compared, an index.
        noise: Standard deviation of each trial's mean from training anew, shape (T,); None = none.

    Returns:
        Distances in the unit of `values`; infinite for one picture.

    Source: bootstrap of the studentised range (Tukey-Kramer, 1956); kin of Hansen, Lunde & Nason 2011.
    """
    clusters = int(codes.max()) + 1
    if clusters < 2:
        return np.full(len(values), math.inf)
    sums = picture_sums(values - values.mean(axis=1, keepdims=True), codes)
    sizes = np.bincount(codes).astype(float)
    means = np.concatenate([(counts @ sums.T) / (counts @ sizes)[:, None] for counts in _drawn(clusters)])
    means *= math.sqrt(clusters / (clusters - 1))
    if noise is not None:
        means = means + noise * np.random.default_rng(SEED + 1).standard_normal(means.shape)
    widest = np.zeros(len(means))  # by draw
    for index in range(len(values) - 1):
        differences = means[:, index + 1 :] - means[:, [index]]
        error = differences.std(axis=0)
        moved = error > 0  # two trials that answer alike differ in no draw
        if moved.any():
            np.maximum(widest, (np.abs(differences[:, moved]) / error[moved]).max(axis=1), out=widest)
    errors: Floats = (means - means[:, [best]]).std(axis=0)
    return errors * float(np.quantile(widest, 1 - TIE_LEVEL))


def picked_value(values: Floats, codes: Codes, best: int, noise: Floats | None = None) -> float:
    """The mean of the best trial, corrected for selection bias: the best of many looks better than it is.

    Pictures are drawn with replacement. Each time the trial that is best on the drawn pictures is scored on
    the pictures that were not drawn. The best trial's own mean on those serves as a control variate: where
    the same trial is picked every time, nothing is corrected.

    Args:
        values: NLL of every trial and question, shape (T, n); lower is better.
        codes: As `picture_codes`.
        best: The trial that was picked, an index.
        noise: As for `tie_widths`; the picking is then subject to it too.

    Source: BBC-CV, Tsamardinos, Greasidou & Borboudakis 2018, Bootstrapping the out-of-sample predictions.
    """
    clusters = int(codes.max()) + 1
    raw = float(values[best].mean())
    if len(values) < 2 or clusters < 3:
        return raw
    sums, sizes = picture_sums(values, codes), np.bincount(codes).astype(float)
    random = np.random.default_rng(SEED + 1)
    shifts = []
    for counts in _drawn(clusters):
        inside = (counts @ sums.T) / (counts @ sizes)[:, None]
        if noise is not None:
            inside = inside + noise * random.standard_normal(inside.shape)
        left = (counts == 0).astype(float)
        some = left.sum(axis=1) > 0
        outside = (left[some] @ sums.T) / (left[some] @ sizes)[:, None]
        chosen = inside[some].argmin(axis=1)
        shifts.append(outside[np.arange(len(chosen)), chosen] - outside[:, best])
    return raw + float(np.concatenate(shifts).mean())


def swapped_halves(nll: Floats, right: NDArray[np.bool_], codes: Codes) -> tuple[float, float]:
    """NLL and accuracy of the best epoch, with no epoch chosen on the questions it is scored on.

    Every other picture makes a half. The epoch with the lowest NLL on one half is scored on the other, and
    the other way round. The best of E epochs on the rows that are then reported looks better than it is.

    Args:
        nll: Of every epoch and question, shape (E, n).
        right: Whether the answer was right, shape (E, n).
        codes: As `picture_codes`; at least two pictures.
    """
    first = codes % 2 == 0
    chosen_nll, chosen_right = np.empty(len(codes)), np.empty(len(codes))
    for scored, chosen in ((first, ~first), (~first, first)):
        epoch = int(nll[:, chosen].mean(axis=1).argmin())
        chosen_nll[scored], chosen_right[scored] = nll[epoch, scored], right[epoch, scored]
    return float(chosen_nll.mean()), float(chosen_right.mean())


def _drawn(clusters: int) -> Iterator[Floats]:
    """How often each picture is drawn, shape (draws, G), in portions that make B draws in all."""
    if DRAWS * clusters <= CHUNK:
        yield _drawn_once(clusters)
        return
    random = np.random.default_rng(SEED)
    portion = max(1, CHUNK // clusters)
    for start in range(0, DRAWS, portion):
        yield _counts(random, min(portion, DRAWS - start), clusters)


@lru_cache(maxsize=1)  # a study asks after each trial, for the same pictures
def _drawn_once(clusters: int) -> Floats:
    return _counts(np.random.default_rng(SEED), DRAWS, clusters)


def _counts(random: np.random.Generator, rows: int, clusters: int) -> Floats:
    drawn = random.integers(0, clusters, (rows, clusters)) + clusters * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * clusters).reshape(rows, clusters).astype(float)
