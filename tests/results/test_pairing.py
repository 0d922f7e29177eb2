"""Two runs on the questions of both: shared rows, intervals, ties."""

import random

import numpy as np
import pytest

from vqa.errors import UserError
from vqa.results.pairing import paired, shared
from vqa.results.predictions import Prediction
from vqa.results.uncertainty import mean_interval, mean_p_value


def answer(number: int, right: bool, p: float = 0.7, picture: str = "", kind: str = "") -> Prediction:
    rest = (1 - p) / 3
    chosen, odds = ("a", (p, rest, rest, rest)) if right else ("b", (rest, p, rest, rest))
    return Prediction(f"q{number}", chosen, odds, 1.0, "a", kind, "", picture)


def run(rights: list[bool], kind: str = "") -> list[Prediction]:
    return [answer(i, right, kind=kind) for i, right in enumerate(rights)]


def test_only_questions_of_both_with_the_same_answer_and_picture_are_paired() -> None:
    first = [answer(i, True, picture=f"p{i}") for i in range(5)]
    second = [answer(i, True, picture=f"p{i}") for i in (4, 2, 7)] + [answer(0, True, picture="other")]
    a, b, others = shared(first, second)
    assert [p.id for p in a] == [p.id for p in b] == ["q2", "q4"]
    assert others == 1


def test_the_same_answers_tie_exactly() -> None:
    rights = [i % 3 > 0 for i in range(30)]
    found = paired(run(rights), run(rights))
    assert (found.accuracy.by, found.accuracy.interval, found.accuracy.p) == (0, (0, 0), 1)
    assert found.nll.tie
    assert (found.both, found.only_first, found.only_second, found.neither) == (20, 0, 0, 10)
    assert found.changed == []


def test_a_run_that_is_right_more_often_is_told_apart() -> None:
    found = paired(run([i % 2 == 0 for i in range(60)]), run([True] * 60))
    assert found.accuracy.by == 0.5
    assert not found.accuracy.tie
    assert found.accuracy.p == pytest.approx(2 * 0.5**30)  # McNemar: 30 of 30 moved one way
    assert 0.3 < found.accuracy.interval[0] < 0.5 < found.accuracy.interval[1] < 0.7
    assert (found.only_second, len(found.changed)) == (30, 30)


def test_questions_on_one_picture_count_as_one() -> None:
    rights = [i >= 6 for i in range(60)]
    alone = paired(run(rights), run([True] * 60))
    one_picture = [f"p{max(0, i - 5)}" for i in range(60)]  # the six that change are about one picture
    first, second = (
        [answer(i, right, picture=one_picture[i]) for i, right in enumerate(r)] for r in (rights, [True] * 60)
    )
    together = paired(first, second)
    assert not alone.accuracy.tie
    assert together.accuracy.tie
    assert together.pictures == 55


def test_kinds_have_intervals_and_no_test() -> None:
    first = run([False] * 10, kind="shape") + [answer(10 + i, True, kind="colour") for i in range(10)]
    second = run([True] * 10, kind="shape") + [answer(10 + i, True, kind="colour") for i in range(10)]
    colour, shape = paired(first, second).kinds
    assert (colour.name, colour.by, shape.by, shape.p, shape.tie) == ("colour", 0, 1, None, False)


def test_an_interval_holds_zero_just_where_the_test_does_not_tell_apart() -> None:
    draw = random.Random(0)
    for shift in (0.0, 0.3, 0.6, 0.9):
        values = np.array([draw.gauss(shift, 1) for _ in range(20)])
        codes = np.arange(20) // 2
        low, high = mean_interval(values, codes)
        assert (low <= 0 <= high) == (mean_p_value(values, codes) >= 0.05)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([answer(9, True)], "share no held-out question: they were made from other data"),
        (
            [answer(0, True, picture="x")],
            r"no held-out question \(1 ids are the same, but with other pictures",
        ),
        ([answer(1, True, picture="p")], r"share 1 held-out question\(s\) about one picture only"),
    ],
)
def test_runs_without_common_questions_are_refused(second: list[Prediction], message: str) -> None:
    first = [answer(0, True, picture="p"), answer(1, True, picture="p")]
    with pytest.raises(UserError, match=message):
        paired(first, second)
