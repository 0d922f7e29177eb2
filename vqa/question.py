"""What every stage talks about: a question on its pictures, two to six options, and the letters they have."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

LETTERS = ("a", "b", "c", "d", "e", "f")  # of the options, in their order; a question has the first n of them
FEWEST, MOST = 2, len(LETTERS)  # options of a question


@dataclass(frozen=True)
class Picture:
    """One picture of a question: its file and the hex digest of the file's bytes; equal digests are twins."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Question:
    """One multiple-choice question.

    Args:
        id: The row's id, verbatim.
        image: The first picture's file; None for a question without a picture, or when it could not be read
            and the user allowed a blank.
        image_sha256: Hex digest of the file's bytes ("" without an image); equal digests are twins.
        text: The question as written.
        choices: Two to six options, in the order of their letters.
        answer: The gold letter, or None for an unlabelled row.
        kind: The type of question where the source knows it, else "".
        flag: Why this row is special (for instance "image_missing"), else "".
        view: What of each picture is looked at, as in vqa/model/vision/views.py; "" for all of it, as it is.
        further: Pictures after the first one, in the order in which the model sees them.

    Raises:
        ValueError: There are fewer than two options or more than six, the answer is the letter of none, or
            there are further pictures without a first one.
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
    further: tuple[Picture, ...] = ()

    def __post_init__(self) -> None:
        if not FEWEST <= len(self.choices) <= MOST:
            raise ValueError(
                f"choices of question {self.id!r} must be {FEWEST} to {MOST} texts, got {self.choices}"
            )
        if self.answer is not None and self.answer not in self.letters:
            raise ValueError(
                f"answer of question {self.id!r} must be {one_of(self.letters)}, got {self.answer!r}"
            )
        if self.further and self.image is None:
            raise ValueError(
                f"further pictures of question {self.id!r} need an image, which is the first one"
            )

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of its options."""
        return letters_of(len(self.choices))

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All its pictures, in the order in which the model sees them."""
        first = () if self.image is None else (Picture(self.image, self.image_sha256),)
        return (*first, *self.further)

    @property
    def pictures_sha256(self) -> str:
        """The digests of its pictures in their order, a blank between; as in the files of predictions."""
        return " ".join([self.image_sha256, *(picture.sha256 for picture in self.further)])


def picture_groups(digests: Sequence[str]) -> list[str]:
    """A name of the group of each question; questions that share any picture are in one group.

    So are questions that are linked through others: {1, 2}, {2, 3} and {3} are one group.

    Args:
        digests: `Question.pictures_sha256` of each question; "" = no picture is known.

    Returns:
        The smallest digest in the group, which is a lone picture's own; "alone 3" for question number 3 if it
        has no picture.
    """
    above: dict[str, str] = {}  # of a digest a smaller one in its group; itself: it is the smallest

    def smallest(digest: str) -> str:
        while above[digest] != digest:
            above[digest] = above[above[digest]]
            digest = above[digest]
        return digest

    of_each = [pictures.split() for pictures in digests]
    for pictures in of_each:
        roots = [smallest(above.setdefault(digest, digest)) for digest in pictures]
        for root in roots:
            above[root] = min(roots)
    return [smallest(own[0]) if own else f"alone {i}" for i, own in enumerate(of_each)]


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
