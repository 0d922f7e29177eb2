"""Standard errors and tests over pictures, ties among many trials, and the selection bias of the best.

Questions about one picture are not independent: an adapter that misreads the picture misses all of them.
Every error here is taken over pictures (clusters), and every test and bootstrap moves whole pictures. With
one question a picture all of it is the textbook's formula.

Plain arrays only; `vqa.results.metrics` applies them to predictions, `vqa.sweep.leaderboard` to trials.

Shapes: T trials, n questions, G pictures, B bootstrap draws.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
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
MOST_KEPT = 1000  # trials of which the draws are kept: 48 KB each


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
    if int(codes.max()) == 0:
        return np.full(len(values), math.inf)
    study = _resampling(_codes(codes))
    drawn = study.of(values)
    means = np.array([trial.centred for trial in drawn.values()])
    if noise is None:
        widest = study.widest_of(drawn)
    else:
        means = means + noise[:, None] * np.random.default_rng(SEED + 1).standard_normal(means.shape[::-1]).T
        widest = np.zeros(DRAWS)
        for index in range(1, len(means)):
            np.maximum(widest, _widest_to(means[index], means[:index]), out=widest)
    errors: Floats = (means - means[best]).std(axis=1)
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
    drawn = _resampling(_codes(codes)).of(values)
    inside = np.array([trial.inside for trial in drawn.values()])
    outside = np.array([trial.outside for trial in drawn.values()])
    if noise is not None:
        random = np.random.default_rng(SEED + 1)
        inside = inside + noise[:, None] * random.standard_normal(inside.shape[::-1]).T
    some = np.isfinite(outside[0])
    inside, outside = inside[:, some], outside[:, some]
    chosen = inside.argmin(axis=0)
    return raw + float((outside[chosen, np.arange(len(chosen))] - outside[best]).mean())


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


@dataclass(frozen=True)
class Resampled:
    """A trial under every draw of pictures; each of shape (B,).

    Args:
        inside: Its mean on the drawn pictures.
        outside: Its mean on the pictures that were not drawn; NaN where all were.
        centred: Its mean on the drawn pictures, were its mean 0; spread as over G independent pictures.
    """

    inside: Floats
    outside: Floats
    centred: Floats


class Resampling:
    """The draws of one set of pictures, and what they said of the trials so far.

    A study compares all its trials whenever one ends. What was found of the others is kept: a trial is drawn
    from once, and held against each other one once. Each is computed by itself, so that its last digit does
    not depend on which trials came together.

    Args:
        codes: As `picture_codes`; at least two pictures.
    """

    def __init__(self, codes: Codes) -> None:
        self.codes = codes
        self.sizes = np.bincount(codes).astype(float)
        self._known: dict[bytes, Resampled] = {}
        self._ranged: dict[bytes, Resampled] = {}  # the trials that `_widest` is over
        self._widest = np.zeros(DRAWS)

    def of(self, values: Floats) -> dict[int, Resampled]:
        """What the draws say of trials (T, n), by index."""
        names = [row.tobytes() for row in np.ascontiguousarray(values, dtype=np.float64)]
        new = {name: row for name, row in zip(names, values, strict=True) if name not in self._known}
        if len(self._known) + len(new) > MOST_KEPT:
            self._known = {name: self._known[name] for name in names if name in self._known}
        self._known |= self._draw(new)
        return {index: self._known[name] for index, name in enumerate(names)}

    def _draw(self, rows: Mapping[bytes, Floats]) -> dict[bytes, Resampled]:
        if not rows:
            return {}
        clusters = len(self.sizes)
        sums = {name: picture_sums(row, self.codes) for name, row in rows.items()}
        centred = {name: picture_sums(row - row.mean(), self.codes) for name, row in rows.items()}
        parts: dict[bytes, list[Floats]] = {name: [] for name in rows}
        for counts in _drawn(clusters):
            left = (counts == 0).astype(float)
            drawn, not_drawn = counts @ self.sizes, left @ self.sizes
            not_drawn[not_drawn == 0] = math.nan
            for name in rows:
                both = counts @ sums[name] / drawn, left @ sums[name] / not_drawn
                parts[name].append(np.array([*both, counts @ centred[name] / drawn]))
        wholes = {name: np.concatenate(part, axis=1) for name, part in parts.items()}
        spread = math.sqrt(clusters / (clusters - 1))
        return {name: Resampled(whole[0], whole[1], whole[2] * spread) for name, whole in wholes.items()}

    def widest_of(self, trials: Mapping[int, Resampled]) -> Floats:
        """The widest difference of any two trials in units of that pair's standard error, by draw: (B,)."""
        named = {trial.centred.tobytes(): trial for trial in trials.values()}
        if not self._ranged.keys() <= named.keys():  # another study's, or one of these was read anew
            self._ranged, self._widest = {}, np.zeros(DRAWS)
        for name in named.keys() - self._ranged.keys():
            if self._ranged:
                others = np.array([trial.centred for trial in self._ranged.values()])
                self._widest = np.maximum(self._widest, _widest_to(named[name].centred, others))
            self._ranged[name] = named[name]
        return self._widest


def _widest_to(mean: Floats, others: Floats) -> Floats:
    """The widest difference of one trial (B,) to others (T, B) in units of the pair's standard error: (B,).

    Two trials that answer alike differ in no draw.
    """
    differences = others - mean
    errors = differences.std(axis=1)
    moved = errors > 0
    if not moved.any():
        return np.zeros(len(mean))
    widest: Floats = (np.abs(differences[moved]) / errors[moved, None]).max(axis=0)
    return widest


def _codes(codes: Codes) -> bytes:
    return np.ascontiguousarray(codes, dtype=np.int64).tobytes()


@lru_cache(maxsize=4)  # trials of a study may have answered several sets of questions
def _resampling(codes: bytes) -> Resampling:
    return Resampling(np.frombuffer(codes, dtype=np.int64))


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
