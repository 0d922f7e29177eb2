"""Two to six options: the columns of a contest's file say how many."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from tests.helpers.contest_file import contest
from vqa.errors import UserError


def csv_of(options: str, *rows: str) -> str:
    """A training file with these option columns; a row is its options and its answer."""
    lines = [f"q{i},red.png,what?,{row}" for i, row in enumerate(rows)]
    return "\n".join([f"id,path,question,{options},answer", *lines]) + "\n"


@pytest.mark.parametrize(
    ("options", "row", "choices", "answer"),
    [
        ("a,b", "yes,no,B", ("yes", "no"), "b"),
        ("a,b,c", "1,2,3,c", ("1", "2", "3"), "c"),
        ("a,b,c,d,e", "u,v,w,x,y,5", ("u", "v", "w", "x", "y"), "e"),
        ("f,e,d,c,b,a", "z,y,x,w,v,u,z", ("u", "v", "w", "x", "y", "z"), "f"),
    ],
)
def test_the_option_columns_say_how_many_options_there_are(
    root: Path,
    options: str,
    row: str,
    choices: tuple[str, ...],
    answer: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (question,) = contest(root, csv_of(options, row)).train()
    assert (question.choices, question.answer) == (choices, answer)
    assert f"questions have {len(choices)} options" in caplog.text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            csv_of("a,b,c,D", "1,2,3,4,a"),
            "column D: looks like the option d: name it d, or set data",
        ),
        (csv_of("a,b,d", "1,2,4,a"), "column c: is missing"),
        (csv_of("a", "1,a"), "column b: is missing"),
        (csv_of("a,b,c", "1,2,3,d"), "column answer: must be a, b or c, got 'd'"),
        (csv_of("a,b,c", "x,y,z,1", "x,y,z,4"), "column answer: must be 1, 2 or 3, got '4'"),
        (csv_of("a,b,c,d,e", "1,2,3,4,,a"), "column e: is empty (data.fewer_options=true"),
        (csv_of("a,b,c,d,e", "1,2,,4,,a"), "column c: is empty"),
        (csv_of("a,b,c", "1,,,a"), "column b: is empty"),
    ],
)
def test_options_that_do_not_fit_are_refused_with_their_place(root: Path, text: str, problem: str) -> None:
    with pytest.raises(UserError, match=re.escape(problem)):
        contest(root, text).train()


def test_a_named_option_column_must_be_there(root: Path) -> None:
    data = replace(contest(root, csv_of("a,b,c", "1,2,3,a")), columns={"d": "fourth"})
    with pytest.raises(UserError, match="column fourth: is missing"):
        data.train()


def test_questions_may_have_fewer_options_where_that_is_said(root: Path) -> None:
    text = csv_of("a,b,c,d,e", "1,2,3,4,5,e", "1,2,,,,b", "1,2,3, ,,c")
    found = replace(contest(root, text), fewer_options=True).train()
    assert [q.choices for q in found] == [("1", "2", "3", "4", "5"), ("1", "2"), ("1", "2", "3")]
    for bad, problem in (("1,2,,4,,a", "column c: is empty"), ("1,2,,,,c", "must be a or b, got 'c'")):
        data = replace(contest(root, csv_of("a,b,c,d,e", "1,2,3,4,5,e", bad)), fewer_options=True)
        with pytest.raises(UserError, match=problem):
            data.train()


def test_both_files_have_the_same_options(root: Path) -> None:
    contest(root, csv_of("a,b,c,d", "1,2,3,4,a"))
    data = replace(contest(root, csv_of("a,b,c", "1,2,3,a"), "test"), train_csv=str(root / "train.csv"))
    with pytest.raises(UserError, match=r"test.csv: has the options a, b, c, .*train.csv has a, b, c, d: re"):
        data.test()
    assert "has the options a, b, c" in data.check()[0]
    assert replace(data, fewer_options=True).test()
