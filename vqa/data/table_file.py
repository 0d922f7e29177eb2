"""A table from disk as text: CSV as Excel, Korean Windows and Kaggle write it, JSONL and parquet.

What had to be guessed (encoding, separator) is said in a note, one line each.
"""

import csv
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from vqa.machine.files import read_regular

MAX_BYTES = 2 * 2**30
MAX_COLUMNS = 1000  # each row could name its own: a table of them would be their number squared
PARQUET_ROWS = 256  # read at a time: a text that is stored once can stand in each of them
CELL_BYTES = 64  # what an empty cell takes in Python; parquet stores millions of them in nothing
SEPARATORS = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}
Record = tuple[int, list[str]]  # the line it starts on, its fields


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a file.

    Args:
        text: What is wrong.
        line: Line of the file on which the row starts, as an editor counts; 0 = the whole file.
        column: Column's name; "" = the whole row.
        about: "file" = no row can be trusted, "root" = no picture is where it is looked for, "image" = only
            the picture is at fault.
    """

    text: str
    line: int = 0
    column: str = ""
    about: Literal["file", "root", "row", "image"] = "row"

    def at(self, file: str) -> str:
        """The problem with its place: `file.csv:row 17, column answer: ...`."""
        row = f":row {self.line}" if self.line else ""
        column = f", column {self.column}" if self.column else ""
        return f"{file}{row}{column}: {self.text}"


def in_groups(problems: Sequence[Problem], file: str, named: int = 3) -> list[str]:
    """Problems for people: of those that are alike the first few, then how many more there are.

    Problems are alike that differ in row, quoted values, paths and numbers only.

    Args:
        problems: In the order of the file.
        file: Its name.
        named: How many of a kind are written out.

    Returns:
        One text for each kind of problem, of several lines where several rows have it.
    """
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        kinds.setdefault((problem.column, _VALUES.sub("*", problem.text)), []).append(problem)
    return [
        "\n    ".join([problem.at(file) for problem in alike[:named]] + _more(alike[named:]))
        for alike in kinds.values()
    ]


_VALUES = re.compile(r"""'[^']*'|"[^"]*"|/\S+|\d+""")


def _more(problems: Sequence[Problem]) -> list[str]:
    if not problems:
        return []
    return [f"and {len(problems)} more like these, the last is row {problems[-1].line}"]


@dataclass(frozen=True)
class Table:
    """The header and rows of a file; problems are with the whole file, notes tell how it was read."""

    records: list[Record] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def read_table(path: Path, wanted: str) -> Table:
    """Read a file by its ending: .jsonl and .ndjson, .json, .parquet, anything else as CSV.

    Args:
        path: The file.
        wanted: A column that the header should have; it tells the separator.
    """
    try:
        data = read_regular(path, MAX_BYTES)
    except OSError as error:
        return Table(problems=[Problem(f"cannot be read: {error.strerror}", about="file")])
    if path.suffix.lower() == ".parquet":
        return _parquet(data)
    if data.startswith(_OFFICE):
        return Table(problems=[Problem("is an Excel or zip file: save it as CSV UTF-8", about="file")])
    if data.startswith(_PACKED):
        return Table(problems=[Problem("is packed: unpack it first", about="file")])
    text, encoding = _decoded(data)
    if encoding is None:
        line = len(text.splitlines()) + 1
        return Table(problems=[Problem("is not UTF-8: save the file as 'CSV UTF-8'", line, about="file")])
    notes = [] if encoding == "UTF-8" else [f"read as {encoding}; if words look wrong, save it as UTF-8"]
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _json_lines(text, notes)
    if path.suffix.lower() == ".json":
        return _json_list(text, notes)
    return _comma_separated(text, wanted, notes)


_OFFICE = (b"PK\x03\x04", b"\xd0\xcf\x11\xe0")
_PACKED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd")


def _decoded(data: bytes) -> tuple[str, str | None]:
    """The text and its encoding; of no known one, what could be read before the first strange byte."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        candidates = [("utf-16", "UTF-16")]
    else:
        candidates = [("utf-8-sig", "UTF-8"), ("cp949", "cp949 (Korean Windows)")]
    for codec, name in candidates:
        try:
            return data.decode(codec), name
        except UnicodeDecodeError:
            continue
    return data.decode(candidates[0][0], errors="replace").split("\ufffd")[0], None


def _comma_separated(text: str, wanted: str, notes: list[str]) -> Table:
    first = text.lstrip("\r\n").split("\n", 1)[0].rstrip("\r")
    told = re.fullmatch(r"sep=([,;|\t])[,;|\t]*", first)  # Excel's own first line
    separator = told[1] if told else ","
    if told is None and not _names(wanted, first, ","):
        separator = next((sep for sep in SEPARATORS if _names(wanted, first, sep)), ",")
    if separator != ",":
        notes = [*notes, f"read with {SEPARATORS[separator]} between columns"]
    records: list[Record] = []
    # Without `strict`, a quote that is never closed swallows all rows up to the next quote.
    reader = csv.reader(io.StringIO(text, newline=""), strict=True, delimiter=separator)
    line = 1
    try:
        for fields in reader:
            if fields:
                records.append((line, fields))
            line = reader.line_num + 1
    except csv.Error as error:
        return Table(
            records, [Problem(f"is not CSV, look for a stray quote: {error}", line, about="file")], notes
        )
    records = records[1:] if told else records
    return Table(records, [] if records else [Problem("is empty", about="file")], notes)


def _names(wanted: str, line: str, separator: str) -> bool:
    return wanted in map(str.strip, line.split(separator))


def _json_list(text: str, notes: list[str]) -> Table:
    """A list of objects, as pandas' `to_json(orient="records")` writes it."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Table(problems=[Problem(f"is no JSON: {error}", about="file")])
    if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
        text = "must be a list of objects [{...}, ...]; one object a line is .jsonl"
        return Table(problems=[Problem(text, about="file")])
    return _from_objects(
        list(enumerate(value, start=1)), [*notes, "row numbers count from 1, without a header"]
    )


def _json_lines(text: str, notes: list[str]) -> Table:
    rows: list[tuple[int, dict[str, object]]] = []
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            return Table(problems=[Problem(f"is no JSON: {error}", line, about="file")])
        if not isinstance(value, dict):
            return Table(problems=[Problem("must be an object {...}", line, about="file")])
        rows.append((line, value))
    return _from_objects(rows, notes)


def _parquet(data: bytes) -> Table:
    try:
        import pyarrow  # type: ignore[import-untyped]
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError:
        text = "is parquet, which needs pyarrow: pip install pyarrow, or save it as CSV UTF-8"
        return Table(problems=[Problem(text, about="file")])
    rows: list[dict[str, object]] = []
    held = 0
    try:
        for batch in parquet.ParquetFile(io.BytesIO(data)).iter_batches(batch_size=PARQUET_ROWS):
            found = batch.to_pylist()
            held += sum(CELL_BYTES + _length(value) for row in found for value in row.values())
            if held > MAX_BYTES:
                text = f"unpacks to more than {MAX_BYTES // 2**30} GiB: leave out columns, or divide it"
                return Table(problems=[Problem(text, about="file")])
            rows += found
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:  # texts, dates no date has
        reason = " ".join(str(error).split())[:300]
        return Table(problems=[Problem(f"is no parquet: {reason}", about="file")])
    return _from_objects(list(enumerate(rows, start=1)), ["row numbers count from 1, without a header"])


def _from_objects(rows: list[tuple[int, dict[str, object]]], notes: list[str]) -> Table:
    """One header of all names in the order met; what a row does not name is empty."""
    header: dict[str, None] = {}
    for line, row in rows:
        header.update(dict.fromkeys(row))
        if wrong := next((text for text in (*row, *row.values()) if not _is_text(text)), None):
            text = f"is no text: half of a surrogate pair in {_shortened(wrong)}; mend it"
            return Table(problems=[Problem(text, line, about="file")])
        if len(header) > MAX_COLUMNS:
            text = f"names more than {MAX_COLUMNS:,} columns with the rows before it"
            return Table(problems=[Problem(text, line, about="file")])
    if not rows:
        return Table(problems=[Problem("is empty", about="file")])
    records = [(rows[0][0], list(header))]
    records += [(line, [_cell(row.get(name)) for name in header]) for line, row in rows]
    return Table(records, [], notes)


def _length(value: object) -> int:
    return len(value) if isinstance(value, str | bytes) else 0


def _is_text(value: object) -> bool:
    """Whether it can be written as UTF-8: JSON can spell half of a surrogate pair."""
    text = value if isinstance(value, str) else _cell(value)
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


def _shortened(value: object) -> str:
    return ascii(value) if len(ascii(value)) <= 60 else f"{ascii(value)[:60]}..."


def _cell(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
