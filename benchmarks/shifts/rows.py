"""The questions of the table over the shifts: the same ones for every seed's adapter, never trained on."""

import csv
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from benchmarks.shifts.corruptions import CORRUPTIONS, corrupted
from vqa.data.csv_rows import USUAL
from vqa.data.easy_vqa import EasyVqa
from vqa.data.emoji_quiz import EmojiQuiz
from vqa.data.split import Split, hold_out
from vqa.question import LETTERS, Question

POOL = 3750  # emoji questions in the training styles: 3,000 to train on, 750 in other pictures to judge
HELD_OUT = 0.2
STYLE = 1500  # emoji questions in the style never seen
CLEAN, NEW_STYLE = "clean", "style"
TUNING = "tuning"  # a seed's own held-out part, for choosing a method's values: no table reports these
SHIFTS = {
    "emoji_quiz": (CLEAN, NEW_STYLE, *CORRUPTIONS),
    "easy_vqa": (CLEAN, *CORRUPTIONS),
    TUNING: (CLEAN, *CORRUPTIONS),
}


@cache
def emoji_split(work: Path, size: int = POOL) -> Split:
    """The emoji questions in the training styles; no picture is in both parts, whatever the seed of a run."""
    return hold_out(EmojiQuiz(size, STYLE, 0, str(work / "emoji")).train(), HELD_OUT, 0)


def write_training_csv(work: Path, size: int = POOL) -> None:
    """The emoji training part as a contest CSV with its pictures beside it, for data=csv."""
    pictures = work / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    with (work / "train.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "question", *LETTERS[:USUAL], "answer"])
        for question in emoji_split(work, size).train:
            if question.image is None:
                raise ValueError(f"question {question.id!r} must have a picture, got none")
            name = f"{question.image_sha256[:20]}.png"
            shutil.copyfile(question.image, pictures / name)
            writer.writerow([question.id, name, question.text, *question.choices, question.answer])


@cache
def rows(dataset: str, shift: str, n: int, work: Path) -> list[Question]:
    """The first n questions of a cell.

    Args:
        dataset: A key of `SHIFTS`.
        shift: One of its shifts.
        n: How many; fewer where there are not so many.
        work: Folder for pictures.
    """
    if dataset == "easy_vqa":
        questions = EasyVqa(train_size=1, test_size=n, seed=0).test()
    elif shift == NEW_STYLE:
        questions = EmojiQuiz(1, STYLE, 0, str(work / "emoji")).test()[:n]
    else:
        questions = emoji_split(work).valid[:n]
    return shifted(questions, shift, work)


def shifted(questions: Sequence[Question], shift: str, work: Path) -> list[Question]:
    """The questions over corrupted pictures; as they are where the shift is none of the corruptions."""
    return corrupted(questions, shift, work / "corrupted") if shift in CORRUPTIONS else list(questions)
