"""The rows of a contest file as they stand, each with its line number, and everything wrong with them."""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Literal

from vqa.data.places import ENDINGS
from vqa.data.table_file import SEPARATORS, Problem, Record, read_table
from vqa.question import FEWEST, LETTERS, Picture, Question, one_of

COLUMNS = ("id", "path", "question", *LETTERS[:FEWEST])  # c, d, e and f as far as questions have options
USUAL = 4  # options that most contests have
VOTES = ("answer1", "answer2", "answer3", "answer4", "answer5")

NAMES = ("id", "path", "question", *LETTERS, "answer", *VOTES)  # keys of data.columns
FORMS = ("letter", "number", "text")  # how answers may be written
INDEX = "index"  # numbers that count from 0; only where the setting says so
AROUND = " ()[]<>.:"  # what may stand around a letter or number: (a), a., [1]

PICTURES = ("image", "img", "picture", "photo", "path", "file", "filename", "이미지", "그림", "사진", "파일")

Part = Literal["train", "test"]
Columns = Mapping[str, str | Sequence[str]]  # our names to the file's; of `path` also several


@dataclass
class Row:
    """A data row on its way to a `Question`; answer and pictures are filled in as they are found good.

    Args:
        line: Of the file.
        cells: By our names of the columns.
        picture_columns: Our names of the columns with pictures, in their order, to what messages call them.
        answer: The gold letter.
        pictures: Those that decode.
        flag: Why the row is special.
    """

    line: int
    cells: dict[str, str]
    picture_columns: Mapping[str, str]
    answer: str | None = None
    pictures: list[Picture] = field(default_factory=list)
    flag: str = ""

    @property
    def letters(self) -> list[str]:
        """The letters of its options: those of the file, without empty cells at the end."""
        found = [letter for letter in LETTERS if letter in self.cells]
        while found and not self.cells[found[-1]].strip():
            found.pop()
        return found

    def question(self) -> Question:
        """The row as the stages see it, every value verbatim."""
        cells = self.cells
        choices = tuple(cells[letter] for letter in self.letters)
        first = self.pictures[0] if self.pictures else None
        return Question(
            id=cells["id"],
            image=first.path if first else None,
            image_sha256=first.sha256 if first else "",
            text=cells["question"],
            choices=choices,
            answer=self.answer,
            flag=self.flag,
            further=tuple(self.pictures[1:]),
        )


def own_names(columns: Columns | None) -> dict[str, str]:
    """Our name of every column we know to the file's: path 2, path 3, ... are further pictures' columns."""
    names: dict[str, str] = {}
    for name in NAMES:
        theirs = (columns or {}).get(name, name)
        several = [theirs] if isinstance(theirs, str) else theirs
        names |= {name if at == 1 else f"{name} {at}": column for at, column in enumerate(several, start=1)}
    return names


def columns_problems(columns: Columns | None) -> list[str]:
    """What is wrong with the setting `data.columns`."""
    for name, theirs in (columns or {}).items():
        if name not in NAMES:
            return [f"data.columns: unknown name {name}; known: {', '.join(NAMES)}"]
        several = [theirs] if isinstance(theirs, str) else theirs
        texts = isinstance(several, Sequence) and bool(several) and all(isinstance(c, str) for c in several)
        if not texts or len(set(several)) < len(several) or (name != "path" and len(several) > 1):
            rule = "be a column's name" + (" or a list of different ones" if name == "path" else "")
            return [f"data.columns.{name} must {rule}, got {theirs}"]
    return []


def read_rows(
    path: Path,
    part: Part,
    min_votes: int,
    columns: Columns | None = None,
    answers: str = "auto",
    fewer_options: bool = False,
) -> tuple[list[Row], list[Problem], list[str]]:
    """Read and check a file, pictures aside.

    Args:
        path: CSV, JSONL or parquet file.
        part: "train" (every row needs a label) or "test" (all rows or none).
        min_votes: Votes that the winning letter of `answer1`..`answer5` needs.
        columns: Our names of columns to the file's, where they differ.
        answers: One of `FORMS`, `INDEX`, or "auto": the one of `FORMS` that fits the file.
        fewer_options: Whether a question may leave its last options empty.

    Returns:
        The rows that have as many fields as the header, in file order, with their answers; all problems; and
        notes on how the file was read.
    """
    columns = columns or {}
    table = read_table(path, own_names(columns)["question"])
    records, blank = _without_blank(_plain_names(table.records))
    notes = [*table.notes, *([f"{blank} rows without any text are left out"] if blank else [])]
    rows, of_rows = _make_rows(records, part, columns)
    notes += _more_pictures_note(records[0][1] if records else [], columns)
    labels, of_labels = _label(rows, part, min_votes, answers)
    notes += _options_note(rows)
    return rows, [*table.problems, *of_rows, *_check_cells(rows, fewer_options), *of_labels], notes + labels


def _options_note(rows: Sequence[Row]) -> list[str]:
    """How many options the questions have, where it is not four each."""
    numbers = sorted({len(row.letters) for row in rows})
    if numbers in ([], [USUAL]):
        return []
    said = str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"
    return [f"questions have {said} options ({', '.join(LETTERS[: numbers[-1]])})"]


def option_columns(path: Path, columns: Columns | None) -> list[str]:
    """The letters for which a file has a column; [] of a file that cannot be read."""
    names = own_names(columns)
    records = _plain_names(read_table(path, names["question"]).records)
    return [letter for letter in LETTERS if records and names[letter] in records[0][1]]


def _numbered(header: Sequence[str]) -> list[str]:
    """Columns that hold several pictures in all likelihood: image_1 and image_2, img and img2."""
    found = [(name, re.fullmatch(r"(\D*?)[ _-]?(\d{0,2})", name.strip().lower())) for name in header]
    stems = {name: match[1] for name, match in found if match and match[1] in PICTURES}
    several = {stem for stem, count in Counter(stems.values()).items() if count > 1}
    return [name for name, stem in stems.items() if stem in several]


def _more_pictures_note(header: Sequence[str], columns: Columns) -> list[str]:
    """That the file seems to have pictures in columns that are not read."""
    read = {theirs for ours, theirs in own_names(columns).items() if ours.split()[0] == "path"}
    numbered = _numbered(header)
    if not read & set(numbered) or read >= set(numbered):
        return []
    left = ", ".join(name for name in numbered if name not in read)
    setting = f'"data.columns={{path: [{", ".join(numbered)}]}}"'
    return [f"the pictures of {left} are not looked at; where a question has several: {setting}"]


def _plain_names(records: Sequence[Record]) -> list[Record]:
    """The records, names of columns without spaces and byte order marks around them."""
    header = [(line, [name.strip(" \t\u00a0\ufeff") for name in names]) for line, names in records[:1]]
    return [*header, *records[1:]]


def _without_blank(records: Sequence[Record]) -> tuple[list[Record], int]:
    """Without the rows of bare commas that spreadsheets leave; and how many there were."""
    kept = [record for record in records if any(cell.strip() for cell in record[1])]
    return kept, len(records) - len(kept)


def _swallowed(records: Sequence[Record], path_at: int) -> list[Problem]:
    """Rows that a stray quote has drawn into a field: lines of a field that hold a picture's path.

    The field's first line is the rest of its own row, which holds the path where that column comes later.
    """
    endings = Counter(PurePosixPath(fields[path_at]).suffix for _, fields in records if len(fields) > path_at)
    known = {ending for ending in endings if ending}
    problems = []
    for line, fields in records:
        for column, cell in enumerate(fields):
            if "\n" not in cell:
                continue
            rest, *others = cell.splitlines()
            hidden = [
                number
                for number, text in enumerate(others, start=1)
                if _is_path_at(text, path_at, known, path_at + (path_at == 0))
            ]
            if _is_path_at(rest, path_at - column, known, len(fields) - 1 - column):
                hidden = list(range(1, len(others) + 1))
            if hidden:
                text = (
                    f"a quote that opens here closes in line {line + len(others)}, and {len(hidden)} rows "
                    f"are taken for text: look for a stray quote in lines {line} and {line + hidden[-1]}"
                )
                problems.append(Problem(text, line, about="file"))
    return problems


def _is_path_at(text: str, at: int, endings: Collection[str], least: int) -> bool:
    """Whether a line, cut at one of the separators, has a picture's path at a place and cells up to another.

    Args:
        text: The line.
        at: The path's place; below 0 it has none.
        endings: Of pictures.
        least: The last place of a cell that there must be.
    """
    rows = (text.split(separator) for separator in SEPARATORS)
    return any(
        0 <= at < len(cells)
        and len(cells) > max(least, 0)
        and PurePosixPath(cells[at].strip()).suffix in endings
        for cells in rows
    )


def _advice(header: Sequence[str], names: Sequence[str], part: Part) -> str:
    """The setting that names the file's own columns; written out where none has our name, in our order."""
    first, last = ["id", "path", "question"], ["answer"] if part == "train" else []
    numbered = _numbered(header)
    options = len(header) - len(first) - len(last) - len(numbered[1:])
    fits = FEWEST <= options <= len(LETTERS)
    wanted = [*first, *LETTERS[: options if fits else USUAL], *last]
    plain = all(re.fullmatch(r"\w[\w .-]*", name) for name in header)
    if plain and not numbered and len(header) == len(wanted) and not set(wanted) & set(names):
        pairs = ", ".join(f"{ours}: {theirs}" for ours, theirs in zip(wanted, header, strict=True))
        return f'if they stand in this order: "data.columns={{{pairs}}}"'
    known = {"path": f"[{', '.join(numbered)}]"} if numbered else {}
    pairs = ", ".join(f"{name}: {known.get(name, 'NAME')}" for name in wanted if name not in names)
    return f'other names: "data.columns={{{pairs}}}"'


def _make_rows(records: Sequence[Record], part: Part, columns: Columns) -> tuple[list[Row], list[Problem]]:
    """The rows with as many fields as the header; what is wrong with the header and with the others."""
    if not records:
        return [], []
    line, header = records[0]
    own = own_names(columns)
    theirs = {column: name for name, column in own.items()}
    names = [theirs.get(name, f"{name} (other)" if name in own else name) for name in header]
    pictures = [name for name in own if name not in NAMES]
    exist = f"the file has the columns {', '.join(c if c.isprintable() else repr(c) for c in header)}"
    last = max((place for place, letter in enumerate(LETTERS) if letter in names), default=USUAL - 1)
    # an option in the middle is missing, or one that data.columns names; of a file without any, four are
    named = [name for name in LETTERS if name in columns]
    needed = dict.fromkeys([*COLUMNS, *pictures, *LETTERS[: last + 1], *named])
    missing = [own[name] for name in needed if name not in names]
    unlabelled = part == "train" and not {"answer", *VOTES} & set(names)
    if missing and _is_row(header, names):
        line_of_names = ",".join([*COLUMNS[:3], *LETTERS[:USUAL], *(["answer"] if part == "train" else [])])
        text = f"holds a question, not the names of the columns: put them above it, such as {line_of_names}"
        problems = [Problem(text, line, about="file")]
    elif missing:
        lacking = [*missing, own["answer"]] if unlabelled else missing
        joint = _joint_options(records)
        advice = f"{joint}; {_SPLIT}" if joint else _advice(header, names, part)
        problems = [Problem(f"is missing, {exist}; {advice}", line, ", ".join(lacking), "file")]
    else:
        problems = _near_options(header, names, last + 1, line)
    if unlabelled and not missing:
        problems.append(Problem(f"is missing (or {VOTES[0]}..{VOTES[-1]}), {exist}", line, "answer", "file"))
    problems += [
        Problem(f"stands {count} times in the header", line, name, "file")
        for name, count in Counter(names).items()
        if count > 1 and name in own
    ]
    if len(records) == 1 and not (missing and _is_row(header, names)):
        problems.append(Problem("has a header and no rows", about="file"))
    if not problems:
        problems = _swallowed(records[1:], names.index("path"))
    if problems:
        return [], problems

    rows, said = [], {"path": own["path"] if pictures else "path"} | {name: own[name] for name in pictures}
    for line, fields in records[1:]:
        if len(fields) == len(header):
            rows.append(Row(line, dict(zip(names, fields, strict=True)), said))
        else:
            column = header[min(len(fields), len(header) - 1)]
            text = f"{len(fields)} fields, the header has {len(header)}: quote fields that hold a comma"
            problems.append(Problem(text, line, column))
    return rows, problems


def _is_row(header: Sequence[str], names: Sequence[str]) -> bool:
    """Whether a file begins without a header: no column is ours, but a picture's file or one number, last."""
    if set(names) & set(COLUMNS[:3]):
        return False
    cells = [cell.strip() for cell in header]
    pictures = [PurePosixPath(cell).suffix.lower() in ENDINGS for cell in cells]
    numbers = [cell for cell in cells[1:] if cell in _ANSWERS]  # an id may be a number too
    return any(pictures) or numbers == cells[-1:]  # options may be columns named 1 to 4


_ANSWERS = {str(number) for number in range(1, len(LETTERS) + 1)} | set("①②③④⑤⑥")
_MARKS = re.compile(r"[①②③④⑤⑥]|(?<![^\s/,;|])[(]?[1-6][.)번]")
_SPLIT = "give each option a column of its own (docs/your_csv.md has the lines that do it)"


def _joint_options(records: Sequence[Record]) -> str:
    """Which column holds all options of a question in one cell: the next lines say so; "" where none does."""
    header, rows = records[0][1], [fields for _, fields in records[1:] if len(fields) == len(records[0][1])]
    for at, name in enumerate(header):
        if rows and all(len(_MARKS.findall(fields[at])) >= FEWEST for fields in rows):
            return f"all options of a question stand in one cell of {name}, such as {rows[0][at]!r}"
    return ""


def _near_options(header: Sequence[str], names: Sequence[str], options: int, line: int) -> list[Problem]:
    """Columns that mean the next option in all likelihood: without them a file of four would have three."""
    if options >= USUAL:
        return []
    letter = LETTERS[options]
    near = [
        theirs for theirs, ours in zip(header, names, strict=True) if ours.strip(" ().").lower() == letter
    ]
    text = f"looks like the option {letter}: name it {letter}, or set data.columns={{{letter}: NAME}}"
    return [Problem(text, line, theirs, "file") for theirs in near]


def _check_cells(rows: list[Row], fewer_options: bool) -> list[Problem]:
    problems = []
    first_line: dict[str, int] = {}
    for row in rows:
        for name in [name for name in NAMES[: NAMES.index("answer")] if name in row.cells]:
            if row.cells[name].strip() or name == "path":  # pictures: vqa/data/row_pictures.py
                continue
            may_end = name in LETTERS[FEWEST:] and name not in row.letters
            if not may_end:
                problems.append(Problem("is empty", row.line, name))
            elif not fewer_options:
                text = "is empty (data.fewer_options=true: questions may lack the last options)"
                problems.append(Problem(text, row.line, name))
        name = row.cells["id"]
        if name in first_line and name.strip():
            problems.append(Problem(f"{name!r} stands in row {first_line[name]} too", row.line, "id"))
        first_line.setdefault(name, row.line)
    return problems


def _label(rows: list[Row], part: Part, min_votes: int, answers: str) -> tuple[list[str], list[Problem]]:
    """Set the answer of each row that has one; how answers are written, where that is not by letter."""
    header = rows[0].cells if rows else {}
    columns = ["answer"] if "answer" in header else [name for name in VOTES if name in header]
    if not columns:
        return [], []
    where = columns[0] if len(columns) == 1 else f"{columns[0]}..{columns[-1]}"
    form, doubt = _form(rows, columns) if answers == "auto" else (answers, None)
    if doubt is not None:
        return [], [doubt]
    notes = [] if form == "letter" else [f"answers are read as {_SAID[form]}"]
    problems, blank = [], []
    for row in rows:
        given = {name: row.cells[name] for name in columns if row.cells[name].strip()}
        votes = {name: _letter(text, row, form) for name, text in given.items()}
        unknown = [name for name, letter in votes.items() if letter is None]
        problems += [
            Problem(f"must be {_rule(form, row)}, got {row.cells[name]!r}", row.line, name)
            for name in unknown
        ]
        if not votes:
            blank.append(row)
        elif not unknown:
            letters = [letter for letter in votes.values() if letter is not None]
            row.answer, reason = _winner(letters, 1 if columns == ["answer"] else min_votes)
            problems += [Problem(reason, row.line, where)] if reason else []
    if part == "train":
        problems += [Problem("is empty", row.line, where) for row in blank]
    elif len(blank) < len(rows):
        text = "is empty, while other rows have an answer: fill it, or empty all for an unlabelled file"
        problems += [Problem(text, row.line, where) for row in blank]
    return notes, problems


_SAID = {"number": "numbers, 1 is a", INDEX: "numbers, 0 is a", "text": "the text of an option"}


def _rule(form: str, row: Row) -> str:
    """How an answer must be written, in words."""
    if form == "text" or len(row.letters) < FEWEST:
        return "the text of one option"
    first = 0 if form == INDEX else 1
    return one_of(row.letters if form == "letter" else [str(n + first) for n in range(len(row.letters))])


def _letter(text: str, row: Row, form: str) -> str | None:
    """The letter that an answer means; None when it means none, or several."""
    text = text.strip()
    plain = unicodedata.normalize("NFKC", text).strip(AROUND)  # ① and the wide １ are 1, ⒜ is (a)
    if form == "letter":
        return plain.lower() if plain.lower() in row.letters else None
    if form in ("number", INDEX):
        numbers = {str(n): letter for n, letter in enumerate(row.letters, start=int(form == "number"))}
        return numbers.get(plain.removesuffix("번").removesuffix(".0"))  # "3번" is 3, and 3.0 of a float
    same = [letter for letter in row.letters if row.cells[letter].strip() == text]
    return same[0] if len(same) == 1 else None


def _form(rows: Sequence[Row], columns: Sequence[str]) -> tuple[str, Problem | None]:
    """The form that most answers of the file fit, letters first; a problem where two fit and differ."""
    given = [(row.cells[name], row) for row in rows for name in columns if row.cells[name].strip()]
    read = {form: [_letter(text, row, form) for text, row in given] for form in FORMS}
    fits = {form: sum(letter is not None for letter in letters) for form, letters in read.items()}
    best = max(FORMS, key=lambda form: fits[form])
    if best != "letter" and fits["number"] == fits["text"] and read["number"] != read["text"]:
        text = "may be numbers of options or their texts: set data.answers=number or data.answers=text"
        return best, Problem(text, column=columns[0], about="file")
    some_do_not = best == "number" and fits[best] < len(given)
    if some_do_not and all(_letter(text, row, INDEX) for text, row in given):
        return best, Problem("counts from 0: set data.answers=index", column=columns[0], about="file")
    return best, None


def _winner(votes: list[str], min_votes: int) -> tuple[str | None, str]:
    """The letter that wins, or None and why none does."""
    ranked = Counter(votes).most_common()
    letter, count = ranked[0]
    if len(ranked) > 1 and ranked[1][1] == count:
        return None, f"the votes tie: {', '.join(votes)}"
    if count < min_votes:
        return None, f"{letter} has {count} of the {min_votes} votes that data.min_votes asks for"
    return letter, ""
