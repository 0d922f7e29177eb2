from collections import Counter
from pathlib import Path

import easy_vqa
import pytest

from vqa.data.easy_vqa import COLORS, KINDS, SHAPES, EasyVqa, plausible_guess_level
from vqa.data.image import file_sha256
from vqa.errors import UserError
from vqa.question import Question, letters_of

FOUR = letters_of(4)

DATA = EasyVqa(train_size=402, test_size=200, seed=0)


@pytest.fixture(scope="module")
def train() -> list[Question]:
    return DATA.train()


@pytest.fixture(scope="module")
def test() -> list[Question]:
    return DATA.test()


def right_words(questions: list[Question]) -> list[str]:
    return [q.choices[FOUR.index(q.answer)] for q in questions if q.answer]


def test_answers_are_those_of_the_package(train: list[Question], test: list[Question]) -> None:
    for part, questions, source in (
        ("train", train, easy_vqa.get_train_questions()),
        ("test", test, easy_vqa.get_test_questions()),
    ):
        known = {f"{part}_{i:06d}": row for i, row in enumerate(zip(*source, strict=True))}
        for question, word in zip(questions, right_words(questions), strict=True):
            text, answer, image = known[question.id]
            assert (question.text, word) == (text, answer)
            assert question.image is not None
            assert (question.image.parts[-3], question.image.name) == (part, f"{image}.png")


def test_sizes_are_exact_and_ids_unique(train: list[Question], test: list[Question]) -> None:
    assert (len(train), len(test)) == (402, 200)
    assert len({q.id for q in train + test}) == 602


def test_training_never_shows_a_test_picture(train: list[Question], test: list[Question]) -> None:
    assert not {q.image_sha256 for q in train} & {q.image_sha256 for q in test}


def test_digest_is_that_of_the_picture(test: list[Question]) -> None:
    assert test[0].image_sha256 == file_sha256(test[0].image or Path())


def test_kinds_are_a_quarter_each(train: list[Question], test: list[Question]) -> None:
    assert Counter(q.kind for q in test) == dict.fromkeys(KINDS, 50)
    assert Counter(q.kind for q in train) == dict(zip(KINDS, (101, 101, 100, 100), strict=True))


def test_letters_are_balanced_in_every_kind_and_overall(test: list[Question]) -> None:
    assert Counter(q.answer for q in test) == dict.fromkeys(FOUR, 50)
    for kind in KINDS:
        assert sorted(Counter(q.answer for q in test if q.kind == kind).values()) == [12, 12, 13, 13]


@pytest.mark.parametrize("kind", ["yes_no", "yes_no_negated"])
def test_yes_and_no_are_equally_frequent_so_that_wording_gives_nothing_away(
    test: list[Question], kind: str
) -> None:
    questions = [q for q in test if q.kind == kind]
    assert Counter(right_words(questions)) == {"yes": 25, "no": 25}
    assert all((" not " in q.text or " no " in q.text) == (kind == "yes_no_negated") for q in questions)


@pytest.mark.parametrize(
    ("kind", "category", "of_category"),
    [
        ("color", COLORS, 4),
        ("shape", SHAPES, 3),
        ("yes_no", ("yes", "no"), 2),
        ("yes_no_negated", ("yes", "no"), 2),
    ],
)
def test_options_differ_and_come_from_the_answers_category_first(
    train: list[Question], kind: str, category: tuple[str, ...], of_category: int
) -> None:
    for question in train:
        assert len(set(question.choices)) == 4
        if question.kind == kind:
            assert sum(choice in category for choice in question.choices) == of_category


def test_plausible_guessing_is_right_in_two_fifths(test: list[Question]) -> None:
    assert plausible_guess_level(test) == pytest.approx((1 / 4 + 1 / 3 + 1 / 2 + 1 / 2) / 4)


def test_plausible_guessing_needs_answers() -> None:
    question = Question("x", None, "", "q", ("red", "blue", "yes", "no"))
    with pytest.raises(ValueError, match="the question x has no answer"):
        plausible_guess_level([question])


def test_same_seed_gives_the_same_questions_and_another_seed_others(train: list[Question]) -> None:
    assert EasyVqa(402, 200, 0).train() == train
    assert {q.id for q in EasyVqa(402, 200, 1).train()} != {q.id for q in train}


def test_smaller_size_draws_a_subset_unchanged(train: list[Question]) -> None:
    by_id = {q.id: q for q in train}
    smaller = EasyVqa(150, 1, 0).train()
    assert all(by_id[q.id] == q for q in smaller)


# 4 x the rarest kind: 5,002 shape questions in training, 1,240 balanced negated ones in the test part.
@pytest.mark.parametrize(
    ("train_size", "test_size", "message"),
    [
        (20009, 1, "data.train_size must be <= 20008 .4 kinds of 5002., got 20009"),
        (1, 4961, "data.test_size must be <= 4960 .4 kinds of 1240., got 4961"),
        (0, 1, "data.train_size must be >= 1, got 0"),
        (1, -1, "data.test_size must be >= 1, got -1"),
    ],
)
def test_size_out_of_range_is_refused_and_found_by_check(
    train_size: int, test_size: int, message: str
) -> None:
    data = EasyVqa(train_size, test_size, 0)
    with pytest.raises(UserError, match=message):
        _ = data.train(), data.test()
    assert len(data.check()) == 1


def test_check_of_possible_sizes_is_empty() -> None:
    assert EasyVqa(4, 4, 0).check() == []
