from pathlib import Path

import pytest

from vqa.data.csv_rows import read_rows
from vqa.data.table_file import Problem

HEADER = "id,path,question,a,b,c,d,answer"


def rows_of(path: Path, text: str) -> list[tuple[int, str]]:
    """Line and question of each row of a file that has nothing wrong."""
    path.write_bytes(text.encode())
    rows, problems, _ = read_rows(path, "train", 1)
    assert problems == []
    return [(row.line, row.cells["question"]) for row in rows]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_rows_carry_the_line_an_editor_shows(tmp_path: Path, bom: str, end: str) -> None:
    lines = [
        HEADER,
        "1,x.jpg,one?,k,l,m,n,a",
        "",  # a blank line is no row, but counts as a line
        f'2,x.jpg,"two{end}lines?",k,l,m,n,b',
        '3,x.jpg,"a ""quoted"" word?",k,l,m,n,c',
    ]
    found = rows_of(tmp_path / "x.csv", bom + end.join(lines) + end)
    assert found == [(2, "one?"), (4, f"two{end}lines?"), (6, 'a "quoted" word?')]


@pytest.mark.parametrize(
    "text",
    [
        "id, path, question, a, b, c, d, answer\n1,x.jpg,one?,k,l,m,n,a",
        f"\ufeff\ufeff{HEADER}\n1,x.jpg,one?,k,l,m,n,a",
        f"sep=,\n{HEADER}\n1,x.jpg,one?,k,l,m,n,a",
        f"sep=;\n{HEADER}\n1,x.jpg,one?,k,l,m,n,a".replace(",", ";"),
    ],
    ids=["spaces", "two byte order marks", "Excel's first line", "with semicolons"],
)
def test_what_stands_around_the_names_of_columns_does_not_matter(tmp_path: Path, text: str) -> None:
    [(line, question)] = rows_of(tmp_path / "x.csv", text)
    assert line == text.count("\n") + 1
    assert question == "one?"


@pytest.mark.parametrize(
    ("first", "second"),
    [("(a)", "(b)"), ("A.", "B."), ("[a]", "[b]"), ("a)", "b)"), ("1.0", "2.0"), ("(1)", "(2)"), ("⒜", "⒝")],
)
def test_answers_are_read_with_what_people_put_around_them(tmp_path: Path, first: str, second: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text(f"{HEADER}\n1,x.jpg,q,k,l,m,n,{first}\n2,x.jpg,q,k,l,m,n,{second}\n")
    rows, problems, _ = read_rows(path, "train", 1)
    assert problems == []
    assert [row.answer for row in rows] == ["a", "b"]


def test_last_line_needs_no_end(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "x.csv", f"{HEADER}\n1,x.jpg,one?,k,l,m,n,a") == [(2, "one?")]


@pytest.mark.parametrize(
    ("votes", "min_votes", "answer", "reason"),
    [
        ("b,,,,", 1, "b", None),
        ("b,a,b,,", 1, "b", None),
        ("B, b ,a,c,d", 2, "b", None),
        ("a,b,c,d,d", 2, "d", None),
        ("b,a,b,a,", 1, None, "the votes tie: b, a, b, a"),
        ("b,a,c,d,", 1, None, "the votes tie: b, a, c, d"),
        ("b,,,,", 2, None, "b has 1 of the 2 votes that data.min_votes asks for"),
        ("b,b,b,a,a", 4, None, "b has 3 of the 4 votes that data.min_votes asks for"),
        (",,,,", 1, None, "is empty"),
    ],
)
def test_most_frequent_vote_wins_when_it_is_alone_and_has_enough(
    tmp_path: Path, votes: str, min_votes: int, answer: str | None, reason: str | None
) -> None:
    header = HEADER + "1,answer2,answer3,answer4,answer5"
    (tmp_path / "dev.csv").write_text(f"{header}\n1,x.jpg,q,k,l,m,n,{votes}\n")
    rows, problems, _ = read_rows(tmp_path / "dev.csv", "train", min_votes)
    assert rows[0].answer == answer
    assert problems == ([Problem(reason, 2, "answer1..answer5")] if reason else [])


def test_answer_column_goes_before_votes(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(f"{HEADER},answer1\n1,x.jpg,q,k,l,m,n,c,d\n")
    rows, problems, _ = read_rows(tmp_path / "x.csv", "train", 3)
    assert rows[0].answer == "c"
    assert problems == []


def test_problem_names_file_row_and_column() -> None:
    assert Problem("is empty", 17, "answer").at("train.csv") == "train.csv:row 17, column answer: is empty"
    assert Problem("is empty").at("train.csv") == "train.csv: is empty"


def test_a_file_with_columns_of_its_own_gets_the_setting_to_paste(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("번호,파일,질문,보기1,보기2,보기3,보기4,정답\n1,x.jpg,q,k,l,m,n,1\n", encoding="utf-8")
    _, problems, _ = read_rows(path, "train", 1)
    names = "id: 번호, path: 파일, question: 질문, a: 보기1, b: 보기2, c: 보기3, d: 보기4, answer: 정답"
    setting = f'"data.columns={{{names}}}"'
    assert problems[0].text.endswith(f"if they stand in this order: {setting}")
    path.write_text("id,image,question,a,b,c,d,answer\n1,x.jpg,q,k,l,m,n,1\n", encoding="utf-8")
    _, problems, _ = read_rows(path, "train", 1)
    assert problems[0].text.endswith('other names: "data.columns={path: NAME}"')


@pytest.mark.parametrize("written", ["3", "③", "３", "3번", " 3 "])  # as Korean contests write numbers
def test_a_number_is_an_answer_however_it_is_written(tmp_path: Path, written: str) -> None:
    (tmp_path / "x.csv").write_text(f"{HEADER}\n1,x.jpg,q,k,l,m,n,{written}\n", encoding="utf-8")
    rows, problems, notes = read_rows(tmp_path / "x.csv", "train", 1)
    assert ([row.answer for row in rows], problems) == (["c"], [])
    assert notes == ["answers are read as numbers, 1 is a"]


def test_numbers_from_zero_are_taken_where_the_setting_says_so_and_told_where_not(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text(HEADER + "".join(f"\n{n},x.jpg,q,k,l,m,n,{n}" for n in range(4)) + "\n")
    _, problems, _ = read_rows(path, "train", 1)
    assert [problem.at("x.csv") for problem in problems] == [
        "x.csv, column answer: counts from 0: set data.answers=index"
    ]
    rows, problems, notes = read_rows(path, "train", 1, answers="index")
    assert ([row.answer for row in rows], problems) == (["a", "b", "c", "d"], [])
    assert notes == ["answers are read as numbers, 0 is a"]
    path.write_text(f"{HEADER}\n1,x.jpg,q,k,l,m,n,4\n2,x.jpg,q,k,l,m,n,0\n")  # a slip, not another form
    _, [problem], _ = read_rows(path, "train", 1)
    assert problem.text == "must be 1, 2, 3 or 4, got '0'"
