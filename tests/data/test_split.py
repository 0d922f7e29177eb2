import csv
import random
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from vqa.data.split import Split, hold_out, make_folds, subsample, write_split
from vqa.errors import UserError
from vqa.question import LETTERS, Picture, Question, picture_groups


def quiz(size: int, images: int, letters: str = "abcd", seed: int = 0) -> list[Question]:
    """Random questions on a number of images; images=0: none has its image."""
    rng = random.Random(seed)
    return [
        Question(
            id=f"q{i}",
            image=None,
            image_sha256=f"sha{rng.randrange(images)}" if images else "",
            text="?",
            choices=("1", "2", "3", "4"),
            answer=rng.choice(letters),
        )
        for i in range(size)
    ]


def shas(questions: list[Question]) -> set[str]:
    return {digest for q in questions for digest in q.pictures_sha256.split()}


def comparing(size: int, images: int, within: int) -> list[Question]:
    """Random questions on one to three pictures of one block of so many each."""
    rng = random.Random(1)
    made = []
    for question in quiz(size, 0):
        block = within * rng.randrange(images // within)
        own = [Picture(Path(f"{n}.png"), f"sha{n}") for n in rng.sample(range(block, block + within), 3)]
        own = own[: rng.randint(1, 3)]
        image, *further = own
        made.append(replace(question, image=image.path, image_sha256=image.sha256, further=tuple(further)))
    return made


def test_questions_that_share_any_picture_are_never_apart() -> None:
    questions = comparing(300, 200, 4)
    split = hold_out(questions, 0.2, 0)
    assert not shas(split.train) & shas(split.valid)
    assert len(split.valid) == pytest.approx(60, abs=6)
    for fold in make_folds(questions, 3, 0):
        assert not shas(fold.train) & shas(fold.valid)


def test_questions_that_pictures_link_into_one_group_are_not_cut() -> None:
    questions = comparing(300, 40, 40)
    for cut in (lambda: hold_out(questions, 0.2, 0), lambda: make_folds(questions, 3, 0)):
        with pytest.raises(UserError, match=r"images|is not possible: \d+ of 300 questions are linked"):
            cut()
    lone = [*questions, *quiz(20, 0)]
    with pytest.raises(UserError, match=r"holding out 20% is not possible: 300 of 320 questions are linked"):
        hold_out(lone, 0.2, 0)
    with pytest.raises(UserError, match=r"budget.folds=3 is not possible: 300 of 320 questions are linked"):
        make_folds(lone, 3, 0)


def test_groups_are_linked_through_others() -> None:
    digests = ["b", "c d", "", "d e", "b", "e a", ""]
    assert picture_groups(digests) == ["b", "a", "alone 2", "a", "b", "a", "alone 6"]
    assert picture_groups(["x", "y", "x"]) == ["x", "y", "x"]


SHAPES_OF_DATA = [(500, 400), (500, 60), (100, 10), (40, 5)]


@pytest.mark.parametrize(("size", "images"), SHAPES_OF_DATA)
@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_part_and_the_rest_are_an_exact_partition(size: int, images: int, seed: int) -> None:
    questions = quiz(size, images)
    split = hold_out(questions, 0.2, seed)
    assert sorted(split.train + split.valid, key=questions.index) == questions
    assert split.train == sorted(split.train, key=questions.index)  # file order


@pytest.mark.parametrize(("size", "images"), SHAPES_OF_DATA)
def test_twins_are_never_held_out_apart(size: int, images: int) -> None:
    split = hold_out(quiz(size, images), 0.2, 0)
    assert not shas(split.train) & shas(split.valid)


@pytest.mark.parametrize(("share", "expected"), [(0.5, 200), (0.2, 80), (0.1, 40)])
def test_share_and_letters_of_the_held_out_part_are_as_asked(share: float, expected: int) -> None:
    split = hold_out(quiz(400, 350), share, 0)
    assert len(split.valid) == pytest.approx(expected, abs=5)
    counts = Counter(q.answer for q in split.valid)
    whole = Counter(q.answer for q in quiz(400, 350))
    assert all(counts[letter] == pytest.approx(share * whole[letter], abs=4) for letter in LETTERS)


def test_same_seed_gives_the_same_split_and_another_seed_another() -> None:
    questions = quiz(200, 150)
    assert hold_out(questions, 0.2, 0) == hold_out(questions, 0.2, 0)
    assert hold_out(questions, 0.2, 0).sha256 != hold_out(questions, 0.2, 1).sha256


def test_split_hash_knows_ids_and_parts_but_not_the_order() -> None:
    a, b, c = quiz(3, 3)
    split = Split([a, b], [c])
    assert split.sha256 == Split([b, a], [c]).sha256
    assert split.sha256 != Split([a], [b, c]).sha256
    assert len(split.sha256) == 64


def test_questions_without_image_are_each_on_their_own() -> None:
    split = hold_out(quiz(100, 0), 0.2, 0)
    assert len(split.valid) == pytest.approx(20, abs=4)


@pytest.mark.parametrize("share", [0.0, -0.1, 0.6, 1.0])
def test_share_out_of_range_is_refused(share: float) -> None:
    with pytest.raises(UserError, match=f"budget.holdout_share must be > 0 and <= 0.5, got {share}"):
        hold_out(quiz(100, 100), share, 0)


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        ([], "holding out 20% needs at least 5 different images, got 0 questions on 0 different images"),
        (
            quiz(100, 4),
            "at least 5 different images, got 100 questions on 4 different images: .*budget.holdout_share",
        ),
        (
            quiz(60, 50, "abc") + quiz(4, 9, "d", 1),
            "needs at least 5 questions of each letter, the letter d has 4",
        ),
    ],
)
def test_too_little_to_hold_out_is_refused(questions: list[Question], message: str) -> None:
    with pytest.raises(UserError, match=message):
        hold_out(questions, 0.2, 0)


def test_unlabelled_questions_cannot_be_split() -> None:
    questions = [*quiz(20, 20), Question("x", None, "", "?", ("1", "2", "3", "4"))]
    with pytest.raises(ValueError, match="a split needs labelled questions, 1 have no answer"):
        hold_out(questions, 0.2, 0)


@pytest.mark.parametrize(("size", "images"), SHAPES_OF_DATA)
@pytest.mark.parametrize("k", [2, 3, 5])
def test_folds_are_an_exact_partition_and_keep_twins_together(size: int, images: int, k: int) -> None:
    questions = quiz(size, images)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = make_folds(questions, k, 0)
    assert len(folds) == k
    assert sorted((q for fold in folds for q in fold.valid), key=questions.index) == questions
    for fold in folds:
        assert fold.valid
        assert sorted(fold.train + fold.valid, key=questions.index) == questions
        assert not shas(fold.train) & shas(fold.valid)


def test_folds_are_stratified_by_letter() -> None:
    for fold in make_folds(quiz(400, 350), 4, 0):
        assert all(
            count == pytest.approx(25, abs=6) for count in Counter(q.answer for q in fold.valid).values()
        )


def test_folds_depend_on_the_seed_only() -> None:
    questions = quiz(100, 80)
    assert make_folds(questions, 3, 0) == make_folds(questions, 3, 0)
    assert make_folds(questions, 3, 0) != make_folds(questions, 3, 1)


@pytest.mark.parametrize(
    ("questions", "k", "message"),
    [
        (quiz(100, 80), 1, "budget.folds must be >= 2, got 1"),
        (quiz(100, 2), 3, "budget.folds=3 needs at least 3 different images, got .* lower budget.folds"),
        (quiz(60, 50, "abc") + quiz(2, 9, "d", 1), 3, "the letter d has 2: .*raise budget.subsample"),
    ],
)
def test_too_little_for_k_folds_is_refused(questions: list[Question], k: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_folds(questions, k, 0)


@pytest.mark.parametrize("size", [4, 50, 195, 196, 197, 199])
def test_subsample_has_the_size_asked_and_keeps_the_order(size: int) -> None:
    questions = quiz(200, 100)
    drawn = subsample(questions, size, 0)
    assert len({q.id for q in drawn}) == len(drawn) == size
    assert drawn == sorted(drawn, key=questions.index)
    assert drawn == subsample(questions, size, 0)
    assert drawn != subsample(questions, size, 1)


def test_subsample_is_stratified_by_letter() -> None:
    questions = quiz(300, 300, "a") + quiz(100, 100, "b")
    assert Counter(q.answer for q in subsample(questions, 100, 0)) == {"a": 75, "b": 25}


@pytest.mark.parametrize("size", [None, 20, 21, 1000])
def test_subsample_of_all_or_more_is_everything(size: int | None) -> None:
    questions = quiz(20, 20)
    assert subsample(questions, size, 0) == questions


@pytest.mark.parametrize(
    ("questions", "size", "message"),
    [
        (quiz(100, 100), 3, "budget.subsample must be >= 4, one question a letter, got 3"),
        (
            quiz(60, 60, "abc") + quiz(1, 1, "d"),
            30,
            "budget.subsample=30 .* the letter d has 1: set budget.subs",
        ),
    ],
)
def test_impossible_subsample_is_refused(questions: list[Question], size: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        subsample(questions, size, 0)


def test_written_split_reads_back_with_ids_verbatim(tmp_path: Path) -> None:
    a, b, _ = quiz(3, 3)
    odd = Question('00,"7"', None, "", "?", ("1", "2", "3", "4"), "a")
    write_split(Split([a, odd], [b]), tmp_path / "split.csv")
    with (tmp_path / "split.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", "part"],
            ["q0", "train"],
            ['00,"7"', "train"],
            ["q1", "valid"],
        ]


def test_a_letter_that_few_questions_have_does_not_stop_the_split() -> None:
    made = [Question(str(i), None, "", "q", ("1", "2", "3", "4"), LETTERS[i % 4]) for i in range(40)] + [
        Question(f"six {i}", None, "", "q", tuple("123456"), letter) for i, letter in enumerate("ef")
    ]
    split = hold_out(made, 0.2, 0)
    assert len(split.train) + len(split.valid) == 42
    few = [q for q in made if q.answer != "d" or int(q.id) < 8]
    with pytest.raises(UserError, match="of each letter, the letter d has"):  # which every question has
        hold_out(few, 0.2, 0)
