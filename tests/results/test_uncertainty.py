"""Errors by picture and ties, each against a plain computation of the same number."""

import math
import random

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp, ttest_rel

from vqa.results.uncertainty import (
    _resampling,
    mean_error,
    mean_p_value,
    picked_value,
    picture_codes,
    picture_sums,
    share_interval,
    sign_flip_p_value,
    swapped_halves,
    tie_widths,
)


def drawn(
    trials: int, pictures: int, each: int, seed: int, shared: float = 0.3
) -> tuple[np.ndarray, np.ndarray]:
    """NLL of equally good trials, (T, n), and the codes; a picture moves all its questions of a trial."""
    random = np.random.default_rng(seed)
    codes = np.repeat(np.arange(pictures), each)
    hard = random.gamma(1.0, 0.5, pictures * each)  # what all trials find hard
    own = random.normal(0, math.sqrt(1 - shared), (trials, pictures * each))
    moved = random.normal(0, math.sqrt(shared), (trials, pictures))
    return hard + 0.4 * (own + moved[:, codes]), codes


def test_questions_without_a_picture_are_alone() -> None:
    assert picture_codes(["x", "", "y", "", "x"]).tolist() == [0, 1, 2, 3, 0]


def test_the_error_is_cr1_written_out() -> None:
    values, pictures = [0.1, 0.5, 0.9, 1.4, 0.3], ["x", "y", "x", "z", "z"]
    mean = sum(values) / 5
    total = sum(
        sum(v - mean for v, p in zip(values, pictures, strict=True) if p == name) ** 2 for name in "xyz"
    )
    expected = math.sqrt(3 / 2 * total / 5**2)
    assert mean_error(np.array(values), picture_codes(pictures)) == pytest.approx(expected, rel=1e-12)


def test_with_one_question_a_picture_it_is_the_textbooks_error_and_test() -> None:
    draw = random.Random(1)
    values = np.array([draw.gauss(0.1, 1) for _ in range(40)])
    alone = picture_codes([""] * 40)
    assert mean_error(values, alone) == pytest.approx(values.std(ddof=1) / math.sqrt(40), rel=1e-12)
    assert mean_p_value(values, alone) == pytest.approx(ttest_1samp(values, 0).pvalue, rel=1e-9)


def test_copies_of_a_question_add_nothing() -> None:
    values = np.array([0.2, 0.9, 0.4, 0.6, 0.1])
    once = mean_error(values, np.arange(5)), mean_p_value(values - 0.3, np.arange(5))
    codes = np.repeat(np.arange(5), 6)
    thrice = mean_error(values[codes], codes), mean_p_value(values[codes] - 0.3, codes)
    assert thrice == pytest.approx(once, rel=1e-12)


def test_one_picture_tells_nothing() -> None:
    one = np.zeros(4, dtype=np.int64)
    assert mean_error(np.array([0.1, 0.2, 0.3, 0.4]), one) == math.inf
    assert tie_widths(np.array([[0.1, 0.2, 0.3, 0.4], [1.0, 1.0, 1.0, 1.0]]), one, 0)[1] == math.inf
    with pytest.raises(ValueError, match="at least 2 pictures, got 1"):
        mean_p_value(np.array([0.1, 0.2, 0.3, 0.4]), one)


@pytest.mark.parametrize(("right", "n"), [(0, 9), (4, 9), (9, 9), (73, 100)])
def test_the_interval_is_wilsons_where_each_question_has_its_picture(right: int, n: int) -> None:
    found = share_interval(np.arange(n) < right, np.arange(n))
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert found == pytest.approx((expected.low, expected.high), abs=1e-9)


@pytest.mark.parametrize("right", [0, 7, 20])
def test_the_interval_of_copies_is_that_of_the_pictures(right: int) -> None:
    once = np.arange(20) < right
    codes = np.repeat(np.arange(20), 3)
    assert share_interval(once[codes], codes) == pytest.approx(share_interval(once, np.arange(20)), abs=5e-3)


def test_flipping_pictures_is_mcnemars_exact_test_where_each_question_has_its_own() -> None:
    differences = np.array([1] * 9 + [-1] * 3 + [0] * 30)
    assert sign_flip_p_value(differences, np.arange(42)) == pytest.approx(binomtest(9, 12).pvalue, rel=1e-9)
    assert sign_flip_p_value(np.zeros(5, dtype=np.int64), np.arange(5)) == 1.0


def test_flipping_pictures_counts_all_signs() -> None:
    differences, codes = np.array([1, 1, 1, -1, 1, 0, 1, -1, 1]), np.array([0, 0, 0, 1, 2, 2, 3, 4, 4])
    sums = [3, -1, 1, 1, 0]
    totals = [sum(s if bits >> i & 1 else -s for i, s in enumerate(sums)) for bits in range(2**5)]
    expected = sum(abs(total) >= 4 for total in totals) / 2**5
    assert sign_flip_p_value(differences, codes) == pytest.approx(expected, rel=1e-12)


def test_the_tie_widths_are_the_studentised_range_under_resampled_pictures() -> None:
    values, codes = drawn(5, 60, 3, seed=2)
    values[4] += 2 * (values[4] - values[4].mean())  # a wild one
    centred = values - values.mean(axis=1, keepdims=True)
    draw, means = np.random.default_rng(9), []
    for _ in range(1500):
        questions = np.concatenate([np.flatnonzero(codes == g) for g in draw.integers(0, 60, 60)])
        means.append(centred[:, questions].mean(axis=1))
    found = np.array(means) * math.sqrt(60 / 59)
    error = {(i, j): (found[:, i] - found[:, j]).std() for i in range(5) for j in range(i)}
    widest = [max(abs(row[i] - row[j]) / e for (i, j), e in error.items()) for row in found]
    allowed = float(np.quantile(widest, 0.95))
    widths = tie_widths(values, codes, 2)
    assert widths[[3, 4]] == pytest.approx([error[3, 2] * allowed, error[4, 2] * allowed], rel=0.07)
    assert widths[2] == 0
    assert widths[4] > 1.5 * widths[3]
    assert (tie_widths(values, codes, 2) == widths).all()


def test_two_trials_are_as_wide_as_the_paired_test() -> None:
    values, codes = drawn(2, 300, 1, seed=3)
    error = mean_error(values[0] - values[1], codes)
    assert tie_widths(values, codes, 0)[1] == pytest.approx(1.96 * error, rel=0.06)
    shift = values[0].mean() - values[1].mean() + 1.96 * error
    assert ttest_rel(values[0] - shift, values[1]).pvalue == pytest.approx(0.05, abs=0.005)


@pytest.mark.parametrize(("trials", "each"), [(2, 1), (8, 6), (16, 1)])
def test_equal_trials_are_told_apart_in_about_one_study_of_twenty(trials: int, each: int) -> None:
    studies, found = 120, 0
    for seed in range(studies):
        values, codes = drawn(trials, 150 // each, each, seed=1000 + seed)
        means = values.mean(axis=1)
        best = int(means.argmin())
        found += bool((means - means[best] > tie_widths(values, codes, best)).any())
    assert found <= 13  # at 5 % more have a chance of 0.3 %


def test_noise_of_training_widens_ties() -> None:
    values, codes = drawn(2, 200, 1, seed=4)
    plain = tie_widths(values, codes, 0)[1]
    wide = tie_widths(values, codes, 0, np.full(2, 0.2))[1]
    assert wide == pytest.approx(math.hypot(plain, 1.96 * 0.2 * math.sqrt(2)), rel=0.06)


def test_a_picked_value_is_corrected_by_what_the_picking_gains() -> None:
    gains, corrected = [], []
    for seed in range(25):  # equal trials: the true value of all of them is the mean that was drawn for them
        values, codes = drawn(16, 150, 1, seed=seed)
        best = int(values.mean(axis=1).argmin())
        truth = values.mean()
        gains.append(truth - values[best].mean())
        corrected.append(picked_value(values, codes, best) - values[best].mean())
    assert np.mean(gains) > 0.03
    assert np.mean(corrected) == pytest.approx(np.mean(gains), rel=0.5)
    assert np.mean(corrected) > 0.5 * np.mean(gains)


def test_a_picked_value_is_bbc_cv_written_out() -> None:
    values, codes = drawn(4, 40, 2, seed=5)
    best = int(values.mean(axis=1).argmin())
    draw, outside = np.random.default_rng(7), []
    for _ in range(2000):
        taken = draw.integers(0, 40, 40)
        inside = np.concatenate([np.flatnonzero(codes == g) for g in taken])
        chosen = values[:, inside].mean(axis=1).argmin()
        left = ~np.isin(codes, taken)
        outside.append(values[chosen, left].mean())
    assert picked_value(values, codes, best) == pytest.approx(np.mean(outside), abs=0.01)


def test_what_is_always_picked_needs_no_correction() -> None:
    values, codes = drawn(3, 50, 1, seed=6)
    values[1] -= 5
    assert picked_value(values, codes, 1) == values[1].mean()
    assert picked_value(values[:1], codes, 0) == values[0].mean()


def test_sums_by_picture_keep_the_shape() -> None:
    values = np.arange(12.0).reshape(2, 6)
    assert picture_sums(values, np.array([0, 0, 1, 1, 1, 2])).tolist() == [[1, 9, 5], [13, 27, 11]]


def test_an_epoch_is_scored_on_the_half_that_did_not_choose_it() -> None:
    codes = np.array([0, 1, 2, 3, 0])  # the first, third and last question are one half
    nll = np.array([[0.1, 0.9, 0.1, 0.8, 0.1], [0.5, 0.2, 0.6, 0.3, 0.7]])
    right = np.array([[True, False, True, False, True], [False, True, False, True, True]])
    # the first half prefers epoch 0, the second epoch 1: each is scored with the other's choice
    expected = (0.5 + 0.6 + 0.7 + 0.9 + 0.8) / 5, 1 / 5
    assert swapped_halves(nll, right, codes) == pytest.approx(expected)
    assert nll[1].mean() < expected[0]


def test_what_is_kept_of_earlier_trials_changes_no_digit() -> None:
    values, codes = drawn(12, 30, 3, seed=5)
    whole = tie_widths(values, codes, 0), picked_value(values, codes, 0)
    order = np.random.default_rng(2).permutation(12)
    _resampling.cache_clear()
    for known in range(2, 12):  # one after the other, each time with the best in front
        tie_widths(values[order[:known]], codes, 1)
        picked_value(values[order[:known]], codes, 1)
    again = tie_widths(values, codes, 0), picked_value(values, codes, 0)
    assert (again[0] == whole[0]).all()
    assert again[1] == whole[1]
    fewer = tie_widths(values[:5], codes, 0)  # of another study on the same pictures
    _resampling.cache_clear()
    assert (tie_widths(values[:5], codes, 0) == fewer).all()
