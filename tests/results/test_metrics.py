import math

import pytest

from vqa.question import letters_of
from vqa.results.metrics import (
    P_FLOOR,
    accuracy,
    accuracy_interval,
    collapse_alarm,
    confusion,
    letter_shares,
    mcnemar_p_value,
    nll,
    paired_p_value,
    per_question_nll,
    summary,
)
from vqa.results.predictions import Prediction

FOUR = letters_of(4)


def predict(
    number: int, p_gold: float = 0.7, gold: str | None = "a", answer: str | None = "a", kind: str = ""
) -> Prediction:
    rest = (1 - p_gold) / 3
    p = tuple(p_gold if letter == (gold or "a") else rest for letter in FOUR)
    return Prediction(f"q{number}", answer, (p[0], p[1], p[2], p[3]), 0.9, gold, kind)


def many(*p_gold: float) -> list[Prediction]:
    return [predict(number, p) for number, p in enumerate(p_gold)]


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    # closed form with z = 1.959964: (p + z²/2n ± z sqrt(p(1-p)/n + z²/4n²)) / (1 + z²/n)
    [(8, 10, 0.490162, 0.943318), (0, 10, 0.0, 0.277533), (10, 10, 0.722467, 1.0)],
)
def test_accuracy_interval_is_wilsons(correct: int, n: int, low: float, high: float) -> None:
    assert accuracy_interval(correct, n) == pytest.approx((low, high), abs=1e-5)


@pytest.mark.parametrize(("correct", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_accuracy_interval_refuses_impossible_counts(correct: int, n: int) -> None:
    with pytest.raises(
        ValueError, match=f"correct must be in 0..n with n >= 1, got correct={correct}, n={n}"
    ):
        accuracy_interval(correct, n)


def test_nll_is_the_mean_of_minus_log_p_gold_with_its_standard_error() -> None:
    # -ln 0.5 and -ln 0.25: mean 1.5 ln 2, standard deviation ln 2 / sqrt 2, over sqrt 2
    assert nll(many(0.5, 0.25)) == pytest.approx((1.5 * math.log(2), 0.5 * math.log(2)))


def test_a_single_question_has_no_standard_error() -> None:
    assert nll(many(0.25)) == pytest.approx((math.log(4), math.inf))


def test_a_hopeless_row_costs_a_finite_amount() -> None:
    assert per_question_nll(many(0.0)) == {"q0": pytest.approx(-math.log(P_FLOOR))}


def test_no_answer_counts_as_wrong() -> None:
    assert accuracy([predict(0), predict(1, answer=None), predict(2, answer="b"), predict(3)]) == 0.5


def test_identical_predictions_are_no_different() -> None:
    assert paired_p_value(per_question_nll(many(0.5, 0.6, 0.7)), per_question_nll(many(0.5, 0.6, 0.7))) == 1.0


def test_a_constant_gap_is_certain() -> None:
    assert paired_p_value(per_question_nll(many(0.5, 0.5)), per_question_nll(many(0.25, 0.25))) == 0.0


def test_paired_test_matches_the_t_distribution_and_ignores_order() -> None:
    # differences ln 2 * (1, 2, 3): t = 2 / (1 / sqrt 3) = 3.4641 with 2 degrees of freedom, p = 0.0742
    a, b = many(0.8, 0.8, 0.8), many(0.4, 0.2, 0.1)
    assert paired_p_value(per_question_nll(a), per_question_nll(b[::-1])) == pytest.approx(0.07418, abs=1e-5)


def test_paired_test_sees_what_a_comparison_of_means_cannot() -> None:
    hard_and_easy = [0.02, 0.99, 0.05, 0.9, 0.3, 0.6]
    a, b = many(*hard_and_easy), many(*(p * (0.95 + 0.002 * i) for i, p in enumerate(hard_and_easy)))
    assert paired_p_value(per_question_nll(a), per_question_nll(b)) < 0.001
    assert nll(b)[0] - nll(a)[0] < 0.1 * nll(a)[1]


def test_paired_test_needs_shared_questions() -> None:
    with pytest.raises(ValueError, match="at least 2 shared questions, got 1"):
        paired_p_value({"0": 0.5, "1": 0.5}, {"1": 0.5, "2": 0.5})


@pytest.mark.parametrize(
    ("fixed", "broken", "p"),
    # two-sided exact binomial: 2 * 0.5 ** 6; 2 * (1 + 6) / 64; nothing to compare
    [(6, 0, 0.03125), (5, 1, 0.21875), (0, 0, 1.0)],
)
def test_mcnemar_is_the_exact_binomial_of_the_changed_answers(fixed: int, broken: int, p: float) -> None:
    base = [predict(i, answer="b" if i < fixed else "a") for i in range(20)]
    tuned = [predict(i, answer="b" if fixed <= i < fixed + broken else "a") for i in range(20)]
    assert mcnemar_p_value(base, tuned) == pytest.approx(p)


def test_mcnemar_refuses_other_questions() -> None:
    with pytest.raises(ValueError, match="must answer the same questions, 2 are in one only"):
        mcnemar_p_value([predict(0), predict(1)], [predict(1), predict(2)])


def test_confusion_counts_gold_by_answer_with_a_column_for_none() -> None:
    rows = [
        predict(0, gold="a", answer="a"),
        predict(1, gold="a", answer="c"),
        predict(2, gold="d", answer=None),
    ]
    assert confusion(rows).tolist() == [[1, 0, 1, 0, 0], [0] * 5, [0] * 5, [0, 0, 0, 0, 1]]


def test_letter_shares_leave_out_rows_without_a_letter() -> None:
    assert letter_shares(["a", "a", "b", None, "d"]) == {"a": 0.5, "b": 0.25, "c": 0.0, "d": 0.25}


EVEN, MANY_B = list("aabbccdd"), list("bbbbbacd")


@pytest.mark.parametrize(
    ("answers", "golds", "shares", "message"),
    [
        (MANY_B, EVEN, None, "62% of the answers are 'b', but 25% of the labels"),
        (MANY_B, list("bbbbacdd"), None, None),  # the labels themselves are half b
        (EVEN, EVEN, None, None),
        (list("aabbc"), list("abcda"), None, None),  # 40 % sharp is allowed
        (MANY_B, None, {"a": 0.3, "b": 0.3, "c": 0.2, "d": 0.2}, "but 30% of the training labels"),
        (MANY_B, [None] * 8, {"b": 0.3}, "but 30% of the training labels"),
        (MANY_B, None, {"b": 0.5}, None),
        (MANY_B, None, None, "62% of the answers are 'b': the model may have collapsed"),
    ],
)
def test_alarm_when_one_letter_takes_over_and_the_labels_do_not(
    answers: list[str], golds: list[str | None] | None, shares: dict[str, float] | None, message: str | None
) -> None:
    rows = zip(answers, golds or [None] * len(answers), strict=True)
    alarm = collapse_alarm([predict(i, answer=a, gold=g) for i, (a, g) in enumerate(rows)], shares)
    assert alarm is None if message is None else alarm is not None and message in alarm


def test_summary_names_every_score() -> None:
    rows = [predict(0, kind="colour"), predict(1, answer=None, kind="shape"), predict(2, kind="colour")]
    scores = summary(rows)
    assert scores["n"] == 3
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["accuracy_ci95"] == pytest.approx(accuracy_interval(2, 3))
    assert (scores["nll"], scores["nll_se"]) == nll(rows)
    assert scores["option_mass"] == pytest.approx(0.9)
    assert scores["no_answer_rate"] == pytest.approx(1 / 3)
    assert scores["accuracy_by_kind"] == {"colour": 1.0, "shape": 0.0}
    assert scores["chance"] == 0.25


@pytest.mark.parametrize("score", [nll, accuracy, confusion, summary, per_question_nll])
def test_scores_refuse_nothing_and_unlabelled_rows(score: object) -> None:
    assert callable(score)
    with pytest.raises(ValueError, match="at least one prediction, got none"):
        score([])
    with pytest.raises(ValueError, match=r"gold letter for every question, 1 of 2 have none \(first: 'q7'\)"):
        score([predict(0), predict(7, gold=None)])


def test_scores_refuse_a_repeated_question() -> None:
    with pytest.raises(ValueError, match="ids must be unique, got 2 predictions of 1 questions"):
        nll([predict(0), predict(0)])


def test_shares_and_alarm_refuse_rows_without_letters() -> None:
    with pytest.raises(ValueError, match="at least one letter, got 2 rows"):
        letter_shares([None, None])
    with pytest.raises(ValueError, match="at least one answer, got 0 rows"):
        collapse_alarm([])
