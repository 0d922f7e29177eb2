"""Scores over questions and seeds, and tests of a difference between two methods on the same questions.

Notation: S seeds of training, Q questions.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000  # of the bootstrap: the interval's ends are good to about 3 % of its width
FLIPS = 20_000  # the smallest p value is 1 / 20,001, small enough to survive 200 comparisons

Table = NDArray[np.float64]


def interval(scores: Table, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean over seeds and questions, uncertain in both.

    Args:
        scores: (S, Q) a score of each question under each seed's adapter.
        seed: Of the draws.

    Source: the pigeonhole bootstrap, Owen 2007 (arXiv 0712.1111): rows and columns are drawn with
    replacement, each on their own. It errs on the wide side. With three seeds it cannot know how seeds differ
    beyond these three.
    """
    rng = np.random.default_rng(seed)
    seeds, questions = scores.shape
    by_seed = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=DRAWS) / seeds  # (DRAWS, S)
    by_question = rng.multinomial(questions, np.full(questions, 1 / questions), size=DRAWS) / questions
    means = np.einsum("ds,sq,dq->d", by_seed, scores, by_question)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def sign_flip_p_value(differences: Sequence[float], seed: int = 0) -> float:
    """The two-sided p value of "the mean difference is 0", by flipping signs at random.

    Args:
        differences: (Q,) of each question, the mean over seeds; what is given together is flipped together.
        seed: Of the flips.

    Returns:
        (1 + flips at least as extreme) / (1 + flips); 1.0 where nothing differs.

    Source: Fisher's randomisation test; the 1 is added so that no p value is 0 (Phipson and Smyth 2010,
    arXiv 1603.05766).
    """
    values = np.array([value for value in differences if value != 0])
    if not len(values):
        return 1.0
    rng = np.random.default_rng(seed)
    observed = abs(values.sum())
    extreme = 0
    for _ in range(20):  # in parts: FLIPS x Q numbers are not held at once
        signs = rng.integers(0, 2, size=(FLIPS // 20, len(values)), dtype=np.int8) * 2 - 1
        extreme += int((np.abs(signs @ values) >= observed - 1e-9).sum())
    return (1 + extreme) / (1 + FLIPS)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values, corrected for there being several: below 0.05 means that all such hold together, at 5 %.

    Source: S. Holm (1979), A simple sequentially rejective multiple test procedure.
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        corrected[index] = min(1.0, largest)
    return corrected
