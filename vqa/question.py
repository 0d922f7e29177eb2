"""What every stage talks about: one picture, one question, two to six options, and the letters they have."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

LETTERS = ("a", "b", "c", "d", "e", "f")  # of the options, in their order; a question has the first n of them
FEWEST, MOST = 2, len(LETTERS)  # options of a question


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Args:
        id: The row's id, verbatim.
        image: The picture's file; None when it could not be read and the user allowed a blank.
        image_sha256: Hex digest of the file's bytes ("" without an image); equal digests are twins.
        text: The question as written.
        choices: Two to six options, in the order of their letters.
        answer: The gold letter, or None for an unlabelled row.
        kind: The type of question where the source knows it, else "".
        flag: Why this row is special (for instance "image_missing"), else "".
        view: What of the picture is looked at, as in vqa/model/vision/views.py; "" for all of it, as it is.

    Raises:
        ValueError: There are fewer than two options or more than six, or the answer is the letter of none.
    """

    id: str
    image: Path | None
    image_sha256: str
    text: str
    choices: tuple[str, ...]
    answer: str | None = None
    kind: str = ""
    flag: str = ""
    view: str = ""

    def __post_init__(self) -> None:
        if not FEWEST <= len(self.choices) <= MOST:
            raise ValueError(
                f"choices of question {self.id!r} must be {FEWEST} to {MOST} texts, got {self.choices}"
            )
        if self.answer is not None and self.answer not in self.letters:
            raise ValueError(
                f"answer of question {self.id!r} must be {one_of(self.letters)}, got {self.answer!r}"
            )

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of its options."""
        return letters_of(len(self.choices))


def letters_of(options: int) -> tuple[str, ...]:
    """The letters of that many options."""
    return LETTERS[:options]


def one_of(words: Sequence[str]) -> str:
    """The words as a rule: "a, b or c"."""
    return f"{', '.join(words[:-1])} or {words[-1]}"


@dataclass(frozen=True)
class Guessing:
    """What a model that knows nothing scores on some questions.

    Args:
        accuracy: The mean of 1/n, n being a question's number of options.
        nll: The mean of ln n, nats.
        options: The number of options that all of them have; None where it is not the same.
    """

    accuracy: float
    nll: float
    options: int | None


def guessing(options: Iterable[int]) -> Guessing:
    """What guessing scores, from the number of options of each question, one at least."""
    numbers = list(options)
    same = numbers[0] if len(set(numbers)) == 1 else None
    return Guessing(fmean(1 / n for n in numbers), fmean(math.log(n) for n in numbers), same)


def by_options(options: Iterable[int]) -> dict[int, list[int]]:
    """Places in a list of questions by their number of options, the smallest number first.

    Questions of unlike numbers are computed apart: a letter that one of them lacks is then in no sum, mean or
    prior of the others.
    """
    found: dict[int, list[int]] = {}
    for place, n in enumerate(options):
        found.setdefault(n, []).append(place)
    return dict(sorted(found.items()))
