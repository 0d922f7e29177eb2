"""What a model said about each question, and the CSV files that keep it."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vqa.errors import UserError
from vqa.machine.files import read_text, replace_text
from vqa.question import FEWEST, LETTERS, MOST, letters_of

SUM_TOLERANCE = 1e-4  # float32 softmax is off by 1e-7; a forgotten normalisation by far more
NO_ANSWER = "no_answer"  # flag of a row whose generated text held no letter
NEEDED = ("id", "answer", "p_a", "p_b", "option_mass")  # columns; p_c, ... as far as there are options
PICTURE = "image_sha256"


@dataclass(frozen=True)
class Prediction:
    """The model's answer to one question.

    Args:
        id: The question's id, verbatim.
        answer: The letter given, or None when the model's text holds none. Never a silent default.
        p: Probabilities of the question's letters among them, adding up to 1.
        option_mass: Probability of these letters together among the whole vocabulary, 0..1.
        gold: The right letter, or None for an unlabelled question.
        kind: The type of question where the source knows it, else "".
        flag: Why this row is special (for instance "image_missing"), else "".
        image_sha256: Digest of the picture, of several pictures with a blank between; "" without one, and in
            files of earlier versions. Errors are taken over pictures.

    Raises:
        ValueError: There are fewer than two probabilities or more than six, one is not in 0..1 (NaN
            included), they do not add up to 1, or a letter is none of theirs.
    """

    id: str
    answer: str | None
    p: tuple[float, ...]
    option_mass: float
    gold: str | None = None
    kind: str = ""
    flag: str = ""
    image_sha256: str = ""

    def __post_init__(self) -> None:
        if not FEWEST <= len(self.p) <= MOST or not all(0 <= value <= 1 for value in self.p):
            raise ValueError(
                f"p of question {self.id!r} must be {FEWEST} to {MOST} numbers in 0..1, got {self.p}"
            )
        if abs(sum(self.p) - 1) > SUM_TOLERANCE:
            raise ValueError(f"p of question {self.id!r} must add up to 1, got {sum(self.p):.6f}")
        if not 0 <= self.option_mass <= 1 + SUM_TOLERANCE:
            raise ValueError(f"option_mass of question {self.id!r} must be in 0..1, got {self.option_mass}")
        for name, letter in (("answer", self.answer), ("gold", self.gold)):
            if letter is not None and letter not in self.letters:
                raise ValueError(
                    f"{name} of question {self.id!r} must be one of {', '.join(self.letters)}, got {letter!r}"
                )

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the question's options."""
        return letters_of(len(self.p))

    @property
    def margin(self) -> float:
        """Top probability minus the second: 0 is a coin toss, 1 is certainty."""
        second, first = sorted(self.p)[-2:]
        return first - second


def write_predictions(path: Path, predictions: Sequence[Prediction], fold: int | None = None) -> None:
    """Write one row per question, in the order given; the file appears complete or not at all.

    Numbers are written with all their digits, so that a score computed from the file is the score.
    The `gold` column is there only when at least one answer is known. There are as many columns p_a, p_b, ...
    as the question with most options needs; a question with fewer leaves the last ones empty.

    Args:
        path: The CSV to write; its folder is made.
        predictions: At least one.
        fold: Number of the fold these rows were held out in; adds the column `fold`.

    Raises:
        ValueError: There is nothing to write.
    """
    _write(path, [(prediction, fold) for prediction in predictions])


def append_predictions(path: Path, predictions: Sequence[Prediction], fold: int) -> None:
    """Add a fold's rows to an out-of-fold file, replacing what the same fold left there before.

    Replacing makes the call repeatable: a trial cut off after this call and continued does not double
    its rows. The whole file is rewritten, so that a reader never sees half a fold.

    Args:
        path: The CSV; made when missing.
        predictions: The fold's rows.
        fold: The fold's number.

    Raises:
        UserError: The file that is there cannot be read.
        ValueError: There is nothing to write.
    """
    kept = [row for row in _read(path) if row[1] != fold] if path.exists() else []
    _write(path, kept + [(prediction, fold) for prediction in predictions])


def read_predictions(path: Path) -> list[Prediction]:
    """Read a file of `write_predictions`, in file order.

    Raises:
        UserError: The file is missing, lacks a column, repeats an id or holds a bad value (says which row).
    """
    return [prediction for prediction, _ in _read(path)]


def read_fold_predictions(path: Path) -> list[tuple[Prediction, int | None]]:
    """Read an out-of-fold file: each prediction with the fold in which it was held out.

    Raises:
        UserError: As `read_predictions`.
    """
    return _read(path)


def write_submission(path: Path, predictions: Sequence[Prediction], ids: Sequence[str]) -> None:
    """Write the contest file: `id,answer`, one lower-case letter per row.

    Args:
        path: The CSV to write.
        predictions: One per question, in the questions' order.
        ids: The questions' ids as their file gives them.

    Raises:
        UserError: An answer is missing, an id repeats, or the rows are not exactly the questions in order.
    """
    repeated = _first_repeated(ids)
    if repeated is not None:
        raise UserError(f"{path}: id {repeated!r} occurs more than once; give every question its own id")
    if len(predictions) != len(ids):
        raise UserError(f"{path}: {len(predictions)} answers for {len(ids)} questions; predict every row")
    for row, (prediction, question_id) in enumerate(zip(predictions, ids, strict=True), start=2):
        if prediction.id != question_id:
            raise UserError(
                f"{path}, row {row}: this answer is for {prediction.id!r}, the question is {question_id!r}; "
                "predictions must be in the order of the test file"
            )
    silent = [prediction.id for prediction in predictions if prediction.answer is None]
    if silent:
        raise UserError(
            f"{path}: {len(silent)} of {len(ids)} questions have no answer (first: {silent[0]!r}) and none "
            "is made up; score the option letters instead of generating text"
        )
    _write_rows(path, ("id", "answer"), [(p.id, str(p.answer)) for p in predictions])


def _write(path: Path, rows: Sequence[tuple[Prediction, int | None]]) -> None:
    if not rows:
        raise ValueError(f"{path}: predictions must not be empty")
    with_gold = any(prediction.gold is not None for prediction, _ in rows)
    with_fold = any(fold is not None for _, fold in rows)
    most = max(len(prediction.p) for prediction, _ in rows)
    header = ["id", "answer", *(f"p_{letter}" for letter in letters_of(most)), "margin"]
    header += ["option_mass", *["gold"] * with_gold, "kind", "flag", PICTURE, *["fold"] * with_fold]
    table = []
    for prediction, fold in rows:
        # repr() of a float reads back as the very same float
        numbers = [repr(float(value)) for value in prediction.p] + [""] * (most - len(prediction.p))
        numbers += [repr(float(prediction.margin)), repr(float(prediction.option_mass))]
        cells = [prediction.id, prediction.answer or "", *numbers]
        cells += [prediction.gold or ""] * with_gold
        cells += [prediction.kind, prediction.flag, prediction.image_sha256]
        table.append(cells + ["" if fold is None else str(fold)] * with_fold)
    _write_rows(path, header, table)


def _write_rows(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    replace_text(path, out.getvalue())


def _read(path: Path) -> list[tuple[Prediction, int | None]]:
    try:
        table = list(csv.reader(io.StringIO(read_text(path), newline=""), strict=True))
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: no such predictions file; run stage=predict or stage=final first"
        ) from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: cannot be read as a predictions file: {error}") from error
    header = table[0] if table else []
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise UserError(
            f"{path}: lacks the column(s) {', '.join(missing)}; it has {', '.join(header) or 'none'}"
        )
    rows = [_parse_row(path, number, header, cells) for number, cells in enumerate(table[1:], start=2)]
    repeated = _first_repeated([prediction.id for prediction, _ in rows])
    if repeated is not None:
        raise UserError(f"{path}: id {repeated!r} occurs more than once; write the file anew")
    return rows


def _parse_row(
    path: Path, number: int, header: Sequence[str], cells: Sequence[str]
) -> tuple[Prediction, int | None]:
    if len(cells) != len(header):
        raise UserError(
            f"{path}, row {number}: {len(cells)} cells, expected {len(header)}; write the file anew"
        )
    row = dict(zip(header, cells, strict=True))
    try:
        given = [name for letter in LETTERS if (name := f"p_{letter}") in row]
        while len(given) > FEWEST and not row[given[-1]]:
            given.pop()
        p, mass = tuple(_number(row, name) for name in given), _number(row, "option_mass")
        letters = row["answer"] or None, row.get("gold") or None
        words = row.get("kind", ""), row.get("flag", ""), row.get(PICTURE, "")
        prediction = Prediction(row["id"], letters[0], p, mass, letters[1], *words)
        return prediction, int(row["fold"]) if row.get("fold") else None
    except ValueError as error:
        raise UserError(f"{path}, row {number}: {error}; write the file anew") from error


def _number(row: dict[str, str], name: str) -> float:
    try:
        value = float(row[name])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"column {name} must be a number, got {row[name]!r}")
    return value


def _first_repeated(ids: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for question_id in ids:
        if question_id in seen:
            return question_id
        seen.add(question_id)
    return None
