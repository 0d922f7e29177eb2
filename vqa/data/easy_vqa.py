"""`data=easy_vqa`: 4-choice questions from the public easy-VQA package (4,000 + 1,000 pictures of one shape).

Four kinds of question, a quarter each: color, shape, yes_no, yes_no_negated ("is there not a red shape?").
In easy-VQA 82 % of the answers to plain yes/no questions are no and of negated ones yes, so that the
wording alone would give them away: here both answers are equally frequent in either kind. There are 8
colours, 3 shapes and 2 answers to yes/no; where a category has fewer than four, words of the other
categories fill up. Chance is 0.25; who only recognises the fillers guesses right in 1/4 of the
colour, 1/3 of the shape and 1/2 of the yes/no questions, together 0.396 (`plausible_guess_level`).

Source: https://github.com/vzhou842/easy-VQA (MIT).
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import easy_vqa

from vqa.data.image import file_sha256
from vqa.errors import UserError, problems_of
from vqa.question import Question, letters_of

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
YES_NO = ("yes", "no")
FOUR = letters_of(4)  # every question has four options
KINDS = ("color", "shape", "yes_no", "yes_no_negated")

_CATEGORIES = (COLORS, SHAPES, YES_NO)

_ReadQuestions = Callable[[], tuple[list[str], list[str], list[int]]]  # texts, answers, image numbers
_ReadPaths = Callable[[], dict[int, str]]
_Part = Literal["train", "test"]
_SOURCES: dict[_Part, tuple[_ReadQuestions, _ReadPaths]] = {
    "train": (easy_vqa.get_train_questions, easy_vqa.get_train_image_paths),
    "test": (easy_vqa.get_test_questions, easy_vqa.get_test_image_paths),
}


@dataclass(frozen=True)
class EasyVqa:
    """Questions drawn from the package's own parts: training ones never show a test picture.

    A question's id is its number in the package ("train_000123"); its options depend on the seed and on
    that number alone. A smaller size draws a subset of what a larger one draws.

    Args:
        train_size: Number of training questions, 1..about 20,000 (four times the rarest kind).
        test_size: Number of test questions, 1..about 5,000.
        seed: Decides which questions, options and letters.
    """

    train_size: int
    test_size: int
    seed: int

    def train(self) -> list[Question]:
        """Draw from the official training part; all labelled.

        Raises:
            UserError: The size is below 1 or larger than what exists.
        """
        return _draw("train", self.train_size, self.seed)

    def test(self) -> list[Question]:
        """Draw from the official test part; all labelled.

        Raises:
            UserError: The size is below 1 or larger than what exists.
        """
        return _draw("test", self.test_size, self.seed)

    def check(self) -> list[str]:
        """Draw both parts and list what would stop a run; empty when nothing would."""
        return problems_of(self.train, self.test)


def plausible_guess_level(questions: Sequence[Question]) -> float:
    """Expected accuracy of guessing among the options of the answer's category, the honest floor beside 0.25.

    Raises:
        ValueError: A question has no answer.
    """
    levels = []
    for question in questions:
        if question.answer is None:
            raise ValueError(f"the question {question.id} has no answer")
        category = _category(question.choices[FOUR.index(question.answer)])
        levels.append(1 / sum(choice in category for choice in question.choices))
    return sum(levels) / len(levels)


def _draw(part: _Part, size: int, seed: int) -> list[Question]:
    if size < 1:
        raise UserError(f"data.{part}_size must be >= 1, got {size}")
    texts, answers, images, paths = _package(part)
    pools = _pools(part, f"{seed} {part}")
    most = len(KINDS) * min(len(pool) for pool in pools.values())
    if size > most:
        raise UserError(
            f"data.{part}_size must be <= {most} ({len(KINDS)} kinds of {most // len(KINDS)}), got {size}"
        )

    digest = cache(file_sha256)  # questions share pictures; only those in use are read
    questions = []
    for turn, kind in enumerate(KINDS):
        count = size // len(KINDS) + (turn < size % len(KINDS))
        for index, letter in zip(pools[kind], _letters(count, turn, f"{seed} {part}"), strict=False):
            path = Path(paths[images[index]])
            choices = _choices(answers[index], letter, f"{seed} {part} {index}")
            name = f"{part}_{index:06d}"
            questions.append(Question(name, path, digest(path), texts[index], choices, letter, kind))
    random.Random(f"{seed} {part}").shuffle(questions)
    return questions


def _category(word: str) -> tuple[str, ...]:
    return next(category for category in _CATEGORIES if word in category)


def _kind(text: str, answer: str) -> str:
    if answer in YES_NO:
        return "yes_no_negated" if " not " in text or " no " in text else "yes_no"
    return "color" if answer in COLORS else "shape"


@cache
def _package(part: _Part) -> tuple[list[str], list[str], list[int], dict[int, str]]:
    """What the package holds of a part: texts, answers, image numbers, and each image's path."""
    read_questions, read_paths = _SOURCES[part]
    return *read_questions(), read_paths()


@cache
def _pools(part: _Part, salt: str) -> dict[str, list[int]]:
    """Question numbers of each kind in drawing order, yes and no by turns."""
    texts, answers, *_ = _package(part)
    order = list(range(len(texts)))
    random.Random(salt).shuffle(order)
    by_kind: dict[str, list[int]] = {kind: [] for kind in KINDS}
    for index in order:
        by_kind[_kind(texts[index], answers[index])].append(index)
    for kind in ("yes_no", "yes_no_negated"):
        yes = [index for index in by_kind[kind] if answers[index] == "yes"]
        no = [index for index in by_kind[kind] if answers[index] == "no"]
        by_kind[kind] = [index for pair in zip(yes, no, strict=False) for index in pair]
    return by_kind


def _letters(count: int, turn: int, salt: str) -> list[str]:
    """Gold letters in shuffled blocks of four; the turn of the kind evens out the incomplete last blocks."""
    rng = random.Random(f"{salt} letters")
    letters: list[str] = []
    while len(letters) < count:
        block = rng.sample(FOUR, len(FOUR))
        letters += block[turn:] + block[:turn]
    return letters[:count]


def _choices(answer: str, letter: str, salt: str) -> tuple[str, str, str, str]:
    """The answer at its letter among three others: of its own category first, then of the rest."""
    rng = random.Random(salt)
    own = [word for word in _category(answer) if word != answer]
    rest = [word for category in _CATEGORIES if answer not in category for word in category]
    others = (rng.sample(own, len(own)) + rng.sample(rest, len(rest)))[: len(FOUR) - 1]
    rng.shuffle(others)
    others.insert(FOUR.index(letter), answer)
    a, b, c, d = others
    return a, b, c, d
