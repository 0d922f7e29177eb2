"""Intervals and tests that benchmarks report hold what they promise."""

from itertools import product

import numpy as np
import pytest

from benchmarks.harness.paired import holm, interval, sign_flip_p_value


def test_holm_is_the_step_down_of_its_paper() -> None:
    # by hand: 0.01 x 4, 0.02 x 3, 0.03 x 2, then no smaller than the one before: 0.06 instead of 0.04 x 1
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_sign_flips_come_near_the_exact_p_value() -> None:
    values = np.array([1.0, 0.5, 0.5, 1.0, -0.5, 1.0, 1.0, 0.5])
    sums = [abs(values @ np.array(signs)) for signs in product((-1, 1), repeat=len(values))]
    exact = np.mean([s >= abs(values.sum()) - 1e-9 for s in sums])
    assert sign_flip_p_value(values.tolist()) == pytest.approx(exact, abs=0.01)


@pytest.mark.parametrize("values", [[], [0.0, 0.0], [0.0, 1.0]])
def test_too_few_differences_show_nothing(values: list[float]) -> None:
    assert sign_flip_p_value(values) == 1.0


def test_a_constant_gain_over_many_questions_is_significant() -> None:
    assert sign_flip_p_value([1.0] * 40) == 1 / 20_001


def test_the_interval_covers_a_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for trial in range(100):
        difficulty = rng.normal(0, 0.5, size=(1, 60))
        level = rng.normal(0, 0.05, size=(3, 1))
        scores = 0.7 + difficulty + level + rng.normal(0, 0.2, size=(3, 60))
        low, high = interval(scores, seed=trial)
        inside += low <= 0.7 <= high
    assert inside >= 90  # it errs on the wide side; 95 of 100 expected


def test_the_interval_of_a_constant_is_a_point() -> None:
    assert interval(np.full((3, 50), 0.5)) == pytest.approx((0.5, 0.5))
