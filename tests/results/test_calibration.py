"""One temperature: the one that fits, never judged on its own rows, and never infinitely sure."""

import math
import random
from pathlib import Path

import pytest

from vqa.question import letters_of
from vqa.results.calibration import (
    UNCHANGED,
    calibrated_scores,
    chosen_temperature,
    cross_fitted,
    fitted_temperature,
    held_out_calibrated,
    tempered,
    write_calibration,
)
from vqa.results.folder import CALIBRATION, read_json
from vqa.results.metrics import calibration_error, calibration_error_by_chance, nll
from vqa.results.predictions import Prediction

FOUR = letters_of(4)


def drawn(n: int, sharpness: float, seed: int = 0) -> list[Prediction]:
    """Answers whose logits are `sharpness` times those that the gold letters were drawn from."""
    draw = random.Random(seed)
    found = []
    for number in range(n):
        logits = [draw.gauss(0, 2) for _ in FOUR]
        true = [math.exp(x) for x in logits]
        [gold] = draw.choices(FOUR, true)
        p = [math.exp(sharpness * x) for x in logits]
        a, b, c, d = (x / sum(p) for x in p)
        answer = FOUR[p.index(max(p))]
        found.append(Prediction(str(number), answer, (a, b, c, d), 1.0, gold))
    return found


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_what_made_the_model_too_sure(sharpness: float) -> None:
    # logits times 3 are right again at T = 3; 4000 rows know it to about 3 %
    assert fitted_temperature(drawn(4000, sharpness)) == pytest.approx(sharpness, rel=0.08)


def test_no_temperature_nearby_is_better() -> None:
    rows = drawn(1000, 2.0)
    found = fitted_temperature(rows)
    best = nll(tempered(rows, found))[0]
    assert all(nll(tempered(rows, found * factor))[0] > best for factor in (0.9, 1.1))
    assert best < nll(rows)[0]


def test_tempering_changes_no_answer_and_one_changes_nothing() -> None:
    rows = drawn(50, 2.0)
    assert tempered(rows, UNCHANGED) == rows
    softer = tempered(rows, 3.0)
    for before, after in zip(rows, softer, strict=True):
        assert (after.id, after.answer, after.gold) == (before.id, before.answer, before.gold)
        assert max(after.p) < max(before.p)
        assert sorted(range(4), key=after.p.__getitem__) == sorted(range(4), key=before.p.__getitem__)
    back = tempered(softer, 1 / 3)
    assert [p.p for p in back] == [pytest.approx(p.p) for p in rows]
    assert tempered([], 2.0) == []


def test_probability_zero_stays_a_probability() -> None:
    [found] = tempered([Prediction("1", "a", (1.0, 0.0, 0.0, 0.0), 1.0, "b")], 4.4)
    assert sum(found.p) == pytest.approx(1)
    assert 0 < found.p[1] < 0.01


def test_a_model_that_is_never_wrong_is_not_made_infinitely_sure() -> None:
    right = [Prediction(str(i), "a", (0.91, 0.03, 0.03, 0.03), 1.0, "a") for i in range(50)]
    # with one more row of any answer: 51 rows, of which 50.25 have "a" where they all say so alike
    expected = math.log((50 + 1 / 4) / (3 / 4 / 3)) / math.log(0.91 / 0.03)
    assert 1 / fitted_temperature(right) == pytest.approx(expected, rel=1e-6)


def test_rows_do_not_judge_their_own_temperature() -> None:
    rows = drawn(200, 2.0)
    found = cross_fitted(rows)
    assert [p.id for p in found] == [p.id for p in rows]
    assert cross_fitted(rows[::-1])[::-1] == found  # the parts do not depend on the order
    own = nll(tempered(rows, fitted_temperature(rows)))[0]
    assert own < nll(found)[0] < nll(rows)[0]
    assert cross_fitted(rows[:1]) == rows[:1]


def test_a_temperature_that_gains_nothing_is_not_taken() -> None:
    assert chosen_temperature(drawn(40, 1.0, seed=1), "auto") == UNCHANGED
    assert chosen_temperature(drawn(600, 3.0), "auto") == pytest.approx(3, rel=0.2)
    assert chosen_temperature(drawn(600, 3.0), 1.7) == 1.7


def test_held_out_rows_are_shown_as_the_product_would_answer() -> None:
    rows = drawn(200, 3.0)
    assert held_out_calibrated(rows, "auto") == cross_fitted(rows)
    assert held_out_calibrated(rows, 2.0) == tempered(rows, 2.0)
    even = drawn(40, 1.0, seed=1)
    assert held_out_calibrated(even, "auto") == even


def test_scores_and_file(tmp_path: Path) -> None:
    rows = tempered(drawn(200, 3.0), 3.0)
    found = calibrated_scores(rows, 3.0)
    assert found == {
        "temperature": 3.0,
        "nll": nll(rows)[0],
        "nll_se": nll(rows)[1],
        "ece": calibration_error(rows),
        "ece_by_chance": calibration_error_by_chance(rows),
    }
    write_calibration(tmp_path, found)
    assert read_json(tmp_path / CALIBRATION) == found


def test_unlabelled_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"need a gold letter for every question, 1 of 1"):
        fitted_temperature([Prediction("1", "a", (0.7, 0.1, 0.1, 0.1), 1.0)])


def test_the_calibration_error_is_the_gap_between_confidence_and_accuracy() -> None:
    sure = (0.7, 0.1, 0.1, 0.1)
    rows = [Prediction(str(i), "a", sure, 1.0, "a" if i < 4 else "b") for i in range(10)]
    assert calibration_error(rows) == pytest.approx(0.7 - 0.4)
    other = [Prediction(f"x{i}", "a", (0.4, 0.2, 0.2, 0.2), 1.0, "a") for i in range(10)]
    assert calibration_error([*rows, *other]) == pytest.approx((0.3 + 0.6) / 2)


def test_what_chance_makes_of_the_error_is_that_of_answers_right_as_often_as_they_say() -> None:
    found = [calibration_error(drawn(600, 1.0, seed)) for seed in range(60)]
    foretold = [calibration_error_by_chance(drawn(600, 1.0, seed)) for seed in range(60)]
    assert sum(foretold) == pytest.approx(sum(found), rel=0.1)  # 60 draws are known to 5 %


def test_chance_in_a_bin_of_one_and_of_two() -> None:
    one = [Prediction("1", "a", (0.7, 0.1, 0.1, 0.1), 1.0)]
    assert calibration_error_by_chance(one) == pytest.approx(0.3 * 0.7 + 0.7 * 0.3)
    two = [*one, Prediction("2", "a", (0.7, 0.1, 0.1, 0.1), 1.0)]
    # 0, 1 or 2 right with probability 0.09, 0.42, 0.49, where 1.4 are expected
    assert calibration_error_by_chance(two) == pytest.approx((0.09 * 1.4 + 0.42 * 0.4 + 0.49 * 0.6) / 2)
    sure = [Prediction("1", "a", (1.0, 0.0, 0.0, 0.0), 1.0)]
    assert calibration_error_by_chance(sure) == 0
