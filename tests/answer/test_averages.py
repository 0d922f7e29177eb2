"""The average of several models: logarithms, disputes, and what it gains over one of them."""

import math

import numpy as np
import pytest
from scipy.stats import norm

from vqa.answer.weighing import Answers, average, compared_with_one, disagreement, paired_gain
from vqa.results.predictions import Prediction

P = tuple[float, float, float, float]
SURE: P = (0.7, 0.1, 0.1, 0.1)
WRONG: P = (0.1, 0.7, 0.1, 0.1)


def row(name: str, p: P, gold: str | None = "a") -> Prediction:
    return Prediction(name, "abcd"[p.index(max(p))], p, 1.0, gold)


def test_probabilities_are_averaged_as_logarithms() -> None:
    [found] = average([[row("1", SURE)], [row("1", (0.4, 0.4, 0.1, 0.1))]], [1, 1])
    means = [math.sqrt(x * y) for x, y in zip(SURE, (0.4, 0.4, 0.1, 0.1), strict=True)]
    assert found.p == pytest.approx([m / sum(means) for m in means])
    assert found.answer == "a"


def test_the_share_of_rows_in_dispute() -> None:
    assert disagreement([[row("1", SURE), row("2", SURE)], [row("1", WRONG), row("2", SURE)]]) == 0.5


def test_a_gain_is_paired_and_has_its_interval() -> None:
    one = [row("1", WRONG), row("2", SURE), row("3", SURE), row("4", WRONG)]
    other = [row(str(i), SURE) for i in range(1, 5)]
    found = paired_gain(one, other)
    step = math.log(0.1 / 0.7)
    differences = np.array([step, 0, 0, step])
    error = norm.ppf(0.975) * differences.std(ddof=1) / 2
    assert found["nll"] == pytest.approx([step / 2, step / 2 - error, step / 2 + error])
    assert found["accuracy"][0] == 0.5
    assert paired_gain(one, one)["nll"] == [0, 0, 0]
    with pytest.raises(ValueError, match=r"same questions in the same order"):
        paired_gain(one, other[::-1])


def test_one_member_stands_beside_the_average() -> None:
    one = [row("1", WRONG), row("2", SURE)]
    several = [row("1", SURE), row("2", SURE)]
    found = compared_with_one(Answers(one, several), Answers(several, several))
    assert (found["accuracy"], found["gain"]["accuracy"][0]) == (0.5, 0.5)
    assert found["calibrated_nll"] == pytest.approx(-math.log(0.7))
    assert found["calibrated_gain"]["nll"] == [0, 0, 0]
