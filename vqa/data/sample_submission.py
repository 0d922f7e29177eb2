"""The answers as a contest's sample submission writes them: its columns, its order, its form of an answer."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from vqa.data.csv_rows import INDEX, Columns, own_names
from vqa.data.places import data_file
from vqa.data.table_file import read_table
from vqa.question import LETTERS, Question


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
