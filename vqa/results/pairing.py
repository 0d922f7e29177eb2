"""Two runs on the questions that both were scored on, paired: how far apart they are, and how sure that is.

Pairing removes what both find hard or easy. Errors are taken over pictures (`vqa.results.uncertainty`). One
training of each is compared: what training the same settings again would change is not in the intervals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vqa.errors import UserError
from vqa.results.metrics import (
    accuracy_ci95,
    codes_of,
    mcnemar_p_value,
    nll,
    paired_p_value,
    per_question_nll,
    pictures_of,
)
from vqa.results.predictions import Prediction
from vqa.results.uncertainty import Z95, Codes, Floats, mean_interval

LEVEL = 0.05  # a difference with a higher p value is a tie
Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """One score of both runs on the shared questions.

    Args:
        name: "accuracy", "NLL" (nats), or the kind of question whose accuracy it is.
        n: Shared questions.
        first: The first run's score.
        first_interval: Its 95 % interval.
        second: The second run's score.
        second_interval: Its 95 % interval.
        by: The second score minus the first.
        interval: The paired 95 % interval of `by`.
        p: Two-sided p value of no difference; None where it was not tested.
    """

    name: str
    n: int
    first: float
    first_interval: Interval
    second: float
    second_interval: Interval
    by: float
    interval: Interval
    p: float | None

    @property
    def tie(self) -> bool:
        """Whether the two are not told apart."""
        return self.p is not None and self.p >= LEVEL


@dataclass(frozen=True)
class Paired:
    """Two runs, compared.

    Args:
        n: Shared questions.
        pictures: Pictures that they are about.
        accuracy: Share of right answers.
        nll: Mean NLL, nats.
        kinds: Accuracy by kind of question; [] where kinds are not known. Not tested: among many kinds some
            differ by chance.
        both: Questions that both answer rightly.
        only_first: Those that only the first does.
        only_second: Those that only the second does.
        neither: Those that none does.
        changed: The predictions of both where exactly one is right.
    """

    n: int
    pictures: int
    accuracy: Difference
    nll: Difference
    kinds: list[Difference]
    both: int
    only_first: int
    only_second: int
    neither: int
    changed: list[tuple[Prediction, Prediction]]


def shared(
    first: Sequence[Prediction], second: Sequence[Prediction]
) -> tuple[list[Prediction], list[Prediction], int]:
    """Find the labelled questions that both answer: the same id, answer and picture.

    Returns:
        The predictions of both, in the first one's order, and how many ids both have for other questions.
    """
    others = {p.id: p for p in second if p.gold is not None}
    pairs = [(p, others[p.id]) for p in first if p.gold is not None and p.id in others]
    same = [(a, b) for a, b in pairs if a.gold == b.gold and _same_picture(a, b)]
    return [a for a, _ in same], [b for _, b in same], len(pairs) - len(same)


def _same_picture(a: Prediction, b: Prediction) -> bool:
    return not a.image_sha256 or not b.image_sha256 or a.image_sha256 == b.image_sha256


def paired(first: Sequence[Prediction], second: Sequence[Prediction]) -> Paired:
    """Compare two runs on the questions that both answer.

    Args:
        first: Labelled predictions.
        second: Labelled predictions.

    Raises:
        UserError: They share no question, or questions about one picture only.
    """
    a, b, others = shared(first, second)
    if not a:
        also = f" ({others} ids are the same, but with other pictures or answers)" if others else ""
        raise UserError(
            f"the two share no held-out question{also}: they were made from other data, or with another seed "
            "or split. Score both on one labelled file instead: vqa evaluate STUDY FILE"
        )
    codes = codes_of(a)
    pictures = int(codes.max()) + 1
    if pictures < 2:
        raise UserError(
            f"the two share {len(a)} held-out question(s) about one picture only: too few to compare. "
            "Score both on one labelled file instead: vqa evaluate STUDY FILE"
        )
    right = np.array([[p.answer == p.gold for p in run] for run in (a, b)])
    return Paired(
        n=len(a),
        pictures=pictures,
        accuracy=_accuracy("accuracy", a, b, mcnemar_p_value(b, a)),
        nll=_nll(a, b, codes),
        kinds=_kinds(a, b),
        both=int((right[0] & right[1]).sum()),
        only_first=int((right[0] & ~right[1]).sum()),
        only_second=int((~right[0] & right[1]).sum()),
        neither=int((~right[0] & ~right[1]).sum()),
        changed=[(x, y) for x, y in zip(a, b, strict=True) if (x.answer == x.gold) != (y.answer == y.gold)],
    )


def _accuracy(name: str, a: Sequence[Prediction], b: Sequence[Prediction], p: float | None) -> Difference:
    rights = [np.array([float(p.answer == p.gold) for p in run]) for run in (a, b)]
    low, high = mean_interval(rights[1] - rights[0], codes_of(a))
    own = accuracy_ci95(a), accuracy_ci95(b)
    return _difference(name, rights, own, (max(-1.0, low), min(1.0, high)), p)


def _nll(a: Sequence[Prediction], b: Sequence[Prediction], codes: Codes) -> Difference:
    by_id = per_question_nll(a), per_question_nll(b)
    losses = [np.array(list(values.values())) for values in by_id]
    own = _around(*nll(a)), _around(*nll(b))
    interval = mean_interval(losses[1] - losses[0], codes)
    return _difference("NLL", losses, own, interval, paired_p_value(*by_id, pictures_of(a)))


def _difference(
    name: str, scores: Sequence[Floats], own: tuple[Interval, Interval], interval: Interval, p: float | None
) -> Difference:
    """From both runs' scores by question, (n,) each, and their own intervals."""
    first, second = (float(values.mean()) for values in scores)
    by = float((scores[1] - scores[0]).mean())
    return Difference(name, len(scores[0]), first, own[0], second, own[1], by, interval, p)


def _kinds(a: Sequence[Prediction], b: Sequence[Prediction]) -> list[Difference]:
    found = []
    for kind in sorted({p.kind for p in a if p.kind}):
        pairs = [(x, y) for x, y in zip(a, b, strict=True) if x.kind == kind]
        found.append(_accuracy(kind, [x for x, _ in pairs], [y for _, y in pairs], None))
    return found


def _around(mean: float, error: float) -> Interval:
    return mean - Z95 * error, mean + Z95 * error
