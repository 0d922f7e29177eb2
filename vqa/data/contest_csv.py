"""`data=csv`: the contest's files, read verbatim, with every problem found before a model loads.

Answers go back into the form of its sample submission (`as_sample`).
"""

import csv
import functools
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vqa.config.words import shell_line
from vqa.data.csv_rows import (
    FORMS,
    INDEX,
    VOTES,
    Columns,
    Part,
    Row,
    columns_problems,
    option_columns,
    own_names,
    read_rows,
)
from vqa.data.places import data_file, meant_root
from vqa.data.row_pictures import Attached, attach_pictures
from vqa.data.table_file import Problem, in_groups, read_table
from vqa.errors import UserError
from vqa.question import LETTERS, Question

_log = logging.getLogger(__name__)

SHOWN = 10  # problems printed in full; the rest are counted
_Content = tuple[list[Row], list[Problem], list[str], Attached | None]
_kept: ContextVar[dict[str, _Content] | None] = ContextVar("kept", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Read each file once, with its pictures: what is asked for again within this is as it was first seen."""
    before = _kept.set({})
    try:
        yield
    finally:
        _kept.reset(before)


@dataclass(frozen=True)
class ContestCsv:
    """The contest schema: `id,path,question,a,b,c,d` and `answer`, or `answer1`..`answer5`, or no label.

    Every value stays as written ("NA", "007", an id with or without ".jpg") and rows keep the file's order;
    only answers are normalised (" B " is b). UTF-8 with or without BOM, UTF-16 or cp949, any line ends;
    commas, semicolons or tabs; JSONL and parquet too. Further columns are ignored. Two equal options in a row
    occur in the wild and are only warned about. Votes count when there is no `answer` column: the most
    frequent letter wins, if it is alone at the top and has `min_votes`. A test file whose labels are all
    blank is unlabelled (a sample submission); where some are filled, a blank one is a problem, because a
    score over a part of the rows would mislead. The columns a, b, c, ... that are there, from two to six, say
    how many options a question has.

    Args:
        train_csv: Labelled file; None = none.
        test_csv: Labelled or unlabelled file; None = none.
        image_root: Folder that the column `path` starts from and must not leave.
        min_votes: Votes that a letter needs, 1..5.
        on_bad_row: "error" stops at bad training rows, "skip" leaves them out and says how many. Test rows
            are never left out.
        on_bad_image: "error" stops at unusable images of test rows; "blank" keeps such a row without its
            image, flagged image_missing, image_broken or image_too_large.
        columns: Our names of columns to the file's, where they differ: `{question: Q, path: file}`. A list
            of columns for `path` gives a question several pictures, in that order; blank cells are none.
        answers: "letter", "number" (1 is a), "index" (0 is a), "text" (of the option), or "auto": what fits
            the file.
        sample_submission: The contest's sample; the test file must have its ids. None = not checked.
        fewer_options: True lets a question have fewer options than the file has columns: its last ones are
            empty. False: an empty option is a problem, and both files have the same options.
        picture_separator: What stands between several pictures in one cell of `path`, such as ";". None:
            a cell is one path, or a list (JSONL, parquet, `["a.jpg", "b.jpg"]`), which needs no separator.
    """

    train_csv: str | None
    test_csv: str | None
    image_root: str | None
    min_votes: int = 1
    on_bad_row: str = "error"
    on_bad_image: str = "error"
    columns: Columns | None = None
    answers: str = "auto"
    sample_submission: str | None = None
    fewer_options: bool = False
    picture_separator: str | None = None

    def train(self) -> list[Question]:
        """Read the training file: every question has its answer and an image that decodes.

        Raises:
            UserError: There is no training file, or it has problems: all counted, the first ten shown.
        """
        if self.train_csv is None:
            raise UserError("data.train_csv must be a CSV file, got null: set data.train_csv=FILE")
        return self._questions(self.train_csv, "train")

    def test(self) -> list[Question] | None:
        """Read the test file, one question for each row; None when there is no test file.

        Raises:
            UserError: The file has problems: all counted, the first ten shown.
        """
        if self.test_csv is None:
            return None
        questions = self._questions(self.test_csv, "test")
        problems = self._sample_problems([question.id for question in questions])
        if problems := problems or self._option_problems():
            raise UserError("\n".join(problems))
        return questions

    def readable(self, part: Part) -> list[Question]:
        """The good questions of a file, to be described: without a word on the others; [] where none is."""
        file = self.train_csv if part == "train" else self.test_csv
        if file is None or self._setting_problems():
            return []
        lenient = replace(self, on_bad_row="skip", on_bad_image="blank")
        reading = lenient._read(file, part)
        return [] if reading.problems else reading.questions

    def check(self) -> list[str]:
        """Read both files and list every problem that would stop a run; empty when there is none.

        Rows with the same problem are one entry: a line for each of the first, and how many more.
        """
        problems = self._setting_problems()
        if columns_problems(self.columns):  # nothing can be read by such names
            return problems
        if self.train_csv is None and self.test_csv is None:
            problems.append("data.train_csv and data.test_csv are both null: set data.train_csv=FILE")
        if self.train_csv is not None:
            problems += in_groups(self._read(self.train_csv, "train").problems, self.train_csv)
        if self.test_csv is not None:
            reading = self._read(self.test_csv, "test")
            found = in_groups(reading.problems, self.test_csv)
            problems += found or self._sample_problems([q.id for q in reading.questions])
            problems += self._option_problems()
        return problems

    def _sample_problems(self, ids: Sequence[str]) -> list[str]:
        """Where the ids of the test file and of the contest's sample submission differ."""
        if self.sample_submission is None:
            return []
        name = own_names(self.columns)["id"]
        table = read_table(data_file(self.sample_submission, self.image_root), name)
        if table.problems:
            return [problem.at(self.sample_submission) for problem in table.problems]
        header = table.records[0][1]
        if name not in header:
            return [f"{self.sample_submission}: has no column {name}, it has {', '.join(header)}"]
        at = header.index(name)
        sample = {fields[at] for _, fields in table.records[1:] if len(fields) > at}
        lacking, extra = sample - set(ids), set(ids) - sample
        return [
            f"{self.sample_submission}: {len(found)} ids {what} {self.test_csv}, first {min(found)!r}"
            for found, what in ((lacking, "are not in"), (extra, "are missing that are in"))
            if found
        ]

    def _option_problems(self) -> list[str]:
        """Where one of the two files has an option that the other lacks."""
        if self.train_csv is None or self.test_csv is None or self.fewer_options:
            return []
        train, test = (
            option_columns(data_file(file, self.image_root), self.columns)
            for file in (self.train_csv, self.test_csv)
        )
        if not train or not test or train == test:
            return []
        return [
            f"{self.test_csv}: has the options {', '.join(test)}, {self.train_csv} has {', '.join(train)}: "
            "rename the column (data.columns={d: NAME}), or set data.fewer_options=true"
        ]

    def _questions(self, file: str, part: Part) -> list[Question]:
        problems = self._setting_problems()
        if problems:
            raise UserError("\n".join(problems))
        reading = self._read(file, part)
        if reading.problems:
            n = len(reading.problems)
            count = f"{n} problem in {file}:" if n == 1 else f"{n} problems in {file}:"
            remedy = self._remedy({problem.about for problem in reading.problems}, part)
            raise UserError(f"{count}\n{_first(reading.lines())}\n{remedy}")
        for note in reading.notes:
            _say_once(note, str(data_file(file, self.image_root).absolute()))
        return reading.questions

    def _remedy(self, about: set[str], part: Part) -> str:
        if "root" in about:
            return "Set data.image_root=FOLDER or the environment variable DATA_PATH, and repeat the command."
        if part == "train" and "file" not in about:
            if self.on_bad_row == "skip":
                return "Not one good row is left: mend the rows above, or check data.image_root."
            return "Mend these rows, or leave bad training rows out with data.on_bad_row=skip."
        if part == "test" and about == {"image"}:
            return "Put the images in place, or answer without them with data.on_bad_image=blank."
        return f"Mend the file (data.{part}_csv) and give the same command again."

    def _root(self) -> Path | None:
        root = Path(self.image_root).expanduser() if self.image_root else None
        return root if root is not None and root.is_dir() else None

    def _setting_problems(self) -> list[str]:
        problems = []
        if not 1 <= self.min_votes <= len(VOTES):
            problems.append(f"data.min_votes must be 1..{len(VOTES)}, got {self.min_votes}")
        if self.on_bad_row not in ("error", "skip"):
            problems.append(f"data.on_bad_row must be error or skip, got {self.on_bad_row}")
        if self.on_bad_image not in ("error", "blank"):
            problems.append(f"data.on_bad_image must be error or blank, got {self.on_bad_image}")
        if not isinstance(self.fewer_options, bool):
            problems.append(f"data.fewer_options must be true or false, got {self.fewer_options}")
        if self.answers not in ("auto", *FORMS, INDEX):
            forms = ", ".join(("auto", *FORMS, INDEX))
            problems.append(f"data.answers must be one of {forms}, got {self.answers}")
        problems += columns_problems(self.columns)
        if self.picture_separator is not None and not str(self.picture_separator).strip():
            problems.append(
                f"data.picture_separator must be a text such as ';', or null, got {self.picture_separator!r}"
            )
        if self._root() is None:
            problems.append(
                f"data.image_root must be a folder, got {self.image_root!r}: "
                "set data.image_root=FOLDER or the environment variable DATA_PATH"
            )
        return problems

    def _read(self, file: str, part: Part) -> "_Reading":
        root = self._root()
        rows, of_rows, said, attached = self._content(data_file(file, self.image_root), part, root)
        problems, notes = list(of_rows), [f"{file}: {note}" for note in said]
        if root is not None and attached is not None:
            of_images, missing = attached.problems, attached.missing
            all_missing = 1 < len(missing) == len(attached.named)
            if all_missing and (part == "train" or self.on_bad_image == "error"):
                text = f"none of its {len(missing)} pictures is in {root}, such as {min(missing)!r}"
                if (folder := meant_root(root, min(missing))) is not None:
                    text += f"; it is in {folder}: " + shell_line([f"data.image_root={folder}"])
                of_images = [Problem(text, about="root")]
            problems += of_images
            notes += [f"{file}: {note}" for note in attached.notes]
        problems.sort(key=lambda problem: problem.line)
        notes += _equal_options(rows, file)
        if part == "test" and self.on_bad_image == "blank":
            blank = [problem.at(file) for problem in problems if problem.about == "image"]
            problems = [problem for problem in problems if problem.about != "image"]
            if blank:
                notes.append(f"{file}: {len(blank)} rows are answered without their image:\n{_first(blank)}")

        bad = {problem.line for problem in problems}
        good = [row.question() for row in rows if row.line not in bad]
        of_file = any(problem.about in ("file", "root") for problem in problems)
        if part == "train" and self.on_bad_row == "skip" and good and bad and not of_file:
            lines = [problem.at(file) for problem in problems]
            notes.append(f"{file}: left out {len(bad)} bad rows of {len(good) + len(bad)}:\n{_first(lines)}")
            problems = []
        return _Reading(file, good, problems, notes)

    def _content(self, place: Path, part: Part, root: Path | None) -> _Content:
        """Rows, their problems, notes, and what came of their pictures; None where no folder of these is."""
        how = (part, self.min_votes, self.columns, self.answers, self.fewer_options)
        kept, key = _kept.get(), repr((place, how, root, self.picture_separator))
        if kept is not None and key in kept:
            return kept[key]
        rows, problems, notes = read_rows(place, *how)
        # without a folder there is one problem with the setting instead of one for each row
        attached = None if root is None else attach_pictures(rows, root, self.picture_separator)
        found = rows, problems, notes, attached
        if kept is not None:
            kept[key] = found
        return found


@dataclass(frozen=True)
class _Reading:
    file: str
    questions: list[Question]
    problems: list[Problem]  # those that stop the run
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [problem.at(self.file) for problem in self.problems]


def _equal_options(rows: list[Row], file: str) -> list[str]:
    lines = [row.line for row in rows if len({row.cells[name] for name in row.letters}) < len(row.letters)]
    shown = ", ".join(str(line) for line in lines[:SHOWN])
    return [f"{file}: {len(lines)} rows have two equal options, first in row {shown}"] if lines else []


def _first(lines: list[str]) -> str:
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:SHOWN], *more])


@functools.cache  # a run reads its files several times
def _say_once(note: str, file: str) -> None:
    _log.warning(note)


def as_sample(
    data: Mapping[str, Any], questions: Sequence[Question], letters: Sequence[str | None]
) -> str | None:
    """The content of a file like the contest's sample, with our answers in it.

    Args:
        data: The node `data`; only `csv` has a sample.
        questions: Those that were answered.
        letters: The answer to each.

    Returns:
        CSV with the sample's header, its rows in their order, and its further columns as they stand. None
        without a sample, and where it has no column for the answers: neither ours nor a single one beside id.
    """
    if not (file := data.get("sample_submission")):
        return None
    columns: Columns | None = data.get("columns")
    names = own_names(columns)
    records = read_table(data_file(file, data.get("image_root")), names["id"]).records
    header = records[0][1] if records else []
    at_answer = _answer_column(header, names)
    if at_answer is None:
        return None
    at_id = header.index(names["id"])
    rows = [list(fields) for _, fields in records[1:] if len(fields) == len(header)]
    given = [fields[at_answer].strip() for fields in rows if fields[at_answer].strip()]
    answered = {q.id: (q, letter) for q, letter in zip(questions, letters, strict=True)}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for fields in rows:
        if fields[at_id] in answered:  # budget.test_limit leaves some out
            fields[at_answer] = _written(*answered[fields[at_id]], given, str(data.get("answers")))
            writer.writerow(fields)
    return text.getvalue()


def _answer_column(header: Sequence[str], names: Mapping[str, str]) -> int | None:
    """Where the sample has its answers: under our name, or beside the id alone."""
    if names["id"] not in header:
        return None
    if names["answer"] in header:
        return header.index(names["answer"])
    return 1 - header.index(names["id"]) if len(header) == len({*header}) == len(("id", "answer")) else None


def _written(question: Question, letter: str | None, given: Sequence[str], answers: str) -> str:
    """An answer in the form of those that the sample holds; where they tell none, as `data.answers` says."""
    if letter is None:
        return ""
    at = LETTERS.index(letter)
    if given and all(text.isdecimal() for text in given):
        return str(at + (answers != INDEX))
    if given and all(text in LETTERS for text in given):
        return letter
    if given and all(text.lower() in LETTERS for text in given):
        return letter.upper()
    return {"number": str(at + 1), INDEX: str(at), "text": question.choices[at]}.get(answers, letter)
