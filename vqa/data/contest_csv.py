"""`data=csv`: the contest's files, read verbatim, with every problem found before a model loads."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from vqa.data.csv_rows import VOTES, Part, Problem, Row, read_rows
from vqa.data.image import ImageError, check_image
from vqa.data.places import resolve_inside
from vqa.errors import UserError
from vqa.question import LETTERS, Question

_log = logging.getLogger(__name__)

SHOWN = 10  # problems printed in full; the rest are counted


@dataclass(frozen=True)
class ContestCsv:
    """The contest schema: `id,path,question,a,b,c,d` and `answer`, or `answer1`..`answer5`, or no label.

    Every value stays as written ("NA", "007", an id with or without ".jpg") and rows keep the file's order;
    only answers are normalised (" B " is b). UTF-8 with or without BOM, any line ends; further columns are
    ignored. Two equal options in a row occur in the wild and are only warned about. Votes count when there
    is no `answer` column: the most frequent letter wins, if it is alone at the top and has `min_votes`. A
    test file whose labels are all blank is unlabelled (a sample submission); where some are filled, a blank
    one is a problem, because a score over a part of the rows would mislead.

    Args:
        train_csv: Labelled file; None = none.
        test_csv: Labelled or unlabelled file; None = none.
        image_root: Folder that the column `path` starts from and must not leave.
        min_votes: Votes that a letter needs, 1..5.
        on_bad_row: "error" stops at bad training rows, "skip" leaves them out and says how many. Test rows
            are never left out.
        on_bad_image: "error" stops at unusable images of test rows; "blank" keeps such a row without its
            image, flagged image_missing, image_broken or image_too_large.
    """

    train_csv: str | None
    test_csv: str | None
    image_root: str | None
    min_votes: int = 1
    on_bad_row: str = "error"
    on_bad_image: str = "error"

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
        return None if self.test_csv is None else self._questions(self.test_csv, "test")

    def check(self) -> list[str]:
        """Read both files and list every problem that would stop a run; empty when there is none."""
        problems = self._setting_problems()
        if self.train_csv is None and self.test_csv is None:
            problems.append("data.train_csv and data.test_csv are both null: set data.train_csv=FILE")
        if self.train_csv is not None:
            problems += self._read(self.train_csv, "train").lines()
        if self.test_csv is not None:
            problems += self._read(self.test_csv, "test").lines()
        return problems

    def _questions(self, file: str, part: Part) -> list[Question]:
        problems = self._setting_problems()
        if problems:
            raise UserError("\n".join(problems))
        reading = self._read(file, part)
        if reading.problems:
            count = f"{len(reading.problems)} problem{'s' if len(reading.problems) > 1 else ''} in {file}:"
            remedy = self._remedy({problem.about for problem in reading.problems}, part)
            raise UserError(f"{count}\n{_first(reading.lines())}\n{remedy}")
        for note in reading.notes:
            _log.warning(note)
        return reading.questions

    def _remedy(self, about: set[str], part: Part) -> str:
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
        if self._root() is None:
            problems.append(
                f"data.image_root must be a folder, got {self.image_root!r}: "
                "set data.image_root=FOLDER or the environment variable DATA_PATH"
            )
        return problems

    def _read(self, file: str, part: Part) -> "_Reading":
        rows, problems = read_rows(Path(file).expanduser(), part, self.min_votes)
        root = self._root()
        if root is not None:  # else one problem with the setting instead of one for each row
            problems += _attach_images(rows, root)
        problems.sort(key=lambda problem: problem.line)
        notes = _equal_options(rows, file)
        if part == "test" and self.on_bad_image == "blank":
            blank = [problem.at(file) for problem in problems if problem.about == "image"]
            problems = [problem for problem in problems if problem.about != "image"]
            if blank:
                notes.append(f"{file}: {len(blank)} rows are answered without their image:\n{_first(blank)}")

        bad = {problem.line for problem in problems}
        good = [row.question() for row in rows if row.line not in bad]
        of_file = any(problem.about == "file" for problem in problems)
        if part == "train" and self.on_bad_row == "skip" and good and bad and not of_file:
            lines = [problem.at(file) for problem in problems]
            notes.append(f"{file}: left out {len(bad)} bad rows of {len(good) + len(bad)}:\n{_first(lines)}")
            problems = []
        return _Reading(file, good, problems, notes)


@dataclass(frozen=True)
class _Reading:
    file: str
    questions: list[Question]
    problems: list[Problem]  # those that stop the run
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        return [problem.at(self.file) for problem in self.problems]


def _attach_images(rows: list[Row], root: Path) -> list[Problem]:
    """Set path and digest of each image that decodes to its end, and the flag of each row without one."""
    problems = []
    paths: dict[int, Path] = {}
    for row in rows:
        if not row.cells["path"].strip():
            continue
        try:
            paths[row.line] = resolve_inside(root, row.cells["path"])
        except ValueError as error:
            problems.append(Problem(str(error), row.line, "path"))
    # Decoding and hashing leave the interpreter's lock: threads are as fast as processes and start at once.
    unique = list(dict.fromkeys(paths.values()))
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        outcome = dict(zip(unique, pool.map(_try_image, unique), strict=True))
    for row in rows:
        found = outcome[paths[row.line]] if row.line in paths else None
        if isinstance(found, ImageError):
            row.flag = f"image_{found.reason.replace(' ', '_')}"
            problems.append(Problem(str(found), row.line, "path", "image"))
        elif found is not None:
            row.image, row.image_sha256 = paths[row.line], found
    return problems


def _try_image(path: Path) -> str | ImageError:
    try:
        return check_image(path)
    except ImageError as error:
        return error


def _equal_options(rows: list[Row], file: str) -> list[str]:
    lines = [row.line for row in rows if len({row.cells[letter] for letter in LETTERS}) < len(LETTERS)]
    shown = ", ".join(str(line) for line in lines[:SHOWN])
    return [f"{file}: {len(lines)} rows have two equal options, first in row {shown}"] if lines else []


def _first(lines: list[str]) -> str:
    more = [f"... and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "\n".join(f"  {line}" for line in [*lines[:SHOWN], *more])
