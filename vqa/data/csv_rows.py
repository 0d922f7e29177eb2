"""The rows of a contest file as they stand, each with its line number, and everything wrong with them."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vqa.question import LETTERS, Question

COLUMNS = ("id", "path", "question", *LETTERS)
VOTES = ("answer1", "answer2", "answer3", "answer4", "answer5")

Part = Literal["train", "test"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    Args:
        text: What is wrong.
        line: Line of the file on which the row starts, as an editor counts; 0 = the whole file.
        column: Column's name; "" = the whole row.
        about: "file" = no row can be trusted, "image" = only the picture is at fault.
    """

    text: str
    line: int = 0
    column: str = ""
    about: Literal["file", "row", "image"] = "row"

    def at(self, file: str) -> str:
        """The problem with its place: `file.csv:row 17, column answer: ...`."""
        row = f":row {self.line}" if self.line else ""
        column = f", column {self.column}" if self.column else ""
        return f"{file}{row}{column}: {self.text}"


@dataclass
class Row:
    """A data row on its way to a `Question`; answer and image are filled in as they are found good."""

    line: int
    cells: dict[str, str]
    answer: str | None = None
    image: Path | None = None
    image_sha256: str = ""
    flag: str = ""

    def question(self) -> Question:
        """The row as the stages see it, every value verbatim."""
        cells = self.cells
        choices = (cells["a"], cells["b"], cells["c"], cells["d"])
        return Question(
            id=cells["id"],
            image=self.image,
            image_sha256=self.image_sha256,
            text=cells["question"],
            choices=choices,
            answer=self.answer,
            flag=self.flag,
        )


def read_rows(path: Path, part: Part, min_votes: int) -> tuple[list[Row], list[Problem]]:
    """Read and check a file, images aside.

    Args:
        path: UTF-8 CSV file, with or without BOM, any line ends.
        part: "train" (every row needs a label) or "test" (all rows or none).
        min_votes: Votes that the winning letter of `answer1`..`answer5` needs.

    Returns:
        The rows that have as many fields as the header, in file order, with their answers; and all problems.
    """
    records, problems = _parse(path)
    rows, of_rows = _make_rows(records, part)
    return rows, problems + of_rows + _check_cells(rows) + _label(rows, part, min_votes)


def _parse(path: Path) -> tuple[list[tuple[int, list[str]]], list[Problem]]:
    """The file's records, each with the line it starts on; blank lines are no records."""
    try:
        data = path.read_bytes()
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        return [], [Problem("is not UTF-8: save the file as 'CSV UTF-8'", line, about="file")]
    except OSError as error:
        return [], [Problem(f"cannot be read: {error.strerror}", about="file")]

    records: list[tuple[int, list[str]]] = []
    # Without `strict`, a quote that is never closed swallows all rows up to the next quote.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for fields in reader:
            if fields:
                records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        return records, [Problem(f"is not CSV, look for a stray quote: {error}", line, about="file")]
    return records, [] if records else [Problem("is empty", about="file")]


def _make_rows(records: list[tuple[int, list[str]]], part: Part) -> tuple[list[Row], list[Problem]]:
    """The rows with as many fields as the header; what is wrong with the header and with the others."""
    if not records:
        return [], []
    line, header = records[0]
    exist = f"the file has the columns {', '.join(header)}"
    labels = ("answer", *VOTES)
    problems = [Problem(f"is missing, {exist}", line, name, "file") for name in COLUMNS if name not in header]
    if part == "train" and not set(labels) & set(header):
        problems.append(Problem(f"is missing (or {VOTES[0]}..{VOTES[-1]}), {exist}", line, "answer", "file"))
    problems += [
        Problem(f"stands {count} times in the header", line, name, "file")
        for name, count in Counter(header).items()
        if count > 1 and name in COLUMNS + labels
    ]
    if len(records) == 1:
        problems.append(Problem("has a header and no rows", about="file"))
    if problems:
        return [], problems

    rows = []
    for line, fields in records[1:]:
        if len(fields) == len(header):
            rows.append(Row(line, dict(zip(header, fields, strict=True))))
        else:
            column = header[min(len(fields), len(header) - 1)]
            text = f"{len(fields)} fields, the header has {len(header)}: quote fields that hold a comma"
            problems.append(Problem(text, line, column))
    return rows, problems


def _check_cells(rows: list[Row]) -> list[Problem]:
    problems = []
    first_line: dict[str, int] = {}
    for row in rows:
        problems += [Problem("is empty", row.line, name) for name in COLUMNS if not row.cells[name].strip()]
        name = row.cells["id"]
        if name in first_line and name.strip():
            problems.append(Problem(f"{name!r} stands in row {first_line[name]} too", row.line, "id"))
        first_line.setdefault(name, row.line)
    return problems


def _label(rows: list[Row], part: Part, min_votes: int) -> list[Problem]:
    """Set the answer of each row that has one."""
    header = rows[0].cells if rows else {}
    columns = ["answer"] if "answer" in header else [name for name in VOTES if name in header]
    if not columns:
        return []
    where = columns[0] if len(columns) == 1 else f"{columns[0]}..{columns[-1]}"
    problems, blank = [], []
    for row in rows:
        votes = {name: row.cells[name].strip().lower() for name in columns if row.cells[name].strip()}
        unknown = [name for name, letter in votes.items() if letter not in LETTERS]
        problems += [
            Problem(f"must be a, b, c or d, got {row.cells[name]!r}", row.line, name) for name in unknown
        ]
        if not votes:
            blank.append(row)
        elif not unknown:
            row.answer, reason = _winner(list(votes.values()), 1 if columns == ["answer"] else min_votes)
            problems += [Problem(reason, row.line, where)] if reason else []
    if part == "train":
        problems += [Problem("is empty", row.line, where) for row in blank]
    elif len(blank) < len(rows):
        text = "is empty, while other rows have an answer: fill it, or empty all for an unlabelled file"
        problems += [Problem(text, row.line, where) for row in blank]
    return problems


def _winner(votes: list[str], min_votes: int) -> tuple[str | None, str]:
    """The letter that wins, or None and why none does."""
    ranked = Counter(votes).most_common()
    letter, count = ranked[0]
    if len(ranked) > 1 and ranked[1][1] == count:
        return None, f"the votes tie: {', '.join(votes)}"
    if count < min_votes:
        return None, f"{letter} has {count} of the {min_votes} votes that data.min_votes asks for"
    return letter, ""
