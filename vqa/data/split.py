"""Which questions are trained on, held out, and in which fold: stratified by letter, grouped by picture."""

import csv
import hashlib
import io
import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from vqa.errors import UserError
from vqa.machine.files import replace_text
from vqa.question import LETTERS, Question, picture_groups


@dataclass(frozen=True)
class Split:
    """The 80 % for training and the 20 % that only scores.

    Args:
        train: Questions for the sweep and for the final fit, in file order.
        valid: The held-out questions, in file order.
    """

    train: list[Question]
    valid: list[Question]

    @property
    def sha256(self) -> str:
        """Hex digest over ids and parts: equal digests are the same split, whatever the order of the rows."""
        parts = sorted([q.id, part] for part, questions in _parts(self) for q in questions)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Fold:
    """One of K folds: the model trained on `train` is scored on `valid`. Both keep the order of the input."""

    train: list[Question]
    valid: list[Question]


def hold_out(questions: Sequence[Question], share: float, seed: int) -> Split:
    """Hold a share of labelled questions out, stratified by letter and grouped by image.

    The first of round(1 / share) group folds, so the held-out part is 1/2, 1/3, 1/4, ... of the questions,
    give or take one group. Questions on several pictures may link many others into one large group: with such
    questions it is the fold whose size is nearest to the share.

    Args:
        questions: Labelled questions.
        share: Part to hold out, 0 < share <= 0.5.
        seed: Decides which questions are held out.

    Raises:
        UserError: The share is out of range, there are too few questions or images for it, or shared pictures
            link so many questions that no part near the share can be held out.
    """
    if not 0 < share <= 0.5:
        raise UserError(f"budget.holdout_share must be > 0 and <= 0.5, got {share}")
    remedy = "raise budget.holdout_share or give more questions"
    what = f"holding out {share:.0%}"
    folds = _group_folds(questions, round(1 / share), seed, what, remedy)
    if not any(question.further for question in questions):
        return Split(*next(folds))
    train, valid = min(folds, key=lambda fold: abs(len(fold[1]) - share * len(questions)))
    if not share / 2 <= len(valid) / len(questions) <= (1 + share) / 2:
        raise UserError(_linked(questions, what))
    return Split(train, valid)


def subsample(questions: Sequence[Question], size: int | None, seed: int) -> list[Question]:
    """Draw the part of the training questions that a sweep's trials work on, stratified by letter.

    Groups need not stay whole: the folds are made afterwards and keep twins together.

    Args:
        questions: Labelled questions.
        size: How many to draw; None, or more than there are, takes all.
        seed: Decides which.

    Returns:
        The drawn questions in the order of the input.

    Raises:
        UserError: The size is smaller than the number of letters, or a letter has one question only.
    """
    if size is None or size >= len(questions):
        return list(questions)
    letters = _strata(questions, 2)
    counts = Counter(letters)
    if size < len(counts):
        raise UserError(f"budget.subsample must be >= {len(counts)}, one question a letter, got {size}")
    rarest = min(counts, key=lambda letter: (counts[letter], letter))
    if counts[rarest] < 2:
        raise UserError(
            f"budget.subsample={size} needs at least 2 questions of each letter, the letter {rarest} has 1: "
            "set budget.subsample=null (all questions) or give more questions"
        )
    if len(questions) - size < len(counts):
        # scikit-learn wants one left-over of each letter; with fewer left over than letters any draw is as
        # well stratified as it can be, to one question a letter.
        chosen = random.Random(seed).sample(range(len(questions)), size)
    else:
        from sklearn.model_selection import StratifiedShuffleSplit

        splitter = StratifiedShuffleSplit(n_splits=1, train_size=size, random_state=seed)
        chosen, _ = next(splitter.split(letters, letters))
    return [questions[index] for index in sorted(chosen)]


def make_folds(questions: Sequence[Question], k: int, seed: int) -> list[Fold]:
    """Cut questions into K folds, stratified by letter, all questions on an image in the same fold.

    Args:
        questions: Labelled questions.
        k: Number of folds, >= 2.
        seed: Decides the folds.

    Returns:
        K folds; their `valid` parts are an exact partition of the questions.

    Raises:
        UserError: There are too few questions, images or questions of a letter for K folds, or shared
            pictures link so many questions that one fold would have most of them.
    """
    if k < 2:
        raise UserError(f"budget.folds must be >= 2, got {k}")
    remedy, what = "lower budget.folds, raise budget.subsample or give more questions", f"budget.folds={k}"
    folds = [Fold(*parts) for parts in _group_folds(questions, k, seed, what, remedy)]
    linked = any(question.further for question in questions)
    if linked and max(len(fold.valid) for fold in folds) > (1 + 1 / k) / 2 * len(questions):
        raise UserError(_linked(questions, what))
    return folds


def write_split(split: Split, path: Path) -> None:
    """Write `id,part` rows, part being train or valid: first all of train, then all of valid."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["id", "part"])
    writer.writerows((q.id, part) for part, questions in _parts(split) for q in questions)
    replace_text(path, out.getvalue())


def _parts(split: Split) -> tuple[tuple[str, list[Question]], tuple[str, list[Question]]]:
    return ("train", split.train), ("valid", split.valid)


def _letters(questions: Sequence[Question]) -> list[str]:
    letters = [q.answer for q in questions if q.answer is not None]
    if len(letters) < len(questions):
        raise ValueError(f"a split needs labelled questions, {len(questions) - len(letters)} have no answer")
    return letters


def _strata(questions: Sequence[Question], least: int) -> list[str]:
    """The letter of each question, for stratifying.

    A letter that not every question has may be right for a few only: with fewer than `least` questions it
    counts as the letter before it.
    """
    letters = _letters(questions)
    of_all = min((len(question.choices) for question in questions), default=0)
    for before, letter in reversed(list(pairwise(LETTERS))):
        if LETTERS.index(letter) >= of_all and 0 < letters.count(letter) < least:
            letters = [before if found == letter else found for found in letters]
    return letters


def _groups(questions: Sequence[Question]) -> list[str]:
    """Questions that share a picture share a group; a question without pictures is alone."""
    return picture_groups([q.pictures_sha256 for q in questions])


def _linked(questions: Sequence[Question], what: str) -> str:
    """The message about questions that shared pictures link into one large group."""
    group, size = Counter(_groups(questions)).most_common(1)[0]
    link = next(q for q, own in zip(questions, _groups(questions), strict=True) if own == group and q.further)
    return (
        f"{what} is not possible: {size} of {len(questions)} questions are linked by pictures they share, "
        f"such as question {link.id!r} by its {len(link.pictures)}, and a picture must not be trained on and "
        "scored too; leave out questions that link others"
    )


def _group_folds(
    questions: Sequence[Question], k: int, seed: int, what: str, remedy: str
) -> Iterator[tuple[list[Question], list[Question]]]:
    letters, groups = _strata(questions, k), _groups(questions)
    counts = Counter(letters)
    if len(set(groups)) < k:
        have = f"{len(questions)} questions on {len(set(groups))} different images"
        raise UserError(f"{what} needs at least {k} different images, got {have}: {remedy}")
    rarest = min(counts, key=lambda letter: (counts[letter], letter))
    if counts[rarest] < k:
        few = f"the letter {rarest} has {counts[rarest]}"
        raise UserError(f"{what} needs at least {k} questions of each letter, {few}: {remedy}")

    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(n_splits=k, shuffle=True, random_state=seed)
    for train, valid in splitter.split(letters, letters, groups):
        yield [questions[index] for index in train], [questions[index] for index in valid]
