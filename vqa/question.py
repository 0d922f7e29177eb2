"""What every stage talks about: one picture, one question, four choices."""

from dataclasses import dataclass
from pathlib import Path

LETTERS = ("a", "b", "c", "d")
CHANCE = 1 / len(LETTERS)


@dataclass(frozen=True)
class Question:
    """One 4-choice question.

    Args:
        id: The row's id, verbatim.
        image: The picture's file; None when it could not be read and the user allowed a blank.
        image_sha256: Hex digest of the file's bytes ("" without an image); equal digests are twins.
        text: The question as written.
        choices: The four options, in the order a, b, c, d.
        answer: The gold letter, or None for an unlabelled row.
        kind: The type of question where the source knows it, else "".
        flag: Why this row is special (for instance "image_missing"), else "".
        view: What of the picture is looked at, as in vqa/model/vision/views.py; "" for all of it, as it is.
    """

    id: str
    image: Path | None
    image_sha256: str
    text: str
    choices: tuple[str, str, str, str]
    answer: str | None = None
    kind: str = ""
    flag: str = ""
    view: str = ""
